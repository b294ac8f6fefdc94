"""Numbers known exactly, and the formulas behind them at other parameters: numpy in float64 against the library.

Expectations over the encoder's noise are by quadrature (`expected_terms`), so that they are exact as well; where draws
are averaged, the key is fixed and the number of standard errors stated.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from jax.flatten_util import ravel_pytree
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.special import expit, rel_entr, softmax
from scipy.stats import multivariate_normal, norm

from vae_jax import (
    analytic,
    bernoulli,
    conditional,
    enumerated,
    fixed_encoder,
    init_state,
    l2,
    make_train_step,
    sampled,
    standard_normal,
    sticking,
    vae,
)
from vae_jax.core import importance_weighted_bound, multi_sample, objectives
from vae_jax.core.distributions import DiscretisedLogistic, bounded_log_std, raw_log_std
from vae_jax.core.model import log_prob
from vae_jax.parts import vampprior
from vae_jax.selfcheck.quadrature import at_nodes, expected_terms, hermite, sigma_points
from vae_jax.selfcheck.solvable import (
    EIGENVALUES,
    LN_P,
    NEAR,
    POSTERIOR,
    affine,
    affine_normal,
    data_with_covariance,
    discrete,
    linear_gaussian,
    linear_gaussian_model,
    linear_vae_optimum,
    normal_kl,
    table,
    table_of,
    toy,
    two_layers,
)

ENCODERS = [NEAR, (0.0, 1.0), POSTERIOR, (-0.5, 0.05), (0.4, 0.3)]
HERMITE = hermite()


def toy_reconstruction(mean, variance):
    """numpy: E_{z ~ N(mean, variance)} ln N((1, -1); (1, 2) z, 0.5 I)."""
    w, y = np.array([1.0, 2.0]), np.array([1.0, -1.0])
    return -np.log(np.pi) - np.sum((y - w * mean) ** 2) - np.sum(w**2) * variance


@functools.partial(jax.jit, static_argnums=0)
def each(terms, params, key, ys):
    """`terms` of every y under one key: (n,) each."""
    return jax.vmap(terms, in_axes=(None, None, 0))(params, key, ys)


@functools.partial(jax.jit, static_argnums=0)
def draws(terms, params, keys, y):
    """`terms` of one y under every key: (n,) each."""
    return jax.vmap(terms, in_axes=(None, 0, None))(params, keys, y)


# 1. ELBO(q) = ln p(y) - KL(q || p(z|y))


@pytest.mark.parametrize("estimator", [sampled, analytic, sticking])
@pytest.mark.parametrize(
    ("encoder", "elbo", "reconstruction", "rate"),
    [
        ((0.0, 1.0), -8.14472989, -8.14472989, 0.0),
        (POSTERIOR, LN_P, -3.40092823, 0.76093111),
        (NEAR, -5.64444884, -5.19472989, 0.44971896),
    ],
)
def test_elbo_of_the_toy(x64, encoder, elbo, reconstruction, rate, estimator):
    system = toy(*encoder, estimator=estimator)
    terms = expected_terms(system.model, system.params, system.ys, HERMITE)
    np.testing.assert_allclose(terms.nats, -elbo, atol=5e-9)
    np.testing.assert_allclose(terms.distortion, -reconstruction, atol=5e-9)
    np.testing.assert_allclose(terms.rate, rate, atol=5e-9)


def test_elbo_formula_at_other_encoders_and_models(x64):
    for encoder in ENCODERS:
        system = toy(*encoder)
        terms = expected_terms(system.model, system.params, system.ys, HERMITE)
        np.testing.assert_allclose(-terms.nats, LN_P - normal_kl(*encoder, *POSTERIOR), rtol=1e-12)
        np.testing.assert_allclose(-terms.distortion, toy_reconstruction(*encoder), rtol=1e-12)
        np.testing.assert_allclose(terms.rate, normal_kl(*encoder), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("estimator", [sampled, sticking])
def test_at_the_posterior_every_draw_is_ln_p(x64, estimator):
    """No noise at all: L(y, z) = -ln P(y) whatever z. The toy, and probabilistic PCA with two latents."""
    orthogonal = np.array([[1.0, 0.5], [-0.5, 1.0], [0.0, 0.0]])
    ys = np.random.default_rng(0).normal(size=(4, 3))
    for system in (toy(estimator=estimator), linear_gaussian(orthogonal, 0.3, ys, estimator=estimator)):
        for key in jax.random.split(jax.random.key(1), 5):
            nats = each(system.model.terms, system.exact, key, system.ys).nats
            np.testing.assert_allclose(-nats, system.log_p, rtol=1e-11)


# 2. The importance-weighted bound


@functools.partial(jax.jit, static_argnums=0)
def log_weights(model, params, y):
    """ln of the importance weights P_pri P_gen / P_enc at the Hermite nodes, by the library."""
    return -at_nodes(model.importance, params, HERMITE[0], y).nats


@functools.partial(jax.jit, static_argnums=(0, 3, 5))
def bounds(model, params, keys, k, y, chunk=None):
    return jax.vmap(lambda key: importance_weighted_bound(model, params, key, y, k=k, chunk=chunk))(keys)


def expected_bound(log_w, k):
    """E ln 1/k sum_i w_i over k independent nodes, by tensor quadrature."""
    total, weight = np.asarray(log_w), HERMITE[1]
    for _ in range(k - 1):
        total = np.logaddexp(total[:, None], np.asarray(log_w)[None]).ravel()
        weight = (weight[:, None] * HERMITE[1][None]).ravel()
    return weight @ total - np.log(k)


def test_importance_weighted_bound_of_the_toy(x64):
    """L1 < L2 < L3 < ln P(y): the weights by the library, the expectation over k of them by quadrature."""
    system = toy()
    log_w = log_weights(system.model, system.params, system.ys[0])
    expected = [expected_bound(log_w, k) for k in (1, 2, 3)]
    np.testing.assert_allclose(expected, [-5.64444884, -4.80093341, -4.54435084], atol=2e-6)
    for encoder in ENCODERS:
        log_w = log_weights(system.model, toy(*encoder).params, system.ys[0])
        rising = np.array([expected_bound(log_w, k) for k in (1, 2, 3)])
        assert (rising < LN_P + 1e-12).all() and (np.diff(rising) > -1e-12).all()


@pytest.mark.parametrize(("k", "expected"), [(2, -4.80093341), (3, -4.54435084)])
def test_importance_weighted_bound_by_draws(x64, k, expected):
    """`importance_weighted_bound` itself: 40,000 draws, key 2, within 4 standard errors."""
    system, n = toy(), 40_000
    values = np.asarray(bounds(system.model, system.params, jax.random.split(jax.random.key(2), n), k, system.ys[0]))
    assert abs(values.mean() - expected) < 4 * values.std() / np.sqrt(n)


@pytest.mark.parametrize("encoder", [NEAR, (0.0, 0.4), (-0.5, 0.2), (-0.2, 0.06)])
def test_chi_squared_of_the_weights(x64, encoder):
    """E (w / P(y))^2 - 1 = chi2(posterior || q), in closed form; 1.52853 at N(.3, .2)."""
    mean, variance = encoder
    wide = 2 * variance - POSTERIOR[1]
    chi2 = variance / np.sqrt(POSTERIOR[1] * wide) * np.exp((POSTERIOR[0] - mean) ** 2 / wide) - 1
    if encoder == NEAR:
        assert chi2 == pytest.approx(1.52853, abs=5e-6)
    log_w = log_weights(toy().model, toy(*encoder).params, toy().ys[0])
    assert HERMITE[1] @ np.exp(2 * np.asarray(log_w) - 2 * LN_P) - 1 == pytest.approx(chi2, rel=1e-6)


def test_importance_weighted_gap_is_chi_squared_over_2k(x64):
    """ln P(y) - L_k ~ chi2 / 2k. The gap is E[(W - 1) - ln W] with W = mean w / P(y), since E W = 1: little noise.

    At encoder N(0, .4), where W has light tails: k = 200, 4,000 draws, key 3, within 8 % (the standard error is 2.2 %).
    """
    system, k, n = toy(0.0, 0.4), 200, 4000
    wide = 0.8 - POSTERIOR[1]
    chi2 = 0.4 / np.sqrt(POSTERIOR[1] * wide) * np.exp(POSTERIOR[0] ** 2 / wide) - 1
    log_w = (
        np.asarray(bounds(system.model, system.params, jax.random.split(jax.random.key(3), n), k, system.ys[0])) - LN_P
    )
    assert np.mean(np.expm1(log_w) - log_w) == pytest.approx(chi2 / (2 * k), rel=0.08)


def test_importance_weighted_bound_in_chunks_is_the_same(x64):
    """7 samples at once and in chunks of 3, the last one not full: the same draws, the same number."""
    system, keys = toy(), jax.random.split(jax.random.key(4), 3)
    whole, parts = (bounds(system.model, system.params, keys, 7, system.ys[0], chunk) for chunk in (None, 3))
    np.testing.assert_allclose(parts, whole, rtol=1e-12)


# 5. Monte Carlo KL = analytic KL


@pytest.mark.parametrize(("mean", "std", "expected"), [(1.0, 0.5, 0.8181471806), (-2.0, 3.0, None), (0.1, 0.01, None)])
def test_sampled_rate_is_the_analytic_kl(x64, mean, std, expected):
    """KL(N(mean, std) || N(0, 1)), sampled and analytic; 20,000 draws of the sampled rate, key 5, within 4 errors."""
    exact = normal_kl(mean, std**2)
    assert expected is None or exact == pytest.approx(expected, abs=1e-10)
    for estimator in (sampled, analytic):
        system = toy(mean, std**2, estimator=estimator)
        rate = expected_terms(system.model, system.params, system.ys, HERMITE).rate
        np.testing.assert_allclose(rate, exact, rtol=1e-10)
    system, n = toy(mean, std**2), 20_000
    rates = np.asarray(
        draws(system.model.terms, system.params, jax.random.split(jax.random.key(5), n), system.ys[0]).rate
    )
    assert abs(rates.mean() - exact) < 4 * rates.std() / np.sqrt(n)


# 6, 7, 8. Gradient estimators


@functools.partial(jax.jit, static_argnums=0)
def gradients_at_nodes(model, params, y):
    """d L / d(mean, ln std) of the encoder at every node of the noise: (nodes, 2)."""

    def loss(enc, eps):
        return model.terms({**params, "enc": {**enc, "noise": eps}}, jax.random.key(0), y).nats

    gradient = jax.vmap(jax.grad(loss), in_axes=(None, 0))(params["enc"], jnp.asarray(HERMITE[0]))
    return jnp.concatenate([gradient["bias"], gradient["log_std"]], axis=1)


@pytest.mark.parametrize("estimator", [sampled, analytic, sticking])
def test_gradients_are_unbiased(x64, estimator):
    """(5.3, 1.2) at N(.3, .2); elsewhere the derivative of the closed form of -ELBO: 11 (mean + 2/11), 11 var - 1."""
    for mean, variance in ENCODERS:
        exact = [11 * (mean - POSTERIOR[0]), 11 * variance - 1]
        if (mean, variance) == NEAR:
            np.testing.assert_allclose(exact, [5.3, 1.2], rtol=1e-12)
        system = toy(mean, variance, estimator=estimator)
        each = gradients_at_nodes(system.model, system.params, system.ys[0])
        np.testing.assert_allclose(HERMITE[1] @ each, exact, rtol=1e-9, atol=1e-9)


def test_sticking_the_landing_is_noiseless_at_the_posterior(x64):
    """0 for every single draw; the ordinary gradients are 0 only on average."""
    gradients = {
        estimator: np.asarray(gradients_at_nodes(toy(estimator=estimator).model, toy().exact, toy().ys[0]))
        for estimator in (sampled, analytic, sticking)
    }
    assert np.abs(gradients[sticking]).max() < 1e-12
    for estimator in (sampled, analytic):
        assert (np.abs(gradients[estimator]).max(axis=1) > 1e-3).all()


def objective_gradients(model, params, keys, k, y):
    """Gradients of the importance-weighted objective with respect to the encoder's (mean, ln std): (n, 2)."""
    objective = multi_sample.importance_weighted(k)

    def loss(enc, key):
        return objective(model, {**params, "enc": enc}, key[None], y[None], None, 0)[0]

    gradient = jax.vmap(jax.grad(loss), in_axes=(None, 0))(params["enc"], keys)
    return jnp.concatenate([gradient["bias"], gradient["log_std"]], axis=1)


