"""What a quantiser is: from vectors to codes and back, as pure functions for one example.

A code is a whole number from 0 to K - 1, and stands for a vector. How the gradient of what is done with that vector
gets past the choice of a code to the encoder is `straight_through` or `rotation`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy.special import entr
from jax.typing import ArrayLike

from vae_jax.core.model import Params, Scatter
from vae_jax.core.numbers import is_whole

Through = Callable[[Array, Array], Array]  # (what was quantised, the nearest vectors) -> the latter, with a gradient


class Quantised(NamedTuple):
    """The vectors of one example, quantised.

    Fields:
        codes: (...) int32, 0 .. K - 1; residual and grouped quantisers add axes of their own at the end.
        vectors: (..., D) what the codes stand for: the values of `embed`, with a gradient that reaches the encoder.
        penalty: what keeps encoder and codes together: squared lengths, or entropies in nats. A training loss only.
        stats: what `maximise` needs to know.
    """

    codes: Array
    vectors: Array
    penalty: ArrayLike
    stats: Any


class Quantiser(NamedTuple):
    """From vectors to codes and back, for one example, and the parameters of that.

    Fields:
        init: `(key, vectors) -> params`, at random; vectors (..., D) of one example, used for their shape.
        start: `(key, params, vectors) -> params`: placed on the vectors (n, ..., D) of n examples.
        quantise: `(params, vectors) -> Quantised` of one example.
        embed: `(params, codes) -> vectors`, as data: without a gradient to the codes' vectors.
        maximise: `(params, stats) -> params` after a training step, from the batch average of the stats.
        usage: `params ->` how often each code was used lately, (K,) or, with several codes for a vector,
            (streams..., K); the last axis sums to 1.
        levels: the number of codes, K.
    """

    init: Callable[..., Params]
    start: Callable[..., Params]
    quantise: Callable[[Params, Array], Quantised]
    embed: Callable[[Params, Any], Array]
    maximise: Callable[[Params, Any], Params]
    usage: Callable[[Params], Array]
    levels: int


def straight_through(vectors: Array, nearest: Array) -> Array:
    """`nearest`, with the gradient of `vectors` (van den Oord et al. 2017, section 3.2)."""
    return jax.lax.stop_gradient(nearest) + _nothing(vectors)


def rotation(vectors: Array, nearest: Array) -> Array:
    """`nearest` as a constant rotation and scaling of `vectors`, whose gradient it has (Fifty et al. 2024, equation 4).

    The gradient keeps its angle to the vector: two vectors with the same code get different ones. A vector of length 0
    has no direction to rotate, and gradient 0.
    """
    e, q = jax.lax.stop_gradient((vectors, nearest))
    e_unit, q_unit = unit(e), unit(q)
    axis = unit(e_unit + q_unit)
    rotated = vectors - 2 * _dot(axis, vectors) * axis + 2 * _dot(e_unit, vectors) * q_unit
    length, wanted = (jnp.linalg.norm(v, axis=-1, keepdims=True) for v in (e, q))
    scale = jnp.where(length > 0, wanted / jnp.where(length > 0, length, 1.0), 0.0)
    return q + _nothing(scale * rotated)


def _nothing(x: Array) -> Array:
    """0 with the gradient of x."""
    return x - jax.lax.stop_gradient(x)


def unit(vectors: Array) -> Array:
    """Scaled to length 1 along the last axis; vectors of length 0 stay."""
    squared = jnp.sum(vectors**2, axis=-1, keepdims=True)
    some = squared > 0
    return jnp.where(some, vectors * jax.lax.rsqrt(jnp.where(some, squared, 1.0)), 0.0)


def _dot(a: Array, b: Array) -> Array:
    return jnp.sum(a * b, axis=-1, keepdims=True)


def occurrences(codes: Array, levels: int) -> Scatter:
    """(levels,) how often each code occurs in one example, to be averaged over a batch."""
    flat = codes.reshape(-1)
    return Scatter(flat, jnp.ones(flat.shape), levels)


def fractions(counts: Array) -> Array:
    """Counts along the last axis as fractions of their sum; all 0 where there are none."""
    total = counts.sum(axis=-1, keepdims=True)
    return counts / jnp.where(total > 0, total, 1.0)


def usage(codes: Any, levels: int) -> np.ndarray:
    """(levels,) the fraction of all these codes that each one is.

    Raises:
        ValueError: codes that are no whole numbers from 0 to levels - 1.
    """
    check_codes(codes, levels)
    counts = np.bincount(np.asarray(codes).ravel(), minlength=levels)
    return counts / max(counts.sum(), 1)


def code_perplexity(counts: Any) -> Array:
    """exp(entropy) of the last axis, counts or fractions: as many codes, used equally often, would be as surprising."""
    return jnp.exp(jnp.sum(entr(fractions(jnp.asarray(counts))), axis=-1))


def check_codes(codes: Any, levels: int) -> None:
    """Raise a ValueError unless all codes are whole numbers from 0 to levels - 1; traced ones are not looked at."""
    if isinstance(codes, jax.core.Tracer):
        return
    values = np.asarray(codes)
    if not np.issubdtype(values.dtype, np.integer):
        raise ValueError(f"codes are whole numbers; got dtype {values.dtype}: were vectors given in place of codes?")
    if values.size and not 0 <= values.min() <= values.max() < levels:
        raise ValueError(
            f"codes go from 0 to {levels - 1}; got {values.min()} .. {values.max()}: do they come from a quantiser "
            "with more codes?"
        )


def check_vectors(name: str, vectors: Any, size: int) -> None:
    """Raise a ValueError unless the last axis holds `size` numbers; `name` is who wants that."""
    if jnp.shape(vectors)[-1:] != (size,):
        raise ValueError(
            f"{name} wants vectors of {size} numbers along the last axis; got shape {jnp.shape(vectors)}: give the "
            "encoder that many channels, or put the quantiser into projected(quantiser, D, size)"
        )


def check_levels(levels: int) -> None:
    """Raise a ValueError unless there are codes to choose from."""
    if not is_whole(levels, 2):
        raise ValueError(f"a code is one of K >= 2; got K={levels}: a whole number is wanted")
