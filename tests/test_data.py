"""Every source of `load`, against arrays made here, and the message of every refusal."""

import gzip
import hashlib
import importlib.resources
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, features
from sklearn.datasets import load_iris

from vae_jax import text
from vae_jax.data import NAMES, Dataset, load, load_table
from vae_jax.data.datasets import DEBIAN
from vae_jax.data.images import as_images, held_out, resized

HAS_DEBIAN = pytest.mark.skipif(
    not DEBIAN.is_dir(), reason=f"no {DEBIAN}: install Debian's package dataset-fashion-mnist"
)


def pictures(n: int, h: int = 4, w: int = 5, channels: int = 1) -> np.ndarray:
    """Random levels 0..255; h is not w, so that a swap shows."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, h, w, channels), dtype=np.uint8)


def idx_bytes(array: np.ndarray) -> bytes:
    sizes = np.array(array.shape, dtype=">u4").tobytes()
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def save_pictures(folder, ys, names=None):
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i:03}.png" for i in range(len(ys))] if names is None else names
    for name, y in zip(names, ys, strict=True):
        Image.fromarray(y[..., 0] if y.shape[-1] == 1 else y).save(folder / name)
    return folder


def save_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def is_well_formed(data: Dataset) -> bool:
    n = len(data.ys)
    labels = data.labels is None or (data.labels.dtype == np.int32 and data.labels.shape == (n,))
    return data.ys.dtype == np.uint8 and data.ys.ndim == 4 and n > 0 and labels


# The carried arrays.


@pytest.mark.parametrize(
    ("name", "split", "shape", "per_class", "classes"),
    [
        ("fashion_mnist_mini", "train", (5000, 28, 28, 1), 500, 10),
        ("fashion_mnist_mini", "test", (1000, 28, 28, 1), 100, 10),
        ("emoji_mini", "train", (396, 32, 32, 3), 44, 9),
        ("emoji_mini", "test", (99, 32, 32, 3), 11, 9),
    ],
)
def test_carried_sizes_and_label_counts(name, split, shape, per_class, classes):
    data = load(name, split)
    assert is_well_formed(data)
    assert data.ys.shape == shape
    assert data.labels is not None and data.label_names is not None
    assert np.bincount(data.labels).tolist() == [per_class] * classes
    assert len(data.label_names) == len(set(data.label_names)) == classes
    assert (data.name, data.split) == (name, split)
    assert "carried" in data.source
    assert data.ys.min() == 0 and data.ys.max() == 255


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("fashion_mnist_mini", "9b92376c3176c285a177dc125ab59ad30772d788d949f3007432a19fbf089598"),
        ("emoji_mini", "b79e5714b7cfeae1c026cd7f47890b2988a5703aef12bc719d55ff9572a62c81"),
    ],
)
def test_carried_files_are_those_of_their_readme(name, sha256):
    folder = importlib.resources.files("vae_jax.data") / "files"
    assert hashlib.sha256((folder / f"{name}.npz").read_bytes()).hexdigest() == sha256
    assert sha256 in (folder / "README.md").read_text(encoding="utf8")


def test_notices_are_shipped():
    folder = importlib.resources.files("vae_jax.data") / "files"
    text = (folder / "NOTICES.md").read_text(encoding="utf8")
    for words in (
        "Copyright (c) 2017 Zalando SE",
        "Permission is hereby granted, free of charge, to any person obtaining a\ncopy of this",
        "Google Inc.",
        "Apache License, Version 2.0",
        "UNICODE LICENSE V3",
        "Unicode, Inc.",
    ):
        assert words in text


def test_emoji_train_and_test_share_no_picture():
    ys = np.concatenate([load("emoji_mini", "train").ys, load("emoji_mini", "test").ys])
    assert len(np.unique(ys, axis=0)) == len(ys) == 495


@HAS_DEBIAN
@pytest.mark.parametrize(("split", "per_class"), [("train", 500), ("test", 100)])
def test_mini_is_the_first_of_each_class_of_fashion_mnist(split, per_class):
    whole, mini = load("fashion_mnist", split), load("fashion_mnist_mini", split)
    first = [np.flatnonzero(whole.labels == k)[:per_class] for k in range(10)]
    index = np.sort(np.concatenate(first))
    np.testing.assert_array_equal(mini.ys, whole.ys[index])
    np.testing.assert_array_equal(mini.labels, whole.labels[index])
    assert mini.label_names == whole.label_names


@HAS_DEBIAN
@pytest.mark.parametrize(("split", "n"), [("train", 60_000), ("test", 10_000)])
def test_debian_fashion_mnist(split, n):
    data = load("fashion_mnist", split)
    assert is_well_formed(data)
    assert data.ys.shape == (n, 28, 28, 1)
    assert np.bincount(data.labels).tolist() == [n // 10] * 10
    assert "Debian" in data.source and "MIT" in data.source
    if split == "train":  # the mean and standard deviation that its users quote
        assert round(data.ys.mean() / 255, 4) == 0.2860
        assert round(float(data.ys.std() / 255), 4) == 0.3530


# Files.


@pytest.mark.parametrize(
    ("image", "label"),
    [("{}_image", "{}_label"), ("{}_images", "{}_labels"), ("x_{}", "y_{}")],
)
def test_npz_with_splits(tmp_path, image, label):
    ys = pictures(7)
    path = save_npz(
        tmp_path / "own.npz",
        **{
            image.format("train"): ys[:5, ..., 0],
            label.format("train"): np.array([2, 0, 1, 2, 0]),
            image.format("test"): ys[5:],
            label.format("test"): np.array([[1], [0]]),
            "label_names": np.array(["a", "b", "c"]),
        },
    )
    train, test = load(path, "train"), load(str(path), "test")
    assert is_well_formed(train) and is_well_formed(test)
    np.testing.assert_array_equal(train.ys, ys[:5])
    np.testing.assert_array_equal(test.ys, ys[5:])
    assert train.labels.tolist() == [2, 0, 1, 2, 0] and test.labels.tolist() == [1, 0]
    assert train.label_names == test.label_names == ("a", "b", "c")
    assert str(path) in train.source


@pytest.mark.parametrize("key", ["image", "images", "ys", "x", "data", "arr_0"])
def test_npz_of_one_array_holds_out_every_tenth(tmp_path, key):
    ys = pictures(23)
    path = save_npz(tmp_path / "own.npz", **{key: ys, "label": np.arange(23)})
    train, test = load(path, "train"), load(path, "test")
    np.testing.assert_array_equal(test.ys, ys[[0, 10, 20]])
    assert test.labels.tolist() == [0, 10, 20]
    assert train.labels.tolist() == [i for i in range(23) if i not in (0, 10, 20)]
    np.testing.assert_array_equal(train.ys, ys[train.labels])
    assert "every tenth" in train.source


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint16])
def test_npy_of_any_integers(tmp_path, dtype):
    ys = pictures(20, channels=3)
    np.save(tmp_path / "own.npy", ys.astype(dtype))
    data = load(tmp_path / "own.npy", "test")
    assert is_well_formed(data) and data.labels is None
    np.testing.assert_array_equal(data.ys, ys[[0, 10]])


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_file(tmp_path, zipped):
    ys = pictures(12)
    content = idx_bytes(ys[..., 0])
    path = tmp_path / ("own-images.gz" if zipped else "own-images")
    path.write_bytes(gzip.compress(content) if zipped else content)
    np.testing.assert_array_equal(load(path, "test").ys, ys[[0, 10]])


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_folder(tmp_path, zipped):
    ys, labels = pictures(9), np.arange(9)
    parts = {"train": slice(0, 6), "t10k": slice(6, 9)}
    for prefix, part in parts.items():
        for kind, array in (("images-idx3", ys[part, ..., 0]), ("labels-idx1", labels[part])):
            content = idx_bytes(array)
            path = tmp_path / f"{prefix}-{kind}-ubyte{'.gz' if zipped else ''}"
            path.write_bytes(gzip.compress(content) if zipped else content)
    for split, part in zip(("train", "test"), parts.values(), strict=True):
        data = load(tmp_path, split)
        assert is_well_formed(data)
        np.testing.assert_array_equal(data.ys, ys[part])
        assert data.labels.tolist() == labels[part].tolist()


# Folders of images.


@pytest.mark.parametrize("channels", [1, 3])
def test_flat_folder(tmp_path, channels):
    ys = pictures(12, channels=channels)
    folder = save_pictures(tmp_path / "own", ys)
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_text("nor this")
    train, test = load(folder, "train"), load(folder, "test")
    assert is_well_formed(train) and train.labels is None and train.label_names is None
    np.testing.assert_array_equal(test.ys, ys[[0, 10]])
    np.testing.assert_array_equal(train.ys, np.delete(ys, [0, 10], axis=0))


def test_folder_with_splits(tmp_path):
    ys = pictures(5)
    save_pictures(tmp_path / "train", ys[:3])
    save_pictures(tmp_path / "test", ys[3:])
    np.testing.assert_array_equal(load(tmp_path, "train").ys, ys[:3])
    np.testing.assert_array_equal(load(tmp_path, "test").ys, ys[3:])


def test_folder_of_classes(tmp_path):
    ys = pictures(11)
    save_pictures(tmp_path / "dogs", ys[6:])
    save_pictures(tmp_path / "cats", ys[:6])
    train, test = load(tmp_path, "train"), load(tmp_path, "test")
    assert train.label_names == test.label_names == ("cats", "dogs")
    assert train.labels.tolist() == [0] * 5 + [1] * 4 and test.labels.tolist() == [0, 1]
    np.testing.assert_array_equal(test.ys, ys[[0, 10]])


def test_folder_of_splits_and_classes_labels_both_splits_alike(tmp_path):
    ys = pictures(4)
    for i, folder in enumerate(("train/a", "train/b", "train/c", "test/c")):
        save_pictures(tmp_path / folder, ys[i : i + 1])
    train, test = load(tmp_path, "train"), load(tmp_path, "test")
    assert train.labels.tolist() == [0, 1, 2] and test.labels.tolist() == [2]
    assert train.label_names == test.label_names == ("a", "b", "c")
    np.testing.assert_array_equal(test.ys, ys[3:])


def test_grey_beside_colour_becomes_rgb(tmp_path):
    save_pictures(tmp_path, pictures(1), ["0.png"])
    save_pictures(tmp_path, pictures(1), ["1.png"])
    save_pictures(tmp_path, pictures(1, channels=3), ["2.png"])
    train = load(tmp_path, "train").ys
    np.testing.assert_array_equal(train[0], np.repeat(pictures(1)[0], 3, axis=-1))
    np.testing.assert_array_equal(train[1], pictures(1, channels=3)[0])


@pytest.mark.parametrize(("mode", "levels"), [("LA", [255]), ("RGBA", [255, 155, 155])])
def test_transparency_is_laid_on_white(tmp_path, mode, levels):
    pixel = (100, 0) if mode == "LA" else (255, 0, 0, 100)
    for i in range(2):
        Image.new(mode, (3, 2), pixel).save(tmp_path / f"{i}.png")
    data = load(tmp_path, "test")
    assert data.ys.shape == (1, 2, 3, len(levels))
    assert data.ys[0, 0, 0].tolist() == levels


def test_size_resizes_images_of_several_sizes(tmp_path):
    save_pictures(tmp_path, [*pictures(2, 4, 5), *pictures(2, 9, 7)])
    data = load(tmp_path, "train", size=(6, 8))
    assert is_well_formed(data) and data.ys.shape == (3, 6, 8, 1)
    constant = np.full((4, 5, 3), 77, np.uint8)
    np.testing.assert_array_equal(resized(constant, (6, 8)), np.full((6, 8, 3), 77))


def deep_png(kind, channels, value=999):
    """The bytes of a PNG of 2 x 3 pixels with 16 bits a channel, which pillow does not write."""

    def chunk(name, content):
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    rows = (b"\0" + np.full((3, channels), value, ">u2").tobytes()) * 2
    head = struct.pack(">IIBBBBB", 3, 2, 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_tiff():
    """A TIFF of one RGB pixel with 16 bits a channel: the head, eight entries, the bits, the pixel."""
    bits, pixel = 8 + 2 + 8 * 12 + 4, 8 + 2 + 8 * 12 + 4 + 6
    entries = [(256, 4, 1, 1), (257, 4, 1, 1), (258, 3, 3, bits), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, pixel)]
    entries += [(277, 3, 1, 3), (279, 4, 1, 6)]
    head = b"II*\0" + struct.pack("<IH", 8, 8) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return head + struct.pack("<I3H3H", 0, 16, 16, 16, 999, 999, 999)


DEEP = {
    "grey.png": deep_png(0, 1),
    "rgb.png": deep_png(2, 3),
    "grey_alpha.png": deep_png(4, 2),
    "rgba.png": deep_png(6, 4),
    "rgb.ppm": b"P6 3 2 999\n" + np.full(18, 999, ">u2").tobytes(),
    "full.ppm": b"P6 3 2 65535\n" + np.full(18, 999, ">u2").tobytes(),
    "plain.ppm": b"P3 3 2 999\n" + b"999 " * 18,
    "grey.pgm": b"P5 3 2 999\n" + np.full(6, 999, ">u2").tobytes(),
    "rgb.tiff": deep_tiff(),
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_are_refused(name, tmp_path):
    """Pillow itself gives the upper eight of the bits of a colour: 999 as 3."""
    (tmp_path / name).write_bytes(DEEP[name])
    refusal(ValueError, [name, "more than 8 bits", "want 8-bit images"], tmp_path, "test")


@pytest.mark.parametrize(("name", "content"), [("a.ppm", b"P6 1 1 100\n\x64\x00\x32"), ("a.ppm", b"P3 1 1 15 15 0 8")])
def test_fewer_than_8_bits_are_scaled(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert load(tmp_path, "test").ys.ravel().tolist() == pytest.approx([255, 0, 128], abs=9)


def test_16_bit_pixels_of_a_bitmap_are_8_bit_colours(tmp_path):
    """BMP's 5 + 6 + 5 bits: white and black."""
    head = struct.pack("<2sIHHI", b"BM", 70 + 4, 0, 0, 70) + struct.pack(
        "<IiiHHIIiiII", 56, 2, 1, 1, 16, 3, 4, 0, 0, 0, 0
    )
    masks = struct.pack("<IIII", 0xF800, 0x07E0, 0x001F, 0)
    (tmp_path / "a.bmp").write_bytes(head + masks + struct.pack("<HH", 0xFFFF, 0))
    np.testing.assert_array_equal(load(tmp_path, "test").ys, [[[[255] * 3, [0] * 3]]])


