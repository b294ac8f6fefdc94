"""The experiments' house, read from its imports: each experiment is complete with its own files and the shared ones."""

import ast
import dataclasses
import importlib
import inspect
import itertools
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


def files(folder: Path) -> list[Path]:
    """All but the benchmarks, which are a program of their own."""
    return [file for file in sorted(folder.rglob("*.py")) if file.relative_to(folder).parts[0] != "bench"]


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
    """Whether it is an experiment: has a `main`."""
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in ast.parse(file.read_text()).body)


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
    assert "experiments.vae_report" in imports(EXPERIMENTS / "vae.py")


def test_a_file_beside_the_experiments_serves_one_of_them():
    assert {name: users for name, users in lent(EXPERIMENTS).items() if len(users) != 1} == {}


@pytest.mark.parametrize(
    ("path", "line", "complaint"),
    [
        ("gmm_prior.py", "from experiments import vae", "gmm_prior.py imports experiments.vae: move"),
        ("gmm_prior.py", "from experiments.vae import build", "gmm_prior.py imports experiments.vae: move"),
        ("vae_report.py", "def f():\n    import experiments.vae", "vae_report.py imports experiments.vae: move"),
        ("shared/images.py", "from experiments import vae_report", "shared knows no experiment"),
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
