"""Annealed importance sampling against Gaussian models, where the path, its expectations and ln P(y) are known.

With exact transitions the expectations are by quadrature. Where draws are averaged, the key is fixed and the number of
standard errors stated.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.special import expit
from scipy.stats import kstest, multivariate_normal

from vae_jax import conditional, l2, standard_normal
from vae_jax.evaluation.annealed import (
    Path,
    _hmc_move,
    ais,
    check_parts,
    hmc,
    linear_betas,
    lower_bound,
    path_to_joint,
    reverse_ais,
    sigmoid_betas,
    tune,
    upper_bound,
)
from vae_jax.selfcheck.quadrature import hermite
from vae_jax.selfcheck.solvable import LN_P, POSTERIOR, affine, affine_normal, table, toy, two_layers

KEY = jax.random.key(20)
GENERATOR = l2(affine(2), float(np.sqrt(0.5)))
ENCODER = affine_normal(1)
PRIOR = standard_normal(1)
CODES = conditional(
    (lambda key, *z: {}, lambda params, *z: jnp.zeros(2)), lambda mean: dist.Normal(mean, 1).to_event(1)
)


def toy_path(start=None):
    """The toy's path, from the prior or from the encoder N(mean, variance)."""
    system = toy(*(start or (0.0, 1.0)))
    encoder = None if start is None else ENCODER
    return path_to_joint(PRIOR, GENERATOR, system.params, system.ys[0], encoder=encoder)


def gaussian_path(betas, start=(0.0, 1.0)):
    """numpy: (mean, standard deviation) of f_b on the toy, which is Gaussian: ln f_b is a mixture of two parabolas."""
    (m0, v0), (m1, v1) = start, POSTERIOR
    precision = (1 - betas) / v0 + betas / v1
    return ((1 - betas) * m0 / v0 + betas * m1 / v1) / precision, precision**-0.5


def expected_slope(betas, start=(0.0, 1.0)):
    """numpy: E_{f_b} ln f_1 - ln f_0 = ln P + E [ln N(z; posterior) - ln N(z; start)]."""
    mean, std = gaussian_path(betas, start)

    def expected_log_normal(m, v):
        return -0.5 * np.log(2 * np.pi * v) - ((mean - m) ** 2 + std**2) / (2 * v)

    return LN_P + expected_log_normal(*POSTERIOR) - expected_log_normal(*start)


@functools.partial(jax.jit, static_argnums=(0, 1))
def at_noise(schedule, start, eps):
    """(ln w, -ln w backwards) of the chains on the toy whose draws are all mean + std * eps: exact transitions."""
    betas = np.asarray(schedule)
    mean, std = map(jnp.asarray, gaussian_path(betas, start or (0.0, 1.0)))
    path = toy_path(start)._replace(sample=lambda key: mean[:1] + std[:1] * eps)

    def exact(key, z, t, log_density):
        del key, z, log_density
        return mean[t][None] + std[t][None] * eps

    forwards = ais(path, KEY, betas, chains=1, transition=exact)
    return forwards[0], reverse_ais(path, KEY, mean[-1:] + std[-1:] * eps, betas, chains=1, transition=exact)[0]


def sandwich(betas, start=None):
    """(E ln w, -E ln w backwards): every term depends on one draw, so one noise for all draws gives the expectation."""
    nodes, weights = hermite(20)
    forwards, backwards = jax.vmap(lambda eps: at_noise(tuple(betas), start, eps[0]))(jnp.asarray(nodes))
    return weights @ np.asarray(forwards), -weights @ np.asarray(backwards)


# 20. The sandwich with exact transitions


@pytest.mark.parametrize(("temperatures", "lower", "upper"), [(16, -4.326916, -4.030428), (256, -4.171193, -4.152662)])
def test_sandwich_of_the_toy(x64, temperatures, lower, upper):
    betas = linear_betas(temperatures)
    np.testing.assert_allclose(sandwich(betas), (lower, upper), atol=6e-7)
    slopes = expected_slope(betas)
    exact = (np.diff(betas) @ slopes[:-1], np.diff(betas) @ slopes[1:])
    np.testing.assert_allclose(sandwich(betas), exact, rtol=1e-10)


