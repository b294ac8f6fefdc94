"""Annealed importance sampling: ln P(y) of one example from below, and of a simulated one from above.

    f_b(z) = p0(z)^(1 - b) [P_pri(z) P_gen(y|z)]^b,    0 = b_0 < b_1 < ... < b_T = 1

The path leads from p0, the prior or the encoder, to the joint density. A chain draws z_0 from p0 and is moved at b_1,
b_2, ... by transitions that leave f_b invariant:

    ln w = sum_{t=1}^T (b_t - b_{t-1}) [ln f_1(z_{t-1}) - ln f_0(z_{t-1})],    E w = P(y)

(Neal 2001, equations 6-11.) Run backwards from an exact sample of the posterior, E 1/w = 1/P(y) (Grosse et al. 2015,
section 4: bidirectional Monte Carlo; Wu et al. 2017 for decoders). So ln w bounds ln P(y) in expectation, from below
forwards and from above backwards, for every T and every transition, well mixed or not; only the width depends on them.
Memory does not depend on T.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike
from numpyro.distributions import constraints

from vae_jax.core.model import Conditional, Params, join, log_prob
from vae_jax.core.numbers import is_whole

LogDensity = Callable[[Array], Array]
Transition = Callable[[Array, Array, Array, LogDensity], Array]
"""`(key, z, t, ln f) -> z`: a move that leaves f = f_b at b = betas[t] invariant, and is reversible."""

LEAPFROG_STEPS = 10
_FIRST_STEP, _RATE, _AT_LEAST = 0.1, 0.1, 100  # of the pilot run; so many moves at b = 0, and again along the path


class Path(NamedTuple):
    """The two ends of the path for one y.

    Fields:
        sample: `key -> z`, a draw from p0.
        start: `z -> ln p0(z)`, normalised.
        joint: `z -> ln P_pri(z) P_gen(y|z)`.
    """

    sample: Callable[[Array], Array]
    start: LogDensity
    joint: LogDensity

    def at(self, beta: Any) -> LogDensity:
        """ln f_b, not normalised."""
        return lambda z: (1 - beta) * self.start(z) + beta * self.joint(z)

    def slope(self, z: Array) -> Array:
        """d ln f_b(z) / d b: the integrand of ln w."""
        return self.joint(z) - self.start(z)


def path_to_joint(
    prior: Conditional,
    generator: Conditional,
    params: Params,
    y: Any,
    c: Any = None,
    *,
    encoder: Conditional | None = None,
) -> Path:
    """The path of one y from the prior, or from P_enc(z|y) where an encoder is given, to P_pri(z) P_gen(y|z).

    Raises:
        TypeError: a part has no tractable density, or z is discrete or confined to a part of the real numbers.
    """
    check_parts(prior, generator, encoder)
    pri = prior.dist(params["pri"], c)
    start = pri if encoder is None else encoder.dist(params["enc"], join(y, c))
    _check_real("prior", pri)
    _check_real("encoder", start)
    return Path(
        sample=start.sample,
        start=lambda z: log_prob(start, z),
        joint=lambda z: log_prob(pri, z) + log_prob(generator.dist(params["gen"], join(z, c)), y),
    )


def check_parts(prior: Any, generator: Any, encoder: Any = None) -> None:
    """Make sure that every part has a density.

    Raises:
        TypeError: one is not a `Conditional`.
    """
    for name, part in (("prior", prior), ("generator", generator), ("encoder", encoder)):
        if not isinstance(part, Conditional) and not (part is None and name == "encoder"):
            raise TypeError(
                f"the {name} has to be a Conditional, since its density at a given z is needed; got "
                f"{type(part).__name__}. For a Model, such as a VAE, use importance samples: evaluate(..., k=5000)"
            )


def _check_real(name: str, distribution: dist.Distribution) -> None:
    support: Any = distribution.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if not isinstance(support, type(constraints.real)):
        raise TypeError(
            f"annealing moves z along gradients, over all real numbers; z of the {name} "
            f"({type(distribution).__name__}) is in {support}. For a discrete z with few values estimator=enumerated "
            "gives ln P(y) exactly; for any other use importance samples: evaluate(..., k=5000)"
        )


def linear_betas(temperatures: int) -> np.ndarray:
    """b_t = t / T, shape (T + 1,)."""
    _check_temperatures(temperatures)
    return np.linspace(0.0, 1.0, temperatures + 1)


def sigmoid_betas(temperatures: int, *, steepness: float = 4.0) -> np.ndarray:
    """b_t = s(t) scaled to [0, 1], s(t) = sigmoid(steepness (2 t / T - 1)), shape (T + 1,) (Grosse et al. 2015).

    Its temperatures are dense at both ends.
    """
    _check_temperatures(temperatures)
    s = 1 / (1 + np.exp(-steepness * np.linspace(-1.0, 1.0, temperatures + 1)))
    return (s - s[0]) / (s[-1] - s[0])


def _check_temperatures(temperatures: int) -> None:
    if not is_whole(temperatures):
        raise ValueError(f"want temperatures >= 1, the steps from p0 to the joint; got {temperatures}")


def ais(path: Path, key: Array, betas: ArrayLike, *, chains: int = 16, transition: Transition | None = None) -> Array:
    """ln w of independent chains, (chains,) in nats: E exp(ln w) = P(y), so `lower_bound` of them is below ln P(y).

    Args:
        betas: (T + 1,) numbers that rise from 0 to 1: `linear_betas(T)`, `sigmoid_betas(T)`. Not traced.
        chains: how many.
        transition: by default `hmc` with the step sizes that `tune` finds.

    Raises:
        ValueError: betas that do not rise from 0 to 1, or no chains.
    """
    betas = _check_betas(betas, chains)
    k_pilot, k_chains = jax.random.split(key)
    transition = hmc(tune(path, k_pilot, betas)) if transition is None else transition
    visits = np.arange(1, len(betas))

    def chain(key):
        k_start, k_moves = jax.random.split(key)
        return _anneal(path, k_moves, path.sample(k_start), betas, visits, np.diff(betas), transition)

    return jax.vmap(chain)(jax.random.split(k_chains, chains))


def reverse_ais(
    path: Path, key: Array, z: Array, betas: ArrayLike, *, chains: int = 16, transition: Transition | None = None
) -> Array:
    """-ln w of chains that run backwards from z, (chains,) in nats: E exp(-ln w) = 1 / P(y), for `upper_bound`.

    Args:
        z: an exact sample of the posterior: the z that y was simulated from. All chains start at it.
        betas, chains, transition: as in `ais`; step sizes may depend on y, never on z.

    Raises:
        ValueError: betas that do not rise from 0 to 1, or no chains.
    """
    betas = _check_betas(betas, chains)
    k_pilot, k_chains = jax.random.split(key)
    transition = hmc(tune(path, k_pilot, betas)) if transition is None else transition
    visits = np.arange(len(betas) - 1)[::-1]

    def chain(key):
        return _anneal(path, key, z, betas, visits, -np.diff(betas)[::-1], transition)

    return jax.vmap(chain)(jax.random.split(k_chains, chains))


def lower_bound(log_weights: Array) -> Array:
    """ln-mean-exp of the weights of `ais`: at most ln P(y) in expectation, rising to it with the number of chains."""
    return logsumexp(log_weights) - jnp.log(len(log_weights))


def upper_bound(log_weights: Array) -> Array:
    """Minus the ln-mean-exp of the weights of `reverse_ais`: at least ln P(y) in expectation.

    Minus their mean bounds it as well, and is never closer.
    """
    return -lower_bound(log_weights)


def _check_betas(betas: ArrayLike, chains: int) -> np.ndarray:
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or len(betas) < 2 or betas[0] != 0 or betas[-1] != 1 or not (np.diff(betas) > 0).all():
        raise ValueError(
            f"betas wants (T + 1,) numbers that rise from 0 to 1, as linear_betas(T) gives them; got shape "
            f"{betas.shape}, from {betas.ravel()[:1]} to {betas.ravel()[-1:]}"
        )
    if not is_whole(chains):
        raise ValueError(f"want chains >= 1; got {chains}")
    return betas


def _anneal(path, key, z, betas, visits, increments, transition):
    """sum of increments * slope along a chain that is moved at each of the visited temperatures in turn."""

    def step(carry, at):
        z, total, lost = carry
        t, beta, increment = at
        total, lost = _add(total, lost, increment * path.slope(z))
        return (transition(jax.random.fold_in(key, t), z, t, path.at(beta)), total, lost), None

    zero = jnp.zeros((), z.dtype)
    along = (jnp.asarray(visits), jnp.asarray(betas[visits], z.dtype), jnp.asarray(increments, z.dtype))
    (_, total, lost), _ = jax.lax.scan(step, (z, zero, zero), along)
    return total + lost


def _add(total: Array, lost: Array, x: Array) -> tuple[Array, Array]:
    """Compensated summation (Neumaier 1974): thousands of small terms lose nothing in float32."""
    x = x.astype(total.dtype)
    new = total + x
    rest = jnp.where(jnp.abs(total) >= jnp.abs(x), (total - new) + x, (x - new) + total)
    return new, lost + jnp.where(jnp.isfinite(new), rest, 0)


def hmc(step_sizes: ArrayLike, *, leapfrog_steps: int = LEAPFROG_STEPS) -> Transition:
    """Hamiltonian Monte Carlo with a fixed step size for each temperature, (T + 1,).

    Fixed, so that detailed balance holds exactly (up to rounding): adapting during the run that gives the weights
    would break it. Each move multiplies its step size by a number from U(0.8, 1.2), drawn first, lest trajectories
    close on themselves (Neal 2011, section 3.2).
    """
    return lambda key, z, t, log_density: _hmc_move(key, z, log_density, jnp.asarray(step_sizes)[t], leapfrog_steps)[0]


def tune(path: Path, key: Array, betas: ArrayLike, *, chains: int = 4, leapfrog_steps: int = LEAPFROG_STEPS) -> Array:
    """Step sizes for `hmc`, (T + 1,), from a pilot run of other chains: about 0.8 of the moves are accepted."""
    betas = _check_betas(betas, chains)
    k_start, k_moves = jax.random.split(key)

    def size(score):
        return jnp.asarray(_FIRST_STEP, z.dtype) * jnp.exp(score * jnp.asarray(_RATE / chains, z.dtype))

    # Rejections count four times: balance is at 0.8. The score is an integer, for a step size that followed from the
    # probabilities would be chaotic in their last digits, and so depend on the batch.
    def step(carry, at):
        z, score = carry
        i, beta = at
        keys = jax.random.split(jax.random.fold_in(k_moves, i), chains)
        move = jax.vmap(lambda key, z: _hmc_move(key, z, path.at(beta), size(score), leapfrog_steps))
        z, accepted = move(keys, z)
        score = score + jnp.sum(jnp.where(accepted, 1, -4))
        return (z, score), size(score)

    z = jax.vmap(path.sample)(jax.random.split(k_start, chains))
    each = 1 + _AT_LEAST // len(betas)
    visited = jnp.asarray(np.concatenate([np.zeros(_AT_LEAST), np.repeat(betas, each)]), z.dtype)
    _, sizes = jax.lax.scan(step, (z, 0), (jnp.arange(len(visited)), visited))
    return sizes[_AT_LEAST + each - 1 :: each]


def _hmc_move(key, z, log_density, step_size, leapfrog_steps):
    """(z, whether the move was accepted) after one trajectory (Neal 2011, figure 2); NaN is rejected."""
    k_size, k_momentum, k_accept = jax.random.split(key, 3)
    size = step_size * jax.random.uniform(k_size, (), z.dtype, 0.8, 1.2)
    momentum = jax.random.normal(k_momentum, z.shape, z.dtype)
    value_and_gradient = jax.value_and_grad(log_density)

    def leap(carry, _):
        z, momentum, _, gradient = carry
        momentum = momentum + 0.5 * size * gradient
        z = z + size * momentum
        value, gradient = value_and_gradient(z)
        return (z, momentum + 0.5 * size * gradient, value, gradient), None

    value, gradient = value_and_gradient(z)
    (new_z, new_momentum, new_value, _), _ = jax.lax.scan(
        leap, (z, momentum, value, gradient), None, length=leapfrog_steps
    )
    log_ratio = new_value - value - 0.5 * (jnp.sum(new_momentum**2) - jnp.sum(momentum**2))
    accepted = jnp.log(jax.random.uniform(k_accept, (), z.dtype)) < log_ratio  # False for NaN
    return jnp.where(accepted, new_z, z), accepted
