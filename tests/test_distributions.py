"""Densities against scipy, sums over all values, extreme inputs, samples against probabilities, and what is refused."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit, log_expit, log_softmax, softmax

from vae_jax import bernoulli, categorical, conditional, discretised_logistic, gaussian, l2
from vae_jax.core.distributions import (
    MAX_LOG_STD,
    Bernoulli,
    DiscretisedLogistic,
    GumbelSoftmax,
    bounded_log_std,
    enumerate_support,
    raw_log_std,
    unit_kl,
    unit_log_prob,
)
from vae_jax.core.model import log_prob
from vae_jax.parts import gumbel_softmax, one_hot

IDENTITY = (lambda key, z: {}, lambda params, z: z)  # a network whose output is its input


def of(output, make, **options):
    """The distribution that `make` (gaussian, bernoulli, ...) makes of this network output."""
    return make(IDENTITY, **options).dist({}, jnp.asarray(output))


score = jax.jit(log_prob)
"""ln P of one example, compiled: distributions are pytrees."""

score_each = jax.jit(jax.vmap(log_prob, in_axes=(None, 0)))
moments = jax.jit(lambda distribution: (distribution.mean, distribution.variance))
elementwise = jax.jit(lambda distribution, y: distribution.log_prob(y))


def discretised_probabilities(loc, log_scale, levels):
    """numpy: (levels, *loc.shape), differences of the logistic distribution function, by the tail that is smaller."""
    edges = (np.arange(1, levels) * 2 / levels - 1).reshape((-1,) + (1,) * np.ndim(loc))
    logistic = stats.logistic(loc, np.exp(log_scale))
    ones, zeros = np.ones((1, *np.shape(loc))), np.zeros((1, *np.shape(loc)))
    below = np.concatenate([zeros, logistic.cdf(edges), ones])
    above = np.concatenate([ones, logistic.sf(edges), zeros])
    return np.where(below[1:] < 0.5, np.diff(below, axis=0), -np.diff(above, axis=0))


# Against scipy


def test_bernoulli_against_scipy(x64):
    logits = np.array([-30.0, -2.0, -1e-3, 0.0, 0.5, 4.0, 30.0])
    for y in (0, 1):
        ours = elementwise(Bernoulli(jnp.asarray(logits)), np.full(7, y))
        np.testing.assert_allclose(ours, log_expit(logits if y else -logits), rtol=1e-12)
    ys = np.array([0, 1, 1, 0, 1, 0, 1], float)
    exact = stats.bernoulli(expit(logits)).logpmf(ys).sum()
    assert score(of(logits, bernoulli), ys) == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize(("levels", "log_scale"), [(2, -1.0), (7, 0.0), (256, -3.0), (256, -6.0), (256, 2.0)])
def test_discretised_logistic_against_scipy(x64, levels, log_scale):
    loc = np.array([-3.0, -1.0, -0.3, 0.0, 1 / 256, 0.9, 5.0])
    with np.errstate(divide="ignore"):
        exact = np.log(discretised_probabilities(loc, log_scale, levels))
    ours = elementwise(DiscretisedLogistic(loc[None], np.full((1, 7), log_scale), levels), np.arange(levels)[:, None])
    usable = exact > -200  # beyond, the reference loses its digits
    assert usable.any(axis=0).all()
    np.testing.assert_allclose(np.asarray(ours)[usable], exact[usable], rtol=1e-8, atol=1e-10)


def test_mixture_of_discretised_logistics_against_scipy(x64):
    rng, levels = np.random.default_rng(0), 16
    output = rng.normal(size=(4, 9))  # 4 values, 3 components: logits, means, raw log scales
    logits, means, raw = np.split(output, 3, axis=-1)
    parts = discretised_probabilities(means, 7 * np.tanh(raw / 7), levels)  # (levels, 4, 3)
    exact = np.log(np.sum(softmax(logits, axis=-1) * parts, axis=-1))
    distribution = of(output, discretised_logistic, levels=levels, components=3)
    for y in itertools.product((0, 7, 15), repeat=4):
        assert score(distribution, np.array(y)) == pytest.approx(exact[y, range(4)].sum(), rel=1e-10)


def test_gaussian_against_scipy(x64):
    rng = np.random.default_rng(1)
    mean, raw, y = rng.normal(size=(3, 5))
    exact = stats.norm(mean, np.exp(7 * np.tanh(raw / 7))).logpdf(y).sum()
    assert score(of(np.concatenate([mean, raw]), gaussian), y) == pytest.approx(exact, rel=1e-12)
    pair = gaussian((lambda key, z: {}, lambda params, z: (jnp.asarray(mean), jnp.asarray(raw)))).dist({}, 0.0)
    assert score(pair, y) == pytest.approx(exact, rel=1e-12)


def test_gaussian_splits_the_last_axis_of_an_image(x64):
    output, y = np.random.default_rng(2).normal(size=(2, 3, 6)), np.zeros((2, 3, 3))
    exact = stats.norm(output[..., :3], np.exp(7 * np.tanh(output[..., 3:] / 7))).logpdf(y).sum()
    assert score(of(output, gaussian), y) == pytest.approx(exact, rel=1e-12)


def test_categorical_against_scipy(x64):
    logits, y = np.random.default_rng(3).normal(size=(5, 4)), np.array([0, 3, 2, 2, 1])
    exact = log_softmax(logits, axis=1)[range(5), y].sum()
    assert score(of(logits, categorical), y) == pytest.approx(exact, rel=1e-12)
    assert score(of(logits[0], categorical), np.array(2)) == pytest.approx(log_softmax(logits[0])[2], rel=1e-12)


@pytest.mark.parametrize("sigma", [0.3, 2, "learned", "learned_per_dimension", "predicted", "optimal"])
def test_l2_against_scipy(x64, sigma):
    rng = np.random.default_rng(4)
    yhat, y, raw = rng.normal(size=(3, 2, 5))
    std = sigma
    params, output = {}, yhat
    if sigma == "predicted":
        output, std = np.concatenate([yhat, raw], axis=-1), np.exp(7 * np.tanh(raw / 7))
    elif isinstance(sigma, str):
        log_sigma = raw if sigma == "learned_per_dimension" else raw[0, 0]
        params, std = {"net": {}, "log_sigma": jnp.asarray(log_sigma)}, np.exp(7 * np.tanh(log_sigma / 7))
    ours = score(l2(IDENTITY, sigma).dist(params, jnp.asarray(output)), y)
    assert ours == pytest.approx(stats.norm(yhat, std).logpdf(y).sum(), rel=1e-12)


def test_l2_parameters_at_the_start():
    """sigma = 1: one number, or one for each number of an example; none where it is fixed or predicted."""
    z = jnp.zeros((2, 4))
    for sigma, shape in (("learned", ()), ("optimal", ()), ("learned_per_dimension", (2, 4))):
        params = l2(IDENTITY, sigma).init(jax.random.key(0), z)
        assert params["log_sigma"].shape == shape and not params["log_sigma"].any()
        variance = jax.jit(lambda p, of=sigma: l2(IDENTITY, of).dist(p, z).variance)(params)
        np.testing.assert_array_equal(variance, np.ones((2, 4)))
    assert l2(IDENTITY, 0.5).init(jax.random.key(0), z) == l2(IDENTITY, "predicted").init(jax.random.key(0), z) == {}


# Sums over all values


@given(
    loc=st.floats(-100, 100),
    log_scale=st.floats(-30, 10),
    levels=st.sampled_from([1, 2, 17, 256]),
)
def test_discretised_logistic_sums_to_one(loc, log_scale, levels):
    """In float32, means outside the range and scales far below a level included."""
    log_probs = elementwise(DiscretisedLogistic(np.float32(loc), np.float32(log_scale), levels), np.arange(levels))
    assert np.isfinite(log_probs).all()
    assert np.exp(np.asarray(log_probs, np.float64)).sum() == pytest.approx(1, abs=2e-4)


def test_every_discrete_likelihood_sums_to_one(x64):
    rng = np.random.default_rng(5)
    distributions = [
        (of(rng.normal(size=3), bernoulli), 2, 3),
        (of(5 * rng.normal(size=(2, 4)), categorical), 4, 2),
        (of(5 * rng.normal(size=(2, 2)), discretised_logistic, levels=6), 6, 2),
        (of(5 * rng.normal(size=(2, 9)), discretised_logistic, levels=6, components=3), 6, 2),
        (of([[40.0, -60.0], [-40.0, 60.0]], discretised_logistic, levels=6), 6, 2),
    ]
    for distribution, values, size in distributions:
        every = np.array(list(itertools.product(range(values), repeat=size)))
        log_probs = score_each(distribution, every)
        assert np.exp(log_probs).sum() == pytest.approx(1, abs=1e-12)


# Extreme inputs, in float32


@pytest.mark.parametrize(
    ("make", "options", "shape", "ys"),
    [
        (bernoulli, {}, (2,), (0, 1)),
        (categorical, {}, (2, 4), (0, 3)),
        (discretised_logistic, {}, (2, 2), (0, 100, 255)),
        (discretised_logistic, {"components": 3}, (2, 9), (0, 100, 255)),
        (gaussian, {}, (4,), (-1e3, 0.0, 1e3)),
        (l2, {"sigma": "predicted"}, (4,), (-1e3, 0.0, 1e3)),
    ],
)
def test_extreme_outputs_are_finite_in_value_and_gradient(make, options, shape, ys):
    """Network outputs from -1e4 to 1e4, alone and mixed within an example."""
    outputs = jnp.array([-1e4, -100.0, -1.0, 0.0, 1e-30, 1.0, 100.0, 1e4], jnp.float32)
    size = int(np.prod(shape))
    every = [jnp.full(shape, output) for output in outputs]
    every += [jnp.resize(jnp.roll(outputs, i), size).reshape(shape) for i in range(len(outputs))]

    @jax.jit
    @jax.vmap
    def value_and_gradient(output):
        def total(output):
            distribution = make(IDENTITY, **options).dist({}, output)
            return sum(log_prob(distribution, jnp.full(distribution.event_shape, y)) for y in ys)

        return jax.value_and_grad(total)(output)

    value, gradient = value_and_gradient(jnp.stack(every))
    assert np.isfinite(value).all() and np.isfinite(gradient).all()


@pytest.mark.parametrize("y", [0.0, 1.0])
def test_bernoulli_gradient_is_the_residual_everywhere(y):
    """d ln P / d logit = y - sigmoid(logit), at 0 too, where numpyro's own density has gradient 0."""
    logits = jnp.array([-1e4, -50.0, -1.0, 0.0, 1.0, 50.0, 1e4])
    gradient = jax.jit(jax.vmap(jax.grad(lambda logit: Bernoulli(logit).log_prob(y))))(logits)
    np.testing.assert_allclose(gradient, y - expit(np.asarray(logits, np.float64)), atol=1e-7)


