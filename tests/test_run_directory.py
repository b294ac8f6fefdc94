"""One run directory, one configuration."""

import json
from pathlib import Path

import pytest

from vae_jax.training.run_directory import claim

CONFIG = {"data": "mnist", "epochs": 3, "optimiser": {"rate": 0.5, "clip": None}, "units": (5, 2)}


@pytest.mark.parametrize("exists", [False, True])
def test_a_new_or_empty_directory_becomes_the_run(tmp_path, exists):
    run = tmp_path / "runs" / "vae"
    if exists:
        run.mkdir(parents=True)
        (run / "config.json.partial").write_text("{")  # killed while writing it
    claim(run, CONFIG, resume=False)
    assert json.loads((run / "config.json").read_text()) == {**CONFIG, "units": [5, 2]}
    assert [path.name for path in run.iterdir()] == ["config.json"]
    claim(run, CONFIG, resume=True)


def test_a_run_is_continued_only_on_request(tmp_path):
    claim(tmp_path, CONFIG, resume=True)  # nothing there yet: a new run
    with pytest.raises(FileExistsError, match=r"holds this run already.*--resume.*another directory"):
        claim(tmp_path, CONFIG, resume=False)


@pytest.mark.parametrize("resume", [False, True])
def test_another_configuration_is_refused_with_its_differences(tmp_path, resume):
    claim(tmp_path, CONFIG, resume=False)
    other = {"data": "emoji", "epochs": 9, "optimiser": {"rate": 0.5}, "units": [5, 2], "ema": 0.9}
    with pytest.raises(ValueError, match="another configuration") as error:
        claim(tmp_path, other, resume=resume)
    assert str(error.value).splitlines()[1:] == [
        "  data: 'mnist' there, 'emoji' asked",
        "  epochs: 3 there, 9 asked",
        "  optimiser.clip: None there, absent asked",
        "  ema: absent there, 0.9 asked",
    ]
    claim(tmp_path, other, resume=True, ignore=["data", "epochs", "optimiser", "ema"])
    with pytest.raises(ValueError, match="data: 'mnist' there"):
        claim(tmp_path, other, resume=True, ignore=["dat", "epochs", "optimiser.clip", "ema"])


def test_a_directory_that_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"not a run directory: it holds thesis.tex"):
        claim(tmp_path, CONFIG, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_damaged_or_impossible_configuration(tmp_path):
    with pytest.raises(TypeError, match="config must hold plain JSON"):
        claim(tmp_path, {"path": Path()}, resume=False)
    (tmp_path / "config.json").write_text('{"data": ')
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        claim(tmp_path, CONFIG, resume=True)
