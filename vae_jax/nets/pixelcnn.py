"""The Gated PixelCNN: grids of whole numbers, each cell given those before it in raster order.

van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders". One stack of features sees the rows
above, another the cells to the left and the first stack, so that there is no blind spot. Grids are shifted before the
convolutions (Salimans et al. 2017, PixelCNN++, section 2.3) where the paper masks kernels: half of the work.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Shaped

from vae_jax.nets.conv import Conv
from vae_jax.nets.mlp import Batch, check_sizes, dense, output
from vae_jax.nets.recurrent import joined


class PixelCNN(nn.Module):
    """Grids (n, h, w) of values 0 .. levels - 1 and conditions (n, ...) to logits (n, h, w, levels) of each cell.

    For `autoregressive` over codes or pixels. A cell sees those before it up to `depth` + 1 rows above and as far to
    the left: give it the depth that the grid needs. Conditions, flattened and joined, are a bias of every gate.

    Args:
        levels: how many values a cell has.
        width: channels.
        depth: gated layers.
        dtype: of the computation. Parameters are float32, and the logits are float32 at least.

    Raises:
        ValueError: a size is not positive; at the call, an input that is no grid.
    """

    levels: int
    width: int
    depth: int
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_sizes("PixelCNN", **{name: (getattr(self, name),) for name in ("levels", "width", "depth")})
        super().__post_init__()

    @nn.compact
    def __call__(self, y: Shaped[Array | np.ndarray, "n ..."], *conditions: Batch) -> Float[Array, "n h w levels"]:
        if y.ndim != 3:
            raise ValueError(f"PixelCNN wants grids (h, w) of whole numbers, got a shape {y.shape[1:]}")
        context = joined(conditions, self.dtype)
        above = left = nn.Embed(self.levels, self.width, dtype=self.dtype)(y.astype(jnp.int32))
        for i in range(self.depth):
            above, left = Layer(self.width, i == 0, self.dtype, name=f"layer_{i}")(above, left, context)
        h = nn.silu(dense(nn.silu(left), self.width, self.dtype, name="join"))
        return output(dense(h, self.levels, self.dtype, name="last"), (*y.shape[1:], self.levels))


class Layer(nn.Module):
    """(above, left, context or None) -> (above, left); the first layer leaves out the cell itself."""

    width: int
    first: bool
    dtype: Any

    @nn.compact
    def __call__(
        self, above: Float[Array, "n h w a"], left: Float[Array, "n h w a"], context: Float[Array, "n e"] | None
    ) -> tuple[Float[Array, "n h w a"], Float[Array, "n h w a"]]:
        (_, h, w, _), shift, gates = left.shape, 1 + self.first, 2 * self.width
        # A kernel of 2 with SAME padding sees a row and the next: of the row `shift` above, and of the one below that.
        rows = Conv(gates, (2, 3), dtype=self.dtype, name="rows")(_shifted(above, shift, axis=1))[:, :h]
        cells = Conv(gates, (1, 2), dtype=self.dtype, name="cells")(_shifted(left, shift, axis=2))[:, :, :w]
        cells = cells + dense(rows, gates, self.dtype, name="down")
        if context is not None:
            bias = dense(context, 2 * gates, self.dtype, use_bias=False, name="condition")[:, None, None]
            rows, cells = rows + bias[..., :gates], cells + bias[..., gates:]
        after = dense(_gate(cells), self.width, self.dtype, name="out")
        return _gate(rows), after if self.first else left + after


def _gate(x: Array) -> Array:
    values, openness = jnp.split(x, 2, axis=-1)
    return jnp.tanh(values) * jax.nn.sigmoid(openness)


def _shifted(x: Array, by: int, axis: int) -> Array:
    """Zeros in front, and one place more than x has."""
    margins = [(0, 0, 0)] * x.ndim
    margins[axis] = (by, 1 - by, 0)
    return jax.lax.pad(x, jnp.zeros((), x.dtype), margins)
