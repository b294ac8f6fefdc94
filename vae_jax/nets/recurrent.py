"""LSTMs that read or write sequences of whole numbers (Hochreiter & Schmidhuber 1997).

i, f, o = sigmoid(a_i), sigmoid(a_f), sigmoid(a_o)      a_t = x_t U + h_{t-1} W + b, in the order i, f, g, o
c_t = f c_{t-1} + i tanh(a_g)        h_t = o tanh(c_t)
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Shaped

from vae_jax.core.conditions import quantities
from vae_jax.core.older_jax import linear
from vae_jax.core.sentences import lengths
from vae_jax.nets.mlp import Batch, Dense, Shape, check_layers, flat, head, output
from vae_jax.nets.product import rows_times_matrix

Tokens = Shaped[Array | np.ndarray, "n *t"]
Carry = tuple[Array, Array]  # h and c, (n, hidden)


class LSTM(nn.Module):
    """Tokens (n, *t) and conditions (n, ...) to logits (n, *t, levels) of each token, given those before it.

    A decoder for `autoregressive`. Tokens are 0 .. levels - 1, in raster order where t has several axes. Conditions,
    flattened and joined, set the first h and c of each layer and are an input at every position. Dropout is on where
    the module is applied with an rng named "dropout".

    Args:
        levels: how many values a token has.
        embed: size of a token's embedding.
        hidden: size of h and c.
        layers: LSTMs on top of each other.
        dropout: probability that an input of a layer, the last one included, is dropped.
        skip: the conditions are an input of the last layer as well (Dieng et al. 2019, "Skip-VAE").
        dtype: of the computation. Parameters are float32, and the logits are float32 at least.

    Raises:
        ValueError: a size is not positive, or a dropout outside [0, 1).
    """

    levels: int
    embed: int
    hidden: int
    layers: int = 1
    dropout: float = 0.0
    skip: bool = False
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_layers("LSTM", self, "levels", "embed", "hidden", "layers")
        super().__post_init__()

    def setup(self):
        self.embedding = nn.Embed(self.levels + 1, self.embed, dtype=self.dtype)
        self.stack = Stack(self.hidden, self.layers, self.dropout, self.dtype)
        self.last = Dense(self.levels, dtype=self.dtype)
        self.skipped = Dense(self.levels, use_bias=False, dtype=self.dtype)

    def __call__(self, y: Tokens, *conditions: Batch) -> Float[Array, "n *t levels"]:
        context = joined(conditions, self.dtype)
        h = self.stack(self.embedding(shifted(y, self.levels)), context)
        logits = self.last(h)
        if self.skip and context is not None:
            logits = logits + self.skipped(context)[:, None]
        return output(logits, (*y.shape[1:], self.levels))

    def start(self, y: Tokens, *conditions: Batch) -> Any:
        context = joined(conditions, self.dtype)
        skipped = self.skipped(context) if self.skip and context is not None else None
        return self.stack.start(len(y), context), skipped

    def step(self, carry: Any, token: Shaped[Array, "n"]) -> tuple[Any, Float[Array, "n levels"]]:
        state, skipped = carry
        state, h = self.stack.step(state, self.embedding(token))
        logits = self.last(h)
        return (state, skipped), output(logits if skipped is None else logits + skipped, (self.levels,))


class SequenceEncoder(nn.Module):
    """Tokens (n, *t) and conditions (n, ...) to (n, *out), float32: what an LSTM makes of a sentence, at its end.

    The sentence goes up to the first `end`; what follows changes nothing. Without an end it is the whole array. The
    conditions enter as in `LSTM`.

    Args:
        levels, embed, hidden, layers, dropout, dtype: as for `LSTM`.
        out: a number of outputs, or their shape.
        end: the value that ends a sentence.

    Raises:
        ValueError: a size is not positive, or a dropout outside [0, 1).
    """

    levels: int
    embed: int
    hidden: int
    out: Shape
    end: int = 0
    layers: int = 1
    dropout: float = 0.0
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_layers("SequenceEncoder", self, "levels", "embed", "hidden", "layers")
        super().__post_init__()

    @nn.compact
    def __call__(self, y: Tokens, *conditions: Batch) -> Float[Array, "n ..."]:
        tokens = jnp.asarray(y, jnp.int32).reshape(len(y), -1)
        x = nn.Embed(self.levels, self.embed, dtype=self.dtype)(tokens)
        h = Stack(self.hidden, self.layers, self.dropout, self.dtype)(x, joined(conditions, self.dtype))
        return head(at_end(h, tokens, self.end), out=self.out, dtype=self.dtype)


class Stack(nn.Module):
    """LSTMs on top of each other: (n, t, d) and a context (n, e) or None to the last one's h, (n, t, hidden)."""

    hidden: int
    layers: int
    dropout: float
    dtype: Any

    def setup(self):
        orthogonal = nn.initializers.orthogonal()
        size = 4 * self.hidden
        self.inputs = [Dense(size, dtype=self.dtype, bias_init=_remembering) for _ in range(self.layers)]
        self.kernels = [self.param(f"recurrent_{i}", orthogonal, (self.hidden, size)) for i in range(self.layers)]
        self.context = Dense(size, use_bias=False, dtype=self.dtype)
        self.first = Dense(2 * self.layers * self.hidden, dtype=self.dtype)
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, x: Float[Array, "n t d"], context: Float[Array, "n e"] | None) -> Float[Array, "n t hidden"]:
        added, carries = self.start(len(x), context)
        for i, (layer, carry) in enumerate(zip(self.inputs, carries, strict=True)):
            gates = layer(self._dropped(x))
            if i == 0 and added is not None:
                gates = gates + added[:, None]
            x = run_lstm(gates.swapaxes(0, 1), self._kernel(i), *carry).swapaxes(0, 1)
        return self._dropped(x)

    def start(self, n: int, context: Float[Array, "n e"] | None) -> tuple[Array | None, tuple[Carry, ...]]:
        """What the context adds to the first layer's gates, or None; the first carry of each layer."""
        if context is None:
            zeros = jnp.zeros((n, self.hidden), self.dtype)
            return None, ((zeros, zeros),) * self.layers
        first = jnp.split(self.first(context), 2 * self.layers, axis=-1)
        return self.context(context), tuple(zip(first[::2], first[1::2], strict=True))

    def step(self, state: Any, x: Float[Array, "n d"]) -> tuple[Any, Float[Array, "n hidden"]]:
        """One position, without dropout."""
        (added, carries), after = state, []
        for i, (layer, (h, c)) in enumerate(zip(self.inputs, carries, strict=True)):
            gates = layer(x) + rows_times_matrix(h, self._kernel(i))
            if i == 0 and added is not None:
                gates = gates + added
            c, x, *_ = cell(gates, c)
            after.append((x, c))
        return (added, tuple(after)), x

    def _kernel(self, i: int) -> Array:
        return jnp.asarray(self.kernels[i], self.dtype)

    def _dropped(self, x: Array) -> Array:
        return self.drop(x, deterministic=not self.has_rng("dropout"))


