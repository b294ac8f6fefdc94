"""Bernoulli and categorical families: enumeration, numpy's EM from the same start, what is missing, what is refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit, log_expit, log_softmax, logsumexp, softmax

from vae_jax.em import bernoullis, categoricals, fit_em, mixture_of_bernoullis, mixture_of_categoricals
from vae_jax.em.discrete_families import FLOOR

NAN = float("nan")


def log_tables(family, params):
    """numpy: (K, *shape, levels) log-probabilities."""
    logits = np.asarray(params["logits"], float)
    if logits.ndim == 1 + len(family.shape):
        return np.stack([log_expit(-logits), log_expit(logits)], axis=-1)
    return log_softmax(logits, axis=-1)


def every_value(shape, levels):
    return np.array(list(itertools.product(range(levels), repeat=int(np.prod(shape, dtype=int))))).reshape(-1, *shape)


FAMILIES = {
    "bernoullis": (bernoullis((2, 2), missing=True), 2),
    "bernoulli": (bernoullis((), missing=True), 2),
    "categoricals": (categoricals(3, 4, missing=True), 4),
    "categorical": (categoricals((), 5, missing=True), 5),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_log_prob_of_every_value_and_of_what_is_missing(x64, name):
    """Against numpy's sum of logarithms; the values sum to 1; a missing entry is summed out."""
    family, levels = FAMILIES[name]
    params = family.init(jax.random.key(0), 3)
    ys = every_value(family.shape, levels)
    rows = ys.reshape(len(ys), -1)
    tables = log_tables(family, params).reshape(3, -1, levels)
    exact = sum(tables[:, d][:, rows[:, d]] for d in range(rows.shape[1])).T
    log_prob = jax.jit(family.log_prob)
    np.testing.assert_allclose(log_prob(params, ys), exact, rtol=1e-12)
    np.testing.assert_allclose(logsumexp(log_prob(params, ys), axis=0), 0.0, atol=1e-12)
    partial = rows.astype(float)
    partial[:, 0] = NAN
    summed_out = logsumexp(exact.reshape(levels, -1, 3), axis=0)  # the first entry is the slowest
    np.testing.assert_allclose(
        log_prob(params, partial.reshape(ys.shape)), np.tile(summed_out, (levels, 1)), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_the_distribution_of_one_example_is_the_same(x64, name):
    family, levels = FAMILIES[name]
    params = family.init(jax.random.key(1), 3)
    ys = every_value(family.shape, levels)[:50].astype(float)
    ys.reshape(len(ys), -1)[1::3, 0] = NAN

    def one(k, y):
        return family.dist(params, k).log_prob(y)

    ours = jax.jit(jax.vmap(jax.vmap(one, in_axes=(0, None)), in_axes=(None, 0)))(jnp.arange(3), ys)
    np.testing.assert_allclose(ours, family.log_prob(params, ys), rtol=1e-12, atol=1e-14)
    assert np.asarray(family.dist(params, 0).support(ys)).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_samples_have_the_probabilities(name):
    """20,000 draws from each of 2 components: frequencies within 4.5 standard errors."""
    family, levels = FAMILIES[name]
    params, draws = family.init(jax.random.key(2), 2), 20_000
    sampled = jax.jit(lambda key, k: family.dist(params, k).sample(key, (draws,)))
    for k in range(2):
        ys = np.asarray(sampled(jax.random.key(k), k)).reshape(draws, -1)
        p = np.exp(log_tables(family, params)[k]).reshape(-1, levels)
        frequency = (ys[:, :, None] == np.arange(levels)).mean(axis=0)
        assert np.all(np.abs(frequency - p) < 4.5 * np.sqrt(p * (1 - p) / draws))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("prior", [None, 0.7])
def test_weighted_fit(x64, name, prior):
    """Weighted frequencies of what is seen, with pseudo-counts; without weight or data a component stays as it was."""
    _, levels = FAMILIES[name]
    shape = FAMILIES[name][0].shape
    family = (bernoullis if levels == 2 else categoricals)(
        shape, *([levels] if levels > 2 else []), missing=True, prior=prior
    )
    rng, n, k = np.random.default_rng(3), 40, 3
    ys, weights = rng.integers(0, levels, (n, *shape)).astype(float), rng.uniform(size=(n, k))
    weights[:, 2] = 0
    ys.reshape(n, -1)[::4, 0] = NAN
    start = family.init(jax.random.key(0), k)
    stats = jax.tree.map(lambda s: s / n, family.stats(start, jnp.asarray(ys), jnp.asarray(weights)))
    fitted = np.exp(log_tables(family, family.maximise(start, stats, n)))
    counts = np.einsum("nk,n...l->k...l", weights, ys[..., None] == np.arange(levels)) + (prior or 0.0)
    seen = counts.sum(-1, keepdims=True)
    exact = counts / np.where(seen > 0, seen, 1)
    exact = np.where(seen > 0, exact, np.exp(log_tables(family, start)))
    np.testing.assert_allclose(fitted, exact, rtol=1e-11)


def test_what_is_never_seen_costs_the_floor():
    for family in (bernoullis(2), categoricals(2, 3)):
        start = family.init(jax.random.key(0), 1)
        fitted = family.maximise(start, family.stats(start, jnp.zeros((5, 2), int), jnp.full((5, 1), 0.2)), 5)
        ys = jnp.array([[0, 0], [1, 1]])
        log_p = family.log_prob(fitted, ys)[:, 0]
        np.testing.assert_allclose(log_p, [0.0, 2 * np.log(FLOOR)], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prior", [None, 2.0])
def test_what_is_forbidden_stays_so(prior):
    """Infinite logits: ln P = -inf for what they forbid, by look-up, by sums and by the distribution; gradients without
    NaN; no count and no pseudo-count revives it, and the others share the weight as numpy says."""
    bits = jnp.array([[jnp.inf, 0.5], [-jnp.inf, 0.3]])
    levels = jnp.array([[[0.0, -jnp.inf, 1.0], [0.2, 0.1, 0.0]]])
    cases = [
        (bernoullis(2, prior=prior), bits, [[1, 0], [0, 1]]),
        (categoricals(2, 3, prior=prior), levels, [[2, 0], [1, 1]]),
        (categoricals((), 3, prior=prior), levels[:, 0], [2, 1]),
    ]
    for family, logits, ys in cases:
        ys, params = jnp.array(ys), {"logits": logits}
        with np.errstate(divide="ignore"):
            table = np.log(np.exp(log_tables(family, params)))  # log_expit's -inf
        table = table.reshape(len(logits), -1, table.shape[-1])
        rows = np.asarray(ys).reshape(len(ys), -1)
        exact = sum(table[:, d][:, rows[:, d]] for d in range(rows.shape[1])).T
        np.testing.assert_allclose(family.log_prob(params, ys), exact, rtol=1e-6)
        each = [[family.dist(params, k).log_prob(y) for k in range(len(logits))] for y in ys]
        np.testing.assert_allclose(each, exact, rtol=1e-6)
        gradient = jax.jit(jax.grad(lambda p, f=family, ys=ys: f.log_prob(p, ys).sum()))(params)["logits"]
        assert np.isfinite(gradient).all()
        stats = family.stats(params, ys[:1], jnp.ones((1, len(logits))))
        fitted = family.maximise(params, stats, 1)
        np.testing.assert_array_equal(np.isinf(fitted["logits"]), np.isinf(logits))
        counts = (rows[0][:, None] == np.arange(table.shape[-1])) + (prior or 0.0) * np.isfinite(table)
        counts = np.where(np.isfinite(table), counts, 0)
        share = counts / np.maximum(counts.sum(-1, keepdims=True), 1e-30)
        ours = np.exp(log_tables(family, fitted)).reshape(table.shape)
        seen = counts.sum(-1) > 0  # where the only level seen is forbidden, nothing is known
        np.testing.assert_allclose(ours[seen], share[seen], atol=1e-6)
        assert np.isfinite(family.log_prior(params))


def numpy_em(ys, log_weights, tables, iterations):
    """EM of a mixture of independent discrete values with missing entries, in numpy: (weights, tables, history)."""
    levels = tables.shape[-1]
    hot = (ys[:, :, None] == np.arange(levels)).astype(float)  # of a missing entry: all zero
    history = []
    for i in range(iterations + 1):
        joint = np.einsum("ndl,kdl->nk", hot, np.log(tables)) + log_weights
        log_p = logsumexp(joint, axis=1)
        history.append(log_p.mean())
        if i < iterations:
            responsibilities = np.exp(joint - log_p[:, None])
            log_weights = np.log(responsibilities.mean(axis=0))
            counts = np.einsum("nk,ndl->kdl", responsibilities, hot)
            tables = counts / counts.sum(axis=-1, keepdims=True)
    return np.exp(log_weights), tables, np.array(history)


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("missing", [False, True])
def test_em_equals_numpy(x64, levels, missing):
    """The same start, 30 iterations; the history rises, to 1e-12."""
    rng, k, d = np.random.default_rng(5), 3, 6
    tables = rng.dirichlet(np.ones(levels), (k, d))
    z = rng.integers(0, k, 150)
    ys = (rng.uniform(size=(150, d, 1)) > tables[z].cumsum(-1)[..., :-1]).sum(-1).astype(float if missing else int)
    if missing:
        ys[rng.uniform(size=ys.shape) < 0.2] = NAN
        ys[3] = NAN
    if levels == 2:
        model = mixture_of_bernoullis(d, k, missing=missing)
    else:
        model = mixture_of_categoricals(d, levels, k, missing=missing)
    start = model.init(jax.random.key(3))
    fitted = fit_em(model, ys, params=start, iterations=30, tolerance=None, chunk=40)
    first = softmax(log_tables(bernoullis(d), start["gen"]), axis=-1)
    weights, exact, history = numpy_em(ys, np.full(k, -np.log(k)), first, 30)
    np.testing.assert_allclose(fitted.history, history, rtol=1e-12)
    np.testing.assert_allclose(softmax(np.asarray(fitted.params["pri"]["logits"])), weights, rtol=1e-10)
    ours = np.exp(log_tables(bernoullis(d), fitted.params["gen"]))
    np.testing.assert_allclose(ours, exact, rtol=1e-9, atol=1e-28)
    assert np.all(np.diff(fitted.history) > -1e-12)


@pytest.mark.parametrize("prior", [None, 2.0])
def test_the_fixed_point_has_gradient_zero(x64, prior):
    """Of mean ln P, with a prior plus ln prior / n; that sum is what the history holds, and it rises."""
    rng, n = np.random.default_rng(7), 60
    ys = rng.integers(0, 3, (n, 4))
    model = mixture_of_categoricals(4, 3, 2, prior=prior)
    fitted = fit_em(model, ys, key=jax.random.key(0), iterations=3000, tolerance=1e-15)

    def objective(params):
        return model.em.expect(params, ys, None)[0].mean() + model.em.log_prior(params) / n

    value, gradient = jax.jit(jax.value_and_grad(objective))(fitted.params)
    assert value == pytest.approx(fitted.history[-1], rel=1e-13)
    assert np.all(np.diff(fitted.history) > -1e-12)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient)) < 2e-6


