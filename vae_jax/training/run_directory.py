"""The run directory is claimed by one configuration: `config.json` says what the run is.

Several processes (a TPU pod) may all call `claim`: process 0 alone reads and writes.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

PathLike = str | os.PathLike[str]

PARTIAL = ".partial"


def claim(directory: PathLike, config: dict[str, Any], *, resume: bool, ignore: Iterable[str] = ()) -> None:
    """Makes `directory` the run of `config`, or makes sure that it is that run already.

    Args:
        directory: made where it does not exist; an empty one will do.
        config: what the run is, plain JSON values.
        resume: whether a directory that holds this run already may be continued.
        ignore: fields that may differ ("epochs", nested "optimiser.rate", or a whole "optimiser").

    Raises:
        FileExistsError: the directory holds other things, or this run and `resume` is False.
        ValueError: it holds a run with another configuration; the differing fields are listed.
        TypeError: `config` is not plain JSON.
    """
    text = to_json("config", config)
    if jax.process_index() != 0:
        return
    root = Path(directory)
    file = root / "config.json"
    if not file.exists():
        root.mkdir(parents=True, exist_ok=True)
        if others := sorted(e.name for e in root.iterdir() if e.suffix != PARTIAL):
            raise FileExistsError(
                f"{root} is not a run directory: it holds {others[0]} ({len(others)} entries) but "
                "no config.json; choose another directory"
            )
        partial = file.with_name(file.name + PARTIAL)
        partial.write_text(text)
        partial.replace(file)
        return
    if differing := _differences(_load_config(file), json.loads(text), tuple(ignore)):
        raise ValueError(
            f"{root} holds a run with another configuration; choose another directory, or ask for "
            "the same:\n  " + "\n  ".join(differing)
        )
    if not resume:
        raise FileExistsError(
            f"{root} holds this run already: continue it with --resume (resume=True), or choose another directory"
        )


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
