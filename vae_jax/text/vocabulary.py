"""Words and their numbers. 0 is the end of a sentence and the padding after it, 1 the unknown word, 2.. are words.

A "word" is whatever the text is cut into: words between white space, characters, bytes, or subwords.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from vae_jax.core.extras import extra
from vae_jax.core.numbers import is_whole
from vae_jax.training.run_directory import PathLike, load_config, to_path, write_whole

END = 0
"""The number of the end of a sentence, and of the padding after it."""

UNKNOWN = 1
"""The number of every word that is not in the vocabulary."""

UNKNOWN_WORD = "<unk>"
UNKNOWN_CHARACTER = "\ufffd"
SUBWORDS = 8000
KEPT = "vocabulary.json"


@dataclass(frozen=True)
class Vocabulary:
    """The words that have a number, and how text is cut into them.

    Fields:
        words: what each number stands for; the first is the end of the sentence, the second the unknown word.
        cut: text to numbers, the end not among them.
        join: numbers to text; none of them is the end.
        unit: what a word is: "word", "character", "byte" or "subword"; "" where `cut` and `join` are one's own.
        tokenizer: of subwords, as the package tokenizers writes it down, JSON.
    """

    words: tuple[str, ...]
    cut: Callable[[str], Sequence[int]]
    join: Callable[[Sequence[int]], str]
    unit: str = ""
    tokenizer: str = ""

    def __len__(self) -> int:
        """How many numbers there are, end and unknown word included: the `levels` of a network."""
        return len(self.words)

    def encode(self, text: str, length: int | None = None) -> np.ndarray:
        """The words of one sentence as int32 numbers, without the end.

        Args:
            length: the end and padding are added up to this length, so that it is a row of a data set.

        Raises:
            ValueError: the sentence and its end are longer than `length`.
        """
        ids = np.array(self.cut(text), np.int32)
        if length is None:
            return ids
        if len(ids) >= length:
            raise ValueError(f"the sentence has {len(ids)} words and an end; length={length} holds fewer: {text!r}")
        return np.pad(ids, (0, length - len(ids)))

    def decode(self, ids: Any) -> str:
        """The text of a row of numbers, up to its first end.

        Raises:
            ValueError: not a row of integers, or a number that stands for no word.
        """
        row = np.asarray(ids)
        if row.ndim != 1 or not (np.issubdtype(row.dtype, np.integer) or row.size == 0):
            raise ValueError(f"decode takes one row of integers; got {row.dtype} of shape {row.shape}")
        if row.size and not 0 <= row.min() <= row.max() < len(self):
            raise ValueError(
                f"numbers of words are in [0, {len(self)}); got some in [{row.min()}, {row.max()}]: are they from "
                "another vocabulary?"
            )
        ends = np.flatnonzero(row == END)
        return self.join(row[: ends[0] if len(ends) else None].tolist())


def words(sentences: Iterable[str], *, min_count: int = 1, size: int | None = None) -> Vocabulary:
    """The words between white space. `<unk>` in a text is the unknown word.

    Args:
        sentences: what the vocabulary is made from: the training part.
        min_count: words that occur less often are unknown.
        size: the most common ones up to this `len`, in which end and unknown word count.

    Raises:
        ValueError: no word is left, or numbers that are not whole or too small.

    Example:
        >>> vocabulary = words(["a cat", "a dog"])
        >>> vocabulary.decode(vocabulary.encode("a dog"))
        'a dog'
    """
    return _counted(sentences, "word", min_count, size)


def characters(sentences: Iterable[str], *, min_count: int = 1, size: int | None = None) -> Vocabulary:
    """The characters, white space included; the unknown one is shown as U+FFFD. Arguments and errors as of `words`."""
    return _counted(sentences, "character", min_count, size)


_CUT: dict[str, tuple[Callable[..., Any], Callable[..., str], str]] = {
    "word": (str.split, " ".join, UNKNOWN_WORD),
    "character": (list, "".join, UNKNOWN_CHARACTER),
}


def _counted(sentences: Iterable[str], unit: str, min_count: Any, size: Any) -> Vocabulary:
    split, _, unknown = _CUT[unit]
    if not is_whole(min_count) or not (size is None or is_whole(size, 3)):
        raise ValueError(
            "a vocabulary takes a whole min_count of at least 1, and a whole size of at least 3 (end, unknown word and "
            f"a word) or None; got {min_count} and {size}"
        )
    counts = Counter(word for sentence in sentences for word in split(sentence))
    counts.pop(unknown, None)
    common = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
    shown = ("<end>", unknown, *common[: None if size is None else size - 2])
    if len(shown) == 2:
        raise ValueError(
            f"no word is left for the vocabulary: of {len(counts)} none occurs at least min_count={min_count} times"
        )
    return _listed(shown, unit)


def _listed(shown: tuple[str, ...], unit: str) -> Vocabulary:
    """The vocabulary of a list of words or characters."""
    split, join, _ = _CUT[unit]
    number = {word: i for i, word in enumerate(shown) if i != END}
    return Vocabulary(
        shown,
        cut=lambda text: [number.get(word, UNKNOWN) for word in split(text)],
        join=lambda ids: join([shown[i] for i in ids]),
        unit=unit,
    )


def utf8_bytes() -> Vocabulary:
    """The 256 bytes of UTF-8: nothing is unknown. Bytes that are no UTF-8 are shown as U+FFFD."""
    shown = ("<end>", UNKNOWN_WORD, *(f"<{byte:02x}>" for byte in range(256)))

    def join(ids):
        return bytes(i - 2 for i in ids if i != UNKNOWN).decode("utf8", errors="replace")

    def cut(text):
        return [byte + 2 for byte in text.encode("utf8", "surrogateescape")]

    return Vocabulary(shown, cut, join, "byte")


def subwords(sentences: Iterable[str], *, min_count: int = 1, size: int | None = None) -> Vocabulary:
    """Byte pairs merged again and again (Sennrich et al. 2016), by Hugging Face's `tokenizers`: nothing is unknown.

    Args:
        sentences: what the merges are learnt from.
        min_count: pairs that occur less often are not merged.
        size: merge up to this `len`, 8000 by default; a short text has fewer.

    Raises:
        ImportError: `tokenizers` is not installed.
        ValueError: `size` does not hold the 256 bytes, or a number is not whole.
    """
    with extra("text", "a vocabulary of subwords"):
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    size = SUBWORDS if size is None else size
    if not is_whole(size, 258) or not is_whole(min_count):
        raise ValueError(
            f"subwords start from 256 bytes, an end and an unknown word, so size is at least 258; got {size}, and "
            f"min_count={min_count}: whole numbers are wanted, and a min_count of at least 1"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - 2,
        min_frequency=min_count,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return _tokenized(tokenizer)


def _tokenized(tokenizer: Any) -> Vocabulary:
    """The vocabulary of a tokenizer."""
    shown = ("<end>", UNKNOWN_WORD, *(str(tokenizer.id_to_token(i)) for i in range(tokenizer.get_vocab_size())))
    return Vocabulary(
        shown,
        cut=lambda text: [i + 2 for i in tokenizer.encode(text).ids],
        join=lambda ids: tokenizer.decode([i - 2 for i in ids if i != UNKNOWN]),
        unit="subword",
        tokenizer=tokenizer.to_str(),
    )


# As a file of a run directory


def save_vocabulary(directory: PathLike, vocabulary: Vocabulary) -> None:
    """Keeps a vocabulary with a run, as vocabulary.json: its words, and how text is cut into them. Of several processes
    the first writes.

    Args:
        directory: of a run that is there: what `fit(directory=...)` or `save_run` made. Local, or `gs://bucket/run`.
        vocabulary: of `load`, `words`, `characters`, `utf8_bytes` or `subwords`.

    Raises:
        ValueError: a vocabulary of one's own functions.
        OSError: it cannot be written.
    """
    if not vocabulary.unit:
        raise ValueError(
            "functions of one's own cannot be written down: what can is a vocabulary of words, characters, utf8_bytes "
            "or subwords"
        )
    kept: dict[str, Any] = {"unit": vocabulary.unit}
    if vocabulary.unit in _CUT:
        kept["words"] = vocabulary.words
    if vocabulary.tokenizer:
        kept["tokenizer"] = json.loads(vocabulary.tokenizer)
    if jax.process_index() == 0:
        write_whole(to_path(directory) / KEPT, json.dumps(kept))


def open_vocabulary(directory: PathLike) -> Vocabulary:
    """The vocabulary that `save_vocabulary` kept with a run: it gives the text of what the opened run draws.

        run, vocabulary = open_run("runs/text_vae"), text.open_vocabulary("runs/text_vae")
        print(*map(vocabulary.decode, run.sample(key, 5)), sep="\\n")

    Raises:
        FileNotFoundError: none was kept there.
        ValueError: the file is damaged.
        ImportError: subwords, and `tokenizers` is not installed.
    """
    file = to_path(directory) / KEPT
    if not file.exists():
        raise FileNotFoundError(
            f"{file.parent} has no {KEPT}: want the directory of a run of text, whose vocabulary was kept with "
            "save_vocabulary"
        )
    kept = load_config(file)
    if kept["unit"] == "byte":
        return utf8_bytes()
    if kept["unit"] in _CUT:
        return _listed(tuple(kept["words"]), kept["unit"])
    with extra("text", "a vocabulary of subwords"):
        from tokenizers import Tokenizer
    return _tokenized(Tokenizer.from_str(json.dumps(kept["tokenizer"])))
