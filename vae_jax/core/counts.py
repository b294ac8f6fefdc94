"""Counts, by logarithms of their means: Poisson, negative binomial, and both with more zeros; in float32 up to 10^7.

ln P of a large count is a small difference of large numbers: ln Gamma(10^7) = 1.5 10^8 has an error of 8 nats in
float32. So the large parts are taken out by hand (Loader 2000, "Fast and accurate computation of binomial
probabilities"): with Stirling's error d(x) = ln Gamma(x + 1) - (x + 1/2) ln x + x - ln(2 pi) / 2 and the deviance
D(x, m) = x ln(x / m) + m - x,

    ln Poisson(y | m) = -D(y, m) - d(y) - ln(2 pi y) / 2
"""

import math

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import gammaln
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.util import promote_shapes

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
SMALL = 16.0  # up to here ln Gamma is small enough to be subtracted
MOST_LOG = 17.0  # of a mean that is drawn from: 2.4 10^7, so that a draw is a whole number in float32 and in int32


class Poisson(dist.Distribution):
    """Counts with mean exp(log_mean).

    Args:
        log_mean: any shape; -inf is a mean of 0.
    """

    arg_constraints = {"log_mean": constraints.real}  # noqa: RUF012
    support = constraints.nonnegative_integer
    pytree_data_fields = ("log_mean",)

    def __init__(self, log_mean: ArrayLike, *, validate_args=None):
        self.log_mean = jnp.asarray(log_mean)
        super().__init__(self.log_mean.shape, validate_args=validate_args)

    def log_prob(self, value: ArrayLike) -> Array:
        y, log_mean = promote_shapes(jnp.asarray(value, self.log_mean.dtype), self.log_mean)
        mean, some = jnp.exp(log_mean), jnp.maximum(y, 1.0)
        away = _deviance(some, mean, some / mean - 1.0, jnp.log(some) - log_mean)
        return jnp.where(y == 0, -mean, -away - _stirling_error(some) - 0.5 * jnp.log(some) - HALF_LOG_2PI)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        return _poisson(key, self.log_mean, (*sample_shape, *self.batch_shape))

    @property
    def mean(self) -> Array:
        return jnp.exp(self.log_mean)

    @property
    def variance(self) -> Array:
        return jnp.exp(self.log_mean)


class NegativeBinomial(dist.Distribution):
    """Counts with mean m = exp(log_mean) and variance m + a m^2, a = exp(log_dispersion): Poisson's whose rate varies.

    With n = 1 / a (scipy's nbinom of n and n / (n + m)), and D and d as above, for y > 0

        ln P = ln(n / (n + y)) / 2 - D(n, (n + y) n / (n + m)) - D(y, (n + y) m / (n + m)) + d(n + y) - d(n) - d(y)
               - ln(2 pi y) / 2

    Args:
        log_mean, log_dispersion: any shapes that broadcast.
    """

    arg_constraints = {"log_mean": constraints.real, "log_dispersion": constraints.real}  # noqa: RUF012
    support = constraints.nonnegative_integer
    pytree_data_fields = ("log_mean", "log_dispersion")

    def __init__(self, log_mean: ArrayLike, log_dispersion: ArrayLike, *, validate_args=None):
        self.log_mean, self.log_dispersion = promote_shapes(jnp.asarray(log_mean), jnp.asarray(log_dispersion))
        shape = jax.lax.broadcast_shapes(self.log_mean.shape, self.log_dispersion.shape)
        super().__init__(shape, validate_args=validate_args)

    def log_prob(self, value: ArrayLike) -> Array:
        y, log_mean, log_dispersion = promote_shapes(
            jnp.asarray(value, self.log_mean.dtype), self.log_mean, self.log_dispersion
        )
        mean, n, some = jnp.exp(log_mean), jnp.exp(-log_dispersion), jnp.maximum(y, 1.0)
        both, apart, log_all = n + some, some - mean, jnp.log(n + mean)
        log_both = jnp.log(both)
        of_n = _deviance(n, both * n / (n + mean), -apart / both, log_all - log_both)
        log_ratio = jnp.log(some) - log_both + log_all - log_mean
        of_y = _deviance(some, both * mean / (n + mean), n / both * (apart / mean), log_ratio)
        errors = _stirling_error(both) - _stirling_error(n) - _stirling_error(some)
        positive = 0.5 * jnp.log(n / both) - of_n - of_y + errors - 0.5 * jnp.log(some) - HALF_LOG_2PI
        return jnp.where(y == 0, -n * jnp.log1p(mean / n), positive)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        k_rate, k_count = jax.random.split(key)
        shape = (*sample_shape, *self.batch_shape)
        n = jnp.broadcast_to(jnp.exp(-self.log_dispersion), shape)
        log_rate = self.log_mean + self.log_dispersion + jax.random.loggamma(k_rate, n)
        return _poisson(k_count, log_rate, shape)

    @property
    def mean(self) -> Array:
        return jnp.broadcast_to(jnp.exp(self.log_mean), self.batch_shape)

    @property
    def variance(self) -> Array:
        return self.mean + jnp.exp(self.log_dispersion + 2 * self.log_mean)


