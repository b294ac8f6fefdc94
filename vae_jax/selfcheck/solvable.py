"""Models small enough to be solved by hand: what is exact is computed by numpy in float64, without the library.

Parameters are arrays of the precision that is set when a system is built. Hand them to compiled functions as arguments,
never closed over: what a compiler can see it may compute itself, and the device would not be tested.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from vae_jax.core.combinator import vae
from vae_jax.core.estimators import Estimator, enumerated, sampled
from vae_jax.core.model import Conditional, Model
from vae_jax.core.network import Network
from vae_jax.parts.conditionals import conditional
from vae_jax.parts.l2_distortion import l2
from vae_jax.parts.priors import standard_normal
from vae_jax.selfcheck.quadrature import GivenNoise

LN_P = -4.161859340430404  # of the toy's y
POSTERIOR = (-2 / 11, 1 / 11)  # mean, variance of the toy's P(z|y)
NEAR = (0.3, 0.2)  # an encoder that is not the posterior
STD1, STD2 = 0.7, 0.6  # of the noise of `two_layers`
EIGENVALUES = np.array([4.0, 2.0, 1.0, 0.5, 0.5])  # of the data of linear VAEs


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


def floats(tree: Any) -> Any:
    """numpy arrays as float arrays on the device, in the precision that is set."""
    return jax.tree.map(lambda x: jnp.asarray(x, float), tree)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """numpy: along the last axis."""
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """numpy: softmax along the last axis."""
    return np.exp(log_softmax(logits))


def log_normal(ys: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """numpy: (n,) ln N(y; 0, covariance)."""
    squares = np.sum(ys * np.linalg.solve(covariance, ys.T).T, axis=1)
    return -0.5 * (squares + np.linalg.slogdet(2 * np.pi * covariance)[1])


def normal_kl(mean: Any, variance: Any, mean_p: Any = 0.0, variance_p: Any = 1.0) -> Any:
    """numpy: KL(N(mean, variance) || N(mean_p, variance_p))."""
    return 0.5 * (np.log(variance_p / variance) + (variance + (mean - mean_p) ** 2) / variance_p - 1)


def affine(size: int, scale: float = 0.3) -> Network:
    """x -> weights @ x + bias, from any vector to one of `size` numbers."""

    def init(key, x):
        return {"weights": scale * jax.random.normal(key, (size, x.shape[0])), "bias": jnp.zeros(size)}

    return Network(init, lambda params, x: params["weights"] @ x + params["bias"])


def affine_normal(size: int, scale: float = 0.3) -> Conditional:
    """N(weights @ c + bias, diag(exp(log_std))^2); with a parameter "noise" every draw has that one."""
    mean = affine(size, scale)

    def init(key, c):
        return {**mean.init(key, c), "log_std": jnp.zeros(size)}

    def apply(params, c):
        return mean.apply(params, c), jnp.exp(params["log_std"]), params.get("noise")

    def make(output):
        loc, std, noise = output
        return (dist.Normal(loc, std) if noise is None else GivenNoise(loc, std, noise)).to_event(1)

    return conditional((init, apply), make)


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
def linear_gaussian_model(size: int, latent: int, sigma: Any, estimator: Estimator = sampled) -> Model:
    """vae(affine_normal, standard_normal, l2(affine, sigma)); one object for the same arguments, compiled once."""
    return vae(affine_normal(latent), standard_normal(latent), l2(affine(size), sigma), estimator=estimator)


def linear_gaussian(
    weights: Any, variance: float, ys: Any, *, widen: float = 1.3, shift: float = 0.2, estimator: Estimator = sampled
) -> Solvable:
    """z ~ N(0, I), y = weights z + noise of the given variance: probabilistic PCA.

    The columns of weights (d, q) are orthogonal. The posterior is then N(M^-1 W' y, variance M^-1), M = W'W + variance
    times I diagonal. `params` has its standard deviations times `widen` and its mean moved by `shift`.
    """
    weights, ys = np.asarray(weights, float), np.asarray(ys, float)
    d, q = weights.shape
    m = np.diag(weights.T @ weights) + variance
    posterior = {"weights": weights.T / m[:, None], "bias": np.zeros(q), "log_std": 0.5 * np.log(variance / m)}
    near = {**posterior, "bias": np.full(q, shift), "log_std": posterior["log_std"] + np.log(widen)}
    params, exact = ({"enc": e, "pri": {}, "gen": {"weights": weights, "bias": np.zeros(d)}} for e in (near, posterior))
    model = linear_gaussian_model(d, q, float(np.sqrt(variance)), estimator)
    log_p = log_normal(ys, weights @ weights.T + variance * np.eye(d))
    return Solvable(model, floats(params), floats(exact), floats(ys), log_p)


def toy(mean: float = NEAR[0], variance: float = NEAR[1], *, estimator: Estimator = sampled) -> Solvable:
    """z ~ N(0, 1), y ~ N((1, 2) z, 0.5 I), y = (1, -1). The encoder of `params` is N(mean, variance), whatever y."""
    system = linear_gaussian([[1.0], [2.0]], 0.5, [[1.0, -1.0]], estimator=estimator)
    enc = {"weights": np.zeros((1, 2)), "bias": np.array([mean]), "log_std": np.array([0.5 * np.log(variance)])}
    return system._replace(params={**system.params, "enc": floats(enc)})


def table(size: int | tuple[int, ...]) -> Conditional:
    """P(x) = softmax(logits), no condition: free logits."""
    shape = size if isinstance(size, tuple) else (size,)
    return Conditional(
        lambda key, c=None: jax.random.normal(key, shape), lambda params, c=None: dist.CategoricalLogits(params)
    )


def table_of(conditions: int, size: int) -> Conditional:
    """P(x|c) = softmax(logits[c]) for c in 0 .. conditions - 1: free logits, universal."""
    network = (lambda key, c: jax.random.normal(key, (conditions, size)), lambda params, c: params[c])
    return conditional(network, lambda logits: dist.CategoricalLogits(logits))


@functools.cache
def discrete_model(values: int, codes: int, estimator: Estimator = enumerated) -> Model:
    """Tables of free logits; one object for the same arguments."""
    return vae(table_of(values, codes), table(codes), table_of(codes, values), estimator=estimator)


def discrete_tables(values: int = 4, codes: int = 3, *, seed: int = 0) -> dict[str, np.ndarray]:
    """numpy: logits of `discrete`."""
    rng, shapes = np.random.default_rng(seed), {"enc": (values, codes), "pri": (codes,), "gen": (codes, values)}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def discrete(values: int = 4, codes: int = 3, *, seed: int = 0, estimator: Estimator = enumerated) -> Solvable:
    """y in 0 .. values - 1 and z in 0 .. codes - 1, every distribution a table of free logits; ys holds every y."""
    tables = discrete_tables(values, codes, seed=seed)
    joint = log_softmax(tables["pri"])[:, None] + log_softmax(tables["gen"])  # ln P(z, y), (codes, values)
    params, exact = floats((tables, {**tables, "enc": joint.T}))
    log_p = np.logaddexp.reduce(joint, axis=0)
    return Solvable(discrete_model(values, codes, estimator), params, exact, jnp.arange(values), log_p)


@functools.cache
def two_layer_model() -> Model:
    """A VAE of 3 numbers whose prior, of 2 numbers, is a VAE; one object."""
    prior = vae(affine_normal(1), standard_normal(1), l2(affine(2), STD2))
    return vae(full_normal(2), prior, l2(affine(3), STD1))


def two_layers(*, seed: int = 0, widen: float = 1.15) -> Solvable:
    """z2 ~ N(0, 1), z1 = W2 z2 + noise (2 numbers), y = W1 z1 + noise (3 numbers): a VAE whose prior is a VAE.

    `params` has the standard deviations of both posteriors times `widen`.
    """
    rng = np.random.default_rng(seed)
    w1, w2 = rng.normal(size=(3, 2)), rng.normal(size=(2, 1))
    cov1 = w2 @ w2.T + STD2**2 * np.eye(2)  # of z1
    cov_y = w1 @ cov1 @ w1.T + STD1**2 * np.eye(3)
    posterior1 = np.linalg.inv(np.linalg.inv(cov1) + w1.T @ w1 / STD1**2)
    variance2 = 1 / (1 + (w2.T @ w2).item() / STD2**2)

    def parameters(scale):
        tril = scale * np.linalg.cholesky(posterior1)
        enc1 = {"weights": posterior1 @ w1.T / STD1**2, "bias": np.zeros(2), "tril": tril}
        log_std = np.array([0.5 * np.log(variance2) + np.log(scale)])
        enc2 = {"weights": variance2 * w2.T / STD2**2, "bias": np.zeros(1), "log_std": log_std}
        pri = {"enc": enc2, "pri": {}, "gen": {"weights": w2, "bias": np.zeros(2)}}
        return {"enc": enc1, "pri": pri, "gen": {"weights": w1, "bias": np.zeros(3)}}

    ys = rng.multivariate_normal(np.zeros(3), cov_y, size=3)
    params, exact = floats((parameters(widen), parameters(1.0)))
    return Solvable(two_layer_model(), params, exact, floats(ys), log_normal(ys, cov_y))


def data_with_covariance(eigenvalues: Any = EIGENVALUES, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(ys (2 d, d), axes (d, d)): data of mean 0 whose covariance has exactly these eigenvalues, along the columns."""
    d = len(eigenvalues)
    axes = np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]
    points = np.sqrt(d * np.asarray(eigenvalues))[:, None] * axes.T
    return np.concatenate([points, -points]), axes


def linear_vae_optimum(
    latent: int, variance: float, beta: float = 1.0, eigenvalues: Any = EIGENVALUES
) -> tuple[jax.Array, Any]:
    """(ys, params): the optimum of distortion + beta * rate over linear VAEs with that fixed variance.

    Direction i is active iff eigenvalue_i > beta * variance; then W_i = sqrt(eigenvalue_i - beta variance) times its
    axis, and its encoder has variance beta variance / eigenvalue_i. The encoder is that of `affine_normal`.
    """
    ys, axes = data_with_covariance(eigenvalues)
    top, columns = np.asarray(eigenvalues, float)[:latent], axes[:, :latent]
    left = np.minimum(top, beta * variance)  # of the variance of direction i, when z is known
    gain = np.sqrt(top - left)
    enc = {"weights": (gain / top)[:, None] * columns.T, "bias": np.zeros(latent), "log_std": 0.5 * np.log(left / top)}
    return floats((ys, {"enc": enc, "pri": {}, "gen": {"weights": columns * gain, "bias": np.zeros(len(axes))}}))
