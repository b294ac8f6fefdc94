"""Where an experiment trains: the options, and `fit` and `evaluate` on the devices that they name."""

import dataclasses
import functools
import math
import re
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh

import vae_jax
from vae_jax import Evaluation, Fitted

AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True)
class Placed:
    """Training by `fit`, on one device or on all those of a pod. What is trained does not depend on it."""

    mesh: str = ""
    """Devices by axis, data=4,fsdp=2 for instance; -1 is all that are left. Batches are split over both axes. Without:
    one device; of several processes (distributed), all devices, as data=-1."""
    sharding: Literal["replicated", "fsdp"] = "replicated"
    """Parameters and optimiser state: whole on each device, or split over the mesh's axis fsdp."""
    distributed: bool = False
    """This is one of several processes that train together: those of a TPU pod, Slurm, Open MPI or Kubernetes, or as
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say. Process 0 writes and prints."""
    profile: str = ""
    """Folder for a jax.profiler trace of ten steps of each training, for TensorBoard or Perfetto."""


WHERE = tuple(field.name for field in dataclasses.fields(Placed))


def mesh_of(config: Placed) -> Mesh | None:
    """The mesh that the options name; None for one device.

    Raises:
        ValueError: what is no mesh, or not one of these devices; options that do not fit each other.
    """
    if config.distributed and not jax.distributed.is_initialized():
        raise ValueError(
            "distributed=True is an option of the command line; in a program, main runs within vae_jax.training.pod()"
        )
    text = config.mesh or ("data=-1" if jax.process_count() > 1 else "")
    sizes = _sizes(text, jax.device_count()) if text else {}
    if config.sharding == "fsdp" and "fsdp" not in sizes:
        raise ValueError(f"sharding=fsdp splits over the axis fsdp, and mesh={config.mesh!r} has none: --mesh fsdp=-1")
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes)) if sizes else None


def _sizes(text: str, devices: int) -> dict[str, int]:
    """Devices along each axis."""
    parts = [re.fullmatch(r"\s*(\w+)\s*=\s*(-1|[1-9]\d*)\s*", part) for part in text.split(",")]
    if not all(parts) or len({part[1] for part in parts if part}) < len(parts):
        raise ValueError(f"mesh={text}: want each axis once, with its size or -1, for instance data=4,fsdp=2")
    sizes = {part[1]: int(part[2]) for part in parts if part}
    if unknown := [name for name in sizes if name not in AXES]:
        raise ValueError(f"mesh={text}: the axis {unknown[0]} is not known; want data, fsdp or both")
    if list(sizes.values()).count(-1) > 1:
        raise ValueError(f"mesh={text}: only one axis can be -1, which is all devices that are left")
    named = math.prod(size for size in sizes.values() if size > 0)
    whole = {name: devices // named if size < 0 else size for name, size in sizes.items()}
    if math.prod(whole.values()) != devices:
        raise ValueError(f"mesh={text}: the sizes have to multiply to the number of devices, which is {devices}")
    return whole


def fit_on(where: Placed, /, *arguments: Any, **options: Any) -> Fitted:
    """`vae_jax.fit` on the mesh of `where`. What it gives is whole on this process, so that each can report on it."""
    mesh = mesh_of(where)
    fit = functools.partial(vae_jax.fit, mesh=mesh, sharding=where.sharding, profile=where.profile or None)
    fitted = fit(*arguments, **options)
    if mesh is None:
        return fitted
    state, params = jax.tree.map(jnp.asarray, process_allgather((fitted.state, fitted.params), tiled=True))
    return fitted._replace(state=state, params=params)


def evaluate_on(where: Placed, /, *arguments: Any, **options: Any) -> Evaluation:
    """`vae_jax.evaluate` on the mesh of `where`."""
    return vae_jax.evaluate(*arguments, mesh=mesh_of(where), **options)
