"""What is taken as a network, and that one example gets what it would get in a batch."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from laws import affine

from vae_jax import bernoulli, fit, gaussian, standard_normal, vae
from vae_jax.core import Network, as_network
from vae_jax.core.network import as_sequence_network
from vae_jax.diffusion import denoiser, diffusion
from vae_jax.parts import autoregressive, in_training
from vae_jax.training.description import describe
from vae_jax.vq import fsq, uniform_codes, vq_vae

KEY = jax.random.key(0)
IMAGES = jax.random.normal(jax.random.key(1), (3, 4, 4, 2))


def test_pair_and_network_are_taken_as_they_are():
    init, apply = affine(2)
    network = as_network((init, apply))
    assert network == (init, apply) and isinstance(network, Network)
    assert as_network(network) is network
    params = {"weights": jnp.eye(2), "bias": jnp.ones(2)}
    np.testing.assert_allclose(network.apply(params, jnp.array([1.0, 2.0])), [2, 3])


def test_linen_module_sees_one_example():
    """Parameters are flax's own, so that weights trained elsewhere fit."""
    module = nn.Dense(5)
    network = as_network(module)
    params = network.init(KEY, jnp.ones(3))
    wanted = module.init(KEY, jnp.ones((1, 3)))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), params, wanted))
    x = jnp.arange(3.0)
    got = network.apply(params, x)
    assert got.shape == (5,)
    np.testing.assert_allclose(got, x @ params["params"]["kernel"] + params["params"]["bias"], rtol=1e-6)


class Normed(nn.Module):
    """GroupNorm after a convolution: both of them read an image without a batch axis as something else."""

    @nn.compact
    def __call__(self, x):
        return nn.GroupNorm(2)(nn.Conv(4, (3, 3))(x))


def test_group_norm_of_one_image_equals_that_of_a_batch():
    network = as_network(Normed())
    params = network.init(KEY, IMAGES[0])
    batched, of_one = jax.jit(Normed().apply)(params, IMAGES), jax.jit(network.apply)
    for image, want in zip(IMAGES, batched, strict=True):
        np.testing.assert_allclose(of_one(params, image), want, rtol=1e-5, atol=1e-6)
    rows = jax.jit(jax.vmap(network.apply, (None, 0)))(params, IMAGES)
    np.testing.assert_allclose(rows, batched, rtol=1e-5, atol=1e-6)
    means = np.mean(batched.reshape(3, 16, 2, 2), axis=(1, 3))  # per image and group
    np.testing.assert_allclose(means, 0, atol=1e-5)
    unbatched = jax.jit(Normed().apply)(params, IMAGES[0])  # flax normalises each row of pixels, without a word
    assert unbatched.shape == batched[0].shape and np.max(np.abs(unbatched - batched[0])) > 0.1


class Heads(nn.Module):
    """Two inputs, two outputs."""

    @nn.compact
    def __call__(self, z, c):
        h = jnp.concatenate([z.reshape(z.shape[0], -1), c], axis=-1)
        return {"mean": nn.Dense(2)(h), "log_std": nn.Dense(2)(h)}


def test_two_inputs_and_a_tree_of_outputs():
    """z of shape (4, 1) and c of shape (3,): each gets its batch axis, each output loses it."""
    network = as_network(Heads())
    z, c = jnp.arange(4.0).reshape(4, 1), jnp.array([0.0, 1.0, 0.0])
    params = network.init(KEY, z, c)
    got, want = network.apply(params, z, c), Heads().apply(params, z[None], c[None])
    assert jax.tree.map(jnp.shape, got) == {"mean": (2,), "log_std": (2,)}
    for name in got:
        np.testing.assert_array_equal(got[name], want[name][0])
    other = network.apply(params, z, jnp.array([1.0, 0.0, 0.0]))
    assert np.all(other["mean"] != got["mean"])


def test_joined_condition_reaches_a_network_as_two_arguments():
    """(z, c) is z and c for a module and for a pair; z alone is one argument."""

    class Two(nn.Module):
        @nn.compact
        def __call__(self, z, c=None):
            return nn.Dense(4)(z if c is None else z * c)

    part = gaussian(Two())
    z, c = jnp.array([1.0, 2.0]), jnp.array([0.0, 3.0])
    params = part.init(KEY, (z, c))
    np.testing.assert_allclose(part.dist(params, (z, c)).mean, part.dist(params, z * c).mean, rtol=1e-6)


def test_whole_numbers_and_scalars_get_a_batch_axis():
    network = as_network(nn.Embed(5, 3))
    params = network.init(KEY, 2)
    np.testing.assert_array_equal(network.apply(params, 2), params["params"]["embedding"][2])
    np.testing.assert_array_equal(network.apply(params, np.int32(4)), params["params"]["embedding"][4])