@pytest.mark.parametrize("start", [(0.3, 0.2), (-0.5, 1.5)])
def test_sandwich_from_an_encoder_and_other_schedules(x64, start):
    """The sums of Riemann for the integral of the slope, which is ln P."""
    for betas in (sigmoid_betas(7), np.array([0, 0.5, 0.6, 1.0])):
        slopes = expected_slope(betas, start)
        exact = (np.diff(betas) @ slopes[:-1], np.diff(betas) @ slopes[1:])
        assert exact[0] < LN_P < exact[1]
        np.testing.assert_allclose(sandwich(betas, start), exact, rtol=1e-10)


def test_from_the_exact_posterior_every_chain_is_ln_p(x64):
    path, betas, step = toy_path(POSTERIOR), linear_betas(3), hmc(np.full(4, 0.2))

    @jax.jit
    def both(key):
        up = ais(path, key, betas, chains=5, transition=step)
        return up, reverse_ais(path, key, jnp.ones(1), betas, transition=step)

    up, down = both(KEY)
    np.testing.assert_allclose(up, LN_P, rtol=1e-12)
    np.testing.assert_allclose(down, -LN_P, rtol=1e-12)


def test_schedules():
    np.testing.assert_allclose(linear_betas(4), [0, 0.25, 0.5, 0.75, 1])
    s = expit([-4, -2, 0, 2, 4])
    np.testing.assert_allclose(sigmoid_betas(4), (s - s[0]) / (s[-1] - s[0]))
    for betas in (linear_betas(1), sigmoid_betas(1)):
        assert betas.tolist() == [0, 1]


# HMC


@jax.jit
def moved(step_size, keys):
    """Draws of N(0, I) of shape (2, 3), where 3 moves bring them, and which moves were accepted."""

    def one(key):
        k_z, *keys = jax.random.split(key, 4)
        z = first = jax.random.normal(k_z, (2, 3))
        accepted = []
        for k in keys:
            z, yes = _hmc_move(k, z, lambda z: -0.5 * jnp.sum(z**2), step_size, 3)
            accepted.append(yes)
        return first, z, jnp.stack(accepted)

    return jax.vmap(one)(keys)


@pytest.mark.parametrize("step_size", [0.4, 1.4])
def test_hmc_leaves_the_standard_normal_as_it_is(step_size):
    """20,000 exact draws of shape (2, 3), moved 3 times: still independent N(0, 1), by Kolmogorov-Smirnov.

    Without the correction by acceptance the variance would be 1 / (1 - step^2 / 4): 1.04 and 1.96.
    """
    first, z, accepted = map(np.asarray, moved(step_size, jax.random.split(KEY, 20_000)))
    assert kstest(z.ravel(), "norm").pvalue > 1e-3
    assert kstest((z**2).sum(axis=(1, 2)), "chi2", args=(6,)).pvalue > 1e-3
    assert np.abs(z - first).mean() > 0.5
    assert 0.4 < accepted.mean() < 0.999
    covariance = np.cov(z.reshape(-1, 6).T)
    assert np.abs(covariance - np.eye(6)).max() < 5 * np.sqrt(2 / 20_000)  # 5 standard errors


@jax.jit
def weights_of_hmc(step_size, key):
    """(ln w, -ln w backwards): 20,000 chains each on the toy; backwards, each from a posterior sample of its own.

    The start N(0, 0.12) is so near that both w and 1 / w have a variance even where nothing moves.
    """
    path, betas = toy_path((0.0, 0.12)), linear_betas(8)
    k_up, k_z, k_down = jax.random.split(key, 3)
    transition = hmc(jnp.full(9, step_size), leapfrog_steps=3)
    zs = POSTERIOR[0] + POSTERIOR[1] ** 0.5 * jax.random.normal(k_z, (20_000, 1))
    one = lambda key, z: reverse_ais(path, key, z, betas, chains=1, transition=transition)[0]  # noqa: E731
    up = ais(path, k_up, betas, chains=20_000, transition=transition)
    return up, jax.vmap(one)(jax.random.split(k_down, 20_000), zs)


