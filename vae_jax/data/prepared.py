"""Data sets prepared by tensorflow-datasets as array_record files, read without TensorFlow."""

import os
from typing import Any

import numpy as np

from vae_jax.data.images import Found, resized


def read_prepared(
    name: str,
    split: str,
    data_dir: str | os.PathLike | None,
    download: bool,
    size: tuple[int, int] | None,
) -> Found | None:
    """One split of a data set by its tensorflow-datasets name; None where there is no such name.

    Args:
        name: `name`, `name/config` or `name:version`.
        split: as the data set calls it.
        data_dir: where it was prepared; None for the default of tensorflow-datasets.
        download: download and prepare it if need be. Without a network this retries for minutes,
            and the preparation of many data sets (never the reading) needs TensorFlow.
        size: resize to (h, w).

    Raises:
        FileNotFoundError: the name is known, but the data set is not prepared in that folder.
        ValueError: prepared in a format that only TensorFlow reads, no such split (the message of
            tensorflow-datasets lists them), no image, or images of several sizes.
    """
    import tensorflow_datasets as tfds

    try:
        file_format = "array_record" if download else None  # None: as it was prepared
        builder = tfds.builder(name, data_dir=data_dir, file_format=file_format)
    except tfds.core.DatasetNotFoundError:
        return None
    if download:
        builder.download_and_prepare()
    elif not builder.is_prepared():
        raise FileNotFoundError(
            f"{name!r} is known to tensorflow-datasets, but is not prepared in "
            f"{builder.data_path}; prepare it there with file_format='array_record', pass the "
            "data_dir that has it, or pass download=True"
        )
    try:
        examples = builder.as_data_source(split)
    except NotImplementedError as error:
        raise ValueError(
            f"{builder.data_path} was prepared in a format that only TensorFlow reads; prepare it "
            "again with file_format='array_record'"
        ) from error
    info = builder.info
    image, label = _keys(info.features, name)
    ys, labels = [], []
    for example in examples:
        ys.append(example[image] if size is None else resized(example[image], size))
        labels.append(None if label is None else example[label])
        if ys[-1].shape != ys[0].shape:
            raise ValueError(
                f"{name}: image {len(ys) - 1} has shape {ys[-1].shape}, the first {ys[0].shape}; "
                "all images must have one size: size=(h, w), or --size H W, resizes them"
            )
    licence = info.redistribution_info.license or "not stated there"
    source = f"tensorflow-datasets {info.full_name} in {builder.data_path} (licence: {licence})"
    if label is None:
        return Found(np.array(ys), None, None, source)
    return Found(np.array(ys), np.array(labels), info.features[label].names, source)


def _keys(features: Any, name: str) -> tuple[str, str | None]:
    """The first image and the first class label among the features."""
    import tensorflow_datasets as tfds

    images = [key for key, feature in features.items() if isinstance(feature, tfds.features.Image)]
    labels = [key for key, feature in features.items() if isinstance(feature, tfds.features.ClassLabel)]
    if not images:
        raise ValueError(f"{name} has the features {sorted(features)}, and none of them is an image")
    return images[0], next(iter(labels), None)
