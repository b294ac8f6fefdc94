"""The host loop: epochs, progress, evaluation, checkpoints, early stopping.

What is computed is decided by `make_train_step` and the key alone; this file only drives it. A run that was killed and
is resumed ends with the same parameters, bit for bit: the place in the data and the noise follow from the step.
"""

import contextlib
import datetime
import functools
import os
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from vae_jax.core.extras import extra
from vae_jax.core.keys import as_key
from vae_jax.core.mesh import auto, check_divides
from vae_jax.core.model import Model, Params, example_of
from vae_jax.core.numbers import is_whole
from vae_jax.data.check import check_examples
from vae_jax.data.preprocess import Preprocess, identity
from vae_jax.data.sources import Source, as_source, has_conditions, is_source
from vae_jax.evaluation.whole_split import evaluate_checked, mean
from vae_jax.training.description import describe
from vae_jax.training.feed import Feed, fed, most_steps, resident
from vae_jax.training.plan import Clock, Plan, check_length, plan_of
from vae_jax.training.preemption import Preempted, Preemption
from vae_jax.training.recipes import Recipe, check_recipe, config_of
from vae_jax.training.run import Row, Run
from vae_jax.training.sharding import Rule, check_placement, gathering, shardings
from vae_jax.training.step import (
    Order,
    StepOptions,
    TrainState,
    TrainStep,
    epoch_order,
    init_state,
    leaf_names,
    make_train_step,
)

STEPS_PER_CALL = 100
PROFILED = 10  # steps
DEFAULT_BATCH = 128
COLLAPSED = (
    "the rate is {rate:.3f} nats after epoch {epoch}: z says nothing of y (posterior collapse). What to try: "
    "beta_elbo(linear_annealing(steps)) or beta_elbo(cyclical_annealing(period)), free_bits(floor, per_example), "
    "a smaller sigma with L2 distortion; for language in_training(generator, word_dropout=0.3), "
    "parts=lagging(inner, until) and vae_jax.parts.cures"
)
_AVERAGED = ("loss", "elbo", "rate", "distortion", "penalty", "grad_norm")


class Fitted(NamedTuple):
    """The result of `fit`.

    Fields:
        state: the state after the last step.
        params: the parameters to use: those of the record with the best validation ELBO (the moving average, if one is
            kept); without validation data, the last.
        history: one dict for each record, an epoch if not told otherwise: epoch, step, skipped, images_per_second, the
            step's metrics averaged over its steps, and `valid_elbo`, `valid_rate`, `valid_distortion`, where validated.
            Nats.
        images_per_second: examples of any kind a second, median over the records without the first, which compiles;
            NaN after one.
    """

    state: TrainState
    params: Params
    history: list[Row]
    images_per_second: float


