"""One training step, and the ways to run it: jit, a scan over many steps, a sharded batch, pmap.

`make_train_step` returns a pure function `(state, key, ys[, cs]) -> (state, metrics)`. The key is the run's key: the
noise of a step is `fold_in(key, step)`, the noise of an example `fold_in` of that by its place in the batch. So the
state carries no key, resuming is exact, and the same batch gives the same numbers however it is split over devices or
micro-batches.

A model's parts are the top-level keys of its parameters ("enc", "pri", "gen" for a VAE). Any part can train at any step
(`parts=("pri", "gen")`: fixed-encoder training) without touching the rest. The optimiser is one over all parts that
train: its global norms, masks and labels see their whole tree. An optimiser for each part is written as in optax:

    optax.multi_transform({"slow": optax.sgd(1e-3), "fast": adam}, {"enc": "slow", "pri": "slow", "gen": "fast"})
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.extend.core import jaxpr_as_fun
from jax.sharding import Mesh

from vae_jax.core.keys import as_key
from vae_jax.core.mesh import batch_sharding
from vae_jax.core.model import Model, Params, average
from vae_jax.core.numbers import is_whole
from vae_jax.core.objectives import Objective, elbo
from vae_jax.core.older_jax import keys_as_data
from vae_jax.data.check import leaves_by_path
from vae_jax.data.preprocess import Preprocess, identity
from vae_jax.training.optimizer import check_optimizer, init_by_parts, merge_parts, split_parts, update_by_parts


class TrainState(NamedTuple):
    """What the next step needs.

    Fields:
        step: number of steps taken, skipped ones included (int32).
        params: the model's parameters.
        opt_state: for each part, what the optimiser keeps of it, and its own copy of what belongs to no parameter (a
            count of steps): these stand still while the part is frozen.
        ema: exponential moving average of the parameters, or None.
        skipped: updates that were skipped because they were not finite (int32).
        in_a_row: how many of the latest steps in a row were skipped (int32).
        culprit: index into `leaf_names(params)` of what was the first not to be finite in the latest skipped step, -1
            before any (int32).
    """

    step: Array
    params: Params
    opt_state: Any
    ema: Params | None
    skipped: Array
    in_a_row: Array
    culprit: Array


Metrics = dict[str, Array]
TrainStep = Callable[..., tuple[TrainState, Metrics]]
Order = Callable[[Array, Array, int, int], Array]  # (key, epoch, size, n) -> (size,) places in the data
LOSSES = ("distortion", "rate", "penalty", "loss")  # a sum comes after its terms


class Turns(NamedTuple):
    """Parts that take turns: those of `choices[at(step)]` train at a step. None is all of them.

    Fields:
        choices: what `parts` may be otherwise, each.
        at: from the step to an index into `choices`.
    """

    choices: tuple[Sequence[str] | None, ...]
    at: Callable[[Array], Any]


def lagging(inner: int, until: int) -> Turns:
    """Aggressive training of the encoder (He et al. 2019): before step `until` it alone trains, but for each
    (inner + 1)-th step, which trains all parts as do the later ones.

    The encoder of a language model lags behind its generator, which therefore learns to do without z. (The paper stops
    when the mutual information stops rising; here it is a number of steps.)

    Raises:
        ValueError: inner or until below 1.
    """
    if inner < 1 or until < 1:
        raise ValueError(f"want at least one step of the encoder alone, and one to stop at; got {inner} and {until}")
    return Turns((None, ("enc",)), lambda step: ((step < until) & (step % (inner + 1) < inner)).astype(jnp.int32))


def init_state(
    model: Model, optimizer: optax.GradientTransformation, key: Array, y: Any, c: Any = None, *, ema: bool = False
) -> TrainState:
    """The state at step 0, computed in one compiled call.

    Args:
        key: key of the initial parameters.
        y: one example in the form the model sees (after preprocessing), used for its shape.
        c: one condition, or None.
        ema: keep a moving average of the parameters (`make_train_step(ema_decay=...)` updates it).

    Raises:
        TypeError: no optimiser, or no key.
        ValueError: a mask or label of the optimiser that no parameter has, or an optimiser whose state cannot be
            divided by parts.
    """
    check_optimizer(optimizer)
    key = as_key(key)

    def init(key):
        params = model.init(key, y, c)
        opt_state = init_by_parts(optimizer, params)
        zero = jnp.zeros((), jnp.int32)
        average = jax.tree.map(jnp.copy, params) if ema else None
        return TrainState(zero, params, opt_state, average, zero, zero, zero - 1)

    return jax.jit(init)(key)


def leaf_names(params: Params) -> list[str]:
    """Names for `TrainState.culprit`: the losses, the gradient of each parameter, the parameter after its update."""
    return [*LOSSES, *(f"{what} of {leaf}" for what in ("gradient", "update") for leaf in leaves_by_path(params))]


class StepOptions(TypedDict, total=False):
    """What a training step can be told, beside its preprocessing: see `make_train_step`."""

    objective: Objective
    parts: Sequence[str] | Turns | None
    clip_norm: float | None
    ema_decay: float | None
    micro_batches: int


def make_train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    objective: Objective = elbo(),
    preprocess: Preprocess = identity(),
    parts: Sequence[str] | Turns | None = None,
    clip_norm: float | None = None,
    ema_decay: float | None = None,
    micro_batches: int = 1,
    axis_name: str | None = None,
    gather: Callable[[Params], Params] = lambda params: params,
) -> TrainStep:
    """A pure function `(state, key, ys[, cs]) -> (state, metrics)`.

    Metrics are means over the batch, in nats: `loss` (what was minimised), `elbo`, `rate`, `distortion`, `penalty`; and
    `grad_norm` (before clipping) and `in_a_row` (updates skipped in a row up to this one; 0 where it was taken).

    Args:
        model: what trains.
        optimizer: any optax transformation, also one that wants `value` (the loss); schedules are optax's.
        objective: `elbo()` by default; see `vae_jax.core.objectives`.
        preprocess: applied to each example inside the step, with noise of its own (binarisation, dequantisation).
        parts: which parts train (default: all of them), or `Turns` of them. The others keep parameters and optimiser
            state.
        clip_norm: bound on the global norm of the gradient over the parts that train.
        ema_decay: decay of `state.ema`, with the warm-up min(decay, (1 + step) / (10 + step)).
        micro_batches: split the batch and accumulate gradients, to save memory; the batch has to divide.
        axis_name: the name given to `jax.pmap`; every device then sees its slice of the batch.
        gather: of the parameters before they are used; for those that are split, see `training.sharding.gathering`.

    Raises:
        TypeError: no optimiser, or no objective.
        ValueError: an option out of range; or, when first traced, an unknown part, or a batch that does not divide.

    Example:
        >>> model = vae(gaussian(nets.MLP((), 2)), standard_normal(1), bernoulli(nets.MLP((), 3)))
        >>> state = init_state(model, optax.adam(1e-3), jax.random.key(0), jnp.ones(3))
        >>> step = jax.jit(make_train_step(model, optax.adam(1e-3)))
        >>> state, metrics = step(state, jax.random.key(1), jnp.ones((4, 3)))
        >>> int(state.step), metrics["elbo"].shape
        (1, ())
    """
    check_optimizer(optimizer)
    if not callable(objective):
        raise TypeError(f"objective wants one of vae_jax.core, for instance elbo(); got {objective}")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm bounds the gradient's norm and must be positive; got {clip_norm}")
    if ema_decay is not None and not 0 <= ema_decay < 1:
        raise ValueError(f"ema_decay must be in [0, 1); got {ema_decay}")
    if not is_whole(micro_batches):
        raise ValueError(f"micro_batches must be at least 1; got {micro_batches}")
    if isinstance(parts, Turns):
        of_parts = functools.partial(
            make_train_step,
            model,
            optimizer,
            objective=objective,
            preprocess=preprocess,
            clip_norm=clip_norm,
            ema_decay=ema_decay,
            micro_batches=micro_batches,
            axis_name=axis_name,
            gather=gather,
        )
        return _in_turns([of_parts(parts=some) for some in parts.choices], parts.at)

    def loss_of(trained, frozen, keys, ys, cs, step):
        k_data, k_model = jax.vmap(lambda key: (jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)))(keys)
        seen = jax.vmap(preprocess.apply)(k_data, ys)
        loss, terms = objective(model, gather(merge_parts(trained, frozen)), k_model, seen, cs, step)
        means = {name: jnp.mean(getattr(terms, name)) for name in ("distortion", "rate", "penalty")}
        stats = average(jax.lax.stop_gradient(terms.stats))
        return loss, ({"loss": loss, **means}, stats)

    def gradients(trained, frozen, keys, ys, cs, step):
        (_, aux), grads = jax.value_and_grad(loss_of, has_aux=True)(trained, frozen, keys, ys, cs, step)
        return aux, grads

    def train_step(
        state: TrainState, key: Array, ys: Any, cs: Any = None, *, look: Array | bool = True
    ) -> tuple[TrainState, Metrics]:
        trained, frozen = _select(state.params, parts)
        batch = len(jax.tree.leaves(ys)[0])
        keys = _example_keys(jax.random.fold_in(key, state.step), batch, axis_name)
        compute = _accumulated(gradients, micro_batches, batch)
        (losses, stats), grads = compute(trained, frozen, keys, ys, cs, state.step)
        if axis_name is not None:
            losses, stats, grads = jax.lax.pmean((losses, stats, grads), axis_name)
        norm = optax.tree.norm(grads)

        def update():
            clipped = grads if clip_norm is None else _clip(grads, norm, clip_norm)
            updated, opt_state = update_by_parts(optimizer, clipped, state.opt_state, state.params, losses["loss"])
            params = _maximise(model, merge_parts(updated, state.params), stats, parts)
            return params, opt_state, _average(state.ema, params, ema_decay, state.step)

        # The update is made twice, once only to be looked at: to keep it beside the old state, until it is known to be
        # finite, would take another pass over both. And a branch, not a where, which would read and write all of it.
        unseen = [False] * len(jax.tree.leaves(state.params))
        broken_params = jax.lax.cond(look, lambda: _not_finite(update()[0]), lambda: jnp.array(unseen))
        finite = jnp.isfinite(norm) & jnp.isfinite(losses["loss"]) & ~jnp.any(broken_params)
        params, opt_state, ema = jax.lax.cond(finite, update, lambda: (state.params, state.opt_state, state.ema))

        def culprit():
            no_gradient = jax.tree.map(jnp.zeros_like, state.params)  # of frozen parts
            before = _not_finite(([losses[name] for name in LOSSES], merge_parts(grads, no_gradient)))
            broken = jnp.concatenate([before, broken_params])
            return jnp.where(jnp.any(broken), jnp.argmax(broken), -1).astype(jnp.int32)

        new_state = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            ema=ema,
            skipped=state.skipped + (1 - finite),
            in_a_row=jnp.where(finite, 0, state.in_a_row + 1),
            culprit=jax.lax.cond(finite, lambda: state.culprit, culprit),
        )
        metrics = {
            **losses,
            "elbo": -(losses["distortion"] + losses["rate"]),
            "grad_norm": norm,
            "in_a_row": new_state.in_a_row,
        }
        return new_state, metrics

    return train_step


def _in_turns(steps: Sequence[TrainStep], at: Callable[[Array], Any]) -> TrainStep:
    """One of the steps, chosen by the number of the step."""

    def train_step(
        state: TrainState, key: Array, ys: Any, cs: Any = None, *, look: Array | bool = True
    ) -> tuple[TrainState, Metrics]:
        return jax.lax.switch(
            at(state.step), [functools.partial(step, look=look) for step in steps], state, key, ys, cs
        )

    return train_step


def _select(params: Params, parts: Sequence[str] | None) -> tuple[dict[str, Params], Params]:
    """(the parts that train, the parameters with no gradient)."""
    every = split_parts(params)
    unknown = sorted(set(parts or ()) - set(every))
    if unknown or (parts is not None and not parts):
        raise ValueError(f"parts={parts!r}: want some of {sorted(every)}, the top-level keys of the parameters")
    trained = {part: value for part, value in every.items() if parts is None or part in parts}
    return trained, jax.lax.stop_gradient(params)


def _example_keys(key: Array, batch: int, axis_name: str | None) -> Array:
    """One key for each example, by its place in the whole batch."""
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * batch
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, first + jnp.arange(batch))


def _accumulated(gradients: Callable[..., Any], micro_batches: int, batch: int) -> Callable[..., Any]:
    """`gradients` averaged over equal slices of the batch, one slice in memory at a time."""
    if micro_batches == 1:
        return gradients
    if batch % micro_batches:
        raise ValueError(f"a batch of {batch} does not divide into micro_batches={micro_batches}")

    mean = optax.microbatching.AccumulationType.MEAN
    batched = (2, 3, 4)  # keys, ys, cs
    slices = functools.partial(
        optax.microbatch, argnums=batched, microbatch_size=batch // micro_batches, accumulator=mean
    )
    return keys_as_data(slices, gradients, at=2)


def _clip(grads: dict[str, Params], norm: Array, most: float) -> dict[str, Params]:
    """The gradients scaled down to a global norm of at most `most`; `norm` is the one they have."""
    scale = jnp.minimum(1.0, most / jnp.maximum(norm, 1e-12))
    return jax.tree.map(lambda g: g * scale, grads)


def _maximise(model: Model, params: Params, stats: Any, parts: Sequence[str] | None) -> Params:
    """The closed-form updates of the parts that train."""
    maximised = model.maximise(params, stats)
    if parts is None:
        return maximised
    closed_form = {part: value for part, value in split_parts(maximised).items() if part in parts}
    return merge_parts(closed_form, params)


def _average(ema: Params | None, params: Params, decay: float | None, step: Array) -> Params | None:
    if ema is None or decay is None:
        return ema
    rate = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return optax.incremental_update(params, ema, 1.0 - rate)


def _not_finite(tree: Any) -> Array:
    """For each leaf, whether a number in it is not finite."""
    return jnp.array([~jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)], bool)


def epoch_order(key: Array, epoch: Array, size: int, n: int) -> Array:
    """The first `size` of a random order of n examples, a function of (key, epoch) alone."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), n)[:size]


