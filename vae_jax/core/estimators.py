"""The estimators: how E L is estimated for one example, and how its gradient reaches the encoder.

    L(y, z) = -ln P_pri(z) P_gen(y|z) / P_enc(z|y)

An estimator does not change what is estimated, except that `importance` always returns one importance sample of P(y),
which the estimators with a closed form inside do not.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike

from vae_jax.core.distributions import enumerate_support, mean_of, unit_kl, unit_log_prob
from vae_jax.core.model import Conditional, Model, Params, Terms, Units, join, log_prob


class Parts(NamedTuple):
    """What an estimator works on: the encoder, and prior and generator as models.

    `prior_conditional` is the prior where its density is tractable, else None.
    """

    encoder: Conditional
    prior: Model
    generator: Model
    prior_conditional: Conditional | None


class Estimator(NamedTuple):
    """Functions `(parts, params, key, y, c) -> Terms`.

    Fields:
        terms: the bound, what is trained and reported.
        importance: one importance sample of P(y|c).
        pathwise: `(parts, params, key, y, c=None, scale=None)`, as `importance`, with a gradient that reaches the
            encoder only through z, times `scale`, 1 by default; or None where z is not reparameterised.
    """

    terms: Callable[..., Terms]
    importance: Callable[..., Terms]
    pathwise: Callable[..., Terms] | None = None


def importances(parts: Parts) -> Parts:
    """The parts, with importance samples of prior and generator in place of their bounds."""
    prior, generator = (model._replace(terms=importance_of(model)) for model in (parts.prior, parts.generator))
    return parts._replace(prior=prior, generator=generator)


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


def _assemble(parts: Parts, params: Params, key: Array, log_q: Array, z: Any, y: Any, c: Any) -> Terms:
    """L at one z: rate = ln P_enc - ln P_pri, distortion = -ln P_gen, each part giving its own bound."""
    k_pri, k_gen = jax.random.split(key)
    pri = parts.prior.terms(params["pri"], k_pri, z, c)
    gen = parts.generator.terms(params["gen"], k_gen, y, join(z, c))
    return latent_terms(log_q, pri, gen)


def latent_terms(log_q: ArrayLike, pri: Terms, gen: Terms) -> Terms:
    """L at one z, from ln P_enc(z|y), the prior's terms at z and the generator's at y, all that they say handed on.

    The rates of the levels sum to the rate: one costs ln P_enc(z_i|z_{i-1}) - ln P_gen(z_i|z_{i+1}), the last one
    ln P_enc - ln P_pri.
    """
    own = jnp.reshape(log_q + pri.distortion, (1,))
    return Terms(
        distortion=gen.nats,
        rate=log_q + pri.nats,
        penalty=pri.penalty + gen.penalty,
        stats={"pri": pri.stats, "gen": gen.stats},
        rates=own if pri.rates is None else jnp.concatenate([own, pri.rates]),
        log_drawn=total(pri.log_drawn, gen.log_drawn),
        diffusions=pri.diffusions + gen.diffusions,
        codes=pri.codes + gen.codes,
        detail={"pri": _shown(pri), "gen": _shown(gen)},
    )


def _shown(part: Terms) -> dict[str, Any]:
    """What a human may ask of a part that has a latent of its own."""
    own = {} if part.rates is None else {"units": part.units, "rates": part.rates}
    return {**own, **part.detail}


def total(*values: Array | None) -> Array | None:
    """The sum of those that are not None, or None."""
    known = [value for value in values if value is not None]
    return sum(known[1:], known[0]) if known else None


def with_rate(terms: Terms, rate: Array, q: dist.Distribution, unit_rate: Array | None = None) -> Terms:
    """The terms with a rate in closed form, which is not split over levels, and what is known of the units of z."""
    return terms._replace(rate=rate, rates=jnp.reshape(rate, (1,)), units=Units(mean_of(q), unit_rate))


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
            "estimators have no gradient for it. Use estimator=enumerated if z takes few values, "
            "estimator=score_function() if it takes many, or estimator=fixed_encoder if the encoder is not trained"
        )
    return q


def at_z(parts: Parts, params: Params, key: Array, q: dist.Distribution, z: Array, y: Any, c: Any) -> Terms:
    """L at one z, ln P_enc and the rates of the units by the density of q."""
    terms = _assemble(parts, params, key, log_prob(q, z), z, y, c)
    return terms._replace(units=Units(mean_of(q), _unit_rate(parts, params, q, z, c)))


def _sampled_terms(parts, params, key, y, c=None, scale=None, *, stick=False):
    k_z, k_parts = jax.random.split(key)
    q = _posterior(parts, params, y, c, reparameterised=True)
    density = jax.lax.stop_gradient(q) if stick else q
    z = q.rsample(k_z)
    if scale is not None:
        z = jax.tree.map(lambda x: _scaled_gradient(x, scale), z)
    return at_z(parts, params, k_parts, density, z, y, c)


@jax.custom_jvp
def _scaled_gradient(x: Array, scale: ArrayLike) -> Array:
    """x, and the gradient that comes back to it times `scale`."""
    del scale
    return x


@_scaled_gradient.defjvp
def _scaled_gradient_jvp(primals, tangents):
    x, scale = primals
    return x, jnp.asarray(scale, x.dtype) * tangents[0]


def _analytic_terms(parts, params, key, y, c):
    k_z, k_parts = jax.random.split(key)
    q = _posterior(parts, params, y, c, reparameterised=True)
    p = parts.prior_conditional.dist(params["pri"], c)
    check_same_z(q, p)
    try:
        kl = dist.kl_divergence(q, p)
    except NotImplementedError as error:
        raise TypeError(
            f"no closed form is known for KL({type(q).__name__} || {type(p).__name__}); use estimator=sampled"
        ) from error
    z = q.rsample(k_z)
    at_sample = _assemble(parts, params, k_parts, log_prob(q, z), z, y, c)
    return with_rate(at_sample, kl, q, unit_kl(q, p))


def check_same_z(q: dist.Distribution, p: dist.Distribution) -> None:
    """Raise a ValueError where encoder and prior are about z of different shapes: a KL would broadcast one of them."""
    if q.event_shape != p.event_shape:
        raise ValueError(
            f"the encoder is a distribution over z of shape {q.event_shape}, and the prior over z of shape "
            f"{p.event_shape}: one size of the latent, please"
        )


def _at_every_z(parts, params, key, y, c):
    """q, all values of z, ln q of each and the terms at each."""
    q = _posterior(parts, params, y, c, reparameterised=False)
    zs = enumerate_support(q)
    log_qs = jax.vmap(lambda z: log_prob(q, z))(zs)
    keys = jax.random.split(key, len(zs))
    each = jax.vmap(lambda k, log_q, z: _assemble(parts, params, k, log_q, z, y, c))(keys, log_qs, zs)
    return q, log_qs, each


def _enumerated_terms(parts, params, key, y, c):
    q, log_qs, each = _at_every_z(parts, params, key, y, c)
    return _average(jnp.exp(log_qs), each)._replace(units=Units(mean_of(q)))


def _enumerated_importance(parts, params, key, y, c):
    """ln P(y) = logsumexp over z, exact where prior and generator are; the rest is averaged over the posterior."""
    q, log_qs, each = _at_every_z(importances(parts), params, key, y, c)
    joint = -(each.nats - log_qs)
    terms = _average(jax.nn.softmax(joint), each)
    terms = with_rate(terms, -logsumexp(joint) - terms.distortion, q)
    # What the parts drew at each z they drew independently: a sum, no average.
    return terms._replace(log_drawn=None if each.log_drawn is None else jnp.sum(each.log_drawn))


def _average(probabilities: Array, each: Terms) -> Terms:
    """The mean of terms that are stacked on axis 0; what has probability 0 does not count, even if it is infinite."""

    def average(x):
        weights = probabilities.reshape((-1,) + (1,) * (x.ndim - 1))
        return jnp.sum(weights * jnp.where(weights > 0, x, 0.0), axis=0)

    diffusions = tuple(one.mixed(probabilities) for one in each.diffusions)
    return jax.tree.map(average, each._replace(diffusions=(), codes=()))._replace(diffusions=diffusions)


def drawn(parts: Parts, params: Params, key: Array, y: Any, c: Any) -> tuple[dist.Distribution, Array, Array]:
    """(P_enc, one z of it, the key of the parts): z is data to the gradient."""
    k_z, k_parts = jax.random.split(key)
    q = _posterior(parts, params, y, c, reparameterised=False)
    return q, jax.lax.stop_gradient(q.sample(k_z)), k_parts


def _fixed_encoder_terms(parts, params, key, y, c):
    q, z, k_parts = drawn(parts, params, key, y, c)
    return at_z(parts, params, k_parts, jax.lax.stop_gradient(q), z, y, c)


def _weighted(terms: Callable[..., Terms]) -> Callable[..., Terms]:
    return lambda parts, *given, **named: terms(importances(parts), *given, **named)


_sticking_terms = functools.partial(_sampled_terms, stick=True)
_one_sample, _pathwise = _weighted(_sampled_terms), _weighted(_sticking_terms)

sampled = Estimator(_sampled_terms, _one_sample, _pathwise)
"""z = z_enc(y, eps), one sample; every term at that z (Kingma & Welling 2014, equation 6)."""

sticking = Estimator(_sticking_terms, _one_sample, _pathwise)
"""As `sampled`, without the score term in the gradient: unbiased, and noiseless at the exact posterior (Roeder et al.
2017, sticking the landing). Its `importance` is the ordinary one: with k > 1 samples the shortcut is biased, and what
takes its place is the objective `doubly_reparameterised`."""

analytic = Estimator(_analytic_terms, _one_sample, _pathwise)
"""As `sampled`, with KL(enc || pri) in closed form (Kingma & Welling 2014, eq. 7); the prior is a `Conditional`."""

enumerated = Estimator(_enumerated_terms, _enumerated_importance)
"""The exact expectation over a latent with finitely many values; `importance` is then the exact likelihood."""

fixed_encoder = Estimator(_fixed_encoder_terms, _weighted(_fixed_encoder_terms))
"""The lecture's fixed-encoder training: z is data. No gradient reaches the encoder, which may be discrete."""
