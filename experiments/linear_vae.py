"""Probabilistic PCA in closed form, by EM, and as a linear VAE: one optimum; and how the VAE collapses as beta grows.

    python -m experiments.linear_vae           # Fashion-MNIST mini as 16 means of blocks
    python -m experiments.linear_vae --help    # every option

    z ~ N(0, I),    y = W z + m + sigma eps,    enc: N(V (y - m'), diagonal)

Its encoder cannot correlate units, and need not: the optimum of the ELBO is that of ln P(y), with columns of W along
the data's principal directions (Lucas et al. 2019, "Don't blame the ELBO!"). With weight beta of the rate the direction
of variance lambda is active iff lambda > beta sigma^2 (see `vae_jax.collapse`).
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vae_jax
from experiments import tables
from experiments.rate_distortion import constant_std
from vae_jax import data, nets, objectives, pictures, report
from vae_jax.collapse import Collapse, collapse
from vae_jax.em import FittedEM, fit_em
from vae_jax.em.factor_analysis import ClosedForm, ppca, ppca_closed_form
from vae_jax.em.fit import em_of
from vae_jax.evaluate import Mean, active_units, evaluate, mean


@dataclasses.dataclass(frozen=True)
class Config:
    """Fit one linear model in three ways, train linear VAEs over a range of beta, and write a report."""

    data: str = "fashion_mnist_mini"
    """Data set of images: a name or a path that vae_jax.data.load takes."""
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
    """Passes over the data for each beta."""
    batch_size: int = 250
    """Examples in a step."""
    learning_rate: float = 0.01
    """Adam's at its peak; it falls to 0 along a cosine, for each beta anew."""
    seed: int = 0
    """Seed of everything random."""
    out: str = "runs/linear_vae"
    """Directory of the report."""
    smoke: bool = False
    """A few seconds: 1,000 images, 40 passes in batches of 50, the first and the last beta with 20 epochs."""


class Parts(NamedTuple):
    """A linear VAE, and its parts."""

    model: vae_jax.Model
    generator: vae_jax.Conditional
    encoder: vae_jax.Conditional


