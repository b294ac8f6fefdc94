"""`Dataset`, and the checks that every array goes through on its way into one."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int32, Shaped, UInt8

SPLITS = ("train", "test")


class Dataset(NamedTuple):
    """One split of a data set.

    Fields:
        ys: images, uint8 levels 0..255, always (n, h, w, channels).
        labels: int32 (n,), or None.
        label_names: a name for each label, or None.
        name: as asked for.
        split: "train" or "test".
        source: where it came from and under which licence, in words.
    """

    ys: UInt8[np.ndarray, "n h w channels"]
    labels: Int32[np.ndarray, " n"] | None
    label_names: tuple[str, ...] | None
    name: str
    split: str
    source: str


class Found(NamedTuple):
    """What a reader hands over, not yet checked: arrays of any type, and where they came from."""

    ys: Any
    labels: Any
    label_names: Sequence[str] | np.ndarray | None
    source: str


def as_dataset(found: Found, name: str, split: str, size: tuple[int, int] | None) -> Dataset:
    """The checked `Dataset`; `ValueError` where images or labels are not of the wanted form."""
    ys = as_images(found.ys, found.source)
    if size is not None and ys.shape[1:3] != size:
        ys = np.stack([resized(y, size) for y in ys])
    labels = None if found.labels is None else as_labels(found.labels, len(ys), found.source)
    names = None if found.label_names is None else tuple(str(n) for n in found.label_names)
    if labels is not None and names is not None and labels.max() >= len(names):
        raise ValueError(f"{found.source}: label {labels.max()} has no name; there are {len(names)} label_names")
    return Dataset(ys, labels, names, name, split, found.source)


def as_images(array: Shaped[np.ndarray, "..."], where: str) -> UInt8[np.ndarray, "n h w channels"]:
    """The images as uint8 of rank 4; grey images of rank 3 get a channel.

    Integers within 0..255 are taken as they are. Floats are refused: the scale that was meant
    cannot be known.

    Raises:
        ValueError: not numbers, float, out of range, wrong rank, empty, or channels first.
    """
    if array.ndim not in (3, 4):
        raise ValueError(
            f"{where}: images have shape {array.shape}; want (n, h, w) or (n, h, w, channels)"
            + (", so reshape the rows to images first" if array.ndim == 2 else "")
        )
    ys = array[..., None] if array.ndim == 3 else array
    if ys.size == 0:
        raise ValueError(f"{where}: empty, images have shape {array.shape}")
    _check_type(ys, where)
    if ys.shape[1] in (1, 3) and ys.shape[3] > 4:
        raise ValueError(f"{where}: images have shape {ys.shape}; want channels last, so np.moveaxis(x, 1, -1)")
    lowest, highest = ys.min(), ys.max()
    if lowest < 0 or highest > 255:
        raise ValueError(f"{where}: images have values in [{lowest}, {highest}]; want levels in [0, 255]")
    if highest == 1:
        raise ValueError(f"{where}: all images are 0 or 1; want levels in [0, 255], so save x * 255")
    return np.ascontiguousarray(ys, dtype=np.uint8)


def _check_type(array: Shaped[np.ndarray, "..."], where: str) -> None:
    if np.issubdtype(array.dtype, np.integer):
        return
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{where}: images are {array.dtype}; want uint8 levels in [0, 255]")
    bad = array.size - np.count_nonzero(np.isfinite(array))
    if bad:
        raise ValueError(f"{where}: images are {array.dtype} with {bad} NaN or infinite values; want uint8")
    low, high = array.min(), array.max()
    hint = "(x * 255).round().astype(np.uint8)" if low >= 0 and high <= 1 else "x.round().astype(np.uint8)"
    raise ValueError(
        f"{where}: images are {array.dtype} with values in [{low:g}, {high:g}]; "
        f"want uint8 levels in [0, 255], for instance {hint}"
    )


def as_labels(array: Shaped[np.ndarray, "..."], n: int, where: str) -> Int32[np.ndarray, " n"]:
    """The labels as int32 (n,), also from a column (n, 1); `ValueError` for anything else."""
    if array.shape not in ((n,), (n, 1)) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"{where}: labels are {array.dtype} of shape {array.shape}; want integers of shape ({n},), one an image"
        )
    if array.min() < 0:
        raise ValueError(f"{where}: label {array.min()} is negative; want 0, 1, 2, ...")
    return array.reshape(n).astype(np.int32)


def resized(y: UInt8[np.ndarray, "h w channels"], size: tuple[int, int]) -> UInt8[np.ndarray, "h2 w2 channels"]:
    """One image at `size = (h, w)`, each channel by itself; see `fitted`."""
    from PIL import Image

    channels = [Image.fromarray(np.ascontiguousarray(channel)) for channel in np.moveaxis(y, -1, 0)]
    return np.stack([np.asarray(fitted(channel, size)) for channel in channels], axis=-1)


def fitted(image: Any, size: tuple[int, int]) -> Any:
    """A pillow image at `size = (h, w)` (Lanczos), its proportions kept: what is too wide or too high is cut off at
    both ends alike."""
    from PIL import Image, ImageOps

    return ImageOps.fit(image, size[::-1], Image.Resampling.LANCZOS)


HELD_OUT = "every tenth image held out as test"  # what `Dataset.source` says of a source without splits


def held_out(n: int, split: str) -> Int[np.ndarray, " m"]:
    """Indices of a split that the source lacks: 0, 10, 20, ... are "test", the rest "train"."""
    is_test = np.arange(n) % 10 == 0
    return np.flatnonzero(is_test == (split == "test"))
