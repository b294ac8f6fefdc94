"""`python -m experiments.pixelcnn`: it runs and reports, in grey and in colour, and its file is as long as it says."""

import numpy as np
import pytest
from reopened import check_reopened, evaluations
from reported import check_report

from experiments import pixelcnn

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.mark.parametrize("data", ["fashion_mnist_mini", "emoji_mini"])
def test_smoke(tmp_path, data, monkeypatch):
    config = pixelcnn.Config(data=data, out=str(tmp_path), smoke=True)
    seen = evaluations(monkeypatch, pixelcnn)
    numbers = pixelcnn.main(config)
    check_reopened(tmp_path, seen)
    check_report(tmp_path, config, numbers, ("Samples", "Where the bits are", "Learning curve"))
    assert 0 < numbers["bits/dim"] < 8
    for name in ("vae_jax.codec", "gzip", "bzip2", "xz", "PNG", "WebP"):
        assert 0 < numbers[f"bits/dim, {name}"] < 16  # three images, and headers


def test_a_sheet_holds_every_image():
    ys = np.arange(5 * 2 * 3 * 3, dtype=np.uint8).reshape(5, 2, 3, 3)
    sheet = pixelcnn._sheet(ys)
    assert sheet.shape == (4, 9, 3)
    np.testing.assert_array_equal(sheet[:2, 3:6], ys[1])
    np.testing.assert_array_equal(sheet[2:, :3], ys[3])
    assert not sheet[2:, 6:].any()
