"""What reports on images show: images as pictures, draws of a model, the bound by epoch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import vae_jax
from vae_jax.command.results import by_epoch, over_batch
from vae_jax.data import Preprocess
from vae_jax.report import page, pictures


class Pictured(NamedTuple):
    """A model whose generator gives means, with its parts and how data reach it."""

    encoder: vae_jax.Conditional
    generator: vae_jax.Model
    model: vae_jax.Model
    preprocess: Preprocess


def enlarged(image: np.ndarray, height: int) -> bytes:
    """A grid of images of this height as a PNG, in which small ones are large enough to be seen."""
    return pictures.png(image, max(1, 56 // height))


def picture(
    images: np.ndarray,
    columns: int,
    alt: str,
    caption: str = "",
    *,
    above: Sequence[str] = (),
    beside: Sequence[str] = (),
) -> page.Picture:
    """Images (n, h, w, channels) in rows of so many, the names of columns above them and those of rows beside them."""
    return page.Picture(enlarged(pictures.grid(images, columns), images.shape[1]), alt, caption, above, beside)


def of_classes(names: Sequence[str] | None, cs: np.ndarray | None) -> Sequence[str]:
    """What to write above columns that are classes: their names, else their numbers; nothing where a model has none."""
    if cs is None:
        return ()
    return names or [str(k) for k in range(cs.shape[1])]


def show(preprocess: Preprocess, means: Any) -> np.ndarray:
    """Means in the model's units as pictures in [0, 1]."""
    return np.clip(np.asarray(means, np.float32) / preprocess.white, 0, 1)


def in_turn(cs: np.ndarray | None, n: int) -> np.ndarray | None:
    """(n, classes): the classes in turn, as conditions of n draws; None where a model has none."""
    return None if cs is None else np.eye(cs.shape[1], dtype=np.float32)[np.arange(n) % cs.shape[1]]


def draw_samples(pictured: Pictured, params: Any, key: jax.Array, cs: np.ndarray | None, n: int = 60) -> np.ndarray:
    """n pictures (n, h, w, channels): the generator's means at z from the prior."""
    means = over_batch(pictured.model.sample, params, jax.random.split(key, n), in_turn(cs, n))
    return show(pictured.preprocess, means)


def learning_curve(history: Sequence[dict[str, Any]]) -> page.Section:
    """-ELBO by epoch, and its two parts."""
    bound = {"training": by_epoch(history, "elbo", -1), "validation": by_epoch(history, "valid_elbo", -1)}
    parts = {name: by_epoch(history, f"valid_{name}") for name in ("rate", "distortion")}
    return page.Section(
        "Learning curve",
        "The bound -ELBO in nats per image (lower is better), and its two parts on the validation images.",
        [
            page.Picture(pictures.curves(bound, y="-ELBO, nats per image"), "bound by epoch"),
            page.Picture(pictures.curves(parts, y="nats per image"), "rate and distortion by epoch"),
        ],
    )
