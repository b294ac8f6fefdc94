"""`python -m experiments.hierarchical`: both networks run and report, and the numbers fit together."""

import dataclasses

import numpy as np
import pytest
from reopened import check_reopened, evaluations

from experiments import hierarchical
from vae_jax.report import pictures

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def save(path):
    """140 + 20 images of 8 x 8: dark, or bright in one half."""
    rng = np.random.default_rng(0)
    halves = rng.integers(2, size=(160, 2))
    ys = np.clip(20 + 200 * np.repeat(halves, 32, axis=1) + rng.integers(20, size=(160, 64)), 0, 255)
    ys = ys.astype(np.uint8).reshape(160, 8, 8)
    np.savez(path, train_image=ys[:140], test_image=ys[140:])
    return str(path)


SMALL = {"batch_size": 20, "smoke": True}
RUNS = {
    "mlp": ({"width": 6, "latent": 2}, "ladder of 2", 2),
    "conv": ({"scales": (4,), "levels": (2,), "channels": 4}, "convolutional ladder of 2", 2),
}


@pytest.mark.parametrize("network", RUNS)
def test_smoke(network, tmp_path, monkeypatch):
    options, name, levels = RUNS[network]
    shown = []
    monkeypatch.setattr(pictures, "bars", lambda values, **_: shown.append(values) or b"<svg/>")
    path = save(tmp_path / "images.npz")
    config = hierarchical.Config(data=path, network=network, out=str(tmp_path / "run"), **SMALL, **options)
    seen = evaluations(monkeypatch, hierarchical)
    numbers = hierarchical.main(config)
    check_reopened(tmp_path / "run", seen)
    assert np.isfinite(list(numbers.values())).all()
    page = (tmp_path / "run/report.html").read_text()
    for word in ("Learning curves", "Rate by level", f"Samples of the {name}", f"upper levels of the {name} hold"):
        assert word in page, word
    for field in dataclasses.fields(config):
        assert f"<dt>{field.name}<" in page
    (rates,) = shown
    assert rates.shape == (levels,)
    assert rates.sum() == pytest.approx(numbers[f"{name}: rate"], rel=1e-5)
    assert page.count("<img ") == 6
    assert ("two layers: test ELBO" in numbers) == (network == "mlp")


def test_no_depths():
    with pytest.raises(ValueError, match="want at least one number of levels"):
        hierarchical.main(hierarchical.Config(depths=()))
