"""Autoregressive models: probabilities of all arrays sum to one, samples follow them, the end ends a sentence."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from flax import linen as nn
from scipy.special import log_softmax, softmax
from scipy.stats import chi2

from vae_jax import bernoulli, gaussian, standard_normal, vae
from vae_jax.core import importance_weighted_bound, lift
from vae_jax.data import identity
from vae_jax.data.check import check_data
from vae_jax.nets import LSTM, MLP, PixelCNN, Transformer
from vae_jax.parts import Autoregressive, adjusted, autoregressive, greedy, in_training, temperature, top_k, top_p
from vae_jax.parts.autoregression import Sentences

Z = np.array([0.5, -1.0], np.float32)


def some_params(conditional, c=None):
    """Parameters of the right shapes, none of them zero."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(conditional.init, jax.random.key(0), c))
    rng = np.random.default_rng(0)
    return tree.unflatten([jnp.asarray(0.7 * rng.normal(size=leaf.shape)) for leaf in leaves])


def every(shape, levels):
    """All arrays of a shape, in lexicographic order."""
    size = int(np.prod(shape))
    return np.array(list(itertools.product(range(levels), repeat=size)), np.int32).reshape(-1, *shape)


def constant(logits):
    """A network that does not read: the same logits everywhere."""
    return lambda key, y: {}, lambda params, y: jnp.broadcast_to(jnp.asarray(logits), (*y.shape, len(logits)))


class Counting(nn.Module):
    """A causal network of a user's own: logits from how many of each value stood before, and a condition or none."""

    levels: int = 3

    @nn.compact
    def __call__(self, y, *conditions):
        seen = jax.nn.one_hot(y.reshape(len(y), -1), self.levels)
        before = jnp.cumsum(seen, axis=1) - seen
        for c in conditions:
            before = before + nn.Dense(self.levels)(c)[:, None]
        return nn.Dense(self.levels)(before).reshape(*y.shape, self.levels)


SMALL = {
    "lstm": (LSTM(3, 3, 4), (4,), 3, None),
    "lstm with an end": (LSTM(3, 3, 4), (4,), 3, 0),
    "transformer with an end": (Transformer(3, 4, 1, 1), (4,), 3, 2),
    "transformer on a grid": (Transformer(2, 4, 1, 1), (2, 3), 2, None),
    "pixelcnn": (PixelCNN(2, 3, 1), (2, 3), 2, None),
    "a network of one's own": (Counting(), (4,), 3, 1),
}
each_small = pytest.mark.parametrize(("net", "shape", "levels", "end"), SMALL.values(), ids=SMALL)


# --- the density


@each_small
def test_probabilities_sum_to_one_and_samples_follow_them(net, shape, levels, end):
    """Over all arrays that can be; Pearson's test of 4,000 samples, which a right sampler fails once in 10,000."""
    conditional = autoregressive(net, shape, levels, end=end)
    params, ys = some_params(conditional, Z), every(shape, levels)

    @jax.jit
    def run(params, z):
        p = conditional.dist(params, z)
        return p.log_prob(ys), p.token_log_prob(ys), p.sample(jax.random.key(1), (4, 1_000))

    log_p, by_token, samples = run(params, Z)
    valid = np.asarray(conditional.dist(params, Z).support(ys))
    assert valid.sum() == (len(ys) if end is None else sum((levels - 1) ** i for i in range(shape[0] + 1)))
    np.testing.assert_allclose(np.exp(log_p[valid]).sum(), 1, rtol=1e-4)
    np.testing.assert_allclose(by_token.reshape(len(ys), -1).sum(axis=1), log_p, rtol=1e-4, atol=1e-5)

    assert samples.shape == (4, 1_000, *shape) and samples.dtype == jnp.int32
    places = samples.reshape(4_000, -1) @ levels ** np.arange(ys[0].size - 1, -1, -1)
    counts = np.bincount(places, minlength=len(ys))
    assert np.all(valid[counts > 0])
    expected = 4_000 * np.exp(np.asarray(log_p, np.float64)) * valid
    often = expected > 5
    pooled = [np.append(x[often], x[~often].sum()) for x in (counts, expected)]
    statistic = np.sum((pooled[0] - pooled[1]) ** 2 / np.maximum(pooled[1], 1e-9))
    assert often.sum() > 4 and statistic < chi2.ppf(1 - 1e-4, often.sum())


