"""Batches on a mesh of devices, of one process or of several: each device, and each process, has some of the examples.

The axes go by their names: a batch is split over `data` and `fsdp`, over the mesh's first axis where it has neither.
"""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding


def auto(mesh: Mesh) -> Mesh:
    """The same mesh with automatic axes: those of `jax.make_mesh` are explicit from jax 0.9 on, and are for programs
    that write the sharding of each intermediate result."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes over which a batch is split."""
    return tuple(name for name in mesh.axis_names if name in ("data", "fsdp")) or mesh.axis_names[:1]


def batch_sharding(mesh: Mesh, *, axis: int = 0) -> NamedSharding:
    """The batch axis split over the mesh, everything else whole. `axis` is its place among the array's axes."""
    return NamedSharding(mesh, PartitionSpec(*(None,) * axis, batch_axes(mesh)))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device of the mesh."""
    return NamedSharding(mesh, PartitionSpec())


def shards(mesh: Mesh) -> int:
    """Into how many parts a batch is split; its size has to divide by it."""
    return math.prod(mesh.shape[name] for name in batch_axes(mesh))


def check_divides(batch_size: int, mesh: Mesh | None) -> None:
    """Raise a ValueError for a batch that cannot be split evenly over the mesh."""
    if mesh is not None and batch_size % shards(mesh):
        raise ValueError(
            f"batch_size={batch_size} does not divide over the {shards(mesh)} devices of the mesh's axes "
            f"{batch_axes(mesh)}: take a multiple of {shards(mesh)}"
        )


def rows_here(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Which rows of a batch the devices of this process have, in ascending order: these it reads."""
    places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[place] for place in places]))


def on_mesh(tree: Any, sharding: NamedSharding, batch_size: int | None = None, *, axis: int = 0) -> Any:
    """The arrays of one tree on a mesh, from what each process has of them: its rows of a batch, or everything.

    Args:
        batch_size: rows of the whole batch; None where each process has the whole of each array.
        axis: where the batch is among the axes.
    """

    def put(x):
        x = np.asarray(x)
        shape = x.shape if batch_size is None else (*x.shape[:axis], batch_size, *x.shape[axis + 1 :])
        return jax.make_array_from_process_local_data(sharding, x, shape)

    return jax.tree.map(put, tree)


def placed(shapes: Any, where: Any) -> Any:
    """Shapes with their places on the devices: one for all, or a tree of them."""
    places = jax.tree.map(lambda _: where, shapes) if isinstance(where, Sharding) else where
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places)
