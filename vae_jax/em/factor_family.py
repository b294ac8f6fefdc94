"""Factor analysers, a family: the components of a mixture, or a model on their own (`factor_analysis`).

    z ~ N(0, I) of q numbers,    y = W z + m + noise,    noise ~ N(0, Psi), Psi diagonal (isotropic: pPCA)
    P(z|y) = N(V W' Psi^-1 (y - m), V),    V = (I + W' Psi^-1 W)^-1

V is had as a root, from W by QR: never D x D systems, nor W' Psi^-1 W, which float32 loses beside I. The quadratic form
of ln P(y) is taken as its value at the posterior mean, |y - m - W z|^2 / Psi + |z|^2: a sum, where the matrix inversion
lemma has a difference that float32 loses.

M-step: the regression of y on (z, 1), so that W and m move together (Ghahramani & Hinton 1996, equations 5-7). Missing
entries: P(z|y) follows from those that are seen, and each row of W from the examples in which it is seen.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from vae_jax.core.linalg import matmul, residual, transposed
from vae_jax.core.numbers import is_whole
from vae_jax.em.family import Family, check_real
from vae_jax.em.gaussian_families import FLOOR, LOG_2PI
from vae_jax.em.missing import ROWS_AT_ONCE, RealOrMissing
from vae_jax.em.regression import Regression, seen, seen_through

Noise = Literal["diagonal", "isotropic"]


def factor_analysers(
    size: int, latent: int, *, noise: Noise = "diagonal", floor: float = FLOOR, missing: bool = False
) -> Family:
    """K factor analysers: N(means_k, W_k W_k' + Psi_k) over vectors of `size` numbers.

    Params: `means` (K, D), `loadings` (K, D, q), `log_stds` of the noise, (K, D) or for "isotropic" (K,).

    Args:
        latent: q, the number of factors.
        noise: "diagonal" (factor analysis) or "isotropic" (probabilistic PCA).
        floor: no noise variance falls below it (in squared units of y): on a constant column, or with fewer than q + 2
            examples, it ends there. The M-step under this constraint is exact, so EM is monotone with it.
        missing: NaN in y means missing, and is summed out exactly; a row without entries contributes nothing.

    Raises:
        ValueError: an option out of range.
    """
    if not is_whole(latent) or not is_whole(size, latent) or not floor > 0:
        raise ValueError(f"want 1 <= latent <= size and floor > 0; got latent={latent}, size={size}, floor={floor}")
    if noise not in ("diagonal", "isotropic"):
        raise ValueError(f"noise={noise!r}: want 'diagonal' or 'isotropic'")
    isotropic = noise == "isotropic"

    def init(key, k):
        k_means, k_loadings = jax.random.split(key)
        return {
            "means": jax.random.normal(k_means, (k, size)),
            "loadings": jax.random.normal(k_loadings, (k, size, latent)) / np.sqrt(latent),
            "log_stds": jnp.zeros(k if isotropic else (k, size)),
        }

    def parts(params):
        stds = jnp.exp(params["log_stds"])
        stds = jnp.broadcast_to(stds[:, None], params["means"].shape) if isotropic else stds
        return params["means"], params["loadings"], stds

    def distribution(params, k):
        return FactorAnalyser(*(part[k] for part in parts(params)), missing=missing)

    def log_prob(params, ys):
        ys = jnp.asarray(ys)
        return jax.lax.map(lambda part: infer(part, ys, missing=missing).log_p, parts(params)).T

    def stats(params, ys, weights):
        ys = jnp.asarray(ys)

        def of_component(part):
            analyser, weight = part
            return regression_on_factors(analyser[1], infer(analyser, ys, missing=missing), weight)

        return jax.lax.map(of_component, (parts(params), weights.T))

    def maximise(params, stats, n):
        del n
        change = stats.solution()
        square, weight = stats.moved(change).square, jnp.broadcast_to(stats.weight, stats.square.shape)
        if isotropic:
            square, weight = square.sum(axis=-1), weight.sum(axis=-1)
        variance = jnp.maximum(square / jnp.where(seen(weight), weight, 1.0), floor)
        return {
            "means": params["means"] + change[..., -1],
            "loadings": params["loadings"] + change[..., :-1],
            "log_stds": jnp.where(seen(weight), 0.5 * jnp.log(variance), params["log_stds"]),
        }

    def recentre(stats, old, new):
        change = {name: new[name] - old[name] for name in ("loadings", "means")}
        return stats.moved(jnp.concatenate([change["loadings"], change["means"][..., None]], axis=-1))

    def check(ys):
        check_real(ys, (size,), missing=missing)

    return Family((size,), init, distribution, log_prob, stats, maximise, recentre, check=check)


class Inferred(NamedTuple):
    """What is known of z after ys (n, D), for one factor analyser.

    Fields:
        log_p: (n,) ln P(y), of the entries that are seen.
        mean: (n, q) of P(z|y).
        root: (n or 1, q, q), root root' = its covariance; the same for all ys if nothing is missing.
        residual: (n, D) y - m - W mean; 0 where y is missing.
        seen: (n, D) or, if nothing is missing, (n, 1): 1 where y is seen, else 0.
    """

    log_p: Array
    mean: Array
    root: Array
    residual: Array
    seen: Array


def infer(analyser: tuple[Array, Array, Array], ys: Array, *, missing: bool) -> Inferred:
    """The posterior of z for every y, and ln P(y): analyser = mean (D,), loadings (D, q), std (D,); ys (n, D)."""
    mean, loadings, std = analyser
    present = ~jnp.isnan(ys) if missing else jnp.ones((len(ys), 1), bool)
    ys = jnp.where(present, ys, mean[None])
    white, scaled = (ys - mean[None]) / std[None], loadings / std[:, None]
    here = present.astype(std.dtype)
    if missing:

        def one(part):
            y, seen = part
            return seen_through(jnp.where(seen[:, None], scaled, 0.0), y[:, None])[:3]

        share, constant, log_scale = jax.lax.map(one, (white, present), batch_size=min(ROWS_AT_ONCE, len(ys)))
        z = matmul(share, constant)[..., 0]
    else:
        few = len(ys) < len(std)
        once = seen_through(scaled, white.T if few else jnp.eye(len(std), dtype=std.dtype))
        projected = once.projected.T if few else matmul(white, once.projected.T)
        z, share, log_scale = matmul(projected, once.share.T), once.share[None], once.log_scale
    left = jnp.where(present, residual(ys, mean, loadings, z), 0.0)
    log_scale = log_scale + jnp.sum(here * (jnp.log(std) + 0.5 * LOG_2PI)[None], axis=1)
    # Rounding of z takes the quadratic form from its minimum: what by, is known
    off = matmul((matmul(left / std[None], scaled) - z)[:, None], share)[:, 0]
    squares = jnp.sum((left / std[None]) ** 2, axis=1) + jnp.sum(z**2, axis=1) - jnp.sum(off**2, axis=1)
    return Inferred(-log_scale - 0.5 * squares, z, share, left, here)


def regression_on_factors(loadings: Array, known: Inferred, weight: Array) -> Regression:
    """Sums for the regression of y on (z, 1), weighted by weight (n,)."""
    n, q = known.mean.shape
    weights = weight[:, None] * known.seen
    covariance = matmul(known.root, transposed(known.root)).reshape(-1, q * q)
    spread = weights.sum(0)[:, None] * covariance if len(covariance) == 1 else matmul(weights.T, covariance)
    spread = spread.reshape(-1, q, q)
    x = jnp.concatenate([known.mean, jnp.ones((n, 1), known.mean.dtype)], axis=1)
    outer = (x[:, :, None] * x[:, None, :]).reshape(n, -1)
    gram = matmul(weights.T, outer).reshape(-1, q + 1, q + 1) + jnp.pad(spread, ((0, 0), (0, 1), (0, 1)))
    lost = matmul(spread, loadings[:, :, None])[..., 0]  # W V
    cross = matmul((known.residual * weights).T, x) - jnp.pad(lost, ((0, 0), (0, 1)))

    def uncertain(column):
        return jnp.sum(weights * matmul(column, loadings.T) ** 2, axis=0)

    # W V W' from the root: its diagonal may be 1e-10 of what V has elsewhere
    hidden = jax.lax.map(uncertain, jnp.moveaxis(known.root, 2, 0)).sum(axis=0)
    square = jnp.sum(weights * known.residual**2, axis=0) + hidden
    return Regression(weights.sum(axis=0), gram, cross, square)


class FactorAnalyser(dist.Distribution):
    """N(loc, loadings loadings' + diag(std^2)) over vectors (D,); NaN is a missing entry, where that is allowed.

    (numpyro's LowRankMultivariateNormal has its quadratic form as a difference: at small noise float32 loses it.)
    """

    arg_constraints = {"loc": constraints.real_vector}  # noqa: RUF012
    pytree_data_fields = ("loc", "loadings", "std")
    pytree_aux_fields = ("missing",)

    def __init__(self, loc: Array, loadings: Array, std: Array, *, missing: bool = False, validate_args=None):
        self.loc, self.loadings, self.std, self.missing = loc, loadings, std, missing
        super().__init__(batch_shape=loc.shape[:-1], event_shape=loc.shape[-1:], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self):
        return RealOrMissing() if self.missing else constraints.real_vector

    def log_prob(self, value):
        def one(y, loc, loadings, std):
            return infer((loc, loadings, std), y[None], missing=self.missing).log_p[0]

        batch = jnp.broadcast_shapes(jnp.shape(value)[:-1], self.batch_shape)
        each = [jnp.broadcast_to(x, batch + x.shape[-1:]) for x in (jnp.asarray(value), self.loc, self.std)]
        loadings = jnp.broadcast_to(self.loadings, batch + self.loadings.shape[-2:])
        return jnp.vectorize(one, signature="(d),(d),(d,q),(d)->()")(*each[:2], loadings, each[2])

    def sample(self, key, sample_shape=()):
        k_z, k_noise = jax.random.split(key)
        shape = (*sample_shape, *self.batch_shape)
        z = jax.random.normal(k_z, (*shape, self.loadings.shape[-1]), self.loc.dtype)
        noise = jax.random.normal(k_noise, (*shape, *self.event_shape), self.loc.dtype)
        signal = jnp.einsum("...dq,...q->...d", self.loadings, z, precision="highest")
        loc, std = (jnp.broadcast_to(x, noise.shape) for x in (self.loc, self.std))
        return loc + signal + std * noise

    @property
    def mean(self):
        return self.loc

    @property
    def variance(self):
        return jnp.sum(self.loadings**2, axis=-1) + self.std**2
