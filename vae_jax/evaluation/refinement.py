"""Variational inference for one example, prior and generator fixed: what is left of the gap after the encoder.

    ln P(y) - ELBO(P_enc) = [ln P(y) - ELBO(q*)] + [ELBO(q*) - ELBO(P_enc)] = approximation gap + amortisation gap

with q* the best member of the encoder's family for this y (Cremer et al. 2018). `refine` walks from the encoder's
output to q*; `elbo_draws` measures the ELBO of either. Both are for one example: `jax.vmap` them over a batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax
from jax import Array
from numpyro.distributions import biject_to

from vae_jax.core.combinator import vae
from vae_jax.core.estimators import sticking
from vae_jax.core.model import Conditional, Model, Params, join
from vae_jax.core.numbers import is_whole

# The families that can be refined, and the parameters that they are made of.
FAMILIES = {dist.Normal: ("loc", "scale"), dist.MultivariateNormal: ("loc", "scale_tril")}


class Refined(NamedTuple):
    """The result for one example.

    Fields:
        q: the distribution of z after the last step.
        elbo: (steps,) the estimate of the ELBO at each step, in nats, before its update; noisy.
    """

    q: dist.Distribution
    elbo: Array


def refine(
    encoder: Conditional,
    prior: Conditional | Model,
    generator: Conditional | Model,
    params: Params,
    key: Array,
    y: Any,
    c: Any = None,
    *,
    steps: int,
    learning_rate: optax.ScalarOrSchedule = 0.02,
    samples: int = 8,
) -> Refined:
    """Ascend the ELBO of one y by Adam over the parameters of P_enc(z|y) themselves, made unconstrained.

    The gradient is that of sticking the landing (Roeder et al. 2017): its noise vanishes where q is the posterior.

    Args:
        params: `{"enc": ..., "pri": ..., "gen": ...}` of the VAE.
        steps: number of updates; one compiled loop.
        learning_rate: Adam's, a number or an optax schedule.
        samples: draws of z for each step.

    Raises:
        TypeError: the encoder gives something other than a (diagonal or full) normal distribution.
        ValueError: steps < 1 or samples < 1.
    """
    if not is_whole(steps) or not is_whole(samples):
        raise ValueError(f"refining takes steps >= 1 and samples >= 1; got steps={steps}, samples={samples}")
    free, distribution = _unconstrained(encoder.dist(params["enc"], join(y, c)))
    model = _with_posterior(distribution, prior, generator)
    optimizer = optax.adam(learning_rate)

    def loss(free, key):
        keys = jax.random.split(key, samples)
        return jnp.mean(jax.vmap(lambda key: model.terms({**params, "enc": free}, key, y, c).nats)(keys))

    def step(carry, key):
        free, state = carry
        nats, gradient = jax.value_and_grad(loss)(free, key)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(free, updates), state), -nats

    (free, _), elbo = jax.lax.scan(step, (free, optimizer.init(free)), jax.random.split(key, steps))
    return Refined(distribution(free), elbo)


def elbo_draws(
    q: dist.Distribution,
    prior: Conditional | Model,
    generator: Conditional | Model,
    params: Params,
    key: Array,
    y: Any,
    c: Any = None,
    *,
    samples: int,
) -> Array:
    """(samples,) draws of ln P_pri(z) P_gen(y|z) / q(z), z ~ q, in nats: their mean is the ELBO of q for one y.

    With the same key two normal distributions are compared under the same noise: the mean and the standard error of the
    differences are those of the amortisation gap.

    Args:
        q: any distribution of z, `refine(...).q` or the encoder's own.
        params: of the VAE; those of the encoder are not used.

    Raises:
        TypeError: q has no reparameterised draws.
    """
    model = _with_posterior(lambda q: q, prior, generator)
    keys = jax.random.split(key, samples)
    return -jax.vmap(lambda key: model.terms({**params, "enc": q}, key, y, c).nats)(keys)


def _with_posterior(distribution: Callable[[Any], dist.Distribution], prior: Any, generator: Any) -> Model:
    """The VAE whose encoder forgets y: its parameters are those of the distribution of z."""
    encoder = Conditional(lambda key, c=None: None, lambda free, c=None: distribution(free))
    return vae(encoder, prior, generator, estimator=sticking)


def _unconstrained(q: dist.Distribution) -> tuple[dict[str, Array], Callable[[Any], dist.Distribution]]:
    """Free real parameters of q, and the way from them to a distribution of its family."""
    base = q
    while isinstance(base, dist.Independent):
        base = base.base_dist
    family = type(base)
    if family not in FAMILIES:
        raise TypeError(
            f"refine handles encoders that give {' or '.join(each.__name__ for each in FAMILIES)}; this one gives "
            f"{type(q).__name__}{'' if base is q else ' of ' + family.__name__}"
        )
    to_real = {name: biject_to(family.arg_constraints[name]) for name in FAMILIES[family]}
    free = {name: bijection.inv(getattr(base, name)) for name, bijection in to_real.items()}
    event_dims = len(q.event_shape) - len(base.event_shape)

    def distribution(free):
        values = {name: bijection(free[name]) for name, bijection in to_real.items()}
        return family(**values).to_event(event_dims)

    return free, distribution
