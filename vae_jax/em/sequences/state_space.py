"""Linear-Gaussian state-space models: factor analysis whose factors move in time.

    z_1 ~ N(m, P),    z_t = A z_{t-1} + N(0, Q),    y_t = C z_t + d + N(0, R)

E-step: the Kalman filter in square-root form and the Rauch-Tung-Striebel smoother (`kalman`), exact. M-step in closed
form: z_1, the regression of z_t on z_{t-1}, and that of y_t on (z_t, 1) (Shumway & Stoffer 1982; Ghahramani & Hinton
1996b). The sufficient statistics are taken about the current fit. Missing entries are part of the latent: the M-step
sees what is expected of them.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax.core.linalg import eye_like, matmul, transposed
from vae_jax.core.model import EM, Conditional, Params
from vae_jax.core.numbers import is_whole
from vae_jax.em.family import check_real, fill
from vae_jax.em.gaussian_families import FLOOR
from vae_jax.em.gaussian_families import cholesky_of as unpack
from vae_jax.em.gaussian_families import raw_cholesky as pack
from vae_jax.em.missing import divided
from vae_jax.em.regression import Regression, seen
from vae_jax.em.sequences.kalman import Chain, GaussianChain, run_parallel, smooth
from vae_jax.em.sequences.noisy_chains import (
    Form,
    Observations,
    Sequences,
    chain_of,
    filter_sequence,
    observed,
    prior_over_paths,
    residuals,
)

Noise = Literal["full", "diagonal"]


def linear_gaussian_state_space(
    size: int,
    latent: int,
    length: int,
    *,
    noise: Noise = "diagonal",
    floor: float = FLOOR,
    missing: bool = False,
    parallel: bool | None = None,
) -> Conditional:
    """P(y|c) over sequences y (length, size), of which the first c are real (None: all); the rest counts for nothing.

    EM is that of Shumway & Stoffer (1982), on the smoother of Rauch, Tung & Striebel (1965).

    Params, q = latent, D = size; covariances as lower Cholesky factors with the logarithm of their diagonal:
    `pri`: `mean` (q,) and `initial` (q, q) of z_1, `transition` A (q, q), `noise` Q (q, q);
    `gen`: `loadings` C (D, q), `bias` d (D,), `noise` R: (D, D), or for "diagonal" log standard deviations (D,).

    z is a path (length, latent), which beyond c goes on without observations. The posterior over paths is a
    `GaussianChain`: means, covariances, lag-one covariances, samples.

    Args:
        noise: of the observations, "diagonal" or "full".
        floor: no variance falls below it: with a single sequence, maximum likelihood would have P = 0. The M-step under
            this constraint is exact, so EM is monotone with it.
        missing: NaN in y means missing: entries, or whole steps. It is summed out exactly.
        parallel: filter and smooth by associative scans. By default on accelerators, from length 64 on.

    Raises:
        ValueError: an option out of range.
    """
    if not all(map(is_whole, (size, latent, length))) or not floor > 0:
        raise ValueError(f"want size, latent, length >= 1 and floor > 0; got {size}, {latent}, {length} and {floor}")
    if noise not in ("full", "diagonal"):
        raise ValueError(f"noise={noise!r}: want 'full' or 'diagonal'")
    form = Form(size, latent, length, noise == "diagonal", floor, missing, run_parallel(length, parallel))

    def init(key, c=None):
        del c
        k_transition, k_loadings = jax.random.split(key)
        return {"pri": _init_prior(form, k_transition), "gen": _init_generator(form, k_loadings)}

    def start(key, ys, cs=None):
        """Half of each column's variance is noise, half is spread over random factors."""
        steps = _without_padding(form, ys, cs).reshape(-1, size)
        steps = fill(steps)
        std = jnp.sqrt(jnp.maximum(0.5 * steps.var(axis=0), floor))
        params = init(key)
        gen = params["gen"]
        level = jnp.log(std) if form.diagonal else jnp.diag(jnp.log(std))
        gen = {"loadings": std[:, None] * gen["loadings"], "bias": steps.mean(axis=0), "noise": level}
        return {"pri": params["pri"], "gen": gen}

    def expect(params, ys, cs=None):
        log_p, stats = jax.vmap(lambda y, c: _expect_one(form, params, y, c), in_axes=(0, None if cs is None else 0))(
            jnp.asarray(ys), cs
        )
        return log_p, jax.tree.map(lambda s: s.mean(axis=0), stats)

    def posterior(params, y, c=None):
        chain = chain_of(params["pri"])
        known, _ = filter_sequence(form, params, jnp.asarray(y), c)
        return smooth(chain, known, parallel=form.parallel)

    def check(ys, cs=None):
        ys = np.asarray(ys)
        if ys.shape[1:] != (length, size):
            raise ValueError(f"ys has shape {ys.shape}; want (n, {length}, {size}): sequences of steps of numbers")
        counts = np.full(len(ys), length) if cs is None else _lengths(cs, len(ys), length)
        real = np.arange(length)[None] < counts[:, None]
        check_real(ys[real], (size,), missing=missing)

    em = EM(
        start=start,
        expect=expect,
        maximise=lambda params, stats, n: _maximise(form, params, stats),
        posterior=posterior,
        prior=Conditional(
            lambda key, c=None: _init_prior(form, key), lambda params, c=None: prior_over_paths(form, params)
        ),
        generator=Conditional(
            lambda key, z: _init_generator(form, key), lambda params, z: Observations.of(form, params, z)
        ),
        recentre=_recentre,
        check=check,
    )
    return Conditional(init, lambda params, c=None: Sequences(params, c, form), em=em)


