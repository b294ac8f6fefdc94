"""Networks: two forms of a convolution that agree, shapes of every size, one example at a time."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from vae_jax.nets import (
    MLP,
    Conv,
    ConvDecoder,
    ConvEncoder,
    ConvTranspose,
    ResBlock,
    ResDecoder,
    ResEncoder,
)
from vae_jax.nets.conv import conv_matrix, conv_native, halved, transposed
from vae_jax.nets.mlp import check_sizes
from vae_jax.nets.residual import groups
from vae_jax.network import as_network

CHANNELS = (4, 8, 8)
ENCODERS = [
    MLP((16,), 6),
    ConvEncoder(CHANNELS, 6),
    ConvEncoder(CHANNELS, (3, 2), kernel=(4, 5)),
    ResEncoder(CHANNELS, 6),
    ResEncoder((4, 8), (3, 2), blocks=2),
]
DECODERS = [
    MLP((16,), (7, 5, 2)),
    ConvDecoder(CHANNELS, (7, 5, 2)),
    ConvDecoder(CHANNELS, (6, 9, 2, 3), kernel=(4, 5)),
    ResDecoder(CHANNELS, (7, 5, 2)),
    ResDecoder((4, 8), (6, 9), blocks=2),
]
NETS = [(net, (9, 6, 2)) for net in ENCODERS] + [(net, (5,)) for net in DECODERS]


def normal(seed, *shape, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def output_shape(net):
    if isinstance(net, ConvDecoder | ResDecoder):
        return net.shape
    return net.out if isinstance(net.out, tuple) else (net.out,)


def started(net, *inputs, **settings):
    """The parameters with noise on all of them, for some start at zero."""
    params = jax.jit(net.init)(jax.random.key(7), *inputs)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(8), len(leaves))
    noisy = [leaf + 0.1 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, noisy)


# --- the two forms of a convolution


def value_and_gradients(op, x, kernel, y):
    """op(x, kernel), and the gradients of its inner product with y in both arguments."""
    value, transpose = jax.vjp(op, x, kernel)
    return value, *transpose(y)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (4, 4), (5, 5), (2, 3)])
def test_matrix_form_is_the_native_convolution(kernel, stride, dtype, x64):
    size = (8, 7)
    x, k = normal(0, 2, *size, 3, dtype=dtype), normal(1, *kernel, 3, 4, dtype=dtype)
    y = normal(2, 2, *halved(size, stride), 4, dtype=dtype)
    close = {"rtol": 0, "atol": 1e-12 if dtype == jnp.float64 else 1e-4}

    def both(x, k, y):
        def forward(form):
            return value_and_gradients(lambda x, k: form(x, k, stride=stride), x, k, y)

        def backward(form):
            back = lambda y, k: transposed(form, y, k.swapaxes(2, 3), stride=stride, size=size)
            return value_and_gradients(back, y, k, x)

        return [(forward(form), backward(form)) for form in (conv_matrix, conv_native)]

    matrix, native = jax.jit(both)(x, k, y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), matrix, native)
    # the transpose of one form, against the other form
    inner = np.vdot(native[0][0], y)
    np.testing.assert_allclose(inner, np.vdot(x, matrix[1][0]), rtol=1e-4)
    assert matrix[0][0].dtype == matrix[1][0].dtype == dtype


@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(1, 4),
)
def test_convolution_is_its_definition(size, kernel, stride):
    x, k = np.random.default_rng(0).normal(size=(2, *size)), np.ones(kernel)
    k = np.arange(1.0, 1 + k.size).reshape(kernel)
    before = [max((-(-n // stride) - 1) * stride + m - n, 0) // 2 for n, m in zip(size, kernel, strict=True)]
    expected = np.zeros((2, *halved(size, stride)))
    for o in np.ndindex(*expected.shape[1:]):
        for i in np.ndindex(*kernel):
            at = [stride * a + b - p for a, b, p in zip(o, i, before, strict=True)]
            if all(0 <= a < n for a, n in zip(at, size, strict=True)):
                expected[:, *o] += x[:, *at] * k[i]
    with jax.disable_jit():
        got = conv_matrix(jnp.float32(x)[..., None], jnp.float32(k)[..., None, None], stride=stride)
    np.testing.assert_allclose(got[..., 0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [1, 2])
def test_conv_has_the_parameters_and_values_of_flax(stride):
    x = normal(0, 2, 7, 6, 3)
    ours, theirs = Conv(4, (3, 5), stride), nn.Conv(4, (3, 5), stride)
    params = started(ours, x)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, jax.jit(theirs.init)(jax.random.key(0), x)
    )
    np.testing.assert_allclose(ours.apply(params, x), theirs.apply(params, x), atol=1e-5)


def test_conv_transpose_is_the_transpose_of_conv():
    x, y = normal(0, 2, 7, 6, 3), normal(1, 2, 4, 3, 5)
    net = ConvTranspose(3, size=(7, 6), use_bias=False)
    params = jax.jit(net.init)(jax.random.key(0), y)
    assert params["params"]["kernel"].shape == (3, 3, 5, 3)
    turned = jax.tree.map(lambda k: k.swapaxes(2, 3), params)
    forward = Conv(5, stride=2, use_bias=False).apply(turned, x)
    np.testing.assert_allclose(np.vdot(forward, y), np.vdot(x, net.apply(params, y)), rtol=1e-4)
    assert ConvTranspose(3).init_with_output(jax.random.key(0), y)[0].shape == (2, 8, 6, 3)


@pytest.mark.parametrize("net", [Conv(4, stride=2), ConvTranspose(4)])
def test_one_form_is_compiled_and_which_depends_on_the_platform(net):
    x = normal(0, 2, 6, 6, 3)
    params = jax.jit(net.init)(jax.random.key(0), x)
    step = jax.jit(jax.grad(lambda params, x: jnp.sum(jnp.tanh(net.apply(params, x)))))
    on_cpu = step.lower(params, x).compile().as_text()
    assert "convolution(" not in on_cpu and "conditional(" not in on_cpu
    traced = step.trace(params, x)
    for platform in ("cuda", "tpu"):
        elsewhere = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "stablehlo.convolution" in elsewhere and "dot_general" not in elsewhere
    both = traced.lower(lowering_platforms=("cpu", "cuda")).as_text()
    assert "stablehlo.convolution" in both and "dot_general" in both


@pytest.mark.parametrize("net", [Conv(4, stride=2), ConvTranspose(4)])
def test_conv_under_vmap_grad_and_scan(net):
    """One example at a time in a scan, as training runs it, against the batch at once."""
    xs = normal(0, 3, 4, 6, 5, 2)  # 3 steps of 4 examples
    params = started(net, xs[0])

    def single(params, x):
        return jnp.sum(jnp.tanh(as_network(net).apply(params, x)))

    def batch(params, x):
        return jnp.sum(jnp.tanh(net.apply(params, x)))

    def scanned(params, xs):
        total = lambda params, x: jnp.sum(jax.vmap(single, (None, 0))(params, x))
        return jax.lax.scan(lambda carry, x: (carry, jax.grad(total)(params, x)), 0.0, xs)[1]

    expected = [jax.jit(jax.grad(batch))(params, x) for x in xs]
    each = jax.jit(jax.vmap(jax.grad(single), (None, 0)))(params, xs[0])
    got = jax.jit(scanned)(params, xs)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    for i, gradient in enumerate(expected):
        jax.tree.map(lambda a, b, i=i: close(a[i], b), got, gradient)
    jax.tree.map(lambda a, b: close(jnp.sum(a, 0), b), each, expected[0])


@pytest.mark.parametrize("net", [ConvEncoder((2, 3), 2, activation=jnp.tanh, dtype=jnp.float64)])
def test_gradients_are_finite_differences(net, x64):
    x = normal(0, 2, 5, 4, 1, dtype=jnp.float64)
    params = jax.tree.map(lambda p: p.astype(jnp.float64), started(net, x))
    assert net.apply(params, x).dtype == jnp.float64
    check_grads(jax.jit(net.apply), (params, x), order=1, modes=("fwd", "rev"))
    decoder = ConvDecoder((2, 3), (5, 4, 1), activation=jnp.tanh, dtype=jnp.float64)
    z = normal(0, 2, 3, dtype=jnp.float64)
    params = jax.tree.map(lambda p: p.astype(jnp.float64), started(decoder, z))
    check_grads(jax.jit(decoder.apply), (params, z), order=1, modes=("fwd", "rev"))


# --- every network


@pytest.mark.parametrize(("net", "shape"), NETS, ids=lambda x: getattr(x, "name", None) or str(x)[:40])
def test_an_example_has_its_own_row(net, shape):
    x, c = normal(0, 3, *shape), normal(1, 3, 2, 2)
    params = started(net, x, c)
    apply = jax.jit(net.apply)
    y = apply(params, x, c)
    assert y.shape == (3, *output_shape(net)) and y.dtype == jnp.float32

    other = apply(params, x.at[1].add(1.0), c)
    np.testing.assert_array_equal(other[0], y[0])
    assert np.any(np.abs(other[1] - y[1]) > 1e-4)

    conditioned = apply(params, x, c.at[1].add(1.0))
    np.testing.assert_array_equal(conditioned[0], y[0])
    assert np.any(np.abs(conditioned[1] - y[1]) > 1e-4)

    alone = jax.jit(as_network(net).apply)(params, x[0], c[0])
    np.testing.assert_allclose(alone, y[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("net", "shape"), NETS, ids=lambda x: str(x)[:40])
def test_compute_and_input_types(net, shape):
    integers = jax.random.randint(jax.random.key(0), (3, *shape), 0, 5).astype(jnp.uint8)
    params = started(net, integers)
    exact = jax.jit(net.apply)(params, integers)
    np.testing.assert_array_equal(exact, jax.jit(net.apply)(params, np.float32(integers)))

    rough = net.clone(dtype=jnp.bfloat16)
    apply = jax.jit(lambda params: rough.apply(params, integers))
    y = apply(params)
    assert y.dtype == jnp.float32 and np.all(np.isfinite(y))
    spread = np.std(exact)
    assert 0 < np.max(np.abs(y - exact)) < 0.2 * spread + 0.05  # bfloat16 has 8 bits
    shapes = jax.eval_shape(rough.init, jax.random.key(0), integers)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(("net", "shape"), NETS, ids=lambda x: str(x)[:40])
def test_every_parameter_gets_a_gradient(net, shape):
    x, c = normal(0, 3, *shape), normal(1, 3, 2)
    params = started(net, x, c)
    weights = normal(2, 3, *output_shape(net))
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(weights * net.apply(params, x, c))))(params)
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.all(np.isfinite(leaf)) and np.any(leaf != 0), jax.tree_util.keystr(path)


@pytest.mark.parametrize("scale", [0.0, 1e6])
@pytest.mark.parametrize("net", [ENCODERS[1], ENCODERS[3]])
def test_extreme_images_are_finite(net, scale):
    x = jnp.full((1, 9, 6, 2), scale)
    params = started(net, x)
    value, gradient = jax.jit(jax.value_and_grad(lambda p: jnp.mean(net.apply(p, x))))(params)
    assert np.isfinite(value) and all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient))


# --- sizes


@given(
    size=st.tuples(st.integers(4, 70), st.integers(4, 70)),
    rest=st.lists(st.integers(1, 4), max_size=2).map(tuple),
    channels=st.lists(st.integers(1, 40), min_size=1, max_size=5).map(tuple),
    conditions=st.lists(st.lists(st.integers(1, 3), max_size=2).map(tuple), max_size=2),
    n=st.integers(1, 3),
)
def test_images_of_any_size(size, rest, channels, conditions, n):
    cs = [jnp.zeros((n, *c)) for c in conditions]

    def shape(net, x):
        return jax.eval_shape(net.init_with_output, jax.random.key(0), x, *cs)[0].shape

    for encoder, decoder in ((ConvEncoder, ConvDecoder), (ResEncoder, ResDecoder)):
        y = jnp.zeros((n, *size, rest[0] if rest else 1))
        assert shape(encoder(channels, 6), y) == (n, 6)
        assert shape(decoder(channels, (*size, *rest)), jnp.zeros((n, 3))) == (n, *size, *rest)


def test_grids_are_halved_rounding_up():
    def grids(net, x):
        run = lambda key, x: net.init_with_output(key, x, capture_intermediates=True)[1]
        layers = jax.eval_shape(run, jax.random.key(0), x)["intermediates"]
        return [
            layers[name]["__call__"][0].shape[1:3]
            for name in layers
            if name.startswith(("Conv_", "ConvTranspose_"))
        ]

    y, z = jnp.zeros((1, 28, 10, 1)), jnp.zeros((1, 20))
    down = grids(ConvEncoder((32, 64, 128), 40), y)
    assert down == [(14, 5), (7, 3), (4, 2)]
    up = grids(ConvDecoder((32, 64, 128), (28, 10, 1)), z)
    assert up == [(7, 3), (14, 5), (28, 10)]


def test_repeated_pixels():
    """With a decoder's last convolution the identity, the output is pixels repeated 2 x 2."""
    z = normal(0, 1, 3)
    net = ResDecoder((4,), (5, 4), kernel=(1, 1))
    y = jax.jit(lambda key: net.init_with_output(key, z)[0])(jax.random.key(0))
    np.testing.assert_allclose(y[:, 0::2], y[:, [0, 2, 4]], rtol=1e-5)
    np.testing.assert_allclose(y[:, 1::2], y[:, 0:4:2], rtol=1e-5)
    np.testing.assert_allclose(y[:, :, 1::2], y[:, :, 0::2], rtol=1e-5)
    assert np.std(y[:, ::2]) > 1e-3


