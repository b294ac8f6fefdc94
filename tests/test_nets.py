"""Networks: two forms of a convolution that agree, any size of image, examples that do not mix."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from vae_jax.core import as_network
from vae_jax.nets import MLP, Conv, ConvDecoder, ConvEncoder, ConvTranspose, ResBlock, ResDecoder, ResEncoder
from vae_jax.nets.conv import LARGE, conv, conv_matrix, conv_native, conv_transpose, halved, to_input
from vae_jax.nets.mlp import Dense, check_sizes
from vae_jax.nets.residual import groups

# Everything here is small and called a few times: compiling is what takes time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

NETS = [  # network, input, output
    (MLP((16,), (3, 2)), (9, 6, 2), (3, 2)),
    (ConvEncoder((4, 8), 6, kernel=(4, 5)), (9, 6, 2), (6,)),
    (ConvDecoder((4, 8), (6, 9, 2, 3)), (5,), (6, 9, 2, 3)),
    (ResEncoder((4, 8), (3, 2)), (9, 6, 2), (3, 2)),
    (ResDecoder((4, 8), (6, 9)), (5,), (6, 9)),
]
each_net = pytest.mark.parametrize(("net", "inputs", "outputs"), NETS, ids=[type(net).__name__ for net, _, _ in NETS])


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def some_params(net, *inputs):
    """Parameters of the right shapes, none of them zero."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(net.init, jax.random.key(0), *inputs))
    return tree.unflatten([0.3 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])


def assert_close(actual, expected, **tolerances):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerances), actual, expected)


# --- the two forms of a convolution


def values_and_gradients(form, x, kernel, y, stride):
    """Convolution of x and transpose at y: the values, and the gradients of <y, .> and <x, .>."""
    value, pull = jax.vjp(lambda x, k: form(x, k, stride=stride), x, kernel)

    def back(y, kernel):
        return to_input(form, y, kernel, stride=stride, size=x.shape[1:3])

    transpose, push = jax.vjp(back, y, kernel)
    return value, pull(y), transpose, push(x)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (4, 4), (5, 5), (2, 3)])
def test_matrix_form_is_the_native_convolution(kernel, stride, x64):
    size = (8, 7)
    types = (jnp.float64, jnp.float32) if kernel in [(3, 3), (4, 4)] else (jnp.float64,)
    for dtype, tolerance in zip(types, (1e-12, 1e-4), strict=False):
        x, y = normal(0, 2, *size, 3), normal(1, 2, *halved(size, stride), 4)
        x, k, y = (jnp.asarray(a, dtype) for a in (x, normal(2, *kernel, 3, 4), y))
        run = jit(values_and_gradients, static_argnums=(0, 4))
        matrix, native = run(conv_matrix, x, k, y, stride), run(conv_native, x, k, y, stride)
        assert_close(matrix, native, rtol=0, atol=tolerance)
        assert {leaf.dtype for leaf in jax.tree.leaves(matrix)} == {jnp.dtype(dtype)}
        # <conv x, y> = <x, conv' y>, across the forms
        there, back = np.vdot(native[0], y), np.vdot(x, matrix[2])
        np.testing.assert_allclose(there, back, rtol=100 * tolerance)


def native_transpose(y, kernel, *, stride, size):
    return to_input(conv_native, y, kernel.swapaxes(2, 3), stride=stride, size=size)


SIZE = (6, 5)
IMAGES, KERNEL = jnp.asarray(normal(0, 3, 2, *SIZE, 9)), jnp.asarray(normal(1, 3, 2, 9, 10))
KERNELS = jnp.asarray(normal(2, 3, 3, 2, 9, 10))


