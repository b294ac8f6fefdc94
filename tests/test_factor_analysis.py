"""Factor analysis and pPCA against dense Gaussians, scikit-learn, the closed form, and an EM in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.decomposition import PCA, FactorAnalysis

from vae_jax.em import (
    as_vae,
    factor_analysers,
    factor_analysis,
    fit_em,
    mixture,
    mixture_of_factor_analysers,
    ppca,
    ppca_closed_form,
)
from vae_jax.em.regression import seen_through
from vae_jax.selfcheck.quadrature import sigma_points
from vae_jax.selfcheck.solvable import EIGENVALUES, data_with_covariance

NAN = float("nan")
D, Q = 5, 2


def standardised(data):
    return (data - data.mean(axis=0)) / data.std(axis=0)


@functools.cache
def wine():
    return standardised(load_wine().data)


def some_data(n=40, *, holes=0.0, seed=0):
    """(n, 5) numbers with factors in them; each entry missing with probability `holes`."""
    rng = np.random.default_rng(seed)
    ys = rng.normal(size=(n, Q)) @ rng.normal(size=(Q, D)) + rng.normal(size=D) + 0.5 * rng.normal(size=(n, D))
    ys[rng.uniform(size=ys.shape) < holes] = NAN
    return ys


def random_params(family, k, seed=0):
    params = family.init(jax.random.key(seed), k)
    return {**params, "log_stds": -0.5 + 0.3 * jax.random.normal(jax.random.key(seed + 1), params["log_stds"].shape)}


def dense(params, k):
    """numpy: (mean, loadings, noise variances) of component k."""
    mean, loadings, log_std = (np.asarray(params[name][k], float) for name in ("means", "loadings", "log_stds"))
    return mean, loadings, np.exp(2 * log_std) * np.ones(len(mean))


def covariance_of(matrix):
    """scipy's, by its Cholesky factor: where the noise is small it takes a matrix for singular."""
    return stats.Covariance.from_cholesky(np.linalg.cholesky(matrix))


def dense_log_p(mean, loadings, noise, y):
    """scipy: ln N of what is seen of y."""
    seen = ~np.isnan(y)
    covariance = (loadings @ loadings.T + np.diag(noise))[np.ix_(seen, seen)]
    return stats.multivariate_normal(mean[seen], covariance_of(covariance)).logpdf(y[seen]) if seen.any() else 0.0


def dense_posterior(mean, loadings, noise, y):
    """numpy: mean and covariance of z given what is seen of y, by conditioning the joint Gaussian."""
    seen = ~np.isnan(y)
    w = loadings[seen]
    gain = np.linalg.solve(w @ w.T + np.diag(noise[seen]), w).T
    return gain @ (y[seen] - mean[seen]), np.eye(w.shape[1]) - gain @ w


@pytest.mark.parametrize("noise", ["diagonal", "isotropic"])
@pytest.mark.parametrize("missing", [False, True])
def test_log_prob_against_scipy(x64, noise, missing):
    family = factor_analysers(D, Q, noise=noise, missing=missing)
    params, ys = random_params(family, 3), some_data(12, holes=0.3 * missing)
    ys[0] = NAN if missing else 0.0
    exact = [[dense_log_p(*dense(params, k), y) for k in range(3)] for y in ys]
    np.testing.assert_allclose(jax.jit(family.log_prob)(params, ys), exact, rtol=1e-11, atol=1e-12)
    of_one = jax.jit(jax.vmap(lambda y: family.dist(params, 1).log_prob(y)))
    np.testing.assert_allclose(of_one(ys), np.array(exact)[:, 1], rtol=1e-11, atol=1e-12)
    mixed = mixture(family, 3)
    mixed_params = {"pri": {"logits": jnp.zeros(3)}, "gen": params}
    exact_mixture = np.log(np.mean(np.exp(exact), axis=1))
    of_mixture = jax.jit(jax.vmap(lambda y: mixed.dist(mixed_params, None).log_prob(y)))
    np.testing.assert_allclose(of_mixture(ys), exact_mixture, rtol=1e-11, atol=1e-12)


