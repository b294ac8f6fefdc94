"""The gaps of a table, filled in by a model of its rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import Array

from vae_jax.core.model import Model, Params
from vae_jax.data.columns import Column, Columns
from vae_jax.evaluation.imputation import Imputed, impute_all


def fill_in(
    table: Columns, model: Model, params: Params, key: Array, *, n: int = 50, k: int = 1000, progress: bool = False
) -> dict[str, np.ndarray]:
    """The table as it was read, all its columns, with a guess where an entry is missing, in the table's own units.

    Numbers and counts by their mean given what is seen of the row, classes by the most frequent of n draws. For several
    draws of each, to be analysed one by one, see `vae_jax.evaluation.impute_all`.

    Args:
        table: rows with gaps, by `load_columns`, or others of the same columns by `again`.
        model, params: of rows of these columns, by `table_vae`.
        n: draws.
        k: importance samples of the latent for each row.
        progress: show a bar.

    Raises:
        ValueError: n or k below 1; a model that does not say what is missing.
    """
    found = impute_all(model, params, key, table.ys, n=n, k=k, progress=progress)
    return table.filled(guesses(table.columns, found))


def guesses(columns: Sequence[Column], found: Imputed) -> dict[str, Any]:
    """(n,) of each column, in the model's units: the mean, of classes the most frequent draw."""
    return {
        column.name: _modes(found.draws[column.name]) if column.kind == "class" else found.mean[column.name]
        for column in columns
    }


def _modes(draws: np.ndarray) -> np.ndarray:
    """(n,) the most frequent of (n, draws) classes."""
    return np.array([np.bincount(row.astype(int)).argmax() for row in draws], float)
