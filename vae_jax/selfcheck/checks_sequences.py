"""Oracle 34: autoregressive models."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.core.combinator import vae
from vae_jax.core.estimators import analytic
from vae_jax.core.model import lift
from vae_jax.core.network import as_network
from vae_jax.nets.recurrent import LSTM
from vae_jax.nets.transformer import Transformer
from vae_jax.parts.autoregression import autoregressive
from vae_jax.parts.conditionals import gaussian
from vae_jax.parts.priors import standard_normal
from vae_jax.selfcheck.check import Check, Row
from vae_jax.selfcheck.solvable import affine, floats
from vae_jax.text.scores import perplexity

LEVELS = 3


def networks() -> dict[str, Any]:
    """In the precision that is set."""
    dtype = jnp.zeros(()).dtype
    nets = {"LSTM": LSTM(LEVELS, 3, 4, dtype=dtype), "Transformer": Transformer(LEVELS, 8, 1, 2, dtype=dtype)}
    return {name: as_network(net) for name, net in nets.items()}


def all_sentences(length: int) -> np.ndarray:
    """Every array of this length in which nothing but 0 follows the first 0."""
    every = np.array(list(itertools.product(range(LEVELS), repeat=length)))
    return every[~((every[:, :-1] == 0) & (every[:, 1:] != 0)).any(axis=1)]


def sentences() -> list[Row]:
    """Probabilities sum to 1, padding costs nothing, and no position sees what comes after it."""
    rows = []
    for name, net in networks().items():
        model = lift(autoregressive(net, 4, LEVELS, end=0))
        params = floats(jax.jit(model.init)(jax.random.key(1), jnp.zeros(4, jnp.int32)))
        nats = jax.jit(jax.vmap(lambda y, m=model, p=params: m.terms(p, jax.random.key(0), y).nats))
        longer = lift(autoregressive(net, 7, LEVELS, end=0))
        padded = jax.jit(lambda y, m=longer, p=params: m.terms(p, jax.random.key(0), y).nats)
        ys = all_sentences(4)
        rows.append(Row(f"{name}: sum of P(y) over all y", 1.0, np.exp(-np.asarray(nats(ys), np.float64)).sum()))
        y = np.array([2, 1, 0, 0])
        rows.append(Row(f"{name}: 3 more columns of padding", nats(y[None])[0], padded(np.pad(y, (0, 3)))))
        scored = jax.jit(lambda y, n=net, p=params: autoregressive(n, 4, LEVELS).dist(p).token_log_prob(y))
        seen = scored(jnp.array([1, 2, 2, 1]))
        rows.append(Row(f"{name}: two words, whatever follows", seen[:2], scored(jnp.array([1, 2, 0, 2]))[:2]))
    return rows


def collapse() -> list[Row]:
    """A generator that ignores z, an encoder that ignores y: the bound is ln P(y) of the language model."""
    rows = []
    for name, net in networks().items():
        silent = (lambda key, y, z, net=net: net.init(key, y), lambda params, y, z, net=net: net.apply(params, y))
        language, generator = (autoregressive(n, 4, LEVELS, end=0) for n in (net, silent))
        model = vae(gaussian(affine(4)), standard_normal(2), generator, estimator=analytic)
        y = jnp.array([2.0, 1.0, 1.0, 0.0])
        params = floats(jax.jit(model.init)(jax.random.key(2), y))
        params["enc"] = floats(jax.tree.map(np.zeros_like, params["enc"]))
        terms = jax.jit(model.terms)(params, jax.random.key(3), y)
        alone = jax.jit(lift(language).terms)(params["gen"], jax.random.key(0), y)
        rows += [Row(f"{name}: rate", 0.0, terms.rate), Row(f"{name}: nats", alone.nats, terms.nats)]
    return rows


def surprise() -> list[Row]:
    """Sentences of 3, 1 and 4 words, the end one of them, at 2, 1 and 3 nats a word: exp(19 / 8)."""
    value, _ = perplexity(np.array([6.0, 1.0, 12.0]), np.array([3, 1, 4]))
    return [Row("perplexity", np.exp(19 / 8), value)]


def oracle() -> list[Row]:
    return [*sentences(), *collapse(), *surprise()]


CHECKS = [Check(34, "autoregressive models: sums, padding, causality, collapse", oracle, 1e-5, 1e-11)]
