"""Batches of like length and perplexity: the numbers are those of the whole width, and those of closed forms."""

import functools
from inspect import unwrap as unchecked  # users have no checker of annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import compiled

from vae_jax import Model, Terms, evaluate, gaussian, init_state, make_scan, make_train_step, standard_normal, vae
from vae_jax.core import elbo, free_bits, importance_weighted, lift, per_unit
from vae_jax.parts import autoregressive, in_training
from vae_jax.text import by_length, cut_to_length, evaluate_by_length, lengths, perplexity

LEVELS = 5
WIDTH = 9


def sentences(n=12, width=WIDTH, key=0, most=None):
    """Random words, a random number of them before the end; where `most` is the width, some have no end."""
    rng = np.random.default_rng(key)
    ys = rng.integers(1, LEVELS, (n, width), dtype=np.int32)
    count = rng.integers(0, (width if most is None else most) + 1, n)
    return np.where(np.arange(width) < count[:, None], ys, 0).astype(np.int32)


def bigram_init(key, y, *c):
    k_words, k_z = jax.random.split(key)
    return {
        "words": jax.random.normal(k_words, (LEVELS + 1, LEVELS)),
        "z": [jax.random.normal(k_z, (x.size, LEVELS)) for x in c],
    }


def bigram(params, y, *c, key=None):
    """Logits from the word before and from z; with a key, a twentieth of them is dropped."""
    before = jnp.concatenate([jnp.full(1, LEVELS), y[:-1]])
    logits = params["words"][before]
    for x, w in zip(c, params["z"], strict=True):
        logits = logits + (x @ w)[None]
    return logits if key is None else jnp.where(jax.random.bernoulli(key, 0.05, logits.shape), 0, logits)


def counting_init(key, y):
    return 0.3 * jax.random.normal(key, (LEVELS, 4))


def counting(params, y):
    """The mean of the words' vectors: an encoder that padding does not reach."""
    return jnp.sum(jnp.where((y > 0)[:, None], params[y], 0), axis=0)


@functools.cache
def text_vae(width, training=False):
    generator = autoregressive((bigram_init, bigram), (width,), LEVELS, end=0)
    return vae(
        gaussian((counting_init, counting)),
        standard_normal(2),
        in_training(generator, word_dropout=0.3) if training else generator,
    )


PARAMS = text_vae(WIDTH).init(jax.random.key(1), jnp.zeros(WIDTH, jnp.int32))


# How long a sentence is


@given(st.lists(st.lists(st.integers(0, 2), min_size=4, max_size=4), min_size=1, max_size=5))
def test_lengths_count_up_to_the_first_end(rows):
    counted = [row.index(0) + 1 if 0 in row else 4 for row in rows]
    ys = np.array(rows, np.int32)
    assert isinstance(lengths(ys), np.ndarray)
    np.testing.assert_array_equal(lengths(ys), counted)
    np.testing.assert_array_equal(lengths(jnp.asarray(ys)), counted)
    assert lengths(ys[0]) == counted[0]


# The order of an epoch


def test_an_epoch_is_sorted_within_windows_and_visits_every_sentence():
    """With one window the batches are those of the sorted data; with several, a sorted window each."""
    ys = sentences(37, key=2)
    places = compiled(by_length(ys, 4, window=100), static_argnums=(2, 3))(jax.random.key(0), 3, 36, 37)
    batches = np.sort(lengths(ys)[places].reshape(9, 4), axis=1)
    assert len(np.unique(places)) == 36
    in_order = batches[np.lexsort((batches[:, -1], batches[:, 0]))]
    np.testing.assert_array_equal(in_order.ravel(), np.sort(lengths(ys)[places]))
    assert not np.array_equal(in_order, batches)  # the batches themselves come in a random order

    two = by_length(ys, 4, window=3)(jax.random.key(0), 0, 36, 37)
    kept = jax.random.permutation(jax.random.split(jax.random.fold_in(jax.random.key(0), 0))[0], 37)[:36]
    windows = [np.sort(lengths(ys)[part]).reshape(3, 4) for part in np.asarray(kept).reshape(3, 12)]
    expected = sorted(batch.tolist() for window in windows for batch in window)
    assert sorted(sorted(batch) for batch in lengths(ys)[two].reshape(9, 4).tolist()) == expected


def test_an_order_is_a_function_of_key_and_epoch():
    ys = sentences(20)
    order = compiled(by_length(ys, 5, window=2), static_argnums=(2, 3))
    orders = [order(jax.random.key(key), epoch, 20, 20).tolist() for key in (0, 1) for epoch in (0, 1)]
    assert len({tuple(o) for o in orders}) == 4 and all(sorted(o) == list(range(20)) for o in orders)
    assert order(jax.random.key(0), jnp.int32(1), 20, 20).tolist() == orders[1]


