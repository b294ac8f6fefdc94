"""Cures of collapse that are parts of a model: a rate that is committed, a penalty that stays out of the bound."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import compiled
from numpyro.distributions import kl_divergence
from scipy.special import lambertw

from vae_jax import Conditional, analytic, gaussian, standard_normal, vae
from vae_jax.core import doubly_reparameterised
from vae_jax.parts import autoregressive, bag_of_words, committed_gaussian

LEVELS = 4
NOTHING = (lambda key, y: {}, lambda params, y: y)  # the network's output is what it is given


def units_kl(q):
    """KL to N(0, 1) of each unit, from mean and variance in float64."""
    mean, log_variance = np.float64(q.mean), np.log(np.float64(q.variance))
    return (mean**2 + np.expm1(log_variance) - log_variance) / 2


# A rate that cannot fall


ANY = st.floats(-1e4, 1e4, width=32)


@given(st.lists(st.tuples(ANY, ANY), min_size=1, max_size=4), st.floats(0.01, 40))
def test_the_rate_is_at_least_what_was_committed(outputs, rate):
    """Whatever the network gives, in every unit; to the rounding of float32."""
    q = committed_gaussian(NOTHING, rate).dist({}, np.array(outputs, np.float32).T.ravel())
    least, rates = rate / len(outputs), units_kl(q)
    assert np.all(np.isfinite(q.mean)) and np.all(rates >= least * (1 - 1e-5) - 1e-6)
    assert np.sum(rates) >= rate * (1 - 1e-5) - 1e-6


def at(mean, raw, rate):
    """The distribution of one unit."""
    return committed_gaussian(NOTHING, rate).dist({}, jnp.stack([mean, raw]))


@pytest.mark.parametrize("rate", [0.001, 0.3, 2.0, 10.0])
@pytest.mark.parametrize("raw", [-1e3, -2.0, -0.1, 0.0, 0.1, 0.5, 1e3])
def test_the_bound_is_met_where_the_mean_is_zero(x64, rate, raw):
    np.testing.assert_allclose(units_kl(at(0.0, raw, rate)), rate, rtol=1e-9)


@pytest.mark.parametrize("rate", [0.001, 0.3, 2.0, 10.0])
def test_the_interval_of_the_deviation_is_that_of_lambert(x64, rate):
    """std^2 - ln std^2 = 1 + 2 rate at both ends: -W(-exp(-1 - 2 rate)) on the two branches."""
    for raw, branch in ((-1e6, 0), (1e6, -1)):
        q = at(0.0, raw, rate)
        np.testing.assert_allclose(q.variance[0], -lambertw(-np.exp(-1 - 2 * rate), branch).real, rtol=1e-9)
        np.testing.assert_allclose(q.mean[0], 0, atol=1e-6)


def test_near_zero_it_is_the_gaussian_moved_away_from_zero(x64):
    """std 1 is in the middle, and there |mean| is sqrt(2 rate) more; the sign is the network's."""
    for mean, moved in ((0.4, 0.4 + 2), (-0.4, -0.4 - 2), (0.0, 2.0)):
        q = at(mean, 0.0, 2.0)
        np.testing.assert_allclose([q.mean[0], q.variance[0]], [moved, 1], rtol=1e-12)
    slope = jax.grad(lambda raw: jnp.log(at(0.0, raw, 2.0).variance[0]) / 2)(0.0)
    np.testing.assert_allclose(slope, 1, rtol=1e-12)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e2, 1e6])
def test_gradients_are_finite_for_any_output(scale):
    outputs = scale * jnp.array([-1.0, 1.0, 1.0, -1.0, 0.0, -1.0, -1.0, 1.0, 1.0, 0.0])

    def rate(outputs):
        q = committed_gaussian(NOTHING, 1.5).dist({}, outputs)
        return kl_divergence(q, dist.Normal(jnp.zeros(5), 1).to_event(1))

    value, gradient = jax.jit(jax.value_and_grad(rate))(outputs)
    assert value >= 1.5 * (1 - 1e-5) and np.all(np.isfinite(gradient))


def test_a_vae_reports_the_committed_rate_in_every_unit():
    """Three units share 0.9 nats; the rate of the analytic bound is theirs together."""

    def init(key, y):
        return jax.random.normal(key, (4, 6))

    model = vae(
        committed_gaussian((init, lambda w, y: y @ w), 0.9),
        standard_normal(3),
        gaussian((lambda key, z: {}, lambda params, z: (jnp.zeros(4), jnp.zeros(4)))),
        estimator=analytic,
    )
    ys = jax.random.normal(jax.random.key(0), (50, 4))
    params = model.init(jax.random.key(1), ys[0])
    terms = compiled(jax.vmap(lambda y: model.terms(params, jax.random.key(2), y)))(ys)
    assert np.all(terms.units.rate >= 0.3 * (1 - 1e-5)) and np.all(terms.rate >= 0.9 * (1 - 1e-5))
    assert np.min(terms.units.rate) < 0.5


