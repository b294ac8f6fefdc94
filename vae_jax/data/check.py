"""What a user hands in is checked once, here, before anything is compiled; the inside trusts it."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints

from vae_jax.core.model import Model, Params
from vae_jax.data.preprocess import Preprocess

_SUPPORT_EXAMPLES = 512


def check_data(
    model: Model,
    ys: Any,
    cs: Any,
    preprocess: Preprocess,
    *,
    params: Params | None = None,
    batch_size: int = 1,
    where: str = "",
) -> None:
    """Make sure that this model can be trained or evaluated on these data.

    Args:
        ys: (n, *example) or a pytree of such.
        cs: (n, *condition), or None.
        params: the model's parameters, if they are made already: they have to fit the data.
        batch_size: examples in a batch; not more than n.
        where: how messages name these data: f"{where}ys" and f"{where}cs".

    Raises:
        ValueError: no data, NaN (unless the likelihood takes it for missing), a batch larger than the data, conditions
            that do not match, values outside the likelihood's support, parameters made for other shapes, or terms that
            are not scalars.
        Exception: whatever the user's own functions raise on one example, with a note of what they were given.
    """
    n = _length(f"{where}ys", ys)
    if batch_size < 1 or batch_size > n:
        raise ValueError(f"batch_size={batch_size} does not fit data of {n} examples: take one from 1 to {n}")
    if cs is not None:
        given = _length(f"{where}cs", cs)
        if given != n:
            raise ValueError(f"{where}ys has {n} examples and {where}cs {given}: give one condition for each example")
        _check_finite(f"{where}cs", cs)
    y, c = jax.tree.map(lambda x: x[0], (ys, cs))
    key = jax.random.key(0)
    seen = jax.eval_shape(preprocess.apply, key, y)
    with _noting(where, seen, c):
        fresh = jax.eval_shape(model.init, key, seen, c)
        terms = jax.eval_shape(model.terms, fresh, key, seen, c)
    support = _support_of(model, fresh, c)
    if not _takes_missing(support, y):
        _check_finite(f"{where}ys", ys)
    if params is not None:
        _check_params(fresh, params)
    _check_terms(terms)
    _check_support(support, ys, preprocess, where)


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


def _length(name: str, xs: Any) -> int:
    leaves = jax.tree.leaves(xs)
    lengths = {np.shape(x)[0] if np.ndim(x) else None for x in leaves}
    if not leaves or lengths == {0}:
        raise ValueError(f"{name} is empty: want an array (n, *example) with at least one example")
    if None in lengths or len(lengths) > 1:
        raise ValueError(f"{name} wants the examples along its first axis; got shapes {[np.shape(x) for x in leaves]}")
    for x in leaves:
        if getattr(x, "dtype", np.asarray(x).dtype).kind in "OSU":
            raise ValueError(f"{name} has dtype {np.asarray(x).dtype}; want numbers")
    return len(leaves[0])


def _check_finite(name: str, xs: Any) -> None:
    for x in jax.tree.leaves(xs):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            continue
        bad = ~np.isfinite(np.asarray(x)).reshape(len(x), -1).all(axis=1)
        if bad.any():
            raise ValueError(
                f"{name} holds NaN or infinity in {bad.sum()} of {len(x)} examples, the first at index "
                f"{int(bad.argmax())}: remove or fill them first"
            )


def _check_params(fresh: Any, params: Params) -> None:
    wanted, given = _named(fresh), _named(params)
    for name in sorted(wanted.keys() | given.keys()):
        want, got = (np.shape(tree[name]) if name in tree else "nothing" for tree in (wanted, given))
        if want != got:
            raise ValueError(
                f"the parameters do not fit these data: {name} holds {got}, and the data want {want}. Are these data "
                "of another shape than those of training, or were the labels (cs) left out or added?"
            )


def _named(tree: Any) -> dict[str, Any]:
    """The leaves by the path to each, "enc/params/Dense_0/kernel"."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _check_terms(terms: Any) -> None:
    for name in ("distortion", "rate", "penalty"):
        shape = np.shape(getattr(terms, name))
        if shape != ():
            raise ValueError(f"Model.terms is for ONE example: its {name} has to be a scalar and has shape {shape}")


def _takes_missing(support: Any, y: Any) -> bool:
    """Whether the likelihood takes NaN, which then means missing, in an example like y."""
    if support is None or len(jax.tree.leaves(y)) != 1 or not np.issubdtype(np.asarray(y).dtype, np.floating):
        return False
    return bool(np.all(support(np.full_like(y, np.nan))))


def _check_support(support: Any, ys: Any, preprocess: Preprocess, where: str) -> None:
    """Hold some preprocessed examples against the likelihood's support; all of them where nothing is preprocessed."""
    if support is None:
        return
    if preprocess.name != "as given":
        first = jax.tree.map(lambda x: jnp.asarray(x[:_SUPPORT_EXAMPLES]), ys)
        keys = jax.random.split(jax.random.key(0), len(jax.tree.leaves(first)[0]))
        ys = _prepare(preprocess)(keys, first)
    inside = np.asarray(support(np.asarray(ys)))
    if inside.all():
        return
    values = np.asarray(ys, np.float64)
    got = f"{where}ys has values in [{values.min():g}, {values.max():g}]"
    raise ValueError(
        f"{got} ({preprocess.name}); the likelihood wants {_describe(support)}. {_advice(support, values)}"
    )


@functools.lru_cache(maxsize=16)
def _prepare(preprocess: Preprocess) -> Callable[..., Any]:
    """`(keys, ys) -> ys` of a batch, compiled once: every validation asks for it."""
    return jax.jit(jax.vmap(preprocess.apply))


def _support_of(model: Model, fresh: Any, c: Any) -> Any:
    """The constraint on y. Its bounds are constants of the model, so abstract parameters are enough to find it."""
    support = model.support
    if support is None:
        return None
    found: list[Any] = []
    jax.eval_shape(lambda params: found.append(support(params, c)), fresh)
    bounds = [value for value in vars(_base(found[0])).values() if isinstance(value, jax.core.Tracer)]
    return None if bounds else found[0]


def _base(support: Any) -> Any:
    return getattr(support, "base_constraint", support)


def _describe(support: Any) -> str:
    base = _base(support)
    if base is constraints.boolean:
        return "0 or 1"
    bounds = [getattr(base, name, None) for name in ("lower_bound", "upper_bound")]
    kind = "integers" if getattr(base, "is_discrete", False) else "numbers"
    if None not in bounds:
        return f"{kind} in [{bounds[0]:g}, {bounds[1]:g}]"
    return f"{kind} >= {bounds[0]:g}" if bounds[0] is not None else str(base)


def _advice(support: Any, values: np.ndarray) -> str:
    if _base(support) is constraints.boolean:
        if values.min() < 0 or values.max() > 255:
            return "Scale them to 0 .. 255 (uint8) and binarise them with a preprocess= of vae_jax.data.preprocess"
        if values.max() > 1:
            return (
                "For 8-bit levels pass preprocess=dynamic_binarisation(), static_binarisation() or "
                "threshold_binarisation()"
            )
        return (
            "The cross-entropy of grey values is not a log-probability: binarise them (give the uint8 levels and "
            "preprocess=dynamic_binarisation()), or use l2(...) or discretised_logistic(...)"
        )
    return "Use a preprocess= of vae_jax.data.preprocess that gives such values, or another likelihood"