def test_like_lengths_come_together():
    """Of 64 batches, the columns up to the longest sentence: a random order needs a third more than this one."""
    ys = sentences(512, width=40, key=5)
    order, key = by_length(ys, 8, window=16), jax.random.key(0)

    def columns(places):
        return lengths(ys)[np.asarray(places)].reshape(-1, 8).max(axis=1).mean()

    assert columns(order(key, 0, 512, 512)) < 0.75 * columns(np.arange(512))
    assert columns(order(key, 0, 512, 512)) < lengths(ys).mean() + 2


@pytest.mark.parametrize(("batch_size", "window"), [(0, 1), (4, 0), (4.0, 1), (4, 1.5)])
def test_orders_without_batches_are_refused(batch_size, window):
    with pytest.raises(ValueError, match="at least 1"):
        unchecked(by_length)(sentences(), batch_size, window=window)


def test_an_order_for_other_data_is_refused():
    order = by_length(sentences(12), 4)
    for size, n in ((12, 13), (10, 12)):
        with pytest.raises(ValueError, match=f"12 sentences in batches of 4; asked for {size} of {n}"):
            order(jax.random.key(0), 0, size, n)


# Columns that are not needed


def which(width):
    """A model whose distortion is the number of columns it was built for."""

    def terms(params, key, y, c=None):
        assert y.shape == (width,)
        return Terms(distortion=width + 0.0 * params, rate=0.0, detail={"rate": y})

    return Model(lambda key, y, c=None: jnp.zeros(()), terms, lambda params, key, c=None: jnp.zeros(width, int))


@pytest.mark.parametrize(
    ("longest", "used"), [(1, 3), (2, 3), (3, 3), (4, 5), (5, 5), (6, 8), (8, 8), (9, 8)], ids=lambda x: str(x)
)
def test_the_smallest_width_that_holds_the_longest_sentence_runs(longest, used):
    """Widths 3, 5 and the whole 8; a sentence of 9, its end included, was cut to 8."""
    ys = np.zeros((2, 8), np.int32)
    ys[1, : longest - 1] = 2
    loss, terms = cut_to_length(which, (5, 3, 20))(
        which(8), jnp.zeros(()), jax.random.split(jax.random.key(0), 2), ys, None, 0
    )
    assert loss == used and terms.distortion.tolist() == [used, used] and terms.detail == {}


@pytest.mark.parametrize(
    ("objective", "most"),
    [(elbo(), 2), (elbo(), WIDTH), (free_bits(0.3, per_unit), 4), (importance_weighted(3), 4)],
)
def test_loss_and_gradient_are_those_of_the_whole_width(x64, objective, most):
    """Word dropout and the network's own dropout included: padding never changes a number."""
    ys, keys = jnp.asarray(sentences(6, key=most, most=most)), jax.random.split(jax.random.key(0), 6)
    params = text_vae(WIDTH).init(jax.random.key(1), ys[0])

    def loss(objective, params):
        return objective(text_vae(WIDTH, training=True), params, keys, ys, None, 0)

    whole = compiled(jax.value_and_grad(lambda params: loss(objective, params), has_aux=True))(params)
    cut = cut_to_length(functools.partial(text_vae, training=True), (5,), objective)
    part = compiled(jax.value_and_grad(lambda params: loss(cut, params), has_aux=True))(params)
    (whole_loss, whole_terms), whole_gradient = whole
    (part_loss, part_terms), part_gradient = part
    np.testing.assert_allclose(part_loss, whole_loss, rtol=1e-12)
    for name in ("distortion", "rate"):
        np.testing.assert_allclose(getattr(part_terms, name), getattr(whole_terms, name), rtol=1e-10, atol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), part_gradient, whole_gradient)
    assert any(np.any(g != 0) for g in jax.tree.leaves(part_gradient["enc"]))


def test_a_scan_of_steps_in_this_order_is_that_of_the_whole_width():
    """Six steps of the compiled loop, in micro-batches: parameters equal to rounding."""
    ys, key = jnp.asarray(sentences(12, key=3)), jax.random.key(0)
    model, optimizer, order = text_vae(WIDTH), optax.sgd(0.1), by_length(np.asarray(ys), 4, window=2)
    state = init_state(model, optimizer, jax.random.key(1), ys[0])
    ends = []
    for objective in (elbo(), cut_to_length(text_vae, (7,))):
        step = make_train_step(model, optimizer, objective=objective, micro_batches=2)
        run = compiled(make_scan(step, 4, 3, order=order))
        ends.append(run(run(state, key, ys)[0], key, ys)[0].params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *ends)
    assert not np.allclose(ends[0]["gen"]["words"], state.params["gen"]["words"])


@pytest.mark.parametrize("columns", [(), (0, 4), (2.5, 4), 4])
def test_columns_that_are_none_are_refused(columns):
    for call in (
        lambda: unchecked(cut_to_length)(which, columns),
        lambda: unchecked(evaluate_by_length)(text_vae, PARAMS, jax.random.key(0), sentences(4), columns),
    ):
        with pytest.raises(ValueError, match="at least one and all positive"):
            call()


