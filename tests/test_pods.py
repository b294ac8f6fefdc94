"""Runs in several processes, each with devices of its own: one run, whatever their number, and whatever becomes of one.

What is promised bit for bit: a run that is stopped and goes on, on the same mesh, and the same mesh in one process or
in two. Else the sums over a batch have another order.
"""

import fcntl
import json
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from processes import HERE, ends, run, started, wait_until, well

from vae_jax import open_run
from vae_jax.data import load

POD, VAE = (HERE.parent / "experiments" / name for name in ("pod", "vae.py"))
LOST_AFTER = 10  # seconds, as pod_run.py has it


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """A folder that the workers of this session share."""
    base = tmp_path_factory.getbasetemp()
    found = (base.parent if base.name.startswith("popen-") else base) / "pods"
    found.mkdir(exist_ok=True)
    return found


@pytest.fixture(scope="session")
def complete(shared):
    """`(name, processes, devices of each, mesh, options) -> folder` of a run of two epochs that was not disturbed."""

    def made(name, count, devices, mesh, **options):
        folder = shared / name
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (folder / "result.npz").exists():
                shutil.rmtree(folder, ignore_errors=True)
                well(run(folder, count, devices=devices, **of(folder, mesh, **options)))
        return folder

    return made


def of(folder, mesh, **options):
    """Options of pod_run.py."""
    return {"directory": str(folder / "run"), "result": str(folder / "result.npz"), "mesh": mesh, "epochs": 2} | options


def in_two(complete):
    return complete("two", 2, 1, [2, 1])


