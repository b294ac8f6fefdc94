"""npz, npy and IDX files, told by their first bytes, and folders with MNIST's four IDX files."""

import contextlib
import gzip
import math
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Shaped, UInt8

from vae_jax.data.images import HELD_OUT, Found, held_out

IMAGE_KEYS = ("{split}_image", "{split}_images", "x_{split}")
LABEL_KEYS = ("{split}_label", "{split}_labels", "y_{split}")
SINGLE_IMAGE_KEYS = ("image", "images", "ys", "x", "data", "arr_0")
SINGLE_LABEL_KEYS = ("label", "labels")
IDX_PREFIX = {"train": "train", "test": "t10k"}


def path_of(name: str | os.PathLike) -> Path:
    """With ~ and ~user as home folders; `FileNotFoundError` where there is no such user."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise FileNotFoundError(f"{os.fspath(name)!r} does not exist: no user has this home folder") from error


def read_file(path: Path, split: str) -> Found:
    """One split from a file.

    Raises:
        ValueError: damaged, of another kind, or without the arrays wanted.
    """
    with path.open("rb") as file:
        magic = file.read(6)
    if magic[:4] in (b"PK\x03\x04", b"PK\x05\x06"):  # the second: an archive of nothing
        return _read_npz(path, split)
    if magic == b"\x93NUMPY":
        with _naming(path):
            ys = np.load(path, allow_pickle=False)
        return _split_single(ys, None, None, f"file {path}", split)
    if magic[:2] in (b"\x1f\x8b", b"\x00\x00"):
        return _split_single(read_idx(path), None, None, f"file {path}", split)
    raise ValueError(
        f"{path} is neither npz, npy nor IDX (raw or gz); for images give the folder they are in, "
        "for a table of numbers (CSV) use load_table"
    )


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Whatever the parsers of damaged files raise becomes a `ValueError` that names the file."""
    try:
        yield
    except Exception as error:
        if "allow_pickle" in str(error):
            raise ValueError(
                f"{path} holds Python objects (a pickle), which are never read: save plain arrays "
                "of numbers, with images all of one size"
            ) from error
        raise ValueError(f"{path} is damaged: {error}") from error


def _read_npz(path: Path, split: str) -> Found:
    """`train_image`, `train_label`, ... and `label_names`; or one array, split by `held_out`."""
    image_keys = [key.format(split=split) for key in IMAGE_KEYS]
    label_keys = [key.format(split=split) for key in LABEL_KEYS]
    wanted = {*image_keys, *label_keys, *SINGLE_IMAGE_KEYS, *SINGLE_LABEL_KEYS, "label_names"}
    with _naming(path), path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        keys = sorted(arrays)
        found = {key: arrays[key] for key in keys if key in wanted}

    def first(names: Sequence[str]) -> np.ndarray | None:
        return next((found[name] for name in names if name in found), None)

    label_names = found.get("label_names")
    ys = first(image_keys)
    if ys is not None:
        return Found(ys, first(label_keys), label_names, f"file {path}")
    ys = first(SINGLE_IMAGE_KEYS)
    if ys is not None:
        return _split_single(ys, first(SINGLE_LABEL_KEYS), label_names, f"file {path}", split)
    raise ValueError(
        f"{path} has the keys {keys}; want {split}_image (and {split}_label, label_names), or one "
        f"array under one of {list(SINGLE_IMAGE_KEYS)} (and label)"
    )


def _split_single(
    ys: Shaped[np.ndarray, "..."],
    labels: Shaped[np.ndarray, "..."] | None,
    names: Shaped[np.ndarray, "..."] | None,
    source: str,
    split: str,
) -> Found:
    if ys.ndim == 0:
        raise ValueError(f"{source}: images are one number; want (n, h, w) or (n, h, w, channels)")
    keep = held_out(len(ys), split)
    if labels is not None:
        if len(labels) != len(ys):
            raise ValueError(f"{source}: {len(labels)} labels for {len(ys)} images")
        labels = labels[keep]
    return Found(ys[keep], labels, names, f"{source}, {HELD_OUT}")


def read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """The array of an IDX file of unsigned bytes, raw or gzipped.

    The format: the bytes 0, 0, 8 and the rank; the sizes as big-endian uint32; the values.

    Raises:
        ValueError: not such a file, or cut short.
    """
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    content = path.read_bytes()
    if zipped:
        with _naming(path):
            content = gzip.decompress(content)
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is no IDX file of unsigned bytes: it starts with [{content[:4].hex(' ')}]")
    start = 4 + 4 * content[3]
    shape = struct.unpack_from(f">{content[3]}I", content.ljust(start, b"\x00"), 4)
    if len(content) - start != math.prod(shape):
        raise ValueError(f"{path} is damaged: its header says {shape}; it holds {len(content) - start} values")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def is_idx_folder(folder: Path) -> bool:
    """Whether it holds files with MNIST's names."""
    return any(_idx_file(folder, p, "images-idx3") is not None for p in IDX_PREFIX.values())


def read_idx_folder(folder: Path, split: str, source: str, label_names: tuple[str, ...] | None = None) -> Found:
    """One split from `train-images-idx3-ubyte[.gz]`, `train-labels-idx1-ubyte[.gz]`, `t10k-...`.

    Raises:
        FileNotFoundError: one of the two files of the split is missing.
        ValueError: one of them is damaged.
    """
    arrays = []
    for kind in ("images-idx3", "labels-idx1"):
        path = _idx_file(folder, IDX_PREFIX[split], kind)
        if path is None:
            raise FileNotFoundError(f"{folder / f'{IDX_PREFIX[split]}-{kind}-ubyte'}[.gz] does not exist")
        arrays.append(read_idx(path))
    return Found(arrays[0], arrays[1], label_names, source)


def _idx_file(folder: Path, prefix: str, kind: str) -> Path | None:
    names = (f"{prefix}-{kind}-ubyte", f"{prefix}-{kind}-ubyte.gz")
    return next((folder / n for n in names if (folder / n).is_file()), None)
