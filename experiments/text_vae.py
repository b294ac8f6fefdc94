"""Text VAEs: a language model, a VAE with the same decoder, whose posterior collapses, and the cures, in one table.

    python -m experiments.text_vae                                # 20,000 WordNet definitions
    python -m experiments.text_vae --data DIR                     # train.txt, valid.txt, test.txt: a sentence a line
    python -m experiments.text_vae --ways plain "free bits"       # some of the ways
    python -m experiments.text_vae --help                         # every option

-ELBO, the importance-weighted bound on -ln P(y) and the perplexity count the end of the sentence; all on the whole test
set. Ways to train: `WAYS`. `vae_jax.open_run` opens the best cure, which the report pictures, in `out`, other ways in
`out`/WAY, and `text.open_vocabulary` the words of each. Sentences that an opened run draws:

    run, vocabulary = vae_jax.open_run("runs/text_vae"), text.open_vocabulary("runs/text_vae")
    print(*map(vocabulary.decode, run.sample(jax.random.key(0), 5)), sep="\n")
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np
import optax

import vae_jax
from experiments.text_vae_report import LANGUAGE_MODEL, Trained, best_cure, latent, sections, table
from vae_jax import Conditional, Fitted, Model, core, nets, text
from vae_jax.command import publish
from vae_jax.command.config import SHARE, Adam, at_least, checked, read_back
from vae_jax.command.placement import Placed, fit_on, mesh_of
from vae_jax.core import objectives
from vae_jax.evaluation import rate_split
from vae_jax.parts import autoregressive, bag_of_words, committed_gaussian, in_training
from vae_jax.training import lagging


@dataclasses.dataclass(frozen=True)
class Config(Adam, Placed):
    """Train a language model and text VAEs, and compare what z carries and what a sentence costs."""

    data: str = "wordnet_mini"
    """Sentences: wordnet_mini, a text file with one in each line, or a folder with train, valid and test files."""
    unit: str = "word"
    """What a token is: word, character, byte or subword."""
    min_count: int = 5
    """Words seen less often in the training sentences are unknown."""
    max_length: Annotated[int, at_least(2)] = 30
    """Tokens of a sentence, its end included; longer ones are left out, and counted."""
    ways: tuple[str, ...] = ()
    """Which ways to train, by name (default: all)."""
    embed: int = 50
    """Size of a word's embedding."""
    hidden: int = 100
    """State of the LSTMs."""
    latent: int = 32
    """Dimensions of z."""
    dropout: Annotated[float, SHARE] = 0.3
    """Of the decoder's LSTM, in training."""
    floor: float = 6.0
    """Nats that are free, and that are committed, where a way says so."""
    epochs: int = 6
    learning_rate: float = 3e-3
    k: int = 500
    """Importance samples of each test sentence."""
    out: str = "runs/text_vae"


class Parts(NamedTuple):
    """What the ways are made of: encoder, prior, and the generator of sentences of a length."""

    encoder: Conditional
    prior: Conditional
    generator: Callable[[int], Conditional]


class Way(NamedTuple):
    """One way to train.

    Fields:
        parts: from the configuration and the vocabulary's size.
        objective: from the configuration and the number of steps.
        word_dropout: part of the words that the decoder does not see in training.
        trains: `parts=` of the training step, from the number of steps.
        pretrained: the encoder starts as that of an autoencoder.
        bag_of_words: the generator also predicts the words without their order.
    """

    parts: Callable[["Config", int], Parts]
    objective: Callable[["Config", int], objectives.Objective] = lambda config, steps: objectives.elbo()
    word_dropout: float = 0.0
    trains: Callable[[int], Any] = lambda steps: None
    pretrained: bool = False
    bag_of_words: bool = False


def decoder(config: Config, levels: int, *, skip: bool = False) -> Callable[[int], Conditional]:
    """P(y|z), or P(y) where there is no z: the same network."""
    net = nets.LSTM(levels, config.embed, config.hidden, dropout=config.dropout, skip=skip)
    return lambda length: autoregressive(net, (length,), levels, end=text.END)


def encoder_net(config: Config, levels: int) -> Any:
    return nets.SequenceEncoder(levels, config.embed, config.hidden, 2 * config.latent, end=text.END)