@pytest.mark.parametrize(("suffix", "colours"), [("png", 1), ("gif", 1), ("bmp", 1), ("png", 3), ("gif", 3)])
def test_a_palette_counts_by_its_colours(suffix, colours, tmp_path):
    image = Image.new("P", (3, 2), 1)
    image.putpalette([0, 0, 0, 90, 90, 90] if colours == 1 else [0, 0, 0, 90, 20, 30])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / f"a.{suffix}")
    ys = load(tmp_path, "test").ys
    assert ys.shape == (1, 2, 3, colours)
    assert ys[0, :, :, 0].tolist() == [[0, 90, 90], [90, 90, 90]]


def test_both_splits_have_the_channels_of_the_richest(tmp_path):
    """One image in colour is held out, or lies in the other split."""
    save_pictures(tmp_path / "flat", [pictures(1, channels=3)[0], *pictures(3)])
    save_pictures(tmp_path / "split/train", pictures(2))
    save_pictures(tmp_path / "split/test", pictures(1, channels=3))
    assert {load(tmp_path / name, split).ys.shape[3] for name in ("flat", "split") for split in ("train", "test")} == {
        3
    }


def test_photos_are_brought_to_size_one_by_one(tmp_path, monkeypatch):
    """Six photos of 4.3 MB each in memory of less than two; a JPEG is not even decoded in full."""
    wide = np.tile(np.linspace(0, 255, 1800).astype(np.uint8)[None, :, None], (800, 1, 3))
    for i in range(6):
        Image.fromarray(wide).save(tmp_path / f"{i}.{'jpg' if i else 'png'}")
    seen, fit = [], ImageOps.fit
    monkeypatch.setattr(ImageOps, "fit", lambda image, *args: seen.append(image.size) or fit(image, *args))
    tracemalloc.start()
    ys = load(tmp_path, "train", size=(8, 6)).ys
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ys.shape == (5, 8, 6, 3) and peak < 2 * wide.nbytes
    assert seen == [(225, 100)] * 5
    middle = np.linspace(0, 255, 1800)[600:1200].reshape(6, 100).mean(axis=1)  # 600 of 1800 columns are kept
    np.testing.assert_allclose(ys, np.broadcast_to(middle[:, None], ys.shape), atol=3)


