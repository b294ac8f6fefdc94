"""Missing entries of tables, filled in: a VAE trained on what is there, beside what others do.

    python -m experiments.imputation                                   # four tables of scikit-learn, three hours or so
    python -m experiments.imputation --data wine --missing 0.3         # one of them
    python -m experiments.imputation --help                            # every option

Entries are taken out at random, and each method sees the rest. Its error is the root mean square over the entries that
were taken out, in standard deviations of their columns; a 90 % interval should hold 90 % of them. The VAE (MIWAE,
Mattei and Frellsen 2019) and factor analysis also say how probable the missing entries were, given those that are seen:
the difference of two bounds on ln P, exact for factor analysis.

    mean          of the column
    kNN           the mean of five neighbours
    MICE          chained equations: linear regressions, drawn twenty times (van Buuren and Groothuis-Oudshoorn 2011)
    missForest    chained random forests (Stekhoven and Buehlmann 2012)
    FA            factor analysis by EM, exact
    MIWAE         a VAE, importance-weighted; three trainings, each as probable as the others

Maximum likelihood gives a column that is constant where it is seen no variance, and ln P of what is missing there by
factor analysis is then without bound: digits have such columns.

Each score is kept in `out`/scores.json: what was stopped goes on where it was, and what is done is not done again.

Wants scikit-learn: for the tables, and for the methods beside ours.
"""

import dataclasses
import functools
import json
import warnings
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
import optax

import vae_jax
from vae_jax import core, nets
from vae_jax.command import publish
from vae_jax.command.config import Run, at_least, checked
from vae_jax.core import importance_weighted
from vae_jax.core.extras import extra
from vae_jax.em import factor_analysis, fit_em
from vae_jax.evaluation import impute_all
from vae_jax.parts import maybe_missing, seeing_what_is_missing
from vae_jax.report import page, pictures
from vae_jax.training.run_directory import claim, to_path, write_whole

Name = Literal["mean", "kNN", "MICE", "missForest", "FA", "MIWAE"]
INTERVAL = (0.05, 0.95)
DRAWS, CHAINS = 200, 20
WEIGHTED = importance_weighted(20)
DECIDES = {
    "FA": ("latent",),
    "MIWAE": ("latent", "hidden", "steps", "decay", "members", "k"),
}  # what options decide a score


@dataclasses.dataclass(frozen=True)
class Config(Run):
    """Take entries out of tables, fill them in again, and report how well."""

    data: tuple[Literal["breast_cancer", "wine", "iris", "digits"], ...] = ("breast_cancer", "wine", "iris", "digits")
    """Tables of scikit-learn."""
    missing: tuple[float, ...] = (0.1, 0.3, 0.5)
    """Parts of the entries that are taken out."""
    methods: tuple[Name, ...] = ("mean", "kNN", "MICE", "missForest", "FA", "MIWAE")
    """What fills them in."""
    seeds: int = 5
    """Times that other entries are taken out."""
    latent: int = 16
    """Dimensions of z at most, of the VAE and of factor analysis (half of the columns, where these are few)."""
    hidden: tuple[int, ...] = (128,)
    """Hidden layers of the VAE's networks."""
    steps: int = 3000
    """Of the VAE's training."""
    decay: Annotated[float, at_least(0)] = 150.0
    """Of the VAE's parameters, divided by the rows: a prior counts the less, the more rows there are. It draws sigma
    to 1, which is that of the columns."""
    members: Annotated[int, at_least(1)] = 3
    """Trainings of the VAE from other parameters. What they say is averaged: one of them is too sure of itself."""
    k: Annotated[int, at_least(2)] = 1000
    """Importance samples for what is missing."""
    out: str = "runs/imputation"


class Filled(NamedTuple):
    """What a method says of the missing entries of (n, d): their means; where it has draws, an interval for each; and
    ln P(missing|seen) of each row, where it knows."""

    mean: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    log_p: np.ndarray | None = None


class Score(NamedTuple):
    """One method on one table once: error in standard deviations, the part of entries in their intervals, and the mean
    ln P(missing|seen) in nats per missing entry."""

    error: float
    covered: float
    log_p: float


def load(name: str) -> np.ndarray:
    """(n, d) float32; columns that vary, with mean 0 and standard deviation 1."""
    with extra("test", "the tables of this experiment"):
        from sklearn import datasets
    raw = getattr(datasets, f"load_{name}")().data
    raw = raw[:, raw.std(axis=0) > 0]
    return ((raw - raw.mean(axis=0)) / raw.std(axis=0)).astype(np.float32)


def of_means(config: Config, ys: np.ndarray, whole: np.ndarray, seed: int) -> Filled:
    return Filled(np.where(np.isnan(ys), np.nanmean(ys, axis=0)[None], ys))


