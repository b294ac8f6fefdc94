"""The Gated PixelCNN: grids of whole numbers, each cell given those before it in raster order.

van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders". One stack of features sees the rows
above, another the cells to the left and the first stack, so that there is no blind spot. Grids are shifted before the
convolutions (Salimans et al. 2017, PixelCNN++, section 2.3) where the paper masks kernels: half of the work.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Shaped

from vae_jax.nets.conv import Conv
from vae_jax.nets.mlp import Batch, Dense, check_sizes, output
from vae_jax.nets.recurrent import joined


class PixelCNN(nn.Module):
    """Grids (n, h, w) of values 0 .. levels - 1 and conditions (n, ...) to logits (n, h, w, levels) of each cell.

    For `autoregressive` over codes or pixels. A cell sees those before it up to `depth` + 1 rows above and as far to
    the left: give it the depth that the grid needs. Conditions, flattened and joined, are a bias of every gate. `step`
    keeps two rows, and computes what a cell needs and no more (Ramachandran et al. 2017, "Fast generation").

    Args:
        levels: how many values a cell has.
        width: channels of the features.
        depth: gated layers.
        channels: of images (n, h, w, channels), whose channels are given those before them in their pixel. None: grids.
        dtype: of the computation. Parameters are float32, and the logits are float32 at least.

    Raises:
        ValueError: a size is not positive; at the call, an input that is no grid, or has other channels.
    """

    levels: int
    width: int
    depth: int
    channels: int | None = None
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        sizes = {"channels": self._channels} | {name: getattr(self, name) for name in ("levels", "width", "depth")}
        check_sizes("PixelCNN", **{name: (size,) for name, size in sizes.items()})
        super().__post_init__()

    @property
    def _channels(self) -> int:
        return 1 if self.channels is None else self.channels

    def setup(self):
        pairs = self._channels * (self._channels - 1) // 2
        self.embedding = nn.Embed(self.levels * self._channels, self.width, dtype=self.dtype)
        self.layers = [Layer(self.width, i == 0, self.dtype) for i in range(self.depth)]
        self.join = Dense(self.width, dtype=self.dtype)
        self.earlier = nn.Embed(self.levels * pairs, self.width, dtype=self.dtype)
        self.last = [Dense(self.levels, dtype=self.dtype) for _ in range(self._channels)]

    def __call__(self, y: Shaped[Array | np.ndarray, "n ..."], *conditions: Batch) -> Float[Array, "n ..."]:
        pixels, context = self._pixels(y), joined(conditions, self.dtype)
        above = left = self._embed(pixels)
        for layer in self.layers:
            above, left = layer(above, left, context)
        h = self.join(nn.silu(left))
        logits = [self._logits(h, pixels[..., :k]) for k in range(self._channels)]
        return output(jnp.stack(logits, axis=3), (*y.shape[1:], self.levels))

    def _pixels(self, y):
        """(n, h, w, channels), int32."""
        if self.channels is None and y.ndim != 3:
            raise ValueError(f"PixelCNN wants grids (h, w) of whole numbers, got a shape {y.shape[1:]}")
        if self.channels is not None and (y.ndim != 4 or y.shape[3] != self.channels):
            raise ValueError(f"PixelCNN wants images (h, w, {self.channels}) of whole numbers, got {y.shape[1:]}")
        return y.reshape(*y.shape[:3], self._channels).astype(jnp.int32)

    def _embed(self, pixels):
        return sum(self.embedding(pixels[..., m] + self.levels * m) for m in range(self._channels))

    def _logits(self, h, earlier):
        """Of the channel after those that are given."""
        k = earlier.shape[-1]
        for m in range(k):
            h = h + self.earlier(earlier[..., m] + self.levels * (k * (k - 1) // 2 + m))
        return self.last[k](nn.silu(h))

    def start(self, y: Shaped[Array, "n ..."], *conditions: Batch) -> Any:
        n, _, w, channels = self._pixels(y).shape
        pixel, row, gates = (
            jnp.zeros((n, *s), self.dtype) for s in ((self.width,), (1, w, self.width), (1, w, 2 * self.width))
        )
        return _Seen(
            jnp.zeros((), jnp.int32),
            joined(conditions, self.dtype),
            jnp.full((n, 2 * w, channels), self.levels, jnp.int32),
            above=(row,) * self.depth,
            down=(gates,) * self.depth,
            left=(pixel,) * self.depth,
            h=pixel,
        )

    def step(self, carry: Any, token: Shaped[Array, "n"]) -> tuple[Any, Float[Array, "n levels"]]:
        n, cells, channels = carry.tokens.shape
        tokens = jnp.concatenate([carry.tokens.reshape(n, -1)[:, 1:], token[:, None]], axis=1)
        seen, channel = carry._replace(tokens=tokens.reshape(n, cells, channels)), carry.t % channels
        column = carry.t // channels % (cells // 2)
        seen = _once(self, PixelCNN._begin_row, seen, (channel == 0) & (column == 0))
        seen = _once(self, functools.partial(PixelCNN._begin_pixel, column=column), seen, channel == 0)
        before = tokens % self.levels
        logits = [self._logits(seen.h, before[:, before.shape[1] - k :]) for k in range(channels)]
        return seen._replace(t=seen.t + 1), output(jnp.stack(logits, axis=1)[:, channel], (self.levels,))

    def _begin_row(self, seen):
        """What the rows above say to this one."""
        n, cells, _ = seen.tokens.shape
        rows = self._embed_before(seen.tokens).reshape(n, 2, cells // 2, self.width)
        x, above, down = rows[:, 1:], [], []
        for layer, before in zip(self.layers, seen.above, strict=True):
            above.append(x)
            x, of_pixels = layer.above(rows if layer.first else jnp.concatenate([before, x], axis=1), seen.c)
            down.append(of_pixels)
        return seen._replace(above=tuple(above), down=tuple(down))

    def _begin_pixel(self, seen, column):
        """The features of a pixel, of those before it."""
        before, x = jnp.moveaxis(self._embed_before(seen.tokens[:, -2:]), 1, 0)
        before, left = before * (column > 1), []
        x = x * (column > 0)
        for layer, down, last in zip(self.layers, seen.down, seen.left, strict=True):
            left.append(x)
            pair = jnp.stack([before if layer.first else last * (column > 0), x], axis=1)
            after = layer.beside(pair[:, None], jax.lax.dynamic_slice_in_dim(down, column, 1, axis=2))[:, 0, 0]
            x = after if layer.first else x + after
        return seen._replace(left=tuple(left), h=self.join(nn.silu(x)))

    def _embed_before(self, pixels):
        """Zeros where there is no pixel."""
        return self._embed(pixels % self.levels) * (pixels[..., :1] < self.levels)


class _Seen(NamedTuple):
    """What the next cell sees.

    Fields:
        t: how many cells came before it.
        c: the conditions.
        tokens: the last two rows' worth of pixels, `levels` where there is none.
        above: for each layer the row above.
        down: for each layer what the rows above say to each pixel of this one.
        left: for each layer the pixel to the left.
        h: the features of this pixel.
    """

    t: Array
    c: Array | None
    tokens: Array
    above: tuple[Array, ...]
    down: tuple[Array, ...]
    left: tuple[Array, ...]
    h: Array


def _once(module: nn.Module, change: Callable[..., Any], state: Any, when: Array) -> Any:
    """`change(module, state)` where it is time, as a loop of at most one turn: under `jax.vmap` a conditional computes
    both sides each time, and a loop stops where no example goes on."""

    def turn(module, both):
        return change(module, both[0]), jnp.bool_(False)

    return nn.while_loop(lambda _, both: both[1], turn, module, (state, when))[0]  # type: ignore[arg-type,return-value]


class Layer(nn.Module):
    """(above, left, context or None) -> (above, left); the first layer leaves out the cell itself."""

    width: int
    first: bool
    dtype: Any

    def setup(self):
        gates = 2 * self.width
        # A kernel of 2 with SAME padding sees a row and the next, or a cell and the next.
        self.rows, self.cells = (Conv(gates, kernel, dtype=self.dtype) for kernel in ((2, 3), (1, 2)))
        self.down, self.out = (Dense(n, dtype=self.dtype) for n in (gates, self.width))
        self.condition = Dense(2 * gates, use_bias=False, dtype=self.dtype)

    def __call__(
        self, above: Float[Array, "n h w a"], left: Float[Array, "n h w a"], context: Float[Array, "n e"] | None
    ) -> tuple[Float[Array, "n h w a"], Float[Array, "n h w a"]]:
        shift = 1 + self.first
        above, down = self.above(_shifted(above, shift, axis=1), context)
        after = self.beside(_shifted(left, shift, axis=2), down)
        return above, after if self.first else left + after

    def above(
        self, rows: Float[Array, "n g w a"], context: Float[Array, "n e"] | None
    ) -> tuple[Float[Array, "n h w a"], Float[Array, "n h w b"]]:
        """Of each row and the next one, h = g - 1: their features, and what they say to the cells."""
        rows = self.rows(rows)[:, :-1]
        down = self.down(rows)
        if context is not None:
            bias = self.condition(context)[:, None, None]
            rows, down = rows + bias[..., : rows.shape[-1]], down + bias[..., rows.shape[-1] :]
        return _gate(rows), down

    def beside(self, cells: Float[Array, "n h v a"], down: Float[Array, "n h w b"]) -> Float[Array, "n h w a"]:
        """Of each cell and the next one, w = v - 1."""
        return self.out(_gate(self.cells(cells)[:, :, :-1] + down))


def _gate(x: Array) -> Array:
    values, openness = jnp.split(x, 2, axis=-1)
    return jnp.tanh(values) * jax.nn.sigmoid(openness)


def _shifted(x: Array, by: int, axis: int) -> Array:
    """Zeros in front, and one place more than x has."""
    margins = [(0, 0, 0)] * x.ndim
    margins[axis] = (by, 1 - by, 0)
    return jax.lax.pad(x, jnp.zeros((), x.dtype), margins)
