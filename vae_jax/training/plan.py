"""How a run is cut: into records, and each of them into compiled calls.

What is cut does not depend on where a run was stopped, so that a resumed one computes with the same programs.
"""

import datetime
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from vae_jax.core.numbers import is_whole
from vae_jax.training.processes import from_first


class Plan(NamedTuple):
    """How long a run is, in steps, and how it is cut.

    Fields:
        last: steps of the whole run.
        record: steps from one record to the next.
        per_epoch: steps of an epoch.
        batch_size: examples in a step.
        per_call: the most steps in a compiled call.
    """

    last: int
    record: int
    per_epoch: int
    batch_size: int
    per_call: int

    @property
    def unit(self) -> int:
        """Steps of what progress is counted in: epochs, where records are."""
        return self.per_epoch if self.record == self.per_epoch else 1

    def calls(self, first: int) -> Iterator[tuple[int, bool]]:
        """(steps of a call, whether a record follows) for what is left of the run at step `first`."""
        for start in range(first // self.record * self.record, self.last, self.record):
            stop = min(start + self.record, self.last)
            sizes = call_sizes(stop - start, self.per_call)
            ends = start + np.cumsum(sizes)
            if start < first and first not in ends:  # it was cut otherwise, when it was stopped
                sizes = call_sizes(stop - first, self.per_call)
                ends = first + np.cumsum(sizes)
            yield from ((size, int(end) == stop) for size, end in zip(sizes, ends, strict=True) if end > first)


def plan_of(
    epochs: int | None,
    steps: int | None,
    record_every: int | datetime.timedelta | None,
    per_epoch: int,
    batch_size: int,
    per_call: int,
) -> Plan:
    """The plan of a run that is given in epochs or in steps; with records by time, all of it is one stretch."""
    last = steps if epochs is None else epochs * per_epoch
    assert last is not None  # see check_length
    record = per_epoch if record_every is None else record_every
    return Plan(last, last if isinstance(record, datetime.timedelta) else record, per_epoch, batch_size, per_call)


def check_length(epochs: int | None, steps: int | None, record_every: int | datetime.timedelta | None) -> None:
    """Raise a ValueError for a length that is not given once, or is no number of epochs or steps."""
    if (epochs is None) == (steps is None):
        raise ValueError(f"want the length of the run in epochs or in steps; got epochs={epochs} and steps={steps}")
    for name, count in (("epochs", epochs), ("steps", steps), ("record_every", record_every)):
        if isinstance(count, datetime.timedelta):
            if count <= datetime.timedelta():
                raise ValueError(f"{name} is the time between two records; got {count}")
        elif count is not None and not is_whole(count):
            raise ValueError(f"want {name} >= 1, a whole number; got {count}")


def call_sizes(steps: int, most: int) -> list[int]:
    """So many steps cut into calls: equal ones where a divisor is near `most`, else full ones and a rest."""
    for calls in range(-(-steps // most), 2 * -(-steps // most) + 1):
        if steps % calls == 0:
            return [steps // calls] * calls
    full, rest = divmod(steps, most)
    return [most] * full + [rest] * (rest > 0)


class Clock:
    """Whether it is time for a record, where records go by time: process 0 decides for all."""

    def __init__(self, record_every: int | datetime.timedelta | None):
        self.seconds = record_every.total_seconds() if isinstance(record_every, datetime.timedelta) else None
        self.started = time.monotonic()

    def due(self) -> bool:
        if self.seconds is None:
            return False
        seconds = self.seconds
        due = from_first(lambda: time.monotonic() - self.started >= seconds)
        if due:
            self.started = time.monotonic()
        return due
