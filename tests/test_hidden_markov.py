"""Hidden Markov models: by enumeration of all paths, beside hmmlearn on real data, and the laws of EM."""

import functools
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp
from scipy.stats import multivariate_normal

from vae_jax import Conditional, fixed_encoder, vae
from vae_jax.core import lift
from vae_jax.core.older_jax import enable_x64
from vae_jax.data import load_table
from vae_jax.em import (
    categorical_hmm,
    categoricals,
    filtering,
    fit_em,
    gaussian_hmm,
    gaussians,
    hidden_markov,
    init_em,
    linear_gaussian_state_space,
    smoothing,
    viterbi,
)
from vae_jax.em.family import fitted_logits
from vae_jax.em.sequences.forward_backward import in_parallel
from vae_jax.em.sequences.markov_chain import MarkovChain

STATES, LENGTH = 3, 5
COUNTS = [None, 1, 3]
hmmlearn_warns = pytest.mark.filterwarnings("ignore:Setting the shape on a NumPy array:DeprecationWarning")
both_ways = pytest.mark.parametrize("parallel", [False, True])


class Enumerated(NamedTuple):
    """numpy: all paths (N, T) of the first `count` steps, their ln P(z, y), and what follows from them."""

    paths: np.ndarray
    log_joint: np.ndarray

    @property
    def log_p(self):
        return logsumexp(self.log_joint)

    @property
    def probability(self):
        return np.exp(self.log_joint - self.log_p)

    @property
    def marginals(self):
        """(T, K)"""
        return np.stack([[self.probability[z == k].sum() for k in range(STATES)] for z in self.paths.T])

    @property
    def pairs(self):
        """(K, K): expected number of moves from j to k."""
        result = np.zeros((STATES, STATES))
        for path, p in zip(self.paths, self.probability, strict=True):
            np.add.at(result, (path[:-1], path[1:]), p)
        return result


def enumerated_paths(initial, transition, evidence) -> Enumerated:
    """From logits (K,), (K, K) and ln P(y_t|z_t) (T, K)."""
    initial, transition = log_softmax(initial), log_softmax(transition, axis=1)
    paths = np.array(list(itertools.product(range(len(initial)), repeat=len(evidence))))
    log_joint = initial[paths[:, 0]] + transition[paths[:, :-1], paths[:, 1:]].sum(1)
    return Enumerated(paths, log_joint + evidence[np.arange(len(evidence)), paths].sum(1))


def some_params(seed: int = 0, states: int = STATES, size: int = 2) -> dict[str, Any]:
    """Numbers, in numpy: Gaussian emissions with full covariances."""
    rng = np.random.default_rng(seed)
    pri = {"initial": rng.normal(size=states), "transition": rng.normal(size=(states, states))}
    factors = np.tril(0.4 * rng.normal(size=(states, size, size)))
    return {"pri": pri, "gen": {"means": 1.5 * rng.normal(size=(states, size)), "covariances": factors}}


def some_ys(seed: int = 1, *shape: int) -> np.ndarray:
    return 1.5 * np.random.default_rng(seed).normal(size=(*(shape or (LENGTH,)), 2))


def covariance(raw: np.ndarray) -> np.ndarray:
    factor = np.tril(raw, -1) + np.diag(np.exp(np.diag(raw)))
    return factor @ factor.T


def evidence_of(gen, ys) -> np.ndarray:
    """scipy: (T, K)."""
    parts = zip(gen["means"], gen["covariances"], strict=True)
    return np.stack([multivariate_normal(m, covariance(raw)).logpdf(ys).reshape(len(ys)) for m, raw in parts], axis=1)


def oracle(params, y, count=None) -> Enumerated:
    pri = params["pri"]
    return enumerated_paths(pri["initial"], pri["transition"], evidence_of(params["gen"], y[:count]))


def jitted(params):
    return jax.tree.map(jnp.asarray, params)


@functools.lru_cache
def model_of(parallel: bool | None = None, length: int = LENGTH) -> Conditional:
    return gaussian_hmm(2, STATES, length, parallel=parallel)


@functools.partial(jax.jit, static_argnums=0)
def everything(model, params, y, c):
    """What the library says of one sequence."""
    chain = model.em.posterior(params, y, c)
    log_p = model.dist(params, c).log_prob(y)
    known, later, best = filtering(model, params, y, c), smoothing(model, params, y, c), viterbi(model, params, y, c)
    return {"log_p": log_p, "known": known, "later": later, "best": best, "entropy": chain.entropy()}


# All paths


@both_ways
@pytest.mark.parametrize("count", COUNTS)
def test_inference_is_the_sum_over_all_paths(x64, count, parallel):
    params, y = some_params(), some_ys()
    exact, steps = oracle(params, y, count), count or LENGTH
    found = everything(model_of(parallel), jitted(params), y, count)
    np.testing.assert_allclose(found["log_p"], exact.log_p, rtol=1e-12)
    np.testing.assert_allclose(found["later"][:steps], exact.marginals, rtol=1e-10)
    np.testing.assert_allclose(found["entropy"], -exact.probability @ np.log(exact.probability), atol=1e-12)
    sums = [0.0] + [oracle(params, y, t + 1).log_p for t in range(steps)]
    np.testing.assert_allclose(found["known"].log_p[:steps], np.diff(sums), rtol=1e-11)
    np.testing.assert_array_equal(found["known"].log_p[steps:], 0.0)
    for t in range(steps):
        upto = oracle(params, y, t + 1)
        np.testing.assert_allclose(found["known"].filtered[t], upto.marginals[-1], rtol=1e-10)
    path, log_joint = found["best"]
    np.testing.assert_array_equal(path[:steps], exact.paths[exact.log_joint.argmax()])
    np.testing.assert_array_equal(path[steps:], path[steps - 1])
    np.testing.assert_allclose(log_joint, exact.log_joint.max(), rtol=1e-12)


