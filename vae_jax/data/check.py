"""What a user hands in is checked once, here, before anything is compiled; the inside trusts it."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.core.model import Model, Params
from vae_jax.core.numbers import is_whole
from vae_jax.data.arrays import as_arrays, length
from vae_jax.data.preprocess import Preprocess
from vae_jax.data.sources import Source, as_source, is_source
from vae_jax.data.supports import check_support, support_of, takes_missing

_NOT_MADE: Any = object()


def check_examples(model: Model, ys: Any, cs: Any, preprocess: Preprocess, **options: Any) -> tuple[Any, Any]:
    """(ys, cs) for `as_source`: arrays, after `check_data`, or (source, None), after `check_source`."""
    if is_source(ys):
        return check_source(model, as_source(ys, cs), preprocess, **options), None
    return check_data(model, ys, cs, preprocess, **options)


def check_data(
    model: Model,
    ys: Any,
    cs: Any,
    preprocess: Preprocess,
    *,
    params: Params | None = _NOT_MADE,
    batch_size: int = 1,
    where: str = "",
) -> tuple[Any, Any]:
    """(ys, cs) as arrays (see `as_arrays`), after making sure that this model can be trained or evaluated on them.

    Args:
        ys: (n, *example) or a dict or tuple of such.
        cs: (n, *condition), or None. Classes are whole numbers for a model made by `labelled`, which knows how many.
        params: the model's parameters, if they are made already: they have to fit the data.
        batch_size: examples in a batch; not more than n.
        where: how messages name these data: f"{where}ys" and f"{where}cs".

    Raises:
        TypeError: what is no model, or no `Preprocess`.
        ValueError: no data, data that float32 or int32 cannot hold, NaN (unless the likelihood takes it for missing), a
            batch larger than the data, conditions that do not match, a class that the model does not know, values
            outside the likelihood's support, parameters made for other shapes, or terms that are not scalars.
        Exception: whatever the user's own functions raise on one example, with a note of what they were given.
    """
    _check_kinds(model, preprocess)
    ys, cs = (as_arrays(f"{where}{name}", xs) for name, xs in (("ys", ys), ("cs", cs)))
    n = length(f"{where}ys", ys)
    _check_batch(batch_size, n)
    if cs is not None:
        _check_lengths(where, n, length(f"{where}cs", cs))
    _check_examples(model, ys, cs, np.arange(n), preprocess, params, where)
    return ys, cs


def check_source(
    model: Model,
    source: Source,
    preprocess: Preprocess,
    *,
    params: Params | None = _NOT_MADE,
    batch_size: int = 1,
    where: str = "",
) -> Source:
    """`check_data` of a source: of all conditions that lie beside it, and of some examples, the first among them.

    What is read later is trusted to be like these: it is cast by the same rule, and not looked at.

    Raises:
        what `check_data` raises, with the index in the source; and what `Source.read` does.
    """
    _check_kinds(model, preprocess)
    n = len(source)
    if not n:
        raise ValueError(f"{where}ys is empty: want a source with at least one example")
    _check_batch(batch_size, n)
    if isinstance(source.conditions, Source):
        _check_lengths(where, n, len(source.conditions))
    elif source.conditions is not None:
        cs = as_arrays(f"{where}cs", source.conditions)
        _check_lengths(where, n, length(f"{where}cs", cs))
        _check_conditions(model, cs, np.arange(n), where)
        source = dataclasses.replace(source, conditions=cs)
    places = source.spread()
    ys, cs = (as_arrays(f"{where}{name}", xs) for name, xs in zip(("ys", "cs"), source.raw(places), strict=True))
    _check_examples(model, ys, cs, places, preprocess, params, where)
    return source


def _check_batch(batch_size: int, n: int) -> None:
    if not is_whole(batch_size) or batch_size > n:
        raise ValueError(f"batch_size={batch_size} does not fit data of {n} examples: take one from 1 to {n}")


def _check_lengths(where: str, n: int, conditions: int) -> None:
    if conditions != n:
        raise ValueError(f"{where}ys has {n} examples and {where}cs {conditions}: give one condition for each example")


def _check_conditions(model: Model, cs: Any, places: np.ndarray, where: str) -> None:
    _check_finite(f"{where}cs", cs, places)
    _check_classes(f"{where}cs", cs, model.classes)


def _check_examples(
    model: Model, ys: Any, cs: Any, places: np.ndarray, preprocess: Preprocess, params: Any, where: str
) -> None:
    """Whether the model takes these examples, which have these places among all."""
    if cs is not None:
        _check_conditions(model, cs, places, where)
    y, c = jax.tree.map(lambda x: x[0], (ys, cs))
    key = jax.random.key(0)
    seen = jax.eval_shape(preprocess.apply, key, y)
    with _noting(where, seen, c):
        fresh = jax.eval_shape(model.init, key, seen, c)
        terms = jax.eval_shape(model.terms, fresh, key, seen, c)
    support = support_of(model, fresh, seen, c)
    _check_finite(f"{where}ys", ys, places, takes_missing(support, seen))
    if params is not _NOT_MADE:
        _check_params(fresh, params)
    _check_terms(terms)
    check_support(support, ys, cs, places, preprocess, where)


def _check_kinds(model: Any, preprocess: Any) -> None:
    if not isinstance(model, Model):
        raise TypeError(
            f"model wants a Model, for instance of vae(...); got {type(model).__name__}: lift(conditional) of "
            "vae_jax.core makes one of a Conditional"
        )
    if not isinstance(preprocess, Preprocess):
        raise TypeError(
            "preprocess wants one of vae_jax.data.preprocess, for instance dynamic_binarisation(); got "
            f"{type(preprocess).__name__}"
        )


@contextlib.contextmanager
def _noting(where: str, y: Any, c: Any) -> Iterator[None]:
    """Add to an error from inside the model, perhaps from a user's network, what the model was given."""
    try:
        yield
    except Exception as error:
        given = f"c {_shapes(c)}" if c is not None else "no c; a conditional model wants cs, one for each example"
        error.add_note(
            f"This came up when the model was tried on the shapes of one example: {where}y {_shapes(y)}, {given}"
        )
        raise