def bound_gradients(model, params, keys, k, y):
    """Gradients of `importance_weighted_bound` with respect to the encoder's mean: (n, 1)."""

    def bound(bias, key):
        return importance_weighted_bound(model, {**params, "enc": {**params["enc"], "bias": bias}}, key, y, k=k)

    return jax.vmap(jax.grad(bound), in_axes=(None, 0))(params["enc"]["bias"], keys)


def test_importance_weighted_gradient_is_unbiased(x64):
    """k = 2 at N(.3, .2): the derivative of L2, by differences of the quadrature; 40,000 draws, key 6, 4 errors."""
    system, n, h = toy(), 40_000, 1e-4

    def bound(mean, log_std):
        params = toy(mean, np.exp(2 * log_std)).params
        return expected_bound(log_weights(system.model, params, system.ys[0]), 2)

    log_std = 0.5 * np.log(0.2)
    exact = [
        -(bound(0.3 + h, log_std) - bound(0.3 - h, log_std)) / (2 * h),
        -(bound(0.3, log_std + h) - bound(0.3, log_std - h)) / (2 * h),
    ]
    keys = jax.random.split(jax.random.key(6), n)
    gradients = jax.jit(objective_gradients, static_argnums=(0, 3))(system.model, system.params, keys, 2, system.ys[0])
    gradients = np.asarray(gradients)
    assert (np.abs(gradients.mean(axis=0) - exact) < 4 * gradients.std(axis=0) / np.sqrt(n)).all()