def test_samples_have_mean_and_covariance(x64):
    """100,000 draws: every moment within 4.5 standard errors (of second moments: from the draws)."""
    family, n = factor_analysers(D, Q), 100_000
    params = random_params(family, 2)
    mean, loadings, noise = dense(params, 1)
    ys = np.asarray(family.dist(params, 1).sample(jax.random.key(0), (n,)))
    assert np.all(np.abs(ys.mean(0) - mean) < 4.5 * ys.std(0) / np.sqrt(n))
    products = (ys - mean)[:, :, None] * (ys - mean)[:, None, :]
    exact = loadings @ loadings.T + np.diag(noise)
    assert np.all(np.abs(products.mean(0) - exact) < 4.5 * products.std(0) / np.sqrt(n))
    np.testing.assert_allclose(family.dist(params, 1).variance, np.diag(exact), rtol=1e-12)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("make", [factor_analysis, ppca])
def test_the_posterior_is_exact(x64, make, missing):
    """Against the dense Gaussian; and as the encoder it makes every draw of the bound -ln P(y)."""
    model, ys = make(D, Q, missing=missing), some_data(6, holes=0.3 * missing)
    params = model.em.start(jax.random.key(3), some_data(), None)
    numbers = dense(
        jax.tree.map(lambda x: x[None], {f"{k}s": v for k, v in params["gen"].items()} | _loadings(params)), 0
    )
    infer_one = jax.jit(lambda p, y: model.em.posterior(p, y, None))
    for y in ys:
        posterior = infer_one(params, jnp.asarray(y))
        mean, covariance = dense_posterior(*numbers, y)
        np.testing.assert_allclose(posterior.mean, mean, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(posterior.covariance_matrix, covariance, rtol=1e-10, atol=1e-12)
    bounds = jax.jit(jax.vmap(as_vae(model).terms, in_axes=(None, 0, 0)))
    draws = bounds({"enc": params, **params}, jax.random.split(jax.random.key(1), len(ys)), jnp.asarray(ys))
    np.testing.assert_allclose(-draws.nats, [dense_log_p(*numbers, y) for y in ys], rtol=1e-10)
    log_p, _ = jax.jit(lambda p: model.em.expect(p, ys, None))(params)
    np.testing.assert_allclose(-draws.nats, log_p, rtol=1e-10)


def _loadings(params):
    return {"loadings": params["gen"]["loadings"]}


def numpy_step(ys, mean, loadings, noise, *, isotropic=False):
    """One EM step, row by row: normal equations of every row of W from the examples in which it is seen."""
    d = ys.shape[1]
    q = loadings.shape[1]
    gram, cross, square, count = np.zeros((d, q + 1, q + 1)), np.zeros((d, q + 1)), np.zeros(d), np.zeros(d)
    for y in ys:
        if np.isnan(y).all():
            continue
        z, v = dense_posterior(mean, loadings, noise, y)
        x = np.append(z, 1.0)
        second = np.outer(x, x)
        second[:q, :q] += v
        for j in np.flatnonzero(~np.isnan(y)):
            gram[j] += second
            cross[j] += y[j] * x
            square[j] += y[j] ** 2
            count[j] += 1
    fit = np.array([np.linalg.solve(g, c) for g, c in zip(gram, cross, strict=True)])
    left = square - np.sum(fit * cross, axis=1)
    return fit[:, -1], fit[:, :-1], np.full(d, left.sum() / count.sum()) if isotropic else left / count


@pytest.mark.parametrize("make", [factor_analysis, ppca])
@pytest.mark.parametrize("holes", [0.0, 0.3])
def test_em_equals_numpy(x64, make, holes):
    """Eight steps from the same start; a row without entries is left out by numpy and changes nothing here."""
    ys = some_data(30, holes=holes)
    ys[4] = NAN if holes else 0.0
    model = make(D, Q, missing=holes > 0)
    start = model.em.start(jax.random.key(1), ys, None)
    fitted = fit_em(model, ys, params=start, iterations=8, tolerance=None, chunk=12)
    gen = jax.tree.map(np.asarray, start["gen"])
    numbers = gen["mean"], gen["loadings"], np.exp(2 * gen["log_std"]) * np.ones(D)
    for i in range(8):
        exact = np.mean([dense_log_p(*numbers, y) for y in ys])
        assert fitted.history[i] == pytest.approx(exact, rel=1e-11)
        numbers = numpy_step(ys, *numbers, isotropic=make is ppca)
    gen = fitted.params["gen"]
    np.testing.assert_allclose(gen["mean"], numbers[0], rtol=1e-9)
    np.testing.assert_allclose(gen["loadings"], numbers[1], rtol=1e-9)
    np.testing.assert_allclose(np.exp(2 * gen["log_std"]) * np.ones(D), numbers[2], rtol=1e-9)


REAL = {
    "digits": (lambda: load_digits().data / 16, 10, 17.45195),
    "breast cancer": (lambda: standardised(load_breast_cancer().data), 10, -18.18503),
    "wine": (wine, 2, -16.15526),
}


@pytest.mark.parametrize("name", REAL)
def test_oracle_13(x64, name):
    """The maximum likelihood of pPCA on real data: closed form, its own density, and EM from a random start."""
    load, latent, expected = REAL[name]
    ys = load()
    model, exact = ppca(ys.shape[1], latent), ppca_closed_form(ys, latent)
    assert exact.log_p == pytest.approx(expected, abs=5e-6)
    log_p, _ = jax.jit(model.em.expect)(exact.params, ys)
    assert log_p.mean() == pytest.approx(exact.log_p, abs=1e-10)
    fitted = fit_em(model, ys, key=jax.random.key(0), iterations=1000, tolerance=1e-8)
    assert fitted.converged and fitted.history[-1] == pytest.approx(expected, abs=5e-6)
    assert np.all(np.diff(fitted.history) > -1e-12)


def test_oracle_10(x64):
    """Covariance with eigenvalues (4, 2, 1, .5, .5), q = 2: sigma^2 = 2/3, mean ln P = -7.52621577."""
    ys, _ = data_with_covariance(EIGENVALUES)
    exact = ppca_closed_form(ys, 2)
    assert exact.log_p == pytest.approx(-7.52621577, abs=1e-8)
    assert np.exp(2 * exact.params["gen"]["log_std"]) == pytest.approx(2 / 3, rel=1e-12)
    fitted = fit_em(ppca(5, 2), ys, key=jax.random.key(0), iterations=500, tolerance=1e-12)
    assert fitted.history[-1] == pytest.approx(exact.log_p, abs=1e-9)
    gen = fitted.params["gen"]
    covariance = gen["loadings"] @ gen["loadings"].T
    np.testing.assert_allclose(np.linalg.eigvalsh(covariance)[-2:], [2 - 2 / 3, 4 - 2 / 3], rtol=1e-4)


def test_closed_form_against_scikit_learn(x64):
    """PCA's covariance divides by n - 1 and so is n / (n - 1) of ours."""
    ys = wine()
    gen = ppca_closed_form(ys, 4).params["gen"]
    ours = gen["loadings"] @ gen["loadings"].T + np.exp(2 * gen["log_std"]) * np.eye(13)
    np.testing.assert_allclose(ours, PCA(4).fit(ys).get_covariance() * (len(ys) - 1) / len(ys), rtol=1e-9, atol=1e-12)


def test_factor_analysis_equals_scikit_learn(x64):
    ys = wine()
    fitted = fit_em(factor_analysis(13, 2), ys, key=jax.random.key(0), iterations=1000, tolerance=1e-11)
    theirs = FactorAnalysis(2, tol=1e-10, max_iter=20_000, svd_method="lapack").fit(ys)
    assert fitted.history[-1] == pytest.approx(theirs.score(ys), abs=1e-7)
    gen = fitted.params["gen"]
    covariance = gen["loadings"] @ gen["loadings"].T + np.diag(np.exp(2 * gen["log_std"]))
    np.testing.assert_allclose(covariance, theirs.get_covariance(), atol=1e-4)


@pytest.mark.parametrize("holes", [0.0, 0.25])
def test_the_fixed_point_has_gradient_zero(x64, holes):
    ys = some_data(60, holes=holes)
    model = factor_analysis(D, Q, missing=holes > 0)
    fitted = fit_em(model, ys, key=jax.random.key(0), iterations=20_000, tolerance=1e-15)
    gradient = jax.jit(jax.grad(lambda p: model.em.expect(p, ys, None)[0].mean()))(fitted.params)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) < 1e-5
    assert np.all(np.diff(fitted.history) > -1e-12)


