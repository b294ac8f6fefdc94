"""The combinator: a VAE turns a model of z into a model of y.

    L(y, z) = -ln P_pri(z) P_gen(y|z) / P_enc(z|y)        E_{z ~ P_enc(z|y)} L  >=  -ln P(y)

An estimator decides how E L is estimated for one example and how its gradient reaches the encoder. It does not change
what is estimated, except that `importance` always returns one importance sample of P(y), which the estimators with a
closed form inside do not.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import logsumexp

from vae_jax.distributions import enumerate_support, unit_kl, unit_log_prob
from vae_jax.model import Conditional, Model, Params, Terms, example_of, join, lift, log_prob


class Parts(NamedTuple):
    """What an estimator works on: the encoder, and prior and generator as models.

    `prior_conditional` is the prior where its density is tractable, else None.
    """

    encoder: Conditional
    prior: Model
    generator: Model
    prior_conditional: Conditional | None


class Estimator(NamedTuple):
    """Two functions `(parts, params, key, y, c) -> Terms`: the bound, and one importance sample of P(y|c)."""

    terms: Callable[..., Terms]
    importance: Callable[..., Terms]


def vae(
    encoder: Conditional,
    prior: Model | Conditional,
    generator: Model | Conditional,
    *,
    estimator: Estimator | None = None,
) -> Model:
    """P(y|c) = E_{z ~ P_pri(z|c)} P_gen(y|z, c), bounded with the help of P_enc(z|y, c).

    The parameters are `{"enc": ..., "pri": ..., "gen": ...}`. Without a condition the encoder is called with y and the
    generator with z; with one, with (y, c) and (z, c), and the prior with c. The result is a `Model`, so it can be the
    prior of the next VAE.

    Args:
        encoder: P_enc(z|y).
        prior: P_pri(z).
        generator: P_gen(y|z).
        estimator: `sampled` (the default), `sticking`, `analytic`, `enumerated` or `fixed_encoder`.

    Raises:
        TypeError: the encoder is not a `Conditional`, or `analytic` is asked for with a prior that is only a `Model`.
    """
    if not isinstance(encoder, Conditional):
        raise TypeError(
            f"the encoder has to be a Conditional, since its density is needed; got {type(encoder).__name__}"
        )
    estimator = sampled if estimator is None else estimator
    tractable = prior if isinstance(prior, Conditional) else None
    parts = Parts(encoder, lift(prior), lift(generator), tractable)
    if estimator is analytic and tractable is None:
        raise TypeError("estimator=analytic needs a prior with a density; this one is a Model. Use sampled or sticking")

    def init(key, y, c=None):
        k_enc, k_pri, k_gen = jax.random.split(key, 3)
        enc = encoder.init(k_enc, join(y, c))
        z = example_of(lambda: encoder.dist(enc, join(y, c)).sample(jax.random.key(0)))
        return {
            "enc": enc,
            "pri": parts.prior.init(k_pri, z, c),
            "gen": parts.generator.init(k_gen, y, join(z, c)),
        }

    def terms(params, key, y, c=None):
        return estimator.terms(parts, params, key, y, c)

    def importance(params, key, y, c=None):
        return estimator.importance(parts, params, key, y, c)

    def sample(params, key, c=None):
        k_z, k_y = jax.random.split(key)
        z = parts.prior.sample(params["pri"], k_z, c)
        return parts.generator.sample(params["gen"], k_y, join(z, c))

    def maximise(params, stats):
        return {
            "enc": params["enc"],
            "pri": parts.prior.maximise(params["pri"], stats["pri"]),
            "gen": parts.generator.maximise(params["gen"], stats["gen"]),
        }

    support_of_generator = parts.generator.support

    def support(params, c=None):
        z = parts.prior.sample(params["pri"], jax.random.key(0), c)
        return None if support_of_generator is None else support_of_generator(params["gen"], join(z, c))

    offers_importance = parts.prior.importance and parts.generator.importance
    return Model(
        init=init,
        terms=terms,
        sample=sample,
        importance=importance if offers_importance else None,
        maximise=maximise,
        support=support if support_of_generator else None,
    )


class _Chain(NamedTuple):
    """The functions of prior and generator that an estimator follows: those of the bound, or of importance."""

    prior: Callable[..., Terms]
    generator: Callable[..., Terms]


def _bounds(parts: Parts) -> _Chain:
    return _Chain(parts.prior.terms, parts.generator.terms)


def _importances(parts: Parts) -> _Chain:
    return _Chain(importance_of(parts.prior), importance_of(parts.generator))


def _assemble(chain: _Chain, params: Params, key: Array, log_q: Array, z: Any, y: Any, c: Any) -> Terms:
    """L at one z: rate = ln P_enc - ln P_pri, distortion = -ln P_gen, each part giving its own bound."""
    k_pri, k_gen = jax.random.split(key)
    pri = chain.prior(params["pri"], k_pri, z, c)
    gen = chain.generator(params["gen"], k_gen, y, join(z, c))
    return Terms(
        distortion=gen.nats,
        rate=log_q + pri.nats,
        penalty=pri.penalty + gen.penalty,
        detail={"pri": pri.detail, "gen": gen.detail},
        stats={"pri": pri.stats, "gen": gen.stats},
    )


def _with_detail(terms: Terms, q: dist.Distribution, unit_rate: Array | None) -> Terms:
    return terms._replace(detail={**terms.detail, "z": {"mean": _mean(q), "rate": unit_rate}})


def _mean(q: dist.Distribution) -> Array | None:
    """The mean, where the values are numbers: classes have none."""
    if isinstance(getattr(q, "base_dist", q), dist.CategoricalLogits | dist.CategoricalProbs):
        return None
    try:
        return q.mean
    except NotImplementedError:
        return None


def _unit_rate(parts: Parts, params: Params, q: dist.Distribution, z: Array, c: Any) -> Array | None:
    """ln P_enc - ln P_pri of each unit of z, where both factorise over units."""
    if parts.prior_conditional is None:
        return None
    enc = unit_log_prob(q, z)
    pri = unit_log_prob(parts.prior_conditional.dist(params["pri"], c), z)
    return None if enc is None or pri is None else enc - pri


def _posterior(parts: Parts, params: Params, y: Any, c: Any, *, reparameterised: bool) -> dist.Distribution:
    """P_enc(.|y, c); where asked, one that gives z as a smooth function of its parameters and noise."""
    q = parts.encoder.dist(params["enc"], join(y, c))
    if reparameterised and not q.has_rsample:
        raise TypeError(
            f"the encoder gives {type(q).__name__}, which has no reparameterisation z_enc(y, eps), so the sampled "
            "estimators have no gradient for it. Use estimator=enumerated if z takes few values, or "
            "estimator=fixed_encoder if the encoder is not trained"
        )
    return q


def _sampled_terms(chain_of, *, stick: bool = False):
    def terms(parts, params, key, y, c):
        k_z, k_parts = jax.random.split(key)
        q = _posterior(parts, params, y, c, reparameterised=True)
        z = q.rsample(k_z)
        density = jax.lax.stop_gradient(q) if stick else q
        result = _assemble(chain_of(parts), params, k_parts, log_prob(density, z), z, y, c)
        return _with_detail(result, q, _unit_rate(parts, params, density, z, c))

    return terms


def _analytic_terms(parts, params, key, y, c):
    k_z, k_parts = jax.random.split(key)
    q = _posterior(parts, params, y, c, reparameterised=True)
    p = parts.prior_conditional.dist(params["pri"], c)
    try:
        kl = dist.kl_divergence(q, p)
    except NotImplementedError as error:
        raise TypeError(
            f"no closed form is known for KL({type(q).__name__} || {type(p).__name__}); use estimator=sampled"
        ) from error
    z = q.rsample(k_z)
    at_z = _assemble(_bounds(parts), params, k_parts, log_prob(q, z), z, y, c)
    return _with_detail(at_z._replace(rate=kl), q, unit_kl(q, p))


def _at_every_z(chain, parts, params, key, y, c):
    """q, all values of z, ln q of each and the terms at each."""
    q = _posterior(parts, params, y, c, reparameterised=False)
    zs = enumerate_support(q)
    log_qs = jax.vmap(lambda z: log_prob(q, z))(zs)
    keys = jax.random.split(key, len(zs))
    each = jax.vmap(lambda k, log_q, z: _assemble(chain, params, k, log_q, z, y, c))(keys, log_qs, zs)
    return q, log_qs, each


def _enumerated_terms(parts, params, key, y, c):
    q, log_qs, each = _at_every_z(_bounds(parts), parts, params, key, y, c)
    return _with_detail(_average(jnp.exp(log_qs), each), q, None)


def _enumerated_importance(parts, params, key, y, c):
    """ln P(y) = logsumexp over z, exact where prior and generator are; the rest is averaged over the posterior."""
    q, log_qs, each = _at_every_z(_importances(parts), parts, params, key, y, c)
    joint = -(each.nats - log_qs)
    terms = _average(jax.nn.softmax(joint), each)
    return _with_detail(terms._replace(rate=-logsumexp(joint) - terms.distortion), q, None)


def _average(probabilities: Array, each: Terms) -> Terms:
    """The mean of terms that are stacked on axis 0; what has probability 0 does not count, even if it is infinite."""

    def average(x):
        weights = probabilities.reshape((-1,) + (1,) * (x.ndim - 1))
        return jnp.sum(jnp.where(weights > 0, weights * x, 0.0), axis=0)

    return jax.tree.map(average, each)


def _fixed_encoder_terms(chain_of):
    def terms(parts, params, key, y, c):
        k_z, k_parts = jax.random.split(key)
        q = jax.lax.stop_gradient(_posterior(parts, params, y, c, reparameterised=False))
        z = jax.lax.stop_gradient(q.sample(k_z))
        result = _assemble(chain_of(parts), params, k_parts, log_prob(q, z), z, y, c)
        return _with_detail(result, q, _unit_rate(parts, params, q, z, c))

    return terms


_one_sample = _sampled_terms(_importances)

sampled = Estimator(_sampled_terms(_bounds), _one_sample)
"""z = z_enc(y, eps), one sample; every term at that z (Kingma & Welling 2014, equation 6)."""

sticking = Estimator(_sampled_terms(_bounds, stick=True), _one_sample)
"""As `sampled`, without the score term in the gradient: unbiased, and noiseless at the exact posterior (Roeder et al.
2017, sticking the landing). Its `importance` is the ordinary one: with k > 1 samples the shortcut is biased."""

analytic = Estimator(_analytic_terms, _one_sample)
"""As `sampled`, with KL(enc || pri) in closed form (Kingma & Welling 2014, eq. 7); the prior is a `Conditional`."""

enumerated = Estimator(_enumerated_terms, _enumerated_importance)
"""The exact expectation over a latent with finitely many values; `importance` is then the exact likelihood."""

fixed_encoder = Estimator(_fixed_encoder_terms(_bounds), _fixed_encoder_terms(_importances))
"""The lecture's fixed-encoder training: z is data. No gradient reaches the encoder, which may be discrete."""