def test_sticking_is_not_used_with_more_than_one_sample(x64):
    """With k > 1 the shortcut is biased: a `sticking` model then has the ordinary gradient, draw for draw.

    As an objective and through `importance_weighted_bound`. That the shortcut is another gradient is seen at k = 1.
    """
    keys, y, params = jax.random.split(jax.random.key(7), 50), toy().ys[0], toy().params
    plain, stuck = toy().model, toy(estimator=sticking).model

    @jax.jit
    def gradients():
        return [[f(m, params, keys, 5, y) for f in (objective_gradients, bound_gradients)] for m in (plain, stuck)]

    for ordinary, ours in zip(*gradients(), strict=True):
        np.testing.assert_allclose(ours, ordinary, rtol=1e-12)
    whole, shortcut = (gradients_at_nodes(model, params, y) for model in (plain, stuck))
    assert np.abs(shortcut - whole).max() > 0.1


# 10, 11, 12. Linear VAEs: probabilistic PCA and posterior collapse


def ppca_log_likelihood(eigenvalues, q):
    """numpy: maximum of the mean ln p over probabilistic PCA with q latents, its variance (Tipping & Bishop 1999)."""
    top, d = np.sort(eigenvalues)[::-1], len(eigenvalues)
    variance = top[q:].mean()
    return -0.5 * (d * np.log(2 * np.pi) + np.log(top[:q]).sum() + (d - q) * np.log(variance) + d), variance


