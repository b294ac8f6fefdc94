"""Masked networks: outputs that depend on some inputs only (Germain et al. 2015, MADE).

Plain dense ones are those whose masks are all ones. They are small and live here: `vae_jax.nets` is for the user's.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax.core.distributions import bounded_log_std
from vae_jax.core.model import Params

MAX_LOG_SCALE = 3.0


def made_masks(inputs: np.ndarray, hidden: tuple[int, ...], outputs: np.ndarray) -> list[np.ndarray]:
    """Connections (out, in) of a network whose outputs depend on inputs of lower degree only (MADE).

    (Germain et al. 2015, section 4; hidden units take the degrees in turn.) `inputs` and `outputs` are degrees.
    """
    highest = outputs.max() - 1
    lowest = min(inputs.min(initial=highest), highest)
    degrees = [inputs, *(lowest + np.arange(width) % (highest - lowest + 1) for width in hidden)]
    masks = [after[:, None] >= before[None] for before, after in itertools.pairwise(degrees)]
    return [*masks, outputs[:, None] > degrees[-1][None]]


def init_net(key: Array, masks: list[np.ndarray]) -> Params:
    """The last layer is 0: the flow starts as the identity."""

    def weights(key, mask):
        return jax.random.normal(key, mask.shape) / np.sqrt(np.maximum(1, mask.sum(axis=1)))[:, None]

    scales = [1.0] * (len(masks) - 1) + [0.0]
    return [
        {"weights": scale * weights(key, mask), "bias": jnp.zeros(len(mask))}
        for key, mask, scale in zip(jax.random.split(key, len(masks)), masks, scales, strict=True)
    ]


def log_scale_and_shift(params: Params, masks: list[np.ndarray], x: Array) -> tuple[Array, Array]:
    """What the masked network says of x, the log scale bounded smoothly to (-3, 3).

    In full precision on every backend: a flow and its inverse have to agree.
    """
    for i, (layer, mask) in enumerate(zip(params, masks, strict=True)):
        x = jnp.tanh(x) if i else x
        x = jnp.matmul(mask * layer["weights"], x, precision="highest") + layer["bias"]
    raw, shift = jnp.split(x, 2)
    return bounded_log_std(raw, MAX_LOG_SCALE), shift
