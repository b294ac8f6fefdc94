"""What a compiled program says of itself: products, bytes through HBM and collectives, each as often as its loop runs.

XLA's `cost_analysis()` counts the body of a loop once, and bytes wherever they lie. So the text of the program is read:
a `while` whose condition compares a counter with a constant runs so often (jax's scans count from 0 by 1), an array
whose layout says S(n) lies on the chip and all others in HBM, and what is inside a fusion has no memory of its own.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
WIDTHS = {"pred": 1.0, "bf": 2.0, "token": 0.0, "opaque": 0.0}  # bytes; of other types the name says bits
PASSES = {"highest": 6, "high": 3}  # of bfloat16 that a product of float32 takes on the matrix unit; 1 by default
NO_TRAFFIC = re.compile(
    "parameter|constant|tuple|get-tuple-element|bitcast|while|conditional|call|after-all|partition-id|iota|.*-done"
)
PLACES = ("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound")  # custom calls that move nothing
SLICES = {"dynamic-slice", "slice", "gather"}


class Op(NamedTuple):
    """One instruction: its name, the type of its result, what it does, what stands in its brackets and after them."""

    name: str
    type: str
    kind: str
    inside: str
    rest: str
    root: bool

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.inside)

    def of(self, attribute: str) -> list[str]:
        """The computations that an attribute names: one, or several in braces."""
        found = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.\-]+)", self.rest)
        return re.findall(r"%([\w.\-]+)", found[1]) if found else []


Computation = dict[str, Op]
Program = dict[str, Computation]  # the entry is the last one


class Collective(NamedTuple):
    """A collective: its kind, bytes on one chip (of the larger side), chips in a group, how often it runs in a step."""

    kind: str
    bytes: int
    group: int
    times: float

    @property
    def sent(self) -> float:
        """Bytes that a chip sends in a step, in a ring of n chips: 2 (n-1)/n of them to reduce them to all, (n-1)/n to
        gather, scatter or exchange them, all of them to a neighbour."""
        share = 1.0 if self.kind == "collective-permute" else (self.group - 1) / self.group
        return self.times * self.bytes * share * (2 if self.kind == "all-reduce" else 1)


class Work(NamedTuple):
    """Of one step on one chip.

    Fields:
        products: floating-point operations of the products; repeated: of them those of loops after the first turn.
        passes: the products, each as often as the matrix unit passes over it in bfloat16.
        hbm: bytes read from and written to HBM.
        collectives: each of them.
        loops: loops with a known number of turns; unknown: the others, counted as one turn.
    """

    products: float
    repeated: float
    passes: float
    hbm: float
    collectives: list[Collective]
    loops: int
    unknown: int


def read(text: str, chips: int) -> Work:
    """The work of a program, from the text of its compiled HLO."""
    program = parse(text)
    ops = list(_run(program, list(program)[-1]))
    products = [(product(op, program[name]), times, PASSES.get(_precision(op), 1)) for op, name, times, _ in ops]
    loops = [turns(program[op.of("condition")[0]]) for op, *_ in ops if op.kind == "while"]
    return Work(
        products=sum(flops * times for flops, times, _ in products),
        repeated=sum(flops * (times - 1) for flops, times, _ in products),
        passes=sum(flops * times * passes for flops, times, passes in products),
        hbm=sum(traffic(op, program[name], program) * times for op, name, times, fused in ops if not fused),
        collectives=collectives(ops, chips),
        loops=sum(n is not None for n in loops),
        unknown=sum(n is None for n in loops),
    )


def parse(text: str) -> Program:
    """The instructions of each computation, by name."""
    program: Program = {}
    here: Computation = {}
    for line in text.splitlines():
        if head := re.match(r"(?:ENTRY )?%([\w.\-]+) \(.*\{$", line):
            here = program[head[1]] = {}
        elif found := re.match(r"\s+(ROOT )?%([\w.\-]+) = (.*)", line):
            type_, rest = _bracket(found[3]) if found[3][0] == "(" else found[3].split(" ", 1)
            kind, rest = rest.strip().split("(", 1)
            inside, rest = _bracket("(" + rest)
            here[found[2]] = Op(found[2], type_, kind, inside, rest, bool(found[1]))
    return program


def _bracket(text: str) -> tuple[str, str]:
    """(up to what closes the first bracket, the rest)."""
    depth = 0
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return text[: found.end()], text[found.end() :]
    raise ValueError(f"a bracket without end: {text[:80]}")


def _run(program: Program, name: str, times: float = 1.0, fused: bool = False) -> Iterator[tuple]:
    """(instruction, name of the computation that it is in, how often it runs, whether in a fusion) of all that runs.

    Both branches of a conditional count.
    """
    for op in program[name].values():
        yield op, name, times, fused
        often = (turns(program[op.of("condition")[0]]) or 1) if op.kind == "while" else 1
        for attribute in ("calls", "body", "branch_computations", "true_computation", "false_computation"):
            for called in op.of(attribute):
                yield from _run(program, called, times * often, fused or op.kind == "fusion")


def turns(condition: Computation) -> int | None:
    """How often a loop runs while counter < constant; None where its condition is another."""
    root = next(op for op in condition.values() if op.root)
    bounds = [condition[name].inside for name in root.operands if condition[name].kind == "constant"]
    return int(bounds[0].strip("()")) if "direction=LT" in root.rest and len(bounds) == 1 else None


# Products.


def product(op: Op, here: Computation) -> float:
    """Floating-point operations of a matrix product or a convolution; 0 of all else. Padding is not counted."""
    if op.kind == "dot":
        axes = [int(n) for n in _found(r"lhs_contracting_dims=\{([\d,]*)\}", op.rest)[1].split(",")]
        return 2.0 * math.prod(shape(op.type)) * math.prod(shape(here[op.operands[0]].type)[i] for i in axes)
    if op.kind != "convolution":
        return 0.0
    lhs, rhs, out = _found(r"dim_labels=(\w+)_(\w+)->(\w+)", op.rest).groups()
    sizes = [dict(zip(*each, strict=True)) for each in zip((lhs, rhs, out), _shapes(op, here), strict=True)]
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", (re.search(r"window=\{([^}]*)\}", op.rest) or [""])[0]))
    pairs = math.prod(
        _pairs(
            sizes[0][axis], sizes[1][axis], sizes[2][axis], {key: value.split("x")[i] for key, value in window.items()}
        )
        for i, axis in enumerate(sorted(set(lhs) - set("bf")))
    )
    return 2.0 * sizes[2]["b"] * sizes[2]["f"] * sizes[1]["i"] * pairs


def _shapes(op: Op, here: Computation) -> list[list[int]]:
    return [*(shape(here[name].type) for name in op.operands[:2]), shape(op.type)]


def _pairs(lhs: int, rhs: int, out: int, window: dict[str, str]) -> int:
    """Of one axis of a convolution the pairs (result, tap) that meet a number and not padding."""
    stride, spread, apart = (int(window.get(key, 1)) for key in ("stride", "lhs_dilate", "rhs_dilate"))
    before = int(window.get("pad", "0_0").split("_")[0])
    places = (o * stride + tap * apart - before for o in range(out) for tap in range(rhs))
    return sum(place % spread == 0 and 0 <= place // spread < lhs for place in places)


def _found(pattern: str, text: str) -> re.Match[str]:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"the program has no {pattern} in {text[:200]}")
    return found


def _precision(op: Op) -> str:
    found = re.search(r"operand_precision=\{(\w+)", op.rest)
    return found[1] if found else ""


# Bytes.


def arrays(type_: str) -> list[tuple[int, bool]]:
    """(bytes, whether in HBM) of each array of a type."""
    found = re.findall(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\](?:\{([^}]*)\})?", type_)
    return [
        (int(math.prod(_numbers(sizes)) * (WIDTHS[kind] if kind in WIDTHS else int(bits) / 8)), "S(" not in layout)
        for kind, bits, sizes, layout in found
    ]


def shape(type_: str) -> list[int]:
    return _numbers(_found(r"\[([\d,]*)\]", type_)[1])


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]


def size(type_: str) -> int:
    return sum(n for n, _ in arrays(type_))


def _in_hbm(type_: str) -> int:
    return sum(n for n, there in arrays(type_) if there)


def traffic(op: Op, here: Computation, program: Program) -> float:
    """Bytes that an instruction reads from HBM and writes to it. Of what is sliced, or updated in place, the part."""
    if NO_TRAFFIC.fullmatch(op.kind) or any(place in op.rest for place in PLACES):
        return 0.0
    if op.kind == "copy-start":
        return _in_hbm(op.type)
    if op.kind == "slice-start":
        return sum(n for n, _ in arrays(op.type)[-2:-1])
    if op.kind == "fusion":
        return _of_fusion(op, here, program[op.of("calls")[0]])
    if op.kind in SLICES:
        return 2.0 * _in_hbm(op.type)
    if op.kind == "dynamic-update-slice":
        return 2.0 * _in_hbm(here[op.operands[1]].type)
    return _in_hbm(op.type) + sum(_in_hbm(here[name].type) for name in op.operands)


def _of_fusion(op: Op, here: Computation, inner: Computation) -> float:
    """Collectives that run piece by piece hand their arrays from fusion to fusion, which is no traffic."""
    root = next(each for each in inner.values() if each.root)
    results = [inner[name] for name in root.operands] if root.kind == "tuple" else [root]
    in_place = {each.name for each in results if each.kind == "dynamic-update-slice"}
    handed = {each.name for each in inner.values() if each.kind in KINDS} | (
        {root.name} if root.kind == "tuple" else set()
    )
    total = 0.0
    for result, (_, in_hbm) in zip(results, arrays(op.type), strict=False):
        if in_hbm and result.kind != "parameter" and result.name not in handed:
            total += size(inner[result.operands[1]].type if result.name in in_place else result.type)
    parameters = {int(each.inside.strip("()")): each.name for each in inner.values() if each.kind == "parameter"}
    for i, name in enumerate(op.operands):
        if _in_hbm(here[name].type):
            total += _read(parameters[i], inner, in_place, handed, size(here[name].type))
    return total


def _read(parameter: str, inner: Computation, in_place: set[str], handed: set[str], whole: int) -> int:
    """Bytes of an array that a fusion reads: slices of it, nothing where it is only updated or handed on, else all."""
    users = [op for op in inner.values() if parameter in op.operands and op.name not in handed]
    if not all(op.operands[0] == parameter and (op.kind in SLICES or op.name in in_place) for op in users):
        return whole
    return min(whole, sum(size(op.type) for op in users if op.kind in SLICES))


# Collectives.


def collectives(ops: list[tuple], chips: int) -> list[Collective]:
    """All of them; one that runs piece by piece beside other work is written several times, and counts once.

    Where all is reduced and a chip keeps its slice, in a fusion called all-reduce-scatter, it is a reduce-scatter.
    """
    found: dict[tuple, Collective] = {}
    for op, name, times, _ in ops:
        kind, begun = op.kind.removesuffix("-start"), op.kind.endswith("-start")
        if kind not in KINDS:
            continue
        kept = [re.sub(r"\{.*?\}", "", op.type)]
        group, channel = group_of(op.rest, chips), re.search(r"channel_id=(\d+)", op.rest)
        bytes_ = max(n for n, _ in arrays(op.type)) if begun and kind != "all-reduce" else size(op.type)
        if kind == "reduce-scatter" and not begun:
            bytes_ *= group
        if name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        found[kind, channel[1] if channel else op.name, *kept] = Collective(kind, bytes_, group, times)
    return list(found.values())


def group_of(rest: str, chips: int) -> int:
    """How many chips work together: replica_groups as lists, as [groups,size]<=[chips] or as axes of a mesh."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(listed[1].split(","))
    if counted := re.search(r"replica_groups=\[(?:\d+,)*(\d+)\]<=", rest):
        return int(counted[1])
    if meshed := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", meshed[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", meshed[2]))
    return chips
