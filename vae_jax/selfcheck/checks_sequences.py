"""Oracles 34 and 46: autoregressive models, and linear-Gaussian ones whose noise is small."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.core.combinator import vae
from vae_jax.core.estimators import analytic
from vae_jax.core.model import lift
from vae_jax.core.network import as_network
from vae_jax.em.algorithm import em_of
from vae_jax.em.factor_models import factor_analysis
from vae_jax.em.sequences.noisy_chains import filter_sequence
from vae_jax.em.sequences.state_space import linear_gaussian_state_space
from vae_jax.nets.recurrent import LSTM
from vae_jax.nets.transformer import Transformer
from vae_jax.parts.autoregression import autoregressive
from vae_jax.parts.conditionals import gaussian
from vae_jax.parts.priors import standard_normal
from vae_jax.selfcheck.check import Check, Row
from vae_jax.selfcheck.solvable import affine, floats
from vae_jax.text.scores import perplexity

LEVELS = 3


def networks() -> dict[str, Any]:
    """In the precision that is set."""
    dtype = jnp.zeros(()).dtype
    nets = {"LSTM": LSTM(LEVELS, 3, 4, dtype=dtype), "Transformer": Transformer(LEVELS, 8, 1, 2, dtype=dtype)}
    return {name: as_network(net) for name, net in nets.items()}


def all_sentences(length: int) -> np.ndarray:
    """Every array of this length in which nothing but 0 follows the first 0."""
    every = np.array(list(itertools.product(range(LEVELS), repeat=length)))
    return every[~((every[:, :-1] == 0) & (every[:, 1:] != 0)).any(axis=1)]


def sentences() -> list[Row]:
    """Probabilities sum to 1, padding costs nothing, and no position sees what comes after it."""
    rows = []
    for name, net in networks().items():
        model = lift(autoregressive(net, 4, LEVELS, end=0))
        params = floats(jax.jit(model.init)(jax.random.key(1), jnp.zeros(4, jnp.int32)))
        nats = jax.jit(jax.vmap(lambda y, m=model, p=params: m.terms(p, jax.random.key(0), y).nats))
        longer = lift(autoregressive(net, 7, LEVELS, end=0))
        padded = jax.jit(lambda y, m=longer, p=params: m.terms(p, jax.random.key(0), y).nats)
        ys = all_sentences(4)
        rows.append(Row(f"{name}: sum of P(y) over all y", 1.0, np.exp(-np.asarray(nats(ys), np.float64)).sum()))
        y = np.array([2, 1, 0, 0])
        rows.append(Row(f"{name}: 3 more columns of padding", nats(y[None])[0], padded(np.pad(y, (0, 3)))))
        scored = jax.jit(lambda y, n=net, p=params: autoregressive(n, 4, LEVELS).dist(p).token_log_prob(y))
        seen = scored(jnp.array([1, 2, 2, 1]))
        rows.append(Row(f"{name}: two words, whatever follows", seen[:2], scored(jnp.array([1, 2, 0, 2]))[:2]))
    return rows


def collapse() -> list[Row]:
    """A generator that ignores z, an encoder that ignores y: the bound is ln P(y) of the language model."""
    rows = []
    for name, net in networks().items():
        silent = (lambda key, y, z, net=net: net.init(key, y), lambda params, y, z, net=net: net.apply(params, y))
        language, generator = (autoregressive(n, 4, LEVELS, end=0) for n in (net, silent))
        model = vae(gaussian(affine(4)), standard_normal(2), generator, estimator=analytic)
        y = jnp.array([2.0, 1.0, 1.0, 0.0])
        params = floats(jax.jit(model.init)(jax.random.key(2), y))
        params["enc"] = floats(jax.tree.map(np.zeros_like, params["enc"]))
        terms = jax.jit(model.terms)(params, jax.random.key(3), y)
        alone = jax.jit(lift(language).terms)(params["gen"], jax.random.key(0), y)
        rows += [Row(f"{name}: rate", 0.0, terms.rate), Row(f"{name}: nats", alone.nats, terms.nats)]
    return rows


def surprise() -> list[Row]:
    """Sentences of 3, 1 and 4 words, the end one of them, at 2, 1 and 3 nats a word: exp(19 / 8)."""
    value, _ = perplexity(np.array([6.0, 1.0, 12.0]), np.array([3, 1, 4]))
    return [Row("perplexity", np.exp(19 / 8), value)]


def oracle() -> list[Row]:
    return [*sentences(), *collapse(), *surprise()]


STEPS = 12
CHAIN = {  # a place and its speed, their sum seen: variances .1 a step, and 1e-10 of what is seen
    "pri": {
        "mean": np.zeros(2),
        "initial": np.zeros((2, 2)),
        "transition": np.array([[1.0, 1.0], [0.0, 1.0]]),
        "noise": 0.5 * np.log(0.1) * np.eye(2),
    },
    "gen": {"loadings": np.array([[1.0, 0.7]]), "bias": np.zeros(1), "noise": np.array([0.5 * np.log(1e-10)])},
}
FACTORS = {
    "mean": np.zeros(5),
    "loadings": np.random.default_rng(0).normal(size=(5, 2)),
    "log_std": np.full(5, 0.5 * np.log(1e-10)),
}


def in_numpy(params: Any) -> Any:
    """numpy: the very numbers that the library is given, in float64."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def joseph(mean: np.ndarray, covariance: np.ndarray, rows: np.ndarray, noise: np.ndarray, y: np.ndarray) -> Any:
    """numpy: mean, covariance and ln P after y = rows z + N(0, diag(noise)), in Joseph's form."""
    spread, away = rows @ covariance @ rows.T + np.diag(noise), y - rows @ mean
    gain = np.linalg.solve(spread, rows @ covariance).T
    kept = np.eye(len(mean)) - gain @ rows
    log_p = -0.5 * (away @ np.linalg.solve(spread, away) + np.linalg.slogdet(2 * np.pi * spread)[1])
    return mean + gain @ away, kept @ covariance @ kept.T + (gain * noise) @ gain.T, log_p