@pytest.mark.parametrize(
    ("eigenvalues", "q", "expected"),
    [(EIGENVALUES, 2, -7.52621577), (EIGENVALUES, 3, None), ((9.0, 3.0, 0.2, 0.1), 1, None)],
)
def test_optimal_linear_vae_is_probabilistic_pca(x64, eigenvalues, q, expected):
    """The optimal linear VAE with a diagonal encoder has the maximum likelihood, in every draw."""
    exact, variance = ppca_log_likelihood(eigenvalues, q)
    assert expected is None or exact == pytest.approx(expected, abs=5e-9)
    ys, params = linear_vae_optimum(q, variance, eigenvalues=eigenvalues)
    model = linear_gaussian_model(len(eigenvalues), q, float(np.sqrt(variance)))
    nats = each(model.terms, params, jax.random.key(8), ys).nats
    assert nats.mean() == pytest.approx(-exact, rel=1e-12)


@functools.cache
def linear_vae_problem(q):
    """A linear VAE's full-batch loss without noise, by the library: (loss_and_gradient, terms, unravel).

    `loss_and_gradient(x, beta, sigma, fixed=...)` and `terms(x)` take the parameters as one vector; with `fixed` sigma
    is that number, else what x says. `unravel(x)` makes parameters of the vector.
    """
    ys = jnp.asarray(data_with_covariance()[0])
    model = linear_gaussian_model(len(EIGENVALUES), q, "learned", analytic)
    template = jax.jit(model.init)(jax.random.key(0), ys[0])
    template["gen"]["log_sigma"] = jnp.zeros(())  # in double precision
    unravel = ravel_pytree(template)[1]

    def terms(x):
        return jax.tree.map(jnp.mean, expected_terms(model, unravel(x), ys, sigma_points(q)))

    @functools.partial(jax.jit, static_argnames="fixed")
    def loss_and_gradient(x, beta, sigma, fixed):
        def loss(x):
            params = unravel(x)
            if fixed:
                params["gen"]["log_sigma"] = raw_log_std(jnp.log(sigma))
            both = terms(ravel_pytree(params)[0])
            return both.distortion + beta * both.rate

        return jax.value_and_grad(loss)(x)

    return loss_and_gradient, terms, unravel


def fitted(q, beta, sigma=None, *, seed=0):
    """Distortion + beta rate minimised by L-BFGS from a random start, sigma fixed or learned.

    Returns (mean terms, singular values of the generator's weights, sigma^2).
    """
    loss_and_gradient, terms, unravel = linear_vae_problem(q)
    size = 2 * 5 * q + 2 * q + 5 + 1

    def fun(x):
        loss, gradient = loss_and_gradient(x, beta, 1.0 if sigma is None else sigma, fixed=sigma is not None)
        return float(loss), np.asarray(gradient)

    start = np.random.default_rng(seed).normal(size=size, scale=0.3)
    found = minimize(fun, start, jac=True, method="L-BFGS-B", options={"maxiter": 3000, "ftol": 1e-15, "gtol": 1e-9}).x
    params = jax.tree.map(np.asarray, unravel(jnp.asarray(found)))
    log_sigma = jnp.asarray(params["gen"]["log_sigma"]) if sigma is None else raw_log_std(jnp.log(sigma))
    params["gen"]["log_sigma"] = log_sigma
    at_end = terms(ravel_pytree(params)[0])
    gains = np.linalg.svd(params["gen"]["net"]["weights"], compute_uv=False)
    return at_end, gains, float(jnp.exp(2 * bounded_log_std(log_sigma)))


