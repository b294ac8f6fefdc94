"""Convolutional encoders, from images to numbers, and decoders back.

The grid is halved once a level, rounding up: 28 -> 14 -> 7 -> 4 with three levels. Decoders go back
through exactly these sizes. Conditions join at the flat end: encoder(y, c), decoder(z, c).
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from vae_jax.core.conditions import quantities
from vae_jax.core.network import shape_of
from vae_jax.nets.conv import Conv, ConvTranspose, Size, as_images, halved
from vae_jax.nets.mlp import Batch, Shape, check_sizes, dense, flat, head, output

SMALLEST = 4  # pixels a side


class ConvEncoder(nn.Module):
    """Stride-2 convolutions and a dense layer: images (n, h, w, a) to (n, *out), float32.

    h and w are 4 or more. Conditions (n, ...) of any shape join before the dense layer.

    Args:
        channels: of the convolutions, one a level: (32, 64, 128).
        out: a number of outputs or their shape; 2 * 20 for a Gaussian of 20 dimensions.
        kernel: height and width of the convolutions.
        activation: after each convolution; relu is the cheapest (silu: 10 % of a step on CPU).
        dtype: of the computation, jnp.bfloat16 for instance. Parameters are float32, and the output
            is float32 at least.

    Raises:
        ValueError: no channels, or a size that is not positive; at the call, an input that is not a
            batch of images, or images that are too small.
    """

    channels: tuple[int, ...]
    out: Shape
    kernel: Size = (3, 3)
    activation: Callable[[Array], Array] = nn.relu
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_channels("ConvEncoder", self.channels, out=shape_of(self.out))
        super().__post_init__()

    @nn.compact
    def __call__(self, y: Batch, *conditions: Batch) -> Float[Array, "n ..."]:
        h = large_enough(y, self.dtype, "ConvEncoder")
        for features in self.channels:
            h = self.activation(Conv(features, self.kernel, stride=2, dtype=self.dtype)(h))
        return head(h, *quantities(*conditions), out=self.out, dtype=self.dtype)


class ConvDecoder(nn.Module):
    """`ConvEncoder` mirrored: a dense layer and transposed convolutions, (n, ...) to (n, *shape).

    Conditions (n, ...) of any shape join the input.

    Args:
        channels: in the encoder's order, the largest grid first: (32, 64, 128).
        shape: of the output, (h, w, ...) with h and w 4 or more: (28, 28, 1), or (28, 28, 3, 10)
            for ten numbers a value.
        activation: after every layer but the last; relu is the cheapest.
        kernel, dtype: as for `ConvEncoder`.

    Raises:
        ValueError: no channels, a size that is not positive, or a shape that is too small.
    """

    channels: tuple[int, ...]
    shape: tuple[int, ...]
    kernel: Size = (3, 3)
    activation: Callable[[Array], Array] = nn.relu
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_channels("ConvDecoder", self.channels, shape=self.shape)
        check_image_shape("ConvDecoder", self.shape)
        super().__post_init__()

    @nn.compact
    def __call__(self, z: Batch, *conditions: Batch) -> Float[Array, "n ..."]:
        *sizes, smallest = grids(self.shape, len(self.channels))
        h = from_flat(z, *quantities(*conditions), grid=(*smallest, self.channels[-1]), dtype=self.dtype)
        features = (math.prod(self.shape[2:]), *self.channels[:-1])
        for f, size in zip(features[::-1], sizes[::-1], strict=True):
            h = ConvTranspose(f, self.kernel, stride=2, size=size, dtype=self.dtype)(self.activation(h))
        return output(h, self.shape)


def from_flat(*inputs: Batch, grid: tuple[int, ...], dtype: Any) -> Float[Array, "n h w a"]:
    """A dense layer from all inputs to a grid (h, w, a); for use inside a compact module."""
    h = dense(flat(*inputs, dtype=dtype), math.prod(grid), dtype)
    return h.reshape(h.shape[0], *grid)


def grids(shape: tuple[int, ...], levels: int) -> list[Size]:
    """The grid (h, w) before each level and after the last."""
    return [halved((shape[0], shape[1]), 2**level) for level in range(levels + 1)]


def large_enough(y: Batch, dtype: Any, net: str) -> Float[Array, "n h w a"]:
    """A batch of images in the compute dtype, its shape checked."""
    y = as_images(y, dtype, net)
    check_image_shape(net, y.shape[1:])
    return y


def check_image_shape(net: str, shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless the shape is (h, w, ...) with h and w large enough to halve."""
    if len(shape) < 2 or min(shape[:2]) < SMALLEST:
        raise ValueError(f"{net} wants images (h, w, channels) with h and w {SMALLEST} or more, got {shape}: use MLP")


def check_channels(net: str, channels: Any, **sizes: Any) -> None:
    """Raise a ValueError unless there are channels and all sizes are positive."""
    check_sizes(net, channels=channels, **sizes)
    if not channels:
        raise ValueError(f"{net} wants channels, a number a level: (32, 64, 128); got {channels}")
