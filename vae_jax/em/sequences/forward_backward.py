"""Forward and backward along a Markov chain of K states that is seen through evidence, ln P(y_t|z_t).

For one sequence, or for a batch of them on axes at the end, where they lie side by side. Each direction is there twice:
as a scan of T steps, and as an associative scan over (K, K) matrices, about 2 log2 T steps with more work in each
(Särkkä & García-Fernández 2021; Hassan, Särkkä & García-Fernández 2021, for finite states). They agree to rounding.

Forwards everything is a logarithm, normalised at every step. Evidence of thousands of nats is common (a state with a
small variance), and a path that looks hopeless now may be the only one to what comes later: probabilities would lose it
from about e^-87 on (float64: e^-708), and ln P(y) with it. -inf is impossible, and nothing else is. Backwards the
states are weighed by what is seen later, P(z_{t-1} | z_t, y_1 .. y_{t-1}), and these are safe as probabilities. A scan
in which no state is so improbable takes products of matrices instead, several times faster (under `vmap`: both).
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.core.linalg import matmul
from vae_jax.em.family import log_sum

_LONG, _LARGE = 64, 2**20


class Filtered(NamedTuple):
    """What is known of z_t at time t.

    Fields:
        log_predicted: (T, K) ln P(z_t | y_1 .. y_{t-1}).
        log_filtered: (T, K) ln P(z_t | y_1 .. y_t).
        log_p: (T,) ln P(y_t | y_1 .. y_{t-1}) in nats; their sum is ln P(y).
    """

    log_predicted: Array
    log_filtered: Array
    log_p: Array

    @property
    def predicted(self) -> Array:
        """(T, K) P(z_t | y_1 .. y_{t-1})."""
        return jnp.exp(self.log_predicted)

    @property
    def filtered(self) -> Array:
        """(T, K) P(z_t | y_1 .. y_t)."""
        return jnp.exp(self.log_filtered)


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
        initial: (K,) ln P(z_1); transition: (K, K) ln P(z_t = k | z_{t-1} = j) in row j.
        evidence: (T, K) or (T, K, n) ln P(y_t | z_t), in nats; 0 at the steps that are not real.
        real: (T,) or (T, n), see `real_steps`. Afterwards the chain stays where it is.
        parallel: by an associative scan. None: on accelerators, if T is at least 64 and T x K x K at most 2^20.
    """
    if evidence.ndim == 2:
        known = forward(initial, transition, evidence[..., None], real[:, None], parallel=parallel)
        return Filtered(*(x[..., 0] for x in known))
    if in_parallel(parallel, *evidence.shape[:2]):
        one = functools.partial(_parallel_forward, initial, transition)
        return jax.vmap(one, -1, -1)(evidence, real)

    def scan(product):
        def step(predicted, inputs):
            log_likelihood, real_now, real_next = inputs
            filtered, log_p = condition(predicted, log_likelihood, axis=0)
            following = jnp.where(real_next[None], product(transition.T, filtered), filtered)
            return following, Filtered(predicted, filtered, jnp.where(real_now, log_p[0], 0.0))

        start = jnp.broadcast_to(initial[:, None], evidence.shape[1:])
        return jax.lax.scan(step, start, (evidence, real, _next(real)))[1]

    quick = scan(_quick_product)
    return jax.lax.cond(_held(quick), lambda: quick, lambda: scan(log_product))


def _parallel_forward(initial, transition, evidence, real):
    """Elements: ln P(z_t = k | y_s .. y_t, z_{s-1} = j) and ln P(y_s .. y_t | z_{s-1} = j), in column j."""
    first = (jnp.arange(len(evidence)) == 0)[:, None, None]
    prior = jnp.where(first, initial[None, :, None], transition.T[None])
    columns, log_p = condition(prior, evidence[:, :, None], axis=1)
    stay = jnp.log(jnp.eye(len(initial), dtype=columns.dtype))
    columns = jnp.where(real[:, None, None], columns, stay[None])
    log_p = jnp.where(real[:, None, None], log_p, 0.0)

    def join(earlier, later):
        weights, log_p = condition(earlier[0], jnp.swapaxes(later[1], 1, 2), axis=1)
        return log_product(later[0], weights), earlier[1] + log_p

    joined, _ = jax.lax.associative_scan(join, (columns, log_p))
    before = joined[:-1, :, 0]
    predicted = jnp.where(real[1:, None], log_product(transition.T, before.T).T, before)
    predicted = jnp.concatenate([initial[None], predicted])
    filtered, log_p = condition(predicted, evidence, axis=1)
    return Filtered(predicted, filtered, jnp.where(real, log_p[:, 0], 0.0))


