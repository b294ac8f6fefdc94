"""What a step costs on TPU v5e at the least, from what its program says; and how that scales, on paper.

    compute        products in passes of bfloat16, and all other operations, / 197 TFLOP/s
    HBM            bytes / 819 GB/s
    interconnect   bytes that a chip sends / 1.6 Tbit/s by its four links, or by two of them half of it

A ring along one side of the torus has two links of a chip, and so has every ring on a slice smaller than 16 x 16, which
is not closed at its edges; a ring of all 256 chips has four. Each of the three alone would take its time; a step takes
at least the largest.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from experiments.tpu.hlo import Collective

PEAK, HBM, LINKS = 197e12, 819e9, 1.6e12 / 8  # FLOP/s of bfloat16, bytes/s, bytes/s of a chip's four links
MEMORY, POD = 16 * 2**30, 256  # bytes of a chip, chips of the whole torus
HOP = 1e-6  # s from a chip to the next one: an assumption
COSTLY = 0.1  # of the time of the work: from here on collectives cost


class Row(NamedTuple):
    """One compiled step.

    Fields:
        batch: examples on one chip.
        memory: bytes on one chip: arguments, temporaries, and results that are not in the place of an argument;
            temporaries: of these alone.
        flops: of one chip and step; passes: the same, products as often as the matrix unit passes over them.
        hbm: bytes read and written there.
        collectives: each of them.
        seconds: of compiling.
        loops, unknown: loops whose turns are known, and the others, which count as one turn.
    """

    system: str
    topology: str
    chips: int
    sharding: str
    dtype: str
    batch: int
    memory: float
    temporaries: float
    flops: float
    passes: float
    hbm: float
    collectives: list[Collective]
    seconds: float
    loops: int = 0
    unknown: int = 0

    @property
    def times(self) -> dict[str, float]:
        """Seconds that each resource would take alone."""
        return {"compute": self.passes / PEAK, "HBM": self.hbm / HBM, "interconnect": sending(self.collectives)}

    @property
    def bound(self) -> str:
        return max(self.times, key=lambda name: self.times[name])

    @property
    def fits(self) -> bool:
        return self.memory <= MEMORY


def links(group: int) -> float:
    """Bytes/s that a chip sends in a ring of so many chips."""
    return LINKS if group == POD else LINKS / 2


def sending(collectives: Sequence[Collective]) -> float:
    """Seconds of all collectives, one after the other."""
    return sum(each.sent / links(each.group) for each in collectives)


HEAD = (
    "| system | chips | sharding | dtype | batch | memory | GFLOP | HBM MB | collectives | MiB | compile s "
    "| compute ms | HBM ms | links ms | bound by |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def line(row: Row) -> str:
    """The row of the table, in Markdown. Loops whose turns are unknown are marked with a star each."""
    compute, hbm, sent = (f"{1e3 * seconds:.3f}" for seconds in row.times.values())
    often, bytes_ = sum(c.times for c in row.collectives), sum(c.bytes * c.times for c in row.collectives)
    cells = (
        f"{row.system}{'*' * bool(row.unknown)}",
        *(row.chips, row.sharding, row.dtype, row.batch, f"{row.memory / 2**20:,.0f}"),
        *(f"{row.flops / 1e9:,.3f}", f"{row.hbm / 1e6:,.1f}", f"{often:,.0f}", f"{bytes_ / 2**20:,.2f}"),
        *(f"{row.seconds:.0f}", compute, hbm, sent, row.bound),
    )
    return f"| {' | '.join(map(str, cells))} |"


class Scaled(NamedTuple):
    """A step on n chips, on paper: seconds of the work of one chip, and of its collectives."""

    chips: int
    work: float
    collective: float

    @property
    def efficiency(self) -> float:
        """Where nothing runs beside the collectives."""
        return self.work / (self.work + self.collective)


def weak_scaling(row: Row, sides: Sequence[tuple[int, int]]) -> list[Scaled]:
    """The same batch on every chip of slices a x b: sum over collectives of 2(n-1)/n bytes / links + hops, in a ring
    along one side and then along the other: 2 (a - 1 + b - 1) hops."""
    work = max(row.times["compute"], row.times["HBM"])
    found = []
    for a, b in sides:
        moved = [each._replace(group=a * b) for each in row.collectives]
        hops = 2 * (a + b - 2) * sum(each.times for each in moved)
        found.append(Scaled(a * b, work, sending(moved) + HOP * hops))
    return found


def report(row: Row, scaled: Sequence[Scaled]) -> Iterator[str]:
    """Lines of Markdown: the table, and from where on the collectives cost."""
    yield f"**{row.system}**, {row.dtype}, {row.batch} examples on each chip, parameters on every chip:\n"
    yield "| chips | work ms | collectives ms | efficiency, nothing overlaps | step ms if all overlaps |"
    yield "|---|---|---|---|---|"
    for n, work, collective in scaled:
        efficiency, step = Scaled(n, work, collective).efficiency, max(work, collective)
        yield f"| {n} | {1e3 * work:.3f} | {1e3 * collective:.3f} | {efficiency:.1%} | {1e3 * step:.3f} |"
    costly = next((each.chips for each in scaled if each.collective > COSTLY * each.work), None)
    last = scaled[-1]
    least = row.batch * last.collective / last.work
    yield (
        f"\nThe collectives take more than a tenth of the work {f'from {costly} chips on' if costly else 'nowhere'}. "
        f"On {last.chips} chips they take a tenth of it at {least / COSTLY:.0f} examples on each chip, "
        f"and as long as the work at {least:.0f}."
    )