def test_batch_norm_is_refused():
    class Batched(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=False)(nn.Dense(2)(x))

    with pytest.raises(ValueError, match=r"Batched keeps .*batch_stats.* beside .*BatchNorm.*GroupNorm or LayerNorm"):
        as_network(Batched()).init(KEY, jnp.ones(3))


class Two(nnx.Module):
    """Two layers of weights, and dropout between them."""

    def __init__(self, size, hidden, out, dropout=0.5, *, rngs):
        self.first, self.last = nnx.Linear(size, hidden, rngs=rngs), nnx.Linear(hidden, out, rngs=rngs)
        self.dropout = nnx.Dropout(dropout, rngs=rngs)

    def __call__(self, x):
        return self.last(self.dropout(jnp.tanh(self.first(x))))


def of_linen(params):
    """The parameters of `Two` that are those of the same network in linen."""
    return {"first": params["params"]["layers_0"], "last": params["params"]["layers_2"]}


def pure(module):
    return nnx.to_pure_dict(nnx.state(module, nnx.Param))


def same(one, other):
    return jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), one, other))


def test_nnx_and_linen_of_the_same_weights_have_the_same_bound_and_gradient():
    """An nnx module as encoder, a function that makes one as generator; dropout without a key is none."""
    enc, gen = (nn.Sequential([nn.Dense(3), jnp.tanh, nn.Dense(size)]) for size in (2, 4))
    in_linen = vae(gaussian(enc), standard_normal(1), bernoulli(gen))
    enc, gen = Two(4, 3, 2, rngs=nnx.Rngs(7)), functools.partial(Two, 1, 3, 4)
    in_nnx = vae(gaussian(enc), standard_normal(1), bernoulli(gen))
    params = in_linen.init(KEY, jnp.zeros(4))
    moved = {"enc": of_linen(params["enc"]), "pri": params["pri"], "gen": of_linen(params["gen"])}
    ys, keys = jnp.eye(4)[:3], jax.random.split(KEY, 3)

    def loss_of(model):
        def loss(params):
            terms = jax.vmap(model.terms, (None, 0, 0))(params, keys, ys)
            return jnp.mean(terms.distortion + terms.rate)

        return jax.value_and_grad(loss)

    @jax.jit
    def both(params, moved):
        return loss_of(in_linen)(params), loss_of(in_nnx)(moved)

    (want, gradient), (got, moved_gradient) = both(params, moved)
    assert jax.tree.structure(in_nnx.init(KEY, ys[0])) == jax.tree.structure(moved)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    for part in ("enc", "gen"):
        assert jax.tree.all(jax.tree.map(np.any, moved_gradient[part]))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
            moved_gradient[part],
            of_linen(gradient[part]),
        )


def test_nnx_module_has_its_weights_and_keeps_them():
    """Whatever becomes of it later; a function of rngs makes new ones of each key."""
    module = Two(4, 3, 2, rngs=nnx.Rngs(1))
    before = jax.tree.map(jnp.copy, nnx.state(module))
    network = as_network(module)
    params = network.init(KEY, jnp.zeros(4))
    assert same(params, pure(module))
    assert params["first"]["kernel"] is not pure(module)["first"]["kernel"]
    other = jax.tree.map(lambda x: x + 1, params)
    xs = IMAGES[:, :, 0, 0]
    want = network.apply(other, xs[0])
    network.apply(params, xs[0], key=KEY)
    assert same(nnx.state(module), before) and module.dropout.deterministic is False
    nnx.update(module, other)
    assert same(network.init(KEY, xs[0]), params)
    module.eval()
    np.testing.assert_allclose(want, module(xs)[0], rtol=1e-6)
    rows = jax.jit(jax.vmap(network.apply, (None, 0)))(other, xs)
    np.testing.assert_allclose(rows, module(xs), rtol=1e-5)

    made = as_network(functools.partial(Two, 4, 3, 2))
    key = jax.random.key(5)
    assert same(made.init(key, xs[0]), pure(Two(4, 3, 2, rngs=nnx.Rngs(key))))
    np.testing.assert_allclose(made.apply(other, xs[0]), want, rtol=1e-6)
    with pytest.raises(KeyError, match="last"):
        made.apply({"first": params["first"]}, xs[0])


