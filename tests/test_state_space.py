"""Linear-Gaussian state-space models against the dense Gaussian of the whole sequence, in numpy, EM included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vae_jax.em import as_vae, fit_em, linear_gaussian_state_space
from vae_jax.em.sequences.noisy_chains import filter_sequence
from vae_jax.selfcheck.quadrature import sigma_points

NAN = float("nan")
D, Q, T, N = 3, 2, 5, 6
CASES = ["diagonal", "full, ragged, missing"]


@functools.cache
def model_of(case, *, parallel=False):
    noise, *options = case.split(", ")
    return linear_gaussian_state_space(D, Q, T, noise=noise, missing="missing" in options, parallel=parallel)


def data_of(case, *, seed=0):
    """(ys (n, T, D), lengths or None); padding is NaN, or where nothing may be missing, of no matter."""
    rng = np.random.default_rng(seed)
    ys = rng.normal(size=(N, T, D)).cumsum(axis=1)
    if "ragged" not in case:
        return ys, None
    ys[rng.uniform(size=ys.shape) < 0.25] = NAN
    ys[0, 2] = NAN
    lengths = np.array([5, 3, 1, 4, 5, 2])
    ys[np.arange(T)[None] >= lengths[:, None]] = NAN
    return ys, lengths


def random_params(case, seed=0):
    rng = np.random.default_rng(seed)
    params = model_of(case).init(jax.random.key(seed))
    return jax.tree.map(lambda x: x + jnp.asarray(0.2 * rng.normal(size=x.shape)), params)


def covariance_of(raw):
    if raw.ndim == 1:
        return np.diag(np.exp(2 * raw))
    factor = np.tril(raw, -1) + np.diag(np.exp(np.diag(raw)))
    return factor @ factor.T


def plain(params):
    """numpy: m, P, A, Q, C, d, R."""
    pri, gen = jax.tree.map(np.asarray, (params["pri"], params["gen"]))
    first = pri["mean"], covariance_of(pri["initial"]), pri["transition"], covariance_of(pri["noise"])
    return (*first, gen["loadings"], gen["bias"], covariance_of(gen["noise"]))


def dense(numbers, steps):
    """numpy: mean and covariance of (z_1 .. z_T, y_1 .. y_T), flat, from the definition."""
    m, p, a, q, c, d, r = numbers
    k = len(m)
    mean, covariance = np.zeros((steps, k)), np.zeros((steps, k, steps, k))
    mean[0], covariance[0, :, 0] = m, p
    for t in range(1, steps):
        mean[t] = a @ mean[t - 1]
        for s in range(t):
            covariance[t, :, s] = a @ covariance[t - 1, :, s]
            covariance[s, :, t] = covariance[t, :, s].T
        covariance[t, :, t] = a @ covariance[t - 1, :, t - 1] @ a.T + q
    covariance = covariance.reshape(steps * k, steps * k)
    every = np.kron(np.eye(steps), c)
    cross = every @ covariance
    of_y = cross @ every.T + np.kron(np.eye(steps), r)
    both = np.block([[covariance, cross.T], [cross, of_y]])
    return np.append(mean.ravel(), (mean @ c.T + d).ravel()), both


def condition(numbers, y):
    """numpy: ln P of what is seen of y (T, D), and mean (T, q + D) and covariance of (z, y) given that."""
    steps, k = len(y), len(numbers[0])
    mean, covariance = dense(numbers, steps)
    seen = np.append(np.zeros(steps * k, bool), ~np.isnan(y.ravel()))
    values = np.append(np.zeros(steps * k), y.ravel())[seen]
    factor = stats.Covariance.from_cholesky(np.linalg.cholesky(covariance[np.ix_(seen, seen)]))
    log_p = stats.multivariate_normal(mean[seen], factor).logpdf(values) if seen.any() else 0.0
    gain = np.linalg.solve(covariance[np.ix_(seen, seen)], covariance[seen]).T
    mean, covariance = mean + gain @ (values - mean[seen]), covariance - gain @ covariance[seen]
    order = np.concatenate([np.arange(steps * k).reshape(steps, k), steps * k + np.arange(y.size).reshape(y.shape)], 1)
    return log_p, mean[order], covariance[np.ix_(order.ravel(), order.ravel())].reshape(order.shape * 2)


def each(ys, lengths):
    return list(ys) if lengths is None else [y[:c] for y, c in zip(ys, lengths, strict=True)]


def count_of(lengths, i):
    return None if lengths is None else jnp.asarray(lengths[i])


@functools.cache
def expect_of(case, parallel):
    return jax.jit(model_of(case, parallel=parallel).em.expect)


@functools.cache
def moments_of(case, parallel):
    model = model_of(case, parallel=parallel)

    def moments(params, y, c):
        posterior = model.em.posterior(params, y, c)
        known, log_p = filter_sequence(model.dist(params, c).form, params, y, c)
        return posterior.mean, posterior.covariances, posterior.lag_one, known.means, known.covariances, log_p

    return jax.jit(moments)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("parallel", [False, True])
def test_filter_and_smoother_against_the_dense_gaussian(x64, case, parallel):
    """Means, covariances, lag-one covariances, filtered moments and ln P, missing entries and padding included."""
    params, (ys, lengths) = random_params(case), data_of(case)
    numbers = plain(params)
    for i, y in enumerate(each(ys, lengths)[:4]):
        steps = len(y)
        ours = moments_of(case, parallel)(params, jnp.asarray(ys[i]), count_of(lengths, i))
        mean, covariance, lag_one, filtered, filtered_covariance, log_p = (np.asarray(x) for x in ours)
        exact, exact_mean, exact_covariance = condition(numbers, y)
        assert log_p == pytest.approx(exact, rel=1e-10, abs=1e-10)
        np.testing.assert_allclose(mean[:steps], exact_mean[:, :Q], atol=1e-10)
        for t in range(steps):
            np.testing.assert_allclose(covariance[t], exact_covariance[t, :Q, t, :Q], atol=1e-10)
            _, so_far, spread = condition(numbers, y[: t + 1])
            np.testing.assert_allclose(filtered[t], so_far[t, :Q], atol=1e-10)
            np.testing.assert_allclose(filtered_covariance[t], spread[t, :Q, t, :Q], atol=1e-10)
            if t + 1 < steps:
                np.testing.assert_allclose(lag_one[t], exact_covariance[t + 1, :Q, t, :Q], atol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_parallel_equals_sequential(x64, case):
    params, (ys, lengths) = random_params(case), data_of(case)
    a, b = (expect_of(case, parallel)(params, ys, lengths) for parallel in (False, True))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), a, b)


def numpy_step(numbers, ys):
    """One EM step from the dense posterior: plain second moments, normal equations (Shumway & Stoffer 1982)."""
    k, count, moves = len(numbers[0]), sum(len(y) for y in ys), sum(len(y) - 1 for y in ys)
    first, total = [], 0.0
    s11, s10, s00 = np.zeros((k, k)), np.zeros((k, k)), np.zeros((k, k))
    sxx, syx, syy = np.zeros((k + 1, k + 1)), np.zeros((D, k + 1)), np.zeros((D, D))
    for y in ys:
        log_p, mean, covariance = condition(numbers, y)
        total += log_p
        first.append((mean[0, :k], covariance[0, :k, 0, :k]))
        for t in range(len(y)):
            second = np.outer(mean[t], mean[t]) + covariance[t, :, t]
            x = np.append(mean[t, :k], 1.0)
            sxx += np.outer(x, x)
            sxx[:k, :k] += covariance[t, :k, t, :k]
            syx += np.concatenate([second[k:, :k], mean[t, k:, None]], axis=1)
            syy += second[k:, k:]
            if t:
                before = np.outer(mean[t - 1, :k], mean[t - 1, :k]) + covariance[t - 1, :k, t - 1, :k]
                s00, s11 = s00 + before, s11 + second[:k, :k]
                s10 += np.outer(mean[t, :k], mean[t - 1, :k]) + covariance[t, :k, t - 1, :k]
    m = np.mean([mean for mean, _ in first], axis=0)
    p = np.mean([np.outer(mean - m, mean - m) + spread for mean, spread in first], axis=0)
    a, fit = s10 @ np.linalg.inv(s00), syx @ np.linalg.inv(sxx)
    r = (syy - fit @ syx.T) / count
    return total / len(ys), (m, p, a, (s11 - a @ s10.T) / moves, fit[:, :k], fit[:, k], r)


@pytest.mark.parametrize("case", CASES)
def test_em_equals_numpy(x64, case):
    """Five steps from the same start, and then on: monotone."""
    params, (ys, lengths) = random_params(case), data_of(case)
    fitted = fit_em(model_of(case), ys, lengths, params=params, iterations=60, tolerance=None)
    assert np.all(np.diff(fitted.history) > -1e-12)
    maximise, numbers = jax.jit(lambda p, stats: model_of(case).em.maximise(p, stats, N)), plain(params)
    for i in range(5):
        log_p, stats = expect_of(case, False)(params, ys, lengths)
        exact, numbers = numpy_step(numbers, each(ys, lengths))
        if "diagonal" in case:
            numbers = (*numbers[:-1], np.diag(np.diag(numbers[-1])))
        assert log_p.mean() == pytest.approx(exact, rel=1e-10)
        assert fitted.history[i] == pytest.approx(exact, rel=1e-10)
        params = maximise(params, stats)
        for ours, theirs in zip(plain(params), numbers, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("case", CASES)
def test_every_draw_of_the_exact_bound_is_ln_p_and_fishers_identity(x64, case):
    """The model as prior, generator and posterior; d ln P(y) = d E[ln P(y, z)], by sigma points over whole paths."""
    model, params, (ys, lengths) = model_of(case), random_params(case), data_of(case)
    y, c = jnp.asarray(ys[3]), count_of(lengths, 3)
    log_p, gradient = jax.jit(jax.value_and_grad(lambda p: model.dist(p, c).log_prob(y)))(params)
    terms = jax.jit(as_vae(model).terms)
    draws = terms({"enc": params, **params}, jax.random.key(0), y, c)
    assert -draws.nats == pytest.approx(float(log_p), rel=1e-10)
    numbers, real = plain(params), each(ys, lengths)[3]
    padded = np.concatenate([real, np.full((T - len(real), D), NAN)])
    _, mean, covariance = condition(numbers, padded)
    spread = covariance[:, :Q, :, :Q].reshape(T * Q, T * Q)
    points, weights = sigma_points(T * Q)
    paths = jnp.asarray((mean[:, :Q].ravel() + points @ np.linalg.cholesky(spread).T).reshape(-1, T, Q))

    def expected(p):
        def joint(z):
            condition_of_y = z if c is None else (z, c)
            return model.em.prior.dist(p["pri"], None).log_prob(z) + model.em.generator.dist(
                p["gen"], condition_of_y
            ).log_prob(y)

        return jnp.asarray(weights) @ jax.vmap(joint)(paths)

    theirs = jax.jit(jax.grad(expected))(params)
    upper = functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-8)
    jax.tree.map(upper, gradient, theirs)


def test_posterior_samples(x64):
    """20,000 paths: means and all second moments over time within 4.5 standard errors; in parallel, the same draws."""
    case, n = CASES[1], 20_000
    params, (ys, lengths) = random_params(case), data_of(case)
    draws = [
        jax.jit(
            lambda p, m=model: m.em.posterior(p, jnp.asarray(ys[0]), jnp.asarray(5)).sample(jax.random.key(0), (n,))
        )(params)
        for model in (model_of(case), model_of(case, parallel=True))
    ]
    np.testing.assert_allclose(*draws, atol=1e-9)
    _, mean, covariance = condition(plain(params), each(ys, lengths)[0])
    away = np.asarray(draws[0]).reshape(n, -1) - mean[:, :Q].ravel()
    assert np.all(np.abs(away.mean(0)) < 4.5 * away.std(0) / np.sqrt(n))
    products = away[:, :, None] * away[:, None, :]
    exact = covariance[:, :Q, :, :Q].reshape(T * Q, T * Q)
    assert np.all(np.abs(products.mean(0) - exact) < 4.5 * products.std(0) / np.sqrt(n))


def test_samples_of_sequences(x64):
    """40,000 sequences against the dense mean and covariance, within 4.5 standard errors; zeros beyond the length."""
    case, n = CASES[0], 40_000
    params = random_params(case)
    ys = jax.jit(lambda p: model_of(case).dist(p, jnp.asarray(3)).sample(jax.random.key(1), (n,)))(params)
    assert np.all(np.asarray(ys)[:, 3:] == 0)
    mean, covariance = dense(plain(params), 3)
    away = np.asarray(ys)[:, :3].reshape(n, -1) - mean[3 * Q :]
    assert np.all(np.abs(away.mean(0)) < 4.5 * away.std(0) / np.sqrt(n))
    products = away[:, :, None] * away[:, None, :]
    exact = covariance[3 * Q :, 3 * Q :]
    assert np.all(np.abs(products.mean(0) - exact) < 4.5 * products.std(0) / np.sqrt(n))


def test_stats_about_another_fit_give_the_same_m_step(x64):
    case = CASES[1]
    em, old, new, (ys, lengths) = model_of(case).em, random_params(case), random_params(case, seed=4), data_of(case)
    _, stats = expect_of(case, False)(old, ys, lengths)
    direct, moved = em.maximise(old, stats, N), em.maximise(new, em.recentre(stats, old, new), N)
    for a, b in zip(plain(direct), plain(moved), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


def test_missing_sequences_change_only_what_is_known_of_paths(x64):
    """ln P of a sequence of which nothing is seen is 0, and what lies beyond a length does not matter."""
    case = CASES[1]
    params, (ys, lengths) = random_params(case), data_of(case)
    expect = expect_of(case, False)
    log_p, stats = expect(params, ys, lengths)
    beyond = np.where(np.arange(T)[None, :, None] < lengths[:, None, None], ys, 1e3)
    jax.tree.map(np.testing.assert_array_equal, expect(params, beyond, lengths), (log_p, stats))
    unseen, _ = expect(params, np.full_like(ys, NAN), lengths)
    np.testing.assert_allclose(unseen, 0.0, atol=1e-12)


@pytest.mark.parametrize("parallel", [False, True])
def test_float32_at_small_noise_and_constant_columns(parallel):
    """Noise at the floor, one column constant, one sequence: finite values, gradients and fits; ln P near float64's."""
    rng = np.random.default_rng(0)
    level = rng.normal(size=(8, 1)).cumsum(axis=0)
    ys = (100 + level @ rng.normal(size=(1, D)) * 3).astype(np.float32)[None]
    ys[:, :, 1] = 5.0
    model = linear_gaussian_state_space(D, Q, 8, noise="full", parallel=parallel)
    params = model.em.start(jax.random.key(0), ys, None)

    @jax.jit
    def iterate(params):
        for_gradient = jax.value_and_grad(lambda p: model.em.expect(p, ys, None)[0].mean())
        (value, gradient), (_, stats) = for_gradient(params), model.em.expect(params, ys, None)
        return value, gradient, model.em.maximise(params, stats, 1)

    values = []
    for _ in range(15):
        value, gradient, params = iterate(params)
        values.append(float(value))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, gradient, params)))
    assert values[-1] > values[0] + 10


