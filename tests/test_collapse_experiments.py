"""`python -m experiments.collapse` and `experiments.text_vae`: they run and report; what they compare is fair."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reopened import check_reopened, evaluation_of, evaluations
from reported import check_report

from experiments import collapse, text_vae, text_vae_report
from vae_jax import Evaluation, text
from vae_jax.evaluation import mean

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def test_collapse(tmp_path, monkeypatch):
    config = collapse.Config(out=str(tmp_path), smoke=True)
    seen = evaluations(monkeypatch, collapse)
    numbers = collapse.main(config)
    assert check_reopened(tmp_path, seen).config["recipe"]["arguments"]["name"] == "free bits"
    check_report(tmp_path, config, numbers, ("What z carries", "Units"))
    wanted = ["L2, sigma = 0.05", "L2, sigma = 0.1", "autoregressive, no cure", "autoregressive, free bits"]
    assert [name.removesuffix(": rate") for name in numbers] == wanted


def test_images_shrink_to_even_steps():
    """Of 256 levels in blocks of 4: each of 8 steps holds 32 levels."""
    ys = np.repeat(np.repeat(np.arange(49, dtype=np.uint8).reshape(1, 7, 7, 1) * 5, 4, axis=1), 4, axis=2)
    np.testing.assert_array_equal(collapse.shrunk(ys, 8), [np.arange(49) * 5 // 32])
    with pytest.raises(ValueError, match="sides 7 divides; got 32x32"):
        collapse.shrunk(np.zeros((1, 32, 32, 3), np.uint8), 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"sigmas": ()}, "want sigmas > 0"), ({"levels": 1}, "at least 2 levels"), ({"cures": ("hope",)}, "no such cure")],
)
def test_collapse_refuses(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        collapse.main(collapse.Config(**{"smoke": True, "out": str(tmp_path), "sigmas": (1.0,), **options}))


def test_text_vae(tmp_path, monkeypatch):
    config = text_vae.Config(out=str(tmp_path), ways=("free bits",), smoke=True)
    seen = evaluations(monkeypatch, text, "evaluate_by_length")
    numbers = text_vae.main(config)
    words = set(text.load("wordnet_mini", min_count=config.min_count).vocabulary.words)
    by_length = lambda run: functools.partial(text.evaluate_by_length, text_vae.by_length(run), run.params)  # noqa: E731
    cure, language = (check_reopened(tmp_path / name, seen, evaluate=by_length) for name in ("", "language model"))
    assert numbers["free bits: -ln P(y) at most"] == -mean(evaluation_of(cure, seen).log_likelihood).value
    assert numbers["language model: -ln P(y)"] == -mean(evaluation_of(language, seen).elbo).value
    for run in (cure, language):
        (sentence,) = map(text.open_vocabulary(run.name).decode, run.sample(jax.random.key(0), 1))
        assert sentence and set(sentence.split()) <= words
    titles = ("What a sentence costs", "Collapse and cures", "Reconstructions", "Samples", "Between two sentences")
    check_report(tmp_path, config, numbers, titles)
    assert list(numbers) == ["language model: -ln P(y)", "free bits: -ln P(y) at most"]


@pytest.mark.parametrize("name", ["plain", "committed rate", "skip connections", "bag of words"])
def test_every_way_is_a_model_with_the_same_parameters_in_training(name):
    """Built in the abstract: nothing is compiled."""
    config = text_vae.Config(embed=4, hidden=6, latent=3)
    way, y = text_vae.WAYS[name], jnp.zeros(7, jnp.int32)
    parts = way.parts(config, 20)
    model, noisy = (text_vae.models(way, parts, 20, training=training)(7) for training in (False, True))
    params = jax.eval_shape(model.init, jax.random.key(0), y)
    assert jax.eval_shape(noisy.init, jax.random.key(0), y) == params
    for one in (model, noisy):
        terms = jax.eval_shape(one.terms, params, jax.random.key(0), y)
        assert terms.distortion.shape == terms.rate.shape == () and terms.units.rate.shape == (3,)


def trained(nats: float, rate: float, encoder: object = "there") -> text_vae_report.Trained:
    ones = np.ones(4)
    evaluation = Evaluation(-(nats + rate) * ones, rate * ones, nats * ones, -nats * ones, 5, *[None] * 3, 1, "", None)
    return text_vae_report.Trained(encoder, None, {}, {}, {}, [], evaluation, None, None)


def test_the_best_cure_is_the_cheapest_that_carries_something():
    ways = {"language model": trained(9, 0, None), "collapsed": trained(9, 0.01), "dear": trained(12, 8)}
    assert text_vae_report.best_cure({**ways, "cheap": trained(10, 6)}) == "cheap"
    assert text_vae_report.best_cure({**ways, "dear": trained(12, 4)}) == "dear"  # the most, where none carries 5 nats
    more = text_vae_report.against(ways["dear"], ways["language model"])
    assert more == (3, 0)


def test_sentences_are_cut_at_quantiles():
    ys = np.where(np.arange(12)[None] < np.arange(1, 12)[:, None], 5, text.END)
    assert text_vae.bins(ys) == (7, 11, 12)
    with pytest.raises(ValueError, match="no such way: \\['hope'\\]"):
        text_vae.main(text_vae.Config(ways=("hope",)))
