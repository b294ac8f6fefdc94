"""The experiments' house, read from its imports: each experiment is complete with its own files and the shared ones."""

import ast
import dataclasses
import importlib
import inspect
import itertools
import json
import math
import os
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from experiments import diffusion
from vae_jax.command import publish
from vae_jax.command import train as vae
from vae_jax.command.config import checked, fitting, read_back
from vae_jax.command.images import load_splits
from vae_jax.command.placement import Placed, mesh_of
from vae_jax.training import Preempted

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def files(folder: Path) -> list[Path]:
    """All but what is a program of its own: the benchmarks, the script for pods, and what is compiled for TPUs."""
    own = ("bench", "pod", "tpu")
    return [file for file in sorted(folder.rglob("*.py")) if file.relative_to(folder).parts[0] not in own]


def name_of(file: Path, folder: Path) -> str:
    return ".".join((folder.name, *file.relative_to(folder).with_suffix("").parts))


def imports(file: Path) -> set[str]:
    """Dotted names; `from a import b` may be the module a.b or a name of the module a."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{file.name} has a relative import: name the module in full"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def runs(file: Path) -> bool:
    """Whether it is an experiment: has a `main`, of its own or the library's."""
    named = [name for node in ast.parse(file.read_text()).body for name in getattr(node, "names", [node])]
    return any(isinstance(each, ast.FunctionDef | ast.alias) and each.name == "main" for each in named)


def violations(folder: Path) -> list[str]:
    """Imports of an experiment, and imports from the shared files of what is not shared."""
    experiments = {name_of(file, folder) for file in files(folder) if runs(file)}
    found = []
    for file in files(folder):
        here = file.relative_to(folder)
        for name in sorted(imports(file)):
            if name in experiments:
                found.append(f"{here} imports {name}: move what both need to shared/")
            elif here.parts[0] == "shared" and name.startswith(f"{folder.name}.") and name.split(".")[1] != "shared":
                found.append(f"{here} imports {name}: what is shared knows no experiment")
    return found


def lent(folder: Path) -> dict[str, list[str]]:
    """Files outside shared/ without a `main`, each with the files that import it."""
    helpers = [file for file in files(folder) if file.parent == folder and file.stem != "__init__" and not runs(file)]
    return {
        file.stem: [other.stem for other in files(folder) if name_of(file, folder) in imports(other)]
        for file in helpers
    }


EVERY = sorted(file.stem for file in files(EXPERIMENTS) if runs(file))


def test_no_experiment_is_imported():
    assert violations(EXPERIMENTS) == []
    assert len(EVERY) >= 16 and {"vae", "diffusion", "em_mixture"} <= set(EVERY)
    assert "experiments.diffusion_report" in imports(EXPERIMENTS / "diffusion.py")


def test_a_file_beside_the_experiments_serves_one_of_them():
    assert {name: users for name, users in lent(EXPERIMENTS).items() if len(users) != 1} == {}


@pytest.mark.parametrize(
    ("path", "line", "complaint"),
    [
        ("gmm_prior.py", "from experiments import vae", "gmm_prior.py imports experiments.vae: move"),
        ("gmm_prior.py", "from experiments.vae import build", "gmm_prior.py imports experiments.vae: move"),
        ("hmm.py", "def f():\n    import experiments.vae", "hmm.py imports experiments.vae: move"),
        ("shared/linear.py", "from experiments import hmm_report", "shared knows no experiment"),
    ],
)
def test_a_planted_violation_is_seen(tmp_path, path, line, complaint):
    for file in files(EXPERIMENTS):
        copy = tmp_path / "experiments" / file.relative_to(EXPERIMENTS)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text())
    planted = tmp_path / "experiments" / path
    planted.write_text(f"{planted.read_text()}\n{line}\n")
    (only,) = violations(tmp_path / "experiments")
    assert complaint in only


def test_a_planted_file_that_serves_two_is_seen(tmp_path):
    folder = tmp_path / "experiments"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / f"{name}.py").write_text("from experiments import common\ndef main(config): ...")
    (folder / "common.py").write_text("")
    assert lent(folder) == {"common": ["one", "two"]}