def test_fishers_identity(x64):
    """d ln P(y) = d E[ln P(y, z)] under the posterior, held fixed; sigma points are exact for a quadratic."""
    model, ys = factor_analysis(D, Q, missing=True), jnp.asarray(some_data(5, holes=0.3))
    params = model.em.start(jax.random.key(3), some_data(), None)
    points, weights = sigma_points(Q)

    def expected(p, y):
        posterior = jax.lax.stop_gradient(model.em.posterior(params, y, None))
        zs = posterior.mean[None] + jnp.asarray(points) @ posterior.scale_tril.T
        return weights @ jax.vmap(lambda z: model.em.generator.dist(p["gen"], z).log_prob(y))(zs)

    ours = jax.jit(jax.grad(lambda p: jax.vmap(lambda y: model.dist(p, None).log_prob(y))(ys).sum()))(params)
    theirs = jax.jit(jax.grad(lambda p: jax.vmap(functools.partial(expected, p))(ys).sum()))(params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-10), ours, theirs)


@pytest.mark.parametrize("noise", ["diagonal", "isotropic"])
def test_stats_about_another_fit_give_the_same_m_step(x64, noise):
    family, ys = factor_analysers(D, Q, noise=noise, missing=True), some_data(30, holes=0.2)
    old, new = random_params(family, 2), random_params(family, 2, seed=5)
    stats = family.stats(old, ys, np.random.default_rng(0).uniform(size=(30, 2)))
    direct, moved = family.maximise(old, stats, 30), family.maximise(new, family.recentre(stats, old, new), 30)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11), direct, moved)


