"""Models small enough to be solved by hand. Parameters are arrays of the precision that is set when they are built.

All of them are handed to compiled functions as arguments, never closed over: what a compiler can see it may compute
itself, and the device would not be tested.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from vae_jax.core.combinator import vae
from vae_jax.core.estimators import Estimator, enumerated, sampled
from vae_jax.core.model import Conditional, Model, Terms
from vae_jax.core.network import Network
from vae_jax.parts.conditionals import conditional
from vae_jax.parts.l2_distortion import l2
from vae_jax.parts.priors import standard_normal

LN_P = -4.161859340430404  # of the toy's y
POSTERIOR = (-2 / 11, 1 / 11)  # mean, variance of the toy's P(z|y)
NEAR = (0.3, 0.2)  # an encoder that is not the posterior


class GivenNoise(dist.Normal):
    """N(loc, scale^2) whose every draw is loc + scale * noise, for expectations by quadrature."""

    pytree_data_fields = ("noise",)

    def __init__(self, loc, scale, noise):
        self.noise = noise
        super().__init__(loc, scale)

    def sample(self, key, sample_shape=()):
        del key, sample_shape
        return self.loc + self.scale * self.noise


def affine(size: int) -> Network:
    """x -> weights @ x + bias."""

    def init(key, x):
        return {"weights": jax.random.normal(key, (size, x.shape[0])), "bias": jnp.zeros(size)}

    return Network(init, lambda params, x: params["weights"] @ x + params["bias"])


def affine_normal(size: int) -> Conditional:
    """N(weights @ c + bias, diag(exp(log_std))^2); with a parameter "noise" every draw has that one."""
    mean = affine(size)

    def init(key, c):
        return {**mean.init(key, c), "log_std": jnp.zeros(size)}

    def apply(params, c):
        return mean.apply(params, c), jnp.exp(params["log_std"]), params.get("noise")

    def make(output):
        loc, std, noise = output
        return (dist.Normal(loc, std) if noise is None else GivenNoise(loc, std, noise)).to_event(1)

    return conditional((init, apply), make)


def hermite(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """(nodes (n, 1), weights (n,)): E f(eps) for one eps ~ N(0, 1), f smooth."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return nodes[:, None], weights / weights.sum()


def sigma_points(size: int) -> tuple[np.ndarray, np.ndarray]:
    """(nodes (2 size, size), weights (2 size,)): E f(eps), eps ~ N(0, I), exactly for polynomials f of degree 3."""
    points = np.sqrt(size) * np.concatenate([np.eye(size), -np.eye(size)])
    return points, np.full(2 * size, 0.5 / size)


def at_nodes(function: Callable[..., Any], params: Any, nodes: Any, y: Any) -> Any:
    """`function(params, key, y)` of one y, terms or importance of a model, at every node of the encoder's noise."""

    def at(noise):
        return function({**params, "enc": {**params["enc"], "noise": noise}}, jax.random.key(0), y)

    return jax.vmap(at)(nodes)


def expected_terms(model: Model, params: Any, quadrature: tuple[Any, Any], y: Any) -> Terms:
    """E distortion and E rate of one y, by quadrature over the encoder's noise."""
    nodes, weights = quadrature
    terms = at_nodes(model.terms, params, nodes, y)
    return Terms(jnp.sum(weights * terms.distortion), jnp.sum(weights * terms.rate))


@functools.cache
def linear_gaussian(size: int, latent: int, sigma: Any, estimator: Estimator = sampled) -> Model:
    """z ~ N(0, I), y = W z + bias + sigma eps; its encoder is `affine_normal`."""
    return vae(affine_normal(latent), standard_normal(latent), l2(affine(size), sigma), estimator=estimator)


def toy(estimator: Estimator = sampled) -> Model:
    """z ~ N(0, 1), y ~ N((1, 2) z, 0.5 I)."""
    return linear_gaussian(2, 1, 0.5**0.5, estimator)


def toy_params(encoder: tuple[float, float] = NEAR) -> Any:
    """Those of `toy` with the encoder N(mean, variance), whatever y."""
    mean, variance = encoder
    enc = {"weights": np.zeros((1, 2)), "bias": np.array([mean]), "log_std": np.array([0.5 * np.log(variance)])}
    return floats({"enc": enc, "pri": {}, "gen": {"weights": np.array([[1.0], [2.0]]), "bias": np.zeros(2)}})


def toy_y() -> jax.Array:
    return floats(np.array([1.0, -1.0]))


def table(size: int) -> Conditional:
    """P(x) = softmax(logits): free logits."""
    return Conditional(
        lambda key, c=None: jax.random.normal(key, (size,)), lambda params, c=None: dist.CategoricalLogits(params)
    )


def table_of(conditions: int, size: int) -> Conditional:
    """P(x|c) = softmax(logits[c]), c in 0 .. conditions - 1."""
    network = (lambda key, c: jax.random.normal(key, (conditions, size)), lambda params, c: params[c])
    return conditional(network, lambda logits: dist.CategoricalLogits(logits))


@functools.cache
def discrete(estimator: Estimator = enumerated) -> Model:
    """y in 0 .. 3 and z in 0 .. 2, every distribution a table."""
    return vae(table_of(4, 3), table(3), table_of(3, 4), estimator=estimator)


def discrete_tables(seed: int = 0) -> dict[str, np.ndarray]:
    """Logits of `discrete`."""
    rng = np.random.default_rng(seed)
    return {"enc": rng.normal(size=(4, 3)), "pri": rng.normal(size=3), "gen": rng.normal(size=(3, 4))}


def probabilities(logits: np.ndarray) -> np.ndarray:
    """numpy: softmax along the last axis."""
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def floats(tree: Any) -> Any:
    """numpy arrays as float arrays on the device, in the precision that is set."""
    return jax.tree.map(lambda x: jnp.asarray(x, float), tree)


def normal_kl(mean: Any, variance: Any) -> np.ndarray:
    """numpy: KL(N(mean, variance) || N(0, 1))."""
    return 0.5 * (variance + np.square(mean) - 1 - np.log(variance))
