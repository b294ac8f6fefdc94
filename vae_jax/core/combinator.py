"""The combinator: a VAE turns a model of z into a model of y.

    L(y, z) = -ln P_pri(z) P_gen(y|z) / P_enc(z|y)        E_{z ~ P_enc(z|y)} L  >=  -ln P(y)

An estimator (`vae_jax.core.estimators`) decides how E L is estimated for one example and how its gradient reaches the
encoder.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp

from vae_jax.core.distributions import draw_or_point
from vae_jax.core.estimators import Estimator, Parts, analytic, importance_of, sampled
from vae_jax.core.model import (
    Conditional,
    Latent,
    Model,
    Params,
    bits_back,
    drawn,
    example_of,
    join,
    lift,
    log_prob,
    mean_sample,
)
from vae_jax.core.numbers import is_whole


def vae(
    encoder: Conditional,
    prior: Model | Conditional,
    generator: Model | Conditional,
    *,
    estimator: Estimator = sampled,
) -> Model:
    """P(y|c) = E_{z ~ P_pri(z|c)} P_gen(y|z, c), bounded with the help of P_enc(z|y, c).

    The parameters are `{"enc": ..., "pri": ..., "gen": ...}`. Without a condition the encoder is called with y and the
    generator with z; with one, with (y, c) and (z, c), and the prior with c. The result is a `Model`, so it can be the
    prior of the next VAE.

    Args:
        encoder: P_enc(z|y).
        prior: P_pri(z).
        generator: P_gen(y|z).
        estimator: `sampled` (the default), `sticking`, `analytic`, `enumerated`, `fixed_encoder` or `score_function()`.

    Raises:
        TypeError: the encoder is not a `Conditional`, or `analytic` is asked for with a prior that is only a `Model`.

    Example:
        >>> model = vae(gaussian(nets.MLP((8,), 2 * 2)), standard_normal(2), bernoulli(nets.MLP((8,), 3)))
        >>> params = jax.jit(model.init)(jax.random.key(0), jnp.ones(3), None)
        >>> terms = jax.jit(model.terms)(params, jax.random.key(1), jnp.ones(3), None)
        >>> bool(terms.nats == terms.rate + terms.distortion)
        True
    """
    if not isinstance(encoder, Conditional):
        raise TypeError(
            f"the encoder has to be a Conditional, since its density is needed; got {type(encoder).__name__}"
        )
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

    shown = mean_sample(parts.generator)

    def sample(params, key, c=None, of_generator=parts.generator.sample):
        k_z, k_y = jax.random.split(key)
        z = parts.prior.sample(params["pri"], k_z, c)
        return of_generator(params["gen"], k_y, join(z, c))

    def encode(params, key, y, c=None):
        return draw_or_point(encoder.dist(params["enc"], join(y, c)), key)

    def decode(params, key, z, c=None):
        return shown(params["gen"], key, join(z, c))

    def draw(params, key, c=None, temperature=None):
        return drawn(parts.prior, tractable, params["pri"], key, c, temperature)

    def maximise(params, stats):
        return {
            "enc": params["enc"],
            "pri": parts.prior.maximise(params["pri"], stats["pri"]),
            "gen": parts.generator.maximise(params["gen"], stats["gen"]),
        }

    rest_of_y = parts.generator.complete

    def complete(params, key, y, c=None):
        assert rest_of_y is not None  # else it is not offered
        k_z, k_pri, k_gen = jax.random.split(key, 3)
        q = encoder.dist(params["enc"], join(y, c))
        z = q.sample(k_z)
        of_prior = importance_of(parts.prior)(params["pri"], k_pri, z, c).nats
        log_gen, drawn, expected = rest_of_y(params["gen"], k_gen, y, join(z, c))
        return log_gen - of_prior - log_prob(q, z), drawn, expected

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
        pathwise=functools.partial(estimator.pathwise, parts) if offers_importance and estimator.pathwise else None,
        mean=functools.partial(sample, of_generator=shown),
        latent=Latent(encode, decode, draw),
        coder=bits_back(encoder, parts.prior, parts.generator),
        complete=complete if offers_importance and rest_of_y else None,
    )


def importance_weighted_bound(
    model: Model, params: Params, key: Array, y: Any, c: Any = None, *, k: int, chunk: int | None = None
) -> Array:
    """ln 1/k sum_i P_i for ONE example, in nats: a lower bound on ln P(y|c) in expectation, rising with k to it.

    (Burda et al. 2016, equation 8.) Nested models count as well: each P_i is one unbiased estimate of P(y|c).

    Args:
        k: number of samples.
        chunk: samples held in memory at once (default: all).

    Raises:
        ValueError: k or chunk < 1, or the model offers no importance samples.

    Example:
        >>> model = vae(gaussian(nets.MLP((), 2)), standard_normal(1), bernoulli(nets.MLP((), 3)))
        >>> params = jax.jit(model.init)(jax.random.key(0), jnp.ones(3), None)
        >>> bound = jax.jit(lambda key, y: importance_weighted_bound(model, params, key, y, k=50))
        >>> bound(jax.random.key(1), jnp.ones(3)).shape
        ()
    """
    if not is_whole(k):
        raise ValueError(f"the importance-weighted bound takes k >= 1 samples; got k={k} (want a whole number)")
    if chunk is not None and not is_whole(chunk):
        raise ValueError(f"chunk is how many samples are in memory at once, at least 1; got {chunk}")
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


def means(generator: Conditional | Model) -> Model:
    """The generator, drawing the mean of P_gen(y|z) instead of a sample: what pictures show.

    `vae(encoder, prior, means(generator)).sample` shows the prior. Values without a mean (classes) are sampled.
    """
    model = lift(generator)
    return model._replace(sample=mean_sample(model))


def reconstruct(
    encoder: Conditional, generator: Conditional | Model, params: Params, key: Array, y: Any, c: Any = None
) -> Any:
    """One sample from P_gen(.|z), z ~ P_enc(.|y); with `means(generator)` the mean for that z."""
    k_z, k_y = jax.random.split(key)
    z = encoder.dist(params["enc"], join(y, c)).sample(k_z)
    return lift(generator).sample(params["gen"], k_y, join(z, c))
