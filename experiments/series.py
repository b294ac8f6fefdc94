"""A series in time order: eruptions, daily returns, or one's own numbers."""

import csv
import gzip
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vae_jax import data

SHORTEST = 40


class Series(NamedTuple):
    """(T, d) numbers, the oldest first; names of the columns, what a step is called, where they come from."""

    ys: np.ndarray
    columns: tuple[str, ...]
    step: str
    source: str

    @property
    def mean(self) -> np.ndarray:
        return self.ys.mean(axis=0)

    @property
    def std(self) -> np.ndarray:
        return self.ys.std(axis=0)

    def standardised(self) -> np.ndarray:
        """What is fitted: EM then takes the same course whatever the units."""
        return ((self.ys - self.mean) / self.std).astype(np.float32)

    def in_units(self, zs: Any) -> np.ndarray:
        """The way back."""
        return np.asarray(zs) * self.std + self.mean

    @property
    def log_scale(self) -> float:
        """What ln P of a step gains where it is taken as a density of ys."""
        return -float(np.log(self.std).sum())


def load_series(name: str) -> Series:
    """By the option --data.

    Raises:
        FileNotFoundError: no such file, or the package that carries the returns is not installed.
        ValueError: a series that is too short, with gaps, or with a column that does not vary.
    """
    if name == "sp500":
        series = daily_returns()
    else:
        table = data.load_table(name)
        columns, step = table.columns, "step"
        if name == "geyser":
            columns, step = tuple(f"{column}, minutes" for column in columns), "eruption"
        series = Series(table.ys, columns, step, table.source)
    if len(series.ys) < SHORTEST:
        raise ValueError(f"{name}: {len(series.ys)} steps are too few, want at least {SHORTEST}")
    for column, ys in zip(series.columns, series.ys.T, strict=True):
        if not np.isfinite(ys).all():
            raise ValueError(
                f"{name}: column {column!r} has gaps or infinite values, from line {_first_gap(ys)} on, where the "
                "line of names is the first and comments do not count"
            )
        if np.ptp(ys) == 0:
            raise ValueError(f"{name}: column {column!r} is {ys[0]:g} throughout: leave it out")
    return series


def _first_gap(ys: np.ndarray) -> int:
    return int(np.argmax(~np.isfinite(ys))) + 2  # counted from 1, after the line of names


def daily_returns() -> Series:
    """100 ln(close / close of the day before) of the S&P 500; `arch` is looked at, not imported."""
    package = importlib.util.find_spec("arch")
    path = None
    if package is not None and package.submodule_search_locations:
        path = Path(package.submodule_search_locations[0], "data", "sp500", "sp500.csv.gz")
    if path is None or not path.is_file():
        raise FileNotFoundError("sp500 is read from the package arch, which is not installed: pip install arch")
    with gzip.open(path, "rt", encoding="utf8") as file:
        days = list(csv.DictReader(file))
    ys = 100 * np.diff(np.log([float(day["Close"]) for day in days]))
    source = f"S&P 500, daily closes from {days[0]['Date']} to {days[-1]['Date']}, carried by the package arch"
    return Series(ys[:, None], ("return, %",), "day", source)
