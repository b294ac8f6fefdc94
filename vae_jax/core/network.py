"""What the library asks of a network: a pair of pure functions for ONE example.

`Network(init, apply)` with `init(key, *inputs) -> params` and `apply(params, *inputs) -> output`. Inputs carry no batch
axis: the library vmaps once, at the rim. Flax modules, linen or nnx, are taken as they are (`as_network` adds and drops
the batch axis that flax layers expect); anything else that offers the two functions works too. Networks with dropout
take `key=` in `apply`, and are the network without dropout where there is none; a linen module is given it as
"dropout", and all random streams of an nnx module start from it.

A network for sequences gives the logits of every position from the ones before. It may also say how to go on by one
position without going through all of them again: `SequenceNetwork`.
"""

import functools
import inspect
import sys
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
    """Make a `Network` of a `Network`, an `(init, apply)` pair, a flax linen module or one of nnx.

    Of nnx it takes a function of `rngs` that makes a module (`functools.partial(MLP, 2, 4)`, or `MLP` if the rest has
    defaults): `init(key, ...)` makes it of `nnx.Rngs(key)`. Or a module: `init` then gives a copy of the parameters it
    has, trained elsewhere perhaps, whatever the key. They are dicts of its `nnx.Param`s, the layers of a list named
    "0", "1" ...: `nnx.replace_by_pure_dict(nnx.state(module, nnx.Param), params)` reads them. Arrays that are no
    `nnx.Variable` are constants; those of a function are what it makes of `jax.random.key(0)`. Without a key the module
    is in `eval` mode, and its streams of random numbers start from one fixed key. No module of yours is changed.

    Raises:
        TypeError: `net` is none of these; or an nnx module with variables that are neither parameters nor random keys.
    """
    if isinstance(net, Network):
        return net
    if isinstance(net, tuple) and len(net) == 2 and all(callable(f) for f in net):
        return Network(*net)
    module = _module(net)
    if module is not None:
        return _of_one_example(module)
    raise TypeError(
        f"a network is a flax linen module or a pair (init, apply); got {type(net).__name__}. "
        "It may also be an nnx module, or a function of rngs that makes one; another function has to be wrapped: "
        "(lambda key, x: params, lambda params, x: output)"
    )


class _Module(NamedTuple):
    """What expects a leading batch axis: `init(key, *inputs) -> params`, `call(params, *inputs) -> outputs`.

    `call` is also given the `key` of dropout, or none, and the name of a `method` of the class `kind`.
    """

    kind: type
    init: Callable[..., Any]
    call: Callable[..., Any]


def _module(net: Any) -> _Module | None:
    if hasattr(net, "init") and hasattr(net, "apply") and not isinstance(net, type):
        return _linen(net)
    nnx = sys.modules.get("flax.nnx")  # whoever has such a module has imported it
    if nnx is None or not (isinstance(net, nnx.Module) or _is_function_of_rngs(net)):
        return None
    return _nnx(net, nnx)


def _of_one_example(module: _Module) -> Network:
    """Run a module that expects a leading batch axis on one example.

    Called without that axis, GroupNorm and convolutions of flax compute something else without a word.
    """

    def init(key, *inputs):
        return module.init(key, *_add_batch_axis(inputs))

    def apply(params, *inputs, key=None):
        outputs = module.call(params, *_add_batch_axis(inputs), key=key)
        return jax.tree.map(lambda x: x[0], outputs)

    return Network(init, apply)


def _impure(name: str, what: str) -> str:
    return (
        f"{name} keeps {what} beside its parameters. Only pure functions of the parameters can be used here; "
        "BatchNorm, the usual cause, also couples the examples of a batch: use GroupNorm or LayerNorm"
    )


def _linen(module: Any) -> _Module:
    def init(key, *inputs):
        variables = module.init(key, *inputs)
        changing = sorted(set(variables) - {"params"})
        if changing:
            raise ValueError(_impure(type(module).__name__, f"the collections {changing}"))
        return variables

    def call(params, *inputs, key=None, **method):
        rngs = None if key is None else {"dropout": key}
        try:
            return module.apply(params, *inputs, rngs=rngs, **method)
        except Exception as error:
            if type(error).__name__ != "InvalidRngError":
                raise
            raise ValueError(
                f"{type(module).__name__} draws random numbers at every call, and networks here are given a key in "
                'training with dropout only: write nn.Dropout(rate, deterministic=not self.has_rng("dropout"))'
            ) from error

    return _Module(type(module), init, call)


