"""The L2 generator of the lecture: y = yhat(z) + sigma * eps, eps ~ N(0, I).

    -ln P_gen(y|z) = ||yhat(z) - y||^2 / (2 sigma^2) + ln Z(sigma),    ln Z(sigma) = D/2 ln(2 pi sigma^2)

ln Z is always in the number. sigma is fixed, learned (one, or one per dimension), predicted by the network, or kept at
its optimum, the root mean squared error of the batch (Rybkin et al. 2021, sigma-VAE, section 3.2).
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from vae_jax.core.distributions import bounded_log_std, raw_log_std
from vae_jax.core.model import Conditional
from vae_jax.core.network import as_network
from vae_jax.core.numbers import is_number
from vae_jax.parts.conditionals import arguments, full_precision, gaussian, of_array, one_array

Sigma = float | int | Literal["learned", "learned_per_dimension", "predicted", "optimal"]
SMALLEST_MSE = 1e-10
SMALLEST_SIGMA = 1e-18


def l2(net: Any, sigma: Sigma = "learned") -> Conditional:
    """The L2 generator; the network gives yhat in the shape of one example.

    Args:
        net: flax module, `Network` or `(init, apply)` pair.
        sigma: a positive number (fixed); "learned": one parameter; "learned_per_dimension": one for each number of
            an example; "predicted": the network gives (yhat, raw log_std) as `gaussian` wants; "optimal": after each
            training step, the root mean squared error of its batch.

    Raises:
        ValueError: sigma is not positive, not one of the names, or its square is beyond float32.

    Example:
        >>> generator = l2((lambda key, z: {}, lambda params, z: z), sigma=0.5)  # yhat(z) = z
        >>> z, y = jnp.zeros(2), jnp.ones(2)
        >>> params = generator.init(jax.random.key(0), z)
        >>> round(-float(generator.dist(params, z).log_prob(y)), 2)  # 2 / (2 * 0.5^2) + 2 ln(0.5 sqrt(2 pi)) nats
        4.45
    """
    if not isinstance(sigma, str):
        if not (is_number(sigma) and sigma > 0):
            raise ValueError(f"sigma is a standard deviation and must be positive; got {sigma}")
        if not SMALLEST_SIGMA <= sigma <= 1 / SMALLEST_SIGMA:
            raise ValueError(f"sigma^2 has to be a number in float32; got sigma={sigma}: scale the data")
        return of_array(net, "l2", lambda yhat: dist.Normal(yhat, float(sigma)).to_event(yhat.ndim))
    if sigma == "predicted":
        return gaussian(net)
    if sigma == "learned":
        return _with_log_sigma(net, per_dimension=False)
    if sigma == "learned_per_dimension":
        return _with_log_sigma(net, per_dimension=True)
    if sigma == "optimal":
        return _at_optimum(net)
    raise ValueError(
        f"sigma={sigma!r}: want a positive number, 'learned', 'learned_per_dimension', 'predicted' or 'optimal'"
    )


def _with_log_sigma(net: Any, *, per_dimension: bool) -> Conditional:
    """N(yhat(z), sigma^2) with params `{"net": ..., "log_sigma": ...}`, sigma = 1 at the start."""
    network = as_network(net)

    def init(key, c=None):
        params = network.init(key, *arguments(c))
        yhat = one_array(full_precision(network.apply(params, *arguments(c))), "l2")
        return {"net": params, "log_sigma": jnp.zeros(yhat.shape if per_dimension else (), jnp.float32)}

    def distribution(params, c=None):
        yhat = one_array(full_precision(network.apply(params["net"], *arguments(c))), "l2")
        return dist.Normal(yhat, jnp.exp(bounded_log_std(params["log_sigma"]))).to_event(yhat.ndim)

    return Conditional(init, distribution)


def _at_optimum(net: Any) -> Conditional:
    """sigma is not trained by gradient: `maximise` sets sigma^2 = mean squared error, the minimiser of the bound.

    At the optimum the distortion is D/2 (1 + ln 2 pi MSE).
    """
    learned = _with_log_sigma(net, per_dimension=False)

    def dist_without_gradient(params, c=None):
        return learned.dist({**params, "log_sigma": jax.lax.stop_gradient(params["log_sigma"])}, c)

    def stats(params, y, c=None):
        return {"squared_error": jnp.mean((y - learned.dist(params, c).mean) ** 2)}

    def maximise(params, stats):
        log_sigma = 0.5 * jnp.log(jnp.maximum(stats["squared_error"], SMALLEST_MSE))
        return {**params, "log_sigma": raw_log_std(log_sigma).astype(params["log_sigma"].dtype)}

    return Conditional(learned.init, dist_without_gradient, stats, maximise)
