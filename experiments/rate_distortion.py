"""Rate against distortion as beta grows, beside the rate-distortion function of a Gaussian with the data's covariance.

    python -m experiments.rate_distortion                  # Fashion-MNIST mini, linear networks: points on the curve
    python -m experiments.rate_distortion --network mlp    # deeper networks: data are no Gaussian
    python -m experiments.rate_distortion --help           # every option

With an L2 generator of fixed sigma a VAE at weight beta of the rate describes each direction of the data down to the
variance beta sigma^2, and lets all directions below that collapse (see `vae_jax.evaluation.linear_theory`).
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vae_jax
from experiments import publish
from vae_jax import Evaluation, core, data, evaluate, fit, nets
from vae_jax.core import objectives
from vae_jax.data import preprocess
from vae_jax.evaluation import Collapse, Mean, active_units, collapse, mean, rate_distortion
from vae_jax.report import page, pictures


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a VAE for each beta, and draw rate and distortion beside the curve of a Gaussian."""

    data: str = "fashion_mnist_mini"
    """Data set: fashion_mnist_mini, emoji_mini, fashion_mnist, a file (npz, npy, IDX), a folder of images, or a name
    that tensorflow-datasets has prepared."""
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
    """Passes over the training data, for each beta."""
    batch_size: int = 100
    """Examples in a step."""
    learning_rate: float = 3e-3
    """Adam's learning rate at its peak; it falls to 0 along a cosine."""
    seed: int = 0
    """Seed of everything random."""
    out: str = "runs/rate_distortion"
    """Directory of the report."""
    smoke: bool = False
    """A few seconds instead of minutes: 200 + 64 examples, 2 epochs, 2 betas. To see that all works."""


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


def build(config: Config, shape: tuple[int, ...]) -> tuple[vae_jax.Model, vae_jax.Conditional, vae_jax.Conditional]:
    """(model, encoder, generator): the rate in closed form, sigma fixed."""
    if config.network == "linear":
        encoder, net = vae_jax.gaussian(constant_std(config.latent)), nets.MLP((), shape)
    else:
        encoder, net = (
            vae_jax.gaussian(nets.MLP(config.hidden, 2 * config.latent)),
            nets.MLP(config.hidden[::-1], shape),
        )
    generator = vae_jax.l2(net, config.sigma)
    prior = vae_jax.standard_normal(config.latent)
    return vae_jax.vae(encoder, prior, generator, estimator=vae_jax.analytic), encoder, generator


def constant_std(latent: int) -> core.Network:
    """The encoder of the linear VAE: an affine mean, and one log standard deviation for each unit, whatever y."""
    mean_of = core.as_network(nets.MLP((), latent))

    def init(key, y):
        return {"mean": mean_of.init(key, y), "log_std": jnp.zeros(latent)}

    return core.Network(init, lambda params, y: (mean_of.apply(params["mean"], y), params["log_std"]))


def eigenvalues_of(ys: np.ndarray) -> np.ndarray:
    """Variances of images of levels along their principal directions, as dequantisation leaves them, largest first."""
    flat = ys.reshape(len(ys), -1) / 256
    return np.linalg.eigvalsh(np.cov(flat.T))[::-1] + 1 / (12 * 256**2)


def squared_error(result: Evaluation, sigma: float) -> Mean:
    """E ||y - yhat||^2 from the distortion, SSE / (2 sigma^2) + ln Z."""
    log_z = 0.5 * result.dimensions * np.log(2 * np.pi * sigma**2)
    return mean(2 * sigma**2 * (result.distortion.astype(np.float64) - log_z))


def measure(
    config: Config, beta: float, key: jax.Array, train: np.ndarray, test: np.ndarray, parts: Any, start: Any
) -> tuple[Point, Any]:
    """Train at one beta, from the parameters `start` if there are any, and evaluate on both splits."""
    model, encoder, generator = parts
    k_fit, k_train, k_test, k_shown = jax.random.split(key, 4)
    prepare = preprocess.dequantisation()
    steps = config.epochs * (len(train) // config.batch_size)
    fitted = fit(
        model if start is None else core.start_from(model, start),
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, max(1, steps))),
        train,
        key=k_fit,
        epochs=config.epochs,
        batch_size=config.batch_size,
        preprocess=prepare,
        objective=objectives.beta_elbo(beta),
    )
    results = [
        evaluate(model, fitted.params, k, ys, preprocess=prepare, samples=4)
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
    point = Point(beta, rates[0], errors[0], rates[1], errors[1], active or 0, theory, images)
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
    zoom = max(1, 56 // test.shape[1])
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
            "A linear model at its optimum keeps the directions of the data whose variance is above beta sigma². After "
            "a finite training more units are above the line of 0.01 than that, though rate and error are near the "
            "curve.",
            [page.Picture(pictures.curves(units, x="log₂ beta sigma²", y="active units"), "active units")],
            page.TextTable(["beta", "in words"], [[f"{point.beta:g}", point.theory.sentence] for point in points]),
        ),
        page.Section(
            "Reconstructions",
            "Test images, and below them the generator's means for one z each, beta growing from row to row: "
            + ", ".join(f"{point.beta:g}" for point in points)
            + ".",
            [page.Picture(pictures.png(pictures.grid(images, len(test[:10])), zoom), "reconstructions by beta")],
        ),
    ]


def main(config: Config) -> list[Point]:
    """Train at every beta and report; returns the points."""
    if not config.betas:
        raise ValueError("betas wants at least one weight of the rate; got none")
    if not config.sigma > 0 or min(config.betas) <= 0:
        raise ValueError(f"want sigma > 0 and betas > 0; got {config.sigma} and {config.betas}")
    train, test = (data.load(config.data, split) for split in ("train", "test"))
    source = train.source
    train_ys, test_ys = train.ys, test.ys
    if config.smoke:
        config = dataclasses.replace(config, epochs=min(config.epochs, 2), betas=config.betas[:2])
        train_ys, test_ys = train_ys[:200], test_ys[:64]
    parts = build(config, train_ys.shape[1:])
    points: list[Point] = []
    params = None
    # From the largest beta down, each from where the last one ended: so units become active a few at a time, along the
    # data's axes. From a random start they are mixtures of many axes, and a diagonal encoder unmixes them slowly.
    for i, beta in enumerate(sorted(config.betas, reverse=True)):
        key = jax.random.fold_in(jax.random.key(config.seed), i)
        point, params = measure(config, beta, key, train_ys, test_ys, parts, params)
        points.insert(0, point)
        print(f"beta = {beta:g}: {point.theory.sentence}")
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
