"""`python -m experiments.vq_vae`: both stages run and report, with both priors."""

import numpy as np
import pytest
from reopened import check_reopened, evaluations
from reported import check_report

from experiments import vq_vae

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.mark.parametrize(
    ("data", "prior", "size"), [("fashion_mnist_mini", "transformer", 784), ("emoji_mini", "pixelcnn", None)]
)
def test_both_stages(tmp_path, data, prior, size, monkeypatch):
    """Stage two leaves the codes alone: what changes is the rate, image by image."""
    config = vq_vae.Config(data=data, prior=prior, out=str(tmp_path), smoke=True)
    seen = evaluations(monkeypatch, vq_vae)
    numbers = vq_vae.main(config)
    check_reopened(tmp_path, seen)
    titles = ("Reconstructions", "Samples", "Usage", "Learning curves")
    check_report(tmp_path, config, numbers, titles)
    cells = numbers["rate, uniform prior"] / np.log(32)
    assert cells == pytest.approx(round(cells)) and (size is None or round(cells) == 49)
    gained = numbers["rate, uniform prior"] - numbers["rate, trained prior"]
    per_dimension = numbers["bits/dim, uniform prior"] - numbers["bits/dim, trained prior"]
    assert numbers["gain"] == pytest.approx(per_dimension, rel=1e-3, abs=1e-5)
    if size is not None:
        assert numbers["gain"] == pytest.approx(gained / (size * np.log(2)), rel=1e-3, abs=1e-5)
    for split in ("training", "test"):
        assert 1 <= numbers[f"perplexity, {split}"] <= numbers[f"codes in use, {split}"] + 1e-3 <= 32.001


def test_colours_follow_the_principal_axes():
    """Vectors along one line get colours in the order of the line."""
    line = np.linspace(-1, 1, 5)[:, None] * np.array([[3.0, 4.0, 0.0]])
    along = vq_vae.colours(line)[:, 0]
    assert along.tolist() in ([0, 0.25, 0.5, 0.75, 1], [1, 0.75, 0.5, 0.25, 0])
