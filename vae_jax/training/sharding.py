"""Where arrays lie on a mesh of devices: batches are split, parameters are whole on each device or split as well.

The axes go by their names: a batch is split over `data` and `fsdp` (over the mesh's first axis where it has neither),
parameters over `fsdp`, where the rule says so. What is computed does not depend on it, but for the order of sums.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vae_jax.data.check import leaves_by_path

Rule = Callable[[str, tuple[int, ...], Mesh], PartitionSpec]  # (path of the leaf, its shape, the mesh)


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


def whole(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The rule for parameters that each device holds whole."""
    return PartitionSpec()


def fsdp(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The rule for fully sharded parameters: the largest dimension that divides by the axis `fsdp` is split over it.

    Where none does, the array stays whole.
    """
    parts = mesh.shape["fsdp"]
    size, place = max(((n, i) for i, n in enumerate(shape) if n % parts == 0), default=(0, 0), key=lambda each: each[0])
    return PartitionSpec(*(None,) * place, "fsdp") if size else PartitionSpec()


def shardings(tree: Any, mesh: Mesh, rule: Rule = whole) -> Any:
    """The sharding of each leaf of parameters, or of a training state, by the rule."""
    specs = [rule(path, np.shape(leaf), mesh) for path, leaf in leaves_by_path(tree).items()]
    return jax.tree.unflatten(jax.tree.structure(tree), [NamedSharding(mesh, spec) for spec in specs])
