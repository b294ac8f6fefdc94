"""Probabilistic PCA in closed form, by EM, and as a linear VAE: one optimum; and how the VAE collapses as beta grows.

    python -m experiments.linear_vae           # Fashion-MNIST mini as 16 means of blocks
    python -m experiments.linear_vae --help    # every option

    z ~ N(0, I),    y = W z + m + sigma eps,    enc: N(V (y - m'), diagonal)

Its encoder cannot correlate units, and need not: the optimum of the ELBO is that of ln P(y), with columns of W along
the data's principal directions (Lucas et al. 2019, "Don't blame the ELBO!"). With weight beta of the rate the direction
of variance lambda is active iff lambda > beta sigma^2 (see `vae_jax.evaluation.linear_theory`).

Expected: ln p = -12.0391 nats per image in closed form, the same by EM to 2e-6, and an ELBO 0.005 ± 0.001 below it;
rates within 0.01 nats of theory at every beta, and as many active units: 7, 6, 5, 2, 2, 1, 0. `vae_jax.open_run` opens
the linear VAE with the learned sigma.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

import vae_jax
from experiments import linear_ways
from experiments.shared import linear
from vae_jax import evaluate
from vae_jax.command import publish
from vae_jax.command.config import CosineAdam, Images, checked, fitting, read_back
from vae_jax.evaluation import Collapse, Mean, active_units, collapse, mean
from vae_jax.report import page, pictures


@dataclasses.dataclass(frozen=True)
class Config(Images, CosineAdam):
    """Fit one linear model in three ways, train linear VAEs over a range of beta, and write a report."""

    side: int = 4
    """Images become side x side means of blocks, for each channel."""
    latent: int = 5
    """Dimensions of z where the three ways are compared."""
    passes: int = 200
    """Passes over the data: iterations of EM, epochs of the VAE."""
    betas: tuple[float, ...] = (1.0, 2.0, 4.0, 10.0, 20.0, 40.0, 60.0)
    """Weights of the rate at which the VAE with fixed sigma is trained. Where beta sigma^2 is near the variance of a
    direction, units fade slowly or share it for long; here it is not."""
    sigma: float = 0.38
    """That sigma, where the data have variance 1 on average."""
    epochs: int = 120
    batch_size: int = 250
    learning_rate: float = 0.01
    out: str = "runs/linear_vae"


class Point(NamedTuple):
    """One beta: what was measured on the data, and what theory predicts."""

    beta: float
    rate: Mean
    active: int
    theory: Collapse


def rebuild(*, size: int, **fields: Any) -> vae_jax.Model:
    """The VAE of the three ways, for `vae_jax.open_run`."""
    return linear_ways.evaluated(size, read_back(Config, fields).latent)


def sweep(config: Config, ys: np.ndarray, key: jax.Array) -> list[Point]:
    """Linear VAEs with a fixed sigma and as many units as the data have directions, the largest beta first.

    Downwards units become active a few at a time, along the principal directions; all at once they would be mixtures of
    these, which a diagonal encoder unmixes slowly.
    """
    k_train, k_evaluate = jax.random.split(key)
    size = ys.shape[1]
    model = linear.linear_vae(size, size, config.sigma).model
    betas = tuple(sorted(config.betas, reverse=True))
    path = list(linear_ways.train(model, ys, k_train, config.training, betas))
    values = eigenvalues_of(ys)
    points = []
    for beta, (params, _) in zip(betas, path[config.epochs - 1 :: config.epochs], strict=True):
        result = evaluate(model, params, k_evaluate, ys, batch_size=1000)
        active = active_units(result) or 0
        theory = collapse(values, beta=beta, variance=config.sigma**2, units=size, measured=active)
        points.append(Point(beta, mean(result.rate), active, theory))
    return points[::-1]


def eigenvalues_of(ys: np.ndarray) -> np.ndarray:
    """Variances along the principal directions, largest first."""
    return np.linalg.eigvalsh(np.cov(ys.T, bias=True))[::-1]


def rows(points: list[Point]) -> list[page.Row]:
    """The largest differences between theory and measurement."""
    off = max(abs(point.rate.value - point.theory.rate) for point in points)
    agree = sum(point.active == point.theory.active for point in points)
    n = len(points)
    return [
        page.Row("rate less theory", off, None, f"nats per image, the largest difference over {n} betas"),
        page.Row("betas with units as predicted", agree, None, f"of {n}: as many active units as in theory"),
    ]


def collapsing(config: Config, points: list[Point], eigenvalues: np.ndarray) -> page.Section:
    """Rate and active units by beta: theory and measurement."""
    betas = np.array([point.beta for point in points])
    fine = np.geomspace(betas[0], betas[-1], 400)
    theory = [collapse(eigenvalues, beta=beta, variance=config.sigma**2) for beta in fine]
    measured = np.array([point.rate.value for point in points])
    rates = {
        "theory": (np.log2(fine), np.array([found.rate for found in theory])),
        "measured": (np.log2(betas), measured),
    }
    units = {
        "theory": (np.log2(fine), np.array([found.active for found in theory])),
        "measured": (np.log2(betas), np.array([point.active for point in points])),
    }
    cells = [
        [f"{point.beta:g}", f"{point.rate.value:.3f}", f"{point.theory.rate:.3f}", point.theory.sentence]
        for point in points
    ]
    return page.Section(
        "Collapse as beta grows",
        f"Linear VAEs with sigma = {config.sigma:g} and {len(eigenvalues)} units. Theory: a direction of variance "
        "lambda carries 1/2 ln(lambda / (beta sigma²)) nats, or nothing where that is negative. A unit counts as "
        "active if its posterior mean varies over the images with a variance above 0.01.",
        [
            page.Picture(pictures.curves(rates, x="log₂ beta", y="rate, nats per image"), "rate by beta"),
            page.Picture(pictures.curves(units, x="log₂ beta", y="active units"), "active units by beta"),
        ],
        page.TextTable(["beta", "rate", "in theory", "in words"], cells),
    )


@publish.timed
def main(config: Config) -> dict[str, Any]:
    """Fit in three ways, train over beta, report; returns the numbers of the table.

    Raises:
        ValueError: options out of range, or that do not fit the images.
        FileNotFoundError: see `vae_jax.data.load`.
    """
    if not config.betas or min(config.betas) <= 0 or not config.sigma > 0:
        raise ValueError(f"want sigma > 0 and at least one beta, > 0; got {config.sigma} and {config.betas}")
    if config.passes < 1 or config.epochs < 1:
        raise ValueError(f"want passes and epochs >= 1; got {config.passes} and {config.epochs}")
    config = checked(config)
    if config.smoke:
        ends = tuple(sorted({min(config.betas), max(config.betas)}))
        config = dataclasses.replace(config, passes=100, epochs=20, batch_size=50, betas=ends)
    ys, source = linear.load_blocks(config.data, config.side, smoke=config.smoke)
    config = fitting(config, len(ys))
    if config.batch_size > len(ys):
        raise ValueError(f"batch_size={config.batch_size}: there are {len(ys)} images")
    k_ways, k_sweep = jax.random.split(jax.random.key(config.seed))
    how = config.training._replace(epochs=config.passes)
    ways = linear_ways.three_ways(ys, config.latent, k_ways, how)
    publish.save(config, rebuild, ways.params, ys[0], size=ys.shape[1])
    points = sweep(config, ys, k_sweep)
    for point in points:
        print(f"beta = {point.beta:g}: {point.theory.sentence}")
    where = f"{len(ys)} images as {ys.shape[1]} means of blocks, centred, of variance 1 on average"
    return publish.write(
        "linear_vae",
        config,
        title="The linear VAE: one optimum, and its collapse",
        lead=f"{config.latent} latent dimensions, {where}. Data: {source}.",
        table=linear_ways.rows(ways, where) + rows(points),
        sections=[
            linear_ways.climb(ways),
            linear_ways.directions(ways, (config.side, config.side, ys.shape[1] // config.side**2)),
            collapsing(config, points, eigenvalues_of(ys)),
        ],
    )


if __name__ == "__main__":
    publish.run(main, Config)
