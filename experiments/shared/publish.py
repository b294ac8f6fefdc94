"""How an experiment ends: its report is written, its table is printed, and its numbers are returned."""

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vae_jax.core.extras import extra
from vae_jax.report import page
from vae_jax.training.checkpoint import DamagedError
from vae_jax.training.run_directory import check_writable


def write(
    name: str, config: Any, *, title: str, lead: str, table: Sequence[page.Row], sections: Sequence[page.Section]
) -> dict[str, Any]:
    """Write `config.out`/report.html, print the table, and return it by the names of its rows.

    Args:
        name: the experiment's module, as in `python -m experiments.NAME`.
        config: its dataclass.
    """
    path = page.write(
        Path(config.out) / "report.html",
        title=title,
        lead=lead,
        table=table,
        sections=sections,
        configuration=dataclasses.asdict(config),
        command=command(name),
    )
    print(page.table_text(table))
    print(f"\nreport: {path}")
    return {row.name: row.value for row in table}


def fields(config: Any, left_out: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a configuration, as JSON has them, but some: what `fit(config=...)` keeps beside a run."""
    kept = {name: value for name, value in dataclasses.asdict(config).items() if name not in left_out}
    return json.loads(json.dumps(kept))


def command(name: str) -> str:
    """The command line of this run, where it is one."""
    if Path(sys.argv[0]).name != f"{name}.py":
        return "main(config)"
    return f"python -m experiments.{name} {shlex.join(sys.argv[1:])}".strip()


def run(main: Callable[[Any], Any], config: type) -> None:
    """`main` with the options of the command line; what cannot be run ends with one line that says why."""
    try:
        with extra("cli", "the command line"):
            import tyro
        options: Any = tyro.cli(config)
        check_writable(options.out)
        main(options)
    except (ImportError, ValueError, TypeError, OSError, FloatingPointError, DamagedError) as error:
        sys.exit(f"error: {error}")
