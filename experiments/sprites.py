"""Whether each unit of z stands for one factor of the data, as a weight on their independence grows.

    python -m experiments.sprites                          # beta-TCVAE on 20,000 sprites, five weights, three seeds
    python -m experiments.sprites --objective beta         # the whole rate weighed (Higgins et al. 2017)
    python -m experiments.sprites --objective factor       # the total correlation by a discriminator (FactorVAE)
    python -m experiments.sprites --help                   # every option

Sprites are figures whose factors are known: what they are, their size, turn, and place (dSprites' factors, drawn here).
MIG, SAP and DCI judge the encoder's means on new sprites (`vae_jax.evaluation.disentanglement`); beside them are the
three parts of the rate, information, total correlation and the margins' distance from the prior. Weight 1 is the ELBO.
DCI wants scikit-learn, and is left out without it. `vae_jax.open_run` opens the first seed's VAE of the smallest weight
in `out`, of the others in `out`/"weight = 2" and so on.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np

import vae_jax
from vae_jax import Fitted, core, nets
from vae_jax.command import publish
from vae_jax.command.config import CosineAdam, at_least, checked, fitting, read_back
from vae_jax.command.image_report import picture, show
from vae_jax.command.placement import Placed, evaluate_on
from vae_jax.command.results import over_batch
from vae_jax.core import beta_elbo, beta_tc, dip
from vae_jax.core.distributions import mean_of
from vae_jax.data import preprocess, sprites
from vae_jax.data.sprites import FACTORS, draw
from vae_jax.evaluation import (
    DCI,
    dci,
    mean,
    mutual_information_gap,
    rate_split,
    separated_attribute_predictability,
)
from vae_jax.report import page, pictures
from vae_jax.systems import factor_vae

PARTS = {
    "information": "mutual_information",
    "total correlation": "total_correlation",
    "margins to prior": "dimension_kl",
}


@dataclasses.dataclass(frozen=True)
class Config(CosineAdam, Placed):
    """Train a VAE of sprites at each weight, and score how far its units stand for the factors."""

    objective: Literal["tc", "factor", "beta", "dip"] = "tc"
    """What is weighed: the total correlation, from pairs of the batch (tc) or by a discriminator (factor); the whole
    rate (beta); the covariance of z (dip)."""
    weights: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0, 16.0)
    """1 is the ELBO; one training for each weight and seed."""
    seeds: int = 3
    """Trainings at each weight, from other parameters."""
    examples: Annotated[int, at_least(50)] = 20_000
    """Sprites to train on."""
    scored: Annotated[int, at_least(50)] = 5000
    """New sprites that scores and parts of the rate are taken on."""
    side: Annotated[int, at_least(8)] = 32
    """Pixels of a side."""
    hidden: tuple[int, ...] = (400, 400)
    """Hidden layers of encoder and generator."""
    latent: int = 10
    """Dimensions of z; the factors are five."""
    learning_rate: float = 1e-3
    out: str = "runs/sprites"


class Parts(NamedTuple):
    """The VAE, what it is made of, and how it is trained at a weight."""

    model: vae_jax.Model
    encoder: vae_jax.Conditional
    prior: vae_jax.Conditional
    objective: core.Objective


class Scores(NamedTuple):
    """One training: numbers by name, which unit matters for which factor (without scikit-learn None), and the run."""

    numbers: dict[str, float]
    importance: np.ndarray | None
    fitted: Fitted


PREPARE = preprocess.dynamic_binarisation()


def build(config: Config, weight: float) -> Parts:
    """The VAE and its objective at a weight."""
    shape = (config.side, config.side, 1)
    encoder = vae_jax.gaussian(nets.MLP(config.hidden, 2 * config.latent))
    prior = vae_jax.standard_normal(config.latent)
    generator = vae_jax.bernoulli(nets.MLP(config.hidden[::-1], shape))
    model = vae_jax.vae(encoder, prior, generator, estimator=vae_jax.analytic)
    if config.objective == "factor":
        discriminator = nets.MLP((200, 200), 1)
        whole, objective = factor_vae(model, encoder, discriminator, weight - 1)
        return Parts(whole, encoder, prior, objective)
    objective = {
        "tc": lambda: beta_tc(encoder, weight, config.examples),
        "beta": lambda: beta_elbo(weight),
        "dip": lambda: dip(encoder, weight - 1, weight - 1),
    }[config.objective]()
    return Parts(model, encoder, prior, objective)


def rebuild(*, name: str, **fields: Any) -> tuple[vae_jax.Model, preprocess.Preprocess]:
    """The model, which is one at all weights, for `vae_jax.open_run`."""
    del name
    return build(read_back(Config, fields), 1.0).model, PREPARE


def measure(config: Config, weight: float, key: jax.Array, train: np.ndarray, test: sprites.Sprites) -> Scores:
    """Train once, and score on new sprites."""
    parts = build(config, weight)
    k_fit, k_elbo, k_codes, k_parts = jax.random.split(key, 4)
    fitted = config.training.fit(
        config, parts.model, train, k_fit, preprocess=PREPARE, objective=parts.objective, progress=False
    )
    result = evaluate_on(config, parts.model, fitted.params, k_elbo, test.ys, preprocess=PREPARE)

    def code(params, key, y):
        return mean_of(parts.encoder.dist(params["enc"], PREPARE.apply(key, y)))

    zs = over_batch(code, fitted.params, jax.random.split(k_codes, len(test.ys)), test.ys, at_once=1000)
    split = rate_split(parts.encoder, parts.prior, fitted.params, k_parts, test.ys, preprocess=PREPARE)
    trees = all_units(zs, test.factors, config.seed)
    numbers = {
        "MIG": mutual_information_gap(zs, test.factors),
        "SAP": separated_attribute_predictability(zs, test.factors),
        **({"DCI": trees.disentanglement, "completeness": trees.completeness} if trees else {}),
        "ELBO": mean(result.elbo).value,
        **{name: getattr(split, field).value for name, field in PARTS.items()},
    }
    return Scores(numbers, trees and trees.importance, fitted)


def all_units(zs: np.ndarray, factors: np.ndarray, seed: int) -> DCI | None:
    """`dci`, or None without scikit-learn."""
    try:
        return dci(zs, factors, seed=seed)
    except ImportError as missing:
        print(missing)
        return None


Results = dict[float, list[Scores]]  # by weight: of each seed


def over_seeds(scores: Sequence[Scores], name: str) -> tuple[float, float | None]:
    """Mean and standard error of a number; of one seed no error."""
    values = np.array([one.numbers[name] for one in scores])
    return float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else None


def table(config: Config, results: Results) -> list[page.Row]:
    """Scores and bound at each weight."""
    says = {
        "MIG": "mutual information gap, 0 to 1",
        "SAP": "separated attribute predictability, 0 to 1",
        "DCI": "disentanglement by forests, 0 to 1",
        "ELBO": f"nats per sprite, {config.scored} new ones, {PREPARE.name}; higher is better",
        "total correlation": "nats; of z over these sprites",
    }
    return [
        page.Row(f"weight {weight:g}: {name}", *over_seeds(scores, name), meaning)
        for weight, scores in results.items()
        for name, meaning in says.items()
        if name in scores[0].numbers
    ]


def factors_shown(config: Config) -> page.Picture:
    """A row for each factor, which moves through its values while the others stay."""
    rows = []
    for column, count in enumerate(FACTORS.values()):
        row = np.tile([2, 4, 5, 16, 16], (10, 1))
        row[:, column] = np.linspace(0, count - 1, 10).round()
        rows.append(row)
    return picture(
        draw(np.concatenate(rows), side=config.side) / np.float32(255), 10, "factors of sprites", beside=list(FACTORS)
    )


def sections(config: Config, results: Results, best: float, test: sprites.Sprites) -> list[page.Section]:
    """What sprites are, scores and parts of the rate over the weight, traversals, what each unit matters for."""
    level = np.log2(list(results))

    def lines(names):
        known = [name for name in names if name in results[best][0].numbers]
        return {name: (level, np.array([over_seeds(scores, name)[0] for scores in results.values()])) for name in known}

    one = results[best][0]
    run = vae_jax.Trained(build(config, best).model, one.fitted.params, PREPARE, test.ys[0])
    rows = show(PREPARE, run.traverse(test.ys, units=config.latent, steps=11))
    units = run.units_of(run.encode(test.ys), len(rows))
    x = "log₂ weight"
    shown = [
        page.Section("Sprites", "Each row moves one factor and leaves the others.", [factors_shown(config)]),
        page.Section(
            "Scores",
            "On new sprites, mean over the seeds; 1 is best.",
            [page.Picture(pictures.curves(lines(("MIG", "SAP", "DCI", "completeness")), x=x, y="score"), "scores")],
        ),
        page.Section(
            "Parts of the rate",
            f"Information about the sprite (at most ln n = {np.log(config.scored):.2f} nats as it is measured here), "
            "total correlation, and the distance of the units' margins from the prior. They sum to the rate.",
            [page.Picture(pictures.curves(lines(PARTS), x=x, y="nats per sprite"), "parts of the rate")],
        ),
        page.Section(
            "Traversals",
            f"The VAE of the best MIG, weight {best:g}: each row moves one unit of z, those that vary most first.",
            [picture(rows.reshape(-1, *rows.shape[2:]), rows.shape[1], "traversals", beside=[f"z{u}" for u in units])],
        ),
    ]
    if one.importance is None:
        return shown
    cells = [[f"z{unit}", *(f"{x:.2f}" for x in one.importance[unit])] for unit in units]
    about = "How much forests that predict a factor use each unit of the same VAE; a column sums to 1."
    return [*shown, page.Section("Units and factors", about, table=page.TextTable(["unit", *FACTORS], cells))]


@publish.timed
def main(config: Config) -> dict[str, Any]:
    """Train at every weight, score, report; returns the numbers of the table.

    Raises:
        ValueError: no weight, or one below 1.
    """
    if not config.weights or min(config.weights) < 1:
        raise ValueError(f"weights={config.weights}: want one or more, of 1 (the ELBO) and above")
    config = checked(config)
    if config.smoke:
        small: dict[str, Any] = {"examples": 400, "scored": 200, "epochs": 2, "seeds": 1, "side": 16, "hidden": (32,)}
        config = dataclasses.replace(config, weights=config.weights[:2], **small)
    config = fitting(config, config.examples)
    train = sprites.sprites(config.examples, seed=config.seed, side=config.side).ys
    test = sprites.sprites(config.scored, seed=config.seed + 1, side=config.side)
    key, results = jax.random.key(config.seed), {}
    for i, weight in enumerate(sorted(config.weights)):
        keys = jax.random.split(jax.random.fold_in(key, i), config.seeds)
        results[weight] = [measure(config, weight, k, train, test) for k in keys]
        said = ", ".join(f"{name} {over_seeds(results[weight], name)[0]:.3f}" for name in results[weight][0].numbers)
        print(f"weight = {weight:g}: {said}")
    best = max(results, key=lambda weight: over_seeds(results[weight], "MIG")[0])
    trained = {f"weight = {weight:g}": scores[0].fitted for weight, scores in results.items()}
    publish.save_all(config, rebuild, trained, train[0], main=next(iter(trained)))
    named = {"tc": "beta-TCVAE", "factor": "FactorVAE", "beta": "beta-VAE", "dip": "DIP-VAE"}[config.objective]
    return publish.write(
        "sprites",
        config,
        title=f"Factors of sprites, by {named}",
        lead=(
            f"{config.examples} sprites of {config.side} x {config.side} pixels, {PREPARE.name}; {config.latent} "
            f"latent dimensions, {config.epochs} epochs, {config.seeds} trainings at each weight; standard errors are "
            "over them."
        ),
        table=table(config, results),
        sections=sections(config, results, best, test),
    )


if __name__ == "__main__":
    publish.run(main, Config)
