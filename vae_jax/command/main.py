"""`vae-jax COMMAND`: train a model, open it again, and ask what it can do.

    vae-jax train --out runs/vae
    vae-jax sample runs/vae --n 64 --out samples.png
    vae-jax encode runs/vae --data ~/pictures --out codes.npz

What a file holds follows from the end of its name: .png a picture, .npz arrays, .csv a row for each example.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np

from vae_jax import Trained, codec, open_run
from vae_jax.command import publish, train
from vae_jax.command.config import SEED, at_least, check_numbers, read_back
from vae_jax.command.image_report import enlarged, in_turn, show
from vae_jax.command.results import rows_of
from vae_jax.core.extras import extra
from vae_jax.data.check import leaves_by_path
from vae_jax.data.columns import Columns, as_csv
from vae_jax.data.datasets import load, load_whole
from vae_jax.data.local import path_of
from vae_jax.report import page, pictures
from vae_jax.tables import fill_in
from vae_jax.training import exported
from vae_jax.training.run_directory import check_writable, to_path

with extra("cli", "the command line"):
    from tyro.conf import Positional, arg

COLUMNS = 10
load_test = functools.partial(load, split="test")


@dataclasses.dataclass(frozen=True)
class Kept:
    """A run directory."""

    run: Annotated[Positional[str], arg(metavar="RUN")]
    """Directory of the run: what --out was in training."""
    which: Literal["best", "last"] = "best"
    """Parameters with the best validation ELBO, or the last."""


@dataclasses.dataclass(frozen=True)
class Opened(Kept):
    """A trained model."""

    seed: Annotated[int, SEED] = 0
    """Seed of everything random."""
    out: str = ""
    """File."""


@dataclasses.dataclass(frozen=True)
class OnData(Opened):
    """A trained model and data."""

    data: str = ""
    """A data set, a file (npz, npy, IDX) or a folder of images; without: the test images of the run's own data."""
    n: Annotated[int, at_least(0)] = 0
    """How many of them, the first ones; 0 is all."""


@dataclasses.dataclass(frozen=True)
class Sample(Opened):
    """Draw examples from the model."""

    n: int = 64
    """How many."""
    c: int | None = None
    """Class of all of them; by default the classes in turn, where the model has any."""
    temperature: Annotated[float | None, at_least(0)] = None
    """Factor of the prior's standard deviations."""
    draw: bool = False
    """Draw y from P_gen(y|z) as well; by default its mean is shown."""
    out: str = "samples.png"
    """File: .png, .npz or .csv."""


@dataclasses.dataclass(frozen=True)
class Reconstruct(OnData):
    """Encode data and decode them again. A picture shows each original with its reconstruction on the right."""

    n: Annotated[int, at_least(0)] = 40
    """How many of them, the first ones; 0 is all."""
    out: str = "reconstructions.png"
    """File: .png, .npz or .csv."""


@dataclasses.dataclass(frozen=True)
class Encode(OnData):
    """Write z of each example: the mean of P_enc(z|y), or the codes of a VQ-VAE."""

    draw: bool = False
    """Draw z from P_enc(z|y) in place of its mean."""
    out: str = "codes.npz"
    """File: .npz or .csv."""


@dataclasses.dataclass(frozen=True)
class Interpolate(OnData):
    """Straight lines from the code of one example to that of the next, a row for each two."""

    n: Annotated[int, at_least(2)] = 12
    """How many examples, the first ones."""
    steps: Annotated[int, at_least(2)] = 10
    """Pictures in a row."""
    out: str = "interpolations.png"
    """File: .png, .npz or .csv."""


@dataclasses.dataclass(frozen=True)
class Traverse(OnData):
    """One unit of z after the other moves through its range, a row for each, those that vary most first."""

    n: Annotated[int, at_least(0)] = 1000
    """How many examples say which units vary, and how far."""
    units: int = 10
    """How many units."""
    steps: Annotated[int, at_least(2)] = 11
    """Pictures in a row."""
    reach: float = 2.0
    """How far a unit moves, in standard deviations of its codes."""
    out: str = "traversals.png"
    """File: .png, .npz or .csv."""


@dataclasses.dataclass(frozen=True)
class Evaluate(OnData):
    """Print the ELBO, its parts and bits per dimension, with standard errors."""

    k: Annotated[int, at_least(0)] = 0
    """Importance samples for the log-likelihood; 0 leaves it out."""
    out: str = ""
    """File for the numbers as well: .json."""