def test_pictures_keep_their_proportions(tmp_path):
    """Of 4 x 8 pixels the middle 4 x 4, of 8 x 4 as well; in a folder and in an array, and turned by EXIF."""
    wide = np.zeros((4, 8, 1), np.uint8)
    wide[:, 2:6] = np.arange(16, dtype=np.uint8).reshape(4, 4, 1) * 16 + 1
    save_pictures(tmp_path / "own", [wide] * 10)
    turned = Image.fromarray(np.rot90(wide[..., 0]))
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned.save(tmp_path / "own/000.png", exif=exif)
    np.save(tmp_path / "own.npy", np.stack([wide] * 10))
    for source in ("own", "own.npy"):
        for split in ("train", "test"):
            for y in load(tmp_path / source, split, size=(4, 4)).ys:
                np.testing.assert_array_equal(y, wide[:, 2:6])
    np.testing.assert_array_equal(resized(wide.swapaxes(0, 1), (4, 4)), wide[:, 2:6].swapaxes(0, 1))


@pytest.mark.parametrize(("labelled", "flat"), [("train", "test"), ("test", "train"), ("Train", "TEST")])
def test_classes_in_one_split_only(labelled, flat, tmp_path):
    ys = pictures(5)
    save_pictures(tmp_path / labelled / "a", ys[:1])
    save_pictures(tmp_path / labelled / "b", ys[1:3])
    save_pictures(tmp_path / flat, ys[3:])
    one, other = load(tmp_path, labelled.lower()), load(tmp_path, flat.lower())
    assert one.labels.tolist() == [0, 1, 1] and one.label_names == ("a", "b")
    assert other.labels is None and other.label_names is None
    np.testing.assert_array_equal(one.ys, ys[:3])
    np.testing.assert_array_equal(other.ys, ys[3:])


