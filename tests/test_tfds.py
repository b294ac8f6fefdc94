"""tensorflow-datasets for real: a genuine prepared data set, and its own mock for another name.

Nothing here has a network or TensorFlow. Debian's package dataset-fashion-mnist has the original
files but for two fields of the gzip header; with these put back, tensorflow-datasets accepts the
files by the checksums that it has registered.
"""

import gzip
import json
import pathlib
import struct
import sys
import types

import numpy as np
import pytest
from PIL import Image

from vae_jax.data import load
from vae_jax.data.datasets import DEBIAN

N = 256  # of each split
TIMES = {"train": 1504176606, "t10k": 1504176627}  # in the gzip headers of the original files
KINDS = ("images-idx3", "labels-idx1")


def restored(content: bytes, name: str, time: int) -> bytes:
    """The original file: the gzip header has its time and file name again (RFC 1952, 2.3.1)."""
    header = b"\x1f\x8b\x08\x08" + struct.pack("<I", time) + b"\x00\x03"
    return header + name.removesuffix(".gz").encode() + b"\x00" + content[10:]


def split_generators(builder, downloads):
    """Those of the genuine builder, without TensorFlow: it uses it only to unzip and encode."""
    urls = {pathlib.PurePosixPath(url).name: url for url in builder.url_infos}
    files = downloads.download(urls)  # found in the manual folder; their checksums are compared

    def examples(prefix):
        images, labels = (gzip.decompress(files[f"{prefix}-{kind}-ubyte.gz"].read_bytes()) for kind in KINDS)
        ys = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28)
        for i, (y, label) in enumerate(zip(ys, labels[8:], strict=True)):
            yield i, {"image": Image.fromarray(y), "label": label}

    return {"train": examples("train"), "test": examples("t10k")}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data_dir with the genuine `fashion_mnist`, the first N examples of each split."""
    if not DEBIAN.is_dir():
        pytest.skip(f"no {DEBIAN}: install Debian's package dataset-fashion-mnist")
    import tensorflow_datasets as tfds

    manual, data_dir = tmp_path_factory.mktemp("original"), tmp_path_factory.mktemp("tfds")
    for prefix, time in TIMES.items():
        for name in (f"{prefix}-{kind}-ubyte.gz" for kind in KINDS):
            (manual / name).write_bytes(restored((DEBIAN / name).read_bytes(), name, time))
    builder = tfds.builder("fashion_mnist", data_dir=data_dir, file_format="array_record")
    builder._split_generators = types.MethodType(split_generators, builder)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            manual_dir=manual,
            try_download_gcs=False,
            max_examples_per_split=N,
            force_checksums_validation=True,
        )
    )
    return data_dir


@pytest.fixture
def no_download(monkeypatch):
    import tensorflow_datasets as tfds

    def refuse(*args, **kwargs):
        raise AssertionError("asked to download")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", refuse)


def by_content(data):
    """Examples in an order of their own, since tensorflow-datasets shuffles what it writes."""
    return sorted((y.tobytes(), int(k)) for y, k in zip(data.ys, data.labels, strict=True))


def metadata(prepared, folder):
    """A copy of what tensorflow-datasets wrote about the data set, without the data."""
    version = next((prepared / "fashion_mnist").iterdir())
    copy = folder / "fashion_mnist" / version.name
    copy.mkdir(parents=True)
    for path in version.iterdir():
        if path.suffix in (".json", ".txt"):
            (copy / path.name).write_bytes(path.read_bytes())
    return copy


@pytest.mark.parametrize("split", ["train", "test"])
def test_prepared_fashion_mnist_equals_its_source(prepared, no_download, split):
    data = load("fashion_mnist", split, data_dir=prepared)
    source = load("fashion_mnist", split)
    assert "tensorflow-datasets" in data.source and "Debian" in source.source
    assert data.ys.shape == (N, 28, 28, 1) and data.ys.dtype == np.uint8
    assert data.labels.shape == (N,) and data.labels.dtype == np.int32
    assert data.label_names == source.label_names
    assert by_content(data) == by_content(source._replace(ys=source.ys[:N], labels=source.labels[:N]))
    assert "tensorflow" not in sys.modules


def test_prepared_images_can_be_resized(prepared, no_download):
    assert load("fashion_mnist", data_dir=prepared, size=(14, 7)).ys.shape == (N, 14, 7, 1)


def test_the_default_folder_is_looked_in(prepared, no_download, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setattr("vae_jax.data.datasets.DEBIAN", pathlib.Path("/nonexistent"))
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(prepared))
    assert len(load("fashion_mnist").ys) == N


def test_a_given_folder_is_never_replaced_by_debians(tmp_path, no_download):
    with pytest.raises(FileNotFoundError, match="not prepared in"):
        load("fashion_mnist", data_dir=tmp_path)


def test_known_but_not_prepared(tmp_path, no_download):
    with pytest.raises(FileNotFoundError) as caught:
        load("mnist", data_dir=tmp_path)
    for words in ("'mnist'", "not prepared", str(tmp_path), "array_record", "download=True"):
        assert words in str(caught.value)


def test_prepared_as_tfrecord_says_so(prepared, tmp_path, no_download):
    """A copy of the metadata that claims tfrecord: the message names the format wanted."""
    copy = metadata(prepared, tmp_path)
    info = json.loads((copy / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    (copy / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"only TensorFlow reads.*array_record"):
        load("fashion_mnist", data_dir=tmp_path)


def test_a_split_that_is_not_there(prepared, tmp_path, no_download):
    """A copy of the metadata without "test": the message lists the splits there are."""
    copy = metadata(prepared, tmp_path)
    info = json.loads((copy / "dataset_info.json").read_text())
    info["splits"] = [s for s in info["splits"] if s["name"] == "train"]
    (copy / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=r"'test'.*\['train'\]"):
        load("fashion_mnist", "test", data_dir=tmp_path)


def test_mock_data_of_another_name():
    """tensorflow-datasets' mock knows no files, so it is asked to "download", which it mocks."""
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=7):
        data = load("mnist", "test", download=True)
    assert data.ys.shape == (7, 28, 28, 1) and data.ys.dtype == np.uint8
    assert data.labels.shape == (7,) and data.labels.dtype == np.int32
    assert data.label_names == tuple("0123456789")
    assert "tensorflow" not in sys.modules


def test_mock_data_in_colour():
    import tensorflow_datasets as tfds

    with tfds.testing.mock_data(num_examples=3):
        assert load("cifar10", download=True).ys.shape == (3, 32, 32, 3)


def test_data_without_images_are_refused():
    import tensorflow_datasets as tfds

    with (
        tfds.testing.mock_data(num_examples=3),
        pytest.raises(ValueError, match="none of them is an image"),
    ):
        load("imdb_reviews", download=True)


def test_images_of_several_sizes_are_refused_or_resized():
    import tensorflow_datasets as tfds

    def two_sizes(self, split, **kwargs):
        return [{"image": np.zeros((4, 5 + i, 3), np.uint8), "label": i} for i in range(2)]

    with tfds.testing.mock_data(as_data_source_fn=two_sizes):
        with pytest.raises(ValueError, match=r"image 1 has shape \(4, 6, 3\).*size=\(h, w\)"):
            load("cats_vs_dogs", download=True)
        assert load("cats_vs_dogs", download=True, size=(3, 2)).ys.shape == (2, 3, 2, 3)
