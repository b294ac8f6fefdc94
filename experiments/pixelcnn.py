"""A PixelCNN: images pixel by pixel, each given those before it. Nothing is latent: ln P(y) is exact, and so is a file.

    python -m experiments.pixelcnn                                     # Fashion-MNIST mini
    python -m experiments.pixelcnn --data fashion_mnist --epochs 12    # all of it, three hours on two cores
    python -m experiments.pixelcnn --data emoji_mini                   # in colour: channels given those before them
    python -m experiments.pixelcnn --help                              # every option

Test images are written to a file (`vae_jax.codec`, with the extra `codec`), read back, and compared; beside it what
gzip, bzip2 and xz make of the same bytes, and PNG and WebP of the same images in one picture.
"""

import bz2
import dataclasses
import gzip
import importlib.util
import io
import lzma
import time
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import numpy as np

import vae_jax
from vae_jax import Evaluation, Fitted, core, nets
from vae_jax.codec import compressed, decompress
from vae_jax.command import publish
from vae_jax.command.config import SHARE, Adam, Images, Resumable, at_least, checked, fitting, read_back
from vae_jax.command.cosine_adam import warm_cosine
from vae_jax.command.image_report import learning_curve, picture
from vae_jax.command.images import load_splits
from vae_jax.command.placement import WHERE, Placed, evaluate_on, fit_on
from vae_jax.command.results import over_batch
from vae_jax.data import preprocess
from vae_jax.evaluation import bits_per_dimension, mean
from vae_jax.parts import autoregressive
from vae_jax.report import page
from vae_jax.training import recipe

NOT_THE_RUN = (*WHERE, "out", "resume", "compress")
SMOKE: dict[str, Any] = {"epochs": 2, "width": 8, "depth": 2, "batch_size": 16, "compress": 2}


@dataclasses.dataclass(frozen=True)
class Config(Images, Adam, Resumable, Placed):
    """Train a PixelCNN on 8-bit images, and report what a pixel costs."""

    width: int = 32
    """Channels of the features."""
    depth: int = 7
    """Gated layers: a pixel sees one row more than that above it."""
    epochs: int = 20
    """Passes over the training data."""
    batch_size: int = 32
    """Images in a step."""
    learning_rate: float = 2e-3
    """Adam's learning rate at its peak; it warms up and falls to 0 along a cosine."""
    ema_decay: Annotated[float, SHARE] = 0.999
    """Decay of the average of the parameters, which is what is evaluated."""
    compress: Annotated[int, at_least(0)] = 1000
    """Test images that are written to a file; 0 leaves it out."""
    out: str = "runs/pixelcnn"


def build(config: Config, shape: tuple[int, ...]) -> tuple[vae_jax.Conditional, preprocess.Preprocess]:
    """P(y) of images (h, w, channels), and how they reach it."""
    net = nets.PixelCNN(256, config.width, config.depth, channels=shape[-1])
    return autoregressive(net, shape, 256), preprocess.eight_bit()


def rebuild(*, shape: Sequence[int], **fields: Any) -> tuple[vae_jax.Model, preprocess.Preprocess]:
    """The trained model, for `vae_jax.open_run`."""
    generator, prepare = build(read_back(Config, fields), tuple(shape))
    return core.lift(generator), prepare


def file_rows(model: vae_jax.Model, params: Any, ys: np.ndarray) -> list[page.Row]:
    """Some images as a file, which is read back, beside what other tools make of them."""
    start = time.perf_counter()
    found = compressed(model, params, ys.astype(np.int32))
    written = time.perf_counter()
    if not np.array_equal(decompress(model, params, found.data), ys):
        raise AssertionError("the file does not hold the images that were written")
    read = time.perf_counter()
    speeds = f"{len(ys) / (written - start):.1f} images/s to write, {len(ys) / (read - written):.1f} to read"
    sizes = {"vae_jax.codec": len(found.data), **tools(ys)}
    says = {"vae_jax.codec": f"; read back exactly; {speeds}, compiling included"}
    return [
        page.Row(
            f"bits/dim, {name}", 8 * size / ys.size, None, f"{size:,} bytes for {len(ys)} images{says.get(name, '')}"
        )
        for name, size in sizes.items()
    ]


def tools(ys: np.ndarray) -> dict[str, int]:
    """Bytes that others need for images (n, h, w, channels) of uint8."""
    raw = ys.tobytes()
    sizes = {
        "gzip": len(gzip.compress(raw, 9)),
        "bzip2": len(bz2.compress(raw, 9)),
        "xz": len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)),
    }
    if importlib.util.find_spec("PIL") and ys.shape[-1] in (1, 3):
        from PIL import Image

        sheet = Image.fromarray(_sheet(ys))
        forms: dict[str, dict[str, Any]] = {"PNG": {"optimize": True}, "WebP": {"lossless": True, "quality": 100}}
        for name, options in forms.items():
            file = io.BytesIO()
            sheet.save(file, name, **options)
            sizes[name] = len(file.getvalue())
    return sizes


