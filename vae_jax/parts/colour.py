"""Colour: the discretised logistics of a pixel's channels, each from those before it (Salimans et al. 2017, PixelCNN++,
section 2.1).

    P(r, g, b) = sum_k w_k P(r; m_rk) P(g; m_gk + a_k x_r) P(b; m_bk + b_k x_r + c_k x_g)

P(.; m) is `DiscretisedLogistic`, x the middle of a level's cell on the [-1, 1] scale. All channels of a pixel have one
component, so that they go together; without coupling (a = b = c = 0) they are independent given it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import constraints

from vae_jax.core.distributions import DiscretisedLogistic, Levels

CHANNELS = 3
OUTPUTS = 1 + 2 * CHANNELS + CHANNELS  # of the network, for a component: its logit, means, log scales, couplings


class CoupledLogistics(dist.Distribution):
    """Levels (..., 3) of pixels: a mixture over all channels of a pixel.

    Args:
        logits: (..., K) of the components.
        means: (..., 3, K) on the [-1, 1] scale, before what the earlier channels add.
        log_scales: (..., 3, K).
        couplings: (..., 3, K): of green to red, of blue to red, of blue to green.
        levels: 256 for 8-bit data.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    pytree_data_fields = ("logits", "means", "log_scales", "couplings")
    pytree_aux_fields = ("levels",)

    def __init__(
        self,
        logits: Array,
        means: Array,
        log_scales: Array,
        couplings: Array,
        levels: int = 256,
        *,
        validate_args=None,
    ):
        self.logits, self.means, self.log_scales, self.couplings = logits, means, log_scales, couplings
        self.levels = levels
        super().__init__((), means.shape[:-1], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True)
    def support(self):
        return constraints.independent(Levels(self.levels), len(self.event_shape))

    def log_prob(self, value: ArrayLike) -> Array:
        y = jnp.asarray(value)
        dims = len(self.event_shape)
        if y.ndim > dims:
            return jax.vmap(self.log_prob)(y)
        each = jnp.stack([self.of_channel(i, y).log_prob(y[..., i, None]) for i in range(CHANNELS)])
        weighed = jax.nn.log_softmax(self.logits) + jnp.sum(each, axis=0)
        return jnp.sum(jax.nn.logsumexp(weighed, axis=-1))

    def of_channel(self, channel: int, y: Array) -> DiscretisedLogistic:
        """(..., K): the components of a channel, given the levels (..., 3) of the channels before it."""
        x = self.middle(y)[..., None]
        mean, coupling = self.means[..., channel, :], self.couplings
        if channel == 1:
            mean = mean + coupling[..., 0, :] * x[..., 0, :]
        if channel == 2:
            mean = mean + coupling[..., 1, :] * x[..., 0, :] + coupling[..., 2, :] * x[..., 1, :]
        return DiscretisedLogistic(mean, self.log_scales[..., channel, :], self.levels)

    def middle(self, y: Array) -> Array:
        """Of a level's cell, on the [-1, 1] scale."""
        return (y.astype(self.means.dtype) + 0.5) * (2.0 / self.levels) - 1.0

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        if sample_shape:
            keys = jax.random.split(key, sample_shape)
            return jax.vmap(self.sample)(keys.reshape(-1)).reshape(*sample_shape, *self.event_shape)
        k_component, *k_channels = jax.random.split(key, 1 + CHANNELS)
        chosen = jax.nn.one_hot(jax.random.categorical(k_component, self.logits), self.logits.shape[-1])
        y = jnp.zeros(self.event_shape, jnp.int32)
        for i, k in enumerate(k_channels):
            part = self.of_channel(i, y)
            loc, log_scale = (jnp.sum(chosen * x, axis=-1) for x in (part.loc, part.log_scale))
            y = y.at[..., i].set(DiscretisedLogistic(loc, log_scale, self.levels).sample(k))
        return y

    @property
    def mean(self) -> Array:
        """Levels (..., 3): the mean of the logistics before they are cut to [-1, 1], cut: what pictures show."""
        weights = jax.nn.softmax(self.logits)
        red, green, blue = (self.means[..., i, :] for i in range(CHANNELS))
        green = green + self.couplings[..., 0, :] * red
        blue = blue + self.couplings[..., 1, :] * red + self.couplings[..., 2, :] * green
        x = jnp.stack([jnp.sum(weights * each, axis=-1) for each in (red, green, blue)], axis=-1)
        return (jnp.clip(x, -1.0, 1.0) + 1.0) * (self.levels / 2) - 0.5


def coupled_logistics(output: Array, components: int, levels: int, bounded: Any) -> CoupledLogistics:
    """Of a network's output (..., OUTPUTS * components); the couplings are between -1 and 1."""
    pixels = output.shape[:-1]
    logits, rest = output[..., :components], output[..., components:]
    means, raw, couplings = jnp.split(rest.reshape(*pixels, 3, CHANNELS, components), 3, axis=-3)
    means, log_scales, couplings = (
        x.reshape(*pixels, CHANNELS, components) for x in (means, bounded(raw), jnp.tanh(couplings))
    )
    return CoupledLogistics(logits, means, log_scales, couplings, levels)