def rows(run):
    """The lines of metrics.jsonl without what is different each time."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(row.pop("images_per_second") > 0 for row in found)
    return found


def same(folder, other, rtol=0.0, directory=None):
    """The parameters, and all else of the state, and the metrics: bit for bit, or to rounding."""
    with np.load(folder / "result.npz") as got, np.load(other / "result.npz") as wanted:
        assert got.files == wanted.files and len(got.files) > 20
        for name in got.files:
            np.testing.assert_allclose(got[name], wanted[name], rtol=rtol, atol=rtol * 0.1, err_msg=name)
    got, wanted = rows(directory or folder / "run"), rows(other / "run")
    assert [row["epoch"] for row in got] == list(range(1, len(wanted) + 1))
    for one, two in zip(got, wanted, strict=True):
        assert one == (two if rtol == 0 else pytest.approx(two, rel=rtol))


def checkpoints(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir())


ROUNDING = 1e-4


@pytest.mark.parametrize(
    ("name", "count", "devices", "mesh", "sharding"),
    [
        ("two", 2, 1, [2, 1], "replicated"),
        ("two-fsdp", 2, 2, [2, 2], "fsdp"),
        ("four-fsdp", 4, 1, [1, 4], "fsdp"),
    ],
)
def test_several_processes_are_one(complete, name, count, devices, mesh, sharding):
    folder = complete(name, count, devices, mesh, sharding=sharding)
    same(folder, complete("one", 1, 1, [1, 1]), ROUNDING)
    assert len(checkpoints(folder / "run")) == 2
    if name == "two":
        same(folder, complete("one-of-two-devices", 1, 2, mesh))


def test_a_directory_each(complete, shared, tmp_path):
    """A disk each: the first one has the run, the other nothing."""
    options = of(tmp_path, [2, 1], directory=str(tmp_path / "{}" / "run"))
    well(run(tmp_path, 2, **options))
    assert not (tmp_path / "1").exists()
    shutil.move(tmp_path / "0" / "run", tmp_path / "run")
    same(tmp_path, in_two(complete))


@pytest.mark.parametrize(("killed", "where"), [(1, "step"), (0, "evaluation"), (0, "write"), (1, "write")])
def test_a_killed_process_ends_the_others_and_the_run_goes_on(complete, tmp_path, killed, where):
    ended = run(tmp_path, 2, **of(tmp_path, [2, 1], kill=[killed, where]))
    assert ended[killed].code == -signal.SIGKILL and ended[1 - killed].code not in (0, -signal.SIGKILL)
    assert ended[1 - killed].seconds - ended[killed].seconds < LOST_AFTER + 5
    errors = ended[1 - killed].errors
    assert "ends, and with it the run" in errors or "another task died" in errors
    assert rows(tmp_path / "run")[0]["epoch"] == 1

    well(run(tmp_path, 2, **of(tmp_path, [2, 1])))
    same(tmp_path, in_two(complete))


def test_an_error_in_one_process_ends_the_others(tmp_path):
    """At once, where they wait for it in a sum; none waits for the others at its exit."""
    ended = run(tmp_path, 2, **of(tmp_path, [2, 1], fail=1, lost_after=100))
    assert [each.code for each in ended] == [1, -signal.SIGABRT] or [each.code for each in ended] == [1, 1]
    assert abs(ended[0].seconds - ended[1].seconds) < 20
    assert "OSError: the disk of this host is gone" in ended[1].errors
    assert "process 1 of 2 ends, and with it the run" in ended[1].errors
    assert "process 0 of 2 ends, and with it the run" in ended[0].errors


@pytest.mark.parametrize("told", [[1], [0, 1]])
def test_sigterm_saves_and_the_run_goes_on(complete, tmp_path, told):
    ended = run(tmp_path, 2, **of(tmp_path, [2, 1], stop=told))
    for each in ended:
        assert each.code == 1
        assert "SIGTERM came" in each.errors and "holds the state of step" in each.errors and "--resume" in each.errors
    assert len(rows(tmp_path / "run")) == 1

    well(run(tmp_path, 2, **of(tmp_path, [2, 1])))
    same(tmp_path, in_two(complete))


@pytest.mark.parametrize(
    ("count", "devices", "mesh", "sharding"),
    [(1, 1, [1, 1], "replicated"), (1, 4, [2, 2], "fsdp"), (4, 1, [4, 1], "replicated")],
)
def test_a_run_goes_on_on_another_mesh(complete, tmp_path, count, devices, mesh, sharding):
    half = complete("half-fsdp", 2, 1, [1, 2], sharding="fsdp", epochs=1)
    shutil.copytree(half / "run", tmp_path / "run")
    well(run(tmp_path, count, devices=devices, **of(tmp_path, mesh, sharding=sharding)))
    same(tmp_path, in_two(complete), ROUNDING)


def test_the_script_for_pods(tmp_path, monkeypatch):
    """As its README says: two processes, one of them is killed; the same line again goes on. The run opens on one
    device, with the ELBO that was printed but for rounding."""
    script = tmp_path / "mine.py"
    shutil.copy(POD / "train.py", script)
    shutil.copy(POD / "image_vae.py", tmp_path)
    line = ["--directory", str(tmp_path / "run"), "--steps", "60", "--record-every", "20", "--batch-size", "64"]
    with started(tmp_path, script, 2, *line) as children:
        wait_until(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and rows(tmp_path / "run"), children, tmp_path)
        children[1].kill()
        lost, _ = ends(children, tmp_path, 60)
    assert lost.code != 0 and ("ends, and with it the run" in lost.errors or "another task died" in lost.errors)
    with started(tmp_path, script, 2, *line) as children:
        first, second = ended = ends(children, tmp_path)
    well(ended)
    assert "\nELBO -" in first.out and "ELBO" not in second.out
    assert [row["step"] for row in rows(tmp_path / "run")] == [20, 40, 60]
    monkeypatch.syspath_prepend(tmp_path)
    result = open_run(tmp_path / "run").evaluate(jax.random.key(1), load("fashion_mnist_mini", "train").ys[-500:])
    printed = float(re.search(r"\nELBO (-[\d.]+) ±", first.out)[1])
    assert result.elbo.mean() == pytest.approx(printed, rel=1e-3)


def test_an_experiment(tmp_path):
    """The first of two processes prints and writes; a profile of ten steps."""
    small = ["--smoke", "--hidden", "8", "--latent", "2", "--k", "0", "--epochs", "1", "--batch-size", "32"]
    line = [*small, "--out", "here", "--distributed", "--mesh", "data=1,fsdp=-1", "--sharding", "fsdp"]
    with started(tmp_path, VAE, 2, *line, "--profile", str(tmp_path / "profile")) as children:
        first, second = ended = ends(children, tmp_path)
    well(ended)
    assert "test ELBO" in first.out and "report: here" in first.out and "ELBO" not in second.out + second.errors
    assert "evaluating" in first.errors and "evaluating" not in second.errors
    assert {path.name for path in (tmp_path / "here").glob("*.*")} >= {"report.html", "overview.png", "metrics.jsonl"}
    assert len(list((tmp_path / "profile").rglob("*.xplane.pb"))) == 1


def test_no_pod():
    """Where nothing says which processes there are, that is said, in one line."""
    program = "from vae_jax.training import pod\nwith pod(): pass"
    environment = {"PATH": "", "PYTHONPATH": str(HERE.parent), "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("ValueError: the processes of this run are not known (coordinator_")
    assert ended.stderr.splitlines()[-1].endswith("JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID")
