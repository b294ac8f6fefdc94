"""Mixtures: P(y) = sum_k P(k) P(y|k), for any family of components.

The latent is z = k. E-step: responsibilities P(k|y), by Bayes' rule. M-step: P(k) = their average, and each component's
weighted fit. So a mixture is the VAE whose encoder is the exact posterior of its own prior and generator (`as_vae`).
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions.batch_util import promote_batch_shape

from vae_jax.core.model import EM, Conditional
from vae_jax.core.numbers import is_whole
from vae_jax.em.family import Family, fit_to_weights, fitted_logits, log_dirichlet, log_sum
from vae_jax.em.gaussian_families import FLOOR, Covariance, CovariancePrior, gaussians
from vae_jax.em.kmeans import assign, k_means, plus_plus

Start = Literal["k-means", "k-means++", "random"]
_START_ROWS = 10_000
_DOUBT = 0.05  # no component starts without hope for a value that it has not seen


def mixture(
    family: Family,
    components: int,
    *,
    start: Start = "k-means",
    concentration: float = 1.0,
    hard: bool = False,
) -> Conditional:
    """sum_k w_k P(y|k); params `{"pri": {"logits": (K,)}, "gen": the family's}`. No condition.

    A logit of -inf is a component that stays without weight, through any M-step.

    Args:
        family: the components: `gaussians`, `bernoullis`, `categoricals`, `factor_analysers`.
        components: their number, K.
        start: where EM starts: k-means from a k-means++ start, its start alone, or components on random examples.
        concentration: of a symmetric Dirichlet prior on the weights; 1 is maximum likelihood.
        hard: hard EM (k-means is one): the E-step gives each y to its most probable component, and ln P in the history
            is then the bound max_k ln P(y, k). An option of EM alone; the density is the same.

    Raises:
        ValueError: an option out of range.
    """
    if not is_whole(components):
        raise ValueError(f"a mixture has at least one component; got components={components}: a whole number is wanted")
    if start not in ("k-means", "k-means++", "random"):
        raise ValueError(f"start={start!r}: want 'k-means', 'k-means++' or 'random'")
    if not concentration >= 1:
        raise ValueError(f"below 1 the Dirichlet prior has no maximum; got concentration={concentration}")

    def init(key, c=None):
        del c
        return {"pri": {"logits": jnp.zeros(components)}, "gen": family.init(key, components)}

    def distribution(params, c=None):
        del c
        each = jax.vmap(family.dist, in_axes=(None, 0))(params["gen"], jnp.arange(components))
        return dist.MixtureSameFamily(_chosen(params["pri"]["logits"]), promote_batch_shape(each))

    def joint(params, ys):
        """ln P(y, k), (n, K)."""
        return family.log_prob(params["gen"], ys) + jax.nn.log_softmax(params["pri"]["logits"])[None]

    def expect(params, ys, cs=None):
        del cs
        ys = jnp.asarray(ys)
        log_joint = joint(params, ys)
        if hard:
            log_p = log_joint.max(axis=1)
            weights = jax.nn.one_hot(log_joint.argmax(axis=1), components, dtype=log_joint.dtype)
        else:
            log_p = log_sum(log_joint, axis=1)
            weights = jnp.exp(log_joint - log_p[:, None])
        weights = jnp.where(log_p[:, None] > -jnp.inf, weights, 0.0)  # what is impossible counts for nothing
        sums = {"pri": weights.sum(axis=0), "gen": family.stats(params["gen"], ys, weights)}
        return log_p, jax.tree.map(lambda s: s / len(weights), sums)

    def maximise(params, stats, n):
        logits = fitted_logits(stats["pri"], params["pri"]["logits"], (concentration - 1) / n)
        return {"pri": {"logits": logits}, "gen": family.maximise(params["gen"], stats["gen"], n)}

    def start_at(key, ys, cs=None):
        del cs
        k_rows, k_centres, k_init = jax.random.split(key, 3)
        ys = _some(k_rows, ys)
        rows = family.features(ys)
        nearest = assign(rows, _centres(k_centres, rows, components, start))
        member = jax.nn.one_hot(nearest, components, dtype=rows.dtype)
        member = (1 - _DOUBT) * member + _DOUBT / components
        gen = fit_to_weights(family, init(k_init)["gen"], ys, member)
        logits = fitted_logits(member.mean(axis=0), jnp.zeros(components), (concentration - 1) / len(member))
        return {"pri": {"logits": logits}, "gen": gen}

    def posterior(params, y, c=None):
        del c
        return _chosen(joint(params, jnp.asarray(y)[None])[0])

    def recentre(stats, old, new):
        return {**stats, "gen": family.recentre(stats["gen"], old["gen"], new["gen"])}

    def log_prior(params):
        return family.log_prior(params["gen"]) + log_dirichlet(params["pri"]["logits"], concentration)

    def check(ys, cs=None):
        if cs is not None:
            raise ValueError("a mixture takes no condition: leave cs out")
        family.check(ys)
        if len(ys) < components:
            raise ValueError(f"{len(ys)} examples cannot be fitted by {components} components: take fewer components")

    prior = Conditional(
        lambda key, c=None: {"logits": jnp.zeros(components)},
        lambda params, c=None: _chosen(params["logits"]),
    )
    generator = Conditional(lambda key, z: family.init(key, components), family.dist)
    em = EM(start_at, expect, maximise, posterior, prior, generator, recentre, log_prior, check)
    return Conditional(init, distribution, em=em)


def mixture_of_gaussians(
    size: int | tuple[int, ...],
    components: int,
    covariance: Covariance = "diagonal",
    *,
    spread: float = 1.0,
    floor: float = FLOOR,
    missing: bool = False,
    prior: CovariancePrior | None = None,
    start: Start = "k-means",
    concentration: float = 1.0,
    hard: bool = False,
) -> Conditional:
    """`mixture(gaussians(size, covariance, ...), components, ...)`: a density for data, and a prior that trains.

    Fitted by gradient like every part of a VAE, or by `vae_jax.em.fit_em`. Before any fit the weights are equal, the
    covariances 1 and the means drawn from N(0, spread^2 I).

    Example:
        >>> mixture = mixture_of_gaussians(2, 3, "full")
        >>> params = jax.jit(mixture.init)(jax.random.key(0), None)
        >>> jax.jit(lambda key: mixture.dist(params).sample(key, (5,)))(jax.random.key(1)).shape
        (5, 2)
    """
    family = gaussians(size, covariance, spread=spread, floor=floor, missing=missing, prior=prior)
    return mixture(family, components, start=start, concentration=concentration, hard=hard)


def _chosen(logits):
    """P(k); numpyro, if it may validate them, refuses logits of -inf."""
    return dist.CategoricalLogits(logits, validate_args=False)


def _centres(key, rows, components, start):
    if start == "random":
        return rows[jax.random.choice(key, len(rows), (components,), replace=False)]
    return plus_plus(key, rows, components) if start == "k-means++" else k_means(key, rows, components)


def _some(key, ys):
    """At most 10,000 of the examples: a start need not see more."""
    if len(ys) <= _START_ROWS:
        return ys
    return ys[jax.random.choice(key, len(ys), (_START_ROWS,), replace=False)]
