"""Oracles 25 to 29: diffusion of Gaussian data, whose best denoiser is linear.

Every term is then quadratic in (y, eps), so its expectation over Gaussians is the average over four corners.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.diffusion.bound import prior_rate, step_terms
from vae_jax.diffusion.denoisers import Denoiser, denoiser, predict_data
from vae_jax.diffusion.observation import denoised
from vae_jax.diffusion.schedules import ddpm, linear, variance_exploding, variance_preserving
from vae_jax.diffusion.steps import first_step, forward_step
from vae_jax.selfcheck.check import Check, Row
from vae_jax.selfcheck.solvable import floats

START, END = -13.3, 5.0
VARIANCES = (0.3, 1.0, 4.0)


def exact(**options: Any) -> Denoiser:
    """The denoiser of data N(0, spread), E[x|z]; that variance is its parameter."""

    def apply(spread, z, gamma):
        signal = jax.nn.sigmoid(-gamma)
        return jnp.sqrt(signal) * spread * z / (signal * spread + jax.nn.sigmoid(gamma))

    return denoiser((lambda key, z, gamma: jnp.ones(()), apply), (1,), prediction=predict_data, **options)


def corners(variance: float) -> tuple[jax.Array, jax.Array]:
    """(y, eps): averages over these are those over N(0, variance) x N(0, 1) for quadratic functions."""
    pairs = np.array(list(itertools.product([-1.0, 1.0], repeat=2)))
    return floats(pairs[:, :1] * np.sqrt(variance)), floats(pairs[:, 1:])


def diffused(d: Denoiser) -> Callable[..., jax.Array]:
    """`(gen, ys, eps) -> rate`, the mean over all of them and over all T steps, compiled."""
    middles = (d.times()[1:] + d.times()[:-1]) / 2

    @jax.jit
    def rate(gen, ys, eps):
        each = lambda t: jax.vmap(lambda y, e: step_terms(d, {}, gen, e, y, t, None).nats)(ys, eps)  # noqa: E731
        return jnp.mean(jax.vmap(each)(middles))

    return rate


def limit(variance: float) -> float:
    return 0.5 * float(np.log1p(variance * np.exp(-START)) - np.log1p(variance * np.exp(-END)))


def run_25() -> list[Row]:
    schedule, wanted = ddpm(), np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    got = jax.jit(jax.vmap(lambda t: jax.nn.sigmoid(-schedule.gamma({}, t))))(floats(np.arange(1000) / 999))
    rows = [
        Row("ln alpha-bar_T of DDPM", np.log(4.035829765e-5), np.log(np.asarray(got)[-1])),
        Row("every alpha-bar", wanted, got),
    ]
    for name, process in (("preserving", variance_preserving), ("exploding", variance_exploding)):
        wanted, got = chained(process)(floats(np.array([-4.0, -2.5, 0.0, 1.0])))
        rows.append(Row(f"chained encoders, variance {name}", wanted, got))
    return rows


def chained(process: Any) -> Any:
    """(alpha and sigma^2 of the last of these gammas, mean and variance of one encoder after the other)."""

    @jax.jit
    def run(gammas):
        levels = [process(gamma) for gamma in gammas]
        first = first_step(jnp.ones(1), levels[0])
        mean, variance = first.mean, first.variance
        for low, level in itertools.pairwise(levels):
            step = forward_step(mean, low, level)
            mean, variance = step.mean, (level.alpha / low.alpha) ** 2 * variance + step.variance
        return jnp.stack([levels[-1].alpha, levels[-1].sigma ** 2]), jnp.stack([mean[0], variance[0]])

    return run


def run_26() -> list[Row]:
    d = exact(schedule=linear(-3.0, 2.0), steps=4)
    x, eps = floats(np.array([0.7])), floats(np.array([0.3]))
    a, s = np.sqrt(1 / (1 + np.exp(-0.5))), np.sqrt(1 / (1 + np.exp(0.5)))
    z = a * 0.7 + s * 0.3
    guess = a * 0.5 * z / (0.5 * a**2 + s**2)
    weighted = 0.5 * (np.exp(1.75) - np.exp(0.5)) * (0.7 - guess) ** 2
    # Two Gaussians of one variance, that of P(z_s|z_t, x), whose means differ by low.alpha part (x - guess).
    part = -np.expm1(-1.25)
    variance = part / (1 + np.exp(1.75))
    gaussians = part**2 / (1 + np.exp(-1.75)) * (0.7 - guess) ** 2 / (2 * variance)
    ours = jax.jit(functools.partial(step_terms, d, {}, c=None))({"net": floats(0.5)}, eps, x, floats(0.3)).nats / 4
    return [Row("weighted error of x", weighted, ours), Row("KL of Gaussians", gaussians, ours)]


def run_27() -> list[Row]:
    rows = [Row("L_inf, l = 1", 6.646643, limit(1.0))]
    for steps, wanted in ((10, 17.70785), (100, 7.24379), (1000, 6.70325)):
        d = exact(schedule=linear(START, END), steps=steps)
        rows.append(Row(f"T = {steps}", wanted, diffused(d)({"net": floats(1.0)}, *corners(1.0))))
    return rows


def measured(d: Denoiser, spread: float) -> Any:
    """The generator's parameters, its variance the right one: l / (1 + l SNR)."""
    gamma = START + (END - START) * np.asarray(d.times())
    return {"net": floats(spread), "variance": floats(spread / (1 + spread * np.exp(-gamma)))}


def both_ends(d: Denoiser) -> Callable[..., jax.Array]:
    """The same of the prior's rate and of the last step's distortion."""

    @jax.jit
    def nats(gen, ys, eps):
        first, last = d.level({}, jnp.zeros(())), variance_preserving(END)

        def one(y, e):
            of = d.observation.dist(first.alpha * y + first.sigma * e, first, lambda z, at: d.denoise(gen, z, at))
            return jnp.sum(prior_rate(y, last)) - of.log_prob(y)

        return jnp.mean(jax.vmap(one)(ys, eps))

    return nats


def run_28() -> list[Row]:
    rows, d = [], exact(schedule=linear(START, END), steps=5, variance="analytic", observation=denoised())
    steps, ends = diffused(d), both_ends(d)
    for spread in VARIANCES:
        at = (measured(d, spread), *corners(spread))
        total = np.asarray(steps(*at)) + np.asarray(ends(*at))
        signal = 1 / (1 + np.exp(END))
        end = signal * spread + 1 - signal
        entropy = 0.5 * np.log(2 * np.pi * np.e * spread)
        rows.append(Row(f"l = {spread:g}", entropy + 0.5 * (end - 1 - np.log(end)), total))
    return rows


def run_29() -> list[Row]:
    ds = [exact(schedule=linear(START, END), steps=steps, variance="analytic") for steps in (1, 3, 10)]
    rates = [(d, diffused(d)) for d in ds]
    of = lambda spread: np.stack([rate(measured(d, spread), *corners(spread)) for d, rate in rates])  # noqa: E731
    return [Row(f"T = 1, 3, 10; l = {spread:g}", limit(spread), of(spread)) for spread in VARIANCES]


CHECKS = [
    Check(25, "chained encoders = the closed-form marginal", run_25, 1e-6, 1e-9),
    Check(26, "three forms of a step's rate", run_26, 1e-5, 1e-9),
    Check(27, "rate of T steps on Gaussian data", run_27, 2e-3, 1e-5),
    Check(28, "bound = entropy + KL to the prior", run_28, 2e-3, 1e-9),
    Check(29, "optimal reverse variance: T steps = infinitely many", run_29, 2e-3, 1e-9),
]
