"""Affine coupling (Dinh et al. 2017, RealNVP, equations 4-8)."""

from typing import Unpack

import jax.numpy as jnp
import numpy as np

from vae_jax.core.model import Conditional
from vae_jax.core.numbers import is_whole
from vae_jax.parts.flows.bijection import Bijection, FlowOptions, flow
from vae_jax.parts.flows.masked import init_net, log_scale_and_shift, made_masks


def coupling_flow(size: int, **options: Unpack[FlowOptions]) -> Conditional:
    """Affine coupling (RealNVP): in each layer one half of x scales and shifts the other.

    Its parameters are `{"base": ..., "context": ..., "layers": ...}`, those of the layers stacked on axis 0.

    Args:
        size: numbers in x, at least 2.
        options: layers, hidden, base, context: see `FlowOptions`.

    Raises:
        ValueError: fewer than 2 dimensions, no layers or a width below 1; when first called, a base over vectors of
            another size, or a condition of another size than at `init`.

    Example:
        >>> flow = coupling_flow(2)
        >>> params = jax.jit(flow.init)(jax.random.key(0), None)
        >>> log_prob = jax.jit(lambda x: flow.dist(params, None).log_prob(x))
        >>> round(float(log_prob(jnp.zeros(2))), 3)  # N(0, I) at the start: -ln 2 pi
        -1.838
    """
    if not is_whole(size, 2):
        raise ValueError(f"coupling_flow: size={size}: one half scales the other, so x wants at least 2 dimensions")
    return flow("coupling_flow", _coupling, size, **options)


def _coupling(size: int, hidden: tuple[int, ...]) -> Bijection:
    """x = (a, b exp(s) + m) of u = (a, b), with s and m functions of a and h."""
    half = size // 2

    def masks(context):
        return made_masks(np.zeros(context + half), hidden, np.ones(2 * (size - half)))

    def forward(params, u, h):
        log_scale, shift = log_scale_and_shift(params, masks(h.size), jnp.concatenate([h, u[:half]]))
        return jnp.concatenate([u[:half], u[half:] * jnp.exp(log_scale) + shift]), jnp.sum(log_scale)

    def inverse(params, x, h):
        log_scale, shift = log_scale_and_shift(params, masks(h.size), jnp.concatenate([h, x[:half]]))
        return jnp.concatenate([x[:half], (x[half:] - shift) * jnp.exp(-log_scale)]), -jnp.sum(log_scale)

    return Bijection(lambda key, context: init_net(key, masks(context)), forward, inverse)
