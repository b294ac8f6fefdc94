"""Posterior collapse and the rate-distortion curve of linear models, against exact optima and optimisation."""

import numpy as np
import pytest
from scipy.optimize import minimize, minimize_scalar

from vae_jax.evaluation import collapse, rate_distortion
from vae_jax.selfcheck.quadrature import expected_terms, sigma_points
from vae_jax.selfcheck.solvable import EIGENVALUES, linear_gaussian_model, linear_vae_optimum


def best_loss(eigenvalues, beta, variance, units):
    """numpy: min of distortion + beta rate over the noise share s_i of each of the `units` largest directions.

    A direction with encoder gain such that a share s of its variance is left over costs rate -1/2 ln s.
    """
    values = np.asarray(eigenvalues, float)
    d = len(values)

    def loss(log_share):
        left = np.concatenate([values[:units] * np.exp(log_share), values[units:]])
        return 0.5 * d * np.log(2 * np.pi * variance) + left.sum() / (2 * variance) - 0.5 * beta * log_share.sum()

    return minimize(loss, -np.ones(units), bounds=[(-20, 0)] * units).fun


# 11. Fixed sigma


@pytest.mark.parametrize(("beta", "active", "rate"), [(1.0, 3, 1.57473319), (2.0, 2, 0.70324853)])
def test_what_collapses_at_a_fixed_sigma(beta, active, rate):
    found = collapse(EIGENVALUES, beta=beta, variance=0.7)
    assert found.active == active and found.threshold == pytest.approx(0.7 * beta)
    assert found.rate == pytest.approx(rate, abs=5e-9)
    assert found.squared_error == pytest.approx(np.minimum(EIGENVALUES, 0.7 * beta).sum())


@pytest.mark.parametrize(("units", "variance", "beta"), [(5, 0.7, 1.0), (2, 0.3, 1.0), (3, 0.3, 4.0), (4, 2.0, 3.0)])
def test_prediction_is_the_optimal_linear_vae(x64, units, variance, beta):
    """Rate and distortion of the optimum as the library itself measures them, and no linear VAE does better."""
    ys, params = linear_vae_optimum(units, variance, beta)
    model = linear_gaussian_model(5, units, float(np.sqrt(variance)))
    terms = expected_terms(model, params, ys, sigma_points(units))
    found = collapse(EIGENVALUES, beta=beta, variance=variance, units=units)
    assert found.rate == pytest.approx(float(terms.rate.mean()), rel=1e-10, abs=1e-12)
    assert found.distortion == pytest.approx(float(terms.distortion.mean()), rel=1e-10)
    loss = found.distortion + beta * found.rate
    assert loss == pytest.approx(best_loss(EIGENVALUES, beta, variance, units), rel=1e-7)


# 12. Learned sigma


@pytest.mark.parametrize(
    ("beta", "units", "variance", "active"),
    [(1.0, 3, 0.5, 3), (1.5, 5, 1.0, 2), (2.0, 5, 4 / 3, 1), (2.5, 5, 1.6, 0), (7.0, 2, 1.6, 0), (1.0, 0, 1.6, 0)],
)
def test_what_collapses_at_the_optimal_sigma(beta, units, variance, active):
    found = collapse(EIGENVALUES, beta=beta, units=units)
    assert found.variance == pytest.approx(variance) and found.active == active
    fixed = collapse(EIGENVALUES, beta=beta, units=units, variance=found.variance)
    assert found[:-1] == fixed[:-1]


@pytest.mark.parametrize("seed", range(5))
def test_the_optimal_sigma_minimises_the_loss(seed):
    """Against a search over sigma^2, for random covariances, beta and numbers of units."""
    rng = np.random.default_rng(seed)
    values, units = np.sort(rng.exponential(size=8))[::-1], int(rng.integers(1, 7))
    beta = float(rng.uniform(0.5, 3))

    def loss(log_variance):
        at = collapse(values, beta=beta, units=units, variance=float(np.exp(log_variance)))
        return at.distortion + beta * at.rate

    found = collapse(values, beta=beta, units=units)
    grid = np.linspace(-6, 3, 400)
    start = grid[np.argmin([loss(x) for x in grid])]
    search = minimize_scalar(loss, bounds=(start - 0.1, start + 0.1), method="bounded", options={"xatol": 1e-9})
    assert np.log(found.variance) == pytest.approx(search.x, abs=1e-4)


