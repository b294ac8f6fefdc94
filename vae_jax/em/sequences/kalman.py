"""Linear-Gaussian chains seen through noise: exact inference over whole paths, in time steps or in parallel.

    z_1 ~ N(m, P),    z_t = A z_{t-1} + N(0, Q),    P(y_t|z_t) = const exp(-1/2 z_t' J_t z_t + h_t' z_t)

An observation enters by its evidence (J, h) alone, so every matrix here is q x q, however long y_t is; without one
J = 0 and h = 0. Square-root form: the update of P = L L' is S S' with S = L (I + L'JL)^-1/2, and no covariance is ever
the difference of two others, so that all stay definite. The smoother is that of Rauch, Tung & Striebel (1965).

In parallel: associative scans (Särkkä & García-Fernández 2021, sections III and IV), O(log T) steps with more work.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from vae_jax.core.linalg import inverse, inverse_of_lower, matmul, transposed
from vae_jax.em.regression import root_of, root_of_inverse

PARALLEL_FROM = 64


class Chain(NamedTuple):
    """mean (q,) and covariance (q, q) of z_1; the transition A (q, q) and the covariance Q of its noise."""

    mean: Array
    covariance: Array
    transition: Array
    noise: Array


class Filtered(NamedTuple):
    """What is known of z_t at time t.

    Fields:
        means: (T, q); covariances: (T, q, q) of P(z_t | y_1 .. y_t).
        predicted: (T, q, q) covariances of P(z_t | y_1 .. y_{t-1}); predictions: (T, q) its means.
        log_ratio: (T,) ln P(y_t | y_1 .. y_{t-1}) - ln P(y_t | z_t at its filtered mean).
    """

    means: Array
    covariances: Array
    predictions: Array
    predicted: Array
    log_ratio: Array


def run_parallel(length: int, parallel: bool | None) -> bool:
    """What the user chose; else an associative scan on accelerators for sequences of 64 steps or more."""
    return (length >= PARALLEL_FROM and jax.default_backend() != "cpu") if parallel is None else parallel


def kalman_filter(chain: Chain, precision: Array, shift: Array, *, parallel: bool) -> Filtered:
    """Filter one sequence: precision J (T, q, q) and shift h (T, q)."""
    filtered = _in_parallel(chain, precision, shift) if parallel else _in_steps(chain, precision, shift)
    before = jax.tree.map(lambda x: x[:-1], filtered)
    mean, covariance = _predict(chain, *before)
    predictions = jnp.concatenate([chain.mean[None], mean])
    predicted = jnp.concatenate([chain.covariance[None], covariance])
    means, covariances, moved, log_det = _update(predictions, predicted, precision, shift)
    return Filtered(means, covariances, predictions, predicted, -0.5 * (log_det + jnp.sum(moved**2, axis=-1)))


def _predict(chain: Chain, mean: Array, covariance: Array) -> tuple[Array, Array]:
    spread = matmul(matmul(chain.transition, covariance), chain.transition.T)
    noise = jnp.broadcast_to(chain.noise, spread.shape)
    return matmul(mean, chain.transition.T), 0.5 * (spread + jnp.swapaxes(spread, -1, -2)) + noise


def _update(mean: Array, covariance: Array, precision: Array, shift: Array) -> tuple[Array, Array, Array, Array]:
    """(mean, covariance) given the evidence; the way the mean went, in units of the prior; ln |I + L'JL|."""
    left = root_of(covariance)
    eye = jnp.broadcast_to(jnp.eye(left.shape[-1], dtype=left.dtype), left.shape)
    root = root_of_inverse(eye + matmul(transposed(left), matmul(precision, left)))
    gradient = shift - _times(precision, mean)
    moved = _times(root, _times(transposed(root), _times(transposed(left), gradient)))
    log_det = -2 * jnp.sum(jnp.log(jnp.diagonal(root, axis1=-2, axis2=-1)), axis=-1)
    square_root = matmul(left, root)
    return mean + _times(left, moved), matmul(square_root, transposed(square_root)), moved, log_det


def _in_steps(chain: Chain, precision: Array, shift: Array) -> tuple[Array, Array]:
    def step(predicted, evidence):
        mean, covariance, _, _ = _update(*predicted, *evidence)
        return _predict(chain, mean, covariance), (mean, covariance)

    return jax.lax.scan(step, (chain.mean, chain.covariance), (precision, shift))[1]