@both_ways
def test_expected_counts(x64, parallel):
    """The E-step's statistics: averages over sequences of expected starts, moves and visits."""
    params, ys, counts = some_params(), some_ys(2, 4, LENGTH), np.array([5, 1, 3, 4])
    exact = [oracle(params, y, c) for y, c in zip(ys, counts, strict=True)]
    log_p, stats = jax.jit(model_of(parallel).em.expect)(jitted(params), ys, counts)
    np.testing.assert_allclose(log_p, [e.log_p for e in exact], rtol=1e-12)
    np.testing.assert_allclose(stats["initial"], np.mean([e.marginals[0] for e in exact], axis=0), rtol=1e-10)
    np.testing.assert_allclose(stats["transition"], np.mean([e.pairs for e in exact], axis=0), rtol=1e-10)
    visits = [e.marginals.sum(0) for e in exact]
    np.testing.assert_allclose(stats["gen"]["weight"], np.mean(visits, axis=0), rtol=1e-10)
    firsts = [e.marginals.T @ y[:c] for e, y, c in zip(exact, ys, counts, strict=True)]
    wanted = np.mean(firsts, axis=0) - np.mean(visits, axis=0)[:, None] * params["gen"]["means"]
    np.testing.assert_allclose(stats["gen"]["first"], wanted, atol=1e-11)


@pytest.mark.parametrize("count", COUNTS)
def test_the_posterior_is_a_distribution_over_paths(x64, count):
    """Log-probabilities as by enumeration; 20,000 draws have its frequencies within 4.5 standard errors."""
    params, y, n = some_params(), some_ys(), 20_000
    exact, steps = oracle(params, y, count), count or LENGTH
    chain = jax.jit(lambda params: model_of().em.posterior(params, y, count))(jitted(params))
    padded = np.pad(exact.paths, [(0, 0), (0, LENGTH - steps)])
    np.testing.assert_allclose(jax.jit(chain.log_prob)(padded), np.log(exact.probability), rtol=1e-10)
    draws = np.asarray(jax.jit(lambda key: chain.sample(key, (n,)))(jax.random.key(0)))
    assert chain.support(draws).all() and draws.shape == (n, LENGTH)
    np.testing.assert_array_equal(draws[:, steps:], draws[:, [steps - 1]].repeat(LENGTH - steps, axis=1))
    codes = draws[:, :steps] @ STATES ** np.arange(steps)[::-1]
    frequency = np.bincount(codes, minlength=len(exact.paths)) / n
    error = np.sqrt(exact.probability * (1 - exact.probability) / n)
    assert (abs(frequency - exact.probability) < 4.5 * error + 1 / n).all()


def test_the_prior_over_paths(x64):
    """A chain without evidence is a product, its marginals are powers, its log-normaliser 0."""
    pri = some_params()["pri"]
    chain = MarkovChain(*map(jnp.asarray, (pri["initial"], pri["transition"])), LENGTH)
    initial, transition = np.exp(log_softmax(pri["initial"])), np.exp(log_softmax(pri["transition"], axis=1))
    powers = [initial @ np.linalg.matrix_power(transition, t) for t in range(LENGTH)]
    exact = enumerated_paths(pri["initial"], pri["transition"], np.zeros((LENGTH, STATES)))
    marginals, log_p, log_normaliser = jax.jit(
        lambda paths: (chain.marginals, chain.log_prob(paths), chain.log_normaliser)
    )(exact.paths)
    np.testing.assert_allclose(marginals, powers, rtol=1e-12)
    np.testing.assert_allclose(log_p, exact.log_joint, rtol=1e-12)
    assert log_normaliser == 0
    assert jax.eval_shape(chain.log_prob, exact.paths.reshape(3, -1, LENGTH)).shape == (3, 81)


def test_a_hidden_markov_model_is_a_vae_with_an_exact_encoder(x64):
    """ln P_pri(z) + ln P_gen(y|z) - ln P_enc(z|y) is ln P(y) whatever z is drawn, with padding too."""
    model, params, y = model_of(), jitted(some_params()), some_ys()
    encoder = Conditional(model.init, lambda enc, yc: model.em.posterior(enc, *yc))
    system = vae(encoder, model.em.prior, model.em.generator, estimator=fixed_encoder)
    nats = jax.jit(jax.vmap(lambda k, c: system.terms({"enc": params, **params}, k, y, c).nats, in_axes=(0, None)))
    for count in (3, LENGTH):
        drawn = nats(jax.random.split(jax.random.key(1), 20), count)
        np.testing.assert_allclose(drawn, -oracle(some_params(), y, count).log_p, rtol=1e-12)


def test_samples_follow_the_density(x64):
    """Second moments of 20,000 sampled sequences within 4.5 standard errors of those of the model; 0 after the end."""
    model, raw, n = model_of(), some_params(), 20_000
    params = jitted(raw)
    ys = np.asarray(jax.jit(lambda key: model.dist(params, 3).sample(key, (n,)))(jax.random.key(2)))
    assert ys.shape == (n, LENGTH, 2) and (ys[:, 3:] == 0).all()
    initial, transition = np.exp(log_softmax(raw["pri"]["initial"])), np.exp(log_softmax(raw["pri"]["transition"], 1))
    p, means = initial @ transition, raw["gen"]["means"]
    neighbours = np.einsum("j,jk,ka,jb->ab", p, transition, means, means)
    for values, wanted in (
        (ys[:, 1], p @ means),
        (np.einsum("na,nb->nab", ys[:, 2], ys[:, 1]), neighbours),
        (ys[:, 1] ** 2, p @ (means**2 + [np.diag(covariance(raw)) for raw in raw["gen"]["covariances"]])),
    ):
        assert (abs(values.mean(0) - wanted) < 4.5 * values.std(0) / np.sqrt(n)).all()


