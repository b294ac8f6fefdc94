"""Numbers of whole splits of sentences: without the work on padding, and as a perplexity."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from vae_jax.core.model import Model, Params
from vae_jax.data.check import check_data
from vae_jax.data.preprocess import identity
from vae_jax.evaluation.whole_split import Evaluation, Mean, check_options, evaluation_of, over_split, values_of
from vae_jax.text.bucketing import check_columns, lengths, widths_of


def evaluate_by_length(
    build: Callable[[int], Model],
    params: Params,
    key: Array,
    ys: Any,
    columns: Sequence[int],
    cs: Any = None,
    *,
    k: int = 0,
    samples: int = 1,
    batch_size: int = 100,
    at_once: int = 4096,
    progress: bool = False,
    mesh: Mesh | None = None,
) -> Evaluation:
    """`vae_jax.evaluation.evaluate`, in batches of like length and on as many columns as their sentences need.

    The numbers are those of `evaluate(build(T), params, key, ys, ...)`, noise and order included.

    Args:
        build: from T to the model of sentences (T,). `functools.cache(build)` keeps what was compiled.
        ys: (n, T).
        columns: where to cut, as in `cut_to_length`.
        k, samples, batch_size, at_once, progress, mesh: as in `evaluate`.

    Raises:
        ValueError: as `evaluate` and `cut_to_length` do.
    """
    check_columns(columns)
    ys = np.asarray(ys)
    whole = build(ys.shape[-1])
    ys, cs = check_data(whole, ys, cs, identity(), params=params)
    check_options(whole, k, samples, at_once, batch_size)
    batch_size = min(batch_size, len(ys))
    chunk = max(1, at_once // batch_size)
    widths = widths_of(columns, ys.shape[-1])
    length = lengths(ys)
    order = np.argsort(length, kind="stable")
    parts: list[Any] = []
    for shorter, width in itertools.pairwise((0, *widths)):
        places = order[(shorter < length[order]) & (length[order] <= width)]
        if len(places):
            values = values_of(build(width), identity(), k, samples, chunk, cs is not None)
            found = over_split(
                values,
                params,
                key,
                ys[places, :width],
                jax.tree.map(lambda x, places=places: np.asarray(x)[places], cs),
                batch_size=batch_size,
                progress=progress,
                doing=f"evaluating {width} columns",
                mesh=mesh,
                indices=places,
            )
            parts.append(found)
    back = np.argsort(order)
    by_place = jax.tree.map(lambda *found: np.concatenate(found)[back], *parts)
    return evaluation_of(by_place, k, ys.shape[-1], identity())


def perplexity(nats: Any, tokens: Any) -> Mean:
    """exp(total nats / total words), the ends of the sentences counted as words, and its standard error.

    What it is the perplexity of is what the nats are of: minus the ELBO gives an upper bound, the importance-weighted
    bound a lower one of that. The error is that of a ratio of two means, for sentences drawn at random, carried
    through exp (Cochran 1977, equation 2.46).

    Args:
        nats: (n,) -ln P(y) of each sentence, or a bound on it.
        tokens: (n,) `lengths` of the sentences.

    Raises:
        ValueError: shapes that differ, no sentence, or a sentence of no words.
    """
    total, count = np.asarray(nats, np.float64), np.asarray(tokens, np.float64)
    if total.ndim != 1 or total.shape != count.shape or total.size == 0 or count.min() < 1:
        raise ValueError(
            f"perplexity takes the nats and the words (the end counts) of each sentence; got shapes {total.shape} and "
            f"{count.shape}" + (f", the fewest words {count.min():g}" if count.size else "")
        )
    n, ratio = len(total), total.sum() / count.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = np.sqrt(np.sum((total - ratio * count) ** 2) * n / np.float64(n - 1)) / count.sum()
    return Mean(float(np.exp(ratio)), float(np.exp(ratio) * spread))
