"""A run directory, opened: the trained model, its parameters bound, as pure functions of keys and data.

    run = vae_jax.open_run("runs/vae")
    run.sample(key, 16), run.encode(ys), run.reconstruct(key, ys), run.evaluate(key, ys, k=500)

What can be asked of z is what the model offers (`vae_jax.core.model.Latent`). Every function takes data as they are
stored, as `fit` did, and computes in batches: an example has its number whatever the others are.
"""

import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax.core.model import Latent, Model, Params
from vae_jax.core.numbers import is_number, is_whole
from vae_jax.data.arrays import type_in_jax
from vae_jax.data.check import check_data
from vae_jax.data.columns import Columns
from vae_jax.data.preprocess import Preprocess
from vae_jax.data.sources import is_source
from vae_jax.evaluation.whole_split import Evaluation, evaluate, over_split
from vae_jax.training import checkpoint
from vae_jax.training.recipes import Recipe, check_recipe, config_of, example_from_json, params_of
from vae_jax.training.run import note_start
from vae_jax.training.run_directory import FORMAT, PathLike, claim, load_config, to_json, to_path, write_whole

BATCH = 100
CARRIED = Path(__file__).parents[1] / "carried"  # models that come with the package


class Trained:
    """A trained model, which `open_run` makes of a run directory; or made of its parts, of parameters in memory.

    Args (and attributes):
        model, params: what was trained.
        preprocess: how data reach the model.
        y, c: an example as it is stored, or its shapes and types; c is None without conditions.
        name: what messages call it: the run's directory.
        step: the step that the parameters are of.
        config: config.json, what decided the run.
        history: the rows of metrics.jsonl up to that step, nats.
        numbers: numbers.json, what the run's evaluation said; None where it was not written.
        made: made.json, a row for each start of the run: when, by what command, with which versions and devices.
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        preprocess: Preprocess,
        y: Any,
        c: Any = None,
        *,
        name: str = "the model",
        step: int = 0,
        config: dict[str, Any] | None = None,
        history: Sequence[dict[str, Any]] = (),
        numbers: list[dict[str, Any]] | None = None,
        made: Sequence[dict[str, Any]] = (),
    ):
        self.model, self.params, self.preprocess, self.y, self.c = model, params, preprocess, y, c
        self.name, self.step, self.history, self.numbers, self.made = name, step, list(history), numbers, list(made)
        self.config = config or {}
        self._programs: dict[Any, Callable[..., Any]] = {}

    def __repr__(self) -> str:
        size = sum(x.size for x in jax.tree.leaves(self.params))
        return f"<{self.name}: {size:,} parameters of step {self.step}, data: {self.preprocess.name}>"

    def sample(self, key: Array, n: int, *, c: Any = None, temperature: float | None = None, mean: bool = True) -> Any:
        """(n, *y): z from the prior, and of each the mean of P_gen(y|z), or a draw where it has none.

        Args:
            c: the condition of all of them, or (n, *condition).
            temperature: factor of the prior's standard deviations.
            mean: False draws y from P_gen(y|z) as well.

        Raises:
            ValueError: no condition where the model has one, or another one; a temperature for a prior that is no
                Gaussian; n below 1.
        """
        if not is_whole(n):
            raise ValueError(f"sample wants a number of examples n >= 1; got {n}")
        if temperature is not None and not is_number(temperature, 0):
            raise ValueError(f"a temperature multiplies standard deviations, and is at least 0; got {temperature}")
        if temperature is not None and not (mean and self.model.latent):
            raise ValueError("a temperature is of the prior of z: of a model that has one, with mean=True")
        one = one_sample(self.model, temperature, mean)
        return self._each(("sample", temperature, mean), one, key, np.zeros(n, np.uint8), self._conditions(c, n))

    def encode(self, ys: Any, cs: Any = None, *, key: Array | None = None, noise: Array | None = None) -> Any:
        """z of each y: the mean of P_enc(z|y) (the codes of a VQ-VAE, the most probable class), or with a key a draw.

        (n, *z), or a list of these for the levels of a ladder, the top one first.

        Args:
            ys, cs: data as they are stored, (n, *example) and (n, *condition).
            key: of the draws.
            noise: key of the preprocessing, where that is random (binarisation, dequantisation); by default key(0).

        Raises:
            TypeError: the model has no z, or z has neither mean nor most probable value (then give a key).
            ValueError: data of another shape than those of training, or outside the likelihood's support.
        """
        drawn = key is not None
        code = one_code(self.latent, self.preprocess, drawn)
        ys, cs = self._data(ys, cs)

        def one(params, keys, y, c):
            z = code(params, keys, y, c)
            if z is None:
                raise TypeError(f"P_enc(z|y) of {self.name} has no mean: encode(ys, key=key) draws z from it")
            return z

        noise = jax.random.key(0) if noise is None else noise
        return self._each(("encode", drawn), one, (noise, noise if key is None else key), ys, cs)

    def decode(self, zs: Any, cs: Any = None, *, key: Array | None = None) -> Any:
        """(n, *y): of each z, as `encode` gives them, the mean of P_gen(y|z), or a draw where it has none.

        Args:
            key: of what is drawn, by default key(0).
        """
        zs = tuple(zs) if isinstance(zs, list) else zs
        return self._each("decode", self.latent.decode, jax.random.key(0) if key is None else key, zs, cs)

    def reconstruct(self, key: Array, ys: Any, cs: Any = None) -> Any:
        """(n, *y): for each y, one z drawn from P_enc(z|y), and the mean of P_gen(y|z)."""
        latent = self.latent
        ys, cs = self._data(ys, cs)

        def one(params, key, y, c):
            k_data, k_z, k_y = jax.random.split(key, 3)
            z = latent.encode(params, k_z, self.preprocess.apply(k_data, y), c)
            return latent.decode(params, k_y, z, c)

        return self._each("reconstruct", one, key, ys, cs)

    def interpolate(self, ys: Any, cs: Any = None, *, steps: int = 10) -> Any:
        """(n // 2, steps, *y): straight lines between the codes of the first and the second example, and so on.

        Conditions go along the line, too; where they are classes, the second one takes over in the middle.

        Raises:
            ValueError: fewer than two examples, or fewer than two steps.
            TypeError: z is no number (classes, codes), so that there is nothing between two of them.
        """
        if not is_whole(steps, 2) or len(jax.tree.leaves(ys)[0]) < 2:
            raise ValueError(f"interpolate wants two examples at least, and steps >= 2; got steps={steps}")
        zs = self._numbers("interpolate", self.encode(ys, cs))
        along = np.linspace(0, 1, steps, dtype=np.float32)
        z_lines, c_lines = jax.tree.map(functools.partial(_lines, along), (zs, cs))
        return self._in_rows(z_lines, c_lines, steps)

    def traverse(self, ys: Any, cs: Any = None, *, units: int = 10, steps: int = 9, reach: float = 2.0) -> Any:
        """(units, steps, *y): from the first example's code, one unit of z after the other moves through its range.

        The units are those whose mean P_enc(z|y) varies most over ys, most first; the range is the mean over ys plus
        and minus `reach` standard deviations of z. Which units they are, `units_of` says.

        Raises:
            ValueError: fewer than two examples, fewer than two steps, or no unit.
            TypeError: z is no number (classes, codes).
        """
        if not is_whole(steps, 2) or not is_whole(units):
            raise ValueError(f"traverse wants units >= 1 and steps >= 2; got units={units}, steps={steps}")
        zs = self._numbers("traverse", self.encode(ys, cs))
        drawn = _flat(self.encode(ys, cs, key=jax.random.key(0)))
        flat = _flat(zs)
        chosen = self.units_of(flat, units)
        centre, spread = drawn.mean(axis=0), drawn.std(axis=0)
        rows = np.broadcast_to(flat[0], (len(chosen), steps, flat.shape[1])).copy()
        for row, unit in zip(rows, chosen, strict=True):
            row[:, unit] = centre[unit] + spread[unit] * np.linspace(-reach, reach, steps)
        c = jax.tree.map(lambda x: np.broadcast_to(x[0], (len(chosen), steps, *x.shape[1:])), cs)
        return self._in_rows(_unflat(rows, zs), c, steps)

    @staticmethod
    def units_of(zs: Any, units: int) -> list[int]:
        """Which units of z, counted in one row, vary most over these codes; most first."""
        return np.argsort(-_flat(zs).var(axis=0), kind="stable")[:units].tolist()

    def evaluate(self, key: Array, ys: Any, cs: Any = None, **options: Any) -> Evaluation:
        """`vae_jax.evaluate` of these parameters, by the data convention of the run; options as there (`k`, ...)."""
        ys, cs = (ys, cs) if is_source(ys) else self._data(ys, cs)
        return evaluate(self.model, self.params, key, ys, cs, preprocess=self.preprocess, **options)

    @property
    def columns(self) -> Columns:
        """Of a model of rows of a table what its columns hold, without rows: `again` reads others, `restored` goes back
        from samples to the table's units.

        Raises:
            TypeError: it is no model of such rows.
        """
        if not self.preprocess.columns:
            raise TypeError(f"{self.name} is no model of the columns of a table")
        return Columns({}, self.preprocess.columns, self.name, {})

    @property
    def latent(self) -> Latent:
        """What the model offers of its z.

        Raises:
            TypeError: it has none.
        """
        if self.model.latent is None:
            raise TypeError(
                f"{self.name} has no z to be encoded or decoded (a diffusion, a flow or an "
                "autoregressive model has none): what it has is sample and evaluate"
            )
        return self.model.latent

    def _data(self, ys: Any, cs: Any) -> tuple[Any, Any]:
        """The data as arrays, after making sure that they are like those of training."""
        for name, xs, like in (("ys", ys, self.y), ("cs", cs, self.c)):
            shapes, wanted = ([np.shape(x) for x in jax.tree.leaves(tree)] for tree in (xs, like))
            if [shape[1:] for shape in shapes] != wanted:
                raise ValueError(
                    f"{self.name} was trained on {name} like {described(like)}, each, and these {name} are of "
                    f"shape {', '.join(map(str, shapes)) or 'None'}; the first axis is that of the examples"
                )
        return check_data(self.model, ys, cs, self.preprocess, params=self.params)

    def _conditions(self, c: Any, n: int) -> Any:
        """(n, *condition), from one for all or one for each."""
        if (c is None) != (self.c is None):
            wants = "no condition" if self.c is None else f"a condition c like {described(self.c)}"
            raise ValueError(f"{self.name} has {wants}; got {'none' if c is None else 'one'}")
        if c is None:
            return None
        c = jax.tree.map(np.asarray, c)
        if jax.tree.map(np.shape, c) == jax.tree.map(np.shape, self.c):
            return jax.tree.map(lambda x: np.broadcast_to(x, (n, *x.shape)), c)
        wanted = jax.tree.map(lambda x: (n, *x.shape), self.c)
        if jax.tree.map(np.shape, c) != wanted:
            raise ValueError(f"c wants one condition like {described(self.c)}, or {n} of them; got {described(c)}")
        return c

    def _each(self, name: Any, one: Callable[..., Any], key: Any, ys: Any, cs: Any) -> Any:
        """`one(params, key, y, c)` of every example, compiled once under this name."""
        program = (name, cs is None)
        if program not in self._programs:
            self._programs[program] = jax.jit(of_batch(one))
        size = min(BATCH, len(jax.tree.leaves(ys)[0]))
        run = self._programs[program]
        if isinstance(key, tuple):  # over_split takes one key
            return over_split(lambda p, _, *rest: run(p, key, *rest), self.params, key[0], ys, cs, batch_size=size)
        return over_split(run, self.params, key, ys, cs, batch_size=size)

    def _numbers(self, what: str, zs: Any) -> Any:
        if not all(np.issubdtype(z.dtype, np.floating) for z in jax.tree.leaves(zs)):
            raise TypeError(f"z of {self.name} are classes or codes, with nothing between them: no {what}")
        return zs

    def _in_rows(self, zs: Any, cs: Any, steps: int) -> Any:
        """(rows, steps, *y) of z and c that lie in (rows, steps, ...)."""
        merged = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (zs, cs))
        return jax.tree.map(lambda y: y.reshape(-1, steps, *y.shape[1:]), self.decode(*merged))


def one_sample(model: Model, temperature: float | None = None, mean: bool = True) -> Callable[..., Any]:
    """`(params, key, None, c) -> y` of `Trained.sample`."""
    latent = model.latent if mean else None

    def one(params, key, y, c):
        del y
        if latent is None:
            return model.sample(params, key, c)
        k_z, k_y = jax.random.split(key)
        return latent.decode(params, k_y, latent.draw(params, k_z, c, temperature), c)

    return one


def one_code(latent: Latent, preprocess: Preprocess, drawn: bool) -> Callable[..., Any]:
    """`(params, (key of the preprocessing, key of z), y, c) -> z` of `Trained.encode`; None where z has no mean."""

    def one(params, keys, y, c):
        k_data, k_z = keys
        return latent.encode(params, k_z if drawn else None, preprocess.apply(k_data, y), c)

    return one


def of_batch(one: Callable[..., Any]) -> Callable[..., Any]:
    """`(params, keys, places, ys, cs)`: `one(params, key, y, c)` of each example, its keys from its place."""

    def of_each(params, keys, places, ys, cs):
        own = jax.tree.map(lambda key: jax.vmap(functools.partial(jax.random.fold_in, key))(places), keys)
        return jax.vmap(one, in_axes=(None, 0, 0, None if cs is None else 0))(params, own, ys, cs)

    return of_each


def open_run(directory: PathLike, *, which: Literal["best", "last"] = "best", recipe: Recipe | None = None) -> Trained:
    """The trained model of a run directory: that of any experiment, or of `fit(..., recipe=...)`.

    Args:
        directory: local, or `gs://bucket/run`. It may be in use: nothing is written. "carried/fashion_vae",
            "carried/fashion_vq_vae" and "carried/fashion_mixture" come with the package.
        which: the parameters with the best validation ELBO, or the last; without validation they are the same.
        recipe: how to build the model, in place of what the run says.

    Raises:
        FileNotFoundError: no run directory, or one without a checkpoint.
        ValueError: a run of a newer version, one that does not say how its model is built, or a recipe that builds
            another model.
        ImportError: the recipe's function is not found.
        DamagedError: no checkpoint is whole. (Damaged ones are named in a warning, and an older one is used.)

    Example:
        >>> run = open_run("carried/fashion_vae")
        >>> run.sample(jax.random.key(0), 2).shape
        (2, 28, 28, 1)
    """
    root = to_path(directory)
    if not root.exists() and len(root.parts) == 2 and root.parent.name == CARRIED.name:
        root = to_path(CARRIED / root.name)
    if not (root / "config.json").exists():
        raise FileNotFoundError(
            f"{root} is no run directory: it has no config.json. Want what was given to fit(directory=...) or --out"
        )
    config = load_config(root / "config.json")
    if config.get("format", 0) > FORMAT:
        raise ValueError(
            f"{root} was written by a newer vae_jax (format {config['format']}, this one reads {FORMAT}): "
            "pip install -U vae_jax"
        )
    if (recipe is None and "recipe" not in config) or "example" not in config:
        raise ValueError(
            f"{root} does not say how its model is built: give open_run(..., recipe=recipe(build, ...)) the function "
            "that builds it, and fit(..., recipe=...) the next time"
        )
    built = (recipe or Recipe(**config["recipe"])).build()
    example = tuple(example_from_json(config["example"][name]) for name in ("y", "c"))
    like = params_of(built, *example)
    found = checkpoint.restore_params(root, like, which=which)
    if found is None and which == "best":
        found = checkpoint.restore_params(root, like, which="last")
    if found is None:
        raise FileNotFoundError(f"{root} has no checkpoint yet: was it stopped before the first one?")
    numbers, made = (root / name for name in ("numbers.json", "made.json"))
    return Trained(
        built.model,
        found.state,
        built.preprocess,
        *example,
        name=str(directory),
        step=found.step,
        config=config,
        history=found.meta["history"],
        numbers=json.loads(numbers.read_text()) if numbers.exists() else None,
        made=json.loads(made.read_text()) if made.exists() else (),
    )


def save_run(
    directory: PathLike,
    recipe: Recipe,
    params: Params,
    y: Any,
    c: Any = None,
    *,
    config: dict[str, Any] | None = None,
    history: Sequence[dict[str, Any]] = (),
) -> None:
    """Makes a run directory of parameters that `fit` did not train (EM did, or several stages), for `open_run`.

    What was saved there before is replaced.

    Args:
        y, c: one example, as it is stored.
        config, history: what else is known of the training, plain JSON.

    Raises:
        ValueError: the recipe builds another model.
        FileExistsError: the directory holds something else than a run.
        OSError: it cannot be written.
    """
    check_recipe(recipe, params, y, c)
    kept = {**(config or {}), **config_of(recipe, y, c)}
    with claim(directory, kept, resume=True, ignore=kept):
        if jax.process_index() == 0:
            write_whole(to_path(directory) / "config.json", to_json("config", kept))
            note_start(to_path(directory), 0)
        checkpoint.save(directory, 0, checkpoint.Parameters(params), {"history": list(history)}, best=True)


def described(tree: Any) -> str:
    """Shapes and types: uint8[28, 28, 1]."""
    if tree is None:
        return "None"
    return ", ".join(f"{x.dtype}{list(np.shape(x))}" for x in jax.tree.leaves(tree))


def types_in_jax(tree: Any) -> Any:
    """Shapes and types that arrays have on a device."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), type_in_jax(np.dtype(x.dtype))), tree)


def _lines(along: np.ndarray, xs: Any) -> np.ndarray:
    """(n // 2, steps, *x), from the first of each two to the second."""
    xs = np.asarray(xs)
    pairs = len(xs) // 2
    along = along.reshape(1, -1, *[1] * (xs.ndim - 1))
    first, second = xs[: 2 * pairs : 2, None], xs[1 : 2 * pairs : 2, None]
    if np.issubdtype(xs.dtype, np.integer):
        return np.where(along < 0.5, first, second)
    return (1 - along) * first + along * second


def _flat(zs: Any) -> np.ndarray:
    """(n, units): all of z in one row."""
    return np.concatenate([np.reshape(z, (len(z), -1)) for z in jax.tree.leaves(zs)], axis=1)


def _unflat(rows: np.ndarray, like: Any) -> Any:
    """The inverse, with any leading axes: z in the shapes of `like`, which has one."""
    leaves, structure = jax.tree.flatten(like)
    sizes = [int(np.prod(z.shape[1:])) for z in leaves]
    parts = np.split(rows, np.cumsum(sizes)[:-1], axis=-1)
    shaped = [part.reshape(*rows.shape[:-1], *z.shape[1:]) for part, z in zip(parts, leaves, strict=True)]
    return jax.tree.unflatten(structure, [jnp.asarray(each, z.dtype) for each, z in zip(shaped, leaves, strict=True)])
