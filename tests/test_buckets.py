"""Run directories in a bucket, gs://, of an emulator of Google's storage: saved, damaged, killed in, gone on with."""

import contextlib
import json
import signal
import sys
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from etils import epath
from etils.epath.backend import fsspec_backend
from pod_state import numbers
from processes import HERE, ends, free_port, go, run, started, well
from test_checkpoint import assert_is_step, save_steps, state_at
from test_pods import ROUNDING, of, rows, same

from experiments import vae
from vae_jax.command import publish
from vae_jax.command.config import Run
from vae_jax.training import checkpoint
from vae_jax.training.run_directory import check_writable, claim, files_under

EPOCHS = 4


@pytest.fixture(scope="module")
def bucket():
    """What is stored in gs://bucket, which this process and those that it starts see."""
    from gcp_storage_emulator import server

    class Handler(server.RequestHandler):
        """Answers with the object's generation, as Google does, which tensorstore asks for."""

        def end_headers(self):
            name = unquote(urlsplit(self.path).path.rpartition("/o/")[2])
            if (found := self.storage.objects.get("bucket", {}).get(name)) is not None:
                self.send_header("x-goog-generation", found["generation"])
            super().end_headers()

    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "RequestHandler", Handler)
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{port}")
        patch.setenv("NO_GCE_CHECK", "true")  # no search for credentials
        patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # what kind of bucket it is, the emulator cannot say
        with server.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket") as running:
            running._storage.buckets["bucket"]["softDeletePolicy"]["retentionDurationSeconds"] = "0"
            yield running._storage
        fsspec_backend.fs("gs://").clear_instance_cache()
        fsspec_backend._get_filesystem.cache_clear()


