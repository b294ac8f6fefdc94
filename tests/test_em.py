"""EM: mixtures of Gaussians against scikit-learn and against the algebra of the lecture; the driver; stepwise EM."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy import stats
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.datasets import load_iris, load_wine
from sklearn.mixture import GaussianMixture

from vae_jax import evaluate, fixed_encoder, gaussian, l2, standard_normal, vae
from vae_jax.core import lift
from vae_jax.em import (
    CovariancePrior,
    as_vae,
    expect_in_chunks,
    fit_em,
    gaussian_hmm,
    gaussians,
    init_em,
    k_means,
    make_em_step,
    mixture,
    mixture_of_bernoullis,
    mixture_of_gaussians,
)
from vae_jax.em.kmeans import assign, plus_plus

FORMS = {"full": "full", "tied": "tied", "diagonal": "diag", "spherical": "spherical"}
LINE = np.concatenate([np.arange(-2.0, 2.0, 0.5), np.arange(3.0, 5.0, 0.5)])[:, None]
STARTS = {"wine": (load_wine, (0, 70, 150)), "iris": (load_iris, (0, 60, 120))}


def real_data(name):
    """(standardised rows, three of them to start at)."""
    load, chosen = STARTS[name]
    ys = load().data
    ys = (ys - ys.mean(axis=0)) / ys.std(axis=0)
    return ys, ys[list(chosen)]


def start_at(model, means):
    """Unit covariances, equal weights, these means."""
    params = model.init(jax.random.key(0))
    return {**params, "gen": {**params["gen"], "means": jnp.asarray(means)}}


def dense(covariance, raw, k, d):
    """numpy: covariance matrices (k, d, d) from the parameters."""
    raw = np.asarray(raw)
    if covariance in ("diagonal", "spherical"):
        return np.array([np.eye(d) * np.exp(2 * row) for row in raw])
    factors = np.tril(raw, -1) + np.exp(np.diagonal(raw, axis1=-2, axis2=-1))[..., None] * np.eye(d)
    return np.broadcast_to(factors @ np.swapaxes(factors, -1, -2), (k, d, d))


def random_params(model, rng):
    return jax.tree.map(
        lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape)), jax.eval_shape(model.init, jax.random.key(0))
    )


@functools.partial(jax.jit, static_argnums=0)
def log_ps(model, params, ys):
    return jax.vmap(model.dist(params).log_prob)(ys)


def mean_log_p(model, params, ys):
    return float(np.mean(log_ps(model, params, ys)))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize("covariance", FORMS)
def test_equals_scikit_learn(x64, covariance, name):
    """From the same start, after 1, 2, 5 and 100 iterations, to 1e-10.

    By stepwise EM on the full batch with decay 0, and by `fit_em`, in chunks that do not divide the data.
    """
    ys, means = real_data(name)
    d = ys.shape[1]
    unit = {"full": np.tile(np.eye(d), (3, 1, 1)), "tied": np.eye(d), "diag": np.ones((3, d)), "spherical": np.ones(3)}
    model = mixture_of_gaussians(d, 3, covariance, floor=1e-12)
    start = start_at(model, means)
    state = init_em(model, jnp.asarray(ys), params=start)
    step = jax.jit(make_em_step(model, decay=0.0))
    for iterations in (1, 2, 5, 100):
        while state.step < iterations:
            state, _ = step(state, jnp.asarray(ys))
        peer = GaussianMixture(
            3,
            covariance_type=FORMS[covariance],
            tol=0,
            reg_covar=0,
            max_iter=iterations,
            weights_init=np.full(3, 1 / 3),
            means_init=means,
            precisions_init=unit[FORMS[covariance]],
        ).fit(ys)
        gen = state.params["gen"]
        np.testing.assert_allclose(softmax(state.params["pri"]["logits"]), peer.weights_, atol=1e-10)
        np.testing.assert_allclose(gen["means"], peer.means_, atol=1e-10)
        theirs = {
            "full": lambda c: c,
            "tied": lambda c: np.tile(c, (3, 1, 1)),
            "diag": lambda c: np.array([np.diag(row) for row in c]),
            "spherical": lambda c: np.array([np.eye(d) * x for x in c]),
        }[FORMS[covariance]](peer.covariances_)
        np.testing.assert_allclose(dense(covariance, gen["covariances"], 3, d), theirs, atol=1e-10)
        assert mean_log_p(model, state.params, ys) == pytest.approx(peer.score(ys), abs=1e-10)
    whole = fit_em(model, ys, params=start, iterations=100, tolerance=None, chunk=64)
    assert len(whole.history) == 101
    assert whole.history[-1] == pytest.approx(peer.score(ys), abs=1e-10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-9), whole.params, state.params)


def test_known_path_on_a_line(x64):
    """Two components on {-2, ..., 1.5, 3, ..., 4.5}: mean ln p after 0, 1, 2, ... iterations."""
    model = mixture_of_gaussians(1, 2, "full")
    fitted = fit_em(model, LINE, params=start_at(model, [[-1.0], [3.0]]), iterations=2000, tolerance=1e-14)
    np.testing.assert_allclose(fitted.history[:3], [-2.1355520849, -2.0567242995, -2.0505004797], atol=1e-10)
    assert fitted.history[-1] == pytest.approx(-1.9474457522, abs=1e-9) and fitted.converged


def test_iris_reaches_the_known_maximum(x64):
    """K = 2, full covariances: total ln p = -214.3547, from the best of four starts."""
    ys = load_iris().data
    fitted = fit_em(mixture_of_gaussians(4, 2, "full"), ys, key=jax.random.key(0), restarts=4, tolerance=1e-9)
    assert fitted.history[-1] * len(ys) == pytest.approx(-214.3547, abs=1e-4)
    assert fitted.converged and fitted.restarts.shape == (4,)
    assert fitted.restarts.max() == fitted.history[-1]


@pytest.mark.parametrize("covariance", FORMS)
@pytest.mark.parametrize("missing", [False, True])
def test_never_falls(x64, covariance, missing):
    """Monotone to 1e-12, from random starts, whether entries are missing or not."""
    ys = real_data("wine")[0].copy()
    if missing:
        ys[::3, 0] = ys[1::5, 2:7] = np.nan
        ys[7] = np.nan
    model = mixture_of_gaussians(13, 4, covariance, missing=missing, start="random", floor=1e-2)
    fitted = fit_em(model, ys, key=jax.random.key(1), iterations=40, tolerance=None)
    assert np.isfinite(fitted.history).all()
    assert np.diff(fitted.history).min() > -1e-12


@pytest.mark.parametrize("covariance", FORMS)
def test_density_and_e_step_agree_with_scipy(x64, covariance):
    """ln p by the distribution, by the E-step and by scipy; the posterior is Bayes' rule."""
    rng = np.random.default_rng(0)
    model = mixture_of_gaussians(3, 4, covariance)
    params = random_params(model, rng)
    ys = rng.normal(size=(5, 3))
    covariances = dense(covariance, params["gen"]["covariances"], 4, 3)
    each = np.array(
        [
            stats.multivariate_normal(m, c).logpdf(ys)
            for m, c in zip(np.asarray(params["gen"]["means"]), covariances, strict=True)
        ]
    ).T
    joint = each + log_softmax(np.asarray(params["pri"]["logits"]))[None]

    @jax.jit
    def ours(params, ys):
        return (
            jax.vmap(model.dist(params).log_prob)(ys),
            model.em.expect(params, ys)[0],
            model.em.posterior(params, ys[0]).probs,
        )

    by_density, by_e_step, posterior = ours(params, ys)
    np.testing.assert_allclose(by_density, logsumexp(joint, axis=1), rtol=1e-12)
    np.testing.assert_allclose(by_e_step, logsumexp(joint, axis=1), rtol=1e-12)
    np.testing.assert_allclose(posterior, softmax(joint[0]), rtol=1e-10)


