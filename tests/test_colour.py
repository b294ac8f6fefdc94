"""The coupled discretised logistics of a pixel: probabilities by hand, sums over all levels, samples."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from vae_jax import discretised_logistic
from vae_jax.core.distributions import DiscretisedLogistic
from vae_jax.parts.colour import CoupledLogistics

LEVELS, K = 4, 2
ALL = np.array(list(itertools.product(range(LEVELS), repeat=3)))


def pixel(coupling: float = 0.8, seed: int = 0) -> CoupledLogistics:
    k_logits, k_means, k_scales, k_couplings = jax.random.split(jax.random.key(seed), 4)
    return CoupledLogistics(
        jax.random.normal(k_logits, (K,)),
        0.5 * jax.random.normal(k_means, (3, K)),
        jax.random.normal(k_scales, (3, K)) - 1.0,
        coupling * jax.random.uniform(k_couplings, (3, K), minval=-1.0),
        LEVELS,
    )


@pytest.mark.parametrize("seed", range(3))
def test_all_levels_sum_to_one(x64, seed):
    assert float(jnp.exp(pixel(seed=seed).log_prob(ALL)).sum()) == pytest.approx(1, abs=1e-12)


def test_without_coupling_channels_are_independent_given_the_component(x64):
    free = pixel(coupling=0)
    parts = DiscretisedLogistic(free.means.T, free.log_scales.T, LEVELS).to_event(1)
    wanted = dist.MixtureSameFamily(dist.CategoricalLogits(free.logits), parts)
    np.testing.assert_allclose(free.log_prob(ALL), jax.vmap(wanted.log_prob)(ALL), rtol=1e-12)


def test_against_sums_by_hand(x64):
    """Each factor from the logistic distribution function itself."""
    one = pixel()
    w = np.exp(np.asarray(one.logits)) / np.exp(np.asarray(one.logits)).sum()

    def cell(y, mean, log_scale):
        edges = np.array([-np.inf, *(np.arange(1, LEVELS) * 2 / LEVELS - 1), np.inf])
        f = lambda e: 1 / (1 + np.exp(-(e - mean) / np.exp(log_scale)))  # noqa: E731
        return f(edges[y + 1]) - f(edges[y])

    m, s, c = (np.asarray(x) for x in (one.means, one.log_scales, one.couplings))
    for y in ALL[::7]:
        x = (y + 0.5) * 2 / LEVELS - 1
        wanted = sum(
            w[k]
            * cell(y[0], m[0, k], s[0, k])
            * cell(y[1], m[1, k] + c[0, k] * x[0], s[1, k])
            * cell(y[2], m[2, k] + c[1, k] * x[0] + c[2, k] * x[1], s[2, k])
            for k in range(K)
        )
        assert float(one.log_prob(y)) == pytest.approx(np.log(wanted), rel=1e-10)


def test_samples_follow_the_probabilities():
    """20,000 draws, chi-squared over 64 values below its 99.99 % quantile, key 1."""
    one, n = pixel(), 20_000
    drawn = np.asarray(jax.jit(lambda key: one.sample(key, (n,)))(jax.random.key(1)))
    counts = np.bincount(drawn @ np.array([16, 4, 1]), minlength=64)
    expected = n * np.exp(np.asarray(one.log_prob(ALL), np.float64))
    assert np.sum((counts - expected) ** 2 / expected) < 119.9


def test_as_a_generator():
    def net(outputs):
        return lambda key, z: (), lambda params, z: jnp.ones((2, 2, outputs)) * z[0]

    gen = discretised_logistic(net(20), components=2, coupled=True)
    made = gen.dist((), jnp.ones(1))
    assert made.event_shape == (2, 2, 3) and made.mean.shape == (2, 2, 3)
    with pytest.raises(ValueError, match="last axis of 30"):
        discretised_logistic(net(20), components=3, coupled=True).dist((), jnp.ones(1))
