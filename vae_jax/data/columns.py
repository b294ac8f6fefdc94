"""Tables of mixed columns, numbers, counts and classes together, of which entries may be missing.

    table = load_columns("patients.csv")     # or a frame of pandas or polars, or a dict of arrays
    print(table)                             # what each column is taken for, and how it is scaled
    table = load_columns("patients.csv", kinds={"age": "number", "id": None})

`ys` is a dict of float32 arrays, NaN where an entry is missing: numbers with mean 0 and standard deviation 1 (taken in
float64), counts as they are, classes as 0 .. K - 1 in the order of their names. `restored` undoes it.
"""

import csv
import importlib.resources
import io
import os
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from vae_jax.data.local import path_of
from vae_jax.data.tables import check_marks, number, read_fields

Kind = Literal["number", "count", "class"]
KINDS = ("number", "count", "class")
CARRIED = {"penguins": "carried by vae_jax: 344 penguins of three species (Gorman et al. 2014; Horst et al. 2020)"}
FEW = 20.0  # whole numbers with a median below are counts
MOST_CLASSES = 100
MOST_COUNT = 2**24  # whole numbers that float32 holds one by one


class Column(NamedTuple):
    """What one column holds.

    Fields:
        name: as the table has it.
        kind: "number", "count" or "class".
        categories: names of the classes, in order; () of other kinds.
        centre, scale: of numbers, subtracted and divided by; 0 and 1 of other kinds.
        missing: entries that are not there.
    """

    name: str
    kind: Kind
    categories: tuple[str, ...] = ()
    centre: float = 0.0
    scale: float = 1.0
    missing: int = 0

    def __str__(self) -> str:
        shown = [*self.categories[:6], *["..."] * (len(self.categories) > 6)]
        about = {
            "number": f"number, mean {self.centre:.4g}, standard deviation {self.scale:.4g}",
            "count": "count",
            "class": f"{len(self.categories)} classes: {', '.join(shown)}",
        }[self.kind]
        return f"{self.name}: {about}" + (f"; {self.missing} missing" if self.missing else "")


