"""Diffusion as a multi-step VAE with a fixed encoder (Sohl-Dickstein et al. 2015; Ho et al. 2020; Kingma et al. 2021).

    P_enc(z_t|z_s) = N((alpha_t/alpha_s) z_s, ...)      a little noise is added, T times; nothing is trained
    P_pri(z_1)     = N(0, alpha_1^2 + sigma_1^2)        what comes out at the end
    P_gen(z_s|z_t) = P_enc(z_s|z_t, x = xhat(z_t))      the step back, with the denoiser's xhat in place of x

The T rates have closed forms given x, so that one of them at a random t estimates all (the integral, for T infinite):

    -ln P(y) <= KL(P_enc(z_1|x) || P_pri)  +  E_t E_eps 1/2 gamma'(t) |eps - epshat|^2  +  E[-ln P(y|z_0)]
                prior                         diffusion                                   reconstruction

For T steps gamma'(t) becomes T expm1(gamma_t - gamma_s). `vae_jax.diffusion.unrolling` is the same bound said the long
way, by T calls of `vae`; tests/test_diffusion.py holds the two together.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.core.model import Diffused, Model, Params, Terms, log_prob
from vae_jax.diffusion.denoisers import Denoiser
from vae_jax.diffusion.samplers import Sampler, ancestral, trajectory
from vae_jax.diffusion.schedules import Level
from vae_jax.diffusion.steps import end, first_step, forward_step, reverse_step, step_at, step_kl
from vae_jax.diffusion.times import Times, uniform


def diffusion(
    denoiser: Denoiser,
    *,
    times: Times = uniform,
    sampler: Sampler = ancestral(),
    guidance: float = 1.0,
    dropout: bool = False,
) -> Model:
    """P(y|c) by denoising.

    In `Terms` the distortion is the reconstruction, the rate prior + diffusion; `rates` is (diffusion, prior),
    and `diffusions` holds what the objectives of `vae_jax.diffusion.weightings` read. With T steps
    there is `importance` as well (T calls of the network); in continuous time `log_likelihood` takes its place.

    Args:
        denoiser: made by `vae_jax.diffusion.denoisers`.
        times: where the bound is estimated: `uniform`, `stratified(k)`, `proposal(weights)` or `every(T)`.
        sampler: how `sample` comes back from noise: `ancestral()` (the default: the model itself), `ddim`, `heun`,
            `dpm_solver`, each with its number of steps.
        guidance: weight of the condition in `sample` (Ho & Salimans 2022): 1 is the model, 0 ignores the condition,
            more than 1 exaggerates it. Train with `objectives.drop_condition` for anything but 1.
        dropout: the steps' rates are those of the network with dropout. For training only, by an objective
            (`spread_times`): what is evaluated is the network without.

    Raises:
        ValueError: a negative guidance; or, when first called, guidance without a condition.
        TypeError: no denoiser, or no sampler.

    Example:
        >>> model = diffusion(denoiser(nets.DenoisingMLP(8, 2), (2,), steps=10))
        >>> params = jax.jit(model.init)(jax.random.key(0), jnp.zeros(2), None)
        >>> jax.jit(model.sample)(params, jax.random.key(1), None).shape
        (2,)
    """
    if not isinstance(denoiser, Denoiser):
        raise TypeError(f"diffusion wants denoiser(net, shape, ...); got {type(denoiser).__name__}")
    if not isinstance(sampler, Sampler):
        raise TypeError(f"sampler wants ancestral(), ddim(50), ..., called; got {type(sampler).__name__}")
    if not 0 <= guidance < math.inf:
        raise ValueError(f"guidance weighs the condition and cannot be negative; got {guidance}")
    d = denoiser

    def init(key, y, c=None):
        if jnp.shape(y) != d.shape:
            raise ValueError(f"the denoiser is made for examples of shape {d.shape}; got one of {jnp.shape(y)}")
        return d.init(key, c)

    def terms(params, key, y, c=None):
        k_t, k_eps, k_data = jax.random.split(key, 3)
        x = d.observation.embed(y)
        ts, densities = times(k_t)
        noise = jax.random.normal(k_eps, (len(ts), *d.shape), x.dtype)
        keys = jax.random.split(jax.random.fold_in(key, 3), len(ts)) if dropout else None
        moments = (noise, ts, keys)

        def loss(enc, gen, x):
            def at_time(moment):
                eps, t, k = moment
                return step_terms(d, enc, gen, eps, x, t, c, key=k)

            if len(ts) == 1:
                one = at_time(jax.tree.map(lambda v: v[0], moments))
                found = jax.tree.map(lambda v: jnp.asarray(v)[None], one)
            else:  # one after the other: memory does not grow with the number of times
                found = jax.lax.map(at_time, moments)
            found = found._replace(weight=1 / densities)
            return jnp.mean(found.weight * found.nats), found

        enc, gen = params["enc"], params["gen"]
        interior = d.schedule.interior if d.steps is None else ()
        held = {name: jax.lax.stop_gradient(v) if name in interior else v for name, v in enc.items()}
        diffused, found = loss(held, gen, x)
        first, last = d.level(held, jnp.zeros(())), d.level(held, jnp.ones(()))
        prior = jnp.sum(prior_rate(x, last))
        penalty: Any = 0.0
        if interior:
            # 0 in value; its gradient lowers the variance of the estimate.
            moved = {name: v if name in interior else jax.lax.stop_gradient(v) for name, v in enc.items()}
            squared = loss(moved, *jax.lax.stop_gradient((gen, x)))[0] ** 2 / math.prod(d.shape)
            penalty = squared - jax.lax.stop_gradient(squared)
        return Terms(
            distortion=_reconstruction(d, gen, k_data, y, x, first, c),
            rate=diffused + prior,
            penalty=penalty,
            rates=jnp.stack([diffused, prior]),
            diffusions=(found._replace(bound=diffused),),
        )

    def sample(params, key, c=None):
        return trajectory(d, params, key, c, sampler=sampler, guidance=guidance).y

    importance = None if d.steps is None else functools.partial(_chain_terms, d)
    return Model(init, terms, sample, importance, support=lambda params, c=None: d.observation.support)


def step_terms(
    d: Denoiser, enc: Params, gen: Params, eps: Array, x: Array, t: Array, c: Any, *, key: Array | None = None
) -> Diffused:
    """The rate of the step at t, times how many there are, and what it is made of."""
    if d.steps is None:
        gamma, slope = jax.jvp(lambda t: d.gamma(enc, t), (t,), (jnp.ones_like(t),))
        level = d.process(gamma)
        squared = jnp.sum((eps - d.denoise(gen, level.alpha * x + level.sigma * eps, level, c, key=key).noise) ** 2)
        nats = 0.5 * slope * squared
    else:
        s, t = step_at(t, d.steps)
        low, level = d.level(enc, s), d.level(enc, t)
        known = d.denoise(gen, level.alpha * x + level.sigma * eps, level, c, key=key)
        squared = jnp.sum((eps - known.noise) ** 2)
        slope = d.steps * jnp.expm1(level.gamma - low.gamma)
        nats = d.steps * jnp.sum(step_kl(eps - known.noise, known.variance, low, level))
    return Diffused(t, level.gamma, slope, squared, nats)


def prior_rate(x: Array, level: Level) -> Array:
    """KL(P_enc(z_1|x) || P_pri(z_1)), elementwise."""
    signal = jax.nn.sigmoid(-level.gamma)  # alpha^2 of variance 1
    return 0.5 * (signal * x**2 - signal - jax.nn.log_sigmoid(level.gamma))


def _reconstruction(d: Denoiser, gen: Params, key: Array, y: Any, x: Array, level: Level, c: Any) -> Array:
    """E[-ln P(y|z_0)], by one z_0 unless it is known."""
    if d.observation.nats is not None:
        return d.observation.nats(level, math.prod(d.shape))
    z = first_step(x, level).sample(key)
    return -log_prob(d.observation.dist(z, level, lambda z, level: d.denoise(gen, z, level, c)), y)


def _chain_terms(d: Denoiser, params: Params, key: Array, y: Any, c: Any = None) -> Terms:
    """One importance sample: the whole chain z_0, ..., z_1 and the T steps back, in one scan."""
    enc, gen = params["enc"], params["gen"]
    k_first, k_steps = jax.random.split(key)
    times = d.times()
    first, last = d.level(enc, times[0]), d.level(enc, times[-1])
    start = first_step(d.observation.embed(y), first)
    z_0 = start.sample(k_first)
    distortion = -log_prob(d.observation.dist(z_0, first, lambda z, level: d.denoise(gen, z, level, c)), y)

    def step(z, at):
        s, t, eps = at
        low, level = d.level(enc, s), d.level(enc, t)
        forward = forward_step(z, low, level)
        z_t = forward.mean + jnp.sqrt(forward.variance) * eps
        back = reverse_step(d.denoise(gen, z_t, level, c), z_t, low, level)
        return z_t, forward.log_prob(z_t) - back.log_prob(z)

    noise = jax.random.normal(k_steps, (len(times) - 1, *d.shape), z_0.dtype)
    z_1, rates = jax.lax.scan(step, z_0, (times[:-1], times[1:], noise))
    prior = -end(d.shape, last).log_prob(z_1)
    diffused = start.log_prob(z_0) + jnp.sum(rates)
    return Terms(distortion, diffused + prior, rates=jnp.stack([diffused, prior]))
