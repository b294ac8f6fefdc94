"""The denoiser of a diffusion over vectors: of the latents of a VAE, for instance. For images there is the U-Net."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Shaped

from vae_jax.core.conditions import quantities
from vae_jax.core.network import shape_of
from vae_jax.nets.mlp import Batch, Shape, check_sizes, dense, flat, output
from vae_jax.nets.unet import waves


class DenoisingMLP(nn.Module):
    """Vectors (n, ...), noise levels (n,) and conditions (n, ...) to (n, *out), which start at zero.

    Residual blocks of two dense layers behind a LayerNorm; the code of gamma = -ln SNR and conditions scales and shifts
    what is inside.

    Args:
        width: of the hidden layers.
        out: shape of the output, that of one example; twice its last axis for a learned variance.
        blocks: residual blocks.
        activation: inside the blocks.
        dtype: of the computation. Parameters are float32, and the output is float32 at least.

    Raises:
        ValueError: a size that is not positive.
    """

    width: int
    out: Shape
    blocks: int = 3
    activation: Callable[[Array], Array] = nn.silu
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_sizes("DenoisingMLP", width=(self.width,), out=shape_of(self.out), blocks=(self.blocks,))
        super().__post_init__()

    @nn.compact
    def __call__(self, z: Batch, gamma: Shaped[Array | np.ndarray, "n"], *conditions: Batch) -> Float[Array, "n ..."]:
        code = waves(gamma, 2 * (self.width // 4) or 2)
        code = self.activation(dense(flat(code, *quantities(*conditions), dtype=self.dtype), self.width, self.dtype))
        h = dense(flat(z, dtype=self.dtype), self.width, self.dtype)
        for _ in range(self.blocks):
            scale, shift = jnp.split(dense(code, 2 * self.width, self.dtype), 2, axis=-1)
            inner = nn.LayerNorm(dtype=self.dtype)(h) * (1 + scale) + shift
            inner = self.activation(dense(self.activation(inner), self.width, self.dtype))
            h = h + dense(inner, self.width, self.dtype)
        shape = shape_of(self.out)
        h = nn.LayerNorm(dtype=self.dtype)(h)
        return output(dense(h, math.prod(shape), self.dtype, kernel_init=nn.initializers.zeros), shape)
