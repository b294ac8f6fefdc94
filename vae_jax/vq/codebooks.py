"""A codebook: K vectors, and the code of a vector is the nearest one (van den Oord et al. 2017).

    L = -ln P_gen(y|e_k) + commitment ||e - sg(e_k)||^2 [+ ||sg(e) - e_k||^2]      e = enc(y), k = argmin ||e - e_k||

sg is constant to the gradient. The first square moves the encoder only, the second the codebook only. In its place
`ema` (the default) has no gradient at all: each code is the mean of its vectors over the latest batches. That is
stepwise EM (`vae_jax.em.make_em_step`) of a mixture of equal spherical Gaussians whose variance vanishes: a hard
E-step, running averages of the statistics, means as the M-step. With decay 0 and all data in the batch it is a step of
Lloyd's algorithm (`vae_jax.em.kmeans`), and it is the same code.

A code that is hardly used any more is moved beside the code with the largest squared error, whose cell the two then
share: the splitting of Linde, Buzo & Gray 1980. It is decided by running averages alone, without randomness and without
the batch, so that copies on several devices stay equal.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from vae_jax.core.model import Scatter, average
from vae_jax.core.numbers import is_whole
from vae_jax.em.algorithm import check_decay, running_average
from vae_jax.em.kmeans import assign, k_means, recentred
from vae_jax.vq.quantiser import (
    Quantised,
    Quantiser,
    Through,
    check_codes,
    check_levels,
    check_vectors,
    fractions,
    occurrences,
    straight_through,
    unit,
)

Distance = Callable[[Array], Array]
STEP = 0.1  # how far a cell's two halves start from its middle, in root mean square errors


class Update(NamedTuple):
    """How the codes move: to the means of their vectors, or by gradient; and the decay of the running averages."""

    by_means: bool
    decay: float


def ema(decay: float = 0.99) -> Update:
    """Each code is the mean of its vectors, old batches fading: stepwise hard EM, an M-step after each training step.

    Raises:
        ValueError: a decay outside [0, 1).
    """
    check_decay(decay)
    return Update(True, decay)


def by_gradient(decay: float = 0.99) -> Update:
    """The codes move by the gradient of ||sg(e) - e_k||^2; the decay is that of the usage.

    Raises:
        ValueError: a decay outside [0, 1).
    """
    check_decay(decay)
    return Update(False, decay)


def euclidean_distance(vectors: Array) -> Array:
    """Vectors are compared where they are."""
    return vectors


def cosine_distance(vectors: Array) -> Array:
    """Vectors and codes are compared by their angle: both are scaled to length 1 (Yu et al. 2022, section 3.2)."""
    return unit(vectors)


def codebook(
    levels: int,
    size: int,
    *,
    update: Update = ema(),
    commitment: float = 0.25,
    distance: Distance = euclidean_distance,
    through: Through = straight_through,
    revive: float = 0.05,
) -> Quantiser:
    """The nearest of `levels` vectors of `size` numbers, K and D (van den Oord et al. 2017).

    The parameters are `{"codes": (K, D), "running": averages over examples}`, of which `count` (K,) is how many vectors
    of one example have each code, `error` (K,) the sum of their squared distances and, with `ema`, `total` (K, D) their
    sum.

    Args:
        update: `ema()` (the default) or `by_gradient()`.
        commitment: weight of the squared distance from a vector to its code, summed over the example.
        distance: `euclidean_distance` or `cosine_distance`.
        through: `straight_through` or `rotation`: how the gradient reaches the encoder.
        revive: a code that is used less than this part of the average is moved into another's cell; 0: never.

    Raises:
        ValueError: options out of range; vectors of another size; codes out of range; fewer vectors to start from than
            codes.
    """
    check_levels(levels)
    if not is_whole(size) or not 0 <= commitment < math.inf or not 0 <= revive < 1:
        raise ValueError(
            f"want size >= 1, commitment >= 0 and revive in [0, 1); got {size}, {commitment} and {revive}: size is a "
            "whole number"
        )

    def place(params):
        """The codes as vectors; constants to the gradient where they are means."""
        codes = distance(params["codes"])
        return jax.lax.stop_gradient(codes) if update.by_means else codes

    def init(key, vectors):
        check_vectors("codebook", vectors, size)
        codes = distance(jax.random.normal(key, (levels, size)) / math.sqrt(size))
        count = jnp.full(levels, math.prod(vectors.shape[:-1]) / levels)
        running = {"count": count, "error": jnp.zeros(levels)}
        return {"codes": codes, "running": running | ({"total": count[:, None] * codes} if update.by_means else {})}

    def start(key, params, vectors):
        """The centres of k-means, and their statistics."""
        check_vectors("codebook", vectors, size)
        rows = distance(vectors).reshape(-1, size)
        if len(rows) < levels:
            raise ValueError(
                f"{len(rows)} vectors to start from ({len(vectors)} examples) are fewer than the {levels} codes: give "
                "start= more examples, or ask for fewer codes"
            )
        codes = distance(k_means(key, rows, levels)).astype(params["codes"].dtype)
        stats = jax.vmap(lambda e: statistics(codes, e, assign(e, codes)))(rows.reshape(len(vectors), -1, size))
        return {"codes": codes, "running": average(stats)}

    def statistics(codes, rows, index):
        squared = jnp.sum((rows - codes[index]) ** 2, axis=-1)
        stats = {"count": occurrences(index, levels), "error": Scatter(index, squared, levels)}
        return stats | ({"total": Scatter(index, rows, levels)} if update.by_means else {})

    def quantise(params, vectors):
        check_vectors("codebook", vectors, size)
        codes, e = place(params), distance(vectors)
        fixed_codes, fixed_e = jax.lax.stop_gradient((codes, e))
        index = assign(fixed_e.reshape(-1, size), fixed_codes).reshape(e.shape[:-1]).astype(jnp.int32)
        nearest = codes[index]
        penalty = commitment * jnp.sum((e - jax.lax.stop_gradient(nearest)) ** 2)
        if not update.by_means:
            penalty += jnp.sum((fixed_e - nearest) ** 2)
        stats = statistics(fixed_codes, fixed_e.reshape(-1, size), index.reshape(-1))
        return Quantised(index, through(e, nearest), penalty, stats)

    def embed(params, codes):
        check_codes(codes, levels)
        return jax.lax.stop_gradient(place(params))[codes]

    def maximise(params, stats):
        running = running_average(params["running"], stats, update.decay)
        codes = params["codes"]
        if update.by_means:
            codes = recentred(codes, running["count"], running["total"])
        codes, running = _revived(codes, running, revive)
        return {"codes": distance(codes), "running": running}

    def usage(params):
        return fractions(params["running"]["count"])

    return Quantiser(init, start, quantise, embed, maximise, usage, levels)


def _revived(codes: Array, running: dict[str, Array], least: float) -> tuple[Array, Any]:
    """Codes below the part `least` of the average count, moved beside those with the largest errors, one beside each.

    What the statistics say of the split cell is shared by the two; of the code that was moved nothing is kept. A cell
    is split only if its halves are not to be moved themselves.
    """
    count, error = running["count"], running["error"]
    limit = least * count.mean()
    dead, large = count < limit, count >= 2 * limit
    by_error = jnp.argsort(jnp.where(large, -error, jnp.inf))  # the cells to split, largest error first
    donor = by_error[jnp.cumsum(dead) - 1]
    moved = dead & large[donor]
    away = STEP * jnp.sqrt(error[donor] / jnp.maximum(count[donor], limit))[:, None] * unit(codes - codes[donor])
    split = jnp.where(moved, donor, len(codes))  # beyond the last: dropped
    new_codes = jnp.where(moved[:, None], codes[donor] + away, codes).at[split].add(-away, mode="drop")
    changed = moved.at[split].set(True, mode="drop")
    source = jnp.where(moved, donor, jnp.arange(len(codes)))
    shared = {name: jnp.where(changed, running[name][source] / 2, running[name]) for name in ("count", "error")}
    if "total" in running:
        shared["total"] = jnp.where(changed[:, None], shared["count"][:, None] * new_codes, running["total"])
    return new_codes, shared
