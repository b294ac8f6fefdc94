"""Linear-Gaussian chains seen through noise: exact inference over whole paths, in time steps or in parallel.

    z_1 ~ N(m, L L'),    z_t = A z_{t-1} + N(0, Q),    P(y_t|z_t) = const exp(-1/2 |H_t z_t - u_t|^2)

An observation enters by its evidence (H, u) alone, of at most q rows, however long y_t is; without one H = 0 and u = 0.
Square-root form: every covariance is carried as a root, and roots come by orthogonal transformations of roots, so that
float32 has the digits that float64 has for covariances: a state that is 1e5 times wider than the noise is seen exactly.
The smoother is that of Rauch, Tung & Striebel (1965).

In parallel: associative scans (Särkkä & García-Fernández 2021) in square-root form (Yaghoobi, Corenflos, Hassan &
Särkkä 2022, Parallel square-root statistical linear regression), O(log T) steps with more work.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints

from vae_jax.core.linalg import inverse_of_lower, matmul, root_of_square, transposed, triangularised
from vae_jax.em.regression import seen_through

PARALLEL_FROM = 64


class Chain(NamedTuple):
    """mean (q,) and root L (q, q) of z_1; the transition A (q, q) and a root (q, q) of Q, its noise."""

    mean: Array
    root: Array
    transition: Array
    noise: Array


class Evidence(NamedTuple):
    """What is seen of z_t: rows (T, k, q) and targets (T, k), H and u above."""

    rows: Array
    targets: Array


class Filtered(NamedTuple):
    """What is known of z_t at time t.

    Fields:
        means: (T, q) of P(z_t | y_1 .. y_t); roots: (T, q, q), root root' = its covariance.
        log_ratio: (T,) ln P(y_t | y_1 .. y_{t-1}) - ln P(y_t | z_t at its filtered mean).
        pulls: (T, q) root' times the slope of ln P(y_t | z_t) at the mean, as it is before the mean is rounded.
    """

    means: Array
    roots: Array
    log_ratio: Array
    pulls: Array

    @property
    def covariances(self) -> Array:
        return matmul(self.roots, transposed(self.roots))


def run_parallel(length: int, parallel: bool | None) -> bool:
    """What the user chose; else an associative scan on accelerators for sequences of 64 steps or more."""
    return (length >= PARALLEL_FROM and jax.default_backend() != "cpu") if parallel is None else parallel


def kalman_filter(chain: Chain, evidence: Evidence, *, parallel: bool) -> Filtered:
    """Filter one sequence."""
    if parallel:
        means, roots = _in_parallel(chain, evidence)
        mean, root = _predict(chain, means[:-1], roots[:-1])
        mean, root = jnp.concatenate([chain.mean[None], mean]), jnp.concatenate([chain.root[None], root])
        return _update(mean, root, evidence)

    def step(predicted, evidence):
        known = _update(predicted[0], predicted[1], evidence)
        return _predict(chain, known.means, known.roots), known

    return jax.lax.scan(step, (chain.mean, chain.root), evidence)[1]


def _predict(chain: Chain, mean: Array, root: Array) -> tuple[Array, Array]:
    moved = matmul(chain.transition, root)
    noise = jnp.broadcast_to(chain.noise, root.shape)
    return matmul(mean, chain.transition.T), root_of_square(jnp.concatenate([moved, noise], axis=-1))


def _update(mean: Array, root: Array, evidence: Evidence) -> Filtered:
    """What is known after the evidence; leading axes are times.

    Numbers that were seen stay out of the QR: where they alone differ between sequences, roots are had once for all.
    """
    away = evidence.targets - _times(evidence.rows, mean)
    seen = seen_through(matmul(evidence.rows, root), _eye(evidence.rows))
    moved = _times(seen.share, _times(seen.projected, away))
    log_ratio = -seen.log_scale - 0.5 * jnp.sum(moved**2, axis=-1)
    pull = _times(transposed(seen.share), moved)
    return Filtered(mean + _times(root, moved), matmul(root, seen.share), log_ratio, pull)


def _eye(rows: Array) -> Array:
    """The identity, of as many rows."""
    return jnp.broadcast_to(jnp.eye(rows.shape[-2], dtype=rows.dtype), (*rows.shape[:-1], rows.shape[-2]))


class Element(NamedTuple):
    """What a stretch of time says: of its end z, given the state x before it, and of x.

        z = gain x + offset + root eps,    P(y of the stretch | x) = const exp(-1/2 |rows x - targets|^2)

    The fields are A, b, U, Z' and what Z' x is compared with, in Yaghoobi et al. 2022; there eta = Z targets.
    """

    gain: Array
    offset: Array
    root: Array
    rows: Array
    targets: Array


def _conditioned(element: Element, evidence: Evidence) -> Element:
    """The element, when its end is seen: eps is what rows root eps = (targets - rows offset) - rows gain x say."""
    q, (rows, targets), before = element.gain.shape[-1], evidence, element.rows
    seen = seen_through(matmul(rows, element.root), jnp.concatenate([matmul(rows, element.gain), _eye(rows)], axis=-1))
    data = targets - _times(rows, element.offset)
    root = matmul(element.root, seen.share)
    gain = element.gain - matmul(root, seen.projected[..., :q])
    offset = element.offset + _times(root, _times(seen.projected[..., q:], data))
    here = [seen.rest, jnp.zeros((*seen.rest.shape[:-1], before.shape[-2]), rows.dtype)]
    earlier = [before, jnp.zeros((*before.shape[:-1], rows.shape[-2]), rows.dtype), _eye(before)]
    both = [jnp.concatenate(block, axis=-1) for block in (here, earlier)]
    upper, _ = triangularised(jnp.concatenate(both, axis=-2), q)
    targets = _times(upper[..., q:], jnp.concatenate([data, element.targets], axis=-1))
    return Element(gain, offset, root, upper[..., :q], targets)


def _in_parallel(chain: Chain, evidence: Evidence) -> tuple[Array, Array]:
    """The filtered means and roots."""
    first = (jnp.arange(len(evidence.rows)) == 0)[:, None, None]
    gain = jnp.where(first, 0.0, chain.transition[None])
    offset = jnp.where(first[..., 0], chain.mean[None], 0.0)
    root = jnp.where(first, chain.root[None], chain.noise[None])
    nothing = jnp.zeros_like(gain[:, :0])
    elements = _conditioned(Element(gain, offset, root, nothing, nothing[..., 0]), evidence)
    elements = jax.lax.associative_scan(_join, elements)
    return elements.offset, elements.root


def _join(earlier: Element, later: Element) -> Element:
    """Yaghoobi et al. 2022, the associative operator of the filter."""
    between = _conditioned(earlier, Evidence(later.rows, later.targets))
    root = root_of_square(jnp.concatenate([matmul(later.gain, between.root), later.root], axis=-1))
    offset = _times(later.gain, between.offset) + later.offset
    return between._replace(gain=matmul(later.gain, between.gain), offset=offset, root=root)


def smooth(chain: Chain, known: Filtered, *, parallel: bool) -> "GaussianChain":
    """The posterior over paths, as a chain that runs backwards: z_t given z_{t+1} and y_1 .. y_t."""
    q, last = len(chain.mean), (jnp.arange(len(known.means)) == len(known.means) - 1)[:, None, None]
    back = transposed(known.roots)
    moved = jnp.where(last, 0.0, matmul(back, chain.transition.T[None]))
    noise = jnp.broadcast_to(chain.noise.T, back.shape)
    array = jnp.concatenate([jnp.concatenate([moved, noise], 1), jnp.concatenate([back, jnp.zeros_like(back)], 1)], 2)
    roots = transposed(triangularised(array, 2 * q)[0])  # of (z_{t+1}, z_t)
    gains = matmul(roots[:, q:, :q], inverse_of_lower(roots[:, :q, :q]))
    offsets = known.means - _times(gains, matmul(known.means, chain.transition.T))
    means = backward(gains, offsets, parallel=parallel)
    return GaussianChain(means, gains, roots[:, q:, q:], backwards=True, parallel=parallel)


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


def backward_roots(gains: Array, roots: Array, *, parallel: bool) -> Array:
    """Roots of P_t = gains_t P_{t+1} gains_t' + roots_t roots_t', from the last t, where gains are 0: (T, q, q)."""

    def of_both(gain, later, root):
        return root_of_square(jnp.concatenate([matmul(gain, later), root], axis=-1))

    if parallel:

        def join(later, earlier):
            return matmul(earlier[0], later[0]), of_both(earlier[0], later[1], earlier[1])

        return jax.lax.associative_scan(join, (gains, roots), reverse=True)[1]

    def step(later, inputs):
        root = of_both(inputs[0], later, inputs[1])
        return root, root

    return jax.lax.scan(step, jnp.zeros_like(roots[0]), (gains, roots), reverse=True)[1]


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
    def marginal_roots(self) -> Array:
        """(T, q, q), root root' = the covariance of each x_t."""
        if self.backwards:
            return backward_roots(self.gains, self.roots, parallel=self.parallel)
        return backward_roots(self.gains[::-1], self.roots[::-1], parallel=self.parallel)[::-1]

    @property
    def covariances(self) -> Array:
        """(T, q, q) of each x_t."""
        roots = self.marginal_roots
        return matmul(roots, transposed(roots))

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
