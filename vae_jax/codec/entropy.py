"""What a distribution is to an entropy coder (constriction): symbols, and the numbers that say how probable each is.

Real latents lie on a grid of `STEP`: they are pushed and popped as whole multiples of it, with the mass that a Gaussian
has around each. Both sides of a latent's bits are counted on one grid, so that a finer one costs nothing; it has to be
fine against the encoder's standard deviations. The coder gives each symbol a mass of at least 2^-24, so a Gaussian has
as few as do: those within `REACH` standard deviations, or half as many again.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array

from vae_jax.core.distributions import Levels
from vae_jax.core.extras import extra
from vae_jax.core.model import Params
from vae_jax.parts.autoregression import Autoregressive
from vae_jax.parts.classes import OneHot
from vae_jax.parts.colour import CHANNELS, CoupledLogistics
from vae_jax.parts.conditionals import full_precision

STEP = 2.0**-7
REACH = 6.0  # standard deviations
FAR = 2.0**-23  # probability of what is further away, where a Gaussian has 2e-9
LEAST, MOST = 16, 2**22  # cells on each side
EXACT = 2**24  # cells from 0 that float32 holds one by one
_WHOLE = (Levels, type(dist.constraints.integer_interval(0, 1)))


class OutOfReach(ValueError):
    """A value that the code does not reach."""


class Form(Protocol):
    """How values of one kind are written. Arrays are those that `symbols_of` gave, an axis of examples in front."""

    def push(self, stack: Any, params: Params, values: np.ndarray, arrays: Any) -> None:
        """Onto a `Stack`."""

    def pop(self, stack: Any, params: Params, arrays: Any) -> np.ndarray:
        """What was pushed last, (n, *event)."""


def symbols_of(distribution: dist.Distribution) -> tuple[Form, Any]:
    """The form of ONE example's values, and arrays from which each symbol's parameters follow.

    Raises:
        TypeError: the distribution is no product of bits, levels or Gaussians.
    """
    if isinstance(distribution, Autoregressive):
        return _sequence(distribution)
    if isinstance(distribution, CoupledLogistics):
        d = distribution
        return Colour(d.levels), (d.logits, d.means, d.log_scales, d.couplings)
    base, shape = distribution, distribution.event_shape
    while isinstance(base, dist.Independent | dist.ExpandedDistribution):
        base = base.base_dist
    if isinstance(base, dist.MixtureSameFamily) and base.batch_shape == ():
        return _mixture(base)
    if isinstance(base, dist.Normal):
        return Reals(), tuple(jnp.broadcast_to(x, shape) for x in (base.loc, base.scale))
    if isinstance(base, dist.BernoulliLogits | dist.BernoulliProbs):
        return Bits(), (jnp.broadcast_to(base.probs, shape),)
    if isinstance(base, OneHot):
        return UnitVectors(), (jnp.broadcast_to(base.mean, shape),)
    if base.event_shape == () and (bounds := _bounds(base.support)):
        levels = jnp.arange(bounds[0], bounds[1] + 1)
        log_p = jax.vmap(lambda level: base.log_prob(jnp.broadcast_to(level, shape)))(levels)
        return Classes(bounds[0]), (jnp.moveaxis(jnp.exp(log_p), 0, -1),)
    raise TypeError(
        f"{type(base).__name__} has no code: data are written as bits, classes or levels, and latents as Gaussians. "
        "Where data are real, give levels: discretised_logistic or categorical as the generator"
    )


def _bounds(support: Any) -> tuple[int, int] | None:
    """The least and the greatest of whole numbers, where all have the same ones, whatever the parameters."""
    if not isinstance(support, _WHOLE) or any(isinstance(x, jax.core.Tracer) for x in vars(support).values()):
        return None
    low, high = (np.unique(np.asarray(x)) for x in (support.lower_bound, support.upper_bound))
    return (int(low[0]), int(high[0])) if len(low) == len(high) == 1 else None


@dataclasses.dataclass(frozen=True)
class Reals:
    """Gaussians, on the grid; those of like width together, about their means. A rare flag says that a value is out
    of their reach, and lies somewhere within 2^15."""

    def push(self, stack, params, values, arrays):
        loc, scale = _in_cells(arrays)
        cells = np.rint(np.asarray(values, np.float64).ravel() / STEP)
        away = cells - np.rint(loc)
        far = _beyond(away, _widths(scale))
        loc, scale = loc - np.rint(loc), np.where(far, MOST / REACH, scale)
        widths = _widths(scale)
        if not np.isfinite(away).all() or _beyond(away, widths).any() or _beyond(cells, EXACT).any():
            worst, largest = (np.max(np.abs(x)) * STEP for x in (away, cells))
            raise OutOfReach(
                f"a latent is {largest:.3g}, {worst:.3g} from its mean, and the code reaches {EXACT * STEP:.0f}, "
                f"{MOST * STEP:.0f} from the mean: is the model trained?"
            )
        for width in np.unique(widths)[::-1]:
            here = widths == width
            stack.bits.encode_reverse(away[here].astype(np.int32), _gaussian(width), loc[here], scale[here])
        near = _near(stack, pushed=True)
        stack.bits.encode_reverse(np.where(far, 1 - near, near).astype(np.int32), *_flags(near, len(far)))

    def pop(self, stack, params, arrays):
        loc, scale = _in_cells(arrays)
        near = _near(stack, pushed=False)
        far = stack.bits.decode(*_flags(near, len(loc))) != near
        away, centres = np.zeros(len(loc)), np.rint(loc)
        loc, scale = loc - centres, np.where(far, MOST / REACH, scale)
        widths = _widths(scale)
        for width in np.unique(widths):
            here = widths == width
            away[here] = stack.bits.decode(_gaussian(width), loc[here], scale[here])
        return ((away + centres) * STEP).astype(np.float32).reshape(arrays[0].shape)


def _in_cells(arrays: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations in a row, in units of the grid."""
    loc, scale = (np.asarray(x, np.float64).ravel() / STEP for x in arrays)
    return loc, np.maximum(scale, 1e-6)  # the coder refuses 0, which is what float32 has where it is tiny


