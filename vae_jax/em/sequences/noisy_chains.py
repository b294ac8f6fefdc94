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

from vae_jax.core.linalg import inverse_of_lower, matmul
from vae_jax.core.model import Params, parted
from vae_jax.em.gaussian_families import LOG_2PI
from vae_jax.em.gaussian_families import cholesky_of as unpack
from vae_jax.em.missing import RealOrMissing, masked_factor, masked_log_prob
from vae_jax.em.sequences.kalman import Chain, Filtered, GaussianChain, kalman_filter


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


class _Evidence(NamedTuple):
    """What the steps y_t say, R whitened away; the first axis of `white` and `scale` is 1 where all steps are alike.

    Fields:
        white: (1 or T, D, q) R^-1/2 C, and 0 for what is not seen.
        y: (T, D) R^-1/2 (y_t - d), and 0 for what is not seen.
        log_scale: (T,) ln P(y_t | z_t) at y_t = C z_t + d.
    """

    white: Array
    y: Array
    log_scale: Array


def _evidence(form: Form, gen: Params, y: Array, real: Array) -> _Evidence:
    if not form.missing:
        centred = jnp.where(real[:, None], y - gen["bias"][None], 0.0)
        if form.diagonal:
            std = jnp.exp(gen["noise"])
            white, centred, log_det = gen["loadings"] / std[:, None], centred / std[None], jnp.sum(gen["noise"])
        else:
            factor = unpack(gen["noise"])
            both = jnp.concatenate([gen["loadings"], centred.T], axis=1)
            both = matmul(inverse_of_lower(factor), both)
            white, centred = both[:, : form.latent], both[:, form.latent :].T
            log_det = jnp.sum(jnp.diagonal(gen["noise"]))
        log_scale = jnp.where(real, -log_det - 0.5 * form.size * LOG_2PI, 0.0)
        return _Evidence(white[None], centred, log_scale)
    here, centred = masked(gen, y, real)
    if form.diagonal:
        std = jnp.exp(gen["noise"])
        white = jnp.where(here[:, :, None], (gen["loadings"] / std[:, None])[None], 0.0)
        log_det = jnp.sum(jnp.where(here, gen["noise"][None], 0.0), axis=1)
        return _Evidence(white, centred / std[None], -log_det - 0.5 * LOG_2PI * here.sum(axis=1))
    factor = masked_factors(gen, here)
    both = jnp.where(here[:, :, None], jnp.broadcast_to(gen["loadings"][None], (*y.shape, form.latent)), 0.0)
    both = jnp.concatenate([both, centred[:, :, None]], axis=2)
    both = matmul(inverse_of_lower(factor), both)
    log_det = jnp.sum(jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)), axis=1)
    return _Evidence(both[:, :, :-1], both[:, :, -1], -log_det - 0.5 * LOG_2PI * here.sum(axis=1))


def masked(gen: Params, y: Array, real: Array) -> tuple[Array, Array]:
    """(which entries are seen (T, D), y - d with 0 for the others)."""
    here = ~jnp.isnan(y) & real[:, None]
    return here, jnp.where(here, jnp.where(here, y, 0.0) - gen["bias"][None], 0.0)


def masked_factors(gen: Params, here: Array) -> Array:
    """(T, D, D) Cholesky factors of R for what is seen; the rest is independent with variance 1."""
    return jax.vmap(masked_factor, in_axes=(None, 0))(unpack(gen["noise"]), here)


def filter_sequence(form: Form, params: Params, y: Array, count: Any) -> tuple[Filtered, Array]:
    """(what is known at each time, ln P(y))."""
    real = form.real(count)
    evidence = _evidence(form, params["gen"], y, real)
    white_t = jnp.swapaxes(evidence.white, 1, 2)
    precision = jnp.where(real[:, None, None], matmul(white_t, evidence.white), 0.0)
    shift = matmul(white_t, evidence.y[:, :, None])[..., 0]
    known = kalman_filter(chain_of(params["pri"]), precision, shift, parallel=form.parallel)
    left = evidence.y - matmul(evidence.white, known.means[:, :, None])[..., 0]
    squares = jnp.where(real, jnp.sum(left**2, axis=1), 0.0)
    return known, jnp.sum(evidence.log_scale - 0.5 * squares + known.log_ratio)


def chain_of(pri: Params) -> Chain:
    initial, noise = unpack(pri["initial"]), unpack(pri["noise"])
    return Chain(pri["mean"], matmul(initial, initial.T), pri["transition"], matmul(noise, noise.T))


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
