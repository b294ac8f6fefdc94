"""Exactly solvable models: the oracles of the other tests.

Everything exact here is computed by numpy in float64, without the library. Build the systems inside a test, so that
their parameters have its precision (the `x64` fixture).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from scipy.special import log_softmax, logsumexp
from scipy.stats import multivariate_normal

from vae_jax import Conditional, Model, Terms, conditional, enumerated, l2, sampled, standard_normal, vae
from vae_jax.core import Estimator, Network


class Solvable(NamedTuple):
    """A model with everything known about it.

    Fields:
        model: P(y) as the library makes it.
        params: parameters with an encoder that is not the posterior, but near enough for importance sampling.
        exact: the same P(y) with the exact posterior as the encoder, so that every draw of nats is -ln P(y).
        ys: (n, *example) examples.
        log_p: (n,) their exact ln P(y), nats, float64.
    """

    model: Model
    params: Any
    exact: Any
    ys: jax.Array
    log_p: np.ndarray


class NormalAt(dist.Normal):
    """N(loc, scale^2) whose noise is given: every "sample" is loc + scale * eps, for expectations by quadrature."""

    pytree_data_fields = ("eps",)

    def __init__(self, loc, scale, eps):
        self.eps = eps
        super().__init__(loc, scale)

    def sample(self, key, sample_shape=()):
        del key, sample_shape
        return self.loc + self.scale * self.eps


def affine(size: int, scale: float = 0.3) -> Network:
    """x -> weights @ x + bias, from any vector to one of `size` numbers."""

    def init(key, x):
        return {"weights": scale * jax.random.normal(key, (size, x.shape[0])), "bias": jnp.zeros(size)}

    return Network(init, lambda params, x: params["weights"] @ x + params["bias"])


def affine_normal(size: int, scale: float = 0.3) -> Conditional:
    """N(weights @ c + bias, diag(exp(log_std))^2) of `size` numbers.

    With an extra parameter "eps" the noise is that: see `expected_terms`.
    """
    mean = affine(size, scale)

    def init(key, c):
        return {**mean.init(key, c), "log_std": jnp.zeros(size)}

    def apply(params, c):
        return mean.apply(params, c), jnp.exp(params["log_std"]), params.get("eps")

    def make(output):
        loc, std, eps = output
        return (dist.Normal(loc, std) if eps is None else NormalAt(loc, std, eps)).to_event(1)

    return conditional((init, apply), make)


def hermite_nodes(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """(nodes (n, 1), weights (n,)) of Gauss-Hermite quadrature: E f(eps) for one eps ~ N(0, 1), f smooth."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return nodes[:, None], weights / weights.sum()


def sigma_points(size: int) -> tuple[np.ndarray, np.ndarray]:
    """(nodes (2 size, size), weights (2 size,)): E f(eps) exactly, eps ~ N(0, I), for f a polynomial of degree 3."""
    points = np.sqrt(size) * np.concatenate([np.eye(size), -np.eye(size)])
    return points, np.full(2 * size, 0.5 / size)


def at_nodes(function, params, nodes, y) -> Terms:
    """`function` (terms or importance of a model) of one y at every node of the encoder's noise: axis 0 of the terms.

    The encoder has to be `affine_normal`.
    """

    def at(eps):
        return function({**params, "enc": {**params["enc"], "eps": eps}}, jax.random.key(0), y)

    return jax.vmap(at)(jnp.asarray(nodes))


@functools.partial(jax.jit, static_argnums=0)
def expected_terms(model: Model, params: Any, ys: Any, quadrature: tuple[Any, Any]) -> Terms:
    """(n,) distortion and rate of each y: the exact expectations over the encoder's noise, by quadrature."""
    nodes, weights = quadrature

    def one(y):
        terms = at_nodes(model.terms, params, nodes, y)
        return Terms(weights @ terms.distortion, weights @ terms.rate, 0.0)

    return jax.vmap(one)(ys)


@functools.cache
def linear_gaussian_model(size: int, latent: int, sigma: Any, estimator: Estimator = sampled) -> Model:
    """vae(affine_normal, standard_normal, l2(affine, sigma)); one object for the same arguments, compiled once."""
    return vae(affine_normal(latent), standard_normal(latent), l2(affine(size), sigma), estimator=estimator)