@pytest.mark.parametrize("wrapping", ["", "data/", "a/b/"])
def test_images_below_a_class_are_of_it(wrapping, tmp_path):
    """class/images/*.JPEG, deeper ones, links; with a folder around all, with and without splits."""
    ys = pictures(11)
    root = tmp_path / "here"
    save_pictures(root / wrapping / "train/cats/images", ys[:2], ["0.png", "1.PNG"])
    save_pictures(root / wrapping / "train/dogs", ys[2:3])
    save_pictures(tmp_path / "elsewhere/2019/may", ys[3:4])
    (root / wrapping / "train/dogs/more").symlink_to(tmp_path / "elsewhere")
    save_pictures(root / wrapping / "test/dogs/images", ys[4:5])
    (root / wrapping / "__MACOSX").mkdir()
    train, test = load(root, "train"), load(root, "test")
    assert train.labels.tolist() == [0, 0, 1, 1] and test.labels.tolist() == [1]
    assert train.label_names == test.label_names == ("cats", "dogs")
    np.testing.assert_array_equal(train.ys, ys[:4])

    save_pictures(tmp_path / "there" / wrapping / "cats/images", ys[:6])
    save_pictures(tmp_path / "there" / wrapping / "dogs/images", ys[6:])
    train = load(tmp_path / "there", "train")
    assert train.label_names == ("cats", "dogs") and train.labels.tolist() == [0] * 5 + [1] * 4


