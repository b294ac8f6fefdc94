"""`python -m experiments.chorales`: it runs and reports on music made here; notes become numbers and come back."""

import dataclasses
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from reopened import check_reopened, evaluations

from experiments import chorales, phrases
from experiments.phrases import HELD, LOWEST, REST

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def music(path, **changes):
    """Twelve pieces of 24 rows; each third one is for validation, each third for testing."""
    np.savez(path, **{**phrases.scales(24), **changes})
    return str(path)


def test_chorales(tmp_path, monkeypatch):
    """A smoke run needs no file."""
    monkeypatch.chdir(tmp_path)
    config = chorales.Config(ways=("autoregressive", "VAE, free bits"), out=str(tmp_path), smoke=True)
    seen = evaluations(monkeypatch, chorales)
    numbers = chorales.main(config)
    check_reopened(tmp_path, seen)
    check_reopened(tmp_path / "autoregressive", seen)
    assert np.isfinite(list(numbers.values())).all()
    assert list(numbers) == [
        "autoregressive: -ln P(y)",
        *(f"VAE, free bits: {n}" for n in ("-ln P(y) at most", "-ELBO", "rate")),
    ]
    assert numbers["VAE, free bits: -ln P(y) at most"] < numbers["VAE, free bits: -ELBO"]
    uniform = 4 * np.log(phrases.load_phrases("scales", 16, 2).levels)
    assert all(0 < value < 1.1 * uniform for name, value in numbers.items() if "rate" not in name)
    page = (tmp_path / "report.html").read_text()
    titles = ("Phrases", "Between two phrases", "Learning curves", "autoregressive: drawn")
    for word in (*titles, *(field.name for field in dataclasses.fields(config))):
        assert word in page, word


def test_notes_become_numbers():
    """A note held, one struck again, one held into another pitch (which is a new note), and a rest."""
    pitch = np.array([[60, 60, 60, 0], [60, 60, 62, 50], [60, 60, 62, 0]])
    onset = np.array([[False, True, True, False], [False, True, False, True], [False, False, False, False]])
    expected = [[12, 12, 12, REST], [HELD, 12, 14, LOWEST], [HELD, HELD, HELD, REST]]
    np.testing.assert_array_equal(phrases.values(pitch, onset, 50), expected)


@given(st.lists(st.tuples(st.sampled_from([0, 50, 55, 60]), st.booleans()), min_size=4, max_size=40))
def test_numbers_sound_as_the_notes(notes):
    rows = np.array(notes[: len(notes) // 4 * 4]).reshape(-1, 4, 2)
    pitch, onset = rows[..., 0], rows[..., 1]
    np.testing.assert_array_equal(phrases.sounding(phrases.values(pitch, onset, 40), 40), pitch)


def test_what_is_held_from_nothing_is_a_rest():
    ys = np.array([[HELD, 5, REST, 5], [HELD, HELD, HELD, REST], [4, HELD, HELD, HELD]])
    np.testing.assert_array_equal(phrases.sounding(ys, 40), [[0, 43, 0, 43], [0, 43, 0, 0], [42, 43, 0, 0]])


def test_training_phrases_start_at_every_bar_and_are_moved(tmp_path):
    """Of 24 rows, two phrases of 16 start at a bar, each in 5 keys; one is left where they may not overlap."""
    found = phrases.load_phrases(music(tmp_path / "scales.npz"), 16, 2)
    assert (len(found.train), len(found.valid), len(found.test)) == (4 * 2 * 5, 4, 4)
    assert found.piece.tolist() == [2, 5, 8, 11]
    assert (found.low, found.levels) == (48 - 2, (76 + 2) - (48 - 2) + 1 + LOWEST)
    heard = [phrases.sounding(ys, found.low) for ys in found.train[:5]]
    for move, notes in zip(range(-2, 3), heard, strict=True):
        np.testing.assert_array_equal(notes, np.where(heard[2] > 0, heard[2] + move, 0))
    assert found.train.min() == 0 and found.train.max() == found.levels - 1
    with np.load(tmp_path / "scales.npz") as file:
        np.testing.assert_array_equal(phrases.sounding(found.test[1], found.low), file["pitch"][5 * 24 :][:16])


def test_the_error_over_pieces_is_that_of_pieces():
    values, piece = np.array([1.0, 3.0, 5.0, 9.0, 9.0, 9.0]), np.array([4, 4, 5, 7, 7, 7])
    value, error = chorales.over_pieces(values, piece)
    assert value == pytest.approx((2 + 5 + 9) / 3)
    assert error == pytest.approx(np.std([2, 5, 9], ddof=1) / np.sqrt(3))


def test_a_roll_has_time_to_the_right_and_pitch_upwards():
    """The bass at the bottom left, the soprano at the top right; two columns of two rows, four pixels each."""
    ys = np.array([[[REST, REST, REST, LOWEST], [LOWEST + 2, REST, REST, HELD]]])
    picture = phrases.roll(ys, 40, LOWEST + 3, 1)
    assert picture.startswith(b"\x89PNG")
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    assert pixels.shape == (12, 8, 3)
    np.testing.assert_array_equal(pixels[11, 7], phrases.COLOURS[3])
    assert tuple(pixels[0, 0]) == (250, 250, 250) and pixels[0, 7, 0] < phrases.COLOURS[0, 0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"onset": np.zeros((3, 4), bool)}, r"got \(288, 4\), \(3, 4\)"),
        ({"offsets": np.arange(3)}, "3 offsets and 12 pieces"),
        ({"split": np.array(["train"] * 12)}, "no phrase of 16 rows in one of"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        phrases.load_phrases(music(tmp_path / "scales.npz", **changes), 16, 2)


def test_what_cannot_be_run_is_an_error_in_words(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere.npz does not exist; the top of experiments/phrases.py"):
        chorales.main(chorales.Config(data=str(tmp_path / "nowhere.npz")))
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match=r"holds \['x'\]; want \('pitch'"):
        chorales.main(chorales.Config(data=str(tmp_path / "other.npz")))
    with pytest.raises(FileNotFoundError, match=r"bach_chorales\.npz does not exist"):
        chorales.main(chorales.Config())
    with pytest.raises(ValueError, match="want some of"):
        chorales.main(chorales.Config(ways=("fugue",)))
    with pytest.raises(ValueError, match="got 0 and 2"):
        chorales.main(chorales.Config(rows=0))
