"""Rows times a matrix, as one product of two matrices also under `jax.vmap`.

The library writes networks for one example and vmaps them. jax then gives a product an axis of its own for the batch,
and for the gradient of the matrix XLA has to sum over two axes at once: on CPU it copies whole activations round first,
a third to a half of a convolution's time. Here the batch joins the rows instead, as it does in a network for batches.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def rows_times_matrix(x: Array, matrix: Array) -> Array:
    """(..., k) and (k, m) to (..., m): `x @ matrix`."""
    rows = x.reshape(-1, x.shape[-1])
    return _product.bind(rows, matrix).reshape(*x.shape[:-1], matrix.shape[-1])


def dot_general(
    lhs: Array, rhs: Array, dimension_numbers: Any, precision: Any = None, preferred_element_type: Any = None
) -> Array:
    """`rows_times_matrix` in the form that flax's `Dense(dot_general=...)` takes."""
    del precision, preferred_element_type
    assert dimension_numbers == (((lhs.ndim - 1,), (0,)), ((), ()))
    return rows_times_matrix(lhs, rhs)


def _dot(rows, matrix):
    return lax.dot_general(rows, matrix, (((1,), (0,)), ((), ())))


def _batched(arguments, axes):
    (rows, matrix), (rows_axis, matrix_axis) = arguments, axes
    if matrix_axis is not None:
        return jax.vmap(_dot, axes)(rows, matrix), 0
    rows = jnp.moveaxis(rows, rows_axis, 0)
    joined = _product.bind(rows.reshape(-1, rows.shape[-1]), matrix)
    return joined.reshape(*rows.shape[:2], matrix.shape[1]), 0


_product = Primitive("rows_times_matrix")
_product.def_impl(jax.jit(_dot))
_product.def_abstract_eval(lambda rows, matrix: rows.update(shape=(rows.shape[0], matrix.shape[1])))
mlir.register_lowering(_product, mlir.lower_fun(_dot, multiple_results=False))
ad.defbilinear(
    _product,
    lambda cotangent, rows, matrix: _product.bind(cotangent, matrix.T),
    lambda cotangent, rows, matrix: lax.dot_general(rows, cotangent, (((0,), (0,)), ((), ()))),
)
batching.primitive_batchers[_product] = _batched