def _in_parallel(chain: Chain, precision: Array, shift: Array) -> tuple[Array, Array]:
    """Elements: P(z_t | z_{t-1}, y_t) = N(A z + b, C), and the evidence of y_t on z_{t-1}, (eta, J)."""
    first_mean, first_covariance, _, _ = _update(chain.mean, chain.covariance, precision[0], shift[0])
    zero, noise = jnp.zeros_like(shift), jnp.broadcast_to(chain.noise, precision.shape)
    offset, spread, _, _ = _update(zero, noise, precision, shift)
    kept = jnp.eye(shift.shape[-1], dtype=shift.dtype)[None] - matmul(spread, precision)
    gain = matmul(kept, chain.transition[None])
    eta = _times(transposed(gain), shift)
    root = root_of(noise)
    lost = matmul(inverse_of_lower(root), matmul(spread, precision))  # Q^-1/2 C J
    back = matmul(transposed(gain), matmul(precision, gain))
    seen = matmul(lost, chain.transition[None])
    elements = (gain, offset, spread, eta, back + matmul(transposed(seen), seen))
    first = (0 * gain[0], first_mean, first_covariance, 0 * eta[0], 0 * back[0])
    elements = jax.tree.map(lambda x, x_0: x.at[0].set(x_0), elements, first)
    _, means, covariances, _, _ = jax.lax.associative_scan(_join, elements)
    return means, 0.5 * (covariances + transposed(covariances))


def _join(earlier, later):
    """Särkkä & García-Fernández 2021, lemma 8."""
    a_1, b_1, c_1, eta_1, j_1 = earlier
    a_2, b_2, c_2, eta_2, j_2 = later
    eye = jnp.broadcast_to(jnp.eye(b_1.shape[-1], dtype=b_1.dtype), c_1.shape)
    between = inverse(eye + matmul(c_1, j_2))
    both, back = matmul(a_2, between), transposed(matmul(between, a_1))
    return (
        matmul(both, a_1),
        _times(both, b_1 + _times(c_1, eta_2)) + b_2,
        matmul(matmul(both, c_1), transposed(a_2)) + c_2,
        _times(back, eta_2 - _times(j_2, b_1)) + eta_1,
        matmul(matmul(back, j_2), a_1) + j_1,
    )


def smooth(chain: Chain, known: Filtered, *, parallel: bool) -> "GaussianChain":
    """The posterior over paths, as a chain that runs backwards: z_t given z_{t+1} and y_1 .. y_t."""
    inverse = root_of_inverse(known.predicted[1:])
    transition = jnp.broadcast_to(chain.transition, inverse.shape)
    carried = matmul(known.covariances[:-1], transposed(transition))
    gains = matmul(matmul(carried, inverse), transposed(inverse))
    rest = jnp.eye(chain.mean.shape[-1], dtype=inverse.dtype)[None] - matmul(gains, transition)
    noise = jnp.broadcast_to(chain.noise, inverse.shape)
    spread = matmul(matmul(rest, known.covariances[:-1]), transposed(rest)) + matmul(
        matmul(gains, noise), transposed(gains)
    )
    offsets = known.means[:-1] - _times(gains, known.predictions[1:])
    gains = jnp.concatenate([gains, jnp.zeros_like(known.covariances[-1:])])
    offsets = jnp.concatenate([offsets, known.means[-1:]])
    roots = root_of(jnp.concatenate([spread, known.covariances[-1:]]))
    means = backward(gains, offsets, parallel=parallel)
    return GaussianChain(means, gains, roots, backwards=True, parallel=parallel)


def backward(gains: Array, offsets: Array, *, parallel: bool) -> Array:
    """x_t = gains_t x_{t+1} + offsets_t, from the last t, where gains are 0: (T, q)."""
    if parallel:

        def join(later, earlier):
            return matmul(earlier[0], later[0]), _times(earlier[0], later[1]) + earlier[1]

        return jax.lax.associative_scan(join, (gains, offsets), reverse=True)[1]

    def step(x, inputs):
        gain, offset = inputs
        x = matmul(gain, x) + offset
        return x, x

    return jax.lax.scan(step, jnp.zeros_like(offsets[0]), (gains, offsets), reverse=True)[1]


