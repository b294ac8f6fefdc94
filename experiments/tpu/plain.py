"""The U-Net, a ladder and a transformer as anybody would write them for batches in plain flax, beside this library's.

Each pair has one loss, one optimiser, the same layers and the same batch; ours is a network for one example under vmap.
What their steps cost on a TPU is compared in `python -m experiments.tpu --plain`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from experiments.bench import unet
from vae_jax import bernoulli, nets
from vae_jax.core import as_network, lift
from vae_jax.parts import autoregressive
from vae_jax.systems import ladder

Loss = Callable[[Any, jax.Array, jax.Array], jax.Array]  # (params, key, a batch) -> mean loss
SHAPE = (28, 28, 1)
WORDS, LENGTH = 1000, 128
ADAM = optax.adam(1e-3)


class Pair(NamedTuple):
    """Two losses of a batch, and how their parameters start: `(key) -> params`."""

    ours: Loss
    plain: Loss
    start_ours: Callable[[jax.Array], Any]
    start_plain: Callable[[jax.Array], Any]
    batch: jax.ShapeDtypeStruct


def step_of(loss: Loss) -> Callable[..., Any]:
    """(params, optimiser state), key, batch -> the same after one step of Adam."""

    def step(state, key, ys):
        grads = jax.grad(loss)(state[0], key, ys)
        updates, moments = ADAM.update(grads, state[1])
        return optax.apply_updates(state[0], updates), moments

    return step


def start_of(start: Callable[[jax.Array], Any]) -> Callable[[jax.Array], Any]:
    def state(key):
        params = start(key)
        return params, ADAM.init(params)

    return state


def unets(dtype: Any) -> Pair:
    """32-64-64, two blocks a level, batch 32: noise prediction. Blocks are written out in both."""
    net = nets.UNet(unet.CHANNELS, blocks=2, attention=(1,), dtype=dtype, unroll=True)
    ours, plain = as_network(net), unet.Plain(dtype)
    z, gamma = jnp.zeros((1, *SHAPE)), jnp.zeros(1)
    return Pair(
        unet.loss_of(jax.vmap(ours.apply, (None, 0, 0))),
        unet.loss_of(plain.apply),
        lambda key: ours.init(key, z[0], gamma[0]),
        lambda key: plain.init(key, z, gamma),
        jax.ShapeDtypeStruct((unet.BATCH, *SHAPE), jnp.float32),
    )


class PlainBottleneck(nn.Module):
    features: int
    narrow: int
    dtype: Any

    @nn.compact
    def __call__(self, h):
        middle = (3, 3) if min(h.shape[1:3]) >= 3 else (1, 1)
        h = nn.relu(nn.GroupNorm(nets.residual.groups(h.shape[-1]), dtype=self.dtype)(h))
        h = nn.relu(nn.Conv(self.narrow, (1, 1), dtype=self.dtype)(h))
        h = nn.relu(nn.Conv(self.narrow, middle, dtype=self.dtype)(h))
        return nn.Conv(self.features, (1, 1), kernel_init=nn.initializers.zeros, dtype=self.dtype)(h)


class PlainLadder(nn.Module):
    """The bound of a batch of binary images in nats; rungs as `conv_rungs` has them, level after level."""

    scales: tuple[int, ...]
    levels: tuple[int, ...]
    channels: int
    latent: int
    dtype: Any

    @nn.compact
    def __call__(self, key, ys):
        options = {"narrow": self.channels // 4, "dtype": self.dtype}
        features, x = [], ys
        for scale, below in reversed([*zip(self.scales, (*self.scales[1:], 1), strict=True)]):
            side = (scale // below,) * 2
            x = nn.Conv(self.channels, side, side, dtype=self.dtype)(x)
            x = x + PlainBottleneck(self.channels, **options)(x)
            features.append(x)
        grid = SHAPE[0] // self.scales[0]
        start = self.param("start", nn.initializers.normal(1.0), (grid, grid, self.channels))
        h, above = jnp.broadcast_to(start, (len(ys), *start.shape)), self.scales[0]
        rate: Any = 0.0
        for scale, levels, x in zip(self.scales, self.levels, features[::-1], strict=True):
            if scale != above:
                side, above = (above // scale,) * 2, scale
                h = nn.ConvTranspose(self.channels, side, side, dtype=self.dtype)(h).astype(jnp.float32)
            for _ in range(levels):
                pri = PlainBottleneck(2 * self.latent, **options)(h)
                both = jnp.concatenate([h.astype(self.dtype), x], axis=-1)
                enc = PlainBottleneck(2 * self.latent, **options)(both)
                mean, log_std = jnp.split(pri.astype(jnp.float32), 2, axis=-1)
                delta, log_ratio = jnp.split(enc.astype(jnp.float32), 2, axis=-1)
                log_std, log_ratio = (7.0 * jnp.tanh(raw / 7.0) for raw in (log_std, log_ratio))
                key, own = jax.random.split(key)
                std = jnp.exp(log_std)
                z = mean + delta + std * jnp.exp(log_ratio) * jax.random.normal(own, mean.shape)
                shift = delta / std
                rate = rate + 0.5 * jnp.sum(shift**2 + jnp.expm1(2 * log_ratio) - 2 * log_ratio, axis=(1, 2, 3))
                h = h + nn.Conv(self.channels, (1, 1), dtype=self.dtype)(z)
                h = (h + PlainBottleneck(self.channels, **options)(h)).astype(jnp.float32)
        h = nn.relu(nn.GroupNorm(nets.residual.groups(self.channels), dtype=self.dtype)(h))
        factor = self.scales[-1]
        logits = nn.ConvTranspose(1, (2 * factor + 1,) * 2, (factor, factor), dtype=self.dtype)(h).astype(jnp.float32)
        distortion = jnp.sum(optax.sigmoid_binary_cross_entropy(logits, ys), axis=(1, 2, 3))
        return jnp.mean(rate + distortion)


def ladders(dtype: Any) -> Pair:
    """Six levels on grids of 7 x 7 and 14 x 14 with 64 channels, batch 32."""
    scales, levels, channels, latent = (4, 2), (3, 3), 64, 8
    rungs = nets.conv_rungs(SHAPE, scales=scales, levels=levels, channels=channels, latent=latent, dtype=dtype)
    model = ladder(rungs, bernoulli(nets.FromGrid(SHAPE, scales[-1], dtype=dtype)))
    plain: Any = PlainLadder(scales, levels, channels, latent, dtype)
    y = jnp.zeros(SHAPE)
    return Pair(
        _mean(model),
        lambda params, key, ys: plain.apply(params, key, ys),
        lambda key: model.init(key, y, None),
        lambda key: plain.init(key, key, y[None]),
        jax.ShapeDtypeStruct((32, *SHAPE), jnp.float32),
    )


class PlainTransformer(nn.Module):
    """Mean nats of a batch of tokens."""

    width: int
    depth: int
    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, ys):
        begin = jnp.full((len(ys), 1), WORDS, ys.dtype)
        x = nn.Embed(WORDS + 1, self.width, dtype=self.dtype)(jnp.concatenate([begin, ys[:, :-1]], axis=1))
        positions = self.param("positions", nn.initializers.normal(0.02), (LENGTH, self.width))
        x = x + positions.astype(self.dtype)[None]
        mask = nn.make_causal_mask(ys)
        for _ in range(self.depth):
            h = nn.LayerNorm(dtype=self.dtype)(x)
            x = x + nn.MultiHeadDotProductAttention(self.heads, dtype=self.dtype)(h, mask=mask)
            h = nn.gelu(nn.Dense(4 * self.width, dtype=self.dtype)(nn.LayerNorm(dtype=self.dtype)(x)))
            x = x + nn.Dense(self.width, dtype=self.dtype)(h)
        logits = nn.Dense(WORDS, dtype=self.dtype)(nn.LayerNorm(dtype=self.dtype)(x)).astype(jnp.float32)
        return jnp.mean(jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, ys), axis=1))


def transformers(dtype: Any) -> Pair:
    """Four blocks of width 256, 128 tokens out of 1,000, batch 32."""
    width, depth, heads = 256, 4, 4
    net = nets.Transformer(WORDS, width, depth=depth, heads=heads, max_length=LENGTH, dtype=dtype)
    model: Any = lift(autoregressive(net, LENGTH, WORDS))
    plain: Any = PlainTransformer(width, depth, heads, dtype)
    y = jnp.zeros(LENGTH, jnp.int32)
    return Pair(
        _mean(model),
        lambda params, key, ys: plain.apply(params, ys),
        lambda key: model.init(key, y, None),
        lambda key: plain.init(key, y[None]),
        jax.ShapeDtypeStruct((32, LENGTH), jnp.int32),
    )


def _mean(model: Any) -> Loss:
    def loss(params, key, ys):
        keys = jax.random.split(key, len(ys))
        return jnp.mean(jax.vmap(lambda key, y: model.terms(params, key, y, None).nats)(keys, ys))

    return loss


PAIRS: dict[str, Callable[[Any], Pair]] = {
    "U-Net 32-64-64": unets,
    "ladder of 6": ladders,
    "transformer of 4": transformers,
}
