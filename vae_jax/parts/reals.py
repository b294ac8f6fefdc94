"""Likelihoods of real numbers beside the Gaussian: heavier tails, positive numbers, numbers between 0 and 1."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import constraints

from vae_jax.core.distributions import bounded_log_std
from vae_jax.core.model import Conditional
from vae_jax.core.numbers import is_number
from vae_jax.parts.conditionals import conditional, of_array, pair_of


def laplace(net: Any) -> Conditional:
    """Independent Laplace values: absolute errors count. The network gives (location, raw log scale)."""
    return conditional(net, lambda output: _located(dist.Laplace, output, "laplace"))


def student_t(net: Any, freedom: float = 4.0) -> Conditional:
    """Independent Student t values, which outliers pull little; the network gives (location, raw log scale).

    Args:
        freedom: degrees of freedom; the variance is finite above 2.

    Raises:
        ValueError: freedom that is not positive.
    """
    if not (is_number(freedom) and freedom > 0):
        raise ValueError(f"freedom is a positive number of degrees of freedom; got {freedom}")
    return conditional(
        net, lambda output: _located(lambda loc, scale: dist.StudentT(freedom, loc, scale), output, "student_t")
    )


def log_normal(net: Any) -> Conditional:
    """Independent positive values whose logarithms are Gaussian; the network gives their (mean, raw log_std)."""
    return conditional(net, lambda output: _located(dist.LogNormal, output, "log_normal"))


def beta(net: Any) -> Conditional:
    """Independent values between 0 and 1, both excluded; the network gives (logit of the mean, log concentration).

    The mean is kept within 1e-6 of 0 and 1, and the logarithm of the concentration a + b within (-7, 7).
    """

    def make(output):
        logits, raw = pair_of(output, "beta")
        mean, total = jnp.clip(jax.nn.sigmoid(logits), 1e-6, 1 - 1e-6), jnp.exp(bounded_log_std(raw))
        return dist.Beta(mean * total, (1 - mean) * total).to_event(mean.ndim)

    return conditional(net, make)


def continuous_bernoulli(net: Any) -> Conditional:
    """Independent values in [0, 1] (Loaiza-Ganem and Cunningham 2019); the network gives logits, as for `bernoulli`."""
    return of_array(net, "continuous_bernoulli", lambda logits: ContinuousBernoulli(logits).to_event(logits.ndim))


def _located(make: Any, output: Any, name: str) -> dist.Distribution:
    loc, raw = pair_of(output, name)
    return make(loc, jnp.exp(bounded_log_std(raw))).to_event(loc.ndim)


class ContinuousBernoulli(dist.Distribution):
    """p(y) = e^(l y) l / (e^l - 1) on [0, 1]: the density in proportion to e^(l y), l the logits; uniform at l = 0."""

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012
    reparametrized_params = ["logits"]  # noqa: RUF012
    support = constraints.unit_interval
    pytree_data_fields = ("logits",)

    def __init__(self, logits: ArrayLike, *, validate_args=None):
        self.logits = jnp.asarray(logits)
        super().__init__(self.logits.shape, validate_args=validate_args)

    def log_prob(self, value: ArrayLike) -> Array:
        return self.logits * (value - 0.5) - _log_sinhc(0.5 * self.logits)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """By the inverse of the distribution function, ln(1 + u (e^l - 1)) / l, from the side that is finite."""
        u = jax.random.uniform(key, (*sample_shape, *self.logits.shape), self.logits.dtype)
        size = jnp.abs(self.logits)
        far = size > 1e-3
        safe = jnp.where(far, size, 1.0)
        of_negative = -jnp.log1p(u * jnp.expm1(-safe)) / safe  # of logits -|l|
        small = u + 0.5 * size * u * (u - 1.0)
        y = jnp.where(far, of_negative, small)
        return jnp.clip(jnp.where(self.logits > 0, 1.0 - y, y), 0.0, 1.0)

    @property
    def mean(self) -> Array:
        """1 / (1 - e^-l) - 1 / l."""
        far = jnp.abs(self.logits) > 0.1
        safe = jnp.where(far, self.logits, 1.0)
        near = 0.5 + self.logits / 12 * (1 - self.logits**2 / 60)
        return jnp.where(far, -1.0 / jnp.expm1(-safe) - 1.0 / safe, near)

    @property
    def variance(self) -> Array:
        """1 / l^2 - 1 / (2 sinh(l / 2))^2."""
        far = jnp.abs(self.logits) > 0.5
        safe = jnp.where(far, jnp.clip(self.logits, -80, 80), 1.0)
        square = self.logits**2
        near = 1 / 12 - square / 240 + square**2 / 6048
        return jnp.where(far, 1 / jnp.where(far, square, 1.0) - 0.25 / jnp.sinh(0.5 * safe) ** 2, near)


def _log_sinhc(x: Array) -> Array:
    """ln(sinh(x) / x)."""
    size = jnp.abs(x)
    far = size > 0.3
    safe = jnp.where(far, size, 1.0)
    square = jnp.where(far, 0.0, x * x)
    near = square / 6 * (1 - square / 30 * (1 - square * (2 / 31.5)))
    return jnp.where(far, safe + jnp.log(-jnp.expm1(-2 * safe) / (2 * safe)), near)
