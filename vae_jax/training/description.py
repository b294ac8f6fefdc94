"""What decides a run, by names and values, as plain JSON: so that a run is resumed as what it was.

Optimisers, objectives and models are functions, and what tells `optax.adam(1e-3)` from `optax.adam(1e-2)` lies in their
closures. A function is described by its qualified name and by the values that it closes over; one of the user's also by
its defaults, the numbers written in it, and the numbers, arrays and functions that it reads from its module. What the
code does with them is not compared, and neither is an object that is no function, dataclass or tree.
"""

import dataclasses
import functools
import inspect
import math
import sys
import types
import zlib
from typing import Any

import jax
import numpy as np


def describe(value: Any) -> Any:
    """Names and values of `value` and of all that lies in it, as plain JSON; what comes again is left out."""
    return _describe(value, {})


def closure(function: Any) -> dict[str, Any]:
    """The values that a function closes over, by their names."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not yet assigned
            continue
    return found


_AGAIN = object()


def _describe(value: Any, seen: dict[int, Any]) -> Any:
    """`seen` holds the objects themselves, so that no other one is made in their place."""
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, float | complex | bytes | np.dtype):
        return str(value)
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _array(value)
    if isinstance(value, jax.ShapeDtypeStruct):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, type | types.BuiltinFunctionType | types.ModuleType):
        return getattr(value, "__qualname__", value.__name__)
    if type(value) in (tuple, frozenset, set):
        return _named(None, dict(enumerate(value if isinstance(value, tuple) else sorted(value, key=str))), seen)
    value = inspect.unwrap(value) if callable(value) else value
    if id(value) in seen:
        return _AGAIN
    seen[id(value)] = value
    kind = type(value)
    if isinstance(value, types.FunctionType):
        return _named(value, _values_of(value), seen)
    if isinstance(value, functools.partial):
        return _named(kind, {"of": value.func, "args": value.args, **value.keywords}, seen)
    if isinstance(value, types.MethodType):
        return _named(kind, {"of": value.__func__, "self": value.__self__}, seen)
    if isinstance(value, dict):
        return _named(None, value, seen)
    if isinstance(value, list):
        return _named(None, dict(enumerate(value)), seen)
    if isinstance(value, tuple):
        return _named(kind, value._asdict() if hasattr(value, "_asdict") else dict(enumerate(value)), seen)
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        return _named(kind, {name: getattr(value, name, None) for name in fields}, seen)
    nnx = sys.modules.get("flax.nnx")
    if nnx is not None and isinstance(value, nnx.Module):
        own = {name: each for name, each in vars(value).items() if not name.startswith("_pytree__")}
        return _named(kind, own, seen)
    leaves = jax.tree.leaves(value)
    if any(leaf is value for leaf in leaves):
        return f"{kind.__module__}.{kind.__qualname__} (not compared)"
    return _named(kind, dict(enumerate(leaves)), seen)


def _named(what: Any, values: dict[Any, Any], seen: dict[int, Any]) -> Any:
    """The values by their names, beside the name of what has them."""
    described = {str(name): _describe(each, seen) for name, each in values.items()}
    described = {name: each for name, each in described.items() if each is not _AGAIN}
    if what is None:
        return described
    name = f"{what.__module__}.{what.__qualname__}".replace("<locals>.", "")
    return {"is": name, **described} if described else name


def _values_of(function: types.FunctionType) -> dict[str, Any]:
    values = closure(function)
    if not _is_of_user(function):
        return values
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not parameter.empty
    }
    read = {name: function.__globals__.get(name) for name in function.__code__.co_names}
    known = int | float | jax.Array | np.ndarray | types.FunctionType | functools.partial
    constants = [each for each in function.__code__.co_consts if isinstance(each, float)]
    return {
        **{name: each for name, each in read.items() if isinstance(each, known)},
        **defaults,
        **values,
        **({"constants": constants} if constants else {}),
    }


def _is_of_user(function: types.FunctionType) -> bool:
    """Whether it is in no installed package: those are told by their names."""
    file = getattr(sys.modules.get(function.__module__), "__file__", None) or ""
    return "site-packages" not in file and not function.__module__.startswith("vae_jax.")


def _array(value: Any) -> Any:
    """A number as it is, an array by its digest."""
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.ascontiguousarray(value)
    if np.ndim(value) == 0 and array.dtype.kind in "biuf":
        return _describe(array.reshape(()).item(), {})
    return f"{array.dtype}{list(np.shape(value))} crc32 {zlib.crc32(array.tobytes())}"