SMALL = {  # transition, loadings
    "a place and its speed": ([[1.0, 1.0], [0.0, 1.0]], [[1.0, 0.7]]),
    "more numbers than states": ([[0.9, 0.2], [-0.1, 0.8]], [[0.6, -0.3], [1.1, 0.4], [-0.5, 0.9]]),
}


def small_noise(name, variance, noise, *, length=12):
    """(float32 params, ys (length, D)) of a chain whose steps have variance .1, and the noise of what is seen this."""
    rng = np.random.default_rng(0)
    transition, loadings = (np.array(x) for x in SMALL[name])
    size = len(loadings)
    raw = 0.5 * np.log(variance) * np.eye(size)
    pri = {"mean": np.zeros(2), "initial": np.zeros((2, 2)), "noise": 0.5 * np.log(0.1) * np.eye(2)}
    if noise == "full":
        raw[1:, 0] = np.sqrt(variance)
    gen = {"loadings": loadings, "bias": np.ones(size), "noise": raw if noise == "full" else np.diag(raw)}
    z = np.sqrt(0.1) * rng.normal(size=(length, 2))
    for t in range(1, length):
        z[t] += transition @ z[t - 1]
    factor = np.tril(raw, -1) + np.diag(np.exp(np.diag(raw)))
    ys = 1 + z @ loadings.T + rng.normal(size=(length, size)) @ factor.T
    params = {"pri": {**pri, "transition": transition}, "gen": gen}
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params), ys.astype(np.float32)


