"""Oracles 40 to 42, 44 and 45: missing entries, classes known in part, the parts of the rate, counts, constraints."""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from vae_jax.core.combinator import vae
from vae_jax.core.counts import NegativeBinomial, Poisson, ZeroInflated
from vae_jax.core.disentangling import log_aggregate
from vae_jax.core.estimators import enumerated
from vae_jax.core.model import Conditional, Model
from vae_jax.core.network import Network
from vae_jax.evaluation.accounting import rate_split
from vae_jax.evaluation.imputation import impute
from vae_jax.parts.conditionals import bernoulli, categorical, conditional
from vae_jax.parts.counts import poisson
from vae_jax.parts.l2_distortion import l2
from vae_jax.parts.missing import maybe_missing
from vae_jax.parts.priors import standard_normal
from vae_jax.selfcheck.check import Check, Row, average
from vae_jax.selfcheck.solvable import (
    EIGENVALUES,
    affine_normal,
    floats,
    linear_gaussian_model,
    linear_vae_optimum,
    log_normal,
    log_softmax,
)
from vae_jax.systems.constrained import geco
from vae_jax.systems.labels import partly_labelled

SIGMA = 0.6
DRAWS = 4000


def _gaussian_with_gaps() -> Model:
    """y = W z + b + noise, entries missing; the encoder is the exact posterior given what is seen."""

    def posterior(params, y):
        seen = jnp.where(jnp.isnan(y)[:, None], 0, params["w"])
        precision = jnp.eye(seen.shape[1]) + seen.T @ seen / SIGMA**2
        mean = jnp.linalg.solve(precision, seen.T @ (jnp.where(jnp.isnan(y), 0, y) - params["b"])) / SIGMA**2
        return mean, precision

    encoder = conditional(
        (lambda key, y: (), posterior), lambda both: dist.MultivariateNormal(both[0], precision_matrix=both[1])
    )
    yhat = Network(lambda key, z: (), lambda params, z: params["w"] @ z + params["b"])
    return vae(encoder, standard_normal(2), maybe_missing(l2(yhat, SIGMA)))


def missing_entries() -> list[Row]:
    """By the marginal and the conditional Gaussian; complete rows by the model that knows no gaps."""
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(5, 2)), rng.normal(size=5)
    covariance, nan = w @ w.T + SIGMA**2 * np.eye(5), np.nan
    y = np.array([0.5, nan, -1.0, nan, 2.0])
    m, o = np.isnan(y), ~np.isnan(y)
    of_seen = covariance[np.ix_(o, o)]
    filled = b[m] + covariance[np.ix_(m, o)] @ np.linalg.solve(of_seen, y[o] - b[o])
    own = floats({"w": w, "b": b})
    params, model = {"enc": own, "pri": {}, "gen": own}, _gaussian_with_gaps()
    nats = jax.jit(lambda params, y: model.terms(params, jax.random.key(0), y, None).nats)
    mean = jax.jit(lambda params, y: impute(model, params, jax.random.key(1), y, n=1, k=DRAWS).mean)
    draws = jax.jit(jax.vmap(lambda key, params, y: impute(model, params, key, y, n=1, k=1).mean, (0, None, None)))
    each = draws(jax.random.split(jax.random.key(2), DRAWS), params, floats(y))
    plain = l2(Network(lambda key, z: (), lambda params, z: params["w"] @ z + params["b"]), SIGMA)
    whole, z = floats(np.nan_to_num(y)), floats(np.array([0.3, -0.2]))
    both = [g.dist(own, z).log_prob(whole) for g in (maybe_missing(plain), plain)]
    return [
        Row("-ln p of what is seen", -log_normal((y[o] - b[o])[None], of_seen)[0], nats(params, floats(y))),
        average("E of what is missing, an example a draw", filled, np.asarray(each)[:, m]),
        Row("what is seen stays", y[o], np.asarray(mean(params, floats(y)))[o]),
        Row("a complete row: the difference from the plain model", 0.0, both[0] - both[1]),
    ]


