"""Regression from expected sufficient statistics, and Gaussians seen through noise, in forms that float32 survives.

The M-steps of factor analysis and of linear-Gaussian state-space models are regressions: of y on (z, 1), of z_t on
z_{t-1}.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from vae_jax.core.linalg import REFLECTED, cholesky, inverse_of_lower, matmul, transposed, triangularised


class Regression(NamedTuple):
    """Sums over examples that determine the regression of y on x, y of D and x of p numbers, about the current fit.

    With e = y - (the current fit of y), expected under the posterior:

    Fields:
        weight: (..., 1) the weight of the examples, or (..., D) where each entry of y is seen in other examples.
        gram: (..., 1 or D, p, p) sum of x x'.
        cross: (..., D, p) sum of e x'.
        square: (..., D, D) sum of e e', or (..., D) of e^2.
    """

    weight: Array
    gram: Array
    cross: Array
    square: Array

    def solution(self) -> Array:
        """(..., D, p): what to add to the coefficients; 0 where there are no examples."""
        some = seen(self.weight)
        weight = jnp.where(some, self.weight, 1.0)[..., None]
        eye = jnp.eye(self.gram.shape[-1], dtype=self.gram.dtype)
        gram = jnp.where(some[..., None, None], self.gram / weight[..., None], _like(eye, self.gram))
        root = root_of_inverse(gram)
        cross = jnp.where(some[..., None], self.cross / weight, 0.0)
        return matmul(matmul(root, jnp.swapaxes(root, -1, -2)), cross[..., None])[..., 0]

    def moved(self, change: Array) -> "Regression":
        """The same examples about a fit whose coefficients are larger by `change` (..., D, p)."""
        cross = self.cross - matmul(self.gram, change[..., None])[..., 0]
        if self.square.ndim < self.cross.ndim:
            square = self.square - jnp.sum(change * (self.cross + cross), axis=-1)
        else:
            square = self.square - matmul(change, transposed(self.cross)) - matmul(cross, transposed(change))
        return Regression(self.weight, self.gram, cross, square)


class Seen(NamedTuple):
    """eps = share (projected x + N(0, I)), for any x of p numbers.

    Fields:
        share: (..., q, q), share share' = the covariance of eps.
        projected: (..., q, p).
        log_scale: (...) ln |share^-1|.
        rest: (..., k + q, p), ln P(what is seen | x) = const - 1/2 |rest x|^2.
    """

    share: Array
    projected: Array
    log_scale: Array
    rest: Array


def seen_through(rows: Array, others: Array) -> Seen:
    """eps ~ N(0, I) of q numbers after rows eps = others x + N(0, I): rows (..., k, q), others (..., k, p).

    By QR, so that rows of 1e5 do not drown the prior's of 1, as they do in I + rows' rows (float32).
    """
    q, p = rows.shape[-1], others.shape[-1]
    carried = q if q <= REFLECTED else 0  # the inverse of R costs more columns, or LAPACK
    eye = jnp.broadcast_to(jnp.eye(q, dtype=rows.dtype), (*rows.shape[:-2], q, q))
    above = jnp.concatenate([rows, others, jnp.zeros_like(rows)[..., :carried]], axis=-1)
    below = jnp.concatenate([eye, jnp.zeros((*rows.shape[:-2], q, p), rows.dtype), eye[..., :carried]], axis=-1)
    upper, rest = triangularised(jnp.concatenate([above, below], axis=-2), q)
    root = upper[..., :q]
    inverse = upper[..., q + p :] if carried else inverse_of_lower(transposed(root))
    log_scale = jnp.sum(jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)), axis=-1)
    return Seen(transposed(inverse), upper[..., q : q + p], log_scale, rest[..., :p])


def root_of_inverse(matrix: Array) -> Array:
    """Lower triangular roots of the inverses of positive definite matrices (..., p, p): root root' = matrix^-1.

    Rows are scaled first and a few rounding errors added to the diagonal, so that float32 never gives NaN.
    """
    scale, unit = _scaled(matrix)
    upper = cholesky(unit[..., ::-1, ::-1])[..., ::-1, ::-1]  # unit = upper upper'
    return inverse_of_lower(transposed(upper)) / scale[..., :, None]


def _scaled(matrix: Array) -> tuple[Array, Array]:
    """(scale (..., p), unit): matrix = scale scale' * unit, where the diagonal of unit is a little more than 1."""
    diagonal = jnp.diagonal(matrix, axis1=-2, axis2=-1)
    scale = jnp.sqrt(jnp.maximum(diagonal, float(jnp.finfo(matrix.dtype).tiny)))
    slack = matrix.shape[-1] * float(jnp.finfo(matrix.dtype).eps)
    eye = _like(jnp.eye(matrix.shape[-1], dtype=matrix.dtype), matrix)
    return scale, matrix / (scale[..., :, None] * scale[..., None, :]) + slack * eye


def _like(x: Array, target: Array) -> Array:
    """x with axes of size 1 in front, as many as `target` has more."""
    return x.reshape((1,) * (target.ndim - x.ndim) + x.shape)


def seen(weight: Array) -> Array:
    """Whether a weight is more than nothing: sums of squares over less would underflow."""
    return weight > float(jnp.finfo(weight.dtype).tiny) * 1e12
