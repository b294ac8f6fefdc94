"""Attention, and self-attention between the pixels of a grid."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from vae_jax.nets.mlp import dense
from vae_jax.nets.residual import GroupNorm


class Attention(nn.Module):
    """x + f(x), where f is GroupNorm and attention from every pixel to every pixel (Vaswani et al. 2017, section 3.2).

    The layer that joins the heads starts at zero, so the block starts as the identity. The softmax is taken in float32.

    Args:
        heads: how many; they share the channels equally.
        dtype: of the computation.
    """

    heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w a"]) -> Float[Array, "n h w a"]:
        n, h, w, a = x.shape
        rows = dense(GroupNorm(self.dtype)(x).reshape(n, h * w, a), 3 * a, self.dtype)
        q, k, v = (part.reshape(n, h * w, self.heads, a // self.heads) for part in jnp.split(rows, 3, axis=-1))
        y = attend(q, k, v).reshape(n, h * w, a)
        return x + dense(y, a, self.dtype, kernel_init=nn.initializers.zeros).reshape(x.shape)


def attend(
    q: Float[Array, "n t heads d"],
    k: Float[Array, "n s heads d"],
    v: Float[Array, "n s heads d"],
    seen: Bool[Array, "m t s"] | None = None,
) -> Float[Array, "n t heads d"]:
    """softmax(q k' / sqrt(d)) v for each head, over the positions s that are seen from t: all, if nothing is said."""
    logits = jnp.einsum("nqhd,nkhd->nhqk", q * q.shape[-1] ** -0.5, k)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if seen is not None:
        logits = jnp.where(seen[:, None], logits, jnp.finfo(logits.dtype).min)
    highest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.exp(logits - highest).astype(v.dtype)
    # a column of ones gives the sum of the weights, and d divisions a row are fewer than t
    y = jnp.einsum("nhqk,nkhd->nqhd", weights, jnp.pad(v, ((0, 0),) * 3 + ((0, 1),), constant_values=1))
    return y[..., :-1] / y[..., -1:]
