"""Objectives on terms that are known numbers: what is minimised, and that what is reported stays the bound."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import BITS, affine, compiled, encoder, grid, latent

from vae_jax import Model, Terms, bernoulli, gumbel, init_state, make_train_step, score_function, standard_normal
from vae_jax.core import (
    batch_mean_per_unit,
    beta_elbo,
    ciwae,
    cyclical_annealing,
    doubly_reparameterised,
    drop_condition,
    elbo,
    free_bits,
    importance_weighted,
    importance_weighted_bound,
    leave_one_out,
    linear_annealing,
    miwae,
    of,
    per_example,
    per_unit,
    piwae,
    renyi,
    sigmoid_annealing,
    vimco,
)
from vae_jax.core.model import Units
from vae_jax.core.objectives import batch_terms

KL = jnp.array([[0.1, 2.0], [0.7, 0.0]])


def given_rates(params, key, y, c=None):
    """y IS the rate of each unit; the distortion is their number of units, the penalty 10."""
    return Terms(2.0 * params["w"], params["w"] * jnp.sum(y), 10.0, units=Units(rate=params["w"] * y))


def no_sample(params, key, c=None):
    return jnp.zeros(2)


RATES = Model(lambda key, y, c=None: {"w": jnp.float32(1.0)}, given_rates, no_sample)
PARAMS = {"w": jnp.float32(1.0)}


def at(objective, ys=KL, *, step=0, params=PARAMS, model=RATES):
    keys = jax.random.split(jax.random.key(0), len(ys))
    return objective(model, params, keys, jnp.asarray(ys, jnp.float32), None, step)


# ELBO and beta


def test_elbo_is_the_mean_of_distortion_rate_and_penalty():
    loss, terms = at(elbo())
    np.testing.assert_allclose(loss, 2 + KL.sum() / 2 + 10, rtol=1e-6)
    np.testing.assert_allclose(terms.nats, 2 + KL.sum(axis=1), rtol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0, 4.0, lambda step: 0.1 * step])
def test_beta_weighs_the_rate_alone(beta):
    loss, terms = at(beta_elbo(beta), step=7)
    weight = 0.7 if callable(beta) else beta
    np.testing.assert_allclose(loss, 2 + weight * KL.sum() / 2 + 10, rtol=1e-6)
    np.testing.assert_allclose(terms.nats, at(elbo())[1].nats)
    assert beta != 1.0 or loss == at(elbo())[0]


# Another model on the same parameters


def test_of_trains_the_model_that_is_built_for_the_step():
    def build(step):
        return RATES._replace(terms=lambda *args: given_rates(*args)._replace(distortion=3.0 * step))

    loss, terms = at(of(build, beta_elbo(2.0)), step=7)
    np.testing.assert_allclose(loss, 21 + 2 * KL.sum() / 2 + 10, rtol=1e-6)
    np.testing.assert_allclose(terms.distortion, 21)
    assert at(of(lambda step: RATES))[0] == at(elbo())[0]


# Schedules


@pytest.mark.parametrize(
    ("schedule", "knots"),
    [
        (linear_annealing(4), {0: 0, 1: 0.25, 3: 0.75, 4: 1, 100: 1}),
        (linear_annealing(4, start=2.0, end=1.0), {0: 2, 2: 1.5, 4: 1, 9: 1}),
        (sigmoid_annealing(10), {0: 1 / (1 + np.exp(5)), 5: 0.5, 10: 1 / (1 + np.exp(-5)), 1000: 1}),
        (
            sigmoid_annealing(10, start=1.0, end=3.0, steepness=2.0),
            {0: 1 + 2 / (1 + np.e), 5: 2, 10: 3 - 2 / (1 + np.e)},
        ),
        (cyclical_annealing(8), {0: 0, 1: 0.25, 2: 0.5, 4: 1, 7: 1, 8: 0, 10: 0.5, 15: 1, 16: 0}),
        (cyclical_annealing(4, start=0.2, end=0.6, ramp=1.0), {0: 0.2, 1: 0.3, 3: 0.5, 4: 0.2}),
    ],
)
def test_schedules_at_their_knots(schedule, knots):
    for step, want in knots.items():
        np.testing.assert_allclose(schedule(step), want, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(jax.jit(schedule)(jnp.int32(step)), want, rtol=1e-6, atol=1e-7)


# Free bits

DEFINITIONS = {batch_mean_per_unit: 1.5, per_unit: 1.85, per_example: 1.4}


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_free_bits_on_the_oracle(definition):
    """KL = [[.1, 2], [.7, 0]], floor .5: 1.5, 1.85 and 1.4 by definition."""
    np.testing.assert_allclose(definition(KL, 0.5), DEFINITIONS[definition], rtol=1e-6)
    loss, terms = at(free_bits(0.5, definition))
    np.testing.assert_allclose(loss, 2 + 10 + DEFINITIONS[definition], rtol=1e-6)
    np.testing.assert_allclose(terms.nats, 2 + KL.sum(axis=1), rtol=1e-6)


@given(st.floats(0, 3), st.integers(0, 99))
def test_free_bits_by_numpy(floor, seed):
    """Random rates of 4 examples and 3 units, also negative ones, as single draws are."""
    rates = np.random.default_rng(seed).normal(0.5, 1.0, size=(4, 3)).astype(np.float32)
    want = {
        batch_mean_per_unit: sum(max(floor, rates[:, d].mean()) for d in range(3)),
        per_unit: np.mean([sum(max(floor, r) for r in row) for row in rates]),
        per_example: np.mean([max(floor, row.sum()) for row in rates]),
    }
    for definition, value in want.items():
        np.testing.assert_allclose(definition(jnp.asarray(rates), floor), value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("definition", DEFINITIONS)
def test_free_bits_with_floor_0_and_a_weight(definition):
    """Rates above the floor: no floor at all. The weight multiplies the floored rate."""
    rates = np.abs(KL) + 1
    loss, _ = at(free_bits(0.0, definition, beta=lambda step: 0.25 * step), rates, step=2)
    np.testing.assert_allclose(loss, at(beta_elbo(0.5), rates)[0], rtol=1e-6)
    np.testing.assert_allclose(at(free_bits(9.0, definition, beta=2.0))[0] - 12, 2 * definition(KL, 9.0), rtol=1e-6)


@pytest.mark.parametrize(("definition", "slope"), [(batch_mean_per_unit, 1.0), (per_unit, 1.35), (per_example, 1.4)])
def test_free_bits_reward_nothing_below_the_floor(definition, slope):
    """d loss / d w at w = 1 of rates w KL: only what is above .5 counts; 2 from the distortion."""
    gradient = jax.grad(lambda params: at(free_bits(0.5, definition), params=params)[0])(PARAMS)["w"]
    np.testing.assert_allclose(gradient, 2 + slope, rtol=1e-6)


def test_free_bits_of_a_latent_with_a_shape():
    """Units of shape (2, 2) are four units; the rate of an example is one number whatever its units."""
    grouped = jnp.stack([KL, KL + 1])
    for definition in DEFINITIONS:
        loss, _ = at(free_bits(0.5, definition), grouped)
        np.testing.assert_allclose(loss, 12 + definition(grouped.reshape(2, 4), 0.5), rtol=1e-6)


def test_free_bits_say_where_there_are_no_units():
    model = RATES._replace(terms=lambda *args: given_rates(*args)._replace(units=Units()))
    for definition in (per_unit, batch_mean_per_unit):
        with pytest.raises(ValueError, match="per_example"):
            at(free_bits(0.5, definition), model=model)
    np.testing.assert_allclose(at(free_bits(0.5, per_example), model=model)[0], 13.4, rtol=1e-6)


# Importance weights


def noisy_weights(params, key, y, c=None):
    """exp(-nats) = y exp(w * noise): one weight for each key."""
    return Terms(params["w"] * jax.random.normal(key), -jnp.log(jnp.sum(y)), 3.0)


WEIGHTS = RATES._replace(importance=noisy_weights)


@pytest.mark.parametrize("k", [1, 5])
def test_importance_weighted_loss_is_minus_the_log_of_the_mean_weight(k):
    ys = np.array([[1.0, 2.0], [0.5, 0.5]], np.float32)
    loss, terms = at(importance_weighted(k), ys, model=WEIGHTS)
    keys = jax.vmap(lambda key: jax.random.split(key, k))(jax.random.split(jax.random.key(0)))
    noise = np.asarray(jax.vmap(jax.vmap(jax.random.normal))(keys))
    weights = ys.sum(axis=1)[:, None] * np.exp(-noise)
    np.testing.assert_allclose(loss, -np.mean(np.log(weights.mean(axis=1))) + 3, rtol=1e-5)
    np.testing.assert_allclose(terms.nats, -np.log(weights).mean(axis=1), rtol=1e-5)  # averages of the k: the ELBO


def test_importance_weighted_loss_falls_to_the_exact_likelihood():
    """k = 1 is the negative ELBO on average, and with k = 1000 it is -ln P(y)."""
    system = latent(encoder(1), standard_normal(1), bernoulli(affine(3)), BITS, grid(1))
    params = compiled(system.model.init)(jax.random.key(0), BITS.ys[0])
    ys = jnp.repeat(jnp.asarray(BITS.ys), 100, axis=0)

    def loss(k):
        keys = jax.random.split(jax.random.key(1), len(ys))
        return compiled(lambda: importance_weighted(k)(system.model, params, keys, ys, None, 0)[0])()

    exact = -jnp.mean(jax.vmap(lambda y: system.density(params, y, None))(ys[::100]))
    assert loss(1) > exact + 0.02
    np.testing.assert_allclose(loss(1000), exact, atol=0.005)


# What is reported


ELBO, REPORTED = elbo(), ("elbo", "rate", "distortion")


@pytest.fixture(scope="module")
def reported():
    """`objective -> (loss, reported metrics)` of a VAE, at the same parameters, key and data; each compiled once."""
    model = latent(encoder(2), standard_normal(2), bernoulli(affine(3)), BITS, None).model
    state = init_state(model, optax.sgd(0.1), jax.random.key(0), BITS.ys[0])

    @functools.cache
    def of(objective):
        step = compiled(make_train_step(model, optax.sgd(0.1), objective=objective))
        _, metrics = step(state, jax.random.key(1), BITS.ys)
        return float(metrics["loss"]), {name: float(metrics[name]) for name in REPORTED}

    return of


@pytest.mark.parametrize(
    "objective",
    [beta_elbo(4.0), beta_elbo(linear_annealing(10)), free_bits(2.0, per_unit), free_bits(2.0, batch_mean_per_unit)],
)
def test_reported_bound_does_not_change_with_the_objective(reported, objective):
    loss, metrics = reported(objective)
    plain_loss, plain = reported(ELBO)
    assert abs(loss - plain_loss) > 0.1
    for name in REPORTED:
        np.testing.assert_allclose(metrics[name], plain[name], rtol=1e-6)
    np.testing.assert_allclose(metrics["elbo"], -(metrics["rate"] + metrics["distortion"]), rtol=1e-6)


def test_importance_weighted_reports_the_elbo_and_minimises_less(reported):
    """By Jensen, for the same draws: -ln mean w <= mean -ln w."""
    loss, metrics = reported(importance_weighted(5))
    assert loss < -metrics["elbo"] - 0.01
    np.testing.assert_allclose(metrics["elbo"], -(metrics["rate"] + metrics["distortion"]), rtol=1e-6)


# Errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: beta_elbo(-1.0), r"beta.*-1\.0"),
        (lambda: free_bits(-0.5, per_unit), r"floor.*-0\.5"),
        (lambda: beta_elbo(float("nan")), "beta weighs .*nan"),
        (lambda: beta_elbo("1"), "beta weighs .*; got 1"),
        (lambda: beta_elbo(None), "beta weighs .*None"),
        (lambda: beta_elbo(np.inf), "beta weighs .*inf"),
        (lambda: beta_elbo(jnp.ones(2)), "beta weighs .*1. 1."),
        (lambda: free_bits(0.5, per_unit, beta=-1), "beta weighs .*-1"),
        (lambda: free_bits(0.5, per_unit, beta=np.nan), "beta weighs .*nan"),
        (lambda: free_bits(np.nan, per_unit), "floor.*nan"),
        (lambda: drop_condition(elbo(), np.nan), "rate is the part .*nan"),
        (lambda: drop_condition(elbo(), "0.1"), "rate is the part .*0.1"),
        (lambda: importance_weighted(0), "k=0"),
        (lambda: importance_weighted(2.5), "got k=2.5 .want a whole number"),
        (lambda: importance_weighted(True), "k=True"),
        (lambda: importance_weighted("3"), "k=3"),
        (lambda: miwae(2, 1.5), "k=1.5"),
        (lambda: miwae(np.float32(2), 1), "m=2.0"),
        (lambda: piwae(None, 2), "m=None"),
        (lambda: ciwae(np.nan, 2), "beta is the ELBO's share .*nan"),
        (lambda: renyi(np.nan, 2), "alpha, .*; got nan"),
        (lambda: renyi(0.5, 2.0), "k=2.0"),
        (lambda: vimco(1), "k >= 2 samples.*k=1"),
        (lambda: leave_one_out(2.5), "k >= 2 samples.*k=2.5"),
        (lambda: doubly_reparameterised(1.5), "k=1.5"),
        (lambda: importance_weighted_bound(WEIGHTS, PARAMS, None, KL[0], k=2.5), "k=2.5"),
        (lambda: importance_weighted_bound(WEIGHTS, PARAMS, None, KL[0], k=2, chunk=0), "chunk .*; got 0"),
        (lambda: score_function(np.nan), "baseline is in nats.*nan"),
        (lambda: gumbel(np.inf), "temperature .* must be positive; got inf"),
        (lambda: linear_annealing(np.nan), "at least one step; got nan"),
        (lambda: linear_annealing(10, end=np.inf), "end of a schedule wants a number; got inf"),
        (lambda: sigmoid_annealing(10, steepness="10"), "steepness of a schedule"),
        (lambda: cyclical_annealing(10, ramp=np.nan), "ramp.*nan"),
        (lambda: linear_annealing(0), "at least one step; got 0"),
        (lambda: sigmoid_annealing(-3), "at least one step; got -3"),
        (lambda: cyclical_annealing(0), "at least one step; got 0"),
        (lambda: cyclical_annealing(10, ramp=0.0), r"ramp.*0\.0"),
        (lambda: cyclical_annealing(10, ramp=1.5), r"ramp.*1\.5"),
    ],
)
def test_options_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "value", [1, np.int64(1), np.float32(1), jnp.float32(1), np.array(1.0)], ids=lambda x: type(x).__name__
)
def test_numbers_of_every_kind_are_numbers(value):
    assert at(beta_elbo(value))[0] == at(elbo())[0] == at(beta_elbo(lambda step: value))[0]
    whole = value if np.asarray(value).dtype.kind == "i" else jnp.asarray(value, jnp.int32)
    assert np.isfinite(at(importance_weighted(whole), model=WEIGHTS)[0])


@pytest.mark.parametrize(("value", "got"), [(jnp.ones(2), r"\(2,\)"), ([1.0], "list"), (None, "NoneType")])
def test_a_schedule_gives_one_number_for_all_examples(value, got):
    """An array would give each example a weight of its own."""
    for make in (beta_elbo, lambda beta: free_bits(0.5, per_unit, beta=beta)):
        with pytest.raises(ValueError, match=rf"beta\(step\) has to be one number, the same for all .*; got {got}"):
            at(make(lambda step: value))


def test_importance_weights_of_a_model_without_them():
    with pytest.raises(ValueError, match="no unbiased estimate"):
        at(importance_weighted(2), model=RATES)


def test_batch_terms_pass_each_example_its_own_key_and_condition():
    keys, ys, cs = jax.random.split(jax.random.key(0), 3), jnp.arange(3.0), jnp.array([10.0, 20.0, 30.0])
    noise, value = batch_terms(lambda params, key, y, c: (jax.random.normal(key), params * y + c), 2.0, keys, ys, cs)
    np.testing.assert_array_equal(value, [10, 22, 34])
    np.testing.assert_array_equal(noise, [jax.random.normal(key) for key in keys])
    np.testing.assert_array_equal(batch_terms(lambda p, k, y, c: y if c is None else -y, 0, keys, ys, None), ys)
