"""Contestants for a codebook: one call looks up the nearest code of every vector and moves the codes to running means.

65,536 vectors of 64 numbers, 1,024 codes, no gradient: this library, plain JAX with XLA's argmin and scatter-add, and
vector-quantize-pytorch. The number each ends with is the mean squared error per number of its last look-up; the codes
start as the same rows everywhere.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.ceiling import Work
from experiments.bench.compare import Contestants, missing
from vae_jax.core.model import average
from vae_jax.vq import codebook, ema

VECTORS = 65_536  # of one call
DECAY = 0.99


def contestants(n: int = VECTORS, d: int = 64, k: int = 1024) -> tuple[Contestants, Work]:
    """n vectors of d numbers, k codes, and the work of one vector: a product with each code, and to be read."""
    rng = np.random.default_rng(0)
    middles = rng.normal(size=(2 * k, d)).astype(np.float32)
    rows = middles[rng.integers(2 * k, size=n)] + 0.5 * rng.normal(size=(n, d)).astype(np.float32)
    start = rows[:k]
    found = {"vae_jax": _ours(rows, start), "plain JAX with scatter-add": _plain(rows, start)}
    if not missing("vector_quantize_pytorch", "vector-quantize-pytorch"):
        found["vector-quantize-pytorch"] = _torch(rows, start)
    return found, Work(2 * k * d, 4 * d)


def _ours(rows: np.ndarray, start: np.ndarray) -> Callable[[], float]:
    """What a training step does with the codebook, revival included."""
    quantiser = codebook(*start.shape, update=ema(DECAY))
    params = {**quantiser.init(jax.random.key(0), rows), "codes": jnp.asarray(start)}
    count = params["running"]["count"]
    params["running"]["total"] = count[:, None] * start

    @jax.jit
    def step(params, rows):
        found = quantiser.quantise(params, rows)
        stats = average(jax.tree.map(lambda x: x[None], found.stats))
        return quantiser.maximise(params, stats), jnp.mean((found.vectors - rows) ** 2)

    return _stepping(step, params, rows)


def _plain(rows: np.ndarray, start: np.ndarray) -> Callable[[], float]:
    """The same as anybody would write it, without revival."""

    @jax.jit
    def step(state, rows):
        codes, counts, totals = state
        index = jnp.argmin(jnp.sum(codes**2, axis=1)[None] - 2 * rows @ codes.T, axis=1)
        counts = DECAY * counts + (1 - DECAY) * jnp.zeros_like(counts).at[index].add(1.0)
        totals = DECAY * totals + (1 - DECAY) * jnp.zeros_like(totals).at[index].add(rows)
        return (totals / counts[:, None], counts, totals), jnp.mean((codes[index] - rows) ** 2)

    counts = jnp.full(len(start), len(rows) / len(start))
    return _stepping(step, (jnp.asarray(start), counts, counts[:, None] * start), rows)


def _stepping(step, state, rows: np.ndarray) -> Callable[[], float]:
    """One more step at each call."""
    data, box = jnp.asarray(rows), [state]

    def call() -> float:
        box[0], error = step(box[0], data)
        return float(error)

    return call


def _torch(rows: np.ndarray, start: np.ndarray) -> Callable[[], float]:
    import torch
    from vector_quantize_pytorch import VectorQuantize

    k, d = start.shape
    layer = VectorQuantize(dim=d, codebook_size=k, decay=DECAY, commitment_weight=0.0).train()
    with torch.no_grad():
        layer._codebook.embed.copy_(torch.tensor(start)[None])
        layer._codebook.embed_avg.copy_(torch.tensor(start)[None])
    data = torch.tensor(rows)[None]

    def call() -> float:
        with torch.no_grad():
            quantised, _, _ = layer(data)
        return float(((quantised - data) ** 2).mean())

    return call