def test_discretised_logistic_has_a_gradient_far_from_the_data():
    """A mean that is far off still learns: ln P falls by about 1 / scale for each unit of distance."""
    gradient = jax.jit(jax.grad(lambda loc: DiscretisedLogistic(loc, jnp.float32(-7.0), 256).log_prob(3)))(0.9)
    assert gradient == pytest.approx(-np.exp(7), rel=1e-3)


# Samples

sample = jax.jit(lambda distribution, keys: jax.vmap(distribution.sample)(keys))


@pytest.mark.parametrize(
    ("make", "output", "options", "values"),
    [
        (bernoulli, [0.7], {}, 2),
        (categorical, [[0.3, -1.0, 1.0, 0.0]], {}, 4),
        (discretised_logistic, [[0.2, -1.0]], {"levels": 8}, 8),
        (discretised_logistic, [[-1.5, -0.5]], {"levels": 5}, 5),
        (discretised_logistic, [[0.0, 1.0, -0.7, 0.6, -2.0, -1.0]], {"levels": 8, "components": 2}, 8),
    ],
)
def test_samples_follow_the_probabilities(x64, make, output, options, values):
    """40,000 samples, key 0; chi-square over values expected 5 times or more: 4 standard deviations above its mean."""
    n, distribution = 40_000, of(output, make, **options)
    samples = np.asarray(sample(distribution, jax.random.split(jax.random.key(0), n)))
    assert samples.shape == (n, 1)
    counts = np.bincount(samples.astype(int).ravel(), minlength=values)
    expected = n * np.exp(score_each(distribution, np.arange(values)[:, None]))
    expected = np.asarray(expected)
    assert len(counts) == values and counts.sum() == n and expected.sum() == pytest.approx(n)
    usual = expected >= 5
    statistic = np.sum((counts - expected)[usual] ** 2 / expected[usual])
    assert statistic < usual.sum() + 4 * np.sqrt(2 * usual.sum())


