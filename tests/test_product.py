"""Products and sums of rows are those of jax.numpy, with derivatives, under every transformation; what XLA is given."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vae_jax.nets.product import for_each_row, rows_plus_row, rows_times_matrix, sum_of_rows

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5, 3)))
MATRIX = jnp.asarray(np.random.default_rng(1).normal(size=(3, 2)))
MATRICES = jnp.asarray(np.random.default_rng(2).normal(size=(4, 3, 2)))


def curved(product):
    return lambda x, matrix: jnp.sum(jnp.sin(product(x, matrix)))


def mapped(product, axes):
    return lambda x, matrix: jnp.sum(jnp.sin(jax.vmap(product, axes)(x, matrix)))


@pytest.mark.parametrize(
    "use",
    [
        lambda product: product(X, MATRIX),
        lambda product: product(X[0, 0], MATRIX),
        lambda product: jax.vmap(product, (0, None))(X, MATRIX),
        lambda product: jax.vmap(product, (1, None))(X, MATRIX),
        lambda product: jax.vmap(product, (None, 0))(X[0], MATRICES),
        lambda product: jax.vmap(product)(X, MATRICES),
        lambda product: jax.vmap(jax.vmap(product, (0, None)), (1, None), 2)(X, MATRIX),
        lambda product: jax.grad(curved(product), (0, 1))(X, MATRIX),
        lambda product: jax.grad(mapped(product, (0, None)), (0, 1))(X, MATRIX),
        lambda product: jax.grad(mapped(product, (None, 0)), (0, 1))(X[0], MATRICES),
        lambda product: jax.vmap(jax.grad(curved(product), (0, 1)), (0, None))(X, MATRIX),
        lambda product: jax.jvp(product, (X, MATRIX), (jnp.cos(X), jnp.cos(MATRIX))),
        lambda product: jax.hessian(curved(product), 1)(X, MATRIX),
        lambda product: jax.linear_transpose(lambda x: product(x, MATRIX), X)(jnp.ones((4, 5, 2)))[0],
    ],
)
def test_it_is_the_product(use):
    got, want = (jax.jit(lambda p=product: use(p))() for product in (rows_times_matrix, jnp.matmul))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


def added(x, row):
    return x + row.reshape((1,) * (x.ndim - 1) + (-1,))


ROW, ROWS = MATRIX[:, 0], MATRICES[:, :, 0]


@pytest.mark.parametrize(
    "use",
    [
        lambda plus: plus(X, ROW),
        lambda plus: jax.vmap(plus, (1, None))(X, ROW),
        lambda plus: jax.vmap(plus, (None, 0))(X[0], ROWS),
        lambda plus: jax.grad(curved(plus), (0, 1))(X, ROW),
        lambda plus: jax.grad(mapped(plus, (0, None)), (0, 1))(X, ROW),
        lambda plus: jax.grad(mapped(plus, (0, 0)), (0, 1))(X, ROWS),
        lambda plus: jax.vmap(jax.grad(curved(plus), 1), (0, None))(X, ROW),
        lambda plus: jax.jvp(plus, (X, ROW), (jnp.cos(X), jnp.cos(ROW))),
        lambda plus: jax.jvp(lambda row: plus(X, row), (ROW,), (jnp.cos(ROW),)),
        lambda plus: jax.hessian(curved(plus), 1)(X, ROW),
    ],
)
def test_a_row_is_added(use):
    got, want = (jax.jit(lambda p=plus: use(p))() for plus in (rows_plus_row, added))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


@pytest.mark.parametrize(
    "use",
    [
        lambda total, spread: total(X),
        lambda total, spread: jax.vmap(total, 1)(X[None]),
        lambda total, spread: jax.vmap(spread, 1)(X),
        lambda total, spread: jax.grad(lambda x: jnp.sum(jnp.sin(total(x**2))))(X),
        lambda total, spread: jax.grad(lambda x: jnp.sum(X * jnp.sin(spread(x))))(X[:, 0]),
        lambda total, spread: jax.hessian(lambda x: jnp.sum(jnp.sin(total(jnp.sin(spread(x))))))(X[:, 0]),
        lambda total, spread: jax.jvp(total, (X,), (jnp.cos(X),)),
        lambda total, spread: jax.vmap(jax.grad(lambda x: jnp.sum(jnp.sin(total(x**2)))))(X[:, None]),
    ],
)
def test_sums_of_rows(use):
    """Of X, (4, 5, 3)."""
    own = sum_of_rows, lambda x: for_each_row(x, (5,))
    plain = lambda x: x.sum(axis=1), lambda x: jnp.repeat(x[:, None], 5, axis=1)
    got, want = (jax.jit(lambda f=forms: use(*f))() for forms in (own, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)


def test_sums_in_sixteen_bits_are_added_in_more():
    """4,096 ones: bfloat16 has none of the whole numbers from 257 to 259."""
    ones = jnp.ones((1, 4096, 1), jnp.bfloat16)
    assert float(jax.jit(sum_of_rows)(ones)[0, 0]) == 4096


def test_two_devices_agree_with_one():
    mesh = Mesh(jax.devices()[:2], ("batch",))
    split = jax.device_put(X, NamedSharding(mesh, PartitionSpec("batch")))
    of = jax.jit(jax.grad(mapped(rows_times_matrix, (0, None)), (0, 1)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), of(split, MATRIX), of(X, MATRIX))


def test_the_batch_joins_the_rows():
    """The gradient of the matrix of a batch sums over one axis, where `@` has it sum over two."""

    def summed_axes(product):
        lowered = jax.jit(jax.grad(mapped(product, (0, None)), 1)).lower(X, MATRIX).as_text()
        return [len(axes.split(",")) for axes in re.findall(r"contracting_dims = \[([\d, ]*)\] x", lowered)]

    assert max(summed_axes(rows_times_matrix)) == 1
    assert max(summed_axes(jnp.matmul)) == 2
