"""The house, read from its imports: arrows point down, and each heavy library has one room."""

import ast
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vae_jax

PACKAGE = Path(vae_jax.__file__).parent
REPOSITORY = Path(__file__).parents[1]

# The folders of the package are its floors, the ground first. A room imports from itself and from the floors below it,
# not from its neighbours. `_version` is a number that anyone may read.
FLOORS = [
    {"core"},
    {"data", "report"},
    {"parts"},
    {"systems", "em"},
    {"evaluation", "codec"},
    {"training"},
    {"nets", "diffusion", "vq", "text"},
    {"tables"},
    {"selfcheck"},
    {"command"},
    {"__main__"},
]
USERS = {"command", "__main__"}  # they make use of the package as anyone does, by its first page too
FLOOR = {"_version": -1, **{room: i for i, floor in enumerate(FLOORS) for room in floor}}

# Which room may import what. Those in LAZY do it inside functions, so that `import vae_jax.data` costs nothing.
ONLY = {
    "flax": "nets",
    "tensorflow_datasets": "data",
    "grain": "data",
    "orbax": "training",
    "matplotlib": "report",
    "diffrax": "diffusion",
    "tensorboardX": "training",
    "tokenizers": "text",
    "flatbuffers": "training",
    "safetensors": "training",
    "constriction": "codec",
    "tensorflow": None,
    "torch": None,
    "pickle": None,
    "experiments": None,
    "tests": None,
}
LAZY = {
    "diffrax",
    "flatbuffers",
    "grain",
    "matplotlib",
    "orbax",
    "safetensors",
    "tensorboardX",
    "tensorflow_datasets",
    "tokenizers",
}