def test_continuous_samples_follow_the_density(x64):
    """Kolmogorov-Smirnov on 20,000 samples, key 1: p > 1e-4."""
    keys = jax.random.split(jax.random.key(1), 20_000)
    samples = sample(of([0.3, -0.5], gaussian), keys)
    std = np.exp(7 * np.tanh(-0.5 / 7))
    assert stats.kstest(np.asarray(samples)[:, 0], stats.norm(0.3, std).cdf).pvalue > 1e-4


def test_discretised_logistic_moments(x64):
    """Mean and variance by summing over all levels, in any batch shape."""
    loc, log_scale = np.array([[-2.0, 0.1, 0.5], [0.0, 1.0, 3.0]]), np.full((2, 3), -1.3)
    probabilities = discretised_probabilities(loc, log_scale, 16)
    levels = np.arange(16).reshape(-1, 1, 1)
    mean = np.sum(levels * probabilities, axis=0)
    variance = np.sum((levels - mean) ** 2 * probabilities, axis=0)
    for index in ((), (0,), (1, 2)):
        ours = moments(DiscretisedLogistic(loc[index], log_scale[index], 16))
        np.testing.assert_allclose(ours[0], mean[index], rtol=1e-10)
        np.testing.assert_allclose(ours[1], variance[index], rtol=1e-10)


