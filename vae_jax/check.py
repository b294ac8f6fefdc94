"""What a user hands in is checked once, here, before anything is compiled; the inside trusts it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints

from vae_jax.model import Model, Params
from vae_jax.preprocess import Preprocess

_SUPPORT_EXAMPLES = 512


def check_data(
    model: Model, ys: Any, cs: Any, preprocess: Preprocess, *, params: Params | None = None, batch_size: int = 1
) -> None:
    """Make sure that this model can be trained or evaluated on these data.

    Args:
        ys: (n, *example) or a pytree of such.
        cs: (n, *condition), or None.
        params: the model's parameters, if they are made already: they have to fit the data.
        batch_size: examples in a batch; not more than n.

    Raises:
        ValueError: no data, NaN, a batch larger than the data, conditions that do not match, values outside the
            likelihood's support, parameters made for other shapes, or terms that are not scalars.
    """
    n = _length("ys", ys)
    _check_finite("ys", ys)
    if batch_size < 1 or batch_size > n:
        raise ValueError(f"batch_size={batch_size} does not fit data of {n} examples: take one from 1 to {n}")
    if cs is not None:
        _check_finite("cs", cs)
        if _length("cs", cs) != n:
            raise ValueError(f"ys has {n} examples and cs {_length('cs', cs)}: give one condition for each example")
    y, c = jax.tree.map(lambda x: x[0], (ys, cs))
    key = jax.random.key(0)
    seen = jax.eval_shape(preprocess.apply, key, y)
    fresh = jax.eval_shape(model.init, key, seen, c)
    if params is not None:
        _check_params(fresh, params)
    _check_terms(jax.eval_shape(model.terms, fresh, key, seen, c))
    _check_support(model, fresh, ys, c, preprocess)


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
        if not np.issubdtype(np.asarray(x[:1]).dtype, np.floating):
            continue
        bad = ~np.isfinite(np.asarray(x)).reshape(len(x), -1).all(axis=1)
        if bad.any():
            raise ValueError(
                f"{name} holds NaN or infinity in {bad.sum()} of {len(x)} examples, the first at index "
                f"{int(bad.argmax())}: remove or fill them first"
            )


def _check_params(fresh: Any, params: Params) -> None:
    wanted = {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in _leaves(fresh)}
    given = {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in _leaves(params)}
    for name in sorted(wanted.keys() | given.keys()):
        want, got = (np.shape(tree[name]) if name in tree else "nothing" for tree in (wanted, given))
        if want != got:
            raise ValueError(
                f"the parameters do not fit these data: {name} holds {got}, and the data want {want}. Are these data "
                "of another shape than those of training, or were the labels (cs) left out or added?"
            )


def _leaves(tree: Any):
    return jax.tree_util.tree_flatten_with_path(tree)[0]


def _check_terms(terms: Any) -> None:
    for name in ("distortion", "rate", "penalty"):
        shape = np.shape(getattr(terms, name))
        if shape != ():
            raise ValueError(f"Model.terms is for ONE example: its {name} has to be a scalar and has shape {shape}")


def _check_support(model: Model, fresh: Any, ys: Any, c: Any, preprocess: Preprocess) -> None:
    """Hold some preprocessed examples against the likelihood's support; all of them where nothing is preprocessed."""
    support = _support_of(model, fresh, c)
    if support is None:
        return
    if preprocess.name != "as given":
        first = jax.tree.map(lambda x: jnp.asarray(x[:_SUPPORT_EXAMPLES]), ys)
        keys = jax.random.split(jax.random.key(0), len(jax.tree.leaves(first)[0]))
        ys = jax.vmap(preprocess.apply)(keys, first)
    inside = np.asarray(support(np.asarray(ys)))
    if inside.all():
        return
    values = np.asarray(ys, np.float64)
    got = f"data have values in [{values.min():g}, {values.max():g}]"
    raise ValueError(f"{got} ({preprocess.name}); the likelihood wants {_describe(support)}. {_advice(support, values)}")


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
    kind = "integers" if "integer" in type(base).__name__.lower() else "numbers"
    if None not in bounds:
        return f"{kind} in [{bounds[0]:g}, {bounds[1]:g}]"
    return f"{kind} >= {bounds[0]:g}" if bounds[0] is not None else str(base)


def _advice(support: Any, values: np.ndarray) -> str:
    if _base(support) is constraints.boolean:
        if values.min() < 0 or values.max() > 255:
            return "Scale them to 0 .. 255 (uint8) and binarise them with a preprocess= of vae_jax.preprocess"
        if values.max() > 1:
            return (
                "For 8-bit levels pass preprocess=dynamic_binarisation(), static_binarisation() or "
                "threshold_binarisation()"
            )
        return (
            "The cross-entropy of grey values is not a log-probability: binarise them (give the uint8 levels and "
            "preprocess=dynamic_binarisation()), or use l2(...) or discretised_logistic(...)"
        )
    return "Use a preprocess= of vae_jax.preprocess that gives such values, or another likelihood"

