"""Relaxed gradients for a z of classes: Gumbel-softmax, and its straight-through form.

    z = onehot argmax(logits + Gumbel noise) ~ P_enc(z|y)          relaxed: softmax((logits + noise) / temperature)

The model is that of the classes, z a one-hot vector or an array of them (`vae_jax.parts.classes`). Its terms are those
of the class that was drawn, so E[nats] is its ELBO exactly, whatever the temperature, and `importance` is its
importance sample: it can be evaluated, and trained by `vimco` and `leave_one_out`, as with `score_function()`. Only the
gradient of the distortion is that of the relaxed z. It is biased; the bias vanishes as the temperature falls, while the
variance grows. The rate is the KL of the classes in closed form, with its true gradient (Jang et al. 2017).
"""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike

from vae_jax.core.distributions import GumbelSoftmax, check_temperature
from vae_jax.core.estimators import Estimator, at_z, check_same_z, with_rate
from vae_jax.core.model import Terms, join
from vae_jax.core.reinforce import score_function
from vae_jax.parts.classes import OneHot


def gumbel(temperature: ArrayLike) -> Estimator:
    """The gradient of distortion(relaxed z): of encoder and generator (Jang et al. 2017, section 2.2).

    The generator is called twice: at the class that was drawn, for the value, and at the relaxed z, for the gradient.

    Args:
        temperature: a positive number, traced or not: `of(lambda step: vae(enc, pri, gen, estimator=gumbel(t(step))))`
            is a schedule (`vae_jax.core.objectives.of`).

    Raises:
        ValueError: a temperature that is not positive.
        TypeError: encoder or prior is not a one-hot distribution (when first called).
    """
    check_temperature(temperature)

    def terms(parts, params, key, y, c):
        k_z, k_parts = jax.random.split(key)
        q, hard, soft = _draw(parts, params, k_z, y, c, temperature)
        value = _at(parts, params, k_parts, q, hard, y, c)
        gradient = _at(parts, params, jax.random.clone(k_parts), q, soft, y, c)  # the same noise inside
        return value._replace(
            distortion=_with_gradient(value.distortion, gradient.distortion),
            penalty=_with_gradient(jnp.asarray(value.penalty), jnp.asarray(gradient.penalty)),
        )

    return Estimator(terms, score_function().importance)


def straight_through_gumbel(temperature: ArrayLike) -> Estimator:
    """The generator sees the class that was drawn; what comes back to it goes on to the relaxed z (Jang et al. 2017).

    (Section 2.2, ST Gumbel-softmax.) The generator's gradient is unbiased, the encoder's is not. Arguments and errors
    as for `gumbel`.
    """
    check_temperature(temperature)

    def terms(parts, params, key, y, c):
        k_z, k_parts = jax.random.split(key)
        q, hard, soft = _draw(parts, params, k_z, y, c, temperature)
        return _at(parts, params, k_parts, q, _with_gradient(hard, soft), y, c)

    return Estimator(terms, score_function().importance)


def _draw(parts, params, key, y, c, temperature) -> tuple[dist.Distribution, Array, Array]:
    """(P_enc, a z of it, the relaxed z of the same noise)."""
    q = parts.encoder.dist(params["enc"], join(y, c))
    _check(q, "encoder")
    if parts.prior_conditional is None:
        raise TypeError("the rate of relaxed classes is a KL in closed form, and this prior is a Model without density")
    p = parts.prior_conditional.dist(params["pri"], c)
    _check(p, "prior")
    check_same_z(q, p)
    soft = GumbelSoftmax(_classes(q).logits, temperature).sample(key).parts
    hard = jax.nn.one_hot(jnp.argmax(soft, axis=-1), soft.shape[-1], dtype=soft.dtype)
    return q, hard, soft


def _classes(distribution: dist.Distribution) -> dist.Distribution:
    return distribution.base_dist if isinstance(distribution, dist.Independent) else distribution


def _check(distribution: dist.Distribution, part: str) -> None:
    if not isinstance(_classes(distribution), OneHot):
        raise TypeError(
            f"relaxed classes want a one-hot {part}, one_hot(net) or learned_classes(shape, classes); this one gives "
            f"{type(_classes(distribution)).__name__}. Classes as integers cannot be relaxed"
        )


def _at(parts, params, key, q, z, y, c) -> Terms:
    """The terms at z, with the rate in closed form."""
    rate = dist.kl_divergence(q, parts.prior_conditional.dist(params["pri"], c))
    return with_rate(at_z(parts, params, key, q, z, y, c), rate, q)


@jax.custom_jvp
def _with_gradient(value: Array, of: Array) -> Array:
    """value, with the gradient of `of`."""
    del of
    return value


@_with_gradient.defjvp
def _with_gradient_jvp(primals, tangents):
    return primals[0], tangents[1]
