"""Products with a matrix, sums with a row, and sums over rows, for arrays of rows (..., k), also under `jax.vmap`.

The library writes networks for one example and vmaps them. jax then gives a product an axis of its own for the batch,
and for the gradient of the matrix XLA has to sum over two axes at once: on CPU it copies whole activations round first,
a third to a half of a convolution's time. Here the batch is one more axis of rows, and on CPU all of them are made one.
On a TPU they are left as they are: an image's rows lie there in an order of their own, and to join them moves them all
(a U-Net's step, 32-64-64 at batch 32 with its blocks written out, took 9.0 GB in place of 7.1 by XLA's count; libtpu
0.0.50.1).

A sum over rows is a product with ones on CPU: as a sum XLA computes it number by number once it has fused it with what
the rows are made of, at 3 to 15 ns a number on a core where a product takes 0.2 (jaxlib 0.10.2).
"""

import math
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
    return _product.bind(x, matrix)


def rows_plus_row(x: Array, row: Array) -> Array:
    """(..., k) and (k,) to (..., k): `x + row`."""
    return _plus.bind(x, row)


def sum_of_rows(x: Float[Array, "n *rows a"]) -> Float[Array, "n a"]:
    """The sum over all axes but the first and the last, added in float32 at least."""
    return _sum.bind(x, kept=1)


def for_each_row(x: Float[Array, "n a"], rows: tuple[int, ...]) -> Float[Array, "n *rows a"]:
    """The same in each row: the transpose of `sum_of_rows`."""
    return _spread.bind(x, rows=rows)


def _dot(x, matrix):
    return lax.dot_general(x, matrix, (((x.ndim - 1,), (0,)), ((), ())))


def _joined_dot(x, matrix):
    return _dot(x.reshape(-1, x.shape[-1]), matrix).reshape(*x.shape[:-1], matrix.shape[-1])


def _outer_dot(x, y):
    rows = tuple(range(x.ndim - 1))
    return lax.dot_general(x, y, ((rows, rows), ((), ())))


def _joined_outer_dot(x, y):
    return _outer_dot(*(each.reshape(-1, each.shape[-1]) for each in (x, y)))


def _add(x, row):
    return x + row.reshape((1,) * (x.ndim - 1) + row.shape)


def _added(x, *, kept):
    return jnp.sum(x, axis=tuple(range(kept, x.ndim - 1)))


def _times_ones(x, *, kept):
    wide, lead = jnp.promote_types(x.dtype, jnp.float32), x.shape[:kept]
    rows = x.reshape(math.prod(lead), -1, x.shape[-1])
    sums = jnp.matmul(jnp.ones((len(rows), 1, rows.shape[1]), x.dtype), rows, preferred_element_type=wide)
    return sums.reshape(*lead, x.shape[-1]).astype(x.dtype)


def _repeated(x, *, rows):
    return jnp.broadcast_to(
        x.reshape(*x.shape[:-1], *(1,) * len(rows), x.shape[-1]), (*x.shape[:-1], *rows, x.shape[-1])
    )


def _primitive(name: str, form: Callable[..., Array], shape: Callable[..., tuple], on_cpu: Any = None) -> Primitive:
    made = Primitive(name)
    made.def_impl(jax.jit(made.bind, static_argnames=("rows", "kept")))
    made.def_abstract_eval(lambda x, *rest, **options: x.update(shape=shape(x, *rest, **options)))
    mlir.register_lowering(made, mlir.lower_fun(form, multiple_results=False))
    if on_cpu is not None:
        mlir.register_lowering(made, mlir.lower_fun(on_cpu, multiple_results=False), platform="cpu")
    return made


_product = _primitive("rows_times_matrix", _dot, lambda x, matrix: (*x.shape[:-1], matrix.shape[1]), on_cpu=_joined_dot)
_outer = _primitive("rows_times_rows", _outer_dot, lambda x, y: (x.shape[-1], y.shape[-1]), on_cpu=_joined_outer_dot)
_plus = _primitive("rows_plus_row", _add, lambda x, row: x.shape)
_sum = _primitive("sum_of_rows", _added, lambda x, kept: (*x.shape[:kept], x.shape[-1]), on_cpu=_times_ones)
_spread = _primitive("for_each_row", _repeated, lambda x, rows: (*x.shape[:-1], *rows, x.shape[-1]))


def _more_rows(primitive: Primitive, form: Callable[..., Array]) -> Callable[..., Any]:
    """The batch is an axis of rows; where there is another right-hand side for each, `form` is mapped, which joins the
    rows of each by itself: here the platform is not known."""

    def batched(arguments, axes):
        if axes[0] is None or axes[1] is not None:
            return jax.vmap(form, axes)(*arguments), 0
        return primitive.bind(jnp.moveaxis(arguments[0], axes[0], 0), arguments[1]), 0

    return batched


def _plus_jvp(primals, tangents):
    (x, _), (d_x, d_row) = primals, tangents
    value = _plus.bind(*primals)
    if isinstance(d_row, ad.Zero):
        return value, d_x
    return value, _plus.bind(jnp.zeros_like(x) if isinstance(d_x, ad.Zero) else d_x, d_row)


def _plus_transpose(cotangent, x, row):
    of_row = _sum.bind(cotangent, kept=0) if ad.is_undefined_primal(row) else None
    return (cotangent if ad.is_undefined_primal(x) else None), of_row


def _sum_batched(arguments, axes, *, kept):
    return _sum.bind(jnp.moveaxis(arguments[0], axes[0], 0), kept=kept + 1), 0


def _spread_batched(arguments, axes, *, rows):
    return _spread.bind(jnp.moveaxis(arguments[0], axes[0], 0), rows=rows), 0


ad.defbilinear(
    _product,
    lambda cotangent, x, matrix: _product.bind(cotangent, matrix.T),
    lambda cotangent, x, matrix: _outer.bind(x, cotangent),
)
ad.defbilinear(
    _outer,
    lambda cotangent, x, y: _product.bind(y, cotangent.T),
    lambda cotangent, x, y: _product.bind(x, cotangent),
)
ad.primitive_jvps[_plus] = _plus_jvp
ad.primitive_transposes[_plus] = _plus_transpose
ad.deflinear2(_sum, lambda cotangent, x, kept: [_spread.bind(cotangent, rows=x.aval.shape[kept:-1])])
ad.deflinear2(_spread, lambda cotangent, x, rows: [_sum.bind(cotangent, kept=x.aval.ndim - 1)])
batching.primitive_batchers[_product] = _more_rows(_product, _joined_dot)
batching.primitive_batchers[_outer] = lambda arguments, axes: (jax.vmap(_joined_outer_dot, axes)(*arguments), 0)
batching.primitive_batchers[_plus] = _more_rows(_plus, _add)
batching.primitive_batchers[_sum] = _sum_batched
batching.primitive_batchers[_spread] = _spread_batched