def test_arrays_of_an_nnx_module_that_are_no_variables_are_constants():
    class Scaled(nnx.Module):
        def __init__(self, rngs):
            self.scale, self.shift = jnp.arange(3.0), np.ones(3, np.float32)
            self.weight = nnx.Param(jax.random.normal(rngs.params(), (3,)))

        def __call__(self, x):
            return x * (self.weight * self.scale + self.shift)[None]

    for net in (Scaled, Scaled(nnx.Rngs(0))):
        network = as_network(net)
        params = network.init(KEY, jnp.ones(3))
        assert list(params) == ["weight"]
        want = params["weight"] * np.arange(3) + 1
        np.testing.assert_allclose(network.apply(params, jnp.ones(3)), want)
        within = jax.jit(lambda params, net=net: as_network(net).apply(params, jnp.ones(3)))  # made in a trace
        np.testing.assert_allclose(within(params), want, rtol=1e-6)


def test_nnx_dropout_is_on_with_a_key_and_off_without():
    """Each layer draws its own: of ones, two layers of rate 1/2 leave a quarter, as 4; within 4 standard errors."""
    network = as_network(lambda rngs: nnx.Sequential(*(nnx.Dropout(0.5, rngs=rngs) for _ in range(2))))
    x = jnp.ones(4000)
    params = network.init(KEY, x)
    assert jax.tree.leaves(params) == []
    np.testing.assert_array_equal(network.apply(params, x), x)
    run = jax.jit(lambda key: network.apply(params, x, key=key))
    noisy = run(KEY)
    assert set(np.unique(noisy)) == {0.0, 4.0}
    assert abs(np.mean(noisy == 4) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)
    np.testing.assert_array_equal(noisy, run(KEY))
    assert np.any(noisy != run(jax.random.key(1)))


class Causal(nnx.Module):
    """Logits of a position by a table of the value before it, with dropout."""

    def __init__(self, levels, *, rngs):
        self.levels = levels
        self.table = nnx.Param(jax.random.normal(rngs.params(), (levels + 1, levels)))
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, y):
        before = jnp.concatenate([jnp.full((len(y), 1), self.levels), y[:, :-1]], axis=1)
        return self.dropout(self.table[...][before])

    def start(self, y):
        return jnp.zeros(len(y))

    def step(self, carry, token):
        return carry + 1, self.table[...][token]


def test_nnx_module_with_steps_and_dropout_in_training():
    make, y = functools.partial(Causal, 3), jnp.array([2, 0, 1])
    network = as_sequence_network(make)
    params = network.init(KEY, y)
    carry, got = network.start(params, y), []
    for token in (3, 2, 0):
        carry, logits = network.step(params, carry, token)
        got.append(logits)
    np.testing.assert_array_equal(carry, [3.0])
    np.testing.assert_array_equal(got, params["table"][np.array([3, 2, 0])])
    np.testing.assert_array_equal(got, network.apply(params, y))
    part = autoregressive(make, 3, 3)
    trained = jax.jit(lambda key: in_training(part).terms(params, key, y).distortion)
    assert len({float(trained(key)) for key in jax.random.split(KEY, 3)}) == 3


def test_nnx_module_as_encoder_of_codes():
    """Against a pair that does the same; the layers of a list have numbers for names."""
    rngs = nnx.Rngs(0)
    module = nnx.Sequential(nnx.Linear(4, 3, rngs=rngs), jnp.tanh, nnx.Linear(3, 2, rngs=rngs))

    def layer(params, x):
        return x @ params["kernel"] + params["bias"]

    pair = (
        lambda key, y: {"layers": {"0": pure(module.layers[0]), "2": pure(module.layers[2])}},
        lambda params, y: layer(params["layers"]["2"], jnp.tanh(layer(params["layers"]["0"], y))),
    )
    one, other = (vq_vae(net, fsq((3, 3)), uniform_codes(9, ()), bernoulli(affine(4))) for net in (module, pair))
    y = jnp.array([1.0, 0.0, 0.0, 1.0])
    params = one.init(KEY, y)
    assert same(params, other.init(KEY, y))

    @jax.jit
    def both(params):
        return one.terms(params, KEY, y), other.terms(params, KEY, y)

    got, want = both(params)
    np.testing.assert_allclose(got.detail["vectors"], want.detail["vectors"], rtol=1e-6)
    np.testing.assert_allclose(got.distortion, want.distortion, rtol=1e-6)


class Denoising(nnx.Module):
    """A network of (z, gamma), with dropout in training."""

    def __init__(self, size, *, rngs):
        self.inner = Two(size + 1, 3, size, dropout=0.5, rngs=rngs)

    def __call__(self, z, gamma):
        return self.inner(jnp.concatenate([z, gamma[:, None]], axis=-1))


