"""Numbers that can be trusted, of a whole split, each with its standard error.

`evaluate` gives ELBO, rate, distortion and the importance-weighted bound of every example; `certified` brackets ln P(y)
by annealing from both sides; `gaps` and `rate_split` say where the nats go; `collapse` which units theory expects to be
silent; `rate_distortion` what a Gaussian could do at best; `refine` fits the encoder's distribution to one example.
"""

from vae_jax.evaluation.accounting import Gaps, RateSplit, gaps, rate_split
from vae_jax.evaluation.certify import Certificate, certified
from vae_jax.evaluation.linear_theory import Collapse, collapse, rate_distortion
from vae_jax.evaluation.refinement import Refined, elbo_draws, refine
from vae_jax.evaluation.whole_split import Evaluation, Mean, active_units, bits_per_dimension, evaluate, mean

__all__ = [
    "Certificate", "Collapse", "Evaluation", "Gaps", "Mean", "RateSplit", "Refined", "active_units",
    "bits_per_dimension", "certified", "collapse", "elbo_draws", "evaluate", "gaps", "mean", "rate_distortion",
    "rate_split", "refine",
]  # fmt: skip