@dataclasses.dataclass(frozen=True)
class Impute(Opened):
    """Fill in the missing entries of a table: numbers by their mean, classes by the likeliest one."""

    data: str = ""
    """A CSV file with the columns of training; without: the table of training."""
    draws: int = 50
    """Draws of each missing entry, of which the most frequent class is taken."""
    k: int = 1000
    """Importance samples for each row."""
    out: str = "filled.csv"
    """File: .csv. Further columns of the table are kept."""


@dataclasses.dataclass(frozen=True)
class Compress(OnData):
    """Write data as a file of about as many bits as the model's bound says; they come back from it exactly."""

    out: str = "examples.vj"
    """File: .vj."""


@dataclasses.dataclass(frozen=True)
class Decompress(Opened):
    """Read a file of `compress` back, with the run that it was written with."""

    file: str = "examples.vj"
    """The file."""
    out: str = "examples.npz"
    """File: .png, .npz or .csv."""


@dataclasses.dataclass(frozen=True)
class Report(Kept):
    """Evaluate a run of `vae-jax train` on its test images and write its page anew."""

    k: Annotated[int, at_least(0)] = 500
    """Importance samples for the test log-likelihood; 0 leaves it out."""


@dataclasses.dataclass(frozen=True)
class Export(Kept):
    """Write a folder that opens with jax alone: programs, parameters and a card for the hub of Hugging Face."""

    out: str = "exported"
    """Folder, a new one."""
    k: Annotated[int, at_least(0)] = 0
    """Importance samples of the bound on ln P(y); 0 is the ELBO."""
    licence: str = "other"
    """Licence of the parameters, by its name on the hub: mit, apache-2.0, cc-by-4.0."""
    data: str = ""
    """What the model was trained on and where that is from, for the card; by default what the run knows."""
    datasets: tuple[str, ...] = ()
    """Names that these data have on the hub."""
    platforms: tuple[exported.Platform, ...] = exported.PLATFORMS
    """Where the programs are to run."""


