"""A rate or a distortion that is asked for: its weight in the loss is no option, but found while the model trains.

    geco       minimise the rate with distortion <= limit        loss = rate + lambda (distortion - limit)
    at_rate    minimise the distortion at rate = limit           loss = distortion + beta rate

lambda and beta are parameters without a gradient, set after each step from what the batch says, as an M-step is. The
bound that is reported is the ELBO. Rezende and Viola 2018, "Taming VAEs" (GECO); Shao et al. 2020, "ControlVAE", whose
controller is proportional and integral.
"""

import jax
import jax.numpy as jnp

from vae_jax.core.model import Model
from vae_jax.core.numbers import is_number
from vae_jax.core.objectives import Objective, batch_terms
from vae_jax.core.parameters import beside

REACH = 12.0  # of ln lambda


def geco(model: Model, limit: float, *, speed: float = 0.01, memory: float = 0.99) -> tuple[Model, Objective]:
    """The model with a multiplier, and the objective that uses it: the least rate with a mean distortion up to `limit`.

    ln lambda moves by `speed` times the distortion's relative excess over the limit, between -1 and 1, a moving average
    over steps. Where the limit cannot be met it grows without end (to e^12): the distortion alone is trained.

    Args:
        limit: nats per example, ln Z included, as the distortion is.
        speed: of ln lambda, per step.
        memory: decay of the moving average.

    Returns:
        The model, whose parameters are its own, "model", and a "multiplier"; and its objective for `fit`.

    Raises:
        ValueError: a limit that is no finite number, a speed that is not positive, a memory outside [0, 1).
    """
    _check(limit, speed, memory)

    def change(own, distortion, rate):
        del rate
        excess = jnp.clip((distortion - limit) / (abs(limit) + 1), -1.0, 1.0)
        average = memory * own["excess"] + (1 - memory) * excess
        log = jnp.clip(own["log"] + speed * average, -REACH, REACH)
        return {"log": log, "excess": average}

    def loss(own, distortion, rate):
        return rate + jnp.exp(own["log"]) * (distortion - limit)

    return _with_multiplier(model, {"log": 0.0, "excess": 0.0}, change, loss)


def at_rate(
    model: Model,
    limit: float,
    *,
    proportional: float = 0.01,
    integral: float = 0.001,
    derivative: float = 0.0,
    most: float = 100.0,
) -> tuple[Model, Objective]:
    """The model with a weight of its rate that is controlled, and the objective that uses it: a mean rate of `limit`.

    beta = most sigmoid(proportional e + integral sum of e + derivative change of e) about its start at 1, with e the
    rate less the limit: it rises while the rate is too high. ControlVAE has no derivative: rates of batches are noisy.

    Args:
        limit: nats per example.
        proportional, integral, derivative: gains, per nat, per nat and step, per nat a step.
        most: the largest beta.

    Returns:
        As `geco`.

    Raises:
        ValueError: a negative limit or derivative, other gains or a `most` that are not positive.
    """
    if not is_number(limit, 0):
        raise ValueError(f"limit is a rate in nats, 0 or more; got {limit}")
    for name, value in {"proportional": proportional, "integral": integral, "most": most}.items():
        if not (is_number(value) and value > 0) or (name == "most" and value <= 1):
            raise ValueError(f"{name}={value}: want a positive number{', above 1' * (name == 'most')}")
    if not is_number(derivative, 0):
        raise ValueError(f"derivative={derivative}: want a gain of 0 or more")
    start = -jnp.log(most - 1.0)  # beta = 1

    def beta(own):
        return most * jax.nn.sigmoid(start + proportional * own["error"] + own["sum"] + derivative * own["change"])

    def change(own, distortion, rate):
        del distortion
        error = rate - limit
        total = jnp.clip(own["sum"] + integral * error, -REACH, REACH)
        return {"error": error, "sum": total, "change": error - own["error"]}

    def loss(own, distortion, rate):
        return distortion + beta(own) * rate

    return _with_multiplier(model, {"error": 0.0, "sum": 0.0, "change": 0.0}, change, loss)


def _with_multiplier(model: Model, start, change, loss) -> tuple[Model, Objective]:
    """`change(own, mean distortion, mean rate) -> own` after each step; `loss(own, distortion, rate)` of examples."""

    def counted(params, terms, y, c):
        del params, y, c
        stats = {"model": terms.stats, "distortion": jnp.asarray(terms.distortion), "rate": jnp.asarray(terms.rate)}
        return terms._replace(stats=stats)

    def maximise(params, stats):
        own = change(jax.lax.stop_gradient(params["multiplier"]), stats["distortion"], stats["rate"])
        return {
            "model": model.maximise(params["model"], stats["model"]),
            "multiplier": jax.tree.map(jnp.float32, own),
        }

    def objective(whole, params, keys, ys, cs, step):
        terms = batch_terms(whole.terms, params, keys, ys, cs)
        own = jax.lax.stop_gradient(params["multiplier"])
        return jnp.mean(loss(own, terms.distortion, terms.rate) + terms.penalty), terms

    found = beside(model, "model", "multiplier", lambda key, y, c: jax.tree.map(jnp.float32, start), counted)
    return found._replace(maximise=maximise), objective


def _check(limit: float, speed: float, memory: float) -> None:
    if not is_number(limit):
        raise ValueError(f"limit is a distortion in nats, a finite number; got {limit}")
    if not (is_number(speed) and speed > 0):
        raise ValueError(f"speed is how fast ln lambda moves, a positive number; got {speed}")
    if not (is_number(memory, 0, 1) and memory < 1):
        raise ValueError(f"memory is the decay of a moving average, in [0, 1); got {memory}")
