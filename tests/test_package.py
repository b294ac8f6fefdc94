"""The wheel works from another directory: it holds the data and their notices, and no tests."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_string
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import vae_jax

REPOSITORY = Path(__file__).parents[1]
PIP = ("-m", "pip", "--disable-pip-version-check")
ONE_STEP = """
import sys
import jax, jax.numpy as jnp, optax
import vae_jax
from vae_jax.data import load
from vae_jax.nets import MLP
from vae_jax.data.preprocess import unit_scale

assert vae_jax.__file__.startswith(sys.argv[1]), vae_jax.__file__
for name, n, shape in (("fashion_mnist_mini", 5000, (28, 28, 1)), ("emoji_mini", 396, (32, 32, 3))):
    ys = load(name).ys
    assert ys.shape == (n, *shape), ys.shape
    model = vae_jax.vae(vae_jax.gaussian(MLP((), 4)), vae_jax.standard_normal(2), vae_jax.l2(MLP((), shape)))
    step = vae_jax.make_train_step(model, optax.sgd(1e-3), preprocess=unit_scale())
    state = vae_jax.init_state(model, optax.sgd(1e-3), jax.random.key(0), jnp.zeros(shape))
    state, metrics = jax.jit(step)(state, jax.random.key(0), ys[:8])
    assert int(state.step) == 1 and jnp.isfinite(metrics["elbo"])
print("done")
"""


def run(*command, **options):
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that nothing old can slip in and nothing is left behind."""
    folder = tmp_path_factory.mktemp("package")
    skipped = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__")
    shutil.copytree(REPOSITORY, folder / "source", ignore=skipped)
    offline = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    run(*PIP, "wheel", *offline, "--wheel-dir", folder / "wheels", folder / "source")
    (found,) = (folder / "wheels").iterdir()
    return found


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    info = f"vae_jax-{vae_jax.__version__}.dist-info/"
    ours = {name: content for name, content in held.items() if not name.startswith(info)}
    source = wheel.parents[1] / "source"
    wanted = [path for path in (source / "vae_jax").rglob("*") if path.is_file()]
    assert ours == {path.relative_to(source).as_posix(): path.read_bytes() for path in wanted}
    for name in ("py.typed", "data/files/emoji_mini.npz", "data/files/fashion_mnist_mini.npz", "data/files/NOTICES.md"):
        assert f"vae_jax/{name}" in ours
    for path in ("LICENSE", "vae_jax/data/files/NOTICES.md"):
        assert held[f"{info}licenses/{path}"] == (REPOSITORY / path).read_bytes()


def test_the_metadata_name_the_licence_and_the_dependencies(wheel):
    with zipfile.ZipFile(wheel) as archive:
        metadata = message_from_string(archive.read(f"vae_jax-{vae_jax.__version__}.dist-info/METADATA").decode())
    assert metadata["License-Expression"].startswith("Apache-2.0")
    assert metadata["Requires-Python"] == ">=3.11"
    needed = {line.split(";")[0].strip() for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
    names = {"".join(c if c.isalnum() or c in "-_" else " " for c in line).split()[0].lower() for line in needed}
    assert {"jax", "flax", "optax", "numpyro", "tensorflow-datasets", "importlib_resources", "pillow"} <= names
    of_extras = {"tyro", "matplotlib", "diffrax", "tokenizers", "constriction", "tensorboardx"}
    assert not {"tensorflow", "torch", "pytest", *of_extras} & names
    assert metadata.get_payload().startswith("# vae_jax")


def test_pip_leaves_alone_what_colab_has():
    """A bound above it would have pip replace it, and with jax what Colab's GPUs and TPUs have plugins for."""
    lines = [line for line in (REPOSITORY / "colab" / "versions.txt").read_text().splitlines() if line[0] != "#"]
    has = [(wanted.name.replace("_", "-"), next(iter(wanted.specifier)).version) for wanted in map(Requirement, lines)]
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = [text for name, texts in project["optional-dependencies"].items() if name != "test" for text in texts]
    bounds = {bound.name.replace("_", "-"): bound for bound in map(Requirement, project["dependencies"] + extras)}
    held = [(bounds[name], version) for name, version in has if name in bounds]
    assert {"jax", "flax", "optax", "orbax-checkpoint", "numpy", "grain"} <= {bound.name for bound, _ in held}
    assert [f"{bound}: Colab has {version}" for bound, version in held if version not in bound.specifier] == []


def test_the_installed_wheel_works_from_another_directory(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run(*PIP, "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    assert run("-c", ONE_STEP, site, cwd=elsewhere, env=environment) == "done\n"
    small = ("--smoke", "--hidden", "8", "--latent", "2", "--k", "0", "--out", "run")
    assert "report: run/report.html" in run("-m", "vae_jax", "train", *small, cwd=elsewhere, env=environment)
    for name in ("run", "carried/fashion_vq_vae"):
        sampled = run("-m", "vae_jax", "sample", name, "--n", "3", "--out", "s.npz", cwd=elsewhere, env=environment)
        assert sampled == "s.npz: float32[3, 28, 28, 1]\n"
