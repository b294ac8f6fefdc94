"""The parts of one step of a diffusion, each a density: the fixed encoder, the step back, and the two ends.

`low` is the noise at s, `level` that at t, a step later.
"""

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike

from vae_jax.diffusion.denoisers import Denoised
from vae_jax.diffusion.schedules import Level


def step_at(t: Array, steps: int) -> tuple[Array, Array]:
    """The step (i-1)/T, i/T that t in [0, 1) falls into."""
    i = jnp.clip(jnp.floor(t * steps), 0, steps - 1)
    return i / steps, (i + 1) / steps


def step_kl(error: Array, variance: ArrayLike, low: Level, level: Level) -> Array:
    """KL(P_enc(z_s|z_t, x) || P_gen(z_s|z_t)) elementwise, from eps - epshat and the variance of x given z_t.

    With variance 0 it is 1/2 expm1(gamma_t - gamma_s) (eps - epshat)^2.
    """
    more = excess(variance, low, level)
    return 0.5 * (jnp.log1p(more) - more / (1 + more) + jnp.expm1(level.gamma - low.gamma) * error**2 / (1 + more))


def excess(variance: ArrayLike, low: Level, level: Level) -> Array:
    """By what part a reverse step's variance exceeds that of P_enc(z_s|z_t, x), since x is known with a variance."""
    return jnp.exp(-low.gamma) * -jnp.expm1(low.gamma - level.gamma) * variance


def reverse_step(known: Denoised, z: Array, low: Level, level: Level) -> dist.Distribution:
    """P_gen(z_s|z_t) for s = `low`, t = `level`, given what the denoiser knows of x."""
    part = -jnp.expm1(low.gamma - level.gamma)  # of the noise at t, how much came after s
    mean = (low.alpha / level.alpha) * (1 - part) * z + low.alpha * part * known.x
    std = low.sigma * jnp.sqrt(part * (1 + excess(known.variance, low, level)))
    return dist.Normal(mean, jnp.broadcast_to(std, z.shape)).to_event(z.ndim)


def forward_step(z: Array, low: Level, level: Level) -> dist.Distribution:
    """P_enc(z_t|z_s), the fixed encoder of one step."""
    std = level.sigma * jnp.sqrt(-jnp.expm1(low.gamma - level.gamma))
    return dist.Normal(level.alpha / low.alpha * z, jnp.broadcast_to(std, z.shape)).to_event(z.ndim)


def first_step(x: Array, level: Level) -> dist.Distribution:
    """P_enc(z_0|x)."""
    return dist.Normal(level.alpha * x, jnp.broadcast_to(level.sigma, x.shape)).to_event(x.ndim)


def end(shape: tuple[int, ...], level: Level) -> dist.Distribution:
    """P_pri(z_1), the marginal of data with variance 1."""
    return dist.Normal(jnp.zeros(shape), jnp.broadcast_to(level.scale, shape)).to_event(len(shape))
