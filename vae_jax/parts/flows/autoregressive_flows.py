"""Autoregressive flows: MAF (Papamakarios et al. 2017) and IAF (Kingma et al. 2016), one map in two directions."""

from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.core.model import Conditional
from vae_jax.parts.flows.bijection import Bijection, FlowOptions, flow
from vae_jax.parts.flows.masked import init_net, log_scale_and_shift, made_masks


def autoregressive_flow(size: int, **options: Unpack[FlowOptions]) -> Conditional:
    """Masked autoregressive flow (MAF): u_i = x_i exp(s_i) + m_i, with s_i and m_i of x_1 .. x_{i-1}, in each layer.

    For densities: `log_prob` takes one pass through the networks, `sample` one for each dimension. Arguments and
    errors as for `coupling_flow`, from one dimension on.
    """
    return flow("autoregressive_flow", _masked_autoregressive, size, **options)


def inverse_autoregressive_flow(size: int, **options: Unpack[FlowOptions]) -> Conditional:
    """Inverse autoregressive flow (IAF): x_i = u_i exp(s_i) + m_i, with s_i and m_i of u_1 .. u_{i-1}, in each layer.

    For encoders: `sample` takes one pass, and `log_prob` of what was just drawn none; of other points it takes one for
    each dimension. Arguments and errors as for `coupling_flow`, from one dimension on.
    """
    return flow("inverse_autoregressive_flow", _inverse_autoregressive, size, **options)


def _inverse_autoregressive(size: int, hidden: tuple[int, ...]) -> Bijection:
    """x_i = u_i exp(s_i) + m_i, with s_i and m_i functions of u_1 .. u_{i-1} and h."""
    index = np.arange(size, dtype=np.int32)

    def masks(context):
        return made_masks(np.append(np.zeros(context), 1 + index), hidden, np.tile(1 + index, 2))

    def forward(params, u, h):
        log_scale, shift = log_scale_and_shift(params, masks(h.size), jnp.concatenate([h, u]))
        return u * jnp.exp(log_scale) + shift, jnp.sum(log_scale)

    def inverse(params, x, h):
        def settle(u, i):
            log_scale, shift = log_scale_and_shift(params, masks(h.size), jnp.concatenate([h, u]))
            return jnp.where(index == i, (x - shift) * jnp.exp(-log_scale), u), None

        u, _ = jax.lax.scan(settle, jnp.zeros_like(x), index)
        return u, -forward(params, u, h)[1]

    return Bijection(lambda key, context: init_net(key, masks(context)), forward, inverse)


def _masked_autoregressive(size: int, hidden: tuple[int, ...]) -> Bijection:
    """The same map read backwards: from x to u in one pass."""
    layer = _inverse_autoregressive(size, hidden)
    return Bijection(layer.init, layer.inverse, layer.forward)