def linear_gaussian(
    weights, variance: float, ys, *, widen: float = 1.3, shift: float = 0.2, estimator: Estimator = sampled
) -> Solvable:
    """z ~ N(0, I), y = weights z + noise of the given variance: probabilistic PCA.

    The columns of weights (d, q) are orthogonal. The posterior is then N(M^-1 W' y, variance M^-1), M = W'W + variance
    times I diagonal. `params` has its standard deviations times `widen` and its mean moved by `shift`.
    """
    weights, ys = np.asarray(weights, float), np.asarray(ys, float)
    d, q = weights.shape
    m = np.diag(weights.T @ weights) + variance
    posterior = {
        "weights": jnp.asarray(weights.T / m[:, None]),
        "bias": jnp.zeros(q),
        "log_std": jnp.asarray(0.5 * np.log(variance / m)),
    }
    near = {**posterior, "bias": jnp.full(q, shift), "log_std": posterior["log_std"] + np.log(widen)}
    others = {"pri": {}, "gen": {"weights": jnp.asarray(weights), "bias": jnp.zeros(d)}}
    model = linear_gaussian_model(d, q, float(np.sqrt(variance)), estimator)
    log_p = multivariate_normal(np.zeros(d), weights @ weights.T + variance * np.eye(d)).logpdf(ys)
    return Solvable(model, {"enc": near, **others}, {"enc": posterior, **others}, jnp.asarray(ys), np.atleast_1d(log_p))


def toy(mean: float = 0.3, variance: float = 0.2, *, estimator: Estimator = sampled) -> Solvable:
    """The toy of the oracles: z ~ N(0, 1), y ~ N((1, 2) z, 0.5 I), y = (1, -1), ln P(y) = -4.161859340430404.

    The encoder of `params` is N(mean, variance), whatever y.
    """
    system = linear_gaussian([[1.0], [2.0]], 0.5, [[1.0, -1.0]], estimator=estimator)
    enc = {
        "weights": jnp.zeros((1, 2)),
        "bias": jnp.array([mean], float),
        "log_std": jnp.array([0.5 * np.log(variance)]),
    }
    return system._replace(params={**system.params, "enc": enc})


def table(size: int | tuple[int, ...]) -> Conditional:
    """P(x) = softmax(logits), no condition: free logits."""
    return Conditional(
        lambda key, c=None: jax.random.normal(key, np.atleast_1d(size)),
        lambda params, c=None: dist.CategoricalLogits(params),
    )


def table_of(conditions: int, size: int) -> Conditional:
    """P(x|c) = softmax(logits[c]) for c in 0 .. conditions - 1: free logits, universal."""

    def init(key, c):
        del c
        return jax.random.normal(key, (conditions, size))

    return conditional((init, lambda params, c: params[c]), lambda logits: dist.CategoricalLogits(logits))


@functools.cache
def discrete_model(values: int, codes: int, estimator: Estimator = enumerated) -> Model:
    """Tables of free logits; one object for the same arguments."""
    return vae(table_of(values, codes), table(codes), table_of(codes, values), estimator=estimator)


def discrete(values: int = 4, codes: int = 3, *, seed: int = 0, estimator: Estimator = enumerated) -> Solvable:
    """y in 0 .. values - 1 and z in 0 .. codes - 1, every distribution a table of free logits; ys holds every y."""
    rng = np.random.default_rng(seed)
    enc, pri, gen = rng.normal(size=(values, codes)), rng.normal(size=codes), rng.normal(size=(codes, values))
    joint = log_softmax(pri)[:, None] + log_softmax(gen, axis=1)  # ln P(z, y), (codes, values)
    others = {"pri": jnp.asarray(pri), "gen": jnp.asarray(gen)}
    return Solvable(
        discrete_model(values, codes, estimator),
        {"enc": jnp.asarray(enc), **others},
        {"enc": jnp.asarray(joint.T), **others},
        jnp.arange(values),
        logsumexp(joint, axis=0),
    )


STD1, STD2 = 0.7, 0.6


