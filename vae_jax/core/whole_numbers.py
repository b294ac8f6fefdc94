"""Whole numbers: how many of something were asked for."""

import operator
from typing import Any


def is_whole(value: Any, least: int = 1) -> bool:
    """Whether it is a whole number, `least` or more, of Python, numpy or jax; 3.0 and True are none."""
    try:
        return not isinstance(value, bool) and operator.index(value) >= least
    except TypeError:
        return False