def fit(
    model: Model,
    optimizer: optax.GradientTransformation,
    ys: Any,
    cs: Any = None,
    *,
    key: Array,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    preprocess: Preprocess = identity(),
    validation: tuple[Any, Any] | None = None,
    record_every: int | datetime.timedelta | None = None,
    validate_every: int = 1,
    patience: int | None = None,
    max_skipped_in_a_row: int = 20,
    directory: str | os.PathLike[str] | None = None,
    config: dict[str, Any] | None = None,
    recipe: Recipe | None = None,
    resume: bool = False,
    mesh: Mesh | None = None,
    sharding: Rule | Literal["fsdp", "replicated"] = "replicated",
    order: Order = epoch_order,
    steps_per_call: int = STEPS_PER_CALL,
    profile: str | os.PathLike[str] | None = None,
    progress: bool = True,
    **step_options: Unpack[StepOptions],
) -> Fitted:
    """Train a model, on data in memory or on data that are read as they are needed.

    Args:
        ys: (n, *example), or a dict or tuple of such; kept on the device as it is (uint8 images stay uint8). Or a
            source of examples (see `vae_jax.data.source`; an np.memmap is one): each batch is read while the device
            computes the one before.
        cs: (n, *condition) or None; classes are whole numbers for a model made by `vae_jax.core.labelled`.
        optimizer: one over all parameters; see `make_train_step`.
        key: the run's key. Same key, data and options: same parameters, bit for bit, on the same machine.
        epochs: passes over the data; each drops the last n % batch_size examples of its order.
        steps: the length of the run in steps, in place of `epochs`.
        batch_size: examples in a step, over all devices; by default 128, or all of them where they are fewer.
        preprocess: see `vae_jax.data.preprocess`.
        validation: (ys, cs) held out; their ELBO decides which parameters are best.
        record_every: steps, or time, between two records: a row of metrics, a checkpoint and perhaps a validation. By
            default there is one at the end of each epoch, and there is always one at the end of the run.
        validate_every: records between validations.
        patience: stop after so many validations without a better ELBO.
        max_skipped_in_a_row: stop after so many non-finite updates in a row (each is skipped and counted).
        directory: where checkpoints, config.json and metrics.jsonl go, and TensorBoard events where the extra
            `tensorboard` is installed; none are written without. A local path, or `gs://bucket/path`. One run at a time
            trains in it.
        config: what the run is, JSON-able; a directory takes one configuration only.
        recipe: how to build the model again, `vae_jax.training.recipe(function, **arguments)`: with it `open_run` opens
            the directory.
        resume: continue the run in `directory`, if there is one, and if it is the same in all that decides its
            parameters but its length and the devices: data, model, optimiser, objective and the other options, compared
            by their names and values (see `vae_jax.training.description`).
        mesh: split each batch over its axes `data` and `fsdp` (over the first where it has neither). Its devices may
            belong to several processes, which all call `fit` with the same arguments: each reads its own part of each
            batch, process 0 alone writes what is not an array. Numbers do not depend on it, but for the order of sums.
        sharding: of parameters and optimiser state: "replicated" on each device; "fsdp", the largest dimension that
            divides split over the axis of that name; or a rule, see `vae_jax.training.sharding`.
        order: `(key, epoch, size, n) -> (size,)` places in the data, at random by default: sentences of like length
            together (`vae_jax.text`), for instance.
        steps_per_call: the most steps in one compiled call. Between two calls, SIGTERM is heard.
        profile: a folder for a `jax.profiler` trace of the second call, which is of at most ten steps then.
        progress: show a bar with ELBO and examples/s.
        step_options: objective, parts, clip_norm, ema_decay, micro_batches, as `make_train_step` has them.

    Raises:
        ValueError: data or options out of range, before anything is compiled.
        TypeError: what is no key, no optimiser, no mesh.
        FileExistsError: the directory holds a run already, or something else.
        FileNotFoundError: the run in the directory has lost its checkpoints.
        BlockingIOError: another process trains in the directory.
        FloatingPointError: too many non-finite updates in a row, or no finite one at all; the message names the step
            and the first leaf.
        Preempted: SIGTERM has come and `directory` holds the state, from which `resume` goes on bit for bit.

    Example:
        >>> ys = np.linspace(-3, 3, 64, dtype=np.float32)[:, None] * np.ones(2, np.float32)
        >>> model = vae(gaussian(nets.MLP((), 2)), standard_normal(1), l2(nets.MLP((), 2)))
        >>> fitted = fit(model, optax.adam(0.05), ys, key=jax.random.key(0), epochs=10, batch_size=32, progress=False)
        >>> len(fitted.history), bool(fitted.history[-1]["elbo"] > fitted.history[0]["elbo"])
        (10, True)
    """
    key = as_key(key)
    _check_counts(
        validate_every=validate_every, max_skipped_in_a_row=max_skipped_in_a_row, steps_per_call=steps_per_call
    )
    check_length(epochs, steps, record_every)
    _check_validation(validation, has_conditions(ys, cs), patience)
    rule = check_placement(mesh, sharding)
    mesh = None if mesh is None else auto(mesh)
    ys, cs = check_examples(model, ys, cs, preprocess, batch_size=1 if batch_size is None else batch_size)
    data = as_source(ys, cs)
    batch_size = _default_batch(len(data)) if batch_size is None else batch_size
    check_divides(batch_size, mesh)
    k_init, k_train, k_valid = jax.random.split(key, 3)
    y, c = jax.tree.map(jnp.asarray, data.one())
    example = example_of(preprocess.apply, k_init, y)
    with_ema = step_options.get("ema_decay") is not None

    def start(key):
        return init_state(model, optimizer, key, example, c, ema=with_ema)

    abstract = jax.eval_shape(start, k_init)
    if validation is not None:
        validation = check_examples(model, *validation, preprocess, params=abstract.params, where="validation ")
    if recipe is not None:
        check_recipe(recipe, abstract.params, y, c)
    gather = gathering(mesh, rule)
    train_step = _step_of(model, optimizer, preprocess=preprocess, gather=gather, **step_options)
    placed = None if mesh is None else shardings(abstract, mesh, rule)
    per_call = min(steps_per_call, PROFILED) if profile is not None else steps_per_call
    if mesh is None and record_every is None and not is_source(ys):
        feed = resident(train_step, ys, cs, k_train, batch_size=batch_size, order=order)
    else:
        feed = fed(train_step, data, k_train, batch_size=batch_size, order=order, mesh=mesh, sharding=placed)
        per_call = min(per_call, most_steps(data, batch_size))
    plan = plan_of(epochs, steps, record_every, len(data) // batch_size, batch_size, per_call)
    # One call in the abstract: options that do not fit each other or the model show here, before the directory is made.
    feed.trace(abstract, next(plan.calls(0))[0])

    def whole_config():
        decisive = {"model": model, "optimizer": optimizer, "preprocess": preprocess, "order": order, **step_options}
        numbers = {"epochs": epochs, "steps": steps, "batch_size": batch_size}
        kept = {**(config or {}), **config_of(recipe, y, c)}
        return _full_config(kept, key, (ys, cs), validation, numbers | decisive)

    def validate(params):
        return {} if validation is None else _validate(model, params, k_valid, validation, preprocess, mesh)

    habits = _Habits(validate_every, patience, max_skipped_in_a_row, record_every, profile, progress)
    fresh = jax.jit(start, out_shardings=placed)(k_init)
    with (
        Preemption(heed=directory is not None) as preemption,
        Run(directory, whole_config, resume, fresh) as run,
    ):
        state, best, history = _train(run, feed, plan, validate, habits, preemption)
        _stop_if_none_taken(state, run)
    speeds = [row["images_per_second"] for row in history[1:]]
    return Fitted(state, best, history, float(np.median(speeds)) if speeds else float("nan"))


def _step_of(model: Model, optimizer: optax.GradientTransformation, **options: Any) -> TrainStep:
    """One step for a model, an optimiser and their options: what was compiled for one run serves the next, of another
    key or longer, as in `evaluate`."""
    if isinstance(options.get("parts"), list):
        options["parts"] = tuple(options["parts"])
    try:
        return _made_once(model, optimizer, **options)
    except TypeError:  # one of them has no hash; or it is wrong, which is said again
        return make_train_step(model, optimizer, **options)


@functools.lru_cache(maxsize=16)
def _made_once(model: Model, optimizer: optax.GradientTransformation, **options: Any) -> TrainStep:
    return make_train_step(model, optimizer, **options)


class _Habits(NamedTuple):
    """How `fit` goes on, as it was told; see there."""

    validate_every: int
    patience: int | None
    max_skipped_in_a_row: int
    record_every: int | datetime.timedelta | None
    profile: str | os.PathLike[str] | None
    progress: bool


def _train(
    run: Run,
    feed: Feed,
    plan: Plan,
    validate: Callable[[Params], Row],
    habits: _Habits,
    preemption: Preemption,
) -> tuple[TrainState, Params, list[Row]]:
    """Take the steps that are left: (state, best parameters, history)."""
    state, history = run.state, run.history
    best = jax.tree.map(jnp.copy, run.best)  # the state's own buffers are given away to the first step
    calls = list(plan.calls(int(state.step)))
    sizes = [size for size, _ in calls]
    since, clock = _Since(run.meta.get("since_the_record")), Clock(habits.record_every)
    with feed.begin(int(state.step), sizes) as advance, _bar(state, plan, habits) as bar:
        for number, (size, ends) in enumerate(calls):
            if _out_of_patience(history, habits.patience):
                break
            with _traced(habits.profile, number):
                state, metrics = advance(state, size)
                since.add(jax.device_get(metrics))
            last = int(state.step) >= plan.last
            _stop_if_stuck(state, since.parts[-1]["in_a_row"], habits.max_skipped_in_a_row, run)
            if ends or clock.due():
                row = since.row(state, history, plan)
                params = state.params if state.ema is None else state.ema
                if last or (len(history) + 1) % habits.validate_every == 0:
                    row |= validate(params)
                improved = _improved(history, row)
                history = [*history, row]
                if improved:
                    best = jax.tree.map(jnp.copy, params)
                run.record(state, history, best=improved)
                _show(bar, history, plan)
                since = _Since(None)
            if preemption.due() and not last:
                run.keep(state, history, since_the_record=since.kept())
                raise Preempted(
                    f"SIGTERM came: {run.directory} holds the state of step {int(state.step)} of {plan.last}; continue "
                    "it with --resume (resume=True)"
                )
    return state, best, history


class _Since:
    """The metrics of the steps since the latest record, and how fast this process has taken its part of them."""

    def __init__(self, kept: dict[str, list[float]] | None):
        self.parts = [] if kept is None else [{name: np.array(values, np.float32) for name, values in kept.items()}]
        self.taken, self.started = 0, time.perf_counter()

    def add(self, metrics: dict[str, np.ndarray]) -> None:
        self.parts.append(metrics)
        self.taken += len(metrics["loss"])

    def whole(self) -> dict[str, np.ndarray]:
        return {name: np.concatenate([part[name] for part in self.parts]) for name in (self.parts or [{}])[0]}

    def kept(self) -> dict[str, list[float]] | None:
        """For JSON, which keeps a float32 as it is."""
        return {name: values.tolist() for name, values in self.whole().items()} or None

    def row(self, state: TrainState, history: list[Row], plan: Plan) -> Row:
        """The means of the steps that were taken, which are none of those that were skipped."""
        metrics, seconds = self.whole(), time.perf_counter() - self.started
        taken = metrics["in_a_row"] == 0
        averages = {name: float(np.mean(metrics[name][taken])) if taken.any() else float("nan") for name in _AVERAGED}
        step = int(state.step)
        return {
            "epoch": step // plan.per_epoch if step % plan.per_epoch == 0 else step / plan.per_epoch,
            "step": step,
            "skipped": int(state.skipped) - sum(int(row["skipped"]) for row in history),
            "images_per_second": self.taken * plan.batch_size / seconds,
            **averages,
        }


def _bar(state: TrainState, plan: Plan, habits: _Habits) -> Any:
    """A progress bar, in epochs where records are."""
    with extra("cli", "a progress bar"):
        from tqdm import tqdm
    hidden = not habits.progress or jax.process_index() != 0
    name = "epoch" if plan.unit > 1 else "step"
    return tqdm(total=plan.last // plan.unit, initial=int(state.step) // plan.unit, unit=name, disable=hidden)


def _show(bar: Any, history: list[Row], plan: Plan) -> None:
    """Move the bar on to the latest record; say once that z says nothing."""
    row = history[-1]
    bar.set_postfix_str(_postfix(row))
    bar.update(row["step"] // plan.unit - bar.n)
    if not bar.disable and _collapsed(row) and not any(_collapsed(r) for r in history[:-1]):
        bar.write(COLLAPSED.format(rate=row["rate"], epoch=row["epoch"]))


@contextlib.contextmanager
def _traced(folder: str | os.PathLike[str] | None, number: int) -> Iterator[None]:
    """A trace of the second call, which does not compile, of process 0."""
    if folder is None or number != 1 or jax.process_index() != 0:
        yield
    else:
        with jax.profiler.trace(os.fspath(folder)):
            yield


def _check_counts(**counts: Any) -> None:
    for name, count in counts.items():
        if not is_whole(count):
            raise ValueError(f"want {name} >= 1, a whole number; got {count}")


def _check_validation(validation, conditional: bool, patience) -> None:
    if patience is not None:
        if validation is None:
            raise ValueError("patience counts validations: pass validation=(ys, cs)")
        if not is_whole(patience):
            raise ValueError(f"patience counts validations without a better ELBO, and is at least 1; got {patience}")
    if validation is None:
        return
    if not (isinstance(validation, tuple) and len(validation) == 2):
        raise ValueError(
            f"validation wants a pair (ys, cs), cs None without conditions; got {type(validation).__name__}"
        )
    if conditional != has_conditions(*validation):
        raise ValueError(
            f"the model is trained {'with' if conditional else 'without'} conditions, so validation=(ys, cs) wants "
            f"cs {'for its examples, too' if conditional else 'None'}"
        )


def _default_batch(n: int) -> int:
    if n < DEFAULT_BATCH:
        warnings.warn(f"batch_size={n}, which is all data; by default it is {DEFAULT_BATCH}", stacklevel=3)
    return min(DEFAULT_BATCH, n)


def _full_config(config, key, data, validation, decisive) -> dict[str, Any]:
    """`config`, and what else decides the parameters."""
    digests = {"key": np.asarray(jax.random.key_data(key)).tolist(), "data": _digest(*data)}
    if validation is not None:
        digests["validation"] = _digest(*validation)
    given = {name: value for name, value in decisive.items() if value is not None}
    return {**config, "fit": {**digests, **describe(given)}}


def _digest(ys: Any, cs: Any) -> dict[str, Any]:
    """What tells data from others; of a source, its length and the examples that stand for all."""
    size = {}
    if isinstance(ys, Source):
        size, (ys, cs) = {"examples": len(ys)}, ys.raw(ys.spread())
    leaves, crc32 = jax.tree.leaves((ys, cs)), 0
    for x in leaves:
        crc32 = zlib.crc32(np.ascontiguousarray(x).tobytes(), crc32)
    return {**size, "shapes": [list(np.shape(x)) for x in leaves], "crc32": crc32}


def _validate(model, params, key, validation, preprocess, mesh) -> Row:
    ys, cs = validation
    result = evaluate_checked(model, params, key, ys, cs, preprocess, batch_size=250, mesh=mesh)
    elbo = mean(result.elbo)
    return {
        "valid_elbo": elbo.value,
        "valid_elbo_standard_error": elbo.standard_error,
        "valid_rate": mean(result.rate).value,
        "valid_distortion": mean(result.distortion).value,
    }


def _improved(history: list[Row], row: Row) -> bool:
    """Whether this epoch's parameters are the ones to use: the best validated, or the last where none is validated."""
    if "valid_elbo" not in row:
        return not any("valid_elbo" in r for r in history)
    return row["valid_elbo"] > max((r["valid_elbo"] for r in history if _is_valid(r)), default=-np.inf)


def _is_valid(row: Row) -> bool:
    return bool(np.isfinite(row.get("valid_elbo", np.nan)))


def _out_of_patience(history: list[Row], patience: int | None) -> bool:
    elbos = [row["valid_elbo"] if _is_valid(row) else -np.inf for row in history if "valid_elbo" in row]
    return patience is not None and len(elbos) > patience and len(elbos) - 1 - int(np.argmax(elbos)) >= patience


def _postfix(row: Row) -> str:
    valid = f", valid {row['valid_elbo']:.2f}" if "valid_elbo" in row else ""
    skipped = f", {row['skipped']} skipped" if row["skipped"] else ""
    return f"ELBO {row['elbo']:.2f}{valid} nats, {row['images_per_second']:,.0f} examples/s{skipped}"


def _collapsed(row: Row) -> bool:
    """Whether there is a latent that carries nothing; a model without one has a rate of 0 exactly."""
    return 0 < abs(row["rate"]) < 0.1


def _stop_if_stuck(state: TrainState, in_a_row: np.ndarray, limit: int, run: Run) -> None:
    if in_a_row.max() >= limit:
        last = int(state.step) - len(in_a_row) + int(np.argmax(in_a_row >= limit))
        raise _not_finite(f"{limit} updates in a row were not finite, from step {last - limit + 1} on", state, run)


def _stop_if_none_taken(state: TrainState, run: Run) -> None:
    if int(state.skipped) == int(state.step):
        raise _not_finite(f"none of the {int(state.step)} updates was finite, from step 0 on", state, run)


def _not_finite(what: str, state: TrainState, run: Run) -> FloatingPointError:
    names, culprit = leaf_names(state.params), int(state.culprit)
    return FloatingPointError(
        f"{what}, and were skipped; the first leaf that was not finite: "
        f"{names[culprit] if culprit >= 0 else 'the norm of the gradient (it overflowed)'}. Usual causes: a learning "
        "rate that is too high or not a number, a scale without a bound, data out of range, float16; clip_norm helps "
        f"with the first. {run.where()}"
    )