# The lecture: EM alternates exact optimisation of enc and of (pri, gen)


@pytest.mark.parametrize("covariance", ["full", "tied"])
def test_e_and_m_step_are_the_two_halves_of_the_lecture(x64, covariance):
    """After the E-step the ELBO is ln p; after the M-step ln p_new - ELBO(q_old, new) = KL(q_old || posterior_new)."""
    ys = real_data("iris")[0]
    model = mixture_of_gaussians(4, 3, covariance)
    system = as_vae(model)
    old = fit_em(model, ys, key=jax.random.key(0), iterations=2, tolerance=None).params
    new = jax.jit(lambda p: model.em.maximise(p, model.em.expect(p, ys)[1], len(ys)))(old)

    @jax.jit
    def elbo(enc, params):
        params = {"enc": enc, **params}
        return -jax.vmap(lambda y: system.terms(params, jax.random.key(0), y).nats)(jnp.asarray(ys))

    log_p_old, log_p_new = (jax.jit(model.em.expect)(params, ys)[0] for params in (old, new))
    np.testing.assert_allclose(elbo(old, old), log_p_old, rtol=1e-10)
    posterior = jax.jit(lambda p: jax.vmap(lambda y: model.em.posterior(p, y).probs)(jnp.asarray(ys)))
    q_old, q_new = np.asarray(posterior(old)), np.asarray(posterior(new))
    kl = np.sum(np.where(q_old > 0, q_old * (np.log(q_old + 1e-300) - np.log(q_new + 1e-300)), 0.0), axis=1)
    np.testing.assert_allclose(log_p_new - elbo(old, new), kl, atol=1e-9)
    assert elbo(old, new).mean() > elbo(old, old).mean() + 1e-3  # the M-step is a step up on the same ELBO


