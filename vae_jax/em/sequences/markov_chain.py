"""Distributions over sequences: paths of a Markov chain, what they emit, and what is left when the path is summed out.

    P(z|y) = 1/P(y) P(z_1) prod_{t>1} P(z_t|z_{t-1}) prod_t P(y_t|z_t)

A chain given evidence is a chain again. Without evidence it is the prior over paths, with that of a sequence y the
posterior, and P(y) is its normaliser.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import entr
from jax.typing import ArrayLike
from numpyro.distributions import constraints

from vae_jax.em.family import Family
from vae_jax.em.sequences.forward_backward import Filtered, Smoothed, came_from, forward, real_steps, smooth


class MarkovChain(dist.Distribution):
    """A distribution over paths (T,) of states 0 .. K-1: a Markov chain, given evidence.

    What a path does after its first `count` steps counts for nothing; samples and the mode stay where they are then.

    Args:
        initial: (K,) logits of P(z_1).
        transition: (K, K) logits of P(z_t|z_{t-1}), a row for each z_{t-1}.
        length: the number of steps, T.
        evidence: (T, K) ln P(y_t|z_t), nats; None: the chain itself.
        count: the number of real steps; None: all.
        parallel: see `forward`.
    """

    pytree_data_fields = ("initial", "transition", "evidence", "count")
    pytree_aux_fields = ("parallel",)

    def __init__(self, initial, transition, length, evidence=None, count=None, *, parallel=None, validate_args=None):
        self.initial = jax.nn.log_softmax(initial)
        self.transition = jax.nn.log_softmax(transition)
        self.count, self.parallel = count, parallel
        self.evidence = None if evidence is None else jnp.where(real_steps(length, count)[:, None], evidence, 0.0)
        super().__init__(event_shape=(length,), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self):
        return constraints.independent(constraints.integer_interval(0, self.initial.shape[-1] - 1), 1)

    def given(self, evidence: ArrayLike) -> "MarkovChain":
        """The posterior of this chain, given ln P(y_t|z_t) (T, K) of a sequence."""
        (length,) = self.event_shape
        return MarkovChain(self.initial, self.transition, length, evidence, self.count, parallel=self.parallel)

    @property
    def filtered(self) -> Filtered:
        """What each step's evidence and those before it tell."""
        return forward(self.initial, self.transition, self._evidence, self._real, parallel=self.parallel)

    @property
    def smoothed(self) -> Smoothed:
        """What all the evidence tells of each step."""
        return self._smoothed[1]

    @property
    def _smoothed(self) -> tuple[Filtered, Smoothed]:
        return smooth(self.initial, self.transition, self._evidence, self._real, parallel=self.parallel)

    @property
    def marginals(self) -> Array:
        """(T, K) P(z_t)."""
        return self.smoothed.marginals

    @property
    def log_normaliser(self) -> Array:
        """ln P(y) of the evidence, in nats; 0 without evidence."""
        return jnp.zeros((), self.initial.dtype) if self.evidence is None else jnp.sum(self.filtered.log_p)

    def log_joint(self, path: ArrayLike) -> Array:
        """ln P(z, y) of one path (T,)."""
        path = jnp.asarray(path, jnp.int32)
        moves = jnp.where(self._real[1:], self.transition[path[:-1], path[1:]], 0.0)
        seen = jnp.take_along_axis(self._evidence, path[:, None], axis=1)
        return self.initial[path[0]] + jnp.sum(moves) + jnp.sum(seen)

    def log_prob(self, value: ArrayLike) -> Array:
        """ln P(z) of paths (..., T); -inf if the evidence is impossible."""
        log_p = self.log_normaliser
        possible = jnp.isfinite(log_p)
        joint = _over_samples(self.log_joint, value, self.event_shape)
        return jnp.where(possible, joint - jnp.where(possible, log_p, 0.0), -jnp.inf)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Forward filtering, backward sampling: exact draws of whole paths, (*sample_shape, T)."""
        log_filtered = self.filtered.log_filtered
        real_next = self._real[1:]

        def one(key):
            def step(later, inputs):
                noisy, moved = inputs
                drawn = jnp.argmax(noisy + self.transition[:, later])
                state = jnp.where(moved, drawn, later)
                return state, state

            noisy = log_filtered + jax.random.gumbel(key, log_filtered.shape, log_filtered.dtype)
            last = jnp.argmax(noisy[-1])
            _, before = jax.lax.scan(step, last, (noisy[:-1], real_next), reverse=True)
            return jnp.append(before, last)

        return _draw(one, key, sample_shape)

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
        """The entropy of the path in nats: that of z_T, and of each z_{t-1} given z_t."""
        known, (marginals, _) = self._smoothed
        back = came_from(self.transition[None], known.log_filtered[:-1], known.log_predicted[1:], axis=1)
        moves = jnp.sum(_entropy(back, axis=1) * marginals[1:], axis=1)
        return _entropy(marginals[-1], axis=0) + jnp.sum(jnp.where(self._real[1:], moves, 0.0))

    @property
    def _real(self) -> Array:
        return real_steps(self.event_shape[0], self.count)

    @property
    def _evidence(self) -> Array:
        if self.evidence is not None:
            return self.evidence
        return jnp.zeros((*self.event_shape, len(self.initial)), self.initial.dtype)


class Emissions(dist.Distribution):
    """P(y|z): y_t ~ P(y|z_t), independent given the path z.

    Args:
        params: those of the family.
        path: (T,) states.
        count: the number of real steps; None: all. Others count for nothing, and are 0 in samples.
    """

    pytree_data_fields = ("params", "path", "count")
    pytree_aux_fields = ("family",)

    def __init__(self, params, path, family, count=None, *, validate_args=None):
        self.params, self.path, self.count, self.family = params, jnp.asarray(path, jnp.int32), count, family
        super().__init__(event_shape=(*jnp.shape(path), *family.shape), validate_args=validate_args)

    @property
    def support(self):
        return _rows_in_support(self.family, self.params)

    def log_prob(self, value: ArrayLike) -> Array:
        def one(y):
            of_states = evidence_of(self.family, self.params, y, self.count)
            return jnp.take_along_axis(of_states, self.path[:, None], axis=1).sum()

        return _over_samples(one, value, self.event_shape)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        real = _beside(real_steps(len(self.path), self.count), len(self.family.shape))

        def one(key):
            keys = jax.random.split(key, len(self.path))
            ys = jax.vmap(lambda k, z: self.family.dist(self.params, z).sample(k))(keys, self.path)
            return jnp.where(real, ys, jnp.zeros_like(ys))

        return _draw(one, key, sample_shape)


class HiddenMarkov(dist.Distribution):
    """P(y) = sum_z P(z) P(y|z) over sequences (T, *family.shape), by the forward algorithm.

    Args:
        chain: P(z), with the number of real steps.
        params: those of the family.
    """

    pytree_data_fields = ("chain", "params")
    pytree_aux_fields = ("family",)

    def __init__(self, chain, params, family, *, validate_args=None):
        self.chain, self.params, self.family = chain, params, family
        super().__init__(event_shape=(*chain.event_shape, *family.shape), validate_args=validate_args)

    @property
    def support(self):
        return _rows_in_support(self.family, self.params)

    def posterior(self, y: ArrayLike) -> MarkovChain:
        """P(z|y) of one sequence."""
        return self.chain.given(evidence_of(self.family, self.params, y, self.chain.count))

    def log_prob(self, value: ArrayLike) -> Array:
        return _over_samples(lambda y: self.posterior(y).log_normaliser, value, self.event_shape)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        def one(key):
            k_path, k_y = jax.random.split(key)
            return Emissions(self.params, self.chain.sample(k_path), self.family, self.chain.count).sample(k_y)

        return _draw(one, key, sample_shape)


def evidence_of(family: Family, params: Any, y: Any, count: Any) -> Array:
    """(T, K) ln P(y_t|z_t) of one sequence; 0 where a step is not real, whatever y holds there."""
    y = jnp.asarray(y)
    real = real_steps(len(y), count)
    return jnp.where(real[:, None], family.log_prob(params, without_padding(y, real)), 0.0)


def without_padding(ys: Array, real: Array) -> Array:
    """ys (*real.shape, ...) with 0 where a step is not real."""
    return jnp.where(_beside(real, ys.ndim - real.ndim), ys, jnp.zeros_like(ys))


def _beside(x: Array, axes: int) -> Array:
    return x.reshape(x.shape + (1,) * axes)


def _entropy(p, *, axis):
    """-sum p ln p along an axis; with a gradient of 0, not NaN, where p is 0."""
    return entr(jnp.where(p > 0, p, 1.0)).sum(axis=axis)


def _rows_in_support(family, params):
    return constraints.independent(family.dist(params, 0).support, 1)


def _over_samples(of_one, value, event_shape):
    """`of_one` of each value (..., *event_shape)."""
    value = jnp.asarray(value)
    leading = value.shape[: value.ndim - len(event_shape)]
    return jax.vmap(of_one)(value.reshape(-1, *event_shape)).reshape(leading)


def _draw(one, key, sample_shape):
    """One draw for each place of `sample_shape`, each with a key of its own."""
    draws = jax.vmap(one)(jax.random.split(key, math.prod(sample_shape)))
    return draws.reshape(*sample_shape, *draws.shape[1:])
