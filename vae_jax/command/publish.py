"""How an experiment ends: its report is written, its table is printed, and its numbers are returned."""

import contextlib
import dataclasses
import functools
import io
import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import jax
import numpy as np

import vae_jax
from vae_jax.command.config import Run
from vae_jax.core.extras import extra
from vae_jax.data.local import path_of
from vae_jax.report import page
from vae_jax.training import Preempted, pod, recipe, save_run
from vae_jax.training.checkpoint import DamagedError
from vae_jax.training.recipes import module_of
from vae_jax.training.run_directory import PathLike, check_free, load_config, to_path

SMOKE = (
    "A smoke run: few examples, few passes over them, small models, to see that all works. Its numbers are those of "
    "models that have hardly been trained: they are not to be held against theory, nor against those of a full run."
)
COMMAND = "vae-jax"  # the console command
_began: ContextVar[float] = ContextVar("_began")


def timed(main: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`main` of an experiment, whose report says how long it took; what cannot be written in the end is said before."""

    @functools.wraps(main)
    def wrapped(config: Any) -> Any:
        if isinstance(config, Run) and jax.process_index() == 0:
            check_out(config)
        token = _began.set(time.perf_counter())
        try:
            return main(config)
        finally:
            _began.reset(token)

    return wrapped


def check_out(config: Run) -> None:
    """Raise an OSError for a directory `out` that holds other things than a run, a ValueError for another's run."""
    root = to_path(config.out if "://" in config.out else path_of(config.out))
    check_free(root)
    file = root / "config.json"
    function = load_config(file).get("recipe", {}).get("function", "") if file.exists() else ""
    if function and function.partition(":")[0] != module_of(type(config)):
        raise ValueError(f"{root} holds a run of {function.partition(':')[0]}: choose another directory")


def write(
    name: str, config: Any, *, title: str, lead: str, table: Sequence[page.Row], sections: Sequence[page.Section]
) -> dict[str, Any]:
    """Write `config.out`/report.html and numbers.json, print the table, and return it by the names of its rows.

    The page says when its numbers are those of a smoke run, and ends with the time, the device and the versions. Of
    several processes, the first writes.

    Args:
        name: the experiment's module, as in `python -m experiments.NAME`.
        config: its dataclass.
    """
    numbers = {row.name: row.value for row in table}
    if jax.process_index() != 0:
        return numbers
    path = page.write(
        to_path(config.out) / "report.html",
        title=title,
        lead=lead,
        table=table,
        sections=sections,
        configuration=dataclasses.asdict(config),
        command=command(name),
        notice=SMOKE if config.smoke else "",
        foot=made(time.perf_counter() - _began.get(), resumed=getattr(config, "resume", False)),
    )
    (to_path(config.out) / "numbers.json").write_text(json.dumps(plain_rows(table), indent=1))
    print(page.table_text(table))
    if config.smoke:
        print(f"\n{SMOKE}")
    print(f"\nreport: {path}")
    return numbers


def save(
    config: Any,
    rebuild: Callable[..., Any],
    params: Any,
    y: Any,
    c: Any = None,
    *,
    history: Any = (),
    folder: str = "",
    **arguments: Any,
) -> PathLike:
    """Keep a trained model in `config.out`, or in a folder of it, for `vae_jax.open_run`; returns where.

    Args:
        rebuild: from `arguments` and the fields of the configuration, as JSON has them (`read_back`), to the model, or
            to (model, preprocess); a function at the top of the experiment's module.
        params, y, c: as `vae_jax.training.save_run` has them.
        history: rows of `fit`, or the climb of EM.
    """
    if isinstance(history, np.ndarray):
        history = [{"iteration": i, "log_p": float(x)} for i, x in enumerate(history)]
    made = recipe(rebuild, **arguments, **fields(config))
    directory = to_path(config.out) / folder
    save_run(directory, made, params, y, c, config=fields(config), history=history)
    return directory


def save_all(
    config: Any, rebuild: Callable[..., Any], trained: Mapping[str, Any], y: Any, *, main: str, **arguments: Any
) -> list[PathLike]:
    """`save` each of several models, whose `name` is told to `rebuild`: `main` in `out` itself, others in `out`/NAME.

    Returns where they are.

    Args:
        trained: what has params and a history, by name.
    """
    directories = []
    for name in sorted(trained, key=lambda name: name != main):  # a folder in `out` comes after `out`
        one, folder = trained[name], "" if name == main else name
        directories.append(
            save(config, rebuild, one.params, y, history=one.history, folder=folder, name=name, **arguments)
        )
    return directories


def plain_rows(table: Sequence[page.Row]) -> list[dict[str, Any]]:
    """A table for JSON, which has no numbers of numpy's, and no NaN."""

    def plain(value):
        value = value.item() if isinstance(value, np.generic) else value
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return [{name: plain(value) for name, value in row._asdict().items()} for row in table]


def made(seconds: float, *, resumed: bool) -> str:
    """How long a run took, on what, with which versions."""
    minutes, rest = divmod(round(seconds), 60)
    took = f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
    devices = jax.devices()
    cores = f" ({os.cpu_count()} cores)" if devices[0].platform == "cpu" else ""
    versions = f"vae_jax {vae_jax.__version__}, jax {jax.__version__}, Python {platform.python_version()}"
    since = " since its last start" if resumed else ""
    return f"Made in {took}{since} on {len(devices)} x {devices[0].device_kind}{cores}. Versions: {versions}."


def fields(config: Any, left_out: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a configuration, as JSON has them, but some: what `fit(config=...)` keeps beside a run."""
    kept = {name: value for name, value in dataclasses.asdict(config).items() if name not in left_out}
    return json.loads(json.dumps(kept))


def command(name: str) -> str:
    """The command line of this run, where it is one."""
    program = Path(sys.argv[0]).name
    if program not in (f"{name}.py", COMMAND):
        return "main(config)"
    called = COMMAND if program == COMMAND else f"python -m experiments.{name}"
    return f"{called} {shlex.join(sys.argv[1:])}".strip()


def run(
    main: Callable[[Any], Any], config: Any, *, arguments: Sequence[str] | None = None, prog: str | None = None
) -> None:
    """`main` with the options of the command line; what cannot be run ends with one line that says why.

    Args:
        config: what the options are fields of, or several such by their names.
        arguments: in place of those of this process; prog: the command, as help shows it.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an ASCII terminal has no ±
    try:
        check_paths()
        with extra("cli", "the command line"):
            import tyro
        options: Any = tyro.cli(config, args=arguments, prog=prog)
        with pod() if getattr(options, "distributed", False) else contextlib.nullcontext():
            _run(main, options)
    except (ImportError, ValueError, Preempted) as error:
        sys.exit(f"error: {error}")


def _run(main: Callable[[Any], Any], options: Any) -> None:
    """`main` in this process, which prints nothing if it is not the first of several."""
    try:
        first = jax.process_index() == 0
        with contextlib.nullcontext() if first else contextlib.redirect_stdout(None):
            main(options)
    except (ImportError, ValueError, TypeError, OSError, FloatingPointError, DamagedError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        again = "; continue it with --resume" if hasattr(options, "resume") else ""
        sys.exit(f"error: interrupted{again}")


def check_paths() -> None:
    """`ValueError` where Python's encoding of files has no letters for a path: libraries take UTF-8 only."""
    try:
        "".join([*sys.argv, os.getcwd()]).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"a path has letters that this locale ({sys.getfilesystemencoding()}) does not know: set PYTHONUTF8=1"
        ) from None
