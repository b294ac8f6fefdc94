"""Dense networks, and what all networks here share: flat inputs joined with conditions, an output of any shape."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Shaped

Batch = Shaped[Array | np.ndarray, "n ..."]
Shape = int | tuple[int, ...]


class MLP(nn.Module):
    """Dense layers between arrays of any shape: (n, ...) to (n, *out), float32.

    Inputs may be integers; they and every condition are flattened and joined. The default activation is relu: on CPU it
    is the cheapest by some percent, and on a classic VAE none is better by more than the seeds differ.

    Args:
        hidden: widths of the hidden layers; () is an affine map.
        out: a number of outputs, or their shape: 40, or (28, 28, 1).
        activation: after each hidden layer.
        dtype: of the computation, jnp.bfloat16 for instance; parameters are float32, the output at least float32.

    Raises:
        ValueError: a width is not positive.
    """

    hidden: tuple[int, ...]
    out: Shape
    activation: Callable[[Array], Array] = nn.relu
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_positive("MLP", hidden=self.hidden, out=shape_of(self.out))
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Batch, *conditions: Batch) -> Float[Array, "n ..."]:
        h = flat(x, *conditions, dtype=self.dtype)
        for width in self.hidden:
            h = self.activation(dense(h, width, self.dtype))
        return output(dense(h, math.prod(shape_of(self.out)), self.dtype), shape_of(self.out))


def dense(h: Float[Array, "n d"], features: int, dtype: Any) -> Float[Array, "n features"]:
    """A dense layer of the module that calls this.

    One example (n = 1, as under the library's vmap) goes through as a vector: around the axis of size 1 XLA would
    transpose whole activations, which costs 15 % of a training step on CPU.
    """
    layer = nn.Dense(features, dtype=dtype)
    return layer(h[0])[None] if h.shape[0] == 1 else layer(h)


def flat(*inputs: Batch, dtype: Any) -> Float[Array, "n d"]:
    """Inputs of shapes (n, ...), flattened but for the batch axis and joined."""
    return jnp.concatenate(
        [jnp.asarray(x, dtype).reshape(x.shape[0], math.prod(x.shape[1:])) for x in inputs], axis=1
    )


def output(y: Float[Array, "n ..."], shape: tuple[int, ...]) -> Float[Array, "n ..."]:
    """(n, *shape) in float32 at least: log-probabilities are not computed in 16 bits."""
    return y.reshape(y.shape[0], *shape).astype(jnp.promote_types(y.dtype, jnp.float32))


def shape_of(out: Shape) -> tuple[int, ...]:
    """A number of outputs as a shape."""
    return (out,) if isinstance(out, int) else tuple(out)


def check_positive(name: str, **sizes: tuple[int, ...]) -> None:
    """Raise a ValueError that names the first argument with a size below 1."""
    for argument, values in sizes.items():
        if any(value < 1 for value in values):
            raise ValueError(f"{name} wants {argument} of positive sizes, got {values}")
