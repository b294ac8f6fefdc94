"""Models that are more than one VAE: chains, ladders, adversarial ones. A file for each, named as people say it."""

from vae_jax.systems.chains import chain
from vae_jax.systems.gans import Game, adversarial, gan, hinge, non_saturating, with_discriminator
from vae_jax.systems.ladders import Rung, ladder, ladder_latents, ladder_sample

__all__ = [
    "Game", "Rung", "adversarial", "chain", "gan", "hinge", "ladder", "ladder_latents", "ladder_sample",
    "non_saturating", "with_discriminator",
]  # fmt: skip
