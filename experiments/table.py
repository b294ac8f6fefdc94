"""A VAE of a table of mixed columns: numbers, counts and classes, some of them missing.

    python -m experiments.table                            # 344 penguins: species, island, four measurements, sex
    python -m experiments.table --data own.csv             # your own; its columns are taken for what they look like
    python -m experiments.table --data own.csv --number age rooms --leave-out id
    python -m experiments.table --help                     # every option

A fifth of the rows is held out. Of these some entries are taken out, filled in again, and compared; beside it the mean
or the most frequent class of each column. The report shows rows that the model draws beside real ones, column by column
and pair by pair: where they differ, the model is wrong. filled.csv is the table with its missing entries filled in.
`vae_jax.open_run` opens the model, and so does the command line, for other rows of the same columns:

    vae-jax impute runs/table --data more.csv --out more_filled.csv
    vae-jax sample runs/table --n 1000 --out drawn.csv
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

import vae_jax
from vae_jax import Evaluation, Fitted
from vae_jax.command import publish
from vae_jax.command.config import Adam, checked, fitting, read_back
from vae_jax.command.cosine_adam import warm_cosine
from vae_jax.command.image_report import learning_curve
from vae_jax.command.placement import Placed, evaluate_on, fit_on
from vae_jax.core import importance_weighted
from vae_jax.data import Column, Columns, Preprocess, load_columns, of_columns
from vae_jax.data.columns import as_csv
from vae_jax.evaluation import impute_all, mean
from vae_jax.report import page, pictures
from vae_jax.tables import fill_in, table_vae
from vae_jax.tables.filling import guesses
from vae_jax.training.run_directory import to_path, write_whole

TAKEN = 0.2  # of the entries of the rows that are held out
DRAWS = 50
MOST_BARS = 20
PART = "part of the rows"
Rows = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Config(Adam, Placed):
    """Train a VAE on the rows of a table, fill in what is missing, and report what it makes of its columns."""

    data: str = "penguins"
    """penguins, or a CSV file."""
    number: tuple[str, ...] = ()
    """Columns that are numbers, whatever they look like."""
    count: tuple[str, ...] = ()
    """Columns that are counts."""
    classes: tuple[str, ...] = ()
    """Columns that are classes."""
    leave_out: tuple[str, ...] = ()
    """Columns that are left out: names, identifiers."""
    latent: int = 4
    """Dimensions of z."""
    hidden: tuple[int, ...] = (64,)
    """Hidden layers of encoder and generator."""
    samples: int = 5
    """Importance samples in training; 1 is the ELBO."""
    epochs: int = 500
    batch_size: int = 64
    learning_rate: float = 2e-3
    k: int = 500
    """Importance samples for ln P(y) and for what is missing."""
    out: str = "runs/table"


def read(config: Config) -> Columns:
    """The table, its columns taken for what the options say."""
    kinds: dict[str, Any] = dict.fromkeys(config.leave_out)
    for kind, names in (("number", config.number), ("count", config.count), ("class", config.classes)):
        kinds |= dict.fromkeys(names, kind)
    return load_columns(config.data, kinds=kinds)


def rebuild(*, columns: list[Any], **fields: Any) -> tuple[vae_jax.Model, Preprocess]:
    """The model, for `vae_jax.open_run`."""
    config = read_back(Config, fields)
    of = [Column(name, kind, tuple(categories), *rest) for name, kind, categories, *rest in columns]
    return table_vae(of, config.latent, hidden=config.hidden), of_columns(of)


def of_column(column: Column, known: np.ndarray) -> float:
    """What a column says by itself: its mean, or its most frequent class."""
    there = known[~np.isnan(known)]
    return float(np.bincount(there.astype(int)).argmax()) if column.kind == "class" else float(there.mean())


def error(column: Column, guess: np.ndarray, truth: np.ndarray) -> float:
    """The part of classes that is wrong; of numbers and counts the root mean squared error."""
    return float(np.mean(guess != truth) if column.kind == "class" else np.sqrt(np.mean((guess - truth) ** 2)))


def table(
    of: Columns, result: Evaluation, scores: Mapping[str, tuple[float, float, int]], fitted: Fitted
) -> list[page.Row]:
    """ln P of held-out rows, and how well entries that were taken out are found again."""
    where = f"nats per row, {len(result.elbo)} rows held out; numbers in standard deviations"
    rows = [
        page.Row("ln P(y) at least", *mean(result.log_likelihood), f"{where}; k={result.k}"),
        page.Row("in the table's own units", mean(result.log_likelihood).value - of.log_scale, None, "nats per row"),
        page.Row("ELBO", *mean(result.elbo), where),
        page.Row("rate", *mean(result.rate), "nats; ln enc(z|y) - ln pri(z)"),
    ]
    for column in of.columns:
        ours, alone, n = scores[column.name]
        kind = {"class": "part wrong", "count": "RMSE", "number": "RMSE, standard deviations"}[column.kind]
        rows.append(page.Row(f"{column.name}, found again", ours, None, f"{kind}, {n} entries; by itself {alone:.3f}"))
    return [*rows, page.Row("training speed", fitted.images_per_second, None, "rows/s, median epoch after the first")]


def marginals(of: Columns, drawn: Rows) -> list[page.Picture]:
    """Of each column real rows beside drawn ones."""
    shown = []
    for column in of.columns:
        real, made = (x[~np.isnan(x)].astype(float) for x in (of.ys[column.name], drawn[column.name]))
        chart, further = (_of_classes if column.kind == "class" else _of_numbers)(column, real, made)
        caption = f"{further:.1%} of what is drawn lies further out" if further else ""
        shown.append(page.Picture(chart, f"{column.name}: rows and draws", caption))
    return shown


def _of_classes(column: Column, real: np.ndarray, made: np.ndarray) -> tuple[bytes, float]:
    """Bars, two for each class; where classes are many, for the most frequent ones and for all others together."""
    names = [name if len(name) <= 20 else f"{name[:19]}…" for name in column.categories]
    parts = {
        name: np.bincount(x.astype(int), minlength=len(names)) / len(x) for name, x in (("rows", real), ("drawn", made))
    }
    if len(names) > MOST_BARS:
        first, others = np.split(np.argsort(-parts["rows"], kind="stable"), [MOST_BARS - 1])
        names = [*(names[k] for k in first), f"{len(others)} others"]
        parts = {name: np.append(part[first], part[others].sum()) for name, part in parts.items()}
    return pictures.bars(parts, names, x=column.name, y=PART), 0.0


def _of_numbers(column: Column, real: np.ndarray, made: np.ndarray) -> tuple[bytes, float]:
    """Histograms as curves, and the part of the draws beyond them."""
    edges = edges_of(real, made, whole=column.kind == "count")
    places = (edges[1:] + edges[:-1]) / 2 * column.scale + column.centre
    places = places.astype(int) if np.all(places % 1 == 0) else places  # whole numbers have whole ticks
    parts = {name: np.histogram(x, edges)[0] / len(x) for name, x in (("rows", real), ("drawn", made))}
    chart = pictures.curves({name: (places, part) for name, part in parts.items()}, x=column.name, y=PART)
    return chart, float(np.mean((made < edges[0]) | (made > edges[-1])))


def edges_of(real: np.ndarray, made: np.ndarray, *, whole: bool) -> np.ndarray:
    """Edges of the bins of a histogram, fewer where rows are fewer (Rice's rule), whole numbers wide where values are.

    Draws add to them on either side, but half as many at most: else a few far out would leave one bin for all others.
    """
    bins, low, span = int(np.clip(2 * np.cbrt(len(real)), 4, 30)), real.min(), np.ptp(real)
    if whole:
        wide = np.ceil((span + 1) / bins)
        first, bins = low - 0.5, int(np.ceil((span + 1) / wide))
    else:
        wide = span / (bins - 1)
        first = low - wide / 2
    gaps = first - made.min(), made.max() - (first + bins * wide)
    before, after = (np.clip(np.ceil(gap / wide), 0, bins // 2) for gap in gaps)
    return np.arange(-before, bins + after + 1) * wide + first


def correlations(of: Columns, ys: Rows) -> np.ndarray:
    """(d, d) of numbers and counts, of the rows in which both are there."""
    names = [column.name for column in of.columns if column.kind != "class"]
    found = np.eye(len(names))
    for i, a in enumerate(names):
        for j, b in enumerate(names[:i]):
            both = ~np.isnan(ys[a]) & ~np.isnan(ys[b])
            found[i, j] = found[j, i] = np.corrcoef(ys[a][both], ys[b][both])[0, 1]
    return found


def sections(of: Columns, drawn: Rows, fitted: Fitted) -> list[page.Section]:
    """Columns, pairs, the learning curve."""
    names = [column.name for column in of.columns if column.kind != "class"]
    real, made = correlations(of, of.ys), correlations(of, drawn)
    pairs = [
        [f"{a}, {b}", f"{real[i, j]:.2f}", f"{made[i, j]:.2f}"]
        for i, a in enumerate(names)
        for j, b in enumerate(names)
        if j < i
    ]
    return [
        page.Section(
            "What the columns are",
            "As they were read; options of the command line say otherwise.",
            table=page.TextTable(("column", "what it is"), [str(column).split(": ", 1) for column in of.columns]),
        ),
        page.Section("Columns", "Rows of the table, and as many rows that the model draws.", marginals(of, drawn)),
        page.Section(
            "Pairs",
            "Correlations in the table, and in what is drawn.",
            table=page.TextTable(("columns", "rows", "drawn"), pairs),
        ),
        learning_curve(fitted.history, unit="row", note="Validation rows are those held out."),
    ]


@publish.timed
def main(config: Config) -> dict[str, Any]:
    """Train, evaluate, fill in, report; returns the numbers of the table.

    Raises:
        ValueError: what is no table, or options that do not fit it.
    """
    config = checked(config)
    if config.smoke:
        config = dataclasses.replace(config, epochs=2, k=10, hidden=(16,))
    of = read(config)
    print(of)
    rng, n = np.random.default_rng(config.seed), len(next(iter(of.ys.values())))
    order, held = rng.permutation(n), max(2, n // 5)
    train, test = ({name: y[rows] for name, y in of.ys.items()} for rows in (order[held:], order[:held]))
    config = fitting(config, n - held)
    model = table_vae(of.columns, config.latent, hidden=config.hidden)
    k_fit, k_test, k_taken, k_filled, k_drawn = jax.random.split(jax.random.key(config.seed), 5)
    steps = max(1, config.epochs * ((n - held) // config.batch_size))
    fitted = fit_on(
        config,
        model,
        warm_cosine(config.learning_rate, steps),
        train,
        key=k_fit,
        epochs=config.epochs,
        batch_size=config.batch_size,
        validation=(test, None),
        validate_every=max(1, config.epochs // 50),
        objective=importance_weighted(config.samples),
        ema_decay=0.99,
    )
    params = fitted.state.ema  # not those with the best validation, which are the rows that are held out
    result = evaluate_on(config, model, params, k_test, test, k=config.k)
    scores = found_again(config, of, model, params, k_taken, test, rng)
    kept = [[*column[:2], list(column.categories), *column[3:]] for column in of.columns]
    publish.save(
        config, rebuild, params, {name: y[0] for name, y in train.items()}, history=fitted.history, columns=kept
    )
    whole = fill_in(of, model, params, k_filled, n=DRAWS, k=config.k)
    write_whole(to_path(config.out) / "filled.csv", as_csv(whole))
    drawn = jax.tree.map(
        np.asarray, jax.jit(jax.vmap(lambda key: model.sample(params, key)))(jax.random.split(k_drawn, n))
    )
    return publish.write(
        "table",
        config,
        title=f"A VAE of {config.data}",
        lead=f"{n} rows of {len(of.columns)} columns; {held} rows held out; {config.epochs} epochs. Data: {of.source}.",
        table=table(of, result, scores, fitted),
        sections=sections(of, {name: np.asarray(y, float) for name, y in drawn.items()}, fitted),
    )


def found_again(
    config: Config, of: Columns, model: Any, params: Any, key: jax.Array, test: Rows, rng: np.random.Generator
) -> dict[str, tuple[float, float, int]]:
    """Of each column: the error of entries that were taken out of the rows held out, that of the column by itself, and
    how many they are."""
    taken = {name: ~np.isnan(y) & (rng.random(len(y)) < TAKEN) for name, y in test.items()}
    seen = {name: np.where(taken[name], np.nan, y).astype(np.float32) for name, y in test.items()}
    guess, scores = guesses(of.columns, impute_all(model, params, key, seen, n=DRAWS, k=config.k)), {}
    for column in of.columns:
        rows, truth = taken[column.name], test[column.name][taken[column.name]]
        alone = np.full(len(truth), of_column(column, seen[column.name]))
        both = guess[column.name][rows], alone
        ours, by_itself = (error(column, each, truth) if len(truth) else float("nan") for each in both)
        scores[column.name] = (ours, by_itself, int(rows.sum()))
    return scores


if __name__ == "__main__":
    publish.run(main, Config)
