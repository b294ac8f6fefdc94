"""`load`: sentences as one array of numbers for each part, from one's own files or carried by the package."""

import gzip
import importlib.resources
import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from vae_jax.core.numbers import is_whole
from vae_jax.data.local import path_of
from vae_jax.text.bucketing import lengths
from vae_jax.text.vocabulary import END, UNKNOWN, Vocabulary, characters, subwords, utf8_bytes, words

PARTS = ("train", "valid", "test")
CARRIED = "carried by vae_jax: 22,000 definitions of WordNet 3.0 (Princeton University; WordNet licence)"
MOST = 2**30  # numbers in one array: 4 GiB
UNITS = ("word", "character", "byte", "subword")
TOO_LONG = ("cut", "drop", "refuse")


class Text(NamedTuple):
    """Sentences as rows of numbers: 0 after the last word and from there on, 1 for an unknown word, 2.. for words.

    Fields:
        train, valid, test: (n, T) int32. A row without a 0 is a sentence that was cut off.
        vocabulary: made from the training part.
        source: where they come from, and the convention behind any number of nats or perplexity: the counts, the unit,
            the vocabulary, the share of unknown words, and the lines that were blank, cut or left out.
    """

    train: Int32[np.ndarray, "n T"]
    valid: Int32[np.ndarray, "m T"]
    test: Int32[np.ndarray, "k T"]
    vocabulary: Vocabulary
    source: str


def load(
    source: str | os.PathLike,
    *,
    unit: str = "word",
    min_count: int = 2,
    vocabulary_size: int | None = None,
    max_length: int | None = None,
    too_long: str = "cut",
) -> Text:
    """Text in UTF-8, one sentence a line, blank lines left out; files may be gzipped.

    A line ends with LF, CR LF or CR, in any mixture. What else separates lines in Unicode (U+2028, U+0085, a form feed)
    is white space inside a sentence. A byte-order mark at the start is no part of the text.

    The first of these that fits:

    1. `wordnet_mini`: 20,000 + 1,000 + 1,000 dictionary definitions, carried by the package.
    2. A file: of every twenty sentences the first is for testing and the eleventh for validation.
    3. A folder with `train.txt`, `valid.txt` and `test.txt`, or those names and `.gz`.
    4. The beginning of three paths: `data/kjv` for `data/kjv_train.txt.gz`, `data/kjv_valid.txt.gz`, ...

    Args:
        unit: what a sentence is cut into: "word" (by white space; capitals stay as they are), "character", "byte" (any
            file, UTF-8 or not), or "subword" (with the package tokenizers).
        min_count: what occurs less often in training is unknown, so that the unknown word is seen in training; for
            subwords, pairs that are not merged. It says nothing about bytes.
        vocabulary_size: the most common ones only, up to this `len(vocabulary)`.
        max_length: the most numbers a sentence may have, its end included.
        too_long: "cut" a longer sentence, which then has no end, "drop" or "refuse" it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an option out of range; not UTF-8; a damaged gzip file; a part without a line; a sentence too long
            and `too_long="refuse"`; no word left for the vocabulary; arrays of more than 4 GiB.
        ImportError: subwords without the package tokenizers.
    """
    _check_options(unit, min_count, vocabulary_size, max_length, too_long)
    sentences, blank, where = _read(os.fspath(source), any_bytes=unit == "byte")
    for part in PARTS:
        if not sentences[part]:
            raise ValueError(f"{where}: no sentence for {part}; {blank} lines are blank")
    vocabulary = _vocabulary(sentences["train"], unit, min_count, vocabulary_size)
    rows, long = _as_rows(
        {part: [vocabulary.encode(sentence) for sentence in sentences[part]] for part in PARTS},
        max_length,
        too_long,
        where,
    )
    convention = (
        f"{where}; {_sums(rows, len)} sentences of at most {rows['train'].shape[1]} {unit}s, "
        f"{_sums(rows, lambda ys: int(np.sum(lengths(ys))))} {unit}s, ends included; vocabulary of {len(vocabulary)}"
        f"{_rule(unit, min_count)}; unknown {_unknown(rows)}; {blank} lines blank, {long} too long and "
        f"{'cut' if too_long == 'cut' else 'left out'}"
    )
    return Text(rows["train"], rows["valid"], rows["test"], vocabulary, convention)


def _check_options(unit, min_count, vocabulary_size, max_length, too_long) -> None:
    if unit not in UNITS:
        raise ValueError(f"unit={unit!r}: want one of {UNITS}")
    if too_long not in TOO_LONG:
        raise ValueError(f"too_long={too_long!r}: want one of {TOO_LONG}")
    if not is_whole(min_count):
        raise ValueError(f"min_count is how often a word has to occur, at least 1; got {min_count}: a whole number")
    if vocabulary_size is not None and (not is_whole(vocabulary_size, 3) or unit == "byte"):
        raise ValueError(
            f"vocabulary_size={vocabulary_size}: want at least 3 (end, unknown word and a word), and none for bytes, "
            "of which there are 256: a whole number"
        )
    if max_length is not None and not is_whole(max_length, 2):
        raise ValueError(
            f"max_length counts the end of the sentence as well, so at least 2; got {max_length}: a whole number"
        )