def _shapes(tree: Any) -> str:
    return ", ".join(f"{x.dtype}{list(np.shape(x))}" for x in jax.tree.leaves(tree))


def _check_finite(name: str, xs: Any, places: np.ndarray, may_be_missing: Sequence[bool] = ()) -> None:
    leaves = jax.tree.leaves(xs)
    allowed = may_be_missing if len(may_be_missing) == len(leaves) else [False] * len(leaves)
    for x, missing in zip(leaves, allowed, strict=True):
        if missing or not jnp.issubdtype(x.dtype, jnp.floating):
            continue
        bad = ~np.isfinite(np.asarray(x)).reshape(len(x), -1).all(axis=1)
        if bad.any():
            raise ValueError(
                f"{name} holds NaN or infinity in {bad.sum()} of {len(x)} examples, the first at index "
                f"{places[bad.argmax()]}: remove or fill them first"
            )


def _check_classes(name: str, cs: Any, classes: int | None) -> None:
    """Whether a `labelled` model knows these classes; -1 is no condition."""
    if classes is None:
        return
    for x in jax.tree.leaves(cs):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            low, high = int(np.min(x)), int(np.max(x))
            if low < -1 or high >= classes:
                raise ValueError(
                    f"{name} has classes in {low} .. {high}, and this model knows 0 .. {classes - 1} "
                    f"(labelled(model, {classes})): are these the labels that it was trained with?"
                )


def _check_params(fresh: Any, params: Params) -> None:
    wanted, given = ({name: np.shape(x) for name, x in leaves_by_path(tree).items()} for tree in (fresh, params))
    for name, got, want in differing(given, wanted):
        raise ValueError(
            f"the parameters do not fit these data: {name} holds {got}, and the data want {want}. Are these data "
            "of another shape than those of training, or were the labels (cs) left out or added?"
        )


def differing(given: dict[str, Any], wanted: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(name, what is given, what is wanted) of what is not the same in both, "nothing" where one does not have it."""
    for name in sorted(wanted.keys() | given.keys()):
        got, want = given.get(name, "nothing"), wanted.get(name, "nothing")
        if got != want:
            yield name, got, want


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """The leaves by the path to each, "enc/params/Dense_0/kernel"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _check_terms(terms: Any) -> None:
    for name in ("distortion", "rate", "penalty"):
        shape = np.shape(getattr(terms, name))
        if shape != ():
            raise ValueError(f"Model.terms is for ONE example: its {name} has to be a scalar and has shape {shape}")
