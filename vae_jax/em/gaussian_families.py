"""Gaussian families: N(mean_k, covariance_k) with full, tied, diagonal or spherical covariances.

Sufficient statistics are taken about the current means: as E[yy'] - mm' they would lose a covariance in float32 as soon
as a mean is some thousand standard deviations from 0. One component at a time, so that nothing of n x K x D is held.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from vae_jax.core.distributions import MultivariateNormal
from vae_jax.core.linalg import cholesky, eigh, eye_like, inverse_of_lower, lower_of_qr, matmul
from vae_jax.core.network import shape_of
from vae_jax.core.numbers import is_whole
from vae_jax.em.family import Family, check_real
from vae_jax.em.missing import MaybeMissing, completed, masked_log_prob

Covariance = Literal["full", "tied", "diagonal", "spherical"]
FLOOR = 1e-6
LOG_2PI = 1.8378770664093453


class CovariancePrior(NamedTuple):
    """A prior on each covariance, for maximum a posteriori: as if `examples` more had been seen, of that variance.

    ln P(covariance) = -examples/2 (ln |covariance| + variance tr covariance^-1) + const, an inverse Wishart density.
    """

    examples: float
    variance: float


def gaussians(
    size: int | tuple[int, ...],
    covariance: Covariance = "full",
    *,
    spread: float = 1.0,
    floor: float = FLOOR,
    missing: bool = False,
    prior: CovariancePrior | None = None,
) -> Family:
    """N(mean_k, covariance_k) over D numbers, of shape `size`.

    Params: `means` (K, D) and `covariances`, unconstrained: log standard deviations (K, D) for "diagonal" and (K,) for
    "spherical", lower Cholesky factors with the logarithm of their diagonal, (K, D, D) for "full" and (D, D) for
    "tied".

    Args:
        spread: `init` draws the means from N(0, spread^2 I) and makes the covariances 1.
        floor: no variance in any direction falls below it (in squared units of y): a component on a single point or on
            a constant column stays finite. The M-step under this constraint is exact, so EM is monotone with it.
        missing: NaN in y means missing; the E-step then sums over what is missing, exactly.
        prior: makes the M-step maximum a posteriori. By default there is none: maximum likelihood.

    Raises:
        ValueError: an option out of range.
    """
    shape = shape_of(size)
    if not all(map(is_whole, shape)) or not floor > 0:
        raise ValueError(f"want at least one number and floor > 0; got size={shape}, floor={floor}")
    size = math.prod(shape)
    if len(shape) != 1 and (missing or covariance in ("full", "tied")):
        raise ValueError(f"full and tied covariances and missing entries are for vectors, flatten y; got size={shape}")
    if covariance not in _FORMS:
        raise ValueError(f"covariance={covariance!r}: want one of {sorted(_FORMS)}")
    form = _FORMS[covariance]

    def init(key, k):
        return {"means": spread * jax.random.normal(key, (k, size)), "covariances": form.identity(k, size)}

    def distribution(params, k):
        k_of = functools.partial(jax.lax.dynamic_index_in_dim, index=k, keepdims=False)
        mean, factor = k_of(params["means"]), k_of(form.factor(params["covariances"], *params["means"].shape))
        if missing:
            return MaybeMissing(mean, factor)
        if form.factorised:
            return dist.Normal(mean.reshape(shape), factor.reshape(shape)).to_event(len(shape))
        return MultivariateNormal(mean, scale_tril=factor)

    def log_prob(params, ys):
        ys = jnp.reshape(ys, (-1, size))
        factors = form.factor(params["covariances"], *params["means"].shape)
        if missing:
            of_one = jax.vmap(masked_log_prob, in_axes=(0, None, None))
            return jax.lax.map(lambda part: of_one(ys, *part), (params["means"], factors)).T
        whitening = 1 / factors if form.factorised else inverse_of_lower(factors)
        log_scale = jnp.log(factors if form.factorised else jnp.diagonal(factors, axis1=1, axis2=2)).sum(1)

        def squared(part):
            mean, white = part
            centred = ys - mean[None]
            return jnp.sum((centred * white[None] if form.factorised else matmul(centred, white.T)) ** 2, axis=1)

        squares = jax.lax.map(squared, (params["means"], whitening))
        return (-0.5 * squares - (log_scale + 0.5 * size * LOG_2PI)[:, None]).T

    def stats(params, ys, weights):
        ys = jnp.reshape(ys, (-1, size))
        factors = form.factor(params["covariances"], *params["means"].shape)

        def of_component(part):
            mean, factor, weight = part
            centred, spread = completed(ys, mean, factor, weight) if missing else (ys - mean[None], 0.0)
            if form.factorised:
                scatter = matmul(weight[None], centred**2)[0]
            else:
                scatter = matmul((centred * weight[:, None]).T, centred)
            return {"weight": weight.sum(), "first": matmul(weight[None], centred)[0], "scatter": scatter + spread}

        return jax.lax.map(of_component, (params["means"], factors, weights.T))

    def maximise(params, stats, n):
        seen = stats["weight"] > _nothing(stats["weight"])
        weight = jnp.where(seen, stats["weight"], 1.0)
        shift = jnp.where(seen[:, None], stats["first"] / weight[:, None], 0.0)
        scatter = stats["scatter"] - _outer(shift, stats["scatter"]) * _like(stats["weight"], stats["scatter"])
        pooled, total = form.pool(scatter, stats["weight"])
        extra = 0.0 if prior is None else prior.examples / n
        enough = total + extra > _nothing(total)
        added = 0.0 if prior is None else extra * prior.variance * (1.0 if form.factorised else eye_like(pooled))
        new = (pooled + added) / _like(jnp.where(enough, total + extra, 1.0), pooled)
        raw = form.raw(new, floor)
        return {
            "means": params["means"] + shift,
            "covariances": jnp.where(_like(enough, raw), raw, params["covariances"]),
        }

    def recentre(stats, old, new):
        shift = new["means"] - old["means"]
        first = stats["first"] - stats["weight"][:, None] * shift
        scatter = stats["scatter"] - _cross(stats["first"], shift, stats["scatter"])
        scatter = scatter + _outer(shift, scatter) * _like(stats["weight"], scatter)
        return {"weight": stats["weight"], "first": first, "scatter": scatter}

    def log_prior(params):
        if prior is None:
            return 0.0
        factors = form.factor(params["covariances"], *params["means"].shape)
        factors = factors[:1] if form.shared else factors
        if form.factorised:
            log_det, trace = 2 * jnp.log(factors).sum(), (factors**-2).sum()
        else:
            log_det = 2 * jnp.log(jnp.diagonal(factors, axis1=1, axis2=2)).sum()
            trace = (inverse_of_lower(factors) ** 2).sum()
        return -0.5 * prior.examples * (log_det + prior.variance * trace)

    def check(ys):
        check_real(ys, shape, missing=missing)

    return Family(shape, init, distribution, log_prob, stats, maximise, recentre, log_prior, check=check)


class _Form(NamedTuple):
    """What differs between the forms of a covariance.

    Fields:
        identity: `(k, d) ->` the parameters of unit covariances.
        factor: `(parameters, k, d) ->` standard deviations (k, d), or lower Cholesky factors (k, d, d).
        pool: `(scatter, weight)` of each component -> those of each covariance.
        raw: `(covariances, floor) -> parameters`, with every variance at least the floor.
        factorised: whether the covariance is diagonal; shared: whether there is one for all components.
    """

    identity: Callable[[int, int], Array]
    factor: Callable[[Array, int, int], Array]
    pool: Callable[[Array, Array], tuple[Array, Array]]
    raw: Callable[[Array, float], Array]
    factorised: bool
    shared: bool


def cholesky_of(raw: Array) -> Array:
    """Lower Cholesky factors from their parameters: the diagonal is stored as a logarithm."""
    diagonal = jnp.exp(jnp.diagonal(raw, axis1=-2, axis2=-1))
    return jnp.tril(raw, -1) + diagonal[..., None] * eye_like(raw)


def raw_cholesky(covariance: Array, floor: float) -> Array:
    """Parameters of the nearest covariance without a variance below the floor: eigenvalues are raised to it."""
    covariance = 0.5 * (covariance + jnp.swapaxes(covariance, -1, -2))

    def raised():
        values, vectors = eigh(covariance)
        root = vectors * jnp.sqrt(jnp.maximum(values, floor))[..., None, :]
        # By QR of the root: a Cholesky factorisation fails in float32 where the eigenvalues differ by 1e7.
        return lower_of_qr(root).astype(covariance.dtype)

    low = ~jnp.isfinite(cholesky(covariance - floor * eye_like(covariance))).all()
    factor = jax.lax.cond(low, raised, lambda: cholesky(covariance))
    diagonal = jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1))
    return jnp.tril(factor, -1) + diagonal[..., None] * eye_like(factor)


def _log_std(variance: Array, floor: float) -> Array:
    return 0.5 * jnp.log(jnp.maximum(variance, floor))


_FORMS: dict[str, _Form] = {
    "full": _Form(
        identity=lambda k, d: jnp.zeros((k, d, d)),
        factor=lambda raw, k, d: cholesky_of(raw),
        pool=lambda scatter, weight: (scatter, weight),
        raw=raw_cholesky,
        factorised=False,
        shared=False,
    ),
    "tied": _Form(
        identity=lambda k, d: jnp.zeros((d, d)),
        factor=lambda raw, k, d: jnp.broadcast_to(cholesky_of(raw)[None], (k, d, d)),
        pool=lambda scatter, weight: (scatter.sum(0), weight.sum()),
        raw=raw_cholesky,
        factorised=False,
        shared=True,
    ),
    "diagonal": _Form(
        identity=lambda k, d: jnp.zeros((k, d)),
        factor=lambda raw, k, d: jnp.exp(raw),
        pool=lambda scatter, weight: (scatter, weight),
        raw=_log_std,
        factorised=True,
        shared=False,
    ),
    "spherical": _Form(
        identity=lambda k, d: jnp.zeros(k),
        factor=lambda raw, k, d: jnp.broadcast_to(jnp.exp(raw)[:, None], (k, d)),
        pool=lambda scatter, weight: (scatter.mean(1), weight),
        raw=_log_std,
        factorised=True,
        shared=False,
    ),
}


def _like(x: Array, target: Array) -> Array:
    """x with axes of size 1 at its end, as many as `target` has more."""
    return jnp.reshape(x, jnp.shape(x) + (1,) * (target.ndim - jnp.ndim(x)))


def _outer(shift: Array, scatter: Array) -> Array:
    """shift shift' of each component, or its diagonal, as the scatter has it."""
    return shift**2 if scatter.ndim == 2 else shift[:, :, None] * shift[:, None, :]


def _cross(first: Array, shift: Array, scatter: Array) -> Array:
    """first shift' + shift first', or its diagonal."""
    if scatter.ndim == 2:
        return 2 * first * shift
    product = first[:, :, None] * shift[:, None, :]
    return product + jnp.swapaxes(product, 1, 2)


def _nothing(weight: Array) -> float:
    """A weight below which a component has seen nothing: sums of squares over it would underflow."""
    return float(jnp.finfo(weight.dtype).tiny) * 1e12
