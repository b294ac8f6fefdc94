"""The parts of the rate (oracle 42), objectives that weigh them, and rates that are asked for (oracle 45)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax, softmax

from vae_jax import Model, Terms, categorical, conditional, fit, gaussian, l2, standard_normal, vae
from vae_jax.core import balanced, beta_elbo, beta_tc, capacity, dip, elbo, linear_annealing, log_aggregate
from vae_jax.evaluation import evaluate, rate_distortion, rate_split
from vae_jax.selfcheck.solvable import affine
from vae_jax.systems import at_rate, factor_vae, geco
from vae_jax.systems.total_correlation import permuted

EXAMPLES, UNITS, CLASSES = 5, 2, 3
RNG = np.random.default_rng(0)
LOGITS, LOGITS_OF_PRIOR = 2 * RNG.normal(size=(EXAMPLES, UNITS, CLASSES)), RNG.normal(size=(UNITS, CLASSES))
YS = np.eye(EXAMPLES, dtype=np.float32)
NOTHING = lambda key, *x: {}  # noqa: E731
ENCODER = categorical((NOTHING, lambda params, y: jnp.einsum("n,nuk->uk", y, jnp.asarray(LOGITS, jnp.float32))))
PRIOR = categorical((NOTHING, lambda params, c: jnp.asarray(LOGITS_OF_PRIOR, jnp.float32)))


def exact():
    """(I(y; z), total correlation, sum of KLs of the margins), by listing all z."""
    q, p = log_softmax(LOGITS, axis=-1), log_softmax(LOGITS_OF_PRIOR, axis=-1)
    information = total = 0.0
    margins = np.log(softmax(LOGITS, axis=-1).mean(axis=0))
    for z in itertools.product(range(CLASSES), repeat=UNITS):
        each = sum(q[:, unit, k] for unit, k in enumerate(z))
        aggregate = np.log(np.mean(np.exp(each)))
        information += np.mean(np.exp(each) * (each - aggregate))
        total += np.exp(aggregate) * (aggregate - sum(margins[unit, k] for unit, k in enumerate(z)))
    return information, total, np.sum(np.exp(margins) * (margins - p))


def test_the_rate_has_three_parts():
    """Each to 5 standard errors of 20,000 draws for each example, which together are the rate."""
    found = rate_split(ENCODER, prior_of_none(), {"enc": {}, "pri": {}}, jax.random.key(0), YS, samples=20_000)
    parts = (found.mutual_information, found.total_correlation, found.dimension_kl)
    for part, wanted in zip(parts, exact(), strict=True):
        assert abs(part.value - wanted) < 0.02
    assert sum(part.value for part in parts) == pytest.approx(found.rate.value, rel=1e-5)
    assert sum(exact()) == pytest.approx(found.rate.value, abs=0.03)


def prior_of_none():
    from vae_jax import Conditional

    return Conditional(lambda key, c=None: {}, lambda params, c=None: PRIOR.dist({}, jnp.zeros(())))


def test_an_aggregate_from_a_batch():
    """Exact with all examples as the batch; without bias from pairs: the mean over all of them is the aggregate."""
    log_q = jnp.asarray(RNG.normal(size=(EXAMPLES, EXAMPLES, UNITS)), jnp.float32)
    whole = np.log(np.mean(np.exp(np.asarray(log_q, np.float64)), axis=1))
    np.testing.assert_allclose(log_aggregate(log_q, EXAMPLES), whole, rtol=1e-5, atol=1e-5)
    densities = []
    for i, j in itertools.permutations(range(EXAMPLES), 2):
        pair = log_q[np.ix_([i, j], [i, j])]
        if i == 0:
            densities.append(np.exp(np.asarray(log_aggregate(pair, EXAMPLES)[0], np.float64)))
    np.testing.assert_allclose(np.mean(densities, axis=0), np.exp(whole[0]), rtol=1e-5)
    with pytest.raises(ValueError, match="want batches of two or more"):
        log_aggregate(log_q[:1, :1], EXAMPLES)


def gaussian_vae():
    model = vae(gaussian(affine(4)), standard_normal(2), l2(affine(4), 0.5))
    return model, model.init(jax.random.key(0), jnp.zeros(4), None)


def losses(objective, model, params, ys):
    keys = jax.random.split(jax.random.key(1), len(ys))
    loss, _ = jax.jit(lambda params: objective(model, params, keys, ys, None, 0))(params)
    return float(loss)


def test_weights_of_one_are_the_elbo():
    model, params = gaussian_vae()
    ys = RNG.normal(size=(8, 4)).astype(np.float32)
    encoder = gaussian(affine(4))
    plain = losses(elbo(), model, params, ys)
    assert losses(beta_tc(encoder, 1.0, 100), model, params, ys) == pytest.approx(plain, rel=1e-6)
    assert losses(dip(encoder, 0.0, 0.0), model, params, ys) == pytest.approx(plain, rel=1e-6)
    rate = losses(beta_elbo(1.0), model, params, ys) - losses(beta_elbo(0.0), model, params, ys)
    without = losses(beta_elbo(0.0), model, params, ys)
    assert losses(capacity(3.0, rate + 2), model, params, ys) == pytest.approx(without + 6, rel=1e-4)


def test_dip_against_numpy():
    model, params = gaussian_vae()
    ys, encoder = RNG.normal(size=(8, 4)).astype(np.float32), gaussian(affine(4))
    moments = jax.vmap(lambda y: (encoder.dist(params["enc"], y).mean, encoder.dist(params["enc"], y).variance))(ys)
    means, variances = (np.asarray(each, np.float64) for each in moments)
    for kind in ("means", "both"):
        covariance = np.cov(means.T, bias=True) + (np.diag(variances.mean(axis=0)) if kind == "both" else 0)
        wanted = 2 * 2 * covariance[0, 1] ** 2 + 3 * np.sum((np.diag(covariance) - 1) ** 2)
        penalty = losses(dip(encoder, 2.0, 3.0, kind=kind), model, params, ys) - losses(elbo(), model, params, ys)
        assert penalty == pytest.approx(wanted, rel=1e-3)


def test_a_high_weight_makes_units_independent():
    """Data along a diagonal: the total correlation of what is learnt falls with its weight."""
    ys = (RNG.normal(size=(512, 2)) @ np.array([[1.0, 0.9], [0.0, 0.4]])).astype(np.float32)
    encoder = gaussian(affine(4))
    model = vae(encoder, standard_normal(2), l2(affine(2), 0.2))
    found = []
    for beta in (1.0, 20.0):
        fitted = fit(
            model,
            optax.adam(1e-2),
            ys,
            key=jax.random.key(0),
            epochs=30,
            batch_size=64,
            objective=beta_tc(encoder, beta, len(ys)),
            progress=False,
        )
        found.append(rate_split(encoder, standard_normal(2), fitted.params, jax.random.key(1), ys).total_correlation)
    assert found[1].value < found[0].value + 2 * found[0].standard_error


def test_levels_are_charged_by_what_they_carry():
    """gamma in proportion to size and rate, 1 on average and without a gradient; the ELBO once the weight is 1."""
    rates = np.array([[1.0, 3.0, 0.0], [2.0, 3.0, 0.5]])
    levels = Model(
        lambda key, y, c=None: {"scale": jnp.ones(3)},
        lambda params, key, y, c=None: Terms(jnp.float32(7), jnp.sum(params["scale"] * y), rates=params["scale"] * y),
        lambda params, key, c=None: c,
    )
    mean, sizes, keys = rates.mean(axis=0), np.array([4.0, 1.0, 1.0]), jax.random.split(jax.random.key(0), 2)
    gamma = 3 * sizes * mean / np.sum(sizes * mean)

    def loss(params, step, sizes=tuple(sizes)):
        return balanced(linear_annealing(10), sizes)(levels, params, keys, jnp.asarray(rates, jnp.float32), None, step)[
            0
        ]

    value, gradient = jax.value_and_grad(loss)({"scale": jnp.ones(3)}, 4)
    assert float(value) == pytest.approx(7 + 0.4 * np.sum(gamma * mean), rel=1e-5)
    np.testing.assert_allclose(gradient["scale"], 0.4 * gamma * mean, rtol=1e-5)
    assert float(loss({"scale": jnp.ones(3)}, 10)) == pytest.approx(7 + rates.sum(axis=1).mean(), rel=1e-6)
    even = loss({"scale": jnp.ones(3)}, 5, ())
    assert float(even) == pytest.approx(7 + 0.5 * 3 * np.sum(mean**2) / np.sum(mean), rel=1e-5)
    with pytest.raises(ValueError, match="of which this model has 3; sizes"):
        loss({"scale": jnp.ones(3)}, 4, (1.0, 2.0))


def squares(z):
    """What the logit of two Gaussians is linear in."""
    return jnp.stack([z[0] ** 2, z[1] ** 2, z[0] * z[1], jnp.ones(())])


QUADRATIC = (lambda key, z: {"w": jnp.zeros(4)}, lambda params, z: squares(z) @ params["w"])


def test_factor_vae_learns_the_total_correlation():
    """Of z with a Gaussian aggregate: -1/2 ln det of its correlations, to 5 % by 40,000 examples."""
    noise, covariance = 0.3, np.array([[1.0, 0.7], [0.7, 1.0]])
    ys = np.random.default_rng(2).multivariate_normal(np.zeros(2), covariance, 40_000).astype(np.float32)
    encoder = gaussian((NOTHING, lambda params, y: jnp.concatenate([y, jnp.full(2, np.log(noise))])))
    model, objective = factor_vae(vae(encoder, standard_normal(2), l2(affine(2), 1.0)), encoder, QUADRATIC, 1.0)
    fitted = fit(
        model,
        optax.adam(optax.cosine_decay_schedule(3e-2, 1600)),
        ys,
        key=jax.random.key(0),
        epochs=20,
        batch_size=500,
        objective=objective,
        parts=("dis",),
        progress=False,
    )
    z = ys + noise * np.random.default_rng(3).normal(size=ys.shape)
    found = np.mean(jax.vmap(squares)(jnp.asarray(z, jnp.float32)) @ fitted.params["dis"]["w"])
    assert found == pytest.approx(-0.5 * np.log(1 - (0.7 / (1 + noise**2)) ** 2), rel=0.05)


def test_factor_vae_moves_each_network_by_its_own_loss():
    encoder = gaussian(affine(4))
    plain, _ = gaussian_vae()
    model, objective = factor_vae(plain, encoder, QUADRATIC, 2.0)
    params = model.init(jax.random.key(0), jnp.zeros(4), None)
    params["dis"]["w"] = jnp.asarray([0.1, -0.2, 0.3, 0.4])
    ys = jnp.asarray(RNG.normal(size=(8, 4)), jnp.float32)
    keys = jax.random.split(jax.random.key(1), len(ys))

    def gradient(objective, of):
        return jax.jit(jax.grad(lambda params: objective(of, params, keys, ys, None, 0)[0]))(params)

    both, alone = gradient(objective, model), gradient(elbo(), plain)
    zs = jax.vmap(lambda key, y: encoder.dist(params["enc"], y).rsample(jax.random.fold_in(key, 1)))(keys, ys)

    def judged(w):
        real, fake = (jax.vmap(squares)(z) @ w for z in (zs, permuted(jax.random.fold_in(keys[0], 2), zs)))
        return jnp.mean(jax.nn.softplus(-real) + jax.nn.softplus(fake))

    np.testing.assert_allclose(both["dis"]["w"], jax.grad(judged)(params["dis"]["w"]), rtol=1e-4, atol=1e-6)
    for a, b in zip(jax.tree.leaves(both["gen"]), jax.tree.leaves(alone["gen"]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    def logits(enc):
        zs = jax.vmap(lambda key, y: encoder.dist(enc, y).rsample(jax.random.fold_in(key, 1)))(keys, ys)
        return 2.0 * jnp.mean(jax.vmap(squares)(zs) @ params["dis"]["w"])

    more = jax.tree.map(lambda a, b: a + b, alone["enc"], jax.grad(logits)(params["enc"]))
    for a, b in zip(jax.tree.leaves(both["enc"]), jax.tree.leaves(more), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_units_are_permuted_each_by_itself():
    zs = jnp.arange(600.0).reshape(100, 2, 3)
    apart = np.asarray(permuted(jax.random.key(0), zs)).reshape(100, 6)
    np.testing.assert_array_equal(np.sort(apart, axis=0), np.asarray(zs).reshape(100, 6))
    assert len({tuple(np.argsort(unit)) for unit in apart.T}) == 6


# Rates that are asked for, on Gaussian data whose best (rate, distortion) is known: reverse water-filling.

EIGENVALUES, SIGMA = np.array([4.0, 1.0, 0.25]), 0.3
GAUSSIAN = (np.random.default_rng(1).normal(size=(4096, 3)) * np.sqrt(EIGENVALUES)).astype(np.float32)


def nats(squared):
    """-ln P(y|z) of a squared error at SIGMA, ln Z included."""
    return squared / (2 * SIGMA**2) + 1.5 * np.log(2 * np.pi * SIGMA**2)


def trained(model, objective):
    fitted = fit(
        model,
        optax.adam(optax.cosine_decay_schedule(1e-2, 300 * 16)),
        GAUSSIAN,
        key=jax.random.key(0),
        epochs=300,
        batch_size=256,
        objective=objective,
        progress=False,
    )
    result = evaluate(model, fitted.state.params, jax.random.key(1), GAUSSIAN, samples=4)
    return fitted.state.params, float(result.rate.mean()), float(result.distortion.mean())


def linear():
    return vae(gaussian(affine(6)), standard_normal(3), l2(affine(3), SIGMA))


def test_geco_meets_its_limit():
    """The distortion to 2 % of its excess over ln Z; the rate as the rate-distortion function has it, to 5 %."""
    (rate,), (squared,) = rate_distortion(EIGENVALUES, np.array([0.2]))
    model, objective = geco(linear(), nats(squared), speed=0.05, memory=0.9)
    params, got_rate, got_distortion = trained(model, objective)
    assert got_distortion == pytest.approx(nats(squared), abs=0.02 * squared / (2 * SIGMA**2))
    assert got_rate == pytest.approx(rate, rel=0.05)
    # lambda is the slope of the curve: d rate / d squared = -1 / (2 level), the distortion counts squared / (2 sigma^2)
    assert np.exp(float(params["multiplier"]["log"])) == pytest.approx(SIGMA**2 / 0.2, rel=0.1)


def test_a_rate_that_is_asked_for():
    (rate,), (squared,) = rate_distortion(EIGENVALUES, np.array([0.2]))
    model, objective = at_rate(linear(), rate, proportional=0.05, integral=0.01)
    _, got_rate, got_distortion = trained(model, objective)
    assert got_rate == pytest.approx(rate, rel=0.03)
    assert got_distortion == pytest.approx(nats(squared), abs=0.1 * squared / (2 * SIGMA**2))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: beta_tc(ENCODER, -1, 10), "beta weighs the total correlation"),
        (lambda: beta_tc(ENCODER, 2, 1), "n is the number of training examples"),
        (lambda: dip(ENCODER, 1, -1), "diagonal is a weight"),
        (lambda: dip(ENCODER, 1, 1, kind="mean"), "want 'means' or 'both'"),
        (lambda: balanced(linear_annealing(3), (1.0, 0.0)), "sizes are how many numbers each level has"),
        (lambda: capacity(-1, 1.0), "weight is that of the rate's distance"),
        (lambda: geco(linear(), np.nan), "limit is a distortion in nats"),
        (lambda: geco(linear(), 1.0, speed=0), "speed is how fast"),
        (lambda: geco(linear(), 1.0, memory=1.0), "memory is the decay"),
        (lambda: at_rate(linear(), -1.0), "limit is a rate in nats"),
        (lambda: factor_vae(linear(), ENCODER, QUADRATIC, -1.0), "weight is of the total correlation"),
        (lambda: at_rate(linear(), 1.0, derivative=-1.0), "derivative=-1.0: want a gain"),
        (lambda: at_rate(linear(), 1.0, most=1.0), "most=1.0: want a positive number, above 1"),
    ],
)
def test_what_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_an_encoder_that_does_not_factorise():
    import numpyro.distributions as dist

    full = conditional((NOTHING, lambda params, y: y[:2]), lambda loc: dist.MultivariateNormal(loc, jnp.eye(2)))
    model = vae(full, standard_normal(2), l2(affine(4), 0.5))
    params = model.init(jax.random.key(0), jnp.zeros(4), None)
    with pytest.raises(ValueError, match="want an encoder that factorises over them"):
        losses(beta_tc(full, 2.0, 10), model, params, np.zeros((4, 4), np.float32))
