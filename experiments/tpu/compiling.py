"""One training step, compiled for TPU chips that are not there."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.experimental import topologies
from jax.sharding import Mesh, SingleDeviceSharding

from experiments.tpu.hlo import read
from experiments.tpu.plain import Loss, Pair, start_of, step_of
from experiments.tpu.roofline import Row
from experiments.tpu.systems import Training
from vae_jax import Model, init_state, make_train_step
from vae_jax.core.mesh import auto, batch_sharding, placed, replicated
from vae_jax.em import init_em, make_em_step
from vae_jax.training.sharding import fsdp, gathering, shardings, whole

SIDES = {"v5e:2x2": (2, 2), "v5e:16x16": (16, 16)}
SHARDINGS = {"replicated": whole, "fsdp": fsdp}  # fsdp: over one side of the torus, the batch over both
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@functools.cache
def mesh_of(topology: str) -> Mesh:
    """The two sides of the torus, data and fsdp."""
    chips = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    return auto(topologies.make_mesh(chips, SIDES[topology], ("data", "fsdp")))


def compiled(name: str, training: Training, topology: str, sharding: str, dtype: str) -> Row:
    """Compile it, and read what the program says."""
    mesh = mesh_of(topology)
    rule, whole_there = SHARDINGS[sharding], replicated(mesh)
    step, state, batch = traced(training, mesh, gathering(mesh, rule))
    of_state = shardings(state, mesh, rule)
    arguments = [placed(state, of_state)]
    if isinstance(training.model, Model):
        arguments.append(placed(jax.eval_shape(lambda: jax.random.key(0)), whole_there))
    arguments += [placed(each, batch_sharding(mesh)) for each in batch]
    run = jax.jit(step, donate_argnums=0, out_shardings=(of_state, whole_there))
    return _row(run, arguments, (name, topology, mesh.size, sharding, dtype, training.batch))


def compared(name: str, pair: Pair, dtype: str) -> tuple[Row, Row]:
    """One step of this library and one of plain flax, on one chip."""
    chip = SingleDeviceSharding(mesh_of("v5e:2x2").devices.flat[0])
    key = jax.eval_shape(lambda: jax.random.key(0))

    def row(whose: str, loss: Loss, start: Callable[[Array], Any]) -> Row:
        arguments = placed((jax.eval_shape(start_of(start), key), key, pair.batch), chip)
        told = (name + whose, "v5e:2x2", 1, "replicated", dtype, pair.batch.shape[0])
        return _row(jax.jit(step_of(loss), donate_argnums=0), arguments, told)

    return row("", pair.ours, pair.start_ours), row(", plain flax", pair.plain, pair.start_plain)


def _row(function: Any, arguments: list[Any], told: tuple[str, str, int, str, str, int]) -> Row:
    """Compile it, and read what the program says; `told` are the first fields."""
    start = time.perf_counter()
    run = function.lower(*arguments).compile()
    seconds = time.perf_counter() - start
    text, memory, costs = run.as_text(), run.memory_analysis(), run.cost_analysis()
    assert text is not None and memory is not None and costs is not None
    work = read(text, told[2])
    other = max(costs.get("flops", 0.0) - (work.products - work.repeated), 0.0)
    arguments_and_temporaries = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return Row(
        *told,
        temporaries=memory.temp_size_in_bytes,
        memory=arguments_and_temporaries + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        flops=work.products + other,
        passes=work.passes + other,
        hbm=work.hbm,
        collectives=work.collectives,
        seconds=seconds,
        loops=work.loops,
        unknown=work.unknown,
    )


def traced(training: Training, mesh: Mesh, gather: Callable[[Any], Any]) -> tuple[Any, Any, tuple[Any, ...]]:
    """(the step, the shapes of its state, those of the batch of all chips): ys, and cs where there are any."""
    key, n = jax.random.key(0), mesh.size * training.batch
    examples = (training.y,) if training.c is None else (training.y, training.c)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((n, *x.shape), x.dtype), examples)
    model = training.model
    if not isinstance(model, Model):
        start_em = functools.partial(init_em, model, key=key)
        return make_em_step(model, decay=0.0, mesh=mesh), jax.eval_shape(start_em, *batch), batch
    optimizer = optax.adam(1e-3)
    step = make_train_step(
        model,
        optimizer,
        objective=training.objective,
        preprocess=training.preprocess,
        clip_norm=training.clip_norm,
        ema_decay=training.ema_decay,
        gather=gather,
    )

    def start(key):
        y = training.preprocess.apply(key, jax.tree.map(jnp.asarray, training.y))
        return init_state(model, optimizer, key, y, training.c, ema=training.ema_decay is not None)

    return step, jax.eval_shape(start, key), batch