def test_nnx_module_as_denoiser():
    """Against a pair of the same weights: bound, gradient, a sample and a step's denoising; dropout with a key."""
    module = Denoising(2, rngs=nnx.Rngs(0))

    def apply(params, z, gamma):
        first, last = params["inner"]["first"], params["inner"]["last"]
        hidden = jnp.tanh(jnp.append(z, gamma) @ first["kernel"] + first["bias"])
        return hidden @ last["kernel"] + last["bias"]

    pair, y = (lambda key, z, gamma: pure(module), apply), jnp.array([0.7, -1.0])
    one, other = (diffusion(denoiser(net, (2,), steps=4)) for net in (module, pair))
    params = one.init(KEY, y)
    assert same(params, other.init(KEY, y))

    def of(model, params):
        bound = jax.value_and_grad(lambda params: model.terms(params, KEY, y).nats)(params)
        return bound, model.sample(params, KEY)

    got, want = jax.jit(lambda params: [of(model, params) for model in (one, other)])(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)
    d = denoiser(functools.partial(Denoising, 2), (2,))
    level, gen = d.level(None, 0.5), d.init(KEY)["gen"]
    plain, *noisy = (d.denoise(gen, y, level, key=key).noise for key in (None, *jax.random.split(KEY, 3)))
    assert len({tuple(np.asarray(x).tolist()) for x in (plain, *noisy)}) > 1


@pytest.mark.parametrize("of", [lambda make: make, lambda make: make(rngs=nnx.Rngs(0))], ids=["function", "module"])
def test_nnx_batch_norm_is_refused(of):
    """At once: nothing has been called."""

    def make(rngs):
        return nnx.Sequential(nnx.Linear(2, 2, rngs=rngs), nnx.BatchNorm(2, rngs=rngs))

    with pytest.raises(TypeError) as caught:
        gaussian(of(make))
    assert str(caught.value) == (
        "Sequential keeps the variables ['BatchStat'] beside its parameters. Only pure functions of the parameters can "
        "be used here; BatchNorm, the usual cause, also couples the examples of a batch: use GroupNorm or LayerNorm"
    )


def test_function_of_rngs_that_makes_something_else():
    with pytest.raises(TypeError, match="a function of rngs has to make an nnx module; got Dense"):
        as_network(lambda rngs: nn.Dense(3))


def test_description_of_nnx():
    """Another width, rate or weight is another; the same made twice is the same."""

    def described(net):
        return json.dumps(describe(as_network(net)), sort_keys=True)

    wide = described(lambda rngs: Two(4, 5, 2, rngs=rngs))
    assert wide == described(lambda rngs: Two(4, 5, 2, rngs=rngs)) and "not compared" not in wide
    assert wide != described(lambda rngs: Two(4, 3, 2, rngs=rngs))
    module = described(Two(4, 5, 2, rngs=nnx.Rngs(0)))
    assert module == described(Two(4, 5, 2, rngs=nnx.Rngs(0)))
    assert module != described(Two(4, 5, 2, rngs=nnx.Rngs(1)))
    assert module != described(Two(4, 5, 2, 0.25, rngs=nnx.Rngs(0)))


def test_run_of_nnx_is_resumed_bit_for_bit(tmp_path):
    def run(epochs, hidden=3, **options):
        make = functools.partial(Two, 4, hidden, 2)
        model = vae(gaussian(make), standard_normal(1), bernoulli(nnx.Linear(1, 4, rngs=nnx.Rngs(0))))
        return fit(model, optax.sgd(1e-2), np.eye(4), key=KEY, epochs=epochs, batch_size=2, progress=False, **options)

    whole = run(2)
    run(1, directory=tmp_path)
    resumed = run(2, directory=tmp_path, resume=True)
    assert same(resumed.params, whole.params)
    assert not same(whole.params["gen"], pure(nnx.Linear(1, 4, rngs=nnx.Rngs(0))))
    with pytest.raises(ValueError, match=r"fit.model.*: 3 there, 5 asked"):
        run(2, hidden=5, directory=tmp_path, resume=True)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x,
        None,
        "mlp",
        (lambda key, x: {},),
        (lambda key, x: {}, lambda params, x: x, lambda params: params),
        (lambda key, x: {}, {}),
        nn.Dense,
        nnx.Linear,
        functools.partial(nnx.Linear, 2),
        functools.partial(nnx.Linear, 2, 3, 4, 5),
    ],
    ids=["function", "None", "name", "one", "three", "dict", "class", "nnx class", "too few", "too many"],
)
def test_other_things_are_no_networks(wrong):
    with pytest.raises(TypeError, match=r"flax linen module or a pair \(init, apply\); got"):
        as_network(wrong)
