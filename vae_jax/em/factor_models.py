"""Factor analysis, probabilistic PCA with its closed form, and mixtures of factor analysers.

    z ~ N(0, I) of q numbers,    y = W z + m + noise,    noise ~ N(0, Psi)

Psi is diagonal for factor analysis, sigma^2 I for probabilistic PCA. The arithmetic is that of `factor_analysers`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from vae_jax.core.distributions import MultivariateNormal
from vae_jax.core.linalg import matmul, root_of_square
from vae_jax.core.model import EM, Conditional, Params
from vae_jax.em.factor_family import Noise, factor_analysers, infer, regression_on_factors
from vae_jax.em.family import Family, check_real, fill
from vae_jax.em.gaussian_families import FLOOR, LOG_2PI
from vae_jax.em.missing import MaybeMissing
from vae_jax.em.mixtures import mixture
from vae_jax.parts.priors import standard_normal


def mixture_of_factor_analysers(
    size: int, latent: int, components: int, *, noise: Noise = "diagonal", floor: float = FLOOR, missing: bool = False
) -> Conditional:
    """sum_k w_k N(m_k, W_k W_k' + Psi_k) (Ghahramani & Hinton 1996); with isotropic noise a mixture of pPCAs (Tipping &
    Bishop 1999b). Options as in `factor_analysers`; other starts and priors: `mixture(factor_analysers(...), ...)`.
    """
    return mixture(factor_analysers(size, latent, noise=noise, floor=floor, missing=missing), components)


def factor_analysis(size: int, latent: int, *, floor: float = FLOOR, missing: bool = False) -> Conditional:
    """N(m, W W' + Psi), Psi diagonal: factor analysis by EM (Rubin & Thayer 1982).

    z is a vector of `latent` numbers, N(0, I).

    Params: `{"pri": {}, "gen": {"mean": (D,), "loadings": (D, q), "log_std": (D,)}}`. Options as in `factor_analysers`.
    """
    return _one(factor_analysers(size, latent, floor=floor, missing=missing), latent, floor, missing)


def ppca(size: int, latent: int, *, floor: float = FLOOR, missing: bool = False) -> Conditional:
    """N(m, W W' + sigma^2 I): probabilistic PCA (Tipping & Bishop 1999). As `factor_analysis`, with `log_std` ().

    Its optimum is known: `ppca_closed_form`. EM finds the same without an eigenvalue problem, and with missing entries.
    """
    return _one(factor_analysers(size, latent, noise="isotropic", floor=floor, missing=missing), latent, floor, missing)


class ClosedForm(NamedTuple):
    """The maximum of the likelihood: where it is, and its height, the mean over examples of ln P(y) in nats."""

    params: Params
    log_p: float


def ppca_closed_form(ys: Any, latent: int, *, floor: float = FLOOR) -> ClosedForm:
    """The maximum likelihood of `ppca(D, latent)`, from the eigenvalues l of the covariance of ys (n, D), in float64.

        sigma^2 = mean of the discarded l,    W = U (L - sigma^2 I)^(1/2)        (Tipping & Bishop 1999, equations 7-8)
        mean ln P = -1/2 [D ln 2 pi + sum_{i<=q} ln l_i + (D - q) ln sigma^2 + D]

    Args:
        floor: sigma^2 is not below it; ln P is the one at the floor then.

    Raises:
        ValueError: ys are not (n, D) finite numbers with n > latent, or latent is not in 1 .. D - 1.
    """
    ys = np.asarray(ys)
    if ys.ndim != 2 or not 1 <= latent < ys.shape[1]:
        raise ValueError(f"want ys (n, D) and 1 <= latent < D; got ys of shape {ys.shape} and latent={latent}")
    check_real(ys, ys.shape[1:], missing=False)
    _check_count(ys, latent)
    ys = ys.astype(np.float64)
    mean = ys.mean(axis=0)
    values, vectors = np.linalg.eigh((ys - mean).T @ (ys - mean) / len(ys))
    top, rest = values[::-1][:latent], values[::-1][latent:]
    variance = max(rest.mean(), floor)
    kept = np.maximum(top, variance)
    loadings = vectors[:, ::-1][:, :latent] * np.sqrt(kept - variance)
    terms = np.sum(np.log(kept) + top / kept) + len(rest) * np.log(variance) + rest.sum() / variance
    gen = {"mean": mean, "loadings": loadings, "log_std": 0.5 * np.log(variance)}
    log_p = float(-0.5 * (len(values) * LOG_2PI + terms))
    return ClosedForm({"pri": {}, "gen": jax.tree.map(lambda x: jnp.asarray(x, float), gen)}, log_p)


def _one(family: Family, latent: int, floor: float, missing: bool) -> Conditional:
    """A single factor analyser as a model: z is the vector of factors, not the index of a component."""

    def stacked(params):
        gen = params["gen"]
        return {"means": gen["mean"][None], "loadings": gen["loadings"][None], "log_stds": gen["log_std"][None]}

    def single(params):
        gen = {"mean": params["means"][0], "loadings": params["loadings"][0], "log_std": params["log_stds"][0]}
        return {"pri": {}, "gen": gen}

    def parts(params):
        gen = params["gen"]
        return gen["mean"], gen["loadings"], jnp.broadcast_to(jnp.exp(gen["log_std"]), gen["mean"].shape)

    def init(key, c=None):
        del c
        return single(family.init(key, 1))

    def expect(params, ys, cs=None):
        del cs
        known = infer(parts(params), jnp.asarray(ys), missing=missing)
        weight = jnp.full(len(ys), 1 / len(ys), known.mean.dtype)
        stats = regression_on_factors(params["gen"]["loadings"], known, weight)
        return known.log_p, jax.tree.map(lambda x: x[None], stats)

    def start(key, ys, cs=None):
        """Half of each column's variance is noise, half is spread over random factors."""
        del cs
        rows = fill(jnp.asarray(ys))
        std = jnp.sqrt(0.5 * jnp.maximum(rows.var(axis=0), 2 * floor))
        params = init(key)["gen"]
        log_std = jnp.log(std) if params["log_std"].ndim else 0.5 * jnp.log(jnp.mean(std**2))
        return {
            "pri": {},
            "gen": {"mean": rows.mean(axis=0), "loadings": std[:, None] * params["loadings"], "log_std": log_std},
        }

    def posterior(params, y, c=None):
        del c
        known = infer(parts(params), jnp.asarray(y)[None], missing=missing)
        return MultivariateNormal(known.mean[0], scale_tril=root_of_square(known.root[0]))

    def generated(params, z):
        loc, loadings, std = parts({"gen": params})
        loc = loc + matmul(loadings, z)
        return MaybeMissing(loc, std) if missing else dist.Normal(loc, std).to_event(1)

    def check(ys, cs=None):
        if cs is not None:
            raise ValueError("factor analysis takes no condition: leave cs out")
        family.check(ys)
        _check_count(ys, latent)

    em = EM(
        start=start,
        expect=expect,
        maximise=lambda params, stats, n: single(family.maximise(stacked(params), stats, n)),
        posterior=posterior,
        prior=standard_normal(latent),
        generator=Conditional(lambda key, z: init(key)["gen"], generated),
        recentre=lambda stats, old, new: family.recentre(stats, stacked(old), stacked(new)),
        check=check,
    )
    return Conditional(init, lambda params, c=None: family.dist(stacked(params), 0), em=em)


def _check_count(ys: np.ndarray, latent: int) -> None:
    if len(ys) < latent + 1:
        raise ValueError(f"{len(ys)} examples span fewer than latent={latent} directions: want at least {latent + 1}")