# Whole splits


@pytest.mark.parametrize("devices", [None, 4])
def test_an_evaluation_by_length_is_the_evaluation(devices):
    """Every example, its noise included, in the order of the data; 13 sentences in batches of 4, also over a mesh."""
    ys, key = sentences(13, key=7), jax.random.key(3)
    mesh = devices and jax.make_mesh((devices,), ("data",))
    whole = evaluate(text_vae(WIDTH), PARAMS, key, ys, k=5, samples=2, batch_size=4)
    parts = evaluate_by_length(text_vae, PARAMS, key, ys, (2, 5), k=5, samples=2, batch_size=4, at_once=8, mesh=mesh)
    for name, value in whole._asdict().items():
        if isinstance(value, np.ndarray):
            np.testing.assert_allclose(getattr(parts, name), value, rtol=1e-5, atol=1e-6, err_msg=name)
        else:
            assert getattr(parts, name) == value, name
    assert len(np.unique(whole.elbo)) > 8 and whole.unit_variance.shape == (2,)


def test_an_evaluation_of_models_with_conditions():
    """-ln P(y|c) of a language model on classes, in the order of the data, against the logits added up by hand."""

    def build(width):
        return lift(autoregressive((bigram_init, bigram), (width,), LEVELS, end=0))

    ys, cs = sentences(5, key=8), np.eye(2, dtype=np.float32)[[0, 1, 1, 0, 1]]
    params = build(WIDTH).init(jax.random.key(0), ys[0], cs[0])
    result = evaluate_by_length(build, params, jax.random.key(1), ys, (3, 6), cs, batch_size=2)
    by_hand = []
    for y, c in zip(ys, cs, strict=True):
        before = [LEVELS, *y[:-1]]
        logits = np.asarray(params["words"])[before] + c @ np.asarray(params["z"][0])
        log_p = logits[np.arange(WIDTH), y] - np.log(np.sum(np.exp(logits), axis=1))
        by_hand.append(np.sum(log_p[: lengths(y)]))
    np.testing.assert_allclose(result.elbo, by_hand, rtol=1e-5)
    assert result.unit_rate is None and result.level_rate is None


def test_evaluations_that_cannot_be_are_refused():
    ys = sentences(4)
    with pytest.raises(ValueError, match="want k >= 0"):
        evaluate_by_length(text_vae, PARAMS, jax.random.key(0), ys, (3,), k=-1)
    with pytest.raises(ValueError, match="nothing but 0 after the first 0"):
        evaluate_by_length(text_vae, PARAMS, jax.random.key(0), np.flip(ys, axis=1), (3,))


# Perplexity


def test_a_model_that_knows_nothing_has_the_vocabulary_as_its_perplexity():
    """ln V for each word, the end included: perplexity V, and no error."""
    count = lengths(sentences(20))
    value, error = perplexity(count * np.log(7.0), count)
    np.testing.assert_allclose(value, 7, rtol=1e-12)
    assert error < 1e-12


def test_perplexity_does_not_depend_on_padding():
    """Three words wider, the same nats and the same words."""
    ys, key = sentences(6, most=WIDTH - 1), jax.random.key(0)
    numbers = []
    for width in (WIDTH, WIDTH + 3):
        padded = np.pad(ys, ((0, 0), (0, width - WIDTH)))
        result = evaluate(text_vae(width), PARAMS, key, padded)
        numbers.append(perplexity(-result.elbo, lengths(padded)))
    np.testing.assert_allclose(numbers[1], numbers[0], rtol=1e-5)


def test_the_error_of_a_perplexity_is_that_of_the_jackknife():
    """Sentences of many lengths: leaving each out in turn gives the same error within 2%."""
    rng = np.random.default_rng(0)
    count = rng.integers(2, 40, 800)
    nats = rng.gamma(4.0, 0.6, 800) * count
    value, error = perplexity(nats, count)
    np.testing.assert_allclose(value, np.exp(nats.sum() / count.sum()), rtol=1e-12)
    left_out = np.exp((nats.sum() - nats) / (count.sum() - count))
    jackknife = np.sqrt(799 / 800 * np.sum((left_out - left_out.mean()) ** 2))
    np.testing.assert_allclose(error, jackknife, rtol=0.02)


def test_one_sentence_has_a_perplexity_and_no_error():
    value, error = perplexity([2 * np.log(3.0)], [2])
    np.testing.assert_allclose(value, 3, rtol=1e-12)
    assert np.isnan(error)


@pytest.mark.parametrize(("nats", "tokens"), [([], []), ([1.0], [1, 2]), ([1.0], [0]), ([[1.0]], [[1]])])
def test_perplexities_of_nothing_are_refused(nats, tokens):
    with pytest.raises(ValueError, match="of each sentence"):
        perplexity(nats, tokens)
