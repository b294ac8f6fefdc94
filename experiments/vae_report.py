"""What the report of `experiments.vae` shows: the table of numbers, and pictures of what the model makes."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from experiments.shared.image_report import Pictured, draw_samples, enlarged, learning_curve, of_classes, picture, show
from experiments.shared.images import Split
from experiments.shared.results import over_batch
from vae_jax import Evaluation, Fitted, core
from vae_jax.evaluation import active_units, bits_per_dimension, mean
from vae_jax.report import page, pictures
from vae_jax.training.run_directory import to_path


def table(result: Evaluation, fitted: Fitted, n: int) -> list[page.Row]:
    """The numbers of the run, with what they mean."""
    where = f"nats per image, {n} test images, {result.convention}"
    rows = [
        page.Row("test ELBO", *mean(result.elbo), f"{where}; higher is better"),
        page.Row("rate", *mean(result.rate), "nats; ln enc(z|y) - ln pri(z)"),
        page.Row("distortion", *mean(result.distortion), "nats; -ln gen(y|z), ln Z included"),
    ]
    if result.log_likelihood is not None:
        rows.append(
            page.Row(
                f"ln P(y) at least (k={result.k})", *mean(result.log_likelihood), "nats; importance-weighted bound"
            )
        )
    bits = bits_per_dimension(result)
    if bits is not None:
        rows.append(page.Row("bits/dim at most", *bits, f"from the ELBO; {result.dimensions} dimensions"))
    active = active_units(result)
    if active is not None and result.unit_variance is not None:
        units = len(result.unit_variance)
        rows.append(page.Row("active units", active, None, f"of {units}; variance of the posterior mean > 0.01"))
    rows.append(page.Row("training speed", fitted.images_per_second, None, "images/s, median epoch after the first"))
    return rows


def sections(
    pictured: Pictured,
    fitted: Fitted,
    result: Evaluation,
    key: jax.Array,
    test: Split,
    label_names: Sequence[str] | None,
    directory: str,
) -> list[page.Section]:
    """The pictures of the report; `overview.png`, the run in one picture, is also written to the directory."""
    k_samples, k_pairs, k_lines, k_map, k_overview = jax.random.split(key, 5)
    height = test.ys.shape[1]
    columns = 10 if test.cs is None else test.cs.shape[1]
    samples = draw_samples(pictured, fitted.params, k_samples, test.cs, 6 * columns)
    pairs = draw_pairs(pictured, fitted.params, k_pairs, test)
    lines = draw_interpolations(pictured, fitted.params, k_lines, test)
    overview = draw_overview(pictured, fitted.params, k_overview, test)
    if jax.process_index() == 0:
        (to_path(directory) / "overview.png").write_bytes(enlarged(overview, height))

    return [
        learning_curve(fitted),
        page.Section(
            "Samples",
            "z from the prior, then the generator's mean" + ("." if test.cs is None else ", a column for each class."),
            [picture(samples, columns, "samples from the model", above=of_classes(label_names, test.cs))],
        ),
        page.Section(
            "Reconstructions",
            "Test images, and beside each the generator's mean for one z drawn from the encoder.",
            [page.Picture(enlarged(pictures.pairs(*pairs), height), "originals and reconstructions")],
        ),
        page.Section(
            "Interpolations",
            "In each row the first and the last picture are the generator's means for the codes of two test images; "
            "between them, the straight line from one code to the other.",
            [picture(lines, 10, "interpolations")],
        ),
        latent_map(pictured, fitted.params, k_map, test, label_names),
        *unit_rates(result),
    ]


def unit_rates(result: Evaluation) -> list[page.Section]:
    """The rate of each unit of z, largest first, where the model has one."""
    if result.unit_rate is None:
        return []
    drawn = pictures.bars(np.sort(result.unit_rate)[::-1], y="rate, nats per image")
    return [
        page.Section(
            "Rate per unit",
            "How many nats each unit of z carries on average over the test images; a unit at 0 is not used.",
            [page.Picture(drawn, "rate of each latent unit")],
        )
    ]


def latent_map(
    pictured: Pictured, params: Any, key: jax.Array, test: Split, label_names: Sequence[str] | None
) -> page.Section:
    """The test images' codes in the plane: z itself where it has two dimensions, else its two principal axes."""
    codes = encode(pictured, params, key, test).reshape(len(test.ys), -1)
    x, y, plane = "z₁", "z₂", ""
    if codes.shape[1] == 1:
        codes, y = np.concatenate([codes, np.zeros_like(codes)], axis=1), ""
    if codes.shape[1] > 2:
        centred = codes - codes.mean(axis=0)
        codes = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
        x, y = "first principal axis", "second principal axis"
        plane = ", in the two directions in which the codes vary most"
    labels = None if test.labels is None else test.labels[:2000]
    drawn = pictures.scatter(codes[:2000], labels, label_names, x=x, y=y)
    caption = f"The encoder's mean for {len(codes[:2000])} test images{plane}."
    return page.Section("Latent map", caption, [page.Picture(drawn, "map of the latent space")])


def draw_pairs(
    pictured: Pictured, params: Any, key: jax.Array, test: Split, n: int = 40
) -> tuple[np.ndarray, np.ndarray]:
    """(originals, reconstructions), as many as there are up to n."""
    ys, cs, _ = test.first(n)

    def one(params, key, y, c):
        k_data, k_model = jax.random.split(key)
        seen = pictured.preprocess.apply(k_data, y)
        return core.reconstruct(pictured.encoder, pictured.generator, params, k_model, seen, c)

    return ys / np.float32(255), show(pictured, over_batch(one, params, jax.random.split(key, len(ys)), ys, cs))


def draw_overview(pictured: Pictured, params: Any, key: jax.Array, test: Split) -> np.ndarray:
    """The run in one picture: ten test images, their reconstructions below them, then twenty samples."""
    originals, reconstructions = draw_pairs(pictured, params, key, test, 10)
    samples = draw_samples(pictured, params, jax.random.fold_in(key, 1), test.cs, 20)
    return pictures.grid(np.concatenate([originals, reconstructions, samples]), len(originals))


def encode(pictured: Pictured, params: Any, key: jax.Array, split: Split) -> np.ndarray:
    """(n, latent): the encoder's mean of each image."""

    def one(params, key, y, c):
        return pictured.encoder.dist(params["enc"], core.join(pictured.preprocess.apply(key, y), c)).mean

    return over_batch(one, params, jax.random.split(key, len(split.ys)), split.ys, split.cs)


def draw_interpolations(pictured: Pictured, params: Any, key: jax.Array, test: Split, rows: int = 6, columns: int = 10):
    """(rows * columns, h, w, channels): straight lines between the codes of neighbouring test images."""
    first = test.first(2 * rows)
    codes = encode(pictured, params, key, first)
    rows = len(codes) // 2
    steps = np.linspace(0, 1, columns, dtype=np.float32)[None, :, None]

    def mix(ends: np.ndarray) -> np.ndarray:
        line = (1 - steps) * ends[0::2][:rows, None] + steps * ends[1::2][:rows, None]
        return line.reshape(-1, ends.shape[-1])

    def one(params, key, z, c):
        return pictured.generator.sample(params["gen"], key, core.join(z, c))

    cs = None if first.cs is None else mix(first.cs)
    return show(pictured, over_batch(one, params, jax.random.split(key, rows * columns), mix(codes), cs))