def plain(config: Config, levels: int, *, skip: bool = False) -> Parts:
    return Parts(
        vae_jax.gaussian(encoder_net(config, levels)),
        vae_jax.standard_normal(config.latent),
        decoder(config, levels, skip=skip),
    )


def with_skips(config: Config, levels: int) -> Parts:
    return plain(config, levels, skip=True)


def committed(config: Config, levels: int) -> Parts:
    return plain(config, levels)._replace(encoder=committed_gaussian(encoder_net(config, levels), config.floor))


def annealed(config: Config, steps: int) -> objectives.Objective:
    return objectives.beta_elbo(objectives.linear_annealing(max(1, steps // 2)))


def cycled(config: Config, steps: int) -> objectives.Objective:
    return objectives.beta_elbo(objectives.cyclical_annealing(max(1, steps // 4)))


def free(config: Config, steps: int) -> objectives.Objective:
    return objectives.free_bits(config.floor, objectives.per_example)


WAYS: dict[str, Way | None] = {
    LANGUAGE_MODEL: None,
    "plain": Way(plain),
    "KL annealing": Way(plain, annealed),
    "cyclical": Way(plain, cycled),
    "beta 0.5": Way(plain, lambda config, steps: objectives.beta_elbo(0.5)),
    "free bits": Way(plain, free),
    "lagging encoder": Way(plain, trains=lambda steps: lagging(4, max(1, steps // 3))),
    "pre-trained, free bits": Way(plain, free, pretrained=True),
    "word dropout": Way(plain, word_dropout=0.4),
    "committed rate": Way(committed),
    "skip connections": Way(with_skips, annealed),
    "bag of words": Way(plain, annealed, bag_of_words=True),
}


def models(way: Way | None, parts: Parts, levels: int, *, training: bool) -> Callable[[int], Model]:
    """The model of sentences of a length; for training with dropout, which has the same parameters."""

    def generator(length: int) -> Conditional | Model:
        there = parts.generator(length)
        dropped = 0.0 if way is None else way.word_dropout
        seen = in_training(there, word_dropout=dropped, unknown=text.UNKNOWN) if training else there
        if way is None or not way.bag_of_words:
            return seen
        return bag_of_words(seen, nets.MLP((), levels), levels, end=text.END)

    if way is None:
        return lambda length: core.lift(generator(length))
    return lambda length: vae_jax.vae(parts.encoder, parts.prior, generator(length), estimator=vae_jax.analytic)


def rebuild(*, name: str, levels: int, length: int, **fields: Any) -> Model:
    """The model of one way, of sentences as long as the longest, for `vae_jax.open_run`."""
    config, way = read_back(Config, fields), WAYS[name]
    return models(way, parts_of(config, way, levels), levels, training=False)(length)


def by_length(run: vae_jax.Trained) -> Callable[[int], Model]:
    """From T to the opened run's model of sentences (T,): `text.evaluate_by_length` of it and of `run.params` gives the
    numbers of the table bit for bit, which `run.evaluate`, as it computes on the padding, has but for rounding."""
    arguments = run.config["recipe"]["arguments"]
    return lambda length: rebuild(**{**arguments, "length": length})


def parts_of(config: Config, way: Way | None, levels: int) -> Parts:
    """The language model has the plain decoder."""
    return plain(config, levels) if way is None else way.parts(config, levels)


def bins(ys: np.ndarray) -> tuple[int, ...]:
    """Lengths to cut batches to: a few quantiles of the sentences' lengths, and the longest."""
    quantiles = np.quantile(np.asarray(text.lengths(ys)), [0.5, 0.85, 0.98])
    return tuple(sorted({int(np.ceil(q)) for q in quantiles} | {ys.shape[1]}))


def train(config: Config, name: str, way: Way | None, corpus: text.Text, key: jax.Array) -> Trained:
    """Train in one way, keep the parameters with the best validated bound, and evaluate on the test sentences."""
    ys, levels = corpus.train, len(corpus.vocabulary)
    lengths, batch = bins(ys), min(config.batch_size, len(ys))
    steps = config.epochs * (len(ys) // batch)
    parts = parts_of(config, way, levels)
    model, trained = (models(way, parts, levels, training=training) for training in (False, True))
    k_first, k_fit, k_evaluate, k_split = jax.random.split(key, 4)

    def run(key: jax.Array, start: dict[str, Any], objective: objectives.Objective, **options: Any) -> Fitted:
        return fit_on(
            config,
            core.start_from(model(ys.shape[1]), start),
            optax.adam(config.learning_rate),
            ys,
            key=key,
            batch_size=batch,
            objective=text.cut_to_length(trained, lengths, objective),
            order=text.by_length(ys, batch),
            clip_norm=5.0,
            **options,
        )

    start: dict[str, Any] = {}
    if way is not None and way.pretrained:
        print(f"{name}: the encoder as that of an autoencoder")
        first = run(k_first, {}, objectives.beta_elbo(0.0), epochs=max(1, config.epochs // 3))
        start = {"enc": first.state.params["enc"]}
    print(name)
    objective = objectives.elbo() if way is None else way.objective(config, steps)
    trains = None if way is None else way.trains(steps)
    fitted = run(k_fit, start, objective, parts=trains, epochs=config.epochs, validation=(corpus.valid, None))
    params, generator, k = fitted.params, parts.generator(ys.shape[1]), 0 if way is None else config.k
    evaluate = functools.partial(text.evaluate_by_length, mesh=mesh_of(config))
    result = evaluate(model, params, k_evaluate, corpus.test, lengths, k=k, samples=4, at_once=512)
    if way is None:
        print(f"{name}: {-result.elbo.mean():.2f} nats")
        return Trained(None, generator, {}, params, params, fitted.history, result, None, None)
    assert result.log_likelihood is not None
    print(f"{name}: at most {-result.log_likelihood.mean():.2f} nats, rate {result.rate.mean():.2f}")
    split = rate_split(parts.encoder, parts.prior, params, k_split, corpus.test)
    gen = params["gen"]["gen"] if way.bag_of_words else params["gen"]
    zeros = np.zeros((len(corpus.test), config.latent), np.float32)

    def decoder_alone(length: int) -> Model:
        return core.lift(parts.generator(length))

    alone = -evaluate(decoder_alone, gen, k_evaluate, corpus.test, lengths, zeros).elbo
    return Trained(parts.encoder, generator, params["enc"], gen, params, fitted.history, result, split, alone)


@publish.timed
def main(config: Config) -> dict[str, Any]:
    """Train in every way, evaluate, report; returns the numbers of the table.

    Raises:
        ValueError: a way that there is not, or sentences that cannot be used.
    """
    unknown = sorted(set(config.ways) - set(WAYS))
    if unknown:
        raise ValueError(f"no such way: {unknown}; there are {list(WAYS)}")
    config = checked(config)
    corpus = text.load(
        config.data, unit=config.unit, min_count=config.min_count, max_length=config.max_length, too_long="drop"
    )
    if config.smoke:
        ways = config.ways or ("plain", "free bits")
        config = dataclasses.replace(config, embed=8, hidden=16, latent=4, epochs=1, k=4, ways=ways)
        corpus = corpus._replace(train=corpus.train[:256], valid=corpus.valid[:64], test=corpus.test[:64])
    k_train, k_report = jax.random.split(jax.random.key(config.seed))
    wanted = [name for name in WAYS if not config.ways or name in config.ways or name == LANGUAGE_MODEL]
    results = {name: train(config, name, WAYS[name], corpus, k_train) for name in wanted}
    length, levels = corpus.train.shape[1], len(corpus.vocabulary)
    chosen = best_cure(results) if latent(results) else LANGUAGE_MODEL
    where = publish.save_all(config, rebuild, results, corpus.train[0], main=chosen, levels=levels, length=length)
    for directory in where:
        text.save_vocabulary(directory, corpus.vocabulary)
    return publish.write(
        "text_vae",
        config,
        title="Text VAEs and posterior collapse",
        lead=(
            f"{corpus.source}. LSTMs of {config.hidden}, embeddings of {config.embed}, {config.latent} latent "
            f"dimensions, {config.epochs} epochs for each way; importance-weighted bounds with k = {config.k}."
        ),
        table=table(results, np.asarray(text.lengths(corpus.test))),
        sections=sections(results, corpus, config.latent, k_report),
    )


if __name__ == "__main__":
    publish.run(main, Config)