def test_discrete_emissions_sum_to_one(x64):
    """Over all 3^4 sequences of a categorical model; a model of one step is a mixture."""
    model = categorical_hmm(3, 2, 4)
    params = jax.jit(model.init)(jax.random.key(0))
    ys = np.array(list(itertools.product(range(3), repeat=4)))
    log_p = jax.jit(lambda ys: model.dist(params).log_prob(ys))(ys)
    np.testing.assert_allclose(np.exp(log_p).sum(), 1, rtol=1e-12)
    assert model.dist(params).support(ys).all() and not model.dist(params).support(np.array([0, 1, 2, 3]))
    single = hidden_markov(categoricals((), 3), 2, 1)
    weights, table = (np.exp(log_softmax(x, -1)) for x in (params["pri"]["initial"], params["gen"]["logits"]))
    of_one = jax.jit(lambda params: single.dist(params).log_prob(np.arange(3)[:, None]))(params)
    np.testing.assert_allclose(np.exp(of_one), weights @ table)


# Beside hmmlearn, on real data


def geyser() -> np.ndarray:
    """(299, 2) waiting time (in 10 minutes) and duration of the eruptions of Old Faithful, in their order."""
    return load_table("geyser").ys / [10.0, 1.0]


LIBRARY = {"full": "full", "tied": "tied", "diag": "diagonal", "spherical": "spherical"}


def packed(covariances: np.ndarray, kind: str) -> np.ndarray:
    """Parameters of covariances as hmmlearn has them."""
    if kind in ("diag", "spherical"):
        return 0.5 * np.log(covariances)
    factors = np.linalg.cholesky(covariances)
    diagonal = np.einsum("...ii->...i", factors)
    return np.tril(factors, -1) + np.log(diagonal)[..., None] * np.eye(2)


def gaussian_peer(kind: str, iterations: int, ys: np.ndarray, lengths: list[int]):
    """hmmlearn's model, maximum likelihood, after that many iterations from a fixed start; and that start, ours."""
    from hmmlearn.hmm import GaussianHMM

    initial, transition = np.array([0.5, 0.3, 0.2]), np.array([[0.2, 0.5, 0.3], [0.4, 0.3, 0.3], [0.6, 0.2, 0.2]])
    means = np.array([[5.5, 4.3], [7.5, 3.5], [8.0, 2.0]])
    full = np.array([[[1.0, 0.2], [0.2, 0.5]], [[2.0, -0.3], [-0.3, 1.0]], [[0.8, 0.1], [0.1, 0.4]]])
    starts = {"full": full, "tied": full[0], "diag": np.einsum("kii->ki", full), "spherical": full[:, 0, 0]}
    peer = GaussianHMM(
        3, kind, min_covar=0, covars_prior=0, covars_weight=1, n_iter=iterations, tol=-np.inf, init_params=""
    )
    peer.startprob_, peer.transmat_, peer.means_, peer.covars_ = initial, transition, means, starts[kind]
    if iterations:
        peer.fit(ys, lengths)
    pri = {"initial": np.log(initial), "transition": np.log(transition)}
    return peer, {"pri": pri, "gen": {"means": means, "covariances": packed(starts[kind], kind)}}


def iterated(model, params, ys, cs, iterations):
    """Parameters after each number of iterations, and the history of ln P."""

    @jax.jit
    def step(params):
        log_p, stats = model.em.expect(params, ys, cs)
        return model.em.maximise(params, stats, len(ys)), log_p.sum()

    found, history = {}, []
    for i in range(1, max(iterations) + 1):
        params, log_p = step(params)
        history.append(log_p)
        if i in iterations:
            found[i] = params
    return found, np.array(history)


@hmmlearn_warns
@pytest.mark.parametrize("kind", sorted(LIBRARY))
def test_gaussian_model_equals_hmmlearn(x64, kind):
    """Three ragged sequences; after 1, 2, 5, 20 iterations from the same start: parameters, scores, paths."""
    lengths, iterations = [120, 80, 99], (1, 2, 5, 20)
    cut = np.split(geyser(), np.cumsum(lengths)[:-1])
    ys = np.stack([np.pad(y, [(0, 120 - len(y)), (0, 0)], constant_values=np.nan) for y in cut])
    model = gaussian_hmm(2, 3, 120, LIBRARY[kind])
    _, start = gaussian_peer(kind, 0, geyser(), lengths)
    found, history = iterated(model, jitted(start), ys, np.array(lengths), iterations)
    for n in iterations:
        peer, _ = gaussian_peer(kind, n, geyser(), lengths)
        ours = found[n]
        np.testing.assert_allclose(np.exp(ours["pri"]["initial"]), peer.startprob_, atol=1e-8)
        np.testing.assert_allclose(np.exp(ours["pri"]["transition"]), peer.transmat_, atol=1e-8)
        np.testing.assert_allclose(ours["gen"]["means"], peer.means_, rtol=1e-8)
        covariances = peer._covars_[:, 0] if kind == "spherical" else peer._covars_
        np.testing.assert_allclose(ours["gen"]["covariances"], packed(covariances, kind), atol=1e-8)
        np.testing.assert_allclose(history[:n], peer.monitor_.history, rtol=1e-10)
    for i, y in enumerate(cut):
        c = len(y)
        result = everything(model, found[20], ys[i], c)
        np.testing.assert_allclose(result["log_p"], peer.score(y), rtol=1e-9)
        np.testing.assert_allclose(result["later"][:c], peer.predict_proba(y), atol=1e-8)
        log_p, path = peer.decode(y)
        np.testing.assert_array_equal(result["best"][0][:c], path)
        np.testing.assert_allclose(result["best"][1], log_p, rtol=1e-9)


