"""Quantisers of quantisers: in fewer dimensions, several for one vector, in turn or side by side."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.core.model import Params
from vae_jax.core.numbers import is_whole
from vae_jax.vq.quantiser import Quantised, Quantiser, check_vectors


def projected(quantiser: Quantiser, size: int, inner: int) -> Quantiser:
    """Vectors of `size` numbers, quantised in `inner` dimensions: a linear map down before, one up after.

    Few dimensions keep more codes in use (Yu et al. 2022, section 3.2). The maps `down` (size, inner) and `up` start as
    a projection and train by gradient, with the codes.

    Raises:
        ValueError: sizes that are no whole numbers from 1 on; vectors of another size.
    """
    if not is_whole(size) or not is_whole(inner):
        raise ValueError(f"projected goes from size to inner numbers, whole numbers from 1 on; got {size} and {inner}")

    def init(key, vectors):
        check_vectors("projected", vectors, size)
        k_maps, k_inner = jax.random.split(key)
        down = jax.nn.initializers.orthogonal()(k_maps, (size, inner))
        return {"down": down, "up": down.T, "inner": quantiser.init(k_inner, vectors @ down)}

    def start(key, params, vectors):
        check_vectors("projected", vectors, size)
        return {**params, "inner": quantiser.start(key, params["inner"], vectors @ params["down"])}

    def quantise(params, vectors):
        check_vectors("projected", vectors, size)
        found = quantiser.quantise(params["inner"], vectors @ params["down"])
        return found._replace(vectors=found.vectors @ params["up"])

    def embed(params, codes):
        return quantiser.embed(params["inner"], codes) @ params["up"]

    def maximise(params, stats):
        return {**params, "inner": quantiser.maximise(params["inner"], stats)}

    return Quantiser(
        init, start, quantise, embed, maximise, lambda params: quantiser.usage(params["inner"]), quantiser.levels
    )


def residual(quantiser: Quantiser, depth: int) -> Quantiser:
    """Each of `depth` codebooks quantises what those before it left over; the vector is their sum, codes (..., depth).

    K^depth values with depth * K vectors (Juang & Gray 1982; Zeghidour et al. 2021, algorithm 1). The gradient passes
    to the encoder once, through the first.

    Raises:
        ValueError: depth is no whole number from 1 on.
    """
    _check_several("depth", depth)

    def init(key, vectors):
        return tuple(quantiser.init(k, vectors) for k in jax.random.split(key, depth))

    def start(key, params, vectors):
        started, rest = [], vectors
        for k, own in zip(jax.random.split(key, depth), params, strict=True):
            started.append(quantiser.start(k, own, rest))
            rest = rest - jax.vmap(quantiser.quantise, (None, 0))(started[-1], rest).vectors
        return tuple(started)

    def quantise(params, vectors):
        found, rest = [], vectors
        for own in params:
            found.append(quantiser.quantise(own, rest))
            rest = rest - jax.lax.stop_gradient(found[-1].vectors)
        later = (quantiser.embed(own, q.codes) for own, q in zip(params[1:], found[1:], strict=True))
        return _together(found, sum(later, found[0].vectors))

    def embed(params, codes):
        return sum(quantiser.embed(own, codes[..., i]) for i, own in enumerate(params))

    return _several(quantiser, init, start, quantise, embed)


def grouped(quantiser: Quantiser, groups: int) -> Quantiser:
    """The numbers of a vector in `groups` equal parts, each with a quantiser of its own; codes (..., groups).

    Product quantisation (Jégou et al. 2011): K^groups values with groups * K short vectors.

    Raises:
        ValueError: groups is no whole number from 1 on, or vectors that do not divide into them.
    """
    _check_several("groups", groups)

    def parts(vectors) -> list[Array]:
        if vectors.ndim == 0 or vectors.shape[-1] % groups:
            raise ValueError(f"vectors of shape {vectors.shape} do not divide into {groups} groups along the last axis")
        return jnp.split(vectors, groups, axis=-1)

    def init(key, vectors):
        return tuple(quantiser.init(k, v) for k, v in zip(jax.random.split(key, groups), parts(vectors), strict=True))

    def start(key, params, vectors):
        each = zip(jax.random.split(key, groups), params, parts(vectors), strict=True)
        return tuple(quantiser.start(*one) for one in each)

    def quantise(params, vectors):
        found = [quantiser.quantise(*one) for one in zip(params, parts(vectors), strict=True)]
        return _together(found, jnp.concatenate([q.vectors for q in found], axis=-1))

    def embed(params, codes):
        each = [quantiser.embed(own, codes[..., i]) for i, own in enumerate(params)]
        return jnp.concatenate(each, axis=-1)

    return _several(quantiser, init, start, quantise, embed)


def _several(quantiser: Quantiser, init: Any, start: Any, quantise: Any, embed: Any) -> Quantiser:
    """What residual and grouped quantisers have in common: a tuple of parameters, one for each stream of codes."""

    def maximise(params: Params, stats: Any) -> Params:
        return tuple(quantiser.maximise(own, one) for own, one in zip(params, stats, strict=True))

    def usage(params: Params) -> Array:
        return jnp.stack([quantiser.usage(own) for own in params], axis=-2)

    return Quantiser(init, start, quantise, embed, maximise, usage, quantiser.levels)


def _together(found: Sequence[Quantised], vectors: Array) -> Quantised:
    codes = jnp.stack([q.codes for q in found], axis=-1)
    return Quantised(codes, vectors, sum(q.penalty for q in found), tuple(q.stats for q in found))


def _check_several(name: str, number: int) -> None:
    if not is_whole(number):
        raise ValueError(f"{name} is how many codes a vector has, at least 1; got {number}: a whole number is wanted")
