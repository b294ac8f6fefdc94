"""Numbers of a whole split, against numpy and against models that are solved exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from vae_jax import (
    Conditional,
    Evaluation,
    Model,
    Terms,
    analytic,
    bernoulli,
    conditional,
    evaluate,
    fit,
    gaussian,
    l2,
    standard_normal,
    vae,
)
from vae_jax.data import dequantisation, dynamic_binarisation, unit_scale
from vae_jax.em import mixture_of_gaussians
from vae_jax.evaluation import active_units, bits_per_dimension, mean
from vae_jax.evaluation.whole_split import values_of
from vae_jax.selfcheck.solvable import affine, affine_normal, linear_gaussian

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
WEIGHTS = np.array([[1.0, 2.0], [2.0, 0.0], [2.0, -1.0]]) / 2  # orthogonal columns
YS = (RNG.normal(size=(40, 2)) @ WEIGHTS.T + 0.7 * RNG.normal(size=(40, 3))).astype(np.float32)
SOLVED = linear_gaussian(WEIGHTS, 0.5, YS)
LEVELS = RNG.integers(0, 256, (30, 4), dtype=np.uint8)


def run(system=SOLVED, ys=YS, k=3, **options):
    return evaluate(system.model, system.params, KEY, ys, k=k, **options)


# Every example counts, once, whatever the batches


@given(n=st.integers(1, 40), batch_size=st.sampled_from([4, 16]))
@example(n=3, batch_size=16)
@example(n=40, batch_size=100)
def test_an_example_has_its_number_whatever_the_batches(n, batch_size):
    """The first n examples, in batches with a ragged end, against all 40 in one batch."""
    assume(n >= batch_size or n in (3, 40))  # each batch size is compiled
    whole, part = run(), run(ys=YS[:n], batch_size=batch_size)
    for name in ("elbo", "rate", "distortion", "log_likelihood"):
        assert getattr(part, name).shape == (n,)
        np.testing.assert_allclose(getattr(part, name), getattr(whole, name)[:n], rtol=1e-5, atol=1e-5)


def test_the_noise_in_the_data_does_not_depend_on_the_batches_either():
    model = vae(gaussian(affine(4)), standard_normal(2), bernoulli(affine(4)))
    params = model.init(KEY, jnp.zeros(4), None)
    results = [evaluate(model, params, KEY, LEVELS, preprocess=dynamic_binarisation(), batch_size=b) for b in (30, 8)]
    np.testing.assert_allclose(results[0].elbo, results[1].elbo, rtol=1e-5)
    other = evaluate(model, params, jax.random.key(4), LEVELS, preprocess=dynamic_binarisation(), batch_size=8)
    assert np.abs(other.distortion - results[0].distortion).min() > 1e-3


def test_every_place_has_noise_of_its_own():
    assert len(np.unique(run(ys=np.tile(YS[:1], (40, 1))).elbo)) == 40


def test_conditions_follow_their_examples():
    """y is its condition: only the right pairing has distortion D/2 ln 2 pi sigma^2."""

    def init(key, *inputs):
        del key, inputs
        return {}

    encoder = gaussian((init, lambda params, y, c: jnp.zeros(2)))
    generator = l2((init, lambda params, z, c: c), 0.1)
    model = vae(encoder, standard_normal(1), generator)
    params = model.init(KEY, YS[0], YS[0])
    result = evaluate(model, params, KEY, YS, YS, batch_size=7)
    np.testing.assert_allclose(result.distortion, 1.5 * np.log(2 * np.pi * 0.1**2), rtol=1e-5)


def test_the_second_evaluation_compiles_nothing(caplog):
    run()
    with jax.log_compiles():
        run()
    assert "Finished tracing" in caplog.text  # the log is on
    assert "Compiling" not in caplog.text


# Numbers by numpy


def test_means_and_standard_errors_are_numpys():
    result = run()
    for values in (result.elbo, result.rate, result.distortion, result.log_likelihood):
        value, error = mean(values)
        assert value == pytest.approx(np.mean(values, dtype=np.float64))
        assert error == pytest.approx(np.std(values.astype(np.float64), ddof=1) / np.sqrt(40))
    np.testing.assert_allclose(result.elbo, -(result.rate + result.distortion))
    value, error = mean(np.array([2.0]))
    assert value == 2 and np.isnan(error)
    value, error = mean(np.array([2.0, -np.inf]))  # without a warning
    assert value == -np.inf and np.isnan(error)


def test_samples_are_averaged():
    """With many draws of z the bound is its closed form: ln P(y) - KL(encoder || posterior)."""
    few, many = run(), run(samples=4000, k=0)
    m = np.diag(WEIGHTS.T @ WEIGHTS) + 0.5
    variance, widened = 0.5 / m, 0.5 / m * 1.3**2
    shift = SOLVED.params["enc"]["bias"]
    kl = 0.5 * np.sum(widened / variance - 1 - np.log(widened / variance) + shift**2 / variance)
    error = np.std(few.elbo - (SOLVED.log_p - kl), ddof=1) / np.sqrt(4000)  # of one example's mean of 4000
    assert np.abs(many.elbo - (SOLVED.log_p - kl)).max() < 5 * error


def test_the_exact_encoder_gives_the_exact_likelihood():
    result = evaluate(SOLVED.model, SOLVED.exact, KEY, YS, k=3)
    np.testing.assert_allclose(result.elbo, SOLVED.log_p, rtol=1e-4)
    np.testing.assert_allclose(result.log_likelihood, SOLVED.log_p, rtol=1e-4)


def test_5000_importance_samples_lie_between_the_bound_and_the_likelihood():
    result = run(ys=YS[:20], k=5000, samples=64)
    assert result.k == 5000
    value, bound = mean(result.log_likelihood).value, mean(result.elbo)
    exact = SOLVED.log_p[:20].mean()
    error = mean(result.log_likelihood - SOLVED.log_p[:20]).standard_error
    assert bound.value + 4 * mean(result.elbo - SOLVED.log_p[:20]).standard_error < value
    assert value <= exact + 4 * error
    assert value > exact - 0.01 * (exact - bound.value)  # 5000 samples close the gap


def test_importance_samples_are_taken_in_chunks(monkeypatch):
    """5000 samples of a batch of 100 would be 500,000 passes at once: at most about 4096 are."""
    asked = []
    monkeypatch.setattr(
        "vae_jax.evaluation.whole_split.values_of", lambda *args: asked.append(args) or values_of(*args)
    )
    run(ys=YS[:20], k=5000, samples=64)
    (_, _, k, _, chunk, _), *_ = asked
    assert k == 5000 and chunk * 20 <= 4096


# Bits per dimension


def test_bits_of_a_bernoulli_model_by_hand():
    """Logits 0: every pixel costs 1 bit, and the encoder is the prior, so the rate is 0."""
    model = vae(gaussian(affine(4)), standard_normal(2), bernoulli(affine(4)))
    params = jax.tree.map(jnp.zeros_like, model.init(KEY, jnp.zeros(4), None))
    result = evaluate(model, params, KEY, LEVELS, preprocess=dynamic_binarisation())
    assert result.convention == "dynamic binarisation" and result.dimensions == 4
    value, error = bits_per_dimension(result)
    assert value == pytest.approx(1.0, rel=1e-5) and error < 1e-6
    np.testing.assert_allclose(result.elbo, -4 * np.log(2), rtol=1e-5)


def test_bits_of_dequantised_values_count_the_volume_of_a_level():
    """N(0, 1) on [0, 1): -ln p(x) in numpy, plus ln 256 for each of the 4 numbers."""
    model = vae(gaussian(affine(4)), standard_normal(2), l2(affine(4), 1.0))
    params = jax.tree.map(jnp.zeros_like, model.init(KEY, jnp.zeros(4), None))
    result = evaluate(model, params, KEY, LEVELS, preprocess=dequantisation())
    x = (LEVELS + 0.5) / 256
    nats = np.mean(0.5 * x**2 + 0.5 * np.log(2 * np.pi) + np.log(256))
    value, error = bits_per_dimension(result)
    assert value == pytest.approx(nats / np.log(2), abs=1e-3)
    assert error == pytest.approx(mean(result.elbo).standard_error / (4 * np.log(2)))


def test_a_density_of_values_that_were_not_dequantised_has_no_bits():
    model = vae(gaussian(affine(4)), standard_normal(2), l2(affine(4), 1.0))
    params = model.init(KEY, jnp.zeros(4), None)
    assert bits_per_dimension(evaluate(model, params, KEY, LEVELS, preprocess=unit_scale())) is None


# Units of the latent


def test_active_units_of_a_known_encoder():
    """Posterior means (y0, 0.09 y1, 3) with y of variance 1: one unit above 0.01 by far, one below, one constant."""
    ys = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32)
    model = vae(affine_normal(3), standard_normal(3), l2(affine(2), 1.0))
    params = model.init(KEY, ys[0], None)
    params["enc"]["weights"] = jnp.array([[1.0, 0.0], [0.0, 0.09], [0.0, 0.0]])
    params["enc"]["bias"] = jnp.array([0.0, 0.0, 3.0])
    result = evaluate(model, params, KEY, ys)
    np.testing.assert_allclose(result.unit_variance, [1, 0.0081, 0], rtol=1e-5, atol=1e-9)
    assert active_units(result) == 1
    params["enc"]["weights"] *= 1.2  # 0.0081 * 1.44 = 0.0117
    assert active_units(evaluate(model, params, KEY, ys)) == 2


def test_rates_of_the_units_sum_to_the_rate():
    """With the closed form they are KL(N(m, s^2) || N(0, 1)) of each unit, averaged over the split."""
    solved = linear_gaussian(WEIGHTS, 0.5, YS, estimator=analytic)
    result, enc = run(solved), jax.tree.map(np.asarray, solved.params["enc"])
    means = YS @ enc["weights"].T + enc["bias"]
    variances = np.exp(2 * enc["log_std"])
    wanted = 0.5 * np.mean(means**2 + variances - 1 - np.log(variances), axis=0)
    np.testing.assert_allclose(result.unit_rate, wanted, rtol=1e-5)
    assert result.unit_rate.sum() == pytest.approx(mean(result.rate).value, rel=1e-5)
    np.testing.assert_allclose(run().unit_rate.sum(), mean(run().rate).value, rtol=1e-4)  # one sample, too


def test_a_prior_that_does_not_factorise_has_no_rate_per_unit():
    model = vae(affine_normal(2), mixture_of_gaussians(2, 3), l2(affine(3), 1.0))
    result = evaluate(model, model.init(KEY, YS[0], None), KEY, YS)
    assert result.unit_rate is None and result.unit_variance.shape == (2,)


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": -1}, "k >= 0 and samples >= 1; got .*k=-1"),
        ({"k": 2.5}, "want k >= 0 .*k=2.5, samples=1 .want whole numbers"),
        ({"k": True}, "k=True"),
        ({"samples": 0}, "k >= 0 and samples >= 1; got .*samples=0"),
        ({"samples": 1.5}, "samples=1.5"),
        ({"at_once": 0.5}, "at_once is how many .*; got 0.5"),
        ({"batch_size": 0}, "batch_size is how many examples are evaluated at once, at least 1; got 0"),
        ({"batch_size": 7.5}, "batch_size .*; got 7.5"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)


def test_a_model_without_importance_samples():
    model = SOLVED.model._replace(importance=None)
    assert isinstance(evaluate(model, SOLVED.params, KEY, YS), Evaluation)
    with pytest.raises(ValueError, match="importance is None"):
        evaluate(model, SOLVED.params, KEY, YS, k=2)


# Data that are trees, and supports that follow the example


def joint(parts):
    """P(y|z) of a dict or tuple y whose arrays are independent given z."""
    names = jax.tree.structure(parts, is_leaf=lambda x: isinstance(x, Conditional))

    def of_each(function, *trees):
        columns = [names.flatten_up_to(tree) for tree in (parts, *trees)]
        return [function(*row) for row in zip(*columns, strict=True)]

    def terms(params, key, y, c=None):
        return Terms(sum(of_each(lambda part, w, x: -part.dist(w, c).log_prob(x), params, y)), 0.0)

    return Model(
        lambda key, y, c=None: names.unflatten(of_each(lambda part: part.init(key, c))),
        terms,
        lambda params, key, c=None: names.unflatten(of_each(lambda part, w: part.dist(w, c).sample(key), params)),
        terms,
        support=lambda params, c=None: names.unflatten(of_each(lambda part, w: part.dist(w, c).support, params)),
    )


def flattened(size):
    """An affine network of all numbers of its inputs."""
    net = affine(size)

    def flat(inputs):
        return jnp.concatenate([jnp.ravel(x) * 1.0 for x in jax.tree.leaves(inputs)])

    return lambda key, *inputs: net.init(key, flat(inputs)), lambda params, *inputs: net.apply(params, flat(inputs))


@pytest.mark.parametrize("tree", [dict, tuple])
def test_data_that_are_trees(tree):
    """Trained, evaluated and importance weighted; at weights 0 each number is known: z tells nothing."""
    bits, reals = (RNG.random((12, 2)) < 0.5).astype(np.int64), RNG.normal(size=(12, 1))
    ys = {"bits": bits, "reals": reals} if tree is dict else (bits, reals)
    parts = jax.tree.unflatten(jax.tree.structure(ys), [bernoulli(affine(2)), l2(affine(1), 1.0)])
    model = vae(gaussian(flattened(2)), standard_normal(1), joint(parts))
    fitted = fit(model, optax.sgd(0.1), ys, key=KEY, epochs=1, batch_size=6, validation=(ys, None), progress=False)
    assert np.isfinite(fitted.history[0]["valid_elbo"])
    result = evaluate(model, jax.tree.map(jnp.zeros_like, fitted.params), KEY, ys, k=3)
    exact = -2 * np.log(2) - 0.5 * (reals[:, 0] ** 2 + np.log(2 * np.pi))
    np.testing.assert_allclose(result.elbo, exact, rtol=1e-5)
    np.testing.assert_allclose(result.log_likelihood, exact, rtol=1e-5)
    wrong = jax.tree.unflatten(jax.tree.structure(ys), [bits + 1, reals])
    with pytest.raises(ValueError, match=r"ys\[.*\] has values in \[1, 2\] .* the likelihood wants 0 or 1"):
        evaluate(model, fitted.params, KEY, wrong)


def below(make):
    """P(y|z, c) of one number from `make(z, c)`, the same for all parameters."""
    return conditional((lambda key, *inputs: {"w": jnp.zeros(())}, lambda params, z, c: (z * params["w"], c)), make)


UPPER = {
    "truncated": lambda out: dist.TruncatedNormal(out[0], 1.0, low=None, high=out[1]).to_event(1),
    "binomial": lambda out: dist.BinomialLogits(out[0], total_count=out[1]).to_event(1),
}


@pytest.mark.parametrize("likelihood", UPPER)
def test_the_support_of_each_example(likelihood):
    """The bound is the example's own: data are held against it, whatever comes first."""
    cs = np.array([[1.0], [5.0], [3.0], [9.0]], np.float32)
    model = vae(gaussian(flattened(2)), standard_normal(1), below(UPPER[likelihood]))
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        ys, bounds = (cs - 1)[order], cs[order]
        params = model.init(KEY, ys[0], bounds[0])
        result = evaluate(model, params, KEY, ys, bounds)
        if likelihood == "binomial":  # 1/2 each: C(n, n - 1) / 2^n
            np.testing.assert_allclose(-result.distortion, np.log(bounds[:, 0]) - bounds[:, 0] * np.log(2), rtol=1e-5)
        ys[2] += 2
        with pytest.raises(ValueError, match=r"outside of the likelihood's support in 1 of 4 .*index 2\. "):
            evaluate(model, params, KEY, ys, bounds)


class Unsaid(dist.Distribution):
    """A normal density that does not say where it is."""

    def __init__(self, loc):
        self.loc = loc
        super().__init__(jnp.shape(loc))

    def log_prob(self, value):
        return dist.Normal(self.loc).log_prob(value)

    def sample(self, key, sample_shape=()):
        return dist.Normal(self.loc).sample(key, sample_shape)


def test_a_distribution_that_does_not_say_where_it_is():
    model = vae(gaussian(affine(2)), standard_normal(1), conditional(affine(3), lambda loc: Unsaid(loc).to_event(1)))
    other = vae(gaussian(affine(2)), standard_normal(1), l2(affine(3), 1.0))
    params = model.init(KEY, YS[0], None)
    results = [evaluate(m, params, KEY, YS, batch_size=40).elbo for m in (model, other)]
    np.testing.assert_allclose(*results, rtol=1e-5)
