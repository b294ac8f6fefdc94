"""Posterior collapse and the rate-distortion curve: what is known exactly of linear models of Gaussian data.

A linear VAE with L2 distortion of variance sigma^2 and weight beta of the rate, at its optimum, treats each principal
direction of the data, of variance lambda, by itself (Lucas et al. 2019; Alemi et al. 2018):

    active iff lambda > beta sigma^2:    rate 1/2 ln(lambda / (beta sigma^2)),    squared error beta sigma^2
    inactive:                            rate 0,                                  squared error lambda

This is reverse water-filling at the level beta sigma^2 (Cover & Thomas 2006, theorem 10.3.3), so rate and squared error
lie on the rate-distortion function of the Gaussian with the data's covariance.
"""

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike


class Collapse(NamedTuple):
    """What theory predicts of a linear VAE.

    Fields:
        active: number of units that carry anything.
        rate: nats for one example.
        squared_error: E ||y - yhat||^2 for one example.
        distortion: nats for one example, ln Z included.
        variance: sigma^2, as given or at its optimum.
        threshold: beta sigma^2; directions of the data up to this variance carry nothing.
        sentence: all this in words, beside what was measured.
    """

    active: int
    rate: float
    squared_error: float
    distortion: float
    variance: float
    threshold: float
    sentence: str


def collapse(
    eigenvalues: ArrayLike,
    *,
    beta: float = 1.0,
    variance: float | None = None,
    units: int | None = None,
    measured: int | None = None,
) -> Collapse:
    """How many units of a linear VAE with L2 distortion are active at its optimum, and its rate and distortion.

    (Lucas et al. 2019.)

    Args:
        eigenvalues: (d,) of the data's covariance.
        beta: weight of the rate.
        variance: sigma^2 of the generator where it is fixed; None where it is learned.
        units: units of z (default: d, as many as may be useful).
        measured: the number of active units of a trained model, to be set beside the prediction.

    Raises:
        ValueError: eigenvalues that are not those of a covariance, options out of range, or a learned variance that
            has no optimum: the model can describe the data without noise, so that its likelihood has no bound.
    """
    values = _check_eigenvalues(eigenvalues)
    d = len(values)
    units = d if units is None else units
    if not beta > 0 or units < 0 or (variance is not None and not variance > 0):
        raise ValueError(f"want beta > 0, variance > 0 and units >= 0; got {beta}, {variance} and {units}")
    learned = variance is None
    variance = _optimal_variance(values, beta, units) if variance is None else float(variance)
    threshold = beta * variance
    active = min(units, int(np.sum(values > threshold)))
    squared_error = active * threshold + values[active:].sum()
    seen = "" if measured is None else f"{measured} of {units} units are active; "
    optimum = f" (sigma^2 = {variance:.4g} at its optimum)" if learned else ""
    return Collapse(
        active=active,
        rate=float(0.5 * np.log(values[:active] / threshold).sum()),
        squared_error=float(squared_error),
        distortion=float(0.5 * d * np.log(2 * np.pi * variance) + squared_error / (2 * variance)),
        variance=variance,
        threshold=threshold,
        sentence=f"{seen}theory for a linear model predicts {active}: directions of the data with variance <= "
        f"beta sigma^2 = {threshold:.4g}{optimum} carry nothing",
    )


def _optimal_variance(values: np.ndarray, beta: float, units: int) -> float:
    """sigma^2 = (variance of the inactive directions) / (d - beta k), k the only number of active ones that fits it."""
    d = len(values)
    for k in range(min(units, d) + 1):
        rest = values[k:].sum()
        if d <= beta * k or rest <= 0:
            break
        variance = rest / (d - beta * k)
        if k == min(units, d) or values[k] <= beta * variance:
            return float(variance)
    raise ValueError(
        f"the learned variance has no optimum: {units} units describe these data without noise, so that the likelihood "
        "has no bound. Take fewer units, a fixed variance, or leave out directions without variance"
    )


def rate_distortion(eigenvalues: ArrayLike, levels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The rate-distortion function of a Gaussian with squared error, by reverse water-filling.

    (Cover & Thomas 2006, theorem 10.3.3.)

    Args:
        eigenvalues: (d,) of its covariance.
        levels: (m,) of the water, > 0: what each direction is described up to.

    Returns:
        (rate, distortion), (m,) each: 1/2 sum_i max(0, ln(lambda_i / level)) in nats and sum_i min(lambda_i, level).

    Raises:
        ValueError: eigenvalues that are not those of a covariance, or a level that is not positive.
    """
    values, level = _check_eigenvalues(eigenvalues), np.asarray(levels, np.float64)
    if level.ndim != 1 or not (level > 0).all():
        raise ValueError(
            f"levels wants (m,) positive numbers; got shape {level.shape}, the least {level.min(initial=0)}"
        )
    rate = 0.5 * np.log(np.maximum(values[None], level[:, None]) / level[:, None]).sum(axis=1)
    return rate, np.minimum(values[None], level[:, None]).sum(axis=1)


def _check_eigenvalues(eigenvalues: ArrayLike) -> np.ndarray:
    """(d,) largest first; what rounding made of 0 is 0."""
    values = np.asarray(eigenvalues, np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all() or values.max() <= 0:
        raise ValueError(
            f"eigenvalues wants (d,) variances, not all 0; got shape {values.shape}: np.linalg.eigvalsh(np.cov(ys.T)) "
            "for ys (n, d)"
        )
    if values.min() < -1e-6 * values.max():
        raise ValueError(f"a covariance has no negative eigenvalues; got {values.min():.4g}")
    return np.sort(np.maximum(values, 0.0))[::-1]