def importance_weighted_bound(
    model: Model, params: Params, key: Array, y: Any, c: Any = None, *, k: int, chunk: int | None = None
) -> Array:
    """ln 1/k sum_i P_i for ONE example, in nats: a lower bound on ln P(y|c) in expectation, rising with k to it.

    (Burda et al. 2016, equation 8.) Nested models count as well: each P_i is one unbiased estimate of P(y|c).

    Args:
        k: number of samples.
        chunk: samples held in memory at once (default: all).

    Raises:
        ValueError: k < 1, or the model offers no importance samples.
    """
    if k < 1:
        raise ValueError(f"the importance-weighted bound takes k >= 1 samples; got k={k}")
    sample = importance_of(model)
    chunk = k if chunk is None else min(chunk, k)

    def log_weight(i):
        return jnp.where(i < k, -sample(params, jax.random.fold_in(key, i), y, c).nats, -jnp.inf)

    def add(total, start):
        return jnp.logaddexp(total, logsumexp(jax.vmap(log_weight)(start + jnp.arange(chunk)))), None

    if chunk == k:
        return logsumexp(jax.vmap(log_weight)(jnp.arange(k))) - jnp.log(k)
    total, _ = jax.lax.scan(add, -jnp.inf, jnp.arange(0, k, chunk))
    return total - jnp.log(k)


def importance_of(model: Model) -> Callable[..., Terms]:
    """`model.importance`.

    Raises:
        ValueError: the model has none.
    """
    if model.importance is None:
        raise ValueError(
            "this model has no unbiased estimate of P(y|c) (Model.importance is None), so importance-weighted bounds "
            "are not offered for it"
        )
    return model.importance


def means(generator: Conditional) -> Model:
    """The generator, drawing the mean of P_gen(y|z) instead of a sample: what pictures show.

    `vae(encoder, prior, means(generator)).sample` shows the prior. Values without a mean (classes) are sampled.
    """

    def sample(params, key, c=None):
        distribution = generator.dist(params, c)
        mean = _mean(distribution)
        return distribution.sample(key) if mean is None else mean

    return lift(generator)._replace(sample=sample)


def reconstruct(
    encoder: Conditional, generator: Conditional | Model, params: Params, key: Array, y: Any, c: Any = None
) -> Any:
    """One sample from P_gen(.|z), z ~ P_enc(.|y); with `means(generator)` the mean for that z."""
    k_z, k_y = jax.random.split(key)
    z = encoder.dist(params["enc"], join(y, c)).sample(k_z)
    return lift(generator).sample(params["gen"], k_y, join(z, c))
