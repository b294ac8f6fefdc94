"""Table, sentences and pictures of `experiments.text_vae`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax import Conditional, Evaluation, Model, text
from vae_jax.command.results import by_epoch
from vae_jax.core import lift
from vae_jax.evaluation import Mean, RateSplit, active_units, mean
from vae_jax.parts import adjusted, greedy
from vae_jax.report import page, pictures

LANGUAGE_MODEL = "language model"
CARRIES = 5.0  # nats that z has to carry to count as cured
COLLAPSED = 0.1  # nats, below which z carries nothing


class Trained(NamedTuple):
    """One way, trained and evaluated on the test sentences.

    Fields:
        encoder: None for the language model.
        generator: of sentences of the greatest length.
        enc, gen: their parameters.
        history: one row for each epoch.
        evaluation: of the whole.
        params: of the whole.
        split, alone: the parts of the rate, and (n,) -ln P_gen(y|z) at z = 0, the decoder as a language model; None
            where there is no z.
    """

    encoder: Conditional | None
    generator: Conditional
    enc: Any
    gen: Any
    params: Any
    history: list[dict[str, Any]]
    evaluation: Evaluation
    split: RateSplit | None
    alone: np.ndarray | None

    @property
    def nats(self) -> np.ndarray:
        """(n,) -ln P(y) of a language model, and a bound from above of a VAE."""
        bound = self.evaluation.log_likelihood
        return -self.evaluation.elbo if bound is None else -bound

    @property
    def rate(self) -> float:
        """Nats."""
        return float(self.evaluation.rate.mean())


Results = dict[str, Trained]


def against(one: Trained, baseline: Trained) -> Mean:
    """Nats more than the language model, sentence by sentence."""
    return mean(one.nats - baseline.nats)


def table(results: Results, tokens: np.ndarray) -> list[page.Row]:
    """What a test sentence costs in each way."""
    baseline = results[LANGUAGE_MODEL]
    where = f"nats per sentence, {len(tokens)} test sentences, {tokens.sum()} tokens; exact"
    rows = [page.Row(f"{LANGUAGE_MODEL}: -ln P(y)", *mean(baseline.nats), where)]
    for name, one in latent(results).items():
        more = against(one, baseline)
        percent = 100 * more.value / baseline.nats.mean()
        meaning = (
            f"nats; {more.value:+.2f} ± {more.standard_error:.2f} ({percent:+.2f} %) against the language model; "
            f"rate {one.rate:.2f} nats"
        )
        rows.append(page.Row(f"{name}: -ln P(y) at most", *mean(one.nats), meaning))
        if one.alone is not None and abs(one.rate) < COLLAPSED:
            meaning = "nats; that bound less -ln P(y) of the same decoder without z (z = 0), sentence by sentence"
            rows.append(page.Row(f"{name}, collapsed: bound - decoder", *mean(one.nats - one.alone), meaning))
    return rows


def latent(results: Results) -> Results:
    """The ways that have a z."""
    return {name: one for name, one in results.items() if one.encoder is not None}


def best_cure(results: Results) -> str:
    """Of the ways whose z carries more than 5 nats the one with the lowest bound; else the one that carries most."""
    carrying = {name: one for name, one in latent(results).items() if one.rate > CARRIES}
    if carrying:
        return min(carrying, key=lambda name: float(carrying[name].nats.mean()))
    return max(latent(results), key=lambda name: results[name].rate)


def diagnostics(results: Results, tokens: np.ndarray) -> page.TextTable:
    """Everything about each way: bound, perplexity, and what z carries."""
    baseline = results[LANGUAGE_MODEL]
    columns = [
        "way",
        "−ELBO",
        "−ln P(y) at most",
        "perplexity",
        "rate",
        "I(y; z)",
        "KL to prior",
        "active",
        "gap",
        "z = 0",
    ]
    rows = []
    for name, one in results.items():
        shown, split = one.evaluation, one.split
        row = [name, f"{-shown.elbo.mean():.2f}", str(mean(one.nats))]
        row.append(str(text.perplexity(one.nats, tokens)))
        if split is not None:
            row += [
                str(mean(shown.rate)),
                f"{split.mutual_information.value:.2f}",
                f"{split.marginal_kl.value:.2f}",
                str(active_units(shown)),
                f"{(shown.distortion - baseline.nats).mean():.2f}",
                "" if one.alone is None else f"{one.alone.mean():.2f}",
            ]
        rows.append([*row, *[""] * (len(columns) - len(row))])
    return page.TextTable(columns, rows)


class Speaker(NamedTuple):
    """What one way says: `encode` sentences (n, T) to the means of their codes, `decode` codes to likeliest words."""

    encode: Callable[[np.ndarray], np.ndarray]
    decode: Callable[[np.ndarray], list[str]]


def speaker(one: Trained, vocabulary: text.Vocabulary, key: Array) -> Speaker:
    """Encoder and generator as functions of batches, compiled."""
    encoder, generator = one.encoder, adjusted(one.generator, greedy)
    assert encoder is not None
    encode = jax.jit(jax.vmap(lambda y: encoder.dist(one.enc, y).mean))
    decode = jax.jit(jax.vmap(lambda key, z: generator.sample(one.gen, key, z)))

    def words(zs: np.ndarray) -> list[str]:
        keys = jax.random.split(key, len(zs))
        return [vocabulary.decode(ids) for ids in np.asarray(decode(keys, jnp.asarray(zs)))]

    return Speaker(lambda ys: np.asarray(encode(jnp.asarray(ys))), words)


def drawn(one: Trained, vocabulary: text.Vocabulary, key: Array, n: int) -> list[str]:
    """n sentences drawn from the language model."""
    model: Model = lift(one.generator)
    draw = jax.jit(jax.vmap(lambda key: model.sample(one.gen, key)))
    return [vocabulary.decode(ids) for ids in np.asarray(draw(jax.random.split(key, n)))]


def sections(results: Results, corpus: text.Text, latent_size: int, key: Array) -> list[page.Section]:
    """The table of all ways, the rates over the epochs, and what the models say."""
    shown = [
        page.Section(
            "What a sentence costs, and what z carries",
            "Nats per test sentence. -ln P(y) is exact for the language model and bounded by importance sampling for "
            "the others. A rate of 0 is posterior collapse: then the VAE is a language model. The rate is I(y; z) "
            "and the KL of the aggregate to the prior; the gap is the distortion less what the "
            "language model pays; at z = 0 the decoder is a language model by itself.",
            table=diagnostics(results, np.asarray(text.lengths(corpus.test))),
        )
    ]
    if not latent(results):
        return shown
    k_z, k_words, k_language = jax.random.split(key, 3)
    best = best_cure(results)
    speakers = {
        name: speaker(results[name], corpus.vocabulary, k_words)
        for name in dict.fromkeys([next(iter(latent(results))), best])
    }
    few = corpus.test[np.asarray(text.lengths(corpus.test)) > 4][:6]
    zs = np.asarray(jax.random.normal(k_z, (5, latent_size)))
    language = drawn(results[LANGUAGE_MODEL], corpus.vocabulary, k_language, len(zs))
    return [
        *shown,
        curves(results),
        reconstructions(speakers, few, corpus.vocabulary),
        samples(speakers, zs, language),
        between(best, speakers[best], few[:4]),
    ]


def curves(results: Results) -> page.Section:
    lines = {name: by_epoch(one.history, "valid_rate") for name, one in latent(results).items()}
    picture = pictures.curves(lines, x="epoch", y="rate, nats per sentence")
    caption = "The rate on the validation sentences, epoch by epoch."
    return page.Section("Collapse and cures", caption, [page.Picture(picture, "rate by epoch")])


def reconstructions(speakers: dict[str, Speaker], ys: np.ndarray, vocabulary: text.Vocabulary) -> page.Section:
    said = {name: one.decode(one.encode(ys)) for name, one in speakers.items()}
    sentences = [vocabulary.decode(y) for y in ys]
    return page.Section(
        "Reconstructions",
        "Test sentences, and the likeliest words, one by one, at the mean of P_enc(z|y).",
        table=page.TextTable(["test sentence", *said], list(zip(sentences, *said.values(), strict=True))),
    )


def samples(speakers: dict[str, Speaker], zs: np.ndarray, language: list[str]) -> page.Section:
    said = {f"{name}: likeliest words": one.decode(zs) for name, one in speakers.items()}
    columns = [f"{LANGUAGE_MODEL}: drawn", *said]
    return page.Section(
        "Samples",
        "Five z from the prior and the likeliest words at each: one and the same sentence where z carries nothing. "
        "Beside them sentences drawn from the language model.",
        table=page.TextTable(columns, list(zip(language, *said.values(), strict=True))),
    )


def between(name: str, one: Speaker, ys: np.ndarray) -> page.Section:
    """Straight lines between the codes of the first and the second sentence, the third and the fourth, ..."""
    ends, steps = one.encode(ys), np.linspace(0, 1, 6)[None, :, None]
    paths = ends[::2][:, None] * (1 - steps) + ends[1::2][:, None] * steps
    said = [one.decode(path) for path in paths]
    return page.Section(
        f"Between two sentences: {name}",
        "From the code of one test sentence straight to that of another, the likeliest words at each step.",
        table=page.TextTable([f"pair {i + 1}" for i in range(len(said))], list(zip(*said, strict=True))),
    )
