"""A run that is killed with SIGKILL, again and again, ends with the parameters of the run that is not, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
EPOCHS = 16
PATIENCE_SECONDS = 200


def start(folder):
    """A process that has imported everything and waits for a line; those of one folder share what they compile."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, HERE / "resumable_run.py", folder, str(EPOCHS)]
    environment = {
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=os.environ | environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def go(child):
    said = child.stdout.readline()
    assert said == "ready\n", f"exit code {child.wait()}: {child.stderr.read()}"
    print(file=child.stdin, flush=True)


def wait_until(happened, child):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert child.poll() is None, f"it ended before it could be killed: {child.stderr.read()}"
        assert time.monotonic() < deadline, "it makes no progress"
        time.sleep(0.001)


def epochs_done(run):
    metrics = run / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else -1


def unfinished(run):
    return set((run / "checkpoints").glob("*.partial"))


def kill_while_writing(child, run):
    """Stop it when an unfinished checkpoint appears; kill it if it is still there then, else wait for the next."""
    known = unfinished(run)
    while True:
        wait_until(lambda: unfinished(run) - known, child)
        child.send_signal(signal.SIGSTOP)
        os.waitpid(child.pid, os.WUNTRACED)
        if unfinished(run) - known:
            return kill(child)
        child.send_signal(signal.SIGCONT)


def kill(child):
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL


def damage_newest(run):
    """Flip one bit of the newest checkpoint's largest array file; the checkpoint's name."""
    begun = {path.stem for path in unfinished(run)}
    newest = max(path for path in (run / "checkpoints").iterdir() if path.stem not in begun)
    file = max(
        (file for file in (newest / "arrays").rglob("*") if file.is_file()), key=lambda file: file.stat().st_size
    )
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return newest.name


def rows(run):
    """The lines of metrics.jsonl without what is different each time."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(row.pop("images_per_second") > 0 for row in found)
    return found


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    moments, whole, cut = random.Random(0), tmp_path / "whole", tmp_path / "cut"
    run = cut / "run"
    uninterrupted, *children = [start(whole)] + [start(cut) for _ in range(5)]
    try:
        first, second, third, fourth, last = children

        go(uninterrupted)  # beside the others
        go(first)  # killed before there is a checkpoint
        wait_until(lambda: epochs_done(run) == 0, first)
        time.sleep(moments.uniform(0, 0.2))
        kill(first)

        go(second)
        wait_until(lambda: epochs_done(run) >= 3, second)
        kill_while_writing(second, run)
        written = epochs_done(run)

        go(third)  # killed wherever it is
        wait_until(lambda: epochs_done(run) >= written + 3, third)
        time.sleep(moments.uniform(0, 0.3))
        kill(third)
        written = epochs_done(run)

        go(fourth)
        wait_until(lambda: epochs_done(run) >= written + 2, fourth)
        kill_while_writing(fourth, run)
        written, leftovers, damaged = epochs_done(run), unfinished(run), damage_newest(run)
        assert written < EPOCHS - 1 and len(leftovers) >= 2

        go(last)
        for child in (uninterrupted, last):
            _, errors = child.communicate(timeout=PATIENCE_SECONDS)
            assert child.returncode == 0, errors
    finally:
        for child in (uninterrupted, *children):
            child.kill()
            child.communicate()

    assert f"{damaged}: " in errors and "was changed" in errors and "using " in errors
    for path in leftovers:
        assert f"{path.name}: unfinished" in errors
    assert leftovers | {run / "checkpoints" / damaged} <= set((run / "checkpoints").iterdir())  # nothing is deleted

    assert len(rows(run)) == EPOCHS
    assert rows(run) == rows(whole / "run")
    with np.load(cut / "result.npz") as got, np.load(whole / "result.npz") as wanted:
        assert got.files == wanted.files and len(got.files) > 20
        for name in got.files:
            assert (got[name].dtype, got[name].shape) == (wanted[name].dtype, wanted[name].shape)
            assert got[name].tobytes() == wanted[name].tobytes(), name
