"""How likely a whole split is, from below, with a certificate of how far below.

Annealed importance sampling bounds ln P(y) of real data from below only. On data that the model itself simulates, it is
bounded from above as well, since there an exact sample of the posterior is known (Wu et al. 2017, section 4.2): the
distance of the two bounds there is what the sampler misses at most, on average, on data like the model's own.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from vae_jax.core.combinator import vae
from vae_jax.core.estimators import fixed_encoder
from vae_jax.core.model import Conditional, Params, join
from vae_jax.core.numbers import is_whole
from vae_jax.data.check import check_data
from vae_jax.data.preprocess import Preprocess, identity
from vae_jax.evaluation import annealed
from vae_jax.evaluation.whole_split import Mean, mean, over_split


class Certificate(NamedTuple):
    """Bounds on ln P(y) in nats for one example; each `Mean` is over examples, with its standard error.

    Fields:
        lower: of the data, from below: E lower <= mean ln P(y).
        simulated_lower, simulated_upper: of data simulated by the model: ln P(y) is between them, in expectation.
        gap: simulated_upper - simulated_lower, example by example: both bounds are closer to ln P(y) than this.
        each: (n,) the lower bound of each example of the split.
        temperatures, chains, start: T, chains for each bound, and "prior" or "encoder".
        convention: name of the data convention.
    """

    lower: Mean
    simulated_lower: Mean
    simulated_upper: Mean
    gap: Mean
    each: np.ndarray
    temperatures: int
    chains: int
    start: str
    convention: str


def certified(
    prior: Conditional,
    generator: Conditional,
    params: Params,
    key: Array,
    ys: Any,
    cs: Any = None,
    *,
    encoder: Conditional | None = None,
    preprocess: Preprocess = identity(),
    temperatures: int = 1000,
    chains: int = 16,
    schedule: Callable[[int], np.ndarray] = annealed.sigmoid_betas,
    simulate: int = 100,
    batch_size: int = 20,
    progress: bool = False,
) -> Certificate:
    """ln P(y) of a whole split from below, and of simulated examples from both sides, by annealing with HMC.

    A result does not depend on the batches, up to rounding. Under one key, an example of the split has the same noise
    in its data here and in `evaluate`, so that `each` may be compared with the ELBO of each.

    Args:
        params: `{"pri": ..., "gen": ...}`, and "enc" where an encoder is given.
        ys: (n, *example); cs: (n, *condition) or None. Simulated examples take the conditions in turn.
        encoder: start from P_enc(z|y) instead of the prior: closer to the posterior, so fewer temperatures do.
        preprocess: as in training.
        temperatures: T, steps from the start to the joint density. More are better, in proportion to the time.
        chains: for each example and bound; batch_size * chains of them are in memory at once.
        schedule: `sigmoid_betas` or `linear_betas`, or any `T -> (T + 1,)` from 0 to 1.
        simulate: how many examples are simulated.
        progress: show a bar.

    Raises:
        ValueError: data that the model cannot take (see `check_data`), or options out of range.
        TypeError: a part without a density, or a z that is not real.
    """
    if not all(is_whole(option) for option in (chains, simulate, batch_size)):
        raise ValueError(
            f"want chains >= 1, simulate >= 1 and batch_size >= 1; got {chains}, {simulate} and {batch_size}"
        )
    ys, cs = _checked(prior, generator, params, ys, cs, encoder, preprocess)
    schedule(temperatures)  # refuses what it cannot do, before anything is compiled
    parts = (prior, generator, encoder)
    of_data, of_simulated = _compiled(*parts, preprocess, schedule, temperatures, chains, cs is not None)
    n = len(jax.tree.leaves(ys)[0])
    run = functools.partial(over_split, progress=progress)
    each = run(of_data, params, key, ys, cs, batch_size=min(batch_size, n), doing="ln P(y) of the data, from below")
    places = np.arange(n, n + simulate)  # after those of the split: noise of their own
    conditions = jax.tree.map(lambda c: np.asarray(c)[places % n], cs)
    doing = "ln P(y) of simulated data, from both sides"
    low, high = run(of_simulated, params, key, places, conditions, batch_size=min(batch_size, simulate), doing=doing)
    return Certificate(
        lower=mean(each),
        simulated_lower=mean(low),
        simulated_upper=mean(high),
        gap=mean(high - low),
        each=each,
        temperatures=temperatures,
        chains=chains,
        start="prior" if encoder is None else "encoder",
        convention=preprocess.name,
    )


def _checked(prior, generator, params, ys, cs, encoder, preprocess) -> tuple[Any, Any]:
    """`check_data`. Without an encoder the prior takes its place, whatever y."""
    annealed.check_parts(prior, generator, encoder)
    at_data = Conditional(
        lambda key, joined: prior.init(key, None if cs is None else joined[1]),
        lambda params, joined: prior.dist(params, None if cs is None else joined[1]),
    )
    enc = params["pri"] if encoder is None else params["enc"]
    wanted = {"enc": enc, "pri": params["pri"], "gen": params["gen"]}
    model = vae(encoder or at_data, prior, generator, estimator=fixed_encoder)
    return check_data(model, ys, cs, preprocess, params=wanted)


@functools.lru_cache(maxsize=16)
def _compiled(prior, generator, encoder, preprocess, schedule, temperatures, chains, conditional):
    """Two functions `(params, key, indices, ys, cs)` of a batch: bounds of data, and of what is simulated at places."""
    betas = schedule(temperatures)

    def prepare(params, key, y, c):
        path = annealed.path_to_joint(prior, generator, params, y, c, encoder=encoder)
        return path, {"chains": chains, "transition": annealed.hmc(annealed.tune(path, key, betas))}

    def of_data(params, key, index, y, c):
        k_data, k_pilot, k_chains = jax.random.split(jax.random.fold_in(key, index), 3)
        path, how = prepare(params, k_pilot, preprocess.apply(k_data, y), c)
        return annealed.lower_bound(annealed.ais(path, k_chains, betas, **how))

    def of_simulated(params, key, index, place, c):
        del index
        k_z, k_y, k_pilot, k_up, k_down = jax.random.split(jax.random.fold_in(key, place), 5)
        z = prior.dist(params["pri"], c).sample(k_z)
        y = generator.dist(params["gen"], join(z, c)).sample(k_y)
        path, how = prepare(params, k_pilot, y, c)
        low, high = annealed.ais(path, k_up, betas, **how), annealed.reverse_ais(path, k_down, z, betas, **how)
        return annealed.lower_bound(low), annealed.upper_bound(high)

    axes = (None, None, 0, 0, 0 if conditional else None)
    return tuple(jax.jit(jax.vmap(one, in_axes=axes)) for one in (of_data, of_simulated))
