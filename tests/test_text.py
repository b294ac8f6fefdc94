"""Text as rows of numbers: against texts small enough to count by hand, and the message of every refusal."""

import builtins
import collections
import gzip
import hashlib
import importlib.resources
import json
import tempfile
from inspect import unwrap as unchecked  # users have no checker of annotations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vae_jax.text import (
    END,
    UNKNOWN,
    Vocabulary,
    characters,
    lengths,
    load,
    open_vocabulary,
    save_vocabulary,
    subwords,
    utf8_bytes,
    words,
)

SENTENCES = ["a b a", "b a c", "a <unk> d d"]
CARRIED = {
    "train": (20000, "d361af7d2d7586a00bdbe0a3db938770fc0cebf59c6fdb80f38e44f7d16c6540"),
    "valid": (1000, "aa7eb82d0e4dfdc3119fb25c17cc090e71952e42dbc5a1e7e9012670f22c752b"),
    "test": (1000, "86c7244a11bc8f92109acaceaead1e03cc36ba536c9cd70e106eb1881bcad64a"),
}


def save(folder: Path, **parts: str) -> Path:
    folder.mkdir(exist_ok=True)
    for part, content in parts.items():
        (folder / f"{part}.txt").write_text(content, encoding="utf8", newline="")
    return folder


def three(folder: Path, train: str = "a b\nb a a\n", valid: str = "a c\n", test: str = "b\n") -> Path:
    return save(folder, train=train, valid=valid, test=test)


# Vocabularies


def test_words_are_numbered_by_how_often_they_occur():
    """a: 4, b: 2, d: 2, c: 1; ties by the alphabet; `<unk>` in a text is no word."""
    assert words(SENTENCES).words == ("<end>", "<unk>", "a", "b", "d", "c")
    assert words(SENTENCES, min_count=2).words == ("<end>", "<unk>", "a", "b", "d")
    assert words(SENTENCES, size=4).words == ("<end>", "<unk>", "a", "b")
    vocabulary = words(SENTENCES, min_count=2)
    assert len(vocabulary) == 5
    assert vocabulary.encode(" c  b\ta <unk> <end>").tolist() == [UNKNOWN, 3, 2, UNKNOWN, UNKNOWN]
    assert vocabulary.encode("").tolist() == []
    assert vocabulary.encode("b a", 4).tolist() == [3, 2, END, END]
    assert vocabulary.encode("b a").dtype == np.int32


def test_decoding_stops_at_the_end():
    vocabulary = words(SENTENCES)
    assert vocabulary.decode([2, 3, 1, END, 4, 4]) == "a b <unk>"
    assert vocabulary.decode(np.array([END, 2])) == vocabulary.decode([]) == ""
    assert vocabulary.decode(np.array([4, 5], np.uint8)) == "d c"


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(TEXTS)
def test_characters_and_bytes_come_back(text):
    alphabet = characters([text + "x"])
    assert alphabet.decode(alphabet.encode(text)) == text
    assert set(alphabet.words[2:]) == set(text + "x") - {"\ufffd"}
    byte = utf8_bytes()
    assert byte.encode(text).tolist() == [2 + b for b in text.encode()]
    assert byte.decode(byte.encode(text, 200)) == text


@given(TEXTS)
def test_words_come_back_up_to_white_space(text):
    vocabulary = words([text + " x"])
    assert vocabulary.decode(vocabulary.encode(text)) == " ".join(text.split())


def test_unknown_characters_and_broken_bytes_are_shown():
    assert characters(["ab"]).decode(characters(["ab"]).encode("aé b")) == "a\ufffd\ufffdb"
    assert utf8_bytes().decode([2 + 0xC3, 2 + ord("x"), UNKNOWN]) == "\ufffdx"


@pytest.mark.parametrize(
    ("ids", "said"), [([2, 9], r"\[0, 6\); got some in \[2, 9\]"), ([-1], "-1"), ([[2]], "row"), ([0.5], "float64")]
)
def test_numbers_that_stand_for_no_word_are_refused(ids, said):
    with pytest.raises(ValueError, match=said):
        words(SENTENCES).decode(ids)


def test_a_vocabulary_of_nothing_is_refused():
    with pytest.raises(ValueError, match="of 4 none occurs at least min_count=9"):
        words(SENTENCES, min_count=9)
    with pytest.raises(ValueError, match=r"2 words and an end; length=2 holds fewer: 'a b'"):
        words(SENTENCES).encode("a b", 2)
    for options in ({"size": 1}, {"size": 4.5}, {"min_count": 0.5}):
        for make in (words, characters):
            with pytest.raises(ValueError, match="whole min_count of at least 1, and a whole size of at least 3"):
                unchecked(make)(SENTENCES, **options)


