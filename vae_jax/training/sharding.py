"""Where parameters lie on a mesh of devices: whole on each, or split over the axis `fsdp` where the rule says so.

Batches are split (see `vae_jax.core.mesh`). What is computed does not depend on it, but for the order of sums.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vae_jax.core.mesh import replicated
from vae_jax.core.model import Params
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


def check_placement(mesh: Any, sharding: Any) -> Rule:
    """The rule that `sharding` is or names.

    Raises:
        TypeError: what is no mesh, or no rule.
        ValueError: several processes without a mesh, or a rule without one or without its axis.
    """
    if mesh is not None and not isinstance(mesh, Mesh):
        raise TypeError(f'mesh wants one of jax.make_mesh((4, 2), ("data", "fsdp")); got {type(mesh).__name__}')
    if mesh is None and jax.process_count() > 1:
        raise ValueError(
            f"{jax.process_count()} processes train one model on one mesh of all their devices: pass "
            'mesh=jax.make_mesh((jax.device_count(),), ("data",))'
        )
    rule = {"replicated": whole, "fsdp": fsdp}.get(sharding, sharding) if isinstance(sharding, str) else sharding
    if not callable(rule):
        raise TypeError(f'sharding wants "replicated", "fsdp" or a rule of vae_jax.training.sharding; got {sharding!r}')
    if rule is not whole and mesh is None:
        raise ValueError("sharding says how parameters are split over a mesh: pass mesh= too")
    if rule is fsdp and mesh is not None and "fsdp" not in mesh.axis_names:
        raise ValueError(f'sharding="fsdp" wants a mesh with an axis "fsdp"; this one has {mesh.axis_names}')
    return rule


def as_they_lie(params: Params) -> Params:
    """What `gathering` does where nothing is split by `fsdp`."""
    return params


def gathering(mesh: Mesh | None, rule: Rule) -> Callable[[Params], Params]:
    """What makes parameters that are split by `fsdp` whole for the time of their use, and their gradients split again.

    Left to itself XLA may split results by features too, and gather examples for it: a VAE with 200,000 logits wanted
    50 GiB of each of 16 x 16 TPU chips, in place of 1.
    """
    if mesh is None or rule is not fsdp:
        return as_they_lie
    return lambda params: jax.lax.with_sharding_constraint(params, replicated(mesh))


def shardings(tree: Any, mesh: Mesh, rule: Rule = whole) -> Any:
    """The sharding of each leaf of parameters, or of a training state, by the rule.

    Raises:
        ValueError: a leaf that cannot be split as the rule says.
    """

    def of(path, leaf):
        shape = np.shape(leaf)
        sharding = NamedSharding(mesh, rule(path, shape, mesh))
        try:
            sharding.shard_shape(shape)
        except ValueError as error:
            raise ValueError(
                f"the rule of sharding= splits {path} of shape {shape} by {sharding.spec} over {dict(mesh.shape)}, "
                "which does not divide"
            ) from error
        return sharding

    named = leaves_by_path(tree)
    return jax.tree.unflatten(jax.tree.structure(tree), [of(path, leaf) for path, leaf in named.items()])
