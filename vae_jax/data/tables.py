"""Small tables of numbers: carried by the package, or one's own CSV file."""

import codecs
import csv
import importlib.resources
import io
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vae_jax.data.local import path_of

CARRIED_TABLES = {
    "geyser": "carried by vae_jax: Old Faithful, 299 eruptions of 1-15 August 1985 in time order "
    "(Azzalini & Bowman 1990; MASS)",
    "iris": "carried by vae_jax: 150 flowers of three kinds, 50 of each (Fisher 1936; Anderson 1935)",
}
MISSING = frozenset({"", "-", ".", "?", "#n/a", "n/a", "na", "nan", "none", "null"})


class Table(NamedTuple):
    """Numbers with names.

    Fields:
        ys: (n, d) float64; NaN where a field is missing.
        columns: names of the d columns; "column 1", ... where the file gives none.
        source: where they come from.
    """

    ys: np.ndarray
    columns: tuple[str, ...]
    source: str


def load_table(name: str | os.PathLike) -> Table:
    """A carried table ("geyser", "iris"), or a CSV file of numbers.

    The first line names the columns, unless it is all numbers. Fields are separated by tabs, semicolons (a number may
    then have a decimal comma) or commas, whichever of these the first line has. Lines that start with # are comments;
    a field is missing (NaN) where it is empty, "-", ".", "?", NA, N/A, #N/A, NaN, None or null, in letters of any size.
    An empty line is skipped, but between the numbers of a single column it is a missing one. A last column without
    name and numbers is none: its separators are at the lines' ends. Text is UTF-8, UTF-16 (with its mark) or
    Windows-1252.

    Raises:
        FileNotFoundError: no such table or file.
        ValueError: no text; fields that are not numbers, lines of different lengths, or no lines.

    Example:
        >>> table = load_table("geyser")
        >>> table.ys.shape, table.columns
        ((299, 2), ('waiting', 'duration'))
    """
    name = os.fspath(name)
    if name in CARRIED_TABLES:
        folder = importlib.resources.files("vae_jax.data") / "files"
        with importlib.resources.as_file(folder / f"{name}.csv") as path:
            return _read(path, CARRIED_TABLES[name])
    path = path_of(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"no file {name!r}; carried tables are {', '.join(CARRIED_TABLES)} (vae_jax.data.load reads images)"
        )
    return _read(path, f"file {path}")


def _read(path: Path, source: str) -> Table:
    found = read_fields(path)
    ys = np.array([_numbers(path, line, fields, found.columns, found.separator) for line, fields in found.rows])
    check_marks(path, found)
    return Table(ys, found.columns, source if found.named else f"{source}, without names of its columns")


class Fields(NamedTuple):
    """What a CSV file holds, as text.

    Fields:
        columns: their names; "column 1", ... where the file gives none.
        rows: (line where it starts, fields) of each, as many as there are columns.
        separator: of the fields.
        named: whether the first line names the columns.
    """

    columns: tuple[str, ...]
    rows: list[tuple[int, list[str]]]
    separator: str
    named: bool


def read_fields(path: Path) -> Fields:
    """The text of a CSV file, as `load_table` reads it.

    Raises:
        ValueError: no text, no lines, or lines of different lengths.
    """
    lines = [_plain(line) for line in io.StringIO(_text(path), newline=None)]
    unquoted = re.sub(r'"[^"]*"', "", "".join(lines))
    first = next((line for line in unquoted.splitlines() if line.strip("#")), "")
    separator = next((mark for mark in "\t;" if mark in first), ",")
    records = list(_records(path, lines, separator))
    filled = [i for i, (_, fields) in enumerate(records) if fields]
    records = records[filled[0] : filled[-1] + 1] if filled else []
    single = bool(records) and len(records[0][1]) == 1
    records = [(line, fields or [""]) for line, fields in records if fields or single]
    return _named(path, records, separator)


def _text(path: Path) -> str:
    raw = path.read_bytes()
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16", "replace")
    if b"\0" in raw:
        raise ValueError(
            f"{path} is no text, and a table is a CSV file of numbers: numpy's files are read by np.load, "
            "a spreadsheet is to be saved as CSV"
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace")


def _plain(line: str) -> str:
    """Comments and spaces alone are cut, so that line numbers stay."""
    return "#\n" if line.lstrip().startswith("#") else "\n" if line.isspace() else line


def _records(path: Path, lines: Sequence[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    """(line where it starts, fields) of each record; an empty line has no fields."""
    reader, start = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True), 1
    try:
        for fields in reader:
            if fields != ["#"]:
                yield start, [field.strip() for field in fields]
            start = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {start}: {error}; want a quotation mark at both ends of a field") from None


def _named(path: Path, records: Sequence[tuple[int, list[str]]], separator: str) -> Fields:
    named = bool(records) and any(number(field, separator) is None for field in records[0][1])
    if len(records) <= named:
        raise ValueError(
            f"{path}: want the names of the columns in the first line and numbers below; got {len(records)}"
        )
    names, rows = records[0][1] if named else [""] * len(records[0][1]), records[named:]
    if len(names) > 1 and not names[-1] and not any("".join(fields[len(names) - 1 :]) for _, fields in rows):
        names = names[:-1]
    columns = tuple(name or f"column {i}" for i, name in enumerate(names, 1))
    return Fields(columns, [(line, _fitted(path, line, fields, columns)) for line, fields in rows], separator, named)


def check_marks(path: Path, found: Fields) -> None:
    """Raise a ValueError where some numbers have a decimal comma and some a point."""
    numbers = [field for _, fields in found.rows for field in fields if number(field, found.separator) is not None]
    if len({mark for field in numbers for mark in ",." if mark in field[1:]}) > 1:
        raise ValueError(f"{path}: some numbers have a decimal comma, some a point; want the same in all")


def _fitted(path: Path, line: int, fields: list[str], columns: tuple[str, ...]) -> list[str]:
    if len(fields) == len(columns) + 1 and not fields[-1]:
        fields = fields[:-1]
    if len(fields) != len(columns):
        raise ValueError(f"{path}, line {line}: {len(fields)} fields, and the first line names {len(columns)} columns")
    return fields


def _numbers(path: Path, line: int, fields: list[str], columns: tuple[str, ...], separator: str) -> list[float]:
    numbers = []
    for column, field in zip(columns, fields, strict=True):
        if (value := number(field, separator)) is None:
            raise ValueError(
                f"{path}, line {line}, column {column!r}: could not convert {field!r} to a number; want numbers with "
                "a decimal point, separated by commas (or by semicolons or tabs), and no column of words (load_columns "
                "reads those)"
            )
        numbers.append(value)
    return numbers


def number(field: str, separator: str) -> float | None:
    """NaN where it is missing, None where it is no number."""
    if field.casefold() in MISSING:
        return float("nan")
    try:
        return None if "_" in field else float(field.replace(",", ".") if separator == ";" else field)
    except ValueError:
        return None
