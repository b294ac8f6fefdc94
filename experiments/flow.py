"""A flow trained by cross-entropy beside VAEs trained by a bound, on the same data; flows as a VAE's prior and encoder.

    python -m experiments.flow                                         # two moons, four models
    python -m experiments.flow --data fashion_mnist_mini --latent 8    # each image as 16 means of blocks
    python -m experiments.flow --help                                  # every option

    flow          ln P(y) = ln N(f^-1(y); 0, I) + ln |det df^-1/dy|, exact
    vae           Gaussian encoder, N(0, I), L2 generator with a learned sigma: a bound
    flow-prior    the same with the flow as P_pri(z)
    iaf-encoder   the same with an inverse autoregressive flow as P_enc(z|y)

`vae_jax.open_run` opens the first of them in `out`, the others in `out`/MODEL.

The toys are mixtures of many Gaussians along curves, so that their entropy is known and KL(data || model) can be told.

Expected with the default settings, in nats below the truth on 2,000 test points: flow 0.027 ± 0.005, which keeps a thin
thread between the moons, as f is continuous; vae 0.075 ± 0.006, iaf-encoder 0.054 ± 0.005, flow-prior 0.004 ± 0.002
(their bounds with k = 500). ELBO: vae -1.73, iaf-encoder -1.66, flow-prior -1.59, each ± 0.02; entropy 1.594.
"""

import dataclasses
import functools
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

import vae_jax
from experiments.shared import linear
from vae_jax import Evaluation, Fitted, core, nets
from vae_jax.command import publish
from vae_jax.command.config import CosineAdam, at_least, checked, fitting, read_back
from vae_jax.command.placement import Placed, evaluate_on
from vae_jax.command.results import by_epoch, counted, over_batch
from vae_jax.evaluation import mean
from vae_jax.parts import flows
from vae_jax.report import page, pictures

FLOWS = {"coupling": flows.coupling_flow, "maf": flows.autoregressive_flow}
REACH = 3.5
Name = Literal["flow", "vae", "flow-prior", "iaf-encoder"]


@dataclasses.dataclass(frozen=True)
class Config(CosineAdam, Placed):
    """Train a flow and VAEs on the same data, and compare their ln P(y)."""

    data: str = "moons"
    """moons, rings or gaussians (toys in the plane); or images as vae_jax.data.load takes them, of which the means of
    4 x 4 blocks are modelled."""
    models: tuple[Name, ...] = ("flow", "vae", "flow-prior", "iaf-encoder")
    """What to train."""
    flow: Literal["coupling", "maf"] = "maf"
    """Kind of flow, as a model of y and as a prior: affine coupling, or masked autoregressive."""
    layers: Annotated[int, at_least(0)] = 8  # 0 is refused by the flows, in their words
    """Layers of the flows."""
    hidden: tuple[int, ...] = (64, 64)
    """Hidden layers of every network: of each flow layer, of encoder and of generator."""
    latent: int = 2
    """Dimensions of z."""
    points: Annotated[int, at_least(5)] = 10_000
    """Training points of a toy; a fifth as many for testing."""
    epochs: int = 150
    batch_size: int = 250
    k: Annotated[int, at_least(5)] = 500
    """Importance samples for ln P(y) of the VAEs."""
    out: str = "runs/flow"


class Mixture(NamedTuple):
    """A toy: Gaussians of one standard deviation and equal weights, at centres (m, 2)."""

    centres: np.ndarray
    std: float

    def draw(self, key: jax.Array, n: int) -> np.ndarray:
        """(n, 2)"""
        k_centre, k_noise = jax.random.split(key)
        chosen = jax.random.randint(k_centre, (n,), 0, len(self.centres))
        return self.centres[np.asarray(chosen)] + self.std * np.asarray(jax.random.normal(k_noise, (n, 2)))

    def log_density(self, ys: np.ndarray) -> np.ndarray:
        """(n,) exact ln P(y), nats."""
        squared = jnp.sum((jnp.asarray(ys, jnp.float32)[:, None] - self.centres[None]) ** 2, axis=-1)
        log_volume = np.log(2 * np.pi * self.std**2 * len(self.centres))
        return np.asarray(logsumexp(-0.5 * squared / self.std**2, axis=1)) - log_volume

    @property
    def entropy(self) -> float:
        """Nats, by a sum over an even grid: as exact as float32 is, for densities as smooth as these."""
        points, area = plane(int(4 * REACH / self.std))
        log_p = self.log_density(points).astype(np.float64)
        return -float(np.sum(np.exp(log_p) * log_p) * area)


