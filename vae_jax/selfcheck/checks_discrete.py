"""Oracles 30 to 33: codes of a VQ-VAE; 43: levels of a colour pixel."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.core.distributions import DiscretisedLogistic
from vae_jax.core.model import average, log_prob
from vae_jax.parts.colour import CoupledLogistics
from vae_jax.selfcheck.check import Check, Row
from vae_jax.selfcheck.solvable import floats
from vae_jax.vq.codebooks import by_gradient, codebook, ema
from vae_jax.vq.model import uniform_codes
from vae_jax.vq.quantiser import code_perplexity
from vae_jax.vq.scalar import fsq

CODES = np.array([[1.0, 0.2], [-0.7, 0.9], [0.1, -1.1]])
VECTORS = np.array([[0.8, 0.5], [-0.2, -0.9], [0.9, -0.1], [-1.0, 0.4], [0.3, -0.8]])
NEAREST = np.array([0, 2, 0, 1, 2])
WEIGHTS = np.array([[0.7, -0.3], [0.4, 1.2], [-0.8, 0.5]])


def straight_through() -> list[Row]:
    """f(v) = |W v - 1|^2 / 2 of the vectors that stand for the codes, and the two squared terms beside it."""
    book = codebook(3, 2, update=by_gradient(), commitment=0.25)
    start = book.init(jax.random.key(0), floats(VECTORS))
    away = VECTORS - CODES[NEAREST]

    def loss(codes, vectors, weight):
        z = book.quantise({**start, "codes": codes}, vectors)
        return weight * 0.5 * jnp.sum((z.vectors @ floats(WEIGHTS).T - 1) ** 2) + (1 - weight) * z.penalty

    slopes = jax.jit(jax.grad(loss, argnums=(0, 1)))
    f_codes, f_vectors = slopes(floats(CODES), floats(VECTORS), 1.0)
    p_codes, p_vectors = slopes(floats(CODES), floats(VECTORS), 0.0)
    pulled = np.zeros_like(CODES)
    np.add.at(pulled, NEAREST, -2 * away)
    return [
        Row("d f / d vectors is that at the codes", (CODES[NEAREST] @ WEIGHTS.T - 1) @ WEIGHTS, f_vectors),
        Row("d f / d codes", np.zeros_like(CODES), f_codes),
        Row("d penalty / d vectors: the commitment", 0.5 * away, p_vectors),
        Row("d penalty / d codes: the other square", pulled, p_codes),
    ]


def lloyd() -> list[Row]:
    """Decay 0, all vectors in one batch of five examples."""
    book = codebook(3, 2, update=ema(decay=0.0), revive=0.0)
    start = book.init(jax.random.key(0), floats(VECTORS[:1]))

    def step(codes, vectors):
        params = {**start, "codes": codes}
        stats = jax.vmap(lambda e: book.quantise(params, e[None]).stats)(vectors)
        return book.maximise(params, average(stats))["codes"]

    means = np.stack([VECTORS[k == NEAREST].mean(axis=0) for k in range(3)])
    return [Row("codes after a step of decay 0", means, jax.jit(step)(floats(CODES), floats(VECTORS)))]


def surprise() -> list[Row]:
    used = floats(np.array([0.5, 0.25, 0.125, 0.125]))
    rows = [Row("perplexity of (.5, .25, .125, .125)", 3.36358566, code_perplexity(used))]
    for levels, shape in ((2, (1,)), (512, (7, 7))):
        prior = uniform_codes(levels, shape).dist({})
        rate = jax.jit(lambda z, prior=prior: -log_prob(prior, z))(jnp.zeros(shape, jnp.int32))
        rows.append(Row(f"{np.prod(shape)} codes of {levels}: n ln K", np.prod(shape) * np.log(levels), rate))
    return rows


def bijection() -> list[Row]:
    rows = []
    for levels in ((8, 5, 5, 5), (3, 4, 2), (7, 7)):
        quantiser = fsq(levels)
        params = quantiser.init(jax.random.key(0), jnp.zeros(len(levels)))
        codes = jnp.arange(np.prod(levels))
        vectors = quantiser.embed(params, codes)
        # tanh's inverse, so that what is quantised is the value of the code
        counts = np.array(levels)
        inside = np.asarray(vectors, np.float64) * (counts // 2) + np.where(counts % 2, 0.0, 0.5)
        reach = (counts - 1) * 1.001 / 2
        before = np.arctanh(inside / reach)
        again = jax.jit(quantiser.quantise)(params, floats(before))
        rows.append(Row(f"codes of {levels}, there and back", codes, again.codes))
        rows.append(Row(f"different vectors of {levels}", len(codes), len(np.unique(vectors, axis=0))))
    return rows


LOGITS = np.array([0.3, -0.8])
MEANS = np.array([[0.4, -0.6], [0.1, 0.9], [-0.5, 0.2]])
LOG_SCALES = np.array([[-1.0, -0.2], [-2.0, -0.7], [-0.5, -1.4]])
COUPLINGS = np.array([[0.9, -0.4], [-0.7, 0.2], [0.6, 0.5]])


def colour() -> list[Row]:
    """4 levels, 2 components: all 64 values of a pixel."""
    values = jnp.asarray(list(itertools.product(range(4), repeat=3)))

    def pixel(couplings):
        return CoupledLogistics(floats(LOGITS), floats(MEANS), floats(LOG_SCALES), floats(couplings), 4)

    def uncoupled(y):
        """Each channel by itself, given the component."""
        channels = DiscretisedLogistic(floats(MEANS), floats(LOG_SCALES), 4).log_prob(y[:, None])
        return jax.nn.logsumexp(jax.nn.log_softmax(floats(LOGITS)) + jnp.sum(channels, axis=0))

    free = pixel(np.zeros_like(COUPLINGS)).log_prob(values)
    return [
        Row("sum over all levels of a pixel", 1.0, jnp.exp(pixel(COUPLINGS).log_prob(values)).sum()),
        Row("ln P without coupling, of each", np.asarray(jax.vmap(uncoupled)(values)), free),
    ]


CHECKS = [
    Check(30, "the gradient goes straight through the code", straight_through, 2e-6, 1e-12),
    Check(31, "a moving-average codebook of decay 0 is Lloyd's step", lloyd, 2e-6, 1e-12),
    Check(32, "perplexity, and the rate n ln K", surprise, 2e-4, 1e-6),
    Check(33, "codes of finite scalar quantisation and their vectors", bijection, 1e-6, 1e-6),
    Check(43, "coupled colour sums to one, and uncoupled is a mixture", colour, 1e-5, 1e-12),
]