@hmmlearn_warns
def test_categorical_model_equals_hmmlearn(x64):
    """The geyser's durations as short, middle and long, in two sequences; fit_em's history is hmmlearn's scores."""
    from hmmlearn.hmm import CategoricalHMM

    symbols = np.digitize(geyser()[:, 1], [2.5, 4.0])
    rng = np.random.default_rng(3)
    initial, transition, table = (rng.dirichlet(np.ones(m), size=k) for m, k in ((2, 1), (2, 2), (3, 2)))
    pri = {"initial": np.log(initial[0]), "transition": np.log(transition)}
    start = jitted({"pri": pri, "gen": {"logits": np.log(table)}})
    ys = np.stack([symbols[:150], np.append(symbols[150:], 999)])
    model = categorical_hmm(3, 2, 150)
    found, _ = iterated(model, start, ys, np.array([150, 149]), (1, 2, 5, 20))
    for n, ours in found.items():
        peer = CategoricalHMM(2, n_iter=n, tol=-np.inf, init_params="")
        peer.startprob_, peer.transmat_, peer.emissionprob_ = initial[0], transition, table
        peer.fit(symbols[:, None], [150, 149])
        np.testing.assert_allclose(np.exp(ours["pri"]["initial"]), peer.startprob_, atol=1e-8)
        np.testing.assert_allclose(np.exp(ours["pri"]["transition"]), peer.transmat_, atol=1e-8)
        np.testing.assert_allclose(np.exp(ours["gen"]["logits"]), peer.emissionprob_, atol=1e-8)
    fitted = fit_em(model, ys, np.array([150, 149]), params=start, iterations=20, tolerance=None)
    np.testing.assert_allclose(2 * fitted.history[:20], peer.monitor_.history, rtol=1e-10)


@hmmlearn_warns
def test_fit_on_the_geyser(x64):
    """From three random starts: monotone to 1e-12, and not below what hmmlearn finds from its best of three."""
    from hmmlearn.hmm import GaussianHMM

    ys, model = geyser(), gaussian_hmm(2, 3, 299)
    fitted = fit_em(model, ys[None], key=jax.random.key(0), restarts=3, iterations=100, tolerance=1e-6)
    assert fitted.converged and (np.diff(fitted.history) > -1e-12 * abs(fitted.history[-1])).all()
    options = {"min_covar": 1e-6, "covars_prior": 0, "covars_weight": 1, "n_iter": 100, "tol": 1e-6}
    scores = [GaussianHMM(3, "full", random_state=seed, **options).fit(ys).score(ys) for seed in range(3)]
    assert fitted.history[-1] > max(scores) - 1e-4


# Padding, missing steps


def test_padding_counts_for_nothing(x64):
    """A batch of ragged sequences is the sum of separate ones, whatever the padding holds."""
    model, ys, counts = gaussian_hmm(2, STATES, LENGTH, "diagonal"), some_ys(4, 3, LENGTH), np.array([2, 5, 4])
    params, expect = model.init(jax.random.key(5)), jax.jit(model.em.expect)
    beyond = np.arange(LENGTH)[None] >= counts[:, None]
    results = []
    for content in (0.0, 1e30, np.nan, np.inf):
        filled = np.where(beyond[..., None], content, ys)
        results.append(expect(params, filled, counts))
        chain = everything(model, params, filled[0], 2)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(chain))
    for other in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, results[0], other)
    lengths = [gaussian_hmm(2, STATES, int(c), "diagonal") for c in counts]
    separate = [jax.jit(m.em.expect)(params, y[None, :c]) for m, y, c in zip(lengths, ys, counts, strict=True)]
    mean = jax.tree.map(lambda *parts: np.mean(parts, axis=0), *[stats for _, stats in separate])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-11, atol=1e-13), results[0][1], mean)
    np.testing.assert_allclose(results[0][0], [log_p[0] for log_p, _ in separate], rtol=1e-12)


def test_gradients_do_not_see_the_padding(x64):
    params, y = jitted(some_params()), some_ys()
    gradient = jax.jit(jax.grad(lambda params, y: model_of().dist(params, 3).log_prob(y)))
    reference = gradient(params, y)
    padded = gradient(params, np.where(np.arange(LENGTH)[:, None] < 3, y, np.nan))
    jax.tree.map(np.testing.assert_array_equal, reference, padded)


def test_missing_steps_are_steps_without_observation(x64):
    """Enumeration with the evidence of the missing step left out; a partly missing one counts by what is there."""
    raw, y = some_params(), some_ys()
    y[1], y[3, 0] = np.nan, np.nan
    evidence = evidence_of(raw["gen"], np.nan_to_num(y))
    evidence[1] = 0
    variances = [covariance(part)[1, 1] for part in raw["gen"]["covariances"]]
    evidence[3] = multivariate_normal(0, 1).logpdf((y[3, 1] - raw["gen"]["means"][:, 1]) / np.sqrt(variances))
    evidence[3] -= 0.5 * np.log(variances)
    exact = enumerated_paths(raw["pri"]["initial"], raw["pri"]["transition"], evidence)
    found = everything(gaussian_hmm(2, STATES, LENGTH, missing=True), jitted(raw), y, None)
    np.testing.assert_allclose(found["log_p"], exact.log_p, rtol=1e-12)
    np.testing.assert_allclose(found["later"], exact.marginals, rtol=1e-10)


