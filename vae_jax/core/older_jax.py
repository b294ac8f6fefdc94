"""What jax 0.7.2, which Colab has, says in other words or lacks: each entry names the version with which it can go."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.experimental
import jax.numpy as jnp

# jax 0.8 has it at the top, 0.9 there alone.
enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64  # type: ignore[attr-defined]


def shutdown_timeout(seconds: int) -> dict[str, Any]:
    """The option of `jax.distributed.initialize` for how long a process waits for the others at its exit: nothing
    before jax 0.8.1, which waits five minutes."""
    known = inspect.signature(jax.distributed.initialize).parameters
    return {"shutdown_timeout_seconds": seconds} if "shutdown_timeout_seconds" in known else {}


def linear(f: Callable[[Any], Any], x: Any) -> Any:
    """f(x) of a linear f, where it is part of a rule of derivatives: before jax 0.9 a scan in f has a transpose only if
    it is one that jax has made, of the tangents of another."""
    if jax.__version_info__ >= (0, 9):
        return f(x)
    return jax.jvp(f, (jax.tree.map(jnp.zeros_like, x),), (x,))[1]
