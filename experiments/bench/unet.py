"""Contestants for the U-Net: one call is a few training steps on noise prediction; the last number is the last loss.

Channels 32-64-64 on 28 x 28, attention at 14 x 14 and 7 x 7, one million parameters: this library under vmap and scan,
the same network written plainly in flax, and diffusers' UNet2DModel in PyTorch.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench.ceiling import Work, work_of_training
from experiments.bench.compare import Contestants, missing
from vae_jax.core import as_network
from vae_jax.core.compiling import Jit
from vae_jax.nets import UNet
from vae_jax.nets.unet import folded, unfolded, waves

BATCH, STEPS = 32, 4
CHANNELS = (32, 64, 64)
IMAGES = BATCH * STEPS  # of one call


def contestants(pixels: np.ndarray) -> tuple[Contestants, Work]:
    """Images (n, 28, 28, 1) in 0..255, and the work of one; PyTorch's rows where diffusers is installed."""
    ys = pixels[:IMAGES].astype(np.float32).reshape(STEPS, BATCH, 28, 28, 1) / 127.5 - 1
    found = {"vae_jax": _ours(ys), "plain flax": _plain(ys)}
    if not missing("diffusers", "torch diffusers"):
        found |= {f"diffusers, {kind}": _diffusers(ys, kind == "compiled") for kind in ("eager", "compiled")}
    return found, _work(ys)


def _work(ys: np.ndarray) -> Work:
    """Of one image: that of the plain network."""
    params = jax.jit(Plain().init)(jax.random.key(0), ys[0], jnp.zeros(BATCH))
    loss = loss_of(Plain().apply)
    return work_of_training(lambda p, ys: loss(p, jax.random.key(0), ys), params, jnp.asarray(ys[0])).per(BATCH)


def _noisy(key, y) -> tuple[Any, Any, Any]:
    """A noisy image, its gamma and the noise."""
    k_gamma, k_noise = jax.random.split(key)
    gamma = jax.random.uniform(k_gamma, minval=-13.0, maxval=5.0)
    noise = jax.random.normal(k_noise, y.shape)
    return jnp.sqrt(jax.nn.sigmoid(-gamma)) * y + jnp.sqrt(jax.nn.sigmoid(gamma)) * noise, gamma, noise


def loss_of(apply):
    """(params, key, ys) -> mean squared error of the noise; `apply` takes batches."""

    def loss(params, key, ys):
        zs, gammas, noise = jax.vmap(_noisy)(jax.random.split(key, len(ys)), ys)
        return jnp.mean((apply(params, zs, gammas) - noise) ** 2)

    return loss


def _step(apply, optimizer):
    """(params, opt_state), (key, ys) -> the same after one step, the loss."""
    loss = loss_of(apply)

    def step(carry, batch):
        value, grads = jax.value_and_grad(loss)(carry[0], *batch)
        updates, opt_state = optimizer.update(grads, carry[1])
        return (optax.apply_updates(carry[0], updates), opt_state), value

    return step


def _ours(ys: np.ndarray) -> Callable[[], float]:
    """One example under vmap, the steps in a scan, as the library trains."""
    net = as_network(UNet(CHANNELS, blocks=2, attention=(1,)))
    optimizer = optax.adam(1e-3)
    params = jax.jit(net.init)(jax.random.key(0), ys[0, 0], jnp.zeros(()))
    step = _step(jax.vmap(net.apply, (None, 0, 0)), optimizer)
    run = Jit(lambda carry, keys, ys: jax.lax.scan(step, carry, (keys, ys)), donate_argnums=0)
    data = jnp.asarray(ys)
    box: list[Any] = [(params, optimizer.init(params)), jax.random.key(1)]

    def call() -> float:
        box[1], key = jax.random.split(box[1])
        box[0], losses = run(box[0], jax.random.split(key, STEPS), data)
        return float(losses[-1])

    return call


class Plain(nn.Module):
    """The same network as anybody would write it: flax's own layers, block after block."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z, gamma):
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        conv = functools.partial(nn.Conv, dtype=self.dtype)
        norm = functools.partial(nn.GroupNorm, dtype=self.dtype)
        code = nn.silu(dense(128)(nn.silu(dense(128)(waves(gamma, 128)))))

        def block(h, attention):
            features = h.shape[-1]
            x = conv(features, (3, 3))(nn.silu(norm(features // 4)(h)))
            scale, shift = jnp.split(dense(2 * features)(code)[:, None, None], 2, axis=-1)
            x = nn.silu(norm(features // 4, use_bias=False, use_scale=False)(x) * (1 + scale) + shift)
            h = h + conv(features, (3, 3), kernel_init=nn.initializers.zeros)(x)
            if attention:
                rows = norm(features // 4)(h).reshape(len(h), -1, features)
                attend = nn.MultiHeadDotProductAttention(1, dtype=self.dtype, out_kernel_init=nn.initializers.zeros)
                h = h + attend(rows).reshape(h.shape)
            return h

        h, skips = conv(CHANNELS[0], (3, 3))(z), []
        for level, features in enumerate(CHANNELS[1:]):
            for _ in range(2):
                h = block(h, level == 1)
                skips.append(h)
            h = dense(features)(folded(h, 2))
        for _ in range(4):
            h = block(h, True)
        for level in (1, 0):
            h = unfolded(dense(4 * CHANNELS[level])(h), 2)
            for _ in range(2):
                h = block((h + skips.pop()) * 0.5**0.5, level == 1)
        out = conv(1, (3, 3), kernel_init=nn.initializers.zeros)(nn.silu(norm(8)(h)))
        return out.astype(jnp.float32)


def _plain(ys: np.ndarray) -> Callable[[], float]:
    """A jitted step on batches, called in a loop: in a scan native convolutions are slower still on CPU."""
    optimizer = optax.adam(1e-3)
    params = jax.jit(Plain().init)(jax.random.key(0), ys[0], jnp.zeros(BATCH))
    step = jax.jit(_step(Plain().apply, optimizer), donate_argnums=0)
    data = jnp.asarray(ys)
    box: list[Any] = [(params, optimizer.init(params)), jax.random.key(1)]

    def call() -> float:
        for batch in data:
            box[1], key = jax.random.split(box[1])
            box[0], loss = step(box[0], (key, batch))
        return float(loss)

    return call


def _diffusers(ys: np.ndarray, compiled: bool) -> Callable[[], float]:
    import torch
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=CHANNELS,
        attention_head_dim=64,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    ).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    network = torch.compile(model) if compiled else model
    data = torch.tensor(ys).permute(0, 1, 4, 2, 3)

    def call() -> float:
        for batch in data:
            gamma, noise = torch.rand(BATCH) * 18 - 13, torch.randn_like(batch)
            signal = torch.sigmoid(-gamma)[:, None, None, None]
            z = (signal.sqrt() * batch + (1 - signal).sqrt() * noise).contiguous(memory_format=torch.channels_last)
            loss = ((network(z, gamma).sample - noise) ** 2).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return loss.item()

    return call
