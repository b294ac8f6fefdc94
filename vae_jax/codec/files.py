"""A file of examples: the stack of bits, and what has to be the same where it is read.

The file says which format, model and parameters it was written with, and what they compute here to the last bit; a
reader who has others is told so. A checksum over the examples says that they are those that were written.
"""

import contextlib
import hashlib
import itertools
import json
import math
import struct
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np

from vae_jax.codec.entropy import OutOfReach
from vae_jax.codec.stack import Empty, Stack
from vae_jax.core.model import Coder, Conditional, Model, Params, lift
from vae_jax.data.check import check_data, leaves_by_path
from vae_jax.data.preprocess import identity

MAGIC, FORMAT = b"vae_jax\x01", 1
SIZE = 64  # examples of a batch
WORD, FIRST_WORDS = 32, 16


class CodecError(ValueError):
    """A file that cannot be read here; the message says why."""


class Compressed(NamedTuple):
    """A file, and what it is made of.

    Fields:
        data: the bytes.
        bits: of the examples, on the stack.
        first_bits: random bits that the first latents are drawn from, which are in the file, too.
        header_bits: the rest.
    """

    data: bytes
    bits: int
    first_bits: int
    header_bits: int


def compress(model: Model | Conditional, params: Params, ys: Any, cs: Any = None, *, seed: int = 0) -> bytes:
    """`compressed(...).data`."""
    return compressed(model, params, ys, cs, seed=seed).data


def compressed(model: Model | Conditional, params: Params, ys: Any, cs: Any = None, *, seed: int = 0) -> Compressed:
    """Write examples as bits: about -ELBO / ln 2 of them an example, and all of it comes back exactly.

    Args:
        ys: (n, *example), as the model sees them: binary images, levels, classes.
        cs: (n, *condition) or None; `decompress` needs the same.
        seed: of the first bits, which latents are drawn from.

    Raises:
        TypeError: a model whose data or latents have no code.
        ValueError: data that the model cannot take, or of which it computes numbers that have no code: a latent
            further than 32768 from its mean, NaN.
    """
    model = lift(model)
    coder = _coder_of(model)
    ys, cs = check_data(model, ys, cs, identity(), params=params)
    ys, cs = np.asarray(ys), jax.tree.map(np.asarray, cs)
    _check_discrete(model, params, cs)
    words = FIRST_WORDS
    while (stack := _written(coder, params, ys, cs, _first(seed, words))) is None:
        words *= 2
    computed = _computed(coder, params, cs, ys.shape[1:], SIZE)
    header = Header(FORMAT, ys.shape, str(ys.dtype), SIZE, seed, words, _checksum(ys), _digest(params), computed)
    head, found = header.as_bytes(), stack.words()
    return Compressed(head + found.astype("<u4").tobytes(), WORD * (len(found) - words), WORD * words, 8 * len(head))


def decompress(model: Model | Conditional, params: Params, data: bytes, cs: Any = None) -> np.ndarray:
    """The examples that were compressed, every one of them exactly.

    Args:
        cs: the conditions that were given to `compress`.

    Raises:
        CodecError: no such file, a damaged one, or one of another model, other parameters, or a machine or versions
            that compute the model's numbers otherwise. Other data than were written are never returned.
    """
    coder = _coder_of(lift(model))
    header, body = Header.read(data)
    cs = jax.tree.map(np.asarray, cs)
    if any(len(x) != header.shape[0] for x in jax.tree.leaves(cs)):
        raise CodecError(f"the file holds {header.shape[0]} examples, and wants as many conditions cs")
    if header.params != _digest(params):
        raise CodecError("the file was written with other parameters: give decompress the run that it was written with")
    if header.computed != _computed(coder, params, cs, header.shape[1:], header.size):
        raise CodecError(
            "this machine, or this version of jax, computes the model's numbers otherwise than where the file was "
            "written, and the code needs all their digits: read it where it was written"
        )
    try:
        ys = _read(coder, params, cs, header, body)
    except (Empty, OutOfReach):
        raise CodecError(DAMAGED) from None
    if ys.shape != header.shape or _checksum(ys) != header.checksum:
        raise CodecError(DAMAGED)
    return ys


DAMAGED = "the file is damaged: what it holds is not what was written (or the conditions cs are others)"