def explained(config: type) -> set[str]:
    """Fields that are followed by what they mean, here or in a class that they are inherited from."""
    bodies = [ast.parse(inspect.getsource(kind)).body[0].body for kind in config.__mro__[:-1]]
    pairs = itertools.chain.from_iterable(itertools.pairwise(body) for body in bodies)
    return {a.target.id for a, b in pairs if isinstance(a, ast.AnnAssign) and isinstance(b, ast.Expr)}


@pytest.mark.parametrize("name", EVERY)
def test_every_option_is_explained(name):
    """The command line shows it, see tests/test_experiment.py; and each report goes to a folder of its own."""
    config = importlib.import_module(f"experiments.{name}").Config
    assert {field.name for field in dataclasses.fields(config)} - explained(config) == set()
    assert config().out == f"runs/{name}"


# Options: out of range, and what becomes of errors.

ZERO = {  # options that may be 0; all other numbers are refused at 0 and -1, and all at NaN and infinity
    "cells": {"certify", "decay"},
    "chorales": {"shifts", "dropout", "floor"},
    "few_labels": {"weight"},
    "pixelcnn": {"ema_decay", "compress"},
    "reproduce": {"epochs"},
    "diffusion": {
        *("blocks", "attention", "patch", "dropout", "epochs", "batch_size", "ema_decay", "drop_condition", "guidance"),
    },
    "em_mixture": {"prior_examples", "tolerance"},
    "flow": {"layers"},
    "hierarchical": {"warm_up", "ema_decay"},
    "imputation": {"decay"},
    "latent_diffusion": {"start"},
    "text_vae": {"dropout"},
    "two_steps": {"noise"},
    "vae": {"beta", "free_bits", "ema_decay", "k"},
}
BELOW_ZERO = {("latent_diffusion", "start"), ("two_steps", "noise")}


def numeric(config: type) -> list[str]:
    hints = typing.get_type_hints(config)
    return [name for name, hint in hints.items() if {"int", "float"} & set(re.findall(r"[a-z]+", str(hint)))]


@pytest.mark.parametrize("name", EVERY)
def test_numbers_out_of_range_are_refused_before_anything_else(name):
    """The data do not even exist."""
    experiment = importlib.import_module(f"experiments.{name}")
    default = experiment.Config(**({"data": "no/such.npz"} if hasattr(experiment.Config, "data") else {}))
    checked(default)
    assert len(numeric(experiment.Config)) >= 4
    for field in numeric(experiment.Config):
        values = [0] * (field not in {"seed", *ZERO.get(name, ())}) + [-1] * ((name, field) not in BELOW_ZERO)
        for value in (*values, math.nan, math.inf, -math.inf):
            many = isinstance(getattr(default, field), tuple) or field == "size"
            with pytest.raises(ValueError, match=rf"\b{field.rstrip('s')}|dimension of z"):
                experiment.main(dataclasses.replace(default, **{field: (value,) if many else value}))
        if field in ZERO.get(name, ()):
            checked(dataclasses.replace(default, **{field: 0}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: want a whole number, at least 1"),
        ({"batch_size": 2.5}, "batch_size=2.5: want a whole number, at least 1"),
        ({"learning_rate": math.nan}, "learning_rate=nan: want a finite number, above 0"),
        ({"hidden": (8, 0)}, r"hidden=\(8, 0\): want a whole number, at least 1"),
        ({"seed": 2**32}, "seed=4294967296: want a whole number, from 0 to 4294967295"),
        ({"ema_decay": 1.0}, "ema_decay=1.0: want a finite number, at least 0 and below 1"),
        ({"sigma": -0.5}, "sigma=-0.5: want a finite number, above 0"),
        ({"patience": 0}, "patience=0: want a whole number"),
    ],
)
def test_what_is_wanted_of_a_number(options, message):
    with pytest.raises(ValueError, match=message):
        checked(vae.Config(**options))


TRAINED_BY_FIT = {
    *("chorales", "collapse", "diffusion", "flow", "gmm_prior", "hierarchical", "latent_diffusion", "rate_distortion"),
    *("text_vae", "two_steps", "vae", "vq_vae", "cells", "few_labels", "pixelcnn", "reproduce", "sprites", "table"),
}


@pytest.mark.parametrize("name", EVERY)
def test_who_is_trained_by_fit_can_be_placed(name):
    """The others have no such options. Nothing calls `fit` or `evaluate` beside them, where it can be placed."""
    config = importlib.import_module(f"experiments.{name}").Config
    assert issubclass(config, Placed) == (name in TRAINED_BY_FIT)
    if name in TRAINED_BY_FIT:
        assert "vae_jax.fit" not in imports(EXPERIMENTS / f"{name}.py")


