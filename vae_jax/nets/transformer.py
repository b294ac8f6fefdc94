"""Transformers that read or write whole numbers (Vaswani et al. 2017), with the norms before each half of a block.

x + attention(norm(x)), then x + mlp(norm(x))           (Xiong et al. 2020, "pre-LN")
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Shaped

from vae_jax.core.sentences import counts
from vae_jax.nets.attention import attend
from vae_jax.nets.mlp import Batch, Dense, Shape, check_layers, check_sizes, head, output
from vae_jax.nets.recurrent import Tokens, at_end, joined, shifted

Cache = tuple[Array, Array]  # keys and values, (n, t, heads, d)


class Transformer(nn.Module):
    """Tokens (n, *t) and conditions (n, ...) to logits (n, *t, levels) of each token, given those before it.

    A decoder for `autoregressive`. Tokens are 0 .. levels - 1, in raster order where t has several axes: grids of codes
    for instance. Conditions, flattened and joined, are added to every embedding. Dropout is on where the module is
    applied with an rng named "dropout". `step` keeps the keys and values of the positions so far.

    Args:
        levels: how many values a token has.
        width: of the embeddings; the MLP of a block has 4 times as many units.
        depth: how many blocks.
        heads: of the attention; they share the width equally.
        max_length: positions that have an embedding of their own, which is learned. None: any length, and positions
            told by rotations of queries and keys (Su et al. 2021, "RoFormer").
        dropout: probability that a value is dropped at the end of each half of a block.
        dtype: of the computation. Parameters are float32; norms, softmax and logits are float32 at least.

    Raises:
        ValueError: a size is not positive, heads do not divide the width (in even parts where positions are
            rotations), or a dropout outside [0, 1); at the call, more tokens than max_length.
    """

    levels: int
    width: int
    depth: int
    heads: int
    max_length: int | None = None
    dropout: float = 0.0
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_blocks("Transformer", self)
        super().__post_init__()

    def setup(self):
        self.embedding = nn.Embed(self.levels + 1, self.width, dtype=self.dtype)
        self.context = Dense(self.width, dtype=self.dtype)
        self.blocks = Blocks(self.width, self.depth, self.heads, self.max_length, self.dropout, self.dtype)
        self.last = Dense(self.levels, dtype=self.dtype)

    def __call__(self, y: Tokens, *conditions: Batch) -> Float[Array, "n *t levels"]:
        x = self._add(self.embedding(shifted(y, self.levels)), *conditions)
        causal = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
        return output(self.last(self.blocks(x, causal[None])), (*y.shape[1:], self.levels))

    def _add(self, x, *conditions):
        context = joined(conditions, self.dtype)
        return x if context is None else x + self.context(context)[:, None]

    def start(self, y: Tokens, *conditions: Batch) -> Any:
        n, length = len(y), y.reshape(len(y), -1).shape[1]
        empty = jnp.zeros((n, length, self.heads, self.width // self.heads), self.dtype)
        context = self._add(jnp.zeros((n, 1, self.width), self.dtype), *conditions)
        return jnp.zeros((), jnp.int32), context, ((empty, empty),) * self.depth

    def step(self, carry: Any, token: Shaped[Array, "n"]) -> tuple[Any, Float[Array, "n levels"]]:
        t, context, caches = carry
        h, caches = self.blocks.step(self.embedding(token)[:, None] + context, caches, t)
        return (t + 1, context, caches), output(self.last(h[:, 0]), (self.levels,))


class TransformerEncoder(nn.Module):
    """Tokens (n, *t) and conditions (n, ...) to (n, *out), float32: what a transformer makes of a sentence, at its end.

    Every position of the sentence sees every other. The sentence goes up to the first `end`; what follows is seen by
    none and changes nothing. Without an end it is the whole array.

    Args:
        levels, width, depth, heads, max_length, dropout, dtype: as for `Transformer`.
        out: a number of outputs, or their shape.
        end: the value that ends a sentence.

    Raises:
        ValueError: as for `Transformer`.
    """

    levels: int
    width: int
    depth: int
    heads: int
    out: Shape
    end: int = 0
    max_length: int | None = None
    dropout: float = 0.0
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_blocks("TransformerEncoder", self)
        super().__post_init__()

    @nn.compact
    def __call__(self, y: Tokens, *conditions: Batch) -> Float[Array, "n ..."]:
        tokens = jnp.asarray(y, jnp.int32).reshape(len(y), -1)
        x = nn.Embed(self.levels, self.width, dtype=self.dtype)(tokens)
        context = joined(conditions, self.dtype)
        if context is not None:
            x = x + Dense(self.width, dtype=self.dtype)(context)[:, None]
        inside = counts(tokens, self.end)
        blocks = Blocks(self.width, self.depth, self.heads, self.max_length, self.dropout, self.dtype)
        h = blocks(x, jnp.broadcast_to(inside[:, None], (*tokens.shape, tokens.shape[1])))
        return head(at_end(h, tokens, self.end), out=self.out, dtype=self.dtype)


class Blocks(nn.Module):
    """Blocks one after the other and a last norm: (n, t, width) and who sees whom (n or 1, t, t) to (n, t, width)."""

    width: int
    depth: int
    heads: int
    max_length: int | None
    dropout: float
    dtype: Any

    def setup(self):
        self.each = [
            Block(self.heads, self.depth, self.max_length is None, self.dropout, self.dtype) for _ in range(self.depth)
        ]
        self.norm = nn.LayerNorm(dtype=self.dtype)
        if self.max_length is not None:
            shape = (self.max_length, self.width)
            self.positions = self.param("positions", nn.initializers.normal(0.02), shape)

    def __call__(self, x: Float[Array, "n t width"], seen: Bool[Array, "m t t"]) -> Float[Array, "n t width"]:
        x = self._placed(x, jnp.arange(x.shape[1]), x.shape[1])
        for block in self.each:
            x = block(x, seen)
        return self.norm(x)

    def step(
        self, x: Float[Array, "n 1 width"], caches: tuple[Cache, ...], t: Array
    ) -> tuple[Array, tuple[Cache, ...]]:
        """Position t, given the keys and values before it."""
        x, after = self._placed(x, t[None], caches[0][0].shape[1]), []
        for block, cache in zip(self.each, caches, strict=True):
            x, cache = block.step(x, cache, t)
            after.append(cache)
        return self.norm(x), tuple(after)

    def _placed(self, x: Array, positions: Array, length: int) -> Array:
        if self.max_length is None:
            return x
        if length > self.max_length:
            raise ValueError(
                f"max_length={self.max_length}: this transformer has not learned the places of {length} tokens"
            )
        return x + jnp.asarray(self.positions, self.dtype)[positions][None]


class Block(nn.Module):
    """x + attention, then x + MLP; `step` for one position."""

    heads: int
    depth: int
    rotary: bool
    dropout: float
    dtype: Any

    @nn.compact
    def _run(self, x, cache, t, seen):
        n, length, width = x.shape

        def linear(features, **options):
            return Dense(features, dtype=self.dtype, **options)

        # What 2 * depth halves add has the size of what they add to.
        smaller = nn.initializers.variance_scaling(0.5 / self.depth, "fan_in", "truncated_normal")
        drop = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))
        qkv = linear(3 * width, name="qkv")(nn.LayerNorm(dtype=self.dtype, name="norm_1")(x))
        q, k, v = jnp.split(qkv.reshape(n, length, 3 * self.heads, width // self.heads), 3, axis=2)
        if self.rotary:
            positions = t + jnp.arange(length)
            q, k = rotated(q, positions), rotated(k, positions)
        if cache is not None:
            k, v = (
                jax.lax.dynamic_update_slice_in_dim(old, new, t, axis=1) for old, new in zip(cache, (k, v), strict=True)
            )
        x = x + drop(linear(width, kernel_init=smaller, name="join")(attend(q, k, v, seen).reshape(n, length, width)))
        h = nn.gelu(linear(4 * width, name="up")(nn.LayerNorm(dtype=self.dtype, name="norm_2")(x)))
        return x + drop(linear(width, kernel_init=smaller, name="down")(h)), (k, v)

    def __call__(self, x: Float[Array, "n t width"], seen: Bool[Array, "m t t"]) -> Float[Array, "n t width"]:
        return self._run(x, None, 0, seen)[0]

    def step(self, x: Float[Array, "n 1 width"], cache: Cache, t: Array) -> tuple[Array, Cache]:
        seen = jnp.arange(cache[0].shape[1]) <= t
        return self._run(x, cache, t, seen[None, None])


def rotated(x: Float[Array, "n t heads d"], positions: Shaped[Array, "t"]) -> Float[Array, "n t heads d"]:
    """Each pair of numbers (i, i + d / 2) turned by position * 10000^(-2 i / d) (Su et al. 2021, equation 34)."""
    half = x.shape[-1] // 2
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    angles = positions[:, None].astype(dtype) * (10_000.0 ** (-jnp.arange(half, dtype=dtype) / half))[None]
    cos, sin = jnp.cos(angles)[None, :, None], jnp.sin(angles)[None, :, None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


def check_blocks(name: str, net: Any) -> None:
    """Raise a ValueError that names the first argument out of range."""
    check_layers(name, net, "levels", "width", "depth", "heads")
    if net.max_length is not None:
        check_sizes(name, max_length=(net.max_length,))
    parts = net.heads * (2 if net.max_length is None else 1)
    if net.width % parts:
        raise ValueError(f"{name} wants a width that is a multiple of {parts} for {net.heads} heads, got {net.width}")
