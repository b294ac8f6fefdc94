"""The routes for a discrete z on one model: bias and variance of the encoder's gradient, time, and where each ends.

    python -m experiments.discrete                              # the 5,000 garments that the package carries
    python -m experiments.discrete --classes 32 --epochs 100
    python -m experiments.discrete --help                       # every option

The model is a mixture of Bernoullis with an encoder, so that everything is known exactly. Expected test ln P in nats,
each ± 2.6: EM -209.7, exact enumeration -255.6, Gumbel-softmax -242.2 at temperature 1 and -236.7 while it falls,
straight-through -260.4, score function -291.7 and with a baseline -260.5, leave one out -261.0, VIMCO -251.1. Routes
along a gradient end where classes have died out, the exact one too, which is what `vae_jax.open_run` opens.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np

import vae_jax
from experiments import discrete_routes as routes
from experiments.shared import ascent
from vae_jax import evaluate
from vae_jax.command import publish
from vae_jax.command.config import CosineAdam, at_least, checked, fitting, read_back
from vae_jax.command.images import load_both
from vae_jax.em.algorithm import em_of
from vae_jax.evaluation import Mean, mean
from vae_jax.report import page, pictures


@dataclasses.dataclass(frozen=True)
class Config(CosineAdam):
    """Train one model with a discrete z along every route, and write a report."""

    data: str = "fashion_mnist_mini"
    """Data set: a name or a path that vae_jax.data.load takes. Pixels of 128 and more are white, the others black."""
    classes: Annotated[int, at_least(2)] = 16
    """Values of z."""
    hidden: int = 100
    """Width of the encoder's hidden layer."""
    temperatures: tuple[float, ...] = (0.1, 0.3, 1.0)
    """Of the relaxed classes."""
    draws: Annotated[int, at_least(2)] = 4
    """Draws of z for each image, where an objective takes several."""
    epochs: Annotated[int, at_least(2)] = 20
    learning_rate: float = 5e-3
    gradients: Annotated[int, at_least(2)] = 1000
    """Draws of the gradient that bias and spread are measured from."""
    out: str = "runs/discrete"


def load(name: str, smoke: bool) -> tuple[np.ndarray, np.ndarray]:
    """Training and test images (n, h, w, channels) of zeros and ones; all of them, or some that are drawn."""

    def some(ys: np.ndarray, n: int) -> np.ndarray:
        chosen = np.random.default_rng(0).permutation(len(ys))[: n if smoke else None]
        return (ys[chosen] >= 128).astype(np.float32)

    train, test = load_both(name)
    return some(train.ys, 300), some(test.ys, 50)


ROUNDING = 1e-3  # in lengths of the exact gradient: a spread or a bias below it is none


class Result(NamedTuple):
    """What one route came to.

    Fields:
        log_p: exact mean ln P(y) of the test images; elbo: their exact ELBO, None without an encoder.
        curve: (epochs + 1,) mean ln P(y) of the training images.
        seconds: of a step; for EM of an iteration.
        measured: the encoder's gradient, or None.
        means, weights: (classes, *image) the mean of each class, and its probability.
    """

    log_p: Mean
    elbo: Mean | None
    curve: np.ndarray
    seconds: float
    measured: routes.Measured | None
    means: np.ndarray
    weights: np.ndarray


def rebuild(*, shape: Sequence[int], **fields: Any) -> vae_jax.Model:
    """The model, which is one on all routes, for `vae_jax.open_run`."""
    config = read_back(Config, fields)
    return routes.build(config.classes, config.hidden, tuple(shape)).model(vae_jax.enumerated)


def run(config: Config, train: np.ndarray, test: np.ndarray) -> dict[str, Result]:
    """Every route from one start; gradients are measured where two epochs of the exact route have led."""
    parts = routes.build(config.classes, config.hidden, train.shape[1:])
    k_start, k_train, k_measure = jax.random.split(jax.random.key(config.seed), 3)
    start = parts.start(k_start, train)
    steps = config.training.steps(len(train))
    every = routes.all_routes(parts, config.temperatures, config.draws, steps, routes.independent_pixels(train))
    ended = {name: routes.train(route, start, train, k_train, config.training) for name, route in every.items()}
    point, some = ended[routes.EXACT].at(2), train[: config.batch_size]
    exact = {k: routes.exact_gradient(parts, point, some, k) for k in (0, config.draws)}
    measured = {
        name: routes.measure(route, exact[route.draws], point, some, k_measure, config.gradients)
        for name, route in every.items()
        if route.fixed
    }
    mixture, path, seconds = routes.by_em(parts, start, train, config.epochs)
    paths = {routes.EM: path} | {name: {"pri": e.path["pri"], "gen": e.path["gen"]} for name, e in ended.items()}
    curves = ascent.along(mixture, paths, train)
    log_p = jax.jit(lambda params: em_of(mixture).expect(params, test)[0])
    model = parts.model(vae_jax.enumerated)  # whose one importance sample is all of them: ln P(y) is exact

    publish.save(config, rebuild, ended[routes.EXACT].at(-1), train[0], shape=train.shape[1:])

    def result(name):
        last = jax.tree.map(lambda x: x[-1], paths[name])
        route = ended.get(name)
        found = None if route is None else evaluate(model, route.at(-1), jax.random.key(0), test, k=1)
        return Result(
            log_p=mean(log_p(last) if found is None else found.log_likelihood),
            elbo=None if found is None else mean(found.elbo),
            curve=curves[name],
            seconds=seconds if route is None else route.seconds,
            measured=measured.get(name),
            means=np.asarray(jax.nn.sigmoid(last["gen"]["logits"])),
            weights=np.asarray(jax.nn.softmax(last["pri"]["logits"])),
        )

    return {name: result(name) for name in paths}