@pytest.mark.parametrize("covariance", FORMS)
def test_fisher_identity(x64, covariance):
    """At the exact encoder the gradient of the ELBO over pri and gen is the gradient of ln p."""
    ys = jnp.asarray(real_data("iris")[0][:20])
    rng = np.random.default_rng(1)
    model = mixture_of_gaussians(4, 3, covariance)
    params = random_params(model, rng)
    system = as_vae(model)

    def elbo(parts):
        whole = {"enc": params, **parts}
        return -jax.vmap(lambda y: system.terms(whole, jax.random.key(0), y).nats)(ys).mean()

    of_elbo = jax.jit(jax.grad(elbo))(params)
    of_log_p = jax.jit(jax.grad(lambda p: model.em.expect(p, ys)[0].mean()))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), of_elbo, of_log_p)


@pytest.mark.parametrize("covariance", FORMS)
def test_the_maximum_is_stationary(x64, covariance):
    """The gradient of ln p (+ ln prior) vanishes where EM ends: with missing entries, and with priors."""
    rng = np.random.default_rng(2)
    ys = rng.normal(size=(60, 3)) + 3 * rng.integers(0, 2, size=(60, 1))
    gaps = ys.copy()
    gaps[::4, 0] = gaps[1::6, 1:] = np.nan
    gaps[5] = np.nan
    cases = [
        (mixture_of_gaussians(3, 2, covariance, missing=True), gaps),
        (mixture_of_gaussians(3, 2, covariance, prior=CovariancePrior(5.0, 0.3), concentration=3.0), ys),
    ]
    for model, data in cases:
        fitted = fit_em(model, data, key=jax.random.key(0), iterations=1000, tolerance=1e-14)
        assert fitted.converged and np.diff(fitted.history).min() > -1e-12

        def total(params, model=model, data=data):
            return model.em.expect(params, data)[0].sum() + model.em.log_prior(params)

        value, gradient = jax.jit(jax.value_and_grad(total))(fitted.params)
        assert value / len(data) == pytest.approx(fitted.history[-1], abs=1e-12)
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) < 1e-4


