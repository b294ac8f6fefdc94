"""`rows_times_matrix` is `@`, with its derivatives, under every transformation; and what XLA is given for it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vae_jax.nets.product import rows_times_matrix

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
