"""Residual encoders and decoders of images, with the interface of the convolutional ones.

Pre-activation blocks (He et al. 2016, "Identity mappings in deep residual networks", fig. 4e) with
GroupNorm (Wu and He 2018), which, unlike BatchNorm, treats every example for itself.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from vae_jax.core.conditions import quantities
from vae_jax.core.network import shape_of
from vae_jax.nets.conv import Conv, ConvTranspose, Size
from vae_jax.nets.images import check_channels, check_image_shape, from_flat, grids, large_enough
from vae_jax.nets.mlp import Batch, Shape, head, output
from vae_jax.nets.product import for_each_row, sum_of_rows


class ResEncoder(nn.Module):
    """A convolution, then `blocks` residual blocks a level, the first of them with stride 2.

    Shapes, arguments and errors are those of `ConvEncoder`.

    Args:
        blocks: residual blocks a level, each of two convolutions.
    """

    channels: tuple[int, ...]
    out: Shape
    blocks: int = 1
    kernel: Size = (3, 3)
    activation: Callable[[Array], Array] = nn.relu
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_channels("ResEncoder", self.channels, out=shape_of(self.out), blocks=(self.blocks,))
        super().__post_init__()

    @nn.compact
    def __call__(self, y: Batch, *conditions: Batch) -> Float[Array, "n ..."]:
        h = large_enough(y, self.dtype, "ResEncoder")
        h = Conv(self.channels[0], self.kernel, dtype=self.dtype)(h)
        for features in self.channels:
            for stride in (2, *(1,) * (self.blocks - 1)):
                h = ResBlock(features, stride, self.kernel, self.activation, self.dtype)(h)
        h = self.activation(GroupNorm(self.dtype)(h))
        return head(h, *quantities(*conditions), out=self.out, dtype=self.dtype)


class ResDecoder(nn.Module):
    """`blocks` residual blocks a level, after each level pixels repeated 2 x 2; a last convolution.

    Shapes, arguments and errors are those of `ConvDecoder`.

    Args:
        blocks: residual blocks a level, each of two convolutions.
    """

    channels: tuple[int, ...]
    shape: tuple[int, ...]
    blocks: int = 1
    kernel: Size = (3, 3)
    activation: Callable[[Array], Array] = nn.relu
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_channels("ResDecoder", self.channels, shape=self.shape, blocks=(self.blocks,))
        check_image_shape("ResDecoder", self.shape)
        super().__post_init__()

    @nn.compact
    def __call__(self, z: Batch, *conditions: Batch) -> Float[Array, "n ..."]:
        *sizes, smallest = grids(self.shape, len(self.channels))
        h = from_flat(z, *quantities(*conditions), grid=(*smallest, self.channels[-1]), dtype=self.dtype)
        for features, (height, width) in zip(self.channels[::-1], sizes[::-1], strict=True):
            for _ in range(self.blocks):
                h = ResBlock(features, 1, self.kernel, self.activation, self.dtype)(h)
            h = h.repeat(2, axis=1).repeat(2, axis=2)[:, :height, :width]
        h = self.activation(GroupNorm(self.dtype)(h))
        # To few channels the transposed form is the cheaper one on CPU: it holds kh kw b numbers a
        # pixel, and patches are kh kw a.
        last = ConvTranspose(math.prod(self.shape[2:]), self.kernel, stride=1, dtype=self.dtype)
        return output(last(h), self.shape)


class ResBlock(nn.Module):
    """x + f(x), where f is twice GroupNorm, activation and a convolution.

    The last convolution starts at zero, so the block starts as its shortcut: the identity, or where
    the shape changes a 1 x 1 convolution of the activated input.
    """

    features: int
    stride: int = 1
    kernel: Size = (3, 3)
    activation: Callable[[Array], Array] = nn.relu
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "n h w a"]) -> Float[Array, "n oh ow b"]:
        x = jnp.asarray(x, self.dtype)
        h = self.activation(GroupNorm(self.dtype)(x))
        if self.stride != 1 or x.shape[-1] != self.features:
            x = Conv(self.features, (1, 1), self.stride, use_bias=False, dtype=self.dtype)(h)
        h = Conv(self.features, self.kernel, self.stride, dtype=self.dtype)(h)
        h = self.activation(GroupNorm(self.dtype)(h))
        return x + Conv(self.features, self.kernel, dtype=self.dtype, kernel_init=nn.initializers.zeros)(h)


class GroupNorm(nn.Module):
    """`group_norm` with a learned scale and shift for each channel, the same for every example."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w a"]) -> Float[Array, "n h w a"]:
        channels = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, channels)
        shift = self.param("bias", nn.initializers.zeros, channels)
        return group_norm(x, jnp.asarray(scale)[None], jnp.asarray(shift)[None]).astype(self.dtype)


def group_norm(
    x: Float[Array, "n h w a"], scale: Float[Array, "m a"], shift: Float[Array, "m a"]
) -> Float[Array, "n h w a"]:
    """scale * (x - mean) / std + shift, mean and std over the pixels and the channels of a group; m is n or 1.

    Statistics are float32 at least. Moments are taken channel by channel and the groups joined afterwards: x is read
    once for both, and once more to be scaled.
    """
    grid, pixels = x.shape[1:3], x.shape[1] * x.shape[2]
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    # about a pixel rather than about 0: far from zero the variance keeps its digits
    origin = jax.lax.stop_gradient(wide[:, 0, 0])
    offset = wide - for_each_row(origin, grid)
    mean, square = sum_of_rows(offset) / pixels, sum_of_rows(offset**2) / pixels
    apart = mean + origin - _mean_of_group(mean + origin)  # of a channel's mean from its group's
    variance = _mean_of_group(square - mean**2 + apart**2)
    rate = jax.lax.rsqrt(jnp.maximum(variance, 0) + 1e-6) * scale
    level = shift + (apart - mean) * rate
    return (offset * for_each_row(rate, grid) + for_each_row(level, grid)).astype(x.dtype)


def _mean_of_group(x: Float[Array, "n a"]) -> Float[Array, "n a"]:
    """Over the channels of each group, for each of them: as a product, for on CPU XLA would take sums of a reshaped
    array again for each pixel."""
    of = np.arange(x.shape[1]) // (x.shape[1] // groups(x.shape[1]))
    same = of[:, None] == of
    return jnp.matmul(x, jnp.asarray(same / same.sum(axis=0), x.dtype), precision="highest")


def groups(channels: int) -> int:
    """How many groups GroupNorm makes of some channels: as many as divide them, but at most 32.

    A group is 4 channels or more where there are so many: one channel alone would be normalised to
    a constant on a grid of one pixel.
    """
    most = min(32, max(channels // 4, 1))
    return max(g for g in range(1, most + 1) if channels % g == 0)