@pytest.mark.parametrize("suffix", ["jfif", "JPE", "webp", "avif", "pnm"])
def test_further_kinds_of_files(suffix, tmp_path):
    kind = {"jfif": "jpeg", "JPE": "jpeg", "pnm": "ppm"}.get(suffix, suffix)
    if kind == "avif" and not features.check("avif"):
        pytest.skip("pillow without AVIF")
    Image.new("RGB", (16, 16), (200, 100, 50)).save(tmp_path / f"a.{suffix}", kind)
    np.testing.assert_allclose(load(tmp_path, "test").ys[0], np.full((16, 16, 3), [200, 100, 50]), atol=4)


def test_size_resizes_arrays_too():
    assert load("emoji_mini", "test", size=(8, 12)).ys.shape == (99, 8, 12, 3)


# Refusals: each says what was got, what was wanted and the usual cause.


def refusal(error, words, *args, **options):
    with pytest.raises(error) as caught:
        load(*args, **options)
    for word in words:
        assert word in str(caught.value), f"{word!r} not in {caught.value}"


def test_unknown_name_lists_the_known_ones():
    refusal(ValueError, ["'fashion_mnst'", *NAMES, "npz", "folder", "data_dir"], "fashion_mnst")


@pytest.mark.parametrize("name", ["./gone.npz", "gone.npy", "~/gone/folder", "my-images", "a/b/c"])
def test_missing_path_says_so(name):
    refusal(FileNotFoundError, [name, "does not exist", *NAMES], name)


def test_bad_options():
    refusal(ValueError, ["split='valid'", "train", "test"], "emoji_mini", "valid")
    refusal(ValueError, ["name is empty"], "")
    for size in ((0, 3), 32, (8,), (8, 8, 3), (8.5, 8), "8x8", (-1, 3), (None, 3)):
        refusal(ValueError, [f"size={size!r}", "(h, w)", "such as (32, 32)"], "emoji_mini", size=size)
    assert load("emoji_mini", "test", size=[8, np.int64(8)]).ys.shape == (99, 8, 8, 3)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((0, 4, 4), np.uint8), ["empty", "(0, 4, 4)"]),
        (np.zeros((20, 784), np.uint8), ["(18, 784)", "(n, h, w, channels)", "reshape"]),
        (np.zeros((20, 2, 2, 2, 2), np.uint8), ["(18, 2, 2, 2, 2)", "(n, h, w)"]),
        (np.uint8(3), ["one number", "(n, h, w)"]),
        (np.zeros((20, 3, 8, 8), np.uint8), ["(18, 3, 8, 8)", "channels last", "moveaxis"]),
        (np.full((20, 4, 4), 0.5), ["float64", "(x * 255).round().astype(np.uint8)"]),
        (np.full((20, 4, 4), 200.0), ["float64", "[200, 200]", "x.round().astype(np.uint8)"]),
        (np.full((20, 4, 4), np.nan, np.float32), ["float32", "NaN", "288"]),
        (np.full((20, 4, 4), 256), ["[256, 256]", "[0, 255]"]),
        (np.full((20, 4, 4), -1), ["[-1, -1]", "[0, 255]"]),
        (np.ones((20, 4, 4), np.uint8), ["0 or 1", "x * 255"]),
        (np.ones((20, 4, 4), bool), ["bool", "uint8"]),
        (np.full((20, 4, 4), "a"), ["<U1", "uint8"]),
        (np.full((20, 4, 4), None), ["Python objects", "never read"]),
    ],
)
def test_arrays_refused(tmp_path, array, words):
    np.save(tmp_path / "own.npy", array, allow_pickle=True)
    refusal(ValueError, ["own.npy", *words], tmp_path / "own.npy")


