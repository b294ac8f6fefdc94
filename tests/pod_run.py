"""A small run in several processes, for tests/test_pods.py: python pod_run.py OPTIONS, which are JSON.

    directory  of the run, or gs://; {} in it is this process's number
    result     file for the result's leaves, which process 0 writes
    mesh       sizes of the axes data and fsdp
    kill       [process, where]: that process kills itself there, with SIGKILL; "step", "evaluation" or "write"
    fail       a process that raises an error in a step
    stop       processes that get a SIGTERM in a step
    epochs, sharding, lost_after

Prints "ready" when all processes have met, and goes on with a line.
"""

import itertools
import json
import os
import signal
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint  # noqa: F401  before "ready", so that no time is lost after it
from jax.experimental.multihost_utils import process_allgather

from vae_jax import bernoulli, fit, gaussian, standard_normal, vae
from vae_jax.data import dynamic_binarisation
from vae_jax.training import Preempted, pod
from vae_jax.training.run_directory import to_path

STEPS, BATCH = 30, 16  # of an epoch


def affine(size):
    """x -> weights @ x + bias."""
    return (
        lambda key, x: {"weights": 0.1 * jax.random.normal(key, (size, x.size)), "bias": jnp.zeros(size)},
        lambda params, x: params["weights"] @ x.ravel() + params["bias"],
    )


class Watched:
    """Examples that are read one by one, ahead of their use. At the first of grain's reads after so many, and at all
    that follow, something happens, once the run's first epoch is in its metrics: so many that this epoch wants none of
    them, whose batches are read eight at a time in four threads."""

    def __init__(self, items, run, happens=None, after=0):
        self.items, self.metrics, self.happens, self.after = items, run / "metrics.jsonl", happens, after
        self.reads = itertools.count()

    def __len__(self):
        return len(self.items)

    def __getitem__(self, place):
        by_grain = threading.current_thread() is not threading.main_thread()
        if self.happens is not None and by_grain and next(self.reads) >= self.after:
            self.wait_for_the_first_epoch()
            self.happens()
        return self.items[place]

    def wait_for_the_first_epoch(self):
        deadline = time.monotonic() + 60
        while not (self.metrics.exists() and self.metrics.stat().length):
            assert time.monotonic() < deadline, "the first epoch is not in the metrics: too few reads were waited for"
            time.sleep(0.05)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def fail():
    raise OSError("the disk of this host is gone")


def stop(told=[]):  # noqa: B006  what has been told
    """SIGTERM, and time for all processes to hear of it: whoever listens for it looks once in a second."""
    if not told:
        told.append(os.kill(os.getpid(), signal.SIGTERM))
        time.sleep(2)
    time.sleep(0.005)


def die_while_writing(run):
    """When there is a checkpoint, and a part of another."""

    def watch():
        parts, whole = set(), set()
        while not (parts and whole):
            names = {path.name for path in (run / "checkpoints").glob("*-step-*")}
            parts = {name.removesuffix(".partial") for name in names if name.endswith(".partial")}
            whole = {name for name in names if not name.endswith(".partial")} - parts
            time.sleep(0.0005)
        die()

    threading.Thread(target=watch, daemon=True).start()


def main(options):
    me, (killed, where) = jax.process_index(), options.get("kill", (None, ""))
    rng = np.random.default_rng(0)
    levels = np.clip(128 + 40 * rng.normal(size=(1_200, 2)) @ rng.normal(size=(2, 12)), 0, 255).astype(np.uint8)
    run = to_path(options["directory"].format(me))
    in_step = {killed: die if where == "step" else None, options.get("fail"): fail}
    in_step |= dict.fromkeys(options.get("stop", ()), stop)
    per_step, per_evaluation = BATCH // jax.process_count(), 200 // jax.process_count()
    train = Watched(levels[200 : 200 + STEPS * BATCH], run, in_step.get(me), 3 * STEPS // 2 * per_step)
    in_evaluation = die if (me, "evaluation") == (killed, where) else None
    valid = Watched(levels[:200], run, in_evaluation, 3 * per_evaluation // 2)
    if (me, "write") == (killed, where):
        die_while_writing(run)
    model = vae(gaussian(affine(4)), standard_normal(2), bernoulli(affine(12)))
    fitted = fit(
        model,
        optax.adam(optax.cosine_decay_schedule(1e-2, 1000)),
        train,
        key=jax.random.key(0),
        epochs=options["epochs"],
        batch_size=BATCH,
        steps_per_call=STEPS // 6,
        preprocess=dynamic_binarisation(),
        validation=(valid, None),
        directory=run,
        resume=True,
        ema_decay=0.99,
        mesh=jax.make_mesh(tuple(options["mesh"]), ("data", "fsdp")),
        sharding=options.get("sharding", "replicated"),
        progress=False,
    )
    if me == killed:
        die()  # a busy machine saw too late where it was to die; the others have not ended yet
    leaves, _ = jax.tree_util.tree_flatten_with_path(process_allgather((fitted.state, fitted.params), tiled=True))
    if me == 0:
        np.savez(options["result"], **{jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves})


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    try:
        with pod(options.get("lost_after", 10)):
            print("ready", flush=True)
            sys.stdin.readline()
            main(options)
    except Preempted as stopped:
        sys.exit(str(stopped))
