"""Oracles 36 and 37: a VAE whose prior is a VAE."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from vae_jax.core.combinator import importance_weighted_bound, vae
from vae_jax.core.estimators import fixed_encoder, importance_of
from vae_jax.core.model import Conditional, Model
from vae_jax.parts.conditionals import conditional
from vae_jax.parts.l2_distortion import l2
from vae_jax.parts.priors import standard_normal
from vae_jax.selfcheck.check import Check, Row, average
from vae_jax.selfcheck.solvable import (
    LN_P,
    affine,
    affine_normal,
    discrete,
    discrete_tables,
    floats,
    probabilities,
    toy,
    toy_params,
    toy_y,
)

W1, W2 = np.array([[1.0, -0.5], [0.3, 0.8], [-0.6, 0.4]]), np.array([[0.9], [-1.2]])
STD1, STD2 = 0.7, 0.6
Y = np.array([0.5, -1.0, 0.8])


def full_normal(size: int) -> Conditional:
    """N(weights @ c + bias, tril tril')."""
    mean = affine(size)

    def init(key, c):
        return {**mean.init(key, c), "tril": jnp.eye(size)}

    def make(output):
        return dist.MultivariateNormal(output[0], scale_tril=output[1])

    return conditional((init, lambda params, c: (mean.apply(params, c), params["tril"])), make)


@functools.cache
def two_layers() -> Model:
    """z2 ~ N(0, 1), z1 = W2 z2 + noise, y = W1 z1 + noise: of 1, 2 and 3 numbers."""
    prior = vae(affine_normal(1), standard_normal(1), l2(affine(2), STD2))
    return vae(full_normal(2), prior, l2(affine(3), STD1))


def parameters(widen: float) -> Any:
    """Encoders at the exact posteriors, their standard deviations times `widen`."""
    covariance1 = W2 @ W2.T + STD2**2 * np.eye(2)
    posterior1 = np.linalg.inv(np.linalg.inv(covariance1) + W1.T @ W1 / STD1**2)
    variance2 = 1 / (1 + (W2.T @ W2).item() / STD2**2)
    tril = widen * np.linalg.cholesky(posterior1)
    enc1 = {"weights": posterior1 @ W1.T / STD1**2, "bias": np.zeros(2), "tril": tril}
    log_std = np.log([widen * np.sqrt(variance2)])
    enc2 = {"weights": variance2 * W2.T / STD2**2, "bias": np.zeros(1), "log_std": log_std}
    gen2 = {"weights": W2, "bias": np.zeros(2)}
    return floats(
        {"enc": enc1, "pri": {"enc": enc2, "pri": {}, "gen": gen2}, "gen": {"weights": W1, "bias": np.zeros(3)}}
    )


def log_p() -> float:
    """numpy: ln N(Y; 0, W1 (W2 W2' + s2 I) W1' + s1 I)."""
    covariance = W1 @ (W2 @ W2.T + STD2**2 * np.eye(2)) @ W1.T + STD1**2 * np.eye(3)
    return float(-0.5 * (Y @ np.linalg.solve(covariance, Y) + np.linalg.slogdet(2 * np.pi * covariance)[1]))


def marginal_gaussian() -> list[Row]:
    draws = jax.jit(jax.vmap(two_layers().terms, in_axes=(None, 0, None)))
    nats = draws(parameters(1.0), jax.random.split(jax.random.key(1), 5), floats(Y)).nats
    return [Row("exact encoders, each of 5 draws: ln P(y)", log_p(), -nats)]


def importance() -> list[Row]:
    """20,000 draws, encoders that are not the posterior. With standard deviations 1.15 times the posterior's, the
    weights of two_layers have E w^2 / P(y)^2 = (1.15^2 / sqrt(2 1.15^2 - 1))^3, whence the error of their bound."""
    tables, k, wide = discrete_tables(), 20_000, 1.15**2
    pri, gen = (probabilities(tables[name]) for name in ("pri", "gen"))
    log_p_1 = np.log(pri @ gen[:, 1])

    def ratios(model, params, y, log_p):
        draws = jax.jit(jax.vmap(importance_of(model), in_axes=(None, 0, None)))
        return np.exp(-np.asarray(draws(params, jax.random.split(jax.random.key(9), k), y).nats, np.float64) - log_p)

    bound = jax.jit(functools.partial(importance_weighted_bound, two_layers(), k=k))
    spread = np.sqrt(((wide / np.sqrt(2 * wide - 1)) ** 3 - 1) / k)
    enumerated = jax.jit(importance_of(discrete()))(floats(tables), jax.random.key(0), jnp.asarray(1))
    of_tables = ratios(discrete(fixed_encoder), floats(tables), jnp.asarray(1), log_p_1)
    return [
        average("toy: E exp(-nats) / P(y)", 1.0, ratios(toy(), toy_params(), toy_y(), LN_P)),
        average("tables: E exp(-nats) / P(y)", 1.0, of_tables),
        Row("tables, enumerated: ln P(y) itself", log_p_1, -enumerated.nats),
        Row("two layers: L_20,000", log_p(), bound(parameters(1.15), jax.random.key(10), floats(Y)), spread),
    ]


CHECKS = [
    Check(36, "two linear layers are the marginal Gaussian", marginal_gaussian, 2e-5, 1e-11),
    Check(37, "importance samples average to P(y)", importance, 1e-5, 1e-11),
]