def test_npz_refusals(tmp_path):
    ys = pictures(4)
    refusal(
        ValueError,
        ["['pics', 'tags']", "test_image", "label"],
        save_npz(tmp_path / "keys.npz", pics=ys, tags=ys),
        "test",
    )
    half = save_npz(tmp_path / "half.npz", train_image=ys)
    refusal(ValueError, ["['train_image']", "test_image"], half, "test")
    refusal(ValueError, ["nothing.npz", "the keys []", "want train_image"], save_npz(tmp_path / "nothing.npz"))
    objects = save_npz(tmp_path / "objects.npz", image=np.full(3, None))
    refusal(ValueError, ["objects.npz", "Python objects"], objects)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.arange(3), ["int64", "(3,)", "(4,)"]),
        (np.eye(4, dtype=int), ["(4, 4)", "(4,)"]),
        (np.zeros(4), ["float64", "integers"]),
        (np.array([0, 1, -1, 0]), ["-1", "negative"]),
        (np.array([0, 1, 2, 0]), ["label 2", "no name", "2 label_names"]),
    ],
)
def test_labels_refused(tmp_path, labels, words):
    path = save_npz(
        tmp_path / "own.npz",
        train_image=pictures(4),
        train_label=labels,
        label_names=np.array(["a", "b"]),
    )
    refusal(ValueError, ["own.npz", *words], path)


def test_one_array_with_too_few_labels(tmp_path):
    path = save_npz(tmp_path / "own.npz", image=pictures(30), label=np.arange(5))
    refusal(ValueError, ["5 labels", "30 images"], path)


def test_damaged_files(tmp_path):
    np.save(tmp_path / "own.npy", pictures(20))
    whole = {
        "own.npy": (tmp_path / "own.npy").read_bytes(),
        "own.npz": save_npz(tmp_path / "own.npz", image=pictures(20)).read_bytes(),
        "own.idx": idx_bytes(pictures(20)[..., 0]),
        "own.gz": gzip.compress(idx_bytes(pictures(20)[..., 0])),
    }
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content[:-9])
        refusal(ValueError, [name, "damaged"], tmp_path / name)
    (tmp_path / "header.npy").write_bytes(whole["own.npy"][:60])
    refusal(ValueError, ["header.npy", "damaged"], tmp_path / "header.npy")
    (tmp_path / "short.idx").write_bytes(bytes([0, 0, 8, 3, 0, 0]))
    refusal(ValueError, ["short.idx", "damaged"], tmp_path / "short.idx")
    (tmp_path / "float.idx").write_bytes(bytes([0, 0, 13, 1, 0, 0, 0, 0]))
    refusal(ValueError, ["float.idx", "unsigned bytes", "00 00 0d 01"], tmp_path / "float.idx")


def test_other_files_are_refused(tmp_path):
    save_pictures(tmp_path, pictures(1), ["one.png"])
    refusal(ValueError, ["one.png", "neither npz, npy nor IDX", "folder"], tmp_path / "one.png")
    (tmp_path / "empty").write_bytes(b"")
    refusal(ValueError, ["empty", "neither npz"], tmp_path / "empty")


def test_idx_folder_without_the_other_split(tmp_path):
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(pictures(2)[..., 0]))
    refusal(FileNotFoundError, ["t10k-images-idx3-ubyte", "does not exist"], tmp_path, "test")
    refusal(FileNotFoundError, ["train-labels-idx1-ubyte", "does not exist"], tmp_path, "train")
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"\0" * 99)[:-9])
    refusal(ValueError, ["train-labels-idx1-ubyte.gz", "damaged"], tmp_path, "train")