@pytest.mark.parametrize("step_size", [0.02, 0.5, 0.9])
def test_weights_are_unbiased_however_badly_chains_mix(step_size):
    """E w = P and E 1/w = 1/P, within 4 standard errors, whether nearly nothing moves or many moves are rejected."""
    up, down = weights_of_hmc(step_size, KEY)
    for ratio in (np.exp(np.asarray(up) - LN_P), np.exp(np.asarray(down) + LN_P)):
        assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(len(ratio)) < 0.05
    assert up.mean() < LN_P < -down.mean()
    assert up.mean() < lower_bound(up) < LN_P + 0.05 and LN_P - 0.05 < upper_bound(down) < -down.mean()


def test_bounds_of_weights():
    weights = jnp.log(jnp.array([1.0, 2.0, 6.0]))
    np.testing.assert_allclose(lower_bound(weights), np.log(3), rtol=1e-6)
    np.testing.assert_allclose(upper_bound(weights), -np.log(3), rtol=1e-6)


def test_tuned_step_sizes_follow_the_path():
    """Acceptance is near 0.8 at every temperature, for a posterior 20 times narrower than the prior, after 32 steps."""
    path = Path(
        lambda key: jax.random.normal(key, (4,)),
        lambda z: jnp.sum(dist.Normal(0, 1).log_prob(z)),
        lambda z: jnp.sum(dist.Normal(0, 0.05).log_prob(z)),
    )
    betas = sigmoid_betas(32)

    @jax.jit
    def acceptance(key):
        k_tune, k_z, k_move = jax.random.split(key, 3)
        steps = tune(path, k_tune, betas)
        std = (1 + betas * 399) ** -0.5
        zs = std[:, None, None] * jax.random.normal(k_z, (33, 200, 4))

        def at(key, beta, step, zs):
            move = jax.vmap(lambda key, z: _hmc_move(key, z, path.at(beta), step, 10)[1])
            return move(jax.random.split(key, 200), zs).mean()

        return jax.vmap(at)(jax.random.split(k_move, 33), jnp.asarray(betas), steps, zs), steps

    accepted, steps = acceptance(KEY)
    assert np.all(accepted > 0.3) and 0.7 < accepted.mean() < 0.9
    assert steps[-1] < 0.1 < 0.5 < steps[0]


# The interval


def test_default_interval_contains_ln_p():
    """Tuned HMC, from the prior and from the encoder, z of shape (2, 3): y = z[:, :2] + noise, so y ~ N(0, 1.25 I)."""
    prior = standard_normal((2, 3))
    generator = l2((lambda key, z: {}, lambda params, z: z[:, :2]), 0.5)
    encoder = conditional(
        (lambda key, y: {}, lambda params, y: y), lambda y: dist.Normal(jnp.pad(y, ((0, 0), (0, 1))), 0.8).to_event(2)
    )
    params, betas = {"enc": {}, "pri": {}, "gen": {}}, sigmoid_betas(100)

    @functools.partial(jax.jit, static_argnums=0)
    def bounds(with_encoder, key):
        def one(key):
            k_z, k_y, k_up, k_down = jax.random.split(key, 4)
            z = jax.random.normal(k_z, (2, 3))
            y = z[:, :2] + 0.5 * jax.random.normal(k_y, (2, 2))
            path = path_to_joint(prior, generator, params, y, encoder=encoder if with_encoder else None)
            return (
                y,
                lower_bound(ais(path, k_up, betas, chains=4)),
                upper_bound(reverse_ais(path, k_down, z, betas, chains=4)),
            )

        return jax.vmap(one)(jax.random.split(key, 50))

    for with_encoder in (True, False):
        ys, low, high = map(np.asarray, bounds(with_encoder, KEY))
        exact = multivariate_normal(np.zeros(4), 1.25 * np.eye(4)).logpdf(ys.reshape(-1, 4))
        for below in (exact - low, high - exact):
            assert -4 * below.std() / np.sqrt(50) < below.mean() < 0.15
        assert (high - low).mean() < 0.25