def _widths(scale: np.ndarray) -> np.ndarray:
    """The cells on each side, in steps of a half power of 2: few different ones in a batch."""
    powers = np.ceil(2 * np.log2(REACH * scale))
    return np.clip(np.ceil(2.0 ** (powers / 2)), LEAST, MOST).astype(int)


def _near(stack: Any, pushed: bool) -> int:
    """Which bit says that a value is in reach: 0 of what a prior or generator writes, 1 of what an encoder reads. What
    was pushed last comes back at a pop by the same numbers; so one latent out of reach would make the next ones be."""
    return int(stack.reads == pushed)


def _flags(near: int, n: int) -> tuple[Any, np.ndarray]:
    return _bernoulli(), np.full(n, 1 - FAR if near else FAR)


def _beyond(away: np.ndarray, widths: np.ndarray | int) -> np.ndarray:
    return (away < -widths) | (away >= widths)


def _gaussian(width: int) -> Any:
    return constriction().stream.model.QuantizedGaussian(-int(width), int(width) - 1)


def _bernoulli() -> Any:
    return constriction().stream.model.Bernoulli(perfect=False)


@dataclasses.dataclass(frozen=True)
class MixtureOfReals:
    """Gaussians with diagonal covariances, by the component, whose bits are back: -ln P(z) of the mixture."""

    def push(self, stack, params, values, arrays):
        weights, loc, scale = arrays
        k = Classes(0).pop(stack, params, (_posterior(values, arrays),))
        Reals().push(stack, params, values, (_chosen(loc, k), _chosen(scale, k)))
        Classes(0).push(stack, params, k, (weights,))

    def pop(self, stack, params, arrays):
        weights, loc, scale = arrays
        k = Classes(0).pop(stack, params, (weights,))
        values = Reals().pop(stack, params, (_chosen(loc, k), _chosen(scale, k)))
        Classes(0).push(stack, params, k, (_posterior(values, arrays),))
        return values


def _mixture(mixture: dist.MixtureSameFamily) -> tuple[Form, tuple[Array, ...]]:
    """The weights (K,), and means and standard deviations (K, *event)."""
    form, arrays = symbols_of(mixture.component_distribution.to_event(1))
    if not isinstance(form, Reals):
        raise TypeError("a mixture has a code where its components are Gaussians with diagonal covariances")
    return MixtureOfReals(), (mixture.mixing_distribution.probs, *arrays)


def _posterior(values: np.ndarray, arrays: tuple[np.ndarray, ...]) -> np.ndarray:
    """P(k|z), (n, K)."""
    weights, loc, scale = (np.asarray(x, np.float64) for x in arrays)
    away = (np.asarray(values, np.float64)[:, None] - loc) / scale
    axes = tuple(range(2, loc.ndim))
    log_p = np.log(np.maximum(weights, 1e-300)) - np.sum(0.5 * away**2 + np.log(scale), axis=axes)
    relative = np.exp(log_p - log_p.max(axis=1, keepdims=True))
    return relative / relative.sum(axis=1, keepdims=True)


def _chosen(components: np.ndarray, k: np.ndarray) -> np.ndarray:
    return components[np.arange(len(k)), k]


@dataclasses.dataclass(frozen=True)
class Bits:
    """0 or 1, by the probability of 1."""

    def push(self, stack, params, values, arrays):
        stack.bits.encode_reverse(np.asarray(values).astype(np.int32).ravel(), *self._model(arrays))

    def pop(self, stack, params, arrays):
        return stack.bits.decode(*self._model(arrays)).astype(arrays[0].dtype).reshape(arrays[0].shape)

    def _model(self, arrays):
        return _bernoulli(), np.asarray(arrays[0], np.float64).ravel()


