"""Rate against distortion as beta grows, beside the rate-distortion function of a Gaussian with the data's covariance.

    python -m experiments.rate_distortion                  # Fashion-MNIST mini, linear networks: points on the curve
    python -m experiments.rate_distortion --network mlp    # deeper networks: data are no Gaussian
    python -m experiments.rate_distortion --help           # every option

With an L2 generator of fixed sigma a VAE at weight beta of the rate describes each direction of the data down to the
variance beta sigma^2, and lets all directions below that collapse (see `vae_jax.evaluation.linear_theory`).
`vae_jax.open_run` opens the VAE of the smallest beta in `out`, the others in `out`/"beta = 1" and so on.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import vae_jax
from experiments.shared.linear import Parts, downwards, eigenvalues_of, linear_vae, with_l2
from vae_jax import Evaluation, Fitted, core, nets
from vae_jax.command import publish
from vae_jax.command.config import CosineAdam, Images, checked, fitting, read_back
from vae_jax.command.image_report import picture
from vae_jax.command.images import load_both
from vae_jax.command.placement import Placed, evaluate_on
from vae_jax.core import objectives
from vae_jax.data import preprocess
from vae_jax.evaluation import Collapse, Mean, active_units, collapse, mean, rate_distortion
from vae_jax.report import page, pictures


@dataclasses.dataclass(frozen=True)
class Config(Images, CosineAdam, Placed):
    """Train a VAE for each beta, and draw rate and distortion beside the curve of a Gaussian."""

    betas: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
    """Weights of the rate, one training for each."""
    sigma: float = 0.5
    """Standard deviation of the l2 generator, on the scale on which white is 1."""
    network: Literal["linear", "mlp"] = "linear"
    """Networks of encoder and generator."""
    hidden: tuple[int, ...] = (500,)
    """Hidden layers of the mlp."""
    latent: int = 64
    """Dimensions of z: more than the data have directions of variance above beta sigma^2."""
    epochs: int = 80
    out: str = "runs/rate_distortion"


class Point(NamedTuple):
    """One beta: rate and squared error of an image on both splits, and what theory says of a linear model."""

    beta: float
    rate: Mean
    squared_error: Mean
    test_rate: Mean
    test_squared_error: Mean
    active: int
    theory: Collapse
    shown: np.ndarray  # means for some test images
    fitted: Fitted


def build(config: Config, shape: tuple[int, ...]) -> Parts:
    """The VAE: the rate in closed form, sigma fixed."""
    if config.network == "linear":
        return linear_vae(shape, config.latent, config.sigma)
    encoder = vae_jax.gaussian(nets.MLP(config.hidden, 2 * config.latent))
    return with_l2(encoder, nets.MLP(config.hidden[::-1], shape), config.latent, config.sigma)


def rebuild(*, name: str, shape: Sequence[int], **fields: Any) -> tuple[vae_jax.Model, preprocess.Preprocess]:
    """The model, which is one at all betas, for `vae_jax.open_run`."""
    del name
    return build(read_back(Config, fields), tuple(shape)).model, preprocess.dequantisation()


def squared_error(result: Evaluation, sigma: float) -> Mean:
    """E ||y - yhat||^2 from the distortion, SSE / (2 sigma^2) + ln Z."""
    log_z = 0.5 * result.dimensions * np.log(2 * np.pi * sigma**2)
    return mean(2 * sigma**2 * (result.distortion.astype(np.float64) - log_z))


def measure(
    config: Config, beta: float, key: jax.Array, train: np.ndarray, test: np.ndarray, parts: Parts, start: Any
) -> tuple[Point, Any]:
    """Train at one beta, from the parameters `start` if there are any, and evaluate on both splits."""
    model, encoder, generator = parts
    k_fit, k_train, k_test, k_shown = jax.random.split(key, 4)
    prepare = preprocess.dequantisation()
    fitted = config.training.fit(
        config,
        model if start is None else core.start_from(model, start),
        train,
        k_fit,
        preprocess=prepare,
        objective=objectives.beta_elbo(beta),
    )
    results = [
        evaluate_on(config, model, fitted.params, k, ys, preprocess=prepare, samples=4)
        for k, ys in ((k_train, train), (k_test, test))
    ]
    active = active_units(results[0])
    theory = collapse(eigenvalues_of(train), beta=beta, variance=config.sigma**2, units=config.latent, measured=active)
    rates, errors = [mean(r.rate) for r in results], [squared_error(r, config.sigma) for r in results]

    def reconstruct(key, y):
        k_data, k_model = jax.random.split(key)
        seen = prepare.apply(k_data, y)
        return core.reconstruct(encoder, core.means(generator), fitted.params, k_model, seen)

    shown = jax.jit(jax.vmap(reconstruct))(jax.random.split(k_shown, len(test[:10])), jnp.asarray(test[:10]))
    images = np.clip(np.asarray(shown), 0, 1)
    point = Point(beta, rates[0], errors[0], rates[1], errors[1], active or 0, theory, images, fitted)
    return point, fitted.params


def curve(eigenvalues: np.ndarray, points: list[Point]) -> tuple[np.ndarray, np.ndarray]:
    """(rate, squared error) of the Gaussian, over the range of the points and somewhat beyond."""
    levels = [point.theory.threshold for point in points]
    return rate_distortion(eigenvalues, np.geomspace(min(levels) / 1.5, max(eigenvalues[0], max(levels)), 200))


def least_rate(eigenvalues: np.ndarray, squared_error: float) -> float:
    """The rate at which the Gaussian can be described with this squared error: the curve, read at one point."""
    rates, errors = rate_distortion(eigenvalues, np.geomspace(1e-4 * eigenvalues[0], eigenvalues[0], 4000))
    return float(np.interp(squared_error, errors, rates))


def table(points: list[Point], eigenvalues: np.ndarray, n: int) -> list[page.Row]:
    """Rate at each beta, and what a Gaussian needs for the same squared error."""
    rows = []
    for point in points:
        needed = least_rate(eigenvalues, point.squared_error.value)
        meaning = f"nats per image, {n} training images; the curve has {needed:.2f} at the same squared error"
        rows.append(page.Row(f"rate at beta = {point.beta:g}", *point.rate, meaning))
    return rows


def sections(points: list[Point], eigenvalues: np.ndarray, test: np.ndarray) -> list[page.Section]:
    """The curve, the collapse of units, and what reconstructions look like on the way."""
    rates, errors = curve(eigenvalues, points)
    column = lambda name: np.array([getattr(point, name).value for point in points])  # noqa: E731
    lines = {
        "Gaussian with the data's covariance": (rates, errors),
        "training images": (column("rate"), column("squared_error")),
        "test images": (column("test_rate"), column("test_squared_error")),
    }
    level = np.log2([point.theory.threshold for point in points])
    units = {
        "predicted": (level, np.array([point.theory.active for point in points])),
        "measured": (level, np.array([point.active for point in points])),
    }
    rows = ["test images", *(f"beta = {point.beta:g}" for point in points)]
    agree = sum(point.active == point.theory.active for point in points)
    images = np.concatenate([test[:10] / np.float32(255), *(point.shown for point in points)])
    return [
        page.Section(
            "Rate and distortion",
            "A square (training images) and a diamond (test images) for each beta. The line with circles is the least "
            "rate at which a Gaussian with the covariance of the training images can be described with that squared "
            "error (reverse water-filling).",
            [page.Picture(pictures.curves(lines, x="rate, nats per image", y="squared error per image"), "the curve")],
        ),
        page.Section(
            "Collapse",
            "A unit counts as active if its posterior mean varies over the training images with a variance above 0.01. "
            "A linear model at its optimum keeps the directions of the data whose variance is above beta sigma²; while "
            "training is not at its end, the count can be another one. Here it is as predicted at "
            f"{agree} of {len(points)} values of beta.",
            [page.Picture(pictures.curves(units, x="log₂ beta sigma²", y="active units"), "active units")],
            page.TextTable(["beta", "in words"], [[f"{point.beta:g}", point.theory.sentence] for point in points]),
        ),
        page.Section(
            "Reconstructions",
            "Test images, and below them the generator's means for one z each, beta growing from row to row.",
            [picture(images, len(test[:10]), "reconstructions by beta", beside=rows)],
        ),
    ]


@publish.timed
def main(config: Config) -> list[Point]:
    """Train at every beta and report; returns the points."""
    if not config.betas:
        raise ValueError("betas wants at least one weight of the rate; got none")
    if not config.sigma > 0 or min(config.betas) <= 0:
        raise ValueError(f"want sigma > 0 and betas > 0; got {config.sigma} and {config.betas}")
    config = checked(config)
    train, test = load_both(config.data)
    source = train.source
    train_ys, test_ys = train.ys, test.ys
    if config.smoke:
        config = dataclasses.replace(config, epochs=min(config.epochs, 2), betas=config.betas[:2])
        train_ys, test_ys = train_ys[:200], test_ys[:64]
    config = fitting(config, len(train_ys))
    parts = build(config, train_ys.shape[1:])

    def at(beta, key, start):
        return measure(config, beta, key, train_ys, test_ys, parts, start)

    points = downwards("beta", config.betas, jax.random.key(config.seed), at)
    trained = {f"beta = {point.beta:g}": point.fitted for point in points}
    publish.save_all(config, rebuild, trained, train_ys[0], main=next(iter(trained)), shape=train_ys.shape[1:])
    eigenvalues = eigenvalues_of(train_ys)
    rows = table(points, eigenvalues, len(train_ys))
    publish.write(
        "rate_distortion",
        config,
        title=f"Rate and distortion of {config.data}",
        lead=(
            f"{config.network} networks, {config.latent} latent dimensions, l2 generator with sigma = "
            f"{config.sigma:g}; {len(train_ys)} training images of shape {train_ys.shape[1:]}, dequantised to [0, 1), "
            f"{config.epochs} epochs for each beta. Data: {source}."
        ),
        table=rows,
        sections=sections(points, eigenvalues, test_ys),
    )
    return points


if __name__ == "__main__":
    publish.run(main, Config)
