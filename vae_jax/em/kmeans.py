"""k-means: where EM starts. It is hard EM itself, for a mixture of equal spherical Gaussians of vanishing variance."""

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.linalg import matmul


def k_means(key: Array, rows: Array, k: int, *, iterations: int = 10) -> Array:
    """Centres (k, d) of rows (n, d): a k-means++ start and some steps of Lloyd's algorithm.

    A centre without rows stays where it is.
    """
    return lloyd(rows, plus_plus(key, rows, k), iterations=iterations)


def plus_plus(key: Array, rows: Array, k: int) -> Array:
    """k-means++ (Arthur & Vassilvitskii 2007): rows, drawn in proportion to their squared distance from those drawn.

    Where all distances are 0 (fewer than k different rows) the draw is uniform.
    """
    k_first, k_rest = jax.random.split(key)
    first = rows[jax.random.randint(k_first, (), 0, len(rows))]

    def add(nearest, key):
        logits = jnp.where(nearest.max() > 0, jnp.log(nearest), 0.0)
        chosen = rows[jax.random.categorical(key, logits)]
        return jnp.minimum(nearest, _squared(rows, chosen)), chosen

    _, others = jax.lax.scan(add, _squared(rows, first), jax.random.split(k_rest, k)[1:])
    return jnp.concatenate([first[None], others])


def lloyd(rows: Array, centres: Array, *, iterations: int) -> Array:
    """Centres after that many steps: each row to its nearest centre, each centre to the mean of its rows."""

    def step(centres, _):
        member = jax.nn.one_hot(assign(rows, centres), len(centres), dtype=rows.dtype)
        count = member.sum(axis=0)[:, None]
        means = matmul(member.T, rows) / jnp.maximum(count, 1.0)
        return jnp.where(count > 0, means, centres), None

    return jax.lax.scan(step, centres, None, length=iterations)[0]


def assign(rows: Array, centres: Array) -> Array:
    """Index (n,) of the centre (k, d) nearest to each row (n, d)."""
    middle = centres.mean(axis=0)  # distances between points near 0 lose fewer digits
    rows, centres = rows - middle[None], centres - middle[None]
    products = matmul(rows, centres.T)
    return jnp.argmin(jnp.sum(centres**2, axis=1)[None] - 2 * products, axis=1)


def _squared(rows: Array, centre: Array) -> Array:
    return jnp.sum((rows - centre[None]) ** 2, axis=1)
