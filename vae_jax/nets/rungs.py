"""Networks of hierarchical VAEs: the rungs of `vae_jax.systems.ladders`, dense and convolutional.

States are residual streams with norms, so that their size stays bounded or grows slowly, however many levels there are.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from vae_jax.core.conditions import quantities
from vae_jax.core.network import Network
from vae_jax.nets.conv import Conv, ConvTranspose, as_images
from vae_jax.nets.mlp import MLP, Batch, check_sizes, dense, flat, output
from vae_jax.nets.residual import GroupNorm
from vae_jax.systems.ladders import Rung

Activation = Callable[[Array], Array]


def mlp_rungs(
    latents: Sequence[int],
    *,
    width: int = 200,
    hidden: tuple[int, ...] = (200,),
    levels: int = 1,
    activation: Activation = nn.relu,
    dtype: Any = jnp.float32,
) -> list[Rung]:
    """Dense rungs for data of any shape, the top one first.

    Args:
        latents: size of z, one for each rung: (10, 20).
        width: of the state h and of the features.
        hidden: layers inside each network.
        levels: in each rung.
        activation: after each hidden layer.
        dtype: of the computation; parameters are float32, the state is float32 at least.

    Raises:
        ValueError: no latents, or a size that is not positive.
    """
    latents = tuple(latents)
    check_sizes("mlp_rungs", latents=latents, width=(width,), hidden=hidden, levels=(levels,))
    if not latents:
        raise ValueError("mlp_rungs wants latents, a size a rung: (10, 20); got none")
    options: dict[str, Any] = {"activation": activation, "dtype": dtype}
    return [
        Rung(
            bottom=MLP(hidden, width, **options),
            enter=_SAME if i else Start((width,), dtype),
            prior=MLP(hidden, 2 * latent, **options),
            posterior=MLP(hidden, 2 * latent, **options),
            update=ResidualMLP(hidden, **options),
            levels=levels,
        )
        for i, latent in enumerate(latents)
    ]


def conv_rungs(
    shape: tuple[int, ...],
    *,
    scales: Sequence[int],
    levels: Sequence[int],
    channels: int = 64,
    latent: int = 8,
    depth: int = 1,
    activation: Activation = nn.relu,
    dtype: Any = jnp.float32,
) -> list[Rung]:
    """Convolutional rungs for images, the top one first, each with a grid of its own.

    For images of 28 x 28, scales=(28, 4, 2) are grids of 1 x 1, 7 x 7 and 14 x 14. The generator sees the last: see
    `FromGrid`.

    Args:
        shape: of an image, (h, w, channels).
        scales: pixels of the image along a side of one place of the grid, one for each rung.
        levels: in each rung.
        channels: of states and features; their networks narrow to a quarter of it inside.
        latent: channels of z.
        depth: residual blocks in each rung's bottom-up network.
        activation: between convolutions.
        dtype: of the computation, jnp.bfloat16 for instance. Parameters are float32.

    Raises:
        ValueError: a size that is not positive, lists of different length, or sizes that do not divide.
    """
    scales, levels = tuple(scales), tuple(levels)
    check_sizes("conv_rungs", scales=scales, levels=levels, channels=(channels,), latent=(latent,), depth=(depth,))
    if not scales or len(scales) != len(levels):
        raise ValueError(f"conv_rungs wants as many levels as scales, one a rung; got scales={scales}, levels={levels}")
    for coarse, fine in zip((0, *scales), (*scales, 1), strict=True):
        if coarse % fine or shape[0] % fine or shape[1] % fine:
            raise ValueError(
                f"conv_rungs wants scales that divide the image {tuple(shape[:2])} and each other, the coarsest first; "
                f"got {scales}: {fine} does not divide {coarse or tuple(shape[:2])}. For 28 x 28: (28, 4, 2)"
            )
    options: dict[str, Any] = {"activation": activation, "dtype": dtype}
    narrow = max(1, channels // 4)
    rungs = []
    for i, (scale, below) in enumerate(zip(scales, (*scales[1:], 1), strict=True)):
        grid = (shape[0] // scale, shape[1] // scale)
        above = 0 if i == 0 else scales[i - 1] // scale
        rungs.append(
            Rung(
                bottom=ToGrid(channels, scale // below, depth, **options),
                enter=Wider(channels, above, dtype) if above else Start((*grid, channels), dtype),
                prior=Bottleneck(2 * latent, narrow, **options),
                posterior=Bottleneck(2 * latent, narrow, grids=2, **options),
                update=ConvUpdate(channels, **options),
                levels=levels[i],
            )
        )
    return rungs


# The state goes from rung to rung as it is.
_SAME = Network(lambda key, h, *conditions: {}, lambda params, h, *conditions: h)


class Start(nn.Module):
    """The state above the top level, (n, ...) to (n, *shape): learned, the same whatever the input but the conditions.

    Args:
        shape: of the state.
        dtype: of the conditions' dense layer.
    """

    shape: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Batch, *conditions: Batch) -> Float[Array, "n ..."]:
        # Not zeros: their norm has no gradient to speak of.
        start = self.param("start", nn.initializers.normal(1.0), self.shape)
        h = jnp.broadcast_to(start, (x.shape[0], *self.shape))
        return output(_with_conditions(h, conditions, self.dtype), self.shape)


class ResidualMLP(nn.Module):
    """norm(x + f(x)), x = h + z in h's units: (n, width) to (n, width), float32 at least; `hidden` layers inside.

    The norm comes last, so that a z that is far out does not grow from level to level.
    """

    hidden: tuple[int, ...]
    activation: Activation = nn.relu
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: Float[Array, "n d"], *inputs: Batch) -> Float[Array, "n d"]:
        x = h + dense(flat(*quantities(*inputs), dtype=self.dtype), h.shape[-1], self.dtype)
        x = x + MLP(self.hidden, h.shape[-1], self.activation, self.dtype)(x)
        # Squares of what is far out would overflow, and a norm does not see the scale.
        scale = jnp.maximum(jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 1e3, 1.0)
        return nn.LayerNorm(use_fast_variance=False, dtype=x.dtype)(x / scale)


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions of normalised grids: (n, h, w, a) to (n, h, w, features).

    The last starts at zero: a residual block starts as the identity, a prior as N(0, 1), a posterior as the prior.

    Args:
        features: channels of the output.
        narrow: channels inside.
        grids: how many of the inputs are grids, joined along their channels; the others are conditions.
        activation: before each convolution.
        dtype: of the computation and of the output.
    """

    features: int
    narrow: int
    grids: int = 1
    activation: Activation = nn.relu
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, *inputs: Batch) -> Float[Array, "n h w b"]:
        grids, conditions = inputs[: self.grids], inputs[self.grids :]
        h = jnp.concatenate([as_images(x, self.dtype, "Bottleneck") for x in grids], axis=-1)
        middle = (3, 3) if min(h.shape[1:3]) >= 3 else (1, 1)  # padding alone is nothing to look at
        h = Conv(self.narrow, (1, 1), dtype=self.dtype)(self.activation(GroupNorm(self.dtype)(h)))
        h = _with_conditions(h, conditions, self.dtype)
        h = Conv(self.narrow, middle, dtype=self.dtype)(self.activation(h))
        last = Conv(self.features, (1, 1), dtype=self.dtype, kernel_init=nn.initializers.zeros)
        return last(self.activation(h))


