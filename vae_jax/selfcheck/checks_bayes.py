"""Oracles 18 to 20: what the rate and the loss consist of, and annealing between the prior and the posterior."""

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.core.combinator import vae
from vae_jax.evaluation.accounting import rate_split
from vae_jax.evaluation.annealed import ais, linear_betas, path_to_joint, reverse_ais
from vae_jax.parts.l2_distortion import l2
from vae_jax.parts.priors import standard_normal, vampprior
from vae_jax.selfcheck.check import Check, Row, average
from vae_jax.selfcheck.quadrature import expected_terms, hermite
from vae_jax.selfcheck.solvable import (
    LN_P,
    affine,
    affine_normal,
    discrete,
    discrete_tables,
    floats,
    normal_kl,
    probabilities,
    toy,
)

MEANS, STD = np.array([-3.0, -1.0, 1.0, 3.0]), 0.5


def marginal_kl() -> float:
    """numpy: KL(aggregate || N(0, 1)) of encoders N(MEANS, STD^2), by the trapezoidal rule."""
    z = np.linspace(-10.0, 10.0, 4001)
    log_normal = lambda mean, std: -0.5 * ((z - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)  # noqa: E731
    log_q = np.logaddexp.reduce([log_normal(mean, STD) for mean in MEANS], axis=0) - np.log(4)
    return float(np.sum(np.exp(log_q) * (log_q - log_normal(0.0, 1.0))) * (z[1] - z[0]))


def parts_of_the_rate() -> list[Row]:
    """2.81815 = 1.29565 + 1.52249. The aggregate itself as the prior (a VampPrior on the data) leaves I(y; z)."""
    encoder, ys = affine_normal(1), floats(MEANS[:, None])
    enc = floats({"weights": np.eye(1), "bias": np.zeros(1), "log_std": np.log([STD])})
    params = {"enc": enc, "pri": {}, "gen": floats({"weights": np.eye(1), "bias": np.zeros(1)})}
    priors = {standard_normal(1): {}, vampprior(encoder, MEANS[:, None]): {"pseudo": ys, "enc": enc}}

    @jax.jit
    def rates(params, pris, quadrature, ys):
        def mean_rate(prior, pri):
            model = vae(encoder, prior, l2(affine(1), 1.0))
            return jnp.mean(expected_terms(model, {**params, "pri": pri}, ys, quadrature).rate)

        return [mean_rate(prior, pri) for prior, pri in zip(priors, pris, strict=True)]

    whole, kl = float(normal_kl(MEANS, STD**2).mean()), marginal_kl()
    at_standard, at_aggregate = rates(params, list(priors.values()), hermite(100), ys)
    split = rate_split(encoder, standard_normal(1), params, jax.random.key(6), np.repeat(MEANS, 500)[:, None])
    return [
        Row("E KL(enc || N(0, 1))", whole, at_standard),
        Row("under the aggregate: I(y; z)", whole - kl, at_aggregate),
        Row("I(y; z) by rate_split, 2,000 draws", whole - kl, *split.mutual_information),
        Row("KL(aggregate || N(0, 1)) by rate_split", kl, *split.marginal_kl),
    ]


def expected_loss() -> list[Row]:
    """Tables of y in 0 .. 3 and z in 0 .. 2, every term by enumeration."""
    tables, pop = discrete_tables(seed=1), np.array([0.1, 0.2, 0.3, 0.4])
    enc, pri, gen = (probabilities(tables[name]) for name in ("enc", "pri", "gen"))
    joint = pri[:, None] * gen
    marginal = joint.sum(axis=0)
    kls = np.sum(enc * np.log(enc / (joint / marginal).T), axis=1)
    terms = jax.jit(jax.vmap(discrete().model.terms, in_axes=(None, None, 0)))
    found = terms(floats(tables), jax.random.key(0), jnp.arange(4))
    loss, rates = (np.asarray(x, np.float64) for x in (found.nats, found.rate))
    entropy, kl = -np.sum(pop * np.log(pop)), np.sum(pop * np.log(pop / marginal))
    return [
        Row("E[-ELBO]", entropy + kl + pop @ kls, pop @ loss),
        Row("-ELBO of each y", kls - np.log(marginal), loss),
        Row("rate of each y: KL(enc || pri)", np.sum(enc * np.log(enc / pri[None]), axis=1), rates),
    ]


def sandwich(temperatures: int) -> np.ndarray:
    """(E ln w, -E ln w backwards) on the toy. Transitions are exact draws mean + std * noise of f_b, one noise for all:
    every term of ln w depends on one draw, so quadrature over that noise gives the expectation."""
    betas = linear_betas(temperatures)
    nodes, weights = hermite(8)

    @jax.jit
    def log_weights(params, mean, std, nodes, key, y):
        path = path_to_joint(standard_normal(1), l2(affine(2), 0.5**0.5), params, y)

        def at(noise):
            exact = lambda key, z, t, log_density: mean[t] + std[t] * noise  # noqa: E731
            given = path._replace(sample=lambda key: mean[0] + std[0] * noise)
            below = ais(given, key, betas, chains=1, transition=exact)
            above = reverse_ais(given, key, mean[-1] + std[-1] * noise, betas, chains=1, transition=exact)
            return below[0], above[0]

        return jax.vmap(at)(nodes)

    variance = 1 / (1 + 10 * betas)
    gaussians = floats([(-2 * betas * variance)[:, None], np.sqrt(variance)[:, None]])
    below, above = log_weights(toy().params, *gaussians, floats(nodes), jax.random.key(0), toy().ys[0])
    return np.array([weights @ np.asarray(below, np.float64), -weights @ np.asarray(above, np.float64)])


def annealing() -> list[Row]:
    """With exact transitions both expectations; with Hamiltonian Monte Carlo, the default, E w = P(y)."""

    @jax.jit
    def log_weights(params, key, y):
        path = path_to_joint(standard_normal(1), l2(affine(2), 0.5**0.5), params, y)
        return ais(path, key, linear_betas(16), chains=2000)

    log_w = np.asarray(log_weights(toy().params, jax.random.key(10), toy().ys[0]), np.float64)
    return [
        Row("T = 16: E ln w, and backwards", (-4.326916, -4.030428), sandwich(16)),
        Row("T = 256: E ln w, and backwards", (-4.171193, -4.152662), sandwich(256)),
        average("HMC, 2,000 chains: E w / P(y)", 1.0, np.exp(log_w - LN_P)),
    ]


CHECKS = [
    Check(18, "E rate = I(y; z) + KL(aggregate || prior)", parts_of_the_rate, 1e-5, 1e-6),
    Check(19, "E[-ELBO] = H(pop) + KL(pop || model) + E KL(enc || posterior)", expected_loss, 1e-5, 1e-12),
    Check(20, "annealed importance sampling from both sides", annealing, 2e-5, 6e-7),
]