@pytest.mark.parametrize("rate", [0.0, -1.0, math.inf, math.nan])
def test_rates_that_commit_nothing_are_refused(rate):
    with pytest.raises(ValueError, match="the committed rate is in nats and positive"):
        committed_gaussian(NOTHING, rate)


def test_outputs_that_do_not_split_are_refused():
    with pytest.raises(ValueError, match=r"committed_gaussian splits its network's output.*\(3,\)"):
        committed_gaussian(NOTHING, 1.0).dist({}, jnp.zeros(3))


# Words without their order


def words_init(key, z, *labels):
    return jax.random.normal(key, (z.size, LEVELS))


def words(w, z, *labels):
    return z @ w + sum(labels)


def language_model(width):
    """A generator of sentences that ignores z."""

    def init(key, y, *c):
        return jax.random.normal(key, (LEVELS + 1, LEVELS))

    def apply(params, y, *c):
        return params[jnp.concatenate([jnp.full(1, LEVELS), y[:-1]])]

    return autoregressive((init, apply), (width,), LEVELS, end=0)


ENCODER = (lambda key, y: jax.random.normal(key, (LEVELS, 4)), lambda w, y: jnp.sum(w[y], axis=0))
Y = jnp.array([2, 3, 2, 0, 0, 0])
Z = jnp.array([0.5, -1.0])


def by_hand(w, y, z, *, end=0):
    logits = np.float64(z) @ np.float64(w)
    log_p = logits - np.log(np.sum(np.exp(logits)))
    return -sum(log_p[word] for word in y if word != end)


@pytest.mark.parametrize(("end", "weight"), [(0, 1.0), (0, 0.25), (None, 1.0), (2, 2.0)])
def test_the_penalty_is_the_cross_entropy_of_the_words(end, weight):
    model = bag_of_words(language_model(6), (words_init, words), LEVELS, weight=weight, end=end)
    params = model.init(jax.random.key(0), Y, Z)
    assert set(params) == {"gen", "words"}
    penalty = compiled(model.terms)(params, jax.random.key(1), Y, Z).penalty
    np.testing.assert_allclose(penalty, weight * by_hand(params["words"], Y.tolist(), Z, end=end), rtol=1e-5)


def test_padding_is_no_word():
    penalties = []
    for width in (4, 6):
        model = bag_of_words(language_model(width), (words_init, words), LEVELS)
        params = compiled(model.init)(jax.random.key(0), Y[:width], Z)
        penalties.append(compiled(model.terms)(params, jax.random.key(1), Y[:width], Z).penalty)
    np.testing.assert_allclose(*penalties, rtol=1e-6)


def test_the_network_sees_what_the_generator_is_conditioned_on():
    model = bag_of_words(language_model(6), (words_init, words), LEVELS)
    label = jnp.array([3.0, 0.0, 0.0, 0.0])
    params = compiled(model.init)(jax.random.key(0), Y, (Z, label))
    penalty = compiled(lambda c: model.terms(params, jax.random.key(1), Y, c).penalty)
    plain, labelled = (penalty(c) for c in ((Z, 0 * label), (Z, label)))
    assert labelled > plain + 3  # the label speaks for a word that is not there


def text_vae(generator):
    return vae(gaussian(ENCODER), standard_normal(2), generator)


def test_the_bound_is_that_of_the_generator_alone():
    """Terms, importance samples, draws and support, with the same key; only the penalty is new."""
    generator = language_model(6)
    plain, wrapped = text_vae(generator), text_vae(bag_of_words(generator, (words_init, words), LEVELS))
    params, key = compiled(wrapped.init)(jax.random.key(0), Y), jax.random.key(1)
    alone = {**params, "gen": params["gen"]["gen"]}

    @compiled
    def everything(params, alone):
        return [
            ([getattr(m, name)(p, key, Y) for name in ("terms", "importance", "pathwise")], m.sample(p, key))
            for m, p in ((wrapped, params), (plain, alone))
        ]

    (ours, sample), (theirs, same) = everything(params, alone)
    for with_penalty, without in zip(ours, theirs, strict=True):
        assert with_penalty.nats == without.nats and with_penalty.rate == without.rate
        assert with_penalty.penalty > 0 and without.penalty == 0
    assert np.array_equal(sample, same)
    assert bool(wrapped.support(params)(Y)) and not bool(wrapped.support(params)(Y[::-1]))


