"""`python -m experiments.rate_distortion`: it runs, reports, and its curve is that of the data; errors are one line."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from reopened import check_reopened, evaluations

from experiments import rate_distortion
from experiments.rate_distortion import Config, eigenvalues_of, least_rate, main
from vae_jax.evaluation import collapse

REPOSITORY = Path(__file__).parents[1]


pytestmark = pytest.mark.usefixtures("quickly_compiled")


def save(path, n=120):
    """n + 20 images of 4 x 4: each half is dark or bright, the upper more so, and some noise."""
    rng = np.random.default_rng(0)

    def split(n):
        halves = rng.choice([-1, 1], (n, 2)) * [120, 60]
        ys = 128 + np.repeat(halves, 8, axis=1) + rng.normal(size=(n, 16))
        return np.clip(ys, 0, 255).astype(np.uint8).reshape(n, 4, 4)

    np.savez(path, train_image=split(n), test_image=split(20))
    return str(path)


@pytest.mark.parametrize("network", ["linear", "mlp"])
def test_smoke(network, tmp_path, capsys, monkeypatch):
    config = Config(
        data=save(tmp_path / "images.npz"),
        network=network,
        hidden=(8,),
        latent=3,
        betas=(4.0, 0.5, 2.0, 1.0),
        batch_size=20,
        out=str(tmp_path / "run"),
        smoke=True,
    )
    seen = evaluations(monkeypatch, rate_distortion)
    points = main(config)
    check_reopened(tmp_path / "run", seen)
    check_reopened(tmp_path / "run/beta = 4", seen)
    printed = capsys.readouterr().out
    assert [point.beta for point in points] == [0.5, 4.0]  # two of them, the smallest first
    page = (tmp_path / "run/report.html").read_text()
    for point in points:
        assert np.isfinite([*point.rate, *point.squared_error, *point.test_rate, *point.test_squared_error]).all()
        assert point.theory == collapse(
            eigenvalues_of(np.load(config.data)["train_image"]),
            beta=point.beta,
            variance=0.25,
            units=3,
            measured=point.active,
        )
        assert f"beta = {point.beta:g}: {point.active} of 3 units are active; theory" in printed
        assert point.theory.sentence.replace("<", "&lt;") in page
    for field in dataclasses.fields(Config):
        assert f"<dt>{field.name}<" in page
    assert page.count("<img ") == 3


def test_the_linear_model_reaches_the_curve(tmp_path):
    """Two directions, at one beta: the rate is within 5 % of the curve's."""
    path = save(tmp_path / "images.npz", 2000)
    config = Config(
        data=path, latent=3, betas=(0.5,), batch_size=20, epochs=30, learning_rate=0.01, out=str(tmp_path / "run")
    )
    (point,) = main(config)
    needed = least_rate(eigenvalues_of(np.load(path)["train_image"]), point.squared_error.value)
    assert point.rate.value == pytest.approx(needed, rel=0.05) and needed > 1
    assert point.theory.active == 2 <= point.active


def test_least_rate_of_one_gaussian():
    assert least_rate(np.array([3.0]), 0.5) == pytest.approx(0.5 * np.log(6), rel=1e-5)
    assert least_rate(np.array([3.0]), 4.0) == 0


def test_eigenvalues_are_those_of_the_dequantised_data():
    """Levels 0 and 255 alternating in one pixel of two: variances of uniform noise added to each."""
    ys = np.zeros((101, 1, 2, 1), np.uint8)
    ys[::2, 0, 0] = 255
    u = np.random.default_rng(0).uniform(size=(2000, *ys.shape))
    drawn = np.cov(((ys[None] + u) / 256).reshape(-1, 2).T)
    found = eigenvalues_of(ys)
    np.testing.assert_allclose(found[0], drawn[0, 0], rtol=0.02)
    np.testing.assert_allclose(found[1], drawn[1, 1], rtol=0.02)


def test_what_cannot_be_run_is_an_error_without_a_traceback(tmp_path):
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    line = [sys.executable, "-m", "experiments.rate_distortion", "--betas", "0.0", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(line, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1 and done.stderr == "error: want sigma > 0 and betas > 0; got 0.5 and (0.0,)\n"


def test_options_out_of_range():
    with pytest.raises(ValueError, match="want sigma > 0"):
        main(Config(sigma=0.0))
    with pytest.raises(ValueError, match="at least one weight"):
        main(Config(betas=()))
