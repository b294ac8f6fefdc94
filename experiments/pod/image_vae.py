"""The model that `train.py` trains. It has a file of its own because a run names it: `vae_jax.open_run` imports it."""

from collections.abc import Sequence

import vae_jax
from vae_jax import data, nets


def build(shape: Sequence[int]) -> tuple[vae_jax.Model, data.Preprocess]:
    """The model of one image, and how images reach it; batches and devices are no matter of it."""
    encoder = vae_jax.gaussian(nets.MLP((500,), 40))
    generator = vae_jax.bernoulli(nets.MLP((500,), tuple(shape)))
    return vae_jax.vae(encoder, vae_jax.standard_normal(20), generator), data.dynamic_binarisation()
