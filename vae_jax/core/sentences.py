"""Sentences as rows of whole numbers: one ends with its first `end`, and what follows is padding.

A row without an end was cut off, and all of it counts.
"""

from typing import Any

import numpy as np


def lengths(ys: Any, end: int) -> Any:
    """How many positions of each row are part of the sentence, its end included.

    Args:
        ys: (..., T) whole numbers, a numpy or a jax array.

    Returns:
        (...,) integers from 1 to T, an array of the same kind.
    """
    is_end = ys == end
    return is_end.argmax(-1) + 1 + (ys.shape[-1] - 1) * ~is_end.any(-1)


def counts(ys: Any, end: int) -> Any:
    """(..., T) which positions are part of the sentence."""
    length = lengths(ys, end)[..., None]
    return np.arange(ys.shape[-1]).reshape((1,) * (ys.ndim - 1) + (-1,)) < length