def test_each_position_is_a_softmax_of_the_network():
    """By numpy, from the network's own logits; 0 after the end; and whatever type the numbers have."""
    net, ys = LSTM(4, 3, 5), np.array([[2, 3, 1, 0, 0], [1, 1, 2, 3, 3], [0, 0, 0, 0, 0]], np.int32)
    conditional = autoregressive(net, 5, 4, end=0)
    params = some_params(conditional)
    logits = np.asarray(jax.jit(net.apply)(params, ys), np.float64)
    want = np.take_along_axis(log_softmax(logits, axis=-1), ys[..., None], axis=-1)[..., 0]
    want[0, 4] = want[2, 1:] = 0
    types = (ys, ys.astype(np.float32), ys.astype(np.uint8), ys.astype(jnp.bfloat16))

    @jax.jit
    def run(params):
        p = conditional.dist(params)
        terms = lift(conditional).terms(params, None, ys[1])
        return [p.token_log_prob(given) for given in types], p.log_prob(ys[0]), terms.nats

    by_token, log_p, nats = run(params)
    for got in by_token:
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
        assert got.dtype == jnp.float32
    np.testing.assert_allclose(log_p, want[0].sum(), rtol=1e-4)
    np.testing.assert_allclose(nats, -want[1].sum(), rtol=1e-4)


