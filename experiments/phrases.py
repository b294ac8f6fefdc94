"""Phrases of four-part music as arrays of whole numbers, and their pictures.

What is read is an npz file with a row for each eighth note:

    pitch    (rows, 4)      MIDI numbers of soprano, alto, tenor and bass, 0 for a rest
    onset    (rows, 4)      whether a note starts there
    offsets  (pieces + 1,)  the row where each piece starts, and the end of the last
    split    (pieces,)      "train", "valid" or "test"

The package music21 has Bach's chorales in MusicXML: `music21.corpus.chorales.Iterator()`.
"""

from typing import NamedTuple

import numpy as np

from vae_jax.data.local import path_of
from vae_jax.report import pictures

SCALES = "scales"  # the name of what is made here
ARRAYS = ("pitch", "onset", "offsets", "split")
PARTS = ("train", "valid", "test")
REST, HELD, LOWEST = 0, 1, 2  # the first pitch is LOWEST
BAR = 8  # eighth notes
COLOURS = np.array([[214, 69, 65], [233, 158, 47], [58, 146, 91], [52, 98, 172]], np.uint8)


class Phrases(NamedTuple):
    """Phrases (n, rows, 4) of each part, the piece that each test phrase is from, and what the numbers mean.

    Fields:
        low: the MIDI number of the value `LOWEST`.
        levels: values are 0 .. levels - 1.
    """

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray
    piece: np.ndarray
    low: int
    levels: int

    def first(self, train: int, others: int) -> "Phrases":
        """A few of them."""
        return self._replace(
            train=self.train[:train], valid=self.valid[:others], test=self.test[:others], piece=self.piece[:others]
        )


def load_phrases(path: str, rows: int, shifts: int) -> Phrases:
    """All phrases of a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: arrays that are missing or do not match, or a part without a phrase.
    """
    arrays = scales(rows + BAR) if path == SCALES else _read(path)
    pitch, onset, offsets, split = (arrays[name] for name in ARRAYS)
    if not (pitch.ndim == 2 and pitch.shape[1] == 4 and pitch.shape == onset.shape and len(offsets) == len(split) + 1):
        raise ValueError(
            f"{path}: want pitch and onset of shape (rows, 4) and an offset more than pieces; got {pitch.shape}, "
            f"{onset.shape}, {len(offsets)} offsets and {len(split)} pieces"
        )
    low, high = int(pitch[pitch > 0].min()) - shifts, int(pitch.max()) + shifts
    found: dict[str, list[np.ndarray]] = {part: [] for part in PARTS}
    pieces: list[int] = []
    for i, (start, end, part) in enumerate(zip(offsets[:-1], offsets[1:], split, strict=True)):
        stride, moves = (BAR, range(-shifts, shifts + 1)) if part == "train" else (rows, range(1))
        for first in range(start, end - rows + 1, stride):
            ys = values(pitch[first : first + rows], onset[first : first + rows], low)
            found[part] += [np.where(ys >= LOWEST, ys + move, ys) for move in moves]
            pieces += [i] if part == "test" else []
    if not all(found.values()):
        raise ValueError(f"{path}: no phrase of {rows} rows in one of {PARTS}")
    train, valid, test = (np.array(found[part], np.int32) for part in PARTS)
    return Phrases(train, valid, test, np.array(pieces), low, high - low + 1 + LOWEST)


def _read(path: str) -> dict[str, np.ndarray]:
    if not path_of(path).is_file():
        raise FileNotFoundError(f"{path} does not exist; the top of experiments/phrases.py says what it holds")
    with np.load(path_of(path), allow_pickle=False) as file:
        if not set(ARRAYS) <= set(file):
            raise ValueError(f"{path} holds {sorted(file)}; want {ARRAYS}")
        return {name: file[name] for name in ARRAYS}


def scales(rows: int, pieces: int = 12) -> dict[str, np.ndarray]:
    """Invented pieces, scales in four voices, every note two rows long: to see that all works."""
    t = np.arange(pieces * rows)
    pitch = np.stack([72 + t // 2 % 5, 65 + t // 2 % 3, 60 - t // 2 % 4, np.where(t % 8 < 4, 48, 0)], axis=1)
    return {
        "pitch": pitch,
        "onset": np.repeat(t[:, None] % 2 == 0, 4, axis=1),
        "offsets": np.arange(pieces + 1) * rows,
        "split": np.array(PARTS * (pieces // 3)),
    }


def values(pitch: np.ndarray, onset: np.ndarray, low: int) -> np.ndarray:
    """(rows, 4) rests, held notes and pitches; in the first row every note starts."""
    held = np.zeros(pitch.shape, bool)
    held[1:] = ~onset[1:].astype(bool) & (pitch[1:] == pitch[:-1])
    return np.where(pitch == 0, REST, np.where(held, HELD, pitch.astype(np.int32) - low + LOWEST))


def sounding(ys: np.ndarray, low: int) -> np.ndarray:
    """(rows, 4) MIDI numbers, 0 for a rest; what is held from nothing is a rest."""
    pitch = np.zeros(ys.shape, np.int32)
    for t, row in enumerate(ys):
        before = pitch[t - 1] if t else np.zeros_like(row)
        pitch[t] = np.where(row == HELD, before, np.where(row == REST, 0, row - LOWEST + low))
    return pitch


def roll(phrases: np.ndarray, low: int, levels: int, columns: int) -> bytes:
    """Piano rolls (n, rows, 4) as one picture: time to the right, pitch upwards, a colour for each voice."""
    images = np.full((len(phrases), levels - LOWEST, phrases.shape[1], 3), 250, np.uint8)
    for image, ys in zip(images, phrases, strict=True):
        for t, pitches in enumerate(sounding(ys, low)):
            for voice in np.flatnonzero(pitches)[::-1]:
                struck = ys[t, voice] != HELD
                image[len(image) - 1 - (pitches[voice] - low), t] = COLOURS[voice] * (0.75 if struck else 1)
    return pictures.png(pictures.grid(images, columns), 4)
