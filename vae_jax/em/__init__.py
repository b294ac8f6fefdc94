"""Models with an exact posterior, and expectation maximisation.

A model here is a `Conditional` like any other: sample it, evaluate it, train it by gradient, make it the prior of a
VAE. Beside that its latent can be summed out exactly, so `fit_em` alternates the two halves of the lecture's loss in
closed form: enc becomes the posterior, then (pri, gen) their optimum.
"""

from vae_jax.em.algorithm import EMState, FittedEM, as_vae, expect_in_chunks, fit_em, init_em, make_em_step
from vae_jax.em.discrete_families import bernoullis, categoricals, mixture_of_bernoullis, mixture_of_categoricals
from vae_jax.em.factor_family import factor_analysers
from vae_jax.em.factor_models import factor_analysis, mixture_of_factor_analysers, ppca, ppca_closed_form
from vae_jax.em.family import Family
from vae_jax.em.gaussian_families import CovariancePrior, gaussians
from vae_jax.em.kmeans import k_means
from vae_jax.em.mixtures import mixture, mixture_of_gaussians
from vae_jax.em.sequences.hidden_markov_models import (
    categorical_hmm,
    filtering,
    gaussian_hmm,
    hidden_markov,
    smoothing,
    viterbi,
)
from vae_jax.em.sequences.state_space import linear_gaussian_state_space

__all__ = [
    "CovariancePrior", "EMState", "Family", "FittedEM", "as_vae", "bernoullis", "categorical_hmm", "categoricals",
    "expect_in_chunks", "factor_analysers", "factor_analysis", "filtering", "fit_em", "gaussian_hmm", "gaussians",
    "hidden_markov", "init_em", "k_means", "linear_gaussian_state_space", "make_em_step", "mixture",
    "mixture_of_bernoullis", "mixture_of_categoricals", "mixture_of_factor_analysers", "mixture_of_gaussians", "ppca",
    "ppca_closed_form", "smoothing", "viterbi",
]  # fmt: skip
