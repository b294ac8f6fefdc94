"""Checkpoints come back bit for bit, survive SIGKILL and damage, and nothing damaged is deleted."""

import asyncio
import random
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vae_jax.training import checkpoint

REPOSITORY = Path(checkpoint.__file__).parents[1]


class Pair(NamedTuple):
    left: Any
    right: Any


def state_at(step: int) -> Pair:
    """A state that says in every leaf which step it is of."""
    weights = jnp.arange(40_000, dtype=jnp.float32).reshape(200, 200) + step
    return Pair({"w": weights, "half": jnp.full((3,), step, jnp.bfloat16)}, jnp.int32(step))


def save_steps(directory: Path, *steps: int, best: tuple[int, ...] = ()) -> None:
    for step in steps:
        checkpoint.save(directory, step, state_at(step), {"loss": step / 3}, best=step in best)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


def contents(directory: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


def raw(leaf: Any) -> tuple[Any, ...]:
    """All that can differ between two leaves, -0.0, NaN payloads and Python types included."""
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
    kind = jax.Array if isinstance(leaf, jax.Array) else type(leaf)
    return kind, str(getattr(leaf, "dtype", "")), array.dtype, array.shape, array.tobytes()


def assert_same(got: Any, want: Any) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    assert list(map(raw, jax.tree.leaves(got))) == list(map(raw, jax.tree.leaves(want)))


def assert_is_step(found: checkpoint.Restored | None, step: int) -> None:
    assert found is not None
    assert_same(found.state, state_at(step))
    assert (found.step, found.meta) == (step, {"loss": step / 3})


# Round trips


def random_array(dtype: str, shape: list[int], seed: int) -> np.ndarray:
    size = int(np.prod(shape)) * jnp.dtype(dtype).itemsize
    noise = np.frombuffer(np.random.default_rng(seed).bytes(size), np.uint8)
    return (noise & 1 if dtype == "bool" else noise).view(jnp.dtype(dtype)).reshape(shape)


def arrays(dtypes: str) -> st.SearchStrategy[np.ndarray]:
    shapes = st.lists(st.integers(0, 3), max_size=3)
    return st.builds(random_array, st.sampled_from(dtypes.split()), shapes, st.integers(0, 10**9))


leaves = st.one_of(
    arrays("float32 float16 bfloat16 float8_e4m3fn complex64 int8 uint32 bool").map(jnp.asarray),
    arrays("float64 int64 bfloat16"),
    st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.none(),
    st.floats(width=32).map(np.float32),
)
trees = st.recursive(
    leaves,
    lambda node: st.one_of(
        st.lists(node, max_size=3),
        st.lists(node, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), node, max_size=3),
        st.builds(Pair, node, node),
    ),
    max_leaves=6,
).filter(jax.tree.leaves)
metas = st.dictionaries(st.text(), st.none() | st.integers() | st.floats(allow_nan=False) | st.text())


@settings(max_examples=25, deadline=None, derandomize=True)
@given(trees, st.integers(0, 10**9), metas)
def test_any_state_comes_back_bit_for_bit(state, step, meta):
    with tempfile.TemporaryDirectory() as directory:
        checkpoint.save(directory, step, state, meta, best=False)
        found = checkpoint.restore(directory, state)
    assert found is not None
    assert_same(found.state, state)
    assert (found.step, found.meta) == (step, meta)


def test_optimiser_state_and_keys_come_back_uncommitted(tmp_path):
    def init():
        params = {"enc": jnp.ones((2, 3)), "gen": jnp.zeros(3, jnp.bfloat16)}
        optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
        keys = jax.random.split(jax.random.key(1, impl="rbg"), 2)
        return {"params": params, "opt": optimiser.init(params), "keys": keys, "ema": None}

    state = init()
    checkpoint.save(tmp_path, 3, state, {}, best=True)
    for like in (state, jax.eval_shape(init)):
        found = checkpoint.restore(tmp_path, like).state
        assert_same(found, state)
        assert not any(leaf.committed for leaf in jax.tree.leaves(found))