def test_mean_of_a_mixture_of_discretised_logistics(x64):
    output = np.random.default_rng(6).normal(size=(4, 6))
    logits, means, raw = np.split(output, 3, axis=-1)
    parts = discretised_probabilities(means, 7 * np.tanh(raw / 7), 16)
    exact = np.einsum("v,vnk,nk->n", np.arange(16), parts, softmax(logits, axis=-1))
    mean, _ = moments(of(output, discretised_logistic, levels=16, components=2))
    np.testing.assert_allclose(mean, exact, rtol=1e-10)


def test_discretised_logistic_is_a_pytree():
    """It passes through jit, vmap and stop_gradient with its number of levels."""
    distribution = DiscretisedLogistic(jnp.array([0.1, -0.4]), jnp.array([-1.0, 0.0]), 32)
    through = jax.jit(jax.lax.stop_gradient)(distribution)
    assert through.levels == 32 and through.batch_shape == (2,)
    y = jnp.array([3, 30])
    np.testing.assert_array_equal(elementwise(through, y), elementwise(distribution, y))
    each = jax.jit(jax.vmap(lambda d, y: d.log_prob(y)))(distribution, y)
    np.testing.assert_allclose(each, elementwise(distribution, y), rtol=1e-6)


def test_support_of_every_likelihood():
    """What `check_data` asks: inside and outside."""
    cases = [
        (of(jnp.zeros(2), bernoulli), [0, 1], [0, 2]),
        (of(jnp.zeros(2), bernoulli), [0, 1], [0.5, 1]),
        (of(jnp.zeros((2, 4)), categorical), [0, 3], [0, 4]),
        (of(jnp.zeros((2, 2)), discretised_logistic, levels=8), [0, 7], [-1, 7]),
        (of(jnp.zeros((2, 2)), discretised_logistic, levels=8), [0, 7], [0.5, 7]),
        (of(jnp.zeros((2, 6)), discretised_logistic, levels=8, components=2), [0, 7], [8, 7]),
        (of(jnp.zeros(4), gaussian), [-1e9, 1.0], [np.nan, 0.0]),
    ]
    for distribution, inside, outside in cases:
        assert bool(distribution.support(np.array(inside)))
        assert not bool(distribution.support(np.array(outside)))