class Header(NamedTuple):
    """What a file says of itself.

    Fields:
        format: version of this layout.
        shape, dtype: of all examples.
        size: examples of a batch.
        seed, first: of the first bits, and how many words of them.
        checksum: of the examples.
        params: digest of the parameters.
        computed: digest of what the model makes of fixed bits.
    """

    format: int
    shape: tuple[int, ...]
    dtype: str
    size: int
    seed: int
    first: int
    checksum: int
    params: str
    computed: str

    def as_bytes(self) -> bytes:
        text = json.dumps(self._asdict()).encode()
        return MAGIC + struct.pack("<II", len(text), zlib.crc32(text)) + text

    @classmethod
    def read(cls, data: bytes) -> tuple["Header", bytes]:
        """The header, and what comes after it."""
        start = len(MAGIC) + 8
        if data[: len(MAGIC)] != MAGIC or len(data) < start:
            raise CodecError("this is no file of vae_jax.codec: it does not begin like one")
        length, checksum = struct.unpack("<II", data[len(MAGIC) : start])
        text, body = data[start : start + length], data[start + length :]
        if len(text) < length or zlib.crc32(text) != checksum or len(body) % 4:
            raise CodecError("the file is damaged or cut short")
        fields = json.loads(text)
        if fields["format"] > FORMAT:
            raise CodecError(
                f"the file has format {fields['format']}, this vae_jax reads {FORMAT}: pip install -U vae_jax"
            )
        return cls(**{**fields, "shape": tuple(fields["shape"])}), body


def _coder_of(model: Model) -> Coder:
    if model.coder is None:
        raise TypeError(
            "this model has no code: bits-back coding wants an encoder, a prior and a generator with densities"
        )
    return model.coder


def _check_discrete(model: Model, params: Params, cs: Any) -> None:
    c = jax.tree.map(lambda x: x[0], cs)
    support: Any = model.support and model.support(params, c)
    if support is not None and not support.is_discrete:
        raise TypeError(
            "the model's data are real, which no file holds exactly: take levels, with discretised_logistic or "
            "categorical as the generator"
        )


def _written(coder: Coder, params: Params, ys: np.ndarray, cs: Any, first: np.ndarray) -> Stack | None:
    """The stack with all examples, or None where the first bits were too few."""
    stack = Stack(first, SIZE)
    try:
        for start, end in _batches(len(ys), SIZE):
            stack.here = end - start
            coder.write(stack, params, ys[start:end], jax.tree.map(lambda x, i=start, j=end: x[i:j], cs))
    except Empty:
        return None
    return stack


def _read(coder: Coder, params: Params, cs: Any, header: Header, body: bytes) -> np.ndarray:
    """All examples, the batch that was written last first."""
    stack, parts = Stack(np.frombuffer(body, "<u4"), header.size, written=True), []
    for start, end in reversed(_batches(header.shape[0], header.size)):
        stack.here = end - start
        part = coder.read(stack, params, jax.tree.map(lambda x, i=start, j=end: x[i:j], cs))
        parts.append(np.asarray(part).astype(header.dtype))
    return np.concatenate(parts[::-1])


def _batches(n: int, size: int) -> list[tuple[int, int]]:
    """Where n examples are cut: 1, 2, 4, ... at first, whose latents are drawn from the bits of those before."""
    cuts = [0]
    while cuts[-1] < n:
        cuts.append(min(n, cuts[-1] + min(size, max(1, cuts[-1]))))
    return list(itertools.pairwise(cuts))


def _first(seed: int, words: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(2**32, size=words, dtype=np.uint32)


def _checksum(ys: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(ys).tobytes())


def _digest(tree: Any) -> str:
    """Of the arrays, their names, shapes and types."""
    found = hashlib.sha256()
    for name, leaf in leaves_by_path(tree).items():
        x = np.asarray(leaf)
        found.update(f"{name} {x.shape} {x.dtype}".encode() + np.ascontiguousarray(x).tobytes())
    return found.hexdigest()[:16]


def _computed(coder: Coder, params: Params, cs: Any, example: tuple[int, ...], size: int) -> str:
    """Digest of an example that fixed bits are read as, and of what is left of them: by the programs that read the
    file, so that it is the same where these give the same probabilities."""
    stack = Stack(_first(0, 2**16 + math.prod(example)), size, written=True)
    stack.here, ys = 1, None
    with contextlib.suppress(Empty, OutOfReach):  # a model that is not trained: what is left says enough
        ys = coder.read(stack, params, jax.tree.map(lambda x: np.zeros_like(x[:1]), cs))
    return _digest((ys, stack.words()))
