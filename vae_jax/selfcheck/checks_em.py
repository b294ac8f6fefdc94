"""Oracles 21 to 24: expectation maximisation, against its equations in numpy, scikit-learn and enumeration."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.data.tables import load_table
from vae_jax.em.algorithm import FittedEM, as_vae, fit_em, init_em, make_em_step
from vae_jax.em.mixtures import mixture_of_gaussians
from vae_jax.em.sequences.hidden_markov_models import categorical_hmm, gaussian_hmm, smoothing, viterbi
from vae_jax.selfcheck.check import Check, Row
from vae_jax.selfcheck.solvable import floats, probabilities

POINTS = np.array([-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 3, 3.5, 4, 4.5])[:, None]
START = {
    "pri": {"logits": np.zeros(2)},
    "gen": {"means": np.array([[-1.0], [3.0]]), "covariances": np.zeros((2, 1, 1))},
}
on_a_line = functools.cache(lambda: mixture_of_gaussians(1, 2, "full"))
of_iris = functools.cache(lambda: mixture_of_gaussians(4, 2, "full"))


def fit_points() -> FittedEM:
    return fit_em(on_a_line(), floats(POINTS), params=floats(START), iterations=200, tolerance=None)


def fit_iris(**start: Any) -> FittedEM:
    return fit_em(of_iris(), floats(load_table("iris").ys), iterations=50, tolerance=None, **start)


def iris_start() -> Any:
    """Means at the first and the last flower, unit covariances, equal weights."""
    gen = {"means": load_table("iris").ys[[0, -1]], "covariances": np.zeros((2, 4, 4))}
    return floats({"pri": {"logits": np.zeros(2)}, "gen": gen})


def responsibilities(weights: np.ndarray, means: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """numpy: (12, 2) P(k|y) of the points."""
    log_normals = -0.5 * ((POINTS - means[None]) ** 2 / variances[None] + np.log(2 * np.pi * variances[None]))
    return probabilities(np.log(weights)[None] + log_normals)


def m_step(r: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """numpy: weights, means and variances that responsibilities ask for."""
    counts = r.sum(axis=0)
    means = (r * POINTS).sum(axis=0) / counts
    return counts / len(r), means, (r * (POINTS - means[None]) ** 2).sum(axis=0) / counts


def two_halves() -> list[Row]:
    """E-step: the bound touches ln P. M-step: ln P_new - ELBO(q_old) = KL(q_old || posterior_new)."""
    model, ys = on_a_line(), floats(POINTS)
    step, bound = make_em_step(model, decay=0.0), as_vae(model)

    @jax.jit
    def elbos(params, ys):
        new, _ = step(init_em(model, ys, params=params), ys)
        of = lambda enc, both: jax.vmap(lambda y: -bound.terms({"enc": enc, **both}, jax.random.key(0), y).nats)(ys)  # noqa: E731
        return of(params, params).mean(), of(params, new.params).mean(), of(new.params, new.params).mean()

    r = responsibilities(np.full(2, 0.5), np.array([-1.0, 3.0]), np.ones(2))
    r_new = responsibilities(*m_step(r))
    kl = np.sum(r * np.log(r / r_new), axis=1).mean()
    at_start, after_m, at_new = elbos(floats(START), ys)
    history = fit_points().history
    return [
        Row("ELBO after an E-step", -2.1355520849, at_start),
        Row("ELBO after the M-step: ln P_new - KL", -2.0567242995 - kl, after_m),
        Row("ELBO after the next E-step", -2.0567242995, at_new),
        Row("mean ln P after 0, 1, 2 iterations", (-2.1355520849, -2.0567242995, -2.0505004797), history[:3]),
        Row("after 200", -1.9474457522, history[-1]),
    ]


TABLES = {"initial": np.array([0.6, 0.4]), "transition": np.array([[0.7, 0.3], [0.2, 0.8]])}
EMISSIONS = np.array([[0.5, 0.4, 0.1], [0.1, 0.3, 0.6]])
SYMBOLS = np.array([[0, 2, 2, 1, 0], [1, 0, 0, 2, 2]])


def all_paths() -> tuple[np.ndarray, np.ndarray]:
    """numpy: every path of 5 steps (32, 5), and P(path, y) of each of the two sequences (2, 32)."""
    paths = np.array(list(itertools.product(range(2), repeat=5)))
    chain = TABLES["initial"][paths[:, 0]] * np.prod(TABLES["transition"][paths[:, :-1], paths[:, 1:]], axis=1)
    return paths, chain[None] * np.array([np.prod(EMISSIONS[paths, y[None]], axis=1) for y in SYMBOLS])


def baum_welch(paths: np.ndarray, posterior: np.ndarray) -> list[np.ndarray]:
    """numpy: initial, transition and emission probabilities from expected counts over all paths."""
    pairs = np.array([[((paths[:, :-1] == i) & (paths[:, 1:] == j)).sum(axis=1) for j in range(2)] for i in range(2)])
    seen = [[[((paths == i) & (y[None] == s)).sum(axis=1) for s in range(3)] for i in range(2)] for y in SYMBOLS]
    counts = [
        np.array([posterior[:, paths[:, 0] == i].sum() for i in range(2)]),
        np.einsum("ijp,np->ij", pairs, posterior),
        np.einsum("nisp,np->is", np.array(seen), posterior),
    ]
    return [count / count.sum(axis=-1, keepdims=True) for count in counts]


def by_enumeration() -> list[Row]:
    """Two sequences of 5 symbols, 2 states: 32 paths."""
    models = [categorical_hmm(3, 2, 5, parallel=parallel) for parallel in (False, True)]
    params = {"pri": jax.tree.map(np.log, TABLES), "gen": {"logits": np.log(EMISSIONS)}}

    @jax.jit
    def results(params, ys):
        each = [jax.vmap(lambda y, m=model: m.dist(params).log_prob(y))(ys) for model in models]
        marginals = [jax.vmap(lambda y, m=model: smoothing(m, params, y))(ys) for model in models]
        state, _ = make_em_step(models[0], decay=0.0)(init_em(models[0], ys, params=params), ys)
        return each, marginals, jax.vmap(lambda y: viterbi(models[0], params, y))(ys), state.params

    log_ps, marginals, (best, log_best), new = results(floats(params), jnp.asarray(SYMBOLS))
    paths, joint = all_paths()
    posterior = joint / joint.sum(axis=1, keepdims=True)
    occupied = np.einsum("np,pt->nt", posterior, paths)
    logits = {**new["pri"], "emission": new["gen"]["logits"]}
    rows = []
    for i, how in enumerate(("scan", "associative scan")):
        rows.append(Row(f"ln P(y), {how}", np.log(joint.sum(axis=1)), log_ps[i]))
        rows.append(Row(f"P(z_t|y), {how}", occupied, marginals[i][..., 1]))
    rows.append(Row("most probable path", paths[joint.argmax(axis=1)], best))
    rows.append(Row("its ln P(z, y)", np.log(joint.max(axis=1)), log_best))
    for (name, x), exact in zip(logits.items(), baum_welch(paths, posterior), strict=True):
        rows.append(Row(f"Baum-Welch, {name} probabilities", exact, probabilities(np.asarray(x, np.float64))))
    return rows


def peers() -> list[Row]:
    """The same starts in scikit-learn (reg_covar 0) and hmmlearn (min_covar 0, covars_prior 0, covars_weight 1)."""
    covariances = np.tile(np.diag(np.log([10.0, 1.0])), (2, 1, 1))  # Cholesky factors, the diagonal as a logarithm
    gen = {"means": np.array([[60.0, 4.0], [80.0, 2.0]]), "covariances": covariances}
    start = floats({"pri": {"initial": np.zeros(2), "transition": np.zeros((2, 2))}, "gen": gen})
    ys = floats(load_table("geyser").ys)[None]
    hmm = fit_em(gaussian_hmm(2, 2, 299), ys, params=start, iterations=20, tolerance=None).history / 299
    hmmlearn = np.array([-1637.0952228016858, -1396.980317672716, -1369.5967689292509, -1369.4767791228155]) / 299
    sklearn = (-1.675157739589506, -1.4318740230754254, -1.4290313624700832)
    return [
        Row("mixture, iris, after 1, 2, 5 iterations", sklearn, fit_iris(params=iris_start()).history[[1, 2, 5]]),
        Row("hidden Markov, geyser, after 0, 1, 5, 20", hmmlearn, hmm[[0, 1, 5, 20]]),
    ]


def monotone() -> list[Row]:
    """The largest fall of ln P per example; and the gradients, of ln P in closed form."""
    falls = [max(0.0, -np.diff(fit.history).min()) for fit in (fit_points(), fit_iris(params=iris_start()))]
    bound = as_vae(on_a_line())

    @jax.jit
    def gradient(both, enc, ys):
        of = lambda both: jax.vmap(lambda y: bound.terms({"enc": enc, **both}, jax.random.key(0), y).nats)(ys).mean()  # noqa: E731
        return jax.grad(of)(both)

    ours = gradient(floats(START), floats(START), floats(POINTS))
    means, variances = START["gen"]["means"][:, 0], np.ones(2)
    r = responsibilities(np.full(2, 0.5), means, variances)
    error = POINTS - means[None]
    of_log_std = (r * (error**2 - 1)).mean(axis=0)
    return [
        Row("largest fall in 200 iterations, points on a line", 0.0, falls[0]),
        Row("largest fall in 50 iterations, iris", 0.0, falls[1]),
        Row("gradient of the ELBO = that of ln P, weights", (r - 0.5).mean(axis=0), -ours["pri"]["logits"]),
        Row("the same, means", (r * error).mean(axis=0), -ours["gen"]["means"][:, 0]),
        Row("the same, log standard deviations", of_log_std, -ours["gen"]["covariances"][:, 0, 0]),
    ]


def iris_mixture() -> list[Row]:
    fitted = fit_iris(key=jax.random.key(0))
    return [Row("total ln p, from a k-means start", -214.3547, 150 * fitted.history[-1])]


CHECKS = [
    Check(21, "EM alternates exact halves on one ELBO", two_halves, 2e-5, 1e-9),
    Check(22, "hidden Markov models by enumeration of all paths", by_enumeration, 2e-5, 1e-12),
    Check(22, "EM, iteration by iteration, as in scikit-learn and hmmlearn", peers, 2e-5, 1e-10),
    Check(23, "EM never lowers ln P; Fisher's identity", monotone, 1e-5, 1e-12),
    Check(24, "iris, mixture of 2 Gaussians, full covariances", iris_mixture, 5e-3, 5e-5),
]
