"""Autoregressive models of whole numbers: sentences, codes, pixels.

    P(y|c) = prod_t P(y_t | y_<t, c)                positions t in raster order

P(y|c) is computed exactly, so a language model is trained by -ln P(y), the cross-entropy, and needs no bound. As the
generator of a VAE it is the decoder of a text VAE (Bowman et al. 2016); as the prior, a model of codes (van den Oord et
al. 2017). It models y well whether or not z says anything about y: where it ignores z, the rate falls to 0.

A sentence in an array of fixed length ends with the first `end`. What follows is padding, has to be `end` as well, and
costs nothing, so that -ln P(y) does not depend on the length of the array. Without an end it is a sentence cut off.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import constraints

from vae_jax.core.distributions import Levels
from vae_jax.core.model import Conditional, Model, Params, Terms, lift
from vae_jax.core.network import SequenceNetwork, as_sequence_network, shape_of
from vae_jax.core.numbers import is_whole
from vae_jax.core.sentences import counts
from vae_jax.parts.conditionals import arguments, full_precision

MOST = 1e30  # of a temperature, and 1 / MOST the least: both are numbers in float32

Adjust = Callable[[Array], Array]  # logits (levels,) to logits (levels,)


def autoregressive(net: Any, shape: int | tuple[int, ...], levels: int, *, end: int | None = None) -> Conditional:
    """P(y|c) = prod_t P(y_t|y_<t, c) over arrays y of `shape` with values 0 .. levels - 1, in raster order.

    Args:
        net: for one example, (y, *c) to logits y.shape + (levels,): those of a position depend on y before it (the
            shift is the network's own) and on the condition. `nets.LSTM`, `nets.Transformer`, `nets.PixelCNN`, or any
            causal network. Conditions (z, labels) reach it as arguments of their own; without one it is called with y.
        shape: of y; a number is the length of a sequence. The same parameters serve other lengths where the network
            takes them.
        levels: how many values a position can have.
        end: the value that ends a sentence and pads the rest, or None.

    Raises:
        ValueError: sizes below 1, fewer than 2 levels, an end that is none of them; or, when first called, logits of
            another shape.

    Example:
        >>> model = autoregressive(nets.LSTM(3, 2, 4), 5, 3)  # five positions, three values
        >>> params = jax.jit(model.init)(jax.random.key(0), None)
        >>> jax.jit(lambda key: model.dist(params, None).sample(key))(jax.random.key(1)).shape
        (5,)
    """
    shape = shape_of(shape)
    if not shape or not all(map(is_whole, shape)) or not is_whole(levels, 2):
        raise ValueError(
            f"autoregressive wants positive sizes in shape and levels >= 2; got {shape} and {levels}: whole numbers"
        )
    if end is not None and not (is_whole(end, 0) and end < levels):
        raise ValueError(f"end is one of the values 0 .. {levels - 1}, or None; got {end}")
    network = as_sequence_network(net)

    def init(key, c=None):
        return network.init(key, jnp.zeros(shape, jnp.int32), *_given(c))

    return Conditional(init, lambda params, c=None: Autoregressive(network, params, _given(c), shape, levels, end))


def _given(c: Any) -> tuple[Any, ...]:
    return () if c is None else arguments(c)


class Autoregressive(dist.Distribution):
    """P(y) = prod_t P(y_t|y_<t, c), the network run when it is asked.

    Args:
        network: a causal network.
        params: its parameters.
        c: its further inputs, a tuple.
        shape: of y.
        levels: values of a position, 0 .. levels - 1.
        end: the value that ends y, or None.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    pytree_data_fields = ("params", "c")
    pytree_aux_fields = ("network", "levels", "end")

    def __init__(
        self,
        network: SequenceNetwork,
        params: Params,
        c: tuple[Any, ...],
        shape: tuple[int, ...],
        levels: int,
        end: int | None = None,
        *,
        validate_args=None,
    ):
        self.network, self.params, self.c, self.levels, self.end = network, params, c, levels, end
        super().__init__((), shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True)
    def support(self):
        if self.end is None:
            return constraints.independent(Levels(self.levels), len(self.event_shape))
        return Sentences(self.levels, self.end, len(self.event_shape))

    def log_prob(self, value: ArrayLike) -> Array:
        return jnp.sum(self.token_log_prob(value), axis=tuple(range(-len(self.event_shape), 0)))

    def token_log_prob(self, value: ArrayLike) -> Array:
        """ln P(y_t|y_<t, c) of each position, in nats, in the shape of the value; 0 after the end."""
        ys = jnp.asarray(value)
        dims = len(self.event_shape)
        if ys.shape[ys.ndim - dims :] != self.event_shape:
            raise ValueError(f"this is a distribution over arrays of shape {self.event_shape}; got one of {ys.shape}")
        if ys.ndim == dims:
            return self.scored(ys, ys)
        rows = ys.reshape(-1, *self.event_shape)
        return jax.vmap(self.scored)(rows, rows).reshape(ys.shape)

    def scored(self, y: Array, read: Array, **options: Any) -> Array:
        """`token_log_prob` of one y where the network reads another array, and is given options (a dropout `key`)."""
        y = y.astype(jnp.int32)
        logits = full_precision(self.network.apply(self.params, read.astype(jnp.int32), *self.c, **options))
        if logits.shape != (*y.shape, self.levels):
            raise ValueError(
                f"an autoregressive network has to give logits of shape {(*y.shape, self.levels)}, one for each value "
                f"of each position; got {logits.shape}"
            )
        picked = jnp.take_along_axis(logits, y[..., None], axis=-1, mode="clip")[..., 0]
        log_p = picked - jax.nn.logsumexp(logits, axis=-1)
        return log_p if self.end is None else jnp.where(counts(y.ravel(), self.end).reshape(y.shape), log_p, 0.0)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        if not sample_shape:
            return self.draw(key)
        ys = jax.vmap(self.draw)(jax.random.split(key, math.prod(sample_shape)))
        return ys.reshape(*sample_shape, *self.event_shape)

    def draw(self, key: Array, adjust: tuple[Adjust, ...] = ()) -> Array:
        """One y, int32, position by position in one scan, from logits that are adjusted one after the other.

        The same key begins a longer array in the same way.
        """
        y = jnp.zeros(self.event_shape, jnp.int32)

        def step(state, t):
            carry, token, over = state
            carry, logits = self.network.step(self.params, carry, token)
            logits = full_precision(logits)
            for change in adjust:
                logits = change(logits)
            token = jax.random.categorical(jax.random.fold_in(key, t), logits).astype(jnp.int32)
            if self.end is not None:
                token = jnp.where(over, self.end, token)
                over = over | (token == self.end)
            return (carry, token, over), token

        start = self.network.start(self.params, y, *self.c), jnp.int32(self.levels), jnp.bool_(False)
        _, tokens = jax.lax.scan(step, start, jnp.arange(y.size))
        return tokens.reshape(y.shape)


class Sentences(constraints.ParameterFreeConstraint):
    """Arrays of whole numbers 0 .. levels - 1, with nothing but `end` after the first `end`, in raster order."""

    is_discrete = True

    def __init__(self, levels: int, end: int, event_dim: int = 1):
        self.levels, self.end, self.event_dim = levels, end, event_dim

    def __call__(self, x):
        inside = (x >= 0) & (x < self.levels) & (x % 1 == 0)
        inside, flat = (a.reshape(*x.shape[: x.ndim - self.event_dim], -1) for a in (inside, x))
        goes_on = (flat[..., :-1] == self.end) & (flat[..., 1:] != self.end)
        return inside.all(-1) & ~goes_on.any(-1)

    def __repr__(self) -> str:
        return f"integers in [0, {self.levels - 1}], with nothing but {self.end} after the first {self.end}"

    def feasible_like(self, prototype):
        return jnp.full_like(prototype, self.end)

    def tree_flatten(self):
        return (), ((), {"levels": self.levels, "end": self.end, "event_dim": self.event_dim})

    def eq(self, other: object, static: bool = False) -> bool:
        del static
        return isinstance(other, Sentences) and vars(other) == vars(self)


def in_training(conditional: Conditional, *, word_dropout: float = 0.0, unknown: int = 1) -> Model:
    """The same model with the noise of training: the network's own dropout, and words it reads but has to guess.

    Word dropout (Bowman et al. 2016, section 3.3) replaces some of the words that the network reads; those it has to
    predict stay. Only `terms` are noisy, so train with this and report the conditional itself:

        of(lambda step: vae(enc, pri, in_training(gen, word_dropout=0.4)), objective)

    Args:
        conditional: an autoregressive one. Its network is given a dropout key.
        word_dropout: the part of the words that is replaced.
        unknown: the value that replaces them.

    Raises:
        ValueError: a part outside [0, 1]; or, when first called, an unknown word that is none of the values.
        TypeError: when first called, a conditional that is not autoregressive, or a network without `key=`.
    """
    if not 0 <= word_dropout <= 1:
        raise ValueError(f"word_dropout is the part of the words that the network does not see; got {word_dropout}")

    def terms(params, key, y, c=None):
        p = _autoregressive(conditional.dist(params, c))
        if not (is_whole(unknown, 0) and unknown < p.levels):
            raise ValueError(f"unknown is one of the values 0 .. {p.levels - 1}; got {unknown}")
        k_words, k_net = jax.random.split(key)
        read = jnp.where(jax.random.bernoulli(k_words, word_dropout, jnp.shape(y)), unknown, y)
        return Terms(distortion=-jnp.sum(p.scored(jnp.asarray(y), read, key=k_net)), rate=0.0)

    return lift(conditional)._replace(terms=terms)


def adjusted(conditional: Conditional, *adjust: Adjust) -> Model:
    """The model that draws from adjusted logits: `adjusted(gen, top_k(40), temperature(0.7))`, in this order.

    Its terms are those of the conditional: what is drawn no longer follows the density.
    """

    def sample(params, key, c=None):
        return _autoregressive(conditional.dist(params, c)).draw(key, adjust)

    return lift(conditional)._replace(sample=sample, mean=sample)  # there is no mean: what is shown is drawn so, too


def _autoregressive(distribution: dist.Distribution) -> Autoregressive:
    if not isinstance(distribution, Autoregressive):
        raise TypeError(f"want a Conditional made by autoregressive(...); got one of {type(distribution).__name__}")
    return distribution


def temperature(t: float) -> Adjust:
    """P^(1/t), normalised: below 1 likely values become likelier.

    Raises:
        ValueError: a temperature that is not positive and finite; the likeliest value alone is `greedy`.
    """
    if not 1 / MOST <= t <= MOST:
        raise ValueError(
            f"temperature wants a positive number, got {t}; for the likeliest values use greedy, and none beyond {MOST}"
        )
    return lambda logits: (logits - logits.max()) / t  # at a low t the likeliest stays 0, and the others overflow


def top_k(k: int) -> Adjust:
    """Only the k likeliest values (Fan et al. 2018), and those as likely as the last of them.

    Raises:
        ValueError: k is no whole number from 1 on.
    """
    if not is_whole(k):
        raise ValueError(f"top_k keeps at least 1 value, got {k}: want a whole number")

    def adjust(logits):
        least = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][-1]
        return jnp.where(logits >= least, logits, -jnp.inf)

    return adjust


def top_p(p: float) -> Adjust:
    """Only the likeliest values that together have probability p at least (Holtzman et al. 2020, nucleus sampling).

    Of values that tie the first ones; with p = 1 all.

    Raises:
        ValueError: p outside (0, 1].
    """
    if not 0 < p <= 1:
        raise ValueError(f"top_p wants a probability in (0, 1], got {p}")

    def adjust(logits):
        order = jnp.argsort(-logits)
        sorted_p = jax.nn.softmax(logits)[order]
        # What is kept has probability < p before it, or > 1 - p from it on. Rounding is least in the smaller sum.
        if p < 0.5:
            kept = jnp.cumsum(sorted_p) - sorted_p < p
        else:
            kept = jax.lax.cumsum(sorted_p, reverse=True) > 1 - p
        return jnp.full_like(logits, -jnp.inf).at[order].set(jnp.where(kept, logits[order], -jnp.inf))

    return adjust if p < 1 else lambda logits: logits


def greedy(logits: Array) -> Array:
    """Only the likeliest value, the first of them: `adjusted(gen, greedy)`."""
    return jnp.where(jnp.arange(logits.shape[-1]) == jnp.argmax(logits), logits, -jnp.inf)