def make_scan(
    train_step: TrainStep, batch_size: int, steps: int, *, mesh: Mesh | None = None, order: Order = epoch_order
) -> TrainStep:
    """`steps` training steps on a data set that lives on the device, as one compiled loop.

    The result `(state, key, ys[, cs]) -> (state, metrics)` takes the WHOLE data set; metrics have an axis of `steps`.
    Where the loop stands in the data follows from `state.step` alone: epoch e visits the data in the order of
    `permutation(fold_in(key, e))`, n // batch_size batches of it (the rest waits for a later epoch's order). One call
    may not cross an epoch's end: `steps` has to divide what is left of the epoch, so call it with divisors of
    `n // batch_size`.

    Args:
        mesh: split each batch over the first axis of this mesh.
        order: `(key, epoch, size, n) -> (size,)` places in the data.
    """

    def scan(state: TrainState, key: Array, ys: Any, cs: Any = None) -> tuple[TrainState, Metrics]:
        n = len(jax.tree.leaves(ys)[0])
        per_epoch = n // batch_size
        k_order, k_steps = jax.random.split(key)
        places = order(k_order, state.step // per_epoch, per_epoch * batch_size, n)
        start = state.step % per_epoch * batch_size
        indices = jax.lax.dynamic_slice(places, (start,), (steps * batch_size,)).reshape(steps, batch_size)

        def body(look, state, chosen):
            batch = jax.tree.map(lambda x: x[chosen], (ys, cs))
            if mesh is not None:
                batch = jax.lax.with_sharding_constraint(batch, batch_sharding(mesh))
            return train_step(state, k_steps, *batch, look=look)

        return _again_where_broken(body, state, indices)

    return scan


def make_fed_scan(train_step: TrainStep) -> TrainStep:
    """As many training steps as there are batches, as one compiled loop: `make_scan` on data that come in batches.

    The result `(state, key, ys[, cs]) -> (state, metrics)` takes arrays (steps, batch, *example).
    """

    def scan(state: TrainState, key: Array, ys: Any, cs: Any = None) -> tuple[TrainState, Metrics]:
        _, k_steps = jax.random.split(key)

        def body(look, state, batch):
            return train_step(state, k_steps, *batch, look=look)

        return _again_where_broken(body, state, (ys, cs))

    return scan


def _again_where_broken(body: Callable[..., Any], state: TrainState, inputs: Any) -> tuple[TrainState, Metrics]:
    """A scan of `body(look, state, input)` without a look at each update; once more, with it, where the parameters have
    not stayed finite.

    What is not finite stays so through all later steps, so the last ones show whether a look would have changed
    anything. A look at each update reads parameters, gradients and the optimiser's state once more: a tenth or more of
    the time of a step of a fully connected VAE.
    """

    def steps(look):
        return jax.lax.scan(functools.partial(body, look), state, inputs)

    # traced once, for the shapes and for the loop: a jitted function of what is being traced would be traced for both
    run, result = jax.make_jaxpr(steps, return_shape=True)(jnp.array(True))

    def attempt(carry):
        tried, *_ = carry
        return tried + 1, *jax.tree.unflatten(jax.tree.structure(result), jaxpr_as_fun(run)(tried > 0))

    def broken(carry):
        tried, after, _ = carry
        return (tried == 0) | (tried == 1) & jnp.any(_not_finite(after.params))

    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), result[1])
    return jax.lax.while_loop(broken, attempt, (0, state, nothing))[1:]
