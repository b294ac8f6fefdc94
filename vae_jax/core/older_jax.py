"""What older versions of jax say in other words, or lack; Colab has 0.7.2. Each entry names the jax that needs it no
more, and once the oldest that is supported is 0.10.2, the whole file can go.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.experimental
import jax.numpy as jnp

OLDER = jax.__version_info__ < (0, 9)

# From 0.8 on `jax.enable_x64`.
enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64  # type: ignore[attr-defined]


def shutdown_timeout(seconds: int) -> dict[str, Any]:
    """For how long a process waits for the others at its exit, an option of `jax.distributed.initialize` from 0.8.1 on.
    Without, it is five minutes."""
    known = inspect.signature(jax.distributed.initialize).parameters
    return {"shutdown_timeout_seconds": seconds} if "shutdown_timeout_seconds" in known else {}


def linear(f: Callable[[Any], Any], x: Any) -> Any:
    """f(x) of a linear f, as a part of a rule of derivatives: before 0.9 a scan in f has a transpose only if it is one
    that jax has made, of the tangents of another."""
    return jax.jvp(f, (jax.tree.map(jnp.zeros_like, x),), (x,))[1] if OLDER else f(x)


def keys_as_data(transform: Callable[..., Any], f: Callable[..., Any], at: int) -> Callable[..., Any]:
    """`transform(f)`, which takes entries of the keys that are argument `at`: `jnp.take` knows keys from 0.9 on."""
    if not OLDER:
        return transform(f)

    def call(*arguments: Any) -> Any:
        before, keys, after = arguments[:at], arguments[at], arguments[at + 1 :]

        def of_data(*sliced: Any) -> Any:
            data = jax.random.wrap_key_data(sliced[at], impl=key_impl(keys))
            return f(*sliced[:at], data, *sliced[at + 1 :])

        return transform(of_data)(*before, jax.random.key_data(keys), *after)

    return call


def key_impl(like: Any) -> Any:
    """The kind of the keys in an array, or in its `jax.ShapeDtypeStruct`; from 0.10.2 on `wrap_key_data` takes it from
    the dtype."""
    found: list[Any] = []
    jax.eval_shape(lambda keys: found.append(jax.random.key_impl(keys)), like)
    return found[0]