def of_neighbours(config: Config, ys: np.ndarray, whole: np.ndarray, seed: int) -> Filled:
    from sklearn.impute import KNNImputer

    return Filled(KNNImputer(n_neighbors=5, keep_empty_features=True).fit_transform(ys))


def chained(config: Config, ys: np.ndarray, whole: np.ndarray, seed: int) -> Filled:
    draws = np.stack([_iterated(ys, CHAINS * seed + i, sample_posterior=True) for i in range(CHAINS)])
    return Filled(draws.mean(axis=0), *np.quantile(draws, INTERVAL, axis=0))


def forests(config: Config, ys: np.ndarray, whole: np.ndarray, seed: int) -> Filled:
    from sklearn.ensemble import RandomForestRegressor

    trees = 10 if config.smoke else 100
    return Filled(_iterated(ys, seed, estimator=RandomForestRegressor(trees, max_features="sqrt", random_state=seed)))


def _iterated(ys: np.ndarray, seed: int, **options: Any) -> np.ndarray:
    from sklearn.experimental import enable_iterative_imputer  # noqa: F401
    from sklearn.impute import IterativeImputer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that ten rounds may be too few, which its authors take as well
        return IterativeImputer(max_iter=10, random_state=seed, keep_empty_features=True, **options).fit_transform(ys)


