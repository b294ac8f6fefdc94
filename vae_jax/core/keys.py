"""What a user hands in as a random key."""

from typing import Any

import jax
from jax import Array


def as_key(key: Any) -> Array:
    """One typed key; those of `jax.random.PRNGKey`, arrays of uint32, are taken too.

    Raises:
        TypeError: anything else; a seed is no key.
    """
    try:
        typed = key if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)
    except (AttributeError, TypeError, ValueError):
        typed = None
    if typed is None or typed.shape != ():
        got = f"{key.dtype}{list(key.shape)}" if typed is not None or getattr(key, "shape", ()) != () else repr(key)
        raise TypeError(f"key wants one random key, for instance jax.random.key(0); got {got}")
    return typed
