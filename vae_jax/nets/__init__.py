"""Neural networks: flax linen modules, called on a batch as net(x, *conditions), all (n, ...).

The only room that imports flax. A network of your own needs nothing from here.
"""

from vae_jax.nets.conv import Conv, ConvTranspose
from vae_jax.nets.images import ConvDecoder, ConvEncoder
from vae_jax.nets.mlp import MLP
from vae_jax.nets.residual import ResBlock, ResDecoder, ResEncoder

__all__ = [
    "MLP",
    "Conv",
    "ConvDecoder",
    "ConvEncoder",
    "ConvTranspose",
    "ResBlock",
    "ResDecoder",
    "ResEncoder",
]
