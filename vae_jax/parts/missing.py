"""Missing entries, NaN in y, in any VAE whose generator factorises: they cost nothing, and the encoder sees which.

    encoder = gaussian(seeing_what_is_missing(nets.MLP((64,), 2 * 8)))
    generator = maybe_missing(l2(nets.MLP((64,), 13)))
    model = vae(encoder, standard_normal(8), generator)
    fit(model, ..., objective=importance_weighted(20))     # MIWAE (Mattei and Frellsen 2019); the ELBO works as well

What is missing is assumed to be so at random: whether an entry is seen does not depend on its value, given those that
are; else `not_at_random` has a model of that. `vae_jax.evaluation.impute` draws it.
"""

from typing import Any

import jax
import jax.numpy as jnp

from vae_jax.core.missing import Seen, filled_and_missing
from vae_jax.core.model import Conditional, Model, Terms, lift, log_prob, mean_sample
from vae_jax.core.network import Network, as_network


def maybe_missing(generator: Conditional) -> Conditional:
    """The generator, of examples whose missing entries are NaN: ln P of those that are seen. Nothing else changes.

    Arrays of classes and counts are given as floats, which have a NaN.

    Raises:
        ValueError: a generator that is set to its optimum after each step: the step would see NaN.
        TypeError: its distribution does not factorise over the numbers of an example; when first called.
    """
    if generator.maximise is not None:
        raise ValueError(
            "maybe_missing wants a generator whose parameters are all trained by gradient; this one is set to its "
            "optimum by statistics of complete examples: take l2(net, sigma='learned')"
        )
    return Conditional(generator.init, lambda params, c=None: Seen(generator.dist(params, c)))


def seeing_what_is_missing(net: Any) -> Network:
    """An encoder's network that is given y with 0 in place of what is missing, and 1 where it is, on the last axis.

    An image (h, w, a) becomes (h, w, 2 a), a vector (d,) one of (2 d,), a number one of (2,).
    """
    network = as_network(net)

    def init(key, y, *conditions):
        return network.init(key, filled_and_missing(y), *conditions)

    def apply(params, y, *conditions, **options):
        return network.apply(params, filled_and_missing(y), *conditions, **options)

    return Network(init, apply)


def not_at_random(generator: Conditional, seen: Conditional) -> Model:
    """P(y_seen, which are seen|z) where that depends on the values: not-MIWAE (Ipsen et al. 2021).

    What is missing is drawn from the generator, and P(seen|y) of the complete y counts: the distortion is
    -ln P(y_seen|z) - ln P(seen|y), of one draw. Averages of exp(-distortion) are unbiased, so train by
    `importance_weighted`. Imputation weights its draws by it. Samples are as data are, with NaN; means are complete.

    Args:
        generator: of complete values, whose draws have a gradient: `l2(net)`, not `maybe_missing` of it.
        seen: of arrays of 0 (missing) and 1 (seen) in the shape of y, given y: `bernoulli(net)`. What can be told from
            data is little: give it no more freedom than you have reasons for (each entry's own value, a sign).

    Returns:
        The generator; its parameters are those of both, "gen" and "seen".

    Raises:
        ValueError: a generator that `maybe_missing` refuses, or whose draws have no gradient; when first called.
    """
    gaps = maybe_missing(generator)

    def init(key, y, c=None):
        k_gen, k_seen = jax.random.split(key)
        return {"gen": generator.init(k_gen, c), "seen": seen.init(k_seen, jnp.nan_to_num(y))}

    def of_draw(params, key, y, c):
        """(ln P(y_seen|z) + ln P(seen|y), y with what is missing drawn)."""
        distribution = Seen(generator.dist(params["gen"], c))
        if not distribution.whole.has_rsample:
            raise ValueError(
                "not_at_random moves what is missing by its gradient, and draws of "
                f"{type(distribution.whole).__name__} have none"
            )
        y = jnp.asarray(y)
        drawn = jnp.where(jnp.isnan(y), distribution.whole.rsample(key), jnp.nan_to_num(y))
        there = (~jnp.isnan(y)).astype(jnp.float32)
        return log_prob(distribution, y) + log_prob(seen.dist(params["seen"], drawn), there), drawn

    def terms(params, key, y, c=None):
        return Terms(distortion=-of_draw(params, key, y, c)[0], rate=0.0)

    def sample(params, key, c=None):
        k_y, k_seen = jax.random.split(key)
        y = generator.dist(params["gen"], c).sample(k_y)
        return jnp.where(seen.dist(params["seen"], y).sample(k_seen) > 0, y, jnp.nan)

    def complete(params, key, y, c=None):
        log_p, drawn = of_draw(params, key, y, c)
        return log_p, drawn, drawn  # the weight is of this draw, so it stands for the mean too

    return Model(
        init,
        terms,
        sample,
        terms,
        support=lambda params, c=None: gaps.dist(params["gen"], c).support,
        mean=lambda params, key, c=None: mean_sample(lift(gaps))(params["gen"], key, c),
        complete=complete,
    )