def test_subwords_are_merged_from_bytes_and_come_back():
    """ "the" and " the" are merged, 258 numbers are bytes, end and unknown; nothing is unknown."""
    sentences = ["the cat the hat", "the the the"] * 3
    vocabulary = subwords(sentences, size=262)
    assert len(vocabulary) == 262 and vocabulary.words == subwords(sentences, size=262).words
    assert len(vocabulary.encode("the the the")) < 11 / 2
    for text in (*sentences, " a  b", "Ünïcode \N{SNOWMAN}", "<end> <unk>"):
        ids = vocabulary.encode(text)
        assert ids.min() > UNKNOWN and vocabulary.decode(ids) == text
    assert vocabulary.decode([UNKNOWN, *vocabulary.encode("cat")]) == "cat"
    assert len(subwords(sentences, size=262, min_count=100)) == 258
    with pytest.raises(ValueError, match="at least 258; got 99"):
        subwords(sentences, size=99)


def test_subwords_without_their_package(monkeypatch):
    without = builtins.__import__

    def importing(name, *args):
        if name == "tokenizers":
            raise ModuleNotFoundError("no such package", name="tokenizers")
        return without(name, *args)

    monkeypatch.setattr(builtins, "__import__", importing)
    with pytest.raises(ImportError, match=r"pip install 'vae_jax\[text\]'"):
        load("wordnet_mini", unit="subword")


@pytest.mark.parametrize("make", [words, characters, subwords, lambda _: utf8_bytes()])
def test_a_vocabulary_is_kept_with_a_run(make, tmp_path):
    """As plain JSON, and it cuts and joins as before."""
    vocabulary = make([*SENTENCES, 'Ünï "code"', "a\u2028b \N{SNOWMAN}"])
    save_vocabulary(tmp_path, vocabulary)
    assert json.loads((tmp_path / "vocabulary.json").read_text())["unit"] == vocabulary.unit
    opened = open_vocabulary(tmp_path)
    assert opened.words == vocabulary.words
    for text in (" a  b", 'Ünï "code" <unk> z', "\N{SNOWMAN}"):
        ids = vocabulary.encode(text)
        np.testing.assert_array_equal(opened.encode(text), ids)
        assert opened.decode(ids) == vocabulary.decode(ids)


def test_what_is_no_vocabulary_of_a_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no vocabulary.json: want the directory of a run of text"):
        open_vocabulary(tmp_path)
    with pytest.raises(ValueError, match="functions of one's own cannot be written down"):
        save_vocabulary(tmp_path, Vocabulary(("<end>", "<unk>"), cut=lambda text: [], join=lambda ids: ""))
    (tmp_path / "vocabulary.json").write_text('{"unit": "wo')
    with pytest.raises(ValueError, match=r"vocabulary.json is damaged"):
        open_vocabulary(tmp_path)


# What is carried


@pytest.mark.parametrize("part", CARRIED)
def test_carried_files_are_those_of_their_readme(part):
    folder = importlib.resources.files("vae_jax.data") / "files"
    content = (folder / f"wordnet_mini_{part}.txt.gz").read_bytes()
    count, sha256 = CARRIED[part]
    assert hashlib.sha256(content).hexdigest() == sha256
    assert sha256 in (folder / "README.md").read_text(encoding="utf8")
    assert len(set(gzip.decompress(content).decode().splitlines())) == count


def test_the_licence_is_carried_with_the_data():
    folder = importlib.resources.files("vae_jax.data") / "files"
    text = " ".join((folder / "NOTICES.md").read_text(encoding="utf8").split())
    assert "WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved." in text
    assert "hereby granted, provided that you agree to comply with the following copyright notice" in text
    assert "Princeton University and LICENSEE agrees to preserve same." in text


