"""Sentences as rows of numbers: own files in one call, batches of like length, perplexity.

    train, valid, test, vocabulary, source = load("wordnet_mini")

0 is the end of a sentence and the padding after it, 1 the unknown word, 2.. are words. A data set is ONE int32 array
(n, T). The end counts as a word in every number of nats and in every perplexity; padding never does.
"""

from vae_jax.text.bucketing import by_length, cut_to_length, lengths
from vae_jax.text.corpus import Text, load
from vae_jax.text.scores import evaluate_by_length, perplexity
from vae_jax.text.vocabulary import (
    END,
    UNKNOWN,
    Vocabulary,
    characters,
    open_vocabulary,
    save_vocabulary,
    subwords,
    utf8_bytes,
    words,
)

__all__ = [
    "END", "UNKNOWN", "Text", "Vocabulary", "by_length", "characters", "cut_to_length", "evaluate_by_length", "lengths",
    "load", "open_vocabulary", "perplexity", "save_vocabulary", "subwords", "utf8_bytes", "words",
]  # fmt: skip