def table(results: dict[str, Result], where: str) -> list[page.Row]:
    """Where each route ended, and how its gradient compares with the exact one."""
    rows = [page.Row(f"ln P, {name}", *r.log_p, f"nats per image, {where}") for name, r in results.items()]
    for name, r in results.items():
        if r.measured is not None:
            meaning = "lengths of the exact gradient; ±: what noise alone gives"
            if max(r.measured.spread, r.measured.bias) < ROUNDING:
                rows.append(page.Row(f"bias, {name}", 0, None, "the same at every draw, and exact but for rounding"))
            else:
                rows.append(page.Row(f"bias, {name}", r.measured.bias, r.measured.noise, meaning))
    return rows


def spread_text(measured: routes.Measured | None) -> str:
    """How far a draw is from the mean of all; nothing where it was not measured."""
    if measured is None:
        return ""
    return "0" if measured.spread < ROUNDING else f"{measured.spread:.2f}"


def sections(results: dict[str, Result], config: Config, where: str) -> list[page.Section]:
    """The comparison, the climbs, the classes."""
    exact, em = results[routes.EXACT], results[routes.EM]
    cells = [
        [
            name,
            spread_text(r.measured),
            page.number_text(1e3 * r.seconds)[0],
            "" if r.elbo is None else f"{r.log_p.value - r.elbo.value:.2f}",
            f"{np.sum(r.weights > 0.2 / len(r.weights))}",
        ]
        for name, r in results.items()
    ]
    columns = ["route", "spread", "ms a step", "ln P - ELBO", "classes in use"]
    return [
        page.Section(
            "The routes",
            f"All start at the same parameters and take {config.epochs} epochs in batches of {config.batch_size}. Bias "
            "and spread are those of the encoder's gradient for one batch, where two epochs of the exact route have "
            "led, in lengths of the exact gradient: of the ELBO, or, for VIMCO, of its own bound. The spread is the "
            f"standard deviation of one draw. The bias is measured from {config.gradients} draws: one as long as its ± "
            f"is noise. ln P and ELBO are exact, {where}; a class is in use if its weight is at least a fifth of "
            f"1/{config.classes}. A step of EM is an iteration over all images, and its time has the compiling in it; "
            "it has no encoder but the exact posterior.",
            table=page.TextTable(columns, cells),
        ),
        *(
            page.Section(
                f"The climb: {title}",
                "Exact mean ln P(y) of the training images by epoch, the first two left out, less that of the exact "
                f"route, which ends at {exact.curve[-1]:.2f}; EM, by iteration, ends at {em.curve[-1]:.2f}.",
                [page.Picture(climb({name: results[name] for name in names}, exact), f"ln P by epoch, {title}")],
            )
            for title, names in groups(results).items()
        ),
        page.Section(
            "The classes",
            "The mean image of each class, the heaviest first; a row for each route.",
            [page.Picture(classes(results), "means of the classes, by route", rows=list(results))],
        ),
    ]


def groups(results: dict[str, Result]) -> dict[str, list[str]]:
    """The relaxed routes by their kind, and those that draw: what differs little from each other is seen alone."""
    kinds = {"Gumbel-softmax": "Gumbel", "straight-through": "straight"}
    found = {title: [name for name in results if name.startswith(start)] for title, start in kinds.items()}
    known = {routes.EM, routes.EXACT, *itertools.chain.from_iterable(found.values())}
    return {**found, "drawn": [name for name in results if name not in known]}


def climb(results: dict[str, Result], exact: Result) -> bytes:
    """ln P less that of the exact route."""
    lines = {name: (np.arange(len(r.curve))[2:], (r.curve - exact.curve)[2:]) for name, r in results.items()}
    return pictures.curves(lines, y="mean ln P less exact route's, nats")


def classes(results: dict[str, Result]) -> bytes:
    ordered = [r.means[np.argsort(-r.weights)] for r in results.values()]
    return pictures.png(pictures.grid(np.concatenate(ordered), len(ordered[0])))


@publish.timed
def main(config: Config) -> dict[str, Any]:
    """Train along every route, measure, report; returns the numbers of the table."""
    if config.classes < 2 or config.epochs < 2 or config.gradients < 2:
        raise ValueError(
            f"want classes, epochs and gradients >= 2; got {config.classes}, {config.epochs} and {config.gradients}"
        )
    config = checked(config)
    if config.smoke:
        small: dict[str, Any] = {
            "classes": 4,
            "epochs": 3,
            "gradients": 20,
            "hidden": 10,
            "batch_size": 50,
            "temperatures": (0.3,),
        }
        config = dataclasses.replace(config, **small)
    train, test = load(config.data, config.smoke)
    config = fitting(config, len(train))
    where = f"{len(test)} test images, black and white"
    results = run(config, train, test)
    return publish.write(
        "discrete",
        config,
        title="Routes to a discrete z",
        lead=(
            f"A mixture of {config.classes} products of Bernoullis with an encoder, on {len(train)} images in black "
            f"and white ({config.data}): one model, one start, and every way to train a z that is a class."
        ),
        table=table(results, where),
        sections=sections(results, config, where),
    )


if __name__ == "__main__":
    publish.run(main, Config)