@functools.cache
def written(text: str, name: str) -> list[tuple[str, str | None, bool]]:
    """(module, what is taken of it or None, whether inside a function) of each import of a file."""
    found: list[tuple[str, str | None, bool]] = []

    def visit(node: ast.AST, inside: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.extend((alias.name, None, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{name} has a relative import: name the module in full"
                found.extend((child.module, alias.name, inside) for alias in child.names)
            visit(child, inside or isinstance(child, ast.FunctionDef | ast.Lambda))

    visit(ast.parse(text), False)
    return found


def imports(file: Path, package: Path) -> list[tuple[str, bool]]:
    """(dotted name, whether inside a function) of each import; `from a import b` is a.b where that is a module."""
    return [
        (f"{module}.{taken}" if taken and module_file(f"{module}.{taken}", package) else module, inside)
        for module, taken, inside in written(file.read_text(), file.name)
    ]


def module_file(name: str, package: Path) -> Path | None:
    """The file of a module of the package; None of anything else."""
    path = package.parent.joinpath(*name.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in candidates if file.is_file() and package in file.parents), None)


def files(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def room(file: Path, package: Path) -> str:
    """The first part of the path inside the package: a module, or a folder of them."""
    return file.relative_to(package).parts[0].removesuffix(".py")


def violations(package: Path) -> list[str]:
    """Every import that breaks a rule of the house."""
    found = []
    for file in files(package):
        here = room(file, package)
        if here != "__init__" and here not in FLOOR:
            found.append(f"{here} is on no floor: add it to FLOORS")
            continue
        for name, inside in imports(file, package):
            top, *rest = name.split(".")
            where = f"{file.relative_to(package)} imports {name}"
            if top == package.name and here != "__init__":
                if not rest and here in USERS:
                    continue
                if not rest or rest[0] not in FLOOR:
                    found.append(f"{where}: import from the room")
                elif rest[0] != here and FLOOR[rest[0]] >= FLOOR[here]:
                    found.append(f"{where}: arrows point down")
            elif top in ONLY and ONLY[top] != here:
                found.append(f"{where}: only {ONLY[top] or 'nobody'} does")
            elif top in LAZY and not inside:
                found.append(f"{where}: inside a function, please")
    return found


def cycle(package: Path) -> list[str]:
    """Modules that import each other in a circle, or []. Imports inside functions count as well."""
    arrows = {
        file: [other for name, _ in imports(file, package) if (other := module_file(name, package))]
        for file in files(package)
    }
    done: set[Path] = set()

    def walk(file: Path, path: tuple[Path, ...]) -> list[str]:
        if file in path:
            return [str(f.relative_to(package)) for f in (*path[path.index(file) :], file)]
        if file in done:
            return []
        circle = next((found for other in arrows[file] if (found := walk(other, (*path, file)))), [])
        done.add(file)
        return circle

    return next((found for file in arrows if (found := walk(file, ()))), [])


def test_arrows_point_down_and_heavy_libraries_have_one_room():
    assert violations(PACKAGE) == []


def test_no_cycles():
    assert cycle(PACKAGE) == []


def test_every_floor_is_lived_in():
    """No rule about rooms that are gone; and the imports are found at all."""
    assert {room(file, PACKAGE) for file in files(PACKAGE)} == {*FLOOR, "__init__"}
    assert ("vae_jax.core.model", False) in imports(PACKAGE / "core/combinator.py", PACKAGE)
    used = {name.split(".")[0] for file in files(PACKAGE) for name, _ in imports(file, PACKAGE)}
    assert used >= {name for name, owner in ONLY.items() if owner}


def test_no_room_for_everything():
    names = {file.stem for file in files(PACKAGE)}
    assert not names & {"utils", "util", "helpers", "misc", "common", "base", "registry"}


def hidden(package: Path) -> list[str]:
    """Modules that a name of their folder's `__init__` hides: `import a.b as m` would give the name, not the module."""
    found = []
    for init in package.rglob("__init__.py"):
        folder = ".".join((package.name, *init.parent.relative_to(package).parts))
        modules = {path.stem for path in init.parent.glob("*.py")} | {
            path.parent.name for path in init.parent.glob("*/*.py")
        }
        for node in ast.walk(ast.parse(init.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module != folder:
                names = {alias.asname or alias.name for alias in node.names}
                found.extend(f"{init.relative_to(package)} hides {name}" for name in names & modules)
    return found


def test_no_module_is_hidden_by_a_function_of_its_name():
    assert hidden(PACKAGE) == []


def test_a_planted_name_that_hides_its_module_is_seen(tmp_path):
    package = tmp_path / "vae_jax"
    package.mkdir()
    (package / "l2.py").write_text("def l2(): ...")
    (package / "__init__.py").write_text("from vae_jax.l2 import l2")
    assert hidden(package) == ["__init__.py hides l2"]


def test_init_is_sorted_re_exports():
    body = ast.parse((PACKAGE / "__init__.py").read_text()).body
    docstring, *imported, exported = body
    assert isinstance(docstring, ast.Expr) and all(isinstance(node, ast.ImportFrom) for node in imported)
    names = [alias.name for node in imported for alias in node.names]
    assert sorted(names) == sorted(ast.literal_eval(exported.value)) == sorted(set(vae_jax.__all__))
    assert all(hasattr(vae_jax, name) for name in names)


@pytest.mark.parametrize(
    ("path", "line", "complaint"),
    [
        ("core/model.py", "from vae_jax.parts.priors import vampprior", "arrows point down"),
        ("core/model.py", "def f():\n    import vae_jax.training", "arrows point down"),
        ("nets/mlp.py", "from vae_jax.vq import codebook", "arrows point down"),
        ("training/step.py", "from vae_jax import Model", "import from the room"),
        ("core/network.py", "import flax.linen", "only nets does"),
        ("training/loop.py", "def f():\n    from matplotlib import pyplot", "only report does"),
        ("report/pictures.py", "import matplotlib", "inside a function"),
        ("data/images.py", "import tensorflow as tf", "only nobody does"),
        ("data/images.py", "from vae_jax.training.loop import fit", "arrows point down"),
        ("training/checkpoint.py", "import pickle", "only nobody does"),
        ("extra.py", "import jax", "on no floor"),
    ],
)
def test_a_planted_violation_is_seen(tmp_path, path, line, complaint):
    for file in files(PACKAGE):
        copy = tmp_path / "vae_jax" / file.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(file.read_text())
    planted = tmp_path / "vae_jax" / path
    planted.write_text((planted.read_text() if planted.exists() else "") + f"\n{line}\n")
    (only,) = violations(tmp_path / "vae_jax")
    assert complaint in only


def test_a_planted_cycle_is_seen(tmp_path):
    package = tmp_path / "vae_jax"
    (package / "parts").mkdir(parents=True)
    (package / "parts/classes.py").write_text("from vae_jax.parts.priors import x")
    (package / "parts/priors.py").write_text("def f():\n    from vae_jax.parts import classes")
    assert violations(package) == []
    assert cycle(package) == ["parts/classes.py", "parts/priors.py", "parts/classes.py"]


HEAVY = (
    "diffrax",
    "grain",
    "tensorflow",
    "tensorflow_datasets",
    "orbax",
    "matplotlib",
    "flax",
    "tensorboardX",
    "PIL",
    "torch",
    "tqdm",
)


def imported_with(statement: str) -> set[str]:
    """Which of `HEAVY` a new Python has imported after a statement."""
    code = f"{statement}; import sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_the_library_imports_nothing_heavy():
    """And neither do the rooms for data, training and pictures, until they are used."""
    already = imported_with("import jax, numpyro.distributions, optax")
    rooms = ", ".join(
        f"vae_jax.{room}" for room in ("core", "parts", "data", "training", "em", "report.pictures", "vq")
    )
    assert imported_with(f"import vae_jax, {rooms}") == already
    assert not already & {"tensorflow", "tensorflow_datasets", "orbax", "matplotlib", "flax", "tensorboardX", "torch"}
