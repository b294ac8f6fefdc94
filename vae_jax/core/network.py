"""What the library asks of a network: a pair of pure functions for ONE example.

`Network(init, apply)` with `init(key, *inputs) -> params` and `apply(params, *inputs) -> output`. Inputs carry no batch
axis: the library vmaps once, at the rim. A flax linen module is taken as it is (`as_network` adds and drops the batch
axis that flax layers expect); anything else that offers the two functions works too. Networks with dropout take
`key=` in `apply`, and are the network without dropout where there is none; a flax module is given it as "dropout".

A network for sequences gives the logits of every position from the ones before. It may also say how to go on by one
position without going through all of them again: `SequenceNetwork`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


def shape_of(size: int | Sequence[int]) -> tuple[int, ...]:
    """A shape, which may be said as the one number of a vector's size."""
    return tuple(size) if isinstance(size, Iterable) else (size,)


class Network(NamedTuple):
    """A network for one example: `init(key, *inputs) -> params`, `apply(params, *inputs) -> output`."""

    init: Callable[..., Any]
    apply: Callable[..., Any]


class SequenceNetwork(NamedTuple):
    """A causal network for one array y of whole numbers 0 .. levels - 1, read in raster order.

    Fields:
        init: `(key, y, *c) -> params`.
        apply: `(params, y, *c) -> logits`, y.shape + (levels,); those of a position depend on c and on the positions
            before it, and on nothing else.
        start: `(params, y, *c) -> carry` before the first position; of y only the shape counts.
        step: `(params, carry, token) -> (carry, logits)`: the logits (levels,) of the next position, given the token of
            the last one; before the first there is none, and `token` is `levels`.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]
    start: Callable[..., Any]
    step: Callable[..., Any]


def as_network(net: Any) -> Network:
    """Make a `Network` of a `Network`, an `(init, apply)` pair or a flax linen module.

    Raises:
        TypeError: `net` is none of these.
    """
    if isinstance(net, Network):
        return net
    if isinstance(net, tuple) and len(net) == 2 and all(callable(f) for f in net):
        return Network(*net)
    if hasattr(net, "init") and hasattr(net, "apply") and not isinstance(net, type):
        return _from_batched(net)
    raise TypeError(
        f"a network is a flax linen module or a pair (init, apply); got {type(net).__name__}. "
        "An nnx module or a plain function has to be wrapped: "
        "(lambda key, x: params, lambda params, x: output)"
    )


def _from_batched(module: Any) -> Network:
    """Run a module that expects a leading batch axis on one example.

    Called without that axis, GroupNorm and convolutions of flax compute something else without a word.
    """

    def init(key, *inputs):
        variables = module.init(key, *_add_batch_axis(inputs))
        changing = sorted(set(variables) - {"params"})
        if changing:
            raise ValueError(
                f"{type(module).__name__} keeps the collections {changing} beside its parameters. Only pure functions "
                "of the parameters can be used here; BatchNorm, the usual cause, also couples the examples of a "
                "batch: use GroupNorm or LayerNorm"
            )
        return variables

    def apply(params, *inputs, key=None):
        rngs = None if key is None else {"dropout": key}
        try:
            outputs = module.apply(params, *_add_batch_axis(inputs), rngs=rngs)
        except Exception as error:
            if type(error).__name__ != "InvalidRngError":
                raise
            raise ValueError(
                f"{type(module).__name__} draws random numbers at every call, and networks here are given a key in "
                'training with dropout only: write nn.Dropout(rate, deterministic=not self.has_rng("dropout"))'
            ) from error
        return jax.tree.map(lambda x: x[0], outputs)

    return Network(init, apply)


def _add_batch_axis(inputs):
    return jax.tree.map(lambda x: jnp.asarray(x)[None], inputs)


def as_sequence_network(net: Any) -> SequenceNetwork:
    """Make a `SequenceNetwork` of one, of a flax module with methods `start` and `step`, or of any causal network.

    A module's carry may be any tree: it is handed back as it was. A network without steps is applied to the whole array
    anew for each position.

    Raises:
        TypeError: `net` is no network.
    """
    if isinstance(net, SequenceNetwork):
        return net
    network = as_network(net)
    if isinstance(net, Network | tuple) or not all(callable(getattr(net, name, None)) for name in ("start", "step")):
        return SequenceNetwork(*network, *_stepwise(network))

    def start(params, y, *c):
        return net.apply(params, *_add_batch_axis((y, *c)), method="start")

    def step(params, carry, token):
        carry, logits = net.apply(params, carry, jnp.asarray(token)[None], method="step")
        return carry, logits[0]

    return SequenceNetwork(*network, start, step)


def _stepwise(network: Network) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`start` and `step` of a network that has only `apply`."""

    def start(params, y, *c):
        del params
        return jnp.zeros(y.size + 1, jnp.int32), jnp.zeros(y.shape, jnp.int32), jnp.zeros((), jnp.int32), c

    def step(params, carry, token):
        tokens, y, t, c = carry
        tokens = tokens.at[t].set(token)  # the first one, of no position, goes to an entry of its own
        logits = network.apply(params, tokens[1:].reshape(y.shape), *c)
        return (tokens, y, t + 1, c), logits.reshape(y.size, logits.shape[-1])[t]

    return start, step
