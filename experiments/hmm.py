"""Hidden Markov models of a series in time order, by EM (Baum-Welch), beside mixtures that do not know of the order.

    python -m experiments.hmm                          # eruptions of Old Faithful, 2 and 3 states
    python -m experiments.hmm --data sp500             # 5,030 daily returns of the S&P 500 (pip install arch)
    python -m experiments.hmm --data my.csv --states 4 # one's own columns of numbers, first line their names
    python -m experiments.hmm --help                   # every option

Every ln P is a density of the series in its own units, in nats per step. Expected, in order / as a mixture:

| series | states | ln P, whole series | ln P, last quarter, fitted to the rest | order brings there |
|---|---|---|---|---|
| geyser | 2 | -4.488 / -4.685 | -4.54 / -4.67 | 0.131 ± 0.065 |
| geyser | 3 | -3.959 / -4.562 | -3.99 / -4.54 | 0.552 ± 0.099 |
| sp500 | 2 | -1.418 / -1.489 | -1.158 / -1.242 | 0.084 ± 0.009 |
| sp500 | 3 | -1.372 / -1.474 | -1.090 / -1.218 | 0.128 ± 0.021 |

`vae_jax.open_run` opens the last model in `out`, the others in `out`/"2 states" and so on: models of whole series.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.series import Series, load_series
from vae_jax import Conditional, Model, evaluate
from vae_jax.command import publish
from vae_jax.command.config import Run, checked
from vae_jax.core import lift
from vae_jax.data import Preprocess
from vae_jax.em import FittedEM, fit_em, gaussian_hmm, gaussians, mixture_of_gaussians
from vae_jax.em.algorithm import em_of
from vae_jax.evaluation import Mean, mean
from vae_jax.report import page, pictures

BLOCKS = 10


@dataclasses.dataclass(frozen=True)
class Config(Run):
    """Fit hidden Markov models with Gaussian emissions to a series, and write a report."""

    data: str = "geyser"
    """geyser: waiting times and durations of 299 eruptions. sp500: daily returns, from the package arch. Or a CSV file
    of numbers, the oldest first, with the columns' names in its first line."""
    states: tuple[int, ...] = (2, 3)
    """Numbers of states, a model for each; covariances are full."""
    restarts: int = 10
    """Random starts of EM for each model; the best counts."""
    iterations: int = 500
    """Iterations of EM, at most."""
    out: str = "runs/hmm"


class Comparison(NamedTuple):
    """A hidden Markov model and a mixture with as many components, both fitted to the series.

    Fields:
        model, fitted: the hidden Markov model, fitted to the whole series; the commonest state is the first.
        log_p: ln P of the whole series in its own units, as the opened run says it.
        markov, mixture: (T,) ln P(y_t|y_1 .. y_{t-1}) and ln P(y_t), in units of the series.
        late_markov, late_mixture: the same of the last quarter, by fits to the first three.
    """

    model: Conditional
    fitted: FittedEM
    log_p: float
    markov: np.ndarray
    mixture: np.ndarray
    late_markov: np.ndarray
    late_mixture: np.ndarray


def compare(config: Config, series: Series, states: int, key: jax.Array) -> Comparison:
    """Fit both models, to everything and to the first three quarters, and score every step."""
    zs, first = jnp.asarray(series.standardised()), len(series.ys) * 3 // 4
    model = gaussian_hmm(zs.shape[1], states, len(zs))
    mixture = mixture_of_gaussians(zs.shape[1], states, "full")
    of_mixture = jax.jit(lambda params: em_of(mixture).expect(params, zs)[0])
    options = {"restarts": config.restarts, "iterations": config.iterations}

    def fit(key, n):
        """Fits to the first n steps, and what they say of each of the T."""
        k_markov, k_mixture = jax.random.split(key)
        # the model is that of T steps, of which n are real: it is compiled once
        markov = fit_em(model, zs[None], np.array([n]), key=k_markov, tolerance=1e-3, **options)
        independent = fit_em(mixture, zs[:n], key=k_mixture, tolerance=1e-3 / n, **options)
        scores = infer(model, markov.params, zs).log_p, of_mixture(independent.params)
        return markov, *(np.asarray(values, np.float64) + series.log_scale for values in scores)

    k_whole, k_early = jax.random.split(key)
    fitted, *whole = fit(k_whole, len(zs))
    _, *early = fit(k_early, first)
    share = infer(model, fitted.params, zs).marginals.mean(axis=0)
    fitted = fitted._replace(params=in_order(fitted.params, jnp.argsort(-share)))
    opened, prepare = rebuild(name=name_of(states), **shape_of(series))
    (log_p,) = evaluate(opened, fitted.params, jax.random.key(0), series.ys[None], preprocess=prepare).elbo.tolist()
    log_p += len(zs) * series.log_scale
    return Comparison(model, fitted, log_p, *whole, *(values[first:] for values in early))


