"""Diffusion: a multi-step VAE whose encoder adds a little noise at each step and is not trained.

    model = diffusion(denoiser(UNet(...), (28, 28, 1), cosine(), observation=levels(256)))

`schedules` how much noise when, `denoiser` what the network says, `observation` from z_0 to the data, `steps` the
densities of one step, `bound` the model, `times` where the bound is estimated, `objectives` other losses, `samplers`
ways back from noise, `ode` the exact likelihood, `unrolled` the same as T calls of `vae`.
"""

from vae_jax.diffusion import objectives, times
from vae_jax.diffusion.bound import diffusion
from vae_jax.diffusion.denoiser import Denoised, Denoiser, data, denoiser, noise, velocity
from vae_jax.diffusion.fit_variance import fit_variance
from vae_jax.diffusion.observation import Observation, continuous, denoised, levels
from vae_jax.diffusion.ode import log_likelihood
from vae_jax.diffusion.samplers import Sampler, Trajectory, ancestral, ddim, dpm_solver, heun, trajectory
from vae_jax.diffusion.schedules import (
    Schedule,
    cosine,
    ddpm,
    learned,
    linear,
    schedule,
    table,
    variance_exploding,
    variance_preserving,
)
from vae_jax.diffusion.unrolled import unrolled

__all__ = [
    "Denoised",
    "Denoiser",
    "Observation",
    "Sampler",
    "Schedule",
    "Trajectory",
    "ancestral",
    "continuous",
    "cosine",
    "data",
    "ddim",
    "ddpm",
    "denoised",
    "denoiser",
    "diffusion",
    "dpm_solver",
    "fit_variance",
    "heun",
    "learned",
    "levels",
    "linear",
    "log_likelihood",
    "noise",
    "objectives",
    "schedule",
    "table",
    "times",
    "trajectory",
    "unrolled",
    "variance_exploding",
    "variance_preserving",
    "velocity",
]