def test_a_component_without_weight_keeps_its_parameters(x64):
    family, ys = factor_analysers(D, Q), some_data(30)
    params = random_params(family, 2)
    weights = np.stack([np.ones(30), np.zeros(30)], axis=1)
    fitted = family.maximise(params, family.stats(params, ys, weights), 30)
    for name, leaf in fitted.items():
        np.testing.assert_array_equal(leaf[1], params[name][1])
        assert not np.allclose(leaf[0], params[name][0])


def test_a_mixture_of_one_is_factor_analysis(x64):
    ys = some_data(50)
    one, mixed = factor_analysis(D, Q), mixture_of_factor_analysers(D, Q, 1)
    gen = one.em.start(jax.random.key(0), ys, None)["gen"]
    stacked = {"means": gen["mean"][None], "loadings": gen["loadings"][None], "log_stds": gen["log_std"][None]}
    a = fit_em(one, ys, params={"pri": {}, "gen": gen}, iterations=20, tolerance=None)
    b = fit_em(mixed, ys, params={"pri": {"logits": jnp.zeros(1)}, "gen": stacked}, iterations=20, tolerance=None)
    np.testing.assert_allclose(a.history, b.history, rtol=1e-12)
    np.testing.assert_allclose(a.params["gen"]["loadings"], b.params["gen"]["loadings"][0], rtol=1e-10)


@pytest.mark.parametrize("noise", ["diagonal", "isotropic"])
def test_mixtures_rise_to_a_fixed_point(x64, noise):
    """Two clusters with factors of their own: monotone, gradient zero at the end, above one factor analyser's ln P."""
    ys = np.concatenate([some_data(60, holes=0.1), 6 + some_data(60, holes=0.1, seed=7)])
    model = mixture_of_factor_analysers(D, Q, 2, noise=noise, missing=True)
    fitted = fit_em(model, ys, key=jax.random.key(0), iterations=2000, tolerance=1e-11)
    assert np.all(np.diff(fitted.history) > -1e-12)
    gradient = jax.jit(jax.grad(lambda p: model.em.expect(p, ys, None)[0].mean()))(fitted.params)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) < 1e-3
    one = fit_em(factor_analysis(D, Q, missing=True), ys, key=jax.random.key(0), tolerance=1e-8)
    assert fitted.history[-1] > one.history[-1] + 0.1


