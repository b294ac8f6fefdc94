"""Sentences of like length in one batch, and no work on padding: nothing of this changes a number.

`by_length` orders an epoch, `cut_to_length` trains on as many columns as the longest sentence of the batch needs. Both
are compiled: `fit(..., order=by_length(ys, batch_size), objective=cut_to_length(build, (16, 32)))`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax.core import sentences
from vae_jax.core.model import Model, Terms
from vae_jax.core.numbers import is_whole
from vae_jax.core.objectives import Objective, elbo
from vae_jax.text.vocabulary import END
from vae_jax.training.step import Order


def lengths(ys: Any) -> Any:
    """How many words each row has, its end included; a row without an end was cut off, and all of it counts.

    Args:
        ys: (..., T) numbers of words, a numpy or a jax array.

    Returns:
        (...,) integers from 1 to T, an array of the same kind.

    Example:
        >>> lengths(np.array([[5, 7, 0, 0], [2, 3, 4, 5]])).tolist()
        [3, 4]
    """
    return sentences.lengths(ys, END)


def by_length(ys: Any, batch_size: int, *, window: int = 50) -> Order:
    """An order of the data for `fit`, with sentences of like length in each batch.

    The data in a random order are cut into windows of some batches, each window is sorted by length, and then the
    batches come in a random order. So every epoch sees other batches.

    Args:
        ys: (n, T), the training data.
        batch_size: as in `fit`.
        window: batches that are sorted together; more of them waste less on padding and are less random.

    Returns:
        `(key, epoch, size, n) -> (size,)` places in the data, a pure function that compiles.

    Raises:
        ValueError: batch_size or window below 1; when called, other data or another batch size than these.
    """
    if not is_whole(batch_size) or not is_whole(window):
        raise ValueError(f"want batch_size and window of at least 1; got {batch_size} and {window}: whole numbers")
    length = lengths(np.asarray(ys))

    def order(key, epoch, size, n):
        if n != len(length) or size % batch_size:
            raise ValueError(
                f"by_length was made for {len(length)} sentences in batches of {batch_size}; asked for {size} of {n}"
            )
        k_data, k_batches = jax.random.split(jax.random.fold_in(key, epoch))
        places = jax.random.permutation(k_data, n)[:size]
        in_window = jnp.arange(size) // (window * batch_size)
        batches = places[jnp.lexsort((jnp.asarray(length)[places], in_window))].reshape(-1, batch_size)
        return jax.random.permutation(k_batches, batches).ravel()

    return order


def cut_to_length(build: Callable[[int], Model], columns: Sequence[int], objective: Objective = elbo()) -> Objective:
    """The objective on as many columns as the longest sentence of the batch needs.

    What is compiled is one branch for each number of columns, and the whole width as the last. Padding costs no nats,
    so loss and gradient are those of the whole width. Of the terms only the sums are kept: all else may have the shape
    of a sentence.

    Args:
        build: from T to the model of sentences (T,); all of them on the same parameters.
        columns: where to cut, for instance (8, 16, 32); numbers beyond the data's width are not used.
        objective: what is minimised, `elbo()` by default.

    Raises:
        ValueError: no columns, or some below 1.
    """
    check_columns(columns)

    def cut(model, params, keys, ys, cs, step):
        del model
        widths = widths_of(columns, ys.shape[-1])

        def at(width, params, ys):
            loss, terms = objective(build(width), params, keys, ys[:, :width], cs, step)
            return loss, Terms(terms.distortion, terms.rate, terms.penalty, terms.stats)

        branches = [functools.partial(at, width) for width in widths]
        return jax.lax.switch(branch_of(widths, lengths(ys).max()), branches, params, ys)

    return cut


def check_columns(columns: Any) -> None:
    """Raise a ValueError unless these are lengths to cut at."""
    if np.ndim(columns) != 1 or len(columns) == 0 or not all(map(is_whole, columns)):
        raise ValueError(
            f"columns are the lengths to cut at, at least one and all positive; got {columns}: whole numbers are wanted"
        )


def widths_of(columns: Sequence[int], whole: int) -> list[int]:
    """The numbers of columns in use on data of a width, rising, that width the last."""
    return sorted({*(width for width in columns if width < whole), whole})


def branch_of(widths: Sequence[int], longest: Any) -> Array:
    """The place of the smallest width that holds the longest sentence."""
    return jnp.searchsorted(jnp.asarray(widths), longest)
