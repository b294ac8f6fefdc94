"""How examples reach the step: from the device, from a source, over a mesh; how a run is cut, stopped and continued."""

import datetime
import os
import re
import signal
import threading
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from vae_jax import fit, l2, standard_normal, vae
from vae_jax.selfcheck.solvable import affine, affine_normal
from vae_jax.training import Preempted, fsdp
from vae_jax.training.plan import Clock, Plan, call_sizes

MODEL = vae(affine_normal(2), standard_normal(2), l2(affine(4), 0.5))
YS = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
NEAR = YS[:9] + np.float32(0.1)
KEY = jax.random.key(0)


def run(ys=YS, **options):
    """6 steps of 8 examples an epoch; 2 of the 50 examples wait for the next order."""
    length = {} if "steps" in options else {"epochs": 3}
    options = {"key": KEY, "batch_size": 8, "validation": (NEAR, None), "progress": False} | length | options
    return fit(MODEL, optax.adam(1e-2), ys, **options)


def assert_same_bits(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def assert_close(got, want, rtol=2e-5, atol=1e-6):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))


def without_speed(history):
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in history]


@pytest.fixture(scope="module")
def on_one_device():
    return run()


def by_rows(path, shape, mesh):
    return PartitionSpec("fsdp") if "gen/weights" in path else fsdp(path, shape, mesh)


@pytest.mark.parametrize(
    ("axes", "sharding", "split"),
    [
        ({"batch": 4}, "replicated", False),
        ({"data": 2, "fsdp": 2}, "fsdp", True),
        ({"fsdp": 4}, by_rows, True),
    ],
)
def test_the_numbers_do_not_depend_on_the_mesh(on_one_device, axes, sharding, split):
    """Axes as `jax.make_mesh` gives them, explicit."""
    mesh = jax.make_mesh(tuple(axes.values()), tuple(axes))
    fitted = run(mesh=mesh, sharding=sharding)
    assert_close((fitted.state, fitted.params), (on_one_device.state, on_one_device.params))
    assert_close(without_speed(fitted.history), without_speed(on_one_device.history))
    matrices = [x for x in jax.tree.leaves(fitted.state) if x.ndim == 2]
    assert len(matrices) == 6  # two parameters and Adam's averages of them
    assert all(len(x.sharding.device_set) == 4 and x.sharding.is_fully_replicated != split for x in matrices)


class Items:
    """Neither an array nor a list: it is read. `then` is called at the read number `at` of those that `counts`."""

    def __init__(self, at=None, then=None, counts=lambda: True):
        self.at, self.then, self.counts, self.asked = at, then, counts, 0

    def __len__(self):
        return len(YS)

    def __getitem__(self, place):
        if self.at and self.counts():
            self.asked += 1
            if self.asked == self.at:
                self.then()
        return YS[place]


def test_a_source_is_visited_in_the_order_of_arrays(on_one_device, tmp_path):
    np.save(tmp_path / "ys.npy", YS)
    for ys in (np.load(tmp_path / "ys.npy", mmap_mode="r"), Items()):
        assert_close(run(ys).state, on_one_device.state)
    assert_close(run(Items(), mesh=jax.make_mesh((4,), ("data",))).state, on_one_device.state)


def test_records_go_by_steps(on_one_device):
    """7 steps from one to the next, over the ends of epochs of 6; as many steps as in three epochs."""
    fitted = run(steps=18, record_every=7, validate_every=2)
    assert [(row["step"], row["epoch"]) for row in fitted.history] == [(7, 7 / 6), (14, 14 / 6), (18, 3)]
    assert ["valid_elbo" in row for row in fitted.history] == [False, True, True]
    assert_close(fitted.state, on_one_device.state)
    losses = [sum(row["loss"] * steps for row, steps in zip(rows, counts, strict=True)) for rows, counts in
              ((fitted.history, (7, 7, 4)), (on_one_device.history, (6, 6, 6)))]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_records_go_by_time(monkeypatch):
    now = iter(range(0, 1000, 40))
    monkeypatch.setattr("vae_jax.training.plan.time", SimpleNamespace(monotonic=lambda: next(now)))
    fitted = run(record_every=datetime.timedelta(minutes=2), steps_per_call=2)
    assert [row["step"] for row in fitted.history] == [6, 12, 18]


def test_no_record_by_time_where_none_is_asked_for():
    assert not Clock(None).due() and not Clock(3).due()