def backward(transition: Array, known: Filtered, real: Array, *, parallel: bool | None) -> Smoothed:
    """Smooth what `forward` has filtered (Rauch, Tung & Striebel's form: the data are not needed again).

    P(z_{t-1} = j, z_t = k | y) = P(z_{t-1} = j | z_t = k, y_1 .. y_{t-1}) P(z_t = k | y).
    """
    if real.ndim == 1:
        known = Filtered(*(x[..., None] for x in known))
        marginals, moves = backward(transition, known, real[:, None], parallel=parallel)
        return Smoothed(marginals[..., 0], moves)
    if in_parallel(parallel, *known.log_filtered.shape[:2]):
        marginals, moves = jax.vmap(functools.partial(_parallel_backward, transition), -1, -1)(known, real)
        return Smoothed(marginals, moves.sum(axis=-1))

    def scan(back):
        def step(carry, inputs):
            later, moves = carry
            filtered, predicted, real = inputs
            earlier, moved = back(transition, filtered, predicted, later, real)
            earlier = jnp.where(real[None], earlier, later)
            earlier = earlier / earlier.sum(axis=0, keepdims=True)  # they sum to 1 but for rounding, which adds up
            return (earlier, moves + moved), earlier

        last = known.filtered[-1]
        inputs = known.log_filtered[:-1], known.log_predicted[1:], real[1:]
        (_, moves), earlier = jax.lax.scan(step, (last, jnp.zeros_like(transition)), inputs, reverse=True)
        return Smoothed(jnp.concatenate([earlier, last[None]]), moves)

    return jax.lax.cond(_held(known), lambda: scan(_quick_back), lambda: scan(_back))


def _parallel_backward(transition, known, real):
    """Elements: P(z_t = j | z_{t+1} = k, y), in column k; their products take the last step's marginals back."""
    back = came_from(transition[None], known.log_filtered[:-1], known.log_predicted[1:], axis=1)
    stay = jnp.eye(len(transition), dtype=back.dtype)
    back = jnp.where(real[1:, None, None], back, stay[None])
    products = jax.lax.associative_scan(lambda later, earlier: matmul(earlier, later), back, reverse=True)
    last = known.filtered[-1]
    marginals = jnp.concatenate([matmul(products, last), last[None]])
    marginals = marginals / marginals.sum(axis=1, keepdims=True)
    pairs = jnp.where(real[1:, None, None], back * marginals[1:, None], 0.0)
    return Smoothed(marginals, pairs.sum(axis=0))


def came_from(transition: Array, filtered: Array, predicted: Array, *, axis: int) -> Array:
    """P(z_{t-1} = j | z_t = k, y_1 .. y_{t-1}), of logarithms: j along `axis`, k next to it; 0 where k cannot be."""
    predicted = jnp.where(predicted > -jnp.inf, predicted, 0.0)
    return jnp.exp(jnp.expand_dims(filtered, axis + 1) + transition - jnp.expand_dims(predicted, axis))


def _back(transition, filtered, predicted, later, real):
    """(P(z_{t-1} = j | y) (K, n), the moves of all real steps (K, K))."""
    pairs = came_from(transition[:, :, None], filtered, predicted, axis=0) * later[None]
    return pairs.sum(axis=1), jnp.where(real[None, None], pairs, 0.0).sum(axis=-1)


def _quick_back(transition, filtered, predicted, later, real):
    """`_back` by products of matrices, where `_held`."""
    ratio = later * jnp.exp(-jnp.maximum(predicted, _least(predicted)))
    before, moves = jnp.exp(filtered), jnp.exp(transition)
    counted = jnp.where(real[None], ratio, 0.0)
    return before * matmul(moves, ratio), moves * matmul(before, counted.T)


def condition(prior: Array, log_likelihood: Array, *, axis: int) -> tuple[Array, Array]:
    """Bayes' rule along an axis, all in logarithms: the posterior, and the likelihood's mean, with that axis kept.

    Where every state is impossible: the prior as it was, and -inf.
    """
    joint = prior + log_likelihood
    total = log_sum(joint, axis=axis, keepdims=True)
    possible = total > -jnp.inf
    return jnp.where(possible, joint - jnp.where(possible, total, 0.0), prior), total


@jax.checkpoint  # its gradient does not hold all terms of all products
def log_product(a: Array, b: Array) -> Array:
    """ln of the product of the probabilities exp(a) (..., k, m) and exp(b) (..., m, n)."""
    return log_sum(a[..., :, :, None] + b[..., None, :, :], axis=-2)


def _quick_product(a, b):
    """`log_product` by a product of matrices, which loses what is too small: see `_held`."""
    top = jax.lax.stop_gradient(b.max(axis=0, keepdims=True))
    total = matmul(jnp.exp(a), jnp.exp(b - top))
    some = total > 0
    return jnp.where(some, jnp.log(jnp.where(some, total, 1.0)) + top, -jnp.inf)


def _held(known: Filtered) -> Array:
    """Whether every sum was large enough for products of matrices."""
    return (known.log_predicted > _least(known.log_predicted)).all()


def _least(log_p: Array) -> float:
    """ln of a probability of which 1e-12 is still a float."""
    return math.log(jnp.finfo(log_p.dtype).tiny) + 28


def _next(real: Array) -> Array:
    """Whether the next step is real."""
    return jnp.concatenate([real[1:], jnp.zeros_like(real[:1])])
