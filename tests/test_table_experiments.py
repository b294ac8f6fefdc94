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
    assert head[:2] == ["species", "island"] and len(rows) == 344
    assert all(field not in ("", "nan") for row in rows for field in row)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A run of a table of one's own: numbers in own units, classes by name, some missing; a column left out."""
    folder = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    rows = [f"{1000000 + i},{500 + 9 * rng.normal():.3f},{rng.integers(3)},{'ab'[rng.integers(2)]}" for i in range(60)]
    rows[3], rows[5] = "1000003,,2,b", "1000005,501.5,0,"
    (folder / "own.csv").write_text("\n".join(["id,size,room,kind", *rows]))
    options = {"data": str(folder / "own.csv"), "leave_out": ("id",), "classes": ("room",), "batch_size": 16}
    table.main(table.Config(out=str(folder / "run"), smoke=True, **options))
    return folder, rows


def fields_of(path):
    with path.open() as file:
        return list(csv.reader(file))


def test_table_of_ones_own(own):
    """Its columns as the options say; filled.csv is the file with its two gaps filled in."""
    folder, rows = own
    page = (folder / "run/report.html").read_text()
    assert "3 classes: 0, 1, 2" in page and "id" not in open_run(folder / "run").y
    head, *filled = fields_of(folder / "run/filled.csv")
    assert head == ["id", "size", "room", "kind"]
    for row, full in zip(rows, filled, strict=True):
        assert all(was in ("", now) or float(was) == float(now) for was, now in zip(row.split(","), full, strict=True))
    assert 450 < float(filled[3][1]) < 550 and filled[5][3] in ("a", "b")


def test_a_run_of_a_table_speaks_its_units(own, tmp_path):
    """Rows that are drawn, and other rows, with a further column; the card says what the columns are as numbers."""
    folder, _ = own
    run = {"run": str(folder / "run")}
    main.sample(main.Sample(**run, n=9, out=str(tmp_path / "drawn.csv")))
    head, *drawn = fields_of(tmp_path / "drawn.csv")
    assert head == ["size", "room", "kind"] and all(400 < float(size) < 600 for size, _, _ in drawn)
    assert {room for _, room, _ in drawn} <= set("012") and {kind for _, _, kind in drawn} <= set("ab")
    (tmp_path / "more.csv").write_text("kind,room,size,note\n,1,499.25,new\nb,,,old\n")
    more = {**run, "data": str(tmp_path / "more.csv")}
    main.impute(main.Impute(**more, k=10, out=str(tmp_path / "filled.csv")))
    head, one, two = fields_of(tmp_path / "filled.csv")
    assert head == ["kind", "room", "size", "note"] and one[1:] == ["1", "499.25", "new"] and two[3] == "old"
    assert "" not in one + two
    main.encode(main.Encode(**more, n=1, out=str(tmp_path / "codes.npz")))
    assert np.load(tmp_path / "codes.npz")["z"].shape == (1, table.Config().latent)
    main.evaluate(main.Evaluate(**more))
    with pytest.raises(ValueError, match="rows of a table are no picture"):
        main.sample(main.Sample(**run, out=str(tmp_path / "drawn.png")))
    main.export(main.Export(**run, out=str(tmp_path / "exported"), platforms=("cpu",)))
    size = open_run(folder / "run").columns.columns[0]
    card = (tmp_path / "exported/README.md").read_text()
    assert f"| size | (value - {size.centre:.17g}) / {size.scale:.17g} |\n" in card
    assert "| kind | 0 is a, 1 is b |" in card


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