@pytest.mark.parametrize(
    ("beta", "variance", "active", "rate"),
    [(1.0, 0.7, 3, 1.57473319), (2.0, 0.7, 2, 0.70324853), (0.5, 0.7, 5, None), (6.0, 0.7, 0, None)],
)
def test_beta_decides_what_collapses(x64, beta, variance, active, rate):
    """Direction i is active iff l_i > beta sigma^2, with distortion variance beta sigma^2 and rate 1/2 ln(l_i / beta
    sigma^2): the Gaussian rate-distortion function. Trained from a random start with sigma fixed."""
    seen = np.maximum(EIGENVALUES, beta * variance)
    exact_rate = 0.5 * np.log(seen / (beta * variance)).sum()
    squared_error = np.minimum(EIGENVALUES, beta * variance).sum()
    assert rate is None or exact_rate == pytest.approx(rate, abs=5e-9)
    assert active == np.count_nonzero(beta * variance < EIGENVALUES)
    terms, gains, _ = fitted(5, beta, variance**0.5)
    assert terms.rate == pytest.approx(exact_rate, abs=1e-5)
    distortion = squared_error / (2 * variance) + 2.5 * np.log(2 * np.pi * variance)
    assert terms.distortion == pytest.approx(distortion, abs=1e-5)
    assert np.sum(gains > 1e-2) == active
    np.testing.assert_allclose(gains**2, seen - beta * variance, atol=1e-3)


@pytest.mark.parametrize(("beta", "variance", "active"), [(1.0, 0.5, 3), (1.5, 1.0, 2), (2.0, 4 / 3, 1), (3.0, 1.6, 0)])
def test_learned_sigma_with_beta(x64, beta, variance, active):
    """sigma^2* = sum_inactive l_i / (d - beta k), while active l_i > beta sigma^2*; total collapse from beta = 2.5.

    From a random start. (At beta = 1 the number of latents, here 3, bounds the active ones.)
    """
    assert variance == pytest.approx(EIGENVALUES[active:].sum() / (5 - beta * active))
    terms, gains, found = fitted(3, beta)
    assert found == pytest.approx(variance, rel=1e-4)
    assert np.sum(gains > 2e-2) == active
    assert terms.rate == pytest.approx(0.5 * np.log(EIGENVALUES[:active] / (beta * variance)).sum(), abs=1e-4)


@pytest.mark.parametrize("sigma", ["learned", "optimal"])
def test_training_reaches_probabilistic_pca_from_a_random_start(sigma):
    """By the library's own training step, in float32: Adam, 10 copies of the data, 1,000 steps, one draw of z each.

    The model's exact mean ln p comes within 1e-3 (relative) of the maximum -7.52621577, and so does its ELBO.
    """
    ys, d, q = data_with_covariance()[0], 5, 2
    exact, variance = ppca_log_likelihood(EIGENVALUES, q)
    model = linear_gaussian_model(d, q, sigma, analytic)
    batch = jnp.asarray(np.tile(ys, (10, 1)), jnp.float32)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, 1000))
    state = init_state(model, optimizer, jax.random.key(0), batch[0])
    step = make_train_step(model, optimizer)
    run = jax.jit(lambda state: jax.lax.scan(lambda s, _: step(s, jax.random.key(1), batch), state, length=1000)[0])
    params = run(state).params
    weights = np.asarray(params["gen"]["net"]["weights"], np.float64)
    found = float(jnp.exp(2 * bounded_log_std(params["gen"]["log_sigma"])))
    covariance = weights @ weights.T + found * np.eye(d)
    likelihood = multivariate_normal(np.asarray(params["gen"]["net"]["bias"]), covariance).logpdf(ys).mean()
    elbo = -jnp.mean(expected_terms(model, params, jnp.asarray(ys, jnp.float32), sigma_points(q)).nats).item()
    assert elbo < likelihood + 1e-5 and likelihood < exact
    assert elbo == pytest.approx(-7.52621577, rel=1e-3)
    assert found == pytest.approx(variance, rel=0.03)


# 14, 15. L2 distortion, sigma and ln Z


@pytest.mark.parametrize(("size", "mse", "expected"), [(784, 0.01, -692.7789), (3, 2.5, None), (1, 1e-4, None)])
def test_l2_nats_at_the_optimal_sigma(x64, size, mse, expected):
    """-ln N(y; yhat, s2 I) = SSE / (2 s2) + D/2 ln(2 pi s2); at s2 = MSE it is D/2 (1 + ln 2 pi MSE), its minimum."""
    exact = size / 2 * (1 + np.log(2 * np.pi * mse))
    assert expected is None or exact == pytest.approx(expected, abs=5e-5)
    yhat = np.random.default_rng(0).normal(size=size)
    y = yhat + np.sqrt(mse) * np.resize([1.0, -1.0], size)

    def nats(variance):
        value = -log_prob(l2(constant(yhat), float(np.sqrt(variance))).dist((), 0.0), jnp.asarray(y)).item()
        assert value == pytest.approx(-norm(yhat, np.sqrt(variance)).logpdf(y).sum(), rel=1e-10)
        assert value == pytest.approx(size * mse / (2 * variance) + size / 2 * np.log(2 * np.pi * variance), rel=1e-10)
        return value

    assert nats(mse) == pytest.approx(exact, rel=1e-10)
    assert min(nats(0.99 * mse), nats(1.01 * mse)) > nats(mse)
    optimal = l2(constant(yhat), "optimal")
    params = {"net": (), "log_sigma": jnp.zeros(())}
    params = optimal.maximise(params, optimal.stats(params, y, 0.0))
    assert -log_prob(optimal.dist(params, 0.0), jnp.asarray(y)) == pytest.approx(exact, rel=1e-10)


