"""Contestants for VAEs of images: one call is an epoch with Adam in batches of 128; the last number is the last loss.

784-500-20 and 32-64-128: this library, the same by hand in plain JAX, numpyro's SVI, pythae's trainer, and PyTorch,
eager and compiled. All but pythae draw the binary images anew in each step.
"""

import statistics
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench import handwritten
from experiments.bench.ceiling import Work, work_of_model
from experiments.bench.compare import Contestants, missing, seconds_of
from vae_jax import (
    Model,
    bernoulli,
    data,
    fit,
    gaussian,
    init_state,
    make_scan,
    make_train_step,
    nets,
    standard_normal,
    vae,
)
from vae_jax.data import dynamic_binarisation

BATCH = 128
CHANNELS = (32, 64, 128)
SIZES = (784, 500, 20)


def load_pixels(name: str) -> np.ndarray:
    """Training images (n, 28, 28, 1), uint8."""
    try:
        return data.load(name).ys
    except FileNotFoundError as error:
        print(f"{error}\nusing fashion_mnist_mini, twelve times over")
        return np.tile(data.load("fashion_mnist_mini").ys, (12, 1, 1, 1))


def fully_connected_model(hidden: int = 500) -> Model:
    """784-500-20 and back."""
    return vae(gaussian(nets.MLP((hidden,), 40)), standard_normal(20), bernoulli(nets.MLP((hidden,), (28, 28, 1))))


def convolutional_model() -> Model:
    """32-64-128 and back."""
    decoder = nets.ConvDecoder(CHANNELS, (28, 28, 1))
    return vae(gaussian(nets.ConvEncoder(CHANNELS, 40)), standard_normal(20), bernoulli(decoder))


def fully_connected(pixels: np.ndarray) -> Contestants:
    """The default VAE, by everything that trains it."""
    model = fully_connected_model()
    found = {"vae_jax": scan(model, pixels)}
    found |= {"plain JAX by hand": _by_hand(pixels), "numpyro's SVI": _numpyro(pixels)}
    found |= _torch("FullyConnected", pixels)
    if not missing("pythae", "pythae"):
        found["pythae's trainer"] = _pythae(pixels)
    return found


def convolutional(pixels: np.ndarray) -> Contestants:
    """The convolutional VAE."""
    return {"vae_jax": scan(convolutional_model(), pixels)} | _torch("Convolutional", pixels, channels_last=True)


def work(model: Model) -> Work:
    """Of one image in training."""
    return work_of_model(model, jnp.zeros((BATCH, 28, 28, 1))).per(BATCH)


def scan(model: Model, pixels: np.ndarray, batch: int = BATCH) -> Callable[[], float]:
    """An epoch as one compiled loop over data on the device, which is what `fit` runs."""
    optimizer = optax.adam(1e-3)
    step = make_train_step(model, optimizer, preprocess=dynamic_binarisation())
    run = jax.jit(make_scan(step, batch, len(pixels) // batch), donate_argnums=0)
    ys, key = jnp.asarray(pixels), jax.random.key(1)
    box = [init_state(model, optimizer, jax.random.key(0), jnp.zeros(pixels.shape[1:]))]

    def epoch() -> float:
        box[0], metrics = run(box[0], key, ys)
        return float(metrics["loss"][-1])

    return epoch


def host_share(pixels: np.ndarray, rounds: int) -> float:
    """What `fit` does besides its compiled loop, as a share of its time: the median over rounds of both in turn."""
    model, optimizer, how = fully_connected_model(), optax.adam(1e-3), dynamic_binarisation()
    alone, steps = scan(model, pixels), len(pixels) // BATCH
    alone()
    shares = []
    for _ in range(rounds):
        fitted = fit(
            model,
            optimizer,
            pixels,
            key=jax.random.key(0),
            epochs=4,
            batch_size=BATCH,
            preprocess=how,
            steps_per_call=steps,
            progress=False,
        )
        seconds, _ = seconds_of(alone)
        shares.append(1 - fitted.images_per_second * seconds / (steps * BATCH))
    return statistics.median(shares)


def _by_hand(pixels: np.ndarray) -> Callable[[], float]:
    """The same model in plain JAX."""
    optimizer = optax.adam(1e-3)
    params = handwritten.init(jax.random.key(0), SIZES)
    run = handwritten.make_epoch(optimizer, BATCH)
    box, flat = [params, optimizer.init(params), 0], jnp.asarray(pixels.reshape(len(pixels), -1))

    def epoch() -> float:
        box[0], box[1], losses = run(box[0], box[1], jax.random.key(box[2]), flat)
        box[2] += 1
        return float(losses[-1])

    return epoch


class _Layers(nn.Module):
    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        *hidden, out = self.sizes
        for size in hidden:
            x = nn.relu(nn.Dense(size)(x))
        return nn.Dense(out)(x)


def _numpyro(pixels: np.ndarray) -> Callable[[], float]:
    """The same model in numpyro, its updates in a scan."""
    import numpyro
    from numpyro import distributions as dist
    from numpyro.contrib.module import flax_module
    from numpyro.infer import SVI, Trace_ELBO

    pixel_count, hidden, latent = SIZES

    def model(ys):
        decoder = flax_module("decoder", _Layers((hidden, pixel_count)), input_shape=(1, latent))
        with numpyro.plate("images", len(ys)):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([latent]).to_event(1))
            numpyro.sample("y", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=ys)

    def guide(ys):
        encoder = flax_module("encoder", _Layers((hidden, 2 * latent)), input_shape=(1, pixel_count))
        mean, log_std = jnp.split(encoder(ys), 2, axis=-1)
        with numpyro.plate("images", len(ys)):
            numpyro.sample("z", dist.Normal(mean, jnp.exp(log_std)).to_event(1))

    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), Trace_ELBO())
    n = len(pixels) // BATCH

    def step(carry, inputs):
        state, pixels = carry
        key, chosen = inputs
        state, loss = svi.update(state, jax.random.bernoulli(key, pixels[chosen] / 255.0).astype(jnp.float32))
        return (state, pixels), loss / BATCH

    @jax.jit
    def run(state, key, pixels):
        k_order, k_steps = jax.random.split(key)
        order = jax.random.permutation(k_order, len(pixels))[: n * BATCH].reshape(n, BATCH)
        (state, _), losses = jax.lax.scan(step, (state, pixels), (jax.random.split(k_steps, n), order))
        return state, losses

    flat = jnp.asarray(pixels.reshape(len(pixels), -1))
    box: list[Any] = [jax.jit(svi.init)(jax.random.key(0), jnp.zeros((BATCH, pixel_count))), 0]

    def epoch() -> float:
        box[0], losses = run(box[0], jax.random.key(box[1]), flat)
        box[1] += 1
        return float(losses[-1])

    return epoch


def _torch(name: str, pixels: np.ndarray, **options: Any) -> Contestants:
    """PyTorch's contestants: the usual loop, and the same with the loss compiled."""
    if missing("torch", "torch"):
        return {}
    from experiments.bench import torch_peers

    laid = " channels-last" * bool(options)
    return {
        f"PyTorch, {kind}{laid}": torch_peers.make_epoch(
            getattr(torch_peers, name)(), pixels[..., 0], BATCH, compiled=kind == "compiled", **options
        )
        for kind in ("eager", "compiled")
    }


def _pythae(pixels: np.ndarray) -> Callable[[], float]:
    """pythae's own model, data set and trainer on images binarised once; the number is the epoch's mean loss."""
    from experiments.bench import torch_peers

    return torch_peers.make_pythae_epoch(pixels[..., 0], BATCH)