def test_padding_changes_no_number():
    """The array may be longer than the sentence: neither the nats nor their gradient know."""
    short = np.array([2, 3, 1, 0], np.int32)
    params = some_params(autoregressive(LSTM(4, 3, 5), 4, 4, end=0))
    results = []
    for net in (LSTM(4, 3, 5), LSTM(4, 3, 5)):
        y = np.pad(short, (0, 3 * len(results)))
        conditional = autoregressive(net, len(y), 4, end=0)
        run = jax.jit(jax.value_and_grad(lambda params, of=conditional, y=y: -of.dist(params).log_prob(y)))
        results.append(run(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *results)


def test_networks_in_16_bits_have_log_probabilities_of_32():
    conditional = autoregressive(LSTM(4, 3, 5, dtype=jnp.bfloat16), 5, 4, end=0)
    params = some_params(conditional)
    log_p = jax.eval_shape(lambda p: conditional.dist(p).log_prob(np.array([2, 3, 1, 0, 0])), params)
    assert log_p.dtype == jnp.float32

    rough = autoregressive((lambda key, y: {}, lambda params, y: jnp.zeros((*y.shape, 4), jnp.bfloat16)), 5, 4)
    log_p = jax.jit(lambda: rough.dist({}).log_prob(np.zeros(5)))()
    np.testing.assert_allclose(log_p, -5 * np.log(4), rtol=1e-6)


def test_extreme_logits_are_finite():
    """Values that cannot come cost a lot, and the gradient is that of a softmax."""

    def nats(logits):
        net = (lambda key, y: {}, lambda params, y: jnp.broadcast_to(logits[None], (2, 3)))
        return -autoregressive(net, 2, 3).dist({}).log_prob(np.array([0, 1]))

    graded = jax.jit(jax.value_and_grad(nats))
    value, gradient = graded(jnp.array([1e4, 0.0, -1e4]))
    np.testing.assert_allclose(value, 1e4)
    np.testing.assert_allclose(gradient, [1, -1, 0], atol=1e-6)
    value, gradient = graded(jnp.array([1.0, 2.0, -jnp.inf]))
    np.testing.assert_allclose(value, 2 * np.log(np.exp(1) + np.exp(2)) - 3, rtol=1e-6)
    assert np.all(np.isfinite(gradient))


def test_conditions_reach_the_network_one_by_one():
    """(z, c) are two inputs; what they are to the logits is the network's."""

    def apply(params, y, z, c):
        return jnp.broadcast_to((z * c)[None], (*y.shape, 3))

    conditional = autoregressive((lambda key, y, z, c: {}, apply), 2, 3)
    z, c = np.array([1.0, 2.0, 3.0]), np.array([0.0, 1.0, -1.0])
    want = 2 * log_softmax(z * c)[1]
    np.testing.assert_allclose(conditional.dist({}, (z, c)).log_prob(np.array([1, 1])), want, rtol=1e-6)


# --- as a part of a VAE


def test_a_generator_that_ignores_z_is_the_language_model():
    """Whatever the encoder does; so with the encoder at the prior the bound is the language model's, for every z."""
    ys = every((3,), 3)[:5]
    language = autoregressive(LSTM(3, 3, 4), 3, 3, end=0)
    params = some_params(language)
    deaf = autoregressive(
        (lambda key, y, z: params, lambda params, y, z: LSTM(3, 3, 4).apply(params, y[None])[0]), 3, 3, end=0
    )
    encoder = gaussian((lambda key, y: jnp.zeros(()), lambda p, y: jnp.full(4, 1.0) * p))  # N(0, 1) where p is 0
    model = vae(encoder, standard_normal(2), deaf)
    parts = {"enc": jnp.zeros(()), "pri": {}, "gen": params}
    terms = jax.jit(jax.vmap(lambda y: model.terms(parts, jax.random.key(0), y)))(ys)
    np.testing.assert_allclose(terms.rate, 0, atol=1e-6)
    np.testing.assert_allclose(terms.nats, -jax.jit(language.dist(params).log_prob)(ys), rtol=1e-5)


def test_a_text_vae_is_bounded_sampled_and_importance_weighted():
    """Enumerated z: -ln P(y) by summing over a grid of z is below the bound, and importance samples average to P(y)."""
    encoder = gaussian((lambda key, y: jnp.zeros(2), lambda p, y: p + 0.1 * jnp.sum(y)))
    generator = autoregressive(LSTM(3, 2, 3), 3, 3, end=0)
    model = vae(encoder, standard_normal(1), generator)
    y = np.array([1, 2, 0], np.int32)
    params = {"enc": jnp.array([0.0, -0.5]), "pri": {}, "gen": some_params(generator, np.zeros(1, np.float32))}
    zs = np.linspace(-7, 7, 2_001, dtype=np.float32)
    weights = np.exp(-(zs.astype(np.float64) ** 2) / 2) / np.sqrt(2 * np.pi) * (zs[1] - zs[0])
    per_z = jax.jit(jax.vmap(lambda z: generator.dist(params["gen"], z[None]).log_prob(y)))(zs)
    log_p = np.log(np.sum(weights * np.exp(np.asarray(per_z, np.float64))))
    keys = jax.random.split(jax.random.key(0), 2_000)
    nats = np.asarray(jax.jit(jax.vmap(lambda key: model.terms(params, key, y).nats))(keys), np.float64)
    assert nats.mean() - 4 * nats.std() / len(nats) ** 0.5 > -log_p
    ratio = np.exp(-nats - log_p)
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / len(nats) ** 0.5  # 4 standard errors
    bound = jax.jit(functools.partial(importance_weighted_bound, model, k=2_000))(params, jax.random.key(1), y)
    np.testing.assert_allclose(bound, log_p, atol=0.1)
    sample = jax.jit(model.sample)(params, jax.random.key(2), None)
    assert generator.dist(params["gen"], Z[:1]).support(sample)


# --- sampling


def test_a_longer_array_begins_in_the_same_way():
    """With the same key; so that a sentence is the same one whatever room it has."""
    net, key = LSTM(3, 2, 3), jax.random.key(3)
    params = some_params(autoregressive(net, 4, 3))
    short, long = (autoregressive(net, length, 3).dist(params).sample(key) for length in (4, 9))
    np.testing.assert_array_equal(short, long[:4])


def test_samples_use_each_key_once(one_use_keys):
    """Of nets with steps and without, from plain and adjusted logits."""
    for net in (LSTM(3, 2, 3), Counting()):
        conditional = autoregressive(net, 3, 3, end=0)
        params = some_params(conditional)
        conditional.dist(params).sample(jax.random.key(0), (2, 2))
        adjusted(conditional, temperature(0.5)).sample(params, jax.random.key(0), None)


LOGITS = np.log([0.4, 0.3, 0.2, 0.1]).astype(np.float32)


@pytest.mark.parametrize(
    ("adjust", "wanted"),
    [
        ((), [0.4, 0.3, 0.2, 0.1]),
        ((temperature(0.5),), [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
        ((temperature(1e6),), [0.25] * 4),
        ((top_k(1),), [1, 0, 0, 0]),
        ((top_k(2),), [4 / 7, 3 / 7, 0, 0]),
        ((top_k(9),), [0.4, 0.3, 0.2, 0.1]),
        ((top_p(1.0),), [0.4, 0.3, 0.2, 0.1]),
        ((top_p(0.69),), [4 / 7, 3 / 7, 0, 0]),
        ((top_p(0.71),), [4 / 9, 3 / 9, 2 / 9, 0]),
        ((top_p(1e-9),), [1, 0, 0, 0]),
        ((greedy,), [1, 0, 0, 0]),
        ((top_k(2), temperature(0.5)), [16 / 25, 9 / 25, 0, 0]),
        ((temperature(0.5), top_p(0.8)), [16 / 25, 9 / 25, 0, 0]),
        ((top_p(0.8), temperature(0.5)), [16 / 29, 9 / 29, 4 / 29, 0]),
    ],
)
def test_adjusted_logits_give_the_distribution_worked_out_by_hand(adjust, wanted):
    """In any order of the values, one after the other, and in the samples (4 standard errors)."""
    order = np.array([2, 0, 3, 1])
    logits = jnp.asarray(LOGITS[order])
    for change in adjust:
        logits = change(logits)
    wanted = np.array(wanted)[order]
    np.testing.assert_allclose(jax.nn.softmax(logits), wanted, atol=1e-5)
    model = adjusted(autoregressive(constant(LOGITS[order]), 2_000, 4), *adjust)
    sample = np.asarray(model.sample({}, jax.random.key(0), None))
    shares = np.bincount(sample, minlength=4) / 2_000
    assert np.all(np.abs(shares - wanted) <= 4 * np.sqrt(wanted * (1 - wanted) / 2_000) + 1e-9)


def test_top_p_keeps_what_float64_keeps():
    """Of 50,000 values, also those that float32 cannot tell from 0, and with p next to 1."""
    logits = np.random.default_rng(0).normal(size=50_000).astype(np.float32) * 3
    logits[:10] -= 200
    order = np.argsort(-logits, kind="stable")
    tail = np.cumsum(softmax(np.float64(logits))[order][::-1])[::-1]
    adjust = jax.jit(lambda logits, p: top_p(p)(logits), static_argnums=1)
    for p in (1.0, 1 - 1e-6, 0.999, 0.3):
        kept, wanted = np.sum(adjust(logits, p) > -np.inf), np.sum((tail > 1 - p) | (p == 1))
        assert abs(kept - wanted) <= (0 if p == 1 else 2), p
    np.testing.assert_array_equal(top_k(50_000)(logits), logits)


def test_temperatures_at_the_edge_leave_numbers():
    for t, wanted in ((1e-30, [0, 1, 0]), (1e30, [1 / 3] * 3)):
        for logits in ([1e-3, 2e-3, -1e-3], [1e9, 2e9, -3e9]):
            np.testing.assert_allclose(jax.nn.softmax(temperature(t)(jnp.array(logits))), wanted, atol=1e-6)
    kept = temperature(1e-30)(top_k(1)(jnp.array([1.0, 3.0])))
    np.testing.assert_array_equal(jax.nn.softmax(kept), [0, 1])


def test_ties():
    """All that tie with the k-th stay, of the likeliest the first is taken."""
    flat = jnp.zeros(4)
    np.testing.assert_array_equal(top_k(2)(flat), flat)
    np.testing.assert_array_equal(jax.nn.softmax(greedy(flat)), [1, 0, 0, 0])
    np.testing.assert_allclose(jax.nn.softmax(top_p(0.4)(flat)), [0.5, 0.5, 0, 0])
    np.testing.assert_allclose(jax.nn.softmax(top_p(0.6)(flat)), [1 / 3, 1 / 3, 1 / 3, 0], rtol=1e-6)


def test_an_adjusted_model_has_the_density_of_the_conditional():
    """And greedy takes the likeliest value at each position, one after the other."""
    conditional = autoregressive(Counting(), 4, 3)
    params, y = some_params(conditional), np.array([0, 1, 2, 1])
    model = adjusted(conditional, greedy)
    both = [jax.jit(one.terms)(params, None, y).nats for one in (model, lift(conditional))]
    np.testing.assert_array_equal(*both)
    prefix, by_token_of = np.zeros(0, np.int32), jax.jit(conditional.dist(params).token_log_prob)
    for t in range(4):
        options = [np.concatenate([prefix, [v], np.zeros(3 - t, int)]) for v in range(3)]
        by_token = by_token_of(np.array(options))
        prefix = np.append(prefix, np.argmax(by_token[:, t]))
    for draw in (model.sample, model.mean):  # what a run shows is the model's mean
        np.testing.assert_array_equal(jax.jit(draw)(params, jax.random.key(0), None), prefix)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: temperature(0.0), "temperature wants a positive number, got 0.0; for the likeliest values use greedy"),
        (lambda: temperature(-1.0), "got -1.0"),
        (lambda: temperature(float("nan")), "got nan"),
        (lambda: temperature(float("inf")), r"got inf; .* none beyond 1e\+30"),
        (lambda: top_k(0), "top_k keeps at least 1 value, got 0"),
        (lambda: top_k(2.5), "got 2.5: want a whole number"),
        (lambda: top_p(0.0), r"top_p wants a probability in \(0, 1\], got 0.0"),
        (lambda: top_p(1.5), "got 1.5"),
    ],
)
def test_adjustments_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- training