def test_missing_entries_are_summed_out(x64):
    """ln p of what is seen is that of scipy's marginal; nothing seen: ln p = 0."""
    rng = np.random.default_rng(3)
    for covariance in FORMS:
        model = mixture_of_gaussians(3, 2, covariance, missing=True)
        params = random_params(model, rng)
        log_p = jax.jit(lambda p, y, m=model: (m.em.expect(p, y[None])[0][0], m.dist(p).log_prob(y)))
        covariances = dense(covariance, params["gen"]["covariances"], 2, 3)
        means, weights = np.asarray(params["gen"]["means"]), softmax(np.asarray(params["pri"]["logits"]))
        for seen in ([0], [1, 2], [0, 2], [0, 1, 2], []):
            y = np.full(3, np.nan)
            y[seen] = rng.normal(size=len(seen))
            parts = [
                stats.multivariate_normal(m[seen], c[np.ix_(seen, seen)]).pdf(y[seen]) if seen else 1.0
                for m, c in zip(means, covariances, strict=True)
            ]
            for ours in log_p(params, y):
                assert ours == pytest.approx(np.log(weights @ parts), abs=1e-12)
    result = evaluate(lift(model), params, jax.random.key(0), np.array([[1.0, np.nan, 2.0], [0.0, 0.0, 0.0]]))
    rows = np.array([[1.0, np.nan, 2.0], [0.0] * 3])
    np.testing.assert_allclose(result.elbo, log_ps(model, params, rows), rtol=1e-10)


def test_missing_entries_where_a_column_is_the_sum_of_two():
    """Float32: complete data end at the maximum at the floor, at scale 10 where missing=False ends; else EM rises."""
    rng = np.random.default_rng(0)
    ys = rng.normal(size=(200, 2))
    ys = np.concatenate([ys, ys.sum(axis=1, keepdims=True)], axis=1).astype(np.float32)
    whole, gaps = (mixture_of_gaussians(3, 1, "full", missing=missing) for missing in (False, True))

    def history(model, ys):
        return fit_em(model, ys, key=jax.random.key(0), iterations=20, tolerance=None).history

    values = np.linalg.eigvalsh(np.cov(ys.T.astype(np.float64), bias=True))
    raised = np.maximum(values, 1e-6)
    exact = -0.5 * np.sum(np.log(2 * np.pi * raised) + values / raised)
    assert history(gaps, ys)[-1] == pytest.approx(exact, abs=1e-3)
    assert history(gaps, 10 * ys)[-1] == pytest.approx(history(whole, 10 * ys)[-1], abs=1e-3)
    ys[rng.uniform(size=ys.shape) < 0.1] = np.nan
    assert np.diff(history(gaps, ys)).min() > -1e-3


# Degenerate data


@pytest.mark.parametrize(("covariance", "dtype"), [*((form, np.float32) for form in FORMS), ("full", np.float64)])
def test_degenerate_data_stay_finite(x64, covariance, dtype):
    """A constant column, repeated points, as many components as points: floored, finite and monotone."""
    ys = np.zeros((6, 3), dtype)
    ys[:, 0] = [0, 0, 0, 5, 5, 90]
    ys[:, 1] = 7.0
    for components in (3, 6):
        model = mixture_of_gaussians(3, components, covariance)
        fitted = fit_em(model, ys, key=jax.random.key(0), restarts=3, iterations=30, tolerance=None)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fitted.params))
        assert np.isfinite(fitted.history).all()
        assert fitted.params["gen"]["means"].dtype == dtype
        slack = 1e-12 if dtype == np.float64 else 1e-4 * np.abs(fitted.history).max()
        assert np.diff(fitted.history).min() > -slack
        variances = np.linalg.eigvalsh(dense(covariance, fitted.params["gen"]["covariances"], components, 3))
        assert variances.min() > (0.99e-6 if dtype == np.float64 else 0.5e-6)


def test_a_component_without_data_keeps_its_place(x64):
    model = mixture_of_gaussians(2, 2, "full")
    ys = np.random.default_rng(4).normal(size=(50, 2))
    fitted = fit_em(model, ys, params=start_at(model, [[0.0, 0.0], [1e6, 0.0]]), iterations=5, tolerance=None)
    np.testing.assert_array_equal(fitted.params["gen"]["means"][1], [1e6, 0.0])
    np.testing.assert_allclose(fitted.params["gen"]["means"][0], ys.mean(axis=0), rtol=1e-10)
    assert np.isfinite(fitted.history).all()


