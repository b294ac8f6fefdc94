"""Missing entries in VAEs: against the linear-Gaussian model, where everything is known, and against complete data."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from scipy import stats

from vae_jax import (
    bernoulli,
    categorical,
    conditional,
    discretised_logistic,
    fit,
    gaussian,
    l2,
    nets,
    standard_normal,
    vae,
)
from vae_jax.core import importance_weighted
from vae_jax.core.missing import Seen, filled_and_missing
from vae_jax.core.model import log_prob
from vae_jax.em import mixture_of_gaussians
from vae_jax.evaluation import impute, impute_all
from vae_jax.parts import (
    laplace,
    maybe_missing,
    negative_binomial,
    not_at_random,
    poisson,
    seeing_what_is_missing,
)

NAN = np.nan
RNG = np.random.default_rng(0)
WEIGHTS, BIAS, SIGMA = RNG.normal(size=(5, 2)), RNG.normal(size=5), 0.6
COVARIANCE = WEIGHTS @ WEIGHTS.T + SIGMA**2 * np.eye(5)
PARTLY = [
    np.array(y, np.float32) for y in ([0.5, NAN, -1, NAN, 2], [NAN, NAN, NAN, 0.3, NAN], [NAN] * 5, [1, 0, 2, -1, 0])
]
IDENTITY = (lambda key, z: {}, lambda params, z: z)


def linear_gaussian():
    """P(y|z) = N(W z + b, sigma^2), and the exact posterior of z given what is seen as the encoder."""

    def posterior(params, y):
        seen = jnp.where(jnp.isnan(y)[:, None], 0, jnp.asarray(WEIGHTS, jnp.float32))
        precision = jnp.eye(2) + seen.T @ seen / SIGMA**2
        mean = jnp.linalg.solve(precision, seen.T @ (jnp.where(jnp.isnan(y), 0, y) - BIAS)) / SIGMA**2
        return mean, precision

    encoder = conditional(
        (lambda key, y: {}, posterior), lambda both: dist.MultivariateNormal(both[0], precision_matrix=both[1])
    )
    yhat = (lambda key, z: {}, lambda params, z: jnp.asarray(WEIGHTS, jnp.float32) @ z + jnp.asarray(BIAS, jnp.float32))
    return vae(encoder, standard_normal(2), maybe_missing(l2(yhat, SIGMA)))


def known(y):
    """(ln p of what is seen, mean and covariance of what is missing given that), by the marginal Gaussian."""
    m, o = np.isnan(y), ~np.isnan(y)
    gain = COVARIANCE[np.ix_(m, o)] @ np.linalg.inv(COVARIANCE[np.ix_(o, o)]) if o.any() else np.zeros((m.sum(), 0))
    log_p = stats.multivariate_normal(BIAS[o], COVARIANCE[np.ix_(o, o)]).logpdf(y[o]) if o.any() else 0.0
    return log_p, BIAS[m] + gain @ (y[o] - BIAS[o]), COVARIANCE[np.ix_(m, m)] - gain @ COVARIANCE[np.ix_(o, m)]


@pytest.mark.parametrize("y", PARTLY)
def test_linear_gaussian(y):
    """With the exact posterior each importance weight is ln p; means and draws are right to 5 standard errors."""
    model, n = linear_gaussian(), 4000
    log_p, mean, covariance = known(y)
    each = jax.vmap(lambda key: model.importance({"enc": {}, "pri": {}, "gen": {}}, key, y, None).nats)
    np.testing.assert_allclose(-each(jax.random.split(jax.random.key(0), 5)), log_p, rtol=1e-4, atol=1e-4)
    found = jax.jit(lambda key: impute(model, {"enc": {}, "pri": {}, "gen": {}}, key, y, n=n, k=n))(jax.random.key(1))
    assert float(found.log_p) == pytest.approx(log_p, abs=1e-3) and float(found.effective) == pytest.approx(n, rel=1e-2)
    missing = np.isnan(y)
    np.testing.assert_array_equal(np.asarray(found.draws)[:, ~missing], np.tile(y[~missing], (n, 1)))
    np.testing.assert_array_equal(np.asarray(found.mean)[~missing], y[~missing])
    std = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(np.asarray(found.mean)[missing] - mean) < 5 * std / np.sqrt(n) + 1e-4)
    if missing.any():
        draws = np.asarray(found.draws)[:, missing].astype(float)  # drawn anew from n samples: their variance doubles
        assert np.all(np.abs(draws.mean(axis=0) - mean) < 5 * std * np.sqrt(2 / n))
        errors = np.sqrt(2 * (np.outer(std, std) ** 2 + covariance**2) / n)
        assert np.all(np.abs(np.cov(draws.T).reshape(covariance.shape) - covariance) < 5 * errors)


def test_a_poor_encoder_is_weighed():
    """The prior as encoder: the weights make up for it, at the price of few that count."""
    model, y = linear_gaussian(), PARTLY[0]
    nothing = conditional(
        (lambda key, y: {}, lambda params, y: jnp.zeros(4)), lambda out: dist.Normal(out[:2], 1.0).to_event(1)
    )
    yhat = (lambda key, z: {}, lambda params, z: jnp.asarray(WEIGHTS, jnp.float32) @ z + jnp.asarray(BIAS, jnp.float32))
    model, k = vae(nothing, standard_normal(2), maybe_missing(l2(yhat, SIGMA))), 200_000
    found = jax.jit(lambda key: impute(model, {"enc": {}, "pri": {}, "gen": {}}, key, y, n=1, k=k))(jax.random.key(0))
    log_p, mean, covariance = known(y)
    effective = float(found.effective)
    assert 100 < effective < k / 4
    assert float(found.log_p) == pytest.approx(log_p, abs=5 / np.sqrt(effective))
    std = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(np.asarray(found.mean)[np.isnan(y)] - mean) < 5 * std / np.sqrt(effective))


LIKELIHOODS = {
    "l2": (l2(IDENTITY, 0.7), np.array([0.3, -1.0]), [0.0, 2.0]),
    "gaussian": (gaussian(IDENTITY), np.array([0.3, -1.0, 0.2, 0.1]), [0.0, 2.0]),
    "bernoulli": (bernoulli(IDENTITY), np.array([0.3, -1.0]), [0.0, 1.0]),
    "categorical": (categorical(IDENTITY), np.array([[0.3, -1.0, 2.0], [0.0, 0.1, 0.2]]), [2.0, 1.0]),
    "levels": (discretised_logistic(IDENTITY), np.array([[0.3, -1.0], [0.0, 0.1]]), [200.0, 13.0]),
    "laplace": (laplace(IDENTITY), np.array([0.3, -1.0, 0.2, 0.1]), [0.0, 2.0]),
    "poisson": (poisson(IDENTITY), np.array([0.3, 2.0]), [0.0, 7.0]),
    "counts": (negative_binomial(IDENTITY, "predicted"), np.array([[0.3, -1.0], [0.0, 0.1]]), [0.0, 2.0]),
}


@pytest.mark.parametrize(("part", "output", "y"), LIKELIHOODS.values(), ids=LIKELIHOODS)
def test_a_likelihood_of_what_is_seen(part, output, y):
    """Nothing missing: bit for bit what it was. One entry: that of the other. All: 0. Gradients are finite."""
    output, y = jnp.asarray(output, jnp.float32), np.array(y, np.float32)
    whole, seen = part.dist({}, output), maybe_missing(part).dist({}, output)
    assert log_prob(seen, y) == log_prob(whole, y)
    first, second = (log_prob(seen, np.where(np.arange(2) == i, NAN, y)) for i in (1, 0))
    assert first + second == pytest.approx(float(log_prob(whole, y)), rel=1e-6)
    assert log_prob(seen, np.full(2, NAN)) == 0
    gradient = jax.grad(lambda output: log_prob(maybe_missing(part).dist({}, output), np.array([y[0], NAN])))(output)
    assert np.isfinite(gradient).all()
    assert seen.support(np.array([y[0], NAN])) and not seen.support(np.array([y[0], np.inf]))
    drawn = seen.complete(jax.random.key(0), np.array([NAN, y[1]]))
    assert drawn[1] == y[1] and whole.support(drawn)
    assert np.isnan(seen.expected(np.array([NAN, y[1]]))[0]) == isinstance(seen.whole.base_dist, dist.CategoricalLogits)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_of_an_exact_model(covariance):
    """A mixture of Gaussians: E[y_missing|y_seen] = sum_k P(k|y_seen) E[y_missing|y_seen, k], to 5 standard errors."""
    model = mixture_of_gaussians(3, 2, covariance, missing=True)
    params = jax.jit(model.init)(jax.random.key(3), None)
    y, k = np.array([0.4, NAN, -0.2], np.float32), 20_000
    found = jax.jit(lambda key: impute(vae_of(model), params, key, y, n=1, k=k))(jax.random.key(0))
    components = [model.em.generator.dist(params["gen"], z) for z in range(2)]
    posterior = np.asarray(model.em.posterior(params, y, None).probs)
    means = np.array([component.expected(y)[1] for component in components])
    draws = np.repeat(means, 2)  # the spread of what is averaged: between components, and none within
    assert float(found.effective) == pytest.approx(k, rel=1e-3)
    error = np.sqrt(np.sum(posterior * (means - posterior @ means) ** 2) / k)
    assert abs(float(found.mean[1]) - posterior @ means) < 5 * error + 1e-5, draws


def vae_of(model):
    from vae_jax.core import lift

    return lift(model)


def test_what_the_encoder_sees():
    y = {"a": np.array([1.0, NAN]), "b": np.array(NAN)}
    seen = filled_and_missing(y)
    np.testing.assert_array_equal(seen["a"], [1, 0, 0, 1])
    np.testing.assert_array_equal(seen["b"], [0, 1])
    image = filled_and_missing(np.full((4, 4, 1), NAN))
    assert image.shape == (4, 4, 2) and (image[..., 0] == 0).all() and (image[..., 1] == 1).all()


def test_it_is_trained_as_any_other():
    """On lines with gaps: what is missing is found again, better than by the mean of its column."""
    rng = np.random.default_rng(0)
    whole = (rng.normal(size=(600, 1)) * np.array([1.0, -2.0, 0.5, 1.5]) + 0.05 * rng.normal(size=(600, 4))).astype(
        np.float32
    )
    ys = np.where(rng.random(whole.shape) < 0.3, NAN, whole).astype(np.float32)
    model = vae(
        gaussian(seeing_what_is_missing(nets.MLP((16,), 2))), standard_normal(1), maybe_missing(l2(nets.MLP((), 4)))
    )
    fitted = fit(
        model,
        optax.adam(0.02),
        ys,
        key=jax.random.key(0),
        epochs=40,
        batch_size=100,
        objective=importance_weighted(5),
        progress=False,
    )
    means, missing = impute_all(model, fitted.params, jax.random.key(1), ys, n=1, k=100).mean, np.isnan(ys)
    by_column = np.where(missing, np.nanmean(ys, axis=0)[None], ys)
    error, of_columns = (np.sqrt(np.mean((filled - whole)[missing] ** 2)) for filled in (means, by_column))
    assert error < 0.5 * of_columns


def logistic(slope, level):
    """P(seen|y) = 1 / (1 + exp(-slope y - level)), of each entry by its own value."""
    return bernoulli((lambda key, y: {}, lambda params, y: slope * y + level))


def test_gaps_that_depend_on_the_value():
    """One Gaussian number, less often seen the larger it is: ln P(missing) and E[y|missing] by quadrature; a value that
    is seen costs exactly its own probability and that of being seen."""
    mean, std, slope, level = 0.5, 1.2, -1.5, 0.3
    model = not_at_random(l2((lambda key, z: {}, lambda params, z: jnp.full(1, mean)), std), logistic(slope, level))
    params, z = {"gen": {}, "seen": {}}, jnp.zeros(1)
    gap, value = jnp.full(1, NAN), jnp.array([1.7])
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    ys, weights = mean + std * nodes, weights / np.sqrt(2 * np.pi)
    unseen = 1 / (1 + np.exp(slope * ys + level))
    p = np.sum(weights * unseen)

    def nats(key):
        return model.importance(params, key, gap, z).nats

    draws = np.exp(-np.asarray(jax.jit(jax.vmap(nats))(jax.random.split(jax.random.key(0), 20_000)), np.float64))
    assert abs(draws.mean() - p) < 5 * draws.std() / np.sqrt(len(draws))
    found = jax.jit(lambda key: impute(model, params, key, gap, z, n=1, k=20_000))(jax.random.key(1))
    assert float(found.mean[0]) == pytest.approx(np.sum(weights * unseen * ys) / p, abs=0.03)
    assert float(found.log_p) == pytest.approx(np.log(p), abs=0.03)
    wanted = -stats.norm(mean, std).logpdf(1.7) + np.log1p(np.exp(-(slope * 1.7 + level)))
    assert float(model.terms(params, jax.random.key(0), value, z).nats) == pytest.approx(wanted, rel=1e-5)
    samples = np.asarray(jax.vmap(lambda key: model.sample(params, key, z))(jax.random.split(jax.random.key(2), 4000)))
    assert abs(np.isnan(samples).mean() - p) < 5 * np.sqrt(p * (1 - p) / len(samples))


def test_a_model_of_the_gaps_corrects_what_they_hide():
    """Two columns of one cause, the second unseen where it is large: the plain model's mean of it is too small."""
    rng = np.random.default_rng(0)
    cause = rng.normal(size=2000)
    whole = np.stack([cause, 2 * cause], axis=1) + 0.3 * rng.normal(size=(2000, 2))
    ys = whole.astype(np.float32)
    ys[rng.random(2000) < 1 / (1 + np.exp(-3 * ys[:, 1])), 1] = NAN
    both = {
        "plain": lambda part: maybe_missing(part),
        "not at random": lambda part: not_at_random(part, logistic(jnp.array([0.0, -3.0]), jnp.array([50.0, 0.0]))),
    }
    biases = {}
    for name, gaps in both.items():
        generator = gaps(l2((lambda key, z: {"b": jnp.zeros(2)}, lambda params, z: jnp.ones(2) * z + params["b"]), 1.0))
        model = vae(gaussian(seeing_what_is_missing(nets.MLP((16,), 2))), standard_normal(1), generator)
        fitted = fit(
            model,
            optax.adam(1e-2),
            ys,
            key=jax.random.key(0),
            epochs=10,
            batch_size=100,
            objective=importance_weighted(10),
            progress=False,
        )
        gen = fitted.params["gen"]
        biases[name] = float(gen.get("gen", gen)["b"][1])
    assert biases["plain"] < biases["not at random"] - 0.2