def main() -> None:
    """The command of this process."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        lines = (
            f"  {command:12} {(options.__doc__ or '').splitlines()[0]}" for command, (options, _) in COMMANDS.items()
        )
        print(__doc__, "commands, each with --help:", "", *lines, SELFCHECK, sep="\n")
    elif name == "selfcheck":
        from vae_jax.selfcheck import __main__ as selfcheck

        run(selfcheck.Config, lambda config: sys.exit(selfcheck.main(config)), name)
    elif name in COMMANDS:
        run(*COMMANDS[name], name)
    else:
        sys.exit(f"error: {name} is no command of {publish.COMMAND}: want one of {', '.join(COMMANDS)}, selfcheck")


def run(options: type, command: Callable[[Any], Any], name: str) -> None:
    publish.run(command, options, arguments=sys.argv[2:], prog=f"{publish.COMMAND} {name}")


def evaluate(options: Evaluate) -> None:
    run, (ys, cs) = opened(options, ends=(".json",))
    result = run.evaluate(jax.random.key(options.seed), ys, cs, k=options.k, progress=True)
    rows = rows_of(result, "ELBO", f"{len(jax.tree.leaves(ys)[0])} examples")
    print(page.table_text(rows))
    if options.out:
        path_of(options.out).write_text(json.dumps(publish.plain_rows(rows), indent=1))


def sample(options: Sample) -> None:
    run = opened_run(options)
    key, c = jax.random.key(options.seed), conditions_of(run, options.n, options.c)
    ys = run.sample(key, options.n, c=c, temperature=options.temperature, mean=not options.draw)
    write(options.out, ys, run)


def reconstruct(options: Reconstruct) -> None:
    run, (ys, cs) = opened(options)
    again = run.reconstruct(jax.random.key(options.seed), ys, cs)
    if options.out.endswith(".png"):
        drawn = pictures.pairs(images(run, ys / np.float32(255) * run.preprocess.white), images(run, again))
        write_png(options.out, enlarged(drawn, ys.shape[1]))
    else:
        write(options.out, again, run)


def encode(options: Encode) -> None:
    run, (ys, cs) = opened(options, ends=(".npz", ".csv"))
    zs = run.encode(ys, cs, key=jax.random.key(options.seed) if options.draw else None)
    write(options.out, zs, run, name="z")


def interpolate(options: Interpolate) -> None:
    run, (ys, cs) = opened(options)
    write(options.out, run.interpolate(ys, cs, steps=options.steps), run, rows=True)


def traverse(options: Traverse) -> None:
    run, (ys, cs) = opened(options)
    moved = run.traverse(ys, cs, units=options.units, steps=options.steps, reach=options.reach)
    write(options.out, moved, run, rows=True)


def impute(options: Impute) -> None:
    run = opened_run(options, ends=(".csv",))
    rows = table_of(run, options)
    key = jax.random.key(options.seed)
    whole = fill_in(rows, run.model, run.params, key, n=options.draws, k=options.k, progress=True)
    path_of(options.out).write_text(as_csv(whole), encoding="utf-8")
    print(f"{options.out}: {sum(column.missing for column in rows.columns)} entries filled in")


def compress(options: Compress) -> None:
    run, (ys, cs) = opened(options, ends=(".vj",))
    if cs is not None:
        raise ValueError(f"{options.run} was trained with conditions, which a file does not hold: see vae_jax.codec")
    keys = jax.random.split(jax.random.key(options.seed), len(ys))
    seen = np.asarray(jax.jit(jax.vmap(run.preprocess.apply))(keys, ys))
    found = codec.compressed(run.model, run.params, seen, seed=options.seed)
    path_of(options.out).write_bytes(found.data)
    besides = f"{found.header_bits // 8} of them a header and {found.first_bits // 8} first bits"
    print(f"{options.out}: {len(seen)} examples ({run.preprocess.name}) in {len(found.data):,} bytes, {besides}")
    print(f"{found.bits / seen.size:.4f} bits a dimension")


def decompress(options: Decompress) -> None:
    run = opened_run(options)
    ys = codec.decompress(run.model, run.params, path_of(options.file).read_bytes())
    write(options.out, ys, run)


def report(options: Report) -> dict[str, Any]:
    run = open_run(path_of(options.run), which=options.which)
    made = run.config["recipe"]
    if made["function"] != f"{train.__name__}:{train.rebuild.__name__}":
        raise ValueError(f"{options.run} is not a run of {publish.COMMAND} train, whose page can be written anew")
    fields = {name: value for name, value in made["arguments"].items() if name not in ("shape", "classes", "start")}
    config = dataclasses.replace(read_back(train.Config, fields), out=str(path_of(options.run)), k=options.k)
    examples, _, test, source = train.load(config)
    metrics = to_path(config.out) / "metrics.jsonl"
    if not metrics.exists():
        raise ValueError(f"{options.run} has no metrics.jsonl, which its page shows: only its model is kept")
    run.history = [json.loads(row) for row in metrics.read_text().splitlines()]
    return publish.timed(lambda config: train.report(config, run, test, source, len(examples.ys)))(config)


def export(options: Export) -> None:
    check_numbers(options)
    said = {name: getattr(options, name) for name in ("k", "licence", "data", "datasets", "platforms")}
    exported.export(open_run(path_of(options.run), which=options.which), path_of(options.out), **said)
    print(f"{options.out}: what is in it, and how it is opened, says its README.md")


def opened_run(options: Opened, ends: Sequence[str] = (".png", ".npz", ".csv")) -> Trained:
    """The run, after making sure that the options are in range, and that the file can be written."""
    check_numbers(options)
    if options.out and Path(options.out).suffix not in ends:
        raise ValueError(f"out={options.out}: the end of the name says what is written, want {' or '.join(ends)}")
    check_writable(path_of(options.out).parent)
    run = open_run(path_of(options.run), which=options.which)
    if run.preprocess.columns and options.out.endswith(".png"):
        raise ValueError(f"out={options.out}: rows of a table are no picture, want .csv or .npz")
    return run


def opened(options: OnData, **ends: Any) -> tuple[Trained, tuple[Any, Any]]:
    """The run, and (ys, cs) of the options."""
    run = opened_run(options, **ends)
    config, name, first = _arguments(run), _data_of(run, options), slice(options.n or None)
    if run.preprocess.columns:
        return run, ({column: y[first] for column, y in table_of(run, options).ys.items()}, None)
    ys: Any
    labels: Any
    if name.endswith(".npy"):
        ys, labels = np.load(path_of(name)), None
    else:
        size = tuple(run.y.shape[:2]) if options.data and len(run.y.shape) == 3 else config.get("size")
        found = (load_whole if options.data else load_test)(name, data_dir=config.get("data_dir"), size=size)
        ys, labels = found.ys, found.labels
    if run.c is None:
        return run, (ys[first], None)
    if labels is None:
        raise ValueError(f"{options.run} wants the class of each example, and {name} has no labels")
    return run, (ys[first], of_classes(run, labels[first]))


def _arguments(run: Trained) -> dict[str, Any]:
    return run.config.get("recipe", {}).get("arguments", {})


def _data_of(run: Trained, options: OnData | Impute) -> str:
    name = options.data or _arguments(run).get("data")
    if not name:
        raise ValueError(f"{options.run} does not say where its data come from: want --data")
    return name


def table_of(run: Trained, options: OnData | Impute) -> Columns:
    """The rows that the options name, read as those of training were."""
    return run.columns.again(_data_of(run, options))


def of_classes(run: Trained, labels: np.ndarray) -> np.ndarray:
    """Classes as the model wants them: whole numbers, or one-hot vectors."""
    if run.c.shape == ():
        return labels
    if len(run.c.shape) != 1 or labels.min() < 0 or labels.max() >= run.c.shape[0]:
        got = f"the classes {labels.min()} .. {labels.max()}"
        raise ValueError(f"{run.name} was trained with conditions of shape {run.c.shape}; got {got}")
    return np.eye(run.c.shape[0], dtype=np.float32)[labels]


def conditions_of(run: Trained, n: int, c: int | None) -> Any:
    """The conditions of n samples: of one class, or of all in turn."""
    if run.c is None and c is None:
        return None
    if run.c is None:
        raise ValueError(f"{run.name} knows no classes: leave out --c")
    if c is not None:
        return of_classes(run, np.full(n, c))
    if run.model.classes:
        return np.arange(n) % run.model.classes
    return in_turn(np.zeros((1, *run.c.shape)), n)


def write(out: str, found: Any, run: Trained, *, name: str = "y", rows: bool = False) -> None:
    """Arrays (n, ...), or (rows, columns, ...), in the file's own way; one line says what.

    In .npz they have this name, and several (the levels of a ladder) a number each; the columns of a table have their
    own names, in .csv as well.
    """
    if out.endswith(".png"):
        ys = found.reshape(-1, *found.shape[2:]) if rows else found
        drawn = pictures.grid(images(run, ys), found.shape[1] if rows else COLUMNS)
        return write_png(out, enlarged(drawn, ys.shape[1]))
    of_table = run.preprocess.columns and isinstance(found, dict)
    by_path = run.columns.restored(found) if of_table else leaves_by_path(found)
    leaves, own = list(by_path.values()), list(by_path) if isinstance(found, dict) else []
    if out.endswith(".npz"):
        names = own or ([name] if len(leaves) == 1 else [f"{name}_{i}" for i in range(len(leaves))])
        np.savez(path_of(out), **dict(zip(names, leaves, strict=True)))
    elif own:
        parts = {n: np.reshape(x, (len(x), -1)).T for n, x in by_path.items()}
        single = {n: part[0] for n, part in parts.items() if len(part) == 1}
        several = {f"{n}.{i}": x for n, part in parts.items() if n not in single for i, x in enumerate(part)}
        path_of(out).write_text(as_csv(single | several, digits=7), encoding="utf-8")
    else:
        table = np.concatenate([np.reshape(x, (len(x), -1)) for x in leaves], axis=1)
        np.savetxt(path_of(out), table, delimiter=",", fmt="%d" if table.dtype.kind in "iu" else "%.8g")
    said = [f"{x.dtype}{list(x.shape)}" for x in leaves]
    print(f"{out}: {', '.join([f'{n} {s}' for n, s in zip(own, said, strict=True)] if own else said)}")


def images(run: Trained, ys: Any) -> np.ndarray:
    """Examples as pictures in [0, 1]."""
    if np.ndim(ys) != 4 or ys.shape[-1] not in (1, 3):
        raise ValueError(
            f"a .png shows images (h, w, 1 or 3), and these examples have the shape {np.shape(ys)[1:]}: .npz"
        )
    return show(run.preprocess, ys)


def write_png(out: str, data: bytes) -> None:
    path_of(out).write_bytes(data)
    print(f"{out}: a picture")


COMMANDS: dict[str, tuple[type, Callable[[Any], Any]]] = {
    "train": (train.Config, train.main),
    "evaluate": (Evaluate, evaluate),
    "sample": (Sample, sample),
    "reconstruct": (Reconstruct, reconstruct),
    "encode": (Encode, encode),
    "interpolate": (Interpolate, interpolate),
    "traverse": (Traverse, traverse),
    "impute": (Impute, impute),
    "compress": (Compress, compress),
    "decompress": (Decompress, decompress),
    "report": (Report, report),
    "export": (Export, export),
}
SELFCHECK = "  selfcheck    Compare the library with numbers that are known exactly."
