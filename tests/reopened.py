"""The run directory of every experiment opens again, as the model that was evaluated, with its numbers bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vae_jax import Evaluation, Trained, open_run
from vae_jax.command.placement import Placed


def evaluations(monkeypatch, module: Any, name: str = "evaluate_on") -> list[tuple[Any, ...]]:
    """A list that fills with what the experiment evaluates: (params, key, *data), the options, the result."""
    seen, evaluate = [], getattr(module, name)

    def spy(*arguments, **options):
        result = evaluate(*arguments, **options)
        _, *rest = arguments[isinstance(arguments[0], Placed) :]  # without the model
        seen.append((rest, {name: x for name, x in options.items() if name != "preprocess"}, result))
        return result

    monkeypatch.setattr(module, name, spy)
    return seen


def same(tree: Any, other: Any) -> bool:
    leaves, structure = jax.tree.flatten(tree)
    others, structure_of_other = jax.tree.flatten(other)
    return structure == structure_of_other and all(map(np.array_equal, leaves, others))


def reopened(directory: Path, which: Any = "best") -> Trained:
    """It draws examples like those that its model sees; nothing is compiled."""
    run, key = open_run(directory, which=which), jax.random.key(0)
    drawn = jax.eval_shape(run.model.sample, run.params, key, run.c)
    seen = jax.eval_shape(run.preprocess.apply, key, run.y)
    assert jax.tree.map(lambda x: x.shape, drawn) == jax.tree.map(lambda x: x.shape, seen)
    return run


def check_reopened(
    directory: Path,
    seen: list[tuple[Any, ...]],
    which: Any = "best",
    evaluate: Callable[[Trained], Callable[..., Any]] = lambda run: run.evaluate,
) -> Trained:
    """One of the evaluations is of the parameters that are there; made again, it says the same."""
    run = reopened(directory, which)
    (_, *data), options, result = _of_run(run, seen)
    jax.tree.map(np.testing.assert_array_equal, evaluate(run)(*data, **options)._asdict(), result._asdict())
    return run


def evaluation_of(run: Trained, seen: list[tuple[Any, ...]]) -> Evaluation:
    """What the experiment's evaluation of these parameters said."""
    return _of_run(run, seen)[-1]


def _of_run(run: Trained, seen: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    return next(each for each in seen if same(each[0][0], run.params))