def constant(yhat):
    return (lambda key, z: (), lambda params, z: jnp.asarray(yhat))


def test_losses_of_other_books_are_fixed_sigmas(x64):
    """Up to ln Z: the plain squared error is s2 = 1/2, half of it s2 = 1, its mean over D s2 = D/2."""
    size, rng = 6, np.random.default_rng(1)
    yhat, ys = rng.normal(size=size), rng.normal(size=(2, size))
    squared = np.sum((ys - yhat) ** 2, axis=1)
    for variance, loss in ((0.5, squared), (1.0, squared / 2), (size / 2, squared / size)):
        generator = l2(constant(yhat), float(np.sqrt(variance)))
        nats = [-generator.dist((), 0.0).log_prob(jnp.asarray(y)) for y in ys]
        assert float(nats[0] - nats[1]) == pytest.approx(loss[0] - loss[1], rel=1e-12)


@pytest.mark.parametrize("scale", [255.0, 0.1])
def test_rescaling_the_data_adds_d_ln_c(x64, scale):
    """y -> c y with yhat and sigma scaled along: D ln c nats more, the same rate."""
    small, large = (
        expected_terms(
            linear_gaussian_model(2, 1, 0.5 * c),
            {**toy().params, "enc": {**toy().exact["enc"], "weights": toy().exact["enc"]["weights"] / c}, "gen": gen},
            toy().ys * c,
            HERMITE,
        )
        for c, gen in ((1.0, toy().params["gen"]), (scale, jax.tree.map(lambda x: x * scale, toy().params["gen"])))
    )
    np.testing.assert_allclose(large.distortion - small.distortion, 2 * np.log(scale), rtol=1e-10)
    np.testing.assert_allclose(large.rate, small.rate, rtol=1e-10)


# 16, 17. Likelihoods of pixels (more in test_distributions.py)


def test_discretised_likelihoods_sum_to_one(x64):
    """Over all levels, edges included, for tiny and huge scales and means far outside the range."""
    log_scales, means = np.array(list(itertools.product((-20.0, -7.0, 0.0, 7.0), (-30.0, -1.0, 0.003, 1.0, 9.0)))).T[
        :, None
    ]
    for levels in (2, 7, 256):
        log_probs = jax.jit(DiscretisedLogistic(means, log_scales, levels).log_prob)(jnp.arange(levels)[:, None])
        np.testing.assert_allclose(np.exp(log_probs).sum(axis=0), 1, atol=1e-9)


def test_bernoulli_is_finite_at_every_logit():
    """|logit| up to 1e4, float32: nats finite, and d nats / d logit = sigmoid(logit) - y."""
    logits = jnp.array([-1e4, -100.0, -3.0, 0.0, 1e-3, 5.0, 88.0, 1e4], jnp.float32)
    generator = bernoulli((lambda key, z: z, lambda params, z: params))
    for y in (0.0, 1.0):
        ys = jnp.full(logits.shape, y)
        nats, gradient = jax.value_and_grad(lambda x, ys=ys: -log_prob(generator.dist(x, 0.0), ys))(logits)
        assert np.isfinite(nats)
        np.testing.assert_allclose(gradient, expit(np.asarray(logits, np.float64)) - y, atol=1e-7)


# 18, 19. The Bayesian interpretation


