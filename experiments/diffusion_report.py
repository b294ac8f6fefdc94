"""What the report of a diffusion shows: its numbers, draws, how they came about, and what each noise level costs."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import Evaluation, Fitted
from vae_jax import diffusion as df
from vae_jax.command.image_report import in_turn, learning_curve, of_classes, picture
from vae_jax.command.images import Split
from vae_jax.command.results import over_batch
from vae_jax.data import Preprocess
from vae_jax.evaluation import bits_per_dimension, mean
from vae_jax.report import page, pictures
from vae_jax.training.run_directory import to_path

SHOWN = 10  # moments of a trajectory


def count(params: Any) -> int:
    """How many numbers the parameters hold."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def table(result: Evaluation, fitted: Fitted, n: int) -> list[page.Row]:
    """The bound, its three parts, and the speed."""
    assert result.level_rate is not None
    rows = [
        page.Row("test bound", *mean(-result.elbo), f"nats per image, {n} test images, {result.convention}; -ELBO"),
        page.Row("diffusion", result.level_rate[0], None, "nats; the rate of all steps"),
        page.Row("prior", result.level_rate[1], None, "nats; the rate of what is left at the end, against N(0, I)"),
        page.Row("reconstruction", *mean(result.distortion), "nats; -ln P(y|z_0)"),
    ]
    bits = bits_per_dimension(result)
    if bits is not None:
        rows.append(page.Row("bits/dim at most", *bits, f"from the bound; {result.dimensions} dimensions"))
    rows.append(page.Row("training speed", fitted.images_per_second, None, "images/s, median epoch after the first"))
    rows.append(page.Row("updates skipped", int(fitted.state.skipped), None, "not finite"))
    return rows


def sections(
    denoiser: df.Denoiser,
    fitted: Fitted,
    key: jax.Array,
    test: Split,
    label_names: Sequence[str] | None,
    prepare: Preprocess,
    *,
    sampler: df.Sampler,
    guidance: float,
    directory: str,
) -> list[page.Section]:
    """The pictures of the report; `samples.png` is also written to the directory."""
    k_samples, k_noising, k_levels = jax.random.split(key, 3)
    columns = 10 if test.cs is None else test.cs.shape[1]
    drawn = trajectories(denoiser, fitted.params, k_samples, test.cs, 8 * columns, sampler, guidance)
    names = of_classes(label_names, test.cs)
    samples = picture(_shown(denoiser, drawn.y), columns, "samples from the model", above=names)
    if jax.process_index() == 0:
        (to_path(directory) / "samples.png").write_bytes(samples.data)
    originals = test.ys[: 4 * columns] / np.float32(255)
    of_class = "" if test.cs is None else ", a column for each class"
    return [
        page.Section(
            "Samples",
            f"Draws from the model{of_class}, {sampler.steps} steps.",
            [samples],
        ),
        page.Section(
            "Test images",
            "For comparison: what the model has not seen.",
            [picture(originals, columns, "test images")],
        ),
        _denoising(drawn),
        _noising(denoiser, fitted.params, k_noising, test, prepare),
        _cost(denoiser, fitted.params, k_levels, test, prepare),
        learning_curve(fitted.history),
    ]


def trajectories(
    denoiser: df.Denoiser,
    params: Any,
    key: jax.Array,
    cs: np.ndarray | None,
    n: int,
    sampler: df.Sampler,
    guidance: float,
) -> df.Trajectory:
    """n draws, the classes in turn, with the latents at `SHOWN` moments of the way."""

    def one(params, key, c):
        drawn = df.trajectory(denoiser, params, key, c, sampler=sampler, guidance=guidance)
        moments = np.linspace(0, len(drawn.xs) - 1, SHOWN).round().astype(int)
        return drawn._replace(zs=drawn.zs[moments], xs=drawn.xs[moments])

    return over_batch(one, params, jax.random.split(key, n), in_turn(cs, n))


def _shown(denoiser: df.Denoiser, ys: Any) -> np.ndarray:
    """Data as pictures in [0, 1]."""
    return _picture(np.asarray(jax.vmap(denoiser.observation.embed)(jnp.asarray(ys))))


