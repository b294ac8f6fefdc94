"""Likelihoods of counts: Poisson and negative binomial, by themselves, with more zeros, and as parts of a total.

The network gives logarithms of means. Where each example has a total that is known (the library size of a cell, the
length of a text), `of_total` makes them the logarithms of shares: mean = total * softmax(output), as Lopez et al. 2018
(scVI) have it. The total is then the last condition, c = (z, total), and the network does not see it.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from vae_jax.core.counts import NegativeBinomial, Poisson, ZeroInflated
from vae_jax.core.distributions import bounded_log_std
from vae_jax.core.model import Conditional
from vae_jax.core.network import as_network
from vae_jax.parts.conditionals import arguments, full_precision

Dispersion = Literal["shared", "per_column", "predicted"]


def poisson(net: Any, *, zero_inflated: bool = False, of_total: bool = False) -> Conditional:
    """Independent Poisson counts; the network gives their log means, in the shape of one example.

    Args:
        net: flax module, `Network` or `(init, apply)` pair.
        zero_inflated: a count is 0 with a probability of its own beside: the network gives shape `example + (2,)`, log
            means and the logits of those zeros.
        of_total: the last condition is the total of an example; the network's log means are log shares of it.

    Raises:
        ValueError: the network's output has another last axis; no total; when first called.

    Example:
        >>> counts = poisson(nets.MLP((8,), 4))
        >>> counts.dist(counts.init(jax.random.key(0), jnp.ones(2)), jnp.ones(2)).event_shape
        (4,)
    """
    return _counts("poisson", net, None, zero_inflated, of_total)


def negative_binomial(
    net: Any, dispersion: Dispersion = "per_column", *, zero_inflated: bool = False, of_total: bool = False
) -> Conditional:
    """Independent negative binomial counts: mean m, variance m + a m^2. The network gives log means, as for `poisson`.

    Args:
        dispersion: a is one parameter ("shared"), one for each number of an example ("per_column"), or the network's
            own ("predicted": shape `example + (2,)`, or `example + (3,)` zero-inflated, ln a after ln m). Its logarithm
            is bounded to (-7, 7), and starts at 0.

    Raises:
        ValueError: another name; else as `poisson`.
    """
    if dispersion not in ("shared", "per_column", "predicted"):
        raise ValueError(f"dispersion={dispersion!r}: want 'shared', 'per_column' or 'predicted'")
    return _counts("negative_binomial", net, dispersion, zero_inflated, of_total)


def _counts(name: str, net: Any, dispersion: Dispersion | None, zero_inflated: bool, of_total: bool) -> Conditional:
    network, learned = as_network(net), dispersion in ("shared", "per_column")
    numbers = 1 + (dispersion == "predicted") + zero_inflated

    def outputs(params: Any, inputs: tuple[Any, ...]) -> list[Array]:
        """Log means, log dispersions where they are predicted, logits of zeros where there are such."""
        output = full_precision(network.apply(params, *inputs))
        if numbers == 1:
            return [output]
        if jnp.ndim(output) == 0 or output.shape[-1] != numbers:
            raise ValueError(
                f"{name} wants {numbers} numbers a count on the last axis, got a shape {jnp.shape(output)}"
            )
        return [output[..., i] for i in range(numbers)]

    def init(key, c=None):
        inputs, _ = _parted(name, arguments(c), of_total)
        params = network.init(key, *inputs)
        if not learned:
            return params
        shape = outputs(params, inputs)[0].shape if dispersion == "per_column" else ()
        return {"net": params, "log_dispersion": jnp.zeros(shape, jnp.float32)}

    def distribution(params, c=None):
        inputs, total = _parted(name, arguments(c), of_total)
        log_mean, *rest = outputs(params["net"] if learned else params, inputs)
        if total is not None:
            log_mean = jnp.log(total) + jax.nn.log_softmax(log_mean.ravel()).reshape(log_mean.shape)
        log_mean = bounded_log_mean(log_mean)
        counts: dist.Distribution = Poisson(log_mean)
        if dispersion is not None:
            raw = params["log_dispersion"] if learned else rest.pop(0)
            counts = NegativeBinomial(log_mean, jnp.broadcast_to(bounded_log_std(raw), log_mean.shape))
        if zero_inflated:
            counts = ZeroInflated(counts, rest.pop(0))
        return counts.to_event(log_mean.ndim)

    return Conditional(init, distribution)


def bounded_log_mean(x: Array) -> Array:
    """x from -20 to 20, where means are of things that are counted; beyond, it comes to rest at -30 and 30, so that no
    mean is 0 or infinite, and none loses its gradient at once."""
    beyond = jnp.abs(x) - 20
    return jnp.where(beyond > 0, jnp.sign(x) * (20 + 10 * jnp.tanh(beyond / 10)), x)


def _parted(name: str, inputs: tuple[Any, ...], of_total: bool) -> tuple[tuple[Any, ...], Array | None]:
    """What the network sees, and the total."""
    if not of_total:
        return inputs, None
    if len(inputs) < 2 or jnp.size(inputs[-1]) != 1:
        raise ValueError(
            f"{name} of_total wants the total of an example as its last condition, one positive number: in a VAE "
            f"cs=totals of shape (n,); got {[jnp.shape(x) for x in inputs]}"
        )
    return inputs[:-1], jnp.asarray(inputs[-1], jnp.float32).reshape(())
