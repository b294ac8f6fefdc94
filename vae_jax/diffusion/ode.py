"""The exact likelihood of a diffusion in continuous time, by the probability-flow ODE (Song et al. 2021, section 4.3).

With z on the scale of variance 1, a and s the parts of signal and noise in it, and time counted in gamma,

    dz/dgamma = 1/2 s (epshat(z) - s z),      ln p(z(gamma_0)) = ln N(z(gamma_1); 0, I) + integral of div dz/dgamma.

It is the density of the ODE's own draws (`heun`, `dpm_solver`), not of the ancestral sampler's: the two agree where the
denoiser is the true one.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.core.extras import extra
from vae_jax.core.model import Params
from vae_jax.core.numbers import is_whole
from vae_jax.diffusion.denoisers import Denoiser
from vae_jax.diffusion.schedules import variance_preserving


def log_likelihood(
    denoiser: Denoiser,
    params: Params,
    key: Array,
    y: Any,
    c: Any = None,
    *,
    probes: int | None = None,
    tolerance: float = 1e-5,
    most_steps: int = 4096,
) -> Array:
    """ln p(y|c) of ONE example, in nats per unit of y, for an observation that is continuous.

    y is taken as the point at the start of the flow, where the noise has the variance exp(gamma_0).

    Args:
        key: for the probes.
        probes: None for the exact divergence, D products with the network's Jacobian at each evaluation; or a number of
            random probes (Hutchinson), which leaves exp(ln p) biased and ln p unbiased.
        tolerance: of the adaptive solver (Dormand-Prince 5(4)), absolute and relative.
        most_steps: the solver fails beyond.

    Raises:
        ValueError: data that are levels, fewer than one probe or step, or a tolerance outside (0, 1).
    """
    with extra("ode", "an exact likelihood"):
        import diffrax

    d = denoiser
    if d.observation.log_volume is None:
        raise ValueError(
            "the flow has a density, and this denoiser's data are levels, which have probabilities: use its bound "
            "(evaluate), or continuous data, dequantised"
        )
    if probes is not None and not is_whole(probes):
        raise ValueError(f"probes: want None (exact) or at least 1; got {probes}: a whole number is wanted")
    if not is_whole(most_steps) or not 0 < tolerance < 1:
        raise ValueError(
            f"the solver takes a whole number of steps, most_steps >= 1, and a tolerance in (0, 1); got {most_steps} "
            f"and {tolerance}"
        )
    x = d.observation.embed(y)
    start, end = (d.gamma(params["enc"], jnp.asarray(t, x.dtype)) for t in (0.0, 1.0))
    drawn = None if probes is None else jax.random.rademacher(key, (probes, *d.shape), x.dtype)

    def velocity(gamma, z):
        level = variance_preserving(gamma)
        other = d.process(gamma)
        noise = d.denoise(params["gen"], z * other.scale, other, c).noise
        return 0.5 * level.sigma * (noise - level.sigma * z)

    def field(gamma, state, args):
        del args
        z, _ = state
        value, push = jax.linearize(lambda z: velocity(gamma, z), z)
        return value, _trace(push, d.shape, drawn, z.dtype)

    signal = variance_preserving(start).alpha
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Dopri5(),
        start,
        end,
        None,
        (signal * x, jnp.zeros((), x.dtype)),
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
        max_steps=most_steps,
    )
    z, divergence = (value[-1] for value in solution.ys)
    size = math.prod(d.shape)
    last = -0.5 * jnp.sum(z**2) - 0.5 * size * math.log(2 * math.pi)
    return last + divergence + size * (jnp.log(signal) + d.observation.log_volume)


def _trace(push: Any, shape: tuple[int, ...], probes: Array | None, dtype: Any) -> Array:
    """The trace of a linear map, exactly or by probes."""
    size = math.prod(shape)
    if probes is None:
        basis = jnp.eye(size, dtype=dtype).reshape(size, *shape)
        return jnp.trace(jax.vmap(push)(basis).reshape(size, size))
    return jnp.mean(jnp.sum((probes * jax.vmap(push)(probes)).reshape(len(probes), -1), axis=1))