def test_fit_with_missing_steps_is_monotone(x64):
    ys = geyser()[:100].copy()
    ys[10:20], ys[50, 1] = np.nan, np.nan
    model = gaussian_hmm(2, 2, 100, "diagonal", missing=True)
    start = jax.jit(model.em.start)(jax.random.key(1), jnp.asarray(ys[None]))
    _, history = iterated(model, start, ys[None], None, [15])
    assert (np.diff(history) > -1e-12 * abs(history[-1])).all() and history[-1] > history[1]


# Laws of EM


def test_gradient_is_that_of_the_expected_log_joint(x64):
    """Fisher's identity: d ln P(y) = E_{z ~ P(z|y)} d ln P(z, y), the expectation by enumeration of all paths."""
    model, raw, y = model_of(), some_params(), some_ys()
    exact, params = oracle(raw, y), jitted(raw)

    def expected(params):
        def log_joint(z):
            return model.em.prior.dist(params["pri"]).log_prob(z) + model.em.generator.dist(params["gen"], z).log_prob(
                y
            )

        return exact.probability @ jax.vmap(log_joint)(exact.paths)

    of_joint = jax.jit(jax.grad(expected))(params)
    for parallel in (False, True):
        of_p = jax.jit(jax.grad(lambda p, parallel=parallel: model_of(parallel).dist(p).log_prob(y)))(params)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11), of_p, of_joint)


def test_map_adds_counts_and_is_monotone(x64):
    """With a Dirichlet prior the M-step is (counts + concentration - 1) normalised, and ln P + ln prior rises."""
    model = hidden_markov(categoricals((), 4), 3, 6, initial_concentration=1.5, transition_concentration=3.0)
    params, ys = jax.jit(model.init)(jax.random.key(4)), np.random.default_rng(5).integers(4, size=(4, 6))
    _, stats = jax.jit(model.em.expect)(params, ys, None)
    step = jax.jit(lambda params, stats: (model.em.maximise(params, stats, 4), model.em.log_prior(params)))
    new, log_prior = step(params, stats)
    new = new["pri"]
    for name, added in (("initial", 0.5), ("transition", 2.0)):
        counts = 4 * np.asarray(stats[name]) + added
        np.testing.assert_allclose(np.exp(new[name]), counts / counts.sum(-1, keepdims=True), rtol=1e-12)
    prior = 0.5 * log_softmax(params["pri"]["initial"]).sum() + 2 * log_softmax(params["pri"]["transition"], 1).sum()
    np.testing.assert_allclose(log_prior, prior, rtol=1e-12)
    history = fit_em(model, ys, params=params, iterations=30, tolerance=None).history
    assert (np.diff(history) > -1e-12 * abs(history[-1])).all()


def test_states_never_visited_keep_their_row(x64):
    params = some_params()
    params["pri"]["initial"][2], params["pri"]["transition"][:, 2] = -np.inf, -np.inf
    params = jitted(params)
    _, stats = jax.jit(model_of().em.expect)(params, some_ys(6, 4, LENGTH), None)
    new = jax.jit(lambda params, stats: model_of().em.maximise(params, stats, 4))(params, stats)
    new = jax.tree.map(np.asarray, new)
    np.testing.assert_array_equal(new["pri"]["transition"][2], params["pri"]["transition"][2])
    np.testing.assert_array_equal(new["gen"]["means"][2], params["gen"]["means"][2])
    assert (np.exp(new["pri"]["transition"][:2, 2]) < 1e-300).all()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(new["gen"]))


def test_recentred_stats_give_the_same_step(x64):
    """Stats about the old parameters, moved to others, have the same optimum."""
    em, old, new = model_of().em, jitted(some_params()), jitted(some_params(7))
    _, stats = jax.jit(em.expect)(old, some_ys(8, 6, LENGTH), None)
    fitted, again = em.maximise(old, stats, 6), em.maximise(new, em.recentre(stats, old, new), 6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-10), fitted, again)


def test_start_of_symbols_is_random_and_of_numbers_is_near():
    """Two well separated clusters, padding full of NaN: the start's means are the clusters' already."""
    rng = np.random.default_rng(9)
    z = rng.integers(2, size=(6, 50))
    ys = np.stack([10.0 * z + 1, 5.0 - z], axis=-1) + 0.1 * rng.normal(size=(6, 50, 2))
    counts = np.array([50, 20, 30, 50, 1, 7])
    ys[np.arange(50)[None] >= counts[:, None]] = np.nan
    start = jax.jit(gaussian_hmm(2, 2, 50).em.start)(jax.random.key(0), ys.astype(np.float32), counts)
    means = np.asarray(start["gen"]["means"])
    np.testing.assert_allclose(means[means[:, 0].argsort()], [[1, 5], [11, 4]], atol=0.1)
    symbols = categorical_hmm(4, 3, 50).em.start
    first, second = (symbols(jax.random.key(i), z, counts) for i in (0, 1))
    assert (np.asarray(first["gen"]["logits"]) != np.asarray(second["gen"]["logits"])).all()


# Precision and edges


@functools.partial(jax.jit, static_argnums=0)
def counted(model, params, ys):
    """The E-step, and the marginals of the first sequence."""
    return *model.em.expect(params, ys, None), smoothing(model, params, ys[0])


