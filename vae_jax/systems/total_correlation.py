"""FactorVAE: the total correlation of z, estimated by a discriminator, in the loss (Kim and Mnih 2018).

A discriminator learns to tell z ~ q(z), the aggregate of the encoder, from z whose units were each taken from another
example, z ~ prod_d q(z_d). At its optimum its logit is ln q(z) / prod_d q(z_d), whose mean is the total correlation.
`vae_jax.core.beta_tc` estimates the same from pairs of the batch, without a second network.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.core.disentangling import posteriors
from vae_jax.core.model import Conditional, Model, join
from vae_jax.core.network import as_network
from vae_jax.core.numbers import is_number
from vae_jax.core.objectives import Objective, batch_terms
from vae_jax.systems.gans import beside_its_own, judge, non_saturating


def factor_vae(model: Model, encoder: Conditional, discriminator: Any, weight: float) -> tuple[Model, Objective]:
    """The model with a discriminator of z beside it, and the objective ELBO loss + weight * total correlation.

    The logit's gradient reaches the encoder alone, the discriminator's own loss the discriminator alone; both are
    trained in one step. The bound that is reported is the ELBO.

    Args:
        encoder: the model's own, with parameters `params["enc"]`.
        discriminator: a network from one z to a logit; its parameters are `params["dis"]`.
        weight: of the total correlation, gamma in the paper, 0 or more; 0 is the ELBO.

    Returns:
        The model and its objective, for `fit`.

    Raises:
        ValueError: a negative weight; or, when first called, an encoder whose draws have no gradient, a batch of one.
    """
    if not is_number(weight, 0):
        raise ValueError(f"weight is of the total correlation, 0 or more; got {weight}")
    net = as_network(discriminator)

    def of_z(params, key, y, c):
        return (encoder.dist(params["enc"], join(y, c)).sample(key),)

    def objective(model, params, keys, ys, cs, step):
        terms = batch_terms(model.terms, params, keys, ys, cs)
        zs = _draws(keys, posteriors(encoder, params, ys, cs))
        apart = permuted(jax.random.fold_in(keys[0], 2), zs)
        frozen = jax.lax.stop_gradient(params["dis"])
        logits = jax.vmap(lambda z: jnp.sum(net.apply(frozen, z)))(zs)
        own = jax.vmap(lambda z, other: judge(net, non_saturating, params["dis"], (z,), (other,)))(zs, apart)
        return jnp.mean(terms.distortion + terms.rate + terms.penalty + weight * logits + own), terms

    return beside_its_own(model, net, of_z), objective


def _draws(keys: Array, qs: Any) -> Array:
    """One z of each posterior, (n, *z), with its gradient."""
    if not qs.has_rsample:
        raise ValueError(f"FactorVAE moves z by its gradient, and draws of {type(qs).__name__} have none")
    if len(keys) < 2:
        raise ValueError("z of other examples are taken from the batch: want batches of two or more")
    return jax.vmap(lambda key, q: q.rsample(jax.random.fold_in(key, 1)))(keys, qs)


def permuted(key: Array, zs: Array) -> Array:
    """(n, *units), each unit in an order of its own: draws of the product of the margins."""
    flat = zs.reshape(len(zs), -1)
    keys = jax.random.split(key, flat.shape[1])
    return jax.vmap(jax.random.permutation, (0, 1), 1)(keys, flat).reshape(zs.shape)
