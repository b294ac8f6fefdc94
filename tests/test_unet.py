"""The U-Net: its parts against their formulas, its two forms of convolution, and what it must not depend on."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax.test_util import check_grads

from vae_jax.core import as_network
from vae_jax.nets import UNet
from vae_jax.nets import conv as conv_forms
from vae_jax.nets.attention import Attention, attend
from vae_jax.nets.residual import GroupNorm, group_norm, groups
from vae_jax.nets.unet import folded, unfolded, waves

SMALL = UNet((8, 12), out=3, heads=2)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def some_inputs(n=3, size=(8, 4)):
    return normal(0, n, *size, 2), 5 * normal(1, n), np.eye(n, 4, dtype=np.float32)


@functools.cache
def some_params():
    """Parameters of SMALL's shapes, none of them zero."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(SMALL.init, jax.random.key(0), *some_inputs()))
    return tree.unflatten([0.3 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])


@functools.cache
def values(net=SMALL):
    """Output and gradient of a weighted sum, as a compiled function (params, *inputs)."""

    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(params, z, gamma, *conditions):
        y = net.apply(params, z, gamma, *conditions)
        return jnp.mean(normal(2, *y.shape) * y), y

    return jax.jit(run)


def assert_close(actual, expected, **tolerances):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerances), actual, expected)


# --- the parts


def test_waves_are_their_formula():
    gamma = np.linspace(-15, 15, 7, dtype=np.float32)
    w = 2.0 ** np.linspace(-5, 3, 5)
    expected = np.concatenate([np.sin(np.outer(gamma, w)), np.cos(np.outer(gamma, w))], axis=1)
    np.testing.assert_allclose(waves(gamma, 10), expected, atol=1e-4)


def test_attention_is_its_formula():
    q, k, v = (2 * normal(i, 2, 5, 3, 4) for i in range(3))
    got = jax.jit(attend)(q, k, v)
    for n in range(2):
        for head in range(3):
            weights = scipy.special.softmax(q[n, :, head] @ k[n, :, head].T / math.sqrt(4), axis=1)
            np.testing.assert_allclose(got[n, :, head], weights @ v[n, :, head], atol=1e-5)


def test_attention_follows_its_pixels():
    """f(permuted pixels) = permuted f(pixels), and x alone at the start."""
    x, order = jnp.asarray(normal(0, 1, 2, 3, 4)), np.random.default_rng(1).permutation(6)
    net = Attention(2)
    params, apply = jax.jit(net.init)(jax.random.key(0), x), jax.jit(net.apply)
    np.testing.assert_array_equal(apply(params, x), x)
    params = jax.tree.map(lambda leaf: np.asarray(leaf) + normal(3, *leaf.shape), params)
    moved = np.asarray(x).reshape(1, 6, 4)[:, order].reshape(x.shape)
    expected = np.asarray(apply(params, x)).reshape(1, 6, 4)[:, order]
    np.testing.assert_allclose(np.reshape(apply(params, moved), (1, 6, 4)), expected, atol=1e-4)


@pytest.mark.parametrize("centre", [0.0, 300.0])
def test_group_norm_is_its_formula(centre, x64):
    x, scale, shift = normal(0, 2, 3, 4, 8) + centre, normal(1, 2, 8), normal(2, 2, 8)
    rows = x.astype(np.float64).reshape(2, 12, groups(8), 4)
    expected = (rows - rows.mean((1, 3), keepdims=True)) / np.sqrt(rows.var((1, 3), keepdims=True) + 1e-6)
    expected = expected.reshape(x.shape) * scale[:, None, None] + shift[:, None, None]
    got = jax.jit(group_norm)(jnp.asarray(x), jnp.asarray(scale), jnp.asarray(shift))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, atol=1e-5 if centre == 0 else 1e-3)
    double = (jnp.asarray(a, jnp.float64) for a in (x, scale, shift))
    check_grads(jax.jit(group_norm), tuple(double), order=1, modes=("rev",))


