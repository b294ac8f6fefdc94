"""The notebooks run, compute nothing themselves, and are committed without outputs."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

FOLDER = Path(__file__).parent.parent / "colab"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
# What each prints, and which pictures it shows.
PRINTS = {
    "em.ipynb": ("in time order", "in closed form", "beta   16: theory for a linear model"),
    "vae.ipynb": ("ln P(y) at least (k=10)", "bits per 8-bit pixel"),
}
SHOWS = {"em.ipynb": {"image/svg+xml"}, "vae.ipynb": {"image/png", "image/svg+xml"}}


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_outputs_are_stripped(name):
    notebook = nbformat.read(FOLDER / name, as_version=4)
    nbformat.validate(notebook)
    assert code_cells(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(notebook))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_implements_no_loss_of_its_own(name):
    source = "\n".join(cell.source for cell in code_cells(nbformat.read(FOLDER / name, as_version=4)))
    assert "vae_jax" in source
    assert not any(word in source for word in ("log_prob", "value_and_grad", "jax.grad", "logsumexp", "def loss"))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs(name, monkeypatch):
    monkeypatch.setenv("VAE_JAX_SMOKE", "1")
    notebook = nbformat.read(FOLDER / name, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "install" not in cell.metadata.get("tags", [])]
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(FOLDER.parent)}}).execute()
    kinds = {kind for cell in code_cells(notebook) for output in cell.outputs for kind in output.get("data", {})}
    assert SHOWS[name] <= kinds
    printed = "".join(output.text for cell in code_cells(notebook) for output in cell.outputs if "text" in output)
    for words in PRINTS[name]:
        assert words in printed
    print(printed)


def test_a_notebook_installs_beside_the_jax_that_is_there(monkeypatch, capsys):
    """It names that to pip, which does not run here, and prints it with the device."""
    ran = []

    def run(command):
        ran.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    exec(code_cells(nbformat.read(FOLDER / NOTEBOOKS[0], as_version=4))[0].source, {})
    ((python, *pip, wanted, jax_there, jaxlib_there),) = ran
    assert (python, pip) == (sys.executable, ["-m", "pip", "install", "--quiet"]) and wanted.startswith("vae_jax[")
    assert {jax_there, jaxlib_there} == {f"{package}=={metadata.version(package)}" for package in ("jax", "jaxlib")}
    assert capsys.readouterr().out == f"jax {metadata.version('jax')} on cpu\n"


def test_a_notebook_that_cannot_be_installed_stops_and_says_where_the_package_comes_from(monkeypatch, tmp_path):
    """pip without an index and without what is installed already; the next cell is not reached."""
    for option in ("NO_INDEX", "IGNORE_INSTALLED", "NO_INPUT", "DISABLE_PIP_VERSION_CHECK"):
        monkeypatch.setenv(f"PIP_{option}", "1")
    cells = [code_cells(nbformat.read(FOLDER / name, as_version=4))[0] for name in NOTEBOOKS]
    assert len({cell.source for cell in cells}) == 1 and cells[0].metadata.tags == ["install"]
    notebook = nbformat.v4.new_notebook(cells=[cells[0], nbformat.v4.new_code_cell("print('went on')")])
    with pytest.raises(CellExecutionError, match=r"could not install vae_jax.* comes from its repository"):
        NotebookClient(notebook, timeout=100, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert not notebook.cells[1].get("outputs")