def backward_covariances(gains: Array, spreads: Array, *, parallel: bool) -> Array:
    """P_t = gains_t P_{t+1} gains_t' + spreads_t, from the last t, where gains are 0: (T, q, q)."""
    if parallel:

        def join(later, earlier):
            spread = matmul(matmul(earlier[0], later[1]), transposed(earlier[0])) + earlier[1]
            return matmul(earlier[0], later[0]), spread

        return jax.lax.associative_scan(join, (gains, spreads), reverse=True)[1]

    def step(covariance, inputs):
        gain, spread = inputs
        covariance = matmul(matmul(gain, covariance), gain.T) + spread
        return covariance, covariance

    return jax.lax.scan(step, jnp.zeros_like(spreads[0]), (gains, spreads), reverse=True)[1]


class GaussianChain(dist.Distribution):
    """A Gaussian distribution over paths (T, q) that is a Markov chain: x_t - mean_t follows from its neighbour.

        x_t - means_t = gains_t (x_s - means_s) + roots_t eps_t,    s = t - 1, or t + 1 if it runs backwards

    Args:
        means: (T, q).
        gains: (T, q, q), 0 where there is no neighbour.
        roots: (T, q, q), lower triangular.
        backwards: whether it starts at the last step.
        parallel: sample, and sum up covariances, by associative scans.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012
    support = constraints.independent(constraints.real, 2)
    pytree_data_fields = ("means", "gains", "roots")
    pytree_aux_fields = ("backwards", "parallel")

    def __init__(self, means, gains, roots, *, backwards=False, parallel=False, validate_args=None):
        self.means, self.gains, self.roots = means, gains, roots
        self.backwards, self.parallel = backwards, parallel
        super().__init__(event_shape=means.shape, validate_args=validate_args)

    def log_prob(self, value):
        def one(path):
            away = path - self.means
            none = jnp.zeros_like(away[:1])
            neighbour = jnp.concatenate([away[1:], none]) if self.backwards else jnp.concatenate([none, away[:-1]])
            left = (away - _times(self.gains, neighbour))[..., None]
            white = matmul(inverse_of_lower(self.roots), left)
            log_scale = jnp.log(jnp.diagonal(self.roots, axis1=1, axis2=2))
            return -0.5 * jnp.sum(white**2) - jnp.sum(log_scale + 0.5 * math.log(2 * math.pi))

        paths = jnp.reshape(jnp.asarray(value), (-1, *self.event_shape))
        return jnp.reshape(jax.vmap(one)(paths), jnp.shape(value)[:-2])

    def sample(self, key, sample_shape=()):
        def one(key):
            noise = _times(self.roots, jax.random.normal(key, self.event_shape, self.means.dtype))
            if self.backwards:
                return self.means + backward(self.gains, noise, parallel=self.parallel)
            return self.means + backward(self.gains[::-1], noise[::-1], parallel=self.parallel)[::-1]

        keys = jax.random.split(key, math.prod(sample_shape))
        return jnp.reshape(jax.vmap(one)(keys), (*sample_shape, *self.event_shape))

    @property
    def mean(self):
        return self.means

    @property
    def covariances(self) -> Array:
        """(T, q, q) of each x_t."""
        spreads = matmul(self.roots, transposed(self.roots))
        if self.backwards:
            return backward_covariances(self.gains, spreads, parallel=self.parallel)
        return backward_covariances(self.gains[::-1], spreads[::-1], parallel=self.parallel)[::-1]

    @property
    def lag_one(self) -> Array:
        """(T - 1, q, q) covariances of x_{t+1} (rows) with x_t."""
        if self.backwards:
            return matmul(self.covariances[1:], transposed(self.gains[:-1]))
        return matmul(self.gains[1:], self.covariances[:-1])

    @property
    def variance(self):
        return jnp.diagonal(self.covariances, axis1=1, axis2=2)


def _times(matrix: Array, vector: Array) -> Array:
    """Matrix times vector, (..., p, q) and (..., q)."""
    return matmul(matrix, vector[..., None])[..., 0]
