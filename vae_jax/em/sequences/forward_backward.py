"""Forward and backward along a Markov chain of K states that is seen through evidence, ln P(y_t|z_t).

For one sequence, or for a batch of them on axes at the end, where they lie side by side. Each direction is there twice:
as a scan of T steps, and as an associative scan over (K, K) matrices, about 2 log2 T steps with more work in each
(Särkkä & García-Fernández 2021; Hassan, Särkkä & García-Fernández 2021, for finite states). They agree to rounding.

Probabilities are normalised at every step, after the evidence has been shifted by its largest value among the states
that can be reached, so that float32 is safe for any length. What is lost: a state whose probability, before its
evidence, is below about 1e-35 (float64: 1e-305) counts as impossible.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.core.linalg import matmul

_LONG, _LARGE = 64, 2**20


class Filtered(NamedTuple):
    """What is known of z_t at time t.

    Fields:
        predicted: (T, K) P(z_t | y_1 .. y_{t-1}).
        filtered: (T, K) P(z_t | y_1 .. y_t).
        log_p: (T,) ln P(y_t | y_1 .. y_{t-1}) in nats; their sum is ln P(y).
    """

    predicted: Array
    filtered: Array
    log_p: Array


class Smoothed(NamedTuple):
    """What is known at the end.

    Fields:
        marginals: (T, K) P(z_t | y).
        moves: (K, K) expected number of moves from state j to state k, sum_t P(z_{t-1} = j, z_t = k | y), of the
            whole batch together.
    """

    marginals: Array
    moves: Array


def real_steps(length: int, count: Array | int | None) -> Array:
    """(length,): whether each step is one of the sequence, the first `count` (None: all of them)."""
    return jnp.arange(length) < (length if count is None else count)


def in_parallel(chosen: bool | None, length: int, states: int) -> bool:
    """What the user chose, or else what suits the device, the length and the number of states."""
    if chosen is not None:
        return chosen
    return jax.default_backend() != "cpu" and length >= _LONG and length * states**2 <= _LARGE


def forward(initial: Array, transition: Array, evidence: Array, real: Array, *, parallel: bool | None) -> Filtered:
    """Filter a sequence, or a batch.

    Args:
        initial: (K,) P(z_1); transition: (K, K) P(z_t = k | z_{t-1} = j) in row j.
        evidence: (T, K, *batch) ln P(y_t | z_t), in nats; 0 at the steps that are not real.
        real: (T, *batch), see `real_steps`. Afterwards the chain stays where it is.
        parallel: by an associative scan. None: on accelerators, if T is at least 64 and T x K x K at most 2^20.
    """
    if in_parallel(parallel, *evidence.shape[:2]):
        one = functools.partial(_parallel_forward, initial, transition)
        return (jax.vmap(one, -1, -1) if evidence.ndim > 2 else one)(evidence, real)

    def step(predicted, inputs):
        log_likelihood, real_now, real_next = inputs
        filtered, log_p = condition(predicted, log_likelihood, axis=0)
        following = jnp.where(real_next[None], matmul(transition.T, filtered), filtered)
        return following, Filtered(predicted, filtered, jnp.where(real_now, log_p[0], 0.0))

    start = jnp.broadcast_to(initial.reshape(-1, *[1] * (evidence.ndim - 2)), evidence.shape[1:])
    return jax.lax.scan(step, start, (evidence, real, _next(real)))[1]


def _parallel_forward(initial, transition, evidence, real):
    """Elements: P(z_t = k | y_s .. y_t, z_{s-1} = j) and ln P(y_s .. y_t | z_{s-1} = j), in column j."""
    first = (jnp.arange(len(evidence)) == 0)[:, None, None]
    prior = jnp.where(first, initial[None, :, None], transition.T[None])
    columns, log_p = condition(prior, evidence[:, :, None], axis=1)
    columns = jnp.where(real[:, None, None], columns, jnp.eye(len(initial), dtype=columns.dtype)[None])
    log_p = jnp.where(real[:, None, None], log_p, 0.0)

    def join(earlier, later):
        weights, log_p = condition(earlier[0], jnp.swapaxes(later[1], 1, 2), axis=1)
        return matmul(later[0], weights), earlier[1] + log_p

    joined, _ = jax.lax.associative_scan(join, (columns, log_p))
    before = joined[:-1, :, 0]
    predicted = jnp.where(real[1:, None], matmul(before, transition), before)
    predicted = jnp.concatenate([initial[None], predicted])
    filtered, log_p = condition(predicted, evidence, axis=1)
    return Filtered(predicted, filtered, jnp.where(real, log_p[:, 0], 0.0))


def backward(transition: Array, known: Filtered, real: Array, *, parallel: bool | None) -> Smoothed:
    """Smooth what `forward` has filtered (Rauch, Tung & Striebel's form: the data are not needed again).

    P(z_{t-1} = j, z_t = k | y) = filtered[t-1, j] P(k|j) ratio[t, k], the ratio being P(z_t | y) / predicted[t].
    """
    if in_parallel(parallel, *known.filtered.shape[:2]):
        return _parallel_backward(transition, known, real)

    def step(later, inputs):
        predicted, filtered, real_next = inputs
        message = jnp.where(real_next[None], matmul(transition, later), later)
        now = ratio(filtered * message, predicted)
        return now, now

    inputs = known.predicted, known.filtered, _next(real)
    _, ratios = jax.lax.scan(step, jnp.ones_like(known.predicted[0]), inputs, reverse=True)
    return Smoothed(ratios * known.predicted, transition * _moves(known.filtered, ratios, real))


def _parallel_backward(transition, known, real):
    """Elements: P(z_t = j | z_{t+1} = k, y), in column k; their products take the last step's marginals back."""

    def one(predicted, filtered, real):
        back = filtered[:-1, :, None] * transition[None] * ratio(jnp.ones_like(predicted), predicted)[1:, None]
        back = jnp.where(real[1:, None, None], back, jnp.eye(len(transition), dtype=back.dtype)[None])
        products = jax.lax.associative_scan(lambda later, earlier: matmul(earlier, later), back, reverse=True)
        return jnp.concatenate([matmul(products, filtered[-1]), filtered[-1:]])

    predicted, filtered, _ = known
    marginals = (jax.vmap(one, -1, -1) if real.ndim > 1 else one)(predicted, filtered, real)
    return Smoothed(marginals, transition * _moves(filtered, ratio(marginals, predicted), real))


def condition(prior: Array, log_likelihood: Array, *, axis: int) -> tuple[Array, Array]:
    """Bayes' rule along an axis: the posterior, and ln of the likelihood's mean under the prior, with that axis kept.

    Where every state is impossible: the prior as it was, and -inf.
    """
    possible = prior > _floor(prior)
    top = jax.lax.stop_gradient(jnp.max(jnp.where(possible, log_likelihood, -jnp.inf), axis=axis, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    joint = jnp.where(possible, prior, 0.0) * jnp.exp(jnp.where(possible, log_likelihood, top) - top)
    total = jnp.sum(joint, axis=axis, keepdims=True)
    seen = total > 0
    safe = jnp.where(seen, total, 1.0)
    return jnp.where(seen, joint / safe, prior), jnp.where(seen, jnp.log(safe) + top, -jnp.inf)


def ratio(marginal: Array, predicted: Array) -> Array:
    """marginal / predicted, 0 for impossible states."""
    possible = predicted > _floor(predicted)
    return jnp.where(possible, marginal / jnp.where(possible, predicted, 1.0), 0.0)


def _moves(filtered: Array, ratios: Array, real: Array) -> Array:
    """(K, K): sum of filtered[t-1, j] ratios[t, k] over the batch, then over time: no array of T x K x K x batch."""
    length, states = filtered.shape[:2]
    earlier = filtered[:-1].reshape(length - 1, states, -1)
    later = jnp.where(real[1:, None], ratios[1:], 0.0).reshape(length - 1, states, -1)
    return matmul(earlier, jnp.swapaxes(later, 1, 2)).sum(axis=0)


def _next(real: Array) -> Array:
    """Whether the next step is real."""
    return jnp.concatenate([real[1:], jnp.zeros_like(real[:1])])


def _floor(x: Array) -> float:
    """Probabilities below are 0: their inverses, and sums of these, have to be finite."""
    return float(jnp.finfo(x.dtype).tiny) * 1024
