"""`vae-jax`: a model is trained, and each command opens it again; what cannot be done is one line."""

import json
import shutil
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from test_experiment import TINY, save_labelled

from vae_jax import open_run
from vae_jax.__main__ import main
from vae_jax.data import load
from vae_jax.data.datasets import load_whole

pytestmark = pytest.mark.usefixtures("quickly_compiled")
KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """runs/vae, of images of three classes, which is its condition; and the data."""
    folder = tmp_path_factory.mktemp("command")
    small = [f"--{name.replace('_', '-')}={TINY[name]}" for name in ("latent", "batch_size", "k")]
    line = ["train", "--data", save_labelled(folder / "labelled.npz"), "--out", str(folder / "run"), "--hidden", "16"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["vae-jax", *line, "--conditional", "--epochs", "2", *small])
        main()
    return folder


@pytest.fixture
def shell(monkeypatch, capsys):
    """`shell("sample", "run", ...)`: what the command prints."""

    def run(*line):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["vae-jax", *line])
        main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def command(folder, monkeypatch, shell):
    """`command("sample", ...)` with the run as its first argument: what it prints."""
    monkeypatch.chdir(folder)
    return lambda name, *options, run="run": shell(name, run, *options)


def refused(command, *line, **options):
    """The one line that says why."""
    with pytest.raises(SystemExit) as caught:
        command(*line, **options)
    said = str(caught.value.code)
    assert said.startswith("error: ") and "\n" not in said
    return said


def size_of(path):
    with Image.open(path) as image:
        return image.size


def test_training_says_how_the_model_is_built(folder):
    run = open_run(folder / "run")
    assert run.config["recipe"]["function"] == "vae_jax.command.train:rebuild"
    (start,) = json.loads((folder / "run/made.json").read_text())
    assert " train --data " in start["command"]
    (elbo,) = [row for row in run.numbers if row["name"] == "test ELBO"]
    found = load_whole(str(folder / "labelled.npz"))  # which has a test split
    cs = np.eye(3, dtype=np.float32)[found.labels]
    again = run.evaluate(jax.random.fold_in(KEY, 1), found.ys, cs)  # the key of the report
    assert elbo["value"] == np.mean(again.elbo, dtype=np.float64) and elbo["standard_error"] > 0
    assert "Traversals" in (folder / "run/report.html").read_text()


def test_what_is_written_is_what_the_run_gives(folder, command):
    run, test = open_run(folder / "run"), load_whole(str(folder / "labelled.npz"))
    cs = np.eye(3, dtype=np.float32)[test.labels]
    assert command("sample", "--n", "5", "--out", "s.npz") == "s.npz: float32[5, 8, 8, 1]\n"
    want = run.sample(KEY, 5, c=np.eye(3, dtype=np.float32)[np.arange(5) % 3])
    np.testing.assert_array_equal(np.load(folder / "s.npz")["y"], want)
    assert command("sample", "--n", "20", "--c", "1") == "samples.png: a picture\n"
    assert size_of(folder / "samples.png") == (7 * (10 * 8 + 9 * 2), 7 * (2 * 8 + 2))

    command("encode", "--out", "z.csv")
    np.testing.assert_allclose(np.loadtxt(folder / "z.csv", delimiter=","), run.encode(test.ys, cs), rtol=1e-6)
    command("reconstruct", "--n", "3")
    command("interpolate", "--n", "4", "--steps", "3", "--out", "i.npz")
    assert np.load(folder / "i.npz")["y"].shape == (2, 3, 8, 8, 1)
    command("traverse", "--units", "2", "--steps", "4")
    heights = [size_of(folder / f"{name}.png")[1] for name in ("reconstructions", "traversals")]
    assert heights == [7 * 8, 7 * (2 * 8 + 2)]

    printed = command("evaluate", "--k", "3", "--out", "numbers.json")
    rows = {row["name"]: row["value"] for row in json.loads((folder / "numbers.json").read_text())}
    result = run.evaluate(KEY, test.ys, cs, k=3)
    assert rows["ELBO"] == np.mean(result.elbo, dtype=np.float64)
    assert "ELBO" in printed and "20 examples, dynamic binarisation" in printed and "ln P(y) at least (k=3)" in rows


def test_the_page_is_written_anew(folder, command):
    before = json.loads((folder / "run/numbers.json").read_text())
    (folder / "run/report.html").unlink()
    command("report", "--k", "0")
    assert (folder / "run/report.html").exists()
    assert json.loads((folder / "run/numbers.json").read_text()) == before


