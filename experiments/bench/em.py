"""Contestants for EM: one call is a few iterations from the same start; the last number is the mean ln P they reach."""

import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.ceiling import Work, work_of
from experiments.bench.compare import Contestants, missing
from vae_jax.core import EM, Params
from vae_jax.em import categorical_hmm, expect_in_chunks, mixture_of_gaussians
from vae_jax.em.algorithm import em_of

ITERATIONS = 3


def projected(pixels: np.ndarray, dimensions: int) -> np.ndarray:
    """Principal components (n, dimensions) of images / 255, float32."""
    rows = pixels.reshape(len(pixels), -1).astype(np.float32) / 255
    rows -= rows.mean(axis=0)
    _, vectors = np.linalg.eigh(rows.T @ rows)
    return rows @ vectors[:, ::-1][:, :dimensions]


def ours(em: EM, params: Params, ys: np.ndarray, chunk: int) -> Callable[[], float]:
    """Iterations as `fit_em` runs them."""
    n = len(ys)

    @jax.jit
    def run(params, ys):
        def iterate(params, _):
            log_p, stats = expect_in_chunks(em, params, ys, None, chunk)
            return em.maximise(params, stats, n), log_p

        params, _ = jax.lax.scan(iterate, params, None, length=ITERATIONS)
        return expect_in_chunks(em, params, ys, None, chunk)[0]

    data = jnp.asarray(ys)
    return lambda: float(run(params, data))


def _work(em: EM, params: Params, ys: np.ndarray) -> Work:
    """Of one number of the data (or a row) in one iteration, by what this library does."""
    step = work_of(lambda params, ys: em.expect(params, ys, None), params, jnp.asarray(ys))
    return step.per(len(ys) if ys.dtype == np.float32 else ys.size)


def mixtures(rows: np.ndarray, components: int) -> tuple[Contestants, Work]:
    """A mixture of Gaussians with full covariances: this library and scikit-learn, from one start; a row's work."""
    size = rows.shape[1]
    model = mixture_of_gaussians(size, components, "full")
    means = rows[np.random.default_rng(0).choice(len(rows), components, replace=False)]
    covariance = np.cov(rows.T)
    factor = np.linalg.cholesky(covariance)
    raw = np.tril(factor, -1) + np.diag(np.log(np.diag(factor)))
    gen = {"means": means, "covariances": np.tile(raw, (components, 1, 1))}
    params = {"pri": {"logits": np.zeros(components)}, "gen": gen}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    contestants = {"vae_jax": ours(em_of(model), params, rows, 2048)}
    if not missing("sklearn", "scikit-learn"):
        contestants["scikit-learn"] = _sklearn_mixture(rows, components, means, np.linalg.inv(covariance))
    return contestants, _work(em_of(model), params, rows[:2048])


def _sklearn_mixture(rows, components, means, precision) -> Callable[[], float]:
    from sklearn.mixture import GaussianMixture

    def run() -> float:
        peer = GaussianMixture(
            components,
            tol=0,
            max_iter=ITERATIONS,
            weights_init=np.full(components, 1 / components),
            means_init=means,
            precisions_init=np.tile(precision, (components, 1, 1)),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it did not converge, as was asked
            return float(peer.fit(rows).score(rows))

    return run


def sequences(count: int, length: int, states: int, levels: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Symbols (count, length) of a random hidden Markov model, and a start: initial, transition, emission."""
    rng = np.random.default_rng(0)
    transition, emission = (rng.dirichlet(np.full(n, 0.3), size=states) for n in (states, levels))
    z, ys = rng.integers(states, size=count), np.zeros((count, length), np.int32)
    for t in range(length):
        ys[:, t] = [rng.choice(levels, p=emission[i]) for i in z]
        z = np.array([rng.choice(states, p=transition[i]) for i in z])
    start = {
        "initial": np.full(states, 1 / states),
        "transition": rng.dirichlet(np.full(states, 5.0), size=states),
        "emission": rng.dirichlet(np.full(levels, 5.0), size=states),
    }
    return ys, start


def hidden_markov_models(ys: np.ndarray, start: dict[str, np.ndarray]) -> tuple[Contestants, Work]:
    """A categorical hidden Markov model: this library, hmmlearn and dynamax, from the same start; a symbol's work."""
    states, levels = start["emission"].shape
    model = categorical_hmm(levels, states, ys.shape[1])
    logits = {name: jnp.log(jnp.asarray(p, jnp.float32)) for name, p in start.items()}
    params = {
        "pri": {"initial": logits["initial"], "transition": logits["transition"]},
        "gen": {"logits": logits["emission"]},
    }
    contestants = {"vae_jax": ours(em_of(model), params, ys, len(ys))}
    if not missing("hmmlearn", "hmmlearn"):
        contestants["hmmlearn, log (default)"] = _hmmlearn(ys, start, "log")
        contestants["hmmlearn, scaling"] = _hmmlearn(ys, start, "scaling")
    if not missing("dynamax", "dynamax"):
        contestants["dynamax"] = _dynamax(ys, start)
    return contestants, _work(em_of(model), params, ys)


def _hmmlearn(ys, start, implementation) -> Callable[[], float]:
    from hmmlearn.hmm import CategoricalHMM

    flat, lengths = ys.reshape(-1, 1), [ys.shape[1]] * len(ys)

    def run() -> float:
        peer = CategoricalHMM(
            len(start["initial"]), n_iter=ITERATIONS, tol=-np.inf, init_params="", implementation=implementation
        )
        peer.startprob_, peer.transmat_, peer.emissionprob_ = start["initial"], start["transition"], start["emission"]
        return float(peer.fit(flat, lengths).score(flat, lengths) / len(ys))

    return run


def _dynamax(ys, start) -> Callable[[], float]:
    from dynamax.hidden_markov_model import CategoricalHMM

    states, levels = start["emission"].shape
    model = CategoricalHMM(states, 1, levels, emission_prior_concentration=1.0, transition_matrix_concentration=1.0)
    params, properties = model.initialize(
        jax.random.key(0),
        initial_probs=jnp.asarray(start["initial"]),
        transition_matrix=jnp.asarray(start["transition"]),
        emission_probs=jnp.asarray(start["emission"])[:, None],
    )
    data = jnp.asarray(ys)[:, :, None]

    def run() -> float:
        fitted, _ = model.fit_em(params, properties, data, num_iters=ITERATIONS, verbose=False)
        return float(jax.vmap(lambda y: model.marginal_log_prob(fitted, y))(data).mean())

    return run
