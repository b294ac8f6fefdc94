"""Contestants for Kalman filters: one call is ln P of every sequence; the last number is its mean.

The peer is the information form, I + L' J L: right where the noise is not small, lost in float32 where it is.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.ceiling import Work, work_of
from experiments.bench.compare import Contestants
from vae_jax.core.linalg import cholesky, eye_like, inverse_of_lower, matmul, transposed
from vae_jax.em import linear_gaussian_state_space

SEQUENCES, LENGTH, SIZE, LATENT = 64, 500, 6, 4


def contestants(count: int, *, parallel: bool) -> tuple[Contestants, Work]:
    """This library, in square-root form, and the information form, on `count` sequences; the work of a step."""
    model = linear_gaussian_state_space(SIZE, LATENT, LENGTH, parallel=parallel)
    params = jax.jit(model.init)(jax.random.key(0))
    ys = jax.jit(lambda p: model.dist(p).sample(jax.random.key(1), (count,)))(params)
    run: dict[str, Callable] = {
        "vae_jax": lambda p, y: model.dist(p).log_prob(y),
        "information form by hand": partial(by_hand, filtered=in_parallel if parallel else in_steps),
    }
    found = {name: _mean(jax.jit(jax.vmap(one, in_axes=(None, 0))), params, ys) for name, one in run.items()}
    return found, work_of(jax.vmap(run["vae_jax"], in_axes=(None, 0)), params, ys).per(count * LENGTH)


def _mean(run, params, ys) -> Callable[[], float]:
    return lambda: float(np.mean(run(params, ys)))


def by_hand(params, y, filtered):
    """ln P of y (T, D), from the predicted means and covariances."""
    pri, gen = params["pri"], params["gen"]
    std, first, noise = jnp.exp(gen["noise"]), *(_covariance(pri[name]) for name in ("initial", "noise"))
    white, targets = gen["loadings"] / std[:, None], (y - gen["bias"]) / std
    precision, shifts = matmul(white.T, white), matmul(targets, white)
    chain = pri["mean"], first, pri["transition"], noise
    means, covariances = filtered(chain, precision, shifts)
    mean, covariance = predicted(chain, means[:-1], covariances[:-1])
    mean, covariance = jnp.concatenate([chain[0][None], mean]), jnp.concatenate([first[None], covariance])
    means, _, moved, root = update(mean, covariance, precision, shifts)
    log_det = jnp.sum(jnp.log(jnp.diagonal(root, axis1=1, axis2=2)))
    squares = jnp.sum((targets - matmul(means, white.T)) ** 2) + jnp.sum(moved**2)
    return log_det - 0.5 * squares - len(y) * jnp.sum(gen["noise"]) - 0.5 * y.size * jnp.log(2 * jnp.pi)


def update(mean, covariance, precision, shift):
    """(mean, covariance) after the evidence; the way the mean went in units of the prior; (I + L' J L)^-1/2."""
    left = cholesky(covariance)
    upper = cholesky((eye_like(left) + matmul(transposed(left), precision, left))[..., ::-1, ::-1])[..., ::-1, ::-1]
    root = inverse_of_lower(transposed(upper))
    moved = _times(matmul(root, transposed(root), transposed(left)), shift - _times(precision, mean))
    both = matmul(left, root)
    return mean + _times(left, moved), matmul(both, transposed(both)), moved, root


def predicted(chain, mean, covariance):
    _, _, transition, noise = chain
    return matmul(mean, transition.T), matmul(transition, covariance, transition.T) + noise


def in_steps(chain, precision, shifts):
    """Filtered means and covariances by a scan."""

    def step(before, shift):
        mean, covariance, *_ = update(before[0], before[1], precision, shift)
        return predicted(chain, mean, covariance), (mean, covariance)

    return jax.lax.scan(step, chain[:2], shifts)[1]


def in_parallel(chain, precision, shifts):
    """The same by an associative scan: Särkkä & García-Fernández 2021, lemmas 7 and 8."""
    mean, first, transition, noise = chain
    first_mean, first, *_ = update(mean, first, precision, shifts[0])
    _, spread, *_ = update(mean, noise, precision, shifts[0])
    gain = matmul(jnp.eye(len(mean)) - matmul(spread, precision), transition)
    seen = matmul(transition.T, precision, gain)
    start = jnp.arange(len(shifts)) == 0
    elements = (
        jnp.where(start[:, None, None], 0.0, gain),
        jnp.where(start[:, None], first_mean, matmul(shifts, spread)),
        jnp.where(start[:, None, None], first, spread),
        jnp.where(start[:, None], 0.0, matmul(shifts, gain)),
        jnp.where(start[:, None, None], 0.0, seen),
    )
    return jax.lax.associative_scan(joined, elements)[1:3]


def joined(earlier, later):
    a_1, b_1, c_1, eta_1, j_1 = earlier
    a_2, b_2, c_2, eta_2, j_2 = later
    between = jax.lax.map(jnp.linalg.inv, eye_like(c_1) + matmul(c_1, j_2))
    both, back = matmul(a_2, between), transposed(matmul(between, a_1))
    return (
        matmul(both, a_1),
        _times(both, b_1 + _times(c_1, eta_2)) + b_2,
        matmul(both, c_1, transposed(a_2)) + c_2,
        _times(back, eta_2 - _times(j_2, b_1)) + eta_1,
        matmul(back, j_2, a_1) + j_1,
    )


def _covariance(raw):
    factor = jnp.tril(raw, -1) + jnp.diag(jnp.exp(jnp.diag(raw)))
    return matmul(factor, factor.T)


def _times(matrix, vector):
    return matmul(matrix, vector[..., None])[..., 0]