@pytest.mark.parametrize(
    ("name", "options", "parallel"),
    [
        ("a place and its speed", "diagonal", True),
        ("more numbers than states", "full, missing", False),
        ("more numbers than states", "full, missing", True),
    ],
)
def test_float32_where_states_are_1e5_times_wider_than_the_noise(name, options, parallel):
    """ln P, and means and variances of filter and smoother, to 1e-4 of the dense Gaussian's in float64."""
    noise, *missing = options.split(", ")
    size = len(SMALL[name][1])
    model = linear_gaussian_state_space(size, 2, 12, noise=noise, missing=bool(missing), parallel=parallel)

    @jax.jit
    def ours(params, y):
        known, log_p = filter_sequence(model.dist(params).form, params, y, None)
        path = model.em.posterior(params, y)
        slope = None if parallel else jax.grad(lambda p: model.dist(p).log_prob(y))(params)
        return log_p, known.means, known.covariances, path.means, path.covariances, slope

    for variance in (1e-2, 1e-6, 1e-10):
        params, ys = small_noise(name, variance, noise)
        if missing:
            ys[np.random.default_rng(1).uniform(size=ys.shape) < 0.3] = NAN
            ys[3] = NAN
        log_p, filtered, spread, means, covariances, slope = ours(params, ys)
        numbers = plain(jax.tree.map(lambda x: np.asarray(x, np.float64), params))
        exact, mean, covariance = condition(numbers, ys.astype(np.float64))
        assert log_p == pytest.approx(exact, rel=1e-4, abs=1e-4)
        np.testing.assert_allclose(means, mean[:, :2], rtol=1e-4, atol=1e-4)
        for t in range(12):
            np.testing.assert_allclose(np.diag(covariances[t]), np.diag(covariance[t, :2, t, :2]), rtol=1e-4)
            _, so_far, left = condition(numbers, ys[: t + 1].astype(np.float64))
            np.testing.assert_allclose(filtered[t], so_far[t, :2], rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(np.diag(spread[t]), np.diag(left[t, :2, t, :2]), rtol=1e-4)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


def test_an_m_step_finds_small_noise_in_float32():
    """Noise of 1e-8 where the states have 0.1: what one M-step makes of it, to 1e-3 of numpy's in float64."""
    params, ys = small_noise("more numbers than states", 1e-8, "diagonal", length=T)
    model = linear_gaussian_state_space(D, Q, T, floor=1e-14)
    stepped = jax.jit(lambda p: model.em.maximise(p, model.em.expect(p, ys[None], None)[1], 1))(params)
    numbers = plain(jax.tree.map(lambda x: np.asarray(x, np.float64), params))
    exact = numpy_step(numbers, [ys.astype(np.float64)])[1]
    np.testing.assert_allclose(np.exp(2 * stepped["gen"]["noise"]), np.diag(exact[-1]), rtol=1e-3)
    np.testing.assert_allclose(stepped["gen"]["loadings"], exact[4], rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: linear_gaussian_state_space(3, 0, 5), "latent"),
        (lambda: linear_gaussian_state_space(3, 2, 0), "length"),
        (lambda: linear_gaussian_state_space(3, 2, 5, floor=0.0), "floor"),
        (lambda: fit(np.zeros((4, T, 2))), r"want \(n, 5, 3\)"),
        (lambda: fit(np.zeros((T, D))), "sequences of steps"),
        (lambda: fit(np.full((4, T, D), NAN)), "missing=True"),
        (lambda: fit(np.zeros((4, T, D)), np.array([5, 0, 1, 2])), "empty sequences"),
        (lambda: fit(np.zeros((4, T, D)), np.array([5, 6, 1, 2])), "lengths"),
        (lambda: fit(np.zeros((4, T, D)), np.zeros((4, 2), int)), "4 integers"),
        (lambda: fit(np.zeros((4, T, D)), np.array([0.5, 1.0, 2.0, 3.0])), "4 integers"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def fit(ys, cs=None):
    return fit_em(model_of(CASES[0]), ys, cs, key=jax.random.key(0))