def test_single_precision_far_from_zero():
    """Means 3,000 standard deviations from 0 in float32: covariances come out as in float64, to 1 %."""
    rng = np.random.default_rng(5)
    ys = np.concatenate([rng.normal(size=(500, 2)), rng.normal(size=(500, 2)) + 8.0]) + 3000.0
    fitted = fit_em(mixture_of_gaussians(2, 2, "full"), ys, key=jax.random.key(0), iterations=20)
    covariances = dense("full", fitted.params["gen"]["covariances"], 2, 2)
    order = np.argsort(np.asarray(fitted.params["gen"]["means"])[:, 0])
    for k, rows in zip(order, (ys[:500], ys[500:]), strict=True):
        np.testing.assert_allclose(covariances[k], np.cov(rows.T, bias=True), atol=0.02)


@pytest.mark.parametrize("hard", [False, True])
def test_a_component_of_weight_zero_stays_so(hard):
    """A logit of -inf, through M-steps with a Dirichlet prior, whose pseudo-counts the others share as in numpy;
    ln P is finite, never drawn, and the gradients of ln P and of the ELBO are not NaN."""
    ys = np.concatenate([LINE, LINE + 0.1]).astype(np.float32)
    model = mixture(gaussians(1, "full"), 3, concentration=2.0, hard=hard)
    start = start_at(model, np.float32([[-1.0], [0.0], [3.0]]))
    start["pri"] = {"logits": jnp.array([0.0, -jnp.inf, 0.0])}

    @jax.jit
    def iterated(params):
        log_p, stats = model.em.expect(params, ys)
        new = model.em.maximise(params, stats, len(ys))
        return log_p, stats, new, model.em.log_prior(new)

    log_p, stats, new, log_prior = iterated(start)
    counts = len(ys) * np.asarray(stats["pri"]) + [1, 0, 1]
    np.testing.assert_allclose(np.exp(new["pri"]["logits"]), counts / counts.sum(), rtol=1e-6)
    params = iterated(new)[2]
    np.testing.assert_array_equal(np.isneginf(params["pri"]["logits"]), [False, True, False])
    assert np.isfinite(log_p).all() and np.isfinite(log_prior)
    system = as_vae(model)

    @jax.jit
    def results(params):
        log_p = jax.grad(lambda p: model.dist(p).log_prob(ys[0]))(params)
        nats = jax.grad(lambda p: system.terms(p, jax.random.key(0), ys[0]).nats)({"enc": params, **params})
        return model.em.posterior(params, ys[0]).sample(jax.random.key(0), (100,)), (log_p, nats)

    drawn, gradients = results(params)
    assert (drawn != 1).all() and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


# Starts, hard EM, stepwise EM


def test_k_means_start(x64):
    """k-means++ draws rows in proportion to squared distance (20,000 draws, key 0, 4 standard errors)."""
    rows = jnp.array([[0.0], [1.0], [3.0]])
    drawn = jax.jit(jax.vmap(lambda key: plus_plus(key, rows, 2)[:, 0]))(jax.random.split(jax.random.key(0), 20_000))
    first, second = np.asarray(drawn).T
    for a, others in ((0.0, {1.0: 0.1, 3.0: 0.9}), (1.0, {0.0: 0.2, 3.0: 0.8}), (3.0, {0.0: 9 / 13, 1.0: 4 / 13})):
        chosen = second[first == a]
        assert abs(len(chosen) / 20_000 - 1 / 3) < 4 * np.sqrt(2 / 9 / 20_000)
        for b, p in others.items():
            assert abs(np.mean(chosen == b) - p) < 4 * np.sqrt(p * (1 - p) / len(chosen))
    same = jax.jit(lambda key: plus_plus(key, jnp.ones((5, 2)), 3))(jax.random.key(1))  # nothing to choose between
    np.testing.assert_array_equal(same, np.ones((3, 2)))