def test_the_carried_text_is_what_counting_says():
    train, valid, test, vocabulary, source = load("wordnet_mini")
    folder = importlib.resources.files("vae_jax.data") / "files"
    lines = {
        part: gzip.decompress((folder / f"wordnet_mini_{part}.txt.gz").read_bytes()).decode().splitlines()
        for part in CARRIED
    }
    counts = collections.Counter(" ".join(lines["train"]).split())
    common = {word for word, count in counts.items() if count >= 2}
    assert set(vocabulary.words[2:]) == common and len(vocabulary) == 11433
    for ys, sentences in zip((train, valid, test), lines.values(), strict=True):
        assert ys.shape == (len(sentences), 81) and ys.dtype == np.int32
        for i in (0, 7, len(ys) - 1):
            shown = " ".join(word if word in common else "<unk>" for word in sentences[i].split())
            assert vocabulary.decode(ys[i]) == shown
        np.testing.assert_array_equal(lengths(ys), [len(sentence.split()) + 1 for sentence in sentences])
    words_of_test = " ".join(lines["test"]).split()
    unknown = np.mean([word not in common for word in words_of_test])
    assert "20000 + 1000 + 1000 sentences of at most 81 words" in source and "WordNet licence" in source
    assert f"+ {len(words_of_test) + 1000} words, ends included; vocabulary of 11433" in source
    assert f", {unknown:.1%}; 0 lines blank, 0 too long and cut" in source


# One's own files


def test_a_folder_of_three_files(tmp_path):
    text = load(three(tmp_path, train="\ufeffb a\r\n\n  \na a b\n"), min_count=1)
    assert text.vocabulary.words == ("<end>", "<unk>", "a", "b")
    np.testing.assert_array_equal(text.train, [[3, 2, 0, 0], [2, 2, 3, 0]])
    np.testing.assert_array_equal(text.valid, [[2, 1, 0, 0]])
    np.testing.assert_array_equal(text.test, [[3, 0, 0, 0]])
    assert text.source == (
        f"files {tmp_path}; 2 + 1 + 1 sentences of at most 4 words, 7 + 3 + 2 words, ends included; vocabulary of 4; "
        "unknown 0.0%, 50.0%, 0.0%; 2 lines blank, 0 too long and cut"
    )


def test_three_files_with_one_beginning_zipped_or_not(tmp_path):
    (tmp_path / "my_train.txt").write_text("a a\n")
    (tmp_path / "my_valid.txt.gz").write_bytes(gzip.compress(b"a"))
    (tmp_path / "my_test.txt").write_text("a b")
    train, valid, test, *_ = load(tmp_path / "my")
    assert (train.tolist(), valid.tolist(), test.tolist()) == ([[2, 2, 0]], [[2, 0, 0]], [[2, 1, 0]])


def test_one_file_is_split_by_the_place_of_the_sentence(tmp_path):
    """Sentence i is i times the word w, blank lines between them."""
    path = tmp_path / "all.txt"
    path.write_text("\n\n".join(" ".join("w" * i) for i in range(1, 46)))
    text = load(path)
    first, second, third = (lengths(ys) - 2 for ys in (text.train, text.valid, text.test))  # from 0, as places are
    assert first.tolist() == [i for i in range(45) if i % 10]
    assert (second.tolist(), third.tolist()) == ([10, 30], [0, 20, 40])
    assert "of every twenty sentences the first" in text.source and "44 lines blank" in text.source


def test_sentences_that_are_too_long(tmp_path):
    """`max_length` counts the end: two words fit into 3, three do not."""
    folder = three(tmp_path, train="a a\na a a\na a a a\n", valid="a\n", test="a a a a\na")
    cut = load(folder, max_length=3)
    np.testing.assert_array_equal(cut.train, [[2, 2, 0], [2, 2, 2], [2, 2, 2]])
    np.testing.assert_array_equal(lengths(cut.train), [3, 3, 3])
    assert "3 too long and cut" in cut.source
    dropped = load(folder, max_length=3, too_long="drop")
    assert dropped.train.tolist() == [[2, 2, 0]] and dropped.test.tolist() == [[2, 0, 0]]
    assert "1 + 1 + 1 sentences" in dropped.source and "3 too long and left out" in dropped.source
    assert load(folder, max_length=9).train.shape == (3, 5)
    with pytest.raises(ValueError, match=r"train: 2 sentences are longer than max_length=3, the first is number 1"):
        load(folder, max_length=3, too_long="refuse")
    with pytest.raises(ValueError, match="test: every sentence is longer than max_length=2"):
        load(three(tmp_path, train="a\na\n", valid="a", test="a a\n"), max_length=2, too_long="drop")