def test_an_impossible_y_has_weight_zero():
    """P_gen(y|z) = 0 for every z: ln w is -inf, not NaN."""
    path = Path(
        lambda key: jax.random.normal(key, (1,)),
        lambda z: jnp.sum(-0.5 * z**2),
        lambda z: jnp.sum(-0.5 * z**2) - jnp.where(z[0] < 100, jnp.inf, 0),
    )
    step = hmc(np.full(4, 0.5))
    run = jax.jit(lambda key: ais(path, key, linear_betas(3), chains=3, transition=step))
    assert np.asarray(run(KEY)).tolist() == [-np.inf] * 3


def test_many_temperatures_lose_nothing_in_float32():
    """A slope of -1000 / 3 everywhere, summed in 30,000 parts: a plain sum in float32 is off by more."""
    slope = np.float32(-1000 / 3)
    path = Path(lambda key: jnp.zeros(1), lambda z: jnp.zeros(()), lambda z: jnp.full((), slope))
    stay = lambda key, z, t, log_density: z  # noqa: E731
    run = jax.jit(lambda key: ais(path, key, sigmoid_betas(30_000), chains=1, transition=stay))
    np.testing.assert_allclose(run(KEY), slope, rtol=2e-7)


def test_keys_are_used_once(one_use_keys):
    path, betas = toy_path(), linear_betas(2)
    up = jax.jit(lambda key: ais(path, key, betas, chains=6))
    down = jax.jit(lambda key: reverse_ais(path, key, jnp.zeros(1), betas, chains=6))
    assert len(np.unique(up(KEY))) == 6
    assert len(np.unique(down(jax.random.key(1)))) > 2  # few are rejected


# Errors


@pytest.mark.parametrize("name", ["prior", "generator", "encoder"])
def test_what_has_no_density_is_refused(name):
    parts = {"prior": PRIOR, "generator": GENERATOR, "encoder": ENCODER}
    check_parts(**parts)
    check_parts(**{**parts, "encoder": None})
    with pytest.raises(TypeError, match=f"the {name} has to be a Conditional.*got Model"):
        check_parts(**{**parts, name: two_layers().model})


def test_latents_that_are_not_real_are_refused():
    params = {"enc": {}, "pri": jnp.zeros(3), "gen": {}}
    with pytest.raises(TypeError, match=r"z of the prior .CategoricalLogits.*enumerated"):
        path_to_joint(table(3), CODES, params, jnp.zeros(2))
    positive = conditional(
        (lambda key, y: {}, lambda params, y: jnp.ones(1)), lambda x: dist.Exponential(x).to_event(1)
    )
    with pytest.raises(TypeError, match=r"z of the encoder .Independent.*Positive"):
        path_to_joint(PRIOR, CODES, {**params, "pri": {}}, jnp.zeros(2), encoder=positive)


@pytest.mark.parametrize(
    "betas", [[0.0], [0.0, 0.5], [0.1, 1.0], [0.0, 0.6, 0.6, 1.0], [[0.0, 1.0]], [0.0, np.nan, 1.0], [1.0, 0.0]]
)
def test_betas_that_do_not_rise_from_0_to_1(betas):
    with pytest.raises(ValueError, match="rise from 0 to 1"):
        ais(toy_path(), KEY, np.array(betas))
    with pytest.raises(ValueError, match="rise from 0 to 1"):
        reverse_ais(toy_path(), KEY, jnp.zeros(1), np.array(betas))


def test_no_temperatures_and_no_chains():
    for schedule in (linear_betas, sigmoid_betas):
        with pytest.raises(ValueError, match=r"temperatures >= 1.*got 0"):
            schedule(0)
    with pytest.raises(ValueError, match="chains >= 1; got 0"):
        ais(toy_path(), KEY, linear_betas(2), chains=0)