def test_float32_at_small_noise():
    """Factors 10^4 times the noise's standard deviation: ln P to 1e-4 of float64's; twenty steps stay finite."""
    rng = np.random.default_rng(0)
    mean, loadings, noise = 100 * rng.normal(size=20), 10 * rng.normal(size=(20, 3)), np.full(20, 1e-6)
    ys = (mean + rng.normal(size=(50, 3)) @ loadings.T + 1e-3 * rng.normal(size=(50, 20))).astype(np.float32)
    family = factor_analysers(20, 3)
    gen = {"means": mean[None], "loadings": loadings[None], "log_stds": np.full((1, 20), np.log(1e-3))}
    centred = {**gen, "means": 0 * gen["means"]}
    log_p = family.log_prob(
        jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), centred), jnp.asarray(ys - mean, jnp.float32)
    )
    exact = [dense_log_p(0 * mean, loadings, noise, y) for y in (ys - mean).astype(np.float32).astype(float)]
    np.testing.assert_allclose(log_p[:, 0], exact, rtol=1e-2)
    fitted = fit_em(factor_analysis(20, 3), ys, key=jax.random.key(0), iterations=20, tolerance=None)
    assert np.isfinite(fitted.history).all() and fitted.history[-1] > fitted.history[0]


@pytest.mark.parametrize("holes", [0.0, 0.6])
def test_float32_where_factors_are_1e5_times_wider_than_the_noise(holes):
    """ln P, means and variances of the factors to 1e-4 of the dense Gaussian's in float64; gradients are finite."""
    rng = np.random.default_rng(0)
    family = factor_analysers(D, 3, missing=holes > 0)
    one = factor_analysis(D, 3, missing=holes > 0)

    @jax.jit
    def ours(params, ys):
        gen = {"mean": params["means"][1], "loadings": params["loadings"][1], "log_std": params["log_stds"][1]}
        posteriors = jax.vmap(lambda y: one.em.posterior({"pri": {}, "gen": gen}, y).scale_tril)(ys)
        means = jax.vmap(lambda y: one.em.posterior({"pri": {}, "gen": gen}, y).mean)(ys)
        slope = jax.grad(lambda p: family.log_prob(p, ys).sum())(params)
        return family.log_prob(params, ys), means, jnp.sum(posteriors**2, axis=2), slope

    for noise in (1e-2, 1e-6, 1e-10):
        params = {**random_params(family, 2), "log_stds": np.full((2, D), 0.5 * np.log(noise))}
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
        mean, loadings, _ = dense(params, 1)
        ys = mean + rng.normal(size=(20, 3)) @ loadings.T + np.sqrt(noise) * rng.normal(size=(20, D))
        ys[rng.uniform(size=ys.shape) < holes] = NAN
        ys = ys.astype(np.float32)
        log_p, means, variances, slope = ours(params, ys)
        for i, y in enumerate(ys.astype(np.float64)):
            exact = [dense_log_p(*dense(params, k), y) for k in range(2)]
            np.testing.assert_allclose(log_p[i], exact, rtol=1e-4, atol=1e-4)
            exact_mean, covariance = dense_posterior(*dense(params, 1), y)
            np.testing.assert_allclose(means[i], exact_mean, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(variances[i], np.diag(covariance), rtol=1e-4)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


@pytest.mark.parametrize("factors", [4, 9])
def test_factors_beyond_what_is_seen_in_float32(factors):
    """Rows of 1e5, fewer than factors: what they say of these and of x, to 1e-4 of float64's."""
    rng = np.random.default_rng(0)
    rows, x = ((1e5 * rng.normal(size=(3, n))).astype(np.float32) for n in (factors, 1))
    known = jax.tree.map(lambda part: np.asarray(part, np.float64), jax.jit(seen_through)(rows, x))
    rows, x = rows.astype(np.float64), x.astype(np.float64)
    left, size, right = np.linalg.svd(rows, full_matrices=False)
    covariance = np.eye(factors) - right.T @ np.diag(size**2 / (1 + size**2)) @ right
    np.testing.assert_allclose(np.diag(known.share @ known.share.T), np.diag(covariance), rtol=1e-4)
    np.testing.assert_allclose(
        known.share @ known.projected, right.T @ (size[:, None] / (1 + size[:, None] ** 2) * (left.T @ x)), atol=1e-4
    )
    assert known.log_scale == pytest.approx(0.5 * np.sum(np.log1p(size**2)), rel=1e-5)
    marginal = np.sum((left.T @ x)[:, 0] ** 2 / (1 + size**2))
    assert np.sum(known.rest**2) == pytest.approx(marginal, rel=1e-4)


def test_an_m_step_finds_small_noise_in_float32():
    """Noise of 1e-8, 40 % missing: what one M-step makes of it, to 5e-3 of numpy's in float64."""
    rng = np.random.default_rng(0)
    model = factor_analysis(D, Q, missing=True, floor=1e-14)
    loadings = rng.normal(size=(D, Q)).astype(np.float32)
    ys = (rng.normal(size=(60, Q)) @ loadings.T + 1e-4 * rng.normal(size=(60, D))).astype(np.float32)
    ys[rng.uniform(size=ys.shape) < 0.4] = NAN
    gen = {"mean": np.zeros(D), "loadings": loadings, "log_std": np.full(D, np.log(1e-4))}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), {"pri": {}, "gen": gen})
    stepped = jax.jit(lambda p: model.em.maximise(p, model.em.expect(p, ys, None)[1], 60))(params)["gen"]
    numbers = np.zeros(D), loadings.astype(np.float64), np.exp(2 * np.asarray(params["gen"]["log_std"], np.float64))
    _, exact, noise = numpy_step(ys.astype(np.float64), *numbers)
    np.testing.assert_allclose(stepped["loadings"], exact, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.exp(2 * stepped["log_std"]), noise, rtol=5e-3)


