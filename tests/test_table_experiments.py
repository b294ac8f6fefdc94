"""Experiments on tables, gaps, labels, cells and sprites: they run, report, and are opened again; a table of rows."""

import csv
import dataclasses

import numpy as np
import pytest
from reopened import check_reopened, evaluations
from reported import check_report

from experiments import cells, few_labels, imputation, reproduce, sprites, table
from vae_jax import open_run
from vae_jax.command import main
from vae_jax.data import simulated_cells

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def test_table(tmp_path, monkeypatch):
    config = table.Config(out=str(tmp_path), smoke=True)
    seen = evaluations(monkeypatch, table)
    numbers = table.main(config)
    check_reopened(tmp_path, seen)
    check_report(tmp_path, config, numbers, ("What the columns are", "Columns", "Pairs", "Learning curve"))
    with (tmp_path / "filled.csv").open() as file:
        head, *rows = csv.reader(file)
    assert "species" in head and len(rows) == 344
    assert all(field not in ("", "nan") for row in rows for field in row)


def test_table_of_ones_own(tmp_path):
    """Its columns as the options say; a row is drawn by the run that is opened again."""
    rng = np.random.default_rng(0)
    file = tmp_path / "own.csv"
    rows = [f"{i},{rng.normal():.3f},{rng.integers(3)},{'ab'[rng.integers(2)]}" for i in range(60)]
    file.write_text("\n".join(["id,size,room,kind", *rows]))
    options = {"data": str(file), "leave_out": ("id",), "classes": ("room",), "batch_size": 16}
    table.main(table.Config(out=str(tmp_path / "run"), smoke=True, **options))
    drawn = open_run(tmp_path / "run").model
    assert drawn.latent is not None
    page = (tmp_path / "run/report.html").read_text()
    assert "3 classes: 0, 1, 2" in page and "id" not in open_run(tmp_path / "run").y
    main.sample(main.Sample(run=str(tmp_path / "run"), n=2, out=str(tmp_path / "drawn.csv")))
    head, *drawn = (tmp_path / "drawn.csv").read_text().splitlines()
    assert head == "kind,room,size" and len(drawn) == 2


