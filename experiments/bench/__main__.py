"""Speed, as ratios. Contestants run in turn, in one process, so that a slow minute of the machine hits all of them.

    python -m experiments.bench                   # everything; PyTorch's rows where torch is installed
    python -m experiments.bench --rounds 9        # more rounds
    python -m experiments.bench --only start      # start-up: imports, time to the first step, memory

Each row gives the median over the rounds, their spread (min .. max), and the median of the ratio to the first row,
round by round.
"""

import dataclasses
import importlib.util
import itertools
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments.bench import codebook, em, filters, handwritten, language, unet
from vae_jax import bernoulli, data, gaussian, init_state, make_scan, make_train_step, nets, standard_normal, vae
from vae_jax.data import dynamic_binarisation

BATCH = 128
FIRST_STEP = """
import time; start = time.perf_counter()
import jax, jax.numpy as jnp, optax, resource
import vae_jax
from vae_jax import data, nets
model = vae_jax.vae(vae_jax.gaussian(nets.MLP((500,), 40)), vae_jax.standard_normal(20),
                    vae_jax.bernoulli(nets.MLP((500,), (28, 28, 1))))
optimizer = optax.adam(1e-3)
state = vae_jax.init_state(model, optimizer, jax.random.key(0), jnp.zeros((28, 28, 1)))
step = vae_jax.make_train_step(model, optimizer, preprocess=data.dynamic_binarisation())
step = jax.jit(step, donate_argnums=0)
state, metrics = step(state, jax.random.key(1), jnp.zeros((128, 28, 28, 1), jnp.uint8))
metrics["loss"].block_until_ready()
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare speeds."""

    rounds: int = 7
    """Rounds; every contestant runs once in each."""
    only: Literal["all", "fc", "conv", "start", "mixture", "hmm", "filters", "unet", "codebook", "language"] = "all"
    """What to compare."""
    data: str = "fashion_mnist"
    """Data set of 28x28 images (fashion_mnist_mini where the full one is missing)."""
    images: int | None = None
    """Images in an epoch (default: all for fc, 12,800 for conv)."""


def load_pixels(name: str) -> np.ndarray:
    """Training images (n, 28, 28, 1)."""
    try:
        return data.load(name).ys
    except FileNotFoundError as error:
        print(f"{error}\nusing fashion_mnist_mini, twelve times over")
        return np.tile(data.load("fashion_mnist_mini").ys, (12, 1, 1, 1))


def ours(encoder, decoder, pixels: np.ndarray) -> Callable[[], float]:
    """One epoch of this library: a scan over the whole data set."""
    model = vae(gaussian(encoder), standard_normal(20), bernoulli(decoder))
    optimizer = optax.adam(1e-3)
    state = init_state(model, optimizer, jax.random.key(0), jnp.zeros(pixels.shape[1:]))
    step = make_train_step(model, optimizer, preprocess=dynamic_binarisation())
    scan = jax.jit(make_scan(step, BATCH, len(pixels) // BATCH), donate_argnums=0)
    ys, key, box = jnp.asarray(pixels), jax.random.key(1), [state]

    def epoch() -> float:
        box[0], metrics = scan(box[0], key, ys)
        return float(metrics["loss"][-1])

    return epoch


def by_hand(pixels: np.ndarray) -> Callable[[], float]:
    """One epoch of the same model in plain JAX."""
    optimizer = optax.adam(1e-3)
    params = handwritten.init(jax.random.key(0), (784, 500, 20))
    run = handwritten.make_epoch(optimizer, BATCH)
    box, flat = [params, optimizer.init(params), 0], jnp.asarray(pixels.reshape(len(pixels), -1))

    def epoch() -> float:
        box[0], box[1], losses = run(box[0], box[1], jax.random.key(box[2]), flat)
        box[2] += 1
        return float(losses[-1])

    return epoch


def torch_peer(name: str, pixels: np.ndarray, **options) -> dict[str, Callable[[], float]]:
    """PyTorch's contestant, where torch is installed."""
    if importlib.util.find_spec("torch") is None:
        print("torch is not installed: its row is left out (pip install torch)")
        return {}
    from experiments.bench import torch_peers

    module = getattr(torch_peers, name)()
    return {
        f"PyTorch, eager{' channels-last' * bool(options)}": torch_peers.make_epoch(
            module, pixels[..., 0], BATCH, **options
        )
    }


def compare(
    title: str,
    contestants: dict[str, Callable[[], float]],
    count: int,
    rounds: int,
    *,
    unit: str = "images",
    result: str = "last loss",
) -> None:
    """Run the contestants in turn and print units per second, ratios to the first and what each ends with.

    `count` is how many units one call of a contestant goes through.
    """
    print(f"\n{title}, {count} {unit} a round, {rounds} rounds on {jax.devices()[0].device_kind}")
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    losses = {name: epoch() for name, epoch in contestants.items()}  # compiles
    for _ in range(rounds):
        for name, epoch in contestants.items():
            start = time.perf_counter()
            losses[name] = epoch()
            speeds[name].append(count / (time.perf_counter() - start))
    first = next(iter(contestants))
    for name, values in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(speeds[first], values, strict=True))
        print(
            f"  {name:<28} {statistics.median(values):>9,.0f} {unit}/s ({min(values):,.0f} .. {max(values):,.0f})"
            f"   {first} is {ratio:.2f}x   {result} {losses[name]:.2f}"
        )


def seconds_of(code: str, rounds: int) -> list[list[float]]:
    """What fresh processes that run this code print, round by round."""
    return [
        [
            float(word)
            for word in subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True
            ).stdout.split()
        ]
        for _ in range(rounds)
    ]