def test_folder_refusals(tmp_path):
    (tmp_path / "none").mkdir()
    refusal(ValueError, ["none", "no images", ".png"], tmp_path / "none")

    save_pictures(tmp_path / "half" / "train", pictures(2))
    refusal(FileNotFoundError, ["test", "does not exist", "half", "['train']"], tmp_path / "half", "test")

    save_pictures(tmp_path / "both", pictures(2))
    save_pictures(tmp_path / "both" / "cats", pictures(2))
    refusal(ValueError, ["both images", "folders of images", "cats"], tmp_path / "both")

    folder = save_pictures(tmp_path / "sizes", [*pictures(3, 4, 5), *pictures(2, 5, 4)])
    refusal(ValueError, ["003.png", "(5, 4)", "001.png", "(4, 5)", "size=(h, w)", "--size"], folder)

    save_pictures(tmp_path / "torn", pictures(3))
    (tmp_path / "torn" / "001.png").write_bytes(b"no png")
    refusal(ValueError, ["001.png", "cannot be read"], tmp_path / "torn")

    (tmp_path / "deep").mkdir()
    for i in range(2):
        Image.fromarray(np.full((2, 2), 999, np.uint16)).save(tmp_path / "deep" / f"{i}.png")
    refusal(ValueError, ["1.png", "more than 8 bits"], tmp_path / "deep")


# Properties.


@given(n=st.integers(1, 400))
@settings(deadline=None, max_examples=30)
def test_held_out_splits_are_a_partition(n):
    train, test = held_out(n, "train"), held_out(n, "test")
    assert sorted([*train, *test]) == list(range(n))
    assert len(test) == -(-n // 10)


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(2, 6), st.integers(1, 6)),
    channels=st.sampled_from([None, 1, 3]),
    dtype=st.sampled_from([np.uint8, np.int16, np.int32, np.uint64]),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=30)
def test_integer_images_keep_their_values(shape, channels, dtype, seed):
    full = shape if channels is None else (*shape, channels)
    array = np.random.default_rng(seed).integers(0, 256, full).astype(dtype)
    array.flat[0] = 255
    ys = as_images(array, "here")
    assert ys.dtype == np.uint8 and ys.shape == (*shape, channels or 1)
    np.testing.assert_array_equal(ys.reshape(array.shape), array)


