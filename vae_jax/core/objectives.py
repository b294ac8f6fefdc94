"""What a training step minimises, on top of the terms. The bound that is reported never changes with it.

An objective is a function `(model, params, keys, ys, cs, step) -> (loss, Terms)`: the loss in nats for the whole batch,
and the batch's terms, unweighted, from which the step reports ELBO, rate and distortion. Those with several samples of
each example are in `vae_jax.core.multi_sample`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax.core.conditions import no_condition
from vae_jax.core.model import Model, Params, Terms
from vae_jax.core.numbers import is_number

Objective = Callable[[Model, Params, Array, Any, Any, Any], tuple[Array, Terms]]
"""`(model, params, keys, ys, cs, step) -> (loss, Terms)` of a batch: the loss, a number in nats, and the terms of each
example, from which ELBO, rate and distortion are reported."""

Annealing = Callable[[Any], Any]  # from the step to a number

FreeBits = Callable[[Array, float], Array]
"""`(rates, floor) -> nats` for rates (batch, units) in nats: a definition of free bits, such as `per_example`."""


def batch_terms(terms: Callable[..., Any], params: Params, keys: Array, ys: Any, cs: Any) -> Any:
    """`terms` of every example, a function `(params, key, y, c)` under one vmap."""
    return jax.vmap(terms, in_axes=(None, 0, 0, None if cs is None else 0))(params, keys, ys, cs)


def elbo() -> Objective:
    """Minus the evidence lower bound: mean L(y, z), the lecture's loss."""
    return beta_elbo(1.0)


def beta_elbo(beta: float | Annealing) -> Objective:
    """distortion + beta * rate (Higgins et al. 2017), beta a number or a function of the step.

    Raises:
        ValueError: a negative number, or none; or, when first called, a function that gives something else.
    """
    weight = _weight(beta)

    def objective(model, params, keys, ys, cs, step):
        terms = batch_terms(model.terms, params, keys, ys, cs)
        return jnp.mean(terms.distortion + weight(step) * terms.rate + terms.penalty), terms

    return objective


def _weight(beta: float | Annealing) -> Annealing:
    """The weight of the rate at a step, checked to be one number."""
    if not callable(beta):
        if not is_number(beta, 0):
            raise ValueError(f"beta weighs the rate and cannot be negative; got {beta}")
        return lambda step: beta

    def weight(step):
        value = beta(step)
        if not isinstance(value, int | float | np.generic | np.ndarray | Array) or np.shape(value) != ():
            got = getattr(value, "shape", type(value).__name__)
            raise ValueError(f"beta(step) has to be one number, the same for all examples; got {got}")
        return value

    return weight


def free_bits(floor: float, definition: FreeBits, *, beta: float | Annealing = 1.0) -> Objective:
    """distortion + beta * max(floor, rate): no reward for a rate below `floor` nats (Kingma et al. 2016, section 5).

    Three definitions are in use, and they give different numbers: pass `batch_mean_per_unit`, `per_unit` or
    `per_example`. The mean over the batch is taken over the examples that one device or micro-batch sees.

    Args:
        floor: nats, for each unit or for the whole latent as the definition says.
        definition: one of the three functions of this module.
        beta: weight of the rate, a number or a function of the step.

    Raises:
        ValueError: a negative floor or beta; or, when first called, a rate per unit is wanted and the model has none.

    Example:
        >>> rates = jnp.array([[0.1, 2.0], [0.7, 0.0]])  # two examples of two units, nats
        >>> [round(float(of_rates(rates, 0.5)), 3) for of_rates in (batch_mean_per_unit, per_unit, per_example)]
        [1.5, 1.85, 1.4]
    """
    weight = _weight(beta)
    if not is_number(floor, 0):
        raise ValueError(f"the floor of free bits is in nats and cannot be negative; got {floor}")

    def objective(model, params, keys, ys, cs, step):
        terms = batch_terms(model.terms, params, keys, ys, cs)
        rates = jnp.asarray(terms.rate)[:, None] if definition is per_example else _unit_rates(terms)
        return jnp.mean(terms.distortion + terms.penalty) + weight(step) * definition(rates, floor), terms

    return objective