def test_hard_em_with_equal_spheres_is_lloyd(x64):
    """One hard E-step and M-step move the means as one step of k-means does (equal weights, tied unit covariance)."""
    ys, means = real_data("iris")
    model = mixture_of_gaussians(4, 3, "tied", hard=True)
    params = start_at(model, means)
    stepped = jax.jit(lambda p, y: model.em.maximise(p, model.em.expect(p, y)[1], len(ys)))(params, ys)
    nearest = np.argmin(((ys[:, None] - means[None]) ** 2).sum(-1), axis=1)
    np.testing.assert_array_equal(jax.jit(assign)(ys, means), nearest)
    expected = [ys[nearest == k].mean(axis=0) for k in range(3)]
    np.testing.assert_allclose(stepped["gen"]["means"], expected, rtol=1e-10)
    history = fit_em(model, ys, params=params, iterations=30, tolerance=None).history
    assert np.diff(history).min() > -1e-12  # of the bound max_k ln P(y, k)
    soft = fit_em(mixture_of_gaussians(4, 3, "tied"), ys, params=params, iterations=30, tolerance=None)
    assert soft.history[-1] > history[-1]


def test_k_means_finds_the_clusters():
    rng = np.random.default_rng(6)
    truth = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    rows = np.concatenate([rng.normal(size=(40, 2)) * 0.1 + centre for centre in truth])
    centres = np.asarray(k_means(jax.random.key(0), jnp.asarray(rows, jnp.float32), 3))
    np.testing.assert_allclose(centres[np.lexsort((centres[:, 1], centres[:, 0]))], truth[[0, 2, 1]], atol=0.1)


@pytest.mark.parametrize("covariance", FORMS)
def test_recentred_stats_are_those_about_the_new_means(x64, covariance):
    """What stepwise EM relies on: stats about old means, moved, equal stats about new ones with the same weights."""
    rng = np.random.default_rng(7)
    family = gaussians(3, covariance)
    ys, weights = jnp.asarray(rng.normal(size=(9, 3))), jnp.asarray(rng.dirichlet(np.ones(2), size=9))
    old, new = (
        {"means": jnp.asarray(rng.normal(size=(2, 3))), "covariances": family.init(jax.random.key(0), 2)["covariances"]}
        for _ in range(2)
    )
    stats_about = jax.jit(family.stats)
    moved = family.recentre(stats_about(old, ys, weights), old, new)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), moved, stats_about(new, ys, weights))


def test_stepwise_em_on_minibatches_reaches_the_maximum(x64):
    """Batches of 30 of iris, step sizes (t + 2)^-0.7: within 0.02 nats of batch EM after 1,500 steps, key 0."""
    ys, means = real_data("iris")
    model = mixture_of_gaussians(4, 3, "tied")
    best = fit_em(model, ys, params=start_at(model, means), iterations=500, tolerance=1e-10)
    step = make_em_step(model, decay=lambda t: 1 - (t + 2.0) ** -0.7)

    def body(state, key):
        return step(state, jnp.asarray(ys)[jax.random.choice(key, len(ys), (30,), replace=False)])

    start = init_em(model, jnp.asarray(ys), params=best.params | {"pri": {"logits": jnp.zeros(3)}})
    state, _ = jax.jit(lambda s, k: jax.lax.scan(body, s, k))(start, jax.random.split(jax.random.key(0), 1500))
    assert mean_log_p(model, state.params, ys) == pytest.approx(best.history[-1], abs=0.02)


@pytest.mark.parametrize("name", ["mixture", "hidden Markov model"])
def test_a_step_on_a_mesh(x64, name):
    """The numbers of one device, and no example leaves the device that has it: the branches of an E-step included."""
    rng = np.random.default_rng(0)
    if name == "mixture":
        model, ys = mixture_of_gaussians(4, 3, "tied"), rng.normal(size=(8, 4))
    else:
        model, ys = gaussian_hmm(2, 3, 6, parallel=True), rng.normal(size=(8, 6, 2))
    mesh = jax.make_mesh((4,), ("data",))
    start = init_em(model, jnp.asarray(ys), key=jax.random.key(0))
    place = NamedSharding(mesh, PartitionSpec("data"))
    run = jax.jit(make_em_step(model, decay=0.5, mesh=mesh)).lower(start, jax.device_put(ys, place)).compile()
    assert "all-gather" not in run.as_text()
    found, log_p = run(start, jax.device_put(ys, place))
    wanted, wanted_log_p = jax.jit(make_em_step(model, decay=0.5))(start, jnp.asarray(ys))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), found, wanted)
    assert float(log_p) == pytest.approx(float(wanted_log_p), rel=1e-12)
    with pytest.raises(ValueError, match="6 does not divide over the 4 devices"):
        make_em_step(model, decay=0.5, mesh=mesh)(start, jnp.asarray(ys[:6]))


