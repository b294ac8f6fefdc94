"""Oracles 14 to 17: what a likelihood is, in nats: ln Z, levels that sum to one, finite logits."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.core.model import Conditional, lift, log_prob
from vae_jax.core.network import Network
from vae_jax.parts.conditionals import bernoulli, discretised_logistic
from vae_jax.parts.l2_distortion import l2
from vae_jax.selfcheck.check import Check, Row
from vae_jax.selfcheck.solvable import floats

as_given = Network(lambda key, z: (), lambda params, z: z)  # the parameters of the distribution are its condition


def nats(generator: Conditional, parameters: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """(n,) -ln P(y) of every y under the same parameters."""
    one = jax.vmap(lambda z, y: -log_prob(generator.dist((), z), y), in_axes=(None, 0))
    return np.asarray(jax.jit(one)(floats(parameters), floats(ys)), np.float64)


def l2_and_ln_z() -> list[Row]:
    """D = 784, squared error 7.84: -ln N = SSE / (2 s2) + D/2 ln(2 pi s2)."""
    yhat = np.zeros(784)
    y = 0.1 * np.resize([1.0, -1.0], 784)
    other = 7.84 / (2 * 0.3**2) + 392 * np.log(2 * np.pi * 0.3**2)
    optimal = l2(as_given, "optimal")
    params = {"net": (), "log_sigma": floats(0.5)}

    @jax.jit
    def at_optimum(params, yhat, y):
        terms = lift(optimal).terms(params, jax.random.key(0), y, yhat)
        params = lift(optimal).maximise(params, terms.stats)
        return lift(optimal).terms(params, jax.random.key(0), y, yhat).nats

    return [
        Row("sigma = 0.1, the root mean squared error", -692.7789, nats(l2(as_given, 0.1), yhat, y[None])),
        Row("sigma = 0.3", other, nats(l2(as_given, 0.3), yhat, y[None])),
        Row("sigma found by maximise", -692.7789, at_optimum(params, floats(yhat), floats(y))),
    ]


def other_losses() -> list[Row]:
    """-ln N - ln Z of two examples, y = 0 being the one without error; and the unit of the data."""
    rng = np.random.default_rng(1)
    yhat, y, d = rng.normal(size=6), rng.normal(size=6), 6
    squared = np.sum((y - yhat) ** 2)
    named = {"plain squared error": (0.5, squared), "half of it": (1.0, squared / 2), "its mean": (d / 2, squared / d)}
    rows = []
    for name, (variance, loss) in named.items():
        first, second = nats(l2(as_given, variance**0.5), yhat, np.stack([y, yhat]))
        rows.append(Row(f"{name} is s2 = {variance:g}", loss, first - second))
    small, large = (nats(l2(as_given, 0.5 * c), c * yhat, c * y[None]) for c in (1.0, 255.0))
    return [*rows, Row("data times 255 cost D ln 255 more", d * np.log(255), large - small)]


def levels() -> list[Row]:
    """Means far outside the range and tiny scales among them; a sum over the probabilities of each is a row's entry."""
    grid = np.array(list(itertools.product((-30.0, -1.0, 0.003, 1.0, 9.0), (-20.0, -7.0, 0.0, 7.0))))  # mean, log scale
    single, mixed = discretised_logistic(as_given), discretised_logistic(as_given, components=len(grid))

    @jax.jit
    def sums(grid, all_in_one, levels):
        total = lambda generator, z: jnp.sum(jnp.exp(jax.vmap(lambda y: log_prob(generator.dist((), z), y))(levels)))  # noqa: E731
        return jax.vmap(lambda z: total(single, z[None]))(grid), total(mixed, all_in_one[None])

    all_in_one = np.concatenate([np.zeros(len(grid)), *grid.T])
    each, mixture = sums(floats(grid), floats(all_in_one), jnp.arange(256)[:, None])
    return [Row("one component, 20 means and scales", 1.0, each), Row("a mixture of them", 1.0, mixture)]


def logits() -> list[Row]:
    values = np.array([-1e4, -100.0, -3.0, 0.0, 1e-3, 5.0, 88.0, 1e4])
    each = jax.jit(jax.vmap(jax.value_and_grad(lambda logit, y: -log_prob(bernoulli(as_given).dist((), logit), y))))
    rows = []
    for y in (0.0, 1.0):
        found, gradient = each(floats(values), floats(np.full(8, y)))
        scale = np.maximum(1, np.abs(values))  # relative where they are large
        exact = np.logaddexp(0, (1 - 2 * y) * values)
        rows += [
            Row(f"y = {y:g}: nats / max(1, |logit|)", exact / scale, found / scale),
            Row(f"y = {y:g}: gradient is sigmoid(logit) - y", np.exp(-np.logaddexp(0, -values)) - y, gradient),
        ]
    return rows


CHECKS = [
    Check(14, "-ln N(y; yhat, s2 I) = SSE / (2 s2) + ln Z", l2_and_ln_z, 2e-3, 5e-5),
    Check(15, "losses of other books are fixed sigmas", other_losses, 2e-4, 1e-9),
    Check(16, "discretised likelihoods sum to 1 over 256 levels", levels, 2e-5, 1e-9),
    Check(17, "Bernoulli from logits is finite up to |logit| = 1e4", logits, 1e-6, 1e-12),
]
