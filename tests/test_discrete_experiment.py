"""`python -m experiments.discrete`: it runs and reports; its exact gradients and its measurements by brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reopened import check_reopened, evaluation_of, evaluations
from reported import check_report
from scipy.special import expit, log_softmax, logsumexp
from scipy.stats import bernoulli

from experiments import discrete
from experiments import discrete_routes as routes
from vae_jax import enumerated, evaluate, score_function
from vae_jax.core import elbo, leave_one_out
from vae_jax.core.objectives import batch_terms
from vae_jax.evaluation import Mean, mean

pytestmark = pytest.mark.usefixtures("quickly_compiled")

YS = np.random.default_rng(0).integers(0, 2, (6, 2, 2, 1)).astype(np.float32)
PARTS = routes.build(3, 4, (2, 2, 1))


@pytest.fixture(scope="module")
def params():
    return {**PARTS.start(jax.random.key(0), YS), "pri": {"logits": jnp.array([0.3, -0.2, 0.5])}}


def test_it_runs(tmp_path, monkeypatch):
    config = discrete.Config(out=str(tmp_path), smoke=True)
    seen = evaluations(monkeypatch, discrete, "evaluate")
    numbers = discrete.main(config)
    run = check_reopened(tmp_path, seen)
    assert numbers["ln P, exact enumeration"] == mean(evaluation_of(run, seen).log_likelihood).value
    climbs = (f"The climb: {title}" for title in ("Gumbel-softmax", "straight-through", "drawn"))
    check_report(tmp_path, config, numbers, ("The routes", *climbs, "The classes"))
    assert "±" not in (tmp_path / "report.html").read_text().split("bias, exact enumeration")[1].split("<tr>")[0]
    assert numbers["ln P, EM"] > numbers["ln P, exact enumeration"]  # three passes of EM are worth more than of Adam
    assert numbers["bias, exact enumeration"] == 0


encoder_logits = jax.jit(lambda enc, y: PARTS.encoder.dist(enc, y).logits)


def log_weights(params, y):
    """ln q (3,) and ln w (3,) by scipy."""
    log_q = log_softmax(np.asarray(encoder_logits(params["enc"], y), np.float64))
    log_pri = log_softmax(np.asarray(params["pri"]["logits"], np.float64))
    means = expit(np.asarray(params["gen"]["logits"], np.float64))
    return log_q, log_pri + bernoulli.logpmf(y, means).sum(axis=(1, 2, 3)) - log_q


def test_the_evaluation_is_exact(params):
    """The ELBO, and with one importance sample, which is all of them, ln P(y)."""
    result = evaluate(PARTS.model(enumerated), params, jax.random.key(0), YS, k=1)
    for y, bound, log_p in zip(YS, result.elbo, result.log_likelihood, strict=True):
        log_q, log_w = log_weights(params, y)
        np.testing.assert_allclose(bound, np.exp(log_q) @ log_w, rtol=1e-5)
        np.testing.assert_allclose(log_p, logsumexp(log_q + log_w), rtol=1e-5)


@pytest.mark.parametrize("k", [0, 2, 3])
def test_exact_gradients(params, k):
    """The bound over all ordered combinations by numpy, its central differences in the logits; 0 is the ELBO."""
    every = np.array(list(itertools.product(range(3), repeat=max(k, 1))))

    def loss(logits, log_joint):
        log_q = log_softmax(logits)
        bounds = logsumexp((log_joint - log_q)[every], axis=1) - np.log(every.shape[1])
        return -np.exp(log_q[every].sum(axis=1)) @ bounds / len(YS)

    def slopes(y):
        log_q, log_w = log_weights(params, y)
        return [(loss(log_q + s, log_q + log_w) - loss(log_q - s, log_q + log_w)) / 2e-6 for s in 1e-6 * np.eye(3)]

    @jax.jit
    def back(enc, slopes):
        return jax.vjp(lambda enc: jax.vmap(lambda y: PARTS.encoder.dist(enc, y).logits)(YS), enc)[1](slopes)

    (want,) = back(params["enc"], np.asarray([slopes(y) for y in YS], np.float32))
    got = jax.jit(lambda params: routes.exact_gradient(PARTS, params, YS, k))(params)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-3, atol=1e-5), got, want)


def test_bias_and_spread(params):
    """By numpy, from the same draws; none for the exact route, and a bias within 4 times the noise without one."""
    exact, key, n = routes.exact_gradient(PARTS, params, YS, 0), jax.random.key(1), 400
    still = routes.measure(routes.Route(PARTS.model(enumerated), elbo()), exact, params, YS, key, n)
    assert max(still) < 1e-3
    route = routes.Route(PARTS.model(score_function()), leave_one_out(2))
    got = routes.measure(route, exact, params, YS, key, n)
    assert got.bias < 4 * got.noise

    def gradient(key):
        keys = jax.random.split(key, len(YS))
        loss = lambda enc: route.objective(route.model, {**params, "enc": enc}, keys, YS, None, 0)[0]  # noqa: E731
        return jax.flatten_util.ravel_pytree(jax.grad(loss)(params["enc"]))[0]

    draws = np.asarray(jax.jit(jax.vmap(gradient))(jax.random.split(key, n)), np.float64)
    want = np.asarray(jax.flatten_util.ravel_pytree(exact)[0], np.float64)
    length = np.linalg.norm(want)
    np.testing.assert_allclose(got.bias, np.linalg.norm(draws.mean(axis=0) - want) / length, rtol=1e-3)
    np.testing.assert_allclose(got.spread, np.sqrt(draws.var(axis=0).sum()) / length, rtol=1e-3)
    np.testing.assert_allclose(got.noise, got.spread / np.sqrt(n), rtol=1e-6)


def test_a_bias_is_zero_where_it_was_measured_to_be():
    """A route whose draws are all alike may be biased all the same."""

    def row(bias, spread):
        measured = routes.Measured(bias, spread / 20, spread)
        result = discrete.Result(Mean(-9.0, 0.1), None, np.zeros(3), 1.0, measured, np.zeros((2, 1)), np.ones(2))
        return discrete.table({"route": result}, "3 images")[-1]

    assert (row(1e-5, 1e-6).value, row(1e-5, 1e-6).standard_error) == (0, None)
    for bias, spread in ((0.5, 0.0), (1e-4, 0.5)):
        assert (row(bias, spread).value, row(bias, spread).standard_error) == (bias, spread / 20)


def test_the_baseline_is_a_product_of_bernoullis():
    baseline, mean = routes.independent_pixels(YS), np.clip(YS.mean(axis=0), 0.02, 0.98)
    np.testing.assert_allclose(baseline(jnp.asarray(YS[0]), None), -bernoulli.logpmf(YS[0], mean).sum(), rtol=1e-5)


def test_em_and_the_vae_are_one_model(params):
    """The ELBO at the exact posterior is what EM calls ln P: the parameters are exchanged as they are."""
    mixture, path, _ = routes.by_em(PARTS, params, YS, 1)
    log_p = np.asarray(mixture.em.expect({part: params[part] for part in ("pri", "gen")}, YS)[0])
    model, keys = PARTS.model(enumerated), jax.random.split(jax.random.key(0), len(YS))
    exact = batch_terms(model.importance, params, keys, YS, None)
    np.testing.assert_allclose(-exact.nats, log_p, rtol=1e-5)
    np.testing.assert_array_equal(path["gen"]["logits"][0], params["gen"]["logits"])


@pytest.mark.parametrize("option", ["classes", "epochs", "gradients"])
def test_what_cannot_be_run_is_an_error_in_words(option):
    with pytest.raises(ValueError, match="want classes, epochs and gradients >= 2; got"):
        discrete.main(discrete.Config(**{option: 1}))
