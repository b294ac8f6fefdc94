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
from vae_jax.parts.cures import bag_of_words, committed_gaussian
from vae_jax.parts.flows import Flow, autoregressive_flow, coupling_flow, inverse_autoregressive_flow
from vae_jax.parts.l2_distortion import l2
from vae_jax.parts.priors import learned_normal, standard_normal, vampprior
from vae_jax.parts.relaxed import gumbel, straight_through_gumbel

__all__ = [
    "Autoregressive", "Flow", "adjusted", "autoregressive", "autoregressive_flow", "bag_of_words", "bernoulli",
    "categorical", "committed_gaussian", "conditional", "coupling_flow", "discretised_logistic", "gaussian", "greedy",
    "gumbel", "gumbel_softmax", "in_training", "inverse_autoregressive_flow", "l2", "learned_classes", "learned_normal",
    "one_hot", "standard_normal", "straight_through_gumbel", "temperature", "top_k", "top_p", "vampprior",
]  # fmt: skip
