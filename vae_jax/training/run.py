"""A run and its directory: what is in it at the start, and what each epoch adds.

With several processes all of them call everything here; process 0 alone writes config.json, metrics.jsonl and events.
"""

import contextlib
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import sys
import warnings
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from vae_jax.training import checkpoint
from vae_jax.training.processes import from_first
from vae_jax.training.run_directory import PathLike, claim, is_local, to_path, write_whole
from vae_jax.training.step import TrainState

Row = dict[str, int | float]  # one epoch of a run, by name


class Run:
    """The run directory; without one, nothing is kept.

    Args:
        directory: local, or `gs://bucket/run`.
        config: what the run is, asked for where there is a directory.
        resume: whether a directory that holds this run already may be continued.
        fresh: the state at the start of a run; a restored one lies on the mesh as it does.

    Attributes:
        state: the one to go on with, restored or `fresh`; `history` its epochs, `best` the parameters to use so far.
        meta: what else was saved with it.
    """

    def __init__(
        self, directory: PathLike | None, config: Callable[[], dict[str, Any]], resume: bool, fresh: TrainState
    ):
        self.directory = None if directory is None else to_path(directory)
        self.state, self.best = fresh, fresh.params if fresh.ema is None else fresh.ema
        self.history: list[Row] = []
        self.meta: dict[str, Any] = {}
        self.events: Any = None
        self.held = contextlib.ExitStack()
        if self.directory is None:
            return
        with claim(self.directory, config(), resume=resume, ignore=["fit.epochs", "fit.steps", "recipe"]) as held:
            checkpoint.check_shared(self.directory, fresh)
            self.metrics = self.directory / "metrics.jsonl"
            last = checkpoint.restore(self.directory, fresh)
            if last is None:
                from_first(self._make_sure_that_nothing_is_lost)
            else:
                self.state, self.meta = last.state, last.meta
                self.history = self.meta.pop("history")
                chosen = _best_state(self.directory, self.state)
                self.best = chosen.params if chosen.ema is None else chosen.ema
            if jax.process_index() == 0:
                self._write_rows(self.history)
                note_start(self.directory, int(self.state.step))
            self.writer = held.enter_context(checkpoint.Writer(self.directory))
            self.held = held.pop_all()

    def _make_sure_that_nothing_is_lost(self) -> None:
        """A run that was killed before its first checkpoint starts anew; one that has lost them does not."""
        if not self.metrics.exists():
            return
        if epochs := len(self.metrics.read_text().splitlines()):
            raise FileNotFoundError(
                f"{self.metrics.parent} has lost its checkpoints: {self.metrics.name} counts {epochs} epochs, and "
                "there is none. Put the folder checkpoints back, or choose another directory"
            )
        warnings.warn(f"{self.metrics.parent} has no checkpoint yet: the run starts at its beginning", stacklevel=5)

    def record(self, state: TrainState, history: list[Row], *, best: bool, **meta: Any) -> None:
        """Saves a checkpoint, and adds the last row of `history` to the metrics when it is complete.

        Returns when `state` is copied; what the writing raises, the next call or `close` raises.
        """
        self._save(state, history, best, meta, lambda: self._show(history))

    def keep(self, state: TrainState, history: list[Row], **meta: Any) -> None:
        """Saves a checkpoint between two records, without a row, and returns when it is complete."""
        self._save(state, history, False, meta, lambda: None)
        if self.directory is not None:
            self.writer.wait()

    def _save(self, state: TrainState, history: list[Row], best: bool, meta: Any, then: Callable[[], None]) -> None:
        if self.directory is not None:
            self.writer.save(int(state.step), state, {**meta, "history": history}, best=best, then=then)

    def _show(self, history: list[Row]) -> None:
        self._write_rows(history, new=1)
        self._add_events(history[-1])

    def _write_rows(self, history: list[Row], new: int = 0) -> None:
        """All rows, or so many new ones behind those that are there, which buckets do not know."""
        append = new > 0 and is_local(self.metrics)
        with self.metrics.open("a" if append else "w") as file:
            file.write("".join(json.dumps(row) + "\n" for row in history[-new if append else 0 :]))

    def _add_events(self, row: Row) -> None:
        """Add the epoch to TensorBoard's events, where tensorboardX is installed, which knows local folders."""
        assert self.directory is not None
        if self.events is None:
            if importlib.util.find_spec("tensorboardX") is None or not is_local(self.directory):
                return
            from tensorboardX import SummaryWriter

            self.events = SummaryWriter(str(self.directory / "tensorboard"), purge_step=row["step"])
        for name, value in row.items():
            self.events.add_scalar(name.replace("valid_", "valid/"), value, row["step"])
        self.events.flush()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: Any) -> None:
        """Waits for the last checkpoint."""
        try:
            self.held.__exit__(*error)
        finally:
            if self.events is not None:
                self.events.close()  # what flush() promises, it does not do: events still wait in a queue

    def where(self) -> str:
        """Where the last good parameters are."""
        if self.directory is None:
            return "No checkpoint was kept (directory=None)"
        return f"{self.directory / 'checkpoints'} holds the last good checkpoints, one for each complete epoch"


def note_start(directory: epath.Path, step: int) -> None:
    """made.json: for each start of the run, when, from which step, by what command, with which versions and devices."""
    file, versions = directory / "made.json", {}
    for name in ("vae_jax", "jax", "jaxlib", "flax", "optax", "numpyro", "orbax-checkpoint", "numpy"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    start = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "step": step,
        "command": _command(),
        "versions": {"python": platform.python_version(), **versions},
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
    }
    before = json.loads(file.read_text()) if file.exists() else []
    write_whole(file, json.dumps([*before, start], indent=1))


def _command() -> str:
    """This process's command line, without the folders that its program lies in."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    called = f"python -m {module.name.removesuffix('.__main__')}" if module else os.path.basename(sys.argv[0])
    return f"{called} {shlex.join(sys.argv[1:])}".strip()


def _best_state(directory: epath.Path, last: TrainState) -> TrainState:
    """The state with the best validation ELBO that is on disk; where none is whole, the last, and the run goes on."""
    try:
        best = checkpoint.restore(directory, last, which="best")
    except checkpoint.DamagedError as error:
        warnings.warn(f"the last parameters serve as the best, until better ones are found: {error}", stacklevel=2)
        return last
    return last if best is None else best.state
