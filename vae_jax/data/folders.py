"""A folder of images, flat or a subfolder for each class, with or without `train/` and `test/`."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vae_jax.data.images import SPLITS, Found, held_out, resized

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def read_image_folder(folder: Path, split: str, size: tuple[int, int] | None) -> Found:
    """One split of a folder of images.

    Where the folder has `train/` or `test/`, these are the splits; else every tenth image in the
    order of its file name is "test". Subfolders are classes, labelled in the order of their names.
    Images are grey, or all RGB where one of them has colour; transparency is laid on white; of an
    animation the first picture is taken.

    Raises:
        FileNotFoundError: the folder has one of `train/` and `test/`, and the other was asked for.
        ValueError: no images, images beside folders of images, images of several sizes (unless
            `size` is given), or a file that is no 8-bit image.
    """
    if any((folder / s).is_dir() for s in SPLITS):
        if not (folder / split).is_dir():
            raise FileNotFoundError(f"{folder / split} does not exist, though {folder} has the other split")
        classes = sorted({c for s in SPLITS for c in _classes(folder / s)})
        paths = _images(folder / split, classes)
        source = f"folder {folder / split}"
    else:
        classes = _classes(folder)
        paths = _images(folder, classes)
        paths = [paths[i] for i in held_out(len(paths), split)]
        source = f"folder {folder}, every tenth image held out as test"
    if not paths:
        raise ValueError(f"{source}: no images for {split!r}; want files with one of {sorted(SUFFIXES)}")
    labels = np.array([classes.index(p.parent.name) for p in paths]) if classes else None
    return Found(_stack(paths, size), labels, tuple(classes) or None, source)


def _visible(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    return [p for p in _visible(folder) if p.suffix.lower() in SUFFIXES and p.is_file()]


def _classes(folder: Path) -> list[str]:
    return [p.name for p in _visible(folder) if p.is_dir() and _files(p)]


def _images(folder: Path, classes: list[str]) -> list[Path]:
    flat = _files(folder)
    if flat and classes:
        raise ValueError(f"{folder} holds both images ({flat[0].name}, ...) and folders of images ({classes[0]}, ...)")
    return flat or [path for c in classes for path in _files(folder / c)]


def _stack(paths: list[Path], size: tuple[int, int] | None) -> UInt8[np.ndarray, "n h w channels"]:
    """All images as one array, of as many channels as the richest has."""
    ys = [_read(path) for path in paths]
    if size is not None:
        ys = [resized(y, size) for y in ys]
    for path, y in zip(paths, ys, strict=True):
        if y.shape[:2] != ys[0].shape[:2]:
            raise ValueError(
                f"{path} has the size (h, w) = {y.shape[:2]}, where {paths[0].name} has "
                f"{ys[0].shape[:2]}; all images must have one size: pass size=(h, w) to resize them"
            )
    channels = max(y.shape[2] for y in ys)
    return np.stack([np.broadcast_to(y, (*y.shape[:2], channels)) for y in ys])


def _read(path: Path) -> UInt8[np.ndarray, "h w channels"]:
    """One image, grey (h, w, 1) or RGB (h, w, 3)."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            image.load()
    except Exception as error:  # pillow's readers raise what they like on damaged files
        raise ValueError(f"{path} cannot be read as an image: {error}") from error
    if image.mode[0] in "IF":
        raise ValueError(f"{path} has more than 8 bits a channel (pillow's mode {image.mode}); want 8-bit images")
    grey = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image.convert("L" if grey else "RGB")).reshape(image.height, image.width, -1)
