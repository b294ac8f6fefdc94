"""Losses other than the bound. They weigh the noise levels differently; the bound that is reported stays what it is.

    bound:      1/2 E_t gamma'(t) |eps - epshat|^2          others:  1/2 E_t w(gamma) |eps - epshat|^2

They work for any model with a diffusion inside, as a prior for instance: only its part of the bound is replaced.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax.core.model import Diffused, Model, Params, Terms
from vae_jax.core.numbers import is_whole
from vae_jax.core.objectives import Objective, batch_terms, elbo
from vae_jax.diffusion.times import Times, at

Weighting = Callable[[Array, Array], Array]
"""`(gamma, gamma') -> w`: the weight of the squared error at gamma = -ln SNR, whose derivative by t is gamma'."""


def simple(gamma: Array, slope: Array) -> Array:
    """w = 1: the L_simple of Ho et al. 2020, equation 14, times D / 2."""
    del slope
    return jnp.ones_like(gamma)


def min_snr(most: float = 5.0) -> Weighting:
    """w = min(1, most / SNR) (Hang et al. 2023, min-SNR-gamma, in terms of eps).

    Raises:
        ValueError: a bound that is not positive.
    """
    if not most > 0:
        raise ValueError(f"min_snr caps the signal-to-noise ratio at a positive number; got {most}")
    return lambda gamma, slope: jnp.minimum(1.0, most * jnp.exp(gamma))


def sigmoid_weighting(bias: float = -3.0) -> Weighting:
    """w = gamma' sigmoid(gamma - bias): high signal-to-noise ratios count less (Kingma & Gao 2023, section 5; their
    bias for ln SNR is minus ours)."""
    return lambda gamma, slope: slope * jax.nn.sigmoid(gamma - bias)


def weighted(weighting: Weighting, *, bound: float = 0.0) -> Objective:
    """The model's bound, with 1/2 w |eps - epshat|^2 in place of each diffusion's part.

    Args:
        weighting: `simple`, `min_snr()`, `sigmoid_weighting()` or a function (gamma, gamma') -> w.
        bound: how much of the diffusion's bound to add: without some, a learned variance has no gradient (Nichol &
            Dhariwal 2021, section 3.1, take 0.001 of the mean over dimensions).

    Raises:
        ValueError: a negative share; or, when first called, a model without a diffusion.
    """
    if bound < 0:
        raise ValueError(f"bound is the share of the bound that is added, at least 0; got {bound}")

    def objective(model, params, keys, ys, cs, step):
        del step
        terms = batch_terms(model.terms, params, keys, ys, cs)
        replaced = jnp.zeros(())
        for part in _diffusions(terms):
            loss = jnp.mean(0.5 * weighting(part.gamma, part.slope) * part.squared * part.weight, axis=-1)
            replaced = replaced + jnp.mean(loss + (bound - 1) * part.bound)
        return jnp.mean(terms.nats + terms.penalty) + replaced, terms

    return objective


def _diffusions(terms: Terms) -> tuple[Diffused, ...]:
    if not terms.diffusions:
        raise ValueError("weighted(...) reweighs the noise levels of a diffusion, and this model has none inside")
    return terms.diffusions


def spread_times(model_at: Callable[[Times], Model], objective: Objective = elbo()) -> Objective:
    """The times of a batch spread evenly over [0, 1), one common shift: t_i = (i + u) / n (Kingma et al. 2021, I.1).

    Each time has the same expectation as alone, and their average much less variance. On several devices or
    micro-batches each part of the batch is spread on its own.

    Args:
        model_at: from `times` to the model: `lambda times: diffusion(d, times=times)`, or
            `lambda times: vae(enc, diffusion(d, times=times), gen)`.
        objective: what is minimised at these times: `elbo()`, `weighted(...)`.
    """

    def spread(model, params, keys, ys, cs, step):
        shift = jax.random.uniform(jax.random.fold_in(keys[0], 0))
        ts = (jnp.arange(len(keys)) + shift) / len(keys)

        def terms(params, key, y, condition):
            c, t = condition
            return model_at(at(t)).terms(params, key, y, c)

        keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys)
        return objective(model._replace(terms=terms), params, keys, ys, (cs, ts), step)

    return spread


def measure(
    model_at: Callable[[Times], Model], params: Params, key: Array, ys: Any, cs: Any = None, *, parts: int = 10
) -> np.ndarray:
    """(parts,) weights for `times.proposal`: the root of the mean square of the diffusion's loss in parts of [0, 1).

    Args:
        model_at: as in `spread_times`.
        ys, cs: some examples; each is seen once in every part.

    Raises:
        ValueError: parts is no whole number from 1 on.
    """
    if not is_whole(parts):
        raise ValueError(f"parts of [0, 1): want a whole number, at least 1; got {parts}")

    def rms(i, key):
        def one(key, y, c):
            k_t, k_model = jax.random.split(key)
            t = (i + jax.random.uniform(k_t)) / parts
            return sum(part.bound for part in _diffusions(model_at(at(t)).terms(params, k_model, y, c)))

        keys = jax.random.split(key, len(ys))
        losses = jax.vmap(one, in_axes=(0, 0, None if cs is None else 0))(keys, ys, cs)
        return jnp.sqrt(jnp.mean(losses**2))

    both = jax.jit(lambda keys: jax.lax.map(lambda at: rms(*at), (jnp.arange(parts), keys)))
    return np.asarray(both(jax.random.split(key, parts)))
