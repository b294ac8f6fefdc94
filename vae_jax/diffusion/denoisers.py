"""The denoiser: a network that sees z_t, and what its output says about x.

The network is called with z_t / sqrt(alpha^2 + sigma^2), gamma_t and, where there is one, the condition: so it sees the
same numbers whether the process preserves or explodes the variance. With a = alpha and s = sigma on that scale,

    z = a x + s eps,    v = a eps - s x,    and so any one of x, eps, v gives the others.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from vae_jax.core.distributions import bounded_log_std
from vae_jax.core.network import Network, as_network, shape_of
from vae_jax.core.numbers import is_whole
from vae_jax.diffusion.observation import Observation, continuous
from vae_jax.diffusion.schedules import Level, Process, Schedule, linear, variance_preserving
from vae_jax.parts.conditionals import arguments, full_precision

Params = Any
Prediction = Callable[[Array, Array, Array, Array], tuple[Array, Array]]  # (output, z, a, s) -> (x, eps)
Variance = Literal["fixed", "learned", "analytic"]


def predict_noise(output: Array, z: Array, a: Array, s: Array) -> tuple[Array, Array]:
    """The network gives eps (Ho et al. 2020)."""
    return (z - s * output) / a, output


def predict_data(output: Array, z: Array, a: Array, s: Array) -> tuple[Array, Array]:
    """The network gives x."""
    return output, (z - a * output) / s


def predict_velocity(output: Array, z: Array, a: Array, s: Array) -> tuple[Array, Array]:
    """The network gives v = a eps - s x (Salimans & Ho 2022)."""
    return a * z - s * output, s * z + a * output


class Denoised(NamedTuple):
    """What is known of x after seeing z_t.

    Fields:
        x: E[x|z_t], the lecture's yhat(z).
        noise: E[eps|z_t]; z = alpha x + sigma noise.
        variance: of x given z_t, elementwise, as the reverse steps take it; 0 where it is left out.
    """

    x: Array
    noise: Array
    variance: ArrayLike


class Denoiser(NamedTuple):
    """Everything about a diffusion but how it is trained and sampled; made by `denoiser`.

    The parameters are `{"enc": the schedule's, "gen": {"net": ...}}`, and `gen/variance` where that is analytic.

    Fields:
        network: `(z, gamma[, c]) -> output`.
        shape: of x.
        schedule, process: the fixed encoders.
        prediction: what the output means.
        observation: P(y|z_0), the last step to the data.
        steps: T, or None for continuous time.
        variance: of the reverse steps.
    """

    network: Network
    shape: tuple[int, ...]
    schedule: Schedule
    process: Process
    prediction: Prediction
    observation: Observation
    steps: int | None
    variance: Variance

    def init(self, key: Array, c: Any = None) -> Params:
        """The parameters."""
        k_schedule, k_net = jax.random.split(key)
        z, gamma = jnp.zeros(self.shape), jnp.zeros(())
        gen = {"net": self.network.init(k_net, z, gamma, *_condition(c))}
        if self.variance == "analytic":
            gen["variance"] = jax.nn.sigmoid(self._gammas())
        return {"enc": self.schedule.init(k_schedule), "gen": gen}

    def times(self) -> Array:
        """(T + 1,) t_0 = 0 to t_T = 1."""
        assert self.steps is not None
        return jnp.arange(self.steps + 1) / self.steps

    def _gammas(self) -> Array:
        """(T + 1,) gamma at these times, of a schedule without parameters: an analytic variance has no other."""
        return jax.vmap(lambda t: self.gamma(None, t))(self.times())

    def gamma(self, enc: Params, t: ArrayLike) -> Array:
        """-ln SNR at t; `enc` may be None for a schedule without parameters."""
        return self.schedule.gamma(enc, t)

    def level(self, enc: Params, t: ArrayLike) -> Level:
        """The noise at t."""
        return self.process(self.gamma(enc, t))

    def denoise(self, gen: Params, z: Array, level: Level, c: Any = None, *, key: Array | None = None) -> Denoised:
        """What the network makes of z_t; with a key, the network with dropout."""
        seen, a, s = z / level.scale, level.alpha / level.scale, level.sigma / level.scale
        dropout = {} if key is None else {"key": key}
        output = full_precision(self.network.apply(gen["net"], seen, level.gamma, *_condition(c), **dropout))
        wanted = (*self.shape[:-1], 2 * self.shape[-1]) if self.variance == "learned" else self.shape
        if output.shape != wanted:
            raise ValueError(
                f"the denoiser's network gives shape {output.shape}, and {wanted} is wanted"
                + (": x and its log variance, on the last axis" if self.variance == "learned" else "")
            )
        variance: Any = 0.0
        if self.variance == "learned":
            output, raw = jnp.split(output, 2, axis=-1)
            # 1 / (1 + SNR), that of data of variance 1, where the network says 0.
            variance = jnp.exp(bounded_log_std(raw) + jax.nn.log_sigmoid(level.gamma))
        elif self.variance == "analytic":
            variance = jnp.exp(jnp.interp(level.gamma, self._gammas(), jnp.log(jax.lax.stop_gradient(gen["variance"]))))
        return Denoised(*self.prediction(output, seen, a, s), variance)


def denoiser(
    net: Any,
    shape: tuple[int, ...],
    schedule: Schedule = linear(),
    *,
    process: Process = variance_preserving,
    prediction: Prediction = predict_noise,
    observation: Observation = continuous(),
    steps: int | None = None,
    variance: Variance = "fixed",
) -> Denoiser:
    """A network that denoises, with the noise that it is made for.

    Args:
        net: flax module, `Network` or `(init, apply)` pair, called with (z, gamma) or (z, gamma, c): z of
            `shape`, gamma = -ln SNR, a number from about -13 to 5. It gives the shape of z.
        shape: of one example.
        schedule: `linear()` (the default), `cosine()`, `ddpm()`, `table(...)`, `learned()` or `schedule(function)`.
        process: `variance_preserving` or `variance_exploding`.
        prediction: what the network's output is: `predict_noise`, `predict_data` or `predict_velocity`.
        observation: from z_0 to the data: `continuous()` (the default), `continuous(low, high)`, `denoised()` or
            `discrete(256)`.
        steps: T, or None for continuous time.
        variance: of the T reverse steps. "fixed": that of the true step if x were known. More is right, since x is not
            (Bao et al. 2022): "analytic", one number for each step, which `fit_variance` measures, or "learned", by the
            network, on the second half of its last axis.

    Raises:
        ValueError: a shape or a T that makes no sense, or a variance without steps.
        TypeError: `net` is no network, `schedule` no schedule, `observation` none.
    """
    shape = shape_of(shape)
    if not shape or not all(map(is_whole, shape)):
        raise ValueError(f"shape is that of one example, (28, 28, 1) or (2,); got {shape}")
    if not isinstance(schedule, Schedule):
        raise TypeError(
            "schedule wants linear(), cosine(), ddpm(), table(...) or learned(), called, or schedule(function) of a "
            f"function of t; got {type(schedule).__name__}"
        )
    if not isinstance(observation, Observation):
        raise TypeError(
            f"observation wants continuous(), denoised() or discrete(256), called; got {type(observation).__name__}"
        )
    if steps is not None and not is_whole(steps):
        raise ValueError(
            f"a diffusion takes T >= 1 steps, or None for continuous time; got steps={steps}: a whole number is wanted"
        )
    if variance not in get_args(Variance):
        raise ValueError(f"variance is one of {get_args(Variance)}; got {variance!r}")
    if variance != "fixed" and steps is None:
        raise ValueError(
            f"variance={variance!r} needs steps: in continuous time each step is infinitely small, and its variance "
            "is known"
        )
    if variance == "analytic" and schedule.interior:
        raise ValueError("an analytic variance is measured at given noise levels, and a learned schedule moves them")
    return Denoiser(as_network(net), shape, schedule, process, prediction, observation, steps, variance)


def _condition(c: Any) -> tuple[Any, ...]:
    return () if c is None else arguments(c)