def test_without_noise_training_is_the_model_itself():
    conditional = autoregressive(LSTM(4, 3, 5), 5, 4, end=0)
    params, y = some_params(conditional), np.array([2, 3, 1, 0, 0])
    model = in_training(conditional)
    want = lift(conditional).terms(params, None, y).nats
    np.testing.assert_allclose(model.terms(params, jax.random.key(0), y).nats, want, rtol=1e-6)
    np.testing.assert_array_equal(model.importance(params, jax.random.key(0), y).nats, want)
    np.testing.assert_array_equal(model.support(params)(np.array([0, 1, 0, 0, 0])), False)


def test_dropped_words_are_read_as_unknown_and_still_predicted():
    """At rate 1: the probability of the words from a network that reads nothing but unknown ones (value 3)."""
    conditional = autoregressive(Counting(4), 4, 4, end=0)
    params, y = some_params(conditional), np.array([2, 1, 2, 0])
    model = in_training(conditional, word_dropout=1.0, unknown=3)
    got = jax.jit(lambda params: model.terms(params, jax.random.key(0), y).nats)(params)
    logits = np.asarray(jax.jit(Counting(4).apply)(params, np.full((1, 4), 3)), np.float64)[0]
    np.testing.assert_allclose(got, -log_softmax(logits, axis=-1)[np.arange(4), y].sum(), rtol=1e-5)