def test_bins_hold_every_row():
    """Counts one by one while they are few; numbers in more bins the more there are; draws far out change little."""
    real = np.repeat([0.0, 1.0, 5.0], 9)
    np.testing.assert_array_equal(table.edges_of(real, real, whole=True), np.arange(-0.5, 6))
    np.testing.assert_array_equal(table.edges_of(real, np.array([2.0, 7.0]), whole=True), np.arange(-0.5, 8))
    wide = np.append(real, 100)
    edges = table.edges_of(wide, wide, whole=True)
    assert np.histogram(wide, edges)[0].sum() == len(wide) and np.all(np.diff(edges) % 1 == 0) and len(edges) == 7
    for n, bins in ((10, 4), (1000, 20), (50_000, 30)):
        real = np.random.default_rng(n).normal(size=n)
        edges = table.edges_of(real, real, whole=False)
        assert len(edges) == bins + 1 and np.histogram(real, edges)[0].sum() == n
        further = table.edges_of(real, np.array([-1e6, 1e6]), whole=False)
        assert len(further) == 2 * bins + 1
        np.testing.assert_allclose(further[bins // 2 : -(bins // 2)], edges)


def test_imputation(tmp_path):
    config = imputation.Config(out=str(tmp_path), smoke=True, methods=("mean", "kNN", "FA", "MIWAE"))
    numbers = imputation.main(config)
    check_report(tmp_path, config, numbers, ("Errors",))
    assert set(numbers) == {f"iris, 30%: {name}" for name in config.methods}
    assert numbers["iris, 30%: FA"] < numbers["iris, 30%: mean"]


def test_imputation_does_nothing_twice(tmp_path, monkeypatch):
    """What was stopped after two methods has their scores and adds those of the third."""
    done = []
    monkeypatch.setattr(imputation, "METHODS", {name: _counted(name, done) for name in ("mean", "kNN", "FA")})
    config = imputation.Config(out=str(tmp_path), smoke=True, methods=("mean", "FA"))
    first = imputation.main(config)
    second = imputation.main(dataclasses.replace(config, methods=("mean", "kNN", "FA")))
    assert done == ["mean", "FA", "kNN"] and second.items() >= first.items()
    imputation.main(dataclasses.replace(config, latent=1))
    assert done[3:] == ["FA"]


def _counted(name, done):
    def fill(config, ys, whole, seed):
        done.append(name)
        return imputation.of_means(config, ys, whole, seed)

    return fill


def test_few_labels(tmp_path, monkeypatch):
    config = few_labels.Config(out=str(tmp_path), smoke=True)
    seen = evaluations(monkeypatch, few_labels)
    numbers = few_labels.main(config)
    check_reopened(tmp_path, seen)
    check_report(tmp_path, config, numbers, ("Classes", "Learning curve"))
    assert 0 <= numbers["20 labels: error"] <= 1
    with pytest.raises(ValueError, match="want one of each of the 10 classes at least"):
        few_labels.main(dataclasses.replace(config, smoke=False, labels=(5,), out=str(tmp_path / "other")))


def test_cells(tmp_path, monkeypatch):
    config = cells.Config(out=str(tmp_path), smoke=True, certify=2)
    seen = evaluations(monkeypatch, cells)
    numbers = cells.main(config)
    check_reopened(tmp_path, seen)
    check_report(tmp_path, config, numbers, ("Map of cells", "Genes that differ", "Learning curve"))
    assert numbers["ln P(y) at least"] >= numbers["ELBO"] and np.isfinite(numbers["ln P(y) by annealing"])


def test_cells_beside_scvi():
    """SCVI's numbers are of the same cells, in the same unit."""
    pytest.importorskip("scvi")
    made = simulated_cells(60, genes=20, batches=2)
    cs = {"total": made.ys.sum(axis=1).astype(np.float32), "batch": np.eye(2, dtype=np.float32)[made.batches]}
    config = cells.Config(epochs=2, hidden=(8,), latent=2, k=5)
    found = cells.by_scvi(config, (made.ys, cs), (made.ys, cs))
    assert found.log_p.shape == (60,) and np.all(found.log_p < 0) and found.cells_per_second > 0


def test_cells_of_ones_own(tmp_path):
    """Counts alone, with totals inferred; and what are no counts."""
    made = simulated_cells(80, genes=12)
    np.savez(tmp_path / "counts.npz", counts=made.ys)
    options = {"data": str(tmp_path / "counts.npz"), "total": "inferred", "smoke": True, "batch_size": 16}
    numbers = cells.main(cells.Config(out=str(tmp_path / "run"), **options))
    assert "genes that differ" not in numbers and np.isfinite(numbers["ELBO"])
    np.savez(tmp_path / "counts.npz", counts=made.ys + 0.5)
    with pytest.raises(ValueError, match="counts are whole numbers from 0 on"):
        cells.main(cells.Config(out=str(tmp_path / "run"), **options))


def test_sprites(tmp_path, monkeypatch):
    config = sprites.Config(out=str(tmp_path), smoke=True, objective="factor")
    seen = evaluations(monkeypatch, sprites)
    numbers = sprites.main(config)
    check_reopened(tmp_path, seen)
    titles = ("Sprites", "Scores", "Parts of the rate", "Traversals", "Units and factors")
    check_report(tmp_path, config, numbers, titles)
    assert 0 <= numbers["weight 1: MIG"] <= 1
    open_run(tmp_path / "weight = 2")
    with pytest.raises(ValueError, match=r"want one or more, of 1 \(the ELBO\) and above"):
        sprites.main(dataclasses.replace(config, weights=(0.5,)))


def test_a_table_of_rows_goes_on(tmp_path, capsys):
    """What is done is not done again; the table says how many seeds there are."""
    config = reproduce.Config(data="fashion_mnist_mini", out=str(tmp_path), smoke=True, only=("vae",))
    text = reproduce.main(config)
    assert "vae, seed 0" in capsys.readouterr().out
    assert "| vae | standard normal prior |" in text and "64 test images, dynamic binarisation, k = 10" in text
    assert reproduce.main(config) == text
    assert "vae, seed 0" not in capsys.readouterr().out
    assert reproduce.main(dataclasses.replace(config, table=True)) == text
    with pytest.raises(ValueError, match="no such row"):
        reproduce.main(dataclasses.replace(config, only=("vea",)))