@pytest.mark.parametrize("unit", ["word", "byte"])
def test_lines_end_as_on_any_machine(tmp_path, unit):
    """LF, CR LF, CR, all of them; what Unicode calls a line end besides stays in the line; no byte-order mark."""
    sentences = ["a b", "b\u2028a", "a\x0cb", "b\x85 a\x0b", "a"]
    for content in (
        "\n".join(sentences),
        "\r\n".join(sentences) + "\r\n",
        "\r".join(sentences) + "\r",
        "a b\rb\u2028a\r\n\ra\x0cb\n\rb\x85 a\x0b\r\r\na",
    ):
        for mark in ("", "\ufeff"):
            folder = three(tmp_path)
            (folder / "train.txt").write_bytes((mark + content).encode())
            text = load(folder, unit=unit, min_count=1)
            wanted = [" ".join(line.split()) if unit == "word" else line for line in sentences]
            assert [text.vocabulary.decode(row) for row in text.train] == wanted
    (tmp_path / "train.txt").write_bytes(b"a\rb\r\nc\xff\r")
    with pytest.raises(ValueError, match="byte 0xff in line 3"):
        load(tmp_path)


def test_one_file_with_carriage_returns_alone(tmp_path):
    path = tmp_path / "old.txt"
    path.write_bytes(b"\r".join(b"a %d" % i for i in range(40)))
    text = load(path, min_count=1)
    assert [len(part) for part in text[:3]] == [36, 2, 2]


@given(st.lists(st.binary(min_size=1, max_size=6), min_size=1, max_size=4))
def test_bytes_take_any_file(lines):
    """Whatever the bytes are, they come back; UTF-8 is not asked for."""
    plain = [b"x" + line.translate(None, b"\n\r") for line in lines]
    with tempfile.TemporaryDirectory() as name:
        folder = three(Path(name))
        (folder / "train.txt").write_bytes(b"\n".join(plain))
        text = load(folder, unit="byte")
    assert len(text.vocabulary) == 258
    assert [bytes(i - 2 for i in y if i) for y in text.train.tolist()] == plain


@pytest.mark.parametrize("unit", ["character", "byte", "subword"])
def test_white_space_is_kept_where_words_are_not_the_unit(tmp_path, unit):
    text = load(three(tmp_path, train=" a  b\n", valid="a b", test="b a"), unit=unit, min_count=1)
    assert [text.vocabulary.decode(ys[0]) for ys in text[:3]] == [" a  b", "a b", "b a"]
    assert f"{unit}s" in text.source


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"unit": "letters"}, "unit='letters'"),
        ({"too_long": "wrap"}, "too_long='wrap'"),
        ({"min_count": 0}, "min_count.*got 0"),
        ({"min_count": 1.5}, "min_count.*got 1.5: a whole number"),
        ({"max_length": 8.0}, "max_length.*got 8.0: a whole number"),
        ({"vocabulary_size": 9.5}, "vocabulary_size=9.5: want .* a whole number"),
        ({"max_length": 1}, "max_length.*got 1"),
        ({"vocabulary_size": 2}, "vocabulary_size=2"),
        ({"vocabulary_size": 300, "unit": "byte"}, "none for bytes"),
        ({"min_count": 4}, "no word is left"),
    ],
)
def test_options_out_of_range(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        unchecked(load)(three(tmp_path), **options)


def test_files_that_are_not_there_or_are_damaged(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere_train.txt\[.gz\] does not exist; want wordnet_mini"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"valid.txt\[.gz\] does not exist"):
        load(save(tmp_path, train="a\n"))
    three(tmp_path)
    for content in (gzip.compress(b"a b\n" * 50)[:-9], b"\x1f\x8b\x08junk", b"\x1f\x8b\x08\0\0\0\0\0\0\0junk"):
        (tmp_path / "train.txt").write_bytes(content)
        with pytest.raises(ValueError, match=r"train.txt is damaged"):
            load(tmp_path)
    (tmp_path / "train.txt").write_bytes("a\nb\nsmörgås\n".encode("latin1"))
    with pytest.raises(ValueError, match=r'not UTF-8 text: byte 0xf6 in line 3; unit="byte" takes any file'):
        load(tmp_path)


@pytest.mark.parametrize("content", ["", "\n\n", "  \n\t\n"])
def test_empty_text_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match="no sentence for train"):
        load(three(tmp_path, train=content))
    short = tmp_path / "short.txt"
    short.write_text("a\n" * 10)
    with pytest.raises(ValueError, match="no sentence for valid"):
        load(short)


def test_one_endless_line_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("vae_jax.text.corpus.MOST", 1000)
    folder = three(tmp_path, train="a a\n" * 20 + "a " * 99)
    with pytest.raises(ValueError, match="100 words fill more than 4 GiB; pass max_length"):
        load(folder)
    assert load(folder, max_length=10).train.shape == (21, 10)
