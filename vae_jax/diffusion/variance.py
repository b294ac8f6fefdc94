"""The analytic variance of the reverse steps: measured, not trained (Bao et al. 2022, "Analytic-DPM", theorem 1).

A reverse step would be exact in its second moment if it added the variance of x given z_t to that of a step with x
known. Its average over z_t and dimensions is the mean squared error of the denoiser.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.core.model import Params
from vae_jax.diffusion.denoisers import Denoiser


def fit_variance(denoiser: Denoiser, params: Params, key: Array, ys: Any, cs: Any = None) -> Params:
    """The parameters with `gen/variance`: E (x - xhat(z_t))^2 for t = 0, 1/T, ..., 1, over examples and dimensions.

    Args:
        denoiser: with variance="analytic".
        ys: (n, *shape) examples, each seen once with noise of its own at every t; cs their conditions.

    Raises:
        ValueError: a denoiser with another variance.
    """
    d = denoiser
    if d.variance != "analytic":
        raise ValueError(f'fit_variance wants denoiser(..., variance="analytic"); this one has {d.variance!r}')
    enc, gen = params["enc"], params["gen"]

    def error(t, key):
        def one(key, y, c):
            x, level = d.observation.embed(y), d.level(enc, t)
            z = level.alpha * x + level.sigma * jax.random.normal(key, d.shape, x.dtype)
            return jnp.mean((x - d.denoise(gen, z, level, c).x) ** 2)

        keys = jax.random.split(key, len(ys))
        return jnp.mean(jax.vmap(one, in_axes=(0, 0, None if cs is None else 0))(keys, ys, cs))

    times = d.times()
    measured = jax.jit(lambda keys: jax.lax.map(lambda at: error(*at), (times, keys)))(
        jax.random.split(key, len(times))
    )
    return {**params, "gen": {**gen, "variance": jnp.maximum(measured, 1e-12)}}
