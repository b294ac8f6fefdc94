"""SIGTERM: what a machine that is about to be taken away, or a scheduler, sends first."""

import itertools
import signal
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

_asked = itertools.count(1)  # the processes of a run agree on one of these numbers, each of which comes once


class Preempted(RuntimeError):
    """SIGTERM has come; the run's directory holds the state that it had reached."""


class Preemption:
    """Within its `with`, SIGTERM is noted and no longer ends the process; a second one does.

    With several processes it is enough that one of them gets it: `jax.distributed` listens for it and finds a call that
    none of them is beyond.
    """

    def __init__(self, *, heed: bool):
        self.heed = heed
        self.noted = False
        self.before: Any = None

    def __enter__(self) -> "Preemption":
        if self.heed and jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self.before = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, *_: Any) -> None:
        self.noted = True
        self.__exit__()

    def __exit__(self, *_: Any) -> None:
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)
            self.before = None

    def due(self) -> bool:
        """Whether to stop here; every process asks at each call."""
        if self.heed and jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(next(_asked))
        return self.noted
