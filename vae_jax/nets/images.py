"""Encoders from images to numbers and decoders back: plain convolutions, and pre-activation residual blocks.

All of them halve the grid once per level, rounding up: 28 -> 14 -> 7 -> 4 with three levels; decoders go back through
exactly these sizes. Conditions join the flat end: encoder(y, c), decoder(z, c).
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from vae_jax.nets.conv import Conv, ConvTranspose, Size, as_images, halved
from vae_jax.nets.mlp import Batch, Shape, check_positive, dense, flat, output, shape_of

SMALLEST = 4  # pixels a side


class ConvEncoder(nn.Module):
    """Stride-2 convolutions and a dense layer: images (n, h, w, a), h and w at least 4, to (n, *out), float32.

    Conditions (n, ...) of any shape join the flat features before the dense layer.

    Args:
        channels: of the convolutions, one a level: (32, 64, 128).
        out: a number of outputs or their shape; 2 * 20 for a Gaussian encoder with 20 latent dimensions.
        kernel: height and width of the convolutions.
        activation: after each convolution; relu is the cheapest on CPU.
        dtype: of the computation, jnp.bfloat16 for instance; parameters are float32, the output at least float32.

    Raises:
        ValueError: there are no channels, or a size is not positive; when called: the input is not a batch of images,
            or they are too small.
    """

    channels: tuple[int, ...]
    out: Shape
    kernel: Size = (3, 3)
    activation: Callable[[Array], Array] = nn.relu
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        _check("ConvEncoder", self.channels, shape_of(self.out))
        super().__post_init__()

    @nn.compact
    def __call__(self, y: Batch, *conditions: Batch) -> Float[Array, "n ..."]:
        h = _checked_images(y, self.dtype, "ConvEncoder")
        for features in self.channels:
            h = self.activation(Conv(features, self.kernel, stride=2, dtype=self.dtype)(h))
        return _head(h, conditions, shape_of(self.out), self.dtype)


class ConvDecoder(nn.Module):
    """A dense layer and stride-2 transposed convolutions: (n, ...) to (n, *shape), float32. `ConvEncoder` mirrored.

    Conditions (n, ...) of any shape join the input.

    Args:
        channels: in the encoder's order, from the largest grid to the smallest: (32, 64, 128).
        shape: of the output, (h, w, ...), h and w at least 4: (28, 28, 1), or (28, 28, 3, 10) for ten numbers a value.
        kernel: height and width of the convolutions.
        activation: after each layer but the last; relu is the cheapest on CPU.
        dtype: of the computation, jnp.bfloat16 for instance; parameters are float32, the output at least float32.

    Raises:
        ValueError: there are no channels, a size is not positive, or `shape` is not that of images of 4 x 4 or more.
    """

    channels: tuple[int, ...]
    shape: tuple[int, ...]
    kernel: Size = (3, 3)
    activation: Callable[[Array], Array] = nn.relu
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        _check("ConvDecoder", self.channels, self.shape)
        _check_size("ConvDecoder", self.shape)
        super().__post_init__()

    @nn.compact
    def __call__(self, z: Batch, *conditions: Batch) -> Float[Array, "n ..."]:
        *sizes, smallest = _grids(self.shape, len(self.channels))
        features = (math.prod(self.shape[2:]), *self.channels[:-1])
        h = _from_flat(z, conditions, smallest, self.channels[-1], self.dtype)
        for f, size in zip(features[::-1], sizes[::-1], strict=True):
            h = ConvTranspose(f, self.kernel, size=size, dtype=self.dtype)(self.activation(h))
        return output(h, self.shape)


class ResEncoder(nn.Module):
    """`ConvEncoder` with residual blocks: a convolution, then `blocks` blocks a level, the first with stride 2.

    Arguments, shapes and errors are those of `ConvEncoder`, and
        blocks: residual blocks a level, of two convolutions each.
    """

    channels: tuple[int, ...]
    out: Shape
    blocks: int = 1
    kernel: Size = (3, 3)
    activation: Callable[[Array], Array] = nn.relu
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        _check("ResEncoder", self.channels, shape_of(self.out), self.blocks)
        super().__post_init__()

    @nn.compact
    def __call__(self, y: Batch, *conditions: Batch) -> Float[Array, "n ..."]:
        h = _checked_images(y, self.dtype, "ResEncoder")
        h = Conv(self.channels[0], self.kernel, dtype=self.dtype)(h)
        for features in self.channels:
            for i in range(self.blocks):
                stride = 2 if i == 0 else 1
                h = ResBlock(features, stride, self.kernel, self.activation, self.dtype)(h)
        h = self.activation(_norm(h, self.dtype))
        return _head(h, conditions, shape_of(self.out), self.dtype)


class ResDecoder(nn.Module):
    """`ConvDecoder` with residual blocks: `blocks` blocks a level, each level then doubled by repeating pixels.

    Arguments, shapes and errors are those of `ConvDecoder`, and
        blocks: residual blocks a level, of two convolutions each.
    """

    channels: tuple[int, ...]
    shape: tuple[int, ...]
    blocks: int = 1
    kernel: Size = (3, 3)
    activation: Callable[[Array], Array] = nn.relu
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        _check("ResDecoder", self.channels, self.shape, self.blocks)
        _check_size("ResDecoder", self.shape)
        super().__post_init__()

    @nn.compact
    def __call__(self, z: Batch, *conditions: Batch) -> Float[Array, "n ..."]:
        *sizes, smallest = _grids(self.shape, len(self.channels))
        h = _from_flat(z, conditions, smallest, self.channels[-1], self.dtype)
        for features, size in zip(self.channels[::-1], sizes[::-1], strict=True):
            for _ in range(self.blocks):
                h = ResBlock(features, 1, self.kernel, self.activation, self.dtype)(h)
            h = _doubled(h, size)
        h = self.activation(_norm(h, self.dtype))
        # few channels out: the transposed form handles kh kw b numbers a pixel, where patches are kh kw a
        return output(ConvTranspose(math.prod(self.shape[2:]), self.kernel, 1, dtype=self.dtype)(h), self.shape)


class ResBlock(nn.Module):
    """x + f(x), f = two rounds of GroupNorm, activation, convolution (He et al. 2016, "Identity mappings", fig. 4e).

    Starts as the shortcut alone: the last convolution is zero at first. Where the shape changes, the shortcut is a 1 x 1
    convolution of the activated input.
    """

    features: int
    stride: int = 1
    kernel: Size = (3, 3)
    activation: Callable[[Array], Array] = nn.relu
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w a"]) -> Float[Array, "n oh ow b"]:
        h = self.activation(_norm(x, self.dtype))
        if self.stride != 1 or x.shape[-1] != self.features:
            x = Conv(self.features, (1, 1), self.stride, use_bias=False, dtype=self.dtype)(h)
        h = Conv(self.features, self.kernel, self.stride, dtype=self.dtype)(h)
        h = self.activation(_norm(h, self.dtype))
        return x + Conv(self.features, self.kernel, dtype=self.dtype, kernel_init=nn.initializers.zeros)(h)


def groups(channels: int) -> int:
    """How many groups GroupNorm makes: as many as divide the channels, at most 32, of 4 channels or more where it can.

    A group of one channel would be constant, so 0, on a grid of one pixel.
    """
    return max(g for g in range(1, min(32, max(channels // 4, 1)) + 1) if channels % g == 0)


def _norm(x, dtype):
    return nn.GroupNorm(groups(x.shape[-1]), dtype=dtype)(x)


def _doubled(x, size):
    """Nearest-neighbour upsampling by 2, cropped to size."""
    h, w = size
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)[:, :h, :w]


def _head(h, conditions, shape, dtype):
    return output(dense(flat(h, *conditions, dtype=dtype), math.prod(shape), dtype), shape)


def _from_flat(z, conditions, size, features, dtype):
    h = dense(flat(z, *conditions, dtype=dtype), math.prod(size) * features, dtype)
    return h.reshape(h.shape[0], *size, features)


def _grids(shape, levels):
    """The grid (h, w) before each level and after the last."""
    grids = [(shape[0], shape[1])]
    for _ in range(levels):
        grids.append(halved(grids[-1]))
    return grids


def _check(name, channels, shape, blocks=1):
    if not channels:
        raise ValueError(f"{name} wants channels, one number a level, such as (32, 64, 128); got {channels}")
    check_positive(name, channels=channels, output=shape, blocks=(blocks,))


def _checked_images(y, dtype, name):
    y = as_images(y, dtype, name)
    _check_size(name, y.shape[1:])
    return y


def _check_size(name, shape):
    if len(shape) < 2 or min(shape[:2]) < SMALLEST:
        raise ValueError(f"{name} wants images (h, w, channels) of {SMALLEST} x {SMALLEST} or more, got a shape {shape}")
