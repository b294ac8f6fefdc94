"""Which times a bound is estimated at: functions `key -> (times (k,), densities (k,))`.

The bound is an integral over t from 0 to 1, and is estimated by the average of integrand / density over the k times, so
that its expectation is the same whatever the choice.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax.core.numbers import is_whole

Times = Callable[[Array], tuple[Array, Array]]


def uniform(key: Array) -> tuple[Array, Array]:
    """One time, anywhere in [0, 1)."""
    return jax.random.uniform(key, (1,)), jnp.ones(1)


def stratified(k: int) -> Times:
    """One time in each of k equal parts of [0, 1): k calls of the network, and less variance than k times at random.

    Raises:
        ValueError: k is no whole number from 1 on.
    """
    _check_count(k)

    def times(key):
        return (jnp.arange(k) + jax.random.uniform(key, (k,))) / k, jnp.ones(k)

    return times


def every(steps: int) -> Times:
    """Each of the `steps` steps of a diffusion of as many steps: its bound without sampling the step.

    Raises:
        ValueError: steps is no whole number from 1 on.
    """
    _check_count(steps)

    def times(key):
        del key
        return (jnp.arange(steps) + 0.5) / steps, jnp.ones(steps)

    return times


def proposal(weights: Any) -> Times:
    """Importance sampling: one time, its density proportional to `weights` on as many equal parts of [0, 1).

    The variance is least where the weight of a part is the root of the mean square of the integrand there (Nichol &
    Dhariwal 2021, equation 18): `measure` finds it.

    Raises:
        ValueError: weights that are not a vector of positive numbers.
    """
    known = np.asarray(weights, np.float64)
    if known.ndim != 1 or not len(known) or not np.all(np.isfinite(known) & (known > 0)):
        raise ValueError(
            f"weights of times: want a vector of positive numbers, one for each part of [0, 1); got {known}. A weight "
            "of 0 would leave out a part of the bound"
        )
    density = jnp.asarray(known / known.mean(), jnp.result_type(float))

    def times(key):
        k_part, k_inside = jax.random.split(key)
        part = jax.random.categorical(k_part, jnp.log(density))
        t = (part + jax.random.uniform(k_inside)) / len(known)
        return t[None], density[part][None]

    return times


def at(t: Array) -> Times:
    """This one time, as if it had been drawn uniformly."""

    def times(key):
        del key
        return jnp.reshape(t, (1,)), jnp.ones(1)

    return times


def _check_count(k: int) -> None:
    if not is_whole(k):
        raise ValueError(f"want at least one time; got {k}: a whole number is wanted")
