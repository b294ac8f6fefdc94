"""Preprocessing against exact probabilities; statistical tests state their key and tolerance."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vae_jax.data import load, preprocess

ALL_LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
OF_LEVELS = {
    "dynamic": preprocess.dynamic_binarisation(),
    "static": preprocess.static_binarisation(),
    "threshold": preprocess.threshold_binarisation(),
    "unit": preprocess.unit_scale(),
    "dequantisation": preprocess.dequantisation(),
    "levels": preprocess.eight_bit(),
}
EVERY = OF_LEVELS | {"identity": preprocess.identity()}
BINARY = ("dynamic", "static", "threshold")


def draws(apply, seed: int, n: int, y: np.ndarray) -> np.ndarray:
    keys = jax.random.split(jax.random.key(seed), n)
    return np.asarray(jax.jit(jax.vmap(apply, in_axes=(0, None)))(keys, y))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("shape", [(), (1,), (7, 5, 3), (28, 28, 1)])
def test_bits_are_those_of_jax(impl, shape):
    """The one fused kernel is jax's own generator bit for bit."""
    ours = preprocess._bits(jax.random.key(3, impl=impl), shape)
    theirs = jax.random.bits(jax.random.key(3, impl=impl), shape, jnp.uint32)
    np.testing.assert_array_equal(ours, theirs)


def test_a_key_used_twice_is_noticed():
    apply = OF_LEVELS["dynamic"].apply
    with jax.debug_key_reuse(True):
        key = jax.random.key(0)
        apply(key, ALL_LEVELS)
        with pytest.raises(jax.errors.KeyReuseError):
            apply(key, ALL_LEVELS)


def test_dynamic_binarisation_has_probability_level_over_255():
    """All 256 levels at once, n = 20,000 draws, key 1; within 4.5 standard errors each.

    254 two-sided normal tails beyond 4.5 standard errors: a chance of 0.0017 for a right program.
    """
    n, p = 20_000, ALL_LEVELS / 255
    mean = draws(OF_LEVELS["dynamic"].apply, 1, n, ALL_LEVELS).mean(axis=0)
    assert (np.abs(mean - p) <= 4.5 * np.sqrt(p * (1 - p) / n)).all()
    assert mean[0, 0, 0] == 0 and mean[-1, -1, 0] == 1  # black and white are certain
    inside = (p > 0) & (p < 1)  # and over all levels together: mean of z is 0 +- 1 / sqrt(254)
    z = ((mean - p)[inside] / np.sqrt(p * (1 - p) / n)[inside]).mean()
    assert abs(z) <= 4 / math.sqrt(254)