def name_of(states: int) -> str:
    return f"{states} states"


def shape_of(series: Series) -> dict[str, Any]:
    """What `rebuild` has to know of the series."""
    return {"steps": len(series.ys), "mean": series.mean.tolist(), "std": series.std.tolist()}


def rebuild(
    *, name: str, steps: int, mean: Sequence[float], std: Sequence[float], **fields: Any
) -> tuple[Model, Preprocess]:
    """The model with so many states, of the whole series in its own units, for `vae_jax.open_run`."""
    del fields
    middle, scale = np.array([mean], np.float32), np.array([std], np.float32)
    prepare = Preprocess(lambda key, ys: (ys - middle) / scale, "each column standardised", None)
    return lift(gaussian_hmm(len(mean), int(name.split()[0]), steps)), prepare


class Inferred(NamedTuple):
    """What a model says of a series: (T,) ln P(y_t|y_1 .. y_{t-1}), (T, K) P(z_t|y), and (T,) the likeliest path."""

    log_p: jax.Array
    marginals: jax.Array
    path: jax.Array


@functools.partial(jax.jit, static_argnames="model")
def infer(model: Conditional, params: Any, zs: jax.Array) -> Inferred:
    """Filter, smooth and find the most probable path (Viterbi)."""
    posterior = em_of(model).posterior(params, zs)
    return Inferred(posterior.filtered.log_p, posterior.marginals, posterior.viterbi()[0])


def in_order(params: Any, order: Any) -> Any:
    """The same model, its states numbered anew."""
    pri = params["pri"]
    pri = {"initial": pri["initial"][order], "transition": pri["transition"][order][:, order]}
    return {"pri": pri, "gen": jax.tree.map(lambda x: x[order], params["gen"])}


def over_time(values: np.ndarray) -> Mean:
    """Mean over steps. Steps near each other are alike, so the error is that of the means of ten long blocks."""
    blocks = [block.mean() for block in np.array_split(values, BLOCKS)]
    return Mean(float(values.mean()), mean(np.array(blocks)).standard_error)


def table(comparisons: dict[int, Comparison], step: str) -> list[page.Row]:
    """What each model says of a step, and what the order of time brings."""
    rows = []
    for states, found in comparisons.items():
        n, late = len(found.markov), len(found.late_markov)
        how = "converged" if found.fitted.converged else "not converged"
        rows += [
            page.Row(
                f"ln P, {states} states",
                found.log_p / n,
                None,
                f"nats per {step}, all {n}; in all {found.log_p:.2f}, {how}; a density, higher is better",
            ),
            page.Row(f"ln P, mixture of {states}", float(found.mixture.mean()), None, "the same without the order"),
            page.Row(
                f"order brings, {states} states", float((found.markov - found.mixture).mean()), None, "difference"
            ),
            page.Row(
                f"held-out ln P, {states} states",
                *over_time(found.late_markov),
                f"nats per {step}, the last {late} predicted one by one; fitted to the first {n - late}",
            ),
            page.Row(
                f"held-out ln P, mixture of {states}", *over_time(found.late_mixture), "the same without the order"
            ),
            page.Row(
                f"held-out order brings, {states} states",
                *over_time(found.late_markov - found.late_mixture),
                "difference, step by step",
            ),
        ]
    return rows


def describe(found: Comparison, series: Series) -> page.TextTable:
    """Mean and standard deviation of each state, how often it is, how long it lasts and what follows."""
    params, zs = found.fitted.params, jnp.asarray(series.standardised())
    moves = np.asarray(jax.nn.softmax(params["pri"]["transition"]), np.float64)
    shares = np.asarray(infer(found.model, params, zs).marginals.mean(axis=0))
    means = series.in_units(params["gen"]["means"])
    stds = np.sqrt(np.stack([np.diag(c) for c in covariances(params)])) * series.std
    pairs = itertools.chain.from_iterable((f"{name}: mean", "std") for name in series.columns)
    rows = []
    for k, share in enumerate(shares):
        numbers = itertools.chain.from_iterable(zip(means[k], stds[k], strict=True))
        stay = 1 / max(1 - moves[k, k], 1e-12)
        onwards = ", ".join(f"{p:.3f}" for p in moves[k])
        rows.append([str(k + 1), f"{share:.1%}", *(f"{x:.4g}" for x in numbers), f"{stay:.4g}", onwards])
    columns = ["state", f"share of {series.step}s", *pairs, f"lasts, {series.step}s", "P(next state)"]
    return page.TextTable(columns, rows)


