"""Dense networks, and what all networks here share: inputs joined flat, outputs of any shape."""

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
from vae_jax.core.numbers import is_whole
from vae_jax.nets.product import rows_plus_row, rows_times_matrix

Batch = Shaped[Array | np.ndarray, "n ..."]
Shape = int | tuple[int, ...]


class MLP(nn.Module):
    """Dense layers between arrays of any shape: (n, ...) to (n, *out), float32.

    The input, of any number type, and the conditions are flattened and joined. Conditions are no whole numbers: classes
    reach a network as one-hot vectors (`vae_jax.core.labelled`).

    Args:
        hidden: widths of the hidden layers; () is an affine map.
        out: a number of outputs, or their shape: 40, or (28, 28, 1).
        activation: after each hidden layer; relu is the cheapest.
        dtype: of the computation, jnp.bfloat16 for instance. Parameters are float32, and the output
            is float32 at least.

    Raises:
        ValueError: a width is not positive.
    """

    hidden: tuple[int, ...]
    out: Shape
    activation: Callable[[Array], Array] = nn.relu
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_sizes("MLP", hidden=self.hidden, out=shape_of(self.out))
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Batch, *conditions: Batch) -> Float[Array, "n ..."]:
        h = flat(x, *quantities(*conditions), dtype=self.dtype)
        for width in self.hidden:
            h = self.activation(dense(h, width, self.dtype))
        return head(h, out=self.out, dtype=self.dtype)


def dense(h: Float[Array, "n *d"], features: int, dtype: Any, **options: Any) -> Float[Array, "n *f"]:
    """A dense layer over the last axis; for use inside a compact module. Options are those of flax's Dense.

    One example (n = 1, as under the library's vmap) goes through as a vector: around the axis of size 1 XLA would
    transpose whole activations, which costs 15 % of a training step on CPU.
    """
    if h.ndim > 2:
        return Dense(features, dtype=dtype, **options)(h)
    layer = nn.Dense(features, dtype=dtype, **options)
    return layer(h[0])[None] if h.shape[0] == 1 else layer(h)


class Dense(nn.Module):
    """flax's Dense of many rows, its parameters and numbers, and gradients that are one product each under vmap."""

    features: int
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
    bias_init: Callable[..., Array] = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Shaped[Array | np.ndarray, "*n d"]) -> Float[Array, "*n f"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        y = rows_times_matrix(jnp.asarray(x, self.dtype), jnp.asarray(kernel, self.dtype))
        if not self.use_bias:
            return y
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
        return rows_plus_row(y, jnp.asarray(bias, self.dtype))


def flat(*inputs: Batch, dtype: Any) -> Float[Array, "n d"]:
    """Inputs (n, ...), each flattened behind the batch axis, and joined."""
    rows = [jnp.asarray(x, dtype).reshape(x.shape[0], math.prod(x.shape[1:])) for x in inputs]
    return jnp.concatenate(rows, axis=1)


def head(*inputs: Batch, out: Shape, dtype: Any) -> Float[Array, "n ..."]:
    """A dense layer from all inputs to (n, *out); for use inside a compact module."""
    shape = shape_of(out)
    return output(dense(flat(*inputs, dtype=dtype), math.prod(shape), dtype), shape)


def output(y: Float[Array, "n ..."], shape: tuple[int, ...]) -> Float[Array, "n ..."]:
    """(n, *shape) in float32 at least: log-probabilities are not computed in 16 bits."""
    return y.reshape(y.shape[0], *shape).astype(jnp.promote_types(y.dtype, jnp.float32))


def check_sizes(net: str, **sizes: Any) -> None:
    """Raise a ValueError that names the first argument that is not a tuple of positive sizes."""
    for name, value in sizes.items():
        if not isinstance(value, tuple | list):
            raise ValueError(f"{net} wants {name} as a tuple, got {value}: write ({value},)")
        if not all(map(is_whole, value)):
            raise ValueError(f"{net} wants positive sizes in {name}, got {value}")


def check_layers(name: str, net: Any, *sizes: str) -> None:
    """Raise a ValueError unless these sizes of a network are positive and its dropout is a probability below 1."""
    check_sizes(name, **{size: (getattr(net, size),) for size in sizes})
    if not 0 <= net.dropout < 1:
        raise ValueError(f"{name} wants dropout in [0, 1), got {net.dropout}")
