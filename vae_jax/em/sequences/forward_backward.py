"""Forward and backward along a Markov chain of K states that is seen through evidence, ln P(y_t|z_t).

For one sequence, or for a batch of them on axes at the end, where they lie side by side. Each direction is there twice:
as a scan of T steps, and as an associative scan over (K, K) matrices, about 2 log2 T steps with more work in each
(Särkkä & García-Fernández 2021; Hassan, Särkkä & García-Fernández 2021, for finite states). They agree to rounding.

Both are products of matrices of probabilities, normalised at every step, as long as floats hold them. Evidence of
thousands of nats is common (a state with a small variance), and a path that looks hopeless now may be the only one to
what comes later: probabilities would lose it from about e^-87 on (float64: e^-708), and ln P(y) with it. Where that
could be (`_held`), all is done again in logarithms, several times slower; -inf is impossible and nothing else is.
Backwards the states are then weighed by P(z_{t-1} | z_t, y_1 .. y_{t-1}), and these are safe as probabilities. One such
sequence takes its whole batch with it, also under `vmap`.
"""

import functools
import math
from collections.abc import Callable
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
        marginals: (T, K) P(z_t | y); 0 where y is impossible.
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
    quick, exact = _passes(initial, transition, evidence, real, parallel)
    return jax.lax.cond(_held(quick[0]), lambda: _in_logs(quick, evidence), exact)


def smooth(
    initial: Array, transition: Array, evidence: Array, real: Array, *, parallel: bool | None
) -> tuple[Filtered, Smoothed]:
    """`forward`, and what all the evidence tells (Rauch, Tung & Striebel's form: backwards without the data)."""
    if evidence.ndim == 2:
        known, later = smooth(initial, transition, evidence[..., None], real[:, None], parallel=parallel)
        return Filtered(*(x[..., 0] for x in known)), Smoothed(later.marginals[..., 0], later.moves)
    if in_parallel(parallel, *evidence.shape[:2]):
        known = forward(initial, transition, evidence, real, parallel=True)
        return known, _parallel_backward(transition, known, real)
    quick, exact = _passes(initial, transition, evidence, real, parallel)

    def both():
        known = exact()
        return known, _backward(transition, known, real)

    def quick_both():
        return _in_logs(quick, evidence), _quick_backward(transition, quick, real)

    return jax.lax.cond(_held(quick[0]), quick_both, both)


def _passes(initial, transition, evidence, real, parallel):
    """What `forward` finds by products of matrices, as probabilities, and how it is found whatever they are."""
    one = _parallel_forward if in_parallel(parallel, *evidence.shape[:2]) else _forward
    exact = jax.checkpoint(lambda: Filtered(*one(_LOGS, initial, transition, evidence, real)))
    return one(_PROBABILITIES, initial, transition, evidence, real), exact


def _forward(numbers, initial, transition, evidence, real):
    """(predicted, filtered, log_p) in these numbers."""
    columns = numbers.of(transition.T)

    def step(predicted, inputs):
        log_likelihood, real_now, real_next = inputs
        filtered, log_p = numbers.condition(predicted, log_likelihood, axis=0)
        following = jnp.where(real_next[None], numbers.product(columns, filtered), filtered)
        return following, (predicted, filtered, jnp.where(real_now, log_p[0], 0.0))

    start = jnp.broadcast_to(numbers.of(initial)[:, None], evidence.shape[1:])
    return jax.lax.scan(step, start, (evidence, real, _next(real)))[1]


@functools.partial(jax.vmap, in_axes=(None, None, None, -1, -1), out_axes=-1)
def _parallel_forward(numbers, initial, transition, evidence, real):
    """Elements: P(z_t = k | y_s .. y_t, z_{s-1} = j) and ln P(y_s .. y_t | z_{s-1} = j), in column j."""
    first = (jnp.arange(len(evidence)) == 0)[:, None, None]
    initial, moves = numbers.of(initial), numbers.of(transition.T)
    columns, log_p = numbers.condition(jnp.where(first, initial[:, None], moves), evidence[:, :, None], axis=1)
    stay = numbers.of(jnp.log(jnp.eye(len(initial), dtype=columns.dtype)))
    columns = jnp.where(real[:, None, None], columns, stay[None])
    log_p = jnp.where(real[:, None, None], log_p, 0.0)

    def join(earlier, later):
        weights, log_p = numbers.condition(earlier[0], jnp.swapaxes(later[1], 1, 2), axis=1)
        return numbers.product(later[0], weights), earlier[1] + log_p

    joined, _ = jax.lax.associative_scan(join, (columns, log_p))
    before = joined[:-1, :, 0]
    predicted = jnp.where(real[1:, None], numbers.product(moves, before.T).T, before)
    predicted = jnp.concatenate([initial[None], predicted])
    filtered, log_p = numbers.condition(predicted, evidence, axis=1)
    return predicted, filtered, jnp.where(real, log_p[:, 0], 0.0)


def _backward(transition, known, real):
    def step(carry, inputs):
        later, moves = carry
        filtered, predicted, real = inputs
        pairs = came_from(transition[:, :, None], filtered, predicted, axis=0) * later[None]
        moves += jnp.where(real[None, None], pairs, 0.0).sum(axis=-1)
        earlier = jnp.where(real[None], pairs.sum(axis=1), later)
        earlier = earlier / _total(earlier)
        return (earlier, moves), earlier

    last = jnp.where(_possible(known.log_p), known.filtered[-1], 0.0)
    inputs = known.log_filtered[:-1], known.log_predicted[1:], real[1:]
    (_, moves), earlier = jax.lax.scan(step, (last, jnp.zeros_like(transition)), inputs, reverse=True)
    return Smoothed(jnp.concatenate([earlier, last[None]]), moves)


