"""A run and its directory: what is in it at the start, and what each epoch adds."""

import contextlib
import importlib.util
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from vae_jax.training import checkpoint
from vae_jax.training.run_directory import PathLike, claim
from vae_jax.training.step import TrainState

Row = dict[str, int | float]  # one epoch of a run, by name


class Run:
    """The run directory; without one, nothing is kept."""

    def __init__(
        self, directory: PathLike | None, config: Callable[[], dict[str, Any]], resume: bool, fresh: TrainState
    ):
        self.directory = None if directory is None else Path(directory)
        self.state, self.history, self.best = fresh, [], fresh.params if fresh.ema is None else fresh.ema
        self.meta: dict[str, Any] = {}
        self.events: Any = None
        self.held = contextlib.ExitStack()
        if self.directory is None:
            return
        with claim(self.directory, config(), resume=resume, ignore=["fit.epochs", "fit.steps"]) as held:
            self.metrics = self.directory / "metrics.jsonl"
            last = checkpoint.restore(self.directory, fresh)
            if last is None and jax.process_index() == 0:
                self._make_sure_that_nothing_is_lost()
            if last is not None:
                self.state, self.meta = last.state, last.meta
                self.history = last.meta["history"]
                chosen = _best_state(self.directory, self.state)
                self.best = chosen.params if chosen.ema is None else chosen.ema
            if jax.process_index() == 0:
                self.metrics.write_text("".join(json.dumps(row) + "\n" for row in self.history))
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
        warnings.warn(f"{self.metrics.parent} has no checkpoint yet: the run starts at its beginning", stacklevel=4)

    def record(self, state: TrainState, history: list[Row], *, best: bool) -> None:
        if self.directory is None:
            return
        checkpoint.save(self.directory, int(state.step), state, {"history": history}, best=best)
        if jax.process_index() != 0:
            return
        with self.metrics.open("a") as file:
            file.write(json.dumps(history[-1]) + "\n")
        self._show(self.directory / "tensorboard", history[-1])

    def keep(self, state: TrainState, history: list[Row], **meta: Any) -> None:
        """A checkpoint between two records; `meta` is what the next start finds in `self.meta`."""
        if self.directory is not None:
            checkpoint.save(self.directory, int(state.step), state, {"history": history, **meta}, best=False)

    def _show(self, folder: Path, row: Row) -> None:
        """Add the epoch to TensorBoard's events, where tensorboardX is installed."""
        if self.events is None:
            if importlib.util.find_spec("tensorboardX") is None:
                return
            from tensorboardX import SummaryWriter

            self.events = SummaryWriter(str(folder), purge_step=row["step"])
        for name, value in row.items():
            self.events.add_scalar(name.replace("valid_", "valid/"), value, row["step"])
        self.events.flush()

    def close(self) -> None:
        self.held.close()
        if self.events is not None:
            self.events.close()  # what flush() promises, it does not do: events still wait in a queue

    def where(self) -> str:
        """Where the last good parameters are."""
        if self.directory is None:
            return "No checkpoint was kept (directory=None)"
        return f"{self.directory / 'checkpoints'} holds the last good checkpoints, one for each complete epoch"


def _best_state(directory: Path, last: TrainState) -> TrainState:
    """The state with the best validation ELBO that is on disk; where none is whole, the last, and the run goes on."""
    try:
        best = checkpoint.restore(directory, last, which="best")
    except checkpoint.DamagedError as error:
        warnings.warn(f"the last parameters serve as the best, until better ones are found: {error}", stacklevel=2)
        return last
    return last if best is None else best.state