def test_block_starts_as_its_shortcut():
    x = normal(0, 2, 5, 4, 8)
    np.testing.assert_array_equal(ResBlock(8).init_with_output(jax.random.key(0), x)[0], x)


@pytest.mark.parametrize(
    ("channels", "expected"),
    [(1, 1), (3, 1), (4, 1), (6, 1), (8, 2), (9, 1), (12, 3), (32, 8), (64, 16), (128, 32), (256, 32)],
)
def test_groups(channels, expected):
    assert groups(channels) == expected


def test_small_images_survive_group_norm():
    """4 x 4 images end on a grid of one pixel, where groups of one channel would be constant."""
    x = normal(0, 2, 4, 4, 1)
    y = ResEncoder((8, 8, 8), 3).init_with_output(jax.random.key(0), x)[0]
    assert np.all(np.abs(y[0] - y[1]) > 1e-4)


# --- errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP((500, 0), 40), r"MLP wants positive sizes in hidden, got \(500, 0\)"),
        (lambda: MLP((500,), (28, 0)), r"MLP wants positive sizes in out, got \(28, 0\)"),
        (lambda: ConvEncoder((), 40), "ConvEncoder wants channels, a number a level"),
        (lambda: ConvDecoder((), (28, 28, 1)), "ConvDecoder wants channels"),
        (lambda: ResEncoder((8, -8), 40), r"ResEncoder wants positive sizes in channels, got \(8, -8\)"),
        (lambda: ResEncoder((8,), 40, blocks=0), "ResEncoder wants positive sizes in blocks"),
        (lambda: ResDecoder((8,), (28, 28, 0)), "ResDecoder wants positive sizes in shape"),
        (lambda: ConvDecoder((8,), (784,)), r"h and w 4 or more, got \(784,\)"),
        (lambda: ResDecoder((8,), (28, 3, 1)), r"h and w 4 or more, got \(28, 3, 1\)"),
        (lambda: check_sizes("MLP", hidden=500), r"MLP wants hidden as a tuple, got 500: write \(500,\)"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("net", "shape", "message"),
    [
        (
            ConvEncoder((8,), 40),
            (784,),
            r"ConvEncoder wants images \(h, w, channels\), got a shape \(784,\): reshape your data or use MLP",
        ),
        (ResEncoder((8,), 40), (28, 28), r"ResEncoder wants .* got a shape \(28, 28\): reshape"),
        (ConvEncoder((8,), 40), (28, 3, 1), r"h and w 4 or more, got \(28, 3, 1\): use MLP"),
        (Conv(8), (28,), r"Conv wants images .* got a shape \(28,\)"),
        (ConvTranspose(8), (28,), r"ConvTranspose wants images .* got a shape \(28,\)"),
        (
            ConvTranspose(8, size=(28, 30)),
            (14, 14, 1),
            r"stride 2 makes size=\(28, 30\) of a grid \(14, 15\), got \(14, 14\)",
        ),
    ],
)
def test_wrong_inputs(net, shape, message):
    with pytest.raises(ValueError, match=message):
        as_network(net).init(jax.random.key(0), jnp.zeros(shape))