def test_float32_is_safe_on_5000_steps():
    """Relative error 1e-5 of ln P, 1e-3 of expected moves, 1e-4 of marginals."""
    ys, model = np.tile(geyser(), (17, 1))[None, :5000], gaussian_hmm(2, 3, 5000)
    _, start = gaussian_peer("full", 0, ys, [5000])
    with enable_x64(True):
        exact = jax.tree.map(np.asarray, counted(model, jitted(start), ys))
    single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (start, ys))
    log_p, stats, later = counted(model, *single)
    np.testing.assert_allclose(log_p, exact[0], rtol=1e-5)
    np.testing.assert_allclose(stats["transition"], exact[1]["transition"], rtol=1e-3)
    np.testing.assert_allclose(later, exact[2], atol=1e-4)


def test_parallel_equals_sequential():
    """ln P and expected counts of two ragged sequences of up to 40 steps: to rounding, in both precisions."""
    ys, counts = geyser()[:80].reshape(2, 40, 2), np.array([33, 40])
    _, start = gaussian_peer("diag", 0, ys, [80])
    for bits, tolerance in ((64, 1e-10), (32, 2e-4)):
        with enable_x64(bits == 64):
            given = jax.tree.map(lambda x, dtype=f"float{bits}": jnp.asarray(x, dtype), (start, ys))
            models = [gaussian_hmm(2, 3, 40, "diagonal", parallel=parallel) for parallel in (False, True)]
            one, other = (jax.jit(model.em.expect)(*given, counts) for model in models)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), one, other)


def test_who_chooses_the_parallel_scan():
    """The user; else the device: never on a CPU."""
    assert in_parallel(True, 1, 2) and not in_parallel(False, 10_000, 2)
    assert not in_parallel(None, 10_000, 2)


@both_ways
def test_left_to_right_models_are_exact_in_float32(parallel):
    """Evidence that favours, by 500 nats, a state that cannot be reached: ln P as by enumeration, finite gradients."""
    rng, steps = np.random.default_rng(10), 6
    initial = np.array([0.0, -np.inf, -np.inf])
    transition = np.where(np.tri(3, 3, -1).T + np.eye(3) > 0, 0.0, -np.inf)
    transition[0, 2] = -np.inf
    evidence = rng.normal(size=(steps, 3))
    evidence[0, 2], evidence[1, 2], evidence[3, 0], evidence[5, 1] = 500, 500, 500, -np.inf
    exact = enumerated_paths(initial, transition, evidence)

    def chain(initial, transition):
        return MarkovChain(initial, transition, steps, jnp.asarray(evidence, jnp.float32), parallel=parallel)

    @jax.jit
    def results(initial, transition):
        log_p, gradients = jax.value_and_grad(lambda given: chain(*given).log_normaliser)((initial, transition))
        return log_p, gradients, chain(initial, transition).marginals, chain(initial, transition).viterbi()[1]

    log_p, gradients, marginals, best = results(*(jnp.asarray(x, jnp.float32) for x in (initial, transition)))
    np.testing.assert_allclose(log_p, exact.log_p, rtol=1e-6)
    np.testing.assert_allclose(marginals, exact.marginals, atol=1e-5)
    np.testing.assert_allclose(best, exact.log_joint.max(), rtol=1e-6)
    assert all(np.isfinite(g).all() for g in gradients)


@both_ways
def test_impossible_sequences_have_log_probability_minus_infinity(parallel):
    """And nothing is NaN: not the marginals, the path, the draws, the log-probability of a path."""

    @jax.jit
    def results(evidence):
        chain = MarkovChain(jnp.zeros(2), jnp.zeros((2, 2)), 4, evidence, parallel=parallel)
        log_ps = chain.log_normaliser, chain.log_prob(jnp.zeros(4, int))
        return log_ps, (chain.marginals, chain.mode, chain.sample(jax.random.key(0)), chain.entropy())

    log_ps, others = results(jnp.zeros((4, 2)).at[2].set(-jnp.inf))
    assert log_ps == (-jnp.inf, -jnp.inf)
    assert all(np.isfinite(values).all() for values in others)


def test_it_trains_by_gradient_and_under_vmap():
    """`lift` makes a model of it: terms of a batch, one ascent on the gradient."""
    model = lift(gaussian_hmm(2, 2, 20, "diagonal"))
    ys, counts = jnp.asarray(geyser()[:100].reshape(5, 20, 2), jnp.float32), jnp.array([20, 20, 3, 5, 20])
    params = model.init(jax.random.key(0), ys[0], counts[0])

    @jax.jit
    def loss(params):
        terms = jax.vmap(model.terms, in_axes=(None, None, 0, 0))(params, jax.random.key(1), ys, counts)
        return terms.nats.mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert loss(jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradient)) < value


# What is impossible, and what is only improbable

FORWARD_ONLY = np.array([[-0.1, -2.3], [-np.inf, 0.0]])


def log_forward(initial, transition, evidence) -> float:
    """numpy: ln P(y) of float64 logarithms."""
    initial, transition = log_softmax(initial), log_softmax(transition, axis=1)
    score = initial + evidence[0]
    for now in evidence[1:]:
        score = logsumexp(score[:, None] + transition, axis=0) + now
    return logsumexp(score)


