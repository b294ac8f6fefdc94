"""Small matrices: products at full precision; factorisations, one LAPACK call per matrix on CPU.

jaxlib's batched LAPACK calls wait for the thread pool that runs them: on a machine with two cores, two of them that do
not depend on each other can wait for ever (jax 0.10.2: a Cholesky factorisation beside an eigenvalue problem, of 50
matrices of 50 x 50, within the first hundred calls). Calls for single matrices do not wait. Elsewhere than on CPU these
are jax's batched functions; where those no longer wait on the oldest jax that is supported, `_one_by_one` can go.

Matrices are the last two axes; `lower` means that what is above the diagonal is not read.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def _one_by_one(function: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """A function of one matrix that goes through a batch of them in turn, on CPU."""
    single = jax.custom_batching.custom_vmap(function)

    @single.def_vmap
    def batched(axis_size, in_batched, matrices):
        del axis_size, in_batched
        result = jax.lax.platform_dependent(
            matrices, cpu=lambda m: jax.lax.map(single, m), default=lambda m: jax.vmap(function)(m)
        )
        return result, jax.tree.map(lambda _: True, result)

    @functools.wraps(function)
    def over_leading_axes(matrices):
        apply: Callable[[Array], Any] = single
        for _ in range(jnp.ndim(matrices) - 2):
            apply = jax.vmap(apply)
        return apply(matrices)

    return over_leading_axes


def matmul(*factors: Array) -> Array:
    """The product of matrices at full precision: accelerators round the inputs of a product by default."""
    return functools.reduce(functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST), factors)


def transposed(x: Array) -> Array:
    """The last two axes exchanged."""
    return jnp.swapaxes(x, -1, -2)


def eye_like(matrices: Array) -> Array:
    """The identity in the shape of matrices (..., d, d)."""
    return jnp.broadcast_to(jnp.eye(matrices.shape[-1], dtype=matrices.dtype), matrices.shape)


@jax.custom_jvp
@_one_by_one
def cholesky(matrix: Array) -> Array:
    """The lower Cholesky factor of symmetric matrices; NaN where one is not positive definite."""
    return jnp.linalg.cholesky(matrix)


@cholesky.defjvp
def _cholesky_jvp(primals, tangents):
    """dL = L Phi(L^-1 dA L^-T), Phi: the lower triangle with half the diagonal."""
    factor = cholesky(*primals)
    inverse = inverse_of_lower(factor)
    change = 0.5 * (tangents[0] + transposed(tangents[0]))
    inner = matmul(inverse, change, transposed(inverse))
    half = jnp.tril(inner) - 0.5 * inner * eye_like(inner)
    return factor, matmul(factor, half)


@jax.custom_jvp
@_one_by_one
def inverse_of_lower(factor: Array) -> Array:
    """The inverse of lower triangular matrices."""
    return jax.scipy.linalg.solve_triangular(factor, jnp.eye(len(factor), dtype=factor.dtype), lower=True)


@inverse_of_lower.defjvp
def _inverse_of_lower_jvp(primals, tangents):
    inverse = inverse_of_lower(*primals)
    return inverse, -matmul(inverse, jnp.tril(tangents[0]), inverse)


@jax.custom_jvp
@_one_by_one
def inverse(matrix: Array) -> Array:
    """The inverse of square matrices."""
    return jnp.linalg.inv(matrix)


@inverse.defjvp
def _inverse_jvp(primals, tangents):
    result = inverse(*primals)
    return result, -matmul(result, tangents[0], result)


@_one_by_one
def eigh(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues, rising, and eigenvectors of symmetric matrices. Without derivatives."""
    return tuple(jnp.linalg.eigh(matrix))


@_one_by_one
def upper_of_qr(matrix: Array) -> Array:
    """R of the QR decomposition. Without derivatives."""
    return jnp.linalg.qr(matrix, mode="r")