def _read(source: str, *, any_bytes: bool) -> tuple[dict[str, list[str]], int, str]:
    """The sentences of each part, how many lines were blank, and where they come from in words."""
    if source == "wordnet_mini":
        with importlib.resources.as_file(importlib.resources.files("vae_jax.data") / "files") as folder:
            return *_read_parts(f"{folder / source}_", any_bytes), f"{source}, {CARRIED}"
    path = path_of(source)
    if not path.is_file():
        return *_read_parts(f"{path}/" if path.is_dir() else f"{path}_", any_bytes), f"files {path}"
    sentences, blank = _sentences(path, any_bytes)
    train = [sentence for i, sentence in enumerate(sentences) if i % 20 not in (0, 10)]
    held = "of every twenty sentences the first is for testing and the eleventh for validation"
    return {"train": train, "valid": sentences[10::20], "test": sentences[::20]}, blank, f"file {path}, {held}"


def _read_parts(beginning: str, any_bytes: bool) -> tuple[dict[str, list[str]], int]:
    found, blanks = {}, 0
    for part in PARTS:
        candidates = (Path(f"{beginning}{part}.txt"), Path(f"{beginning}{part}.txt.gz"))
        paths = [path for path in candidates if path.is_file()]
        if not paths:
            raise FileNotFoundError(
                f"{candidates[0]}[.gz] does not exist; want wordnet_mini, a file of text, a folder with train.txt, "
                "valid.txt and test.txt, or the beginning of three such names: data/kjv for data/kjv_train.txt, ..."
            )
        found[part], blank = _sentences(paths[0], any_bytes)
        blanks += blank
    return found, blanks


def _sentences(path: Path, any_bytes: bool) -> tuple[list[str], int]:
    """The lines that are not blank, and how many are."""
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
    content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    try:
        text = content.decode("utf8", "surrogateescape" if any_bytes else "strict")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f'{path} is not UTF-8 text: byte {content[error.start]:#04x} in line {line}; unit="byte" takes any file'
        ) from None
    lines = text.removeprefix("\ufeff").removesuffix("\n").split("\n")
    sentences = [line for line in lines if line.strip()]
    return sentences, len(lines) - len(sentences)


def _vocabulary(sentences: list[str], unit: str, min_count: int, size: int | None) -> Vocabulary:
    if unit == "byte":
        return utf8_bytes()
    make = {"word": words, "character": characters, "subword": subwords}[unit]
    return make(sentences, min_count=min_count, size=size)


def _as_rows(
    ids: dict[str, list[np.ndarray]], max_length: int | None, too_long: str, where: str
) -> tuple[dict[str, np.ndarray], int]:
    """The parts as arrays of one width, and how many sentences were too long for it."""
    most = sys.maxsize if max_length is None else max_length
    fitting = {part: _fitting(ids[part], most, too_long, f"{where}, {part}") for part in PARTS}
    longest = max(len(row) for part in PARTS for row in fitting[part]) + 1
    width = longest if max_length is None else min(longest, max_length)
    if max(map(len, fitting.values())) * width > MOST:
        raise ValueError(f"{where}: rows of the longest sentence's {width} words fill more than 4 GiB; pass max_length")
    rows = {part: np.full((len(fitting[part]), width), END, np.int32) for part in PARTS}
    for part in PARTS:
        for row, sentence in zip(rows[part], fitting[part], strict=True):
            row[: len(sentence)] = sentence[:width]
    return rows, sum(len(row) >= most for part in PARTS for row in ids[part])


def _fitting(ids: list[np.ndarray], most: int, too_long: str, where: str) -> list[np.ndarray]:
    """The sentences that stay, not yet cut."""
    over = [i for i, row in enumerate(ids) if len(row) >= most]
    if not over or too_long == "cut":
        return ids
    if too_long == "refuse":
        raise ValueError(
            f"{where}: {len(over)} sentences are longer than max_length={most}, the first is number {over[0]} with "
            f'{len(ids[over[0]])} words and an end; too_long="cut" or "drop" takes the others'
        )
    if len(over) == len(ids):
        raise ValueError(f"{where}: every sentence is longer than max_length={most}")
    return [row for row in ids if len(row) < most]


def _sums(rows: dict[str, np.ndarray], count: Callable[[np.ndarray], int]) -> str:
    return " + ".join(str(count(rows[part])) for part in PARTS)


def _rule(unit: str, min_count: int) -> str:
    return f" (what occurs {min_count} times in training)" if unit in ("word", "character") and min_count > 1 else ""


def _unknown(rows: dict[str, np.ndarray]) -> str:
    shares = (np.sum(rows[part] == UNKNOWN) / np.sum(rows[part] != END) for part in PARTS)
    return ", ".join(f"{share:.1%}" for share in shares)
