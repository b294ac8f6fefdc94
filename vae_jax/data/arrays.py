"""Arrays as a user hands them in, made arrays as jax takes them. What would be changed on the way is refused.

jax makes float64 float32 and int64 int32 without a word. Here a column that float32 cannot hold is named instead, and
so are whole numbers that would be wrapped round. With `jax_enable_x64` both stay as they are.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SMALL_PART = 1e-3  # of a column's range: what rounding may change
CONSTANT = 1e-12  # of a column's size: a range that is float64's own rounding
LARGEST_EXACT = 2**24  # whole numbers up to here are float32s


def as_arrays(name: str, xs: Any) -> Any:
    """The same tree, its leaves arrays in jax's types: numpy's, or jax's where they were that.

    A list is an array, and so is what numpy can read (a table of pandas, a tensor of torch on the CPU). Floats of 16
    bits are widened, other byte orders made native. Arrays on different devices are taken to the host.

    Args:
        name: how messages name the data.

    Raises:
        ValueError: no numbers, masked entries, whole numbers beyond int32, or floats that float32 cannot hold: beyond
            its range, or in a column whose rounding would be more than a thousandth of its range.
    """
    found, structure = jax.tree_util.tree_flatten_with_path(xs, is_leaf=is_array)
    leaves = [_array(name + jax.tree_util.keystr(path), x) for path, x in found]
    if len({frozenset(x.sharding.device_set) for x in leaves if isinstance(x, jax.Array)}) > 1:
        leaves = [np.asarray(x) for x in leaves]
    return jax.tree.unflatten(structure, leaves)


def is_array(x: Any) -> bool:
    """Whether this is one array, whoever's, and not a dict or tuple of such."""
    return isinstance(x, Iterable) and not isinstance(x, Mapping | tuple)


def length(name: str, xs: Any) -> int:
    """The number of examples in a tree of arrays, each with them along its first axis; a ValueError where it has none.

    Args:
        name: how messages name the data.
    """
    leaves = jax.tree.leaves(xs)
    lengths = {next(iter(np.shape(x)), None) for x in leaves}
    if not leaves or lengths == {0}:
        raise ValueError(f"{name} is empty: want an array (n, *example) with at least one example")
    if None in lengths or len(lengths) > 1:
        raise ValueError(f"{name} wants the examples along its first axis; got shapes {[np.shape(x) for x in leaves]}")
    return np.shape(leaves[0])[0]


def type_in_jax(dtype: Any) -> np.dtype | None:
    """The type that numbers of this type have in jax; None where these are no numbers."""
    if jnp.issubdtype(dtype, jnp.integer):
        wanted = dtype.newbyteorder("=")
    elif jnp.issubdtype(dtype, jnp.floating):
        wanted = np.dtype(np.float64 if dtype.itemsize > 4 else np.float32)
    else:
        return dtype if jnp.issubdtype(dtype, jnp.bool_) else None
    return jax.dtypes.canonicalize_dtype(wanted)


def _array(name: str, given: Any) -> Any:
    x = given if isinstance(given, jax.Array) else _read(name, given)
    wanted = type_in_jax(x.dtype)
    if wanted is None:
        raise ValueError(
            f"{name} has dtype {x.dtype} ({type(given).__name__}); want numbers: an array (n, *example), or a dict or "
            "tuple of such"
        )
    if x.dtype.itemsize >= 4 and x.ndim and x.size and jnp.result_type(1.0) == jnp.float32:
        _check_held(name, np.asarray(x), wanted, list(getattr(given, "columns", [])))
    return x if x.dtype == wanted else x.astype(wanted)


def _read(name: str, x: Any) -> np.ndarray:
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise ValueError(f"{name} is a masked array, and the values under its mask are no data: {name}.filled(np.nan)")
    try:
        return np.asarray(x)
    except Exception as error:
        raise ValueError(
            f"{name} is a {type(x).__name__} that is no array ({error}): want numbers (n, *example), all examples of "
            "one shape"
        ) from error


def _check_held(name: str, x: np.ndarray, wanted: np.dtype, columns: list[Any]) -> None:
    """Whether x keeps its values in the type that is wanted, and in float32, which is what densities compute in."""
    if wanted.kind in "iu":
        low, high, info = int(x.min()), int(x.max()), np.iinfo(wanted)
        if low < info.min or high > info.max:
            raise ValueError(
                f"{name} holds whole numbers in [{low}, {high}], and {wanted} ends at {info.max}: subtract an offset "
                "first, give floats, or set jax_enable_x64"
            )
        if max(-low, high) <= LARGEST_EXACT:
            return
    elif x.dtype.itemsize == 4:
        return
    x = x.astype(np.float64)
    finite = np.isfinite(x)
    with np.errstate(over="ignore", invalid="ignore"):
        moved = np.where(finite, np.abs(x.astype(np.float32) - x), 0).max(axis=0)
        low = x.min(axis=0, where=finite, initial=np.inf)
        high = x.max(axis=0, where=finite, initial=-np.inf)
        varies = high - low > CONSTANT * np.maximum(np.abs(low), np.abs(high))
        lost = (varies & (moved > SMALL_PART * (high - low))) | np.isinf(moved)
    if not lost.any():
        return
    place = np.unravel_index(lost.argmax(), lost.shape)
    column = f", {_column(place, columns)}," if place else ""
    between = f"{name}{column} lies between {low[place]:.10g} and {high[place]:.10g}, "
    if not np.isfinite(moved[place]):
        raise ValueError(f"{between}beyond the range of float32: scale it first, or set jax_enable_x64")
    raise ValueError(
        f"{between}and float32 would move its values by up to {moved[place]:.2g}: subtract the column's mean in "
        "float64 first, or set jax_enable_x64"
    )


def _column(place: tuple[Any, ...], columns: list[Any]) -> str:
    at = [int(i) for i in place]
    if len(at) == 1:
        return f"column {columns[at[0]]!r}" if columns else f"column {at[0]}"
    return f"entry {at}"
