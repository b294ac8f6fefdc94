"""The first encoder and the last generator: how data y become a point x, and P(y|z_0).

z_0 has a little noise, x + exp(gamma_0 / 2) eps after division by alpha_0. What y is given z_0 closes the bound.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from vae_jax.core.distributions import Categorical, Levels
from vae_jax.core.numbers import is_whole
from vae_jax.diffusion.schedules import Level


class Observation(NamedTuple):
    """From data to the space of the diffusion and back.

    Fields:
        embed: `y -> x`.
        dist: `(z_0, level, denoise) -> Distribution` of y; `denoise(z_0, level)` is what the network makes of it.
        support: the constraint that y has to satisfy.
        nats: `(level, D) -> E[-ln P(y|z_0)]`, where that is known without z_0, else None.
        log_volume: ln |dx/dy| of one number, where y is continuous and x a linear function of it; else None.
    """

    embed: Callable[[Any], Array]
    dist: Callable[[Array, Level, Any], dist.Distribution]
    support: constraints.Constraint
    nats: Callable[[Level, int], Array] | None = None
    log_volume: float | None = None


def continuous(low: float | None = None, high: float | None = None) -> Observation:
    """y is continuous: P(y|z_0) = N(z_0 / alpha_0, exp(gamma_0)), the first step undone.

    Args:
        low, high: the range of the data, which becomes [-1, 1]; the density is that of y, per unit of y. Without them
            x = y, and the data should have about unit variance.

    Raises:
        ValueError: only one of the two, or an empty range.
    """
    middle, half, embed, support = _range(low, high)

    def make(z, level, denoise):
        del denoise
        mean = middle + half * z / level.alpha
        return dist.Normal(mean, half * jnp.exp(level.gamma / 2)).to_event(mean.ndim)

    def nats(level, size):
        return size * (0.5 * math.log(2 * math.pi * math.e) + level.gamma / 2 + math.log(half))

    return Observation(embed, make, support, nats, -math.log(half))


def denoised(low: float | None = None, high: float | None = None) -> Observation:
    """As `continuous`, with the network's help: P(y|z_0) = N(xhat(z_0), v), like any other reverse step.

    v is the denoiser's variance of x given z_0, or, where that is fixed, 1 / (1 + SNR_0). One more call of the network
    at each estimate of the bound; worth it where gamma_0 is not low.
    """
    middle, half, embed, support = _range(low, high)

    def make(z, level, denoise):
        known = denoise(z, level)
        variance = jnp.where(known.variance > 0, known.variance, jax.nn.sigmoid(level.gamma))
        return dist.Normal(middle + half * known.x, half * jnp.sqrt(variance)).to_event(known.x.ndim)

    return Observation(embed, make, support, None, -math.log(half))


def discrete(count: int = 256) -> Observation:
    """y is one of the integers 0 .. count-1, x the middle of its cell on [-1, 1].

    P(y|z_0) is proportional to N(z_0 / alpha_0; x(y), exp(gamma_0)): an exact probability of 8-bit data (Kingma et al.
    2021, section 4, equations 7 and 8).

    Raises:
        ValueError: fewer than 2 levels.
    """
    if not is_whole(count, 2):
        raise ValueError(f"want at least 2 levels; got {count}: a whole number is wanted")

    def embed(y):
        return (2 * jnp.asarray(y, jnp.result_type(float)) + 1) / count - 1

    def make(z, level, denoise):
        del denoise
        away = (z / level.alpha)[..., None] - embed(jnp.arange(count)).reshape((1,) * z.ndim + (-1,))
        logits = -0.5 * away**2 * jnp.exp(-level.gamma)
        return Categorical(logits).to_event(z.ndim)

    return Observation(embed, make, Levels(count))


def _range(low: float | None, high: float | None):
    """(middle, half the width, y -> x, what y has to satisfy)"""
    middle, half, support = 0.0, 1.0, constraints.real
    if low is not None or high is not None:
        if low is None or high is None or not low < high:
            raise ValueError(f"a range of data needs low < high, or neither; got low={low}, high={high}")
        middle, half, support = (low + high) / 2, (high - low) / 2, constraints.interval(low, high)
    return middle, half, lambda y: (jnp.asarray(y) - middle) / half, support
