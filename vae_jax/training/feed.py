"""How examples reach the training step: they lie on the device, or they are read and sent ahead of the steps.

Both visit the data in the same order, a function of (key, epoch) alone: on one device, on many, in several processes.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from vae_jax.core.compiling import Jit
from vae_jax.core.mesh import batch_sharding, on_mesh, placed, replicated, rows_here
from vae_jax.data.sources import Source, batches
from vae_jax.training.step import Metrics, Order, TrainState, TrainStep, make_fed_scan, make_scan

Advance = Callable[[TrainState, int], tuple[TrainState, Metrics]]  # by so many steps, the next ones
CALL_BYTES = 2**27


class Feed(NamedTuple):
    """A training step and its data.

    Fields:
        trace: `(abstract state, steps)` makes sure, without compiling, that a call of so many steps is possible.
        begin: `(first step, steps of each call that may come)` -> a context with the `Advance`, which ends reading.
    """

    trace: Callable[[Any, int], Any]
    begin: Callable[[int, Sequence[int]], contextlib.AbstractContextManager[Advance]]


def resident(train_step: TrainStep, ys: Any, cs: Any, key: Array, *, batch_size: int, order: Order) -> Feed:
    """Steps on data that lie on the device as they are; a call stays within an epoch."""

    def scan(size):
        return _compiled_scan(train_step, batch_size, size, order)

    def begin(first, sizes):
        on_device = jax.tree.map(jnp.asarray, (ys, cs))
        return contextlib.nullcontext(lambda state, size: scan(size)(state, key, *on_device))

    return Feed(lambda state, size: scan(size).eval_shape(state, key, ys, cs), begin)


@functools.lru_cache(maxsize=32)
def _compiled_scan(train_step: TrainStep, batch_size: int, size: int, order: Order) -> Jit:
    return Jit(make_scan(train_step, batch_size, size, order=order), donate_argnums=0)


def fed(
    train_step: TrainStep,
    data: Source,
    key: Array,
    *,
    batch_size: int,
    order: Order,
    mesh: Mesh | None = None,
    sharding: Any = None,
) -> Feed:
    """Steps on data that are read while the device computes; each process reads its own part of each batch.

    Args:
        sharding: of each leaf of the state over `mesh`, where there is one.
    """
    outputs: dict[str, Any] = {} if mesh is None else {"out_shardings": (sharding, replicated(mesh))}
    scan = Jit(make_fed_scan(train_step), donate_argnums=0, **outputs)

    def send(chunk):
        if mesh is None:
            return jax.device_put(chunk)
        return on_mesh(chunk, batch_sharding(mesh, axis=1), batch_size, axis=1)

    def trace(state, size):
        chunk = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, batch_size, *x.shape), x.dtype), data.one())
        if mesh is not None:  # as they will be there, so that the program is traced once
            chunk = placed(chunk, batch_sharding(mesh, axis=1))
            state = placed(state, sharding)
        return scan.eval_shape(state, key, *chunk)

    @contextlib.contextmanager
    def begin(first, sizes):
        rows = np.arange(batch_size) if mesh is None else rows_here(mesh, batch_size)
        epochs = places_by_epoch(key, first, first + sum(sizes), len(data), batch_size=batch_size, order=order)
        chunks = _chunks(data, (places[:, rows] for places in epochs), sizes)
        with contextlib.closing(chunks):
            ahead = [send(chunk) for chunk in itertools.islice(chunks, 1)]

            def advance(state, size):
                after = scan(state, key, *ahead.pop())
                ahead.extend(send(chunk) for chunk in itertools.islice(chunks, 1))  # while the device computes
                return after

            yield advance

    return Feed(trace, begin)


def most_steps(data: Source, batch_size: int) -> int:
    """So many steps of examples are sent in one call at most: two calls' examples are in memory."""
    example = sum(x.nbytes for x in jax.tree.leaves(data.one()))
    return max(1, CALL_BYTES // (batch_size * example))


def places_by_epoch(
    key: Array, first: int, last: int, n: int, *, batch_size: int, order: Order
) -> Iterator[np.ndarray]:
    """The places in the data of the steps from `first` to before `last`: (steps, batch_size) for each epoch."""
    k_order, _ = jax.random.split(key)
    per_epoch = n // batch_size
    of_epoch = jax.jit(lambda epoch: order(k_order, epoch, per_epoch * batch_size, n))
    for epoch in range(first // per_epoch, -(-last // per_epoch)):
        begin = epoch * per_epoch
        places = np.asarray(of_epoch(jnp.int32(epoch))).reshape(per_epoch, batch_size)
        yield places[max(0, first - begin) : last - begin]


def _chunks(data: Source, epochs: Iterator[np.ndarray], sizes: Sequence[int]) -> Generator[Any, None, None]:
    """The batches of each call, stacked: (steps, rows, *example)."""

    def batch_by_batch():
        for places in epochs:
            with contextlib.closing(batches(data, list(places))) as read:
                yield from read

    with contextlib.closing(batch_by_batch()) as steps:
        for size in sizes:
            yield jax.tree.map(lambda *each: np.stack(each), *itertools.islice(steps, size))
