"""From noise to data: rules for one step, and one compiled scan over the steps.

A sampler goes down a grid of times from 1 to 0. Its rule sees what the denoiser knows at z_t and gives z_s. None of
them changes the model's parameters or its bound: they are ways to draw from it.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax.core.conditions import no_condition
from vae_jax.core.model import Params
from vae_jax.core.numbers import is_whole
from vae_jax.diffusion.denoisers import Denoised, Denoiser
from vae_jax.diffusion.schedules import Level
from vae_jax.diffusion.steps import end, reverse_step

DEFAULT_STEPS = 250
Denoise = Callable[[Array, Level], Denoised]


class Sampler(NamedTuple):
    """A rule for one step back.

    Fields:
        steps: how many; None for the T of the denoiser, or 250 in continuous time.
        step: `(denoise, z, low, level, memory, key) -> (z_s, memory)`, from the noise at `level` to that at `low`.
        memory: `shape ->` what the rule remembers before the first step.
        widest: the most that ln SNR may rise in one step.
    """

    steps: int | None
    step: Callable[..., tuple[Array, Any]]
    memory: Callable[[tuple[int, ...]], Any] = lambda shape: ()
    widest: float = math.inf


class Trajectory(NamedTuple):
    """A draw and how it came about.

    Fields:
        y: the draw.
        zs: (steps + 1, *shape) the latents, z_1 first, on the scale of variance 1.
        xs: (steps, *shape) what the denoiser made of each but the last.
    """

    y: Any
    zs: Array
    xs: Array


def ancestral(steps: int | None = None) -> Sampler:
    """The model itself: z_s ~ P_gen(z_s|z_t) (Ho et al. 2020, algorithm 2).

    Raises:
        ValueError: steps that are no whole number from 1 on.
    """
    _check_steps(steps)

    def step(denoise, z, low, level, memory, key):
        return reverse_step(denoise(z, level), z, low, level).sample(key), memory

    return Sampler(steps, step)


def ddim(steps: int, eta: float = 0.0) -> Sampler:
    """Song et al. 2021, equation 12: no new noise with eta = 0, `ancestral` with a fixed variance with eta = 1.

    Raises:
        ValueError: steps that are no whole number from 1 on, or eta outside [0, 1].
    """
    _check_steps(steps)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is the part of the noise that is drawn anew, in [0, 1]; got {eta}")

    def step(denoise, z, low, level, memory, key):
        known = denoise(z, level)
        fresh = eta**2 * -jnp.expm1(low.gamma - level.gamma)
        kept = jnp.sqrt(jnp.maximum(1 - fresh, 0.0)) * known.noise
        drawn = jnp.sqrt(fresh) * jax.random.normal(key, z.shape, z.dtype)
        return low.alpha * known.x + low.sigma * (kept + drawn), memory

    return Sampler(steps, step)


def heun(steps: int) -> Sampler:
    """Second order for the probability-flow ODE d(z/alpha) = epshat d(sigma/alpha) (Karras et al. 2022, algorithm 1).

    Two calls of the network a step. In steps of ln SNR of 0.9, 1.9 and 3.8 the variance of a Gaussian comes out 1.06,
    1.3 and 3 times as large as it is: from -13.3 to 13.3 take 30 steps or more; with fewer, `dpm_solver` is closer.

    Raises:
        ValueError: steps that are no whole number from 1 on; or, when it samples, ln SNR rises by more than 6 in one
            of them: heun(1) from -13.3 to 13.3 would give a variance of 150,000 in place of 1.
    """
    _check_steps(steps)

    def step(denoise, z, low, level, memory, key):
        del key
        width = jnp.exp(low.gamma / 2) - jnp.exp(level.gamma / 2)
        before = denoise(z, level).noise
        guess = z / level.alpha + width * before
        after = denoise(low.alpha * guess, low).noise
        return low.alpha * (z / level.alpha + width * (before + after) / 2), memory

    return Sampler(steps, step, widest=6.0)


def dpm_solver(steps: int) -> Sampler:
    """DPM-Solver++(2M): second order with one call of the network a step (Lu et al. 2022b, algorithm 2).

    Raises:
        ValueError: steps that are no whole number from 1 on.
    """
    _check_steps(steps)

    def step(denoise, z, low, level, memory, key):
        del key
        x = denoise(z, level).x
        previous, h_previous = memory
        h = (level.gamma - low.gamma) / 2  # of ln(alpha / sigma)
        # Straight on from the two latest xhat; the first step has one only.
        slope = jnp.where(h_previous > 0, h / (2 * jnp.where(h_previous > 0, h_previous, 1.0)), 0.0)
        ahead = x + slope * (x - previous)
        return (low.sigma / level.sigma) * z - low.alpha * jnp.expm1(-h) * ahead, (x, h)

    return Sampler(steps, step, lambda shape: (jnp.zeros(shape), jnp.zeros(())))


def trajectory(
    denoiser: Denoiser, params: Params, key: Array, c: Any = None, *, sampler: Sampler, guidance: float = 1.0
) -> Trajectory:
    """One y of P(y|c), and the way to it.

    Raises:
        ValueError: guidance without a condition, or steps that are too wide for the sampler.
    """
    d, steps = denoiser, sampler.steps or denoiser.steps or DEFAULT_STEPS
    _check_widths(d, params["enc"], sampler, steps)
    denoise = guided(d, params["gen"], c, guidance)
    k_end, k_steps, k_data = jax.random.split(key, 3)
    enc, times = params["enc"], jnp.linspace(1.0, 0.0, steps + 1)
    first, last = d.level(enc, times[-1]), d.level(enc, times[0])
    z_1 = end(d.shape, last).sample(k_end)

    def step(carry, at):
        z, memory, key = carry
        t, s = at
        k_step, key = jax.random.split(key)
        low, level = d.level(enc, s), d.level(enc, t)
        seen = []

        def recorded(z, level):
            seen.append(denoise(z, level))
            return seen[-1]

        z_s, memory = sampler.step(recorded, z, low, level, memory, k_step)
        return (z_s, memory, key), (z_s / low.scale, seen[0].x)

    (z_0, _, _), (zs, xs) = jax.lax.scan(step, (z_1, sampler.memory(d.shape), k_steps), (times[:-1], times[1:]))
    y = d.observation.dist(z_0, first, denoise).sample(k_data)
    return Trajectory(y, jnp.concatenate([z_1[None] / last.scale, zs]), xs)


def guided(d: Denoiser, gen: Params, c: Any, guidance: float) -> Denoise:
    """The denoiser with its condition exaggerated: epshat = eps(z) + guidance (eps(z, c) - eps(z)).

    Without a condition the network sees zeros in its place (`no_condition`).

    Raises:
        ValueError: guidance other than 1, and nothing to guide by, or classes as whole numbers, among which 0 is one.
    """
    if guidance == 1.0:
        return lambda z, level: d.denoise(gen, z, level, c)
    if c is None:
        raise ValueError(f"guidance={guidance} weighs a condition, and none is given: pass labels (c), or guidance=1")
    nothing = no_condition(c)

    def denoise(z, level):
        with_c = d.denoise(gen, z, level, c)
        without = d.denoise(gen, z, level, nothing)
        mixed = jax.tree.map(lambda a, b: b + guidance * (a - b), with_c, without)
        part = min(guidance, 1.0)  # a variance does not go on beyond that with c: it could become negative
        one, other = jnp.asarray(with_c.variance), jnp.asarray(without.variance)
        return mixed._replace(variance=other + part * (one - other))

    return denoise


def _check_widths(d: Denoiser, enc: Params, sampler: Sampler, steps: int) -> None:
    """Raise a ValueError for a step that is too wide; a schedule whose parameters are traced is not looked at."""
    if sampler.widest == math.inf or any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(enc)):
        return
    with jax.ensure_compile_time_eval():
        gammas = np.asarray(jax.vmap(lambda t: d.gamma(enc, t))(jnp.linspace(0, 1, steps + 1)))
    widest = np.diff(gammas).max()
    if widest > sampler.widest:
        raise ValueError(
            f"with {steps} steps ln SNR rises by {widest:.3g} in one of them, and this sampler would go far astray "
            f"beyond {sampler.widest:g}: take more steps, or dpm_solver({steps})"
        )


def _check_steps(steps: int | None) -> None:
    if steps is not None and not is_whole(steps):
        raise ValueError(f"a sampler takes at least one step; got {steps}: a whole number is wanted")
