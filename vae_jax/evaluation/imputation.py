"""What is missing, given what is seen: draws and means by importance samples of the latents (Mattei and Frellsen 2019).

z_1 .. z_k ~ P_enc(z|y) have weights w_i = P_pri(z_i) P_gen(y_seen|z_i) / P_enc(z_i|y), normalised over the k. The mean
of P_gen(y_missing|z_i, y_seen) with these weights is E[y_missing|y_seen], and a draw from P_gen at a z chosen by them
is one from P(y_missing|y_seen), as k grows. Without a latent, or with an exact posterior, all weights are equal.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.core.model import Model, Params
from vae_jax.core.numbers import is_whole
from vae_jax.evaluation.whole_split import over_split


class Imputed(NamedTuple):
    """An example whose missing entries are filled.

    Fields:
        draws: (n, *example), each a draw from P(y_missing|y_seen), beside what is seen.
        mean: example, E[y_missing|y_seen] beside what is seen; NaN where classes are missing.
        log_p: nats, the bound on ln P(y_seen) by the same samples.
        effective: 1 / sum w^2, between 1 and k: how many samples count.
    """

    draws: Any
    mean: Any
    log_p: Array
    effective: Array


def impute(model: Model, params: Params, key: Array, y: Any, c: Any = None, *, n: int = 10, k: int = 1000) -> Imputed:
    """Fill in the missing entries (NaN) of ONE example, n times, with the help of k importance samples.

    Several draws, each analysed as if it were complete, say how uncertain a result is (multiple imputation).

    Raises:
        ValueError: n < 1 or k < 1; a model that does not say what is missing.

    Example:
        >>> from vae_jax.parts import maybe_missing, seeing_what_is_missing
        >>> encoder = gaussian(seeing_what_is_missing(nets.MLP((8,), 2)))
        >>> model = vae(encoder, standard_normal(1), maybe_missing(l2(nets.MLP((8,), 3))))
        >>> y = jnp.array([0.1, jnp.nan, 0.3])
        >>> params = jax.jit(model.init)(jax.random.key(0), y, None)
        >>> jax.jit(lambda key, y: impute(model, params, key, y, n=5, k=50))(jax.random.key(1), y).draws.shape
        (5, 3)
    """
    for name, count in {"n": n, "k": k}.items():
        if not is_whole(count):
            raise ValueError(
                f"{name}={count}: want a whole number of {'draws' if name == 'n' else 'samples'}, 1 at least"
            )
    complete = model.complete
    if complete is None:
        raise ValueError(
            "this model does not say what is missing given the rest: its parts offer no importance samples"
        )
    k_samples, k_choice = jax.random.split(key)
    keys = jax.random.split(k_samples, k)
    log_w, expected = jax.vmap(lambda key: complete(params, key, y, c)[::2])(keys)
    weights = jax.nn.softmax(log_w)
    chosen = keys[jax.random.categorical(k_choice, log_w, shape=(n,))]

    def mean(y, each):
        return jnp.where(jnp.isnan(y), jnp.tensordot(weights, each, axes=1), y)

    return Imputed(
        draws=jax.vmap(lambda key: complete(params, key, y, c)[1])(chosen),
        mean=jax.tree.map(mean, y, expected),
        log_p=jax.nn.logsumexp(log_w) - jnp.log(k),
        effective=1 / jnp.sum(weights**2),
    )


def impute_all(
    model: Model,
    params: Params,
    key: Array,
    ys: Any,
    cs: Any = None,
    *,
    n: int = 10,
    k: int = 1000,
    batch_size: int = 16,
    progress: bool = False,
) -> Imputed:
    """`impute` of every example of ys (rows, *example), as numpy arrays; an example has its draws whatever the batches.

    Args:
        batch_size: examples at once, each with k samples.

    Raises:
        ValueError: as `impute`; a batch_size below 1.
    """
    if not is_whole(batch_size):
        raise ValueError(f"batch_size={batch_size}: want a whole number of examples, 1 at least")
    of_batch = _imputed(model, n, k, cs is not None)
    rows = len(jax.tree.leaves(ys)[0])
    return over_split(
        of_batch, params, key, ys, cs, batch_size=min(batch_size, rows), progress=progress, doing="filling in"
    )


@functools.lru_cache(maxsize=16)
def _imputed(model: Model, n: int, k: int, conditional: bool) -> Any:
    """`(params, key, indices, ys, cs) -> Imputed` of a batch."""

    def one(params, key, index, y, c):
        return impute(model, params, jax.random.fold_in(key, index), y, c, n=n, k=k)

    return jax.jit(jax.vmap(one, in_axes=(None, None, 0, 0, 0 if conditional else None)))
