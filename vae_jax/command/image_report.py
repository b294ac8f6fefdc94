"""What reports show: images as pictures, draws of a model, and of any data the bound by epoch."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import vae_jax
from vae_jax.command.results import by_epoch, over_batch
from vae_jax.data import Preprocess
from vae_jax.report import page, pictures

History = Sequence[dict[str, Any]]  # of `fit`: a row for each record


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


def learning_curve(history: History | Mapping[str, History], *, unit: str = "image", note: str = "") -> page.Section:
    """-ELBO by epoch in nats per `unit`, one word; and its two parts, where there is a latent and validation.

    Args:
        history: of one training, or of several by their names.
        note: a sentence to add.
    """
    runs = history if isinstance(history, Mapping) else {"": history}
    bound = _curves(runs, {"training": "elbo", "validation": "valid_elbo"}, -1)
    rate = _curves(runs, {"rate": "valid_rate"})
    drawn = [page.Picture(pictures.curves(bound, y=f"-ELBO, nats per {unit}"), "bound by epoch")]
    caption = f"The bound -ELBO in nats per {unit} (lower is better)"
    if any(np.any(values) for _, values in rate.values()):  # 0 where nothing is latent
        parts = rate | _curves(runs, {"distortion": "valid_distortion"})
        drawn.append(page.Picture(pictures.curves(parts, y=f"nats per {unit}"), "rate and distortion by epoch"))
        caption += f", and its two parts on the validation {unit}s"
    return page.Section("Learning curve", f"{caption}. {note}".strip(), drawn)


def _curves(runs: Mapping[str, History], fields: Mapping[str, str], sign: int = 1) -> dict[str, Any]:
    """(epochs, values) of these fields of each run, those that were taken."""
    found = {
        f"{run}, {name}" if run else name: by_epoch(history, field, sign)
        for run, history in runs.items()
        for name, field in fields.items()
    }
    return {name: curve for name, curve in found.items() if len(curve[0])}