@dataclasses.dataclass(frozen=True)
class Classes:
    """Whole numbers from `low` on, by the probability of each."""

    low: int

    def push(self, stack, params, values, arrays):
        stack.bits.encode_reverse(
            np.asarray(values).astype(np.int32).ravel() - np.int32(self.low), *self._model(arrays)
        )

    def pop(self, stack, params, arrays):
        return (stack.bits.decode(*self._model(arrays)) + self.low).astype(np.int32).reshape(arrays[0].shape[:-1])

    def _model(self, arrays):
        (table,) = arrays
        rows = np.ascontiguousarray(table.reshape(-1, table.shape[-1]), np.float32)
        if rows.shape[1] == 1:  # the coder wants two: the other has the least mass
            rows = np.pad(rows, ((0, 0), (0, 1)))
        return constriction().stream.model.Categorical(perfect=False), rows


@dataclasses.dataclass(frozen=True)
class UnitVectors:
    """Classes as rows of the identity matrix."""

    def push(self, stack, params, values, arrays):
        Classes(0).push(stack, params, np.argmax(values, axis=-1), arrays)

    def pop(self, stack, params, arrays):
        return np.eye(arrays[0].shape[-1], dtype=arrays[0].dtype)[Classes(0).pop(stack, params, arrays)]


@dataclasses.dataclass(frozen=True)
class Colour:
    """`CoupledLogistics`: one channel after the other, each by a table of its levels given those before it."""

    levels: int

    def push(self, stack, params, values, arrays):
        ys = np.asarray(values).astype(np.int32)
        tables = [stack.each(_table_of(channel, self.levels), None, *arrays, ys) for channel in range(CHANNELS)]
        for channel, table in reversed([*enumerate(tables)]):
            Classes(0).push(stack, params, ys[..., channel], (table,))

    def pop(self, stack, params, arrays):
        ys = np.zeros(arrays[1].shape[:-1], np.int32)
        for channel in range(CHANNELS):
            table = stack.each(_table_of(channel, self.levels), None, *arrays, ys)
            ys[..., channel] = Classes(0).pop(stack, params, (table,))
        return ys


@functools.lru_cache(maxsize=16)
def _table_of(channel: int, levels: int) -> Callable[..., Array]:
    """`(None, logits, means, log_scales, couplings, y) -> (..., levels)`: P(y_channel | the channels before it)."""

    def table(_, logits, means, log_scales, couplings, y):
        pixels = CoupledLogistics(logits, means, log_scales, couplings, levels)
        log_w = jax.nn.log_softmax(logits)
        for before in range(channel):
            log_w = log_w + pixels.of_channel(before, y).log_prob(y[..., before, None])
        weights = jax.nn.softmax(log_w)
        part = pixels.of_channel(channel, y)
        each = jax.lax.map(lambda level: jnp.sum(weights * jnp.exp(part.log_prob(level)), axis=-1), jnp.arange(levels))
        return jnp.moveaxis(each, 0, -1)

    return table


@dataclasses.dataclass(frozen=True)
class Sequence:
    """One value after the other, each by what the network makes of those before; nothing after the end.

    Fields:
        step: `(params, carry, token) -> (carry, (levels,) probabilities)`.
        shape: of an example; levels, end: as for `autoregressive`.
    """

    step: Callable[..., Any]
    shape: tuple[int, ...]
    levels: int
    end: int | None

    def push(self, stack, params, values, arrays):
        tokens, step = values.reshape(len(values), -1).astype(np.int32), stack.steps(self.step, params, arrays)
        before, seen = np.full(len(values), self.levels, np.int32), []
        for t in range(tokens.shape[1]):
            seen.append((self._going(tokens[:, :t]), step(before)))
            before = tokens[:, t]
        for t, (going, table) in reversed([*enumerate(seen)]):
            Classes(0).push(stack, params, tokens[going, t], (table[going],))

    def pop(self, stack, params, arrays):
        n, step = len(jax.tree.leaves(arrays)[0]), stack.steps(self.step, params, arrays)
        tokens, before = np.zeros((n, math.prod(self.shape)), np.int32), np.full(n, self.levels, np.int32)
        for t in range(tokens.shape[1]):
            table, going = step(before), self._going(tokens[:, :t])
            tokens[:, t] = self.end or 0
            tokens[going, t] = Classes(0).pop(stack, params, (table[going],))
            before = tokens[:, t]
        return tokens.reshape(n, *self.shape)

    def _going(self, tokens: np.ndarray) -> np.ndarray:
        """(n,): whether there is more to come after these."""
        return np.ones(len(tokens), bool) if self.end is None else ~(tokens == self.end).any(axis=1)


def _sequence(distribution: Autoregressive) -> tuple[Form, Any]:
    network, shape = distribution.network, distribution.event_shape
    form = Sequence(_step_of(network), shape, distribution.levels, distribution.end)
    return form, network.start(distribution.params, jnp.zeros(shape, jnp.int32), *distribution.c)


@functools.lru_cache(maxsize=16)
def _step_of(network: Any) -> Callable[..., Any]:
    def step(params, carry, token):
        carry, logits = network.step(params, carry, token)
        return carry, jax.nn.softmax(full_precision(logits))

    return step


def constriction() -> Any:
    """The library of entropy coders, which only this folder wants."""
    with extra("codec", "compression"):
        import constriction
    return constriction
