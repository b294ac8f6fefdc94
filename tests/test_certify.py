"""A whole split from below, and simulated data from both sides, on models whose ln P(y) is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.stats import multivariate_normal

from vae_jax import bernoulli, conditional, evaluate, l2, learned_normal, standard_normal, vae
from vae_jax.data import dequantisation
from vae_jax.evaluation import certified
from vae_jax.evaluation.annealed import linear_betas
from vae_jax.selfcheck.solvable import affine, affine_normal, linear_gaussian, table

KEY = jax.random.key(5)
RNG = np.random.default_rng(0)
WEIGHTS = np.array([[1.0, 2.0], [2.0, 0.0], [2.0, -1.0]]) / 2  # orthogonal columns
YS = (RNG.normal(size=(30, 2)) @ WEIGHTS.T + 0.7 * RNG.normal(size=(30, 3))).astype(np.float32)
SOLVED = linear_gaussian(WEIGHTS, 0.5, YS)
PRIOR, GENERATOR, ENCODER = standard_normal(2), l2(affine(3), float(np.sqrt(0.5))), affine_normal(2)

run = functools.partial(
    certified, PRIOR, GENERATOR, SOLVED.params, KEY, temperatures=20, chains=4, simulate=30, batch_size=30
)


@functools.cache
def from_prior():
    return run(YS)


def test_the_interval_contains_the_likelihood():
    """Of the data, each lower bound within 4 standard errors; of simulated data, on average E ln P = -entropy."""
    found = from_prior()
    missing = SOLVED.log_p - found.each
    assert -4 * missing.std() / np.sqrt(30) < missing.mean() < 0.3
    assert found.lower.value == pytest.approx(found.each.mean()) and found.each.shape == (30,)
    entropy = multivariate_normal(np.zeros(3), WEIGHTS @ WEIGHTS.T + 0.5 * np.eye(3)).entropy()
    assert found.simulated_lower.value - 4 * found.simulated_lower.standard_error < -entropy
    assert found.simulated_upper.value + 4 * found.simulated_upper.standard_error > -entropy
    assert found.gap.value == pytest.approx(found.simulated_upper.value - found.simulated_lower.value, rel=1e-4)
    assert -4 * found.gap.standard_error < found.gap.value < 0.6
    assert missing.mean() < found.gap.value + 4 * found.gap.standard_error  # data like the model's own
    assert (found.temperatures, found.chains, found.start, found.convention) == (20, 4, "prior", "as given")


def test_from_the_exact_posterior_nothing_is_missing():
    """Every chain from the exact posterior is ln P(y), whatever T; so are both bounds of what is simulated."""
    options = {"encoder": ENCODER, "temperatures": 2, "chains": 1, "simulate": 5}
    found = certified(PRIOR, GENERATOR, SOLVED.exact, KEY, YS, **options)
    np.testing.assert_allclose(found.each, SOLVED.log_p, atol=1e-5)
    assert abs(found.gap.value) < 1e-5 and found.start == "encoder"


@pytest.mark.parametrize(("n", "batch_size"), [(30, 7), (11, 100)])
def test_an_example_has_its_number_whatever_the_batches(n, batch_size):
    whole, part = from_prior(), run(YS[:n], batch_size=batch_size)
    np.testing.assert_allclose(part.each, whole.each[:n], atol=1e-4)
    if n == 30:  # what is simulated has the places after the split's
        np.testing.assert_allclose(part.simulated_upper, whole.simulated_upper, rtol=1e-4)
        np.testing.assert_allclose(part.gap, whole.gap, rtol=1e-3)


def test_the_second_certificate_compiles_nothing(caplog):
    from_prior()
    with jax.log_compiles():
        run(YS)
    assert "Finished tracing" in caplog.text  # the log is on
    assert "Compiling" not in caplog.text


def test_conditions_follow_their_examples():
    """y = z + 10 c + noise, the prior's mean learned: ln P(y|c) = ln N(y; mean + 10 c, 1.25)."""
    prior = learned_normal(1)
    generator = l2((lambda key, z, c: {}, lambda params, z, c: z + 10 * c), 0.5)
    params = {"pri": {"mean": jnp.array([0.7]), "log_std": jnp.zeros(1)}, "gen": {}}
    cs = np.arange(6, dtype=np.float32)[:, None]
    ys = 10 * cs + 1
    options = {"temperatures": 300, "chains": 16, "simulate": 7, "batch_size": 4, "schedule": linear_betas}
    found = certified(prior, generator, params, KEY, ys, cs, **options)
    np.testing.assert_allclose(found.each, multivariate_normal(0.7, 1.25).logpdf(1.0), atol=0.15)
    assert abs(found.gap.value) < 0.15 and -6 < found.simulated_lower.value < 0


def test_data_have_the_noise_that_evaluate_gives_them():
    """A generator that ignores z, sigma far below a level: ln P(y) is the ELBO and tells the noise."""
    levels = RNG.integers(0, 256, (9, 4), dtype=np.uint8)
    constant = conditional(
        (lambda key, z: {}, lambda params, z: jnp.zeros(4)), lambda mean: dist.Normal(mean, 1e-3).to_event(1)
    )
    encoder = conditional((lambda key, y: {}, lambda params, y: jnp.zeros(2)), lambda mean: standard_normal(2).dist({}))
    params = {"enc": {}, "pri": {}, "gen": {}}
    model = vae(encoder, PRIOR, constant)
    elbo = evaluate(model, params, KEY, levels, preprocess=dequantisation()).elbo
    found = certified(
        PRIOR, constant, params, KEY, levels, preprocess=dequantisation(), temperatures=2, chains=1, simulate=2
    )
    np.testing.assert_allclose(found.each, elbo, rtol=1e-5)
    assert found.convention == "uniform dequantisation"


# Errors


@pytest.mark.parametrize("options", [{"chains": 0}, {"simulate": 0}, {"batch_size": 0}])
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match="want chains >= 1, simulate >= 1 and batch_size >= 1; got"):
        run(YS, **options)


def test_no_temperatures():
    with pytest.raises(ValueError, match="temperatures >= 1"):
        run(YS, temperatures=0)


def test_data_are_checked_first():
    with pytest.raises(ValueError, match="ys holds NaN or infinity in 30 of 30"):
        run(np.full_like(YS, np.nan))
    with pytest.raises(ValueError, match="parameters do not fit these data: gen/bias"):
        certified(PRIOR, l2(affine(4), 1.0), SOLVED.params, KEY, np.ones((3, 4), np.float32))
    with pytest.raises(ValueError, match="the likelihood wants 0 or 1"):
        certified(PRIOR, bernoulli(affine(3)), SOLVED.params, KEY, YS)


def test_discrete_latents():
    codes = conditional(
        (lambda key, z: {}, lambda params, z: jnp.zeros(3)), lambda mean: dist.Normal(mean, 1e-3).to_event(1)
    )
    with pytest.raises(TypeError, match=r"z of the prior .CategoricalLogits.*enumerated"):
        certified(table(3), codes, {"pri": jnp.zeros(3), "gen": {}}, KEY, YS)
