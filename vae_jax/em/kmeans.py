"""k-means: where EM starts. It is hard EM itself, for a mixture of equal spherical Gaussians of vanishing variance."""

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.core.linalg import matmul
from vae_jax.core.model import Scatter

IN_CACHE = 2**20  # distances that are computed at once on CPU
FEWEST = 1e-12  # rows: fewer are none


def k_means(key: Array, rows: Array, k: int, *, iterations: int = 10) -> Array:
    """Centres (k, d) of rows (n, d): a k-means++ start (Arthur & Vassilvitskii 2007), some steps of Lloyd's algorithm.

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
        index = assign(rows, centres)
        counts = Scatter(index, jnp.ones_like(rows[:, 0]), len(centres)).dense()
        return recentred(centres, counts, Scatter(index, rows, len(centres)).dense()), None

    return jax.lax.scan(step, centres, None, length=iterations)[0]


def recentred(centres: Array, counts: Array, totals: Array) -> Array:
    """Each centre (k, d) at the mean of its rows, totals (k, d) / counts (k,); one without rows stays where it is.

    Sums and counts may be averages over examples, and running averages: only their ratio matters.
    """
    some = (counts > FEWEST)[:, None]
    return jnp.where(some, totals / jnp.where(some, counts[:, None], 1.0), centres)


def assign(rows: Array, centres: Array) -> Array:
    """Index (n,) of the centre (k, d) nearest to each row (n, d); of several, the first.

    For one example under `jax.vmap` the rows of all examples are looked up together.
    """
    return _assign(rows, centres)


@jax.custom_batching.custom_vmap
@jax.jit  # outside of one, platform_dependent would compile anew at every call
def _assign(rows, centres):
    middle = centres.mean(axis=0)  # distances between points near 0 lose fewer digits
    return jax.lax.platform_dependent(
        rows - middle[None], centres - middle[None], cpu=_nearest_in_blocks, default=_nearest
    )


@_assign.def_vmap
def _assign_batch(axis_size, in_batched, rows, centres):
    del axis_size
    if in_batched[1]:
        axes = [0 if batched else None for batched in in_batched]
        return jax.vmap(_assign.fun, axes)(rows, centres), True
    batch, n, _ = rows.shape
    return _assign(rows.reshape(batch * n, -1), centres).reshape(batch, n), True


def _nearest(rows: Array, centres: Array) -> Array:
    return jnp.argmin(_squares(centres)[None] - 2 * matmul(rows, centres.T), axis=1)


def _nearest_in_blocks(rows: Array, centres: Array) -> Array:
    """`_nearest`, with distances that stay in the cache, and without XLA's argmin, which is slow on CPU."""
    n, k = rows.shape[0], len(centres)
    if not isinstance(n, int):  # in a program for any number of rows, which jax.export makes
        return _nearest(rows, centres)
    blocks = -(-n // max(1, IN_CACHE // k))
    size = -(-n // blocks)
    which = jnp.arange(k)[:, None]

    def nearest(block):
        distances = _squares(centres)[:, None] - 2 * matmul(centres, block.T)
        first = jnp.where(distances == distances.min(axis=0)[None], which, k - 1)  # k - 1: of rows that are not finite
        return first.min(axis=0)

    cut = jnp.pad(rows, ((0, blocks * size - n), (0, 0))).reshape(blocks, size, -1)
    return jax.lax.map(nearest, cut).reshape(-1)[:n]


def _squares(rows: Array) -> Array:
    return jnp.sum(rows**2, axis=1)


def _squared(rows: Array, centre: Array) -> Array:
    return jnp.sum((rows - centre[None]) ** 2, axis=1)
