"""Rows that are mostly zeros: counts of cells, words of texts."""

import numpy as np
from jax.typing import ArrayLike

from vae_jax.data.sources import between, opened

AT_ONCE = 2**22  # columns that are looked at, of those in a file


class SparseRows:
    """Rows that are mostly zeros, kept as their other entries (CSR), for `vae_jax.data.source`; each is read dense.

    Args:
        values: (entries,) whole numbers, row by row; an np.memmap is read from its file.
        columns: (entries,) where in its row each is.
        starts: (n + 1,) where each row begins, and the last one ends.
        width: numbers of a row.

    Raises:
        ValueError: arrays that do not fit each other.

    Example:
        >>> rows = SparseRows([5, 7], [1, 0], [0, 1, 1, 2], 3)
        >>> len(rows), rows[0].tolist(), rows[1].tolist()
        (3, [0, 5, 0], [0, 0, 0])
    """

    def __init__(self, values: ArrayLike, columns: ArrayLike, starts: ArrayLike, width: int):
        self.values, self.columns = opened(_array(values)), opened(_array(columns))
        self.starts, self.width = np.asarray(starts), width
        ends = self.starts[[0, -1]].tolist() if self.starts.ndim == 1 and len(self.starts) else []
        if ends != [0, len(self.values)] or self.values.shape != self.columns.shape or np.any(np.diff(self.starts) < 0):
            raise ValueError(
                f"sparse rows want values and columns of one length and starts from 0 to it, never falling; got shapes "
                f"{self.values.shape}, {self.columns.shape} and {self.starts.shape}"
            )
        for first in range(0, len(self.columns), AT_ONCE):
            some = between(self.columns, first, min(first + AT_ONCE, len(self.columns)))
            if not (some.min() >= 0 and some.max() < width):
                raise ValueError(f"columns are from 0 to {width - 1}; got {some.min()} to {some.max()}")

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, place: int) -> np.ndarray:
        """(width,) of one row, int32."""
        row = np.zeros(self.width, np.int32)
        first, last = int(self.starts[place]), int(self.starts[place + 1])
        row[between(self.columns, first, last)] = between(self.values, first, last)
        return row


def _array(x: ArrayLike) -> np.ndarray:
    return x if isinstance(x, np.ndarray) else np.asarray(x)
