"""The routes to a discrete z, on one model: how each estimates the encoder's gradient, and where each ends.

The model is a mixture of Bernoullis with an encoder: z is one of K classes as a one-hot vector, P_gen(y|z) has a table
of logits for each class. So ln P(y), the ELBO and its gradient are exact by enumeration, and EM can fit it as well.
"""

import itertools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vae_jax
from experiments.shared import ascent
from vae_jax import core, gumbel, nets, straight_through_gumbel
from vae_jax.command.cosine_adam import Training
from vae_jax.core import Objective, elbo, leave_one_out, of, vimco
from vae_jax.core.multi_sample import log_mean
from vae_jax.core.objectives import batch_terms
from vae_jax.em import mixture_of_bernoullis
from vae_jax.parts import learned_classes, one_hot

EXACT, EM, HIGHEST = "exact enumeration", "EM", 2.0


class Parts(NamedTuple):
    """Encoder, prior and generator over images of one shape, and how many classes z has."""

    encoder: vae_jax.Conditional
    prior: vae_jax.Conditional
    generator: vae_jax.Conditional
    classes: int
    shape: tuple[int, ...]

    def model(self, estimator: core.Estimator) -> vae_jax.Model:
        return vae_jax.vae(self.encoder, self.prior, self.generator, estimator=estimator)

    def start(self, key: jax.Array, ys: np.ndarray) -> Any:
        """Parameters: each class the mean image of ys, in logits, with noise."""
        k_init, k_noise = jax.random.split(key)
        params = self.model(vae_jax.enumerated).init(k_init, jnp.asarray(ys[0]))
        mean = np.clip(ys.mean(axis=0), 0.02, 0.98)
        noise = 0.5 * jax.random.normal(k_noise, params["gen"]["logits"].shape)
        return {**params, "gen": {"logits": jnp.log(mean / (1 - mean))[None] + noise}}


class Route(NamedTuple):
    """A model and its objective; `draws` is k where the objective is the bound with k samples, 0 where it is the ELBO.

    `fixed` says whether the gradient is the same function at every step.
    """

    model: vae_jax.Model
    objective: Objective
    draws: int = 0
    fixed: bool = True


class Measured(NamedTuple):
    """The encoder's gradient at one point, in units of the length of the exact one.

    Fields:
        bias: length of (mean over draws - exact).
        noise: what that length is, of noise alone.
        spread: standard deviation of one draw: the root of its mean squared distance from the mean.
    """

    bias: float
    noise: float
    spread: float


class Ended(NamedTuple):
    """A route that was trained: the parameters at the start and after each epoch, stacked; seconds per step."""

    path: Any
    seconds: float

    def at(self, epoch: int) -> Any:
        """The parameters after this epoch, 0 for the start."""
        return jax.tree.map(lambda x: x[epoch], self.path)


def build(classes: int, hidden: int, shape: tuple[int, ...]) -> Parts:
    """An encoder with one hidden layer; a table of logits as the generator, which takes relaxed classes too."""

    def init(key, z):
        del key
        return {"logits": jnp.zeros((z.shape[0], *shape))}

    table = (init, lambda params, z: jnp.tensordot(z, params["logits"], axes=1))
    encoder = one_hot(nets.MLP((hidden,), classes))
    return Parts(encoder, learned_classes((), classes), vae_jax.bernoulli(table), classes, shape)


def all_routes(
    parts: Parts, temperatures: tuple[float, ...], draws: int, steps: int, baseline: Callable[..., Any]
) -> dict[str, Route]:
    """Every route along a gradient, by name."""
    exact, drawn = parts.model(vae_jax.enumerated), parts.model(vae_jax.score_function())

    def cooling(step):
        lowest = min(temperatures)
        return HIGHEST * (lowest / HIGHEST) ** (step / steps)

    annealed = of(lambda step: parts.model(gumbel(cooling(step))))
    return {
        EXACT: Route(exact, elbo()),
        **{f"Gumbel-softmax, t = {t:g}": Route(parts.model(gumbel(t)), elbo()) for t in temperatures},
        f"Gumbel-softmax, t from {HIGHEST:g} to {min(temperatures):g}": Route(exact, annealed, fixed=False),
        **{
            f"straight-through, t = {t:g}": Route(parts.model(straight_through_gumbel(t)), elbo()) for t in temperatures
        },
        "score function": Route(drawn, elbo()),
        "score function, baseline": Route(parts.model(vae_jax.score_function(baseline)), elbo()),
        f"leave one out, {draws} draws": Route(drawn, leave_one_out(draws)),
        f"VIMCO, {draws} draws": Route(drawn, vimco(draws), draws),
    }