def test_leaves_return_to_the_sharding_asked_for(tmp_path):
    mesh = Mesh(np.array(jax.devices()[:2]), ("batch",))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["batch"], []))
    state = {
        "split": jax.device_put(jnp.arange(4.0), split),
        "key": jax.device_put(jax.random.key(0), whole),
    }
    checkpoint.save(tmp_path, 1, state, {}, best=False)
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    for asked in (state, like):
        found = checkpoint.restore(tmp_path, asked).state
        assert_same(found, state)
        assert found["split"].sharding == split
        assert found["key"].sharding.is_equivalent_to(whole, 0)


def test_works_inside_a_running_event_loop(tmp_path):  # as in a notebook
    async def cell():
        save_steps(tmp_path, 1)
        return checkpoint.restore(tmp_path, state_at(0))

    assert_is_step(asyncio.run(cell()), 1)


def test_nothing_saved_yet(tmp_path):
    assert checkpoint.restore(tmp_path, state_at(0)) is None
    assert checkpoint.restore(tmp_path / "absent", state_at(0)) is None


# What is kept


@pytest.mark.parametrize(
    ("best", "kept", "best_kept"),
    [
        ((), ["000005-step-50", "000006-step-60"], None),
        ((20,), ["000002-step-20", "000005-step-50", "000006-step-60"], 20),
        ((10, 30), ["000003-step-30", "000005-step-50", "000006-step-60"], 30),
        ((20, 60), ["000005-step-50", "000006-step-60"], 60),
    ],
)
def test_keeps_the_two_newest_and_the_best(tmp_path, best, kept, best_kept):
    save_steps(tmp_path, 10, 20, 30, 40, 50, 60, best=best)
    assert names(tmp_path) == kept
    assert_is_step(checkpoint.restore(tmp_path, state_at(0)), 60)
    found = checkpoint.restore(tmp_path, state_at(0), which="best")
    assert (found and found.step) == best_kept


def test_other_files_are_neither_read_nor_removed(tmp_path):
    save_steps(tmp_path, 1, 2)
    for name in ("000002-step-2.bak", "notes"):
        shutil.copytree(tmp_path / "checkpoints/000002-step-2", tmp_path / "checkpoints" / name)
    save_steps(tmp_path, 3, 4)
    assert names(tmp_path) == ["000002-step-2.bak", "000003-step-3", "000004-step-4", "notes"]


def test_a_save_reads_what_it_wrote_and_no_older_checkpoint(tmp_path, monkeypatch):
    save_steps(tmp_path, 1, 2, best=(1,))
    read, digest = set(), checkpoint._digest
    monkeypatch.setattr(checkpoint, "_digest", lambda path: read.add(str(path)) or digest(path))
    save_steps(tmp_path, 3)
    assert read and all("000003-step-3" in path for path in read)


# Damage


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_damage_to_any_file_is_named_and_skipped(tmp_path, damage):
    save_steps(tmp_path, 1, 2)
    newest = tmp_path / "checkpoints/000002-step-2"
    for file in [file for file in newest.rglob("*") if file.is_file()]:
        intact = file.read_bytes()
        damage(file)
        with pytest.warns(UserWarning, match=f"{newest}: .*{file.name}.*using 000001-step-1"):
            assert_is_step(checkpoint.restore(tmp_path, state_at(0)), 1)
        file.write_bytes(intact)
    assert_is_step(checkpoint.restore(tmp_path, state_at(0)), 2)


def test_a_changed_number_in_the_manifest_is_noticed(tmp_path):
    save_steps(tmp_path, 1, 2)
    manifest = tmp_path / "checkpoints/000002-step-2/manifest.json"
    manifest.write_text(manifest.read_text().replace('"step": 2', '"step": 3'))
    with pytest.warns(UserWarning, match="manifest.json was changed"):
        assert_is_step(checkpoint.restore(tmp_path, state_at(0)), 1)


def test_another_process_may_begin_before_the_first(tmp_path, monkeypatch):
    """It writes its part as soon as it sees the mark, and makes the folder if process 0 has not come to that yet."""
    mark = checkpoint._mark

    class Seen:
        def __init__(self, path):
            self.path, self.file = path, mark(path)

        def touch(self):
            self.file.touch()
            (self.path / "arrays" / "1").mkdir(parents=True)

        def __getattr__(self, name):
            return getattr(self.file, name)

    monkeypatch.setattr(checkpoint, "_mark", Seen)
    save_steps(tmp_path, 3)
    assert checkpoint.restore(tmp_path, state_at(0)).step == 3