def test_dynamic_binarisation_threshold_is_exact(monkeypatch):
    """Against integer arithmetic: of the 2^32 values of the bits, round(2^32 v / 255) give 1."""
    levels = np.arange(256, dtype=np.uint8)

    def drawn(bits):
        monkeypatch.setattr(preprocess, "_bits", lambda key, shape: jnp.asarray(bits, jnp.uint32))
        return np.asarray(preprocess._bernoulli(jax.random.key(0), levels))

    last = np.array([v * (2**32 - 1) // 255 for v in range(256)], dtype=np.uint32)
    assert drawn(last)[1:].all() and not drawn(last)[0]
    above = np.append(last[:-1] + 1, 0).astype(np.uint32)
    assert not drawn(above)[:-1].any() and drawn(above)[-1]


def test_pixels_of_dynamic_binarisation_are_independent():
    """Neighbours and halves of one image, 4,000 draws at p = 128 / 255, key 2.

    The correlation of two independent pixels is 0 +- 1 / sqrt(n); the largest of 64 * 63 / 2 pairs
    stays under 5 standard errors but for a chance of 0.0012.
    """
    y = np.full((8, 8, 1), 128, np.uint8)
    x = draws(OF_LEVELS["dynamic"].apply, 2, 4000, y).reshape(4000, 64)
    correlation = np.corrcoef(x.T) - np.eye(64)
    assert np.abs(correlation).max() <= 5 / math.sqrt(4000)


def test_dynamic_binarisation_differs_between_visits():
    y = load("fashion_mnist_mini", "test").ys[0]
    first, second = draws(OF_LEVELS["dynamic"].apply, 4, 2, y)
    assert (first != second).any()


def test_static_binarisation_is_one_draw_whatever_the_key():
    ys = load("fashion_mnist_mini", "test").ys[:64]
    apply = jax.jit(jax.vmap(OF_LEVELS["static"].apply))
    once = apply(jax.random.split(jax.random.key(0), 64), ys)
    again = apply(jax.random.split(jax.random.key(1), 64), ys)
    np.testing.assert_array_equal(once, again)
    backwards = apply(jax.random.split(jax.random.key(2), 64), ys[::-1])
    np.testing.assert_array_equal(once, backwards[::-1])
    alone = OF_LEVELS["static"].apply(jax.random.key(3, impl="rbg"), ys[5])
    np.testing.assert_array_equal(once[5], alone)


def test_static_binarisation_has_probability_level_over_255():
    """3,000 images that share 255 pixels but for one corner; mean over images at each level.

    The images differ in two corner bytes only, so the draws are independent if the hash tells them
    apart. Within 4.5 standard errors each, as for the dynamic draw.
    """
    n, p = 3000, ALL_LEVELS.reshape(-1) / 255
    ys = np.repeat(ALL_LEVELS.reshape(1, -1), n, axis=0)
    ys = np.concatenate([ys, np.stack(np.divmod(np.arange(n), 256), axis=1)], axis=1)
    keys = jax.random.split(jax.random.key(0), n)
    x = jax.jit(jax.vmap(OF_LEVELS["static"].apply))(keys, ys.astype(np.uint8)[..., None, None])
    mean = np.asarray(x)[:, :256, 0, 0].mean(axis=0)
    assert (np.abs(mean - p) <= 4.5 * np.sqrt(p * (1 - p) / n)).all()


def test_static_binarisation_differs_between_examples_and_seeds():
    y = np.full((28, 28, 1), 128, np.uint8)
    near = y.copy()
    near[27, 27, 0] = 129
    key = jax.random.key(0)
    static = OF_LEVELS["static"].apply(key, y)
    share = {  # of pixels that differ: 1/2 +- 1/56 for independent draws; 5 standard errors allowed
        "one level of one pixel": (static != OF_LEVELS["static"].apply(key, near)).mean(),
        "seed": (static != preprocess.static_binarisation(1).apply(key, y)).mean(),
    }
    for what, differing in share.items():
        assert abs(differing - 0.5) <= 5 / 56, what


def test_static_binarisation_is_the_same_for_ever():
    """Its draws define a data set, so they may not change between versions: pinned once."""
    x = OF_LEVELS["static"].apply(jax.random.key(0), load("fashion_mnist_mini", "test").ys[0])
    assert int((np.asarray(x).ravel() * (np.arange(784) % 97)).sum()) == 5544


@pytest.mark.parametrize("level", [0.5, 1 / 255, 51 / 255, 0.2, 1.0])
def test_threshold_binarisation_against_exact_fractions(level):
    x = preprocess.threshold_binarisation(level).apply(jax.random.key(0), ALL_LEVELS)
    exact = np.array([v / 255 >= level for v in range(256)]).reshape(16, 16, 1)
    np.testing.assert_array_equal(x, exact)
    assert 0 < exact.sum() < 256


@pytest.mark.parametrize("level", [0, -0.1, 1.1, 127, math.nan])
def test_threshold_outside_the_scale_is_refused(level):
    with pytest.raises(ValueError, match=r"level.*\(0, 1\].*255"):
        preprocess.threshold_binarisation(level)


def test_unit_scale_and_levels_are_exact():
    key = jax.random.key(0)
    unit = OF_LEVELS["unit"].apply(key, ALL_LEVELS)
    np.testing.assert_allclose(unit, ALL_LEVELS / 255, rtol=1.2e-7)
    assert unit[0, 0, 0] == 0 and unit[-1, -1, 0] == 1
    np.testing.assert_array_equal(OF_LEVELS["levels"].apply(key, ALL_LEVELS), ALL_LEVELS)


def test_dequantisation_is_uniform_within_the_level():
    """n = 256 x 2,000 values of u = 256 x - y, key 5, 4 standard errors: mean 1/2, variance 1/12.

    The standard error of the mean is sqrt(1/12 / n), that of the variance sqrt(1/180 / n).
    """
    x = draws(OF_LEVELS["dequantisation"].apply, 5, 2000, ALL_LEVELS)
    assert x.dtype == np.float32
    assert x.min() >= 0 and x.max() < 1
    np.testing.assert_array_equal(np.floor(x * 256), np.broadcast_to(ALL_LEVELS, x.shape))
    u = x.astype(np.float64) * 256 - ALL_LEVELS
    assert abs(u.mean() - 0.5) <= 4 * math.sqrt(1 / 12 / u.size)
    assert abs(u.var() - 1 / 12) <= 4 * math.sqrt(1 / 180 / u.size)


def test_dequantisation_of_white_never_reaches_one(monkeypatch):
    monkeypatch.setattr(preprocess, "_bits", lambda key, shape: jnp.full(shape, 2**32 - 1, jnp.uint32))
    x = OF_LEVELS["dequantisation"].apply(jax.random.key(0), ALL_LEVELS)
    assert x.max() == 1 - 2**-24
    np.testing.assert_array_equal(np.floor(np.asarray(x) * 256), ALL_LEVELS)


def test_log_volume_turns_densities_into_nats_per_level():
    """A uniform density on [0, 1] gives 0 nats per dimension; the levels it implies cost ln 256."""
    assert OF_LEVELS["dequantisation"].log_volume == pytest.approx(8 * math.log(2))
    assert all(OF_LEVELS[name].log_volume == 0 for name in (*BINARY, "levels"))
    assert EVERY["unit"].log_volume is None and EVERY["identity"].log_volume is None


def test_names_tell_the_conventions_apart():
    others = (preprocess.static_binarisation(1), preprocess.threshold_binarisation(0.25))
    names = [p.name for p in (*EVERY.values(), *others)]
    assert len(set(names)) == len(names)
    assert EVERY["identity"].name == "as given"


@pytest.mark.parametrize("name", OF_LEVELS)
def test_data_that_are_no_levels_are_refused(name):
    with pytest.raises(TypeError, match=r"uint8 levels.*float32.*\(4, 4, 1\).*identity"):
        OF_LEVELS[name].apply(jax.random.key(0), np.zeros((4, 4, 1), np.float32))


def test_identity_gives_back_what_it_was_given():
    y = np.linspace(-3, 3, 5)
    assert EVERY["identity"].apply(jax.random.key(0), y) is y


@pytest.mark.parametrize("name", EVERY)
@given(
    n=st.integers(1, 3),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3])),
    seed=st.integers(0, 2**16),
)
@settings(deadline=None, max_examples=5)
def test_batches_keep_shape_and_equal_single_examples(name, n, shape, seed):
    """jit of vmap, any shape: the dtype promised, values in range, and each row as if alone."""
    ys = np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)
    apply = EVERY[name].apply
    batch = jax.jit(jax.vmap(apply))(jax.random.split(jax.random.key(seed), n), ys)
    dtype = {"levels": jnp.int32, "identity": jnp.uint8}.get(name, jnp.float32)
    assert batch.shape == ys.shape and batch.dtype == dtype
    if name in BINARY:
        assert np.isin(batch, (0, 1)).all()
    last = jax.jit(apply)(jax.random.split(jax.random.key(seed), n)[-1], ys[-1])
    np.testing.assert_array_equal(batch[-1], last)