def test_forbidden_moves_stay_so_through_m_steps():
    """Left to right, and data that go back: no iteration and no pseudo-count makes the move possible; ln P of the best
    path is below ln P(y), which is that of float64."""
    y = np.repeat([0, 1, 0], [8, 9, 3]) + 0.01 * np.random.default_rng(0).normal(size=20)
    ys, initial = np.stack([y, y])[..., None].astype(np.float32), np.array([0.0, -np.inf])
    model = hidden_markov(gaussians(1), 2, 20, transition_concentration=3.0)
    gen = {"means": np.array([[0.0], [1.0]]), "covariances": np.full((2, 1, 1), -2.0)}
    start = jax.tree.map(np.float32, {"pri": {"initial": initial, "transition": FORWARD_ONLY}, "gen": gen})
    fitted = fit_em(model, ys, params=start, iterations=3, tolerance=None)
    assert np.isfinite(fitted.history).all()

    @jax.jit
    def results(params):
        chain = model.em.posterior(params, ys[0])
        path, log_joint = chain.viterbi()
        back = chain.log_joint(path.at[-1].set(0))
        return chain.log_normaliser, path, log_joint, chain.sample(jax.random.key(1), (20,)), back

    params = jax.tree.map(lambda x: np.asarray(x, float), fitted.params)
    pri = params["pri"]
    np.testing.assert_array_equal(np.isneginf(pri["transition"]), np.isneginf(FORWARD_ONLY))
    np.testing.assert_array_equal(np.isneginf(pri["initial"]), np.isneginf(initial))
    log_p, path, log_joint, drawn, back = results(fitted.params)
    exact = log_forward(pri["initial"], pri["transition"], evidence_of(params["gen"], ys[0]))
    np.testing.assert_allclose(log_p, exact, rtol=1e-5)
    assert np.all(np.diff(path) >= 0) and log_joint <= log_p + 1e-5 * abs(exact)
    assert np.all(np.diff(drawn, axis=1) >= 0)
    assert path[-2] == 1 and back == -np.inf


