"""Contestants in turn, in one process, so that a slow minute of the machine hits all of them; and what they print."""

import importlib.util
import statistics
import time
from collections.abc import Callable

import jax

from experiments.bench.ceiling import Work, probes

Contestants = dict[str, Callable[[], float]]


def compare(
    title: str,
    contestants: Contestants,
    work: Work,
    count: int,
    rounds: int,
    *,
    unit: str = "images",
    result: str = "last loss",
) -> None:
    """Run the contestants and print units a second, the share of the machine's ceiling, ratios, what each ends with.

    Args:
        work: of one unit.
        count: how many units one call of a contestant goes through.
    """
    print(f"\n{title}, {count} {unit} a round, {rounds} rounds on {jax.devices()[0].device_kind}")
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    results = {name: call() for name, call in contestants.items()}  # compiles
    limits = probes()
    for probe, _ in limits.values():
        probe()
    ceiling = Work(0, 0)
    for _ in range(rounds):
        for probe, done in limits.values():
            ceiling = ceiling.better(done.per(seconds_of(probe)[0]))
        for name, call in contestants.items():
            seconds, results[name] = seconds_of(call)
            speeds[name].append(count / seconds)
    print(
        f"  ceiling {ceiling.flops / 1e9:,.0f} GFLOP/s, {ceiling.bytes / 1e9:,.1f} GB/s; "
        f"a unit is {work.flops / 1e6:,.3g} MFLOP of products, {work.bytes / 1e3:,.3g} kB at least"
    )
    first = next(iter(contestants))
    for name, values in speeds.items():
        ratio = statistics.median(a / b for a, b in zip(speeds[first], values, strict=True))
        speed = statistics.median(values)
        print(
            f"  {name:<28} {speed:>9,.0f} {unit}/s ({min(values):,.0f} .. {max(values):,.0f})"
            f" {work.share(speed, ceiling):>5.0%} of the ceiling"
            f"   {first} is {ratio:.2f}x   {result} {results[name]:.2f}",
            flush=True,
        )


def seconds_of(call: Callable[[], float]) -> tuple[float, float]:
    """How long a call takes, and what it gives."""
    start = time.perf_counter()
    given = call()
    return time.perf_counter() - start, given


def missing(module: str, packages: str) -> bool:
    """Whether a peer is not installed, which is said."""
    if importlib.util.find_spec(module) is not None:
        return False
    print(f"{module} is not installed: its row is left out (pip install {packages})")
    return True