def load_blocks(config: Config) -> tuple[np.ndarray, str]:
    """(n, side * side * channels) means of blocks, centred, of variance 1 on average; and where they come from.

    Raises:
        ValueError: images that cannot be cut into so many blocks, or that are all the same.
    """
    source = data.load(config.data, "train")
    ys = source.ys[np.random.default_rng(0).permutation(len(source.ys))[:1000]] if config.smoke else source.ys
    n, h, w, channels = ys.shape
    side = config.side
    if side < 1 or h % side or w % side:
        raise ValueError(f"side={side}: images of {h} x {w} pixels cannot be cut into {side} x {side} equal blocks")
    blocks = ys.reshape(n, side, h // side, side, w // side, channels).mean(axis=(2, 4)).reshape(n, -1)
    blocks -= blocks.mean(axis=0)[None]
    scale = np.sqrt(np.square(blocks).mean())
    if not scale > 0:
        raise ValueError(f"{config.data}: all images have the same blocks")
    return (blocks / scale).astype(np.float32), source.source


def linear_vae(size: int, latent: int, sigma: Any) -> Parts:
    """Affine networks, one log standard deviation for each unit of z, KL in closed form."""
    encoder = vae_jax.gaussian(constant_std(latent))
    generator = vae_jax.l2(nets.MLP((), size), sigma)
    model = vae_jax.vae(encoder, vae_jax.standard_normal(latent), generator, estimator=vae_jax.analytic)
    return Parts(model, generator, encoder)


def train(
    model: vae_jax.Model, ys: np.ndarray, key: jax.Array, config: Config, epochs: int, betas: tuple[float, ...]
) -> Iterator[tuple[Any, float]]:
    """After each epoch the parameters, and the mean ELBO of the batches in it; `epochs` at each beta in turn.

    It is compiled once, beta being a function of the step. Each beta starts where the one before ended.
    """
    k_init, k_train = jax.random.split(key)
    per_epoch = len(ys) // config.batch_size
    stage = epochs * per_epoch
    peak = optax.cosine_decay_schedule(config.learning_rate, stage)
    weights = jnp.asarray(betas)
    objective = objectives.beta_elbo(lambda step: weights[jnp.minimum(step // stage, len(betas) - 1)])
    optimizer = optax.adam(lambda step: peak(step % stage))
    state = vae_jax.init_state(model, optimizer, k_init, ys[0])
    step = vae_jax.make_train_step(model, optimizer, objective=objective)
    epoch = jax.jit(vae_jax.make_scan(step, config.batch_size, per_epoch))
    for _ in range(epochs * len(betas)):
        state, metrics = epoch(state, k_train, ys)
        yield state.params, float(metrics["elbo"].mean())


class Ways(NamedTuple):
    """Three ways to one optimum.

    Fields:
        closed: in closed form; em: by EM.
        elbo: (passes,) of the linear VAE, mean over the batches of each epoch.
        gap: ln P(y) in closed form less the ELBO of the trained VAE, averaged over the examples.
        loadings: way -> (size, latent) W.
        sigma: way -> sigma.
    """

    closed: ClosedForm
    em: FittedEM
    elbo: np.ndarray
    gap: Mean
    loadings: dict[str, np.ndarray]
    sigma: dict[str, float]


CLOSED, EM, VAE = "closed form", "EM", "linear VAE"


def three_ways(config: Config, ys: np.ndarray, key: jax.Array) -> Ways:
    """Fit the same model three times."""
    k_em, k_vae, k_gap = jax.random.split(key, 3)
    size = ys.shape[1]
    model = ppca(size, config.latent)
    closed = ppca_closed_form(ys, config.latent)
    em = fit_em(model, ys, key=k_em, iterations=config.passes, tolerance=None)
    parts = linear_vae(size, config.latent, "learned")
    *_, last = history = list(train(parts.model, ys, k_vae, config, config.passes, (1.0,)))
    params = last[0]
    # the same model with every term at one sample: at the optimum, where enc is the posterior, it has no noise
    exact = vae_jax.vae(parts.encoder, vae_jax.standard_normal(config.latent), parts.generator)
    log_p = np.asarray(em_of(model).expect(closed.params, jnp.asarray(ys))[0])
    gap = mean(log_p - evaluate(exact, params, k_gap, ys, batch_size=1000).elbo)
    of_em = em.params["gen"]
    loadings, sigma = affine(parts.generator, params["gen"], config.latent)
    return Ways(
        closed,
        em,
        np.array([elbo for _, elbo in history]),
        gap,
        {CLOSED: np.asarray(closed.params["gen"]["loadings"]), EM: np.asarray(of_em["loadings"]), VAE: loadings},
        {
            CLOSED: float(np.exp(closed.params["gen"]["log_std"])),
            EM: float(np.exp(of_em["log_std"])),
            VAE: sigma,
        },
    )


def affine(generator: vae_jax.Conditional, params: Any, latent: int) -> tuple[np.ndarray, float]:
    """(W, sigma) of a linear generator."""
    loadings = jax.jacfwd(lambda z: generator.dist(params, z).mean)(jnp.zeros(latent))
    variance = generator.dist(params, jnp.zeros(latent)).variance
    return np.asarray(loadings), float(np.sqrt(variance[0]))


def angle(a: np.ndarray, b: np.ndarray) -> float:
    """The largest angle between the spans of two matrices' columns, in degrees."""
    a, b = (np.linalg.qr(x.astype(np.float64))[0] for x in (a, b))
    return float(np.degrees(np.arcsin(min(1.0, np.linalg.norm(b - a @ (a.T @ b), 2)))))


class Point(NamedTuple):
    """One beta: what was measured on the data, and what theory predicts."""

    beta: float
    rate: Mean
    active: int
    theory: Collapse


def sweep(config: Config, ys: np.ndarray, key: jax.Array) -> list[Point]:
    """Linear VAEs with a fixed sigma and as many units as the data have directions, the largest beta first.

    Downwards units become active a few at a time, along the principal directions; all at once they would be mixtures of
    these, which a diagonal encoder unmixes slowly.
    """
    k_train, k_evaluate = jax.random.split(key)
    size = ys.shape[1]
    parts = linear_vae(size, size, config.sigma)
    betas = tuple(sorted(config.betas, reverse=True))
    path = list(train(parts.model, ys, k_train, config, config.epochs, betas))
    values = eigenvalues_of(ys)
    points = []
    for beta, (params, _) in zip(betas, path[config.epochs - 1 :: config.epochs], strict=True):
        result = evaluate(parts.model, params, k_evaluate, ys, batch_size=1000)
        active = active_units(result) or 0
        theory = collapse(values, beta=beta, variance=config.sigma**2, units=size, measured=active)
        points.append(Point(beta, mean(result.rate), active, theory))
    return points[::-1]


def eigenvalues_of(ys: np.ndarray) -> np.ndarray:
    """Variances along the principal directions, largest first."""
    return np.linalg.eigvalsh(np.cov(ys.T, bias=True))[::-1]


def table(ways: Ways, points: list[Point], where: str) -> list[report.Row]:
    """The three optima, and the largest differences between theory and measurement."""
    off = max(abs(point.rate.value - point.theory.rate) for point in points)
    agree = sum(point.active == point.theory.active for point in points)
    em, elbo = float(ways.em.history[-1]), ways.closed.log_p - ways.gap.value
    return [
        report.Row("ln p, closed form", ways.closed.log_p, None, f"nats per image, {where}; higher is better"),
        report.Row("ln p, EM", em, None, f"the same after {len(ways.em.history) - 1} iterations"),
        report.Row("closed form - EM", ways.closed.log_p - em, None, "nats"),
        report.Row("ELBO, linear VAE", elbo, None, f"after {len(ways.elbo)} epochs; at most ln p of the closed form"),
        report.Row("closed form - ELBO", *ways.gap, "nats, image by image"),
        *(report.Row(f"sigma, {way}", sigma, None, "of the generator") for way, sigma in ways.sigma.items()),
        *(
            report.Row(f"angle, {way}", angle(ways.loadings[CLOSED], ways.loadings[way]), None, meaning)
            for way, meaning in ((EM, "degrees, the largest between its span and the principal directions"), (VAE, "the same"))
        ),
        report.Row("rate less theory", off, None, f"nats per image, the largest difference over {len(points)} betas"),
        report.Row("betas with units as predicted", agree, None, f"of {len(points)}: as many active units as in theory"),
    ]


def sections(config: Config, ways: Ways, points: list[Point], ys: np.ndarray) -> list[report.Section]:
    """The climb of EM and VAE, the directions, and the collapse."""
    return [climbs(ways), directions(ways, config.side), collapsing(config, points, eigenvalues_of(ys))]


def climbs(ways: Ways) -> report.Section:
    """ln p and ELBO by passes over the data, and how far they are from the top."""
    top = ways.closed.log_p
    em, elbo = ways.em.history, ways.elbo
    passes = {EM: np.arange(len(em)), VAE: np.arange(1, len(elbo) + 1)}
    values = {EM: em, VAE: elbo}
    near = {way: values[way] > top - 3 for way in values}
    lines = {
        "closed form": (np.array([0, max(len(em) - 1, len(elbo))]), np.full(2, top)),
        **{
            name: (passes[way][near[way]], values[way][near[way]])
            for way, name in ((EM, "EM: ln p"), (VAE, "linear VAE: ELBO"))
            if near[way].any()
        },
    }
    cells = [
        [CLOSED, "eigenvectors of the covariance", f"{top:.4f}", f"{ways.sigma[CLOSED]:.4f}"],
        [EM, "enc: the exact posterior; then gen in closed form", f"{em[-1]:.4f}", f"{ways.sigma[EM]:.4f}"],
        [VAE, "enc and gen climb the ELBO together", f"{top - ways.gap.value:.4f}", f"{ways.sigma[VAE]:.4f}"],
    ]
    return report.Section(
        "Three ways to one optimum",
        "Mean ln p of the images, or the ELBO, a lower bound on it; the last 3 nats of the climb. A pass is an "
        "iteration of EM, or an epoch of Adam, whose ELBO is the mean over its batches.",
        [
            report.Picture(
                pictures.curves(lines, x="passes over the data", y="nats per image"), "ln p and ELBO by passes"
            )
        ],
        report.TextTable(["way", "what it does", "nats per image", "sigma"], cells),
    )


def directions(ways: Ways, side: int) -> report.Section:
    """The columns of W as pictures, a row for each way."""
    rows = []
    for loadings in ways.loadings.values():
        ordered = loadings[:, np.argsort(-np.square(loadings).sum(axis=0))]
        signs = np.sign(np.sum(ordered * next(iter(ways.loadings.values())), axis=0))
        images = (ordered * np.where(signs == 0, 1, signs)[None]).T.reshape(len(signs), side, side, -1)
        rows.append(0.5 + 0.5 * images / np.abs(images).max(axis=(1, 2, 3), keepdims=True))
    tiles = np.concatenate(rows)
    tiles = tiles if tiles.shape[-1] in (1, 3) else tiles.mean(axis=-1, keepdims=True)
    picture = pictures.png(pictures.grid(tiles.repeat(20, 1).repeat(20, 2), len(rows[0]), 4, background=255))
    return report.Section(
        "Directions",
        f"The columns of W as images, longest first: {', '.join(ways.loadings)} from top to bottom. The likelihood does "
        "not know a rotation of z, so that EM finds any basis of the same space. The diagonal encoder of the VAE does: "
        "its columns are the principal directions, as in the closed form.",
        [report.Picture(picture, "columns of W")],
    )


def collapsing(config: Config, points: list[Point], eigenvalues: np.ndarray) -> report.Section:
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
    return report.Section(
        "Collapse as beta grows",
        f"Linear VAEs with sigma = {config.sigma:g} and {len(eigenvalues)} units. Theory: a direction of variance "
        "lambda carries 1/2 ln(lambda / (beta sigma²)) nats, or nothing where that is negative. A unit counts as active "
        "if its posterior mean varies over the images with a variance above 0.01.",
        [
            report.Picture(pictures.curves(rates, x="log₂ beta", y="rate, nats per image"), "rate by beta"),
            report.Picture(pictures.curves(units, x="log₂ beta", y="active units"), "active units by beta"),
        ],
        report.TextTable(["beta", "rate", "in theory", "in words"], cells),
    )


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
    if config.smoke:
        ends = tuple(sorted({min(config.betas), max(config.betas)}))
        config = dataclasses.replace(config, passes=40, epochs=20, batch_size=50, betas=ends)
    ys, source = load_blocks(config)
    if not 1 <= config.batch_size <= len(ys):
        raise ValueError(f"batch_size={config.batch_size}: there are {len(ys)} images")
    k_ways, k_sweep = jax.random.split(jax.random.key(config.seed))
    ways = three_ways(config, ys, k_ways)
    points = sweep(config, ys, k_sweep)
    for point in points:
        print(f"beta = {point.beta:g}: {point.theory.sentence}")
    where = f"{len(ys)} images as {ys.shape[1]} means of blocks, centred, of variance 1 on average"
    return tables.publish(
        "linear_vae",
        config,
        title="The linear VAE: one optimum, and its collapse",
        lead=f"{config.latent} latent dimensions, {where}. Data: {source}.",
        table=table(ways, points, where),
        sections=sections(config, ways, points, ys),
    )


if __name__ == "__main__":
    tables.run(main, Config)
