"""One optimiser over the parts that train, whichever these are.

optax works on the whole tree: a global norm is over all leaves, masks and labels go by path. So it is given the whole
tree, in which the leaves of frozen parts are `optax.MaskedNode`s, its own way of passing over a leaf. Each part keeps
its leaves of the optimiser's state, and a copy of what belongs to no leaf (a count of steps, the scale of
`reduce_on_plateau`). As long as all parts train, the copies are equal and this is optax, number by number. A part that
was frozen goes on with its own: Adam corrects for the steps that its averages have seen.
"""

import inspect
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from vae_jax.core.model import Params
from vae_jax.data.check import leaves_by_path
from vae_jax.training.description import closure


def split_parts(params: Params) -> dict[str, Params]:
    """The parts of a model: the top-level keys of its parameters; parameters that are no dict are one part, "all"."""
    return params if isinstance(params, dict) else {"all": params}


def merge_parts(some: dict[str, Params], params: Params) -> Params:
    """`params` with some of its parts replaced."""
    return {**params, **some} if isinstance(params, dict) else some["all"]


def init_by_parts(optimizer: optax.GradientTransformation, params: Params) -> dict[str, Any]:
    """The optimiser's state at the start, divided by parts.

    Raises:
        ValueError: a mask or label that no parameter has, or a state that is not one of leaves and numbers of its own,
            or that a part alone does not have.
    """
    _check_labels(optimizer, params)
    whole = optimizer.init(params)

    def own(like, leaf):
        if not _is_masked(like) and like.shape != jnp.shape(leaf):
            raise ValueError(
                "the optimiser's state cannot be divided by the parts of the model, since it joins leaves to one array "
                "(optax.flatten does): leave that out"
            )
        return like if _is_masked(like) else leaf

    def of(part):
        try:
            like = jax.eval_shape(optimizer.init, _only(params, [part]))
        except Exception as error:
            raise ValueError(
                f"the optimiser has no state for the part {part!r} alone ({error}): one with a line search, as "
                "optax.lbfgs, is not for steps on batches"
            ) from error
        return jax.tree.map(own, like, whole, is_leaf=_is_masked)

    return {part: of(part) for part in split_parts(params)}


def update_by_parts(
    optimizer: optax.GradientTransformation,
    grads: dict[str, Params],
    states: dict[str, Any],
    params: Params,
    value: Array,
) -> tuple[dict[str, Params], dict[str, Any]]:
    """(the parts that train, updated; the optimiser's state of all parts).

    The whole update is written down for each part with that part's counts, and its own leaves are taken from it; the
    compiler drops the others.

    Args:
        grads: of the parts that train, and of no other.
        value: the loss, for those that ask for it.
    """
    update = optax.with_extra_args_support(optimizer).update
    training = {part: states[part] for part in grads}
    seen = _only(params, grads)
    gradient = _only(merge_parts(grads, params), grads)
    updated, new_states = {}, dict(states)
    for part, state in training.items():
        updates, new_state = update(gradient, _joined(part, training), seen, value=value)
        updated[part] = optax.apply_updates(split_parts(params)[part], split_parts(updates)[part])
        new_states[part] = jax.tree.map(
            lambda old, new: old if _is_masked(old) else new, state, new_state, is_leaf=_is_masked
        )
    return updated, new_states


def _only(params: Params, parts: Any) -> Params:
    """The parameters with those of all other parts masked."""
    masked = {
        part: value if part in parts else jax.tree.map(lambda _: optax.MaskedNode(), value)
        for part, value in split_parts(params).items()
    }
    return merge_parts(masked, params)


def _joined(part: str, states: dict[str, Any]) -> Any:
    """The optimiser's state for the leaves of all these parts, with the counts of one of them."""

    def first(*leaves):
        return next((leaf for leaf in leaves if not _is_masked(leaf)), leaves[0])

    others = [state for name, state in states.items() if name != part]
    return jax.tree.map(first, states[part], *others, is_leaf=_is_masked)


def _is_masked(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)


def check_optimizer(optimizer: Any) -> None:
    """Raise a TypeError for what is no optimiser."""
    if not (callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))):
        name = getattr(optimizer, "__name__", None)
        got = f"the function {name}, which has to be called first" if callable(optimizer) and name else repr(optimizer)
        raise TypeError(f"optimizer wants an optax optimiser, for instance optax.adam(1e-3); got {got}")


def _check_labels(optimizer: optax.GradientTransformation, params: Params) -> None:
    """Raise a ValueError for a mask or label that picks no parameter: what is written for it would do nothing."""
    for function in _functions(optimizer.init, set()):
        values = closure(function)
        if not jax.tree.leaves(params) or not function.__module__.startswith("optax."):
            continue
        if values.get("mask") is not None and not any(_of_leaves(values["mask"], params)):
            raise ValueError(f"the mask of an optax.masked in the optimizer picks no parameter: {_paths(params)}")
        labels = values.get("param_labels")
        if labels is not None and not getattr(labels, "__module__", "").startswith("optax."):
            unused = set(values["transforms"]) - set(_of_leaves(labels, params))
            if unused:
                raise ValueError(
                    f"no parameter has the label {min(map(repr, unused))} of the optimizer's optax.multi_transform: "
                    f"{_paths(params)}"
                )


def _functions(value: Any, seen: set[Any]) -> Iterator[Any]:
    """The functions in a tree, and those that they close over."""
    for leaf in jax.tree.leaves(value):
        if inspect.isfunction(leaf) and leaf not in seen:
            seen.add(leaf)
            yield leaf
            yield from _functions(closure(leaf), seen)


def _of_leaves(prefix: Any, params: Params) -> list[Any]:
    """The mask or label of each parameter; `prefix` is a tree, or a function that makes one of the parameters."""
    prefix = prefix(params) if callable(prefix) else prefix
    return jax.tree.leaves(jax.tree.map(lambda value, below: jax.tree.map(lambda _: value, below), prefix, params))


def _paths(params: Params) -> str:
    paths = list(leaves_by_path(params))
    return f"it goes by the whole tree of parameters, {', '.join(paths[:4])}{', ...' * (len(paths) > 4)}"
