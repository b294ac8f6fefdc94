"""Networks for sequences: they look back only, go on step by step as they do at once, and padding changes nothing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.test_util import check_grads

from vae_jax.core import Network, SequenceNetwork, as_network
from vae_jax.core.network import as_sequence_network
from vae_jax.nets import LSTM, PixelCNN, SequenceEncoder, Transformer, TransformerEncoder
from vae_jax.nets.recurrent import cell, run_lstm
from vae_jax.nets.transformer import rotated

LEVELS = 5
DECODERS = {
    "lstm": (LSTM(LEVELS, 4, 6), (7,)),
    "two layers, skip": (LSTM(LEVELS, 4, 6, layers=2, skip=True), (7,)),
    "rotary": (Transformer(LEVELS, 8, 1, 2), (7,)),
    "learned positions": (Transformer(LEVELS, 6, 2, 3, max_length=15), (2, 3)),
    "pixelcnn": (PixelCNN(LEVELS, 4, 2), (3, 4)),
    "pixelcnn of colours": (PixelCNN(LEVELS, 4, 3, channels=3), (3, 2, 3)),
}
ENCODERS = {
    "lstm": SequenceEncoder(LEVELS, 4, 6, (2, 3), layers=2),
    "transformer": TransformerEncoder(LEVELS, 8, 2, 2, (2, 3)),
    "learned positions": TransformerEncoder(LEVELS, 8, 1, 2, (2, 3), max_length=12),
}
each_decoder = pytest.mark.parametrize(("net", "shape"), DECODERS.values(), ids=DECODERS)
each_encoder = pytest.mark.parametrize("net", ENCODERS.values(), ids=ENCODERS)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tokens(seed, *shape):
    return np.random.default_rng(seed).integers(0, LEVELS, shape).astype(np.int32)


def some_params(net, *inputs):
    """Parameters of the right shapes, none of them zero."""
    leaves, tree = jax.tree.flatten(jax.eval_shape(net.init, jax.random.key(0), *inputs))
    return tree.unflatten([0.5 * normal(i, *leaf.shape) for i, leaf in enumerate(leaves)])


def assert_close(actual, expected, **tolerances):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerances), actual, expected)


# --- decoders


@each_decoder
def test_logits_depend_on_what_came_before_and_on_nothing_else(net, shape):
    """Bit-equal where a later token, or this one, is changed; different somewhere where the one before is."""
    y, c = tokens(0, *shape), normal(1, 3)
    network = as_network(net)
    params = some_params(network, y, c)
    size = y.size
    changed = np.tile(y.ravel(), (size, 1))
    changed[np.arange(size), np.arange(size)] = (changed[np.arange(size), np.arange(size)] + 1) % LEVELS
    run = jax.jit(jax.vmap(network.apply, (None, 0, None)))
    logits = run(params, np.concatenate([y.reshape(1, *shape), changed.reshape(-1, *shape)]), c)
    logits = np.asarray(logits).reshape(size + 1, size, LEVELS)
    different = np.any(logits[1:] != logits[:1], axis=-1)  # [where it was changed, where it is seen]
    assert not np.any(different[np.tril_indices(size)])
    assert np.all(np.diagonal(different, offset=1)[np.arange(size - 1) % shape[-1] != shape[-1] - 1])
    assert np.all(np.any(different[:-1], axis=1))


@each_decoder
def test_the_gradient_of_a_loss_with_respect_to_later_inputs_is_zero(net, shape):
    """Through the embeddings: that of a value used only at positions >= t has no gradient from the loss at t."""
    y = np.full(shape, 1, np.int32)
    size, t = y.size, y.size // 2
    y.ravel()[t:] = 2  # value 2 stands at t and after it, and nowhere before
    network = as_network(net)
    params = some_params(network, y)

    def loss(params, at):
        return jax.nn.log_softmax(network.apply(params, y).reshape(size, LEVELS)[at])[0]

    gradient = jax.jit(jax.grad(loss))
    table = [gradient(params, at)["params"]["embedding"]["embedding"] for at in (t, size - 1)]
    assert np.all(table[0][2] == 0) and np.any(table[0][1] != 0)
    assert np.any(table[1][2] != 0)


@each_decoder
def test_steps_give_the_logits_of_the_whole(net, shape):
    """Without and with conditions; LSTM's carry, the transformer's cache, and a network applied anew each time."""
    y = tokens(0, *shape)
    network = as_sequence_network(net)
    for c in ((), (normal(1, 3), normal(2, 2, 2))):
        params = some_params(network, y, *c)

        def stepwise(params, y, *c):
            before = jnp.concatenate([jnp.full(1, LEVELS, jnp.int32), y.ravel()[:-1]])
            carry = network.start(params, jnp.zeros_like(y), *c)
            logits = jax.lax.scan(functools.partial(network.step, params), carry, before)[1]
            return logits.reshape(*y.shape, LEVELS)

        got, want = jax.jit(stepwise)(params, y, *c), jax.jit(network.apply)(params, y, *c)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@each_decoder
def test_examples_do_not_mix_and_conditions_count(net, shape):
    ys, cs, weights = tokens(0, 3, *shape), normal(1, 3, 2, 2), normal(2, 3, *shape, LEVELS)
    params = some_params(net, ys, cs)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def batched(params, ys, cs):
        logits = net.apply(params, ys, cs)
        return jnp.sum(weights * logits), logits

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def mapped(params, ys, cs):
        logits = jax.vmap(as_network(net).apply, (None, 0, 0))(params, ys, cs)
        return jnp.sum(weights * logits), logits

    (_, logits), gradient = batched(params, ys, cs)
    assert logits.shape == (3, *shape, LEVELS) and logits.dtype == jnp.float32
    (_, other), of_rows = mapped(params, ys, cs)
    assert_close(other, logits, rtol=1e-4, atol=1e-5)
    assert_close(of_rows, gradient, rtol=1e-3, atol=1e-4)
    unused = sum(not np.any(leaf) for leaf in jax.tree.leaves(gradient))
    assert unused <= (0 if isinstance(net, LSTM | Transformer) else 2)  # the last rows above are seen by nobody
    moved = cs + np.array([0, 1, 0], np.float32)[:, None, None]
    (_, far), _ = batched(params, ys, moved)
    np.testing.assert_array_equal(far[0], logits[0])
    assert np.all(np.any(far[1] != logits[1], axis=-1))


@each_decoder
def test_a_longer_array_has_the_same_logits_at_its_start(net, shape):
    """Any length up to the maximum: sequences, and rows of grids."""
    y = tokens(0, shape[0] + 3, *shape[1:])
    network = as_network(net)
    params = some_params(network, y)
    run = jax.jit(network.apply)
    np.testing.assert_allclose(run(params, y[:-3]), run(params, y)[:-3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("net", [LSTM(LEVELS, 4, 6, layers=2, dropout=0.5), Transformer(LEVELS, 8, 1, 2, dropout=0.5)])
def test_dropout_is_on_with_a_key_and_off_without(net):
    y = tokens(0, 7)
    network = as_network(net)
    params = some_params(network, y)
    run = jax.jit(network.apply)
    plain = jax.jit(as_network(net.clone(dropout=0.0)).apply)(params, y)
    np.testing.assert_allclose(run(params, y), plain, rtol=1e-4, atol=1e-5)
    noisy = run(params, y, key=jax.random.key(0))
    np.testing.assert_array_equal(noisy, run(params, y, key=jax.random.key(0)))
    assert np.any(noisy != run(params, y, key=jax.random.key(1))) and np.any(noisy != run(params, y))


@pytest.mark.parametrize("net", [LSTM(LEVELS, 4, 6), Transformer(LEVELS, 8, 1, 2), PixelCNN(LEVELS, 4, 1)])
def test_types_of_the_computation(net):
    y = tokens(0, 1, 3, 3)
    params, rough_net = some_params(net, y), net.clone(dtype=jnp.bfloat16)

    @jax.jit
    def run(params):
        return net.apply(params, y), net.apply(params, y.astype(np.float32)), rough_net.apply(params, y)

    exact, from_floats, rough = run(params)
    assert rough.dtype == jnp.float32
    assert 0 < np.max(np.abs(rough - exact)) / np.std(exact) < 0.1  # bfloat16 has 8 bits
    np.testing.assert_array_equal(from_floats, exact)
    shapes = jax.eval_shape(rough_net.init, jax.random.key(0), y)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    "net",
    [LSTM(3, 2, 3, layers=2, dtype=jnp.float64), Transformer(3, 4, 1, 2, dtype=jnp.float64)],
    ids=["lstm", "rotary"],
)
def test_gradients_are_finite_differences(net, x64):
    y, c = np.array([[0, 2, 1, 1]], np.int32), jnp.float64(normal(0, 1, 2))
    params = jax.tree.map(jnp.float64, some_params(net, y, c))
    assert jax.eval_shape(net.apply, params, y, c).dtype == jnp.float64
    check_grads(jax.jit(lambda params, c: net.apply(params, y, c)), (params, c), order=1, modes=("fwd", "rev"))


# --- the LSTM


def plain_lstm(gates, kernel, h, c):
    """The recurrence in numpy, as the equations say it."""
    hs = []
    for gate in gates:
        i, f, g, o = np.split(gate + h @ kernel, 4, axis=-1)
        i, f, o = (1 / (1 + np.exp(-a)) for a in (i, f, o))
        c = f * c + i * np.tanh(g)
        h = o * np.tanh(c)
        hs.append(h)
    return np.stack(hs)


def recurrence(seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape)) for shape in ((5, 2, 12), (3, 12), (2, 3), (2, 3))]


def test_the_recurrence_is_its_equations_and_its_derivative_that_of_the_scan(x64):
    def scanned(gates, kernel, h, c):
        def step(carry, gates):
            h, c = carry
            c, h, *_ = cell(gates + h @ kernel, c)
            return (h, c), h

        return jax.lax.scan(step, (h, c), gates)[1]

    inputs = recurrence()
    np.testing.assert_allclose(run_lstm(*inputs), plain_lstm(*map(np.asarray, inputs)), rtol=1e-12)

    def loss(run, *inputs):
        return jnp.sum(jnp.sin(run(*inputs)))

    def gradient(run):
        return jax.jit(jax.grad(functools.partial(loss, run), (0, 1, 2, 3)))(*inputs)

    assert_close(gradient(run_lstm), gradient(scanned), rtol=1e-10, atol=1e-12)


def test_the_gradient_of_the_recurrent_weights_is_one_product_for_the_whole_batch():
    """Of a mapped batch as well: rows of all positions and examples, and no sum in the loop over positions."""
    gates, kernel, h, c = recurrence()
    many = jnp.tile(gates[None], (4, 1, 1, 1))

    def loss(kernel):
        return jnp.sum(jax.vmap(lambda gates: run_lstm(gates, kernel, h, c))(many))

    lowered = jax.jit(jax.grad(loss)).lower(kernel).as_text()
    assert "tensor<40x3xf32>, tensor<40x12xf32>) -> tensor<3x12xf32>" in lowered
    assert lowered.count("-> tensor<3x12xf32>") == 1


def test_the_lstm_is_that_of_flax():
    """One layer without conditions: flax's cell with the same numbers."""
    net, y = LSTM(LEVELS, 4, 6), tokens(0, 2, 7)
    params = some_params(net, y)
    ours = params["params"]
    bias, inputs = (np.split(ours["stack"]["inputs_0"][name], 4, axis=-1) for name in ("bias", "kernel"))
    recurrent = np.split(ours["stack"]["recurrent_0"], 4, axis=-1)
    theirs = {f"i{g}": {"kernel": k} for g, k in zip("ifgo", inputs, strict=True)}
    theirs |= {f"h{g}": {"kernel": k, "bias": b} for g, k, b in zip("ifgo", recurrent, bias, strict=True)}
    shifted = np.concatenate([np.full((2, 1), LEVELS), y[:, :-1]], axis=1)
    embedded = np.asarray(ours["embedding"]["embedding"])[shifted]
    h = jax.jit(nn.RNN(nn.OptimizedLSTMCell(6)).apply)({"params": {"cell": theirs}}, embedded)
    want = np.asarray(h) @ ours["last"]["kernel"] + ours["last"]["bias"]
    np.testing.assert_allclose(jax.jit(net.apply)(params, y), want, rtol=1e-4, atol=1e-5)


