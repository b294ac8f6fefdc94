"""What a machine can do at most, and the least that a piece of work asks of it.

The ceiling is measured: the best product of matrices, and the best copy of memory, in float32. The work is counted: the
products that the program contains, and the numbers that it has to read and write once. What takes the longer of the two
at the ceiling is the least time that there is; the share that a contestant reaches is that time over its own.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vae_jax import Model
from vae_jax.core.compiling import inner_jaxprs

SIDES = (512, 1024, 2048)  # of the matrices
COPIED, TIMES = 2**24, 8  # numbers, 64 MiB, and how often


class Work(NamedTuple):
    """What any program has to do: floating-point operations of its products, and bytes read and written once."""

    flops: float
    bytes: float

    def per(self, units: float) -> "Work":
        return Work(self.flops / units, self.bytes / units)

    def share(self, speed: float, ceiling: "Work") -> float:
        """Of the ceiling (both a second), by so many units of this work a second."""
        return speed * max(self.flops / ceiling.flops, self.bytes / ceiling.bytes)

    def better(self, other: "Work") -> "Work":
        return Work(max(self.flops, other.flops), max(self.bytes, other.bytes))


def probes() -> dict[str, tuple[Callable[[], Any], Work]]:
    """What is run once in each round to know the ceiling of that round, and the work of it."""
    found = {}
    for side in SIDES:
        square = jnp.ones((side, side))
        times = max(1, 2 * (SIDES[-1] // side) ** 2)
        found[f"product {side}"] = _product(square, times), Work(2 * side**3 * times, 0)
    found["copy"] = _copies(jnp.ones(COPIED)), Work(0, 2 * 4 * COPIED * TIMES)
    return found


def _product(square: jax.Array, times: int) -> Callable[[], Any]:
    run = jax.jit(lambda x: jax.lax.fori_loop(0, times, lambda _, y: (y @ x) * (1 / len(x)), x))
    return lambda: jax.block_until_ready(run(square))


def _copies(row: jax.Array) -> Callable[[], Any]:
    run = jax.jit(lambda x: jax.lax.fori_loop(0, TIMES, lambda _, y: y * 1.0001, x), donate_argnums=0)
    box = [row]

    def call() -> None:
        box[0] = jax.block_until_ready(run(box[0]))

    return call


def work_of(function: Callable[..., Any], *args: Any) -> Work:
    """The products of a function, its arguments read once, and its results written once."""
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    moved = sum(math.prod(v.aval.shape) * v.aval.dtype.itemsize for v in (*jaxpr.invars, *jaxpr.outvars))
    return Work(_products(jaxpr), moved)


def work_of_training(loss: Callable[..., Any], params: Any, *batch: Any) -> Work:
    """One step of Adam: the loss and its gradient; parameters and two moments read and written, the batch read."""
    flops = work_of(jax.value_and_grad(loss), params, *batch).flops
    state, read = (sum(x.nbytes for x in jax.tree.leaves(tree)) for tree in (params, batch))
    return Work(flops, 2 * 3 * state + read)


def work_of_model(model: Model, ys: jax.Array) -> Work:
    """One step of Adam on a batch, by the bound of a model without conditions."""
    params = jax.jit(model.init)(jax.random.key(0), ys[0], None)

    def loss(params, ys):
        return jnp.mean(jax.vmap(lambda y: model.terms(params, jax.random.key(0), y, None).nats)(ys))

    return work_of_training(loss, params, ys)


def _products(jaxpr: Any) -> float:
    """Two operations for each number that enters a sum; a loop's body as often as it runs, the larger of branches."""
    total = 0.0
    for equation in jaxpr.eqns:
        name, options = equation.primitive.name, equation.params
        shapes: list[Any] = [getattr(v.aval, "shape", ()) for v in equation.invars]
        if name == "dot_general":
            (contracted, _), _ = options["dimension_numbers"]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shapes[0][i] for i in contracted)
        elif name == "rows_times_matrix":  # vae_jax.nets.product
            total += 2 * math.prod(shapes[0]) * shapes[1][1]
        elif name == "rows_times_rows":  # the gradient of its matrix
            total += 2 * math.prod(shapes[0]) * shapes[1][-1]
        elif name in ("conv", "conv_to_input", "conv_to_kernel"):  # vae_jax.nets.conv: (x, k), (y, k) and (x, y)
            out = equation.outvars[0].aval.shape
            grid, kernel = {"conv": (out, shapes[1]), "conv_to_input": shapes}.get(name, (shapes[1], out))
            total += 2 * math.prod(grid[:4]) * math.prod(kernel[1:])
        elif name == "conv_general_dilated":
            outputs = shapes[1][options["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shapes[1]) / outputs
        elif name == "cond":
            total += max(_products(branch) for branch in inner_jaxprs(options))
        else:
            total += sum(map(_products, inner_jaxprs(options))) * options.get("length", 1)
    return total
