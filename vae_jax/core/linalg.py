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

REFLECTED = 8  # up to so many columns matrices side by side are faster than LAPACK, which takes them one by one


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


def residual(y: Array, offset: Array, matrix: Array, x: Array) -> Array:
    """y - offset - matrix x with the digits that are left, for y (n, d), offset (d,), matrix (d, q) and x (n, q).

    Products of the leading digits are exact, and so are their sums (Ozaki, Ogita, Oishi & Rump 2012): what is lost is
    about 1e-3 rounding errors of y, where plain arithmetic loses one.
    """
    digits = (jnp.finfo(y.dtype).nmant + 1 - (x.shape[1] - 1).bit_length()) // 2
    high, high_x = _leading(matrix, digits), _leading(x, digits)
    low = matmul(x - high_x, high.T) + matmul(x, (matrix - high).T)
    offset = jnp.broadcast_to(offset, y.shape)
    centred = y - offset
    there = centred - y
    rounded = (y - (centred - there)) - (offset + there)
    return ((centred - matmul(high_x, high.T)) + rounded) - low


def _leading(x: Array, digits: int) -> Array:
    """x rounded to so many binary digits of the largest entry of its row. A constant to derivatives."""
    x = jax.lax.stop_gradient(x)
    _, exponent = jnp.frexp(jnp.max(jnp.abs(x), axis=1, keepdims=True))
    return jnp.ldexp(jnp.round(jnp.ldexp(x, digits - exponent)), exponent - digits)


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
def root_of_square(matrix: Array) -> Array:
    """The lower triangular root of M M', for matrices M (..., d, n) of rank d: its diagonal is positive.

    By QR of M', so that M M' is never formed: in float32 that would lose what is 1e-4 of the largest entry.
    """
    d = matrix.shape[-2]
    if d <= REFLECTED:
        return transposed(triangularised(transposed(matrix), d)[0])
    return lower_of_qr(matrix)


@root_of_square.defjvp
def _root_of_square_jvp(primals, tangents):
    """As that of the Cholesky factor of M M', with L^-1 M = Q'."""
    factor = root_of_square(*primals)
    inverse = inverse_of_lower(factor)
    half = matmul(inverse, tangents[0], transposed(matmul(inverse, primals[0])))
    inner = half + transposed(half)
    return factor, matmul(factor, jnp.tril(inner) - 0.5 * inner * eye_like(inner))


def triangularised(matrix: Array, columns: int) -> tuple[Array, Array]:
    """(upper, rest) of Q' matrix, for matrices (..., m, n): what is left below once the first `columns` are eliminated.

    upper: (..., columns, n) upper trapezoidal, its diagonal not negative; a column of zeros gives a row of zeros.
    rest: (..., m, n - columns), 0 in the rows that went into `upper`.

    A column is reflected to its largest entry, so that small rows keep their digits beside large ones, which LAPACK's
    lose (Cox & Higham 1998, Stability of Householder QR factorization for weighted least squares problems). Matrices
    go side by side, and derivatives are those of the arithmetic.
    """
    n = matrix.shape[-1]
    single = functools.partial(_triangularised, columns=columns)
    return jnp.vectorize(single, signature=f"(m,n)->({columns},n),(m,{n - columns})")(matrix)


def _triangularised(matrix: Array, columns: int) -> tuple[Array, Array]:
    row = jnp.arange(len(matrix))

    def reflect(j, state):
        matrix, place = state
        x = jnp.where(place == columns, jax.lax.dynamic_index_in_dim(matrix, j, axis=1, keepdims=False), 0.0)
        square, size = jnp.sum(x**2), jnp.abs(jax.lax.stop_gradient(x))
        norm = jnp.sqrt(jnp.where(square > 0, square, 1.0))
        largest = jnp.min(jnp.where(size == jnp.max(size), row, len(row)))  # argmax, which XLA is slow at
        pivot = (row == largest) & (square > 0)
        top = jnp.sum(jnp.where(pivot, x, 0.0))
        mirror = x + jnp.where(pivot, jnp.where(top < 0, -norm, norm), 0.0)
        along = jnp.sum(mirror[:, None] * matrix, axis=0) / (norm * (norm + jnp.abs(top)))
        return matrix - mirror[:, None] * along[None], jnp.where(pivot, j, place)

    matrix, place = jax.lax.fori_loop(0, columns, reflect, (matrix, jnp.full(len(row), columns)))
    upper = jnp.triu(matmul((place[None] == jnp.arange(columns)[:, None]).astype(matrix.dtype), matrix))
    upper = upper * jnp.where(jnp.diagonal(upper) < 0, -1.0, 1.0)[:, None]
    return upper, jnp.where((place == columns)[:, None], matrix[:, columns:], 0.0)


@_one_by_one
def eigh(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues, rising, and eigenvectors of symmetric matrices. Without derivatives."""
    return tuple(jnp.linalg.eigh(matrix))


def lower_of_qr(matrix: Array) -> Array:
    """R' of the QR decomposition of M', its diagonal not negative: `root_of_square` by LAPACK, without derivatives."""
    upper = upper_of_qr(transposed(matrix))
    return transposed(upper * jnp.where(jnp.diagonal(upper, axis1=-2, axis2=-1) < 0, -1.0, 1.0)[..., :, None])


@_one_by_one
def upper_of_qr(matrix: Array) -> Array:
    """R of the QR decomposition. Without derivatives."""
    return jnp.linalg.qr(matrix, mode="r")
