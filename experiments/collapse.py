"""Posterior collapse: the same encoder with an L2 generator and with an autoregressive one (the lecture's claim).

    python -m experiments.collapse            # Fashion-MNIST mini, shrunk to 7x7 pixels of 8 levels
    python -m experiments.collapse --help     # every option

With L2 distortion z has to specify y up to sigma: each direction of the data whose variance exceeds sigma^2 is sent
through z, the others collapse, exactly where theory says (`vae_jax.evaluation.collapse`). An autoregressive generator
can compute P(y) from the pixels before each pixel, without z: the encoder may ignore y, unless something keeps it from
it. `vae_jax.open_run` opens the VAE with this generator and the last cure in `out`, with the others in `out`/CURE.
"""

import dataclasses
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import optax

import vae_jax
from experiments.shared.linear import constant_std, downwards, eigenvalues_of, linear_vae
from vae_jax import Evaluation, Fitted, core, nets
from vae_jax.command import publish
from vae_jax.command.config import Images, at_least, checked, read_back
from vae_jax.command.cosine_adam import Training
from vae_jax.command.images import load_both
from vae_jax.command.placement import Placed, evaluate_on, fit_on
from vae_jax.command.results import by_epoch
from vae_jax.core import objectives
from vae_jax.data import Preprocess
from vae_jax.evaluation import Collapse, active_units, collapse, mean
from vae_jax.parts import autoregressive, committed_gaussian, in_training
from vae_jax.report import page, pictures
from vae_jax.training import lagging


@dataclasses.dataclass(frozen=True)
class Config(Images, Placed):
    """Train one encoder with two kinds of generator, and compare what z carries."""

    data: str = "fashion_mnist_mini"
    """Data set of images, all of one size that 7 divides."""
    levels: Annotated[int, at_least(2)] = 8
    """Levels of a pixel."""
    latent: int = 16
    """Dimensions of z."""
    sigmas: tuple[float, ...] = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8, 1.2)
    """Standard deviations of the L2 generator, one training for each; white is 1."""
    linear_epochs: int = 150
    """Passes over the training images, for each sigma."""
    hidden: int = 128
    """State of the autoregressive generator's LSTM."""
    epochs: int = 25
    """Passes over the training images, for each cure."""
    cures: tuple[str, ...] = ()
    """Which cures to try, by name (default: all)."""
    floor: float = 4.0
    """Nats: of free bits, and of the committed rate."""
    out: str = "runs/collapse"


class Point(NamedTuple):
    """The L2 generator at one sigma: what was measured, and what theory says."""

    sigma: float
    evaluation: Evaluation
    theory: Collapse


class Cured(NamedTuple):
    """The autoregressive generator, trained in one way."""

    fitted: Fitted
    evaluation: Evaluation


SIDE = 7
NO_CURE = "no cure"


