"""Gaussians of which some entries are not seen: NaN in y means missing, and is summed out exactly.

All-missing examples have ln P = 0 and contribute what is expected of them: nothing changes by them.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from vae_jax.core.linalg import inverse_of_lower, matmul, root_of_square

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

    def complete(self, key: Array, y: Array) -> Array:
        """y with its missing entries drawn, given those that are seen."""
        noise = jax.random.normal(key, self.loc.shape, self.loc.dtype)
        if self.factor.ndim == self.loc.ndim:
            return jnp.where(jnp.isnan(y), self.loc + self.factor * noise, y)
        parts = divided(self.factor, ~jnp.isnan(y))
        return jnp.where(jnp.isnan(y), self.expected(y) + matmul(parts.hidden, noise), y)

    def expected(self, y: Array) -> Array:
        """y with what is expected of its missing entries, given those that are seen."""
        seen, residual = _residual(y, self.loc)
        if self.factor.ndim == self.loc.ndim:
            return jnp.where(seen, y, self.loc)
        parts = divided(self.factor, seen)
        return jnp.where(seen, y, self.loc + matmul(parts.known, matmul(parts.whitening, residual)))


class Divided(NamedTuple):
    """N(0, factor factor') (d,) divided into what is seen and what is not: known w + hidden eps, both N(0, I).

    Fields:
        known: (d, d), 0 in the columns of which there are too many; hidden: (d, d), 0 in the rows that are seen.
        whitening: (d, d), w = whitening y for any y; what is not seen of it does not count.
        log_scale: of what is seen, ln |d y / d w|.
    """

    known: Array
    hidden: Array
    whitening: Array
    log_scale: Array


def divided(factor: Array, seen: Array) -> Divided:
    """For a lower Cholesky factor (d, d) and which entries are seen (d,): by QR, the covariance is never formed."""
    order = jnp.argsort(~seen)
    back, first = jnp.argsort(order), seen[order]
    root = root_of_square(factor[order])  # of the entries that are seen, then of the others
    log_scale = jnp.sum(jnp.where(first, jnp.log(jnp.diagonal(root)), 0.0))
    whitening = jnp.where(first[:, None], inverse_of_lower(root), 0.0)[:, back]
    return Divided(
        jnp.where(first[None], root, 0.0)[back], jnp.where(first[None], 0.0, root)[back], whitening, log_scale
    )


def _residual(y: Array, mean: Array) -> tuple[Array, Array]:
    """(which entries are seen, residuals, 0 where they are not)."""
    seen = ~jnp.isnan(y)
    return seen, jnp.where(seen, y, mean) - mean


def masked_log_prob(y: Array, mean: Array, factor: Array) -> Array:
    """ln N of the entries of y (d,) that are not NaN; `factor` as in `MaybeMissing`."""
    seen, residual = _residual(y, mean)
    if factor.ndim == 1:
        white, log_scale = residual / factor, jnp.sum(jnp.where(seen, jnp.log(factor), 0.0))
    else:
        parts = divided(factor, seen)
        white, log_scale = matmul(parts.whitening, residual), parts.log_scale
    return -0.5 * jnp.sum(white**2) - log_scale - 0.5 * math.log(2 * math.pi) * jnp.sum(seen)


def completed(ys: Array, mean: Array, factor: Array, weights: Array) -> tuple[Array, Array]:
    """What is expected of ys (n, d) under one component, about its mean, given what is seen of them.

    Returns:
        expected ys - mean, (n, d); and the sum over ys of weight times covariance of what is missing, (d,) or (d, d).
    """
    if factor.ndim == 1:
        seen, residuals = _residual(ys, mean[None])
        return residuals, factor**2 * jnp.sum(jnp.where(seen, 0.0, weights[:, None]), axis=0)

    def one(part):
        y, weight = part
        seen, residual = _residual(y, mean)
        parts = divided(factor, seen)
        expected = jnp.where(seen, residual, matmul(parts.known, matmul(parts.whitening, residual)))
        return expected, weight * matmul(parts.hidden, parts.hidden.T)

    expected, left = jax.lax.map(one, (ys, weights), batch_size=min(ROWS_AT_ONCE, len(ys)))
    return expected, left.sum(axis=0)