def test_damaged_and_unfinished_ones_stay_and_do_not_count(tmp_path):
    save_steps(tmp_path, 1, 2, 3)
    folder = tmp_path / "checkpoints"
    cut(folder / "000003-step-3/manifest.json")
    shutil.copytree(folder / "000003-step-3", folder / "000004-step-4")
    (folder / "000004-step-4.partial").touch()
    before = contents(folder / "000003-step-3") | contents(folder / "000004-step-4")
    with pytest.warns(UserWarning) as seen:
        assert_is_step(checkpoint.restore(tmp_path, state_at(0)), 2)
    assert [str(w.message).split(": ")[1] for w in seen] == [
        str(folder / "000004-step-4.partial"),
        str(folder / "000003-step-3"),
    ]
    save_steps(tmp_path, 3)  # the same step again, not in the way
    leftovers = ["000003-step-3", "000004-step-4", "000004-step-4.partial"]
    assert names(tmp_path) == sorted(["000002-step-2", "000005-step-3", *leftovers])
    assert_is_step(checkpoint.restore(tmp_path, state_at(0)), 3)
    save_steps(tmp_path, 4, 5)
    assert names(tmp_path) == sorted(["000006-step-4", "000007-step-5", *leftovers])
    assert before.items() <= contents(folder).items()


def test_best_falls_back_to_a_good_best(tmp_path):
    save_steps(tmp_path, 1, 2, best=(1, 2))
    cut(tmp_path / "checkpoints/000002-step-2/manifest.json")
    with pytest.warns(UserWarning, match="000002-step-2"):
        assert_is_step(checkpoint.restore(tmp_path, state_at(0), which="best"), 1)


def test_all_damaged_is_an_error_that_lists_them(tmp_path):
    save_steps(tmp_path, 1, 2)
    for manifest in tmp_path.rglob("manifest.json"):
        manifest.unlink()
    with pytest.raises(RuntimeError, match=r"(?s)000002-step-2: manifest.*000001-step-1: manifest"):
        checkpoint.restore(tmp_path, state_at(0))
    assert names(tmp_path) == ["000001-step-1", "000002-step-2"]