def test_a_generator_that_ignores_z_has_an_encoder_that_learns():
    """The bound's gradient is that of the rate alone; the penalty's reaches encoder and words."""
    model = text_vae(bag_of_words(language_model(6), (words_init, words), LEVELS))
    params = compiled(model.init)(jax.random.key(0), Y)

    def parts(params):
        terms = model.terms(params, jax.random.key(1), Y)
        return jnp.stack([terms.distortion, terms.penalty])

    gradient = compiled(jax.jacrev(parts))(params)
    distortion, penalty = (jax.tree.map(lambda g, i=i: g[i], gradient) for i in (0, 1))
    assert not np.any(distortion["enc"]) and not np.any(distortion["gen"]["words"])
    assert np.any(penalty["enc"]) and np.any(penalty["gen"]["words"]) and not np.any(penalty["gen"]["gen"])
    weights = params["gen"]["words"]
    step = 1e-3
    other = {**params, "gen": {**params["gen"], "words": weights.at[0, 2].add(step)}}
    np.testing.assert_allclose((parts(other) - parts(params))[1] / step, penalty["gen"]["words"][0, 2], rtol=0.02)


def test_objectives_of_several_samples_take_it():
    """DReG asks for `pathwise`: its loss is the bound of the generator alone and the mean penalty."""
    generator = language_model(6)
    plain, wrapped = text_vae(generator), text_vae(bag_of_words(generator, (words_init, words), LEVELS))
    params, keys = wrapped.init(jax.random.key(0), Y), jax.random.split(jax.random.key(1), 2)
    alone = {**params, "gen": params["gen"]["gen"]}
    run = doubly_reparameterised(3)
    ys = jnp.stack([Y, Y])
    loss, terms = compiled(lambda params: run(wrapped, params, keys, ys, None, 0))(params)
    bound, _ = compiled(lambda params: run(plain, params, keys, ys, None, 0))(alone)
    np.testing.assert_allclose(loss, bound + np.mean(terms.penalty), rtol=1e-5)


def test_a_generator_that_is_itself_a_vae_keeps_its_gradient_paths():
    inner = vae(
        gaussian((lambda key, y, z: jax.random.normal(key, (LEVELS, 4)), lambda w, y, z: jnp.sum(w[y], axis=0))),
        standard_normal(2),
        language_model(6),
    )
    wrapped = bag_of_words(inner, (words_init, words), LEVELS)
    params, key = compiled(wrapped.init)(jax.random.key(0), Y, Z), jax.random.key(1)
    with_penalty, without = compiled(
        lambda params: (wrapped.pathwise(params, key, Y, Z, 0.5), inner.pathwise(params["gen"], key, Y, Z, 0.5))
    )(params)
    assert with_penalty.nats == without.nats
    np.testing.assert_allclose(with_penalty.penalty, by_hand(params["words"], Y.tolist(), Z), rtol=1e-5)
    assert bag_of_words(inner._replace(pathwise=None), (words_init, words), LEVELS).pathwise is None


def test_closed_forms_of_the_generator_go_on():
    """The maximum-likelihood word frequencies, from the statistics of the wrapped generator."""
    generator = Conditional(
        init=lambda key, c: jnp.full(LEVELS, 1 / LEVELS),
        dist=lambda p, c: dist.Categorical(p).expand([6]).to_event(1),
        stats=lambda p, y, c: jnp.mean(y[:, None] == jnp.arange(LEVELS)[None], axis=0),
        maximise=lambda p, stats: stats,
    )
    model = bag_of_words(generator, (words_init, words), LEVELS)
    params = model.init(jax.random.key(0), Y, Z)
    fitted = model.maximise(params, model.terms(params, jax.random.key(1), Y, Z).stats)
    np.testing.assert_allclose(fitted["gen"], [3 / 6, 0, 2 / 6, 1 / 6])
    assert fitted["words"] is params["words"]


def test_networks_and_weights_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"weigh.* negative; got -1"):
        bag_of_words(language_model(6), (words_init, words), LEVELS, weight=-1.0)
    model = bag_of_words(language_model(6), (words_init, words), LEVELS + 1)
    with pytest.raises(ValueError, match=r"logits of shape \(5,\); got \(4,\)"):
        model.terms(model.init(jax.random.key(0), Y, Z), jax.random.key(0), Y, Z)