@pytest.mark.parametrize(
    ("mesh", "shape"),
    [
        ("data=4", {"data": 4}),
        ("data=2,fsdp=2", {"data": 2, "fsdp": 2}),
        (" data = -1 , fsdp = 2 ", {"data": 2, "fsdp": 2}),
        ("fsdp=-1", {"fsdp": 4}),
    ],
)
def test_meshes(mesh, shape):
    assert mesh_of(checked(vae.Config(mesh=mesh))).shape == shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mesh": "4"}, "mesh=4: want each axis once, with its size or -1, for instance data=4,fsdp=2"),
        ({"mesh": "data=2,data=2"}, "mesh=data=2,data=2: want each axis once"),
        ({"mesh": "data=0"}, "mesh=data=0: want each axis once, with its size"),
        ({"mesh": "data=2,"}, "mesh=data=2,: want each axis once"),
        ({"mesh": "model=4"}, "mesh=model=4: the axis model is not known; want data, fsdp or both"),
        ({"mesh": "data=3"}, "mesh=data=3: the sizes have to multiply to the number of devices, which is 4"),
        ({"mesh": "data=-1,fsdp=3"}, "mesh=data=-1,fsdp=3: the sizes have to multiply to the number of devices"),
        ({"mesh": "data=-1,fsdp=-1"}, "mesh=data=-1,fsdp=-1: only one axis can be -1"),
        ({"sharding": "fsdp"}, "sharding=fsdp splits over the axis fsdp, and mesh='' has none: --mesh fsdp=-1"),
        ({"sharding": "fsdp", "mesh": "data=4"}, "sharding=fsdp splits over the axis fsdp, and mesh='data=4' has none"),
        ({"distributed": True}, "distributed=True is an option of the command line"),
    ],
)
def test_no_such_mesh(options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        checked(vae.Config(**options))


def test_where_a_run_trains_is_no_part_of_it():
    """It may go on elsewhere."""
    there, here = vae.Config(mesh="data=4", sharding="fsdp", distributed=True, profile="x"), vae.Config()
    assert vae.run_config(there) == vae.run_config(here)
    assert {"mesh", "sharding", "distributed", "profile"} <= set(diffusion.NOT_THE_RUN)


def another(value: Any, hint: Any) -> Any:
    """Another value of an option."""
    chosen = [x for kind in (hint, *typing.get_args(hint)) if typing.get_origin(kind) is Literal
              for x in typing.get_args(kind)]  # fmt: skip
    if isinstance(value, tuple):
        return tuple(another(x, None) for x in value) or ((7, 8) if "int" in str(hint) else ("some", "ways"))
    if value is None:
        return (3, 4) if "tuple" in str(hint) else next(x for x in (0.25, 3, "x") if type(x).__name__ in str(hint))
    if isinstance(value, str):
        return next((x for x in chosen if x != value), f"{value}, \u00e4nother")
    return not value if isinstance(value, bool) else value + 1


@pytest.mark.parametrize("name", EVERY)
def test_config_json_reads_back_into_the_same_config(name):
    """The defaults, and a configuration in which every field is another."""
    config = importlib.import_module(f"experiments.{name}").Config
    hints = typing.get_type_hints(config)
    changed = config(**{field: another(getattr(config(), field), hint) for field, hint in hints.items()})
    for one in (config(), changed):
        assert read_back(config, json.loads(json.dumps(dataclasses.asdict(one)))) == one
    assert all(getattr(changed, field) != getattr(config(), field) for field in hints)


def test_out_belongs_to_one_experiment(tmp_path):
    """Said before anything is trained: what is trained is kept there."""
    main = publish.timed(lambda config: "trained")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FileExistsError, match=r"is not a run directory: it holds notes.txt"):
        main(diffusion.Config(out=str(tmp_path)))
    (tmp_path / "config.json").write_text('{"recipe": {"function": "experiments.diffusion:rebuild"}}')
    assert main(diffusion.Config(out=str(tmp_path))) == "trained"
    with pytest.raises(ValueError, match=r"holds a run of experiments\.diffusion: choose another directory"):
        main(vae.Config(out=str(tmp_path)))