def factors(config: Config, ys: np.ndarray, whole: np.ndarray, seed: int) -> Filled:
    model, lifted = _factor_analysis(ys.shape[1], max(1, min(config.latent, ys.shape[1] // 2)))
    fitted = fit_em(model, ys, key=jax.random.key(seed), iterations=20 if config.smoke else 500)
    return _by_samples(lifted, [fitted.params], ys, whole, seed, k=DRAWS)


def by_vae(config: Config, ys: np.ndarray, whole: np.ndarray, seed: int) -> Filled:
    n, d = ys.shape
    model = _miwae(d, max(1, min(config.latent, d // 2)), config.hidden)
    options: dict[str, Any] = {
        "steps": config.steps,
        "batch_size": min(64, n),
        "objective": WEIGHTED,
        "ema_decay": 0.99,
    }
    adam, keys = _adam(config.steps, config.decay / n), jax.random.split(jax.random.key(seed), config.members)
    params = [vae_jax.fit(model, adam, ys, key=key, progress=False, **options).params for key in keys]
    return _by_samples(model, params, ys, whole, seed, k=config.k)


# One object each for all runs of a table: what is compiled for it is compiled once.


@functools.cache
def _factor_analysis(d: int, latent: int) -> tuple[vae_jax.Conditional, vae_jax.Model]:
    model = factor_analysis(d, latent, missing=True)
    return model, core.lift(model)


@functools.cache
def _miwae(d: int, latent: int, hidden: tuple[int, ...]) -> vae_jax.Model:
    encoder = vae_jax.gaussian(seeing_what_is_missing(nets.MLP(hidden, 2 * latent)))
    generator = maybe_missing(vae_jax.l2(nets.MLP(hidden, d), "learned_per_dimension"))
    return vae_jax.vae(encoder, vae_jax.standard_normal(latent), generator)


@functools.cache
def _adam(steps: int, decay: float) -> optax.GradientTransformation:
    return optax.adamw(optax.cosine_decay_schedule(2e-3, steps), weight_decay=decay)


def _by_samples(model: Any, members: Sequence[Any], ys: np.ndarray, whole: np.ndarray, seed: int, k: int) -> Filled:
    """By `impute_all`, of each of the parameters, which are equally probable.

    ln P(missing|seen) of one is ln P(all) - ln P(seen), of both the bounds with k samples.
    """
    key = jax.random.key(seed + 1)
    found = [impute_all(model, params, key, ys, n=DRAWS, k=k) for params in members]
    of_all = [impute_all(model, params, key, whole, n=1, k=k) for params in members]
    low, high = np.quantile(np.concatenate([each.draws for each in found], axis=1), INTERVAL, axis=1)
    log_p = np.array([all_.log_p - seen.log_p for all_, seen in zip(of_all, found, strict=True)])
    mixed = np.logaddexp.reduce(log_p, axis=0) - np.log(len(members))
    return Filled(np.mean([each.mean for each in found], axis=0), low, high, mixed)


METHODS: dict[str, Callable[[Config, np.ndarray, np.ndarray, int], Filled]] = {
    "mean": of_means,
    "kNN": of_neighbours,
    "MICE": chained,
    "missForest": forests,
    "FA": factors,
    "MIWAE": by_vae,
}


def score(filled: Filled, whole: np.ndarray, missing: np.ndarray) -> Score:
    """Of the entries that are missing."""
    error = float(np.sqrt(np.mean((filled.mean - whole)[missing] ** 2)))
    covered = log_p = float("nan")
    if filled.low is not None and filled.high is not None:
        covered = float(np.mean(((filled.low <= whole) & (whole <= filled.high))[missing]))
    if filled.log_p is not None:
        log_p = float(filled.log_p.sum() / missing.sum())
    return Score(error, covered, log_p)


class Kept:
    """The scores in `out`/scores.json, and those that are added to it."""

    def __init__(self, config: Config) -> None:
        self.config, self.file = config, to_path(config.out) / "scores.json"
        self.known: dict[str, list[float]] = json.loads(self.file.read_text()) if self.file.exists() else {}

    def score(self, name: str, part: float, method: Name, seed: int, whole: np.ndarray) -> Score:
        """Of a method on a table, other entries missing for each seed."""
        config = self.config
        options = {field: getattr(config, field) for field in ("smoke", *DECIDES.get(method, ()))}
        place = json.dumps([name, part, method, config.seed, seed, options])
        if place not in self.known:
            rng = np.random.default_rng([config.seed, seed, round(1000 * part)])
            missing = rng.random(whole.shape) < part
            ys = np.where(missing, np.nan, whole).astype(np.float32)
            self.known[place] = list(score(METHODS[method](config, ys, whole, seed), whole, missing))
            write_whole(self.file, json.dumps(self.known, indent=1))
        return Score(*self.known[place])


Scores = dict[tuple[str, float], dict[str, np.ndarray]]  # of each table and part, by method: (seeds, 3)


def table(scores: Scores, seeds: int) -> list[page.Row]:
    """Error of every method, mean over the seeds and its standard error; coverage and ln P where there are such."""
    rows = []
    for (name, part), by_method in scores.items():
        for method, values in by_method.items():
            value, covered, log_p = values.mean(axis=0)
            error = values[:, 0].std(ddof=1) / np.sqrt(seeds) if seeds > 1 else None
            says = [f"{covered:.1%} in the 90 % interval"] * bool(np.isfinite(covered))
            says += [f"ln P(missing|seen) {log_p:.3f} nats an entry"] * bool(np.isfinite(log_p))
            rows.append(page.Row(f"{name}, {part:.0%}: {method}", value, error, "; ".join(["RMSE", *says])))
    return rows


def sections(scores: Scores) -> list[page.Section]:
    """Errors against the part that is missing, one picture a table."""
    drawn = []
    for name in dict.fromkeys(name for name, _ in scores):
        parts = np.array([part for table, part in scores if table == name])
        methods = next(iter(scores.values()))
        curves = {m: (parts, np.array([scores[name, part][m][:, 0].mean() for part in parts])) for m in methods}
        chart = pictures.curves(curves, x="part that is missing", y="error, standard deviations")
        drawn.append(page.Picture(chart, f"{name}: error by method", name))
    about = "Root mean squared error over the entries that were taken out, mean over the seeds. 1 is the column's mean."
    return [page.Section("Errors", about, drawn)]


def scores_of(config: Config) -> Scores:
    """Take out, fill in, score; what is known already is not done again."""
    kept, scores = Kept(config), Scores()
    for name in config.data:
        whole = load(name)
        for part in config.missing:
            scores[name, part] = {
                method: np.array([kept.score(name, part, method, seed, whole) for seed in range(config.seeds)])
                for method in config.methods
            }
            means = ", ".join(f"{method} {of[:, 0].mean():.3f}" for method, of in scores[name, part].items())
            print(f"{name}, {part:.0%}: {means}", flush=True)
    return scores


@publish.timed
def main(config: Config) -> dict[str, Any]:
    """Take out, fill in, score, report; returns the numbers of the table.

    Raises:
        ValueError: a part that is not between 0 and 1.
    """
    config = checked(config)
    if not all(0 < part < 1 for part in config.missing):
        raise ValueError(f"missing={config.missing}: want parts between 0 and 1")
    if config.smoke:
        small: dict[str, Any] = {"data": ("iris",), "missing": (0.3,), "seeds": 1, "steps": 50, "members": 2, "k": 20}
        config = dataclasses.replace(config, **small)
    with claim(config.out, {"experiment": "imputation"}, resume=True):
        scores = scores_of(config)
    return publish.write(
        "imputation",
        config,
        title="Missing entries, filled in",
        lead=f"Tables of scikit-learn; entries taken out at random, {config.seeds} times. Columns have variance 1.",
        table=table(scores, config.seeds),
        sections=sections(scores),
    )


if __name__ == "__main__":
    publish.run(main, Config)