def _is_function_of_rngs(net: Any) -> bool:
    """Whether `rngs` is the one argument that this function, class or partial of them has to be given."""

    def bare(f):  # nnx hides the arguments of a class behind those of its metaclass
        if isinstance(f, functools.partial):
            return functools.partial(bare(f.func), *f.args, **f.keywords)
        return functools.partial(f.__init__, None) if isinstance(f, type) else f  # type: ignore[misc]

    try:
        arguments = inspect.signature(bare(net)).parameters
    except (TypeError, ValueError):  # no function, one of C, or a partial with arguments that it does not take
        return False
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = {name for name, each in arguments.items() if each.default is each.empty and each.kind not in several}
    return "rngs" in arguments and needed <= {"rngs"}


def _nnx(net: Any, nnx: Any) -> _Module:
    """An nnx module or what makes one: each call is one of a copy of `outline`, with other parameters."""
    make = None if isinstance(net, nnx.Module) else net
    outline = _outline(net, nnx)

    def parameters(module):
        return nnx.to_pure_dict(nnx.state(module, nnx.Param))

    def init(key, *inputs):
        del inputs
        module = outline if make is None else make(rngs=nnx.Rngs(key))
        return jax.tree.map(jnp.copy, _with_names(parameters(module)))

    def call(params, *inputs, key=None, method="__call__"):
        module = nnx.clone(outline)
        nnx.update(module, _with_keys_of(parameters(outline), params))
        if key is None:
            module.eval()
        else:
            module.train()
            _restart_streams(module, key, nnx)
        return getattr(module, method)(*inputs)

    return _Module(type(outline), init, call)


def _with_names(params: Any) -> Any:
    """The parameters with names for keys: nnx numbers the layers of a list, and paths are "layers/0/kernel"."""
    return {str(key): _with_names(x) for key, x in params.items()} if isinstance(params, dict) else params


def _with_keys_of(like: Any, params: Any) -> Any:
    return {key: _with_keys_of(x, params[str(key)]) for key, x in like.items()} if isinstance(like, dict) else params


def _outline(net: Any, nnx: Any) -> Any:
    """A copy of the module; or what the function makes, of whose parameters only the shapes are kept."""
    if isinstance(net, nnx.Module):
        module = nnx.clone(net)
    else:  # not by eval_shape: nnx 0.12 takes arrays that are traced for attributes of other kinds
        module = net(rngs=nnx.Rngs(jax.random.key(0)))
        if not isinstance(module, nnx.Module):
            raise TypeError(f"a function of rngs has to make an nnx module; got {type(module).__name__}")
        nnx.update(module, jax.eval_shape(lambda params: params, nnx.state(module, nnx.Param)))
    _check_pure(module, nnx)
    _restart_streams(module, jax.random.key(0), nnx)
    return module


def _check_pure(module: Any, nnx: Any) -> None:
    *_, others = nnx.split(module, nnx.Param, nnx.RngState, ...)
    leaves = jax.tree.leaves(others, is_leaf=lambda x: isinstance(x, nnx.Variable))
    kinds = sorted({type(x).__name__ for x in leaves if isinstance(x, nnx.Variable)})
    if kinds:
        raise TypeError(_impure(type(module).__name__, f"the variables {kinds}"))


def _restart_streams(module: Any, key: Any, nnx: Any) -> None:
    """Every stream of random numbers in the module gets a key of its own, and starts anew."""
    keys, tree = jax.tree.flatten(nnx.state(module, nnx.RngKey))
    fresh = [jax.random.split(jax.random.fold_in(key, i), old.shape) for i, old in enumerate(keys)]
    counts = jax.tree.map(lambda old: jnp.zeros(old.shape, old.dtype), nnx.state(module, nnx.RngCount))
    nnx.update(module, jax.tree.unflatten(tree, fresh), counts)


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
    module = None if isinstance(net, Network | tuple) else _module(net)
    network = as_network(net) if module is None else _of_one_example(module)
    if module is None or not all(callable(getattr(module.kind, name, None)) for name in ("start", "step")):
        return SequenceNetwork(*network, *_stepwise(network))

    def start(params, y, *c):
        return module.call(params, *_add_batch_axis((y, *c)), method="start")

    def step(params, carry, token):
        carry, logits = module.call(params, carry, jnp.asarray(token)[None], method="step")
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