# Unit by unit


def test_unit_log_prob_and_unit_kl(x64):
    """Element by element for factorised densities: numpy's closed forms, with sums equal to the whole."""
    rng = np.random.default_rng(7)
    mean, log_std, mean_p, log_std_p, x = rng.normal(size=(5, 2, 3))
    q = dist.Normal(jnp.asarray(mean), jnp.exp(log_std)).to_event(2)
    p = dist.Normal(jnp.asarray(mean_p), jnp.exp(log_std_p)).to_event(2)
    np.testing.assert_allclose(
        unit_log_prob(q, jnp.asarray(x)), stats.norm(mean, np.exp(log_std)).logpdf(x), rtol=1e-10
    )
    ratio = np.exp(2 * (log_std - log_std_p))
    kl = 0.5 * (ratio - 1 - np.log(ratio) + ((mean - mean_p) / np.exp(log_std_p)) ** 2)
    np.testing.assert_allclose(unit_kl(q, p), kl, rtol=1e-10)
    assert dist.kl_divergence(q, p) == pytest.approx(kl.sum(), rel=1e-10)


def test_unit_kl_with_an_expanded_prior(x64):
    """numpyro's own way to a vector prior: Normal(0, 1).expand([3]).to_event(1)."""
    q = dist.Normal(jnp.array([0.0, 1.0, -2.0]), jnp.array([1.0, 0.5, 2.0])).to_event(1)
    exact = [0.0, 0.8181471806, 0.5 * (4 + 4 - 1 - np.log(4))]
    p = dist.Normal(0.0, 1.0).expand([3]).to_event(1)
    np.testing.assert_allclose(unit_kl(q, p), exact, atol=1e-9)
    np.testing.assert_allclose(unit_log_prob(p, jnp.arange(3.0)), stats.norm.logpdf([0, 1, 2]), rtol=1e-10)


def test_densities_that_do_not_factorise_have_no_units():
    def units():
        normal = dist.Normal(jnp.zeros(3), 1.0).to_event(1)
        full = dist.MultivariateNormal(jnp.zeros(3), jnp.eye(3))
        rows = dist.MultivariateNormal(jnp.zeros((2, 3)), jnp.eye(3)).to_event(1)
        batched = dist.Normal(jnp.zeros((4, 3)), 1.0).to_event(1)
        mixture = dist.MixtureSameFamily(
            dist.CategoricalLogits(jnp.zeros(2)), dist.Normal(jnp.zeros((2, 3)), 1.0).to_event(1)
        )
        for other in (full, rows, batched, mixture):
            yield unit_log_prob(other, jnp.zeros(other.event_shape))
            yield unit_kl(normal, other)
            yield unit_kl(other, normal)

    assert jax.eval_shape(lambda: list(units())) == [None] * 12


@pytest.mark.parametrize("limit", [MAX_LOG_STD, 2.0])
def test_bounded_log_std_and_its_inverse(x64, limit):
    raw = jnp.array([-1e6, -3.0, -1e-3, 0.0, 0.5, 4.0, 1e6])
    log_std = bounded_log_std(raw, limit)
    np.testing.assert_allclose(log_std, limit * np.tanh(np.asarray(raw) / limit), rtol=1e-12)
    assert (jnp.abs(log_std) <= limit).all() and (jnp.diff(log_std) > 0).all()
    np.testing.assert_allclose(raw_log_std(log_std, limit)[1:-1], raw[1:-1], rtol=1e-9)
    assert jax.grad(bounded_log_std)(0.0) == 1.0  # the identity near 0


