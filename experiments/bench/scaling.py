"""How time and memory grow: with the batch, the width, the examples on disk, importance samples, and sentences' length.

Each point is a process of its own, so that its peak of memory is its own. An exponent of 1 is growth in proportion.
"""

import concurrent.futures
import functools
import math
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax

from experiments.bench import image_vaes, language
from vae_jax import evaluate, fit, init_state, make_scan, make_train_step
from vae_jax.data import dynamic_binarisation


class Axis(NamedTuple):
    """What grows, in which values, and what is timed: `(value) -> seconds`."""

    name: str
    values: tuple[int, ...]
    seconds: Callable[[int], float]
    of: str


def scaling() -> None:
    """Print a table for each axis, and its exponents."""
    for axis in AXES:
        print(f"\nseconds and peak memory of {axis.of}, by {axis.name}")
        points = [_alone(axis, value) for value in axis.values]
        for value, (seconds, memory) in zip(axis.values, points, strict=True):
            print(f"  {value:>12,} {seconds:>12.4f} s {memory:>8,.0f} MiB", flush=True)
        seconds, memory = (_exponent(axis.values, column) for column in zip(*points, strict=True))
        print(f"  exponents    {seconds:>12.2f} {memory:>10.2f}")


def _alone(axis: Axis, value: int) -> tuple[float, float]:
    """(seconds, MiB) of this point, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measured, AXES.index(axis), value).result()


def _measured(index: int, value: int) -> tuple[float, float]:
    seconds = AXES[index].seconds(value)
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _exponent(values: tuple[int, ...], column: tuple[float, ...]) -> float:
    """The slope in logarithms."""
    x, y = np.log(np.asarray(values, float)), np.log(np.asarray(column))
    return float(np.polyfit(x, y, 1)[0])


def _median(call: Callable[[], object], rounds: int = 3) -> float:
    call()  # compiles
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _pixels(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 28, 28, 1), dtype=np.uint8)


def _by_batch(batch: int) -> float:
    return _median(image_vaes.scan(image_vaes.fully_connected_model(), _pixels(4 * batch), batch)) / 4


def _by_width(width: int) -> float:
    return _median(image_vaes.scan(image_vaes.fully_connected_model(width), _pixels(20 * image_vaes.BATCH))) / 20


def _by_examples(n: int) -> float:
    """A step on batches of 1,024 from a file, whose pages are zeros that take no place on the disk."""
    steps = 40
    with tempfile.TemporaryDirectory() as folder:
        ys = np.memmap(Path(folder) / "ys", np.uint8, "w+", shape=(n, 28, 28, 1))
        train = functools.partial(
            fit,
            image_vaes.fully_connected_model(),
            optax.adam(1e-3),
            ys,
            key=jax.random.key(0),
            batch_size=1024,
            preprocess=dynamic_binarisation(),
            record_every=steps,
            progress=False,
        )
        return 1024 / train(steps=4 * steps).images_per_second


def _by_samples(k: int) -> float:
    model, ys = image_vaes.fully_connected_model(), _pixels(100)
    params = jax.jit(model.init)(jax.random.key(0), np.zeros((28, 28, 1), np.float32), None)
    how = dynamic_binarisation()
    return _median(lambda: evaluate(model, params, jax.random.key(1), ys, preprocess=how, k=k))


def _by_length(length: int) -> float:
    ys = np.random.default_rng(0).integers(1, language.WORDS, (4 * language.BATCH, length)).astype(np.int32)
    model, optimizer = language.language_model(length), optax.adam(1e-3)
    scan = jax.jit(make_scan(make_train_step(model, optimizer), language.BATCH, 4), donate_argnums=0)
    box = [init_state(model, optimizer, jax.random.key(0), ys[0])]

    def call() -> None:
        box[0], metrics = scan(box[0], jax.random.key(1), ys)
        metrics["loss"].block_until_ready()

    return _median(call) / 4


def _powers(low: int, high: int, factor: int) -> tuple[int, ...]:
    return tuple(low * factor**i for i in range(1 + round(math.log(high / low, factor))))


AXES = (
    Axis("images in a batch", _powers(32, 4096, 2), _by_batch, "a step of the FC-VAE"),
    Axis("hidden units", _powers(64, 4096, 4), _by_width, "a step of the FC-VAE, batch 128"),
    Axis("examples in a file", _powers(10_000, 10_000_000, 10), _by_examples, "a step of the FC-VAE, batch 1,024"),
    Axis("importance samples", _powers(10, 10_000, 10), _by_samples, "an evaluation of 100 images by the FC-VAE"),
    Axis("words in a sentence", _powers(16, 256, 2), _by_length, "a step of the language model, batch 32"),
)