class ZeroInflated(dist.Distribution):
    """0 with probability sigmoid(logits), and else a count of `counts`, which may be 0 too.

    Args:
        counts: `Poisson` or `NegativeBinomial`, without event axes.
        logits: any shape that broadcasts with theirs.
    """

    arg_constraints = {"logits": constraints.real}  # noqa: RUF012
    support = constraints.nonnegative_integer
    pytree_data_fields = ("counts", "logits")

    def __init__(self, counts: dist.Distribution, logits: ArrayLike, *, validate_args=None):
        self.counts, self.logits = counts, jnp.asarray(logits)
        shape = jax.lax.broadcast_shapes(counts.batch_shape, self.logits.shape)
        super().__init__(shape, validate_args=validate_args)

    def log_prob(self, value: ArrayLike) -> Array:
        log_p = self.counts.log_prob(value)
        counted = jax.nn.log_sigmoid(-self.logits) + log_p
        return jnp.where(jnp.asarray(value) == 0, jnp.logaddexp(jax.nn.log_sigmoid(self.logits), counted), counted)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        k_zero, k_count = jax.random.split(key)
        shape = (*sample_shape, *self.batch_shape)
        zero = jax.random.bernoulli(k_zero, jax.nn.sigmoid(self.logits), shape)
        counts = self.counts.expand(self.batch_shape).sample(k_count, sample_shape)
        return jnp.where(zero, 0, counts)

    @property
    def mean(self) -> Array:
        return jax.nn.sigmoid(-self.logits) * self.counts.mean

    @property
    def variance(self) -> Array:
        counted, mean = jax.nn.sigmoid(-self.logits), self.counts.mean
        return counted * (self.counts.variance + jax.nn.sigmoid(self.logits) * mean**2)


def _poisson(key: Array, log_mean: Array, shape: tuple[int, ...]) -> Array:
    return jax.random.poisson(key, jnp.exp(jnp.minimum(log_mean, MOST_LOG)), shape).astype(jnp.int32)


def _deviance(x: Array, m: Array, u: Array, log_ratio: Array) -> Array:
    """x ln(x / m) + m - x, given u = x / m - 1 and ln(x / m). Near m it is m ((1 + u) ln(1 + u) - u), about m u^2 / 2;
    far from it nothing cancels, and u may be infinite."""
    near = jnp.abs(u) < 0.5
    u = jnp.where(near, u, 0.0)
    # ln(1 + u) = 2 (r + r^3 / 3 + ...), r = u / (2 + u)
    r = u / (2.0 + u)
    square, tail = r * r, jnp.zeros_like(r)
    for power in range(15, 1, -2):
        tail = (tail + 2.0 / power) * square
    return jnp.where(near, m * (u * r + (1.0 + u) * r * tail), x * log_ratio + m - x)


def _stirling_error(x: Array) -> Array:
    """ln Gamma(x + 1) - (x + 1/2) ln x + x - ln(2 pi) / 2, for x > 0."""
    few = jnp.minimum(x, SMALL)
    exact = gammaln(few + 1.0) - (few + 0.5) * jnp.log(few) + few - HALF_LOG_2PI
    many = jnp.maximum(x, SMALL)
    inverse = 1.0 / many
    series = inverse * (1 / 12 - inverse**2 * (1 / 360 - inverse**2 / 1260))
    return jnp.where(x < SMALL, exact, series)