# One driver; a prior; a model like others


def test_chunks_do_not_matter(x64):
    ys, means = real_data("wine")
    model = mixture_of_gaussians(13, 3, "full")
    params = start_at(model, means)
    whole, *cut = (
        jax.jit(lambda p, y, n=n: expect_in_chunks(model.em, p, y, None, n))(params, jnp.asarray(ys))
        for n in (178, 89, 50, 1)
    )
    for part in cut:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), part, whole)


def test_memory_holds_no_row_by_component_by_dimension():
    """A compiled iteration on 8,192 x 32 with 64 components: far less than n x K x D floats (64 MiB)."""
    model, n = mixture_of_gaussians(32, 64, "full"), 8192
    params = model.init(jax.random.key(0))

    def iteration(params, ys):
        log_p, stats = expect_in_chunks(model.em, params, ys, None, 2048)
        return log_p, model.em.maximise(params, stats, n)

    memory = jax.jit(iteration).lower(params, jnp.zeros((n, 32))).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.25 * n * 64 * 32 * 4


def test_a_mixture_is_the_prior_of_a_vae(x64):
    """Ex-post density fitting: the mixture fitted to the codes lowers the rate, and nothing else changes."""
    ys = jnp.asarray(real_data("wine")[0])
    net = (lambda key, x: {"w": 0.5 * jax.random.normal(key, (4, x.shape[0]))}, lambda p, x: p["w"] @ x)
    decode = (lambda key, z: {"w": 0.5 * jax.random.normal(key, (13, 2))}, lambda p, z: p["w"] @ z)
    encoder, generator = gaussian(net), l2(decode, 1.0)
    prior = mixture_of_gaussians(2, 3, "full")
    first = vae(encoder, standard_normal(2), generator, estimator=fixed_encoder)
    second = vae(encoder, prior, generator, estimator=fixed_encoder)
    params = first.init(jax.random.key(0), ys[0])
    codes = jax.vmap(lambda key, y: encoder.dist(params["enc"], y).sample(key))(
        jax.random.split(jax.random.key(1), len(ys)), ys
    )
    fitted = fit_em(prior, codes, key=jax.random.key(2), restarts=3)
    before = evaluate(first, params, jax.random.key(3), ys)
    after = evaluate(second, {**params, "pri": fitted.params}, jax.random.key(3), ys)
    np.testing.assert_allclose(after.distortion, before.distortion, rtol=1e-12)
    assert after.rate.mean() < before.rate.mean() - 0.3


def test_what_cannot_be_fitted_is_refused():
    model = mixture_of_gaussians(2, 3)
    ys = np.random.default_rng(0).normal(size=(9, 2))
    key = jax.random.key(0)
    refused = [
        ((ys[:2],), {"key": key}, "2 examples cannot be fitted by 3 components"),
        ((ys[:0],), {"key": key}, "ys is empty"),
        ((np.arange(9),), {"key": key}, "a vector of labels"),
        ((ys[:, :1],), {"key": key}, r"examples of shape \(2,\)"),
        ((np.where(ys > 1, np.nan, ys),), {"key": key}, "missing=True if NaN means"),
        ((np.where(ys > 1, np.inf, ys),), {"key": key}, "infinity in"),
        ((ys, np.zeros(9)), {"key": key}, "takes no condition"),
        ((ys + np.array([0.0, 1e9]),), {"key": key}, "ys, column 1, lies between .* subtract the column's mean"),
        ((ys * [1.0, 1e39],), {"key": key}, "ys, column 1, .* beyond the range of float32"),
        ((ys,), {}, "give one of them"),
        ((ys,), {"key": key, "params": model.init(key)}, "give one of them"),
        ((ys,), {"params": model.init(key), "restarts": 2}, "would all be the same"),
        ((ys,), {"key": key, "iterations": 0}, "want iterations, restarts and chunk >= 1"),
    ]
    for arguments, options, message in refused:
        with pytest.raises(ValueError, match=message):
            fit_em(model, *arguments, **options)
    with pytest.raises(ValueError, match="every entry of ys"):
        fit_em(mixture_of_gaussians(2, 3, missing=True), np.full((9, 2), np.nan), key=key)
    with pytest.raises(TypeError, match="does not offer"):
        fit_em(standard_normal(2), ys, key=key)
    with pytest.raises(FloatingPointError, match="positive definite"):
        broken = jax.tree.map(lambda x: x * jnp.nan, model.init(key))
        fit_em(model, ys, params=broken)
    for options in ({"components": 0}, {"concentration": 0.5}, {"concentration": float("nan")}):
        with pytest.raises(ValueError, match="got"):
            mixture(gaussians(2), **{"components": 2, **options})
    for size, options in ((0, {}), ((2, 2), {"covariance": "full"}), ((2, 2), {"missing": True}), (2, {"floor": 0.0})):
        with pytest.raises(ValueError, match="got size="):
            gaussians(size, **{"covariance": "diagonal", **options})
    with pytest.raises(ValueError, match=r"in \[0, 1\)"):
        make_em_step(model, decay=1.0)


