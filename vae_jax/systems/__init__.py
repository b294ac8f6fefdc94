"""Models that are more than one VAE: chains, ladders, adversarial ones. A file for each, named as people say it."""

from vae_jax.systems.chains import chain
from vae_jax.systems.constrained import at_rate, geco
from vae_jax.systems.gans import Game, adversarial, gan, hinge, non_saturating, with_discriminator
from vae_jax.systems.labels import class_probabilities, partly_labelled
from vae_jax.systems.ladders import Rung, ladder, ladder_latents, ladder_sample
from vae_jax.systems.total_correlation import factor_vae

__all__ = [
    "Game", "Rung", "adversarial", "at_rate", "chain", "class_probabilities", "factor_vae", "gan", "geco", "hinge",
    "ladder", "ladder_latents", "ladder_sample", "non_saturating", "partly_labelled", "with_discriminator",
]  # fmt: skip
