"""A stack of bits onto which batches are pushed, and from which they are popped: asymmetric numeral systems.

What is pushed has to be popped by the same numbers, to the last bit. So each function of a model runs as one compiled
program on batches of one size, padded: an example's numbers follow from its own inputs and its place in the batch, on a
machine that is the same.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vae_jax.codec.entropy import Form, OutOfReach, constriction, symbols_of
from vae_jax.core.model import Conditional, Params

PROGRAMS = 512  # that are kept: a ladder has three for each level, and one that is dropped is compiled for every batch


class Empty(Exception):
    """The stack has fewer bits than a latent is drawn from."""


class Stack:
    """The stack, as a model's `Coder` sees it.

    Args:
        words: (n,) uint32, what is on it: any bits, or with `written` what `words()` of a stack gave.
        size: examples of a compiled batch; `here` of them are real.

    `reads` says on which side it is: pushes and pops of a stack that is read undo those of the one that was written.
    """

    def __init__(self, words: np.ndarray, size: int, *, written: bool = False):
        if written and len(words) and words[-1] == 0:
            raise Empty  # no stack ends so: constriction would refuse it
        self.bits = constriction().stream.stack.AnsCoder(np.asarray(words, np.uint32), seal=not written)
        self.size, self.here, self.reads = size, size, written

    def words(self) -> np.ndarray:
        """What is on it."""
        return self.bits.get_compressed()

    def each(self, function: Callable[..., Any], params: Params, *batches: Any) -> Any:
        """`function(params, *one)` of each example of the batches; a batch may be None.

        Raises:
            OutOfReach: a number is NaN.
        """
        run = _compiled(function, tuple(batch is not None for batch in batches), self.size)
        return self._real(run(params, *jax.tree.map(self._padded, batches)))

    def steps(self, function: Callable[..., Any], params: Params, carry: Any) -> Callable[[np.ndarray], np.ndarray]:
        """`function(params, carry, x) -> (carry, found)` of each example, step after step: from the xs of a step to
        what is found. The carry stays on the device.

        Raises:
            OutOfReach: at a step, a number is NaN.
        """
        run, params = _compiled(function, (True, True), self.size), jax.device_put(params)
        held = [jax.tree.map(self._padded, carry)]

        def step(xs: np.ndarray) -> np.ndarray:
            held[0], found = run(params, held[0], self._padded(xs))
            return self._real(found)

        return step

    def _real(self, batch: Any) -> Any:
        """Of the examples that are real, as numpy has it."""
        found = jax.tree.map(lambda x: np.asarray(x)[: self.here], batch)
        if any(np.isnan(x).any() for x in jax.tree.leaves(found)):
            raise OutOfReach("the model computes NaN of these data, which has no code: is it trained?")
        return found

    def push(self, conditional: Conditional, params: Params, cs: Any, xs: Any) -> None:
        """Write the xs, in -ln P(x|c) nats each."""
        form, arrays = self._symbols(conditional, params, cs)
        form.push(self, params, np.asarray(xs), arrays)

    def pop(self, conditional: Conditional, params: Params, cs: Any) -> np.ndarray:
        """Read what was pushed; from other bits, a draw from P(x|c)."""
        form, arrays = self._symbols(conditional, params, cs)
        found = form.pop(self, params, arrays)
        if self.bits.is_empty():
            raise Empty
        return found

    def _symbols(self, conditional: Conditional, params: Params, cs: Any) -> tuple[Form, tuple[np.ndarray, ...]]:
        arrays, forms = _arrays_of(conditional.dist)
        found = self.each(arrays, params, cs)
        return forms[0], found

    def _padded(self, batch: Any) -> np.ndarray:
        rows = np.asarray(batch)
        return np.concatenate([rows, np.broadcast_to(rows[:1], (self.size - len(rows), *rows.shape[1:]))])


@functools.lru_cache(maxsize=PROGRAMS)
def _compiled(function: Callable[..., Any], given: tuple[bool, ...], size: int) -> Callable[..., Any]:
    axes = (None, *(0 if here else None for here in given))
    return jax.jit(jax.vmap(function, in_axes=axes, axis_size=size))


@functools.lru_cache(maxsize=PROGRAMS)
def _arrays_of(distribution: Callable[..., Any]) -> tuple[Callable[..., Any], list[Form]]:
    """`(params, c) ->` arrays of the symbols, for jit; and their form, which is known once that was traced."""
    forms: list[Form] = []

    def arrays(params, c):
        form, found = symbols_of(distribution(params, c))
        forms[:] = [form]
        return found

    return arrays, forms