def _quick_backward(transition, known, real):
    """The same of probabilities: of P(z_t | y) / P(z_t | y_1 .. y_{t-1}), by products of matrices."""
    moves = jnp.exp(transition)

    def step(later, inputs):
        predicted, filtered, real_next = inputs
        marginal = filtered * jnp.where(real_next[None], matmul(moves, later), later)
        ratio = marginal / (predicted * _total(marginal))
        return ratio, ratio

    predicted, filtered, log_p = known
    last = jnp.broadcast_to(_possible(log_p), predicted[0].shape).astype(predicted.dtype)
    _, ratios = jax.lax.scan(step, last, (predicted, filtered, _next(real)), reverse=True)
    counted = jnp.where(real[1:, None], ratios[1:], 0.0)
    pairs = matmul(filtered[:-1], jnp.swapaxes(counted, 1, 2)).sum(axis=0)
    return Smoothed(ratios * predicted, moves * pairs)


def _possible(log_p):
    """Whether each sequence is: what is impossible counts for nothing."""
    return log_p.sum(axis=0) > -jnp.inf


def _total(marginals, axis=0):
    """1 but for rounding, which would add up."""
    total = marginals.sum(axis=axis, keepdims=True)
    return jnp.where(total > 0, total, 1.0)


def _parallel_backward(transition, known, real):
    """Elements: P(z_t = j | z_{t+1} = k, y), in column k; their products take the last step's marginals back."""

    @functools.partial(jax.vmap, in_axes=-1, out_axes=-1)
    def one(known, real):
        back = came_from(transition[None], known.log_filtered[:-1], known.log_predicted[1:], axis=1)
        stay = jnp.eye(len(transition), dtype=back.dtype)
        back = jnp.where(real[1:, None, None], back, stay[None])
        products = jax.lax.associative_scan(lambda later, earlier: matmul(earlier, later), back, reverse=True)
        last = jnp.where(_possible(known.log_p), known.filtered[-1], 0.0)
        marginals = jnp.concatenate([matmul(products, last), last[None]])
        marginals = marginals / _total(marginals, axis=1)
        pairs = jnp.where(real[1:, None, None], back * marginals[1:, None], 0.0)
        return Smoothed(marginals, pairs.sum(axis=0))

    marginals, moves = one(known, real)
    return Smoothed(marginals, moves.sum(axis=-1))


def came_from(transition: Array, filtered: Array, predicted: Array, *, axis: int) -> Array:
    """P(z_{t-1} = j | z_t = k, y_1 .. y_{t-1}), of logarithms: j along `axis`, k next to it; 0 where k cannot be."""
    predicted = jnp.where(predicted > -jnp.inf, predicted, 0.0)
    return jnp.exp(jnp.expand_dims(filtered, axis + 1) + transition - jnp.expand_dims(predicted, axis))


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


def quick_condition(prior: Array, log_likelihood: Array, *, axis: int) -> tuple[Array, Array]:
    """`condition` of probabilities; the likelihoods remain logarithms."""
    top = jax.lax.stop_gradient(jnp.max(log_likelihood, axis=axis, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    joint = prior * jnp.exp(log_likelihood - top)
    total = jnp.sum(joint, axis=axis, keepdims=True)
    possible = total > float(jnp.finfo(total.dtype).tiny)
    log_p = jnp.log(jnp.where(possible, total, 1.0))
    # times exp, for the gradient of a quotient has total^2 in it
    return jnp.where(possible, joint * jnp.exp(-log_p), prior), jnp.where(possible, log_p + top, -jnp.inf)


class _Numbers(NamedTuple):
    """How probabilities are held: `of` their logarithms, their products, Bayes' rule."""

    of: Callable[[Array], Array]
    product: Callable[[Array, Array], Array]
    condition: Callable[..., tuple[Array, Array]]


_LOGS = _Numbers(lambda log_p: log_p, log_product, condition)
_PROBABILITIES = _Numbers(jnp.exp, matmul, quick_condition)


def _held(predicted: Array) -> Array:
    """Whether all states could be reached with some probability at all times: then what was lost counts for nothing.

    For whatever comes after t, the paths through a state that was too small for a float at t are at most 1e-19 of those
    that reach the same state of t + 1 from elsewhere. The square of 1e-19 is a float, and so gradients are.
    """
    predicted = jax.lax.stop_gradient(predicted)
    return _everywhere((predicted > math.sqrt(jnp.finfo(predicted.dtype).tiny)).all())


@jax.custom_batching.custom_vmap
def _everywhere(held: Array) -> Array:
    """Under `vmap`, whether all of the batch do: so that one branch is run, and not both."""
    return held


@_everywhere.def_vmap
def _all_everywhere(axis_size, in_batched, held):
    del axis_size, in_batched
    return _everywhere(held.all(axis=0)), False


def _in_logs(quick, evidence):
    """What was found in probabilities, in logarithms, where `_held`."""
    predicted, filtered, log_p = quick
    log_predicted = jnp.log(predicted)
    small = filtered < float(jnp.finfo(filtered.dtype).tiny)
    log_filtered = jnp.where(small, log_predicted + evidence - log_p[:, None], jnp.log(jnp.where(small, 1.0, filtered)))
    return Filtered(log_predicted, log_filtered, log_p)


def _next(real: Array) -> Array:
    """Whether the next step is real."""
    return jnp.concatenate([real[1:], jnp.zeros_like(real[:1])])
