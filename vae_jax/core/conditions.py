"""What a model is given beside z: classes, which are no quantities, and what stands for no condition at all.

A network takes its conditions as numbers. Class 3 is not three times class 1, and 0 is a class like any other: so
classes reach networks as one-hot vectors, and zeros are none of them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax.core.model import Coder, Conditional, Latent, Model, lift, mean_sample
from vae_jax.core.numbers import is_whole


def labelled(model: Model | Conditional, classes: int) -> Model:
    """P(y|c) of a class c in 0 .. classes - 1, a whole number; -1 is no condition.

    The model inside sees one-hot vectors of that many numbers, and zeros for -1. Whole numbers of any shape become
    vectors on an axis at the end, in a dict or tuple of conditions too; floats reach the model as they are. `fit` and
    `evaluate` refuse other classes; where c is traced, one that is out of range gives NaN.

    Raises:
        ValueError: fewer than two classes; or, when called, no c, or one that is no class.

    Example:
        >>> model = labelled(bernoulli(nets.MLP((), 3)), 10)
        >>> params = jax.jit(model.init)(jax.random.key(0), jnp.ones(3), 7)
        >>> jax.jit(model.sample)(params, jax.random.key(1), -1).shape  # -1 is no class
        (3,)
    """
    if not is_whole(classes, 2):
        raise ValueError(f"labelled wants the number of classes, at least two; got {classes}")
    inner = lift(model)

    def seen(c: Any) -> Any:
        if c is None:
            raise ValueError("a labelled model wants a class (c, or cs for many); -1 is no condition")
        return jax.tree.map(lambda x: _one_hot(x, classes), c)

    def of(function):
        return function and (lambda params, key, y, c=None, *scale: function(params, key, y, seen(c), *scale))

    support, latent, coder = inner.support, inner.latent, inner.coder
    return inner._replace(
        init=lambda key, y, c=None: inner.init(key, y, seen(c)),
        terms=of(inner.terms),
        sample=lambda params, key, c=None: inner.sample(params, key, seen(c)),
        importance=of(inner.importance),
        support=support and (lambda params, c=None: support(params, seen(c))),
        pathwise=of(inner.pathwise),
        classes=classes,
        mean=lambda params, key, c=None: mean_sample(inner)(params, key, seen(c)),
        latent=latent
        and Latent(
            encode=of(latent.encode),
            decode=of(latent.decode),
            draw=lambda params, key, c=None, temperature=None: latent.draw(params, key, seen(c), temperature),
        ),
        coder=coder
        and Coder(
            write=lambda stack, params, ys, cs=None: coder.write(stack, params, ys, seen(cs)),
            read=lambda stack, params, cs=None: coder.read(stack, params, seen(cs)),
        ),
        complete=of(inner.complete),
    )


def _one_hot(x: Any, classes: int) -> Array:
    """(..., classes): zeros for -1, NaN for what is no class. Floats stay as they are."""
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x
    x = x.astype(jnp.int32)
    known = (x >= -1) & (x < classes)
    if not isinstance(known, jax.core.Tracer) and not np.all(known):  # in jit, of a constant x, it is one
        raise ValueError(f"c={x}: this model knows the classes 0 .. {classes - 1}, and -1 for no condition")
    return jnp.where(known[..., None], jax.nn.one_hot(x, classes), jnp.nan)


def quantities(*conditions: Any) -> tuple[Any, ...]:
    """The conditions, of which none may be whole numbers: a network would take a class for a quantity.

    Raises:
        ValueError: whole numbers.
    """
    for c in conditions:
        for x in jax.tree.leaves(c):
            if jnp.issubdtype(jnp.result_type(x), jnp.integer):
                raise ValueError(
                    f"a condition of whole numbers (c has dtype {jnp.result_type(x)}) would be a quantity to this "
                    "network. Classes: labelled(model, classes) makes one-hot vectors of them; quantities: give floats"
                )
    return conditions


def no_condition(c: Any, classes: int | None = None) -> Any:
    """What stands for no condition in the place of c: zeros; -1 for the classes of a `labelled` model.

    Raises:
        ValueError: whole numbers or booleans where `classes` is None: zero is a class of theirs.
    """

    def nothing(x):
        x = jnp.asarray(x)
        if jnp.issubdtype(x.dtype, jnp.floating):
            return jnp.zeros_like(x)
        if classes is None:
            raise ValueError(
                f"zeros stand for no condition, and 0 is a class among whole numbers (c has dtype {x.dtype}): say how "
                "many classes there are, labelled(model, classes), or give one-hot vectors"
            )
        return jnp.full(x.shape, -1, jnp.int32)

    return jax.tree.map(nothing, c)
