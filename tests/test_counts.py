"""Counts against scipy, in float32: at small and large means and dispersions, as far as 10^7."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import expit, gammaln

from vae_jax.core.counts import NegativeBinomial, Poisson, ZeroInflated

COUNTS = np.array([0, 1, 2, 3, 15, 16, 17, 100, 1000, 65_535, 10**6, 10**7])
MEANS = np.array([1e-6, 0.01, 0.5, 1, 3, 16, 99, 1e3, 65_500, 1.001e6, 1e7])
DISPERSIONS = np.array([1e-8, 1e-4, 0.01, 0.3, 1, 5, 100])

log_prob = jax.jit(lambda distribution, y: distribution.log_prob(y))


def close(got, wanted, log_mean, slope):
    """To 1e-6 relative, and what half a unit in the last place of a parameter's logarithm changes: its slope."""
    allowed = 2e-6 * np.abs(wanted) + 2e-6 + 1.2e-7 * np.maximum(np.abs(log_mean), 1) * np.abs(slope)
    worst = np.max(np.abs(got - wanted) / allowed)
    at = np.argmax(np.abs(got - wanted) / allowed)
    assert np.isfinite(got).all() and worst < 1, (worst, at, got[at], wanted[at])


def test_poisson():
    y, mean = (x.ravel() for x in np.meshgrid(COUNTS, MEANS))
    log_mean = np.log(mean).astype(np.float32)
    exact = np.exp(log_mean.astype(np.float64))
    got = log_prob(Poisson(log_mean), y.astype(np.float32))
    close(got, stats.poisson(exact).logpmf(y), log_mean, y - exact)


def test_negative_binomial():
    y, mean, dispersion = map(np.ravel, np.meshgrid(COUNTS, MEANS, DISPERSIONS))
    log_mean, log_dispersion = np.log(mean).astype(np.float32), np.log(dispersion).astype(np.float32)
    m, n = np.exp(log_mean.astype(np.float64)), np.exp(-log_dispersion.astype(np.float64))
    got = log_prob(NegativeBinomial(log_mean, log_dispersion), y.astype(np.float32))
    slope = n * np.abs(y - m) / (n + m)
    exact = gammaln(y + n) - gammaln(n) - gammaln(y + 1) - n * np.log1p(m / n) + y * np.log(m / (n + m))
    close(got, exact, log_mean, slope)
    told = m / (n + m) > 1e-6  # scipy is told n / (n + m) alone, which is 1 but for rounding elsewhere
    scipys = stats.nbinom(n[told], (n / (n + m))[told]).logpmf(y[told])
    assert told.sum() > 500
    close(np.asarray(got)[told], scipys, log_mean[told], slope[told])


@pytest.mark.parametrize("gate", [-20.0, -1.0, 0.0, 3.0])
def test_zero_inflated(gate):
    zero = expit(gate)
    for base, law in (
        (Poisson(jnp.log(3.0)), stats.poisson(3.0)),
        (NegativeBinomial(jnp.log(3.0), jnp.log(0.5)), stats.nbinom(2.0, 2 / 5)),
    ):
        inflated = ZeroInflated(base, jnp.array(gate))
        y = np.arange(40)
        wanted = np.log((1 - zero) * law.pmf(y) + zero * (y == 0))
        np.testing.assert_allclose(log_prob(inflated, y.astype(np.float32)), wanted, rtol=2e-5, atol=2e-6)
        mean = (1 - zero) * law.mean()
        np.testing.assert_allclose(inflated.mean, mean, rtol=1e-5)
        second = (1 - zero) * (law.var() + law.mean() ** 2)
        np.testing.assert_allclose(inflated.variance, second - mean**2, rtol=1e-5)


def test_gradients_are_finite_and_right():
    """d/d log m: y - m of a Poisson; of the negative binomial, n (y - m) / (n + m). At extremes too."""
    y, log_mean = map(np.ravel, np.meshgrid(COUNTS.astype(np.float32), np.log(MEANS).astype(np.float32)))
    mean = np.exp(log_mean.astype(np.float64))

    @jax.jit
    def slopes(log_mean, log_dispersion):
        poisson = jax.grad(lambda m: Poisson(m).log_prob(y).sum())(log_mean)
        binomial = jax.grad(lambda m, a: NegativeBinomial(m, a).log_prob(y).sum(), (0, 1))(log_mean, log_dispersion)
        return poisson, *binomial

    for log_dispersion in np.log(DISPERSIONS).astype(np.float32):
        n = np.exp(-np.float64(log_dispersion))
        of_poisson, of_mean, of_dispersion = slopes(log_mean, jnp.full_like(log_mean, log_dispersion))
        scale = np.maximum(np.maximum(y, mean), 1)
        np.testing.assert_allclose(of_poisson / scale, (y - mean) / scale, atol=1e-5)
        scale = np.maximum(n * np.maximum(y, mean) / (n + mean), 1e-3)
        np.testing.assert_allclose(of_mean / scale, n * (y - mean) / (n + mean) / scale, atol=3e-5)
        assert np.isfinite(of_dispersion).all()


def test_extremes_are_finite():
    """Means of 0 and beyond float32's whole numbers, dispersions of nearly 0 (a Poisson) and of nearly all in 0."""
    for log_mean, log_dispersion, y in itertools.product((-80.0, 0.0, 20.0), (-40.0, 0.0, 20.0), (0.0, 1.0, 1e7)):
        distribution = NegativeBinomial(jnp.float32(log_mean), jnp.float32(log_dispersion))
        assert np.isfinite(log_prob(distribution, np.float32(y))), (log_mean, log_dispersion, y)
    poisson = log_prob(Poisson(jnp.float32(1.0)), np.arange(20.0, dtype=np.float32))
    limit = log_prob(NegativeBinomial(jnp.float32(1.0), jnp.float32(-40.0)), np.arange(20.0, dtype=np.float32))
    np.testing.assert_allclose(limit, poisson, rtol=1e-5)


def test_samples():
    """Mean and variance of 100,000 draws to 5 standard errors; whole numbers, also where the mean is too large."""
    for distribution in (
        Poisson(jnp.log(4.0)),
        NegativeBinomial(jnp.log(4.0), jnp.log(0.5)),
        ZeroInflated(NegativeBinomial(jnp.log(4.0), jnp.log(0.5)), jnp.array(-1.0)),
    ):
        draws = np.asarray(jax.jit(lambda d: d.sample(jax.random.key(0), (100_000,)))(distribution))
        assert draws.dtype == np.int32 and draws.min() >= 0
        mean, variance = float(distribution.mean), float(distribution.variance)
        assert abs(draws.mean() - mean) < 5 * np.sqrt(variance / len(draws))
        error = draws.astype(float) - mean
        assert abs(error.var() - variance) < 5 * np.sqrt((np.mean(error**4) - variance**2) / len(draws))
    large = Poisson(jnp.array(50.0)).sample(jax.random.key(0))
    assert 2.4e7 < large < 2.5e7
