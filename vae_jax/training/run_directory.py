"""The run directory is claimed by one configuration: `config.json` says what the run is; and by one process at a time.

It is a path of `etils.epath`: local, or `gs://bucket/run`. Several processes (a TPU pod) all call `claim`: process 0
alone reads and writes.
"""

import contextlib
import importlib.util
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath
from etils.epath.backend import fsspec_backend

from vae_jax.core.extras import extra
from vae_jax.training.processes import from_first

try:
    import fcntl
except ImportError:  # Windows has other locks
    fcntl = None  # type: ignore[assignment]

PathLike = str | os.PathLike[str]

PARTIAL = ".partial"
LOCK = "lock"
FORMAT = 1  # of config.json; one that an older version cannot open has a larger number
MOST_SHOWN = 10


def claim(
    directory: PathLike, config: dict[str, Any], *, resume: bool, ignore: Iterable[str] = ()
) -> contextlib.ExitStack:
    """Makes `directory` the run of `config`, or makes sure that it is that run already; no other process may claim it
    until the result is closed, or this process ends, however it does.

    There are no locks in `gs://`, where nothing goes with the process that made it: two runs at once in one directory
    are not refused there. A checkpoint that is a mixture of theirs differs from its digests and is skipped.

    Args:
        directory: made where it does not exist; an empty one will do.
        config: what the run is, plain JSON values.
        resume: whether a directory that holds this run already may be continued.
        ignore: fields that may differ ("epochs", nested "optimiser.rate", or a whole "optimiser").

    Raises:
        FileExistsError: the directory holds other things, or this run and `resume` is False.
        BlockingIOError: another process trains in it; the message says which, where and since when.
        OSError: it is a file, or cannot be written.
        ValueError: it holds a run with another configuration; the differing fields are listed.
        TypeError: `config` is not plain JSON.
    """
    text = to_json("config", config)
    with contextlib.ExitStack() as held:
        from_first(lambda: _claim(to_path(directory), text, resume, tuple(ignore), held))
        return held.pop_all()


def _claim(root: epath.Path, text: str, resume: bool, ignore: tuple[str, ...], held: contextlib.ExitStack) -> None:
    check_free(root)
    file = root / "config.json"
    root.mkdir(parents=True, exist_ok=True)
    if is_local(root):
        held.enter_context(_locked(root))
    if file.exists():
        _check_same(root, file, text, resume, ignore)
    else:
        write_whole(file, text)


def check_free(directory: PathLike) -> None:
    """Raise an OSError for a directory in which nothing can be written, or that holds other things than a run."""
    check_writable(directory)
    root = to_path(directory)
    if not (root / "config.json").exists():
        _check_no_others(root)


def check_writable(directory: PathLike) -> None:
    """Raise an OSError for a directory in which nothing can be written, or that cannot be made; makes nothing."""
    root = to_path(directory)
    if not is_local(root):
        return _check_reachable(root)
    root = root.absolute()
    there = next(path for path in (root, *root.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise NotADirectoryError(f"{root} cannot be a directory of results: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{root} cannot be a directory of results: {there} cannot be written; choose another")


def _check_reachable(root: epath.Path) -> None:
    """Of a bucket that is not there, `exists` only says that nothing is in it."""
    bucket = "/".join(str(root).split("/")[:3])
    try:
        fsspec_backend.fs(root).ls(bucket, max_results=1)
    except Exception as error:  # of the libraries for it, each has its own
        missing = isinstance(error, FileNotFoundError)
        why = f"there is no {bucket}" if missing else str(error).partition("\n")[0]
        raise OSError(f"{root} cannot be reached: {why}; usually the bucket or the credentials are others") from error


def _check_no_others(root: epath.Path) -> None:
    if others := sorted(name for name in entries(root) if not name.endswith(PARTIAL) and name != LOCK):
        raise FileExistsError(
            f"{root} is not a run directory: it holds {others[0]} ({len(others)} entries) but "
            "no config.json; choose another directory"
        )


def _check_same(root: epath.Path, file: epath.Path, text: str, resume: bool, ignore: tuple[str, ...]) -> None:
    if differing := _differences(load_config(file), json.loads(text), ignore):
        more = [f"and {len(differing) - MOST_SHOWN} more"] * (len(differing) > MOST_SHOWN)
        raise ValueError(
            f"{root} holds a run with another configuration; choose another directory, or ask for "
            "the same:\n  " + "\n  ".join(differing[:MOST_SHOWN] + more)
        )
    if not resume:
        raise FileExistsError(
            f"{root} holds this run already: continue it with --resume (resume=True), or choose another directory"
        )


@contextlib.contextmanager
def _locked(root: epath.Path) -> Iterator[None]:
    """The directory's lock, which the system takes back from a process that ends; where there are no locks, nothing."""
    with open(root / LOCK, "a+") as file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise BlockingIOError(
                f"{root} is in use: {holder} trains in it. Wait for it, stop it, or choose another directory"
            ) from None
        except OSError:  # a file system without locks
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')},")
        file.flush()
        yield


def to_json(argument: str, value: Any) -> str:
    """`value` as JSON text.

    Raises:
        TypeError: it holds something else than plain JSON values; `argument` names it.
    """
    try:
        return json.dumps(value, indent=1)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{argument} must hold plain JSON values only: {error}") from error


def load_config(file: epath.Path) -> Any:
    """What config.json says.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); choose another directory") from error


def _differences(there: Any, asked: Any, ignore: tuple[str, ...]) -> list[str]:
    """One line for each field that differs, nested ones by their dotted names."""
    old, new = _fields(there), _fields(asked)
    lines = []
    for name in {**old, **new}:
        same = name in old and name in new and old[name] == new[name]
        if not same and not any(f"{name}.".startswith(f"{field}.") for field in ignore):
            got, want = (repr(each[name]) if name in each else "absent" for each in (old, new))
            lines.append(f"{name}: {got} there, {want} asked")
    return lines


def _fields(config: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(config, dict) or not config:
        return {prefix: config}
    return {
        name: value
        for key, nested in config.items()
        for name, value in _fields(nested, f"{prefix}.{key}" if prefix else key).items()
    }


# Paths


def to_path(directory: PathLike) -> epath.Path:
    """A local directory, or one of a bucket: `gs://bucket/run`.

    Raises:
        ImportError: what reads `gs://` is not installed.
    """
    path = epath.Path(directory)
    if not is_local(path) and importlib.util.find_spec("tensorflow") is None:  # which etils takes where it is
        with extra("gcs", "a directory on gs://"):
            import gcsfs  # noqa: F401
    return path


def is_local(path: epath.Path) -> bool:
    return "://" not in str(path)


def entries(folder: epath.Path) -> list[str]:
    """The names in a folder, as they are now: other processes write there as well."""
    if not is_local(folder):
        fsspec_backend.fs(folder).invalidate_cache()
    return [path.name for path in folder.iterdir()] if folder.exists() else []


def files_under(folder: epath.Path) -> Iterator[epath.Path]:
    """Every file in a folder and its folders."""
    for name in sorted(entries(folder)):
        path = folder / name
        if path.is_dir():
            yield from files_under(path)
        else:
            yield path


def write_whole(file: epath.Path, text: str) -> None:
    """Writes a file that is there whole or not at all, as those of buckets are by themselves."""
    if not is_local(file):
        file.write_text(text)
    else:
        partial = file.with_name(file.name + PARTIAL)
        partial.write_text(text)
        partial.replace(file)
