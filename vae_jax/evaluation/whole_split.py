"""Numbers that can be trusted: the whole split, one value for each example, means with their standard errors.

The bound is always E L = rate + distortion of the model itself, whatever objective trained it, and never goes by the
name of a likelihood. A result does not depend on how the split is cut into batches, but for rounding: the noise of an
example follows from its place in the split.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding

from vae_jax.core.combinator import importance_of, importance_weighted_bound
from vae_jax.core.extras import extra
from vae_jax.core.keys import as_key
from vae_jax.core.mesh import auto, batch_sharding, on_mesh, replicated, rows_here, shards
from vae_jax.core.model import Model, Params, dimensions
from vae_jax.core.numbers import is_whole
from vae_jax.data.check import check_examples
from vae_jax.data.preprocess import Preprocess, identity
from vae_jax.data.sources import as_source, batches
from vae_jax.report.page import number_text

ACTIVE = 0.01


class Mean(NamedTuple):
    """A mean over examples and its standard error (standard deviation / sqrt(n)). It prints as "-279.6 ± 2.4"."""

    value: float
    standard_error: float

    def __repr__(self) -> str:
        if all(isinstance(part, float | int | np.number) for part in self) and not self.standard_error < 0:
            return " ± ".join(number_text(*self))
        return tuple.__repr__(self)  # on its way through a jax transformation, where it holds something else


class Evaluation(NamedTuple):
    """One number for each example of a split, in nats, and what follows from the latent.

    Fields:
        elbo: (n,) minus the bound, `samples` draws of z averaged.
        rate: (n,) ln P_enc(z|y) - ln P_pri(z).
        distortion: (n,) -ln P_gen(y|z).
        log_likelihood: (n,) importance-weighted bound on ln P(y) with k samples, or None.
        k: the number of importance samples.
        unit_rate: (units,) mean rate of each unit of z, or None where prior or encoder does not factorise.
        unit_variance: (units,) variance over the split of the posterior mean of each unit, or None.
        level_rate: (levels,) mean rate of each level of latents, the one next to y first, or None without a latent.
        dimensions: numbers in one example, D.
        convention: name of the data convention.
        log_volume: see `Preprocess`.
    """

    elbo: np.ndarray
    rate: np.ndarray
    distortion: np.ndarray
    log_likelihood: np.ndarray | None
    k: int
    unit_rate: np.ndarray | None
    unit_variance: np.ndarray | None
    level_rate: np.ndarray | None
    dimensions: int
    convention: str
    log_volume: float | None


def evaluate(
    model: Model,
    params: Params,
    key: Array,
    ys: Any,
    cs: Any = None,
    *,
    preprocess: Preprocess = identity(),
    k: int = 0,
    samples: int = 1,
    batch_size: int = 100,
    at_once: int = 4096,
    progress: bool = False,
    mesh: Mesh | None = None,
) -> Evaluation:
    """Evaluate a whole split.

    Args:
        ys: (n, *example), or a dict or tuple of such; or a source (`vae_jax.data.source`), of which a few batches are
            in memory at a time. cs: (n, *condition) or None.
        preprocess: as in training; its noise, too, follows from the key and the example's place.
        k: importance samples for ln P(y); 0 leaves it out. They are taken in chunks, so k = 5000 fits in memory.
        samples: draws of z for the bound.
        batch_size: examples at once; the last batch is padded, and the padding left out.
        at_once: importance samples in memory, over the batch. Less where one example has a large output: a sentence
            with a number for each word of a vocabulary, for instance.
        progress: show a bar.
        mesh: split each batch over this mesh, as `fit` does; batch_size is rounded up to what divides. Of several
            processes each reads its own examples, and all have the result.

    Raises:
        TypeError: what is no key.
        ValueError: data that the model cannot take (see `check_data`), or k > 0 for a model without importance samples.

    Example:
        >>> model = vae(gaussian(nets.MLP((), 2)), standard_normal(1), bernoulli(nets.MLP((), 3)))
        >>> ys = np.array([[0, 1, 1], [1, 1, 0]], np.float32)
        >>> params = jax.jit(model.init)(jax.random.key(0), ys[0], None)
        >>> result = evaluate(model, params, jax.random.key(1), ys, k=10)
        >>> result.elbo.shape, result.log_likelihood.shape
        ((2,), (2,))
    """
    ys, cs = check_examples(model, ys, cs, preprocess, params=params)
    check_options(model, k, samples, at_once, batch_size)
    return evaluate_checked(
        model,
        params,
        key,
        ys,
        cs,
        preprocess,
        k=k,
        samples=samples,
        batch_size=batch_size,
        at_once=at_once,
        progress=progress,
        mesh=mesh,
    )


def check_options(model: Model, k: int, samples: int, at_once: int, batch_size: int) -> None:
    """Raise a ValueError for options of `evaluate` that are out of range, or that this model does not offer."""
    if not is_whole(k, 0) or not is_whole(samples):
        raise ValueError(f"want k >= 0 and samples >= 1; got k={k}, samples={samples} (want whole numbers)")
    if not is_whole(at_once):
        raise ValueError(f"at_once is how many importance samples are in memory, at least 1; got {at_once}")
    if not is_whole(batch_size):
        raise ValueError(f"batch_size is how many examples are evaluated at once, at least 1; got {batch_size}")
    if k:
        importance_of(model)


def evaluate_checked(
    model: Model,
    params: Params,
    key: Array,
    ys: Any,
    cs: Any,
    preprocess: Preprocess,
    *,
    k: int = 0,
    samples: int = 1,
    batch_size: int = 100,
    at_once: int = 4096,
    progress: bool = False,
    mesh: Mesh | None = None,
) -> Evaluation:
    """`evaluate` on what has been checked already: `fit` checks its validation data once, not at every epoch.

    `ys` may be a `Source`, which has the conditions with it; cs is None then.
    """
    split = as_source(ys, cs)
    batch_size = min(batch_size, len(split))
    y, c = split.one()
    of_batch = values_of(model, preprocess, k, samples, max(1, at_once // batch_size), c is not None)
    values = over_split(of_batch, params, key, split, None, batch_size=batch_size, progress=progress, mesh=mesh)
    seen = jax.eval_shape(preprocess.apply, key, y)
    return evaluation_of(values, k, dimensions(seen), preprocess)


def evaluation_of(values: Any, k: int, size: int, preprocess: Preprocess) -> Evaluation:
    """What the values of all examples, in the order of `values_of`, say of a split of examples of `size` numbers."""
    distortion, rate, bound, unit_rate, unit_mean, level_rate = values
    return Evaluation(
        elbo=-(distortion + rate),
        rate=rate,
        distortion=distortion,
        log_likelihood=bound,
        k=k,
        unit_rate=None if unit_rate is None else unit_rate.mean(axis=0, dtype=np.float64).ravel(),
        unit_variance=None if unit_mean is None else unit_mean.var(axis=0, dtype=np.float64).ravel(),
        level_rate=None if level_rate is None else level_rate.mean(axis=0, dtype=np.float64),
        dimensions=size,
        convention=preprocess.name,
        log_volume=preprocess.log_volume,
    )


def over_split(
    of_batch: Callable[..., Any],
    params: Params,
    key: Array,
    ys: Any,
    cs: Any,
    *,
    batch_size: int,
    progress: bool = False,
    doing: str = "evaluating",
    mesh: Mesh | None = None,
    indices: np.ndarray | None = None,
) -> Any:
    """`of_batch(params, key, indices, ys, cs)` of the whole split in batches: its arrays (n, ...), put together.

    `indices` (n,) are what the examples' noise follows from, by default their places in the split. The last batch is
    padded, and the padding left out. What is no key is a `TypeError`, before anything is compiled. With a mesh each
    batch is split over it, the batch's size rounded up.
    """
    key = as_key(key)
    split = as_source(ys, cs)
    n = len(split)
    indices = np.arange(n) if indices is None else indices
    if mesh is not None:
        mesh = auto(mesh)
        batch_size = -(-batch_size // shards(mesh)) * shards(mesh)
        params = _on_all(params, mesh)
        of_batch = _over_mesh(of_batch, mesh, tuple(_in_use(x.sharding, mesh) for x in jax.tree.leaves(params)))
    rows_read = slice(None) if mesh is None else rows_here(mesh, batch_size)
    starts: Iterable[int] = range(0, n, batch_size)
    places = [np.minimum(np.arange(start, start + batch_size), n - 1)[rows_read] for start in starts]
    if progress and jax.process_index() == 0:
        with extra("cli", "a progress bar"):
            from tqdm import tqdm
        starts = tqdm(starts, desc=doing, leave=False)
    rows = []
    with contextlib.closing(batches(split, places)) as read:
        for start, here, inputs in zip(starts, places, read, strict=True):
            which = indices[here]
            if mesh is not None:
                which, inputs = on_mesh((which, inputs), batch_sharding(mesh), batch_size)
            values = of_batch(params, key, jnp.asarray(which), *inputs)
            rows.append(jax.tree.map(lambda x, real=n - start: np.asarray(x)[:real], values))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *rows)


@functools.lru_cache(maxsize=16)
def _over_mesh(of_batch: Callable[..., Any], mesh: Mesh, in_use: tuple[NamedSharding, ...]) -> Callable[..., Any]:
    """`of_batch`, its values whole on every device, so that each process can read all of them.

    `in_use` is how each of the parameters lies while it is used.
    """

    def run(params, *inputs):
        leaves, tree = jax.tree.flatten(params)
        used = [jax.lax.with_sharding_constraint(x, sharding) for x, sharding in zip(leaves, in_use, strict=True)]
        return of_batch(jax.tree.unflatten(tree, used), *inputs)

    return jax.jit(run, out_shardings=replicated(mesh))


def _in_use(sharding: NamedSharding, mesh: Mesh) -> NamedSharding:
    """Whole where `fsdp` alone splits it, as in training (`vae_jax.training.sharding.gathering` says why)."""
    split_by = {name for names in sharding.spec if names for name in ((names,) if isinstance(names, str) else names)}
    return replicated(mesh) if split_by == {"fsdp"} else sharding


def _on_all(params: Params, mesh: Mesh) -> Params:
    """Parameters on the mesh: as they lie on it, or whole on each device where they lie elsewhere."""

    def put(x):
        there = isinstance(x, jax.Array) and isinstance(x.sharding, NamedSharding) and x.sharding.mesh.size > 1
        return jax.device_put(x, NamedSharding(mesh, x.sharding.spec)) if there else on_mesh(x, replicated(mesh))

    return jax.tree.map(put, params)


@functools.lru_cache(maxsize=16)
def values_of(model: Model, preprocess: Preprocess, k: int, samples: int, chunk: int, conditional: bool):
    """`(params, key, indices, ys, cs) -> per-example values`, compiled once for a model and its options."""

    def one(params, key, index, y, c):
        k_data, k_terms, k_weights = jax.random.split(jax.random.fold_in(key, index), 3)
        seen = preprocess.apply(k_data, y)
        draws = jax.vmap(lambda k_i: model.terms(params, k_i, seen, c))(jax.random.split(k_terms, samples))
        terms = jax.tree.map(lambda x: jnp.mean(x, axis=0), draws)
        bound = importance_weighted_bound(model, params, k_weights, seen, c, k=k, chunk=chunk) if k else None
        return terms.distortion, terms.rate, bound, terms.units.rate, terms.units.mean, terms.rates

    return jax.jit(jax.vmap(one, in_axes=(None, None, 0, 0, 0 if conditional else None)))


def mean(values: Any) -> Mean:
    """Mean and standard error over examples (n,); the error of a single example is NaN, as nothing is known of it.

    Example:
        >>> print(mean([1.0, 2.0, 3.0]))
        2.00 ± 0.58
    """
    values = np.asarray(values, np.float64)
    with np.errstate(invalid="ignore"):  # infinite values have a mean, and NaN for a spread
        spread = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return Mean(float(values.mean()), float(spread))


def active_units(evaluation: Evaluation) -> int | None:
    """Units of z whose posterior mean varies over the data by more than 0.01 (Burda et al. 2016, section 5.2).

    None where the encoder has no mean.
    """
    variance = evaluation.unit_variance
    return None if variance is None else int(np.sum(variance > ACTIVE))


def bits_per_dimension(evaluation: Evaluation) -> Mean | None:
    """Upper bound on the bits that one number of an example costs: -ELBO / (D ln 2), for the stated data convention.

    Where the model has a density of dequantised data, the volume of an 8-bit cell is accounted for. None where bits do
    not apply: a density of data that were not dequantised.
    """
    if evaluation.log_volume is None:
        return None
    size = evaluation.dimensions
    return mean((-evaluation.elbo + size * evaluation.log_volume) / (size * np.log(2)))