@functools.cache
def _bits_of_classes() -> Model:
    """y of two bits, z of two states, c of three classes, all tables; exact encoders that look y up."""

    def place(params, y):
        return params["joint"][jnp.argmax(jnp.all(y[None] == params["ys"], axis=1))]  # (classes, states)

    nothing = lambda key, *x: ()  # noqa: E731
    states = categorical((nothing, lambda params, c=None: params))
    of_state = categorical((nothing, lambda params, y, c: jnp.einsum("c,cz->z", c, place(params, y))))
    bits = bernoulli((nothing, lambda params, z, c: jnp.einsum("c,cd->d", c, params[z])))
    inner = vae(
        of_state, Conditional(nothing, lambda params, c=None: states.dist(params, c)), bits, estimator=enumerated
    )
    classifier = Network(nothing, lambda params, y: jax.nn.logsumexp(place(params, y), axis=1))
    return partly_labelled(classifier, inner, 3)


def classes_in_part() -> list[Row]:
    rng = np.random.default_rng(0)
    of_class, of_state, logits = rng.normal(size=3), rng.normal(size=2), rng.normal(size=(2, 3, 2))
    ys = np.array(list(itertools.product([0.0, 1.0], repeat=2)))
    log_p = [np.where(y, 1, -1) * logits for y in ys]  # ln sigmoid of these
    bits = np.stack([-np.logaddexp(0, -each).sum(axis=-1).T for each in log_p])
    joint = log_softmax(of_class)[None, :, None] + log_softmax(of_state)[None, None] + bits  # (ys, classes, states)
    enc = {"joint": joint, "ys": ys}
    gen = {"enc": enc, "pri": of_state, "gen": logits}
    params, model = floats({"enc": enc, "pri": {"logits": of_class}, "gen": gen}), _bits_of_classes()
    nats = jax.jit(jax.vmap(lambda params, y, c: model.terms(params, jax.random.key(0), y, c).nats, (None, 0, None)))
    each = [nats(params, floats(ys), jnp.int32(c)) for c in (0, 1, 2, -1)]
    known = -np.logaddexp.reduce(joint, axis=2)
    rows = [Row(f"class {c} known: -ln P(y, c)", known[:, c], each[c]) for c in range(3)]
    return [*rows, Row("unknown: -ln P(y)", -np.logaddexp.reduce(-known, axis=1), each[3])]


def parts_of_the_rate() -> list[Row]:
    """I(y; z), total correlation and the margins' KLs, by listing all z of two units of three classes."""
    rng = np.random.default_rng(0)
    logits, of_prior = 2 * rng.normal(size=(5, 2, 3)), rng.normal(size=(2, 3))
    q, p = log_softmax(logits), log_softmax(of_prior)
    margins = np.logaddexp.reduce(q, axis=0) - np.log(5)
    information = correlation = 0.0
    for z in itertools.product(range(3), repeat=2):
        each = sum(q[:, unit, k] for unit, k in enumerate(z))
        log_q = np.logaddexp.reduce(each) - np.log(5)
        information += np.mean(np.exp(each) * (each - log_q))
        correlation += np.exp(log_q) * (log_q - sum(margins[unit, k] for unit, k in enumerate(z)))
    wanted = (information, correlation, np.sum(np.exp(margins) * (margins - p)))
    encoder = categorical((lambda key, y: floats(logits), lambda params, y: jnp.einsum("n,nuk->uk", y, params)))
    prior = Conditional(
        lambda key, c=None: floats(of_prior), lambda params, c=None: dist.CategoricalLogits(params).to_event(1)
    )
    params = floats({"enc": logits, "pri": of_prior})
    found = [
        rate_split(encoder, prior, params, jax.random.key(seed), np.eye(5, dtype=np.float32), samples=2000)
        for seed in range(8)
    ]
    named = ("mutual_information", "total_correlation", "dimension_kl")
    rows = [
        average(name.replace("_", " "), value, [getattr(one, name).value for one in found])
        for name, value in zip(named, wanted, strict=True)
    ]
    pairs = rng.normal(size=(6, 6, 2))
    exact = np.logaddexp.reduce(pairs, axis=1) - np.log(6)
    return [*rows, Row("an aggregate of the whole data as the batch", exact, log_aggregate(floats(pairs), 6))]


