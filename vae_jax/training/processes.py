"""One run in several processes: one on each host of a TPU pod, or of a cluster of GPUs.

All of them are one program. Each holds a part of every array, so none can go on without the others: what is left to do
where one of them fails or disappears is to end, at once and in words, and to continue from the latest checkpoint.
"""

import builtins
import contextlib
import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from vae_jax.core.older_jax import shutdown_timeout
from vae_jax.training.preemption import Preempted

LOST_AFTER = 30  # seconds
AT_THE_END = 3600  # seconds that the others wait for process 0 to write its report
ENVIRONMENT = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


@contextlib.contextmanager
def pod(lost_after: int = LOST_AFTER) -> Iterator[None]:
    """Within its `with`, this process is one of those that train together; nothing of jax may be computed before it.

    The others are found as `jax.distributed.initialize` finds them (TPU pods, Kubernetes, Slurm, Open MPI), or as the
    environment says: JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    SIGTERM then ends no process: it is noted, and `fit` stops all of them at the same step. A process that is lost or
    fails ends the others. How, as jax 0.10 has it, and what is done here beside that:

    * Each process tells the coordinator, which is in process 0, that it lives. One that has not for `lost_after`
      seconds (100 in jax) is lost: the coordinator ends all others with a message, wherever they wait. When process 0
      is lost, they end at once.
    * A process that raises an error lives on: at its exit jax waits, for five minutes, until the others exit too, and
      they wait for it in a collective. So an error ends it here without waiting, after its traceback is shown:
      collectives over TCP then fail at once, and the coordinator misses it as one that was killed.

    A process that lives and never gets to the next collective is waited for without end.

    Args:
        lost_after: seconds without a sign of life.

    Raises:
        ValueError: nothing says which are the processes of this run.
    """
    address, count, number = (os.environ.get(name) for name in ENVIRONMENT)
    try:
        jax.distributed.initialize(
            address,
            None if count is None else int(count),
            None if number is None else int(number),
            heartbeat_timeout_seconds=lost_after,
            **shutdown_timeout(AT_THE_END),
        )
    except ValueError as error:
        raise ValueError(
            f"the processes of this run are not known ({error}): jax finds them on TPU pods, in Kubernetes, Slurm and "
            f"Open MPI; elsewhere set {', '.join(ENVIRONMENT[:-1])} and {ENVIRONMENT[-1]}"
        ) from error
    # The devices are looked for here, where all processes are: each waits for the others.
    name = f"process {jax.process_index()} of {jax.process_count()}"
    try:
        yield
    except Preempted:
        raise  # as all of them do
    except BaseException as error:
        if jax.process_count() == 1 or (isinstance(error, SystemExit) and not error.code):
            raise
        _leave(error, name)


def _leave(error: BaseException, name: str) -> NoReturn:
    """Say why, and end without waiting for the other processes, as no exit in Python's way can."""
    if isinstance(error, SystemExit):
        print(error.code, file=sys.stderr)
    else:
        traceback.print_exception(error)
    print(
        f"{name} ends, and with it the run. If another one was lost or failed first, its own output says why. Continue "
        "with --resume (resume=True)",
        file=sys.stderr,
    )
    for child in multiprocessing.active_children():  # those that read data
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def from_first(find: Callable[[], Any]) -> Any:
    """What process 0 finds, plain JSON, on every process; an error of its is raised on every process."""
    if jax.process_count() == 1:
        return find()
    error = None
    said: dict[str, Any] = {}
    if jax.process_index() == 0:
        try:
            said = {"found": find()}
        except Exception as why:
            error, said = why, {"error": type(why).__name__, "text": str(why)}
    said = json.loads(_broadcast(json.dumps(said).encode()))
    if error is not None:
        raise error
    if "error" in said:
        raise getattr(builtins, said["error"], RuntimeError)(f"process 0: {said['text']}")
    return said["found"]


def _broadcast(message: bytes) -> bytes:
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(message))))
    mine = message if jax.process_index() == 0 else bytes(size)
    return multihost_utils.broadcast_one_to_all(np.frombuffer(mine, np.uint8)).tobytes()
