"""The table of `make tpu`: what is read from a compiled program, and the arithmetic, against numbers by hand.

Nothing is compiled for a TPU here: `.ci/tpu` does that, where its compiler can be installed.
"""

import importlib
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from experiments.tpu import roofline
from experiments.tpu.compiling import traced
from experiments.tpu.hlo import Collective, arrays, group_of, parse, product, read, turns
from experiments.tpu.plain import PAIRS
from experiments.tpu.roofline import Row, line, report, weak_scaling
from experiments.tpu.systems import SMALL, SYSTEMS

README = (Path(__file__).parents[1] / "README.md").read_text()

# A step on 8 chips in two groups. In a loop of 5 turns: a product (16 x 32)(32 x 64) at full precision, and a slice of
# an array in HBM; S(1) is on the chip. Two pieces of one gather (channel 7); a sum of which a chip keeps a quarter.
PROGRAM = """
HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%sliced (all: f32[5,16,32], i: s32[]) -> f32[16,32] {
  %all = f32[5,16,32]{2,1,0:T(8,128)} parameter(0)
  %i = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %one = f32[1,16,32]{2,1,0:T(8,128)} dynamic-slice(%all, %i, %zero, %zero), dynamic_slice_sizes={1,16,32}
  ROOT %flat = f32[16,32]{1,0:T(8,128)} bitcast(%one)
}

%all-reduce-scatter (input_0: f32[64,8]) -> f32[16,8] {
  %input_0 = f32[64,8]{1,0:T(8,128)S(1)} parameter(0)
  %all-reduce.1 = f32[64,8]{1,0:T(8,128)} all-reduce(%input_0), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  ROOT %mine = f32[16,8]{1,0:T(8,128)S(1)} slice(%all-reduce.1), slice={[0:16], [0:8]}
}

%piece (p: bf16[10,100]) -> bf16[80,100] {
  %p = bf16[10,100]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %all-gather.1 = bf16[80,100]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=7, replica_groups=mesh['data'=2,'fsdp'=4] {'data','fsdp'}, dimensions={0}
}

%piece.clone (p: bf16[10,100]) -> bf16[80,100] {
  %p = bf16[10,100]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %all-gather.2 = bf16[80,100]{1,0:T(8,128)(2,1)S(1)} all-gather(%p), channel_id=7, replica_groups=mesh['data'=2,'fsdp'=4] {'data','fsdp'}, dimensions={0}
}

%body (carried: (s32[], f32[5,16,32], f32[32,64], f32[16,64])) -> (s32[], f32[5,16,32], f32[32,64], f32[16,64]) {
  %carried = (s32[]{:T(128)}, f32[5,16,32]{2,1,0:T(8,128)}, f32[32,64]{1,0:T(8,128)S(1)}, f32[16,64]{1,0:T(8,128)S(1)}) parameter(0)
  %step = s32[]{:T(128)} get-tuple-element(%carried), index=0
  %stacked = f32[5,16,32]{2,1,0:T(8,128)} get-tuple-element(%carried), index=1
  %weights = f32[32,64]{1,0:T(8,128)S(1)} get-tuple-element(%carried), index=2
  %row = f32[16,32]{1,0:T(8,128)S(1)} fusion(%stacked, %step), kind=kLoop, calls=%sliced
  %convolution.1 = f32[16,64]{1,0:T(8,128)S(1)} convolution(%row, %weights), dim_labels=bf_io->bf, operand_precision={highest,highest}
  %all-reduce.2 = f32[16,64]{1,0:T(8,128)S(1)} all-reduce(%convolution.1), channel_id=2, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %next = (s32[]{:T(128)}, f32[5,16,32]{2,1,0:T(8,128)}, f32[32,64]{1,0:T(8,128)S(1)}, f32[16,64]{1,0:T(8,128)S(1)}) tuple(%step, %stacked, %weights, %all-reduce.2)
}

%condition (counted: (s32[], f32[5,16,32], f32[32,64], f32[16,64])) -> pred[] {
  %counted = (s32[]{:T(128)}, f32[5,16,32]{2,1,0:T(8,128)}, f32[32,64]{1,0:T(8,128)S(1)}, f32[16,64]{1,0:T(8,128)S(1)}) parameter(0)
  %most = s32[]{:T(128)} constant(5)
  %count = s32[]{:T(128)} get-tuple-element(%counted), index=0
  ROOT %less = pred[]{:T(512)} compare(%count, %most), direction=LT
}

ENTRY %main (start: (s32[], f32[5,16,32], f32[32,64], f32[16,64]), w: f32[1000], part: bf16[10,100], grads: f32[64,8]) -> f32[16,8] {
  %start = (s32[]{:T(128)}, f32[5,16,32]{2,1,0:T(8,128)}, f32[32,64]{1,0:T(8,128)S(1)}, /*index=3*/f32[16,64]{1,0:T(8,128)S(1)}) parameter(0)
  %w = f32[1000]{0:T(1024)} parameter(1)
  %part = bf16[10,100]{1,0:T(8,128)(2,1)S(1)} parameter(2)
  %grads = f32[64,8]{1,0:T(8,128)S(1)} parameter(3)
  %copy-start = (f32[1000]{0:T(1024)S(1)}, f32[1000]{0:T(1024)}, u32[]{:S(2)}) copy-start(%w)
  %copy-done = f32[1000]{0:T(1024)S(1)} copy-done(%copy-start)
  %loop = (s32[]{:T(128)}, f32[5,16,32]{2,1,0:T(8,128)}, f32[32,64]{1,0:T(8,128)S(1)}, f32[16,64]{1,0:T(8,128)S(1)}) while(%start), condition=%condition, body=%body
  %begin = bf16[80,100]{1,0:T(8,128)(2,1)S(1)} fusion(%part), kind=kCustom, calls=%piece
  %end = bf16[80,100]{1,0:T(8,128)(2,1)S(1)} fusion(%part), kind=kCustom, calls=%piece.clone
  %neighbour = f32[64,8]{1,0:T(8,128)S(1)} collective-permute(%grads), channel_id=9, source_target_pairs={{0,1},{1,0}}
  ROOT %kept = f32[16,8]{1,0:T(8,128)S(1)} fusion(%grads), kind=kCustom, calls=%all-reduce-scatter
}
"""  # noqa: E501