def _expect_one(form: Form, params: Params, y: Array, count: Any):
    """ln P(y) and the expected sufficient statistics of one sequence."""
    chain, real = chain_of(params["pri"]), form.real(count)
    known, log_p = filter_sequence(form, params, y, count)
    path = smooth(chain, known, parallel=form.parallel)
    roots = path.marginal_roots
    away = path.means[0] - chain.mean
    stats = {
        "initial": {"first": away, "scatter": away[:, None] * away[None] + matmul(roots[0], roots[0].T)},
        "transition": _transitions(chain, path, roots, real[1:]),
        "gen": _observations(form, params["gen"], y, path.means, roots, real),
    }
    return log_p, stats


def _transitions(chain: Chain, path: GaussianChain, roots: Array, real: Array) -> Regression:
    """Sums for the regression of z_{t+1} on z_t, about A: z_t - mean_t = gain (z_{t+1} - mean_{t+1}) + root eps."""
    gains, later = path.gains[:-1], roots[1:]
    transition = jnp.broadcast_to(chain.transition, gains.shape)
    kept = eye_like(gains) - matmul(transition, gains)
    before = jnp.concatenate([matmul(gains, later), path.roots[:-1]], axis=2)
    noise = jnp.concatenate([matmul(kept, later), -matmul(transition, path.roots[:-1])], axis=2)
    moved = path.means[1:] - matmul(path.means[:-1], chain.transition.T)
    weight = real.astype(moved.dtype)
    return Regression(
        weight=weight.sum()[None],
        gram=(_weighted(path.means[:-1], weight, path.means[:-1]) + _summed(weight, before, before))[None],
        cross=_weighted(moved, weight, path.means[:-1]) + _summed(weight, noise, before),
        square=_weighted(moved, weight, moved) + _summed(weight, noise, noise),
    )


def _observations(form: Form, gen: Params, y: Array, means: Array, roots: Array, real: Array) -> Regression:
    """Sums for the regression of y_t on (z_t, 1), about (C, d); missing entries are expected from those seen."""
    weight = real.astype(means.dtype)
    x = jnp.concatenate([means, jnp.ones_like(means[:, :1])], axis=1)
    here = observed(form, y, real)
    left, loadings, lost = residuals(gen, y, here, means), gen["loadings"][None], jnp.zeros_like(gen["noise"])
    if form.missing:
        left, loadings, lost = _completed(form, gen, here, left, weight)
    spread = matmul(loadings, roots)
    if form.diagonal:
        square = matmul(weight[None], left**2 + jnp.sum(spread**2, axis=2))[0]
    else:
        square = _weighted(left, weight, left) + _summed(weight, spread, spread)
    pad = ((0, 0), (0, 1))
    return Regression(
        weight=weight.sum()[None],
        gram=(_weighted(x, weight, x) + jnp.pad(_summed(weight, roots, roots), ((0, 1), (0, 1))))[None],
        cross=_weighted(left, weight, x) - jnp.pad(_summed(weight, spread, roots), pad),
        square=square + lost,
    )


