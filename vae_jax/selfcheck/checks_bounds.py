"""Oracles 1, 2, 3, 5 and 35: the evidence lower bound and its relatives on the toy, by quadrature and by draws."""

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.core import multi_sample, objectives
from vae_jax.core.combinator import importance_weighted_bound
from vae_jax.core.estimators import analytic, importance_of, sampled, sticking
from vae_jax.selfcheck.check import Check, Row, average
from vae_jax.selfcheck.quadrature import at_nodes, expected_terms, hermite
from vae_jax.selfcheck.solvable import LN_P, NEAR, POSTERIOR, toy

ENCODERS = {"the prior": (0.0, 1.0), "the posterior": POSTERIOR, "N(.3, .2)": NEAR}
ELBOS = np.array([-8.14472989, LN_P, -5.64444884])


def elbo() -> list[Row]:
    models = [toy(estimator=estimator).model for estimator in (sampled, analytic, sticking)]

    @jax.jit
    def terms(every, quadrature, ys):
        at = lambda params: [expected_terms(model, params, ys, quadrature) for model in models]  # noqa: E731
        return jax.tree.map(lambda x: x[:, 0], jax.vmap(at)(every))

    every = jax.tree.map(lambda *x: np.stack(x), *[toy(*encoder).params for encoder in ENCODERS.values()])
    plain, *others = terms(every, hermite(8), toy().ys)
    return [
        *(Row(f"ELBO, enc = {name}", ELBOS[i], -plain.nats[i]) for i, name in enumerate(ENCODERS)),
        Row("E ln P_gen, enc = N(.3, .2)", -5.19472989, -plain.distortion[2]),
        Row("rate, enc = N(.3, .2)", 0.44971896, plain.rate[2]),
        Row("the three, estimator analytic", ELBOS, -others[0].nats),
        Row("the three, estimator sticking", ELBOS, -others[1].nats),
    ]


def expected_log_mean(log_w: np.ndarray, weights: np.ndarray, k: int) -> float:
    """numpy: E ln 1/k sum_i w_i over k independent nodes."""
    total, probability = np.exp(log_w), weights
    for _ in range(k - 1):
        total = np.add.outer(total, np.exp(log_w)).ravel()
        probability = np.outer(probability, weights).ravel()
    return float(probability @ np.log(total / k))


def importance_weighted() -> list[Row]:
    system, (nodes, weights) = toy(), hermite()

    @jax.jit
    def bounds(params, nodes, keys, y):
        log_w = -at_nodes(importance_of(system.model), params, nodes, y).nats
        return log_w, jax.vmap(lambda key: importance_weighted_bound(system.model, params, key, y, k=3))(keys)

    log_w, draws = bounds(system.params, nodes, jax.random.split(jax.random.key(2), 20_000), system.ys[0])
    log_w = np.asarray(log_w, np.float64)
    exact = (-5.64444884, -4.80093341, -4.54435084)
    return [
        *(Row(f"L_{k} by quadrature", exact[k - 1], expected_log_mean(log_w, weights, k)) for k in (1, 2, 3)),
        average("L_3, 20,000 draws", exact[2], draws),
        Row("chi-squared of w: E (w / P(y))^2 - 1", 1.52853, weights @ np.exp(2 * (log_w - LN_P)) - 1),
    ]


def renyi() -> list[Row]:
    """20 bounds of 20,000 samples each: their bias is at most 4e-5, which the tolerance allows for."""
    alphas, k, system = (1.0, 0.5, 0.0), 20_000, toy()

    @jax.jit
    def bounds(params, keys, y):
        def one(key):
            of = lambda alpha: multi_sample.renyi(alpha, k)(system.model, params, key[None], y[None], None, 0)[0]  # noqa: E731
            return -jnp.stack([of(alpha) for alpha in alphas])

        return jax.lax.map(one, keys)

    draws = np.asarray(bounds(system.params, jax.random.split(jax.random.key(3), 20), system.ys[0]))
    labels = ("alpha = 1 is the ELBO", "alpha = .5", "alpha = 0 is ln P(y)")
    exact = (ELBOS[2], -4.63663997, LN_P)
    return [average(label, exact[i], draws[:, i]) for i, label in enumerate(labels)]


def rate() -> list[Row]:
    system, closed = toy(1.0, 0.25), toy(estimator=analytic).model

    @jax.jit
    def rates(params, keys, y):
        draws = jax.vmap(lambda key: system.model.terms(params, key, y).rate)(keys)
        return draws, closed.terms(params, keys[0], y).rate

    keys = jax.random.split(jax.random.key(5), 20_000)
    draws, exact = rates(system.params, keys, system.ys[0])
    return [
        Row("KL(N(1, .5^2) || N(0, 1)), estimator analytic", 0.8181471806, exact),
        average("the same, 20,000 draws", 0.8181471806, draws),
    ]


def free_bits() -> list[Row]:
    rates = jnp.array([[0.1, 2.0], [0.7, 0.0]])
    definitions = (objectives.batch_mean_per_unit, objectives.per_unit, objectives.per_example)
    values = jax.jit(lambda rates: [definition(rates, 0.5) for definition in definitions])(rates)
    exact = (1.5, 1.85, 1.4)
    return [Row(definitions[i].__name__, exact[i], values[i]) for i in range(3)]


CHECKS = [
    Check(1, "ELBO = ln P(y) - KL(enc || posterior)", elbo, 2e-5, 6e-9),
    Check(2, "importance-weighted bounds rise from the ELBO to ln P(y)", importance_weighted, 2e-4, 3e-6),
    Check(3, "Rényi bounds", renyi, 1e-4, 1e-4),
    Check(5, "sampled rate = analytic KL", rate, 1e-5, 1e-10),
    Check(35, "free bits, three definitions on KL = [[.1, 2], [.7, 0]], floor .5", free_bits, 1e-6, 1e-12),
]