class ToGrid(nn.Module):
    """Patches of factor x factor pixels to places of a grid, then `depth` residual blocks: (n, H, W, a) to
    (n, H / factor, W / factor, features)."""

    features: int
    factor: int
    depth: int = 1
    activation: Activation = nn.relu
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Batch, *conditions: Batch) -> Float[Array, "n h w b"]:
        h = Conv(self.features, (self.factor, self.factor), self.factor, dtype=self.dtype)(x)
        for _ in range(self.depth):
            h = h + _residual(self.features, self.activation, self.dtype)(h, *conditions)
        return h


class Wider(nn.Module):
    """The state on a finer grid: (n, h, w, a) to (n, h factor, w factor, features), float32 at least."""

    features: int
    factor: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: Batch, *conditions: Batch) -> Float[Array, "n ..."]:
        del conditions  # the levels see them
        h = ConvTranspose(self.features, (self.factor, self.factor), self.factor, dtype=self.dtype)(h)
        return output(h, h.shape[1:])


class ConvUpdate(nn.Module):
    """h + z in the state's channels, and a residual block: (n, h, w, features) again, float32 at least.

    Args:
        features: channels of the state.
    """

    features: int
    activation: Activation = nn.relu
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: Float[Array, "n h w b"], z: Batch, *conditions: Batch) -> Float[Array, "n ..."]:
        h = h + Conv(self.features, (1, 1), dtype=self.dtype)(z)
        h = h + _residual(self.features, self.activation, self.dtype)(h, *conditions)
        return output(h, h.shape[1:])


class FromGrid(nn.Module):
    """The last state to an image: (n, h, w, a) to (n, *shape), float32 at least; the network of a generator.

    Args:
        shape: of the output, (H, W, ...).
        factor: H / h, the last of the scales of `conv_rungs`.
    """

    shape: tuple[int, ...]
    factor: int
    activation: Activation = nn.relu
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: Float[Array, "n h w a"], *conditions: Batch) -> Float[Array, "n ..."]:
        side = 2 * self.factor + 1
        h = _with_conditions(self.activation(GroupNorm(self.dtype)(h)), conditions, self.dtype)
        last = ConvTranspose(math.prod(self.shape[2:]), (side, side), self.factor, dtype=self.dtype)
        return output(last(h), self.shape)


def _residual(features: int, activation: Activation, dtype: Any) -> Bottleneck:
    return Bottleneck(features, max(1, features // 4), activation=activation, dtype=dtype)


def _with_conditions(h: Array, conditions: Sequence[Batch], dtype: Any) -> Array:
    """h (n, ..., a) plus a dense layer of the conditions, the same at each place; for use inside a compact module."""
    if not conditions:
        return h
    added = dense(flat(*quantities(*conditions), dtype=dtype), h.shape[-1], dtype)
    return h + added.reshape(h.shape[0], *(1,) * (h.ndim - 2), h.shape[-1])
