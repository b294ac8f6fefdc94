"""Table and pictures of `experiments.two_steps`: densities of points in the plane, side by side."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax import Evaluation, diffusion
from vae_jax.command.results import by_epoch, counted
from vae_jax.evaluation import Mean, mean
from vae_jax.report import page, pictures

SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
REACH = 2.2  # half the width of the square in which the data lie


class Result(NamedTuple):
    """A trained model on the test points.

    Fields:
        evaluation: its bound.
        log_p: (n,) ln p(y), of the chains an importance-weighted bound.
        by: how ln p was found, in words.
        bounded: whether it is a bound from below.
        draws: (n, 2)
        params, history: of its training.
    """

    evaluation: Evaluation
    log_p: np.ndarray
    by: str
    bounded: bool
    draws: np.ndarray
    params: Any
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
    """Entropy, and what each model's bound and ln p lose against the truth."""
    n = len(log_p)
    lost = "nats; -ELBO less the true -ln p, point by point"
    rows = [
        page.Row("entropy of the data", *entropy, "nats; the mean of -ln p over 1,000,000 draws"),
        page.Row("-ln p of the test points", *mean(-log_p), f"nats, {n} points; their true density"),
        page.Row("exact denoiser: bound - H", *mean(log_p - exact.elbo), f"{lost}; the ends of the chain cost this"),
    ]
    for name, result in results.items():
        most = "at most; " if result.bounded else ""
        rows += [
            page.Row(f"{name}: bound - H", *mean(log_p - result.evaluation.elbo), lost),
            page.Row(f"{name}: KL", *mean(log_p - result.log_p), f"nats, KL(data || model); {most}ln p is {result.by}"),
        ]
    return rows


def bounds(results: dict[str, Result]) -> page.TextTable:
    """-ELBO and -ln p of each model, and what its steps cost, the one next to y first."""
    rows = []
    for name, result in results.items():
        elbo, log_p = (str(mean(-x)) for x in (result.evaluation.elbo, result.log_p))
        rates = result.evaluation.level_rate
        assert rates is not None
        costs = ", ".join(f"{rate:.3f}" for rate in rates), f"{mean(result.evaluation.distortion).value:.3f}"
        rows.append([name, elbo, f"≤ {log_p}" if result.bounded else log_p, *costs])
    return page.TextTable(["model", "−ELBO", "−ln p", "rates, z₁ first", "distortion"], rows)


def rates_by_time(d: diffusion.Denoiser, params: Any, key: Array, ys: np.ndarray, times: int) -> np.ndarray:
    """(times,) the diffusion's mean rate in as many equal parts of [0, 1), nats; their sum is its part of the bound."""
    model = diffusion.diffusion(d, times=diffusion.times.stratified(times))

    def one(key, y):
        return model.terms(params, key, y).diffusions[0].nats / times

    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(key, len(ys)), jnp.asarray(ys))).mean(axis=0)


def walk(d: diffusion.Denoiser, params: Any, key: Array, ys: np.ndarray, steps: int) -> list[list[np.ndarray]]:
    """(z_t of the data, z_t of the ancestral sampler) at t = 0, 1/2 and 1, or near them."""
    k_noise, k_walk = jax.random.split(key)
    eps = np.asarray(jax.random.normal(k_noise, ys.shape))
    sampler = diffusion.ancestral(steps)
    one = jax.jit(jax.vmap(lambda key: diffusion.trajectory(d, params, key, sampler=sampler).zs))
    zs = np.asarray(one(jax.random.split(k_walk, len(ys))))[:, ::-1]
    pairs = []
    for i in np.linspace(0, steps, 3).round().astype(int):
        level = d.level(params["enc"], jnp.float32(i / steps))
        pairs.append([np.asarray(level.alpha) * ys + np.asarray(level.sigma) * eps, zs[:, i]])
    return pairs


def reach_of(points: np.ndarray) -> float:
    """Half the width of a square with nearly all of them."""
    return float(1.15 * np.quantile(np.abs(points), 0.998))


def marginals(zs: np.ndarray, pixels: int, name: str) -> page.Picture:
    """(2, T + 1, n, 2): the data and their latents, then draws and the latents they come from, a row for each."""
    levels = ["y", *(f"z{i}".translate(SUBSCRIPTS) for i in range(1, len(zs[0])))]
    known = [f"{level} {what}" for what in ("of data", "of the model") for level in levels]
    reaches = [reach_of(points) for points in zs[0]]
    flat = [counted(points, pixels, reach) for way in zs for points, reach in zip(way, reaches, strict=True)]
    panels = dict(zip(known, flat, strict=True))
    drawn = pictures.planes(panels, min(3, len(zs[0])), x="first axis", y="second axis")
    return page.Picture(drawn, f"marginals of {name}", name)


def sections(results: dict[str, Result], shown: Shown, pixels: int) -> list[page.Section]:
    """What was lost, samples, the marginal of each step, the diffusion's way, its density, and what each step costs."""
    climbs = {name: by_epoch(r.history[len(r.history) // 10 :], "elbo", -1) for name, r in results.items()}
    samples = {"data": shown.data} | {name: result.draws for name, result in results.items()}
    walks = {
        f"{what}, t = {i / (len(shown.walk) - 1):g}": counted(pair[j], pixels, reach_of(pair[j]))
        for j, what in enumerate(("data", "sampler"))
        for i, pair in enumerate(shown.walk)
    }
    densities = {name: (density, REACH) for name, density in zip(("data", "diffusion"), shown.densities, strict=True)}
    return [
        page.Section(
            "Bounds",
            "Nats per test point: -ELBO of each model, its -ln p (≤: a bound from above), and what its bound is made "
            "of: the rate of each step (of the diffusion: all steps, then the end) and the distortion.",
            table=bounds(results),
        ),
        page.Section(
            "Samples",
            "Data, and draws of each model: the root of the density, on one scale.",
            [page.Picture(pictures.planes({n: counted(zs, pixels, REACH) for n, zs in samples.items()}), "samples")],
        ),
        page.Section(
            "Marginals",
            "First the data and what the encoders make of them; then draws of the model and the latents that they come "
            "from. Each step's prior has to learn the marginal of the data's latents.",
            [marginals(zs, pixels, name) for name, zs in shown.marginals.items()],
        ),
        page.Section(
            "Diffusion",
            "The same for the diffusion at three times: first data with noise, then the ancestral sampler.",
            [page.Picture(pictures.planes(walks, x="first axis", y="second axis"), "z_t of data and sampler")],
        ),
        page.Section(
            "Density",
            "The density of the data, and the diffusion's by the flow's ODE in each small square.",
            [page.Picture(pictures.planes(densities), "true density and the flow's")],
        ),
        page.Section(
            "Rates",
            f"The diffusion's rate in each of {len(shown.rates['trained'][0])} equal parts of t, beside that of the "
            "exact denoiser.",
            [page.Picture(pictures.curves(shown.rates, x="t", y="rate of a part of t, nats"), "rate by time")],
        ),
        page.Section(
            "Training",
            "The bound on the training points, epoch by epoch, without the first tenth.",
            [page.Picture(pictures.curves(climbs, y="-ELBO, nats per point"), "bound by epoch")],
        ),
    ]