def _sheet(ys: np.ndarray) -> np.ndarray:
    """All images in one picture, about a square; what is left over is black."""
    n, h, w, channels = ys.shape
    wide = int(np.ceil(np.sqrt(n)))
    whole = np.concatenate([ys, np.zeros((-n % wide, h, w, channels), ys.dtype)])
    rows = whole.reshape(-1, wide, h, w, channels).swapaxes(1, 2).reshape(-1, wide * w, channels)
    return rows[..., 0] if channels == 1 else rows


def table(result: Evaluation, fitted: Fitted, files: list[page.Row]) -> list[page.Row]:
    """What a test image costs, exactly; and as a file."""
    bits = bits_per_dimension(result)
    assert bits is not None
    return [
        page.Row("bits/dim", *bits, f"exact; {len(result.elbo)} test images, {result.convention}"),
        page.Row("-ln P(y)", *mean(-result.elbo), "nats per image"),
        *files,
        page.Row("training speed", fitted.images_per_second, None, "images/s, median epoch after the first"),
    ]


def sections(samples: np.ndarray, originals: np.ndarray, costs: np.ndarray, fitted: Fitted) -> list[page.Section]:
    """Samples beside test images, where the bits are, the learning curve."""
    wide = min(10, len(originals))
    n = len(originals) // wide * wide
    most = max(float(costs.max()), 1e-6)
    shown = (originals / np.float32(255), np.broadcast_to(costs / most, originals.shape))
    both = np.concatenate([part[i : i + wide] for i in range(0, n, wide) for part in shown])
    return [
        page.Section("Samples", "Drawn pixel by pixel.", [picture(samples / np.float32(255), 10, "samples")]),
        page.Section(
            "Where the bits are",
            f"Test images, below each what its pixels cost: white is {most:.1f} bits.",
            [picture(both, wide, "test images and their costs", beside=["image", "bits"] * (n // wide))],
        ),
        learning_curve(fitted.history, note="Nothing is latent, so that it is -ln P(y)."),
    ]


@publish.timed
def main(config: Config) -> dict[str, Any]:
    """Train, evaluate, write a file, report; returns the numbers of the table.

    Raises:
        ValueError: options that do not fit the data.
    """
    config = checked(config)
    if config.smoke:
        config = dataclasses.replace(config, **SMOKE)
    train, valid, test, source = load_splits(config.data, smoke=config.smoke)
    config = fitting(config, len(train.ys))
    shape = train.ys.shape[1:]
    generator, prepare = build(config, shape)
    model = core.lift(generator)
    k_fit, k_evaluate, k_samples = jax.random.split(jax.random.key(config.seed), 3)
    fitted = fit_on(
        config,
        model,
        warm_cosine(config.learning_rate, max(1, config.epochs * (len(train.ys) // config.batch_size))),
        train.ys,
        key=k_fit,
        epochs=config.epochs,
        batch_size=config.batch_size,
        preprocess=prepare,
        validation=(valid.ys, None),
        directory=config.out,
        config=publish.fields(config, NOT_THE_RUN),
        recipe=recipe(rebuild, shape=shape, **publish.fields(config)),
        resume=config.resume or config.smoke,
        clip_norm=1.0,
        ema_decay=config.ema_decay,
    )
    result = evaluate_on(config, model, fitted.params, k_evaluate, test.ys, preprocess=prepare)
    files = file_rows(model, fitted.params, test.ys[: config.compress]) if config.compress else []
    keys = jax.random.split(k_samples, 40)
    samples = over_batch(lambda params, key: model.sample(params, key), fitted.params, keys)

    def bits(params, key, y):
        return -generator.dist(params).token_log_prob(y.astype(int)).mean(axis=-1, keepdims=True) / np.log(2)

    costs = over_batch(bits, fitted.params, keys[:20], test.ys[:20])
    return publish.write(
        "pixelcnn",
        config,
        title=f"A PixelCNN on {config.data}",
        lead=(
            f"{config.depth} gated layers of {config.width} channels, 256 levels; {len(train.ys)} training images of "
            f"shape {shape}; {config.epochs} epochs. Data: {source.source}."
        ),
        table=table(result, fitted, files),
        sections=sections(samples, test.ys[:20], costs, fitted),
    )


if __name__ == "__main__":
    publish.run(main, Config)