def independent_pixels(ys: np.ndarray) -> Callable[..., Any]:
    """-ln P(y) of one product of Bernoullis at the mean of ys, as a baseline: a function of (y, c)."""
    mean = jnp.clip(ys.mean(axis=0), 0.02, 0.98)
    return lambda y, c: -jnp.sum(y * jnp.log(mean) + (1 - y) * jnp.log1p(-mean))


def train(route: Route, start: Any, ys: np.ndarray, key: jax.Array, how: Training) -> Ended:
    """Adam from the start."""
    epochs = ascent.epoch_by_epoch(route.model, start, ys, key, how.optimizer(len(ys)), how.batch_size, route.objective)
    path, seconds = [start], []
    for _ in range(how.epochs):
        began = time.perf_counter()
        path.append(next(epochs)[0])
        seconds.append((time.perf_counter() - began) / (len(ys) // how.batch_size))
    return Ended(ascent.stacked(path), float(np.median(seconds[1:])))


def by_em(parts: Parts, start: Any, ys: np.ndarray, iterations: int) -> tuple[vae_jax.Conditional, Any, float]:
    """(the mixture that the model is, {pri, gen} after 0, 1, 2, ... iterations of EM, seconds per iteration)."""
    mixture = mixture_of_bernoullis(parts.shape, parts.classes, prior=1.0)
    began = time.perf_counter()
    path = jax.block_until_ready(ascent.by_em(mixture, {part: start[part] for part in ("pri", "gen")}, ys, iterations))
    return mixture, path, (time.perf_counter() - began) / (iterations + 1)


def measure(route: Route, exact: Any, params: Any, ys: np.ndarray, key: jax.Array, draws: int) -> Measured:
    """Bias and spread of a route's gradient for all of ys at once, from so many draws."""

    def loss(enc, key):
        keys = jax.random.split(key, len(ys))
        return route.objective(route.model, {**params, "enc": enc}, keys, ys, None, 0)[0]

    def draw(sums, key):
        gradient = jax.grad(loss)(params["enc"], key)
        off = jax.tree.map(jnp.subtract, gradient, exact)
        return jax.tree.map(lambda s, x: (s[0] + x, s[1] + x**2), sums, off, is_leaf=_is_pair), None

    @jax.jit
    def run(keys):
        sums = jax.tree.map(lambda x: (jnp.zeros_like(x), jnp.zeros_like(x)), exact)
        sums, _ = jax.lax.scan(draw, sums, keys)
        means = jax.tree.map(lambda s: s[0] / draws, sums, is_leaf=_is_pair)
        variances = jax.tree.map(lambda s, m: s[1] / draws - m**2, sums, means, is_leaf=_is_pair)
        return optax.tree.norm(means), optax.tree.sum(variances), optax.tree.norm(exact)

    bias, variance, length = (float(x) for x in run(jax.random.split(key, draws)))
    spread = math.sqrt(max(variance, 0.0)) / length
    return Measured(bias / length, spread / math.sqrt(draws), spread)


def _is_pair(x: Any) -> bool:
    return isinstance(x, tuple)


def exact_gradient(parts: Parts, params: Any, ys: np.ndarray, draws: int) -> Any:
    """The encoder's gradient of -ELBO (draws = 0), or of minus the bound with k draws, by enumeration."""
    zs = jnp.eye(parts.classes)
    # All combinations of k classes but for their order, and how many orders each stands for.
    every = np.array(list(itertools.combinations_with_replacement(range(parts.classes), max(draws, 1))))
    log_orders = np.log([_orders(combination) for combination in every.tolist()])

    def one(enc, key, y, c):
        del key, c
        log_q = jax.nn.log_softmax(parts.encoder.dist(enc, y).logits)
        pri = parts.prior.dist(params["pri"])
        log_joint = jax.vmap(lambda z: pri.log_prob(z) + parts.generator.dist(params["gen"], z).log_prob(y))(zs)
        log_w = log_joint - log_q
        return -jnp.sum(jnp.exp(log_q[every].sum(axis=1) + log_orders) * log_mean(log_w[every]))

    keys = jax.random.split(jax.random.key(0), len(ys))
    return jax.jit(jax.grad(lambda enc: jnp.mean(batch_terms(one, enc, keys, ys, None))))(params["enc"])


def _orders(combination: list[int]) -> int:
    repeats = [math.factorial(combination.count(x)) for x in set(combination)]
    return math.factorial(len(combination)) // math.prod(repeats)