def test_missing_rows_change_nothing(x64):
    """Neither the log-likelihood's sum nor the fit of the components; the weights keep theirs for such a row."""
    ys = np.random.default_rng(8).integers(0, 2, (30, 5)).astype(float)
    padded = np.concatenate([ys, np.full((10, 5), NAN)])
    model = mixture_of_bernoullis(5, 2, missing=True)
    start, expect = jax.jit(model.init)(jax.random.key(0)), jax.jit(model.em.expect)
    (log_p, stats), (log_p_padded, stats_padded) = (expect(start, y, None) for y in (ys, padded))
    maximise = jax.jit(model.em.maximise, static_argnums=2)
    np.testing.assert_allclose(log_p_padded, np.append(log_p, np.zeros(10)), rtol=1e-13, atol=1e-14)
    a, b = (maximise(start, s, n)["gen"]["logits"] for s, n in ((stats, 30), (stats_padded, 40)))
    np.testing.assert_allclose(a, b, rtol=1e-12)


def test_the_posterior_by_enumeration(x64):
    model = mixture_of_categoricals((2,), 3, 4)
    params = model.init(jax.random.key(4))
    params = {**params, "pri": {"logits": jnp.array([0.3, -1.0, 0.5, 0.0])}}
    joint = softmax(params["pri"]["logits"]) * np.exp(log_tables(categoricals(2, 3), params["gen"]))[:, 0, 2]
    joint = joint * np.exp(log_tables(categoricals(2, 3), params["gen"]))[:, 1, 1]
    y = jnp.array([2, 1])
    posterior, log_p = jax.jit(lambda p: (model.em.posterior(p, y, None).probs, model.dist(p, None).log_prob(y)))(
        params
    )
    np.testing.assert_allclose(posterior, joint / joint.sum(), rtol=1e-12)
    assert log_p == pytest.approx(np.log(joint.sum()), rel=1e-12)