def full_normal(size: int) -> Conditional:
    """N(weights @ c + bias, tril tril'): the posterior family of every linear-Gaussian model."""
    mean = affine(size)

    def init(key, c):
        return {**mean.init(key, c), "tril": jnp.eye(size)}

    return conditional(
        (init, lambda params, c: (mean.apply(params, c), params["tril"])),
        lambda output: dist.MultivariateNormal(output[0], scale_tril=output[1]),
    )


@functools.cache
def two_layer_model() -> Model:
    """A VAE of 3 numbers whose prior, of 2 numbers, is a VAE; one object."""
    prior = vae(affine_normal(1), standard_normal(1), l2(affine(2), STD2))
    return vae(full_normal(2), prior, l2(affine(3), STD1))


def two_layers(*, seed: int = 0, widen: float = 1.15) -> Solvable:
    """z2 ~ N(0, 1), z1 = W2 z2 + noise (2 numbers), y = W1 z1 + noise (3 numbers): a VAE whose prior is a VAE."""
    rng = np.random.default_rng(seed)
    w1, w2 = rng.normal(size=(3, 2)), rng.normal(size=(2, 1))
    cov1 = w2 @ w2.T + STD2**2 * np.eye(2)  # of z1
    cov_y = w1 @ cov1 @ w1.T + STD1**2 * np.eye(3)
    posterior1 = np.linalg.inv(np.linalg.inv(cov1) + w1.T @ w1 / STD1**2)
    variance2 = 1 / (1 + (w2.T @ w2).item() / STD2**2)

    def encoders(scale):
        tril = scale * np.linalg.cholesky(posterior1)
        enc1 = {"weights": jnp.asarray(posterior1 @ w1.T / STD1**2), "bias": jnp.zeros(2), "tril": jnp.asarray(tril)}
        log_std = jnp.array([0.5 * np.log(variance2) + np.log(scale)])
        enc2 = {"weights": jnp.asarray(variance2 * w2.T / STD2**2), "bias": jnp.zeros(1), "log_std": log_std}
        gen2 = {"weights": jnp.asarray(w2), "bias": jnp.zeros(2)}
        gen1 = {"weights": jnp.asarray(w1), "bias": jnp.zeros(3)}
        return {"enc": enc1, "pri": {"enc": enc2, "pri": {}, "gen": gen2}, "gen": gen1}

    ys = rng.multivariate_normal(np.zeros(3), cov_y, size=3)
    log_p = multivariate_normal(np.zeros(3), cov_y).logpdf(ys)
    return Solvable(two_layer_model(), encoders(widen), encoders(1.0), jnp.asarray(ys), log_p)


EIGENVALUES = np.array([4.0, 2.0, 1.0, 0.5, 0.5])


def data_with_covariance(eigenvalues=EIGENVALUES, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(ys (2 d, d), axes (d, d)): data of mean 0 whose covariance has exactly these eigenvalues, along the columns."""
    d = len(eigenvalues)
    axes = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]
    points = np.sqrt(d * np.asarray(eigenvalues))[:, None] * axes.T
    return np.concatenate([points, -points]), axes


def linear_vae_optimum(latent: int, variance: float, beta: float = 1.0, eigenvalues=EIGENVALUES, *, seed: int = 0):
    """(ys, enc, gen weights): the optimum of distortion + beta * rate over linear VAEs with that fixed variance.

    Direction i is active iff eigenvalue_i > beta * variance; then W_i = sqrt(eigenvalue_i - beta variance) times its
    axis, and its encoder has variance beta variance / eigenvalue_i. The encoder is that of `affine_normal`.
    """
    ys, axes = data_with_covariance(eigenvalues, seed=seed)
    top = np.asarray(eigenvalues, float)[:latent]
    noise = np.where(top > beta * variance, beta * variance, top)  # what is left of direction i, times its gain
    columns = axes[:, :latent]
    weights = columns * np.sqrt(top - noise)
    enc = {
        "weights": jnp.asarray(np.sqrt(top - noise)[:, None] / top[:, None] * columns.T),
        "bias": jnp.zeros(latent),
        "log_std": jnp.asarray(0.5 * np.log(noise / top)),
    }
    return jnp.asarray(ys), enc, {"weights": jnp.asarray(weights), "bias": jnp.zeros(len(axes))}