def test_a_first_save_that_was_killed_is_no_checkpoint(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/000001-step-9.partial").touch()
    with pytest.warns(UserWarning, match=r"000001-step-9.partial: unfinished"):
        assert checkpoint.restore(tmp_path, state_at(0)) is None


def test_what_does_not_read_back_is_no_checkpoint(tmp_path, monkeypatch):
    save_steps(tmp_path, 1)
    read = checkpoint._read_arrays
    monkeypatch.setattr(
        checkpoint,
        "_read_arrays",
        lambda path, keys: {name: array + 1 for name, array in read(path, keys).items()},
    )
    with pytest.raises(OSError, match="does not read back"):
        save_steps(tmp_path, 2)
    assert names(tmp_path) == ["000001-step-1", "000002-step-2", "000002-step-2.partial"]


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    """What Orbax raises for it: a ValueError of many lines, after the traces of its threads."""
    save_steps(tmp_path, 1)

    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def save(self, *_, **__):
            raise ValueError("RESOURCE_EXHAUSTED: Error writing\nNo space left on device")

    monkeypatch.setattr(checkpoint, "_checkpointer", Full)
    with pytest.raises(OSError, match=r"000002-step-2: no space left on the disk; the older ones are whole$"):
        save_steps(tmp_path, 2)
    assert names(tmp_path) == ["000001-step-1", "000002-step-2", "000002-step-2.partial"]


# Kills


def save_for_ever(directory: str) -> None:
    """The process that gets killed: resumes, checks what it resumes from, then only saves."""
    checkpoint._orbax()
    print("ready", flush=True)
    sys.stdin.readline()
    found = checkpoint.restore(directory, state_at(0))
    step = found.step if found else 0
    while True:
        step += 1
        save_steps(Path(directory), step, best=(step - step % 3,))
        print(step, flush=True)


def await_partial(folder: Path) -> None:
    """Returns in the middle of a write, or nearly so."""
    known, deadline = set(folder.glob("*.partial")), time.monotonic() + 10
    while not set(folder.glob("*.partial")) - known and time.monotonic() < deadline:
        time.sleep(0.001)


def test_sigkill_leaves_a_good_checkpoint(tmp_path):
    moments, folder = random.Random(0), tmp_path / "checkpoints"
    command = [sys.executable, "-W", "ignore", __file__, str(tmp_path)]
    pipe, log = subprocess.PIPE, (tmp_path / "stderr").open("w")
    children = [
        subprocess.Popen(command, cwd=REPOSITORY, stdin=pipe, stdout=pipe, stderr=log, text=True) for _ in range(4)
    ]
    newest, leftovers = 0, set()
    try:
        for turn, child in enumerate(children):
            assert child.stdout.readline() == "ready\n", (tmp_path / "stderr").read_text()
            print("go", file=child.stdin, flush=True)
            for _ in range(2):
                newest = int(child.stdout.readline())
            await_partial(folder) if turn % 2 else time.sleep(moments.uniform(0, 0.3))
            child.kill()
            newest = int([newest, *child.stdout.read().split()][-1])
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                found = checkpoint.restore(tmp_path, state_at(0))
                best = checkpoint.restore(tmp_path, state_at(0), which="best")
            assert_is_step(found, found.step)
            assert newest <= found.step <= newest + 1
            assert best is None or best.step == found.step - found.step % 3
            assert all(".partial: unfinished" in str(warning.message) for warning in seen)
            assert leftovers <= set(folder.glob("*.partial"))
            leftovers = set(folder.glob("*.partial"))
    finally:
        for child in children:
            child.kill()
            child.communicate()
        log.close()
    assert newest >= 2 * len(children)


@pytest.mark.parametrize(("function", "newest"), [("_write_arrays", 3), ("_seal", 3), ("_prune", 4)])
def test_interrupted_before_each_stage(tmp_path, monkeypatch, function, newest):
    save_steps(tmp_path, 1, 2, 3)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, function, interrupt)
        with pytest.raises(KeyboardInterrupt):
            save_steps(tmp_path, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_is_step(checkpoint.restore(tmp_path, state_at(0)), newest)
    save_steps(tmp_path, 5)
    assert_is_step(checkpoint.restore(tmp_path, state_at(0)), 5)


# Errors


@pytest.mark.parametrize(
    ("like", "message"),
    [
        (
            {"a": jnp.zeros((2, 4)), "n": 1},
            r"state\['a'\] is float32\[2, 3\] there, float32\[2, 4\] wanted",
        ),
        (
            {"a": jnp.zeros((2, 3), jnp.bfloat16), "n": 1},
            r"state\['a'\] is float32\[2, 3\] there, bfloat16\[2, 3\] wanted",
        ),
        (
            {"a": jnp.zeros((2, 3)), "n": jnp.int32(1)},
            r"state\['n'\] is int there, int32\[\] wanted",
        ),
        ({"a": jnp.zeros((2, 3)), "n": 1, "z": 2}, r"state\['z'\] is absent there, int wanted"),
        ({"a": jnp.zeros((2, 3))}, r"state\['n'\] is int there, absent wanted"),
    ],
)
def test_another_tree_is_an_error_that_names_the_leaf(tmp_path, like, message):
    checkpoint.save(tmp_path, 1, {"a": jnp.zeros((2, 3)), "n": 1}, {}, best=False)
    with pytest.raises(ValueError, match=f"000001-step-1 does not fit: .*{message}; usually"):
        checkpoint.restore(tmp_path, like)


def test_which_checkpoint_is_last_or_best(tmp_path):
    with pytest.raises(Exception, match="newest"):  # beartype's error where it checks arguments
        checkpoint.restore(tmp_path, state_at(0), which="newest")


def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match=r"state\['x'\] is str"):
        checkpoint.save(tmp_path, 1, {"x": "words"}, {}, best=False)
    with pytest.raises(TypeError, match="meta must hold plain JSON"):
        checkpoint.save(tmp_path, 1, state_at(1), {"loss": jnp.zeros(())}, best=False)
    with pytest.raises(ValueError, match="state has no leaves"):
        checkpoint.save(tmp_path, 1, {"x": None}, {}, best=False)
    assert list(tmp_path.iterdir()) == []


def test_importing_the_module_does_not_import_orbax():
    code = "import sys, vae_jax.training.checkpoint; sys.exit(any('orbax' in name for name in sys.modules))"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


if __name__ == "__main__":
    save_for_ever(sys.argv[1])
