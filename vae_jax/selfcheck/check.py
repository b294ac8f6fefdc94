"""What a check is: an identity, what it says should come out, and what the library gives on the device."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

ERRORS = 4  # a number that has a standard error may be off by so many of them


class Row(NamedTuple):
    """One number, or an array of which the worst entry is shown.

    Fields:
        label: which of the check's numbers this is.
        expected: known without the library: a constant, or a closed form by numpy in float64.
        obtained: by the library, on the device.
        standard_error: of `obtained`, where it is an average of draws.
    """

    label: str
    expected: Any
    obtained: Any
    standard_error: Any = 0.0


class Check(NamedTuple):
    """An identity that has to hold.

    Fields:
        oracle: the number by which the project's documents and tests call it.
        name: the identity in words.
        run: `() -> rows`, computed in the precision that is set.
        atol32, atol64: the largest difference allowed, in float32 and in float64, beside 4 standard errors.
    """

    oracle: int
    name: str
    run: Callable[[], list[Row]]
    atol32: float
    atol64: float


class Verdict(NamedTuple):
    """A row, compared: its worst entry."""

    label: str
    expected: float
    obtained: float
    tolerance: float
    statistical: bool

    @property
    def difference(self) -> float:
        return abs(self.obtained - self.expected)

    @property
    def passed(self) -> bool:
        """False for NaN."""
        return self.difference <= self.tolerance


def compare(row: Row, atol: float) -> Verdict:
    """The entry of a row that is worst in proportion to what it is allowed."""
    obtained = np.asarray(row.obtained, np.float64)
    both = (np.asarray(x, np.float64) for x in (row.expected, row.standard_error))
    expected, error = (np.broadcast_to(x, obtained.shape) for x in both)
    tolerance = atol + ERRORS * error
    excess = np.abs(obtained - expected) / tolerance
    worst = np.argmax(np.where(np.isnan(excess), np.inf, excess))
    at_worst = {"expected": expected, "obtained": obtained, "tolerance": tolerance}
    numbers = {name: float(values.ravel()[worst]) for name, values in at_worst.items()}
    return Verdict(row.label, statistical=bool(error.any()), **numbers)


def average(label: str, expected: Any, draws: Any) -> Row:
    """The mean over axis 0 of draws, with its standard error."""
    draws = np.asarray(draws, np.float64)
    return Row(label, expected, draws.mean(axis=0), draws.std(axis=0, ddof=1) / np.sqrt(len(draws)))