def shrunk(ys: np.ndarray, levels: int) -> np.ndarray:
    """(n, 49) whole numbers 0 .. levels - 1: the mean of each of 7x7 blocks of the image, in even steps."""
    n, height, width, channels = ys.shape
    if height % SIDE or width % SIDE:
        raise ValueError(f"want images whose sides 7 divides; got {height}x{width}")
    blocks = ys.reshape(n, SIDE, height // SIDE, SIDE, width // SIDE, channels).mean(axis=(2, 4, 5))
    return np.floor(blocks * levels / 256).astype(np.int32).reshape(n, -1)


def dequantised(levels: int) -> Preprocess:
    """(y + u) / levels in [0, 1): a density of it bounds the probability of the levels."""

    def apply(key, y):
        return (y + jax.random.uniform(key, y.shape)) / levels

    return Preprocess(apply, f"{levels} levels, dequantised", float(np.log(levels)))


def encoder_net(config: Config) -> core.Network:
    """The encoder's network, the same with both generators: an affine mean of y / levels, a deviation whatever y."""
    net = constant_std(config.latent)
    return core.Network(
        lambda key, y: net.init(key, y / config.levels),
        lambda params, y: net.apply(params, y / config.levels),
    )


def at_sigma(config: Config, sigma: float, key: jax.Array, ys: np.ndarray, start: Any) -> tuple[Point, Any]:
    """Train with the L2 generator at one sigma, from the parameters `start` if there are any."""
    model = linear_vae(SIDE**2, config.latent, sigma).model
    k_fit, k_evaluate = jax.random.split(key)
    prepare = dequantised(config.levels)
    fitted = Training(config.linear_epochs, min(250, len(ys)), 1e-2).fit(
        config,
        model if start is None else core.start_from(model, start),
        ys,
        k_fit,
        preprocess=prepare,
        progress=False,
    )
    result = evaluate_on(config, model, fitted.params, k_evaluate, ys, preprocess=prepare, samples=4)
    variances = eigenvalues_of(ys, config.levels)
    theory = collapse(variances, variance=sigma**2, units=config.latent, measured=active_units(result))
    return Point(sigma, result, theory), fitted.params


def ways(config: Config, steps: int) -> dict[str, dict[str, Any]]:
    """By name: options of the training step; `encoder`, where it is another one; `dropped` pixels in training."""
    floor = config.floor
    return {
        NO_CURE: {},
        "KL annealing": {"objective": objectives.beta_elbo(objectives.linear_annealing(max(1, steps // 2)))},
        "free bits": {"objective": objectives.free_bits(floor, objectives.per_example)},
        "lagging encoder": {"parts": lagging(5, max(1, steps // 2))},
        "half of the pixels unseen": {"dropped": 0.5},
        "committed rate": {"encoder": committed_gaussian(encoder_net(config), floor)},
    }


def autoregressive_vae(config: Config, encoder: Any = None, dropped: float = 0.0) -> vae_jax.Model:
    """The encoder with the autoregressive generator, from which in training some of the pixels may be hidden."""
    encoder = vae_jax.gaussian(encoder_net(config)) if encoder is None else encoder
    full = autoregressive(nets.LSTM(config.levels, 16, config.hidden), (SIDE**2,), config.levels)
    generator = in_training(full, word_dropout=dropped, unknown=0) if dropped else full
    return vae_jax.vae(encoder, vae_jax.standard_normal(config.latent), generator, estimator=vae_jax.analytic)


def rebuild(*, name: str, **fields: Any) -> vae_jax.Model:
    """The model of one of the `ways`, for `vae_jax.open_run`."""
    config = read_back(Config, fields)
    return autoregressive_vae(config, ways(config, 1)[name].get("encoder"))


def autoregressively(
    config: Config,
    key: jax.Array,
    train: np.ndarray,
    test: np.ndarray,
    encoder: Any = None,
    dropped: float = 0.0,
    **options: Any,
) -> Cured:
    """Train with the autoregressive generator, in one of the `ways`; reported after the last epoch."""
    model = autoregressive_vae(config, encoder)
    if dropped:
        trained = autoregressive_vae(config, encoder, dropped)
        options["objective"] = objectives.of(lambda step: trained)
    k_fit, k_evaluate = jax.random.split(key)
    fitted = fit_on(
        config,
        model,
        optax.adam(2e-3),
        train,
        key=k_fit,
        epochs=config.epochs,
        batch_size=min(100, len(train)),
        validation=(test, None),
        clip_norm=5.0,
        **options,
    )
    fitted = fitted._replace(params=fitted.state.params)
    return Cured(fitted, evaluate_on(config, model, fitted.params, k_evaluate, test, samples=4))


def table(points: list[Point], cured: dict[str, Cured], n: int) -> list[page.Row]:
    """Rates with both generators."""
    rows = []
    for point in points:
        said = f"{point.theory.rate:.3f} by theory; {point.theory.active} units active by theory"
        meaning = f"nats per image, {n} training images; {said}"
        rows.append(page.Row(f"L2, sigma = {point.sigma:g}: rate", *mean(point.evaluation.rate), meaning))
    for name, one in cured.items():
        elbo = mean(one.evaluation.elbo)
        meaning = f"nats per test image; ELBO {elbo.value:.2f} ± {elbo.standard_error:.2f}"
        rows.append(page.Row(f"autoregressive, {name}: rate", *mean(one.evaluation.rate), meaning))
    return rows


def sections(points: list[Point], cured: dict[str, Cured]) -> list[page.Section]:
    """The claim in one figure, and the units that are active."""
    sigma = np.log10([point.sigma for point in points])
    rates = {
        "theory": (sigma, np.array([point.theory.rate for point in points])),
        "measured": (sigma, np.array([mean(point.evaluation.rate).value for point in points])),
    }
    over_epochs = {name: by_epoch(one.fitted.history, "valid_rate") for name, one in cured.items()}
    words = [[f"{point.sigma:g}", point.theory.sentence] for point in points]
    return [
        page.Section(
            "What z carries",
            "One encoder, two generators. With L2 distortion the rate of the optimum falls as sigma grows, and is 0 "
            "from where sigma² is above the largest variance of the data; the smaller sigma, the more of y is in z. "
            "With an autoregressive generator: the rate during training, without and with cures.",
            [
                page.Picture(
                    pictures.curves(rates, x="log₁₀ sigma", y="rate, nats per image"), "rate by sigma", "L2 distortion"
                ),
                page.Picture(
                    pictures.curves(over_epochs, x="epoch", y="rate, nats per image"),
                    "rate by epoch for each cure",
                    "autoregressive generator",
                ),
            ],
        ),
        page.Section(
            "Units",
            "A unit counts as active if its posterior mean varies over the training images with a variance above 0.01.",
            table=page.TextTable(["sigma", "in words"], words),
        ),
    ]


@publish.timed
def main(config: Config) -> dict[str, Any]:
    """Train everything, report; returns the numbers of the table.

    Raises:
        ValueError: options out of range, or images that cannot be shrunk.
    """
    if not config.sigmas or min(config.sigmas) <= 0 or config.levels < 2 or config.latent < 1:
        raise ValueError(
            f"want sigmas > 0, at least 2 levels and 1 dimension of z; got {config.sigmas}, {config.levels}, "
            f"{config.latent}"
        )
    config = checked(config)
    train, test = load_both(config.data)
    train_ys, test_ys = (shrunk(split.ys, config.levels) for split in (train, test))
    if config.smoke:
        config = dataclasses.replace(
            config, linear_epochs=1, epochs=1, hidden=8, sigmas=config.sigmas[:2], cures=config.cures or ("free bits",)
        )
        train_ys, test_ys = train_ys[:256], test_ys[:64]
    every = ways(config, config.epochs * (len(train_ys) // min(100, len(train_ys))))
    unknown = sorted(set(config.cures) - set(every))
    if unknown:
        raise ValueError(f"no such cure: {unknown}; there are {list(every)[1:]}")
    key = jax.random.key(config.seed)

    def at(sigma, key, start):
        return at_sigma(config, sigma, key, train_ys, start)

    points = downwards("sigma", config.sigmas, key, at)
    cured = {}
    k_ways = jax.random.fold_in(key, len(points))
    for name, options in every.items():
        if config.cures and name not in (NO_CURE, *config.cures):
            continue
        print(name)
        cured[name] = autoregressively(config, k_ways, train_ys, test_ys, **options)
    trained = {name: one.fitted for name, one in cured.items()}
    publish.save_all(config, rebuild, trained, train_ys[0], main=list(cured)[-1])
    return publish.write(
        "collapse",
        config,
        title="Posterior collapse",
        lead=(
            f"Images of {SIDE}x{SIDE} pixels of {config.levels} levels, {len(train_ys)} for training and "
            f"{len(test_ys)} for tests; {config.latent} latent dimensions. L2: a linear generator, dequantised levels. "
            f"Autoregressive: an LSTM of {config.hidden} over the pixels. Data: {train.source}."
        ),
        table=table(points, cured, len(train_ys)),
        sections=sections(points, cured),
    )


if __name__ == "__main__":
    publish.run(main, Config)
