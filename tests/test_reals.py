"""Likelihoods of real numbers and of counts, as parts of a model: densities against scipy, shapes, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, softmax

from vae_jax import gaussian, standard_normal, vae
from vae_jax.core.counts import NegativeBinomial, Poisson, ZeroInflated
from vae_jax.core.model import log_prob
from vae_jax.parts import beta, laplace, log_normal, negative_binomial, poisson, student_t
from vae_jax.parts.reals import ContinuousBernoulli

IDENTITY = (lambda key, z, *c: {}, lambda params, z, *c: z)  # a network whose output is its input


def of(output, make, *arguments, c=None, **options):
    """The distribution that `make` makes of this network output."""
    part, condition = (
        make(IDENTITY, *arguments, **options),
        jnp.asarray(output) if c is None else (jnp.asarray(output), c),
    )
    return part.dist(part.init(jax.random.key(0), condition), condition)


LOC, RAW = np.array([0.3, -2.0], np.float32), np.array([-0.5, 1.0], np.float32)
SCALE = np.exp(7 * np.tanh(RAW / 7))
PAIR = np.concatenate([LOC, RAW])
LAWS = {
    "laplace": (laplace, stats.laplace(LOC, SCALE), [-5.0, 3.0]),
    "student_t": (student_t, stats.t(4.0, LOC, SCALE), [-50.0, 3.0]),
    "log_normal": (log_normal, stats.lognorm(SCALE, scale=np.exp(LOC)), [0.01, 30.0]),
    "beta": (beta, stats.beta(expit(LOC) * SCALE, expit(-LOC) * SCALE), [0.01, 0.999]),
}


@pytest.mark.parametrize(("make", "law", "y"), LAWS.values(), ids=LAWS)
def test_against_scipy(make, law, y):
    got = log_prob(of(PAIR, make), jnp.array(y))
    np.testing.assert_allclose(got, law.logpdf(y).sum(), rtol=1e-5)


@pytest.mark.parametrize("logits", [-300.0, -20.0, -0.6, -0.1, -1e-4, 0.0, 1e-3, 0.5, 5.0, 90.0])
def test_continuous_bernoulli(logits):
    """Its density integrates to 1, with the mean and variance that it says; draws are as the distribution function."""
    distribution = ContinuousBernoulli(jnp.float32(logits))
    width = 1.0 if abs(logits) < 20 else 40 / abs(logits)
    ends = (1 - width, 1.0) if logits > 0 else (0.0, width)

    places, weights = np.polynomial.legendre.leggauss(300)
    ys, weights = ends[0] + width * (places + 1) / 2, weights * width / 2
    density = np.exp(np.asarray(distribution.log_prob(ys.astype(np.float32)), np.float64))

    def expected(f):
        return float(np.sum(weights * density * f(ys)))

    assert expected(np.ones_like) == pytest.approx(1, abs=2e-5)
    mean = expected(lambda y: y)
    assert float(distribution.mean) == pytest.approx(mean, abs=2e-5)
    assert float(distribution.variance) == pytest.approx(expected(lambda y: (y - mean) ** 2), rel=2e-3)
    draws = np.asarray(distribution.sample(jax.random.key(0), (10_000,)))
    assert draws.min() >= 0 and draws.max() <= 1
    assert abs(draws.mean() - mean) < 5 * np.sqrt(float(distribution.variance) / len(draws))
    assert np.isfinite(jax.grad(lambda logits: ContinuousBernoulli(logits).log_prob(0.3))(jnp.float32(logits)))


def test_counts_are_what_the_network_says():
    y, log_mean = jnp.array([0, 3]), np.array([0.1, 1.5], np.float32)
    assert log_prob(of(log_mean, poisson), y) == pytest.approx(float(Poisson(log_mean).log_prob(y).sum()))
    for dispersion in ("shared", "per_column"):
        got = log_prob(of(log_mean, negative_binomial, dispersion), y)
        assert got == pytest.approx(float(NegativeBinomial(log_mean, jnp.zeros(2)).log_prob(y).sum()))
    three = np.stack([log_mean, RAW, LOC], axis=-1)
    got = log_prob(of(three, negative_binomial, "predicted", zero_inflated=True), y)
    wanted = ZeroInflated(NegativeBinomial(log_mean, np.log(SCALE)), LOC).log_prob(y).sum()
    assert got == pytest.approx(float(wanted), rel=1e-5)


def test_a_total_is_shared_out():
    output, y = np.array([0.1, 1.5, -1.0], np.float32), jnp.array([2, 7, 0])
    got = log_prob(of(output, poisson, c=10.0, of_total=True), y)
    assert got == pytest.approx(stats.poisson(10 * softmax(output)).logpmf(y).sum(), rel=1e-5)


NEARLY = 20 + 10 * np.tanh(0.5)


@pytest.mark.parametrize(
    ("raw", "log_mean"), [(-1e4, -30), (-25, -NEARLY), (-20, -20), (0, 0), (20, 20), (25, NEARLY), (1e4, 30)]
)
def test_counts_whose_logarithms_are_beyond_all_counts_are_finite(raw, log_mean):
    """Value and gradient, of no count and of many; a log mean is what the network says up to 20, and at most 30."""
    for part in (poisson, negative_binomial):
        for y in (np.zeros(2), np.array([0.0, 1e7])):
            nats = lambda x, part=part, y=y: -log_prob(of(x, part), y)  # noqa: E731
            value, gradient = jax.value_and_grad(nats)(jnp.full(2, float(raw)))
            assert np.isfinite(value) and np.isfinite(gradient).all()
    assert float(of(np.full(2, float(raw)), poisson).mean[0]) == pytest.approx(np.exp(log_mean), rel=1e-5)


def test_in_a_vae():
    """The total reaches the encoder as a condition, and the generator's mean as a factor."""
    net = (lambda key, *x: {}, lambda params, *x: jnp.zeros(3))
    encoder = (lambda key, *x: {}, lambda params, *x: jnp.zeros(4))
    model = vae(gaussian(encoder), standard_normal(2), negative_binomial(net, "shared", of_total=True))
    y, c = jnp.array([1.0, 0.0, 5.0]), jnp.float32(6.0)
    params = model.init(jax.random.key(0), y, c)
    terms = model.terms(params, jax.random.key(1), y, c)
    wanted = -NegativeBinomial(jnp.full(3, jnp.log(2.0)), jnp.zeros(3)).log_prob(y).sum()
    assert float(terms.distortion) == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: negative_binomial(IDENTITY, "per column"), "want 'shared', 'per_column' or 'predicted'"),
        (lambda: student_t(IDENTITY, 0), "freedom is a positive number"),
        (lambda: of(np.zeros(3), poisson, zero_inflated=True), "poisson wants 2 numbers a count on the last axis"),
        (lambda: of(np.zeros(3), poisson, of_total=True), "wants the total of an example as its last condition"),
        (lambda: of(np.zeros(3), laplace), "splits its network's output in two"),
    ],
)
def test_what_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