def curved(form):
    return lambda x, kernel: jnp.sum(jnp.sin(form(x, kernel)))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "use",
    [
        lambda form: jax.vmap(form, (0, None))(IMAGES, KERNEL),
        lambda form: jax.vmap(form, (None, 0))(IMAGES[0], KERNELS),
        lambda form: jax.vmap(jax.vmap(form, (0, None)), (1, None), 2)(IMAGES[:, :, None], KERNEL),
        lambda form: jax.grad(curved(jax.vmap(form, (0, None))), (0, 1))(IMAGES, KERNEL),
        lambda form: jax.grad(curved(jax.vmap(form)), (0, 1))(IMAGES, KERNELS),
        lambda form: jax.vmap(jax.grad(curved(form), (0, 1)), (0, None))(IMAGES, KERNEL),
        lambda form: jax.jvp(form, (IMAGES[0], KERNEL), (jnp.cos(IMAGES[0]), jnp.cos(KERNEL))),
        lambda form: jax.jacfwd(jax.grad(curved(form), (0, 1)), 1)(IMAGES[0, :1], KERNEL),
        lambda form: jax.jacrev(jax.grad(curved(form), (0, 1)), (0, 1))(IMAGES[0, :1], KERNEL),
    ],
)
def test_each_direction_under_every_transformation(use, stride):
    """`conv` and `conv_transpose`, whose gradients have forms of their own, are what jax makes of XLA's convolution."""
    there = {"size": tuple(stride * n for n in SIZE), "stride": stride}
    exchanged = {
        name: functools.partial(form, **there) for name, form in (("own", conv_transpose), ("xla", native_transpose))
    }
    forms = {"own": functools.partial(conv, stride=stride), "xla": functools.partial(conv_native, stride=stride)}
    for pair in (forms, exchanged):
        got, want = (jit(lambda form=pair[name]: use(form))() for name in ("own", "xla"))
        assert_close(got, want, rtol=1e-4, atol=1e-4)


