"""Neural networks: flax linen modules, called on a batch as net(x, *conditions), all (n, ...).

The only room that imports flax. A network of your own needs nothing from here.
"""

from vae_jax.nets.conv import Conv, ConvTranspose
from vae_jax.nets.denoising import DenoisingMLP
from vae_jax.nets.discriminator import PatchDiscriminator
from vae_jax.nets.images import ConvDecoder, ConvEncoder
from vae_jax.nets.mlp import MLP
from vae_jax.nets.pixelcnn import PixelCNN
from vae_jax.nets.recurrent import LSTM, SequenceEncoder
from vae_jax.nets.residual import ResBlock, ResDecoder, ResEncoder
from vae_jax.nets.rungs import FromGrid, conv_rungs, mlp_rungs
from vae_jax.nets.transformer import Transformer, TransformerEncoder
from vae_jax.nets.unet import UNet

__all__ = [
    "LSTM", "MLP", "Conv", "ConvDecoder", "ConvEncoder", "ConvTranspose", "DenoisingMLP", "FromGrid",
    "PatchDiscriminator", "PixelCNN", "ResBlock", "ResDecoder", "ResEncoder", "SequenceEncoder", "Transformer",
    "TransformerEncoder", "UNet", "conv_rungs", "mlp_rungs",
]  # fmt: skip
