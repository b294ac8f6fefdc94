"""Neural networks, as flax linen modules over a batch: net(x, *conditions), each argument of shape (n, ...).

The only room that imports flax. Networks of your own need nothing from here.
"""

from vae_jax.nets.images import ConvDecoder, ConvEncoder, ResBlock, ResDecoder, ResEncoder
from vae_jax.nets.conv import Conv, ConvTranspose
from vae_jax.nets.mlp import MLP

__all__ = ["MLP", "Conv", "ConvDecoder", "ConvEncoder", "ConvTranspose", "ResBlock", "ResDecoder", "ResEncoder"]