def test_an_example_is_filled_alike_whatever_the_batches():
    model, params = linear_gaussian(), {"enc": {}, "pri": {}, "gen": {}}
    ys, key = np.stack(PARTLY), jax.random.key(3)
    one, all_of_them = (impute_all(model, params, key, ys, n=2, k=20, batch_size=size) for size in (3, 4))
    for a, b in zip(one, all_of_them, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    by_itself = impute(model, params, jax.random.fold_in(key, 1), jnp.asarray(ys[1]), n=2, k=20)
    np.testing.assert_allclose(one.draws[1], by_itself.draws, rtol=1e-5, atol=1e-5)


def test_what_is_refused():
    with pytest.raises(ValueError, match="set to its optimum by statistics of complete examples"):
        maybe_missing(l2(IDENTITY, "optimal"))
    with pytest.raises(TypeError, match="MultivariateNormal does not factorise"):
        Seen(dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)))
    model = linear_gaussian()
    with pytest.raises(ValueError, match="n=0: want a whole number of draws"):
        impute(model, {}, jax.random.key(0), PARTLY[0], n=0)
    with pytest.raises(ValueError, match="batch_size=0: want a whole number of examples"):
        impute_all(model, {}, jax.random.key(0), np.stack(PARTLY), batch_size=0)
    with pytest.raises(ValueError, match="does not say what is missing given the rest"):
        impute(model._replace(complete=None), {}, jax.random.key(0), PARTLY[0])
    with pytest.raises(ValueError, match="or NaN where an entry is missing"):
        fit(
            vae(
                gaussian(seeing_what_is_missing(nets.MLP((), 2))),
                standard_normal(1),
                maybe_missing(bernoulli(nets.MLP((), 2))),
            ),
            optax.adam(0.1),
            np.array([[NAN, 3.0]], np.float32),
            key=jax.random.key(0),
            epochs=1,
        )