def test_loading_carried_arrays_imports_neither_tfds_nor_pillow():
    code = (
        "import sys; from vae_jax.data import load; load('emoji_mini');"
        "print([m for m in ('tensorflow_datasets', 'tensorflow', 'PIL') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# Tables


def test_carried_tables():
    """Old Faithful's published means (72.3 and 3.46 minutes); iris is scikit-learn's."""
    geyser, iris = load_table("geyser"), load_table("iris")
    assert geyser.ys.shape == (299, 2) and geyser.columns == ("waiting", "duration")
    np.testing.assert_allclose(geyser.ys.mean(axis=0), [72.3144, 3.4608], atol=1e-4)
    np.testing.assert_array_equal(iris.ys, load_iris().data)
    assert all("carried by vae_jax" in table.source for table in (geyser, iris))


def test_own_table(tmp_path):
    """Comments and blank lines are skipped, an empty field is missing."""
    path = tmp_path / "own.csv"
    path.write_text('# source\n"a", b\n1,2\n\n3,\n-1e3,0.5\n')
    table = load_table(path)
    assert table.columns == ("a", "b") and str(path) in table.source
    np.testing.assert_array_equal(table.ys, [[1, 2], [3, np.nan], [-1000, 0.5]])


NAN, UNNAMED = float("nan"), ("column 1", "column 2")
TABLES = {  # content: names and numbers, by hand
    "no names": ("1,2\n3,4\n", UNNAMED, [[1, 2], [3, 4]]),
    "no names, first is missing": ("NA,2\n3,4\n", UNNAMED, [[NAN, 2], [3, 4]]),
    "no names, one column": ("1\n\n3", UNNAMED[:1], [[1], [NAN], [3]]),
    "no names, trailing commas": ("1,2,\n3,4,\n", UNNAMED, [[1, 2], [3, 4]]),
    "no names, one row": ("1,2", UNNAMED, [[1, 2]]),
    "a gap in one column": ("\n\na\n1\n\n \n4\n\n\n", "a", [[1], [NAN], [NAN], [4]]),
    "a comment is no gap": ("a\n1\n# why\n4\n", "a", [[1], [4]]),
    "a quoted gap at the end": ('a\n1\n""\n', "a", [[1], [NAN]]),
    "byte-order mark": ("\ufeffa,b\n1,2\n", "ab", [[1, 2]]),
    "byte-order mark and quotes": ('\ufeff"a","b"\n1,2\n', "ab", [[1, 2]]),
    "utf-16": ("a\tb\n1\t2\n".encode("utf-16"), "ab", [[1, 2]]),
    "latin-1": ("h\xf6he,b\n1,2\n".encode("latin-1"), ("h\xf6he", "b"), [[1, 2]]),
    "Windows-1252": ("price \u20ac,b\n1,2\n".encode("cp1252"), ("price \u20ac", "b"), [[1, 2]]),
    "trailing commas": ("a,b\n1,2,\n3,4,\n", "ab", [[1, 2], [3, 4]]),
    "trailing commas everywhere": ("a,b,\n1,2,\n3,4\n", "ab", [[1, 2], [3, 4]]),
    "a missing last field is no trailing comma": ("a,b\n1,\n3,4\n", "ab", [[1, NAN], [3, 4]]),
    "names of rows": (",b\n0,2\n1,4\n", ("column 1", "b"), [[0, 2], [1, 4]]),
    "semicolons": ("a;b\n1.5;2\n", "ab", [[1.5, 2]]),
    "decimal commas": ("a;b\n1,5;-2,25\n3;,5\n", "ab", [[1.5, -2.25], [3, 0.5]]),
    "semicolons without names": ("1,5;2\n3;4\n", UNNAMED, [[1.5, 2], [3, 4]]),
    "tabs": ("a\tb, c\n1\t2\n\t4\n", ("a", "b, c"), [[1, 2], [NAN, 4]]),
    "a semicolon in quotes": ('"a;b",c\n1,2\n', ("a;b", "c"), [[1, 2]]),
    "lines in quotes": ('"a\nx","say ""b"""\n"1",2\n', ("a\nx", 'say "b"'), [[1, 2]]),
    "marks": ("a,b\nNA,-\n?,.\nnull,#N/A\nNaN,n/a\n1e3,inf\n", "ab", [[NAN] * 2] * 4 + [[1000, np.inf]]),
    "old line ends": ("a,b\r1,2\r3,4\r", "ab", [[1, 2], [3, 4]]),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables_as_people_have_them(case, tmp_path):
    content, columns, ys = TABLES[case]
    path = tmp_path / "own.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    table = load_table(path)
    assert table.columns == tuple(columns) and table.ys.dtype == np.float64
    np.testing.assert_array_equal(table.ys, ys)
    assert ("without names" in table.source) == ("no names" in case or "without names" in case)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n", "numbers below; got 1"),
        ("", "numbers below; got 0"),
        ("# only\n\n", "numbers below; got 0"),
        ("a,b\n1,2\n1,2,3\n", "line 3: 3 fields, and the first line names 2"),
        ("# c\n\na,b\n1,2\n# c\n1,2,3\n", "line 6: 3 fields, and the first line names 2"),
        ('"a\nx",b\n1,2\n1\n', "line 4: 1 fields, and the first line names 2"),
        ("a|b\n1|2\n", "line 2, column 'a|b': could not convert .* separated by commas"),
        ("a,city\n1,2\n3,Paris\n", "line 3, column 'city': could not convert 'Paris' .* no column of words"),
        ("a,b\n1_000,2\n", "line 2, column 'a': could not convert '1_000'"),
        ('a,b\n"1,5",2\n', "line 2, column 'a': could not convert '1,5'"),
        ("a;b\n1.234,5;2\n", "line 2, column 'a': could not convert '1.234,5'"),
        ("a;b\n1.234;2,5\n", "some numbers have a decimal comma, some a point"),
        ('a,b\n1,2\n3,"4\n5,6\n', "line 3: .* quotation mark"),
        ("a,b\n1,2,\n1,2,3\n", "line 3: 3 fields, and the first line names 2"),
        ("a,b\0\n", "is no text.*np.load.*saved as CSV"),
    ],
)
def test_damaged_tables(tmp_path, content, message):
    path = tmp_path / "damaged.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"damaged.csv.*{message.replace('|', '[|]')}"):
        load_table(path)


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="carried tables are geyser, iris"):
        load_table("nowhere.csv")
    np.save(tmp_path / "own.npy", np.eye(3))
    with pytest.raises(ValueError, match=r"own.npy is no text.*np\.load"):
        load_table(tmp_path / "own.npy")


def test_what_reads_the_other_kind_is_named(tmp_path):
    """Tables given to `load`, images given to `load_table`; homes of no one."""
    (tmp_path / "own.csv").write_text("a,b\n1,2\n")
    refusal(ValueError, ["own.csv", "neither npz", "load_table"], tmp_path / "own.csv")
    refusal(ValueError, ["'geysir'", "load_table"], "geysir")
    with pytest.raises(FileNotFoundError, match=r"'emoji_mini'.*data\.load reads images"):
        load_table("emoji_mini")
    for reader in (load, load_table, text.load):
        with pytest.raises(FileNotFoundError, match=r"'~nobody_here/x\.npz' does not exist: no user"):
            reader("~nobody_here/x.npz")


def test_homes_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own.csv").write_text("a,b\n1,2\n")
    save_pictures(tmp_path / "own", pictures(2))
    assert load_table("~/own.csv").ys.tolist() == [[1, 2]]
    assert len(load("~/own", "test").ys) == 1