def test_a_program_is_read():
    work = read(PROGRAM, 8)
    assert work.products == 5 * 2 * 16 * 32 * 64
    assert (work.repeated, work.passes) == (work.products * 4 / 5, 6 * work.products)
    assert (
        work.hbm == 5 * (4 * 16 * 32 + 4) + 4 * 1000
    )  # a slice and its place in each turn; what is copied to the chip
    assert (work.loops, work.unknown) == (1, 0)
    assert sorted(work.collectives) == [
        Collective("all-gather", 2 * 80 * 100, 8, 1.0),
        Collective("all-reduce", 4 * 16 * 64, 4, 5.0),
        Collective("collective-permute", 4 * 64 * 8, 8, 1.0),
        Collective("reduce-scatter", 4 * 64 * 8, 4, 1.0),
    ]


def test_a_loop_of_unknown_length_counts_once():
    assert turns(parse(PROGRAM)["condition"]) == 5
    work = read(PROGRAM.replace("direction=LT", "direction=GT"), 8)
    assert (work.products, work.loops, work.unknown) == (2 * 16 * 32 * 64, 0, 1)


def convolution(line: str, **types: str) -> float:
    operands = "\n".join(f"  %{name} = {type_}{{}} parameter(0)" for name, type_ in types.items())
    here = parse(f"ENTRY %main () -> f32[] {{\n{operands}\n  ROOT %out = {line}\n}}")["main"]
    return product(here["out"], here)


@pytest.mark.parametrize(
    ("line", "x", "k", "flops"),
    [
        # 4 places and 3 taps along each side: 10 pairs meet a pixel.
        ("f32[7,4,4,5]{} convolution(%x, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
         "f32[7,4,4,2]", "f32[3,3,2,5]", 2 * 7 * 5 * 2 * 10 * 10),
        # Every other place: taps at -1 0 1 and 1 2 3.
        ("f32[7,2,2,5]{} convolution(%x, %k), window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_01io->b01f",
         "f32[7,4,4,2]", "f32[3,3,2,5]", 2 * 7 * 5 * 2 * 5 * 5),
        # Its transpose meets as many.
        ("f32[7,4,4,2]{} convolution(%x, %k), window={size=3x3 pad=1_2x1_2 lhs_dilate=2x2}, dim_labels=b01f_01oi->b01f",
         "f32[7,2,2,5]", "f32[3,3,2,5]", 2 * 7 * 2 * 5 * 5 * 5),
        # A gradient of weights as a convolution: 30 steps and 64 examples are summed over.
        ("f32[8,9,1]{} convolution(%x, %k), window={size=30}, dim_labels=f0b_i0o->bf0",
         "f32[64,30,8]", "f32[64,30,9]", 2 * 8 * 9 * 64 * 30),
        ("f32[8,9]{} dot(%x, %k), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
         "f32[8,64]", "f32[64,9]", 2 * 8 * 9 * 64),
    ],
)  # fmt: skip
def test_operations_of_a_product(line, x, k, flops):
    assert convolution(line, x=x, k=k) == flops


