"""Oracles 10 to 13: linear VAEs, probabilistic PCA and posterior collapse."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.core.distributions import raw_log_std
from vae_jax.core.estimators import analytic
from vae_jax.core.model import Model
from vae_jax.data.tables import load_table
from vae_jax.em.algorithm import fit_em
from vae_jax.em.factor_models import ppca, ppca_closed_form
from vae_jax.evaluation.linear_theory import collapse
from vae_jax.selfcheck.check import Check, Row
from vae_jax.selfcheck.quadrature import expected_terms, sigma_points
from vae_jax.selfcheck.solvable import (
    EIGENVALUES,
    data_with_covariance,
    floats,
    linear_gaussian_model,
    linear_vae_optimum,
)


def probabilistic_pca() -> list[Row]:
    """s2 = 2/3, the mean of the discarded eigenvalues, at maximum likelihood."""
    model = linear_gaussian_model(5, 2, (2 / 3) ** 0.5)
    ys, params = linear_vae_optimum(2, 2 / 3)
    terms = jax.jit(jax.vmap(model.terms, in_axes=(None, 0, 0)))
    nats = np.asarray(terms(params, jax.random.split(jax.random.key(1), 10), ys).nats, np.float64)
    return [
        Row("linear VAE at its optimum, any draw: mean ln p", -7.52621577, -nats.mean()),
        Row("ppca_closed_form", -7.52621577, ppca_closed_form(data_with_covariance()[0], 2).log_p),
    ]


def real_data() -> list[Row]:
    """-1/2 [d ln 2 pi + sum ln l_i (kept) + (d - q) ln s2 + d], l the eigenvalues of the covariance of iris, q = 2."""
    ys = load_table("iris").ys
    values = np.linalg.eigvalsh(np.cov(ys.T, bias=True))[::-1]
    exact = -0.5 * (4 * np.log(2 * np.pi) + np.log(values[:2]).sum() + 2 * np.log(values[2:].mean()) + 4)
    fitted = fit_em(ppca(4, 2), floats(ys), key=jax.random.key(0), iterations=500, tolerance=None)
    return [
        Row("ppca_closed_form", exact, ppca_closed_form(ys, 2).log_p),
        Row("EM, 500 iterations", exact, fitted.history[-1]),
    ]


@functools.partial(jax.jit, static_argnums=0)
def loss_of(model: Model, params: Any, beta: Any, quadrature: Any, ys: Any) -> Any:
    """(mean terms, the gradient of distortion + beta rate), the expectation over the encoder's noise exact."""

    def loss(params):
        terms = jax.tree.map(jnp.mean, expected_terms(model, params, ys, quadrature))
        return terms.distortion + beta * terms.rate, terms

    gradient, terms = jax.grad(loss, has_aux=True)(params)
    return terms, gradient


def largest(tree: Any) -> float:
    return max(float(np.abs(x).max()) for x in jax.tree.leaves(tree))


def fixed_sigma() -> list[Row]:
    """s2 = .7: the rate on the Gaussian's rate-distortion function, and a loss that is stationary there."""
    rows, model = [], linear_gaussian_model(5, 5, 0.7**0.5, analytic)
    for beta, active, rate in ((1.0, 3, 1.57473319), (2.0, 2, 0.70324853)):
        ys, params = linear_vae_optimum(5, 0.7, beta)
        terms, gradient = loss_of(model, params, beta, sigma_points(5), ys)
        distortion = np.minimum(EIGENVALUES, beta * 0.7).sum() / 1.4 + 2.5 * np.log(2 * np.pi * 0.7)
        theory = collapse(EIGENVALUES, beta=beta, variance=0.7)
        rows += [
            Row(f"beta = {beta:g}: rate", rate, terms.rate),
            Row(f"beta = {beta:g}: distortion", distortion, terms.distortion),
            Row(f"beta = {beta:g}: largest gradient", 0.0, largest(gradient)),
            Row(f"beta = {beta:g}: active units, rate of `collapse`", (active, rate), (theory.active, theory.rate)),
        ]
    return rows


def learned_sigma() -> list[Row]:
    """s2* = sum of inactive eigenvalues / (d - beta k), k active units."""
    rows, model = [], linear_gaussian_model(5, 3, "learned", analytic)
    for beta, active, variance in ((1.5, 2, 1.0), (2.0, 1, 4 / 3), (3.0, 0, 1.6)):
        ys, params = linear_vae_optimum(3, variance, beta)
        params["gen"] = {"net": params["gen"], "log_sigma": raw_log_std(0.5 * jnp.log(floats(variance)))}
        terms, gradient = loss_of(model, params, beta, sigma_points(3), ys)
        theory = collapse(EIGENVALUES, beta=beta, units=3)
        rows += [
            Row(f"beta = {beta:g}: largest gradient, sigma's too", 0.0, largest(gradient)),
            Row(f"beta = {beta:g}: units, s2 of `collapse`", (active, variance), (theory.active, theory.variance)),
            Row(f"beta = {beta:g}: rate", 0.5 * np.log(EIGENVALUES[:active] / (beta * variance)).sum(), terms.rate),
        ]
    return rows


CHECKS = [
    Check(10, "the optimal linear VAE is probabilistic PCA", probabilistic_pca, 2e-5, 6e-9),
    Check(13, "maximum likelihood of probabilistic PCA, iris", real_data, 1e-5, 1e-9),
    Check(11, "posterior collapse: direction i is active iff l_i > beta s2", fixed_sigma, 2e-5, 6e-9),
    Check(12, "learned s2 with beta != 1", learned_sigma, 2e-5, 1e-9),
]
