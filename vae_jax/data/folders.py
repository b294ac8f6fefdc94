"""A folder of images, flat or a subfolder for each class, with or without `train/` and `test/`."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vae_jax.data.images import HELD_OUT, SPLITS, Found, fitted, held_out

SUFFIXES = frozenset({
    ".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff",
    ".webp",
})  # fmt: skip
Labelled = Sequence[tuple[Path, str | None]]


def read_image_folder(folder: Path, split: str, size: tuple[int, int] | None) -> Found:
    """One split of a folder of images.

    Where the folder has `train/` or `test/`, in letters of any size, these are the splits; else every tenth image in
    the order of its file name is "test". Subfolders are classes, labelled in the order of their names over both splits;
    whatever lies below one is of its class. A folder that holds nothing but another, and that no images of its own, is
    looked through. Images are grey, or all RGB where one of them, in either split, has colour; transparency is laid on
    white; of an animation the first picture is taken. Each is brought to `size` as it is read, so that memory does not
    grow with the photos; see `fitted`.

    Raises:
        FileNotFoundError: the folder has one of `train/` and `test/`, and the other was asked for.
        ValueError: no images, images beside folders of images, images of several sizes (unless
            `size` is given), or a file that is no 8-bit image.
    """
    folder = _inner(folder)
    parts = {p.name.lower(): p for p in _visible(folder) if p.is_dir() and p.name.lower() in SPLITS}
    if parts and split not in parts:
        held = [p.name for p in _visible(folder)]
        raise FileNotFoundError(
            f"{folder / split} does not exist, though {folder} has the other split; it holds {held[:9]}"
        )
    found = {s: _labelled(part) for s, part in (parts or {split: folder}).items()}
    images, source = found[split], f"folder {parts.get(split, folder)}"
    if not parts:
        images = [images[i] for i in held_out(len(images), split)]
        source = f"{source}, {HELD_OUT}"
    if not images:
        raise ValueError(f"{source}: no images for {split!r}; want files with one of {sorted(SUFFIXES)}")
    channels = 1 if all(_is_grey(path) for part in found.values() for path, _ in part) else 3
    ys = _stack([path for path, _ in images], size, channels)
    if images[0][1] is None:
        return Found(ys, None, None, source)
    classes = sorted({c for part in found.values() for _, c in part if c is not None})
    return Found(ys, np.array([classes.index(str(c)) for _, c in images]), classes, source)


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    return [p for p in _visible(folder) if p.suffix.lower() in SUFFIXES and p.is_file()]


def _below(folder: Path) -> Iterator[Path]:
    """All images in it and in the folders below, links to folders included."""
    yield from _files(folder)
    for inner in _visible(folder):
        if inner.is_dir():
            yield from _below(inner)


def _classes(folder: Path) -> list[Path]:
    """Its subfolders with images in them or below."""
    return [p for p in _visible(folder) if p.is_dir() and any(True for _ in _below(p))]


def _inner(folder: Path) -> Path:
    """The folder itself, or what it is but the wrapping of."""
    inside = [] if _files(folder) else _classes(folder)
    wraps = len(inside) == 1 and inside[0].name.lower() not in SPLITS and not _files(inside[0])
    return _inner(inside[0]) if wraps else folder


def _labelled(folder: Path) -> Labelled:
    """Its images, each with its class: a subfolder's name, or None where they lie in the folder itself."""
    flat, classes = _files(folder), _classes(folder)
    if flat and classes:
        raise ValueError(
            f"{folder} holds both images ({flat[0].name}, ...) and folders of images ({classes[0].name}, ...)"
        )
    return [(path, None) for path in flat] or [(path, c.name) for c in classes for path in _below(c)]


def _stack(paths: list[Path], size: tuple[int, int] | None, channels: int) -> UInt8[np.ndarray, "n h w channels"]:
    ys = [read_image(path, size, channels) for path in paths]
    for path, y in zip(paths, ys, strict=True):
        if y.shape[:2] != ys[0].shape[:2]:
            raise ValueError(
                f"{path} has the size (h, w) = {y.shape[:2]}, where {paths[0].name} has "
                f"{ys[0].shape[:2]}; all images must have one size: size=(h, w), or --size H W, resizes them"
            )
    return np.stack(ys)


def _is_grey(path: str | os.PathLike) -> bool:
    """By the head of the file: a palette counts by its colours."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            palette = image.getpalette() if image.mode in ("P", "PA") else None
            colours = np.reshape(palette or [], (-1, 3))
            return (
                image.mode in ("1", "L", "LA", "La")
                or image.mode[0] in "IF"
                or bool(palette and (colours == colours[:, :1]).all())
            )
    except Exception:  # `read_image` has the message, where the image is wanted
        return True


def read_image(
    path: str | os.PathLike, size: tuple[int, int] | None = None, channels: int | None = None
) -> UInt8[np.ndarray, "h w channels"]:
    """One image, 8 bits a channel.

    Args:
        size: (h, w) to bring it to, its proportions kept; None for its own.
        channels: 1 for grey, 3 for RGB, None for what it is. Transparency is laid on white.

    Raises:
        ValueError: a file that is no 8-bit image.
    """
    from PIL import Image, ImageOps

    if channels is None:
        channels = 1 if _is_grey(path) else 3

    try:
        with Image.open(path) as opened:
            deep = _is_deep(opened)
            if size is not None:  # a JPEG is decoded at 1/2, 1/4 or 1/8, no smaller than twice what is wanted
                opened.draft(None, (2 * max(size), 2 * max(size)))
            image = ImageOps.exif_transpose(opened)
            image.load()
    except Exception as error:  # pillow's readers raise what they like on damaged files
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    if deep:
        raise ValueError(f"{path} has more than 8 bits a channel (pillow's mode {image.mode}); want 8-bit images")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    image = image.convert("L" if channels == 1 else "RGB")
    image = image if size is None else fitted(image, size)
    return np.asarray(image).reshape(image.height, image.width, channels)


def _is_deep(image: Any) -> bool:
    """More than 8 bits a channel: of colours pillow keeps the upper 8 without a word."""
    codec, *_, told = image.tile[0] if image.tile else ("", None)
    mode, *levels = told if isinstance(told, tuple) else (told,)
    bits = max(getattr(image, "tag_v2", {}).get(258, (8,)))  # of a TIFF
    deep_file = str(mode).endswith((";16B", ";16L", ";16N")) or (codec.startswith("ppm") and levels > [255])
    return image.mode[0] in "IF" or bits > 8 or deep_file
