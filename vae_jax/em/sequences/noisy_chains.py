"""Sequences of noisy views of a linear-Gaussian chain: their density, samples, and what they tell of the path.

    z_1 ~ N(m, P),    z_t = A z_{t-1} + N(0, Q),    y_t = C z_t + d + N(0, R)

The arithmetic over time is that of `kalman`; here y_t becomes evidence on z_t, whatever of it is seen.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from vae_jax.core.linalg import inverse_of_lower, matmul, residual, transposed, triangularised
from vae_jax.core.model import Params, parted
from vae_jax.em.gaussian_families import LOG_2PI
from vae_jax.em.gaussian_families import cholesky_of as unpack
from vae_jax.em.missing import RealOrMissing, divided, masked_log_prob
from vae_jax.em.sequences.kalman import Chain, Evidence, Filtered, GaussianChain, kalman_filter


class Form(NamedTuple):
    """The options of a model, static."""

    size: int
    latent: int
    length: int
    diagonal: bool
    floor: float
    missing: bool
    parallel: bool

    def real(self, count: Any) -> Array:
        """(length,): whether each step counts."""
        return jnp.arange(self.length) < (self.length if count is None else count)


def observed(form: Form, y: Array, real: Array) -> Array:
    """(T, D): which entries are seen."""
    here = jnp.broadcast_to(real[:, None], y.shape)
    return here & ~jnp.isnan(y) if form.missing else here


def residuals(gen: Params, y: Array, here: Array, z: Array) -> Array:
    """(T, D): y_t - d - C z_t, 0 for what is not seen."""
    return jnp.where(here, residual(jnp.where(here, y, 0.0), gen["bias"], gen["loadings"], z), 0.0)


def _whiteners(form: Form, gen: Params, here: Array) -> tuple[Array, Array]:
    """(V, ln |V|^-1 (T,)): V y_t has variance 1, given z_t, and 0 for what is not seen of y_t.

    V is (T, D, D), or (T, D) if it is diagonal; the first axis is 1 where all steps are alike.
    """
    if form.diagonal:
        log_scale = jnp.sum(jnp.where(here, gen["noise"][None], 0.0), axis=1)
        inverse = jnp.exp(-gen["noise"])[None]
        return jnp.where(here, inverse, 0.0) if form.missing else inverse, log_scale
    factor = unpack(gen["noise"])
    if form.missing:
        parts = jax.vmap(divided, in_axes=(None, 0))(factor, here)
        return parts.whitening, parts.log_scale
    return inverse_of_lower(factor)[None], jnp.where(here[:, 0], jnp.trace(gen["noise"]), 0.0)


def _whitened(whitener: Array, x: Array) -> Array:
    """V x_t, for x (1 or T, D, k)."""
    return whitener[..., None] * x if whitener.ndim == 2 else matmul(whitener, x)


def _evidence(form: Form, rows: Array, targets: Array, here: Array) -> Evidence:
    """rows z_t (1 or T, D, q) against targets (T, D, 1); by QR, as few rows as z_t has numbers say the same of it."""
    many = form.size > form.latent
    if form.missing:
        both = jnp.concatenate([rows, targets], axis=2)
        both = triangularised(both, form.latent)[0] if many else both
        return Evidence(both[..., :-1], both[..., -1])
    if many:  # once for all steps: R and Q'
        upper, _ = triangularised(jnp.concatenate([rows[0], jnp.eye(form.size, dtype=rows.dtype)], axis=1), form.latent)
        rows, targets = upper[None, :, : form.latent], matmul(upper[None, :, form.latent :], targets)
    return Evidence(jnp.where(here[:, :1, None], rows, 0.0), targets[..., 0])


def filter_sequence(form: Form, params: Params, y: Array, count: Any) -> tuple[Filtered, Array]:
    """(what is known at each time, ln P(y))."""
    gen, here = params["gen"], observed(form, y, form.real(count))
    whitener, log_scale = _whiteners(form, gen, here)
    rows = _whitened(whitener, gen["loadings"][None])
    targets = _whitened(whitener, jnp.where(here, jnp.where(here, y, 0.0) - gen["bias"][None], 0.0)[..., None])
    evidence = _evidence(form, rows, targets, here)
    known = kalman_filter(chain_of(params["pri"]), evidence, parallel=form.parallel)
    left = _whitened(whitener, residuals(gen, y, here, known.means)[..., None])
    # Rounding takes the mean from where the slope is known, and the quadratic form from its minimum: what by, is known
    off = matmul(transposed(known.roots), matmul(transposed(rows), left))[..., 0] - known.pulls
    squares = jnp.sum(left[..., 0] ** 2 + LOG_2PI * here, axis=1) - jnp.sum(off**2, axis=1)
    return known, jnp.sum(known.log_ratio - log_scale - 0.5 * squares)


def chain_of(pri: Params) -> Chain:
    return Chain(pri["mean"], unpack(pri["initial"]), pri["transition"], unpack(pri["noise"]))


def prior_over_paths(form: Form, pri: Params) -> GaussianChain:
    def step(mean, _):
        return matmul(pri["transition"], mean), mean

    _, means = jax.lax.scan(step, pri["mean"], None, length=form.length)
    first = (jnp.arange(form.length) == 0)[:, None, None]
    gains = jnp.where(first, 0.0, pri["transition"][None])
    roots = jnp.where(first, unpack(pri["initial"])[None], unpack(pri["noise"])[None])
    return GaussianChain(means, gains, roots, parallel=form.parallel)


class Sequences(dist.Distribution):
    """P(y) over sequences (T, D), paths summed out; the steps beyond `count` count for nothing, and samples have 0."""

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    pytree_data_fields = ("params", "count")
    pytree_aux_fields = ("form",)

    def __init__(self, params, count, form: Form, *, validate_args=None):
        self.params, self.count, self.form = params, count, form
        super().__init__(event_shape=(form.length, form.size), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=2)
    def support(self):
        return constraints.independent(RealOrMissing() if self.form.missing else constraints.real_vector, 1)

    def log_prob(self, value):
        ys = jnp.reshape(jnp.asarray(value), (-1, *self.event_shape))
        log_p = jax.vmap(lambda y: filter_sequence(self.form, self.params, y, self.count)[1])(ys)
        return jnp.reshape(log_p, jnp.shape(value)[:-2])

    def sample(self, key, sample_shape=()):
        k_z, k_y = jax.random.split(key)
        zs = prior_over_paths(self.form, self.params["pri"]).sample(k_z, (int(np.prod(sample_shape, dtype=int)),))
        keys = jax.random.split(k_y, len(zs))

        def one(key, z):
            return Observations.of(self.form, self.params["gen"], z if self.count is None else (z, self.count)).sample(
                key
            )

        return jnp.reshape(jax.vmap(one)(keys, zs), (*sample_shape, *self.event_shape))


class Observations(dist.Distribution):
    """P(y|z) over sequences (T, D): N(loc_t, R) at the real steps, whatever is there beyond; NaN is a missing entry."""

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    support = constraints.independent(RealOrMissing(), 1)
    pytree_data_fields = ("loc", "factor", "real")

    def __init__(self, loc, factor, real, *, validate_args=None):
        self.loc, self.factor, self.real = loc, factor, real
        super().__init__(event_shape=loc.shape, validate_args=validate_args)

    @classmethod
    def of(cls, form: Form, gen: Params, z: Any) -> "Observations":
        """Those of a path z (T, q), or of (path, number of real steps)."""
        z, count = parted(z)
        factor = jnp.exp(gen["noise"]) if form.diagonal else unpack(gen["noise"])
        return cls(matmul(z, gen["loadings"].T) + gen["bias"][None], factor, form.real(count))

    def log_prob(self, value):
        def one(y):
            y = jnp.where(self.real[:, None], y, jnp.nan)
            return jnp.sum(jax.vmap(masked_log_prob, in_axes=(0, 0, None))(y, self.loc, self.factor))

        ys = jnp.reshape(jnp.asarray(value), (-1, *self.event_shape))
        return jnp.reshape(jax.vmap(one)(ys), jnp.shape(value)[:-2])

    def sample(self, key, sample_shape=()):
        noise = jax.random.normal(key, (*sample_shape, *self.event_shape), self.loc.dtype)
        shape = noise.shape
        diagonal = self.factor.ndim == 1
        scaled = noise * jnp.broadcast_to(self.factor, shape) if diagonal else matmul(noise, self.factor.T)
        real = jnp.broadcast_to(self.real[:, None], shape)
        return jnp.where(real, jnp.broadcast_to(self.loc, shape) + scaled, 0.0)

    @property
    def mean(self):
        return self.loc
