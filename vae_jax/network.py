"""What the library asks of a network: a pair of pure functions for ONE example.

`Network(init, apply)` with `init(key, *inputs) -> params` and `apply(params, *inputs) -> output`. Inputs carry no batch
axis: the library vmaps once, at the rim. A flax linen module is taken as it is (`as_network` adds and drops the batch
axis that flax layers expect); anything else that offers the two functions works too. Networks with dropout take
`key=` in `apply`, and are the network without dropout where there is none; a flax module is given it as "dropout".
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Network(NamedTuple):
    """A network for one example: `init(key, *inputs) -> params`, `apply(params, *inputs) -> output`."""

    init: Callable[..., Any]
    apply: Callable[..., Any]


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
        return jax.tree.map(lambda x: x[0], module.apply(params, *_add_batch_axis(inputs), rngs=rngs))

    return Network(init, apply)


def _add_batch_axis(inputs):
    return jax.tree.map(lambda x: jnp.asarray(x)[None], inputs)
