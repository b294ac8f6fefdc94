"""Encoders, priors and generators: the parts that a VAE is made of, each a `Conditional`.

`conditionals` are networks with a distribution, `l2_distortion` the lecture's generator, `priors` those that train,
`flows` densities by change of variables, `autoregression` language models, decoders and priors over codes, `classes` a
z of one-hot vectors and `relaxed` its Gumbel-softmax estimators, `cures` parts against posterior collapse.
"""

from vae_jax.parts.autoregression import (
    Autoregressive,
    adjusted,
    autoregressive,
    greedy,
    in_training,
    temperature,
    top_k,
    top_p,
)
from vae_jax.parts.classes import learned_classes, one_hot
from vae_jax.parts.conditionals import (
    bernoulli,
    categorical,
    conditional,
    discretised_logistic,
    gaussian,
    gumbel_softmax,
)
from vae_jax.parts.counts import negative_binomial, poisson
from vae_jax.parts.cures import bag_of_words, committed_gaussian
from vae_jax.parts.flows import Flow, autoregressive_flow, coupling_flow, inverse_autoregressive_flow
from vae_jax.parts.l2_distortion import l2
from vae_jax.parts.missing import maybe_missing, not_at_random, seeing_what_is_missing
from vae_jax.parts.priors import learned_normal, standard_normal, vampprior
from vae_jax.parts.reals import beta, continuous_bernoulli, laplace, log_normal, student_t
from vae_jax.parts.relaxed import gumbel, straight_through_gumbel
from vae_jax.parts.rows import columns

__all__ = [
    "Autoregressive", "Flow", "adjusted", "autoregressive", "autoregressive_flow", "bag_of_words", "bernoulli", "beta",
    "categorical", "columns", "committed_gaussian", "conditional", "continuous_bernoulli", "coupling_flow",
    "discretised_logistic", "gaussian", "greedy", "gumbel", "gumbel_softmax", "in_training",
    "inverse_autoregressive_flow", "l2", "laplace", "learned_classes", "learned_normal", "log_normal", "maybe_missing",
    "negative_binomial", "not_at_random", "one_hot", "poisson", "seeing_what_is_missing", "standard_normal",
    "straight_through_gumbel", "student_t", "temperature", "top_k", "top_p", "vampprior",
]  # fmt: skip
