"""Examples that are read when they are needed: data that do not fit in memory.

A `Source` is anything with a length and places, read ahead of its use by grain, in threads or in processes. Which
examples are read, and in which order, is said by whoever asks for them: a source has no state.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vae_jax.core.extras import extra
from vae_jax.core.numbers import is_whole
from vae_jax.data.arrays import is_array, length, type_in_jax
from vae_jax.data.folders import read_image

LOOKED_AT = 256  # examples that stand for all
THREADS = 4  # that read, each two batches ahead; one where the work is Python's, which they would only wait for
_LAZY = ("chunks", "dtype", "shape")  # what arrays on disk have: zarr's, HDF5's
_CONTAINERS = ("builtins", "collections", "array")  # whose types hold what they have in memory


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """Examples that are read when they are needed; `source` makes one.

    Fields:
        items: what has a length and places, or a dict or tuple of arrays.
        example: makes an example of an item; None where the items are the examples.
        pairs: an example is (y, c).
        workers: processes that read; 0 for threads.
        conditions: where they are not in the pairs: another source, arrays (n, *condition), or None.
    """

    items: Any
    example: Callable[[Any], Any] | None = None
    pairs: bool = False
    workers: int = 0
    conditions: Any = None

    def __len__(self) -> int:
        return length("the source", self.items) if _are_arrays(self.items) else len(self.items)

    @property
    def held(self) -> bool:
        """Whether all of it lies in memory as arrays, so that reading ahead gains nothing."""
        arrays = jax.tree.leaves((self.items, self.conditions), is_leaf=is_array)
        in_memory = all(isinstance(x, np.ndarray) and not isinstance(x, np.memmap) for x in arrays)
        return self.example is None and not self.pairs and in_memory

    def spread(self) -> np.ndarray:
        """The places of the examples that stand for all: at most 256, the first and the last among them."""
        n = len(self)
        return np.unique(np.linspace(0, n - 1, min(n, LOOKED_AT)).astype(int))

    def read(self, places: Any) -> tuple[Any, Any]:
        """(ys, cs) of the examples at these places, in this order, in jax's types; cs is None where there are none.

        Raises:
            ValueError: an example that is not like the first, or that is no pair where pairs are wanted.
            Exception: whatever the reading raises, with a note of the example that was read.
        """
        return _in_jax_types(self.raw(places))

    def one(self) -> tuple[Any, Any]:
        """(y, c) of the first example, in jax's types."""
        return jax.tree.map(lambda x: x[0], self.read([0]))

    def raw(self, places: Any) -> tuple[Any, Any]:
        """What `read` gives, in the types that it was read in."""
        places = np.asarray(places)
        ys = self._stacked(places)
        if self.pairs:
            return ys
        if isinstance(self.conditions, Source):
            return ys, self.conditions.raw(places)[0]
        return ys, jax.tree.map(lambda c: c[places], self.conditions)

    @functools.cached_property
    def first(self) -> Any:
        """The first example, in the types that it was read in. All others have its shapes and types."""
        return next(self._examples(np.zeros(1, int)))

    def _stacked(self, places: np.ndarray) -> Any:
        if self.example is None and not self.pairs and _are_arrays(self.items):
            return _rows(self.items, places)
        structure: Any  # mypy knows no comparison of jax's
        wanted, structure = jax.tree.flatten(self.first)
        stacks = [np.empty((len(places), *x.shape), x.dtype) for x in wanted]
        for row, example in enumerate(self._examples(places)):
            leaves, found = jax.tree.flatten(example)
            if structure != found or _forms(leaves) != _forms(wanted):
                raise ValueError(
                    f"example {places[row]} of the source is {_described(example)}, and the first is "
                    f"{_described(self.first)}: all have to be alike, so make them so in read= (of images: "
                    "lambda file: read_image(file, size=(h, w), channels=3))"
                )
            for stack, x in zip(stacks, leaves, strict=True):
                stack[row] = x
        return jax.tree.unflatten(structure, stacks)

    def _examples(self, places: np.ndarray) -> Iterator[Any]:
        items = self._items(places)
        for place in places.tolist():
            try:
                example = self._example_of(next(items), place)
            except Exception as error:
                error.add_note(f"This came up when example {place} of the source was read")
                raise
            yield example

    def _items(self, places: np.ndarray) -> Iterator[Any]:
        if _are_arrays(self.items):
            rows = _rows(self.items, places)
            yield from (jax.tree.map(lambda x, i=i: x[i], rows) for i in range(len(places)))
        elif hasattr(self.items, "__getitems__"):
            yield from self.items.__getitems__(places.tolist())
        else:
            yield from (self.items[place] for place in places.tolist())

    def _example_of(self, item: Any, place: int) -> Any:
        given = (self.example or _itself)(item)
        if self.pairs and not (isinstance(given, tuple | list) and len(given) == 2):
            raise ValueError(
                f"pairs=True wants (y, c) for each example, and example {place} of the source is a "
                f"{type(given).__name__}: read= can make a pair of an item"
            )
        return jax.tree.map(np.asarray, tuple(given) if self.pairs else given, is_leaf=is_array)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The rows of a memory-mapped array, read from its file: what is read so is no memory of this process, where the
    pages of a mapping, once touched, are counted as its own until they are all of the file."""

    file: str
    offset: int  # of the first row, in bytes
    step: int  # from a row to the next, in bytes
    shape: tuple[int, ...]
    dtype: np.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        rows = np.empty((len(places), *self.shape[1:]), self.dtype)
        return self._filled(rows, rows.nbytes // max(len(places), 1), places.tolist())

    def between(self, first: int, last: int) -> np.ndarray:
        """Rows that lie one behind the other, from one place to before another, read at once."""
        rows = np.empty((last - first, *self.shape[1:]), self.dtype)
        return self._filled(rows, rows.nbytes, [first] if last > first else [])

    def _filled(self, rows: np.ndarray, size: int, places: list[int]) -> np.ndarray:
        """`rows`, of pieces of so many bytes, each of which begins at a place."""
        into, file = rows.view(np.uint8).ravel().data, os.open(self.file, os.O_RDONLY)
        try:
            for i, place in enumerate(places):
                if os.preadv(file, [into[i * size : (i + 1) * size]], self.offset + place * self.step) != size:
                    raise ValueError(f"{self.file} ends within example {place}: was it cut short since it was opened?")
        finally:
            os.close(file)
        return rows


def source(items: Any, read: Callable[[Any], Any] | None = None, *, pairs: bool = False, workers: int = 0) -> Source:
    """Examples that are read when they are needed, for `fit` and `evaluate`, in place of arrays.

        source(np.load("images.npy", mmap_mode="r"))
        source(sorted(Path("photos").rglob("*.png")), lambda file: read_image(file, size=(64, 64)), workers=8)
        source(tfds.data_source("mnist", split="train"), lambda e: (e["image"], e["label"]), pairs=True)

    Args:
        items: whatever has a length and places: a memory-mapped array, a zarr or HDF5 array, a data source of
            tensorflow-datasets, a list of files; or a dict or tuple of arrays. Where it has `__getitems__`, that is
            asked for many at once.
        read: makes an example of an item, an array or a dict or tuple of such; by default the item itself, and of a
            file the image in it. All examples have the shapes and types of the first.
        pairs: an example is (y, c), so that the conditions come with it.
        workers: processes that read; by default threads of this one. They import the script, which has to start what
            it does under `if __name__ == "__main__":`; `items` and `read` are pickled for them.

    Raises:
        ValueError: what has no length or no places, arrays of several lengths, or workers that are no number.
    """
    items = jax.tree.map(opened, items, is_leaf=is_array)
    has_places = hasattr(items, "__len__") and hasattr(items, "__getitem__") and not isinstance(items, dict)
    if not has_places and not _are_arrays(items):
        raise ValueError(
            "source wants items with a length and places (a memory-mapped array, a list of files), or a dict of "
            f"arrays; got {type(items).__name__}"
        )
    if not is_whole(workers, 0):
        raise ValueError(f"workers is how many processes read, 0 for threads of this one; got {workers}")
    made = Source(items, read, pairs, workers)
    len(made)
    return made


def is_source(ys: Any) -> bool:
    """Whether these data are to be read when they are needed, and not held: a `Source`, or what `source` takes and is
    no array in memory."""
    if isinstance(ys, Source):
        return True
    leaves = jax.tree.leaves(ys, is_leaf=is_array)
    if any(_is_lazy(x) for x in leaves):
        return True
    if isinstance(ys, list):
        return isinstance(next(iter(ys), None), str | os.PathLike)
    return (
        len(leaves) == 1
        and leaves[0] is ys
        and hasattr(ys, "__len__")
        and hasattr(ys, "__getitem__")
        and not hasattr(ys, "__array__")
        and type(ys).__module__ not in _CONTAINERS
    )


def has_conditions(ys: Any, cs: Any) -> bool:
    """Whether each example has a condition, in data or a source, or beside them."""
    return cs is not None or (isinstance(ys, Source) and (ys.pairs or ys.conditions is not None))


def as_source(ys: Any, cs: Any = None) -> Source:
    """`ys` as a source, the conditions with it: arrays (n, *condition), a source of as many, or None.

    Raises:
        ValueError: conditions beside pairs.
    """
    made = ys if isinstance(ys, Source) else source(ys)
    if cs is None:
        return made
    if made.pairs or made.conditions is not None:
        raise ValueError("the source gives the conditions with each example (pairs=True), and cs is given as well")
    held = as_source(cs) if is_source(cs) else jax.tree.map(np.asarray, cs, is_leaf=is_array)
    return dataclasses.replace(made, conditions=held)


def batches(source: Source, places: Any, *, start: int = 0) -> Generator[tuple[Any, Any], None, None]:
    """`source.read(places[i])` for i = start, start + 1, ..., read ahead.

    To be closed (`contextlib.closing`) where it is not read to its end.

    Args:
        places: a sequence of arrays of places, which may compute them when it is asked; workers have a copy of it.
    """
    if source.held:
        yield from (source.read(places[i]) for i in range(start, len(places)))
        return
    with extra("sources", "a source of examples"):
        import grain
    source.first  # noqa: B018  read once, here, and not by each worker
    threads = 1 if source.workers or _are_arrays(source.items) else THREADS
    ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    read = grain.MapDataset.source(places)[start:].map(source.raw).to_iter_dataset(ahead)
    if source.workers:
        from absl import flags

        if not flags.FLAGS.is_parsed():  # grain asks them, and raises where a script has none
            flags.FLAGS.mark_as_parsed()
        read = read.mp_prefetch(grain.MultiprocessingOptions(num_workers=source.workers), _without_accelerator)
    iterator = iter(read)
    try:
        for raw in iterator:
            # What workers hand over lies in memory that they share, and that goes when grain's array does.
            yield _in_jax_types(jax.tree.map(np.array, raw) if source.workers else raw)
    finally:
        iterator.close()


def _without_accelerator(worker: int, workers: int) -> None:
    """In a worker: the process that trains has the accelerator to itself, whatever `read` does with jax."""
    jax.config.update("jax_platforms", "cpu")


def _in_jax_types(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(type_in_jax(x.dtype) or x.dtype, copy=False), tree)


def _is_lazy(x: Any) -> bool:
    return isinstance(x, np.memmap) or (not isinstance(x, jax.Array) and all(hasattr(x, name) for name in _LAZY))


def between(x: Any, first: int, last: int) -> np.ndarray:
    """x[first:last] of an array, or of one that is `opened`."""
    return x.between(first, last) if isinstance(x, _Rows) else x[first:last]


def opened(x: Any) -> Any:
    """A memory-mapped array by its file, where its rows lie in one piece there; an array in memory, of numpy or of
    whoever gives it to numpy, as numpy's (a table of pandas has places of its own); anything else as it is."""
    if not isinstance(x, np.memmap):
        return np.asarray(x) if hasattr(x, "__array__") and not _is_lazy(x) else x
    whole = x
    while isinstance(whole.base, np.memmap):
        whole = whole.base
    in_pieces = not (x.ndim and x.size and x[0].flags.c_contiguous) or x.dtype.hasobject
    if in_pieces or not hasattr(os, "preadv") or whole.mode == "c" or not os.path.isfile(whole.filename or ""):
        return x
    offset = whole.offset + x.ctypes.data - whole.ctypes.data
    return _Rows(str(whole.filename), offset, x.strides[0], x.shape, x.dtype)


def _are_arrays(items: Any) -> bool:
    leaves = jax.tree.leaves(items, is_leaf=is_array)
    return bool(leaves) and all(isinstance(x, np.ndarray | _Rows) or _is_lazy(x) for x in leaves)


def _rows(arrays: Any, places: np.ndarray) -> Any:
    return jax.tree.map(lambda x: _rows_of(x, places), arrays, is_leaf=is_array)


def _rows_of(x: Any, places: np.ndarray) -> np.ndarray:
    if isinstance(x, np.ndarray | _Rows):
        return (x if isinstance(x, _Rows) else np.asarray(x))[places]
    ascending, back = np.unique(places, return_inverse=True)  # HDF5 takes places in no other order
    return np.asarray(x[ascending])[back]


def _itself(item: Any) -> Any:
    return read_image(Path(item)) if isinstance(item, str | os.PathLike) else item


def _forms(leaves: list[np.ndarray]) -> list[tuple[tuple[int, ...], np.dtype]]:
    return [(x.shape, x.dtype) for x in leaves]


def _described(example: Any) -> str:
    return str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", example)).replace("'", "")