def _picture(xs: np.ndarray) -> np.ndarray:
    """The diffusion's space, [-1, 1], as pictures in [0, 1]."""
    return np.clip((np.asarray(xs, np.float32) + 1) / 2, 0, 1)


def _denoising(drawn: df.Trajectory, rows: int = 5) -> page.Section:
    """Pairs of rows: z_t from noise to data, and below it what the U-Net makes of it."""
    pairs = np.stack([drawn.zs[:rows], drawn.xs[:rows]], axis=1)
    images = _picture(pairs.reshape(-1, *pairs.shape[3:]))
    return page.Section(
        "The denoising chain",
        "From left to right the latents z_t of some draws, from noise to data; below each of them xhat(z_t), what the "
        "network expects the image to be.",
        [
            picture(
                images,
                SHOWN,
                "latents and what the network makes of them",
                beside=["z_t", "xhat"] * len(drawn.zs[:rows]),
            )
        ],
    )


def _noising(
    denoiser: df.Denoiser, params: Any, key: jax.Array, test: Split, prepare: Preprocess, rows: int = 5
) -> page.Section:
    """The fixed encoder: test images and their z_t; below, what the network makes of them."""
    ts = jnp.linspace(0.0, 1.0, SHOWN)

    def one(params, key, y, c):
        k_data, k_noise = jax.random.split(key)
        x = denoiser.observation.embed(prepare.apply(k_data, y))

        def at(t, key):
            level = denoiser.level(params["enc"], t)
            z = level.alpha * x + level.sigma * jax.random.normal(key, x.shape)
            return z / level.scale, denoiser.denoise(params["gen"], z, level, c).x

        return jax.vmap(at)(ts, jax.random.split(k_noise, SHOWN))

    ys, cs, _ = test.first(rows)
    zs, xs = over_batch(one, params, jax.random.split(key, len(ys)), ys, cs)
    pairs = np.stack([zs, xs], axis=1)
    images = _picture(pairs.reshape(-1, *pairs.shape[3:]))
    return page.Section(
        "The fixed encoder",
        "Test images, with more and more noise from left to right; below each the network's xhat(z_t).",
        [picture(images, SHOWN, "test images with noise, denoised", beside=["z_t", "xhat"] * len(ys))],
    )


def _cost(
    denoiser: df.Denoiser, params: Any, key: jax.Array, test: Split, prepare: Preprocess, parts: int = 20, n: int = 200
) -> page.Section:
    """The rate by time: what each twentieth of the way costs."""

    def one(params, key, y, c):
        k_data, k_terms = jax.random.split(key)
        model = df.diffusion(denoiser, times=df.times.stratified(parts))
        found = model.terms(params, k_terms, prepare.apply(k_data, y), c).diffusions[0]
        return found.nats / parts, found.squared / math.prod(denoiser.shape)

    ys, cs, _ = test.first(n)
    nats, squared = (x.mean(axis=0) for x in over_batch(one, params, jax.random.split(key, len(ys)), ys, cs))
    middles = (np.arange(parts) + 0.5) / parts
    gammas = np.asarray(jax.vmap(lambda t: denoiser.gamma(params["enc"], t))(jnp.asarray(middles)))
    return page.Section(
        "What each noise level costs",
        "The rate of each twentieth of the way from t = 0 (data) to t = 1 (noise), in nats per image; the mean "
        f"squared error of the noise that the network predicts; and the schedule. {len(ys)} test images.",
        [
            page.Picture(
                pictures.curves({"rate": (middles, nats)}, x="t", y=f"rate of 1/{parts} of t, nats"), "rate by time"
            ),
            page.Picture(
                pictures.curves({"(eps - epshat)²": (middles, squared)}, x="t", y="mean squared error"), "error by time"
            ),
            page.Picture(pictures.curves({"gamma": (middles, gammas)}, x="t", y="gamma = -ln SNR"), "schedule"),
        ],
    )
