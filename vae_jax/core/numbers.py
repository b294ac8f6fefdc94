"""What counts as a number where an option is checked: 2.5 samples, NaN, True or "3" do not pass for one."""

import math
import operator
from typing import Any

import numpy as np


def is_whole(value: Any, least: int = 1) -> bool:
    """Whether this is a whole number of at least `least`: an int, or one of numpy's or jax's."""
    try:
        return not isinstance(value, bool) and operator.index(value) >= least
    except TypeError:
        return False


def is_number(value: Any, least: float = -math.inf, most: float = math.inf) -> bool:
    """Whether this is one finite real number in [least, most], of Python, numpy or jax."""
    if isinstance(value, str | bytes | bool) or np.ndim(value) != 0:
        return False
    try:
        number = float(value)
    except (TypeError, ValueError):
        return False
    return math.isfinite(number) and least <= number <= most
