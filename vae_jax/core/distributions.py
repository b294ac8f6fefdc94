"""The densities that numpyro lacks or gets wrong at the edges, and what a factorised density tells unit by unit."""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.util import promote_shapes

from vae_jax.core.linalg import inverse_of_lower
from vae_jax.core.numbers import is_number

MAX_LOG_STD = 7.0
MAX_ENUMERATED = 65_536


def bounded_log_std(raw: Array, limit: float = MAX_LOG_STD) -> Array:
    """A log standard deviation in (-limit, limit) from any number: `limit * tanh(raw / limit)`.

    Near 0 it is the identity; at the ends it saturates smoothly, so that no scale underflows, overflows or loses its
    gradient at once.
    """
    return limit * jnp.tanh(raw / limit)


def raw_log_std(log_std: Array, limit: float = MAX_LOG_STD) -> Array:
    """The inverse of `bounded_log_std`."""
    return limit * jnp.arctanh(log_std / limit)


class Bernoulli(dist.BernoulliLogits):
    """Bernoulli from logits, on {0, 1}.

    `ln P(y) = -softplus((1 - 2y) l)`: no cancellation at large |l|, and the gradient is y - sigmoid(l) everywhere.
    (numpyro's own log_prob has gradient 0 at l = 0, where every zero-initialised network starts.)
    """

    def log_prob(self, value: ArrayLike) -> Array:
        y = jnp.asarray(value, jnp.result_type(self.logits))
        return -jax.nn.softplus((1.0 - 2.0 * y) * self.logits)


class Categorical(dist.CategoricalLogits):
    """Classes 0 .. K-1 from logits (..., K), held in an array of any number type.

    (numpyro's own wants integers, and fails inside on others. Whether the values are whole is for the support to say.)
    """

    def log_prob(self, value: ArrayLike) -> Array:
        return super().log_prob(jnp.asarray(value).astype(jnp.int32))