def test_the_lstm_remembers_at_the_start():
    net = LSTM(LEVELS, 4, 6)
    bias = jax.jit(net.init)(jax.random.key(0), tokens(0, 1, 3))["params"]["stack"]["inputs_0"]["bias"]
    np.testing.assert_array_equal(bias, np.repeat([0, 1, 0, 0], 6))


# --- the transformer


def test_rotations_tell_distances_only():
    """<rotated(q, s), rotated(k, t)> depends on s - t, and lengths stay."""
    q, k = jnp.asarray(normal(0, 1, 1, 1, 8)), jnp.asarray(normal(1, 1, 1, 1, 8))

    def product(s, t):
        return float(jnp.sum(rotated(q, jnp.array([s])) * rotated(k, jnp.array([t]))))

    np.testing.assert_allclose(product(3, 1), product(10, 8), rtol=1e-4)
    assert abs(product(3, 1) - product(1, 3)) > 1e-2
    np.testing.assert_allclose(jnp.linalg.norm(rotated(q, jnp.array([5]))), np.linalg.norm(q), rtol=1e-5)
    angle = 5 * 10_000.0 ** (-np.arange(4) / 4)
    real, imaginary = np.split(np.asarray(q[0, 0, 0]), 2)
    turned = (real + 1j * imaginary) * np.exp(1j * angle)
    np.testing.assert_allclose(rotated(q, jnp.array([5]))[0, 0, 0], [*turned.real, *turned.imag], rtol=1e-4, atol=1e-5)


