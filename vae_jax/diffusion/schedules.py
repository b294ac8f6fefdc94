"""How much noise at which time: schedules, and the process that adds it.

    z_t = alpha_t x + sigma_t eps,      SNR_t = alpha_t^2 / sigma_t^2 = exp(-gamma(t)),      t from 0 to 1

A schedule is the function gamma(t) = -ln SNR, rising. In continuous time the bound depends on it only through its two
ends (Kingma et al. 2021, "Variational diffusion models", section 5.1): alpha and sigma follow from the process.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from vae_jax.core.distributions import bounded_log_std, raw_log_std
from vae_jax.core.numbers import is_whole

Params = Any
START, END = -13.3, 5.0  # those of the paper: 8-bit levels can be told apart at the start
LIMIT, LOG_WIDTH = 25.0, math.log(50.0)  # of a learned start, and of the way from there to a learned end


class Schedule(NamedTuple):
    """gamma(t) = -ln SNR_t, strictly rising on [0, 1].

    Fields:
        init: `key -> params`, a dict.
        gamma: `(params, t) -> gamma`, for one t.
        interior: names of the parameters that move gamma between its ends only. In continuous time the bound does not
            depend on them: they are trained to lower the variance of its estimate.
    """

    init: Callable[[Array], Params]
    gamma: Callable[[Params, ArrayLike], Array]
    interior: tuple[str, ...] = ()


def schedule(gamma: Callable[[Any], Array]) -> Schedule:
    """A schedule without parameters from any function of t.

    Raises:
        ValueError: it is not one number, does not rise, or is not finite, somewhere on [0, 1].
        TypeError: it is no function.
    """
    if not callable(gamma):
        raise TypeError(f"schedule wants a function of t, gamma(t) = -ln SNR; got {type(gamma).__name__}")
    ts = np.linspace(0, 1, 1001, dtype=np.float32)
    with jax.ensure_compile_time_eval():  # a schedule may be made inside a compiled function, too
        values = np.asarray(jax.vmap(gamma)(jnp.asarray(ts)))
    if values.shape != ts.shape:
        raise ValueError(f"gamma(t) = -ln SNR has to be one number for one t; it has shape {values.shape[1:]}")
    if not np.all(np.isfinite(values)):
        raise ValueError(
            f"gamma(t) = -ln SNR has to be finite on [0, 1]; it is {values[~np.isfinite(values)][0]} at "
            f"t = {ts[~np.isfinite(values)][0]:.3f}: clip the schedule at its ends"
        )
    falls = np.flatnonzero(np.diff(values) <= 0)
    if len(falls):
        i = falls[0]
        raise ValueError(
            f"gamma(t) = -ln SNR has to rise with t, as noise is only ever added; here gamma({ts[i]:.3f}) = "
            f"{values[i]:.4g} and gamma({ts[i + 1]:.3f}) = {values[i + 1]:.4g}. Was ln SNR meant, with the other sign?"
        )
    return Schedule(lambda key: {}, lambda params, t: gamma(t))


def linear(start: float = START, end: float = END) -> Schedule:
    """gamma linear in t: the fixed log-SNR schedule of Kingma et al. 2021.

    Raises:
        ValueError: `start` is not below `end`.
    """
    _check_ends(start, end)
    return schedule(lambda t: start + (end - start) * t)


def cosine(start: float = START, end: float = END) -> Schedule:
    """alpha_t = cos(u pi/2) with u linear in t (Nichol & Dhariwal 2021, section 3.2), between the two ends of gamma.

    Raises:
        ValueError: `start` is not below `end`.

    Example:
        >>> schedule = cosine(-8.0, 5.0)
        >>> [round(float(schedule.gamma({}, t)), 2) for t in (0.0, 1.0)]
        [-8.0, 5.0]
    """
    _check_ends(start, end)
    angles = [math.atan(math.exp(gamma / 2)) for gamma in (start, end)]
    return schedule(lambda t: 2 * jnp.log(jnp.tan(angles[0] + (angles[1] - angles[0]) * t)))


def table(gammas: ArrayLike | Sequence[float]) -> Schedule:
    """gamma at t = 0, 1/(n-1), ..., 1, and straight lines between.

    Raises:
        ValueError: fewer than two values, or values that do not rise.
    """
    values = np.asarray(gammas, np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"a table of gamma wants a vector of at least two values; got shape {values.shape}")
    if not np.all(np.isfinite(values)) or not np.all(np.diff(values) > 0):
        raise ValueError("the values of gamma = -ln SNR have to be finite and rise; were they ln SNR, or unordered?")
    grid = np.linspace(0, 1, len(values))
    return Schedule(lambda key: {}, lambda params, t: jnp.interp(t, jnp.asarray(grid), jnp.asarray(values)))


def ddpm(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> Schedule:
    """The schedule of Ho et al. 2020: beta linear in the step, alpha_i^2 = prod (1 - beta).

    Its levels are `steps` points of t, so a chain that visits just those has `steps - 1` steps between them, and the
    last step to the data.

    Raises:
        ValueError: fewer than 2 steps, or betas outside (0, 1).
    """
    if not is_whole(steps, 2) or not 0 < first <= last < 1:
        raise ValueError(f"want steps >= 2 and 0 < first <= last < 1; got {steps}, {first}, {last}: steps is whole")
    log_squared = np.cumsum(np.log1p(-np.linspace(first, last, steps)))
    return table(np.log(np.expm1(-log_squared)))


def learned(
    start: float = START, end: float = END, *, ends: Literal["fixed", "learned"] = "fixed", hidden: int = 16
) -> Schedule:
    """A monotone network: gamma from `start` to `end` along a learned curve; a straight line at the start of training.

        curve(t) = t + sum_k w_k sigmoid(s_k (t - m_k)), w and s positive, scaled to go from 0 to 1

    In continuous time the curve is trained to minimise the variance of the bound's estimate, and the ends, where they
    are learned, by the bound itself (Kingma et al. 2021, appendix I.2).

    Raises:
        ValueError: `start` is not below `end`, ends that are too far out to be learned, or no hidden unit.
    """
    _check_ends(start, end)
    if ends not in ("fixed", "learned"):
        raise ValueError(f'the ends are "fixed" or "learned"; got {ends!r}')
    if ends == "learned" and not (abs(start) < LIMIT and end - start < math.exp(LOG_WIDTH)):
        raise ValueError(
            f"a learned start lies within {LIMIT:g} of 0, and the end at most 50 above; got {start} and {end}"
        )
    if not is_whole(hidden):
        raise ValueError(f"hidden units of the learned schedule: want at least 1; got {hidden}: a whole number")

    def init(key):
        del key
        middles = (jnp.arange(hidden) + 0.5) / hidden
        curve = {"raw_weight": jnp.full(hidden, -6.0), "raw_slope": jnp.full(hidden, 5.0), "middle": middles}
        free = {
            "start": raw_log_std(jnp.float32(start), LIMIT),
            "log_width": raw_log_std(jnp.log(jnp.float32(end - start)), LOG_WIDTH),
        }
        return {"curve": curve, "ends": free} if ends == "learned" else {"curve": curve}

    def gamma(params, t):
        curve = params["curve"]
        weights, slopes = jax.nn.softplus(curve["raw_weight"]), jax.nn.softplus(curve["raw_slope"])

        def rise(t):
            return t + jnp.sum(weights * jax.nn.sigmoid(slopes * (t - curve["middle"])))

        part = (rise(t) - rise(0.0)) / (rise(1.0) - rise(0.0))
        if ends == "learned":
            width = jnp.exp(bounded_log_std(params["ends"]["log_width"], LOG_WIDTH))
            return bounded_log_std(params["ends"]["start"], LIMIT) + width * part
        return start + (end - start) * part

    return Schedule(init, gamma, ("curve",))


def _check_ends(start: float, end: float) -> None:
    if not -50 <= start < end <= 50:
        raise ValueError(f"gamma = -ln SNR rises from start to end, both within [-50, 50]; got {start} and {end}")


class Level(NamedTuple):
    """The noise at one time: z = alpha x + sigma eps, with scale^2 = alpha^2 + sigma^2; gamma = -ln SNR in nats."""

    gamma: Array
    alpha: Array
    sigma: Array
    scale: Array


Process = Callable[[ArrayLike], Level]


def variance_preserving(gamma: ArrayLike) -> Level:
    """alpha^2 + sigma^2 = 1: data of variance 1 keep it (Ho et al. 2020)."""
    gamma = jnp.asarray(gamma)
    return Level(gamma, _root_of_sigmoid(-gamma), _root_of_sigmoid(gamma), jnp.ones_like(gamma))


def variance_exploding(gamma: ArrayLike) -> Level:
    """alpha = 1: noise is added, and nothing taken away (Song & Ermon 2019)."""
    gamma = jnp.asarray(gamma)
    return Level(gamma, jnp.ones_like(gamma), jnp.exp(gamma / 2), jnp.exp(jax.nn.softplus(gamma) / 2))


def _root_of_sigmoid(x: Array) -> Array:
    return jnp.exp(jax.nn.log_sigmoid(x) / 2)
