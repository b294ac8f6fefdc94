"""Cells that are simulated from a known truth: types, batches, which genes differ."""

from typing import NamedTuple

import numpy as np

SHARE_OF_MARKERS = 0.1  # of the genes, that a type has otherwise than the others


class Cells(NamedTuple):
    """Counts of cells, and what they were drawn from.

    Fields:
        ys: (n, genes) int32.
        types, batches: (n,) whole numbers.
        log_shares: (types, genes) ln of the share that a gene has of a cell's molecules, in batch 0.
    """

    ys: np.ndarray
    types: np.ndarray
    batches: np.ndarray
    log_shares: np.ndarray


def simulated_cells(
    n: int, *, genes: int = 500, types: int = 5, batches: int = 2, depth: float = 2000.0, seed: int = 0
) -> Cells:
    """n cells: negative binomial counts about total * share, dispersion 0.2, totals log-normal about `depth`.

    Each type has a tenth of the genes higher or lower, by a factor of 2 to 8; each batch moves all genes a little.

    Raises:
        ValueError: numbers that are not positive.

    Example:
        >>> simulated_cells(3, genes=20).ys.shape
        (3, 20)
    """
    if min(n, genes, types, batches) < 1 or not depth > 0:
        raise ValueError(f"want positive numbers; got n={n}, genes={genes}, types={types}, {batches=}, depth={depth}")
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 1.5, genes)
    own = rng.random((types, genes)) < SHARE_OF_MARKERS
    change = own * rng.choice([-1, 1], (types, genes)) * rng.uniform(np.log(2), np.log(8), (types, genes))
    log_shares = _log_shares(base[None] + change)
    of_batch = np.concatenate([np.zeros((1, genes)), rng.normal(0, 0.2, (batches - 1, genes))])
    kinds, places = rng.integers(types, size=n), rng.integers(batches, size=n)
    totals = depth * np.exp(rng.normal(0, 0.4, n))
    ys = np.empty((n, genes), np.int32)
    for start in range(0, n, 10_000):  # a part at a time: counts alone may be many
        cut = slice(start, start + 10_000)
        means = totals[cut, None] * np.exp(_log_shares(log_shares[kinds[cut]] + of_batch[places[cut]]))
        ys[cut] = rng.poisson(means * rng.gamma(5.0, 0.2, means.shape))
    return Cells(ys, kinds, places, log_shares)


def _log_shares(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
