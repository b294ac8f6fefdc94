"""How near images are: PSNR and SSIM of pairs, Frechet distance of features of two sets.

None of them is a likelihood: they say nothing of z, and a blurred mean can have a better PSNR than a sharp draw.
"""

import numpy as np
from jax.typing import ArrayLike

WINDOW, SPREAD = 11, 1.5  # pixels, and the standard deviation of the window's weights (Wang et al. 2004)
K1, K2 = 0.01, 0.03


def psnr(ys: ArrayLike, yhats: ArrayLike, *, white: float = 1.0) -> np.ndarray:
    """(n,) dB: 10 log10(white^2 / mean squared error) of each pair (n, h, w, channels); inf where they are equal.

    Raises:
        ValueError: images of two shapes, or a white that is not positive.

    Example:
        >>> psnr(np.zeros((1, 2, 2, 1)), np.full((1, 2, 2, 1), 0.1)).round(6).tolist()
        [20.0]
    """
    y, yhat = _pairs(ys, yhats, white)
    with np.errstate(divide="ignore"):
        return 10 * np.log10(white**2 / np.mean((y - yhat) ** 2, axis=(1, 2, 3)))


def ssim(ys: ArrayLike, yhats: ArrayLike, *, white: float = 1.0) -> np.ndarray:
    """(n,) structural similarity of each pair (n, h, w, channels), 1 where they are equal (Wang et al. 2004).

    Means, variances and covariance are taken in windows of 11 x 11 pixels with Gaussian weights, or the largest odd
    number of pixels that fits, where these lie inside the image; the mean over windows and channels.

    Raises:
        ValueError: as `psnr`.
    """
    y, yhat = _pairs(ys, yhats, white)
    c1, c2 = (K1 * white) ** 2, (K2 * white) ** 2
    mean_y, mean_yhat = _smoothed(y), _smoothed(yhat)
    variances = _smoothed(y**2) - mean_y**2 + _smoothed(yhat**2) - mean_yhat**2
    covariance = _smoothed(y * yhat) - mean_y * mean_yhat
    likeness = (2 * mean_y * mean_yhat + c1) * (2 * covariance + c2)
    return np.mean(likeness / ((mean_y**2 + mean_yhat**2 + c1) * (variances + c2)), axis=(1, 2, 3))


def frechet_distance(xs: ArrayLike, others: ArrayLike) -> float:
    """|m - m'|^2 + tr(C + C' - 2 (C C')^1/2) of two sets of features (n, d) and (n', d), as if they were Gaussian.

    Of Inception's features this is FID (Heusel et al. 2017). The features are yours: nothing is downloaded, and numbers
    of other features are other numbers. It falls with the number of examples: compare sets of one size.

    Raises:
        ValueError: features of two widths, or fewer than two examples in a set.
    """
    both = [np.asarray(x, np.float64) for x in (xs, others)]
    if any(x.ndim != 2 or len(x) < 2 for x in both) or both[0].shape[1] != both[1].shape[1]:
        raise ValueError(
            f"want features (n, d) and (n', d), of two examples or more; got {both[0].shape} and {both[1].shape}"
        )
    (mean, first), (other, second) = ((x.mean(axis=0), np.atleast_2d(np.cov(x.T))) for x in both)
    # tr (C C')^1/2 = tr (A C' A)^1/2 with A = C^1/2, which is symmetric
    values, axes = np.linalg.eigh(first)
    root = axes * np.sqrt(np.maximum(values, 0)) @ axes.T
    between = np.linalg.eigvalsh(root @ second @ root)
    distance = np.sum((mean - other) ** 2) + np.trace(first) + np.trace(second)
    return float(distance - 2 * np.sqrt(np.maximum(between, 0)).sum())


def _pairs(ys: ArrayLike, yhats: ArrayLike, white: float) -> tuple[np.ndarray, np.ndarray]:
    y, yhat = (np.asarray(x, np.float64) for x in (ys, yhats))
    if y.shape != yhat.shape or y.ndim != 4 or not y.size:
        raise ValueError(f"want two sets of images of one shape (n, h, w, channels); got {y.shape} and {yhat.shape}")
    if not white > 0:
        raise ValueError(f"white is the value of the brightest pixel, above 0; got {white}")
    return y, yhat


def _smoothed(x: np.ndarray) -> np.ndarray:
    """Weighted means in the windows that lie inside the images, along both axes in turn."""
    size = min(WINDOW, *x.shape[1:3])
    size -= size % 2 == 0
    weights = np.exp(-0.5 * ((np.arange(size) - size // 2) / SPREAD) ** 2)
    weights /= weights.sum()
    for axis in (1, 2):
        x = np.lib.stride_tricks.sliding_window_view(x, size, axis=axis) @ weights
    return x