def test_gradient_of_the_logits_against_the_formula(x64):
    """d ln P / d logits of one component: sum of y - p, also where entries are missing."""
    family = bernoullis(4, missing=True)
    params = family.init(jax.random.key(5), 1)
    ys = np.array([[0, 1, 1, NAN], [1, NAN, 0, NAN]])
    gradient = jax.grad(lambda p: family.log_prob(p, jnp.asarray(ys)).sum())(params)["logits"]
    exact = np.nansum(ys - np.where(np.isnan(ys), NAN, expit(np.asarray(params["logits"]))), axis=0)
    np.testing.assert_allclose(gradient[0], exact, rtol=1e-12)


def test_integers_booleans_and_floats_are_the_same_data():
    family = bernoullis(3)
    params, ys = family.init(jax.random.key(0), 2), np.array([[0, 1, 1], [1, 0, 0]])
    for dtype in (np.uint8, bool, np.float32):
        family.check(ys.astype(dtype))
        np.testing.assert_array_equal(family.log_prob(params, ys.astype(dtype)), family.log_prob(params, ys))
        assert family.features(jnp.asarray(ys.astype(dtype))).dtype == jnp.float32


def test_float32_on_many_pixels():
    """784 entries and probabilities at the floor: finite, and ln P within 1e-5 of float64's."""
    rng = np.random.default_rng(9)
    ys, family = (rng.uniform(size=(20, 784)) < 0.3).astype(np.uint8), bernoullis(784)
    logits = np.where(rng.uniform(size=(5, 784)) < 0.5, -69.0, rng.normal(size=(5, 784)))
    ours = family.log_prob({"logits": jnp.asarray(logits, jnp.float32)}, ys)
    exact = ys @ log_expit(logits).T + (1 - ys) @ log_expit(-logits).T
    np.testing.assert_allclose(ours, exact, rtol=1e-5)
    fitted = fit_em(mixture_of_bernoullis(784, 4), ys, key=jax.random.key(0), iterations=20)
    assert np.isfinite(fitted.history).all()


