"""Families of independent discrete values: Bernoullis and categoricals, in arrays of any shape.

    ln P(y|k) = sum_d ln p_kd(y_d)

is a product of matrices for each level, (y == level) @ ln p(level)', so that nothing of n x K x D is held. A missing
entry equals no level and so contributes nothing. For scalar y, the emissions of a hidden Markov model, it is a look-up.

Floor: no value has a probability below 1e-30, whatever the finite parameters: one that a component has never seen costs
69 nats. One that an infinite logit forbids is impossible, ln P = -inf, and stays so through any M-step. Never NaN.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from vae_jax.core.distributions import Levels
from vae_jax.core.linalg import matmul
from vae_jax.core.model import Conditional, Params
from vae_jax.core.network import shape_of
from vae_jax.core.numbers import is_whole
from vae_jax.em.family import Family, check_real, fill, fitted_logits, log_dirichlet
from vae_jax.em.mixtures import mixture

FLOOR = 1e-30
LOG_FLOOR = math.log(FLOOR)
_IMPOSSIBLE = -1e30  # in a product of matrices, where 0 * -inf would be NaN


class LevelsOrMissing(Levels):
    """The integers 0 .. levels - 1, or NaN for an entry that is missing."""

    def __call__(self, x):
        return super().__call__(x) | (x != x)


class Discrete(dist.CategoricalLogits):
    """Independent values 0 .. levels - 1 from logits (..., levels), which can be mixed; NaN counts for nothing."""

    pytree_aux_fields = ("missing",)

    def __init__(self, logits: Array, *, missing: bool = False, validate_args=False):
        """By default without numpyro's check, which refuses logits of -inf."""
        self.missing = missing
        super().__init__(logits, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self):
        return (LevelsOrMissing if self.missing else Levels)(self.logits.shape[-1])

    def log_prob(self, value):
        value = jnp.asarray(value)
        seen = value == value
        return jnp.where(seen, super().log_prob(jnp.where(seen, value, 0).astype(jnp.int32)), 0.0)

    @property
    def mean(self):
        """The mean level."""
        return self.probs @ jnp.arange(self.logits.shape[-1], dtype=self.probs.dtype)


def bernoullis(shape: int | tuple[int, ...], *, missing: bool = False, prior: float | None = None) -> Family:
    """Independent Bernoulli values in {0, 1}, in arrays of this shape. Params: `logits` (K, *shape); infinite: certain.

    Args:
        shape: of one example; () for the emissions of a hidden Markov model with one symbol at a time.
        missing: NaN in y (data of floats) means missing, and is summed out exactly.
        prior: pseudo-counts of each of 0 and 1, for maximum a posteriori: a Beta(1 + prior, 1 + prior) on each
            probability. By default there is none: maximum likelihood, where a value never seen ends at the floor.

    Raises:
        ValueError: an option out of range. `check` raises one for data that are not 0 or 1.
    """

    def tables(params):
        signed = jnp.stack([-params["logits"], params["logits"]], axis=-1)
        return _forbidding(jax.nn.log_sigmoid(jnp.clip(signed, LOG_FLOOR, -LOG_FLOOR)), signed)

    return _family(
        _Tables("bernoullis", lambda s: s, tables, lambda p: p[..., 1] - p[..., 0]), shape, 2, missing, prior
    )


def categoricals(
    shape: int | tuple[int, ...], levels: int, *, missing: bool = False, prior: float | None = None
) -> Family:
    """Independent values 0 .. levels - 1, in arrays of this shape. Params: `logits` (K, *shape, levels); -inf forbids.

    Args:
        shape: of one example; () for the emissions of a hidden Markov model with one symbol at a time.
        levels: how many values there are.
        missing: NaN in y (data of floats) means missing, and is summed out exactly.
        prior: pseudo-counts of each level, for maximum a posteriori: a symmetric Dirichlet(1 + prior). By default there
            is none: maximum likelihood, where a value never seen ends at the floor.

    Raises:
        ValueError: an option out of range. `check` raises one for data that are not integers in 0 .. levels - 1.
    """

    def tables(params):
        logits = params["logits"]
        return _forbidding(jax.nn.log_softmax(jnp.maximum(jax.nn.log_softmax(logits), LOG_FLOOR)), logits)

    return _family(_Tables("categoricals", lambda s: (*s, levels), tables, lambda p: p), shape, levels, missing, prior)


def mixture_of_bernoullis(
    shape: int | tuple[int, ...], components: int, *, missing: bool = False, prior: float | None = None
) -> Conditional:
    """sum_k w_k prod_d Bernoulli(y_d; p_kd): latent classes of binary data. Options as in `bernoullis`."""
    return mixture(bernoullis(shape, missing=missing, prior=prior), components)


def mixture_of_categoricals(
    shape: int | tuple[int, ...], levels: int, components: int, *, missing: bool = False, prior: float | None = None
) -> Conditional:
    """sum_k w_k prod_d Categorical(y_d; p_kd): latent class analysis. Options as in `categoricals`."""
    return mixture(categoricals(shape, levels, missing=missing, prior=prior), components)