def test_a_learned_sigma_without_an_optimum():
    """The smaller sigma, the better, without end: where units can do all and the rate is cheap, or data are flat."""
    with pytest.raises(ValueError, match="no optimum: 5 units describe these data without noise"):
        collapse(EIGENVALUES, beta=0.9)
    with pytest.raises(ValueError, match="no optimum: 2 units"):
        collapse(np.array([3.0, 1.0, 0.0]), units=2)
    assert collapse(EIGENVALUES).variance == pytest.approx(0.5)  # the data's own Gaussian, whose likelihood is bounded


def test_the_sentence():
    assert collapse(EIGENVALUES, variance=0.7, measured=3).sentence == (
        "3 of 5 units are active; theory for a linear model predicts 3: directions of the data with variance <= "
        "beta sigma^2 = 0.7 carry nothing"
    )
    assert collapse(EIGENVALUES, beta=1.5).sentence == (
        "theory for a linear model predicts 2: directions of the data with variance <= beta sigma^2 = 1.5 "
        "(sigma^2 = 1 at its optimum) carry nothing"
    )


# The curve


def test_rate_distortion_of_one_gaussian():
    """R(D) = 1/2 ln(variance / D)."""
    rate, distortion = rate_distortion(np.array([3.0]), np.array([0.1, 1.0, 3.0, 50.0]))
    np.testing.assert_allclose(distortion, [0.1, 1, 3, 3])
    np.testing.assert_allclose(rate, 0.5 * np.log(3 / distortion), atol=1e-15)


def test_the_curve_is_convex_with_the_level_as_its_slope():
    """dR/dD = -1 / (2 level) (Cover & Thomas 2006, section 10.3.3): by differences, to second order."""
    levels = np.geomspace(0.05, 5, 2001)
    rate, distortion = rate_distortion(EIGENVALUES, levels)
    assert (np.diff(rate) <= 0).all() and (np.diff(distortion) >= 0).all()
    inside = levels[1:] < EIGENVALUES.max()
    slope = (np.diff(rate) / np.maximum(np.diff(distortion), 1e-12))[inside]
    np.testing.assert_allclose(slope, (-0.5 / np.sqrt(levels[1:] * levels[:-1]))[inside], rtol=1e-3)


def test_optimal_linear_vaes_are_on_the_curve():
    for beta in (0.3, 1.0, 4.0):
        found = collapse(EIGENVALUES, beta=beta, variance=0.7)
        rate, distortion = rate_distortion(EIGENVALUES, np.array([found.threshold]))
        assert (rate.item(), distortion.item()) == pytest.approx((found.rate, found.squared_error))


# Errors


@pytest.mark.parametrize(
    ("eigenvalues", "message"),
    [([[1.0, 2.0]], r"got shape \(1, 2\)"), ([], r"got shape \(0,\)"), ([np.nan], "variances"), ([0.0], "not all 0")],
)
def test_eigenvalues_that_are_none(eigenvalues, message):
    for function in (lambda values: collapse(values, variance=1.0), lambda values: rate_distortion(values, np.ones(1))):
        with pytest.raises(ValueError, match=message):
            function(np.array(eigenvalues))


def test_negative_eigenvalues():
    with pytest.raises(ValueError, match=r"no negative eigenvalues; got -0\.1"):
        collapse(np.array([1.0, -0.1]), variance=1.0)
    assert collapse(np.array([1.0, -1e-9]), variance=0.5).squared_error == 0.5  # rounding


@pytest.mark.parametrize("options", [{"beta": 0.0}, {"variance": -1.0}, {"units": -1, "variance": 1.0}])
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match="want beta > 0, variance > 0 and units >= 0; got"):
        collapse(EIGENVALUES, **options)


def test_levels_are_positive():
    with pytest.raises(ValueError, match="levels wants"):
        rate_distortion(EIGENVALUES, np.array([1.0, 0.0]))