def start_up(rounds: int) -> None:
    """Import time, time to the first step, memory."""
    timed = "import time; start = time.perf_counter()\nimport {}\nprint(time.perf_counter() - start)"
    print(f"\nstart-up, {rounds} rounds of fresh processes, median (min .. max)")
    values = {}
    for name in ("jax", "jax, vae_jax"):
        values[name] = [row[0] for row in seconds_of(timed.format(name), rounds)]
    added = statistics.median(values["jax, vae_jax"]) - statistics.median(values["jax"])
    for name, times in values.items():
        print(f"  import {name:<14} {statistics.median(times):.2f} s ({min(times):.2f} .. {max(times):.2f})")
    print(f"  vae_jax adds          {added:.2f} s")
    first = seconds_of(FIRST_STEP, rounds)
    times, memory = [row[0] for row in first], [row[1] for row in first]
    print(f"  first step, import included {statistics.median(times):.2f} s ({min(times):.2f} .. {max(times):.2f})")
    print(f"  peak memory of that process {statistics.median(memory):.0f} MiB")


def main(config: Config) -> None:
    """Print the tables."""
    if config.only in ("all", "start"):
        start_up(min(config.rounds, 5))
    if config.only == "start":
        return
    if config.only in ("all", "codebook"):
        title = "Codebook of 1,024 codes, vectors of 64 numbers: look-up and moving-average update, float32"
        compare(
            title, codebook.contestants(), codebook.VECTORS, config.rounds, unit="vectors", result="mean squared error"
        )
    if config.only in ("all", "language"):
        title = "Language model, LSTM of 256, vocabulary of 8,000, batches of 32 sentences of 20"
        compare(title, language.contestants(), language.TOKENS, config.rounds, unit="tokens")
    if config.only in ("all", "filters"):
        for count, parallel in itertools.product((1, filters.SEQUENCES), (False, True)):
            title = f"Kalman filter in {'parallel' if parallel else 'steps'}, 4 states, 6 numbers a step, float32"
            run = filters.contestants(count, parallel=parallel)
            compare(title, run, count * filters.LENGTH, config.rounds, unit="steps", result="mean ln P")
    if config.only in ("codebook", "language", "filters"):
        return
    pixels = load_pixels(config.data)
    if config.only in ("all", "fc"):
        some = pixels[: config.images]
        contestants = {
            "vae_jax": ours(nets.MLP((500,), 40), nets.MLP((500,), (28, 28, 1)), some),
            "plain JAX by hand": by_hand(some),
        }
        contestants |= torch_peer("FullyConnected", some)
        compare("FC-VAE 784-500-20, dynamic binarisation", contestants, len(some) // BATCH * BATCH, config.rounds)
    if config.only in ("all", "conv"):
        some = pixels[: config.images or 12_800]
        channels = (32, 64, 128)
        contestants = {"vae_jax": ours(nets.ConvEncoder(channels, 40), nets.ConvDecoder(channels, (28, 28, 1)), some)}
        contestants |= torch_peer("Convolutional", some, channels_last=True)
        compare("Convolutional VAE 32-64-128", contestants, len(some) // BATCH * BATCH, config.rounds)
    if config.only in ("all", "unet"):
        title = "U-Net 32-64-64 on 28x28, attention at 14 and 7, noise prediction, batch 32"
        compare(title, unet.contestants(pixels), unet.IMAGES, config.rounds)
    if config.only in ("all", "mixture"):
        some = em.projected(pixels[: config.images], 50)
        compare(
            "EM of a mixture of 50 Gaussians with full covariances in 50 dimensions, float32",
            em.mixtures(some, 50),
            len(some) * em.ITERATIONS,
            config.rounds,
            unit="rows",
            result="mean ln P",
        )
    if config.only in ("all", "hmm"):
        ys, begin = em.sequences(200, 500, 8, 32)
        compare(
            "Baum-Welch of a hidden Markov model of 8 states and 32 symbols on 200 sequences of 500, float32",
            em.hidden_markov_models(ys, begin),
            ys.size * em.ITERATIONS,
            config.rounds,
            unit="symbols",
            result="mean ln P",
        )
    print(f"\npeak memory of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main(tyro.cli(Config))
