"""The way up: parameters after each epoch of gradient steps and each iteration of EM, and ln P(y) along them."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vae_jax
from vae_jax.core import Objective, elbo
from vae_jax.em import init_em, make_em_step
from vae_jax.em.algorithm import em_of


def epoch_by_epoch(
    model: vae_jax.Model,
    start: Any,
    ys: np.ndarray,
    key: jax.Array,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    objective: Objective = elbo(),
) -> Iterator[tuple[Any, dict[str, jax.Array]]]:
    """After each epoch, without end, the parameters and the metrics of its steps; nothing else is kept or looked at."""
    state = vae_jax.init_state(model._replace(init=lambda *_: start), optimizer, key, ys[0])
    step = vae_jax.make_train_step(model, optimizer, objective=objective)
    epoch = jax.jit(vae_jax.make_scan(step, batch_size, len(ys) // batch_size))
    while True:
        state, metrics = jax.block_until_ready(epoch(state, key, ys))
        yield state.params, metrics


def stacked(path: list[Any]) -> Any:
    """Parameters along a way, as one tree."""
    return jax.tree.map(lambda *xs: jnp.stack(xs), *path)


def by_em(model: vae_jax.Conditional, start: Any, ys: np.ndarray, passes: int) -> Any:
    """The parameters at the start and after each iteration, stacked: stepwise EM with all data in the batch is EM."""
    step = make_em_step(model, decay=0.0)

    def iterate(state, _):
        return step(state, ys)[0], state.params

    @jax.jit
    def path(start):
        return jax.lax.scan(iterate, init_em(model, ys, params=start), length=passes + 1)[1]

    return path(start)


def along(model: vae_jax.Conditional, paths: dict[str, Any], ys: np.ndarray) -> dict[str, np.ndarray]:
    """What the model's E-step calls ln P(y), averaged over ys, at each of the stacked parameters of each path."""
    em = em_of(model)
    values: Callable[[Any], jax.Array] = jax.jit(
        lambda path: jax.lax.map(lambda params: em.expect(params, ys)[0].mean(), path)
    )
    return {name: np.asarray(values(path)) for name, path in paths.items()}