@pytest.fixture
def directory(bucket, request):
    """A run directory of this test."""
    return epath.Path(f"gs://bucket/{request.node.name}/run")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that is not disturbed, of one process, in a local directory."""
    folder = tmp_path_factory.mktemp("whole")
    well(run(folder, 1, **of(folder, [1, 1], epochs=EPOCHS)))
    return folder


def names(bucket, directory):
    """The checkpoints that are there, whole or not, and the marks of unfinished ones."""
    prefix = f"{directory}/checkpoints/".removeprefix("gs://bucket/")
    return sorted({name.removeprefix(prefix).split("/")[0] for name in bucket.objects["bucket"] if prefix in name})


def test_checkpoints_are_whole_or_named(bucket, directory):
    assert checkpoint.restore(directory, state_at(0)) is None
    save_steps(directory, 1, 2, 3, 4, best=(1,))
    assert names(bucket, directory) == ["000001-step-1", "000003-step-3", "000004-step-4"]
    assert_is_step(checkpoint.restore(str(directory), state_at(0)), 4)
    assert_is_step(checkpoint.restore(directory, state_at(0), which="best"), 1)

    third, fourth, fifth = (directory / "checkpoints" / f"00000{step}-step-{step}" for step in (3, 4, 5))
    (third / "manifest.json").unlink()
    changed = max(files_under(fourth / "arrays"), key=lambda file: file.stat().length)
    data = bytearray(changed.read_bytes())
    data[len(data) // 2] ^= 1
    changed.write_bytes(bytes(data))
    fifth.with_name(f"{fifth.name}.partial").touch()
    with pytest.warns(UserWarning) as seen:
        assert_is_step(checkpoint.restore(directory, state_at(0)), 1)
    says = [
        f"{fifth}.partial: unfinished",
        f"{fourth}: {changed.relative_to(fourth)} was changed",
        f"{third}: manifest.json does not read",
    ]
    for what, warning in zip(says, seen, strict=True):
        assert str(warning.message).startswith(f"checkpoint skipped, not deleted: {what}")
        assert str(warning.message).endswith("; using 000001-step-1")
    save_steps(directory, 6)
    damaged = [third.name, fourth.name, f"{fifth.name}.partial"]
    assert names(bucket, directory) == ["000001-step-1", *damaged, "000006-step-6"]


def test_a_directory_takes_one_configuration(directory):
    claim(directory, {"a": 1}, resume=False).close()
    claim(directory, {"a": 1}, resume=True).close()
    with pytest.raises(ValueError, match="a: 1 there, 2 asked"):
        claim(directory, {"a": 2}, resume=True)
    with pytest.raises(FileExistsError, match=f"{directory} holds this run already"):
        claim(directory, {"a": 1}, resume=False)
    (directory.parent / "other" / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match=r"it holds thesis\.tex"):
        claim(directory.parent / "other", {}, resume=False)


def test_a_bucket_that_is_not_there(bucket, monkeypatch):
    check_writable("gs://bucket/nothing/yet")
    says = "^gs://another/run cannot be reached: there is no gs://another; usually the bucket or the credentials are"
    with pytest.raises(OSError, match=says):
        check_writable("gs://another/run")
    with pytest.raises(OSError, match=says):
        claim("gs://another/run", {}, resume=False)
    monkeypatch.setattr(sys, "argv", ["experiment", "--out", "gs://another/run"])
    with pytest.raises(SystemExit, match=says.replace("^", "^error: ")):
        publish.run(publish.timed(lambda options: None), Run)


@contextlib.contextmanager
def watched(bucket, method, see):
    """`see` is told the name of each file, before the bucket does `method` with it."""
    do = getattr(bucket, method)

    def told(where, name, *others):
        see(name)
        return do(where, name, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bucket, method, told)
        yield


def test_killed_and_resumed_equals_uninterrupted(bucket, directory, tmp_path, whole):
    """In a step; when all of a checkpoint but its manifest is written; when a part of an older one is removed."""
    options = of(tmp_path, [1, 1], directory=str(directory), epochs=EPOCHS)
    [killed] = run(tmp_path / "step", 1, **options, kill=[0, "step"])
    assert killed.code == -signal.SIGKILL and rows(directory)

    moments = {"create_file": "/manifest.json", "delete_file": "/arrays/"}
    for method, part in moments.items():
        folder = tmp_path / method
        with (
            started(folder, HERE / "pod_run.py", 1, json.dumps(options)) as [child],
            watched(bucket, method, lambda name, part=part, child=child: part in name and child.kill()),
        ):
            go([child], folder)
            [killed] = ends([child], folder)
        assert killed.code == -signal.SIGKILL, killed.errors
        left = [name for name in names(bucket, directory) if name.endswith(".partial")]
        assert len(rows(directory)) < EPOCHS and left

    ended = run(tmp_path / "last", 1, **options)
    well(ended)
    same(tmp_path, whole, directory=directory)
    assert len(left) >= 2 and set(left) <= set(names(bucket, directory))
    for name in left:
        assert f"{name}: unfinished" in ended[0].errors


def test_two_processes_write_one_checkpoint(bucket, directory, tmp_path):
    """Each reads its rows of it again, and one process all. None writes a file more often than a bucket takes it."""
    written = []
    with (
        started(tmp_path, HERE / "pod_state.py", 2, str(directory)) as children,
        watched(bucket, "create_file", written.append),
    ):
        go(children, tmp_path)
        well(ends(children, tmp_path))
    index = f"{directory}/checkpoints/000001-step-7/arrays/1/manifest.ocdbt"
    assert 0 < written.count(index.removeprefix("gs://bucket/")) <= 2
    found = checkpoint.restore(directory, {name: np.zeros_like(array) for name, array in numbers().items()})
    for name, array in numbers().items():
        np.testing.assert_array_equal(found.state[name], array)


def test_a_run_of_two_processes(directory, tmp_path, whole):
    options = of(tmp_path, [1, 2], directory=str(directory), epochs=EPOCHS, sharding="fsdp")
    well(run(tmp_path, 2, **options))
    same(tmp_path, whole, ROUNDING, directory)


@pytest.mark.usefixtures("quickly_compiled")
def test_an_experiment(directory, monkeypatch, capsys):
    small = ["--smoke", "--hidden", "8", "--latent", "2", "--k", "0", "--epochs", "1", "--batch-size", "32", "--out"]
    monkeypatch.setattr(sys, "argv", ["vae.py", *small, str(directory)])
    publish.run(vae.main, vae.Config)
    assert f"report: {directory}/report.html" in capsys.readouterr().out
    assert (directory / "report.html").read_text().startswith("<!doctype html>")
    assert (directory / "overview.png").read_bytes().startswith(b"\x89PNG")
    assert len(rows(directory)) == 1
