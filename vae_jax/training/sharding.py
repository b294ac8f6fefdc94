"""Where parameters lie on a mesh of devices: whole on each, or split over the axis `fsdp` where the rule says so.

Batches are split (see `vae_jax.core.mesh`). What is computed does not depend on it, but for the order of sums.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vae_jax.data.check import leaves_by_path

Rule = Callable[[str, tuple[int, ...], Mesh], PartitionSpec]  # (path of the leaf, its shape, the mesh)


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