@pytest.mark.parametrize(
    ("family", "ys", "message"),
    [
        (
            bernoullis(3),
            [[0, 1, 2]],
            r"bernoullis: ys holds 1 values like 2, the first in row 0; want 0 or 1: binarise",
        ),
        (bernoullis(3), [[0, 1, 0], [0.5, 1, 0]], "first in row 1; want 0 or 1"),
        (categoricals(3, 4), [[0, 1, 4]], "want integers from 0 to 3"),
        (categoricals(3, 4), [[0, -1, 3]], "like -1"),
        (categoricals(3, 4), [[0, NAN, 3]], "missing=True"),
        (categoricals(3, 4, missing=True), [[0, NAN, np.inf]], "infinity"),
        (bernoullis(3), [0, 1, 1], "labels"),
        (bernoullis((2, 2)), np.zeros((5, 4)), r"shape \(2, 2\)"),
        (categoricals((), 3), np.zeros((5, 1)), "shape"),
        (bernoullis(2), np.array([["a", "b"]]), "dtype"),
    ],
)
def test_data_that_are_refused(family, ys, message):
    with pytest.raises(ValueError, match=message):
        family.check(np.asarray(ys))


@pytest.mark.parametrize(
    "make",
    [
        lambda: bernoullis(0),
        lambda: categoricals(3, 1),
        lambda: bernoullis(3, prior=-1.0),
        lambda: mixture_of_bernoullis(3, 0),
    ],
)
def test_options_that_are_refused(make):
    with pytest.raises(ValueError, match=r"at least one|negative"):
        make()
