"""Families: K densities of one kind, P(y|k). The components of a mixture, the emissions of a hidden Markov model.

A family knows nothing of where its weights come from. Anything that computes the probability of each k for each y
(responsibilities) can fit it by EM: `mixture` and `hidden_markov` are written once, for every family.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike

from vae_jax.core.model import Params


class Family(NamedTuple):
    """K densities P(y|k) with a weighted maximum-likelihood fit in closed form.

    Fields:
        shape: shape of one y.
        init: `(key, k) -> params` of k components, without data.
        dist: `(params, k) -> Distribution` of one y under component k (an index, perhaps traced).
        log_prob: `(params, ys) -> (n, K)`, ln P(y|k), for ys of shape (n, *shape).
        stats: `(params, ys, weights) -> stats`: sums over ys, weighted by weights (n, K) >= 0. NaN in ys where the
            family takes missing entries.
        maximise: `(params, stats, n) -> params`: the weighted fit; the stats are an average over n examples. A
            component without weight keeps its parameters.
        recentre: see `EM`.
        log_prior: see `EM`.
        features: `ys -> (n, d)`, real vectors without NaN whose distances make sense: what k-means starts from.
        check: `ys -> None`, raises ValueError where ys (numpy) are not data of this family.
    """

    shape: tuple[int, ...]
    init: Callable[[Array, int], Params]
    dist: Callable[..., dist.Distribution]
    log_prob: Callable[[Params, Any], Array]
    stats: Callable[[Params, Any, Array], Any]
    maximise: Callable[..., Params]
    recentre: Callable[..., Any] = lambda stats, old, new: stats
    log_prior: Callable[[Params], Any] = lambda params: 0.0
    features: Callable[[Any], Array] = lambda ys: fill(ys.reshape(len(ys), -1))
    check: Callable[[Any], None] = lambda ys: None


def log_sum(x: Array, *, axis: int, keepdims: bool = False) -> Array:
    """ln sum exp(x) along an axis; -inf with gradient 0 (not NaN, as jax's) where all of it is impossible."""
    top = jax.lax.stop_gradient(jnp.max(x, axis=axis, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    total = jnp.sum(jnp.exp(x - top), axis=axis, keepdims=True)
    possible = total > 0
    result = jnp.where(possible, jnp.log(jnp.where(possible, total, 1.0)) + top, -jnp.inf)
    return result if keepdims else jnp.squeeze(result, axis)


def log_probabilities(logits: Array) -> tuple[Array, Array]:
    """(ln P (..., K) of these logits, which values are possible: not below the smallest float, but for rounding)."""
    log_p = jax.nn.log_softmax(logits)
    return log_p, log_p > 1.001 * math.log(jnp.finfo(log_p.dtype).tiny)


def fitted_logits(counts: Array, old: Array, added: ArrayLike = 0.0, floor: float = 0.0) -> Array:
    """ln of the normalised counts (..., K), at least that of the floor or of the smallest float: an M-step.

    What is impossible in the old logits (..., K) stays so: a count of 0 does not raise it, and it has no share in the
    pseudo-counts that are added. -inf takes no counts either. Where nothing was counted the old logits stay.
    """
    before, possible = log_probabilities(old)
    tiny = float(jnp.finfo(counts.dtype).tiny)
    counts = jnp.where(before > -jnp.inf, counts, 0.0) + jnp.where(possible, added, 0.0)
    total = counts.sum(axis=-1, keepdims=True)
    known = total > tiny * 1e12
    share = counts / jnp.where(known, total, 1.0)
    least = jnp.where(possible, math.log(max(tiny, floor)), before)
    return jnp.where(known, jnp.maximum(jnp.log(share), least), old)


def log_dirichlet(logits: Array, concentration: float) -> ArrayLike:
    """ln of the symmetric Dirichlet density of the probabilities that are possible, up to a constant, of all rows."""
    log_p, possible = log_probabilities(logits)
    return (concentration - 1) * jnp.where(possible, log_p, 0.0).sum()


def fill(rows: Array) -> Array:
    """Rows (n, d) with what is missing (NaN) replaced by the mean of its column, 0 where a column has nothing."""
    seen = ~jnp.isnan(rows)
    total = jnp.where(seen, rows, 0.0).sum(axis=0)
    return jnp.where(seen, rows, (total / jnp.maximum(seen.sum(axis=0), 1))[None])


def fit_to_weights(family: Family, params: Params, ys: Any, weights: Array) -> Params:
    """The family's weighted fit to ys, where EM starts: `params` may be far off, as without data.

    Fitted twice, the second time about the means of the first.
    """
    for _ in range(2):
        stats = jax.tree.map(lambda s: s / len(weights), family.stats(params, ys, weights))
        params = family.maximise(params, stats, len(weights))
    return params


def check_real(ys: Any, shape: tuple[int, ...], *, missing: bool) -> None:
    """Make sure that ys (n, *shape) are finite numbers, or NaN where missing entries are declared.

    Raises:
        ValueError: another shape, infinite values, NaN that was not declared, or labels where data are wanted.
    """
    ys = np.asarray(ys)
    if ys.shape[1:] != shape:
        labels = " (a vector of labels?)" if ys.ndim == 1 and np.issubdtype(ys.dtype, np.integer) else ""
        raise ValueError(
            f"this model is of examples of shape {shape}; ys has shape {ys.shape}{labels}: want (n, *shape)"
        )
    if ys.dtype.kind not in "iufb":
        raise ValueError(f"ys has dtype {ys.dtype}; want numbers")
    check_missing(ys, missing=missing)


def check_missing(ys: Any, *, missing: bool) -> None:
    """Make sure that ys hold no infinity, and no NaN unless it is declared to mean missing.

    Raises:
        ValueError: they do.
    """
    if ys.dtype.kind != "f":
        return
    rows = ys.reshape(len(ys), -1)
    infinite, unknown = np.isinf(rows).any(axis=1), np.isnan(rows).any(axis=1)
    if infinite.any():
        raise ValueError(f"ys holds infinity in {infinite.sum()} of {len(ys)} examples, first at {infinite.argmax()}")
    if unknown.any() and not missing:
        raise ValueError(
            f"ys holds NaN in {unknown.sum()} of {len(ys)} examples, first at {unknown.argmax()}: remove or fill them, "
            "or build the model with missing=True if NaN means that an entry is missing"
        )
    if missing and np.isnan(rows).all():
        raise ValueError(f"every entry of ys {ys.shape} is missing (NaN)")