def test_types_and_groups():
    type_ = (
        "(f32[2,3]{1,0:T(8,128)}, /*index=1*/bf16[5]{0:T(8,128)(2,1)S(1)}, pred[], u32[]{:S(2)}, f8e4m3fn[4]{0}, s4[4])"
    )
    assert arrays(type_) == [(24, True), (10, False), (1, True), (4, False), (4, True), (2, True)]
    for written, group in (
        ("replica_groups={{0,1},{2,3}}, x", 2),
        ("replica_groups=[16,4]<=[64]", 4),
        ("replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}", 4),
        ("replica_groups=mesh['data'=16,'fsdp'=8] {'fsdp'}", 8),
        ("source_target_pairs={{0,1}}", 256),
    ):
        assert group_of(written, 256) == group, written


def test_bytes_that_a_ring_sends():
    sent = [
        Collective(kind, 1000, 4, 2.0).sent for kind in ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")
    ]
    assert sent == [3000, 1500, 1500, 1500]
    assert Collective("collective-permute", 1000, 4, 2.0).sent == 2000


def row(**changes) -> Row:
    """197 GFLOP in 394 GFLOP of passes, 1.638 GB; 100 MB are reduced over 4 chips."""
    reduced = [Collective("all-reduce", 100_000_000, 4, 1.0)]
    figures = {
        "temporaries": 0.0,
        "memory": 2**30,
        "flops": 197e9,
        "passes": 394e9,
        "hbm": 1.638e9,
        "collectives": reduced,
        "seconds": 7.4,
    }
    return Row("ladder", "v5e:2x2", 4, "replicated", "float32", 64, **{**figures, **changes})


def test_the_roofline():
    assert row().times == pytest.approx({"compute": 2e-3, "HBM": 2e-3, "interconnect": 1.5e8 / 100e9})
    assert row(hbm=2e9).bound == "HBM" and row(flops=0.0, hbm=0.0, passes=0.0).bound == "interconnect"
    assert row().fits and not row(memory=16 * 2**30 + 1).fits
    assert line(row(unknown=1)) == (
        "| ladder* | 4 | replicated | float32 | 64 | 1,024 | 197.000 | 1,638.0 | 1 | 95.37 | 7 | 2.000 | 2.000 | 1.500 "
        "| compute |"
    )
    assert roofline.HEAD.count("\n") == 1 and {head.count("|") for head in roofline.HEAD.splitlines()} == {16}


def test_weak_scaling():
    """4 chips: 3/2 of 100 MB by two links, 100 GB/s; 256: 255/128 of them by four, 200 GB/s; 1 us for each hop."""
    four, pod = weak_scaling(row(), ((2, 2), (16, 16)))
    assert four == pytest.approx((4, 2e-3, 1.5e-3 + 4e-6))
    assert pod == pytest.approx((256, 2e-3, 2 * 255 / 256 * 1e8 / 200e9 + 60e-6))
    assert four.efficiency == pytest.approx(2 / 3.504)
    text = "\n".join(report(row(), [four, pod]))
    assert "| 4 | 2.000 | 1.504 | 57.1% | 2.000 |" in text and "than a tenth of the work from 4 chips on" in text
    assert "On 256 chips they take a tenth of it at 338 examples on each chip, and as long as the work at 34." in text