def _completed(form: Form, gen: Params, here: Array, left: Array, weight: Array) -> tuple[Array, Array, Array]:
    """(residuals (T, D), C as they see it (T, D, q), summed covariance of what is missing), given z."""
    loadings = gen["loadings"][None]
    if form.diagonal:
        lost = jnp.exp(2 * gen["noise"]) * matmul(weight[None], (~here).astype(left.dtype))[0]
        return left, jnp.where(here[:, :, None], loadings, 0.0), lost
    parts = jax.vmap(divided, in_axes=(None, 0))(unpack(gen["noise"]), here)
    expected = matmul(parts.known, parts.whitening)
    left = jnp.where(here, left, matmul(expected, left[:, :, None])[..., 0])
    loadings = jnp.where(here[:, :, None], loadings, matmul(expected, loadings))
    return left, loadings, _summed(weight, parts.hidden, parts.hidden)


def _summed(weight: Array, a: Array, b: Array) -> Array:
    """Sum of weight_t a_t b_t'."""
    return jnp.sum(weight[:, None, None] * matmul(a, transposed(b)), axis=0)


def _weighted(a: Array, weight: Array, b: Array) -> Array:
    return matmul((a * weight[:, None]).T, b)


def _maximise(form: Form, params: Params, stats: Any) -> Params:
    pri, gen = params["pri"], params["gen"]
    shift = stats["initial"]["first"]
    initial = pack(stats["initial"]["scatter"] - shift[:, None] * shift[None], form.floor)
    change, noise = _fitted(form, stats["transition"], pri["noise"])
    new_pri = {
        "mean": pri["mean"] + shift,
        "initial": initial,
        "transition": pri["transition"] + change,
        "noise": noise,
    }
    change, noise = _fitted(form, stats["gen"], gen["noise"])
    loadings, bias = gen["loadings"] + change[:, :-1], gen["bias"] + change[:, -1]
    return {"pri": new_pri, "gen": {"loadings": loadings, "bias": bias, "noise": noise}}


def _fitted(form: Form, stats: Regression, noise: Array) -> tuple[Array, Array]:
    """(what to add to the coefficients, the parameters of the noise); these stay where nothing was seen."""
    change, some = stats.solution(), seen(stats.weight)[0]
    covariance = stats.moved(change).square / jnp.where(some, stats.weight[0], 1.0)
    if noise.ndim == 1:
        return change, jnp.where(some, 0.5 * jnp.log(jnp.maximum(covariance, form.floor)), noise)
    return change, jnp.where(some, pack(covariance, form.floor), noise)


def _recentre(stats: Any, old: Params, new: Params) -> Any:
    shift = new["pri"]["mean"] - old["pri"]["mean"]
    first = stats["initial"]["first"] - shift
    both = stats["initial"]["first"][:, None] * shift[None]
    scatter = stats["initial"]["scatter"] - both - both.T + shift[:, None] * shift[None]
    change = {name: new["gen"][name] - old["gen"][name] for name in ("loadings", "bias")}
    return {
        "initial": {"first": first, "scatter": scatter},
        "transition": stats["transition"].moved(new["pri"]["transition"] - old["pri"]["transition"]),
        "gen": stats["gen"].moved(jnp.concatenate([change["loadings"], change["bias"][:, None]], axis=1)),
    }


def _init_prior(form: Form, key: Array) -> Params:
    """Slow and stationary, with variances near 1."""
    q = form.latent
    transition = 0.9 * jnp.eye(q) + 0.05 * jax.random.normal(key, (q, q)) / np.sqrt(q)
    level = 0.5 * np.log(1 - 0.9**2) * jnp.eye(q)
    return {"mean": jnp.zeros(q), "initial": jnp.zeros((q, q)), "transition": transition, "noise": level}


def _init_generator(form: Form, key: Array) -> Params:
    loadings = jax.random.normal(key, (form.size, form.latent)) / np.sqrt(form.latent)
    noise = jnp.zeros(form.size if form.diagonal else (form.size, form.size))
    return {"loadings": loadings, "bias": jnp.zeros(form.size), "noise": noise}


def _without_padding(form: Form, ys: Any, cs: Any) -> Array:
    """Sequences with NaN beyond their lengths."""
    ys = jnp.asarray(ys)
    return ys if cs is None else jnp.where(jax.vmap(form.real)(jnp.asarray(cs))[:, :, None], ys, jnp.nan)


def _lengths(cs: Any, n: int, length: int) -> np.ndarray:
    cs = np.asarray(cs)
    if cs.shape != (n,) or cs.dtype.kind not in "iu":
        raise ValueError(f"cs holds the length of each sequence: want {n} integers, got shape {cs.shape} of {cs.dtype}")
    if cs.min() < 1 or cs.max() > length:
        raise ValueError(
            f"lengths have to be in 1 .. {length}; got {cs.min()} .. {cs.max()}: leave empty sequences out"
        )
    return cs
