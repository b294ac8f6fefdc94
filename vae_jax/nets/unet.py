"""The U-Net of diffusion models: a noisy image and its noise level to an image of the same size.

Ho et al. 2020, "Denoising diffusion probabilistic models", appendix B, with the skip connections and the shape of
Hoogeboom et al. 2023, "simple diffusion", section 2.3: going up, what the same block saw on the way down is added, not
appended. So the blocks of a level are all alike, and are compiled once, as a scan.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Shaped

from vae_jax.core.conditions import quantities
from vae_jax.nets.attention import Attention
from vae_jax.nets.conv import Conv, ConvTranspose, as_images
from vae_jax.nets.images import check_channels
from vae_jax.nets.mlp import Batch, check_layers, dense, flat
from vae_jax.nets.residual import GroupNorm, group_norm

WAVES = (2**-5, 2**3)  # radians a nat: the slowest is almost linear over [-15, 15], the fastest tells 0.1 nats apart


class UNet(nn.Module):
    """Images (n, h, w, a), noise levels (n,) and conditions (n, ...) to images (n, h, w, out), which start at zero.

    The time is gamma = -ln SNR in nats, from -15 (clean) to 15 (noise) or so. Conditions of any shape, one-hot labels
    for instance, are added to its embedding; zeros stand for "no label".

    A level has `blocks` residual blocks on the way down and as many on the way up. The last level is the middle: it has
    2 * blocks, with attention. Between two levels the grid is halved by a 2 x 2 convolution with stride 2, and back by
    its transpose.

    Dropout is on where the module is applied with an rng named "dropout", and off without.

    Args:
        channels: one number a level, the largest grid first: (32, 64, 64) on 28 x 28 works at 28, 14 and 7.
        out: channels of the output; twice the image's for a mean and a variance.
        blocks: residual blocks a level and way.
        attention: levels with self-attention after each block, besides the last: (1,) attends at 14 x 14.
        heads: of the attention.
        dropout: probability that a value before a block's last convolution is dropped.
        patch: 2 folds 2 x 2 pixels into channels first, for a quarter of the cost.
        activation: silu as usual; relu is cheaper on CPU.
        dtype: of the computation, jnp.bfloat16 for instance. Parameters, statistics of GroupNorm, softmax and output
            are float32 (the output at least).
        remat: compute each block again in the backward pass instead of keeping what is inside.
        unroll: write a level's blocks out rather than as a loop. The parameters are the same. What a loop keeps for the
            backward pass is stacked, which on a TPU costs three times the memory and traffic (docs/tpu.md); a loop is
            compiled once for all its blocks.

    Raises:
        ValueError: an argument out of range; at the call, inputs of a wrong shape, or a size that cannot be halved.
    """

    channels: tuple[int, ...] = (32, 64, 64)
    out: int = 1
    blocks: int = 1
    attention: tuple[int, ...] = ()
    heads: int = 1
    dropout: float = 0.0
    patch: int = 1
    activation: Callable[[Array], Array] = nn.silu
    dtype: Any = jnp.float32
    remat: bool = False
    unroll: bool = False

    def __post_init__(self) -> None:
        check_channels("UNet", self.channels)
        check_layers("UNet", self, "out", "blocks", "heads", "patch")
        _check_attention(self.channels, self.attention, self.heads)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, z: Batch, gamma: Shaped[Array | np.ndarray, "..."], *conditions: Batch
    ) -> Float[Array, "n h w out"]:
        z = as_images(z, self.dtype, "UNet")
        check_size(z.shape[1:3], self.patch, len(self.channels))
        if gamma.shape != z.shape[:1]:
            raise ValueError(f"UNet wants one gamma an image, a shape {z.shape[:1]}, got {gamma.shape}")
        code = self._embed(gamma, *conditions)
        *levels, middle = range(len(self.channels))
        h = Conv(self.channels[0], dtype=self.dtype, name="first")(folded(z, self.patch))
        skips = []
        for i in levels:
            h, seen = self._stage(f"down_{i}", i, self.blocks)(h, None, code)
            skips.append(seen)
            h = dense(folded(h, 2), self.channels[i + 1], self.dtype, name=f"halve_{i}")
        h, _ = self._stage("middle", middle, 2 * self.blocks)(h, None, code)
        for i in reversed(levels):
            h = unfolded(dense(h, 4 * self.channels[i], self.dtype, name=f"double_{i}"), 2)
            h, _ = self._stage(f"up_{i}", i, self.blocks)(h, skips[i], code)
        h = self.activation(GroupNorm(self.dtype, name="last_norm")(h))
        # to few channels the transposed form is the cheaper one on CPU
        zeros = nn.initializers.zeros
        last = ConvTranspose(self.out * self.patch**2, stride=1, dtype=self.dtype, kernel_init=zeros, name="last")
        y = unfolded(last(h), self.patch)
        return y.astype(jnp.promote_types(y.dtype, jnp.float32))

    def _embed(self, gamma, *conditions):
        """(n, 4 channels): an MLP of the waves of gamma and of the conditions."""
        width = 4 * self.channels[0]
        h = dense(waves(gamma, width).astype(self.dtype), width, self.dtype, name="time")
        if conditions:
            labels = flat(*quantities(*conditions), dtype=self.dtype)
            h = h + dense(labels, width, self.dtype, use_bias=False, name="condition")
        return self.activation(dense(self.activation(h), width, self.dtype, name="code"))

    def _stage(self, name, level, blocks):
        """Equal blocks one after the other: (h, skips or None, code) -> (h, what each block gave)."""
        block = nn.remat(Block) if self.remat else Block
        stage = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=blocks,
            reverse=name.startswith("up"),  # the last block down is the first one up
            unroll=blocks if self.unroll else 1,
        )
        attends = level in self.attention or level == len(self.channels) - 1
        return stage(self.heads if attends else 0, self.dropout, self.activation, self.dtype, name=name)


class Block(nn.Module):
    """A residual block (Brock et al. 2019, "BigGAN", without resampling), and attention where there are heads.

    The code of time and conditions scales and shifts the second GroupNorm. Starts as the identity.
    """

    heads: int
    dropout: float
    activation: Callable[[Array], Array]
    dtype: Any

    @nn.compact
    def __call__(self, x, skip, code):
        if skip is not None:
            x = (x + skip) * 0.5**0.5
        features = x.shape[-1]
        h = self.activation(GroupNorm(self.dtype)(x))
        h = Conv(features, dtype=self.dtype, name="conv_1")(h)
        scale, shift = jnp.split(dense(code, 2 * features, self.dtype, name="code"), 2, axis=-1)
        h = self.activation(group_norm(h, 1 + scale, shift))
        h = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(h)
        x = x + Conv(features, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="conv_2")(h)
        if self.heads:
            x = Attention(self.heads, self.dtype)(x)
        return x, x


def waves(gamma: Shaped[Array | np.ndarray, "n"], width: int) -> Float[Array, "n width"]:
    """[sin(w gamma), cos(w gamma)] for width / 2 frequencies w, a geometric series from WAVES[0] to WAVES[1]."""
    angles = gamma[:, None] * jnp.geomspace(*WAVES, width // 2, dtype=jnp.result_type(gamma, jnp.float32))[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def folded(x: Float[Array, "n h w a"], side: int) -> Float[Array, "n oh ow b"]:
    """Squares of side * side pixels as channels: (n, h / side, w / side, side * side * a)."""
    n, h, w, a = x.shape
    x = x.reshape(n, h // side, side, w // side, side, a).swapaxes(2, 3)
    return x.reshape(n, h // side, w // side, side * side * a)


def unfolded(x: Float[Array, "n oh ow b"], side: int) -> Float[Array, "n h w a"]:
    """The inverse of `folded`."""
    n, h, w, b = x.shape
    x = x.reshape(n, h, w, side, side, b // side**2).swapaxes(2, 3)
    return x.reshape(n, h * side, w * side, b // side**2)


def check_size(size: tuple[int, ...], patch: int, levels: int) -> None:
    """Raise a ValueError unless patches of a grid of this size can be halved levels - 1 times."""
    unit = patch * 2 ** (levels - 1)
    if any(length % unit for length in size):
        near = tuple(max(round(length / unit), 1) * unit for length in size)
        raise ValueError(
            f"UNet with {levels} levels and patch={patch} halves the grid {levels - 1} times: h and w have to be "
            f"multiples of {unit}, got {size}. Give it fewer channels (one number a level), or pad or crop to {near}"
        )


def _check_attention(channels: tuple[int, ...], attention: tuple[int, ...], heads: int) -> None:
    levels = len(channels)
    if not set(attention) <= set(range(levels)):
        raise ValueError(f"UNet wants attention as levels from 0 to {levels - 1}, got {attention}")
    for level in {*attention, levels - 1}:
        if channels[level] % heads:
            raise ValueError(
                f"UNet with {heads} heads: they cannot share the {channels[level]} channels of level {level}"
            )
