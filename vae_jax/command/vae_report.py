"""What the report of a VAE of images shows: the table of numbers, and pictures of what the model makes."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vae_jax import Evaluation, Trained
from vae_jax.command.image_report import enlarged, in_turn, learning_curve, of_classes, picture, show
from vae_jax.command.images import Split
from vae_jax.command.results import rows_of
from vae_jax.evaluation import mean, psnr, ssim
from vae_jax.report import page, pictures
from vae_jax.training.run_directory import to_path

ENCODED = 2000  # test images that say which units of z vary, and how far


def table(result: Evaluation, history: Sequence[dict[str, Any]], n: int) -> list[page.Row]:
    """The numbers of the run, with what they mean."""
    speeds = [row["images_per_second"] for row in history[1:]]
    speed = float(np.median(speeds)) if speeds else float("nan")
    return [
        *rows_of(result, "test ELBO", f"{n} test images"),
        page.Row("training speed", speed, None, "images/s, median epoch after the first"),
    ]


def sections(
    run: Trained,
    result: Evaluation,
    key: jax.Array,
    test: Split,
    label_names: Sequence[str] | None,
    directory: str,
) -> list[page.Section]:
    """The pictures of the report; `overview.png`, the run in one picture, is also written to the directory."""
    k_samples, k_pairs, k_overview = jax.random.split(key, 3)
    height = test.ys.shape[1]
    columns = 10 if test.cs is None else test.cs.shape[1]
    drawn, codes = overview(run, k_overview, test), run.encode(test.ys, test.cs)
    if jax.process_index() == 0:
        (to_path(directory) / "overview.png").write_bytes(enlarged(drawn, height))
    return [
        learning_curve(run.history),
        page.Section(
            "Samples",
            "z from the prior, then the generator's mean" + ("." if test.cs is None else ", a column for each class."),
            [
                picture(
                    samples(run, k_samples, test, 6 * columns),
                    columns,
                    "samples from the model",
                    above=of_classes(label_names, test.cs),
                )
            ],
        ),
        reconstructions(run, k_pairs, test),
        *interpolations(run, test),
        traversals(run, test, codes),
        latent_map(codes, test, label_names),
        *unit_rates(result),
    ]


def samples(run: Trained, key: jax.Array, test: Split, n: int) -> np.ndarray:
    """n pictures; the classes in turn, where the model has them."""
    return show(run.preprocess, run.sample(key, n, c=in_turn(test.cs, n)))


def reconstructed(run: Trained, key: jax.Array, test: Split, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(originals, reconstructions), as many as there are up to n."""
    ys, cs, _ = test.first(n)
    return ys / np.float32(255), show(run.preprocess, run.reconstruct(key, ys, cs))


def overview(run: Trained, key: jax.Array, test: Split) -> np.ndarray:
    """The run in one picture: ten test images, their reconstructions below them, then twenty samples."""
    originals, reconstructions = reconstructed(run, key, test, 10)
    drawn = samples(run, jax.random.fold_in(key, 1), test, 20)
    return pictures.grid(np.concatenate([originals, reconstructions, drawn]), len(originals))


def reconstructions(run: Trained, key: jax.Array, test: Split) -> page.Section:
    """Pairs, and how near they are."""
    originals, means = reconstructed(run, key, test, 400)
    near = ", ".join(f"{name} {mean(each)}" for name, each in nearness(originals, means).items())
    shown = enlarged(pictures.pairs(originals[:40], means[:40]), test.ys.shape[1])
    about = (
        f"Test images, and beside each the generator's mean for one z drawn from the encoder. Of {len(means)}: {near}."
    )
    return page.Section("Reconstructions", about, [page.Picture(shown, "originals and reconstructions")])


def nearness(ys: np.ndarray, yhats: np.ndarray) -> dict[str, np.ndarray]:
    """Of each pair of images in [0, 1]; at most 100 dB, so that a mean is finite where a pair is equal."""
    return {"PSNR in dB": np.minimum(psnr(ys, yhats), 100), "SSIM": ssim(ys, yhats)}


def interpolations(run: Trained, test: Split) -> list[page.Section]:
    """Rows of ten pictures, from one test image to the next; none of a single image."""
    ys, cs, _ = test.first(12)
    if len(ys) < 2:
        return []
    lines = show(run.preprocess, run.interpolate(ys, cs, steps=10))
    caption = (
        "In each row the first and the last picture are the generator's means for the codes of two test images; "
        "between them, the straight line from one code to the other."
    )
    drawn = picture(lines.reshape(-1, *lines.shape[2:]), lines.shape[1], "interpolations")
    return [page.Section("Interpolations", caption, [drawn])]


def traversals(run: Trained, test: Split, codes: np.ndarray) -> page.Section:
    """A row for each of the units of z that vary most, by the codes of the test images."""
    ys, cs, _ = test.first(ENCODED)
    rows = show(run.preprocess, run.traverse(ys, cs, units=10, steps=11))
    units = run.units_of(codes[:ENCODED], len(rows))
    caption = (
        "From the code of the first test image, one unit of z after the other moves from two standard deviations below "
        f"its mean over {len(ys)} test images to two above. The units whose code varies most come first; one that does "
        "nothing carries nothing."
    )
    shown = picture(
        rows.reshape(-1, *rows.shape[2:]), rows.shape[1], "latent traversals", beside=[f"z{unit}" for unit in units]
    )
    return page.Section("Traversals", caption, [shown])


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


def latent_map(codes: np.ndarray, test: Split, label_names: Sequence[str] | None) -> page.Section:
    """The test images' codes in the plane: z itself where it has two dimensions, else its two principal axes."""
    codes = codes.reshape(len(test.ys), -1)
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
