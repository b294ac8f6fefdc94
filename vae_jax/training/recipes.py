"""How to build a model again: the name of a function and its arguments, which a run directory keeps as plain JSON."""

import dataclasses
import importlib
import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from vae_jax.core.model import Conditional, Model, Params, lift
from vae_jax.data.check import differing, leaves_by_path
from vae_jax.data.preprocess import Preprocess, identity
from vae_jax.training.run_directory import FORMAT


class Built(NamedTuple):
    """What a recipe makes: the model, and how data reach it."""

    model: Model
    preprocess: Preprocess


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A function by its name, "module:function", and its arguments as JSON has them; `recipe` makes one."""

    function: str
    arguments: dict[str, Any]

    def build(self) -> Built:
        """Calls the function.

        Raises:
            ImportError: there is no such module, or no such function in it.
            TypeError: what it returns is no model.
        """
        made = _imported(self.function)(**self.arguments)
        model, preprocess = made if type(made) is tuple and len(made) == 2 else (made, identity())
        if not isinstance(model, Model | Conditional) or not isinstance(preprocess, Preprocess):
            raise TypeError(
                f"the recipe {self.function} has to return a model, or a pair (model, preprocess); got "
                f"{type(made).__name__}"
            )
        return Built(lift(model), preprocess)


def recipe(function: Callable[..., Any], /, **arguments: Any) -> Recipe:
    """`function(**arguments)`, to be called again when a run is opened.

        fit(model, ..., directory="runs/mine", recipe=recipe(my_models.build, latent=20))

    Args:
        function: of a module that can be imported; it returns a model, or a pair (model, preprocess).
        arguments: plain JSON values.

    Raises:
        TypeError: arguments that are not plain JSON.
        ValueError: a function that cannot be imported by its name.
    """
    module = module_of(function)
    name = f"{module}:{function.__qualname__}"
    if module == "__main__" or "<" in function.__qualname__:
        raise ValueError(
            f"a recipe is imported again by its name, and {name} cannot be: define the function at the top of a module "
            "(a file of its own)"
        )
    try:
        plain = json.loads(json.dumps(arguments))
    except (TypeError, ValueError) as error:
        raise TypeError(f"the arguments of the recipe {name} must be plain JSON values: {error}") from error
    return Recipe(name, plain)


def module_of(thing: Any) -> str:
    """The module that a function or class is imported from; of `python -m package.module`, that is its name."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if thing.__module__ == "__main__" and spec is not None else thing.__module__


def check_recipe(recipe: Any, params: Params, y: Any, c: Any) -> None:
    """Make sure that the recipe builds a model with parameters like these.

    Raises:
        TypeError: no `Recipe`.
        ValueError: it builds another model; the first parameter that differs is named.
    """
    if not isinstance(recipe, Recipe):
        raise TypeError(
            f"recipe wants one of vae_jax.training.recipe, recipe(build, latent=20); got {type(recipe).__name__}"
        )
    built = recipe.build()
    for name, got, want in differing(_shapes(params_of(built, y, c)), _shapes(params)):
        raise ValueError(
            f"the recipe {recipe.function} builds another model than the one that is trained: its {name} is {got}, and "
            f"here it is {want}. Are the arguments those of this model?"
        )


def params_of(built: Built, y: Any, c: Any) -> Params:
    """The shapes of the model's parameters, for an example as it is stored."""
    key = jax.random.key(0)
    return jax.eval_shape(lambda y, c: built.model.init(key, built.preprocess.apply(key, y), c), y, c)


def _shapes(params: Params) -> dict[str, str]:
    return {name: f"{x.dtype}{list(np.shape(x))}" for name, x in leaves_by_path(params).items()}


def _imported(name: str) -> Callable[..., Any]:
    module, _, function = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in function.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"the recipe {name} cannot be imported ({error}): run where its module is found, or put its folder into "
            "PYTHONPATH"
        ) from error
    return found


def config_of(recipe: Recipe | None, y: Any, c: Any) -> dict[str, Any]:
    """What config.json keeps for `open_run`."""
    kept = {"format": FORMAT, "example": {"y": example_to_json(y), "c": example_to_json(c)}}
    return kept if recipe is None else {**kept, "recipe": dataclasses.asdict(recipe)}


# An example as JSON: its tree, shapes and types


def example_to_json(tree: Any) -> Any:
    """`{"shape": [28, 28, 1], "dtype": "uint8"}` for an array, a dict or list of such for a tree, None for None."""
    if isinstance(tree, dict):
        return {"dict": {name: example_to_json(each) for name, each in tree.items()}}
    if isinstance(tree, tuple | list):
        return [example_to_json(each) for each in tree]
    return None if tree is None else {"shape": list(np.shape(tree)), "dtype": str(tree.dtype)}


def example_from_json(spec: Any) -> Any:
    """The shapes and types that `example_to_json` wrote down."""
    if spec is None:
        return None
    if isinstance(spec, list):
        return tuple(example_from_json(each) for each in spec)
    if "dict" in spec:
        return {name: example_from_json(each) for name, each in spec["dict"].items()}
    return jax.ShapeDtypeStruct(tuple(spec["shape"]), np.dtype(spec["dtype"]))
