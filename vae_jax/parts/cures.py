"""Cures of posterior collapse that are parts of a model; those that are objectives are in `vae_jax.core.objectives`.

A VAE collapses where its rate falls to 0: P_enc(z|y) = P_pri(z), so that z says nothing about y. The cures here are an
encoder whose rate cannot fall, and a generator that has to guess more from z.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from vae_jax.core.model import Conditional, Model, lift
from vae_jax.core.network import as_network
from vae_jax.core.numbers import is_number
from vae_jax.core.parameters import beside
from vae_jax.parts.conditionals import arguments, conditional, full_precision, pair_of


def committed_gaussian(net: Any, rate: float) -> Conditional:
    """A diagonal Gaussian whose KL to N(0, I) is at least `rate` nats, whatever the network says: the delta-VAE's.

    With d = rate / units, KL = (mean^2 + std^2 - 1 - ln std^2) / 2 >= d holds in every unit where

        ln std^2 - std^2 + 2 d + 1 >= 0    and    |mean| >= sqrt(2 d + 1 + ln std^2 - std^2)

    (Razavi et al. 2019, section 2.2). ln std is bounded to that interval, smoothly and by the identity near 0; the mean
    is the network's, moved away from 0. Both signs are kept, where the paper keeps one: so the rate that has to be paid
    can say something. The bound is met with equality where the network's mean is 0.

    Args:
        net: as for `gaussian`: it gives (mean, raw log_std), as a pair or stacked on the last axis.
        rate: nats of one example, spread evenly over the units.

    Raises:
        ValueError: a rate that is not positive.
    """
    if not (is_number(rate) and rate > 0):
        raise ValueError(f"the committed rate is in nats and positive; got {rate}. Without one: gaussian")

    def make(output):
        raw_mean, raw = pair_of(output, "committed_gaussian")
        least = rate / raw_mean.size
        low, high = _interval(least)
        limit = jnp.where(raw < 0, -low, high).astype(raw.dtype)
        log_std = limit * jnp.tanh(raw / limit)
        square = 2 * least + 1 + 2 * log_std - jnp.exp(2 * log_std)
        inside = square > 0
        away = jnp.where(inside, jnp.sqrt(jnp.where(inside, square, 1)), 0)
        mean = raw_mean + jnp.where(raw_mean < 0, -away, away)
        return dist.Normal(mean, jnp.exp(log_std)).to_event(mean.ndim)

    return conditional(net, make)


def _interval(least: float) -> tuple[float, float]:
    """The two roots in ln std of std^2 - ln std^2 = 1 + 2 least, the lower one negative; by Newton from outside."""

    def root(x):
        for _ in range(60):
            x -= (math.expm1(x) - x - 2 * least) / math.expm1(x)
        return x / 2

    return root(-1 - 2 * least), root(1 + math.log1p(2 * least))


def bag_of_words(
    generator: Conditional | Model, net: Any, levels: int, *, weight: float = 1.0, end: int | None = 0
) -> Model:
    """The generator, with a penalty for words that z does not foretell without their order (Zhao et al. 2017, eq. 6).

        penalty = -weight * sum_t ln softmax(net(z))[y_t]        in nats, over the words that are not `end`

    The parameters are `{"gen": the generator's, "words": the network's}`. The penalty is part of the training loss, and
    never of the bound.

    Args:
        generator: P(y|z) of whole numbers y.
        net: from z (and a further condition) to logits (levels,).
        levels: how many values a word has.
        weight: of the penalty.
        end: the value that ends and pads a sentence, which is no word; None counts every position.

    Raises:
        ValueError: a negative weight; or, when first called, logits of another shape.
    """
    if not is_number(weight, 0):
        raise ValueError(f"weight weighs the penalty and cannot be negative; got {weight}")
    model, network = lift(generator), as_network(net)

    def penalised(params, terms, y, c):
        logits = full_precision(network.apply(params["words"], *arguments(c)))
        if logits.shape != (levels,):
            raise ValueError(f"the network of bag_of_words has to give logits of shape {(levels,)}; got {logits.shape}")
        log_p = jax.nn.log_softmax(logits)[jnp.asarray(y, int)]
        words = jnp.sum(log_p if end is None else jnp.where(y == end, 0, log_p))
        return terms._replace(penalty=terms.penalty - weight * words)

    return beside(model, "gen", "words", lambda key, y, c: network.init(key, *arguments(c)), penalised)
