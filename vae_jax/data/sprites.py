"""Sprites: white figures on black whose factors are known, made as they are asked for. The factors are dSprites'.

Matthey et al. 2017, "dSprites": a figure (square, ellipse, heart), 6 sizes, 40 turns, 32 places across and 32 down. The
pictures are drawn here, from their formulas: a pixel is as white as the part of it that the figure covers, by 4 x 4
points. All of them are 737,280; `sprites` draws some.
"""

from typing import NamedTuple

import numpy as np

FACTORS = {"figure": 3, "size": 6, "turn": 40, "across": 32, "down": 32}
FIGURES = ("square", "ellipse", "heart")
POINTS = 4  # along a pixel's side


class Sprites(NamedTuple):
    """Images and what they were drawn from.

    Fields:
        ys: (n, side, side, 1) uint8, 0 to 255.
        factors: (n, 5) whole numbers, columns as in `FACTORS`.
    """

    ys: np.ndarray
    factors: np.ndarray


def sprites(n: int, *, seed: int = 0, side: int = 64) -> Sprites:
    """n sprites whose factors are drawn independently.

    Raises:
        ValueError: n < 1, or a side below 8.

    Example:
        >>> drawn = sprites(3, side=16)
        >>> drawn.ys.shape, drawn.factors.shape
        ((3, 16, 16, 1), (3, 5))
    """
    if n < 1 or side < 8:
        raise ValueError(f"sprites wants n >= 1 and a side of 8 or more; got n={n} and side={side}")
    rng = np.random.default_rng(seed)
    factors = np.stack([rng.integers(count, size=n) for count in FACTORS.values()], axis=1)
    return Sprites(draw(factors, side=side), factors)


def draw(factors: np.ndarray, *, side: int = 64) -> np.ndarray:
    """(n, side, side, 1) uint8, the sprites of these factors (n, 5)."""
    figure, size, turn, across, down = np.asarray(factors).T
    radius = side * (0.10 + 0.012 * size)
    angle = 2 * np.pi * turn / FACTORS["turn"]
    margin = side * 0.26
    x, y = (margin + place / 31 * (side - 2 * margin) for place in (across, down))
    drawn = np.empty((len(x), side, side, 1), np.uint8)
    for i in range(len(drawn)):
        drawn[i] = _one(figure[i], radius[i], angle[i], x[i], y[i], side)
    return drawn


def _one(figure, radius, angle, across, down, side) -> np.ndarray:
    places = (np.arange(side * POINTS) + 0.5) / POINTS
    x, y = np.meshgrid((places - across) / radius, (places - down) / radius)
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    inside = (_square, _ellipse, _heart)[figure](u, v)
    covered = inside.reshape(side, POINTS, side, POINTS).mean(axis=(1, 3))
    return np.round(255 * covered).astype(np.uint8)[..., None]


def _square(u, v):
    return np.maximum(np.abs(u), np.abs(v)) < 1


def _ellipse(u, v):
    return (u / 1.3) ** 2 + (v / 0.75) ** 2 < 1


def _heart(u, v):
    """(u^2 + v^2 - 1)^3 < u^2 v^3, with its point down."""
    v = -v
    return (u**2 + v**2 - 1) ** 3 < u**2 * v**3
