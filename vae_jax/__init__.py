"""vae_jax: latent variable models in JAX, as pure functions.

A VAE is three distributions, P_enc(z|y), P_pri(z) and P_gen(y|z), and one loss,

    L(y, z) = -ln P_pri(z) P_gen(y|z) / P_enc(z|y),    E_{z ~ P_enc(z|y)} L >= -ln P(y).

`vae(encoder, prior, generator)` makes a `Model` of y of them. Names here are the library's core; rooms with heavier
imports are modules of their own: `vae_jax.nets` (flax), `vae_jax.diffusion`, `vae_jax.data`, `vae_jax.fit`,
`vae_jax.evaluate`, `vae_jax.checkpoint`, `vae_jax.pictures`, `vae_jax.report`.
"""

from vae_jax._version import __version__
from vae_jax.chain import chain
from vae_jax.conditionals import bernoulli, categorical, conditional, discretised_logistic, gaussian, gumbel_softmax
from vae_jax.em.mixture import mixture_of_gaussians
from vae_jax.estimators import Estimator, analytic, enumerated, fixed_encoder, sampled, sticking
from vae_jax.flows import autoregressive_flow, coupling_flow, inverse_autoregressive_flow
from vae_jax.l2 import l2
from vae_jax.ladder import Rung, ladder, ladder_latents, ladder_sample
from vae_jax.model import Conditional, Model, Scatter, Terms, hoist, join, lift, share, start_from
from vae_jax.network import Network, as_network
from vae_jax.priors import learned_normal, standard_normal, vampprior
from vae_jax.score_function import score_function
from vae_jax.train import TrainState, init_state, make_scan, make_train_step
from vae_jax.vae import importance_weighted_bound, means, reconstruct, vae

__all__ = [
    "Conditional",
    "Estimator",
    "Model",
    "Network",
    "Rung",
    "Scatter",
    "Terms",
    "TrainState",
    "__version__",
    "analytic",
    "as_network",
    "autoregressive_flow",
    "bernoulli",
    "categorical",
    "chain",
    "conditional",
    "coupling_flow",
    "discretised_logistic",
    "enumerated",
    "fixed_encoder",
    "gaussian",
    "gumbel_softmax",
    "hoist",
    "importance_weighted_bound",
    "init_state",
    "inverse_autoregressive_flow",
    "join",
    "l2",
    "ladder",
    "ladder_latents",
    "ladder_sample",
    "learned_normal",
    "lift",
    "make_scan",
    "make_train_step",
    "means",
    "mixture_of_gaussians",
    "reconstruct",
    "sampled",
    "score_function",
    "share",
    "standard_normal",
    "start_from",
    "sticking",
    "vae",
    "vampprior",
]