@pytest.mark.parametrize("make", [factor_analysis, lambda d, q, **o: mixture_of_factor_analysers(d, q, 2, **o)])
def test_degenerate_data_end_at_the_floor(make):
    """A constant column, a column never seen, repeated rows, few rows: finite, and never below the floor."""
    ys = some_data(4).astype(np.float32)
    ys = np.concatenate([ys, ys[:1]])
    ys[:, 1] = 3.0
    ys[:, 2] = NAN
    model = make(D, 3, missing=True, floor=1e-4)
    fitted = fit_em(model, ys, key=jax.random.key(0), iterations=300, tolerance=None)
    assert np.isfinite(fitted.history).all()
    for leaf in jax.tree.leaves(fitted.params):
        assert np.isfinite(leaf).all()
    stds = next(v for k, v in fitted.params["gen"].items() if k.startswith("log_std"))
    assert np.min(stds) >= 0.5 * np.log(1e-4) - 1e-5
    gradient = jax.jit(jax.grad(lambda p: model.em.expect(p, ys, None)[0].mean()))(fitted.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_closed_form_at_the_floor(x64):
    """Data of rank 2 and q = 2: sigma^2 would be 0; at the floor the value is that of the density there."""
    rng = np.random.default_rng(0)
    ys = rng.normal(size=(30, 2)) @ rng.normal(size=(2, D))
    exact = ppca_closed_form(ys, 2, floor=1e-3)
    assert exact.log_p == pytest.approx(float(ppca(D, 2).em.expect(exact.params, ys, None)[0].mean()), rel=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: factor_analysis(5, 0), "latent"),
        (lambda: ppca(3, 4), "latent"),
        (lambda: factor_analysis(5, 2, floor=0.0), "floor"),
        (lambda: ppca_closed_form(np.zeros((9, 5)), 5), "latent"),
        (lambda: ppca_closed_form(np.zeros(9), 1), "shape"),
        (lambda: ppca_closed_form(np.full((9, 5), NAN), 1), "NaN"),
        (lambda: ppca_closed_form(some_data(2), 2), "2 examples"),
        (lambda: fit_em(factor_analysis(D, Q), some_data(2), key=jax.random.key(0)), "2 examples"),
        (lambda: fit_em(factor_analysis(D, Q), some_data(9, holes=0.5), key=jax.random.key(0)), "missing=True"),
        (lambda: fit_em(factor_analysis(D, Q), np.arange(9), key=jax.random.key(0)), "labels"),
        (lambda: fit_em(factor_analysis(D, Q), some_data(9), np.arange(9), key=jax.random.key(0)), "condition"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