def test_a_folder_of_pictures_is_encoded_whole_and_in_order(folder, command):
    """Without splits nothing is held out. A picture of another size is brought to the model's."""
    pictures = folder / "pictures"
    pictures.mkdir()
    levels = np.random.default_rng(0).integers(0, 256, (23, 8, 8), dtype=np.uint8)
    for i, image in enumerate(levels):
        Image.fromarray(image).save(pictures / f"{i:02}.png")
    np.testing.assert_array_equal(load_whole(str(pictures)).ys[..., 0], levels)
    said = refused(command, "encode", "--data", str(pictures))
    assert said.endswith(
        "run wants the class of each example, and pictures has no labels".replace("pictures", str(pictures))
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            ("sample", "--out", "s.jpg"),
            "out=s.jpg: the end of the name says what is written, want .png or .npz or .csv",
        ),
        (("sample", "--n", "0"), "n=0: want a whole number, at least 1"),
        (("sample", "--c", "7"), "run was trained with conditions of shape (3,); got the classes 7 .. 7"),
        (("sample", "--temperature", "-1"), "temperature=-1.0: want a finite number, at least 0"),
        (
            ("encode", "--out", "z.png"),
            "out=z.png: the end of the name says what is written, want .npz or .csv",
        ),
        (("encode", "--data", "nothing.npz"), "'nothing.npz' does not exist"),
        (("compress",), "run was trained with conditions, which a file does not hold: see vae_jax.codec"),
        (("compress", "--out", "x.zip"), "out=x.zip: the end of the name says what is written, want .vj"),
        (("evaluate", "--out", "n.txt"), "out=n.txt: the end of the name says what is written, want .json"),
        (("smaple",), "smaple is no command of vae-jax: want one of train, evaluate, sample,"),
    ],
)
def test_what_cannot_be_done_is_one_line(folder, command, line, message):
    assert f"error: {message}" in refused(command, *line)


def test_examples_become_a_file_and_come_back(tmp_path, shell, monkeypatch):
    """What the model sees of them: binary images, by the seed."""
    monkeypatch.chdir(tmp_path)
    carried = "carried/fashion_vae"
    printed = shell("compress", carried, "--n", "5", "--seed", "7", "--out", "x.vj")
    size = (tmp_path / "x.vj").stat().st_size
    assert printed.startswith(f"x.vj: 5 examples (dynamic binarisation) in {size:,} bytes, ")
    assert printed.endswith(" bits a dimension\n")
    assert shell("decompress", carried, "--file", "x.vj", "--out", "y.npz") == "y.npz: float32[5, 28, 28, 1]\n"
    seen = jax.vmap(open_run(carried).preprocess.apply)
    want = seen(jax.random.split(jax.random.key(7), 5), load("fashion_mnist_mini", "test").ys[:5])
    np.testing.assert_array_equal(np.load(tmp_path / "y.npz")["y"], want)
    (tmp_path / "x.vj").write_bytes(b"something else")
    said = refused(shell, "decompress", carried, "--file", "x.vj")
    assert said == "error: this is no file of vae_jax.codec: it does not begin like one"


def test_recipes_are_found_where_the_command_is_called(folder, command, monkeypatch):
    """A console command has not its own folder first, as `python -m` has."""
    (folder / "my_models.py").write_text("from vae_jax.command.train import rebuild\n")
    shutil.copytree(folder / "run", folder / "mine")
    config = json.loads((folder / "mine/config.json").read_text())
    config["recipe"]["function"] = "my_models:rebuild"
    (folder / "mine/config.json").write_text(json.dumps(config))
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(folder))])
    assert command("sample", "--n", "2", "--out", "m.npz", run="mine") == "m.npz: float32[2, 8, 8, 1]\n"


def test_another_directory(folder, command):
    assert "is no run directory: it has no config.json" in refused(command, "sample", run="pictures-of-mine")
    shutil.copytree(folder / "run", folder / "other")
    config = json.loads((folder / "other/config.json").read_text())
    config["recipe"]["arguments"]["beta_of_tomorrow"] = 1
    (folder / "other/config.json").write_text(json.dumps(config))
    said = refused(command, "sample", run="other")
    assert said.endswith("train has no option beta_of_tomorrow: was this written by another version?")