def test_homes_in_out_are_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert checked(vae.Config(out="~/runs")).out == "/home/someone/runs"
    assert checked(vae.Config(out="gs://bucket/run")).out == "gs://bucket/run"
    with pytest.raises(FileNotFoundError, match="'~nobody_here/x' does not exist: no user"):
        checked(vae.Config(out="~nobody_here/x"))


def test_the_default_batch_fits_small_data(capsys):
    """The default, and that of a smoke run, no larger than the data; what was asked for stays."""
    assert fitting(vae.Config(), 49).batch_size == 49
    assert "batch_size=49: all training examples, which are fewer than 128" in capsys.readouterr().out
    assert fitting(vae.Config(), 128).batch_size == 128
    assert fitting(vae.Config(batch_size=64), 49).batch_size == 64
    assert fitting(vae.Config(batch_size=64, smoke=True), 49).batch_size == 49
    assert fitting(vae.Config(batch_size=64), 49, default=64).batch_size == 49
    assert capsys.readouterr().out.count("\n") == 2


@pytest.mark.parametrize(
    ("name", "smoke"),
    [("vae_jax.command.train", True), ("experiments.diffusion", True), ("vae_jax.command.train", False)],
)
def test_a_smoke_run_may_be_repeated(name, smoke, monkeypatch):
    """What keeps a run goes on with it; a run in earnest is asked to say --resume."""
    experiment, asked = importlib.import_module(name), {}

    def fit_on(*arguments, **options):
        asked.update(options)
        raise InterruptedError

    monkeypatch.setattr(experiment, "fit_on", fit_on)
    with pytest.raises(InterruptedError):
        experiment.main(experiment.Config(smoke=smoke))
    assert asked["resume"] is smoke


def test_splits_that_do_not_match_are_refused(tmp_path):
    """Before anything is trained: images of another size, classes that training lacks, no labels."""
    ys, path = np.full((30, 4, 4), 9, np.uint8), str(tmp_path / "own.npz")

    def refused(message, conditional=False, **arrays):
        np.savez(path, train_image=ys, **arrays)
        with pytest.raises(ValueError, match=message):
            load_splits(path, conditional=conditional)

    refused(r"own.npz: training images .* \(4, 4, 1\), test images \(5, 4, 1\)", test_image=np.full((9, 5, 4), 9))
    labels = {"train_label": np.arange(30) % 3, "test_image": ys}
    refused(r"own.npz has test images of the classes \[3\]", True, **labels, test_label=np.arange(30) % 4)
    refused("--conditional wants labels", True, **labels)
    assert load_splits(path)[2].labels is None


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "/x/report.html"), "error: .*Permission denied: '/x/report.html'"),
        (OSError(28, "No space left on device"), "error: .*No space left on device"),
        (ValueError("latent=0: why"), "error: latent=0: why"),
        (KeyboardInterrupt(), "error: interrupted; continue it with --resume"),
        (Preempted("SIGTERM came: why; continue it with --resume"), "error: SIGTERM came: why; continue .*--resume"),
    ],
)
def test_errors_are_one_line(error, line, monkeypatch):
    def main(config):
        raise error

    monkeypatch.setattr(sys, "argv", ["vae.py"])
    with pytest.raises(SystemExit, match=f"^{line}$"):
        publish.run(main, vae.Config)


def test_an_ascii_locale():
    """What is printed is legible, and a path that libraries cannot take is refused at once."""
    program = (
        "from vae_jax.command import config, publish\n"
        "publish.run(lambda config: print(config.seed, chr(177), 1), config.Run)"
    )
    environment = {**os.environ, "LC_ALL": "C", "PYTHONPATH": str(EXPERIMENTS.parent), "JAX_PLATFORMS": "cpu"}
    environment.pop("PYTHONIOENCODING", None)

    def run(*arguments):
        line = [sys.executable, "-X", "utf8=0", "-c", program, *arguments]
        return subprocess.run(line, env=environment, capture_output=True, timeout=100, cwd="/")

    assert run("--seed", "3").stdout == b"3 ? 1\n"
    refused = run("--out", "r\u00e9sum\u00e9")
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert line.startswith(b"error: a path has letters that this locale (") and line.endswith(b"set PYTHONUTF8=1")
