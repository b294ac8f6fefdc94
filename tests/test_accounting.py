"""The parts of the gap and of the rate, against quadrature and models that are solved exactly.

Where draws are averaged, the key is fixed and the number of standard errors stated.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.integrate import quad
from scipy.special import logsumexp, rel_entr
from scipy.stats import norm

from vae_jax import conditional, evaluate, l2, learned_normal, standard_normal, vae
from vae_jax.data import dequantisation
from vae_jax.evaluation import gaps, rate_split
from vae_jax.selfcheck.quadrature import GivenNoise
from vae_jax.selfcheck.solvable import affine, affine_normal, linear_gaussian, table

KEY = jax.random.key(8)
RNG = np.random.default_rng(1)
WEIGHTS = np.array([[1.0, 2.0], [2.0, 0.0], [2.0, -1.0]]) / 2  # orthogonal columns
YS = (RNG.normal(size=(20, 2)) @ WEIGHTS.T + 0.7 * RNG.normal(size=(20, 3))).astype(np.float32)
NORMAL = affine_normal(1)


def points(means, variance):
    """(ys, params): the encoder N(y, variance) of numbers y."""
    enc = {"weights": jnp.eye(1), "bias": jnp.zeros(1), "log_std": jnp.full(1, 0.5 * np.log(variance))}
    return np.asarray(means, np.float32)[:, None], {"enc": enc, "pri": {}}


def exact_split(means, variance):
    """scipy: (rate, I(y; z), KL(aggregate || N(0, 1))) of n points with encoders N(mean, variance), by quadrature."""
    std = np.sqrt(variance)
    rate = np.mean(0.5 * (np.asarray(means) ** 2 + variance - 1 - np.log(variance)))
    aggregate = lambda z: np.mean(norm(means, std).pdf(z))  # noqa: E731
    edges = min(means) - 12 * std, max(means) + 12 * std
    marginal_kl, _ = quad(lambda z: rel_entr(aggregate(z), norm.pdf(z)), *edges, limit=400)
    return rate, rate - marginal_kl, marginal_kl


# 18. Average rate = mutual information + KL(aggregate || prior)


@pytest.mark.parametrize(
    ("means", "variance", "expected"),
    [((-3.0, -1.0, 1.0, 3.0), 0.25, (2.81815, 1.29565, 1.52249)), ((0.0, 0.5, 4.0), 1.0, None)],
)
def test_parts_of_the_rate(means, variance, expected):
    """20,000 draws for each point: within 0.02, 4 standard errors of the noisiest of the three (0.005)."""
    exact = exact_split(means, variance)
    ys, params = points(means, variance)
    found = rate_split(NORMAL, standard_normal(1), params, KEY, ys, samples=20_000)
    values = [part.value for part in (found.rate, found.mutual_information, found.marginal_kl)]
    np.testing.assert_allclose(values, exact, atol=0.02)
    assert values[0] == pytest.approx(values[1] + values[2], rel=1e-6)
    assert values[1] < found.limit == pytest.approx(np.log(len(means)))
    if expected is not None:
        np.testing.assert_allclose(exact, expected, atol=1e-5)


def test_parts_of_the_rate_against_a_table_of_all_pairs():
    """ln of means over all pairs, with and without the own one, in numpy."""
    ys, params = points(RNG.normal(size=13), 0.09)
    at = lambda mean: GivenNoise(mean, 0.3, jnp.sin(10 * mean)).to_event(1)  # noqa: E731  draws that numpy can repeat
    encoder = conditional((NORMAL.init, lambda params, y: NORMAL.dist(params, y).mean), at)
    found = rate_split(encoder, standard_normal(1), params, KEY, ys, batch_size=5)
    z = ys[:, 0] + 0.3 * np.sin(10 * ys[:, 0])
    matrix = norm(ys[:, 0][None], 0.3).logpdf(z[:, None])
    own = np.diag(matrix)
    everyone = logsumexp(matrix, axis=1) - np.log(13)
    others = logsumexp(np.where(np.eye(13), -np.inf, matrix), axis=1) - np.log(12)
    for part, values in (
        (found.mutual_information, own - everyone),
        (found.mutual_information_upper, own - others),
        (found.marginal_kl, everyone - norm.logpdf(z)),
        (found.rate, own - norm.logpdf(z)),
    ):
        assert part.value == pytest.approx(values.mean(), abs=1e-5)
        assert part.standard_error == pytest.approx(values.std(ddof=1) / np.sqrt(13), abs=1e-5)


def test_information_of_a_distribution_is_between_the_two_estimates():
    """y ~ N(0, 1), z = y + noise of variance 0.25: I = 1/2 ln 5, and the aggregate is N(0, 1.25), whatever n."""
    information = 0.5 * np.log(5)
    exact_kl = 0.5 * (1.25 - 1 - np.log(1.25))
    ys, params = points(np.random.default_rng(3).normal(size=1500), 0.25)
    found = rate_split(NORMAL, standard_normal(1), params, KEY, ys, samples=2)
    low, high = found.mutual_information, found.mutual_information_upper
    assert low.value < high.value < low.value + 0.05
    assert low.value - 4 * low.standard_error < information < high.value + 4 * high.standard_error
    assert found.marginal_kl.value == pytest.approx(exact_kl, abs=4 * found.marginal_kl.standard_error + 0.01)


def test_information_is_at_most_ln_n():
    """Codes that never meet: I is ln n, and the estimate that leaves each out tells that n was too small."""
    ys, params = points(np.arange(40) * 10.0, 0.01)
    found = rate_split(NORMAL, learned_normal(1), {**params, "pri": wide()}, KEY, ys, batch_size=7)
    assert found.mutual_information.value == pytest.approx(found.limit) == pytest.approx(np.log(40))
    assert found.mutual_information_upper.value > 1000


def wide():
    return {"mean": jnp.array([200.0]), "log_std": jnp.array([5.0])}


@pytest.mark.parametrize("batch_size", [7, 100])
def test_parts_of_the_rate_do_not_depend_on_the_batches(batch_size):
    ys, params = points(RNG.normal(size=20), 0.25)
    found = [rate_split(NORMAL, standard_normal(1), params, KEY, ys, samples=3, batch_size=b) for b in (20, batch_size)]
    np.testing.assert_allclose(*[np.hstack(result) for result in found], rtol=1e-5)


def test_discrete_codes_and_conditions():
    """Tables: I(y, c; z) and the aggregate by enumeration; the encoder sees (y, c)."""
    logits = RNG.normal(size=(4, 3)).astype(np.float32)
    both = conditional(
        (lambda key, y, c: jnp.zeros((4, 3)), lambda params, y, c: params[2 * y + c]),
        lambda logits: dist.CategoricalLogits(logits),
    )
    pri = jnp.array([0.5, 0.0, -0.5])
    ys, cs = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    found = rate_split(both, table(3), {"enc": jnp.asarray(logits), "pri": pri}, KEY, ys, cs, samples=20_000)
    q, p = (np.exp(x - logsumexp(x, axis=-1, keepdims=True)) for x in (logits, np.asarray(pri)))
    aggregate = q.mean(axis=0)
    information = rel_entr(q, aggregate[None]).sum() / 4
    assert found.mutual_information.value == pytest.approx(information, abs=0.02)  # 4 standard errors
    assert found.marginal_kl.value == pytest.approx(rel_entr(aggregate, p).sum(), abs=0.02)


# Approximation and amortisation gap


@functools.cache
def solved():
    return linear_gaussian(WEIGHTS, 0.5, YS, widen=1.5, shift=0.3)


PARTS = (affine_normal(2), standard_normal(2), l2(affine(3), float(np.sqrt(0.5))))
QUICK = {"steps": 300, "learning_rate": 0.05, "samples": 4, "draws": 2000}


def test_gaps_of_a_linear_model():
    """The posterior is in the family: all is amortisation, KL(encoder || posterior) in closed form."""
    system = solved()
    found = gaps(*PARTS, system.params, KEY, YS, log_p=system.log_p, **QUICK)
    variance = 0.5 / (np.diag(WEIGHTS.T @ WEIGHTS) + 0.5)
    kl = np.sum(0.5 * (1.5**2 + 0.3**2 / variance - 1) - np.log(1.5))
    assert found.total.value == pytest.approx(kl, abs=0.05)
    assert found.amortisation.value == pytest.approx(kl, abs=0.05)
    assert abs(found.approximation.value) < 0.01
    assert found.total.value == pytest.approx(found.approximation.value + found.amortisation.value)
    assert found.elbo.value == pytest.approx(system.log_p.mean() - found.total.value)
    assert found.refined_elbo.value == pytest.approx(system.log_p.mean() - found.approximation.value)
    again = gaps(*PARTS, system.params, KEY, YS, log_p=system.log_p, batch_size=7, **QUICK)
    np.testing.assert_allclose(np.hstack(again), np.hstack(found), atol=1e-4)


def test_approximation_gap_of_a_diagonal_family(x64):
    """Posterior N(m, M^-1): the best diagonal q has variances 1 / M_ii and misses 1/2 (sum ln M_ii - ln |M|)."""
    weights = np.array([[1.0, 0.8], [0.0, 1.0]])
    precision = np.eye(2) + weights.T @ weights / 0.25
    generator = l2(affine(2), 0.5)
    ys = RNG.normal(size=(3, 2)) @ weights.T
    prior, encoder = standard_normal(2), affine_normal(2)
    enc = {"weights": jnp.zeros((2, 2)), "bias": jnp.zeros(2), "log_std": jnp.zeros(2)}
    params = {"enc": enc, "pri": {}, "gen": {"weights": jnp.asarray(weights), "bias": jnp.zeros(2)}}
    covariance = weights @ weights.T + 0.25 * np.eye(2)
    log_p = -0.5 * (
        np.sum(ys * np.linalg.solve(covariance, ys.T).T, axis=1) + np.linalg.slogdet(2 * np.pi * covariance)[1]
    )
    found = gaps(encoder, prior, generator, params, KEY, ys, log_p=log_p, **QUICK)
    exact = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    assert found.approximation.value == pytest.approx(exact, abs=0.05)
    assert found.amortisation.value > 1


def test_gaps_are_of_the_data_that_evaluate_sees():
    """One key, one noise of dequantisation: with sigma far below a level the ELBOs agree only then."""
    levels = RNG.integers(0, 256, (5, 4), dtype=np.uint8)
    nothing = lambda key, x: {}  # noqa: E731
    encoder = conditional((nothing, lambda params, y: jnp.zeros(2)), lambda mean: dist.Normal(mean, 1).to_event(1))
    generator = conditional((nothing, lambda params, z: jnp.zeros(4)), lambda mean: dist.Normal(mean, 1e-3).to_event(1))
    params = {"enc": {}, "pri": {}, "gen": {}}
    elbo = evaluate(vae(encoder, PARTS[1], generator), params, KEY, levels, preprocess=dequantisation()).elbo
    options = {"preprocess": dequantisation(), "steps": 1, "samples": 1, "draws": 1}
    found = gaps(encoder, PARTS[1], generator, params, KEY, levels, log_p=elbo, **options)
    assert abs(found.total.value / elbo.mean()) < 1e-5


# Errors


def test_log_p_of_other_data():
    with pytest.raises(
        ValueError, match=r"log_p wants a finite ln P\(y\) for each of the 20 examples; got shape \(3,\)"
    ):
        gaps(*PARTS, solved().params, KEY, YS, log_p=np.zeros(3))
    with pytest.raises(ValueError, match="log_p wants a finite"):
        gaps(*PARTS, solved().params, KEY, YS, log_p=np.full(20, -np.inf))


@pytest.mark.parametrize("options", [{"draws": 0}, {"batch_size": 0}, {"steps": 0}, {"samples": 0}])
def test_options_of_gaps(options):
    with pytest.raises(ValueError, match=">= 1"):
        gaps(*PARTS, solved().params, KEY, YS, log_p=solved().log_p, **options)


def test_data_and_options_of_the_rate():
    ys, params = points([0.0, 1.0], 1.0)
    run = functools.partial(rate_split, NORMAL, standard_normal(1), params, KEY)
    with pytest.raises(ValueError, match="at least two"):
        run(ys[:1])
    with pytest.raises(ValueError, match="samples >= 1 and batch_size >= 1; got 0 and 100"):
        run(ys, samples=0)
    with pytest.raises(ValueError, match="ys holds NaN"):
        run(ys * np.nan)
    with pytest.raises(ValueError, match="parameters do not fit these data: enc/weights"):
        run(np.zeros((3, 2), np.float32))