@pytest.mark.parametrize(
    ("means", "variance", "expected"),
    [((-3.0, -1.0, 1.0, 3.0), 0.25, (2.81815, 1.29565, 1.52249)), ((0.0, 0.5, 4.0), 1.0, None)],
)
def test_rate_is_mutual_information_plus_marginal_kl(x64, means, variance, expected):
    """E_pop KL(enc || pri) = I(y; z) + KL(aggregate || pri), I <= ln n.

    The rate under N(0, I), and under the aggregate itself as the prior (a VampPrior on the data), both by the library.
    """
    encoder, ys, std = affine_normal(1), jnp.array(means)[:, None], np.sqrt(variance)
    enc = {"weights": jnp.eye(1), "bias": jnp.zeros(1), "log_std": jnp.log(jnp.array([std]))}
    gen = {"weights": jnp.eye(1), "bias": jnp.zeros(1)}
    rates = [
        expected_terms(
            vae(encoder, prior, l2(affine(1), 1.0)), {"enc": enc, "pri": pri, "gen": gen}, ys, hermite(150)
        ).rate.mean()
        for prior, pri in ((standard_normal(1), {}), (vampprior(encoder, ys), {"pseudo": ys, "enc": enc}))
    ]
    aggregate = lambda z: np.mean(norm(means, std).pdf(z))  # noqa: E731
    marginal_kl, _ = quad(
        lambda z: rel_entr(aggregate(z), norm.pdf(z)), min(means) - 12 * std, max(means) + 12 * std, limit=400
    )
    information = normal_kl(np.array(means), variance).mean() - marginal_kl
    assert rates[0] == pytest.approx(normal_kl(np.array(means), variance).mean(), rel=1e-10)
    assert rates[1] == pytest.approx(information, abs=1e-6)
    assert 0 < information <= np.log(len(means))
    if expected is not None:
        np.testing.assert_allclose([rates[0], information, marginal_kl], expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_expected_loss_of_the_discrete_toy(x64, seed):
    """E_pop[-ELBO] = H(pop) + KL(pop || model) + E KL(enc || posterior), every term by enumeration."""
    system = discrete(5, 3, seed=seed)
    pop = softmax(np.random.default_rng(seed + 10).normal(size=5))
    pri, gen, enc = (softmax(np.asarray(system.params[part]), axis=-1) for part in ("pri", "gen", "enc"))
    joint = pri[:, None] * gen
    marginal = joint.sum(axis=0)
    np.testing.assert_allclose(np.log(marginal), system.log_p, rtol=1e-12)
    terms = each(system.model.terms, system.params, jax.random.key(0), system.ys)
    kl = rel_entr(enc.T, joint / marginal).sum(axis=0)
    exact = -np.sum(pop * np.log(pop)) + rel_entr(pop, marginal).sum() + pop @ kl
    assert pop @ np.asarray(terms.nats) == pytest.approx(exact, rel=1e-12)
    np.testing.assert_allclose(terms.rate, rel_entr(enc, pri[None]).sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(terms.distortion, -np.sum(enc * np.log(gen).T, axis=1), rtol=1e-12)


# 35. Free bits


def test_free_bits_has_three_definitions(x64):
    """On KL = [[.1, 2], [.7, 0]] with floor .5: 1.5, 1.85 and 1.4; and as an objective of a model with those KLs."""
    rates = jnp.array([[0.1, 2.0], [0.7, 0.0]])
    definitions = {objectives.batch_mean_per_unit: 1.5, objectives.per_unit: 1.85, objectives.per_example: 1.4}
    for definition, expected in definitions.items():
        assert definition(rates, 0.5) == pytest.approx(expected, rel=1e-12)

    encoder = affine_normal(2)  # N(y, 1): the KL of a unit to N(0, 1) is y^2 / 2
    model = vae(encoder, standard_normal(2), l2(affine(2), 1.0), estimator=analytic)
    affine_params = {"weights": jnp.eye(2), "bias": jnp.zeros(2)}
    params = {"enc": {**affine_params, "log_std": jnp.zeros(2)}, "pri": {}, "gen": affine_params}
    ys, keys = jnp.sqrt(2 * rates), jax.random.split(jax.random.key(0), 2)

    @jax.jit
    def losses():
        every = [objectives.free_bits(0.5, definition, beta=beta) for definition in definitions for beta in (1.0, 3.0)]
        return [objective(model, params, keys, ys, None, 0) for objective in every]

    wanted = [beta * expected for expected in definitions.values() for beta in (1.0, 3.0)]
    for (loss, terms), expected in zip(losses(), wanted, strict=True):
        assert loss - terms.distortion.mean() == pytest.approx(expected, rel=1e-10)
        np.testing.assert_allclose(terms.rate, rates.sum(axis=1), rtol=1e-10)  # what is reported has no floor


def test_free_bits_definitions_against_loops(x64):
    """Other numbers, written out."""
    rates, floor = np.random.default_rng(3).gamma(0.5, size=(7, 4)), 0.3
    kl = jnp.asarray(rates)
    mean_per_unit = sum(max(floor, sum(rates[b, i] for b in range(7)) / 7) for i in range(4))
    each_unit = sum(max(floor, rates[b, i]) for b in range(7) for i in range(4)) / 7
    each_example = sum(max(floor, sum(rates[b])) for b in range(7)) / 7
    assert objectives.batch_mean_per_unit(kl, floor) == pytest.approx(mean_per_unit, rel=1e-12)
    assert objectives.per_unit(kl, floor) == pytest.approx(each_unit, rel=1e-12)
    assert objectives.per_example(kl, floor) == pytest.approx(each_example, rel=1e-12)


# 36, 37. Composition


@pytest.mark.parametrize("seed", range(3))
def test_two_layers_are_the_marginal_gaussian(x64, seed):
    """vae(enc1, vae(enc2, N(0, 1), gen2), gen1) with exact encoders: L = -ln N(y; 0, W1 (W2 W2' + s2 I) W1' + s1 I)."""
    system = two_layers(seed=seed)
    for key in jax.random.split(jax.random.key(seed), 3):
        for nats_of in (system.model.terms, system.model.importance):
            nats = each(nats_of, system.exact, key, system.ys).nats
            np.testing.assert_allclose(-nats, system.log_p, rtol=1e-11)


def test_importance_averages_to_the_likelihood(x64):
    """E exp(-nats) = P(y) with encoders that are not the posterior: 40,000 draws, key 9, within 4 standard errors.

    The toy, also with an estimator whose own terms are no importance sample; discrete z from a fixed encoder; a VAE
    whose prior is a VAE.
    """
    systems = [toy(), toy(estimator=analytic), discrete(estimator=fixed_encoder), two_layers(), two_layers(seed=1)]
    keys = jax.random.split(jax.random.key(9), 40_000)
    for system in systems:
        for y, log_p in zip(system.ys, system.log_p, strict=True):
            nats = np.asarray(draws(system.model.importance, system.params, keys, y).nats)
            ratio = np.exp(-nats - log_p)
            assert ratio.std() > 0.05
            assert abs(ratio.mean() - 1) < 4 * ratio.std() / np.sqrt(len(keys))


def test_importance_weighted_bound_of_nested_models_converges(x64):
    """ln P(y) - L_k falls like 1 / k: a VAE with a VAE as its prior, k = 8, key 10, 500 draws, gap as E[W - 1 - ln W].

    At k = 1 the gap is KL(enc || posterior), 3 numbers with a standard deviation 1.15 times the posterior's. And at
    k = 5,000, in chunks of 1,000, the bound is within 4 standard errors of ln P(y).
    """
    system = two_layers(widen=1.15)
    y, log_p, keys = system.ys[0], system.log_p[0], jax.random.split(jax.random.key(10), 500)
    log_w = np.asarray(bounds(system.model, system.params, keys, 8, y)) - log_p
    at_one = 3 * ((1.15**2 - 1) / 2 - np.log(1.15))
    assert 0 < np.mean(np.expm1(log_w) - log_w) < at_one / 4
    last = bounds(system.model, system.params, keys[:1], 5000, y, 1000).item()
    assert abs(last - log_p) < 4 * np.exp(log_w).std() * np.sqrt(8 / 5000)


def random_logits(*shapes, seed):
    """Tables of logits, and the probabilities they stand for."""
    rng = np.random.default_rng(seed)
    logits = [rng.normal(size=shape) for shape in shapes]
    return [jnp.asarray(x) for x in logits], [softmax(x, axis=-1) for x in logits]


def assert_exact(model, params, log_p):
    """One enumerated "sample" of `importance` is ln P(y) itself, split or not; and the bound has no noise."""
    ys, key = jnp.arange(len(log_p)), jax.random.key(0)
    exact = each(model.importance, params, key, ys)
    np.testing.assert_allclose(-exact.nats, log_p, rtol=1e-12)
    assert np.isfinite(exact.distortion).all() and np.isfinite(exact.rate).all()
    bound = each(model.terms, params, key, ys)
    assert (np.asarray(bound.nats) > -log_p + 1e-6).all()
    np.testing.assert_array_equal(each(model.terms, params, jax.random.key(1), ys).nats, bound.nats)


def test_enumerated_importance_is_the_exact_likelihood(x64):
    """y in 0 .. 3, z1 in 0 .. 2, z2 in 0 .. 1, all tables: vae(enc1, vae(enc2, pri, gen2), gen1)."""
    prior = vae(table_of(3, 2), table(2), table_of(2, 3), estimator=enumerated)
    model = vae(table_of(4, 3), prior, table_of(3, 4), estimator=enumerated)
    (enc1, enc2, pri, gen2, gen1), (_, _, p, p2, p1) = random_logits((4, 3), (3, 2), 2, (2, 3), (3, 4), seed=12)
    params = {"enc": enc1, "pri": {"enc": enc2, "pri": pri, "gen": gen2}, "gen": gen1}
    assert_exact(model, params, np.log(p @ p2 @ p1))


def test_a_vae_as_the_generator_of_a_vae(x64):
    """P(y|z) = sum_w P(w) P(y|w, z) with its own encoder P_enc(w|y, z): z is the condition c of the inner VAE."""
    inner = vae(table_of_pairs(4, 3, 2), table(2), table_of_pairs(2, 3, 4), estimator=enumerated)
    model = vae(table_of(4, 3), table(3), inner, estimator=enumerated)
    (enc, pri, enc_w, pri_w, gen), (_, p_z, _, p_w, p_y) = random_logits((4, 3), 3, (4, 3, 2), 2, (2, 3, 4), seed=13)
    params = {"enc": enc, "pri": pri, "gen": {"enc": enc_w, "pri": pri_w, "gen": gen}}
    assert_exact(model, params, np.log(np.einsum("z,w,wzy->y", p_z, p_w, p_y)))


def table_of_pairs(firsts, seconds, size):
    """P(x | a, b) = softmax(logits[a, b])."""

    def init(key, a, b):
        del a, b
        return jax.random.normal(key, (firsts, seconds, size))

    return conditional((init, lambda params, a, b: params[a, b]), dist.CategoricalLogits)
