"""Encoders and generators: a network and the distribution that its output parameterises.

`conditional(net, make)` takes any network and any function from its output to a numpyro distribution of one example.
The named ones are that function applied. A condition (y, c) or (z, c) reaches the network as two arguments.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike

from vae_jax.core.distributions import (
    Bernoulli,
    Categorical,
    DiscretisedLogistic,
    GumbelSoftmax,
    SimplexPoint,
    bounded_log_std,
    check_temperature,
)
from vae_jax.core.model import Conditional
from vae_jax.core.network import as_network
from vae_jax.core.numbers import is_whole
from vae_jax.parts.colour import OUTPUTS, coupled_logistics


def conditional(net: Any, make: Callable[[Any], dist.Distribution]) -> Conditional:
    """P(x|c) = make(net(c)): any network with any numpyro distribution.

    Args:
        net: flax module, `Network` or `(init, apply)` pair, for one example.
        make: from the network's output (float32 at least) to the distribution of ONE example, whose `log_prob` is a
            scalar: `conditional(net, lambda rate: dist.Poisson(jnp.exp(rate)).to_event(1))`.

    Raises:
        TypeError: `make` returns something other than a numpyro distribution (when first called).

    Example:
        >>> import numpyro.distributions as dist
        >>> counts = conditional(nets.MLP((8,), 4), lambda rate: dist.Poisson(jnp.exp(rate)).to_event(1))
        >>> counts.dist(counts.init(jax.random.key(0), jnp.ones(2)), jnp.ones(2)).event_shape
        (4,)
    """
    network = as_network(net)

    def init(key, c=None):
        return network.init(key, *arguments(c))

    def distribution(params, c=None):
        result = make(full_precision(network.apply(params, *arguments(c))))
        if not isinstance(result, dist.Distribution):
            raise TypeError(
                f"the network's output has to become a numpyro Distribution; got {type(result).__name__}. "
                "Distributions of other libraries have to be wrapped"
            )
        return result

    return Conditional(init, distribution)


def arguments(c: Any) -> tuple[Any, ...]:
    """The inputs of a network that conditions on c: a joined condition (z, c) is two, a relaxed class is an array."""
    if c is None:
        raise ValueError(
            "this network conditions on something, and was given nothing: were the labels (cs) left out? "
            "A part without a condition is standard_normal, learned_normal or mixture_of_gaussians"
        )
    inputs = c if isinstance(c, tuple) else (c,)
    return tuple(x.parts if isinstance(x, SimplexPoint) else x for x in inputs)


def full_precision(output: Any) -> Any:
    """Floats of 16 bits as float32: networks may run in bfloat16, log-probabilities may not."""
    return jax.tree.map(lambda x: jnp.asarray(x).astype(jnp.promote_types(jnp.result_type(x), jnp.float32)), output)


def of_array(net: Any, name: str, make: Callable[[Array], dist.Distribution]) -> Conditional:
    """`conditional(net, make)` for a network that has to give one array; errors as `one_array` has them."""
    return conditional(net, lambda output: make(one_array(output, name)))


def one_array(output: Any, name: str) -> Array:
    """The output of a network that has to give one array.

    Raises:
        ValueError: it gives something else.
    """
    if not isinstance(output, Array):
        raise ValueError(
            f"{name} wants one array from its network; got a {type(output).__name__} of "
            f"{len(jax.tree.leaves(output))} arrays. A pair is for gaussian, other trees are for conditional(net, make)"
        )
    return output


def pair_of(output: Any, name: str) -> tuple[Array, Array]:
    """Mean and second statistic: a pair as it is, an array split in two along its last axis."""
    if isinstance(output, tuple | list) and len(output) == 2:
        mean, second = output
        if jnp.shape(mean) != jnp.shape(second):
            raise ValueError(
                f"{name} wants a pair (mean, log_std) of one shape; got {jnp.shape(mean)} and {jnp.shape(second)}"
            )
        return mean, second
    one_array(output, name)
    if output.ndim == 0 or output.shape[-1] % 2:
        raise ValueError(
            f"{name} splits its network's output in two along the last axis; got shape {output.shape}. For a latent "
            "of 20 the network has to give 40 numbers, or a pair of arrays (mean, log_std)"
        )
    mean, second = jnp.split(output, 2, axis=-1)
    return mean, second


def gaussian(net: Any) -> Conditional:
    """N(mean, std^2), diagonal; the network gives (mean, raw log_std), as a pair or stacked on the last axis.

    The log standard deviation is bounded smoothly to (-7, 7).

    Example:
        >>> encoder = gaussian(nets.MLP((8,), 2 * 5))
        >>> params = encoder.init(jax.random.key(0), jnp.ones(3))
        >>> encoder.dist(params, jnp.ones(3)).event_shape
        (5,)
    """

    def make(output):
        mean, raw = pair_of(output, "gaussian")
        return dist.Normal(mean, jnp.exp(bounded_log_std(raw))).to_event(mean.ndim)

    return conditional(net, make)


def bernoulli(net: Any) -> Conditional:
    """Independent Bernoulli values in {0, 1}; the network gives logits in the shape of one example."""
    return of_array(net, "bernoulli", lambda logits: Bernoulli(logits).to_event(logits.ndim))


def categorical(net: Any) -> Conditional:
    """Independent categorical values 0 .. K-1; the network gives logits of shape `example + (K,)`."""
    return of_array(net, "categorical", lambda logits: Categorical(logits).to_event(logits.ndim - 1))


def gumbel_softmax(net: Any, temperature: ArrayLike) -> Conditional:
    """Independent classes, relaxed to points of the simplex; the network gives logits of shape `example + (K,)`.

    As an encoder of z with values `example + (K,)` it is reparameterised, and the bound is one of the relaxed model:
    the prior has to be one of these too, for instance with a network of constants. z is a `SimplexPoint`, held by its
    logarithms, so that the bound is right at any temperature; the generator's network is given z itself. As the
    temperature falls the gradient's bias against the model of classes goes to 0 and its variance grows. (The
    estimator `gumbel` relaxes the gradient alone: the model stays one of classes.)

    Raises:
        ValueError: a temperature that is not positive.
    """
    check_temperature(temperature)
    return of_array(net, "gumbel_softmax", lambda logits: GumbelSoftmax(logits, temperature).to_event(logits.ndim - 1))


def discretised_logistic(net: Any, *, levels: int = 256, components: int = 1, coupled: bool = False) -> Conditional:
    """Independent discretised logistics, or mixtures of them, on the integers 0 .. levels-1 (8-bit pixels).

    The network gives shape `example + (2,)` (mean and raw log scale, on the [-1, 1] scale) for one component, or
    `example + (3 * components,)` (mixture logits, means, raw log scales).

    Coupled, for colour: examples are (..., 3), the components are those of whole pixels, and each channel's mean
    follows the channels before it (Salimans et al. 2017; see `vae_jax.parts.colour`). The network then gives shape
    `(..., 10 * components)`: mixture logits, and of each channel means, raw log scales and raw couplings.

    Raises:
        ValueError: fewer than 2 levels or 1 component; the network's last axis has another size (when first called).
    """
    if not is_whole(levels, 2) or not is_whole(components):
        raise ValueError(
            f"discretised_logistic wants whole levels >= 2 and components >= 1; got {levels} and {components}"
        )
    wanted = OUTPUTS * components if coupled else 2 if components == 1 else 3 * components

    def make(output):
        if output.shape[-1:] != (wanted,):
            raise ValueError(
                f"discretised_logistic with {components} component(s) wants a last axis of {wanted}; the network "
                f"gives shape {output.shape}"
            )
        if coupled:
            return coupled_logistics(output, components, levels, bounded_log_std)
        if components == 1:
            mean, log_scale = output[..., 0], bounded_log_std(output[..., 1])
            return DiscretisedLogistic(mean, log_scale, levels).to_event(mean.ndim)
        logits, means, raw = jnp.split(output, 3, axis=-1)
        parts = DiscretisedLogistic(means, bounded_log_std(raw), levels)
        mixture = dist.MixtureSameFamily(dist.CategoricalLogits(logits), parts)
        return mixture.to_event(logits.ndim - 1)

    return of_array(net, "discretised_logistic", make)
