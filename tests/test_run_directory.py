"""One run directory, one configuration."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vae_jax.command import publish
from vae_jax.command.config import Run
from vae_jax.training.checkpoint import DamagedError
from vae_jax.training.run_directory import check_writable, claim

CONFIG = {"data": "mnist", "epochs": 3, "optimiser": {"rate": 0.5, "clip": None}, "units": (5, 2)}


@pytest.mark.parametrize("exists", [False, True])
def test_a_new_or_empty_directory_becomes_the_run(tmp_path, exists):
    run = tmp_path / "runs" / "vae"
    if exists:
        run.mkdir(parents=True)
        (run / "config.json.partial").write_text("{")  # killed while writing it
    claim(run, CONFIG, resume=False).close()
    assert json.loads((run / "config.json").read_text()) == {**CONFIG, "units": [5, 2]}
    assert {path.name for path in run.iterdir()} == {"config.json", "lock"}
    claim(run, CONFIG, resume=True).close()


def test_a_run_is_continued_only_on_request(tmp_path):
    claim(tmp_path, CONFIG, resume=True).close()  # nothing there yet: a new run
    with pytest.raises(FileExistsError, match=r"holds this run already.*--resume.*another directory"):
        claim(tmp_path, CONFIG, resume=False)


@pytest.mark.parametrize("resume", [False, True])
def test_another_configuration_is_refused_with_its_differences(tmp_path, resume):
    claim(tmp_path, CONFIG, resume=False).close()
    other = {"data": "emoji", "epochs": 9, "optimiser": {"rate": 0.5}, "units": [5, 2], "ema": 0.9}
    with pytest.raises(ValueError, match="another configuration") as error:
        claim(tmp_path, other, resume=resume)
    assert str(error.value).splitlines()[1:] == [
        "  data: 'mnist' there, 'emoji' asked",
        "  epochs: 3 there, 9 asked",
        "  optimiser.clip: None there, absent asked",
        "  ema: absent there, 0.9 asked",
    ]
    claim(tmp_path, other, resume=True, ignore=["data", "epochs", "optimiser", "ema"]).close()
    with pytest.raises(ValueError, match="data: 'mnist' there"):
        claim(tmp_path, other, resume=True, ignore=["dat", "epochs", "optimiser.clip", "ema"])


def test_a_directory_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"not a run directory: it holds thesis.tex"):
        claim(tmp_path, CONFIG, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_or_impossible_configuration(tmp_path):
    with pytest.raises(TypeError, match="config must hold plain JSON"):
        claim(tmp_path, {"path": Path()}, resume=False)
    (tmp_path / "config.json").write_text('{"data": ')
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        claim(tmp_path, CONFIG, resume=True)


def test_few_of_many_differences_are_listed(tmp_path):
    claim(tmp_path, CONFIG, resume=False).close()
    with pytest.raises(ValueError, match=r"\n  9: absent there, 0 asked\n  and 3 more$"):
        claim(tmp_path, CONFIG | {str(i): 0 for i in range(13)}, resume=True)


def test_a_process_holds_the_directory_until_it_ends_however_it_does(tmp_path):
    """Another process is refused with the first one's name; SIGKILL and a lock file that stays do not matter."""
    child = f"""
from vae_jax.training.run_directory import claim
held = claim({str(tmp_path)!r}, {{}}, resume=True)
print("held", flush=True)
input()"""
    holder = subprocess.Popen(
        [sys.executable, "-c", child], stdin=-1, stdout=-1, text=True, cwd=Path(__file__).parents[1]
    )
    try:
        assert holder.stdout.readline() == "held\n"
        says = rf"in use: process {holder.pid} on {re.escape(socket.gethostname())}, since 2\d+-.*Wait for it"
        for resume in (False, True):
            with pytest.raises(BlockingIOError, match=says):
                claim(tmp_path, {}, resume=resume)
    finally:
        holder.kill()
        holder.communicate()
    with claim(tmp_path, {}, resume=True), pytest.raises(BlockingIOError, match=f"process {os.getpid()} "):
        claim(tmp_path, {}, resume=True)  # nor twice in one process
    claim(tmp_path, {}, resume=True).close()


def test_a_directory_that_cannot_be(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for where in ("file", "file/run"):
        with pytest.raises(NotADirectoryError, match=rf"{where} cannot be .*{tmp_path}/file is a file"):
            claim(tmp_path / where, CONFIG, resume=False)
    check_writable(tmp_path / "new" / "run")
    monkeypatch.setattr(os, "access", lambda *_: False)  # to root, all can be written
    with pytest.raises(PermissionError, match=f"{tmp_path} cannot be written"):
        check_writable(tmp_path / "new" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_command_line_says_in_one_line_what_is_wrong_with_its_directory(tmp_path, monkeypatch):
    """A file for a directory, before anything is done; and checkpoints that are all damaged."""

    def main(options):
        seen.append(options.out)
        raise DamagedError("no good checkpoint (none deleted)")

    (tmp_path / "file").touch()
    seen = []
    for out, message in (("file", "file is a file$"), ("run", r"^error: no good checkpoint \(none deleted\)$")):
        monkeypatch.setattr(sys, "argv", ["experiment", "--out", str(tmp_path / out)])
        with pytest.raises(SystemExit, match=message):
            publish.run(publish.timed(main), Run)
    assert seen == [str(tmp_path / "run")]
