"""Expectations over an encoder's noise, exact: sums over nodes. The encoder has to be `solvable.affine_normal`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from vae_jax.core.model import Model, Terms


class GivenNoise(dist.Normal):
    """N(loc, scale^2) whose every draw is loc + scale * noise."""

    pytree_data_fields = ("noise",)

    def __init__(self, loc, scale, noise):
        self.noise = noise
        super().__init__(loc, scale)

    def sample(self, key, sample_shape=()):
        del key, sample_shape
        return self.loc + self.scale * self.noise


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

    return jax.vmap(at)(jnp.asarray(nodes))


@functools.partial(jax.jit, static_argnums=0)
def expected_terms(model: Model, params: Any, ys: Any, quadrature: tuple[Any, Any]) -> Terms:
    """(n,) E distortion and E rate of each y."""
    nodes, weights = quadrature

    def one(y):
        terms = at_nodes(model.terms, params, nodes, y)
        return Terms(weights @ terms.distortion, weights @ terms.rate)

    return jax.vmap(one)(ys)