def plane(side: int) -> tuple[np.ndarray, float]:
    """(side * side, 2) middles of the cells of a square, row by row from the top, and the area of a cell."""
    line = (np.arange(side) + 0.5) / side * 2 * REACH - REACH
    x, y = np.meshgrid(line, line[::-1])
    return np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float32), (2 * REACH / side) ** 2


def toys() -> dict[str, Mixture]:
    half, turn = np.linspace(0, np.pi, 128), np.arange(128) / 64 * np.pi
    circle = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    upper = np.stack([np.cos(half), np.sin(half)], axis=1)
    moons = np.concatenate([upper, np.array([[1.0, 0.5]]) - upper]) - np.array([[0.5, 0.25]])
    return {
        "moons": Mixture((1.5 * moons).astype(np.float32), 0.12),
        "rings": Mixture(np.concatenate([r * circle for r in (0.8, 1.6, 2.4)]).astype(np.float32), 0.1),
        "gaussians": Mixture((2 * circle[::16]).astype(np.float32), 0.2),
    }


class Data(NamedTuple):
    """Training and test examples (n, d), where they come from, and their exact density where it is known."""

    train: np.ndarray
    test: np.ndarray
    source: str
    truth: Mixture | None


def load(config: Config, key: jax.Array) -> Data:
    """By the option --data."""
    truth = toys().get(config.data)
    if truth is not None:
        ys = truth.draw(key, config.points + config.points // 5)
        return Data(ys[: config.points], ys[config.points :], f"{config.data}, drawn here", truth)
    ys, source = linear.load_blocks(config.data, 4, smoke=config.smoke)
    test = len(ys) // 5
    return Data(ys[test:], ys[:test], f"means of 4 x 4 blocks, variance 1 on average; {source}", None)


def build(config: Config, size: int) -> dict[str, vae_jax.Model]:
    """Each model that is asked for, of vectors of `size` numbers."""
    makes = FLOWS[config.flow], flows.inverse_autoregressive_flow
    kind, iaf = (functools.partial(make, layers=config.layers, hidden=config.hidden) for make in makes)
    encoder = vae_jax.gaussian(nets.MLP(config.hidden, 2 * config.latent))
    bent = iaf(config.latent, base=encoder, context=nets.MLP(config.hidden, config.hidden[-1]))
    generator = vae_jax.l2(nets.MLP(config.hidden, size))
    normal = vae_jax.standard_normal(config.latent)
    makers = {
        "flow": lambda: core.lift(kind(size)),
        "vae": lambda: vae_jax.vae(encoder, normal, generator),
        "flow-prior": lambda: vae_jax.vae(encoder, kind(config.latent), generator),
        "iaf-encoder": lambda: vae_jax.vae(bent, normal, generator),
    }
    return {name: makers[name]() for name in config.models}


def rebuild(*, name: str, size: int, **fields: Any) -> vae_jax.Model:
    """One of the models, for `vae_jax.open_run`."""
    return build(read_back(Config, fields), size)[name]


class Trained(NamedTuple):
    """A model, how its training went, and what it says of the test examples."""

    model: vae_jax.Model
    fitted: Fitted
    result: Evaluation


def log_p(result: Evaluation) -> np.ndarray:
    """(n,) nats: exact for the flow, the importance-weighted bound for a VAE."""
    return result.elbo if result.log_likelihood is None else result.log_likelihood


def train(config: Config, name: str, model: vae_jax.Model, source: Data, key: jax.Array) -> Trained:
    """Adam along a cosine; the last parameters count, the test examples are looked at once."""
    k_fit, k_evaluate = jax.random.split(key)
    fitted = config.training.fit(config, model, source.train, k_fit, clip_norm=10.0)
    k = 0 if name == "flow" else config.k
    return Trained(model, fitted, evaluate_on(config, model, fitted.params, k_evaluate, source.test, k=k))


def rows(config: Config, trained: dict[str, Trained], source: Data) -> list[page.Row]:
    """The exact ln P of the flow, the two bounds of each VAE, and how far each is from the data, point by point."""
    n, table = len(source.test), []
    if source.truth is not None:
        table = [
            page.Row("entropy", source.truth.entropy, None, "nats, of the data, by quadrature"),
            page.Row("truth: ln p", *mean(source.truth.log_density(source.test)), f"nats; {n} test points"),
        ]
    for name, each in trained.items():
        size = sum(leaf.size for leaf in jax.tree.leaves(each.fitted.params))
        if each.result.log_likelihood is None:
            what = f"nats, exact; {n} test examples; {size} parameters"
            table.append(page.Row(f"{name}: ln p", *mean(each.result.elbo), what))
        else:
            table.append(page.Row(f"{name}: ELBO", *mean(each.result.elbo), f"nats, a bound; {size} parameters"))
            table.append(page.Row(f"{name}: IWAE", *mean(log_p(each.result)), f"nats, a tighter bound, k={config.k}"))
        if source.truth is not None:
            away = mean(source.truth.log_density(source.test) - log_p(each.result))
            what = "" if each.result.log_likelihood is None else "at most "
            table.append(page.Row(f"{name}: below the truth", *away, f"nats; KL(data || model) is {what}this"))
    return table


def sections(config: Config, trained: dict[str, Trained], source: Data, key: jax.Array) -> list[page.Section]:
    """Densities on the plane, draws, and the learning curves."""
    known = np.concatenate([source.test, source.train])[:20_000]
    drawn = {"data": known} | {name: draws(each, key) for name, each in trained.items()}
    axes, where, x, y = np.eye(2), "", "y₁", "y₂"
    if source.truth is None:
        centred = source.train - source.train.mean(axis=0)[None]
        axes = np.linalg.svd(centred, full_matrices=False)[2][:2].T
        where = " In the plane of the data's first two principal directions."
        x, y = "first direction", "second direction"
    panels = {name: counted(ys @ axes, 64, REACH) for name, ys in drawn.items()}
    curves = {name: by_epoch(each.fitted.history, "elbo", -1) for name, each in trained.items()}
    return [
        *([] if source.truth is None else [densities(config, trained, source.truth, key)]),
        page.Section(
            "Draws",
            f"Data and draws of the models, counted in small squares: the root of the density, on one scale.{where}",
            [page.Picture(pictures.planes(panels, x=x, y=y), "draws, counted")],
        ),
        page.Section(
            "Learning curves",
            "-ln p of the flow, -ELBO of the VAEs, over the batches of each epoch.",
            [page.Picture(pictures.curves(curves, y="nats per example"), "loss by epoch")],
        ),
    ]


def densities(config: Config, trained: dict[str, Trained], truth: Mixture, key: jax.Array) -> page.Section:
    """P(y) of each model over the plane, that of VAEs by importance sampling."""
    side = 24 if config.smoke else 128
    points, area = plane(side)
    values = {"truth": np.exp(truth.log_density(points))}
    for name, each in trained.items():
        k = 0 if name == "flow" else config.k // 5
        values[name] = np.exp(
            log_p(evaluate_on(config, each.model, each.fitted.params, key, points, k=k, batch_size=512))
        )
    panels = {name: (p.reshape(side, side)[::-1], REACH) for name, p in values.items()}
    masses = ", ".join(f"{name} {p.sum() * area:.3f}" for name, p in values.items())
    return page.Section(
        "Densities",
        f"P(y) on the square of half width {REACH}: the root of the density, on one scale. That of a VAE is estimated "
        f"by importance sampling. Mass in the picture: {masses}.",
        [page.Picture(pictures.planes(panels), "densities of the models")],
    )


def draws(trained: Trained, key: jax.Array, n: int = 20_000) -> np.ndarray:
    """(n, d)"""
    return over_batch(trained.model.sample, trained.fitted.params, jax.random.split(key, n))


@publish.timed
def main(config: Config) -> dict[str, Any]:
    """Train each model, compare, report; returns the numbers of the table.

    Raises:
        ValueError: options out of range, or that do not fit the data.
        FileNotFoundError: see `vae_jax.data.load`.
    """
    if not config.models or config.k < 5 or config.points < 5 or not config.hidden:
        raise ValueError("want at least one model, one hidden layer, k >= 5 and points >= 5")
    config = checked(config)
    if config.smoke:
        config = dataclasses.replace(config, points=1000, epochs=2, layers=2, k=10, batch_size=100)
    k_data, k_train, k_pictures = jax.random.split(jax.random.key(config.seed), 3)
    source = load(config, k_data)
    config = fitting(config, len(source.train))
    trained = {
        name: train(config, name, model, source, jax.random.fold_in(k_train, i))
        for i, (name, model) in enumerate(build(config, source.train.shape[1]).items())
    }
    fitted = {name: each.fitted for name, each in trained.items()}
    publish.save_all(config, rebuild, fitted, source.train[0], main=config.models[0], size=source.train.shape[1])
    return publish.write(
        "flow",
        config,
        title="A flow by cross-entropy, and VAEs by their bound",
        lead=(
            f"{len(source.train)} training examples of {source.train.shape[1]} numbers, {config.epochs} epochs; flows: "
            f"{config.flow}, {config.layers} layers; {config.latent} latent dimensions. Data: {source.source}."
        ),
        table=rows(config, trained, source),
        sections=sections(config, trained, source, k_pictures),
    )


if __name__ == "__main__":
    publish.run(main, Config)
