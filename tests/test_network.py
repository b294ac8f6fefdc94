"""What is taken as a network, and that one example gets what it would get in a batch."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from laws import affine

from vae_jax import gaussian
from vae_jax.core import Network, as_network

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
        nnx.Linear(2, 2, rngs=nnx.Rngs(0)),
    ],
    ids=["function", "None", "name", "one", "three", "dict", "class", "nnx"],
)
def test_other_things_are_no_networks(wrong):
    with pytest.raises(TypeError, match=r"flax linen module or a pair \(init, apply\); got"):
        as_network(wrong)
