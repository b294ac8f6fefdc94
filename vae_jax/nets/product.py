"""Rows of a matrix: times a matrix, plus a row, and summed, as one product of two matrices also under `jax.vmap`.

The library writes networks for one example and vmaps them. jax then gives a product an axis of its own for the batch,
and for the gradient of the matrix XLA has to sum over two axes at once: on CPU it copies whole activations round first,
a third to a half of a convolution's time. Here the batch joins the rows instead, as it does in a network for batches.

A sum over rows is a product with ones on CPU: as a sum XLA computes it number by number once it has fused it with what
the rows are made of, at 3 to 15 ns a number on a core where a product takes 0.2 (jaxlib 0.10.2).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Float


def rows_times_matrix(x: Array, matrix: Array) -> Array:
    """(..., k) and (k, m) to (..., m): `x @ matrix`."""
    rows = x.reshape(-1, x.shape[-1])
    return _product.bind(rows, matrix).reshape(*x.shape[:-1], matrix.shape[-1])


def rows_plus_row(x: Array, row: Array) -> Array:
    """(..., k) and (k,) to (..., k): `x + row`."""
    return _plus.bind(x.reshape(-1, x.shape[-1]), row).reshape(x.shape)


def sum_of_rows(x: Float[Array, "n rows a"]) -> Float[Array, "n a"]:
    """`x.sum(axis=1)`, in float32 at least."""
    return _sum.bind(x)


def for_each_row(x: Float[Array, "n a"], rows: int) -> Float[Array, "n rows a"]:
    """The same in each row: the transpose of `sum_of_rows`."""
    return _spread.bind(x, rows=rows)


def _dot(rows, matrix):
    return lax.dot_general(rows, matrix, (((1,), (0,)), ((), ())))


def _add(rows, row):
    return rows + row[None]


def _added(x):
    return jnp.sum(x, axis=1)


def _times_ones(x):
    wide = jnp.promote_types(x.dtype, jnp.float32)
    sums = jnp.matmul(jnp.ones((x.shape[0], 1, x.shape[1]), x.dtype), x, preferred_element_type=wide)
    return sums[:, 0].astype(x.dtype)


def _repeated(x, *, rows):
    return jnp.broadcast_to(x[:, None], (x.shape[0], rows, x.shape[1]))


def _primitive(name: str, form: Callable[..., Array], shape: Callable[..., tuple], on_cpu: Any = None) -> Primitive:
    made = Primitive(name)
    made.def_impl(jax.jit(made.bind, static_argnames=("rows",)))
    made.def_abstract_eval(lambda x, *rest, **options: x.update(shape=shape(x, *rest, **options)))
    mlir.register_lowering(made, mlir.lower_fun(form, multiple_results=False))
    if on_cpu is not None:
        mlir.register_lowering(made, mlir.lower_fun(on_cpu, multiple_results=False), platform="cpu")
    return made


_product = _primitive("rows_times_matrix", _dot, lambda rows, matrix: (rows.shape[0], matrix.shape[1]))
_plus = _primitive("rows_plus_row", _add, lambda rows, row: rows.shape)
_sum = _primitive("sum_of_rows", _added, lambda x: (x.shape[0], x.shape[2]), _times_ones)
_spread = _primitive("for_each_row", _repeated, lambda x, rows: (x.shape[0], rows, x.shape[1]))


def _with_rows(primitive: Primitive, form: Callable[..., Array]) -> Callable[..., Any]:
    """The batch joins the rows; where there is another right-hand side for each, `form` is mapped."""

    def batched(arguments, axes):
        (rows, other), (rows_axis, other_axis) = arguments, axes
        if other_axis is not None:
            return jax.vmap(form, axes)(rows, other), 0
        rows = jnp.moveaxis(rows, rows_axis, 0)
        joined = primitive.bind(rows.reshape(-1, rows.shape[-1]), other)
        return joined.reshape(*rows.shape[:2], -1), 0

    return batched


def _joined(primitive: Primitive) -> Callable[..., Any]:
    """The batch joins the examples."""

    def batched(arguments, axes, **options):
        x = jnp.moveaxis(arguments[0], axes[0], 0)
        joined = primitive.bind(x.reshape(-1, *x.shape[2:]), **options)
        return joined.reshape(*x.shape[:2], *joined.shape[1:]), 0

    return batched


def _plus_jvp(primals, tangents):
    (rows, _), (d_rows, d_row) = primals, tangents
    value = _plus.bind(*primals)
    if isinstance(d_row, ad.Zero):
        return value, d_rows
    return value, _plus.bind(jnp.zeros_like(rows) if isinstance(d_rows, ad.Zero) else d_rows, d_row)


def _plus_transpose(cotangent, rows, row):
    of_row = _sum.bind(cotangent[None])[0] if ad.is_undefined_primal(row) else None
    return (cotangent if ad.is_undefined_primal(rows) else None), of_row


ad.defbilinear(
    _product,
    lambda cotangent, rows, matrix: _product.bind(cotangent, matrix.T),
    lambda cotangent, rows, matrix: lax.dot_general(rows, cotangent, (((0,), (0,)), ((), ()))),
)
ad.primitive_jvps[_plus] = _plus_jvp
ad.primitive_transposes[_plus] = _plus_transpose
ad.deflinear2(_sum, lambda cotangent, x: [_spread.bind(cotangent, rows=x.aval.shape[1])])
ad.deflinear2(_spread, lambda cotangent, x, rows: [_sum.bind(cotangent)])
batching.primitive_batchers[_product] = _with_rows(_product, _dot)
batching.primitive_batchers[_plus] = _with_rows(_plus, _add)
batching.primitive_batchers[_sum] = _joined(_sum)
batching.primitive_batchers[_spread] = _joined(_spread)
