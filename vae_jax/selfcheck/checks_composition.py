"""Oracles 36 and 37: a VAE whose prior is a VAE."""

import functools

import jax
import numpy as np

from vae_jax.core.combinator import importance_weighted_bound
from vae_jax.core.estimators import fixed_encoder, importance_of
from vae_jax.selfcheck.check import Check, Row, average
from vae_jax.selfcheck.solvable import Solvable, discrete, toy, two_layers


def marginal_gaussian() -> list[Row]:
    system = two_layers()
    draws = jax.jit(jax.vmap(system.model.terms, in_axes=(None, 0, None)))
    nats = draws(system.exact, jax.random.split(jax.random.key(1), 5), system.ys[0]).nats
    return [Row("exact encoders, each of 5 draws: ln P(y)", system.log_p[0], -nats)]


def importance() -> list[Row]:
    """20,000 draws, encoders that are not the posterior. With standard deviations 1.15 times the posterior's, the
    weights of two_layers have E w^2 / P(y)^2 = (1.15^2 / sqrt(2 1.15^2 - 1))^3, whence the error of their bound."""
    k, wide, layers, tables = 20_000, 1.15**2, two_layers(widen=1.15), discrete()

    def ratios(system: Solvable, i: int):
        draws = jax.jit(jax.vmap(importance_of(system.model), in_axes=(None, 0, None)))
        nats = draws(system.params, jax.random.split(jax.random.key(9), k), system.ys[i]).nats
        return np.exp(-np.asarray(nats, np.float64) - system.log_p[i])

    bound = jax.jit(functools.partial(importance_weighted_bound, layers.model, k=k))
    spread = np.sqrt(((wide / np.sqrt(2 * wide - 1)) ** 3 - 1) / k)
    enumerated = jax.jit(importance_of(tables.model))(tables.params, jax.random.key(0), tables.ys[1])
    return [
        average("toy: E exp(-nats) / P(y)", 1.0, ratios(toy(), 0)),
        average("tables: E exp(-nats) / P(y)", 1.0, ratios(discrete(estimator=fixed_encoder), 1)),
        Row("tables, enumerated: ln P(y) itself", tables.log_p[1], -enumerated.nats),
        Row("two layers: L_20,000", layers.log_p[0], bound(layers.params, jax.random.key(10), layers.ys[0]), spread),
    ]


CHECKS = [
    Check(36, "two linear layers are the marginal Gaussian", marginal_gaussian, 2e-5, 1e-11),
    Check(37, "importance samples average to P(y)", importance, 1e-5, 1e-11),
]
