"""Numbers that can be trusted, of a whole split, each with its standard error.

`evaluate` gives ELBO, rate, distortion and the importance-weighted bound of every example; `certified` brackets ln P(y)
by annealing from both sides; `gaps` and `rate_split` say where the nats go; `collapse` which units theory expects to be
silent; `rate_distortion` what a Gaussian could do at best; `refine` fits the encoder's distribution to one example;
`impute` fills in what is missing of one, `impute_all` of all.
"""

from vae_jax.evaluation.accounting import Gaps, RateSplit, gaps, rate_split
from vae_jax.evaluation.certify import Certificate, certified
from vae_jax.evaluation.differential import Differential, differential_expression
from vae_jax.evaluation.disentanglement import DCI, dci, mutual_information_gap, separated_attribute_predictability
from vae_jax.evaluation.image_quality import frechet_distance, psnr, ssim
from vae_jax.evaluation.imputation import Imputed, impute, impute_all
from vae_jax.evaluation.linear_theory import Collapse, collapse, rate_distortion
from vae_jax.evaluation.refinement import Refined, elbo_draws, refine
from vae_jax.evaluation.whole_split import Evaluation, Mean, active_units, bits_per_dimension, evaluate, mean

__all__ = [
    "DCI", "Certificate", "Collapse", "Differential", "Evaluation", "Gaps", "Imputed", "Mean", "RateSplit", "Refined",
    "active_units", "bits_per_dimension", "certified", "collapse", "dci", "differential_expression", "elbo_draws",
    "evaluate", "frechet_distance", "gaps", "impute", "impute_all", "mean", "mutual_information_gap", "psnr",
    "rate_distortion", "rate_split", "refine", "separated_attribute_predictability", "ssim",
]  # fmt: skip
