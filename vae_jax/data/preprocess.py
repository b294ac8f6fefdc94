"""From stored 8-bit levels to what a model sees: pure functions of (key, y) for one example.

They run inside jit under vmap, so the noise is drawn anew at every step at no cost in memory. Each
carries the name of its data convention, which is printed beside every number: bounds of different
conventions must not be compared. Equal arguments give the same object: what was compiled for it is
found again.

| convention | y becomes | nats to add per dimension for 8-bit levels |
|---|---|---|
| dynamic binarisation | 0 or 1 with p = y / 255, another draw at each visit | 0 |
| static binarisation | 0 or 1 with p = y / 255, one draw for ever | 0 |
| threshold binarisation | 1 where y / 255 >= level | 0 |
| 8-bit levels | int32 0..255 | 0 |
| uniform dequantisation | (y + u) / 256, u uniform in [0, 1) | ln 256 |
| unit scale | y / 255 | none: a density at 256 points bounds no probability |
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, Shaped, UInt32

from vae_jax.data.columns import Column


class Preprocess(NamedTuple):
    """How one stored example becomes one example of the model.

    Fields:
        apply: `(key, y) -> y` for ONE example, of the same shape; under vmap each example has its
            own key. Where it wants levels and y is not uint8 it raises TypeError.
        name: the data convention, to be printed beside every number.
        log_volume: nats to ADD per dimension to the model's -ln p to get nats per 8-bit level; 0
            where the modelled values are discrete themselves; None where bits per dimension do not
            apply.
        white: the value of y that a picture shows as white; 0 is black.
        columns: of rows of a table, what its columns hold; () of other data.
    """

    apply: Callable[[jax.Array, Any], Any]
    name: str
    log_volume: float | None
    white: float = 1.0
    columns: tuple[Column, ...] = ()


Stored = Shaped[Array | np.ndarray, "*shape"]  # uint8; `_check_levels` has the better message


@functools.cache
def dynamic_binarisation() -> Preprocess:
    """Float32 0 or 1 with p = y / 255, drawn anew from the key.

    p is exact to 2^-32; levels 0 and 255 are certain.

    Example:
        >>> y = dynamic_binarisation().apply(jax.random.key(0), jnp.array([0, 128, 255], jnp.uint8))
        >>> float(y[0]), float(y[2])
        (0.0, 1.0)
    """

    def apply(key, y: Stored) -> Float32[Array, "*shape"]:
        _check_levels(y, "dynamic_binarisation")
        return _bernoulli(key, y).astype(jnp.float32)

    return Preprocess(apply, "dynamic binarisation", 0.0)


@functools.cache
def static_binarisation(seed: int = 0) -> Preprocess:
    """Float32 0 or 1 with p = y / 255, one fixed draw for each example whatever the key.

    The draw is a pure function of `seed` and the levels of y, so it is the same in every epoch,
    order, batch, process and machine; two examples with the same levels get the same draw.
    """

    def apply(key, y: Stored) -> Float32[Array, "*shape"]:
        del key
        _check_levels(y, "static_binarisation")
        return _bernoulli(_content_key(seed, y), y).astype(jnp.float32)

    return Preprocess(apply, f"static binarisation (seed {seed})", 0.0)


@functools.cache
def threshold_binarisation(level: float | int = 0.5) -> Preprocess:
    """Float32 1 where y / 255 >= level, else 0.

    Raises:
        ValueError: level is not in (0, 1], so that all pixels would be equal.
    """
    if not 0 < level <= 1:
        raise ValueError(f"level is a share of white in (0, 1]; got {level} (divide a level in 0..255 by 255)")
    lowest = next(v for v in range(256) if v / 255 >= level)

    def apply(key, y: Stored) -> Float32[Array, "*shape"]:
        del key
        _check_levels(y, "threshold_binarisation")
        return (jnp.asarray(y) >= lowest).astype(jnp.float32)

    return Preprocess(apply, f"threshold binarisation at {level:g}", 0.0)


@functools.cache
def unit_scale() -> Preprocess:
    """Float32 y / 255 in [0, 1], not dequantised."""

    def apply(key, y: Stored) -> Float32[Array, "*shape"]:
        del key
        _check_levels(y, "unit_scale")
        return jnp.asarray(y).astype(jnp.float32) / 255

    return Preprocess(apply, "unit scale, not dequantised", None)


@functools.cache
def dequantisation() -> Preprocess:
    """Float32 (y + u) / 256 in [0, 1), u uniform on the multiples of 2^-16 in [0, 1).

    u has as many bits as a float32 keeps beside the 8 of y: so nothing is rounded, 1 is never
    reached and floor(256 x) is y. With p the model's density on [0, 1], E[-ln p(x)] + ln 256 per
    dimension bounds the nats of the 8-bit levels from above (Theis et al. 2016, section 3.1).
    """

    def apply(key, y: Stored) -> Float32[Array, "*shape"]:
        _check_levels(y, "dequantisation")
        x = (jnp.asarray(y).astype(jnp.uint32) << 16) | (_bits(key, y.shape) >> 16)
        return x.astype(jnp.float32) * jnp.float32(2.0**-24)

    return Preprocess(apply, "uniform dequantisation", math.log(256))


@functools.cache
def eight_bit() -> Preprocess:
    """Int32 0..255 as stored, for discretised likelihoods."""

    def apply(key, y: Stored) -> Int32[Array, "*shape"]:
        del key
        _check_levels(y, "levels")
        return jnp.asarray(y).astype(jnp.int32)

    return Preprocess(apply, "8-bit levels", 0.0, 255.0)


@functools.cache
def identity() -> Preprocess:
    """Nothing: for data of any type already in the form that the model wants."""

    def apply(key, y):
        del key
        return y

    return Preprocess(apply, "as given", None)


def of_columns(columns: Iterable[Column]) -> Preprocess:
    """`identity`, for rows as `Columns.ys` has them: who opens the model again finds what their columns hold."""
    return identity()._replace(columns=tuple(columns))


def _check_levels(y: Stored, name: str) -> None:
    if y.dtype != jnp.uint8:
        raise TypeError(
            f"{name} wants uint8 levels 0..255; got {y.dtype} of shape {y.shape}. "
            "For data already in the form that the model wants use identity()"
        )


def _bernoulli(key: jax.Array, y: Stored) -> Bool[Array, "*shape"]:
    """True with p = y / 255 up to 2^-32.

    255 * 0x01010101 = 2^32 - 1, so "bits <= y * 0x01010101 and y > 0" has p = 0 at y = 0, p = 1 at
    y = 255 and p = y / 255 + (1 - y / 255) 2^-32 between.
    """
    threshold = jnp.asarray(y).astype(jnp.uint32) * jnp.uint32(0x01010101)
    return (_bits(key, y.shape) <= threshold) & (threshold > 0)


def _content_key(seed: int, y: Stored) -> jax.Array:
    """A Threefry key that depends on the seed and the levels of y only.

    Its two words are multilinear hashes sum_i a_i y_i mod 2^32 (Carter and Wegman 1979), a drawn
    from the seed: two different examples get the same key with a probability of at most 2^-50.
    """
    coefficients = _bits(jax.random.key(seed, impl="threefry2x32"), (2, y.size))
    words = jnp.sum(coefficients * jnp.asarray(y).reshape(1, -1).astype(jnp.uint32), axis=1, dtype=jnp.uint32)
    return jax.random.wrap_key_data(words, impl="threefry2x32")


def _bits(key: jax.Array, shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """`jax.random.bits(key, shape)`: for a Threefry key the same bits in one fused kernel.

    On CPU jax's own Threefry is a rolled loop that goes through memory at each turn: with jax 0.10.2, for 128 images of
    784 pixels, 0.68 ms against 0.15 here, which is 7 % of the FC-VAE's training step. To be deleted when they are even.
    """
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return jax.random.bits(key, shape, jnp.uint32)
    jax.random.bits(key, (0,), jnp.uint32)  # draws nothing: marks the key as used for jax's checker
    a, b = jax.random.key_data(key)
    x, y = _threefry(a, b, jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape))
    return x ^ y


_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


@jax.jit
def _threefry(a: UInt32[Array, ""], b: UInt32[Array, ""], counter: UInt32[Array, "*shape"]):
    """Threefry-2x32 of the blocks (0, counter), key (a, b), 20 rounds (Salmon et al. 2011)."""
    keys = (a, b, a ^ b ^ jnp.uint32(0x1BD11BDA))
    x, y = jnp.zeros_like(counter) + a, counter + b
    for turn in range(5):
        for r in _ROTATIONS[turn % 2]:
            x = x + y
            y = x ^ ((y << r) | (y >> (32 - r)))
        x, y = x + keys[(turn + 1) % 3], y + keys[(turn + 2) % 3] + jnp.uint32(turn + 1)
    return x, y