def test_params_of_another_model_are_refused():
    """By fit_em and init_em, naming the part; whole numbers and half precision are params like others."""
    model, key = mixture_of_gaussians(2, 3, "full"), jax.random.key(0)
    params, ys = model.init(key), np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    others = [
        (
            mixture_of_gaussians(2, 4, "full").init(key),
            r"gen/covariances holds \(4, 2, 2\), and the model wants \(3, 2, 2\)",
        ),
        (mixture_of_gaussians(1, 3, "full").init(key), r"gen/covariances holds \(3, 1, 1\)"),
        (mixture_of_gaussians(2, 3, "diagonal").init(key), r"gen/covariances holds \(3, 2\)"),
        ({"gen": params["gen"]}, r"pri/logits holds nothing, and the model wants \(3,\)"),
        ({**params, "enc": {"w": np.ones(2)}}, r"enc/w holds \(2,\), and the model wants nothing"),
        ({**params, "pri": {"logits": np.array(["a", "b", "c"])}}, "pri/logits holds no numbers"),
        (np.ones(3), r"params holds \(3,\), and the model wants nothing"),
        ({**params, "pri": params["pri"]["logits"]}, r"pri holds \(3,\)"),
    ]
    for other, message in others:
        for use in (fit_em, init_em):
            with pytest.raises(ValueError, match=message):
                use(model, ys, params=other)
    discrete = mixture_of_bernoullis(2, 2)
    bits, start = (ys > 0).astype(int), {"pri": {"logits": [0, 1]}, "gen": {"logits": [[0, 1], [1, -1]]}}
    whole = jax.tree.map(np.array, start, is_leaf=lambda x: isinstance(x, list))
    exact = fit_em(discrete, bits, params=jax.tree.map(np.float32, whole), iterations=3)
    for dtype in (np.int32, np.float16):
        fitted = fit_em(discrete, bits, params=jax.tree.map(lambda x, d=dtype: x.astype(d), whole), iterations=3)
        np.testing.assert_allclose(fitted.history, exact.history, rtol=1e-6)
        assert fitted.params["pri"]["logits"].dtype == np.float32


def test_half_precision_is_widened():
    """float16 and bfloat16 data, full covariances: the same fit as of these values in float32."""
    ys, model = real_data("iris")[0][:40], mixture_of_gaussians(4, 2, "full")
    start = start_at(model, ys[[0, 20]])
    for dtype in (np.float16, jnp.bfloat16):
        few = ys.astype(dtype)
        fitted = fit_em(model, few, params=start, iterations=3)
        wide = fit_em(model, few.astype(np.float32), params=start, iterations=3)
        np.testing.assert_array_equal(fitted.history, wide.history)
        assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(fitted.params))
    step = jax.jit(lambda few: make_em_step(model, decay=0.5)(init_em(model, few, params=fitted.params), few))
    assert np.isfinite(step(few)[1])