@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.integers(1, 4),
)
def test_convolution_is_its_definition(size, kernel, stride):
    x, k = normal(0, 2, *size), normal(1, *kernel)
    before = [max((-(-n // stride) - 1) * stride + m - n, 0) // 2 for n, m in zip(size, kernel, strict=True)]
    expected = np.zeros((2, *halved(size, stride)))
    for o in np.ndindex(*expected.shape[1:]):
        for i in np.ndindex(*kernel):
            h, w = (stride * a + b - p for a, b, p in zip(o, i, before, strict=True))
            if 0 <= h < size[0] and 0 <= w < size[1]:
                expected[:, *o] += x[:, h, w] * k[i]
    run = jit(conv_matrix, static_argnames="stride")
    got = run(x[..., None], k[..., None, None], stride=stride)
    np.testing.assert_allclose(got[..., 0], expected, rtol=1e-4, atol=1e-5)


def test_conv_has_the_parameters_and_values_of_flax():
    x = normal(0, 2, 7, 6, 3)
    ours, theirs = Conv(4, (3, 5), stride=2), nn.Conv(4, (3, 5), strides=2)
    params = some_params(ours, x)
    assert_close(params, some_params(theirs, x))
    np.testing.assert_allclose(ours.apply(params, x), theirs.apply(params, x), atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dense_is_that_of_flax(dtype):
    x = normal(0, 2, 3, 5)
    ours, theirs = Dense(4, dtype=dtype), nn.Dense(4, dtype=dtype)
    start = [net.init(jax.random.key(0), x) for net in (ours, theirs)]
    jax.tree.map(np.testing.assert_array_equal, *start)
    params = some_params(ours, x)
    assert ours.apply(params, x).dtype == dtype
    np.testing.assert_array_equal(ours.apply(params, x), theirs.apply(params, x))


def test_conv_transpose_is_the_transpose_of_conv():
    x, y = normal(0, 2, 7, 6, 3), normal(1, 2, 4, 3, 5)
    net = ConvTranspose(3, size=(7, 6), use_bias=False)
    params = some_params(net, y)
    assert params["params"]["kernel"].shape == (3, 3, 5, 3)
    exchanged = jax.tree.map(lambda k: k.swapaxes(2, 3), params)
    forward = Conv(5, stride=2, use_bias=False).apply(exchanged, x)
    np.testing.assert_allclose(np.vdot(forward, y), np.vdot(x, net.apply(params, y)), rtol=1e-4)


CONVS = [Conv(4, stride=2), ConvTranspose(4)]
each_conv = pytest.mark.parametrize("net", CONVS, ids=["Conv", "ConvTranspose"])


@each_conv
def test_one_form_is_compiled_and_the_platform_says_which(net):
    x = normal(0, 2, 6, 6, 3)
    params = some_params(net, x)
    gradient = jit(jax.grad(lambda params, x: jnp.sum(jnp.tanh(net.apply(params, x)))))
    on_cpu = gradient.lower(params, x).compile().as_text()
    assert " dot(" in on_cpu
    assert " convolution(" not in on_cpu and " conditional(" not in on_cpu  # neither is fast with stride 2
    for platform in ("cuda", "tpu"):
        there = gradient.trace(params, x).lower(lowering_platforms=(platform,)).as_text()
        assert "stablehlo.convolution" in there and "stablehlo.dot_general" not in there


@pytest.mark.parametrize(("side", "passes"), [(LARGE - 1, 2), (LARGE, 3)])
def test_a_convolution_with_stride_1_is_xlas_own_on_cpu(side, passes):
    """Forward, and back to the input; the kernel's gradient is a product on small grids."""
    x = normal(0, 2, side, LARGE, 16)
    net = Conv(16)
    params = some_params(net, x)

    def loss(params, x):
        return jnp.sum(jnp.tanh(net.apply(params, x)))

    def convolutions(f):
        return jit(f).lower(params, x).compile().as_text().count(" convolution(")

    assert convolutions(loss) == 1
    assert convolutions(jax.grad(loss, (0, 1))) == passes


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (4, 4), (2, 3)])
def test_gradients_on_large_grids_are_those_of_the_native_convolution(kernel):
    x, y, k = normal(0, 2, LARGE, LARGE + 1, 9), normal(1, 2, LARGE, LARGE + 1, 10), normal(2, *kernel, 9, 10)
    run = jit(values_and_gradients, static_argnums=(0, 4))
    got, want = (run(form, x, k, y, 1)[1] for form in (conv, conv_native))
    assert_close(got, want, rtol=1e-4, atol=1e-4)


@each_conv
def test_conv_under_vmap_grad_and_scan(net):
    """One example at a time inside a scan, as training runs it, against whole batches."""
    batches = normal(0, 2, 3, 6, 5, 2)
    params = some_params(net, batches[0])

    def of_one(params, x):
        return jnp.sum(jnp.tanh(as_network(net).apply(params, x)))

    def of_batch(params, xs):
        return jnp.sum(jnp.tanh(net.apply(params, xs)))

    def of_vmap(params, xs):
        return jnp.sum(jax.vmap(of_one, (None, 0))(params, xs))

    def scanned(params, batches):
        return jax.lax.scan(lambda _, xs: (None, jax.grad(of_vmap)(params, xs)), None, batches)[1]

    def whole(params, batches):
        gradients = [jax.grad(of_batch)(params, xs) for xs in batches]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients)

    expected = jit(whole)(params, batches)
    assert_close(jit(scanned)(params, batches), expected, rtol=1e-4, atol=1e-4)
    rows = jit(jax.vmap(jax.grad(of_one), (None, 0)))(params, batches[0])
    summed = jax.tree.map(lambda row, first: (np.sum(row, 0), first[0]), rows, expected)
    jax.tree.map(
        lambda pair: np.testing.assert_allclose(*pair, rtol=1e-4, atol=1e-4),
        summed,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (functools.partial(ConvEncoder, (2, 3), 2), (5, 4, 1)),
        (functools.partial(ResDecoder, (4,), (5, 4)), (3,)),
    ],
)
def test_gradients_are_finite_differences(make, inputs, x64):
    net = make(activation=jnp.tanh, dtype=jnp.float64)
    x = jnp.float64(normal(0, 2, *inputs))
    params = jax.tree.map(jnp.float64, some_params(net, x))
    assert jax.eval_shape(net.apply, params, x).dtype == jnp.float64
    check_grads(jax.jit(net.apply), (params, x), order=1, modes=("fwd", "rev"))


# --- every network


@each_net
def test_examples_do_not_mix(net, inputs, outputs):
    x, c, weights = normal(0, 3, *inputs), normal(1, 3, 2, 2), normal(2, 3, *outputs)
    params = some_params(net, x, c)

    @jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(params, x, c):
        y = net.apply(params, x, c)
        return jnp.sum(weights * y), y

    (_, y), gradient = run(params, x, c)
    assert y.shape == (3, *outputs) and y.dtype == jnp.float32
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.all(np.isfinite(leaf)) and np.any(leaf), jax.tree_util.keystr(path)

    row = np.array([0, 1, 0], np.float32)
    for moved in ((x + row.reshape(3, *[1] * len(inputs)), c), (x, c + row[:, None, None])):
        (_, other), _ = run(params, *moved)
        np.testing.assert_array_equal(other[0], y[0])
        assert np.any(np.abs(other[1] - y[1]) > 1e-3)

    alone = jit(as_network(net).apply)(params, x[0], c[0])
    np.testing.assert_allclose(alone, y[0], rtol=1e-4, atol=1e-4)


@each_net
def test_types_of_inputs_and_computation(net, inputs, outputs):
    integers = np.random.default_rng(0).integers(0, 5, (3, *inputs)).astype(np.uint8)
    params = some_params(net, integers)
    rough = net.clone(dtype=jnp.bfloat16)

    @jit
    def run(params, x):
        floats = x.astype(jnp.float32)
        return net.apply(params, x), net.apply(params, floats), rough.apply(params, x)

    exact, from_floats, y = run(params, integers)
    np.testing.assert_array_equal(exact, from_floats)
    assert y.dtype == jnp.float32
    error = np.max(np.abs(y - exact)) / np.std(exact)
    assert 0 < error < 0.1  # bfloat16 has 8 bits
    shapes = jax.eval_shape(rough.init, jax.random.key(0), integers)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}


