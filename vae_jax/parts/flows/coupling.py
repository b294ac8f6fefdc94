"""Affine coupling (Dinh et al. 2017, RealNVP, equations 4-8)."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from vae_jax.core.model import Conditional
from vae_jax.parts.flows.bijection import Bijection, flow
from vae_jax.parts.flows.masked import init_net, log_scale_and_shift, made_masks


def coupling_flow(
    size: int,
    *,
    layers: int = 6,
    hidden: tuple[int, ...] = (64, 64),
    base: Conditional | None = None,
    context: Any = None,
) -> Conditional:
    """Affine coupling (RealNVP): in each layer one half of x scales and shifts the other.

    Its parameters are `{"base": ..., "context": ..., "layers": ...}`, those of the layers stacked on axis 0.

    Args:
        size: numbers in x, at least 2.
        layers: how many, each with a network of its own; after each the order is reversed, after two also shuffled.
        hidden: widths of the hidden layers (tanh) of each network.
        base: the distribution of u, a `Conditional` over vectors of this size that is given the same c: `gaussian(net)`
            in an encoder, a mixture for data in clusters (whose draws have no gradient). N(0, I) by default.
        context: network from c (or from y and c in an encoder) to a vector that every layer sees; by default the layers
            see c itself, flattened: labels should be one-hot.

    Raises:
        ValueError: fewer than 2 dimensions, no layers or a width below 1; when first called, a base over vectors of
            another size, or a condition of another size than at `init`.
    """
    if size < 2:
        raise ValueError(f"coupling_flow: size={size}: one half scales the other, so x wants at least 2 dimensions")
    return flow("coupling_flow", _coupling, size, layers, hidden, base, context)


def _coupling(size: int, hidden: tuple[int, ...]) -> Bijection:
    """x = (a, b exp(s) + m) of u = (a, b), with s and m functions of a and h."""
    half = size // 2

    def masks(context):
        return made_masks(np.zeros(context + half), hidden, np.ones(2 * (size - half)))

    def init(key, context):
        return init_net(key, masks(context))

    def forward(params, u, h):
        log_scale, shift = log_scale_and_shift(params, masks(h.size), jnp.concatenate([h, u[:half]]))
        return jnp.concatenate([u[:half], u[half:] * jnp.exp(log_scale) + shift]), jnp.sum(log_scale)

    def inverse(params, x, h):
        log_scale, shift = log_scale_and_shift(params, masks(h.size), jnp.concatenate([h, x[:half]]))
        return jnp.concatenate([x[:half], (x[half:] - shift) * jnp.exp(-log_scale)]), -jnp.sum(log_scale)

    return Bijection(init, forward, inverse)
