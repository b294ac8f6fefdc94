"""From what was trained to numpy and to tables: a function of every example of a batch, the numbers of an evaluation, a
number of every epoch of a run, points in a plane counted."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from vae_jax import Evaluation
from vae_jax.evaluation import active_units, bits_per_dimension, mean
from vae_jax.report.page import Row


def over_batch(
    function: Callable[..., Any], params: Any, keys: jax.Array, *batch: Any, at_once: int | None = None
) -> Any:
    """`function(params, key, *example)` of every example, all or some at once; None where an input is None."""
    axes = (None, 0, *(None if x is None else 0 for x in batch))
    compiled = jax.jit(jax.vmap(function, in_axes=axes))
    size = at_once or len(keys)
    cuts = [slice(i, i + size) for i in range(0, len(keys), size)]
    parts = [compiled(params, keys[cut], *jax.tree.map(lambda x, cut=cut: x[cut], batch)) for cut in cuts]
    return jax.tree.map(lambda *xs: np.concatenate(xs), *map(jax.device_get, parts))


def rows_of(result: Evaluation, name: str, where: str) -> list[Row]:
    """The numbers of an evaluation, the first of this name, with what they mean."""
    rows = [
        Row(name, *mean(result.elbo), f"nats per example, {where}, {result.convention}; higher is better"),
        Row("rate", *mean(result.rate), "nats; ln enc(z|y) - ln pri(z)"),
        Row("distortion", *mean(result.distortion), "nats; -ln gen(y|z), ln Z included"),
    ]
    if result.log_likelihood is not None:
        of = f"ln P(y) at least (k={result.k})"
        rows.append(Row(of, *mean(result.log_likelihood), "nats; importance-weighted bound"))
    if (bits := bits_per_dimension(result)) is not None:
        rows.append(Row("bits/dim at most", *bits, f"from the ELBO; {result.dimensions} dimensions"))
    active = active_units(result)
    if active is not None and result.unit_variance is not None:
        units = len(result.unit_variance)
        rows.append(Row("active units", active, None, f"of {units}; variance of the posterior mean > 0.01"))
    return rows


def by_epoch(history: Iterable[dict[str, Any]], name: str, sign: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """(epochs, values) of a number that `fit` kept, times `sign`, where it was taken: an epoch can be all skipped."""
    rows = [row for row in history if np.isfinite(row.get(name, np.nan))]
    return np.array([row["epoch"] for row in rows]), np.array([sign * row[name] for row in rows])


def counted(points: np.ndarray, cells: int, reach: float) -> tuple[np.ndarray, float]:
    """The density of points (n, 2) in cells x cells squares from -reach to reach, as `pictures.planes` takes it."""
    edges = np.linspace(-reach, reach, cells + 1)
    return np.histogramdd(points, (edges, edges), density=True)[0].T, reach