def test_group_norm_keeps_its_statistics_in_float32():
    """Numbers near 64 in bfloat16 are 0.5 apart; a variance in bfloat16 would be off by far more than 1 %."""
    x = jnp.asarray(normal(0, 1, 8, 8, 8) + 64, jnp.bfloat16)
    exact = jax.jit(GroupNorm().init_with_output)(jax.random.key(0), x.astype(jnp.float32))[0]
    got = jax.jit(GroupNorm(jnp.bfloat16).init_with_output)(jax.random.key(0), x)[0]
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)


def test_folding():
    x = jnp.asarray(normal(0, 2, 4, 6, 3))
    y = folded(x, 2)
    np.testing.assert_array_equal(y[1, 1, 2].reshape(2, 2, 3), x[1, 2:4, 4:6])
    np.testing.assert_array_equal(unfolded(y, 2), x)


# --- the network


def test_starts_at_zero():
    for net in (SMALL, SMALL.clone(patch=2, dtype=jnp.bfloat16)):
        y, params = jax.jit(lambda key, net=net: net.init_with_output(key, *some_inputs()))(jax.random.key(0))
        assert y.shape == (3, 8, 4, 3) and y.dtype == jnp.float32
        assert not np.any(y)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


def test_one_example_is_its_row_of_a_batch():
    """As the library runs it: one example at a time under vmap, in a scan."""
    inputs, params = some_inputs(), some_params()
    (_, y), gradient = values()(params, *inputs)
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.all(np.isfinite(leaf)) and np.any(leaf), jax.tree_util.keystr(path)
    net = as_network(SMALL)

    @jax.jit
    def run(params, inputs):
        def loss(params, one):
            ys = jax.vmap(net.apply, (None, 0, 0, 0))(params, *one)
            return jnp.mean(normal(2, *ys.shape) * ys), ys

        return jax.lax.scan(lambda _, one: (None, jax.grad(loss, has_aux=True)(params, one)), None, inputs)[1]

    gradients, ys = run(params, jax.tree.map(lambda x: x[None], inputs))
    np.testing.assert_allclose(ys[0], y, atol=2e-3)
    assert_close(jax.tree.map(lambda leaf: leaf[0], gradients), gradient, atol=2e-3)


def test_examples_do_not_mix_and_every_input_counts():
    inputs, params = some_inputs(), some_params()
    (_, y), _ = values()(params, *inputs)
    for i in range(3):
        moved = [x.copy() for x in inputs]
        moved[i][1] = 0  # an image of zeros, gamma = 0, no label
        (_, other), _ = values()(params, *moved)
        assert np.all(np.isfinite(other))
        np.testing.assert_array_equal(other[::2], y[::2])
        assert np.max(np.abs(other[1] - y[1])) > 1e-2


def test_no_label_is_no_condition():
    """All zeros add nothing to the embedding: the same as a network without conditions."""
    z, gamma, label = some_inputs()
    params = some_params()
    run = jax.jit(SMALL.apply)
    without = {name: leaf for name, leaf in params["params"].items() if name != "condition"}
    np.testing.assert_allclose(run(params, z, gamma, 0 * label), run({"params": without}, z, gamma), atol=1e-4)


def test_forms_on_cpu_are_the_native_ones(monkeypatch):
    def transposed(y, kernel, *, stride, size):
        return conv_forms.to_input(conv_forms.conv_native, y, kernel.swapaxes(2, 3), stride=stride, size=size)

    inputs, params = some_inputs(), some_params()
    (_, y), gradient = values()(params, *inputs)
    monkeypatch.setattr(conv_forms, "conv", conv_forms.conv_native)
    monkeypatch.setattr(conv_forms, "conv_transpose", transposed)
    jax.clear_caches()
    native = jax.jit(values.__wrapped__(SMALL))
    text = native.lower(params, *inputs).as_text()
    (_, expected), grads = native(params, *inputs)
    jax.clear_caches()
    assert "stablehlo.convolution" in text
    np.testing.assert_allclose(y, expected, atol=2e-3)
    assert_close(gradient, grads, atol=2e-3)


@pytest.mark.parametrize("option", ["remat", "unroll"])
def test_what_saves_memory_changes_no_value(option):
    inputs, params = some_inputs(), some_params()
    other = values(SMALL.clone(**{option: True}))
    assert_close(other(params, *inputs), values()(params, *inputs), atol=2e-3)


