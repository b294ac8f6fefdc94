"""What all flows share: the distribution, the `Conditional` made of layers of one kind, and how layers are chained."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import constraints

from vae_jax.core.conditions import quantities
from vae_jax.core.model import Conditional, Params, example_of
from vae_jax.core.network import as_network
from vae_jax.core.numbers import is_whole
from vae_jax.parts.conditionals import arguments, full_precision
from vae_jax.parts.priors import standard_normal


class Bijection(NamedTuple):
    """An invertible map between vectors of one size, given a vector h that may be empty.

    Fields:
        init: `(key, size of h) -> params`.
        forward: `(params, u, h) -> (x, ln |det dx/du|)`.
        inverse: `(params, x, h) -> (u, ln |det du/dx|)`.
    """

    init: Callable[..., Params]
    forward: Callable[..., tuple[Array, Array]]
    inverse: Callable[..., tuple[Array, Array]]


class Flow(dist.Distribution):
    """The distribution of x = f(u; h), u ~ base; vectors.

    The density of what was drawn last is known without inverting f, and is not computed twice: an inverse
    autoregressive encoder needs no other. It is remembered for that very array, and forgotten by a copy of this object,
    so that after `stop_gradient` (of either) the density is differentiated as one of x, by inverting f.

    Args:
        base: the distribution of u, of vectors.
        push: the bijection, f.
        params: its parameters.
        h: what f is conditioned on, a vector that may be empty.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.real_vector
    pytree_data_fields = ("base", "params", "h")
    pytree_aux_fields = ("push",)
    _drawn: tuple[Array, Array] | None = None

    def __init__(self, base: dist.Distribution, push: Bijection, params: Params, h: Array, *, validate_args=None):
        self.base, self.push, self.params, self.h = base, push, params, h
        super().__init__(base.batch_shape, base.event_shape, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:
        return self.base.has_rsample

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        x, log_p = self._each(self._pushed, self.base.sample(key, sample_shape))
        self._drawn = x, log_p
        return x

    def log_prob(self, value: ArrayLike) -> Array:
        if self._drawn is not None and value is self._drawn[0]:
            return self._drawn[1]
        return self._each(self._pulled, value)[1]

    def _pushed(self, u: Array) -> tuple[Array, Array]:
        """One u to (x, ln P(x))."""
        x, log_det = self.push.forward(self.params, u, self.h)
        return x, self.base.log_prob(u) - log_det

    def _pulled(self, x: Array) -> tuple[Array, Array]:
        """One x to (u, ln P(x))."""
        u, log_det = self.push.inverse(self.params, x, self.h)
        return u, self.base.log_prob(u) + log_det

    def _each(self, of_one: Callable[[Array], tuple[Array, Array]], x: ArrayLike) -> tuple[Array, Array]:
        """A function of one vector for vectors (..., size), in the precision of the parameters at least."""
        x = jnp.asarray(x, jnp.result_type(x, self.h, *jax.tree.leaves(self.params)))
        return jnp.vectorize(of_one, signature="(d)->(d),()")(x)


Kind = Callable[[int, tuple[int, ...]], Bijection]


class FlowOptions(TypedDict, total=False):
    """What every flow can be told.

    Keys:
        layers: how many, each with a network of its own (6); after each the order of the dimensions is reversed, after
            two also shuffled.
        hidden: widths of the hidden layers (tanh) of each network, (64, 64).
        base: the distribution of u, a `Conditional` over vectors of the flow's size that is given the same c:
            `gaussian(net)` in an encoder, a mixture for data in clusters (whose draws have no gradient). N(0, I) by
            default.
        context: network from c (or from y and c in an encoder) to a vector that every layer sees; by default the layers
            see c itself, flattened: labels should be one-hot.
    """

    layers: int
    hidden: tuple[int, ...]
    base: Conditional
    context: Any


def flow(
    name: str,
    kind: Kind,
    size: int,
    *,
    layers: int = 6,
    hidden: tuple[int, ...] = (64, 64),
    base: Conditional | None = None,
    context: Any = None,
) -> Conditional:
    """Layers of one kind between the base and x; a name for messages, the size of x, and `FlowOptions`."""
    if not all(map(is_whole, (size, layers, *hidden))):
        raise ValueError(f"{name}: want size, layers and widths >= 1; got {size}, {layers} and {hidden}")
    base = standard_normal(size) if base is None else base
    network = None if context is None else as_network(context)
    push = stacked(kind(size, hidden), size, layers)

    def vector(params, c):
        if network is None:
            if isinstance(c, tuple):
                quantities(*c[1:])
            return _flat(() if c is None else c)
        return _flat(full_precision(network.apply(params, *arguments(c))))

    def init(key, c=None):
        k_base, k_context, k_layers = jax.random.split(key, 3)
        seen = {} if network is None else network.init(k_context, *arguments(c))
        h = example_of(vector, seen, c)
        return {"base": base.init(k_base, c), "context": seen, "layers": push.init(k_layers, h.size)}

    def distribution(params, c=None):
        start, h = base.dist(params["base"], c), vector(params["context"], c)
        if start.batch_shape or start.event_shape != (size,):
            raise ValueError(
                f"{name}: the base has to be a distribution of one vector of {size} numbers; got batch shape "
                f"{start.batch_shape} and event shape {start.event_shape}"
            )
        wanted = jax.eval_shape(lambda key: push.init(key, h.size), jax.random.key(0))
        if jax.tree.map(jnp.shape, wanted) != jax.tree.map(jnp.shape, params["layers"]):
            raise ValueError(
                f"{name}: these parameters are of another size, or were made for another condition than one of "
                f"{h.size} numbers: were the labels (cs) left out, or is one example's condition a batch of them?"
            )
        return Flow(start, push, params["layers"], h)

    return Conditional(init, distribution)


def _flat(c: Any) -> Array:
    """All numbers of a condition, as one vector."""
    rows = [jnp.ravel(x) for x in jax.tree.leaves(c)]
    return jnp.concatenate(rows).astype(jnp.result_type(1.0, *rows)) if rows else jnp.zeros(0)


def stacked(layer: Bijection, size: int, layers: int) -> Bijection:
    """Layers of one kind, each with its own parameters and order of the dimensions; compiled once for all."""
    orders = _orders(size, layers)
    back = np.argsort(orders, axis=1).astype(np.int32)

    def init(key, context):
        return jax.vmap(lambda key: layer.init(key, context))(jax.random.split(key, layers))

    def through(direction, *, reverse):
        def run(params, x, h):
            def step(carry, inputs):
                x, total = carry
                params, order, back = inputs
                x, log_det = direction(params, x[order], h)
                return (x[back], total + log_det), None

            start = x, jnp.zeros((), x.dtype)
            return jax.lax.scan(step, start, (params, orders, back), reverse=reverse)[0]

        return run

    return Bijection(init, through(layer.forward, reverse=False), through(layer.inverse, reverse=True))


def _orders(size: int, layers: int) -> np.ndarray:
    """(layers, size): the identity first; reversed after each layer, and dealt out in two after each second one.

    The first layer of each two has the opposite order of the second: in coupling, one of them moves a dimension.
    """
    order, orders = np.arange(size, dtype=np.int32), []  # int32 with and without x64: a trace may outlive the setting
    for i in range(layers):
        orders.append(order)
        order = order[::-1] if i % 2 == 0 else np.concatenate([order[::2], order[1::2]])[::-1]
    return np.stack(orders)