# Enumeration


class OneHot(dist.Distribution):
    """A user's own: the rows of the identity matrix."""

    has_enumerate_support = True

    def enumerate_support(self, expand=True):
        return jnp.eye(self.event_shape[0])


def test_enumerate_support_of_single_variables():
    np.testing.assert_array_equal(enumerate_support(dist.CategoricalLogits(jnp.zeros(4))), [0, 1, 2, 3])
    np.testing.assert_array_equal(enumerate_support(Bernoulli(jnp.zeros(()))), [0, 1])
    np.testing.assert_array_equal(enumerate_support(OneHot(event_shape=(3,))), np.eye(3))


@pytest.mark.parametrize(
    ("distribution", "values", "shape"),
    [
        (dist.CategoricalLogits(jnp.zeros((2, 3))).to_event(1), 3, (2,)),
        (Bernoulli(jnp.zeros(5)).to_event(1), 2, (5,)),
        (Bernoulli(jnp.zeros((2, 2))).to_event(2), 2, (2, 2)),
    ],
)
def test_enumerate_support_of_vectors(distribution, values, shape):
    """Every combination once: as itertools.product has them, and the probabilities sum to 1."""
    every = enumerate_support(distribution)
    wanted = np.array(list(itertools.product(range(values), repeat=int(np.prod(shape))))).reshape(-1, *shape)
    np.testing.assert_array_equal(every, wanted)
    assert np.exp(score_each(distribution, every)).sum() == pytest.approx(1, rel=1e-5)


