"""`make bench`: the code that it runs in processes of their own, which no type checker sees, and what it counts."""

import jax
import jax.numpy as jnp
import pytest

from experiments.bench import start
from experiments.bench.ceiling import Work, work_of, work_of_training
from experiments.bench.image_vaes import BATCH, fully_connected_model, work
from vae_jax.nets.conv import conv as conv_of
from vae_jax.nets.product import rows_times_matrix


def test_the_first_step_is_timed():
    code = start.FIRST_STEP.format(model=next(iter(start.MODELS.values())))
    ((seconds, mebibytes),) = start.printed(code, 1)
    assert 0.1 < seconds < 120 and 100 < mebibytes < 10_000


def test_work_is_counted():
    a, b = jnp.ones((3, 5)), jnp.ones((5, 7))
    assert work_of(jnp.matmul, a, b) == Work(2 * 3 * 5 * 7, 4 * (15 + 35 + 21))
    assert work_of(jax.vmap(rows_times_matrix, (0, None)), jnp.ones((2, 3, 5)), b).flops == 2 * 2 * 3 * 5 * 7
    looped = lambda x: jax.lax.scan(lambda x, _: (x @ x, None), x, None, length=4)[0]  # noqa: E731
    assert work_of(looped, jnp.ones((6, 6))).flops == 4 * 2 * 6**3
    assert work_of(jax.checkpoint(looped), jnp.ones((6, 6))).flops == 4 * 2 * 6**3
    images, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 4))
    conv = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
        x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    assert work_of(conv, images, kernel).flops == 2 * (2 * 4 * 4 * 4) * 3 * 3 * 3
    own = lambda x, k: jnp.sum(conv_of(x, k, stride=2) ** 2)  # noqa: E731
    assert work_of(own, images, kernel).flops == 2 * (2 * 4 * 4 * 4) * 3 * 3 * 3
    assert work_of(jax.grad(own, (0, 1)), images, kernel).flops == 3 * 2 * (2 * 4 * 4 * 4) * 3 * 3 * 3
    branches = lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x, lambda x: x, x)  # noqa: E731
    assert work_of(branches, jnp.ones((6, 6))).flops == 2 * 6**3


def test_work_of_training():
    layers = 784 * 500 + 500 * 40 + 20 * 500 + 500 * 784
    found = work(fully_connected_model())
    assert found.flops == 6 * layers - 2 * 784 * 500  # the images have no gradient
    parameters = layers + 500 + 40 + 500 + 784
    assert found.bytes == 4 * (6 * parameters / BATCH + 784)
    doubled = work_of_training(lambda p, x: jnp.sum(x @ p), jnp.ones((4, 4)), jnp.ones((2, 4)))
    assert doubled.flops == 2 * 2 * 2 * 4 * 4


def test_the_share_is_of_the_scarcer():
    assert Work(4.0, 1.0).share(10, Work(100, 100)) == pytest.approx(0.4)
    assert Work(1.0, 4.0).share(10, Work(100, 50)) == pytest.approx(0.8)