def _remembering(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Biases of 0, and of 1 for the gate f, so that c is kept at the start (Jozefowicz et al. 2015)."""
    del key
    return jnp.zeros(shape, dtype).at[shape[0] // 4 : shape[0] // 2].set(1)


def cell(gates: Float[Array, "*n a"], c: Float[Array, "*n hidden"]) -> tuple[Array, ...]:
    """(c, h, i, f, g, o) after one position, from the gates before their nonlinearities and the c before."""
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
    c = f * c + i * g
    return c, o * jnp.tanh(c), i, f, g, o


@jax.custom_jvp
def run_lstm(
    gates: Float[Array, "t n a"],
    kernel: Float[Array, "hidden a"],
    h: Float[Array, "n hidden"],
    c: Float[Array, "n hidden"],
) -> Float[Array, "t n hidden"]:
    """h of all positions, from what the inputs give to the gates, W, and h and c before the first position."""
    return _cells(gates, kernel, h, c)[0]


def _cells(gates, kernel, h, c):
    """(h, c, i, f, g, o) of all positions."""

    def step(carry, gates):
        h, c = carry
        c, h, *rest = cell(gates + rows_times_matrix(h, kernel), c)
        return (h, c), (h, c, *rest)

    return jax.lax.scan(step, (h, c), gates)[1]


@run_lstm.defjvp
def _run_lstm_jvp(primals, tangents):
    """The tangent of W acts on h that are known by then, all at once: outside of the recurrence, which is linear.

    So its transpose, the gradient of W, is one product over all positions and examples, where that of the plain scan
    adds a product of few rows to an array of the size of W at every position.
    """
    gates, kernel, h, c = primals
    d_gates, d_kernel, d_h, d_c = tangents
    hs, cs, i, f, g, o = _cells(gates, kernel, h, c)
    h_before, c_before = (jnp.concatenate([x[None], xs[:-1]]) for x, xs in ((h, hs), (c, cs)))
    tanh_c = jnp.tanh(cs)
    to_c = g * i * (1 - i), c_before * f * (1 - f), i * (1 - g**2)
    to_h = tanh_c * o * (1 - o), o * (1 - tanh_c**2)

    def step(carry, inputs):
        d_h, d_c = carry
        d_gates, f, (c_i, c_f, c_g), (h_o, h_c) = inputs
        d_i, d_f, d_g, d_o = jnp.split(d_gates + rows_times_matrix(d_h, kernel), 4, axis=-1)
        d_c = f * d_c + c_i * d_i + c_f * d_f + c_g * d_g
        d_h = h_o * d_o + h_c * d_c
        return (d_h, d_c), d_h

    d_gates = d_gates + rows_times_matrix(h_before, d_kernel)

    def scan(tangents):
        d_gates, *start = tangents
        return jax.lax.scan(step, tuple(start), (d_gates, f, to_c, to_h))[1]

    return hs, linear(scan, (d_gates, d_h, d_c))


def shifted(y: Tokens, begin: int) -> Shaped[Array, "n t"]:
    """The tokens in raster order, each in the place of the one after it; `begin` is the first."""
    tokens = jnp.asarray(y, jnp.int32).reshape(len(y), -1)
    return jnp.concatenate([jnp.full((len(y), 1), begin, jnp.int32), tokens[:, :-1]], axis=1)


def joined(conditions: tuple[Any, ...], dtype: Any) -> Float[Array, "n e"] | None:
    """All conditions, flattened and joined; None where there are none."""
    return flat(*quantities(*conditions), dtype=dtype) if conditions else None


def at_end(h: Float[Array, "n t d"], tokens: Shaped[Array, "n t"], end: int) -> Float[Array, "n d"]:
    """h at the first end, or at the last position where there is none."""
    return jnp.take_along_axis(h, lengths(tokens, end)[:, None, None] - 1, axis=1)[:, 0]
