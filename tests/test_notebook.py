"""The notebook runs, computes nothing itself, and is committed without outputs."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "colab" / "vae.ipynb"


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_outputs_are_stripped():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert code_cells(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(notebook))


def test_it_implements_no_loss_of_its_own():
    source = "\n".join(cell.source for cell in code_cells(nbformat.read(NOTEBOOK, as_version=4)))
    assert "vae_jax.vae(" in source
    assert not any(word in source for word in ("log_prob", "value_and_grad", "jax.grad", "logsumexp", "def loss"))


def test_it_runs(monkeypatch):
    monkeypatch.setenv("VAE_JAX_SMOKE", "1")
    monkeypatch.setenv("XLA_FLAGS", "")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "install" not in cell.metadata.get("tags", [])]
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent.parent)}}).execute()
    kinds = {kind for cell in code_cells(notebook) for output in cell.outputs for kind in output.get("data", {})}
    assert {"image/png", "image/svg+xml"} <= kinds
    printed = "".join(output.text for cell in code_cells(notebook) for output in cell.outputs if "text" in output)
    assert "ln P(y) at least (k=10)" in printed
    assert "bits per 8-bit pixel" in printed
