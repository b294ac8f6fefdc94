"""The two types, the combinator that makes a model of y of a model of z, and how its loss is estimated and trained.

`model` says what a `Conditional`, a `Model` and its `Terms` are, `combinator` is `vae`, `estimators` (and `reinforce`)
how E L is estimated, `objectives` (and `multi_sample`) what a step minimises, `network` what a network is,
`distributions` and `linalg` what numpyro and jax lack, `numbers` which options are numbers and counts.
"""

from vae_jax.core.combinator import importance_weighted_bound, means, reconstruct, vae
from vae_jax.core.conditions import labelled
from vae_jax.core.disentangling import beta_tc, dip, log_aggregate
from vae_jax.core.estimators import Estimator, analytic, enumerated, fixed_encoder, sampled, sticking
from vae_jax.core.model import EM, Conditional, Diffused, Model, Params, Scatter, Terms, Units, join, lift, parted
from vae_jax.core.multi_sample import (
    ciwae,
    doubly_reparameterised,
    importance_weighted,
    leave_one_out,
    miwae,
    piwae,
    renyi,
    vimco,
)
from vae_jax.core.network import Network, SequenceNetwork, as_network
from vae_jax.core.objectives import (
    FreeBits,
    Objective,
    balanced,
    batch_mean_per_unit,
    beta_elbo,
    capacity,
    cyclical_annealing,
    drop_condition,
    elbo,
    free_bits,
    linear_annealing,
    of,
    per_example,
    per_unit,
    sigmoid_annealing,
)
from vae_jax.core.parameters import hoist, share, start_from, through
from vae_jax.core.reinforce import score_function

__all__ = [
    "EM", "Conditional", "Diffused", "Estimator", "FreeBits", "Model", "Network", "Objective", "Params", "Scatter",
    "SequenceNetwork", "Terms", "Units", "analytic", "as_network", "balanced", "batch_mean_per_unit", "beta_elbo",
    "beta_tc", "capacity", "ciwae", "cyclical_annealing", "dip", "doubly_reparameterised", "drop_condition", "elbo",
    "enumerated", "fixed_encoder", "free_bits", "hoist", "importance_weighted", "importance_weighted_bound", "join",
    "labelled", "leave_one_out", "lift", "linear_annealing", "log_aggregate", "means", "miwae", "of", "parted",
    "per_example", "per_unit", "piwae", "reconstruct", "renyi", "sampled", "score_function", "share",
    "sigmoid_annealing", "start_from", "sticking", "through", "vae", "vimco",
]  # fmt: skip
