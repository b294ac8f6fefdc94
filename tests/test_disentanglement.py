"""Scores of disentanglement on codes whose score is known, and the sprites that they are taken on."""

import numpy as np
import pytest

from vae_jax.data.sprites import FACTORS, FIGURES, draw, sprites
from vae_jax.evaluation import dci, mutual_information_gap, separated_attribute_predictability

RNG = np.random.default_rng(0)
TRUTH = RNG.integers(0, 4, size=(4000, 2))
NOISE = RNG.normal(size=(4000, 2))
CODES = {
    "each its own": np.concatenate([TRUTH.astype(float), NOISE[:, :1]], axis=1),
    "twice": np.concatenate([TRUTH, TRUTH], axis=1).astype(float),
    "turned": TRUTH @ np.array([[1.0, 1.0], [1.0, -1.0]]),
    "nothing": NOISE,
}


def test_mutual_information_gap():
    """1 where a unit is a factor; 0 where two know the same, and where none knows anything but by chance."""
    found = {name: mutual_information_gap(zs, TRUTH) for name, zs in CODES.items()}
    assert found["each its own"] > 0.97 and found["twice"] == pytest.approx(0, abs=1e-12)
    assert found["turned"] < 0.05 and found["nothing"] < 0.01
    half = np.stack([TRUTH[:, 0] // 2, RNG.integers(0, 2, 4000)], axis=1).astype(float)
    assert mutual_information_gap(half, TRUTH[:, :1]) == pytest.approx(0.5, abs=0.01)  # one bit of two


def test_separated_attribute_predictability():
    found = {name: separated_attribute_predictability(zs, TRUTH) for name, zs in CODES.items()}
    assert found["each its own"] > 0.99 and found["twice"] == pytest.approx(0, abs=1e-12)
    assert found["turned"] < 0.05 and found["nothing"] < 0.01


def test_dci():
    found = {name: dci(zs[:600], TRUTH[:600], trees=5) for name, zs in CODES.items()}
    own = found["each its own"]
    assert own.disentanglement > 0.9 and own.completeness > 0.9 and own.informativeness > 0.99
    np.testing.assert_allclose(own.importance.sum(axis=0), 1)
    assert found["twice"].disentanglement > 0.9 and found["twice"].completeness < 0.7
    assert found["turned"].informativeness > 0.9 and found["turned"].disentanglement < 0.3
    assert found["nothing"].informativeness < 0.1


@pytest.mark.parametrize(
    ("zs", "factors", "message"),
    [
        (np.zeros((5, 1)), np.zeros((5, 1), int), "of two units or more"),
        (np.zeros((5, 2)), np.zeros((4, 1), int), "want zs"),
        (np.zeros((5, 2)), np.full((5, 1), 0.5), "whole numbers from 0 on"),
        (np.zeros((5, 2)), np.zeros((5, 1), int), "factor 0 has one value alone"),
    ],
)
def test_what_is_refused(zs, factors, message):
    with pytest.raises(ValueError, match=message):
        mutual_information_gap(zs, factors)


def test_sprites():
    """The same seed, the same sprites; a factor moves what it says: place, size, figure."""
    some = sprites(20, side=32)
    assert some.ys.dtype == np.uint8 and some.ys.max() == 255 and some.ys.min() == 0
    np.testing.assert_array_equal(some.ys, sprites(20, side=32).ys)
    assert (some.factors < list(FACTORS.values())).all()

    def moments(*factors):
        y = draw(np.array([factors]), side=64)[0, ..., 0] / 255
        rows, columns = np.indices(y.shape) + 0.5
        return y.sum(), (columns * y).sum() / y.sum(), (rows * y).sum() / y.sum()

    for figure, _ in enumerate(FIGURES):
        area, across, down = moments(figure, 2, 5, 0, 31)
        other, further, same = moments(figure, 2, 5, 31, 31)
        assert further - across == pytest.approx(64 * 0.48, abs=0.1) and same == pytest.approx(down, abs=0.05)
        assert other == pytest.approx(area, rel=0.01) and moments(figure, 5, 5, 0, 31)[0] > 1.2 * area
    square, ellipse, _ = (moments(figure, 3, 0, 16, 16)[0] for figure in range(3))
    radius = 64 * 0.136
    assert square == pytest.approx(4 * radius**2, rel=0.02)
    assert ellipse == pytest.approx(np.pi * 1.3 * 0.75 * radius**2, rel=0.02)
    inside = draw(np.array([[2, 5, turn, x, y] for turn in range(0, 40, 7) for x in (0, 31) for y in (0, 31)]))
    assert not inside[:, [0, -1]].any() and not inside[:, :, [0, -1]].any()
    with pytest.raises(ValueError, match="n >= 1"):
        sprites(0)
