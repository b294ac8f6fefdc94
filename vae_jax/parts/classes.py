"""Classes as one-hot vectors: a discrete z that a network takes like any other, and that can be relaxed.

A z of m variables with K classes each is an array (m, K) of zeros and ones. One model of it trains along any route,
`vae(one_hot(net), learned_classes(m, K), generator, estimator=...)` with `enumerated`, `score_function()`, or `gumbel`
and `straight_through_gumbel` (`vae_jax.parts.relaxed`).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import constraints

from vae_jax.core.model import Conditional
from vae_jax.core.numbers import is_whole
from vae_jax.parts.conditionals import of_array
from vae_jax.parts.priors import positive_shape


def one_hot(net: Any) -> Conditional:
    """Independent classes as rows of the identity matrix; the network gives logits in the shape of z, (..., K)."""
    return of_array(net, "one_hot", lambda logits: OneHot(logits).to_event(logits.ndim - 1))


def learned_classes(shape: int | tuple[int, ...], classes: int) -> Conditional:
    """An array of independent one-hot vectors, (*shape, classes); their logits are trained, and 0 at the start.

    Raises:
        ValueError: fewer than two classes, or a size below 1.
    """
    if not is_whole(classes, 2):
        raise ValueError(f"learned_classes wants at least two classes to choose from; got {classes}")
    shape = positive_shape("learned_classes", shape)

    def init(key, c=None):
        del key, c
        return {"logits": jnp.zeros((*shape, classes))}

    def distribution(params, c=None):
        del c
        return OneHot(params["logits"]).to_event(len(shape))

    return Conditional(init, distribution)


class UnitVector(constraints.ParameterFreeConstraint):
    """A row of the identity matrix."""

    is_discrete = True
    event_dim = 1

    def __call__(self, x):
        return ((x == 0) | (x == 1)).all(-1) & (x.sum(-1) == 1)

    def feasible_like(self, prototype):
        return jnp.zeros_like(prototype).at[..., 0].set(1)


class OneHot(dist.Distribution):
    """One of K classes from logits (..., K), as a row of the identity matrix: values (..., K), floats.

    `ln P(z) = sum_k z_k ln p_k`, which is linear in z, so that it has a value at relaxed classes too. (numpyro has
    classes as integers only.)
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012
    support = UnitVector()
    has_enumerate_support = True
    pytree_data_fields = ("logits",)

    def __init__(self, logits: ArrayLike, *, validate_args=None):
        self.logits = jnp.asarray(logits)
        super().__init__(self.logits.shape[:-1], self.logits.shape[-1:], validate_args=validate_args)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        shape = (*sample_shape, *self.batch_shape)
        drawn = jax.random.categorical(key, self.logits, shape=shape)
        return jax.nn.one_hot(drawn, *self.event_shape, dtype=self.logits.dtype)

    def log_prob(self, value: ArrayLike) -> Array:
        value = jnp.asarray(value, self.logits.dtype)
        shape = jnp.broadcast_shapes(value.shape, self.logits.shape)
        return _expected(jnp.broadcast_to(value, shape), jnp.broadcast_to(jax.nn.log_softmax(self.logits), shape))

    @property
    def mean(self) -> Array:
        """The probabilities of the classes."""
        return jax.nn.softmax(self.logits)

    @property
    def variance(self) -> Array:
        return self.mean * (1 - self.mean)

    def enumerate_support(self, expand: bool = True) -> Array:
        (classes,) = self.event_shape
        ones = (1,) * len(self.batch_shape)
        values = jnp.eye(classes, dtype=self.logits.dtype).reshape(classes, *ones, classes)
        return jnp.broadcast_to(values, (classes, *self.batch_shape, classes)) if expand else values


def _expected(weights: Array, values: Array) -> Array:
    """Their product, summed over the last axis; a weight of 0 counts for nothing, even where the value is -inf."""
    some = weights != 0
    return jnp.sum(jnp.where(some, weights * jnp.where(some, values, 0.0), 0.0), axis=-1)


@dist.kl_divergence.register(OneHot, OneHot)
def _kl_of_classes(q: OneHot, p: OneHot) -> Array:
    log_q, log_p = jnp.broadcast_arrays(jax.nn.log_softmax(q.logits), jax.nn.log_softmax(p.logits))
    return _expected(jnp.exp(log_q), log_q - jnp.where(log_q > -jnp.inf, log_p, 0.0))
