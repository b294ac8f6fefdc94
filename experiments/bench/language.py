"""Contestants for language models: one call trains on some batches of sentences; the last number is the last loss.

A vocabulary of 8,000 words, sentences of 20, embeddings of 128, an LSTM of 256, Adam: this library under vmap and scan,
and the same model in PyTorch, eager.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench.ceiling import Work, work_of_model
from experiments.bench.compare import Contestants, missing
from vae_jax import Model, init_state, make_scan, make_train_step
from vae_jax.core import lift
from vae_jax.nets import LSTM
from vae_jax.parts import autoregressive

WORDS, LENGTH, EMBED, HIDDEN = 8_000, 20, 128, 256
BATCH, STEPS = 32, 10
TOKENS = BATCH * STEPS * LENGTH  # of one call


def contestants() -> tuple[Contestants, Work]:
    """Who trains, and the work of one token; PyTorch's rows where torch is installed."""
    ys = sentences(BATCH * STEPS)
    found = {"vae_jax": _ours(ys)}
    if not missing("torch", "torch"):
        found |= {f"PyTorch, {kind}": _torch(ys, kind == "compiled") for kind in ("eager", "compiled")}
    return found, work_of_model(language_model(), jnp.asarray(ys[:BATCH])).per(BATCH * LENGTH)


def language_model(length: int = LENGTH) -> Model:
    """Of sentences of that many words at most."""
    return lift(autoregressive(LSTM(WORDS, EMBED, HIDDEN), length, WORDS, end=0))


def sentences(n: int) -> np.ndarray:
    """(n, LENGTH): words of a Zipf distribution, 0 after the end, full length only now and then."""
    rng = np.random.default_rng(0)
    ys = np.minimum(rng.zipf(1.2, (n, LENGTH)), WORDS - 1).astype(np.int32)
    ends = rng.integers(LENGTH // 2, LENGTH + 1, n)
    return np.where(np.arange(LENGTH)[None] < ends[:, None], ys, 0)


def _ours(ys: np.ndarray) -> Callable[[], float]:
    model, optimizer = language_model(), optax.adam(1e-3)
    data, key = jnp.asarray(ys), jax.random.key(1)
    box = [init_state(model, optimizer, jax.random.key(0), data[0])]
    scan = jax.jit(make_scan(make_train_step(model, optimizer), BATCH, STEPS), donate_argnums=0)

    def call() -> float:
        box[0], metrics = scan(box[0], key, data)
        return float(metrics["loss"][-1])

    return call


def _torch(ys: np.ndarray, compiled: bool) -> Callable[[], float]:
    import torch
    from torch import nn

    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(WORDS + 1, EMBED)
            self.lstm = nn.LSTM(EMBED, HIDDEN, batch_first=True)
            self.last = nn.Linear(HIDDEN, WORDS)

        def forward(self, read):
            return self.last(self.lstm(self.embedding(read))[0])

    torch.manual_seed(0)
    model = Language()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    network = torch.compile(model) if compiled else model
    data = torch.tensor(ys, dtype=torch.long)
    begin = torch.full((BATCH, 1), WORDS)

    def call() -> float:
        order = torch.randperm(len(data))
        for start in range(0, len(data), BATCH):
            y = data[order[start : start + BATCH]]
            logits = network(torch.cat([begin, y[:, :-1]], dim=1))
            ends = y == 0
            counts = ends.cumsum(1) - ends.long() == 0
            nats = nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none")
            loss = (nats * counts.flatten()).sum() / BATCH
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return loss.item()

    return call