class _Tables(NamedTuple):
    """What differs between the two families: how logits say the log-probabilities of all levels.

    Fields:
        name: for messages.
        shape: `shape of an example -> shape of the logits` of one component.
        of: `params -> (K, *shape, levels)`, floored log-probabilities, or -inf.
        logits: `log-probabilities (..., levels) -> logits`, its inverse.
    """

    name: str
    shape: Callable[[tuple[int, ...]], tuple[int, ...]]
    of: Callable[[Params], Array]
    logits: Callable[[Array], Array]


def _family(tables: _Tables, shape: int | tuple[int, ...], levels: int, missing: bool, prior: float | None) -> Family:
    shape = shape_of(shape)
    if not is_whole(levels, 2) or not all(map(is_whole, shape)):
        raise ValueError(f"{tables.name} wants at least one value and two levels; got shape={shape}, levels={levels}")
    if prior is not None and not prior >= 0:
        raise ValueError(f"the prior is a number of pseudo-counts for each level and cannot be negative; got {prior}")

    def init(key, k):
        return {"logits": jax.random.normal(key, (k, *tables.shape(shape)))}

    def distribution(params, k):
        return Discrete(tables.of(params)[k], missing=missing).to_event(len(shape))

    def log_prob(params, ys):
        table, ys = tables.of(params), jnp.asarray(ys)
        flat = table.reshape(len(table), -1, levels)
        return _look_up(flat[:, 0], ys) if shape == () else _sum_up(flat, ys.reshape(len(ys), -1))

    def stats(params, ys, weights):
        del params
        ys = jnp.asarray(ys)
        counts = _count_one(ys, weights, levels) if shape == () else _count(ys.reshape(len(ys), -1), weights, levels)
        return {"counts": counts.reshape(-1, *shape, levels)}

    def maximise(params, stats, n):
        return {"logits": tables.logits(fitted_logits(stats["counts"], tables.of(params), (prior or 0.0) / n, FLOOR))}

    def log_prior(params):
        return log_dirichlet(tables.of(params), 1 + (prior or 0.0))

    def features(ys):
        """One number for each entry of two levels; else an indicator for each of its levels: they have no order."""
        rows = jnp.reshape(ys, (len(ys), -1))
        indicators = rows[:, :, None] == jnp.arange(1, levels)[None, None]
        seen = jnp.where((rows == rows)[:, :, None], indicators.astype(float), jnp.nan)
        return fill(seen.reshape(len(ys), -1))

    def check(ys):
        _check(tables.name, np.asarray(ys), shape, levels, missing)

    return Family(
        shape, init, distribution, log_prob, stats, maximise, log_prior=log_prior, features=features, check=check
    )


def _forbidding(table: Array, logits: Array) -> Array:
    """-inf where the logits are."""
    return jnp.where(jnp.isneginf(logits), -jnp.inf, table)


def _sum_up(table: Array, ys: Array) -> Array:
    """(n, K): sum_d ln p_kd(y_d) of ys (n, D), from table (K, D, levels)."""

    def add(total, part):
        level, log_p = part
        return total + matmul((ys == level).astype(table.dtype), log_p.T), None

    levels = jnp.arange(table.shape[-1])
    table = jnp.maximum(table, _IMPOSSIBLE)
    start = jnp.zeros((len(ys), len(table)), table.dtype)
    total, _ = jax.lax.scan(add, start, (levels, jnp.moveaxis(table, -1, 0)))
    return jnp.where(total < 0.5 * _IMPOSSIBLE, -jnp.inf, total)


def _count(ys: Array, weights: Array, levels: int) -> Array:
    """(K, D, levels): the weight that each level has in ys (n, D)."""

    def of_level(level):
        return matmul(weights.T, (ys == level).astype(weights.dtype))

    return jnp.moveaxis(jax.lax.map(of_level, jnp.arange(levels)), 0, -1)


def _look_up(table: Array, ys: Array) -> Array:
    """(n, K): ln p_k(y) of ys (n,), from table (K, levels)."""
    seen = ys == ys
    return jnp.where(seen[:, None], table.T[jnp.where(seen, ys, 0).astype(jnp.int32)], 0.0)


def _count_one(ys: Array, weights: Array, levels: int) -> Array:
    """(K, levels): the weight that each level has in ys (n,)."""
    seen = ys == ys
    index = jnp.where(seen, ys, 0).astype(jnp.int32)
    return jax.ops.segment_sum(jnp.where(seen[:, None], weights, 0.0), index, levels).T


def _check(name: str, ys: np.ndarray, shape: tuple[int, ...], levels: int, missing: bool) -> None:
    check_real(ys, shape, missing=missing)
    outside = (ys == ys) & ((ys < 0) | (ys >= levels) | (ys % 1 != 0))
    if outside.any():
        wanted = "0 or 1: binarise them first" if levels == 2 else f"integers from 0 to {levels - 1}"
        raise ValueError(
            f"{name}: ys holds {outside.sum()} values like {ys[outside][0]}, the first in row "
            f"{int(np.argwhere(outside)[0][0])}; want {wanted}"
        )