def _unit_rates(terms: Terms) -> Array:
    """(batch, units)"""
    rates = terms.units.rate
    if rates is None:
        raise ValueError(
            "this model has no rate per unit (encoder or prior does not factorise over units); use "
            "free_bits(floor, per_example)"
        )
    return rates.reshape(len(rates), -1)


def batch_mean_per_unit(rates: Array, floor: float) -> Array:
    """sum_d max(floor, mean_b rate_bd) for rates (batch, units): the definition of Kingma et al. 2016."""
    return jnp.sum(jnp.maximum(jnp.mean(rates, axis=0), floor))


def per_unit(rates: Array, floor: float) -> Array:
    """mean_b sum_d max(floor, rate_bd) for rates (batch, units)."""
    return jnp.mean(jnp.sum(jnp.maximum(rates, floor), axis=1))


def per_example(rates: Array, floor: float) -> Array:
    """mean_b max(floor, sum_d rate_bd) for rates (batch, units): one floor for the whole latent."""
    return jnp.mean(jnp.maximum(jnp.sum(rates, axis=1), floor))


def capacity(weight: float, nats: float | Annealing) -> Objective:
    """distortion + weight |mean rate - nats|: a rate that is asked for, rising with the step (Burgess et al. 2018).

    Raises:
        ValueError: a negative weight or capacity; or, when first called, a function that gives no number.
    """
    if not is_number(weight, 0):
        raise ValueError(f"weight is that of the rate's distance from its capacity, 0 or more; got {weight}")
    wanted = _weight(nats)

    def objective(model, params, keys, ys, cs, step):
        terms = batch_terms(model.terms, params, keys, ys, cs)
        apart = jnp.abs(jnp.mean(terms.rate) - wanted(step))
        return jnp.mean(terms.distortion + terms.penalty) + weight * apart, terms

    return objective


def balanced(beta: Annealing, sizes: Sequence[float] = ()) -> Objective:
    """distortion + beta sum_l gamma_l rate_l while beta(step) < 1, the ELBO after it (Vahdat & Kautz 2020, appendix A).

    gamma_l is in proportion to the level's size times its mean rate over the batch, 1 on average, and a constant to the
    gradient: a level that carries little is charged little, so that it is not switched off while the weight rises.

    Args:
        beta: from the step to the rate's weight, `linear_annealing(steps)` for instance.
        sizes: of each level of latents, the one next to y first: numbers in it; none: all alike.

    Raises:
        ValueError: sizes that are not positive; or, when first called, a model without levels, or other many of them.
    """
    if any(not (is_number(size) and size > 0) for size in sizes):
        raise ValueError(f"sizes are how many numbers each level has, above 0; got {tuple(sizes)}")
    weight = _weight(beta)

    def objective(model, params, keys, ys, cs, step):
        terms = batch_terms(model.terms, params, keys, ys, cs)
        if terms.rates is None or (sizes and terms.rates.shape[1] != len(sizes)):
            levels = 0 if terms.rates is None else terms.rates.shape[1]
            raise ValueError(f"balanced weighs the levels of latents, of which this model has {levels}; sizes: {sizes}")
        rates = jnp.mean(terms.rates, axis=0)
        share = jax.lax.stop_gradient(jnp.maximum(rates, 0) * jnp.asarray(sizes or 1.0, rates.dtype))
        gamma = len(rates) * share / jnp.maximum(jnp.sum(share), 1e-9)
        now = weight(step)
        rate = jnp.where(now < 1, now * jnp.sum(gamma * rates), now * jnp.mean(terms.rate))
        return jnp.mean(terms.distortion + terms.penalty) + rate, terms

    return objective