def test_enumerate_support_refuses():
    with pytest.raises(TypeError, match=r"Normal has no finite list of values.*discrete"):
        enumerate_support(dist.Normal(0.0, 1.0))
    with pytest.raises(TypeError, match=r"Independent has no finite list of values"):
        enumerate_support(dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    with pytest.raises(ValueError, match=r"the latent has 2\^17 values, more than the 65,536"):
        enumerate_support(Bernoulli(jnp.zeros(17)).to_event(1))


# What is refused, and how it is said


def test_conditional_wants_a_numpyro_distribution():
    with pytest.raises(TypeError, match=r"has to become a numpyro Distribution; got ArrayImpl"):
        conditional(IDENTITY, lambda output: output).dist({}, jnp.zeros(3))
    with pytest.raises(TypeError, match=r"a network is a flax linen module or a pair \(init, apply\); got int"):
        conditional(3, dist.Normal)


def test_conditional_wants_its_condition():
    part = bernoulli(IDENTITY)
    for call in (lambda: part.init(jax.random.key(0), None), lambda: part.dist({}, None)):
        with pytest.raises(ValueError, match=r"was given nothing: were the labels \(cs\) left out"):
            call()


def test_joined_conditions_are_two_arguments(x64):
    """(z, c) reaches the network as apply(params, z, c), for the parameters as well."""
    pair = (lambda key, z, c: {"bias": z.sum() + c}, lambda params, z, c: params["bias"] + 10 * z + c)
    part = l2(pair, 1.0)
    c = (jnp.array([1.0, 2.0]), jnp.array(5.0))
    params = part.init(jax.random.key(0), c)
    assert params == {"bias": 8.0}
    np.testing.assert_array_equal(part.dist(params, c).mean, [23.0, 33.0])


@pytest.mark.parametrize("shape", [(), (3,), (4, 5)])
def test_gaussian_wants_an_even_last_axis(shape):
    with pytest.raises(ValueError, match=r"gaussian splits its network's output in two along the last axis; got shape"):
        of(jnp.zeros(shape), gaussian)


@pytest.mark.parametrize(("components", "size", "wanted"), [(1, 3, 2), (3, 6, 9), (2, 2, 6)])
def test_discretised_logistic_wants_its_last_axis(components, size, wanted):
    with pytest.raises(ValueError, match=rf"{components} component\(s\) wants a last axis of {wanted}.*\(4, {size}\)"):
        of(jnp.zeros((4, size)), discretised_logistic, components=components)


def test_forgotten_to_event_is_named():
    forgetful = conditional(IDENTITY, lambda rate: dist.Poisson(jnp.exp(rate)))
    with pytest.raises(ValueError, match=r"Poisson has batch shape \(784,\).*did you forget \.to_event\(1\)\?"):
        log_prob(forgetful.dist({}, jnp.zeros(784)), jnp.zeros(784))
    with pytest.raises(ValueError, match=r"Normal has batch shape \(28, 28\).*\.to_event\(2\)"):
        log_prob(dist.Normal(jnp.zeros((28, 28)), 1.0), jnp.zeros((28, 28)))
    with pytest.raises(ValueError, match=r"Independent\(Normal\) has batch shape \(5,\)"):
        log_prob(dist.Normal(jnp.zeros((5, 2)), 1.0).to_event(1), jnp.zeros((5, 2)))


def test_wrong_event_shape_is_named():
    with pytest.raises(
        ValueError, match=r"Independent\(Bernoulli\).*shape \(784,\), and was given one of shape \(28, 28\)"
    ):
        log_prob(of(jnp.zeros(784), bernoulli), jnp.zeros((28, 28)))


def test_l2_refuses_a_sigma_that_is_none():
    for sigma in (0.0, -1.0, float("nan"), float("inf"), None, [0.1], np.ones(1), True):
        with pytest.raises(ValueError, match="sigma is a standard deviation and must be positive; got"):
            l2(IDENTITY, sigma)
    for sigma in (1e-20, 1e20):  # its square is 0 or infinite in float32
        with pytest.raises(ValueError, match=r"sigma\^2 has to be a number in float32; got sigma="):
            l2(IDENTITY, sigma)


def test_l2_takes_numbers_of_every_kind():
    want = stats.norm.logpdf(0.3, 0, 0.5)
    for sigma in (0.5, np.float32(0.5), np.array(0.5), jnp.float32(0.5)):
        np.testing.assert_allclose(of(jnp.zeros(1), l2, sigma=sigma).log_prob(jnp.full(1, 0.3)), want, rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [bernoulli, categorical, discretised_logistic, one_hot, functools.partial(gumbel_softmax, temperature=1.0), l2]
    + [functools.partial(l2, sigma=sigma) for sigma in (1.0, "learned_per_dimension", "optimal")],
)
@pytest.mark.parametrize("output", [(jnp.zeros((3, 2)), jnp.ones(1)), [], {"mean": jnp.zeros(3)}, None])
def test_a_network_that_gives_no_array_is_named(make, output):
    part = make((lambda key, x: {}, lambda params, x: output))
    with pytest.raises(ValueError, match=rf"wants one array from its network; got a {type(output).__name__} of"):
        part.dist(part.init(jax.random.key(0), 0.0), 0.0)


def test_gaussian_wants_a_pair_of_one_shape():
    for output, message in (
        ((jnp.zeros(3),) * 3, "a tuple of 3 arrays"),
        ((jnp.zeros(3), jnp.zeros(2)), "of one shape"),
    ):
        with pytest.raises(ValueError, match=message):
            gaussian((lambda key, x: {}, lambda params, x, output=output: output)).dist({}, 0.0)


def test_counts_of_a_discretised_logistic():
    for options in ({"levels": 1}, {"levels": 8.0}, {"components": 0}, {"components": 1.5}):
        with pytest.raises(ValueError, match="wants whole levels >= 2 and components >= 1; got"):
            discretised_logistic(IDENTITY, **options)


def test_half_precision_networks_have_full_precision_densities():
    """bfloat16 outputs become float32 before any density sees them; wider ones stay."""
    for make, shape in ((bernoulli, (3,)), (gaussian, (4,)), (categorical, (3, 4)), (discretised_logistic, (3, 2))):
        distribution = of(jnp.ones(shape, jnp.bfloat16), make)
        assert score(distribution, jnp.ones(distribution.event_shape, int)).dtype == jnp.float32
    part = l2(IDENTITY, "learned")
    z = jnp.ones(4, jnp.bfloat16)
    assert part.dist(part.init(jax.random.key(0), z), z).mean.dtype == jnp.float32


# Relaxed classes


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_gumbel_softmax_of_two_classes(x64, temperature):
    """z_1 = sigmoid((l_1 - l_2 + logistic noise) / t): density and distribution function in closed form."""
    logits = jnp.array([0.7, -0.4])
    relaxed = GumbelSoftmax(logits, temperature)
    z = np.array([0.01, 0.3, 0.5, 0.8, 0.999])
    inside = temperature * np.log(z / (1 - z)) - 1.1
    density = temperature / (z * (1 - z)) * expit(inside) * expit(-inside)
    log_p = elementwise(relaxed, np.stack([z, 1 - z], axis=1))
    np.testing.assert_allclose(np.exp(log_p), density, rtol=1e-10)
    points = jax.jit(lambda key: relaxed.sample(key, (20_000,)))(jax.random.key(0))
    draws = np.asarray(points.parts)
    per_log = relaxed.log_prob(draws) + np.log(draws).sum(axis=1)  # relative to dz / prod z
    np.testing.assert_allclose(relaxed.log_prob(points), per_log, rtol=1e-9)
    np.testing.assert_allclose(draws.sum(axis=1), 1.0, rtol=1e-12)
    assert (
        stats.kstest(
            draws[:, 0], lambda t: expit(temperature * (np.log(t) - np.log(np.maximum(1 - t, 1e-300))) - 1.1)
        ).pvalue
        > 1e-4
    )


def test_gumbel_softmax_density_sums_to_one(x64):
    """Three classes, over the simplex by Dirichlet(1, 1, 1) draws: volume 1/2, 200,000 draws, 4 standard errors."""
    relaxed = GumbelSoftmax(jnp.array([0.5, -0.2, 0.1]), 1.5)
    z = np.random.default_rng(0).dirichlet(np.ones(3), size=200_000)
    values = 0.5 * np.exp(np.asarray(jax.jit(relaxed.log_prob)(z)))
    assert abs(values.mean() - 1) < 4 * values.std() / np.sqrt(len(values))


def test_gumbel_softmax_bias_vanishes_with_the_temperature(x64):
    """Gradient of E f(z), f curved, against enumeration: 400,000 draws, key 0, the same noise at each temperature.

    The bias is many standard errors at temperature 1, falls, and is within 4 of them, or 0.002, at 0.02.
    """
    logits, values = jnp.array([0.3, -0.5, 0.4]), jnp.array([1.0, -2.0, 0.5])
    exact = jax.grad(lambda x: jax.nn.softmax(x) @ (values**2))(logits)
    keys = jax.random.split(jax.random.key(0), 400_000)

    def gradients(temperature):
        loss = lambda x, key: (GumbelSoftmax(x, temperature).rsample(key).parts @ values) ** 2  # noqa: E731
        draws = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(logits, keys)
        return np.abs(draws.mean(axis=0) - exact).max(), (draws.std(axis=0) / np.sqrt(len(keys))).max()

    (first, error), (second, _), (last, last_error) = (gradients(t) for t in (1.0, 0.3, 0.02))
    assert first > 50 * error and first > second > last
    assert last < max(4 * last_error, 0.002)


def test_gumbel_softmax_wants_a_temperature():
    for make in (lambda: GumbelSoftmax(jnp.zeros(3), 0.0), lambda: gumbel_softmax(IDENTITY, -1.0)):
        with pytest.raises(ValueError, match="must be positive; got"):
            make()