# --- encoders


@each_encoder
def test_an_encoder_sees_the_sentence_and_not_its_padding(net):
    """Every word counts, conditions count, what follows the end does not, whatever it is."""
    y, c = np.array([3, 1, 4, 2, 0, 0, 0], np.int32), normal(0, 2)
    network = as_network(net)
    params = some_params(network, y, c)
    run = jax.jit(network.apply)
    want = run(params, y, c)
    assert want.shape == (2, 3) and want.dtype == jnp.float32
    for length in (5, 6, 10):
        padded = np.zeros(length, np.int32)
        padded[: min(length, 7)] = y[:length]
        np.testing.assert_allclose(run(params, padded, c), want, rtol=1e-5, atol=1e-6)
    behind = y.copy()
    behind[5:] = [4, 2]
    np.testing.assert_array_equal(run(params, behind, c), want)
    for i in range(4):
        other = y.copy()
        other[i] = 1 + other[i] % 4
        assert np.any(np.abs(run(params, other, c) - want) > 1e-4)
    assert np.any(np.abs(run(params, y, c + 1) - want) > 1e-4)
    whole = np.array([3, 1, 4, 2, 1, 3, 2], np.int32)  # no end: the last word counts
    assert np.any(run(params, whole, c) != run(params, np.array([3, 1, 4, 2, 1, 3, 1], np.int32), c))