def of(build: Callable[[Any], Model], objective: Objective = elbo()) -> Objective:
    """The objective of another model on the same parameters, which may change with the step: `build(step)`.

    For what belongs to training only, a temperature that falls or words that are dropped, while the model itself is
    validated and reported:

        of(lambda step: vae(enc, pri, gen, estimator=gumbel(temperature(step))))
        of(lambda step: vae(enc, pri, in_training(gen, word_dropout=0.3)), free_bits(5.0, per_example))
    """

    def objective_of(model, params, keys, ys, cs, step):
        del model
        return objective(build(step), params, keys, ys, cs, step)

    return objective_of


def drop_condition(objective: Objective, rate: float) -> Objective:
    """The objective without the condition for a part of the examples, at random: zeros in its place (`no_condition`).

    So one network learns P(y|c) and P(y), which classifier-free guidance needs (Ho & Salimans 2022, algorithm 1).

    Raises:
        ValueError: a rate outside [0, 1]; or, when first called, no conditions, or classes as whole numbers, among
            which 0 is one, for a model that is not `labelled`.
    """
    if not is_number(rate, 0, 1):
        raise ValueError(f"rate is the part of the examples that lose their condition, in [0, 1]; got {rate}")

    def dropped(model, params, keys, ys, cs, step):
        if cs is None:
            raise ValueError("drop_condition drops conditions, and there are none: pass labels (cs)")

        def drop(key, c):
            gone = jax.random.bernoulli(jax.random.fold_in(key, 0), rate)
            return jax.tree.map(lambda x, nothing: jnp.where(gone, nothing, x), c, no_condition(c, model.classes))

        seen = jax.vmap(drop)(keys, cs)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
        return objective(model, params, keys, ys, seen, step)

    return dropped


def linear_annealing(steps: int, *, start: float = 0.0, end: float = 1.0) -> Annealing:
    """From `start` at step 0 straight to `end` at step `steps`, then constant.

    Raises:
        ValueError: fewer than one step, or an end that is no finite number.

    Example:
        >>> beta = linear_annealing(10)
        >>> [float(beta(step)) for step in (0, 5, 20)]
        [0.0, 0.5, 1.0]
    """
    _check_schedule(steps, start=start, end=end)
    return lambda step: start + (end - start) * jnp.minimum(step / steps, 1.0)


def sigmoid_annealing(steps: int, *, start: float = 0.0, end: float = 1.0, steepness: float = 10.0) -> Annealing:
    """From `start` to `end` along a logistic curve with its middle at `steps / 2` (Bowman et al. 2016, section 3.1).

    At step 0 and at `steps` it is sigmoid(-+steepness / 2) of the way.

    Raises:
        ValueError: fewer than one step, or a number that is none.
    """
    _check_schedule(steps, start=start, end=end, steepness=steepness)
    return lambda step: start + (end - start) * jax.nn.sigmoid(steepness * (step / steps - 0.5))


def cyclical_annealing(period: int, *, start: float = 0.0, end: float = 1.0, ramp: float = 0.5) -> Annealing:
    """Again and again: a straight rise during the first `ramp` of each period, then `end` (Fu et al. 2019).

    Raises:
        ValueError: a period below one step, a ramp outside (0, 1], or a number that is none.
    """
    _check_schedule(period, start=start, end=end)
    if not is_number(ramp, 0, 1) or ramp == 0:
        raise ValueError(f"ramp is the part of a period that rises, in (0, 1]; got {ramp}")
    return lambda step: start + (end - start) * jnp.minimum((step % period) / (ramp * period), 1.0)


def _check_schedule(steps: float, **numbers: float) -> None:
    if not is_number(steps, 1):
        raise ValueError(f"a schedule takes at least one step; got {steps}")
    for name, value in numbers.items():
        if not is_number(value):
            raise ValueError(f"{name} of a schedule wants a number; got {value}")