def test_word_dropout_replaces_the_given_part(one_use_keys):
    """Of 4,000 words, within 4 standard errors; another key, other words."""
    seen = []
    net = (lambda key, y: {}, lambda params, y, key: seen.append(np.asarray(y)) or jnp.zeros((4_000, 3)))
    model = in_training(autoregressive(net, 4_000, 3), word_dropout=0.3, unknown=1)
    for seed in range(2):
        model.terms({}, jax.random.key(seed), np.full(4_000, 2))
    assert all(abs(np.mean(y == 1) - 0.3) < 4 * np.sqrt(0.21 / 4_000) for y in seen)
    assert np.all(np.isin(seen, [1, 2])) and np.any(seen[0] != seen[1])


def test_the_network_is_given_a_dropout_key():
    conditional = autoregressive(LSTM(4, 3, 5, dropout=0.5), 5, 4)
    params, y = some_params(conditional), np.array([2, 3, 1, 0, 0])
    terms = jax.jit(in_training(conditional).terms)
    a, b, again = (terms(params, jax.random.key(seed), y).nats for seed in (0, 1, 0))
    assert a == again and a != b


def test_it_trains_inside_a_vae():
    encoder, prior = gaussian(MLP((4,), 4)), standard_normal(2)
    generator = autoregressive(LSTM(4, 3, 5, dropout=0.2), 5, 4, end=0)
    model = vae(encoder, prior, in_training(generator, word_dropout=0.5))
    y = np.array([2, 3, 1, 0, 0], np.int32)
    params = jax.jit(model.init)(jax.random.key(0), y)
    gradient = jax.jit(jax.grad(lambda p: model.terms(p, jax.random.key(1), y).nats))(params)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient["enc"]))


# --- what it is given


def test_the_support_says_what_a_sentence_is():
    support = Sentences(4, 0)
    ys = np.array([[1, 2, 0, 0], [1, 2, 3, 1], [0, 0, 0, 0], [1, 0, 2, 0], [0, 1, 0, 0], [4, 0, 0, 0], [-1, 0, 0, 0]])
    want = [True, True, True, False, False, False, False]
    np.testing.assert_array_equal(support(ys), want)
    np.testing.assert_array_equal(jax.jit(lambda ys: support(ys))(ys), want)
    assert not support(np.array([0.5, 0, 0, 0])) and support(np.array([1.0, 0, 0, 0]))
    grids = ys.reshape(-1, 2, 2)
    np.testing.assert_array_equal(Sentences(4, 0, 2)(grids), want)
    assert np.all(support(support.feasible_like(ys)))
    assert support == Sentences(4, 0) and support != Sentences(4, 1) and support != Sentences(5, 0)
    assert jax.tree.unflatten(*reversed(jax.tree.flatten(support))) == support


