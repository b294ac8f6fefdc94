"""Where the nats go: the parts of ln P(y) - ELBO and the parts of the rate.

ln P(y) - ELBO = approximation gap + amortisation gap                     (Cremer et al. 2018, equations 5, 6)
E rate = I(y; z) + KL(aggregate || prior),   aggregate = E_y P_enc(z|y)   (Hoffman & Johnson 2016)
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import logsumexp
from jaxtyping import Shaped

from vae_jax.core.combinator import vae
from vae_jax.core.distributions import unit_log_prob
from vae_jax.core.model import Conditional, Model, Params, Terms, join, log_prob
from vae_jax.core.numbers import is_whole
from vae_jax.data.check import check_data
from vae_jax.data.preprocess import Preprocess, identity
from vae_jax.evaluation.refinement import elbo_draws, refine
from vae_jax.evaluation.whole_split import Mean, mean, over_split


class Gaps(NamedTuple):
    """ln P(y) - ELBO and its two parts, in nats, averaged over the examples, with standard errors.

    Fields:
        total: ln P(y) - ELBO = approximation + amortisation, example by example.
        approximation: ln P(y) - ELBO(q*), q* the best member of the encoder's family for that y: what the family costs.
        amortisation: ELBO(q*) - ELBO: what it costs that one network serves all y.
        elbo, refined_elbo: ELBO of the encoder and of q*.
    """

    total: Mean
    approximation: Mean
    amortisation: Mean
    elbo: Mean
    refined_elbo: Mean


class _Refining(NamedTuple):
    steps: int
    learning_rate: Any
    samples: int
    draws: int


def gaps(
    encoder: Conditional,
    prior: Conditional | Model,
    generator: Conditional | Model,
    params: Params,
    key: Array,
    ys: Any,
    cs: Any = None,
    *,
    log_p: Shaped[np.ndarray, " n"],
    preprocess: Preprocess = identity(),
    steps: int = 500,
    learning_rate: Any = 0.02,
    samples: int = 8,
    draws: int = 100,
    batch_size: int = 100,
    progress: bool = False,
) -> Gaps:
    """Split ln P(y) - ELBO of a VAE by refining the encoder's output for each example (see `refine`).

    Where `log_p` is a lower bound, so are the total and the approximation gap; where the refinement stops short of q*,
    the amortisation gap is too small and the approximation gap too large by as much. The sum is exact in any case.

    Args:
        ys: (n, *example); cs: (n, *condition) or None.
        log_p: ln P(y) of each y: `certified(...).each` or `evaluate(..., k=5000).log_likelihood`, with the same key
            where a preprocess= has noise, so that it is of the same data.
        preprocess: as in training.
        steps, learning_rate, samples: of `refine`.
        draws: of z for each ELBO; the same noise serves both.

    Raises:
        ValueError: data that the model cannot take, log_p of another length or not finite, or draws < 1.
    """
    ys, cs = check_data(vae(encoder, prior, generator), ys, cs, preprocess, params=params)
    n = len(jax.tree.leaves(ys)[0])
    log_p = np.asarray(log_p, np.float64)
    if log_p.shape != (n,) or not np.isfinite(log_p).all():
        raise ValueError(f"log_p wants a finite ln P(y) for each of the {n} examples; got shape {log_p.shape}")
    if not is_whole(draws) or not is_whole(batch_size):
        raise ValueError(f"want draws >= 1 and batch_size >= 1; got {draws} and {batch_size}")
    options = _Refining(steps, learning_rate, samples, draws)
    of_batch = _refined(encoder, prior, generator, preprocess, options, cs is not None)
    elbo, best = over_split(
        of_batch, params, key, ys, cs, batch_size=min(batch_size, n), progress=progress, doing="refining"
    )
    return Gaps(mean(log_p - elbo), mean(log_p - best), mean(best - elbo), mean(elbo), mean(best))


@functools.lru_cache(maxsize=16)
def _refined(encoder, prior, generator, preprocess: Preprocess, options: _Refining, conditional: bool):
    """`(params, key, indices, ys, cs) -> (ELBO of the encoder, ELBO of q*)` of a batch."""

    def one(params, key, index, y, c):
        k_data, k_refine, k_draws = jax.random.split(jax.random.fold_in(key, index), 3)
        seen = preprocess.apply(k_data, y)
        how = {"steps": options.steps, "learning_rate": options.learning_rate, "samples": options.samples}
        best = refine(encoder, prior, generator, params, k_refine, seen, c, **how).q

        def elbo(q):
            return jnp.mean(elbo_draws(q, prior, generator, params, k_draws, seen, c, samples=options.draws))

        return elbo(encoder.dist(params["enc"], join(seen, c))), elbo(best)

    return jax.jit(jax.vmap(one, in_axes=(None, None, 0, 0, 0 if conditional else None)))


class RateSplit(NamedTuple):
    """The average rate of a data set and its two parts, in nats.

    Fields:
        rate: mutual_information + marginal_kl, example by example.
        mutual_information: I(y; z) where the n examples are all there is; of the distribution that they were drawn
            from it is a lower bound in expectation, and never above ln n.
        mutual_information_upper: each example left out of its own aggregate: an upper bound in expectation for that
            distribution (Poole et al. 2019, equations 12, 13).
        marginal_kl: KL(aggregate || prior), with the same bias as mutual_information in the other direction.
        total_correlation, dimension_kl: the two parts of marginal_kl where encoder and prior factorise over units,
            KL(aggregate || product of its margins) and the sum of KL(margin || prior) (Chen et al. 2018, equation 2);
            else None.
        limit: ln n.
    """

    rate: Mean
    mutual_information: Mean
    mutual_information_upper: Mean
    marginal_kl: Mean
    limit: float
    total_correlation: Mean | None = None
    dimension_kl: Mean | None = None


def rate_split(
    encoder: Conditional,
    prior: Conditional,
    params: Params,
    key: Array,
    ys: Any,
    cs: Any = None,
    *,
    preprocess: Preprocess = identity(),
    samples: int = 1,
    batch_size: int = 100,
    progress: bool = False,
) -> RateSplit:
    """Average rate = mutual information + KL(aggregate || prior), from ln P_enc(z_i|y_j) of all pairs.

    The n x n numbers are made in blocks of batch_size x batch_size and never kept; time grows with n^2. Standard errors
    are over the examples i, the aggregate taken as given.

    Args:
        params: `{"enc": ..., "pri": ...}`; others are ignored.
        ys: (n, *example); cs: (n, *condition) or None. With conditions the information is that of the pair (y, c), and
            the second part is a divergence only where the prior does not depend on c.
        preprocess: as in training.
        samples: draws of z for each example.

    Raises:
        ValueError: data that the encoder cannot take, fewer than two examples, or samples < 1.
    """
    if not is_whole(samples) or not is_whole(batch_size):
        raise ValueError(f"want samples >= 1 and batch_size >= 1; got {samples} and {batch_size}")
    wanted = {"enc": params["enc"], "pri": params["pri"]}
    ys, cs = check_data(_rate_model(encoder, prior), ys, cs, preprocess, params=wanted)
    n = len(jax.tree.leaves(ys)[0])
    if n < 2:
        raise ValueError("an aggregate of one example tells nothing: want at least two")
    batch_size = min(batch_size, n)
    encode = _encode(encoder, prior, preprocess, samples, cs is not None)
    run = functools.partial(over_split, batch_size=batch_size, progress=progress)
    qs, zs, own, pri, factorises = run(encode, wanted, key, ys, cs, doing="encoding")
    everyone, others, margins = run(_aggregate, _in_blocks(qs, n, batch_size), key, zs, None, doing="all pairs")
    everyone, others = everyone - np.log(n), others - np.log(n - 1)
    margins = (margins - np.log(n)).sum(axis=-1) if factorises.all() and margins.shape[-1] else None

    def averaged(values):
        return mean(values.mean(axis=1, dtype=np.float64))

    return RateSplit(
        rate=averaged(own - pri),
        mutual_information=averaged(own - everyone),
        mutual_information_upper=averaged(own - others),
        marginal_kl=averaged(everyone - pri),
        limit=float(np.log(n)),
        total_correlation=None if margins is None else averaged(everyone - margins),
        dimension_kl=None if margins is None else averaged(margins - pri),
    )


def _rate_model(encoder: Conditional, prior: Conditional) -> Model:
    """What `check_data` wants to know: parameters for these data, and a rate that is one number."""

    def init(key, y, c):
        k_enc, k_pri = jax.random.split(key)
        return {"enc": encoder.init(k_enc, join(y, c)), "pri": prior.init(k_pri, c)}

    def terms(params, key, y, c):
        q = encoder.dist(params["enc"], join(y, c))
        z = q.sample(key)
        return Terms(distortion=0.0, rate=log_prob(q, z) - log_prob(prior.dist(params["pri"], c), z))

    return Model(init, terms, lambda params, key, c: None)


@functools.lru_cache(maxsize=16)
def _encode(encoder: Conditional, prior: Conditional, preprocess: Preprocess, samples: int, conditional: bool):
    """`(params, key, indices, ys, cs) -> (q, zs, ln q(z|y), ln p(z), whether the prior factorises)` of a batch;
    `samples` draws on axis 1."""

    def one(params, key, index, y, c):
        k_data, k_z = jax.random.split(jax.random.fold_in(key, index), 3)[:2]
        q = encoder.dist(params["enc"], join(preprocess.apply(k_data, y), c))
        pri = prior.dist(params["pri"], c)
        zs = jax.vmap(q.sample)(jax.random.split(k_z, samples))
        factorises = unit_log_prob(pri, zs[0]) is not None
        log_q, log_p = (jax.vmap(lambda z, of=of: log_prob(of, z))(zs) for of in (q, pri))
        return q, zs, log_q, log_p, jnp.bool_(factorises)

    return jax.jit(jax.vmap(one, in_axes=(None, None, 0, 0, 0 if conditional else None)))


def _in_blocks(qs: Any, n: int, size: int) -> Any:
    """(distributions, their places), both cut into blocks (n / size, size); what fills the last has place -1."""
    places = np.arange(-(-n // size) * size)
    blocks = jax.tree.map(lambda x: x[np.minimum(places, n - 1)].reshape(-1, size, *x.shape[1:]), qs)
    return blocks, np.where(places < n, places, -1).reshape(-1, size)


@jax.jit
def _aggregate(blocks: Any, key: Array, indices: Array, zs: Array, cs: None) -> tuple[Array, Array, Array]:
    """ln sum_j P_enc(z|y_j) over all j, and over all but the example that z belongs to, (batch, samples) each; and over
    all j of each unit, (batch, samples, units), with no units where the encoder does not factorise over them."""
    del key, cs

    def add(totals, block):
        qs, places = block
        matrix, units = jax.vmap(jax.vmap(lambda z: jax.vmap(lambda q: _log_probs(q, z))(qs)))(zs)
        real = (places >= 0)[None, None]
        other = real & (places[None, None] != indices[:, None, None])
        parts = [logsumexp(jnp.where(kept, matrix, -jnp.inf), axis=-1) for kept in (real, other)]
        parts.append(logsumexp(jnp.where(real[..., None], units, -jnp.inf), axis=2))
        return tuple(jnp.logaddexp(total, part) for total, part in zip(totals, parts, strict=True)), None

    nothing = jnp.full(zs.shape[:2], -jnp.inf)
    of_one = jax.tree.map(lambda x: x[0, 0], blocks[0])
    of_units = jnp.full((*zs.shape[:2], len(_log_probs(of_one, zs[0, 0])[1])), -jnp.inf)
    totals, _ = jax.lax.scan(add, (nothing, nothing, of_units), blocks)
    return totals


def _log_probs(q: Any, z: Array) -> tuple[Array, Array]:
    """ln q(z), and of each unit (units,); no units where they are not independent."""
    units = unit_log_prob(q, z)
    return log_prob(q, z), jnp.zeros(0) if units is None else units.ravel()
