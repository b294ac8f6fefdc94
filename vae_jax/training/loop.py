"""The host loop: epochs, progress, evaluation, checkpoints, early stopping.

What is computed is decided by `make_train_step` and the key alone; this file only drives it. A run that was killed and
is resumed ends with the same parameters, bit for bit: the place in the data and the noise follow from the step.
"""

import contextlib
import time
import warnings
import zlib
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from vae_jax.core.extras import extra
from vae_jax.core.keys import as_key
from vae_jax.core.mesh import replicated
from vae_jax.core.model import Model, Params, example_of
from vae_jax.core.numbers import is_whole
from vae_jax.data.check import check_data
from vae_jax.data.preprocess import Preprocess, identity
from vae_jax.evaluation.whole_split import evaluate_checked, mean
from vae_jax.training.description import describe
from vae_jax.training.run import Row, Run
from vae_jax.training.step import (
    Order,
    StepOptions,
    TrainState,
    epoch_order,
    init_state,
    leaf_names,
    make_scan,
    make_train_step,
)

STEPS_PER_CALL = 100
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
        params: the parameters to use: those of the epoch with the best validation ELBO (the moving average, if one is
            kept); without validation data, the last.
        history: one dict for each epoch: epoch, step, skipped, images_per_second, the step's metrics averaged over
            the epoch, and `valid_elbo`, `valid_rate`, `valid_distortion`, where validated. Nats.
        images_per_second: median over the epochs without the first, which compiles; NaN after one epoch.
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
    epochs: int,
    batch_size: int | None = None,
    preprocess: Preprocess = identity(),
    validation: tuple[Any, Any] | None = None,
    validate_every: int = 1,
    patience: int | None = None,
    max_skipped_in_a_row: int = 20,
    directory: str | Path | None = None,
    config: dict[str, Any] | None = None,
    resume: bool = False,
    mesh: Mesh | None = None,
    order: Order = epoch_order,
    progress: bool = True,
    **step_options: Unpack[StepOptions],
) -> Fitted:
    """Train a model on data that fit in memory.

    Args:
        ys: (n, *example), or a dict or tuple of such; kept on the device as it is (uint8 images stay uint8).
        cs: (n, *condition) or None; classes are whole numbers for a model made by `vae_jax.core.labelled`.
        optimizer: one over all parameters; see `make_train_step`.
        key: the run's key. Same key, data and options: same parameters, bit for bit, on the same machine.
        epochs: passes over the data; each drops the last n % batch_size examples of its order.
        batch_size: examples in a step; by default 128, or all of them where they are fewer.
        preprocess: see `vae_jax.data.preprocess`.
        validation: (ys, cs) held out; their ELBO decides which parameters are best.
        validate_every: epochs between validations.
        patience: stop after so many validations without a better ELBO.
        max_skipped_in_a_row: stop after so many non-finite updates in a row (each is skipped and counted).
        directory: where checkpoints, config.json and metrics.jsonl go, and TensorBoard events where the extra
            `tensorboard` is installed; none are written without. One process at a time trains in it.
        config: what the run is, JSON-able; a directory takes one configuration only.
        resume: continue the run in `directory`, if there is one, and if it is the same in all that decides its
            parameters but the number of epochs: data, model, optimiser, objective and the other options, compared by
            their names and values (see `vae_jax.training.description`).
        mesh: split each batch over this mesh's first axis.
        order: `(key, epoch, size, n) -> (size,)` places in the data, at random by default: sentences of like length
            together (`vae_jax.text`), for instance.
        progress: show a bar with ELBO and images/s.
        step_options: objective, parts, clip_norm, ema_decay, micro_batches, as `make_train_step` has them.

    Raises:
        ValueError: data or options out of range, before anything is compiled.
        TypeError: what is no key or no optimiser.
        FileExistsError: the directory holds a run already, or something else.
        FileNotFoundError: the run in the directory has lost its checkpoints.
        BlockingIOError: another process trains in the directory.
        FloatingPointError: too many non-finite updates in a row, or no finite one at all; the message names the step
            and the first leaf.
    """
    key = as_key(key)
    _check_counts(epochs=epochs, validate_every=validate_every, max_skipped_in_a_row=max_skipped_in_a_row)
    _check_validation(validation, cs, patience)
    ys, cs = check_data(model, ys, cs, preprocess, batch_size=1 if batch_size is None else batch_size)
    batch_size = _default_batch(len(jax.tree.leaves(ys)[0])) if batch_size is None else batch_size
    k_init, k_train, k_valid = jax.random.split(key, 3)
    y, c = jax.tree.map(lambda x: jnp.asarray(x[0]), (ys, cs))
    example = example_of(preprocess.apply, k_init, y)
    with_ema = step_options.get("ema_decay") is not None

    def start(key):
        return init_state(model, optimizer, key, example, c, ema=with_ema)

    abstract = jax.eval_shape(start, k_init)
    if validation is not None:
        validation = check_data(model, *validation, preprocess, params=abstract.params, where="validation ")
    train_step = make_train_step(model, optimizer, preprocess=preprocess, **step_options)
    # An epoch is a few compiled calls of at most about 100 steps. One of them in the abstract, whose trace jax keeps:
    # options that do not fit each other or the model show here, before the directory is made.
    sizes = call_sizes(len(jax.tree.leaves(ys)[0]) // batch_size)
    scans = {
        size: jax.jit(make_scan(train_step, batch_size, size, mesh=mesh, order=order), donate_argnums=0)
        for size in set(sizes)
    }
    jax.eval_shape(scans[sizes[0]], abstract, k_train, ys, cs)
    with extra("cli", "a progress bar"):
        from tqdm import tqdm

    def whole_config():
        decisive = {"model": model, "optimizer": optimizer, "preprocess": preprocess, "order": order, **step_options}
        numbers = {"epochs": epochs, "batch_size": batch_size}
        return _full_config(config, key, (ys, cs), validation, numbers | decisive)

    with (
        contextlib.closing(Run(directory, whole_config, resume, start(k_init))) as run,
        tqdm(total=epochs, initial=len(run.history), unit="epoch", disable=not progress) as bar,
    ):
        state, history = run.state, run.history
        best = jax.tree.map(jnp.copy, run.best)  # the state's own buffers are given away to the first step
        if mesh is not None:
            state, ys, cs = jax.device_put((state, ys, cs), replicated(mesh))
        ys, cs = jax.tree.map(jnp.asarray, (ys, cs))
        for epoch in range(len(history), epochs):
            if _out_of_patience(history, patience):
                break
            started = time.perf_counter()
            before = int(state.skipped)
            parts = []
            for size in sizes:
                state, metrics = scans[size](state, k_train, ys, cs)
                parts.append(jax.device_get(metrics))
                _stop_if_stuck(state, parts[-1]["in_a_row"], max_skipped_in_a_row, run)
            metrics = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            seconds = time.perf_counter() - started
            row = _row(epoch, state, before, metrics, len(metrics["loss"]) * batch_size / seconds)
            params = state.params if state.ema is None else state.ema
            if validation is not None and ((epoch + 1) % validate_every == 0 or epoch + 1 == epochs):
                row |= _validate(model, params, k_valid, validation, preprocess)
            improved = _improved(history, row)
            history = [*history, row]
            if improved:
                best = jax.tree.map(jnp.copy, params)
            run.record(state, history, best=improved)
            bar.set_postfix_str(_postfix(row))
            bar.update()
            if progress and _collapsed(row) and not any(_collapsed(r) for r in history[:-1]):
                bar.write(COLLAPSED.format(rate=row["rate"], epoch=row["epoch"]))
    _stop_if_none_taken(state, run)
    speeds = [row["images_per_second"] for row in history[1:]]
    speed = float(np.median(speeds)) if speeds else float("nan")
    return Fitted(state, best, history, speed)


def _check_counts(**counts: Any) -> None:
    for name, count in counts.items():
        if not is_whole(count):
            raise ValueError(f"want {name} >= 1, a whole number; got {count}")


def _check_validation(validation, cs, patience) -> None:
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
    if (cs is None) != (validation[1] is None):
        raise ValueError(
            f"the model is trained {'without' if cs is None else 'with'} conditions, so validation=(ys, cs) wants "
            f"cs {'None' if cs is None else 'for its examples, too'}"
        )


def _default_batch(n: int) -> int:
    if n < DEFAULT_BATCH:
        warnings.warn(f"batch_size={n}, which is all data; by default it is {DEFAULT_BATCH}", stacklevel=3)
    return min(DEFAULT_BATCH, n)


def _full_config(config, key, data, validation, decisive) -> dict[str, Any]:
    """The caller's configuration, and what else decides the parameters."""
    digests = {"key": np.asarray(jax.random.key_data(key)).tolist(), "data": _digest(data)}
    if validation is not None:
        digests["validation"] = _digest(validation)
    given = {name: value for name, value in decisive.items() if value is not None}
    return {**(config or {}), "fit": {**digests, **describe(given)}}


def _digest(data: Any) -> dict[str, Any]:
    leaves, crc32 = jax.tree.leaves(data), 0
    for x in leaves:
        crc32 = zlib.crc32(np.ascontiguousarray(x).tobytes(), crc32)
    return {"shapes": [list(np.shape(x)) for x in leaves], "crc32": crc32}


def call_sizes(per_epoch: int, most: int = STEPS_PER_CALL) -> list[int]:
    """An epoch's steps cut into calls: equal ones where a divisor is near `most`, else full ones and a rest."""
    for calls in range(-(-per_epoch // most), 2 * -(-per_epoch // most) + 1):
        if per_epoch % calls == 0:
            return [per_epoch // calls] * calls
    full, rest = divmod(per_epoch, most)
    return [most] * full + [rest] * (rest > 0)


def _row(epoch, state: TrainState, before: int, metrics, speed: float) -> Row:
    taken = metrics["in_a_row"] == 0
    averages = {name: float(np.mean(metrics[name][taken])) if taken.any() else float("nan") for name in _AVERAGED}
    return {
        "epoch": epoch + 1,
        "step": int(state.step),
        "skipped": int(state.skipped) - before,
        "images_per_second": speed,
        **averages,
    }


def _validate(model, params, key, validation, preprocess) -> Row:
    ys, cs = validation
    result = evaluate_checked(model, params, key, ys, cs, preprocess, batch_size=250)
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
    return f"ELBO {row['elbo']:.2f}{valid} nats, {row['images_per_second']:,.0f} images/s{skipped}"


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