def test_unrolled_levels_have_no_loop():
    """Of more than one block; where there is one XLA has no loop to run either way."""
    args = some_params(), *some_inputs()
    loops = [values(net).lower(*args).as_text().count("stablehlo.while") for net in (SMALL, SMALL.clone(unroll=True))]
    assert loops == [6, 4]


def test_bfloat16_is_near():
    inputs, params = some_inputs(), some_params()
    (_, exact), _ = values()(params, *inputs)
    y = jax.jit(SMALL.clone(dtype=jnp.bfloat16).apply)(params, *inputs)
    assert y.dtype == jnp.float32
    assert 0 < np.max(np.abs(y - exact)) / np.std(exact) < 0.3  # 8 bits, through a dozen layers


def test_dropout_is_on_where_there_is_a_key():
    net, params, inputs = SMALL.clone(dropout=0.5), some_params(), some_inputs()
    (_, expected), _ = values()(params, *inputs)
    run = jax.jit(lambda key: net.apply(params, *inputs, rngs={"dropout": key}))
    np.testing.assert_allclose(jax.jit(net.apply)(params, *inputs), expected, atol=1e-4)
    here, again, other = (run(jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(here, again)
    assert np.max(np.abs(here - other)) > 1e-2 and np.max(np.abs(here - expected)) > 1e-2


# --- sizes and errors


@pytest.mark.parametrize(
    ("net", "size", "millions"),
    [
        (UNet((32, 64, 64), blocks=2, attention=(1,)), 28, 1.05),
        (UNet((176, 352, 352), blocks=4, attention=(1,)), 32, 60.5),
    ],
)
def test_number_of_parameters(net, size, millions):
    z, gamma = jnp.zeros((2, size, size, 3)), jnp.zeros(2)
    y, params = jax.eval_shape(net.init_with_output, jax.random.key(0), z, gamma)
    assert y.shape == (2, size, size, 1)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6 == pytest.approx(millions, rel=0.05)


@pytest.mark.parametrize(
    ("net", "size"),
    [
        (UNet((8, 8, 8)), (28, 28)),
        (UNet((8,)), (7, 5)),
        (UNet((8, 8), patch=2), (28, 12)),
        (UNet((8, 8), patch=7), (28, 14)),
    ],
)
def test_sizes_that_work(net, size):
    y, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), jnp.zeros((2, *size, 3)), jnp.zeros(2))
    assert y.shape == (2, *size, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UNet(()), "UNet wants channels, a number a level"),
        (lambda: UNet((8, 0)), r"UNet wants positive sizes in channels, got \(8, 0\)"),
        (lambda: UNet(out=0), "UNet wants positive sizes in out"),
        (lambda: UNet(blocks=0), "UNet wants positive sizes in blocks"),
        (lambda: UNet(patch=0), "UNet wants positive sizes in patch"),
        (lambda: UNet(heads=0), "UNet wants positive sizes in heads"),
        (lambda: UNet(heads=5), "UNet with 5 heads: they cannot share the 64 channels of level 2"),
        (lambda: UNet(attention=(3,)), r"UNet wants attention as levels from 0 to 2, got \(3,\)"),
        (lambda: UNet(dropout=1.0), r"UNet wants dropout in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("channels", "z", "gamma", "message"),
    [
        (
            (8,) * 4,
            (28, 28, 1),
            (),
            r"4 levels and patch=1 .* 3 times: .* multiples of 8, got \(28, 28\).* to \(32, 32\)",
        ),
        ((8, 8), (7, 8, 1), (), r"multiples of 2, got \(7, 8\)"),
        ((8, 8), (28, 28), (), r"UNet wants images \(h, w, channels\), got a shape \(28, 28\)"),
        ((8, 8), (28, 28, 1), (1,), r"one gamma an image, a shape \(1,\), got \(1, 1\)"),
    ],
)
def test_wrong_inputs(channels, z, gamma, message):
    with pytest.raises(ValueError, match=message):
        as_network(UNet(channels)).init(jax.random.key(0), jnp.zeros(z), jnp.zeros(gamma))