def covariances(params: Any) -> np.ndarray:
    """(K, d, d) of the standardised series."""
    means = params["gen"]["means"]
    family = gaussians(means.shape[1], "full")
    of_state = jax.vmap(lambda k: family.dist(params["gen"], k).covariance_matrix)
    return np.asarray(jax.jit(of_state)(jnp.arange(len(means))))


@functools.partial(jax.jit, static_argnames="model")
def simulate(model: Conditional, params: Any, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A path (T,) of the chain, and a standardised series (T, d) along it."""
    em = em_of(model)
    assert em.prior is not None and em.generator is not None
    k_path, k_ys = jax.random.split(key)
    path = em.prior.dist(params["pri"]).sample(k_path)
    return path, em.generator.dist(params["gen"], path).sample(k_ys)


def drawn(series: Series, zs: jax.Array, path: Any, marginals: Any, what: str) -> list[page.Picture]:
    """A series with its states, and below it P(z_t|y); then its beginning, from nearer."""
    ys, path, marginals = series.in_units(zs), np.asarray(path), np.asarray(marginals)
    names = [f"state {k + 1}" for k in range(marginals.shape[1])]
    near = max(40, len(ys) // 20)

    def picture(n: int, what: str) -> page.Picture:
        svg = pictures.timeline(ys[:n], path[:n], marginals[:n], columns=series.columns, names=names, x=series.step)
        return page.Picture(svg, what, what)

    return [picture(len(ys), what), picture(near, f"{what}: the first {near} {series.step}s")]


def sections(comparisons: dict[int, Comparison], series: Series, key: jax.Array) -> list[page.Section]:
    """The climb of EM, then for each model its states over the series, and a series of its own."""
    n, zs = len(series.ys), jnp.asarray(series.standardised())
    climb = {
        f"{states} states": (np.arange(1, len(found.fitted.history)), found.fitted.history[1:] / n + series.log_scale)
        for states, found in comparisons.items()
    }
    found_sections = [
        page.Section(
            "The climb",
            "ln P of the whole series by iteration of EM, of the best start.",
            [page.Picture(pictures.curves(climb, x="iteration", y=f"ln P, nats per {series.step}"), "ln P")],
        )
    ]
    for i, (states, found) in enumerate(comparisons.items()):
        model, params = found.model, found.fitted.params
        seen = infer(model, params, zs)
        path, simulated = simulate(model, params, jax.random.fold_in(key, i))
        guessed = infer(model, params, simulated)
        found_sections.append(
            page.Section(
                f"{states} states",
                "The series, each point in the colour of its state on the most probable path (Viterbi), and below it "
                "the probability of each state given the whole series. Then a series that the model drew, in the "
                "colours of its true states, and what the model infers from it.",
                [
                    *drawn(series, zs, seen.path, seen.marginals, "the series"),
                    *drawn(series, simulated, path, guessed.marginals, "a simulated series"),
                ],
                describe(found, series),
            )
        )
    return found_sections


@publish.timed
def main(config: Config) -> dict[str, Any]:
    """Fit, compare, report; returns the numbers of the table.

    Raises:
        FileNotFoundError, ValueError: see `load_series`; no numbers of states.
    """
    if not config.states or min(config.states) < 1:
        raise ValueError(f"states wants at least one number, each at least 1; got {config.states}")
    config = checked(config)
    series = load_series(config.data)
    if config.smoke:
        config = dataclasses.replace(config, states=config.states[:1], restarts=5, iterations=50)
    k_fits, k_pictures = jax.random.split(jax.random.key(config.seed))
    comparisons = {
        states: compare(config, series, states, jax.random.fold_in(k_fits, states)) for states in config.states
    }
    trained = {name_of(states): found.fitted for states, found in comparisons.items()}
    publish.save_all(config, rebuild, trained, series.ys, main=list(trained)[-1], **shape_of(series))
    return publish.write(
        "hmm",
        config,
        title=f"Hidden Markov models of {config.data}",
        lead=(
            f"Gaussian emissions of full covariance, {' and '.join(map(str, config.states))} states, fitted by EM to "
            f"{len(series.ys)} {series.step}s in time order, the best of {config.restarts} starts. "
            f"Columns: {'; '.join(series.columns)}. Data: {series.source}."
        ),
        table=table(comparisons, series.step),
        sections=sections(comparisons, series, k_pictures),
    )


if __name__ == "__main__":
    publish.run(main, Config)
