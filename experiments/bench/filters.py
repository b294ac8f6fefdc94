"""Contestants for Kalman filters: one call is ln P of every sequence; the last number is its mean."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.em import linear_gaussian_state_space

SEQUENCES, LENGTH, SIZE, LATENT = 64, 500, 6, 4
Contestants = dict[str, Callable[[], float]]


def contestants(count: int) -> Contestants:
    """This library, in square-root form, and the textbook's covariance form, on `count` sequences."""
    model = linear_gaussian_state_space(SIZE, LATENT, LENGTH)
    params = jax.jit(model.init)(jax.random.key(0))
    ys = jax.jit(lambda p: model.dist(p).sample(jax.random.key(1), (count,)))(params)
    run = {
        "vae_jax": lambda p, y: model.dist(p).log_prob(y),
        "covariance form by hand": by_hand,
        "vae_jax, whole E-step": lambda p, y: _all_of(model.em.expect(p, y[None], None)),
    }
    return {name: _mean(jax.jit(jax.vmap(one, in_axes=(None, 0))), params, ys) for name, one in run.items()}


def _all_of(expected):
    """ln P, which waits for the sufficient statistics."""
    log_p, stats = expected
    return log_p[0] + 0.0 * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(stats))


def _mean(run, params, ys) -> Callable[[], float]:
    return lambda: float(np.mean(run(params, ys)))


def by_hand(params, ys):
    """ln P of ys (T, D): mean and covariance, innovations and the gain; float32 loses it where the noise is small."""
    pri, gen = params["pri"], params["gen"]
    a, c, noise = pri["transition"], gen["loadings"], jnp.diag(jnp.exp(2 * gen["noise"]))
    first, moves = (_covariance(pri[name]) for name in ("initial", "noise"))

    def step(predicted, y):
        mean, covariance = predicted
        factor = jnp.linalg.cholesky(c @ covariance @ c.T + noise)
        both = jnp.concatenate([(y - gen["bias"] - c @ mean)[:, None], c @ covariance], axis=1)
        white = jax.scipy.linalg.solve_triangular(factor, both, lower=True)
        log_p = -0.5 * jnp.sum(white[:, 0] ** 2) - jnp.sum(jnp.log(jnp.diag(factor)))
        mean, covariance = mean + white[:, 1:].T @ white[:, 0], covariance - white[:, 1:].T @ white[:, 1:]
        return (a @ mean, a @ covariance @ a.T + moves), log_p

    log_p = jax.lax.scan(step, (pri["mean"], first), ys)[1]
    return jnp.sum(log_p) - 0.5 * ys.size * jnp.log(2 * jnp.pi)


def _covariance(raw):
    factor = jnp.tril(raw, -1) + jnp.diag(jnp.exp(jnp.diag(raw)))
    return factor @ factor.T
