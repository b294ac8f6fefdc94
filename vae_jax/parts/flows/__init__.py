"""Normalising flows: x = f(u), u ~ base, f invertible, so that the density of x is exact.

    ln P(x|c) = ln P_base(f^-1(x) | c) + ln |det df^-1/dx|

- `coupling_flow`: affine coupling (Dinh et al. 2017, RealNVP, equations 4-8). Sampling and density take one pass.
- `autoregressive_flow`: MAF (Papamakarios et al. 2017, section 3.1). The density takes one pass; a draw takes as many
  as x has dimensions. For priors, and as a model of y on its own.
- `inverse_autoregressive_flow`: IAF (Kingma et al. 2016, section 3), the same map the other way round: a draw and
  its own density take one pass, the density of other points one for each dimension. For encoders.

Every one is a `Conditional` for all three roles: it is conditioned on c where c is given. So `vae(enc, flow, gen)` has
a flow as its prior, given the class where the VAE has one; `vae(flow, pri, gen)` as its encoder; and `lift(flow)` is a
model of y that is trained by cross-entropy. Each starts as exactly its base.
"""

from vae_jax.parts.flows.autoregressive_flows import autoregressive_flow, inverse_autoregressive_flow
from vae_jax.parts.flows.bijection import Flow
from vae_jax.parts.flows.coupling import coupling_flow

__all__ = ["Flow", "autoregressive_flow", "coupling_flow", "inverse_autoregressive_flow"]