def test_every_row_of_the_readme_is_compiled():
    tables = re.findall(
        r"^\| (?:system|model|data) \| how it is said \|\n\|---\|---\|\n((?:\|.*\n)+)", README, flags=re.MULTILINE
    )
    assert len(tables) == 3
    named = {re.match(r"\| (.*?) \|", each)[1] for table in tables for each in table.splitlines()}
    assert {system.row for system in SYSTEMS.values()} == named
    assert {name for name, _ in SMALL} < set(SYSTEMS)


@pytest.mark.parametrize("name", [name for name in SYSTEMS if not name.startswith("EM, ")])
def test_each_has_a_state_and_a_batch(name):
    """Of their own types, a table's columns too."""
    training = SYSTEMS[name].build(jnp.float32)
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "fsdp"))
    _, state, (ys, *_) = traced(training, mesh, lambda params: params)
    assert jax.tree.leaves(state.params) and {y.shape[0] for y in jax.tree.leaves(ys)} == {training.batch}


@pytest.fixture
def program(monkeypatch):
    """The command, with a compiler that is given; its environment is undone."""
    for name in ("SKIP_MDS_QUERY", "ACCELERATOR_TYPE", "WORKER_HOSTNAMES"):
        monkeypatch.setenv(f"TPU_{name}", "")
    for name in ("JAX_ENABLE_COMPILATION_CACHE", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(name, "")
    program = importlib.import_module("experiments.tpu.__main__")
    monkeypatch.setattr(program.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(program.importlib.metadata, "version", lambda name: "1")
    return program


def test_a_system_that_does_not_compile_or_fit_is_named(program, monkeypatch, capsys):
    def compiled(name, training, topology, sharding, dtype):
        if sharding == "fsdp":
            raise RuntimeError("no such operation")
        return row(memory=17 * 2**30)

    monkeypatch.setattr(program, "compiled", compiled)
    assert program.main(program.Config(topology=("v5e:2x2",), only=("EM, pPCA",))) == 1
    printed = capsys.readouterr().out
    assert "EM, pPCA, v5e:2x2, replicated, float32 wants 17.0 GiB, a chip has 16" in printed
    assert "EM, pPCA, v5e:2x2, fsdp, float32 does not compile: no such operation" in printed
    monkeypatch.setattr(program, "compiled", lambda *what: row())
    assert program.main(program.Config(smoke=True)) == 0
    assert f"{len(SMALL)} steps compile and fit in 16 GiB a chip" in capsys.readouterr().out


def test_networks_beside_plain_ones(program, monkeypatch, capsys):
    """An error where ours moves more, or keeps more; none where it does not."""
    made = []

    def compared(name, pair, dtype):
        made.append((name, dtype))
        return row(hbm=3e9 if dtype == "float32" else 1e9, temporaries=1e6), row(hbm=2e9, temporaries=2e6)

    monkeypatch.setattr(program, "compared", compared)
    monkeypatch.setattr(program, "PAIRS", {"U-Net": lambda dtype: None, "ladder": lambda dtype: None})
    assert program.main(program.Config(plain=True, only=("ladder",))) == 1
    assert made == [("ladder", "float32"), ("ladder", "bfloat16")]
    printed = capsys.readouterr().out
    assert "ladder, float32: flops 1.00, hbm 1.50, temporaries 0.50 of plain flax" in printed
    assert printed.rstrip().endswith("ladder, float32: flops 1.00, hbm 1.50, temporaries 0.50")


def test_pairs_are_of_one_size():
    """Ours and the plain network have as many parameters, but for the biases that one of them has alone."""
    for pair in (each(jnp.float32) for each in PAIRS.values()):
        ours, plain = (
            sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(start, jax.random.key(0))))
            for start in (pair.start_ours, pair.start_plain)
        )
        assert ours == pytest.approx(plain, rel=0.01)


def test_what_is_missing_is_said_in_one_line(program, monkeypatch):
    with pytest.raises(SystemExit, match=r"^error: no such system: \['VAE'\]; there are \['VAE 784"):
        program.main(program.Config(only=("VAE",)))
    monkeypatch.setattr(program.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"^error: the TPU compiler is not installed: make tpu, or"):
        program.main(program.Config())


def test_rows_that_are_wanted(program):
    every = program.wanted(program.Config())
    assert len(set(every)) == len(every) == 4 * sum(1 + system.bfloat16 for system in SYSTEMS.values())
    assert program.wanted(program.Config(smoke=True))[0] == ("VAE 784-500-20", "v5e:2x2", "replicated", "float32")
