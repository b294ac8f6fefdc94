"""Models with an exact posterior, and expectation maximisation.

A model here is a `Conditional` like any other: sample it, evaluate it, train it by gradient, make it the prior of a
VAE. Beside that its latent can be summed out exactly, so `fit_em` alternates the two halves of the lecture's loss in
closed form: enc becomes the posterior, then (pri, gen) their optimum.
"""

from vae_jax.em.family import Family
from vae_jax.em.fit import EMState, FittedEM, as_vae, expect_in_chunks, fit_em, init_em, make_em_step
from vae_jax.em.gaussians import CovariancePrior, gaussians
from vae_jax.em.kmeans import k_means
from vae_jax.em.mixture import mixture, mixture_of_gaussians

__all__ = [
    "CovariancePrior",
    "EMState",
    "Family",
    "FittedEM",
    "as_vae",
    "expect_in_chunks",
    "fit_em",
    "gaussians",
    "init_em",
    "k_means",
    "make_em_step",
    "mixture",
    "mixture_of_gaussians",
]
