"""A discriminator that judges patches (Isola et al. 2017, PatchGAN)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from vae_jax.nets.conv import Conv, Size, as_images
from vae_jax.nets.images import check_channels
from vae_jax.nets.mlp import Batch


class PatchDiscriminator(nn.Module):
    """Images (n, h, w, a) to a logit for each patch, (n, oh, ow), float32; oh = h / 2^levels, rounded up.

    Stride-2 convolutions and one more to a single channel. No normalisation: each logit depends on its patch alone.

    Args:
        channels: of the convolutions, one a level: (32, 64).
        kernel: height and width of the convolutions.
        activation: after each convolution but the last.
        dtype: of the computation. Parameters are float32, and the output is float32 at least.

    Raises:
        ValueError: no channels, or a size that is not positive; at the call, an input that is not a
            batch of images.
    """

    channels: tuple[int, ...]
    kernel: Size = (4, 4)
    activation: Callable[[Array], Array] = partial(nn.leaky_relu, negative_slope=0.2)
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_channels("PatchDiscriminator", self.channels)
        super().__post_init__()

    @nn.compact
    def __call__(self, y: Batch) -> Float[Array, "n oh ow"]:
        h = as_images(y, self.dtype, "PatchDiscriminator")
        for features in self.channels:
            h = self.activation(Conv(features, self.kernel, stride=2, dtype=self.dtype)(h))
        logits = Conv(1, self.kernel, dtype=self.dtype)(h)[..., 0]
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
