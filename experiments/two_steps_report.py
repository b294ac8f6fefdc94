"""Table and pictures of `experiments.two_steps`: densities of points in the plane, side by side."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from experiments.shared.results import by_epoch
from vae_jax import Evaluation, diffusion
from vae_jax.evaluation import Mean, mean
from vae_jax.report import page, pictures


class Result(NamedTuple):
    """A trained model on the test points.

    Fields:
        evaluation: its bound.
        log_p: (n,) ln p(y), of the chains an importance-weighted bound.
        by: how ln p was found, in words.
        draws: (n, 2)
        history: of its training.
    """

    evaluation: Evaluation
    log_p: np.ndarray
    by: str
    draws: np.ndarray
    history: Sequence[dict[str, Any]]


class Shown(NamedTuple):
    """What the report draws, beside the results.

    Fields:
        data: (n, 2)
        marginals: by name of the chain, (2, T + 1, n, 2): data and their latents, draws and theirs.
        walk: for some t, from 0 to 1, (z_t of data, z_t of the sampler), each (n, 2).
        densities: (2, pixels, pixels) the true one, the flow's.
        rates: by name (t, nats), vectors: what the parts of [0, 1) cost.
    """

    data: np.ndarray
    marginals: dict[str, np.ndarray]
    walk: Sequence[Sequence[np.ndarray]]
    densities: np.ndarray
    rates: dict[str, tuple[np.ndarray, np.ndarray]]


def table(results: dict[str, Result], exact: Evaluation, entropy: Mean, log_p: np.ndarray) -> list[page.Row]:
    """Entropy, and each model's bound and ln p beside it."""
    n = len(log_p)
    rows = [
        page.Row("entropy of the data", *entropy, "nats; the mean of -ln p over 1,000,000 draws"),
        page.Row("-ln p of the test points", *mean(-log_p), f"nats, {n} points; what the best model has"),
        page.Row("exact denoiser: bound - H", *mean(log_p - exact.elbo), "nats; point by point; only ends cost"),
    ]
    for name, result in results.items():
        rows += [
            page.Row(f"{name}: bound", *mean(-result.evaluation.elbo), "nats; -ELBO; lower is better"),
            page.Row(f"{name}: bound - H", *mean(log_p - result.evaluation.elbo), "nats; the same, point by point"),
            page.Row(f"{name}: -ln p", *mean(-result.log_p), f"nats; {result.by}"),
            page.Row(f"{name}: KL", *mean(log_p - result.log_p), "nats; KL(data || model): -ln p point by point"),
        ]
    return rows


def rates_by_time(d: diffusion.Denoiser, params: Any, key: Array, ys: np.ndarray, times: int) -> np.ndarray:
    """(times,) the diffusion's mean rate in as many equal parts of [0, 1), nats; their sum is its part of the bound."""
    model = diffusion.diffusion(d, times=diffusion.times.stratified(times))

    def one(key, y):
        return model.terms(params, key, y).diffusions[0].nats / times

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(key, len(ys)), jnp.asarray(ys))).mean(axis=0)


def walk(d: diffusion.Denoiser, params: Any, key: Array, ys: np.ndarray, steps: int) -> list[list[np.ndarray]]:
    """(z_t of the data, z_t of the ancestral sampler) at t = 0, 0.2, ..., 1."""
    k_noise, k_walk = jax.random.split(key)
    eps = np.asarray(jax.random.normal(k_noise, ys.shape))
    sampler = diffusion.ancestral(steps)
    one = jax.jit(jax.vmap(lambda key: diffusion.trajectory(d, params, key, sampler=sampler).zs))
    zs = np.asarray(one(jax.random.split(k_walk, len(ys))))[:, ::-1]
    pairs = []
    for i in np.linspace(0, steps, 6).round().astype(int):
        level = d.level(params["enc"], jnp.float32(i / steps))
        pairs.append([np.asarray(level.alpha) * ys + np.asarray(level.sigma) * eps, zs[:, i]])
    return pairs


def tiles(columns: Sequence[Sequence[np.ndarray]], pixels: int) -> bytes:
    """Histograms of points (n, 2) as a PNG, a column for each list, in which range and scale are the same."""
    made = []
    for column in columns:
        reach = 1.15 * np.quantile(np.abs(np.concatenate(column)), 0.998)
        edges = np.linspace(-reach, reach, pixels + 1)
        made.append(as_images([np.histogramdd(zs, (edges, edges), density=True)[0].T[::-1] for zs in column]))
    rows = np.stack(made, axis=1).reshape(-1, pixels, pixels, 1)
    return pictures.png(pictures.grid(rows, len(columns), 3), 3)


def as_images(densities: Any) -> np.ndarray:
    """The root of the densities, which shows the tails, on one scale: (n, pixels, pixels, 1) in [0, 1]."""
    return np.sqrt(np.stack(densities) / np.max(densities))[..., None]


def rate_table(results: dict[str, Result]) -> page.TextTable:
    """The rate of each step, the one next to y first."""
    rows = []
    for name, result in results.items():
        rates, distortion = result.evaluation.level_rate, mean(result.evaluation.distortion).value
        assert rates is not None
        rows.append([name, ", ".join(f"{rate:.3f}" for rate in rates), f"{distortion:.3f}"])
    return page.TextTable(["model", "rates in nats, z₁ first (of the diffusion: steps, end)", "distortion"], rows)


def sections(results: dict[str, Result], shown: Shown, pixels: int) -> list[page.Section]:
    """Samples, the marginal of each step, the diffusion's way, its density, and what each step costs."""
    climbs = {name: by_epoch(r.history[len(r.history) // 10 :], "elbo", -1) for name, r in results.items()}
    samples = tiles([[points] for points in (shown.data, *(result.draws for result in results.values()))], pixels)
    densities = pictures.png(pictures.grid(as_images(shown.densities), 2, 3), 4)
    return [
        page.Section(
            "Samples",
            f"The root of the density. From left to right: data, {', '.join(results)}.",
            [page.Picture(samples, "samples")],
        ),
        page.Section(
            "Marginals",
            "Above, the data and what the encoders make of them; below, draws of the model and the latents that they "
            "come from: each step's prior has to learn the marginal above it. From left to right y, z₁, and so on.",
            [
                page.Picture(tiles(list(zip(*zs, strict=True)), pixels), f"marginals of {name}", name)
                for name, zs in shown.marginals.items()
            ],
        ),
        page.Section(
            "Diffusion",
            "The same for the diffusion at t = 0, 0.2, ..., 1: above, data with noise; below, the ancestral sampler.",
            [page.Picture(tiles(shown.walk, pixels), "z_t of data and sampler")],
        ),
        page.Section(
            "Density",
            "Left the data's density, right the diffusion's, by the flow's ODE at each pixel.",
            [page.Picture(densities, "true density and the flow's")],
        ),
        page.Section(
            "Rates",
            "What each step costs. For the diffusion, the rate in each of the equal parts of t, beside that of the "
            "exact denoiser.",
            [page.Picture(pictures.curves(shown.rates, x="t", y="nats per part"), "rate by time")],
            rate_table(results),
        ),
        page.Section(
            "Training",
            "The bound on the training points, epoch by epoch, without the first tenth.",
            [page.Picture(pictures.curves(climbs, y="-ELBO, nats per point"), "bound by epoch")],
        ),
    ]
