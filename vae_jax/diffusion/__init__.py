"""Diffusion: a multi-step VAE whose encoder adds a little noise at each step and is not trained.

    model = diffusion(denoiser(UNet(...), (28, 28, 1), cosine(), observation=discrete(256)))

`schedules` how much noise when, `denoisers` what the network says, `observation` from z_0 to the data, `steps` the
densities of one step, `bound` the model, `times` where the bound is estimated, `weightings` other losses, `samplers`
ways back from noise, `ode` the exact likelihood, `unrolling` the same as T calls of `vae`.
"""

from vae_jax.diffusion import times
from vae_jax.diffusion.bound import diffusion
from vae_jax.diffusion.denoisers import Denoised, Denoiser, denoiser, predict_data, predict_noise, predict_velocity
from vae_jax.diffusion.observation import Observation, continuous, denoised, discrete
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
from vae_jax.diffusion.unrolling import unrolled
from vae_jax.diffusion.variance import fit_variance
from vae_jax.diffusion.weightings import Weighting, measure, min_snr, sigmoid_weighting, simple, spread_times, weighted

__all__ = [
    "Denoised", "Denoiser", "Observation", "Sampler", "Schedule", "Trajectory", "Weighting", "ancestral", "continuous",
    "cosine", "ddim", "ddpm", "denoised", "denoiser", "diffusion", "discrete", "dpm_solver", "fit_variance", "heun",
    "learned", "linear", "log_likelihood", "measure", "min_snr", "predict_data", "predict_noise", "predict_velocity",
    "schedule", "sigmoid_weighting", "simple", "spread_times", "table", "times", "trajectory", "unrolled",
    "variance_exploding", "variance_preserving", "weighted",
]  # fmt: skip
