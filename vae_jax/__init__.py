"""vae_jax: latent variable models in JAX, as pure functions.

A VAE is three distributions, P_enc(z|y), P_pri(z) and P_gen(y|z), and one loss,

    L(y, z) = -ln P_pri(z) P_gen(y|z) / P_enc(z|y),    E_{z ~ P_enc(z|y)} L >= -ln P(y).

What is here, by rule: the two types, `vae` and every estimator of its loss, the likelihoods, the simple priors, `fit`,
`evaluate`, the training step and `open_run`. All else is in its folder:

    vae_jax.core        objectives, importance-weighted bounds, models seen through other parameters, what a network is
    vae_jax.parts       flows, VampPrior, autoregressive models, classes, cures of collapse
    vae_jax.systems     chains, ladders, GANs          vae_jax.em       exact posteriors, expectation maximisation
    vae_jax.diffusion, vae_jax.vq, vae_jax.text        the systems that are rooms of their own
    vae_jax.nets        flax networks                  vae_jax.data     data, and what a model sees of them
    vae_jax.training    steps, checkpoints             vae_jax.evaluation    numbers with standard errors
    vae_jax.report      pictures and pages             vae_jax.selfcheck     numbers that are known exactly
"""

from vae_jax._version import __version__
from vae_jax.core.combinator import vae
from vae_jax.core.estimators import analytic, enumerated, fixed_encoder, sampled, sticking
from vae_jax.core.model import Conditional, Model, Terms
from vae_jax.core.reinforce import score_function
from vae_jax.evaluation.whole_split import Evaluation, evaluate
from vae_jax.parts.conditionals import bernoulli, categorical, conditional, discretised_logistic, gaussian
from vae_jax.parts.l2_distortion import l2
from vae_jax.parts.priors import learned_normal, standard_normal
from vae_jax.parts.relaxed import gumbel, straight_through_gumbel
from vae_jax.training.loop import Fitted, fit
from vae_jax.training.step import TrainState, init_state, make_scan, make_train_step
from vae_jax.training.trained import Trained, open_run

__all__ = [
    "Conditional", "Evaluation", "Fitted", "Model", "Terms", "TrainState", "Trained", "__version__", "analytic",
    "bernoulli", "categorical", "conditional", "discretised_logistic", "enumerated", "evaluate", "fit", "fixed_encoder",
    "gaussian", "gumbel", "init_state", "l2", "learned_normal", "make_scan", "make_train_step", "open_run", "sampled",
    "score_function", "standard_normal", "sticking", "straight_through_gumbel", "vae",
]  # fmt: skip