@each_encoder
def test_the_order_of_words_counts(net):
    network, y = as_network(net), np.array([3, 1, 4, 0], np.int32)
    params = some_params(network, y)
    run = jax.jit(network.apply)
    assert np.any(np.abs(run(params, y) - run(params, y[[1, 0, 2, 3]])) > 1e-4)


# --- what a network is


def test_a_sequence_network_is_taken_as_it_is():
    network = as_sequence_network(LSTM(LEVELS, 4, 6))
    assert as_sequence_network(network) is network
    assert isinstance(network, SequenceNetwork)


def test_a_pair_of_functions_is_a_sequence_network():
    """One without steps is applied anew for each position."""

    def apply(params, y, c):
        before = jnp.concatenate([jnp.zeros(1), y[:-1].astype(jnp.float32)])
        return jnp.cumsum(before)[:, None] * params[None] + c

    pair = (lambda key, y, c: jnp.arange(3.0), apply)
    for net in (pair, Network(*pair)):
        network = as_sequence_network(net)
        params = network.init(jax.random.key(0), jnp.zeros(4, jnp.int32), 1.0)
        carry = network.start(params, jnp.zeros(4, jnp.int32), 1.0)
        got = []
        for token in (3, 2, 0, 1):
            carry, logits = network.step(params, carry, token)
            got.append(logits)
        np.testing.assert_allclose(got, apply(params, jnp.array([2, 0, 1, 0]), 1.0))


@pytest.mark.parametrize("wrong", [lambda x: x, None, "lstm", LSTM, (lambda key: {},)])
def test_other_things_are_no_sequence_networks(wrong):
    with pytest.raises(TypeError, match="flax linen module or a pair"):
        as_sequence_network(wrong)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LSTM(0, 4, 6), r"LSTM wants positive sizes in levels, got \(0,\)"),
        (lambda: LSTM(5, 4, 6, layers=0), "positive sizes in layers"),
        (lambda: LSTM(5, 4, 6, dropout=1.0), r"LSTM wants dropout in \[0, 1\), got 1.0"),
        (lambda: SequenceEncoder(5, 0, 6, 2), "SequenceEncoder wants positive sizes in embed"),
        (lambda: Transformer(5, 8, 2, 3), "Transformer wants a width that is a multiple of 6 for 3 heads, got 8"),
        (lambda: Transformer(5, 6, 2, 4, max_length=3), "multiple of 4 for 4 heads, got 6"),
        (lambda: Transformer(5, 8, 0, 2), "positive sizes in depth"),
        (lambda: Transformer(5, 8, 1, 2, max_length=0), "positive sizes in max_length"),
        (lambda: TransformerEncoder(5, 8, 1, 2, 3, dropout=-0.1), r"TransformerEncoder wants dropout in \[0, 1\)"),
        (lambda: PixelCNN(5, 0, 2), "PixelCNN wants positive sizes in width"),
    ],
)
def test_sizes_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_inputs_that_cannot_be():
    with pytest.raises(ValueError, match=r"PixelCNN wants grids \(h, w\) of whole numbers, got a shape \(7,\)"):
        PixelCNN(5, 4, 2).init(jax.random.key(0), tokens(0, 1, 7))
    with pytest.raises(ValueError, match="max_length=4: this transformer has not learned the places of 5 tokens"):
        Transformer(5, 8, 1, 2, max_length=4).init(jax.random.key(0), tokens(0, 1, 5))