def test_constant_images_are_finite():
    net, inputs, _ = NETS[3]
    params = some_params(net, np.zeros((1, *inputs)))
    run = jit(jax.value_and_grad(lambda params, x: jnp.mean(net.apply(params, x))))
    for level in (0.0, 1e6):
        value, gradient = run(params, jnp.full((1, *inputs), level))
        assert np.isfinite(value)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_signal_keeps_its_scale_at_the_start():
    """Through transposed convolutions as well, where an output pixel gets few of the taps."""
    z = normal(0, 64, 20)
    net = ConvDecoder((64, 64, 64), (32, 32, 8), activation=lambda x: x)
    y = jit(lambda key: net.init_with_output(key, z)[0])(jax.random.key(0))
    assert 0.7 < np.std(y) < 1.3


# --- sizes


@settings(max_examples=10)
@given(
    size=st.tuples(st.integers(4, 70), st.integers(4, 70)),
    rest=st.lists(st.integers(1, 4), max_size=2).map(tuple),
    channels=st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple),
    conditions=st.lists(st.lists(st.integers(1, 3), max_size=2), max_size=2),
)
def test_images_of_any_size(size, rest, channels, conditions):
    def shape(net, *inputs):
        arrays = [jax.ShapeDtypeStruct((2, *shape), jnp.float32) for shape in inputs]
        return jax.eval_shape(net.init_with_output, jax.random.key(0), *arrays)[0].shape

    for encoder, decoder in ((ConvEncoder, ConvDecoder), (ResEncoder, ResDecoder)):
        assert shape(encoder(channels, (3, 2)), (*size, 2), *conditions) == (2, 3, 2)
        assert shape(decoder(channels, (*size, *rest)), (3,), *conditions) == (2, *size, *rest)


@pytest.mark.parametrize(
    ("net", "inputs", "expected"),
    [
        (ConvEncoder((8, 8, 8), 40), (28, 10, 1), [(14, 5), (7, 3), (4, 2)]),
        (ConvDecoder((8, 8, 8), (28, 10, 1)), (20,), [(7, 3), (14, 5), (28, 10)]),
        (ResDecoder((8, 8, 8), (28, 10, 1)), (20,), [(4, 2), (7, 3), (14, 5)]),
        (ConvTranspose(1), (4, 3, 8), [(8, 6)]),
    ],
)
def test_grids_are_halved_rounding_up(net, inputs, expected):
    layers = (Conv, ConvTranspose) if isinstance(net, ConvEncoder) else (ConvTranspose, ResBlock)
    sizes = []

    def record(call, args, kwargs, context):
        y = call(*args, **kwargs)
        if isinstance(context.module, layers):
            sizes.append(y.shape[1:3])
        return y

    with nn.intercept_methods(record):
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, *inputs)))
    assert sizes[: len(expected)] == expected


