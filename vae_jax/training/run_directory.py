"""The run directory is claimed by one configuration: `config.json` says what the run is; and by one process at a time.

Several processes (a TPU pod) may all call `claim`: process 0 alone reads and writes.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax

try:
    import fcntl
except ImportError:  # Windows has other locks
    fcntl = None  # type: ignore[assignment]

PathLike = str | os.PathLike[str]

PARTIAL = ".partial"
LOCK = "lock"
MOST_SHOWN = 10


def claim(
    directory: PathLike, config: dict[str, Any], *, resume: bool, ignore: Iterable[str] = ()
) -> contextlib.ExitStack:
    """Makes `directory` the run of `config`, or makes sure that it is that run already; no other process may claim it
    until the result is closed, or this process ends, however it does.

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
        if jax.process_index() == 0:
            root = Path(directory)
            check_writable(root)
            file = root / "config.json"
            if not file.exists():
                _check_no_others(root)
            root.mkdir(parents=True, exist_ok=True)
            held.enter_context(_locked(root))
            if file.exists():
                _check_same(root, file, text, resume, ignore)
            else:
                partial = file.with_name(file.name + PARTIAL)
                partial.write_text(text)
                partial.replace(file)
        return held.pop_all()


def check_writable(directory: PathLike) -> None:
    """Raise an OSError for a directory in which nothing can be written, or that cannot be made; makes nothing."""
    root = Path(directory).absolute()
    there = next(path for path in (root, *root.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise NotADirectoryError(f"{root} cannot be a directory of results: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{root} cannot be a directory of results: {there} cannot be written; choose another")


def _check_no_others(root: Path) -> None:
    found = root.iterdir() if root.exists() else ()
    if others := sorted(e.name for e in found if e.suffix != PARTIAL and e.name != LOCK):
        raise FileExistsError(
            f"{root} is not a run directory: it holds {others[0]} ({len(others)} entries) but "
            "no config.json; choose another directory"
        )


def _check_same(root: Path, file: Path, text: str, resume: bool, ignore: Iterable[str]) -> None:
    if differing := _differences(_load_config(file), json.loads(text), tuple(ignore)):
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
def _locked(root: Path) -> Iterator[None]:
    """The directory's lock, which the system takes back from a process that ends; where there are no locks, nothing."""
    with (root / LOCK).open("a+") as file:
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


def _load_config(file: Path) -> Any:
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
