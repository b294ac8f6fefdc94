"""Four-part chorales as sequences: an autoregressive model, and VAEs on top of it.

    python -m experiments.chorales --data bach_chorales.npz
    python -m experiments.chorales --data bach_chorales.npz --ways autoregressive --hidden 512
    python -m experiments.chorales --smoke                                    # on scales that are made here
    python -m experiments.chorales --help                                               # every option

The data are not carried: editions of Bach's chorales may be under a licence of their own. `experiments/phrases.py` says
what is read and where chorales are to be had.

A phrase of two bars is an array (16, 4) of whole numbers: a rest, a note held, or a pitch that starts. In raster order,
soprano first, P(y) = prod_t P(y_t|y_<t) is exact; a VAE's decoder is the same network, given z. Training phrases start
at every bar and are moved up and down by up to two semitones; test phrases do not overlap and stay where they are.
`vae_jax.open_run` opens the last of the ways in `out`, the others in `out`/WAY.

Expected of a short run, `--epochs 2 --hidden 128 --k 20` on 397 chorales (about ten minutes on two cores):

| way | nats per eighth note, 66 test pieces | rate, nats per phrase |
|---|---|---|
| autoregressive | 6.14 ± 0.10 | |
| VAE | at most 6.27 ± 0.10 | 1.89 |
| VAE, free bits | at most 6.30 ± 0.10 | 8.06 |
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import optax

import vae_jax
from experiments.phrases import SCALES, Phrases, load_phrases, roll
from vae_jax import Conditional, Evaluation, Fitted, Model, core, nets
from vae_jax.command import publish
from vae_jax.command.config import SHARE, Adam, at_least, checked, fitting, read_back
from vae_jax.command.placement import Placed, evaluate_on, fit_on
from vae_jax.command.results import by_epoch
from vae_jax.core import objectives
from vae_jax.evaluation import Mean, mean
from vae_jax.parts import adjusted, autoregressive, in_training, temperature
from vae_jax.report import page, pictures

WAYS = ("autoregressive", "VAE", "VAE, free bits")


@dataclasses.dataclass(frozen=True)
class Config(Adam, Placed):
    """Train on chorales in several ways, and write a report with pictures of what they compose."""

    data: str = "bach_chorales.npz"
    """An npz file of chorales, in the form that `experiments/phrases.py` says; or scales, a little music made here,
    which a smoke run takes where there is no such file."""
    ways: tuple[str, ...] = WAYS
    """autoregressive: no latent. VAE: the same decoder, given z. VAE, free bits: some nats of z are free."""
    rows: int = 16
    """Eighth notes in a phrase."""
    shifts: Annotated[int, at_least(0)] = 2
    """Semitones that training phrases are moved, up and down."""
    embed: int = 32
    """Numbers that stand for a note."""
    hidden: int = 256
    """Size of the LSTMs' states."""
    latent: int = 16
    """Latent dimensions of a phrase."""
    dropout: Annotated[float, SHARE] = 0.3
    """Of the decoder's inputs, in training."""
    floor: Annotated[float, at_least(0)] = 8.0
    """Nats of a phrase that are free, where they are."""
    epochs: int = 10
    batch_size: int = 64
    k: int = 100
    """Importance samples of each test phrase."""
    out: str = "runs/chorales"


class Way(NamedTuple):
    """A model of phrases, what trains it, and its encoder, None where it has no z."""

    model: Model
    objective: objectives.Objective
    encoder: Conditional | None


def build(config: Config, levels: int) -> tuple[Conditional, dict[str, Way]]:
    """The decoder, which all ways have, and the ways."""
    net = nets.LSTM(levels, config.embed, config.hidden, dropout=config.dropout)
    decoder = autoregressive(net, (config.rows, 4), levels)
    noisy = in_training(decoder)
    encoder = vae_jax.gaussian(nets.SequenceEncoder(levels, config.embed, config.hidden, 2 * config.latent, end=-1))

    def latent(generator: Conditional | Model) -> Model:
        return vae_jax.vae(encoder, vae_jax.standard_normal(config.latent), generator, estimator=vae_jax.analytic)

    free = objectives.free_bits(config.floor, objectives.per_example)
    return decoder, {
        "autoregressive": Way(core.lift(decoder), objectives.of(lambda step: noisy), None),
        "VAE": Way(latent(decoder), objectives.of(lambda step: latent(noisy)), encoder),
        "VAE, free bits": Way(latent(decoder), objectives.of(lambda step: latent(noisy), free), encoder),
    }


def rebuild(*, name: str, levels: int, **fields: Any) -> Model:
    """One of the ways, for `vae_jax.open_run`."""
    return build(read_back(Config, fields), levels)[1][name].model


def train(config: Config, way: Way, phrases: Phrases, key: jax.Array) -> tuple[Fitted, Evaluation]:
    """Train, keep the epoch with the best validated bound, and evaluate on the test phrases."""
    k_fit, k_evaluate = jax.random.split(key)
    fitted = fit_on(
        config,
        way.model,
        optax.adam(config.learning_rate),
        phrases.train,
        key=k_fit,
        epochs=config.epochs,
        batch_size=config.batch_size,
        validation=(phrases.valid, None),
        objective=way.objective,
        clip_norm=5.0,
    )
    k = 0 if way.encoder is None else config.k
    return fitted, evaluate_on(config, way.model, fitted.params, k_evaluate, phrases.test, k=k, at_once=512)


