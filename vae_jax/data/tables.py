"""Small tables of numbers: carried by the package, or one's own CSV file."""

import importlib.resources
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

CARRIED_TABLES = {
    "geyser": "carried by vae_jax: Old Faithful, 299 eruptions of 1-15 August 1985 in time order "
    "(Azzalini & Bowman 1990; MASS)",
    "iris": "carried by vae_jax: 150 flowers of three kinds, 50 of each (Fisher 1936; Anderson 1935)",
}


class Table(NamedTuple):
    """Numbers with names.

    Fields:
        ys: (n, d) float64; NaN where a field is empty.
        columns: names of the d columns.
        source: where they come from.
    """

    ys: np.ndarray
    columns: tuple[str, ...]
    source: str


def load_table(name: str | os.PathLike) -> Table:
    """A carried table ("geyser", "iris"), or a CSV file of numbers with the columns' names in its first line.

    Lines that start with # are comments; an empty field is missing (NaN).

    Raises:
        FileNotFoundError: no such table or file.
        ValueError: fields that are not numbers, lines of different lengths, or no lines.
    """
    name = os.fspath(name)
    if name in CARRIED_TABLES:
        folder = importlib.resources.files("vae_jax.data") / "files"
        with importlib.resources.as_file(folder / f"{name}.csv") as path:
            return _read(path, CARRIED_TABLES[name])
    path = Path(name).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file {name!r}; carried tables are {', '.join(CARRIED_TABLES)}")
    return _read(path, f"file {path}")


def _read(path: Path, source: str) -> Table:
    lines = [line for line in path.read_text(encoding="utf8").splitlines() if line.strip() and line[0] != "#"]
    if len(lines) < 2:
        raise ValueError(f"{path}: want the names of the columns in the first line and numbers below; got {len(lines)}")
    columns = tuple(field.strip().strip('"') for field in lines[0].split(","))
    rows = [_numbers(path, i, line, len(columns)) for i, line in enumerate(lines[1:], 2)]
    return Table(np.array(rows), columns, source)


def _numbers(path: Path, i: int, line: str, wanted: int) -> list[float]:
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != wanted:
        raise ValueError(f"{path}, line {i}: {len(fields)} fields, and the first line names {wanted} columns")
    try:
        return [float(field) if field else float("nan") for field in fields]
    except ValueError as error:
        raise ValueError(f"{path}, line {i}: {error}; want numbers with a decimal point, separated by commas") from None