def test_data_are_held_against_it():
    model = lift(autoregressive(LSTM(4, 3, 5), 4, 4, end=0))
    good = np.array([[1, 2, 0, 0], [1, 2, 3, 1]], np.int32)
    check_data(model, good, None, identity())
    wanted = r"integers in \[0, 3\], with nothing but 0 after the first 0"
    with pytest.raises(ValueError, match=wanted):
        check_data(model, np.array([[1, 0, 2, 0]]), None, identity())
    with pytest.raises(ValueError, match=r"values in \[0, 9\].*" + wanted):
        check_data(model, np.array([[9, 0, 0, 0]]), None, identity())
    with pytest.raises(ValueError, match=r"integers in \[0, 1\]"):
        check_data(lift(autoregressive(PixelCNN(2, 3, 1), (2, 2), 2)), np.full((3, 2, 2), 2), None, identity())
    with pytest.raises(ValueError, match=r"arrays of shape \(4,\), and was given one of shape \(5,\)"):
        check_data(model, np.zeros((2, 5), np.int32), None, identity())


def test_it_is_a_pytree():
    conditional = autoregressive(LSTM(4, 3, 5), 4, 4, end=0)
    params, y = some_params(conditional, Z), np.array([1, 2, 0, 0])
    p = jax.jit(conditional.dist)(params, Z)
    assert isinstance(p, Autoregressive) and isinstance(p, dist.Distribution)
    whole = jax.jit(lambda params: conditional.dist(params, Z).log_prob(y))(params)
    np.testing.assert_allclose(jax.jit(lambda p: p.log_prob(y))(p), whole, rtol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: autoregressive(LSTM(3, 2, 3), 0, 3), r"positive sizes in shape and levels >= 2; got \(0,\) and 3"),
        (lambda: autoregressive(LSTM(3, 2, 3), (), 3), r"got \(\) and 3"),
        (lambda: autoregressive(LSTM(3, 2, 3), 4.0, 3), r"positive sizes .*got \(4.0,\) and 3: whole numbers"),
        (lambda: autoregressive(LSTM(3, 2, 3), 4, 2.5), "levels >= 2; got .* and 2.5"),
        (lambda: autoregressive(LSTM(3, 2, 3), 4, 3, end=0.5), "or None; got 0.5"),
        (lambda: autoregressive(LSTM(1, 2, 3), 4, 1), "levels >= 2; got"),
        (lambda: autoregressive(LSTM(3, 2, 3), 4, 3, end=3), r"end is one of the values 0 .. 2, or None; got 3"),
        (lambda: in_training(autoregressive(LSTM(3, 2, 3), 4, 3), word_dropout=1.5), "does not see; got 1.5"),
    ],
)
def test_arguments_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_networks_and_arrays_that_cannot_be():
    y, key = np.zeros(4, np.int32), jax.random.key(0)
    wrong = autoregressive(LSTM(3, 2, 3), 4, 5)
    params = jax.jit(wrong.init)(key)
    with pytest.raises(ValueError, match=r"logits of shape \(4, 5\).*got \(4, 3\)"):
        jax.eval_shape(lambda params: wrong.dist(params).log_prob(y), params)
    right = autoregressive(LSTM(3, 2, 3), 4, 3)
    with pytest.raises(ValueError, match=r"arrays of shape \(4,\); got one of \(2, 5\)"):
        right.dist(params).log_prob(np.zeros((2, 5)))
    with pytest.raises(ValueError, match=r"unknown is one of the values 0 .. 2; got 7"):
        in_training(right, unknown=7).terms(params, key, y)
    with pytest.raises(TypeError, match=r"made by autoregressive\(...\); got one of Independent"):
        adjusted(bernoulli(MLP((), 4))).sample(jax.jit(bernoulli(MLP((), 4)).init)(key, Z), key, Z)
    with pytest.raises(TypeError, match="flax linen module or a pair"):
        autoregressive(lambda y: y, 4, 3)