@pytest.mark.parametrize(("added", "n"), [(0.0, 1.0), (2.0, 4.0)])
def test_m_step_of_logits(added, n):
    """numpy's shares: what is impossible takes no part, a count of 0 is at least the smallest float, unless it was less
    before; what was not counted stays."""
    old = np.array([[0.0, -np.inf, 1.0], [0.0, -1e9, 0.0], [0.5, -np.inf, 0.0]], np.float32)
    counts = np.array([[3.0, 0.0, 1.0], [2.0, 0.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    fitted = fitted_logits(jnp.asarray(counts), jnp.asarray(old), added / n)
    possible = old > -1e8
    weighed = counts + added / n * possible
    with np.errstate(divide="ignore", invalid="ignore"):
        exact = np.log(weighed / weighed.sum(1, keepdims=True))
    tiny = np.log(np.finfo(np.float32).tiny)
    exact = np.where(possible, np.maximum(exact, tiny), old)
    np.testing.assert_allclose(fitted[:2], exact[:2], rtol=1e-6)
    np.testing.assert_allclose(fitted[2], exact[2] if added else old[2], rtol=1e-6)


@both_ways
def test_improbable_paths_are_not_lost(parallel):
    """Three states in a row with a deviation of 0.01: the best path starts with a step that costs 4,800 nats. And
    moves of probability 1e-30, two in a row; and a sequence without any of this beside them. By enumeration: ln P, the
    entropy, their gradients (that of ln P are the marginals) under `vmap`, and the moves of an E-step."""
    with np.errstate(divide="ignore"):
        initial, transition = np.log([1.0, 1e-30, 0.0]), np.log([[0.9, 0.1, 1e-30], [1e-30, 0.9, 0.1], [0.0, 0.0, 1.0]])
    ys = np.array([[0.0, 0.02, 2.02], [1.0, 0.0, 2.0], [0.4, 0.41, 0.5]])[..., None]
    gen = {"means": np.arange(3.0)[:, None], "covariances": np.full((3, 1, 1), np.log(0.01))}
    params, low = jax.tree.map(np.float32, ({"pri": {"initial": initial, "transition": transition}, "gen": gen}, ys))
    evidence = np.stack([evidence_of(gen, y) for y in ys])

    @jax.jit
    @jax.vmap
    @jax.value_and_grad
    def found(evidence):
        chain = MarkovChain(params["pri"]["initial"], params["pri"]["transition"], 3, evidence, parallel=parallel)
        return chain.log_normaliser + chain.entropy()

    total, gradient = found(evidence.astype(np.float32))
    log_p, stats = jax.jit(gaussian_hmm(1, 3, 3, parallel=parallel).em.expect)(params, low)
    exacts = [enumerated_paths(initial, transition, e) for e in evidence]
    for i, exact in enumerate(exacts):
        p, marginals = exact.probability, exact.marginals
        surprise = np.where(p > 0, exact.log_p - exact.log_joint, 0.0)
        np.testing.assert_allclose(log_p[i], exact.log_p, rtol=1e-5)
        np.testing.assert_allclose(total[i], exact.log_p + p @ surprise, rtol=1e-5)
        visits = exact.paths[:, :, None] == np.arange(3)
        of_entropy = np.einsum("n,ntk->tk", p * surprise, visits - marginals)
        np.testing.assert_allclose(gradient[i], marginals + of_entropy, atol=2e-3)
    np.testing.assert_allclose(stats["transition"], np.mean([exact.pairs for exact in exacts], axis=0), atol=1e-3)


def test_forbidden_symbols(x64):
    """Emissions of -inf, by enumeration of paths: ln P, marginals and the M-step; a sequence that no state emits has
    -inf, and EM says so."""
    model = categorical_hmm(3, STATES, LENGTH, prior=1.0)
    logits = np.array([[0.0, 0.5, -np.inf], [-np.inf, 0.0, -np.inf], [0.3, 0.0, -np.inf]])
    params = {**model.init(jax.random.key(2)), "gen": {"logits": jnp.asarray(logits)}}
    pri = jax.tree.map(np.asarray, params["pri"])
    results = jax.jit(lambda y: (model.dist(params).log_prob(y), smoothing(model, params, y)))
    for y in ([0, 1, 1, 0, 1], [0, 1, 2, 0, 1]):
        exact = enumerated_paths(pri["initial"], pri["transition"], log_softmax(logits, 1).T[y])
        log_p, marginals = results(np.array(y))
        np.testing.assert_allclose(log_p, exact.log_p, rtol=1e-9)
        np.testing.assert_allclose(marginals, exact.marginals if np.isfinite(log_p) else 0.0, atol=1e-9)
    fitted = fit_em(model, np.array([[0, 1, 1, 0, 1]]), params=params, iterations=1)
    np.testing.assert_array_equal(np.isneginf(fitted.params["gen"]["logits"]), np.isneginf(logits))
    with pytest.raises(FloatingPointError, match="give them probability 0"):
        fit_em(model, np.array([y]), params=params, iterations=1)


@both_ways
def test_sequences_of_one_step(parallel):
    """Nothing moves: EM is that of a mixture of the first step, by numpy."""
    ys, model = np.array([[0], [3], [3], [1]]), categorical_hmm(4, 2, 1, parallel=parallel)
    start = model.init(jax.random.key(0))
    weights, table = (np.exp(log_softmax(x, -1)) for x in (start["pri"]["initial"], start["gen"]["logits"]))
    joint = weights[None] * table[:, ys[:, 0]].T
    fitted = fit_em(model, ys, params=start, iterations=1)
    shares = (joint / joint.sum(1, keepdims=True)).mean(0)
    np.testing.assert_allclose(np.exp(fitted.params["pri"]["initial"]), shares, rtol=1e-5)
    np.testing.assert_array_equal(fitted.params["pri"]["transition"], start["pri"]["transition"])
    np.testing.assert_allclose(fitted.history[0], np.log(joint.sum(1)).mean(), rtol=1e-5)


# Bad input


def fit_of(ys, cs=None, model=None):
    return fit_em(model or gaussian_hmm(2, 2, 6), np.asarray(ys), cs, key=jax.random.key(0), iterations=1)


@pytest.mark.parametrize(
    ("ys", "cs", "message"),
    [
        (np.ones((3, 6, 2)), [6, 0, 2], r"cs\[1\] is 0: each sequence has from 1 to 6 steps"),
        (np.ones((3, 6, 2)), [6, 2, 7], r"cs\[2\] is 7"),
        (np.ones((3, 6, 2)), [6, 2], "the length of each of the 3 sequences"),
        (np.ones((3, 6, 2)), [6.0, 2.0, 1.0], "integers of shape"),
        (np.ones((3, 7, 2)), None, "build the model with length=7"),
        (np.ones((3, 0, 2)), None, "these sequences have no steps"),
        (np.ones((6, 2)), None, r"one sequence alone is ys\[None\]"),
        (np.ones((3, 6), int), None, "labels or symbols"),
        (np.ones((3, 6, 3)), None, r"\(n, 6, 2\); got shape \(3, 6, 3\)"),
        (np.ones((1, 6, 2)), [1], "1 steps in all cannot be fitted by 2 states"),
        (np.where(np.arange(6)[:, None] == 1, np.nan, np.ones((3, 6, 2))), None, "NaN"),
        (np.where(np.arange(6)[:, None] == 1, np.inf, np.ones((3, 6, 2))), None, "infinity"),
        (np.ones((0, 6, 2)), None, "empty"),
    ],
)
def test_bad_data(ys, cs, message):
    with pytest.raises(ValueError, match=message):
        fit_of(ys, None if cs is None else np.array(cs))


def test_params_of_another_number_of_states_are_refused():
    ys, params = np.zeros((3, 6, 2), np.float32), gaussian_hmm(2, 3, 6).init(jax.random.key(0))
    model, wanted = gaussian_hmm(2, 2, 6), r"holds \(3, 2\), and the model wants \(2, 2\)"
    uses = [lambda: fit_em(model, ys, params=params), lambda: init_em(model, ys, params=params)]
    uses += [lambda of=of: of(model, params, ys[0]) for of in (filtering, smoothing, viterbi)]
    for use in uses:
        with pytest.raises(ValueError, match=r"another number of components or states"):
            use()
    with pytest.raises(ValueError, match="gen/means " + wanted):
        viterbi(model, {**params, "gen": {**params["gen"], "covariances": np.zeros((2, 2, 2))}}, ys[0])


def test_symbols_out_of_range():
    with pytest.raises(ValueError, match="integers from 0 to 2"):
        fit_of(np.full((2, 6), 3), model=categorical_hmm(3, 2, 6))


@pytest.mark.parametrize(
    "options",
    [
        {"states": 0},
        {"length": 0},
        {"initial_concentration": 0.5},
        {"transition_concentration": 0.0},
        {"transition_concentration": float("nan")},
    ],
)
def test_options_out_of_range(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        hidden_markov(gaussians(2), **{"states": 2, "length": 4, **options})


def test_one_sequence_has_the_models_length():
    model = gaussian_hmm(2, 2, 5)
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"padded to the model's length, \(5, 2\); got shape \(3, 2\)"):
        viterbi(model, params, np.zeros((3, 2)))


def test_states_are_asked_of_hidden_markov_models():
    model = linear_gaussian_state_space(2, 1, 5)
    with pytest.raises(TypeError, match=r"ask model\.em\.posterior"):
        smoothing(model, model.init(jax.random.key(0)), np.zeros((5, 2)))
