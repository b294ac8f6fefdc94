"""Objectives that ask the units of z to be independent over the data: beta-TCVAE and DIP-VAE. The bound stays the ELBO.

The average rate has three parts (Chen et al. 2018, equation 2), with the aggregate q(z) = 1/n sum_j P_enc(z|y_j):

    E KL(P_enc(z|y) || P_pri(z)) = I(y; z) + KL(q(z) || prod_d q(z_d)) + sum_d KL(q(z_d) || P_pri(z_d))

The second is the total correlation. `vae_jax.evaluation.rate_split` measures all three on a whole data set; here the
aggregate is estimated from the batch.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp

from vae_jax.core.distributions import mean_of, unit_log_prob
from vae_jax.core.model import Conditional, Params, join
from vae_jax.core.numbers import is_number, is_whole
from vae_jax.core.objectives import Objective, batch_terms


def beta_tc(encoder: Conditional, beta: float, n: int) -> Objective:
    """distortion + rate + (beta - 1) total correlation (Chen et al. 2018, beta-TCVAE, equation 4 with alpha, gamma 1).

    Args:
        encoder: the model's own, with parameters `params["enc"]`; it factorises over units.
        beta: weight of the total correlation; 1 is the ELBO.
        n: training examples.

    Raises:
        ValueError: a negative beta, n < 2; or, when first called, an encoder that does not factorise, a batch of one.
    """
    if not is_number(beta, 0):
        raise ValueError(f"beta weighs the total correlation and cannot be negative; got {beta}")
    if not is_whole(n, 2):
        raise ValueError(f"n is the number of training examples, 2 or more; got {n}")

    def objective(model, params, keys, ys, cs, step):
        terms = batch_terms(model.terms, params, keys, ys, cs)
        pairs = _log_q_of_pairs(encoder, params, keys, ys, cs)
        total_correlation = jnp.mean(_total_correlation(pairs, n))
        return jnp.mean(terms.distortion + terms.rate + terms.penalty) + (beta - 1) * total_correlation, terms

    return objective


def posteriors(encoder: Conditional, params: Params, ys: Any, cs: Any) -> Any:
    """P_enc(z|y) of each example, with parameters `params["enc"]`: one distribution, its arrays stacked on axis 0."""
    return jax.vmap(lambda y, c: encoder.dist(params["enc"], join(y, c)), (0, None if cs is None else 0))(ys, cs)


def _log_q_of_pairs(encoder: Conditional, params: Params, keys: Array, ys: Any, cs: Any) -> Array:
    """ln P_enc(z_id|y_j), (i, j, units), with one z_i drawn for each example."""
    qs = posteriors(encoder, params, ys, cs)

    def draw(key, q):
        return q.rsample(jax.random.fold_in(key, 1)) if q.has_rsample else q.sample(jax.random.fold_in(key, 1))

    def of_pair(z, q):
        found = unit_log_prob(q, z)
        if found is None:
            raise ValueError("the total correlation is between units of z: want an encoder that factorises over them")
        return found.ravel()

    zs = jax.vmap(draw)(keys, qs)
    return jax.vmap(lambda z: jax.vmap(lambda q: of_pair(z, q))(qs))(zs)


def log_aggregate(log_q: Array, n: int) -> Array:
    """ln q(z_i) of an aggregate of n examples, from ln P_enc(z_i|y_j) of a batch (i, j, ...): (i, ...).

    Its own example weighs 1/n, the others of the batch stand for the n - 1 others: q(z_i) is estimated without bias
    (stratified; Chen et al. 2018, appendix C.1), and with the whole data as the batch it is exact.

    Raises:
        ValueError: a batch of one example.
    """
    size = len(log_q)
    if size < 2:
        raise ValueError("an aggregate is estimated from pairs of examples: want batches of two or more")
    own = jnp.eye(size, dtype=bool)
    log_weights = jnp.where(own, -jnp.log(n), jnp.log((n - 1) / n / (size - 1)))
    return logsumexp(log_q + log_weights.reshape(size, size, *(1,) * (log_q.ndim - 2)), axis=1)


def _total_correlation(log_q: Array, n: int) -> Array:
    """ln q(z_i) - sum_d ln q(z_id), (i,), from ln P_enc(z_id|y_j), (i, j, units)."""
    return log_aggregate(jnp.sum(log_q, axis=-1), n) - jnp.sum(log_aggregate(log_q, n), axis=-1)


def dip(
    encoder: Conditional, off_diagonal: float, diagonal: float, *, kind: Literal["means", "both"] = "both"
) -> Objective:
    """distortion + rate + a penalty on the covariance of z over the batch (Kumar et al. 2018, DIP-VAE).

        off_diagonal sum_{i != j} C_ij^2 + diagonal sum_i (C_ii - 1)^2

    Args:
        encoder: the model's own, with parameters `params["enc"]`.
        kind: "means": C is the covariance of the encoder's means (DIP-VAE-I); "both": plus their mean variances, the
            covariance of the aggregate (DIP-VAE-II).

    Raises:
        ValueError: a negative weight, another kind; or, when first called, an encoder without a mean.
    """
    for name, weight in {"off_diagonal": off_diagonal, "diagonal": diagonal}.items():
        if not is_number(weight, 0):
            raise ValueError(f"{name} is a weight and cannot be negative; got {weight}")
    if kind not in ("means", "both"):
        raise ValueError(f"kind={kind!r}: want 'means' or 'both'")

    def objective(model, params, keys, ys, cs, step):
        terms = batch_terms(model.terms, params, keys, ys, cs)
        qs = posteriors(encoder, params, ys, cs)
        means = jax.vmap(mean_of)(qs)
        if means is None:
            raise ValueError("DIP-VAE looks at the means of z, and the values of this encoder are classes")
        means = means.reshape(len(means), -1)
        away = means - means.mean(axis=0)[None]
        covariance = away.T @ away / len(means)
        if kind == "both":
            covariance += jnp.diag(jax.vmap(lambda q: q.variance)(qs).reshape(means.shape).mean(axis=0))
        apart = covariance - jnp.diag(jnp.diagonal(covariance))
        penalty = off_diagonal * jnp.sum(apart**2) + diagonal * jnp.sum((jnp.diagonal(covariance) - 1) ** 2)
        return jnp.mean(terms.distortion + terms.rate + terms.penalty) + penalty, terms

    return objective
