"""Whether each unit of z stands for one factor of the data: scores on data whose factors are known.

    MIG    mutual information gap: of each factor the information of the unit that knows most of it, less that of the
           second, as a part of the factor's entropy (Chen et al. 2018, equation 6)
    SAP    separated attribute predictability: the same gap, of what a single unit predicts (Kumar et al. 2018)
    DCI    disentanglement, completeness and informativeness of all units together (Eastwood and Williams 2018)

All are between 0 and 1, and 1 is best. They look at the encoder's means. A score depends on the data it is taken on and
on the options here (bins, learners): compare scores that were taken alike.
"""

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from vae_jax.core.extras import extra

BINS = 20


class DCI(NamedTuple):
    """Eastwood and Williams 2018.

    Fields:
        disentanglement: each unit is important for one factor only; units weigh as much as they are important.
        completeness: each factor is captured by one unit only.
        informativeness: how much of each factor is predicted on held-out examples, mean over factors.
        importance: (units, factors), columns sum to 1.
    """

    disentanglement: float
    completeness: float
    informativeness: float
    importance: np.ndarray


def mutual_information_gap(zs: ArrayLike, factors: ArrayLike, *, bins: int = BINS) -> float:
    """MIG of means of z (n, units) and factors (n, m), whole numbers; a unit is cut into bins of equal width.

    Raises:
        ValueError: shapes that do not fit, fewer than two units, a factor with one value.
    """
    zs, factors = _checked(zs, factors)
    cut = np.stack([np.digitize(z, np.histogram_bin_edges(z, bins)[1:-1]) for z in zs.T], axis=1)
    gaps = []
    for factor in factors.T:
        information = np.sort([_information(unit, factor) for unit in cut.T])
        gaps.append((information[-1] - information[-2]) / _entropy(np.bincount(factor)))
    return float(np.mean(gaps))


def separated_attribute_predictability(zs: ArrayLike, factors: ArrayLike) -> float:
    """SAP of means of z (n, units) and factors (n, m), taken as numbers: gaps of squared correlations.

    Raises:
        ValueError: as `mutual_information_gap`.
    """
    zs, factors = _checked(zs, factors)
    z, v = (x - x.mean(axis=0) for x in (zs, factors.astype(float)))
    spread = np.sqrt((z**2).sum(axis=0))[:, None] * np.sqrt((v**2).sum(axis=0))[None]
    squared = np.sort((z.T @ v / np.maximum(spread, 1e-300)) ** 2, axis=0)
    return float(np.mean(squared[-1] - squared[-2]))


def dci(zs: ArrayLike, factors: ArrayLike, *, seed: int = 0, trees: int = 50) -> DCI:
    """DCI of means of z (n, units) and factors (n, m), by random forests of scikit-learn; a fifth is held out.

    Informativeness is R^2 for factors with more than 10 values and else the accuracy above chance, as a part of what is
    possible; at least 0.

    Raises:
        ValueError: as `mutual_information_gap`, or fewer than 50 examples.
        ImportError: scikit-learn is not installed.
    """
    zs, factors = _checked(zs, factors)
    if len(zs) < 50:
        raise ValueError(f"DCI learns the factors from z: want 50 examples or more, got {len(zs)}")
    with extra("dci", "DCI"):
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
    order, held = np.random.default_rng(seed).permutation(len(zs)), len(zs) // 5
    train, test = order[held:], order[:held]
    importance, informed = [], []
    for factor in factors.T:
        many = len(np.unique(factor)) > 10
        forest = (RandomForestRegressor if many else RandomForestClassifier)(
            trees, max_features=None, random_state=seed, n_jobs=1
        )
        forest.fit(zs[train], factor[train])
        importance.append(forest.feature_importances_)
        score = forest.score(zs[test], factor[test])
        chance = 0.0 if many else np.bincount(factor[test]).max() / held
        informed.append(max(0.0, (score - chance) / max(1 - chance, 1e-9)))
    weights = np.stack(importance, axis=1)
    units, m = weights.shape
    total = np.maximum(weights.sum(axis=1), 1e-12)
    of_units = 1 - np.array([_entropy(row) for row in weights]) / np.log(max(m, 2))
    of_factors = 1 - np.array([_entropy(column) for column in weights.T]) / np.log(units)
    return DCI(
        float(np.sum(of_units * total) / total.sum()), float(of_factors.mean()), float(np.mean(informed)), weights
    )


def _information(a: np.ndarray, b: np.ndarray) -> float:
    """I(a; b) in nats of two columns of whole numbers from 0 on, as they occur."""
    joint = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(joint, (a, b), 1)
    return _entropy(joint.sum(axis=1)) + _entropy(joint.sum(axis=0)) - _entropy(joint)


def _entropy(counts: np.ndarray) -> float:
    """In nats, of numbers that are proportional to probabilities; 0 where all are 0."""
    p = np.ravel(counts) / max(np.sum(counts), 1e-300)
    return float(-np.sum(p * np.log(np.where(p > 0, p, 1))))


def _checked(zs: ArrayLike, factors: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    zs, given = np.asarray(zs, np.float64), np.asarray(factors)
    if zs.ndim != 2 or given.ndim != 2 or len(zs) != len(given) or zs.shape[1] < 2:
        raise ValueError(
            f"want zs (n, units), of two units or more, and factors (n, m); got {zs.shape} and {given.shape}"
        )
    if not np.isfinite(zs).all() or (given % 1 != 0).any() or (given < 0).any():
        raise ValueError("want finite zs, and factors that are whole numbers from 0 on")
    whole = given.astype(int)
    if one := [i for i, factor in enumerate(whole.T) if len(np.unique(factor)) < 2]:
        raise ValueError(f"factor {one[0]} has one value alone, of which nothing can be known")
    return zs, whole