def test_pixels_are_repeated():
    """Where the last convolution is 1 x 1, the pixels of the last grid are still to be seen."""
    net, z = ResDecoder((4,), (5, 4), kernel=(1, 1)), normal(0, 1, 3)
    y = jit(net.apply)(some_params(net, z), z)
    np.testing.assert_allclose(y[:, 1::2], y[:, 0:4:2], rtol=1e-5)
    np.testing.assert_allclose(y[:, :, 1::2], y[:, :, 0::2], rtol=1e-5)
    assert np.std(y[:, ::2, ::2]) > 1e-2


@pytest.mark.parametrize("make", [lambda n: ResEncoder((4, 8), 3, n), lambda n: ResDecoder((4, 8), (6, 9), n)])
def test_blocks_a_level(make):
    x = jnp.zeros((1, 6, 9, 1))
    for blocks in (1, 3):
        params = jax.eval_shape(make(blocks).init, jax.random.key(0), x)["params"]
        assert sum(name.startswith("ResBlock") for name in params) == 2 * blocks


def test_block_starts_as_its_shortcut():
    x = normal(0, 2, 5, 4, 8)
    y = jit(lambda key: ResBlock(8).init_with_output(key, x)[0])(jax.random.key(0))
    np.testing.assert_array_equal(y, x)


def test_block_does_not_see_a_constant():
    """Far from zero the variance keeps its digits: f(x + 1000) = f(x)."""
    x = normal(0, 2, 5, 4, 8)
    params = some_params(ResBlock(8), x)
    here, there = (jit(ResBlock(8).apply)(params, y) - y for y in (x, x + np.float32(1000)))
    np.testing.assert_allclose(here, there, atol=0.01)


@pytest.mark.parametrize(
    ("channels", "expected"),
    [(1, 1), (3, 1), (4, 1), (6, 1), (8, 2), (9, 1), (12, 3), (32, 8), (64, 16), (256, 32)],
)
def test_groups(channels, expected):
    assert groups(channels) == expected


def test_small_images_survive_group_norm():
    """4 x 4 images end on a grid of one pixel, where groups of one channel would be constant."""
    x = normal(0, 2, 4, 4, 1)
    net = ResEncoder((8, 8), 3)
    y = jit(net.apply)(some_params(net, x), x)
    assert np.any(np.abs(y[0] - y[1]) > 1e-3)


# --- errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP((500, 0), 40), r"MLP wants positive sizes in hidden, got \(500, 0\)"),
        (lambda: MLP((500,), (28, 0)), r"MLP wants positive sizes in out, got \(28, 0\)"),
        (lambda: check_sizes("MLP", hidden=500), r"hidden as a tuple, got 500: write \(500,\)"),
        (lambda: ConvEncoder((), 40), "ConvEncoder wants channels, a number a level"),
        (lambda: ConvEncoder((8,), 0), r"ConvEncoder wants positive sizes in out, got \(0,\)"),
        (lambda: ConvDecoder((), (28, 28, 1)), "ConvDecoder wants channels"),
        (lambda: ConvDecoder((8,), (784,)), r"h and w 4 or more, got \(784,\)"),
        (lambda: ResEncoder((8, -8), 40), r"ResEncoder wants positive sizes in channels"),
        (lambda: ResEncoder((8,), 40, blocks=0), "ResEncoder wants positive sizes in blocks"),
        (lambda: ResDecoder((8,), (28, 28, 0)), "ResDecoder wants positive sizes in shape"),
        (lambda: ResDecoder((8,), (28, 3, 1)), r"h and w 4 or more, got \(28, 3, 1\)"),
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
            r"ConvEncoder wants images \(h, w, channels\), got a shape \(784,\): "
            "reshape your data or use MLP",
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