@pytest.mark.parametrize("at", [1 + 8, 1 + 8 * 8])
def test_a_run_that_gets_sigterm_is_continued_bit_for_bit(tmp_path, at):
    """It stops between two records, or within the second; what it has measured of an epoch is not lost."""
    options = {"steps_per_call": 2, "validation": None}
    whole = run(Items(), **options)
    reads, here = [], signal.getsignal(signal.SIGTERM)

    def stop():
        reads.append(at)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Preempted) as caught:
        run(Items(at, stop, (tmp_path / "metrics.jsonl").exists), directory=tmp_path, **options)
    message = re.fullmatch(
        rf"SIGTERM came: {tmp_path} holds the state of step (\d+) of 18; continue it with --resume \(resume=True\)",
        str(caught.value),
    )
    assert reads and message and 0 < int(message[1]) < 18
    assert signal.getsignal(signal.SIGTERM) is here
    end = time.monotonic() + 5
    while any(thread.name.startswith("grain") for thread in threading.enumerate()):
        assert time.monotonic() < end, "something reads on"
        time.sleep(0.01)
    rest = run(Items(), directory=tmp_path, resume=True, **options)
    assert_same_bits(rest.state, whole.state)
    assert without_speed(rest.history) == without_speed(whole.history)


@given(st.integers(1, 300), st.integers(1, 60), st.integers(1, 20), st.data())
def test_what_is_left_of_a_run_is_cut_as_the_whole_is(last, record, per_call, data):
    plan = Plan(last, record, 10, 1, per_call)
    calls = list(plan.calls(0))
    assert sum(size for size, _ in calls) == last and max(size for size, _ in calls) <= per_call
    ends = np.cumsum([size for size, _ in calls])
    assert [int(end) for end, (_, records) in zip(ends, calls, strict=True) if records] == [
        *range(record, last, record),
        last,
    ]
    stopped = data.draw(st.integers(0, len(calls)))
    assert list(plan.calls(int(np.sum([size for size, _ in calls[:stopped]])))) == calls[stopped:]
    elsewhere = data.draw(st.integers(0, last))
    assert sum(size for size, _ in plan.calls(elsewhere)) == last - elsewhere


def test_a_trace_is_of_the_second_call(tmp_path):
    run(epochs=1, profile=tmp_path, validation=None, steps_per_call=3)
    assert [file for file in tmp_path.rglob("*.xplane.pb") if file.stat().st_size]


MESH = jax.make_mesh((4,), ("data",))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"epochs": None}, ValueError, "in epochs or in steps; got epochs=None and steps=None"),
        ({"epochs": 2, "steps": 3}, ValueError, "in epochs or in steps; got epochs=2 and steps=3"),
        ({"epochs": None, "steps": 0}, ValueError, "want steps >= 1, a whole number; got 0"),
        ({"record_every": 2.5}, ValueError, "want record_every >= 1, a whole number; got 2.5"),
        ({"record_every": datetime.timedelta()}, ValueError, "time between two records; got 0:00:00"),
        ({"steps_per_call": 0}, ValueError, "want steps_per_call >= 1, a whole number; got 0"),
        ({"mesh": 4}, TypeError, "mesh wants one of jax.make_mesh.*got int"),
        (
            {"mesh": MESH, "batch_size": 6},
            ValueError,
            r"batch_size=6 does not divide over the 4 devices.*multiple of 4",
        ),
        (
            {"mesh": MESH, "sharding": "fsdp"},
            ValueError,
            r'wants a mesh with an axis "fsdp"; this one has \(\'data\',\)',
        ),
        ({"sharding": "fsdp"}, ValueError, "pass mesh= too"),
        (
            {"mesh": MESH, "sharding": lambda path, shape, mesh: PartitionSpec("data") if shape else PartitionSpec()},
            ValueError,
            r"splits params/enc/bias of shape \(2,\) by .* over {'data': 4}, which does not divide",
        ),
        ({"mesh": MESH, "sharding": "fspd"}, TypeError, "'fspd'"),
    ],
)
def test_what_cannot_be_placed_or_cut_is_said(options, error, message):
    with pytest.raises(error, match=message):
        run(**({"epochs": 3} | options))


def test_sizes_of_calls_are_equal_where_they_can_be():
    assert call_sizes(300, 100) == [100] * 3 and call_sizes(101, 100) == [100, 1] and call_sizes(6, 4) == [3, 3]


def test_several_processes_want_a_mesh(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="2 processes train one model on one mesh of all their devices"):
        run()


def test_the_state_stays_where_the_rule_says(tmp_path):
    """Also after it was read again, on a mesh of another shape."""
    options = {"directory": tmp_path, "sharding": "fsdp"}
    run(epochs=1, mesh=jax.make_mesh((2, 2), ("data", "fsdp")), **options)
    fitted = run(epochs=2, mesh=jax.make_mesh((1, 4), ("data", "fsdp")), resume=True, **options)
    assert_close(fitted.state, run(epochs=2).state)
    assert {x.sharding.mesh.shape["fsdp"] for x in jax.tree.leaves(fitted.state)} == {4}
    assert jnp.ndim(fitted.state.step) == 0
