"""Quantisers without a codebook: every number of a vector is rounded on its own.

m = fsq((8, 5, 5, 5))       1,000 codes, vectors of 4 numbers
m = lfq(10)                 1,024 codes, vectors of 10 numbers
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax.core.network import shape_of
from vae_jax.core.numbers import is_whole
from vae_jax.em.algorithm import check_decay, running_average
from vae_jax.vq.quantiser import (
    Quantised,
    Quantiser,
    check_codes,
    check_vectors,
    fractions,
    occurrences,
    straight_through,
)

DECAY = 0.99  # of the running usage
MOST_CODES = 2**20
SLACK = 1e-3  # tanh has to reach the outermost levels


def fsq(levels: tuple[int, ...] = (8, 5, 5, 5)) -> Quantiser:
    """Finite scalar quantisation (Mentzer et al. 2023): number i is bounded and rounded to one of levels[i] values.

    The values are spread evenly over about [-1, 1]. The code counts through them, the first number fastest. There is
    nothing to learn and nothing to collapse: no penalty. The thresholds lie around the vector 0 in mirror image. (The
    paper shifts those of an even number of levels, which for 2 puts all but 1 in 10,000 of N(0, 1) into the higher one,
    where the gradient is 0.)

    Raises:
        ValueError: no levels, one outside 2 .. 256, or more than 2^20 codes; vectors of another size.
    """
    levels = shape_of(levels)
    if not levels or not all(is_whole(n, 2) and n <= 256 for n in levels) or math.prod(levels) > MOST_CODES:
        raise ValueError(
            f"levels wants numbers from 2 to 256, {MOST_CODES:,} codes at most; got {levels}: whole numbers are wanted"
        )
    counts = np.array(levels, np.int32)
    half = counts // 2
    constants = ((counts - 1) * (1 + SLACK) / 2, np.where(counts % 2, 0.0, 0.5))

    def bounded(vectors):
        """From the lowest level to the highest, which are 1 apart."""
        reach, offset = (_row(x, vectors.ndim, vectors.dtype) for x in constants)
        return jnp.tanh(vectors) * reach - offset

    def quantise(params, vectors):
        del params
        inside = bounded(vectors)
        steps = jnp.round(inside)
        digits = steps.astype(jnp.int32) + _row(half, steps.ndim)
        width = _row(half, steps.ndim, steps.dtype)
        return _number(digits, counts), straight_through(inside, steps) / width, 0.0, {}

    def embed(codes):
        digits = _digits(codes, counts)
        return (digits - _row(half, digits.ndim)) / _row(half, digits.ndim)

    return _without_codebook("fsq", len(levels), math.prod(levels), {}, quantise=quantise, embed=embed)


def lfq(bits: int, *, commitment: float = 0.25, entropy: float = 0.1, decay: float = 0.99) -> Quantiser:
    """Look-up free quantisation (Yu et al. 2023, MAGVIT-v2): the signs of `bits` numbers are the code.

        penalty = commitment ||e - sign(e)||^2 + entropy sum_{vectors, bits} [ H(p) - H(mean of p) ]   p = sigmoid(4 e)

    p is the probability of sign +1 under exp(-||e - sign||^2). The first entropy wants each vector to be sure, the
    second the codes to be used equally often. The mean is a running one, kept beside the usage, constant to the
    gradient, so that the penalty stays a sum over examples: H(mean) is replaced by its tangent there, whose average
    over a batch has the gradient that H of the batch's mean has at that point. Entropies are those of single bits.

    Raises:
        ValueError: bits outside 1 .. 20, negative weights, a decay outside [0, 1); vectors of another size.
    """
    if not (is_whole(bits) and bits <= 20) or not 0 <= commitment < math.inf or not 0 <= entropy < math.inf:
        raise ValueError(
            f"want bits in 1 .. 20, commitment and entropy >= 0; got {bits}, {commitment} and {entropy}: bits is a "
            "whole number"
        )
    check_decay(decay)
    counts = np.full(bits, 2, np.int32)

    def quantise(params, vectors):
        signs = jnp.where(vectors > 0, 1.0, -1.0).astype(vectors.dtype)
        logits = 4 * vectors
        p = jax.nn.sigmoid(logits)
        sure = jax.nn.softplus(logits) - p * logits  # the entropy of p
        mean = jnp.clip(jax.lax.stop_gradient(params["mean"]), 1e-6, 1 - 1e-6)
        mean = mean.reshape((1,) * (p.ndim - 1) + (bits,))
        tangent = -p * jnp.log(mean) - (1 - p) * jnp.log1p(-mean)  # H(mean) + H'(mean) (p - mean)
        penalty = commitment * jnp.sum((vectors - signs) ** 2) + entropy * jnp.sum(sure - tangent)
        codes = _number((signs > 0).astype(jnp.int32), counts)
        return codes, straight_through(vectors, signs), penalty, {"mean": p.reshape(-1, bits).mean(axis=0)}

    def embed(codes):
        return 2.0 * _digits(codes, counts) - 1.0

    fresh = {"mean": np.full(bits, 0.5)}
    return _without_codebook("lfq", bits, 2**bits, fresh, quantise=quantise, embed=embed, decay=decay)


def _without_codebook(
    name: str,
    size: int,
    levels: int,
    fresh: dict[str, np.ndarray],
    *,
    quantise: Callable[..., Any],
    embed: Callable[[Any], Array],
    decay: float = DECAY,
) -> Quantiser:
    """A quantiser whose only parameters are running averages: `count` (K,) of the codes, and those of `fresh`."""

    def init(key, vectors):
        del key
        check_vectors(name, vectors, size)
        count = jnp.full(levels, math.prod(vectors.shape[:-1]) / levels)
        return {"count": count, **{field: jnp.asarray(value, count.dtype) for field, value in fresh.items()}}

    def start(key, params, vectors):
        del key
        check_vectors(name, vectors, size)
        return params

    def quantised(params, vectors):
        check_vectors(name, vectors, size)
        codes, found, penalty, stats = quantise(params, vectors)
        stats = {"count": occurrences(codes, levels), **jax.lax.stop_gradient(stats)}
        return Quantised(codes, found, penalty, stats)

    def embedded(params, codes):
        del params
        check_codes(codes, levels)
        return embed(jnp.asarray(codes))

    def maximise(params, stats):
        return running_average(params, stats, decay)

    return Quantiser(init, start, quantised, embedded, maximise, lambda params: fractions(params["count"]), levels)


def _row(values: np.ndarray, ndim: int, dtype: Any = jnp.int32) -> Array:
    return jnp.asarray(values, dtype).reshape((1,) * (ndim - 1) + (-1,))


def _bases(counts: np.ndarray) -> np.ndarray:
    """What one step of each digit is worth."""
    return np.concatenate([[1], np.cumprod(counts[:-1])])


def _number(digits: Array, counts: np.ndarray) -> Array:
    """(..., d) digits as numbers (...), the first digit counting fastest."""
    return jnp.sum(digits * _row(_bases(counts), digits.ndim), axis=-1).astype(jnp.int32)


def _digits(numbers: Array, counts: np.ndarray) -> Array:
    """The inverse of `_number`."""
    ndim = numbers.ndim + 1
    return numbers[..., None] // _row(_bases(counts), ndim) % _row(counts, ndim)