class MultivariateNormal(dist.MultivariateNormal):
    """N(loc, scale_tril scale_tril'), whose log_prob whitens by the inverse factor (see `vae_jax.core.linalg`).

    numpyro's solves a triangular system for every value: slower for many values under one covariance, and on CPU in
    batches that can wait for each other.
    """

    def log_prob(self, value: ArrayLike) -> Array:
        shape = jnp.broadcast_shapes(jnp.shape(value), self.loc.shape)
        away = jnp.broadcast_to(value, shape) - jnp.broadcast_to(self.loc, shape)
        white = inverse_of_lower(self.scale_tril)
        squared = jnp.sum(jnp.einsum("...ij,...j->...i", white, away, precision="highest") ** 2, axis=-1)
        log_scale = jnp.log(jnp.diagonal(self.scale_tril, axis1=-2, axis2=-1)).sum(axis=-1)
        return -0.5 * squared - log_scale - 0.5 * self.event_shape[-1] * jnp.log(2 * jnp.pi)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["log"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class SimplexPoint:
    """A point of the simplex, held by the logarithms of its parts. Networks are given the parts themselves.

    (At low temperatures most parts of a relaxed class are below 1e-38, the least number of single precision.)

    Fields:
        log: (..., K), ln z.
    """

    log: Any

    @property
    def parts(self) -> Array:
        """(..., K), z: positive numbers with sum 1, or 0 where they are too small."""
        return jnp.exp(self.log)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.log.shape


class GumbelSoftmax(dist.Distribution):
    """One of K classes, relaxed to a point z of the simplex: z = softmax((logits + Gumbel noise) / temperature).

    A smooth function of the logits, so that z has a reparameterised gradient; one-hot in the limit of temperature 0
    (Jang et al. 2017; Maddison et al. 2017, the Concrete distribution).

    Samples are `SimplexPoint`s. The density of such a point is that of ln z, relative to dz / prod z (Maddison et al.
    2017, appendix C.3, ExpConcrete); that of an array z is relative to dz (their equation 10).

    Args:
        logits: (..., K).
        temperature: a positive number, traced or not; a low one has little bias and much variance.

    Raises:
        ValueError: a temperature that is not positive; one that is traced is not looked at.
    """

    arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012
    reparametrized_params = ["logits"]  # noqa: RUF012
    support = constraints.simplex
    pytree_data_fields = ("logits", "temperature")

    def __init__(self, logits: ArrayLike, temperature: ArrayLike, *, validate_args=None):
        check_temperature(temperature)
        self.logits, self.temperature = jnp.asarray(logits), temperature
        super().__init__(self.logits.shape[:-1], self.logits.shape[-1:], validate_args=validate_args)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> SimplexPoint:
        noise = jax.random.gumbel(key, (*sample_shape, *self.logits.shape), self.logits.dtype)
        noisy = jnp.broadcast_to(self.logits, noise.shape) + noise
        noisy -= jax.lax.stop_gradient(noisy.max(axis=-1, keepdims=True))  # no large numbers but those that count
        return SimplexPoint(jax.nn.log_softmax(noisy / self.temperature))

    def log_prob(self, value: ArrayLike | SimplexPoint) -> Array:
        if not isinstance(value, SimplexPoint):
            log_z = jnp.log(value)
            return self.log_prob(SimplexPoint(log_z)) - jnp.sum(log_z, axis=-1)
        classes, shape = self.logits.shape[-1], jnp.broadcast_shapes(value.shape, self.logits.shape)
        log_z, logits = jnp.broadcast_to(value.log, shape), jnp.broadcast_to(self.logits, shape)
        weighed = logits - self.temperature * log_z
        constant = math.lgamma(classes) + (classes - 1) * jnp.log(self.temperature)
        return constant + jnp.sum(weighed, axis=-1) - classes * jax.nn.logsumexp(weighed, axis=-1)


def check_temperature(temperature: ArrayLike) -> None:
    """Raise a ValueError for a temperature of relaxed classes that is known and not positive, or infinite."""
    if not isinstance(temperature, jax.core.Tracer) and not (is_number(temperature, 0) and temperature != 0):
        raise ValueError(f"the temperature of relaxed classes must be positive; got {temperature}: a finite number")


class Levels(constraints.ParameterFreeConstraint):
    """The integers 0 .. levels - 1. The bounds are constants, so a mixture of such distributions has a support too."""

    is_discrete = True
    event_dim = 0

    def __init__(self, levels: int):
        self.lower_bound = 0
        self.upper_bound = levels - 1

    def __call__(self, x):
        return (x >= self.lower_bound) & (x <= self.upper_bound) & (x % 1 == 0)

    def __repr__(self) -> str:
        return f"Levels({self.upper_bound + 1})"

    def feasible_like(self, prototype):
        return jnp.zeros_like(prototype)

    def tree_flatten(self):
        return (), ((), {"lower_bound": self.lower_bound, "upper_bound": self.upper_bound})

    def eq(self, other: object, static: bool = False) -> bool:
        del static
        return isinstance(other, Levels) and other.upper_bound == self.upper_bound


class DiscretisedLogistic(dist.Distribution):
    """A logistic density on [-1, 1] collected into `levels` equal cells; values are 0 .. levels - 1.

    `P(y) = F(upper edge of y) - F(lower edge of y)`, F the logistic distribution function; the two end cells reach to
    infinity, so that the levels sum to 1 whatever the mean and scale (Salimans et al. 2017, PixelCNN++, equation 2).

    Args:
        loc: mean on the [-1, 1] scale, any shape.
        log_scale: natural log of the logistic's scale on that scale, same shape.
        levels: number of levels, 256 for 8-bit data.
    """

    arg_constraints = {"loc": constraints.real, "log_scale": constraints.real}  # noqa: RUF012
    reparametrized_params: list[str] = []  # noqa: RUF012
    pytree_data_fields = ("loc", "log_scale")
    pytree_aux_fields = ("levels",)

    def __init__(self, loc: ArrayLike, log_scale: ArrayLike, levels: int = 256, *, validate_args=None):
        self.levels = levels
        self.loc, self.log_scale = promote_shapes(loc, log_scale)
        shape = jax.lax.broadcast_shapes(jnp.shape(loc), jnp.shape(log_scale))
        super().__init__(batch_shape=shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self):
        return Levels(self.levels)

    def log_prob(self, value: ArrayLike) -> Array:
        y, loc, log_scale = promote_shapes(jnp.asarray(value, jnp.result_type(self.loc)), self.loc, self.log_scale)
        width = 2.0 / self.levels
        lower = (y * width - 1.0 - loc) * jnp.exp(-log_scale)
        upper = lower + width * jnp.exp(-log_scale)
        # F(b) - F(a) = F(b) F(-a) (1 - exp(a - b)): no difference of nearly equal numbers, and b - a is constant.
        interior = -jnp.expm1(-width * jnp.exp(-log_scale))
        log_upper = jnp.where(y >= self.levels - 1, 0.0, jax.nn.log_sigmoid(upper))
        log_lower = jnp.where(y <= 0, 0.0, jax.nn.log_sigmoid(-lower))
        at_edge = (y <= 0) | (y >= self.levels - 1)
        return log_upper + log_lower + jnp.where(at_edge, 0.0, jnp.log(interior))

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        noise = jax.random.logistic(key, sample_shape + self.batch_shape)
        x = self.loc + jnp.exp(self.log_scale) * noise
        return jnp.clip(jnp.floor((x + 1.0) * (self.levels / 2)), 0, self.levels - 1).astype(jnp.int32)

    @property
    def mean(self) -> Array:
        """Mean level, by summing over all levels (shape: batch shape)."""
        levels = self._all_levels()
        return jnp.sum(levels * jnp.exp(self.log_prob(levels)), axis=0)

    @property
    def variance(self) -> Array:
        """Variance in squared levels (shape: batch shape)."""
        levels = self._all_levels()
        return jnp.sum((levels - self.mean[None]) ** 2 * jnp.exp(self.log_prob(levels)), axis=0)

    def _all_levels(self) -> Array:
        return jnp.arange(self.levels).reshape((-1,) + (1,) * len(self.batch_shape))


_MEANS_OF_CLASSES = (dist.CategoricalLogits.mean, dist.CategoricalProbs.mean)  # NaN; levels have means of their own


def mean_of(distribution: dist.Distribution) -> Array | None:
    """The mean, where the values are numbers: classes have none."""
    if getattr(type(getattr(distribution, "base_dist", distribution)), "mean", None) in _MEANS_OF_CLASSES:
        return None
    try:
        return distribution.mean
    except NotImplementedError:
        return None


def point_of(distribution: dist.Distribution) -> Array | None:
    """One value that stands for all: the mean, or the most probable class; None where neither is known."""
    base = getattr(distribution, "base_dist", distribution)
    if isinstance(base, dist.CategoricalLogits | dist.CategoricalProbs):
        return jnp.argmax(base.probs, axis=-1)
    return mean_of(distribution)


def draw_or_point(distribution: dist.Distribution, key: Array | None) -> Array | None:
    """A draw, or without a key `point_of` the distribution."""
    return point_of(distribution) if key is None else distribution.sample(key)


def tempered(distribution: dist.Distribution, key: Array, temperature: ArrayLike) -> Array:
    """A draw whose distance from the mean is multiplied by the temperature.

    Raises:
        ValueError: the distribution is no Gaussian.
    """
    base = getattr(distribution, "base_dist", distribution)
    if not isinstance(base, dist.Normal | dist.MultivariateNormal):
        raise ValueError(
            "a temperature multiplies the standard deviations of a Gaussian prior, or of a ladder's; this prior is "
            f"{type(base).__name__}: leave the temperature out"
        )
    return distribution.mean + temperature * (distribution.sample(key) - distribution.mean)


def unit_log_prob(distribution: dist.Distribution, x: Array) -> Array | None:
    """ln P of each element of x (shape of x) where the density factorises over them, else None."""
    base = factors(distribution)
    return None if base is None else base.log_prob(x)


def unit_kl(q: dist.Distribution, p: dist.Distribution) -> Array | None:
    """KL(q || p) of each element where both factorise over them, else None."""
    q_base, p_base = factors(q), factors(p)
    return None if q_base is None or p_base is None else dist.kl_divergence(q_base, p_base)


def factors(distribution: dist.Distribution) -> dist.Distribution | None:
    """The distribution of each number by itself, where they are independent; None where they are not."""
    if not isinstance(distribution, dist.Independent) or distribution.batch_shape != ():
        return None
    base = distribution.base_dist
    return base if base.event_shape == () and base.batch_shape == distribution.event_shape else None


def enumerate_support(distribution: dist.Distribution) -> Array:
    """All values of a distribution over finitely many, stacked on axis 0.

    numpyro enumerates single variables; here vectors of independent ones too (their product).

    Raises:
        TypeError: the values cannot be listed.
        ValueError: there are more than 65,536 of them.
    """
    if not distribution.has_enumerate_support:
        raise TypeError(
            f"{type(distribution).__name__} has no finite list of values: estimator=enumerated wants a discrete "
            "encoder (categorical, Bernoulli, one-hot)"
        )
    if not isinstance(distribution, dist.Independent):
        return distribution.enumerate_support(expand=False)
    event = distribution.base_dist.event_shape
    values = distribution.base_dist.enumerate_support(expand=False).reshape(-1, *event)
    size = math.prod(distribution.event_shape) // math.prod(event)
    if len(values) ** size > MAX_ENUMERATED:
        raise ValueError(
            f"the latent has {len(values)}^{size} values, more than the {MAX_ENUMERATED:,} that enumeration allows"
        )
    indices = np.array(list(itertools.product(range(len(values)), repeat=size)), dtype=int)
    return values[indices].reshape((-1, *distribution.event_shape))