def filtered(params: Any, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """numpy: means (T, q) and variances (T, q) of the filter, and ln P(y)."""
    pri, gen = params["pri"], params["gen"]
    first, noise = (np.diag(np.exp(2 * np.diag(pri[name]))) for name in ("initial", "noise"))
    mean, covariance, move, total, means, variances = pri["mean"], first, pri["transition"], 0.0, [], []
    for t, y in enumerate(ys):
        if t:
            mean, covariance = move @ mean, move @ covariance @ move.T + noise
        mean, covariance, log_p = joseph(mean, covariance, gen["loadings"], np.exp(2 * gen["noise"]), y)
        total += log_p
        means.append(mean)
        variances.append(np.diag(covariance))
    return np.array(means), np.array(variances), total


def chains() -> list[Row]:
    """Both filters, variances from 1 down to 1e-10."""
    params, rng, rows = floats(CHAIN), np.random.default_rng(1), []
    z, ys = np.zeros(2), np.zeros((STEPS, 1), np.float32)
    for t in range(STEPS):
        z = CHAIN["pri"]["transition"] @ z + rng.normal(size=2)
        ys[t] = CHAIN["gen"]["loadings"] @ z
    means, variances, log_p = filtered(in_numpy(params), ys.astype(np.float64))
    for name, parallel in (("in steps", False), ("in parallel", True)):
        model = linear_gaussian_state_space(1, 2, STEPS, parallel=parallel)
        form = model.dist(params, None).form
        known, obtained = jax.jit(lambda p, y, form=form: filter_sequence(form, p, y, None))(params, floats(ys))
        scale, roots = np.abs(means).max(), np.asarray(known.roots, np.float64)
        rows += [
            Row(f"filter {name}: ln P / exact", 1.0, obtained / log_p),
            Row(f"filter {name}: means, relative", 0.0, (known.means - means) / scale),
            Row(f"filter {name}: variances / exact", 1.0, (roots**2).sum(axis=2) / variances),
        ]
    return rows


def factors() -> list[Row]:
    """Five numbers of two factors, all seen or one, or two: the posterior and ln P of factor analysis."""
    params = floats({"pri": {}, "gen": FACTORS})
    gen = in_numpy(params)["gen"]
    model = factor_analysis(5, 2, missing=True)
    rng, log_p, variances = np.random.default_rng(2), [], []
    ys = (rng.normal(size=(4, 2)) @ FACTORS["loadings"].T + 1e-5 * rng.normal(size=(4, 5))).astype(np.float32)
    ys[1, 1:], ys[2, [0, 2, 4]], ys[3, 3] = np.nan, np.nan, np.nan
    for y in ys.astype(np.float64):
        here = ~np.isnan(y)
        noise = np.exp(2 * gen["log_std"][here])
        _, covariance, nats = joseph(np.zeros(2), np.eye(2), gen["loadings"][here], noise, y[here])
        log_p.append(nats)
        variances.append(np.diag(covariance))
    posterior = em_of(model).posterior
    of_one = jax.jit(jax.vmap(lambda p, y: (model.dist(p).log_prob(y), posterior(p, y).variance), (None, 0)))
    obtained, spread = of_one(params, floats(ys))
    return [
        Row("factor analysis: ln P / exact", 1.0, obtained / np.array(log_p)),
        Row("factor analysis: variances / exact", 1.0, spread / np.array(variances)),
    ]


def small_noise() -> list[Row]:
    return [*chains(), *factors()]


CHECKS = [
    Check(34, "autoregressive models: sums, padding, causality, collapse", oracle, 1e-5, 1e-11),
    Check(46, "square-root filters where the noise is 1e-10 = float64", small_noise, 1e-4, 1e-5),
]
