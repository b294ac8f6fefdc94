"""How near images are: against closed forms, and SSIM against the sums of its definition."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from vae_jax.evaluation import frechet_distance, psnr, ssim

RNG = np.random.default_rng(0)
YS = RNG.random((3, 13, 16, 2))


def test_psnr():
    """20 dB at an error of a tenth of white, on every scale."""
    np.testing.assert_allclose(psnr(YS, YS + 0.1), 20, rtol=1e-12)
    np.testing.assert_allclose(psnr(255 * YS, 255 * (YS + 0.1), white=255), 20, rtol=1e-12)
    assert np.isposinf(psnr(YS, YS)).all()


def by_definition(y, yhat):
    """Of one channel: every window, its weights written out."""
    place = np.exp(-0.5 * ((np.arange(11) - 5) / 1.5) ** 2)
    weights = np.outer(place, place) / np.outer(place, place).sum()
    found = []
    for i in range(y.shape[0] - 10):
        for j in range(y.shape[1] - 10):
            a, b = (x[i : i + 11, j : j + 11] for x in (y, yhat))
            m, n = np.sum(weights * a), np.sum(weights * b)
            v, w = np.sum(weights * (a - m) ** 2), np.sum(weights * (b - n) ** 2)
            both = np.sum(weights * (a - m) * (b - n))
            found.append((2 * m * n + 1e-4) * (2 * both + 9e-4) / ((m**2 + n**2 + 1e-4) * (v + w + 9e-4)))
    return np.mean(found)


def test_ssim():
    other = np.clip(YS + 0.2 * RNG.normal(size=YS.shape), 0, 1)
    wanted = [np.mean([by_definition(y[..., k], z[..., k]) for k in range(2)]) for y, z in zip(YS, other, strict=True)]
    np.testing.assert_allclose(ssim(YS, other), wanted, rtol=1e-10)
    np.testing.assert_allclose(ssim(255 * YS, 255 * other, white=255), wanted, rtol=1e-10)
    np.testing.assert_allclose(ssim(YS, YS), 1, rtol=1e-12)
    small = ssim(np.full((1, 4, 4, 1), 0.2), np.full((1, 4, 4, 1), 0.6))
    np.testing.assert_allclose(small, (2 * 0.12 + 1e-4) / (0.04 + 0.36 + 1e-4), rtol=1e-9)


def test_frechet_distance():
    """Of Gaussian samples, by the square root of a product of matrices; 0 of a set and itself."""
    xs, others = RNG.normal(size=(500, 4)) @ RNG.normal(size=(4, 4)), 1 + RNG.normal(size=(400, 4))
    c, d = np.cov(xs.T), np.cov(others.T)
    wanted = np.sum((xs.mean(axis=0) - others.mean(axis=0)) ** 2) + np.trace(c + d - 2 * sqrtm(c @ d).real)
    assert frechet_distance(xs, others) == pytest.approx(wanted, rel=1e-6)
    assert frechet_distance(xs, xs) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(xs[:, :1], 3 + 2 * xs[:, :1]) == pytest.approx(
        (xs[:, 0].mean() + 3) ** 2 + np.var(xs[:, 0], ddof=1), rel=1e-6
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: psnr(YS, YS[:2]), "want two sets of images of one shape"),
        (lambda: ssim(YS[0], YS[0]), "want two sets of images of one shape"),
        (lambda: psnr(YS, YS, white=0), "white is the value of the brightest pixel"),
        (lambda: frechet_distance(YS[0, 0], YS[0, 0, :1]), "of two examples or more"),
        (lambda: frechet_distance(np.ones((5, 2)), np.ones((5, 3))), "want features"),
    ],
)
def test_what_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