def over_pieces(values: np.ndarray, piece: np.ndarray) -> Mean:
    """Mean over pieces of the mean over a piece's phrases, which are alike: so the error is that of pieces."""
    return mean([values[piece == i].mean() for i in np.unique(piece)])


def table(results: dict[str, tuple[Fitted, Evaluation]], phrases: Phrases, rows: int) -> list[page.Row]:
    """What four voices cost in an eighth note."""
    where = f"nats per eighth note of four voices, {len(np.unique(phrases.piece))} test pieces"
    found = []
    for name, (_, shown) in results.items():
        if shown.log_likelihood is None:
            found.append(page.Row(f"{name}: -ln P(y)", *over_pieces(-shown.elbo / rows, phrases.piece), where))
            continue
        bound = over_pieces(-shown.log_likelihood / rows, phrases.piece)
        rate = mean(shown.rate)
        found += [
            page.Row(f"{name}: -ln P(y) at most", *bound, f"{where}; importance-weighted, k = {shown.k}"),
            page.Row(f"{name}: -ELBO", *over_pieces(-shown.elbo / rows, phrases.piece), where),
            page.Row(f"{name}: rate", *rate, "nats per phrase; 0 is posterior collapse"),
        ]
    return found


def compositions(
    config: Config, results: dict[str, tuple[Fitted, Evaluation]], phrases: Phrases, key: jax.Array
) -> list[page.Section]:
    """Test phrases, draws of each way, and what lies between two phrases."""
    decoder, ways = build(config, phrases.levels)
    k_draw, k_between = jax.random.split(key)

    def picture(ys: Any, alt: str, columns: int = 4) -> page.Picture:
        return page.Picture(roll(np.asarray(ys), phrases.low, phrases.levels, columns), alt, alt)

    shown = [picture(phrases.test[:: max(1, len(phrases.test) // 8)][:8], "test phrases")]
    between = []
    for name, (fitted, _) in results.items():
        draw = jax.jit(jax.vmap(lambda key, way=ways[name], params=fitted.params: way.model.sample(params, key)))
        shown.append(picture(draw(jax.random.split(k_draw, 8)), f"{name}: drawn"))
        encoder = ways[name].encoder
        if encoder is not None:
            first, last = (encoder.dist(fitted.params["enc"], y).mean for y in phrases.test[[0, -1]])
            zs = np.linspace(first, last, 6)
            likely = adjusted(decoder, temperature(0.5))
            decode = jax.jit(jax.vmap(likely.sample, in_axes=(None, None, 0)))
            ys = np.concatenate([phrases.test[:1], decode(fitted.params["gen"], k_between, zs), phrases.test[-1:]])
            between.append(picture(ys, f"{name}: between two test phrases", 8))
    told = "Soprano red, alto yellow, tenor green, bass blue; dark where a note starts."
    sections = [page.Section("Phrases", f"Two bars each. {told}", shown)]
    if between:
        caption = (
            "Drawn at temperature 0.5, always with the same noise, at six points on the line between two codes; the "
            "phrases themselves at the ends. All the same where z carries nothing."
        )
        sections.append(page.Section("Between two phrases", caption, between))
    return sections


@publish.timed
def main(config: Config) -> dict[str, Any]:
    """Train, evaluate, report; returns the numbers of the table.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown way, or data that cannot be used.
    """
    if not config.ways or not set(config.ways) <= set(WAYS):
        raise ValueError(f"ways={config.ways}: want some of {WAYS}")
    if config.rows < 1 or config.shifts < 0:
        raise ValueError(f"want rows >= 1 and shifts >= 0; got {config.rows} and {config.shifts}")
    config = checked(config)
    if config.smoke and config.data == Config.data and not Path(config.data).is_file():
        config = dataclasses.replace(config, data=SCALES)
    phrases = load_phrases(config.data, config.rows, config.shifts)
    if config.smoke:
        config = dataclasses.replace(config, embed=8, hidden=16, latent=4, epochs=1, batch_size=32, k=4)
        phrases = phrases.first(128, 32)
    config = fitting(config, len(phrases.train))
    ways = build(config, phrases.levels)[1]
    k_train, k_report = jax.random.split(jax.random.key(config.seed))
    results = {}
    for name in config.ways:
        print(name)
        results[name] = train(config, ways[name], phrases, k_train)
    trained = {name: fitted for name, (fitted, _) in results.items()}
    publish.save_all(config, rebuild, trained, phrases.train[0], main=config.ways[-1], levels=phrases.levels)
    lines = {name: by_epoch(fitted.history, "valid_elbo", -1) for name, (fitted, _) in results.items()}
    curves = pictures.curves({name: (x, y / config.rows) for name, (x, y) in lines.items()}, y="nats per eighth note")
    caption = "-ELBO on the validation phrases."
    return publish.write(
        "chorales",
        config,
        title="Chorales",
        lead=(
            f"{len(phrases.train)} + {len(phrases.valid)} + {len(phrases.test)} phrases of {config.rows} eighth notes "
            f"in four voices, {phrases.levels} values; {config.data}. LSTMs of {config.hidden}, {config.epochs} "
            "epochs."
        ),
        table=table(results, phrases, config.rows),
        sections=[
            *compositions(config, results, phrases, k_report),
            page.Section("Learning curves", caption, [page.Picture(curves, "bound by epoch")]),
        ],
    )


if __name__ == "__main__":
    publish.run(main, Config)