class Columns(NamedTuple):
    """A table of mixed columns.

    Fields:
        ys: of each column (n,) float32, NaN where an entry is missing.
        columns: what they hold.
        source: where they come from.
        read: all columns as they were read, those that are left out too: float64, NaN where an entry is missing, or
            words, "" where one is.
    """

    ys: dict[str, np.ndarray]
    columns: tuple[Column, ...]
    source: str
    read: dict[str, np.ndarray]

    def __str__(self) -> str:
        n = len(next(iter(self.ys.values())))
        return "\n".join([f"{n} rows; {self.source}", *(f"  {column}" for column in self.columns)])

    @property
    def log_scale(self) -> float:
        """Sum of ln scale over the columns of numbers: ln p of a row in its own units is ln p of `ys` less this."""
        return float(sum(np.log(column.scale) for column in self.columns))

    def again(self, source: Any) -> "Columns":
        """Other rows of the same columns, scaled and numbered as these are; further columns are left out.

        Raises:
            ValueError: a column is missing, or holds other things: words for numbers, a class that these rows lack.
        """
        raw, where = _raw(source)
        _check_names(where, raw, [column.name for column in self.columns])
        ys, columns = {}, []
        for column in self.columns:
            ys[column.name] = _encoded(where, column, raw[column.name])
            columns.append(column._replace(missing=int(np.isnan(ys[column.name]).sum())))
        return Columns(ys, tuple(columns), where, raw)

    def restored(self, ys: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Rows such as `ys`, of any shape, in the table's own units: float64, and names of classes ("" if missing)."""
        return {column.name: _decoded(column, np.asarray(ys[column.name], np.float64)) for column in self.columns}

    def filled(self, guesses: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The table as it was read, with these rows (such as `ys`) where an entry is missing; numbers to six digits."""
        found = dict(self.read)
        for name, guess in self.restored(guesses).items():
            there = self.read[name]
            words = there.dtype.kind == "U"
            guess = guess if words else np.char.mod("%s" if guess.dtype.kind == "U" else "%.6g", guess).astype(float)
            found[name] = np.where(_missing(there), guess, there)
        return found


def load_columns(source: Any, *, kinds: Mapping[str, Kind | None] | None = None) -> Columns:
    """A carried table ("penguins"), a CSV file (read as `load_table` does), a frame of pandas or polars, or a dict of
    arrays, as columns for a model.

    What a column holds is read from it: words, or two different values, are classes; whole numbers from 0 on with a
    median below 20 are counts; else they are numbers.

    Args:
        kinds: "number", "count" or "class" of columns that are taken for something else; None leaves one out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: what is no table; a column without any entry, or with one value alone; words that are neither
            classes (more than 100, or nearly all different: names, say) nor numbers; counts that are not whole,
            negative or beyond 2^24; a kind of no column.

    Example:
        >>> table = load_columns({"age": [31.5, 60.25, None, 44.0], "ward": ["b", "a", "a", ""], "falls": [0, 2, 0, 5]})
        >>> print(table)
        4 rows; a dict
          age: number, mean 45.25, standard deviation 11.77; 1 missing
          ward: 2 classes: a, b; 1 missing
          falls: count
        >>> table.ys["ward"].tolist()
        [1.0, 0.0, 0.0, nan]
    """
    raw, where = _raw(source)
    kinds = dict(kinds or {})
    _check_names(where, raw, list(kinds))
    if wrong := {name: kind for name, kind in kinds.items() if kind not in (*KINDS, None)}:
        raise ValueError(f"kinds={wrong}: want 'number', 'count', 'class', or None for a column to be left out")
    columns, ys = [], {}
    for name, values in raw.items():
        if kinds.get(name, "") is None:
            continue
        column = _described(where, name, values, kinds.get(name))
        ys[name] = _encoded(where, column, values)
        columns.append(column._replace(missing=int(np.isnan(ys[name]).sum())))
    if not columns:
        raise ValueError(f"{where} has no column left")
    return Columns(ys, tuple(columns), where, raw)


def as_csv(columns: Mapping[str, np.ndarray], *, digits: int = 15) -> str:
    """The text of a CSV file of columns (n,), their names in the first line."""
    fields = [x if x.dtype.kind == "U" else np.char.mod(f"%.{digits}g", x) for x in columns.values()]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*fields, strict=True))
    return file.getvalue()


# Entries are float64, NaN where they are missing, or strings, "" where they are: one type for a column.


def _raw(source: Any) -> tuple[dict[str, np.ndarray], str]:
    if isinstance(source, str) and source in CARRIED:
        with importlib.resources.as_file(importlib.resources.files("vae_jax.data") / "files" / f"{source}.csv") as path:
            return _raw(path)[0], CARRIED[source]
    if isinstance(source, str | os.PathLike):
        path = path_of(os.fspath(source))
        if not path.is_file():
            raise FileNotFoundError(f"no file {os.fspath(source)!r}; carried tables are {', '.join(CARRIED)}")
        found = read_fields(path)
        check_marks(path, found)
        if len(set(found.columns)) < len(found.columns):
            raise ValueError(f"{path}: two columns have one name in {found.columns}")
        fields = zip(*(fields for _, fields in found.rows), strict=True)
        return {
            name: _typed([_entry(field, found.separator) for field in column])
            for name, column in zip(found.columns, fields, strict=True)
        }, f"file {path}"
    if isinstance(source, Mapping):
        names, where = list(source), "a dict"
    elif hasattr(source, "columns") and hasattr(source, "__getitem__"):
        names, where = [str(name) for name in source.columns], f"a {type(source).__name__}"
        source = dict(zip(names, (source[name] for name in source.columns), strict=True))
    else:
        raise ValueError(f"want a CSV file, a frame or a dict of columns; got {type(source).__name__}")
    raw = {name: _typed(list(np.asarray(source[name]).tolist())) for name in names}
    if len({len(values) for values in raw.values()}) != 1 or not len(next(iter(raw.values()), ())):
        raise ValueError(
            f"{where} wants columns of one length; got { {name: len(values) for name, values in raw.items()} }"
        )
    return raw, where


def _entry(field: str, separator: str) -> Any:
    value = number(field, separator)
    return field if value is None else value


def _typed(entries: list[Any]) -> np.ndarray:
    missing = [x is None or x != x or x == "" for x in entries]  # NaN is not itself
    if any(isinstance(x, str) for x, gone in zip(entries, missing, strict=True) if not gone):
        return np.array(["" if gone else _word(x) for x, gone in zip(entries, missing, strict=True)])
    return np.array([np.nan if gone else float(x) for x, gone in zip(entries, missing, strict=True)])


def _word(x: Any) -> str:
    return f"{x:g}" if isinstance(x, float) else str(x)


def _missing(values: np.ndarray) -> np.ndarray:
    return values == "" if values.dtype.kind == "U" else np.isnan(values)


def _described(where: str, name: str, values: np.ndarray, kind: Kind | None) -> Column:
    there = values[~_missing(values)]
    different = np.unique(there)
    if len(different) < 2:
        held = "no entry" if not len(there) else f"one value alone, {different[0]}"
        raise ValueError(
            f"{where}, column {name!r}: {held}, of which nothing is learnt; leave it out: kinds={{{name!r}: None}}"
        )
    if there.dtype.kind == "U":
        if kind in ("number", "count"):
            raise ValueError(f"{where}, column {name!r}: {_odd(there)!r} is no number, and kinds wants {kind}")
        if len(different) > min(MOST_CLASSES, max(2, 0.9 * len(there))):
            raise ValueError(
                f"{where}, column {name!r}: {len(different)} different words in {len(there)} rows, "
                f"{str(different[0])!r} for instance, are no classes: leave it out, kinds={{{name!r}: None}}, or mend "
                "what is no number"
            )
        return Column(name, "class", tuple(map(str, different)))
    if kind is None:
        whole = bool(np.all((there >= 0) & (there % 1 == 0)))
        kind = "class" if len(different) == 2 else "count" if whole and np.median(there) < FEW else "number"
    if kind == "class":
        if len(different) > MOST_CLASSES:
            raise ValueError(f"{where}, column {name!r}: {len(different)} classes; want at most {MOST_CLASSES}")
        return Column(name, "class", tuple(f"{x:g}" for x in different))
    if kind == "count":
        return Column(name, "count")
    return Column(name, "number", centre=float(there.mean()), scale=float(there.std()))


def _odd(words: np.ndarray) -> str:
    return next(str(word) for word in words if number(str(word), ",") is None)


def _encoded(where: str, column: Column, values: np.ndarray) -> np.ndarray:
    missing = _missing(values)
    found = np.full(len(values), np.nan)
    there = values[~missing]
    if column.kind == "class":
        codes = {word: code for code, word in enumerate(column.categories)}
        words = [word if isinstance(word, str) else f"{word:g}" for word in there.tolist()]
        if unknown := sorted(set(words) - set(codes)):
            raise ValueError(
                f"{where}, column {column.name!r}: the class {unknown[0]!r} is none of those that are known, "
                f"{', '.join(column.categories[:10])}"
            )
        found[~missing] = [codes[word] for word in words]
    elif there.dtype.kind == "U":
        raise ValueError(f"{where}, column {column.name!r}: {_odd(there)!r} is no number")
    elif column.kind == "count":
        wrong = there[(there < 0) | (there % 1 != 0) | (there > MOST_COUNT)]
        if len(wrong):
            raise ValueError(
                f"{where}, column {column.name!r}: {wrong[0]:g} is no count: want whole numbers from 0 to {MOST_COUNT}"
            )
        found[~missing] = there
    else:
        if not np.isfinite(there).all():
            raise ValueError(
                f"{where}, column {column.name!r}: infinite; want numbers, or nothing where one is missing"
            )
        found[~missing] = (there - column.centre) / column.scale
    return found.astype(np.float32)


def _decoded(column: Column, values: np.ndarray) -> np.ndarray:
    if column.kind != "class":
        return values * column.scale + column.centre
    codes = np.where(np.isnan(values), len(column.categories), values).astype(int)
    return np.array([*column.categories, ""])[codes]


def _check_names(where: str, raw: Mapping[str, Any], wanted: list[str]) -> None:
    if gone := [name for name in wanted if name not in raw]:
        raise ValueError(f"{where} has no column {gone[0]!r}; there are {', '.join(map(repr, raw))}")
