"""`load`: a data set by its name, or from a file or a folder."""

import importlib.resources
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vae_jax.core.numbers import is_whole
from vae_jax.data.folders import read_image_folder
from vae_jax.data.images import HELD_OUT, SPLITS, Dataset, Found, as_dataset, held_out
from vae_jax.data.local import is_idx_folder, path_of, read_file, read_idx_folder
from vae_jax.data.prepared import read_prepared

CARRIED = {
    "emoji_mini": "carried by vae_jax: 396 + 99 Noto Color Emoji, 32x32 RGB on white, "
    "in the 9 groups of Unicode 15 (images Apache-2.0, Google; labels Unicode License v3)",
    "fashion_mnist_mini": "carried by vae_jax: the first 500 + 100 of each class of "
    "Fashion-MNIST (MIT, Zalando SE 2017)",
}
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FASHION_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
NAMES = ("emoji_mini", "fashion_mnist", "fashion_mnist_mini")
"""Data sets that `load` knows by name: the two `_mini` are carried by the package."""
TFDS_NAME = re.compile(r"\w+(/\w[\w.-]*)?(:[\d.*]+)?")  # name/config:version
POSSIBILITIES = (
    f"known names are {', '.join(NAMES)}; else give the path of an npz, npy or IDX file or of a "
    "folder of images, or the name of a data set that tensorflow-datasets has prepared in data_dir "
    "(download=True lets it download); tables of numbers (geyser, iris, CSV files) are read by load_table"
)


def load(
    name: str | os.PathLike,
    split: str = "train",
    *,
    data_dir: str | os.PathLike | None = None,
    download: bool = False,
    size: Any = None,  # (h, w): `_pixels` has the better message
) -> Dataset:
    """One whole split as uint8 images.

    The first of these that fits:

    1. `fashion_mnist_mini` or `emoji_mini`: carried by the package.
    2. A file: npz with `train_image`, `test_image` (and `train_label`, `test_label`, `label_names`;
       Keras's `x_train`, `y_train`, ... too), or any of npz with one array `image`, npy and IDX
       (raw or gz).
    3. A folder: MNIST's four IDX files, or images (png, jpg, ...). Subfolders `train/` and `test/`
       are the splits, either of them flat or with a subfolder for each class, which give the labels.
    4. `fashion_mnist`: the files of Debian's package dataset-fashion-mnist, unless `data_dir` is
       given.
    5. Any name of tensorflow-datasets that is prepared (as array_record) in `data_dir`.

    Where a file or a folder has no splits, every tenth example (0, 10, 20, ...; for images in the
    order of their file names) is "test" and the others are "train".

    Args:
        name: one of `NAMES`, a path, or a name of tensorflow-datasets.
        split: "train" or "test".
        data_dir: of tensorflow-datasets; None for its default (~/tensorflow_datasets).
        download: let tensorflow-datasets download what is not prepared; nothing is ever downloaded
            otherwise.
        size: (h, w) to resize images to; they keep their proportions, and what is too much for these
            is cut off at both ends alike.

    Raises:
        FileNotFoundError: no such file, or a data set of tensorflow-datasets that is not prepared.
        ValueError: unknown name or split; data that are damaged, empty, of the wrong rank, or not
            8-bit levels.

    Example:
        >>> test = load("fashion_mnist_mini", "test")
        >>> test.ys.shape, str(test.ys.dtype), test.label_names[test.labels[0]]
        ((1000, 28, 28, 1), 'uint8', 'Ankle boot')
    """
    name = os.fspath(name)
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: want one of {list(SPLITS)}")
    size = None if size is None else _pixels(size)
    found = _find(name, split, data_dir, download, size)
    return as_dataset(found, name, split, size)


def load_whole(name: str | os.PathLike, **options: Any) -> Dataset:
    """All images of a file or folder that has no splits, in its order; of a source with splits, its test images.

    Args and errors as of `load`.
    """
    test = load(name, "test", **options)
    if not test.source.endswith(HELD_OUT):
        return test
    train = load(name, "train", **options)
    n = len(train.ys) + len(test.ys)
    places = np.argsort(np.concatenate([held_out(n, "train"), held_out(n, "test")]))

    def together(one, other):
        return None if one is None else np.concatenate([one, other])[places]

    ys, labels = together(train.ys, test.ys), together(train.labels, test.labels)
    return test._replace(ys=ys, labels=labels, split="all", source=test.source.removesuffix(f", {HELD_OUT}"))


def _pixels(size: Any) -> tuple[int, int]:
    pixels = tuple(size) if isinstance(size, Iterable) else ()
    if len(pixels) != 2 or not all(map(is_whole, pixels)):
        raise ValueError(f"size={size!r}: want (h, w), two positive numbers of pixels, such as (32, 32)")
    return int(pixels[0]), int(pixels[1])


def _find(
    name: str,
    split: str,
    data_dir: str | os.PathLike | None,
    download: bool,
    size: tuple[int, int] | None,
) -> Found:
    if name in CARRIED:
        return _carried(name, split)
    if not name:
        raise ValueError(f"name is empty; {POSSIBILITIES}")
    path = path_of(name)
    if path.is_file():
        return read_file(path, split)
    if path.is_dir():
        if is_idx_folder(path):
            return read_idx_folder(path, split, f"folder {path}")
        return read_image_folder(path, split, size)
    if name == "fashion_mnist" and data_dir is None and is_idx_folder(DEBIAN):
        source = f"{DEBIAN} (Debian's package dataset-fashion-mnist; MIT, Zalando SE 2017)"
        return read_idx_folder(DEBIAN, split, source, FASHION_NAMES)
    if not TFDS_NAME.fullmatch(name):
        raise FileNotFoundError(f"{name!r} does not exist; {POSSIBILITIES}")
    found = read_prepared(name, split, data_dir and path_of(data_dir), download, size)
    if found is None:
        raise ValueError(f"unknown data set {name!r}, and no such file or folder; {POSSIBILITIES}")
    return found


def _carried(name: str, split: str) -> Found:
    folder = importlib.resources.files("vae_jax.data") / "files"
    with importlib.resources.as_file(folder / f"{name}.npz") as path:
        return read_file(path, split)._replace(source=CARRIED[name])
