"""Compile the training step of every system for TPU v5e, without one, and say what it costs there at the least.

    make tpu                                            # everything, 4 and 256 chips; hours on two cores
    python -m experiments.tpu --topology v5e:2x2 --only "VQ-VAE, 7 x 7 of 512"
    python -m experiments.tpu --smoke                   # four steps on 4 chips

Wants `jax[tpu]`. The exit status is 1 if a step does not compile, or does not fit in the 16 GiB of a chip. Columns, of
one chip and step: examples; MiB of arguments and temporaries; GFLOP; MB through HBM; how many collectives, and the MiB
that they reduce, gather or exchange; seconds of compiling; milliseconds that compute, HBM and links would take alone.
How they are found: `hlo.py` and `roofline.py`.
"""

import os

# Before jax is imported. What is compiled for an absent TPU cannot be read back from jax's cache, two programs
# may compile at once, and the last two are what the compiler would otherwise miss, and say so.
os.environ.update(TPU_SKIP_MDS_QUERY="1", JAX_PLATFORMS="cpu", JAX_ENABLE_COMPILATION_CACHE="0")
os.environ.update(ALLOW_MULTIPLE_LIBTPU_LOAD="1", TPU_ACCELERATOR_TYPE="v5litepod-4", TPU_WORKER_HOSTNAMES="localhost")

import dataclasses
import importlib.metadata
import importlib.util
import itertools
import sys
from typing import Any, Literal

import tyro

from experiments.tpu import roofline
from experiments.tpu.compiling import DTYPES, SHARDINGS, compared, compiled
from experiments.tpu.plain import PAIRS
from experiments.tpu.roofline import Row
from experiments.tpu.systems import SMALL, SYSTEMS

SCALED = ("U-Net 128-256-256, accelerator", "ladder of 25, accelerator")
SLICES = ((2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))


@dataclasses.dataclass(frozen=True)
class Config:
    """Compile training steps for TPU v5e, and print a table."""

    topology: tuple[Literal["v5e:2x2", "v5e:16x16"], ...] = ("v5e:2x2", "v5e:16x16")
    """Slices: 4 chips, 256 chips."""
    only: tuple[str, ...] = ()
    """Systems by name (default: all)."""
    smoke: bool = False
    """The small part: a few steps on 4 chips."""
    plain: bool = False
    """Networks beside the same in plain flax, in float32 and bfloat16; the exit status is 1 where ours moves more."""


def main(config: Config) -> int:
    """Print the tables; 1 if a step does not compile or fit."""
    systems: Any = PAIRS if config.plain else SYSTEMS
    if unknown := set(config.only) - set(systems):
        sys.exit(f"error: no such system: {sorted(unknown)}; there are {list(systems)}")
    if importlib.util.find_spec("libtpu") is None:
        sys.exit("error: the TPU compiler is not installed: make tpu, or pip install 'jax[tpu]'")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("jax", "libtpu"))
    print(f"TPU v5e, compiled with {versions}\n\n{roofline.HEAD}", flush=True)
    if config.plain:
        return beside_plain(config)
    rows, failures = [], []
    for name, topology, sharding, dtype in wanted(config):
        try:
            row = compiled(name, SYSTEMS[name].build(DTYPES[dtype]), topology, sharding, dtype)
        except Exception as error:  # whatever the compiler raises: the others are compiled all the same
            failures.append(f"{name}, {topology}, {sharding}, {dtype} does not compile: {str(error)[:500]}")
            continue
        print(roofline.line(row), flush=True)
        rows.append(row)
        if not row.fits:
            failures.append(
                f"{name}, {topology}, {sharding}, {dtype} wants {row.memory / 2**30:.1f} GiB, a chip has 16"
            )
    scale(rows)
    print(*("", *failures), sep="\n") if failures else print(f"\n{len(rows)} steps compile and fit in 16 GiB a chip")
    return bool(failures)


def beside_plain(config: Config) -> int:
    """Print pairs of rows and their ratios; 1 if a step of ours moves more through HBM, or has more temporaries."""
    worse = []
    for name, dtype in itertools.product(config.only or PAIRS, DTYPES):
        ours, plain = compared(name, PAIRS[name](DTYPES[dtype]), dtype)
        print(roofline.line(ours), roofline.line(plain), sep="\n")
        ratios = {field: getattr(ours, field) / getattr(plain, field) for field in ("flops", "hbm", "temporaries")}
        told = ", ".join(f"{field} {ratio:.2f}" for field, ratio in ratios.items())
        print(f"{name}, {dtype}: {told} of plain flax\n", flush=True)
        worse += [f"{name}, {dtype}: {told}"] * (max(ratios["hbm"], ratios["temporaries"]) > 1)
    print(*worse, sep="\n")
    return bool(worse)


def wanted(config: Config) -> list[tuple[str, str, str, str]]:
    """(system, topology, sharding, dtype) of every row."""
    if config.smoke:
        return [(name, "v5e:2x2", sharding, "float32") for name, sharding in SMALL]
    names = [name for name in SYSTEMS if not config.only or name in config.only]
    every = itertools.product(names, config.topology, SHARDINGS, DTYPES)
    return [each for each in every if each[3] == "float32" or SYSTEMS[each[0]].bfloat16]


def scale(rows: list[Row]) -> None:
    """Weak scaling of those that were compiled for 4 chips with their parameters on each."""
    for row in rows:
        if row.system in SCALED and (row.chips, row.sharding) == (4, "replicated"):
            print("", *roofline.report(row, roofline.weak_scaling(row, SLICES)), sep="\n")


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config)))