def counts() -> list[Row]:
    """By ln Gamma in float64; and counts whose log mean is normal, by quadrature."""
    grid = np.meshgrid([0.0, 1, 3, 17, 1000, 10**6], np.log([0.01, 3, 999, 1.001e6]), np.log([1e-4, 0.3, 5]))
    given = floats([np.ravel(each) for each in grid])
    y, log_mean, log_dispersion = (np.asarray(each, np.float64) for each in given)  # as the device has them
    mean, n, lgamma = np.exp(log_mean), np.exp(-log_dispersion), np.vectorize(math.lgamma)
    of_poisson = y * log_mean - mean - lgamma(y + 1)
    of_binomial = lgamma(y + n) - lgamma(n) - lgamma(y + 1) - n * np.log1p(mean / n) + y * np.log(mean / (n + mean))

    @jax.jit
    def log_probs(y, log_mean, log_dispersion):
        binomial = NegativeBinomial(log_mean, log_dispersion)
        zeros = ZeroInflated(binomial, jnp.full(y.shape, -1.0, y.dtype)).log_prob(y)
        return Poisson(log_mean).log_prob(y), binomial.log_prob(y), zeros

    found = [np.asarray(each, np.float64) for each in log_probs(*given)]
    zero = 1 / (1 + np.e)
    inflated = np.log((1 - zero) * np.exp(of_binomial) + np.where(y == 0, zero, 1e-300))
    scale = [1 + np.abs(exact) for exact in (of_poisson, of_binomial)]
    probable = of_binomial > -80
    rows = [
        Row("Poisson, relative", of_poisson / scale[0], found[0] / scale[0]),
        Row("negative binomial, relative", of_binomial / scale[1], found[1] / scale[1]),
        Row("with more zeros", (inflated / scale[1])[probable], (found[2] / scale[1])[probable]),
    ]
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    rate = np.exp(0.5 + 0.7 * nodes)
    log_p = np.log(np.sum(weights * np.exp(4 * np.log(rate) - rate - math.lgamma(5))) / np.sqrt(2 * np.pi))
    net = Network(lambda key, z: (), lambda params, z: params[0] + params[1] * z)
    model = vae(affine_normal(1), standard_normal(1), poisson(net))
    enc = {"weights": np.zeros((1, 1)), "bias": np.array([0.8]), "log_std": np.array([-0.2])}
    params = floats({"enc": enc, "pri": {}, "gen": np.array([0.5, 0.7])})
    ratio = jax.jit(jax.vmap(lambda key, params, y: jnp.exp(-model.terms(params, key, y, None).nats), (0, None, None)))(
        jax.random.split(jax.random.key(0), 20_000), params, floats(np.array([4.0]))
    )
    return [*rows, average("P of a Poisson with a log-normal mean", np.exp(log_p), ratio)]


def constraint() -> list[Row]:
    """At the optimum of distortion + beta rate, its distortion being the limit, lambda = 1 / beta is a fixed point."""
    beta, variance, latent = 1.5, 0.3, 3
    ys, own = linear_vae_optimum(latent, variance, beta)
    left = np.where(np.arange(5) < latent, np.minimum(EIGENVALUES, beta * variance), EIGENVALUES)
    limit = left.sum() / (2 * variance) + 2.5 * np.log(2 * np.pi * variance)
    rate = 0.5 * np.sum(np.log(EIGENVALUES[:latent] / left[:latent]))
    inner = linear_gaussian_model(5, latent, float(np.sqrt(variance)))
    model, objective = geco(inner, float(limit), memory=0.0, speed=1.0)
    params = {"model": own, "multiplier": floats({"log": -np.log(beta), "excess": 0.0})}

    def one(key, params: Any):
        keys = jax.random.split(key, len(ys))
        gradient, terms = jax.grad(lambda p: objective(model, p, keys, ys, None, 0), has_aux=True)(params)
        after = model.maximise(params, jax.tree.map(lambda x: x.mean(axis=0), terms.stats))
        moved = after["multiplier"]["log"] - params["multiplier"]["log"]
        return terms.distortion.mean(), terms.rate.mean(), moved, gradient["model"]["gen"]["weights"]

    found = jax.jit(jax.vmap(one, (0, None)))(jax.random.split(jax.random.key(0), DRAWS), params)
    named = {"distortion": limit, "rate": rate, "ln lambda moves by": 0.0, "gradient of the generator": 0.0}
    return [average(name, wanted, each) for (name, wanted), each in zip(named.items(), found, strict=True)]


CHECKS = [
    Check(40, "missing entries are summed out, and filled in by their conditional", missing_entries, 2e-4, 1e-9),
    Check(41, "a class that is unknown is summed out (M2)", classes_in_part, 2e-5, 1e-9),
    Check(42, "rate = information + total correlation + margins", parts_of_the_rate, 2e-5, 1e-9),
    Check(44, "counts by the logarithm of their means", counts, 1e-5, 1e-9),
    Check(45, "the weight of a limit meets it (GECO)", constraint, 2e-4, 1e-9),
]
