"""Markov chains of K states that have been seen through evidence, ln P(y_t|z_t): exact inference over whole paths.

    P(z) = 1/P(y) P(z_1) prod_{t>1} P(z_t|z_{t-1}) prod_t P(y_t|z_t)

Without evidence it is the chain itself, the prior over paths; with the evidence of a sequence y it is the posterior
over paths, and P(y) is its normaliser. One sequence; a batch is a vmap.

Probabilities are normalised at every step, after the evidence has been shifted by its largest value among the states
that can be reached, so that float32 is safe for any length. What is lost: a state whose probability, before its
evidence, is below about 1e-35 (float64: 1e-305) of the others' counts as impossible.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import entr
from numpyro.distributions import constraints


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
    """What is known of z_t at the end.

    Fields:
        marginals: (T, K) P(z_t | y).
        ratio: (T, K) P(z_t | y) / P(z_t | y_1 .. y_{t-1}), which is what pairs of neighbours need:
            P(z_{t-1} = j, z_t = k | y) = filtered[t-1, j] P(k|j) ratio[t, k].
    """

    marginals: Array
    ratio: Array


def real_steps(length: int, count: Array | int | None) -> Array:
    """(length,): whether each step is one of the sequence, the first `count` (None: all of them)."""
    return jnp.arange(length) < (length if count is None else count)


def forward(initial: Array, transition: Array, evidence: Array, real: Array, *, parallel: bool) -> Filtered:
    """Filter a sequence.

    Args:
        initial: (K,) P(z_1); transition: (K, K) P(z_t = k | z_{t-1} = j) in row j.
        evidence: (T, K) ln P(y_t | z_t), in nats; 0 at the steps that are not real.
        real: (T,), see `real_steps`. Afterwards the chain stays where it is.
        parallel: T steps one after another, or about 2 log2 T steps on arrays (T, K, K) (Särkkä & García-Fernández
            2021, for finite states; Hassan et al. 2021).
    """
    if parallel:
        return _parallel_forward(initial, transition, evidence, real)

    def step(predicted, inputs):
        log_likelihood, real_now, real_next = inputs
        filtered, log_p = condition(predicted, log_likelihood)
        following = jnp.where(real_next, _matmul(filtered, transition), filtered)
        return following, Filtered(predicted, filtered, jnp.where(real_now, log_p, 0.0))

    _, result = jax.lax.scan(step, initial, (evidence, real, jnp.append(real[1:], False)))
    return result


def _parallel_forward(initial, transition, evidence, real):
    """Elements: P(z_t = k | y_s .. y_t, z_{s-1} = j) and ln P(y_s .. y_t | z_{s-1} = j), in row j."""
    states = len(initial)
    first = jnp.arange(len(evidence))[:, None, None] == 0
    priors = jnp.where(first, initial[None, None], transition[None])
    rows, log_ps = condition(priors, evidence[:, None])
    rows = jnp.where(real[:, None, None], rows, jnp.eye(states, dtype=rows.dtype)[None])
    log_ps = jnp.where(real[:, None], log_ps, 0.0)

    def join(earlier, later):
        weights, log_p = condition(earlier[0], later[1][:, None])
        return _matmul(weights, later[0]), earlier[1] + log_p

    joined, _ = jax.lax.associative_scan(join, (rows, log_ps))
    before = joined[:-1, 0]
    predicted = jnp.where(real[1:, None], _matmul(before, transition), before)
    predicted = jnp.concatenate([initial[None], predicted])
    filtered, log_p = condition(predicted, evidence)
    return Filtered(predicted, filtered, jnp.where(real, log_p, 0.0))


def backward(transition: Array, known: Filtered, real: Array, *, parallel: bool) -> Smoothed:
    """Smooth what `forward` has filtered (Rauch, Tung & Striebel's form: the data are not needed again)."""
    if parallel:
        return _parallel_backward(transition, known, real)

    def step(message, inputs):
        predicted, filtered, real_now = inputs
        marginal = filtered * message
        ratio = _ratio(marginal, predicted)
        return jnp.where(real_now, _matmul(ratio, transition.T), message), Smoothed(marginal, ratio)

    inputs = (known.predicted, known.filtered, real)
    _, result = jax.lax.scan(step, jnp.ones_like(transition[0]), inputs, reverse=True)
    return result


def _parallel_backward(transition, known, real):
    """Elements: P(z_t = j | z_{t+1} = k, y), one column for each k; their products take the last step's marginals back."""
    states = len(transition)
    back = known.filtered[:-1, :, None] * transition[None] * _ratio(1.0, known.predicted)[1:, None]
    back = jnp.where(real[1:, None, None], back, jnp.eye(states, dtype=back.dtype)[None])
    products = jax.lax.associative_scan(lambda later, earlier: _matmul(earlier, later), back, reverse=True)
    marginals = jnp.concatenate([_matmul(products, known.filtered[-1]), known.filtered[-1:]])
    return Smoothed(marginals, _ratio(marginals, known.predicted))


def condition(prior: Array, log_likelihood: Array) -> tuple[Array, Array]:
    """Bayes' rule over the last axis: the posterior, and ln of the prior's mean likelihood.

    Where every state is impossible: the prior as it was, and -inf.
    """
    possible = prior > _floor(prior)
    top = jax.lax.stop_gradient(jnp.max(jnp.where(possible, log_likelihood, -jnp.inf), axis=-1, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    joint = jnp.where(possible, prior, 0.0) * jnp.exp(jnp.where(possible, log_likelihood, top) - top)
    total = jnp.sum(joint, axis=-1, keepdims=True)
    seen = total > 0
    safe = jnp.where(seen, total, 1.0)
    return jnp.where(seen, joint / safe, prior), jnp.where(seen, jnp.log(safe) + top, -jnp.inf)[..., 0]


def _ratio(x, predicted):
    possible = predicted > _floor(predicted)
    return jnp.where(possible, x / jnp.where(possible, predicted, 1.0), 0.0)


def _floor(x: Array) -> float:
    """Probabilities below are 0: their inverses, and sums of these, have to be finite."""
    return float(jnp.finfo(x.dtype).tiny) * 1024


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


class MarkovChain(dist.Distribution):
    """A distribution over paths (T,) of states 0 .. K-1: a Markov chain, given evidence.

    What a path does after its first `count` steps counts for nothing; samples and the mode stay where they are then.

    Args:
        initial: (K,) logits of P(z_1).
        transition: (K, K) logits of P(z_t|z_{t-1}), a row for each z_{t-1}.
        length: T.
        evidence: (T, K) ln P(y_t|z_t), nats; None: the chain itself.
        count: the number of real steps; None: all.
        parallel: see `forward`.
    """

    arg_constraints = {}  # noqa: RUF012
    pytree_data_fields = ("initial", "transition", "evidence", "count")
    pytree_aux_fields = ("parallel",)

    def __init__(self, initial, transition, length, evidence=None, count=None, *, parallel=False, validate_args=None):
        self.initial = jax.nn.log_softmax(initial)
        self.transition = jax.nn.log_softmax(transition)
        self.count, self.parallel = count, parallel
        self.evidence = None if evidence is None else jnp.where(real_steps(length, count)[:, None], evidence, 0.0)
        super().__init__(event_shape=(length,), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self):
        return constraints.independent(constraints.integer_interval(0, self.initial.shape[-1] - 1), 1)

    @property
    def filtered(self) -> Filtered:
        """What each step's evidence and those before it tell."""
        initial, transition = jnp.exp(self.initial), jnp.exp(self.transition)
        return forward(initial, transition, self._evidence, self._real, parallel=self.parallel)

    @property
    def smoothed(self) -> Smoothed:
        """What all the evidence tells of each step."""
        return backward(jnp.exp(self.transition), self.filtered, self._real, parallel=self.parallel)

    @property
    def marginals(self) -> Array:
        """(T, K) P(z_t)."""
        return self.smoothed.marginals

    @property
    def log_normaliser(self) -> Array:
        """ln P(y) of the evidence, in nats; 0 without evidence."""
        return jnp.zeros((), self.initial.dtype) if self.evidence is None else jnp.sum(self.filtered.log_p)

    def log_joint(self, path: Array) -> Array:
        """ln P(z, y) of one path (T,)."""
        path = jnp.asarray(path, jnp.int32)
        moves = jnp.where(self._real[1:], self.transition[path[:-1], path[1:]], 0.0)
        seen = jnp.take_along_axis(self._evidence, path[:, None], axis=1)
        return self.initial[path[0]] + jnp.sum(moves) + jnp.sum(seen)

    def log_prob(self, value: Array) -> Array:
        """ln P(z) of paths (..., T); -inf if the evidence is impossible."""
        paths = jnp.reshape(jnp.asarray(value), (-1, *self.event_shape))
        log_p = self.log_normaliser
        joint = jax.vmap(self.log_joint)(paths)
        possible = jnp.isfinite(log_p)
        result = jnp.where(possible, joint - jnp.where(possible, log_p, 0.0), -jnp.inf)
        return jnp.reshape(result, jnp.shape(value)[:-1])

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Forward filtering, backward sampling: exact draws of whole paths, (*sample_shape, T)."""
        log_filtered = jnp.log(self.filtered.filtered)
        real_next = self._real[1:]

        def one(key):
            def step(later, inputs):
                key, log_now, moved = inputs
                drawn = jax.random.categorical(key, log_now + self.transition[:, later])
                state = jnp.where(moved, drawn, later)
                return state, state

            keys = jax.random.split(key, len(log_filtered))
            last = jax.random.categorical(keys[-1], log_filtered[-1])
            _, before = jax.lax.scan(step, last, (keys[:-1], log_filtered[:-1], real_next), reverse=True)
            return jnp.append(before, last)

        keys = jax.random.split(key, math.prod(sample_shape))
        return jnp.reshape(jax.vmap(one)(keys), (*sample_shape, *self.event_shape))

    @property
    def mode(self) -> Array:
        """(T,) the most probable path."""
        return self.viterbi()[0]

    def viterbi(self) -> tuple[Array, Array]:
        """The most probable path (T,), and its ln P(z, y) in nats."""

        def step(score, inputs):
            log_likelihood, moved = inputs
            scores = score[:, None] + self.transition
            best = jnp.where(moved, jnp.argmax(scores, axis=0), states)
            score = jnp.where(moved, jnp.max(scores, axis=0), score) + log_likelihood
            top = jnp.max(score)
            return score - jnp.where(jnp.isfinite(top), top, 0.0), (best, top)

        def back(state, best):
            return best[state], best[state]

        states = jnp.arange(len(self.initial))
        start = self.initial + self._evidence[0]
        score, (bests, tops) = jax.lax.scan(step, start, (self._evidence[1:], self._real[1:]))
        last = jnp.argmax(score)
        _, path = jax.lax.scan(back, last, bests, reverse=True)
        # each step's scores are relative to the best one before, so that float32 still tells them apart
        log_p = jnp.sum(tops) if len(tops) else jnp.max(start)
        return jnp.append(path, last), log_p

    def entropy(self) -> Array:
        """The entropy of the path in nats: that of z_1 and of each z_t given z_{t-1}."""
        known = self.filtered
        marginals, ratio = backward(jnp.exp(self.transition), known, self._real, parallel=self.parallel)
        pairs = known.filtered[:-1, :, None] * jnp.exp(self.transition)[None] * ratio[1:, None]
        moves = entr(pairs).sum(axis=(1, 2)) - entr(marginals[:-1]).sum(axis=1)
        return entr(marginals[0]).sum() + jnp.sum(jnp.where(self._real[1:], moves, 0.0))

    @property
    def _real(self) -> Array:
        return real_steps(self.event_shape[0], self.count)

    @property
    def _evidence(self) -> Array:
        if self.evidence is not None:
            return self.evidence
        return jnp.zeros((*self.event_shape, len(self.initial)), self.initial.dtype)
