"""Gaussians of which some entries are not seen: NaN in y means missing, and is summed out exactly.

All-missing examples have ln P = 0 and contribute what is expected of them: nothing changes by them.
"""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from vae_jax.core.linalg import cholesky, inverse_of_lower, matmul

ROWS_AT_ONCE = 256


class RealOrMissing(constraints.ParameterFreeConstraint):
    """Vectors of real numbers, NaN where an entry is missing."""

    event_dim = 1

    def __call__(self, x):
        return ~jnp.isinf(x).any(axis=-1)

    def feasible_like(self, prototype):
        return jnp.zeros_like(prototype)


class MaybeMissing(dist.Distribution):
    """N(loc, factor factor') over vectors whose missing entries are NaN; samples are complete.

    Args:
        loc: mean (d,).
        factor: standard deviations (d,) or a lower Cholesky factor (d, d).
    """

    arg_constraints = {"loc": constraints.real_vector}  # noqa: RUF012
    support = RealOrMissing()
    pytree_data_fields = ("loc", "factor")

    def __init__(self, loc: Array, factor: Array, *, validate_args=None):
        self.loc, self.factor = loc, factor
        super().__init__(batch_shape=loc.shape[:-1], event_shape=loc.shape[-1:], validate_args=validate_args)

    def log_prob(self, value):
        factor = "(d)" if self.factor.ndim == self.loc.ndim else "(d,d)"
        return jnp.vectorize(masked_log_prob, signature=f"(d),(d),{factor}->()")(value, self.loc, self.factor)

    def sample(self, key, sample_shape=()):
        noise = jax.random.normal(key, sample_shape + self.loc.shape, self.loc.dtype)
        if self.factor.ndim == self.loc.ndim:
            scaled = jnp.broadcast_to(self.factor, noise.shape) * noise
        else:
            scaled = jnp.einsum("...ij,...j->...i", self.factor, noise, precision="highest")
        return jnp.broadcast_to(self.loc, noise.shape) + scaled

    @property
    def mean(self):
        return self.loc


def _seen(y: Array, mean: Array) -> tuple[Array, Array]:
    """(which entries are seen, residuals, 0 where they are not)."""
    seen = ~jnp.isnan(y)
    return seen, jnp.where(seen, y, mean) - mean


def masked_factor(factor: Array, seen: Array) -> Array:
    """Cholesky factor of the covariance of what is seen; the rest is independent with variance 1."""
    both = seen[:, None] & seen[None, :]
    covariance = matmul(factor, factor.T)
    return cholesky(jnp.where(both, covariance, jnp.eye(len(seen), dtype=factor.dtype)))


def masked_log_prob(y: Array, mean: Array, factor: Array) -> Array:
    """ln N of the entries of y (d,) that are not NaN; `factor` as in `MaybeMissing`."""
    seen, residual = _seen(y, mean)
    if factor.ndim == 1:
        scaled, log_scale = residual / factor, jnp.log(factor)
    else:
        masked = masked_factor(factor, seen)
        scaled = matmul(inverse_of_lower(masked), residual)
        log_scale = jnp.log(jnp.diagonal(masked))
    each = -0.5 * scaled**2 - log_scale - 0.5 * jnp.log(2 * jnp.pi)
    return jnp.sum(jnp.where(seen, each, 0.0))


def completed(ys: Array, mean: Array, factor: Array, weights: Array) -> tuple[Array, Array]:
    """What is expected of ys (n, d) under one component, about its mean, given what is seen of them.

    Returns:
        expected ys - mean, (n, d); and the sum over ys of weight times covariance of what is missing, (d,) or (d, d).
    """
    if factor.ndim == 1:
        seen, residuals = _seen(ys, mean[None])
        return residuals, factor**2 * jnp.sum(jnp.where(seen, 0.0, weights[:, None]), axis=0)
    covariance = matmul(factor, factor.T)

    def one(part):
        y, weight = part
        seen, residual = _seen(y, mean)
        masked = masked_factor(factor, seen)
        inverse = inverse_of_lower(masked)
        precision = matmul(inverse.T, inverse)
        gain = matmul(precision, jnp.where(seen[:, None], covariance, 0.0)).T
        expected = jnp.where(seen, residual, matmul(gain, residual))
        left = covariance - matmul(gain, jnp.where(seen[:, None], covariance, 0.0))
        return expected, weight * jnp.where(seen[:, None] | seen[None, :], 0.0, left)

    expected, left = jax.lax.map(one, (ys, weights), batch_size=min(ROWS_AT_ONCE, len(ys)))
    return expected, left.sum(axis=0)
