"""Whether data lie where the likelihood can put them: the support of P(y|c), as numpyro says it."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval
from numpyro.distributions import constraints

from vae_jax.core.model import Model
from vae_jax.data.preprocess import Preprocess

_EXAMPLES = 512


class Support(NamedTuple):
    """What is known of the support of P(y|c).

    Fields:
        constraints: one for each array of y; None where there is none, or its bounds are not constants of the model.
        of_each: `(cs, ys) -> (n,) bool` where bounds follow from the condition of each example, else None.
    """

    constraints: list[Any]
    of_each: Callable[[Any, Any], Any] | None = None


def support_of(model: Model, fresh: Any, y: Any, c: Any) -> Support:
    """The support of a model whose parameters and data have these shapes: neither is looked at."""
    unknown = Support([None] * len(jax.tree.leaves(y)))
    if model.support is None:
        return unknown
    found: list[Any] = []
    with contextlib.suppress(NotImplementedError, AssertionError):  # numpyro's, for a distribution that has none
        jax.eval_shape(lambda params, c: found.append(model.support(params, c)), fresh, c)  # type: ignore[misc]
    each = jax.tree.leaves(found, is_leaf=_is_constraint)
    if len(each) != len(unknown.constraints):
        return unknown
    if any(_traced(one) for one in each):
        return unknown if c is None else unknown._replace(of_each=_of_each(model, fresh, y, c))
    return Support([None if _base(one) in (None, constraints.dependent) else one for one in each])


def _is_constraint(x: Any) -> bool:
    return x is None or isinstance(x, constraints.Constraint)


def _base(support: Any) -> Any:
    return getattr(support, "base_constraint", support)


def _traced(support: Any) -> bool:
    return any(isinstance(bound, jax.core.Tracer) for bound in getattr(_base(support), "__dict__", {}).values())


def _of_each(model: Model, fresh: Any, y: Any, c: Any) -> Callable[[Any, Any], Any] | None:
    """None where the bounds depend on the parameters: whether data are inside changes as they are trained."""
    program = jax.make_jaxpr(functools.partial(_inside, model))(fresh, c, y).jaxpr
    _, used = partial_eval.dce_jaxpr(program, [True])
    if any(used[: len(jax.tree.leaves(fresh))]):
        return None
    any_params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), fresh)
    return functools.partial(_inside_each(model), any_params)


def _inside(model: Model, params: Any, c: Any, y: Any) -> Any:
    held = jax.tree.leaves(model.support(params, c), is_leaf=_is_constraint)  # type: ignore[misc]
    return jnp.all(jnp.stack([jnp.all(one(x)) for one, x in zip(held, jax.tree.leaves(y), strict=True) if one]))


@functools.lru_cache(maxsize=16)
def _inside_each(model: Model) -> Callable[..., Any]:
    return jax.jit(jax.vmap(functools.partial(_inside, model), in_axes=(None, 0, 0)))


def takes_missing(support: Support, y: Any) -> list[bool]:
    """Of each array of an example like y whether the likelihood takes NaN, which then means missing."""

    def takes(constraint, leaf):
        floats = jnp.issubdtype(leaf.dtype, jnp.floating)
        return bool(constraint and floats and np.all(constraint(np.full(leaf.shape, np.nan, leaf.dtype))))

    return [takes(*each) for each in zip(support.constraints, jax.tree.leaves(y), strict=True)]


def check_support(support: Support, ys: Any, cs: Any, places: np.ndarray, preprocess: Preprocess, where: str) -> None:
    """Hold some preprocessed examples against the support; all of them where nothing is preprocessed.

    Args:
        places: of the examples, for the message.

    Raises:
        ValueError: values that the likelihood gives no probability.
    """
    if support.of_each is None and not any(support.constraints):
        return
    if preprocess.name != "as given":
        ys, cs = jax.tree.map(lambda x: jnp.asarray(x[:_EXAMPLES]), (ys, cs))
        ys = _prepare(preprocess)(jax.random.split(jax.random.key(0), len(jax.tree.leaves(ys)[0])), ys)
    if support.of_each is not None:
        _check_each(np.asarray(support.of_each(cs, ys)), places, preprocess, where)
        return
    for constraint, (path, x) in zip(support.constraints, jax.tree_util.tree_leaves_with_path(ys), strict=True):
        if constraint is not None:
            _check_values(constraint, x, preprocess, f"{where}ys{jax.tree_util.keystr(path)}")


def _check_each(inside: np.ndarray, places: np.ndarray, preprocess: Preprocess, where: str) -> None:
    if not inside.all():
        raise ValueError(
            f"{where}ys ({preprocess.name}) is outside of the likelihood's support in {(~inside).sum()} of "
            f"{len(inside)} examples, the first at index {places[(~inside).argmax()]}. The bounds follow from each "
            f"example's condition: are {where}ys and {where}cs in the same order?"
        )


def _check_values(support: Any, ys: Any, preprocess: Preprocess, name: str) -> None:
    if np.asarray(support(np.asarray(ys))).all():
        return
    values = np.asarray(ys, np.float64)
    values = values[~np.isnan(values)]
    raise ValueError(
        f"{name} has values in [{values.min():g}, {values.max():g}] ({preprocess.name}); the likelihood wants "
        f"{_describe(support)}. {_advice(support, values)}"
    )


@functools.lru_cache(maxsize=16)
def _prepare(preprocess: Preprocess) -> Callable[..., Any]:
    """`(keys, ys) -> ys` of a batch, compiled once: every validation asks for it."""
    return jax.jit(jax.vmap(preprocess.apply))


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
