"""Numbers that can be trusted, of a whole split, each with its standard error.

`evaluate` gives ELBO, rate, distortion and the importance-weighted bound of every example; `certified` brackets ln P(y)
by annealing from both sides; `gaps` and `rate_split` say where the nats go; `collapse` which units theory expects to be
silent; `rate_distortion` what a Gaussian could do at best.
"""

from vae_jax.evaluate.accounting import Gaps, RateSplit, gaps, rate_split
from vae_jax.evaluate.certify import Certificate, certified
from vae_jax.evaluate.collapse import Collapse, collapse, rate_distortion
from vae_jax.evaluate.elbo import Evaluation, Mean, active_units, bits_per_dimension, evaluate, mean

__all__ = [
    "Certificate",
    "Collapse",
    "Evaluation",
    "Gaps",
    "Mean",
    "RateSplit",
    "active_units",
    "bits_per_dimension",
    "certified",
    "collapse",
    "evaluate",
    "gaps",
    "mean",
    "rate_distortion",
    "rate_split",
]
