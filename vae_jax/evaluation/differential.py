"""Which genes differ between two groups of cells: posterior probabilities, and a list with few false discoveries.

Of two cells, one from each group, the change of a gene is log2 of the quotient of its shares; its posterior follows
from draws of z (Lopez et al. 2018; Boyeau et al. 2019). A gene differs where the change is beyond `delta` either way,
with probability p. The list takes the most probable genes first, as many as keep the expected part of false ones, the
mean of 1 - p, at `rate` (Newton et al. 2004).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax.core.numbers import is_number, is_whole

SMALLEST = 1e-8  # share below which genes are equal: a change between two of nothing is none


class Differential(NamedTuple):
    """Of each gene (genes,).

    Fields:
        probability: that it differs by more than delta.
        change: median of log2(share in the second group / share in the first).
        found: whether it is on the list.
        false: expected part of the list that is false; 0 where it is empty.
    """

    probability: np.ndarray
    change: np.ndarray
    found: np.ndarray
    false: float


def differential_expression(
    share: Callable[[Array, Any, Any], Array],
    key: Array,
    first: tuple[Any, Any],
    second: tuple[Any, Any],
    *,
    delta: float = 0.5,
    rate: float = 0.05,
    draws: int = 2000,
    batch_size: int = 100,
) -> Differential:
    """Compare the cells of two groups, by pairs drawn from them.

    Args:
        share: `(key, y, c) -> (genes,)`, a draw from the posterior of a cell's shares: with `cell_vae`
            `lambda key, y, c: cells.shares(params, cells.encode(params, key, y, c), c)`.
        first, second: (ys, cs) of each group; cs is None where there are no conditions.
        delta: log2 of the quotient, beyond which a gene differs.
        rate: expected part of false discoveries in the list.
        draws: pairs of cells.

    Raises:
        ValueError: a group without cells, numbers out of range.
    """
    if not is_number(delta, 0) or not is_number(rate, 0, 1) or not is_whole(draws, 2) or not is_whole(batch_size):
        raise ValueError(f"want delta >= 0, rate in [0, 1], draws >= 2; got {delta}, {rate}, {draws}, {batch_size}")
    sizes = [len(jax.tree.leaves(ys)[0]) for ys, _ in (first, second)]
    if not all(sizes):
        raise ValueError(f"want cells in both groups; got {sizes[0]} and {sizes[1]}")
    changes = _changes(share, key, first, second, draws, min(batch_size, draws))
    probability = np.mean(np.abs(changes) > delta, axis=0)
    found, false = discoveries(probability, rate)
    return Differential(probability, np.median(changes, axis=0), found, false)


def discoveries(probability: np.ndarray, rate: float) -> tuple[np.ndarray, float]:
    """(which are on the list, the expected part of it that is false), from probabilities that each is true."""
    order = np.argsort(-probability, kind="stable")
    expected = np.cumsum(1 - probability[order]) / np.arange(1, len(order) + 1)
    many = int(np.searchsorted(expected, rate, side="right"))  # it never falls
    found = np.zeros(len(probability), bool)
    found[order[:many]] = True
    return found, float(expected[many - 1]) if many else 0.0


def _changes(share, key, first, second, draws, size):
    """(draws, genes) log2 of the quotient, of pairs of cells drawn from the groups."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    keys = jax.random.split(key, (draws, 2))

    @jax.jit
    def of_pairs(keys, first, second):
        def one(keys, a, b):
            shares = [jnp.maximum(share(k, *cell), SMALLEST) for k, cell in zip(keys, (a, b), strict=True)]
            return jnp.log2(shares[1]) - jnp.log2(shares[0])

        return jax.vmap(one)(keys, first, second)

    def drawn(group):
        n = len(jax.tree.leaves(group[0])[0])
        places = rng.integers(n, size=draws)
        return jax.tree.map(lambda x: np.asarray(x)[places], group)

    chosen = drawn(first), drawn(second)
    parts = []
    for start in range(0, draws, size):
        places = np.minimum(np.arange(start, start + size), draws - 1)  # one shape: the last part is filled up
        cut = jax.tree.map(lambda x, places=places: x[places], (keys, *chosen))
        parts.append(np.asarray(of_pairs(*cut))[: draws - start])
    return np.concatenate(parts)
