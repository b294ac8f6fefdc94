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
LINK = "[Open in Colab](https://colab.research.google.com/github/vae-jax/vae_jax/blob/main/colab/{})"
# Words that each prints; all show pictures.
PRINTS = {
    "diffusion.ipynb": ("nats",),
    "em.ipynb": ("nats",),
    "hierarchies_and_flows.ipynb": ("entropy", "KL(data || model)", "two layers", "by level from the top"),
    "lecture.ipynb": ("nats",),
    "pods.ipynb": ("on the mesh", "bit for bit: True", "process 1 of 2"),
    "text_and_collapse.ipynb": ("KL(data || model)", "its decoder at z = 0", "theory for a linear model predicts"),
    "vae.ipynb": ("nats",),
    "vq_vae.ipynb": ("nats",),
    "your_own_data.ipynb": ("bits per 8-bit level", "in closed form", "KL(truth || learnt)"),
}
PICTURES = {"image/png", "image/svg+xml"}


def opened(name):
    return nbformat.read(FOLDER / name, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def is_install(cell):
    return "install" in cell.metadata.get("tags", [])


def install_cell(name):
    """The cell that installs the package; there is one."""
    (cell,) = filter(is_install, opened(name).cells)
    return cell


def test_all_are_there():
    assert set(NOTEBOOKS) == set(PRINTS)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_outputs_are_stripped(name):
    notebook = opened(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5) and notebook.metadata.kernelspec.name == "python3"
    assert code_cells(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(notebook))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_begins_with_a_title_and_a_link_to_colab(name):
    """A plain link: the site asks no other host for a picture."""
    first = opened(name).cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ") and LINK.format(name) in first.source
    assert "![" not in first.source and "<img" not in first.source


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_implements_no_loss_of_its_own(name):
    source = "\n".join(cell.source for cell in code_cells(opened(name)))
    assert "vae_jax" in source
    assert not any(word in source for word in ("log_prob", "value_and_grad", "jax.grad", "logsumexp", "def loss"))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_it_runs(name, monkeypatch):
    monkeypatch.setenv("VAE_JAX_SMOKE", "1")
    notebook = opened(name)
    notebook.cells = [cell for cell in notebook.cells if not is_install(cell)]
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(FOLDER.parent)}}).execute()
    kinds = {kind for cell in code_cells(notebook) for output in cell.outputs for kind in output.get("data", {})}
    assert PICTURES & kinds
    printed = "".join(output.text for cell in code_cells(notebook) for output in cell.outputs if "text" in output)
    for words in PRINTS.get(name, ()):
        assert words in printed
    print(printed)


def test_all_install_alike():
    """Where notebooks are built into the site or run here, that cell is left out, by a tag that nbclient knows."""
    cells = [install_cell(name) for name in NOTEBOOKS]
    assert len({cell.source for cell in cells}) == 1
    assert all(cell.metadata.tags == ["install", "skip-execution"] for cell in cells)


def test_a_notebook_installs_beside_the_jax_that_is_there(monkeypatch, capsys):
    """It names that to pip, which does not run here, and prints it with the device."""
    ran = []

    def run(command):
        ran.append(command)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    exec(install_cell(NOTEBOOKS[0]).source, {})
    ((python, *pip, wanted, jax_there, jaxlib_there),) = ran
    assert (python, pip) == (sys.executable, ["-m", "pip", "install", "--quiet"]) and wanted.startswith("vae_jax[")
    assert {jax_there, jaxlib_there} == {f"{package}=={metadata.version(package)}" for package in ("jax", "jaxlib")}
    assert capsys.readouterr().out == f"jax {metadata.version('jax')} on cpu\n"


def test_a_notebook_that_cannot_be_installed_stops_and_says_where_the_package_comes_from(monkeypatch, tmp_path):
    """pip without an index and without what is installed already; the next cell is not reached."""
    for option in ("NO_INDEX", "IGNORE_INSTALLED", "NO_INPUT", "DISABLE_PIP_VERSION_CHECK"):
        monkeypatch.setenv(f"PIP_{option}", "1")
    sources = install_cell(NOTEBOOKS[0]).source, "print('went on')"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    with pytest.raises(CellExecutionError, match=r"could not install vae_jax.* comes from its repository"):
        NotebookClient(notebook, timeout=100, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert not notebook.cells[1].get("outputs")
