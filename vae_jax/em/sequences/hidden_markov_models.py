"""Hidden Markov models: y_t ~ P(y|z_t), emitted by a Markov chain z of K states, for any family of emissions.

    P(y) = sum_z P(z_1) prod_{t>1} P(z_t|z_{t-1}) prod_t P(y_t|z_t)

One example is a whole sequence, and its latent the whole path z. The posterior P(z|y) is a Markov chain again
(`MarkovChain`), so that the model is literally a VAE whose encoder is exact. EM is Baum-Welch (Baum et al. 1970;
Rabiner 1989): a filter forwards, a smoother backwards, expected counts, and the family's weighted fit.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax.core.model import EM, Conditional, Params, parted
from vae_jax.core.numbers import is_whole
from vae_jax.em.algorithm import em_of, fitting
from vae_jax.em.discrete_families import categoricals
from vae_jax.em.family import Family, fit_to_weights, fitted_logits, log_dirichlet
from vae_jax.em.gaussian_families import FLOOR, Covariance, CovariancePrior, gaussians
from vae_jax.em.kmeans import assign, k_means
from vae_jax.em.sequences.forward_backward import Filtered, real_steps, smooth
from vae_jax.em.sequences.markov_chain import Emissions, HiddenMarkov, MarkovChain, without_padding

_START_ROWS = 10_000


def hidden_markov(
    family: Family,
    states: int,
    length: int,
    *,
    parallel: bool | None = None,
    initial_concentration: float = 1.0,
    transition_concentration: float = 1.0,
) -> Conditional:
    """P(y|c) of sequences y (length, *family.shape); c is how many of their steps are real, None: all (Rabiner 1989).

    Shorter sequences are padded: steps from c on count for nothing and may hold anything, NaN too. Samples hold 0
    there. A step of which everything is missing (NaN, in a family that takes missing entries) has no observation.

    Params: `{"pri": {"initial": (K,), "transition": (K, K)}, "gen": the family's}`; logits of P(z_1), and of
    P(z_t|z_{t-1}) in a row for each z_{t-1}. A logit of -inf is a move that stays impossible, through any M-step.

    `fit_em` takes ys (n, length, *family.shape), and lengths as cs (n,). It is maximum likelihood unless a
    concentration or the family's prior says otherwise (hmmlearn's default has a prior on covariances). States never
    visited keep their row. It starts at k-means on the steps where these are floats, at random emissions where they are
    integers, and at nearly uniform random transitions.

    Args:
        family: the emissions: `gaussians`, `categoricals((), levels)`, `bernoullis`, ...
        states: K.
        length: T, the longest sequence.
        parallel: filter and smooth by an associative scan over (K, K) matrices: few steps, more work and memory. By
            default on accelerators, for sequences of 64 steps and more whose matrices, T x K x K, number up to 2^20.
        initial_concentration, transition_concentration: of symmetric Dirichlet priors on P(z_1) and on each row of
            P(z_t|z_{t-1}), of what is possible, for maximum a posteriori; 1 is maximum likelihood.

    Raises:
        ValueError: an option out of range.
    """
    if not is_whole(states) or not is_whole(length):
        raise ValueError(f"want states >= 1 and length >= 1; got states={states}, length={length}")
    concentrations = {"initial": initial_concentration, "transition": transition_concentration}
    if not all(concentration >= 1 for concentration in concentrations.values()):
        raise ValueError(
            f"below 1 a Dirichlet prior has no maximum; got initial_concentration={initial_concentration}, "
            f"transition_concentration={transition_concentration}"
        )

    def init(key, c=None):
        del c
        k_pri, k_gen = jax.random.split(key)
        return {"pri": init_chain(k_pri), "gen": family.init(k_gen, states)}

    def init_chain(key, c=None):
        del c
        k_initial, k_transition = jax.random.split(key)
        shapes = {"initial": (k_initial, (states,)), "transition": (k_transition, (states, states))}
        return {name: 0.1 * jax.random.normal(k, shape) for name, (k, shape) in shapes.items()}

    def chain(params, c=None):
        return MarkovChain(params["initial"], params["transition"], length, count=c, parallel=parallel)

    def distribution(params, c=None):
        return HiddenMarkov(chain(params["pri"], c), params["gen"], family)

    def posterior(params, y, c=None):
        return distribution(params, c).posterior(y)

    def expect(params, ys, cs=None):
        """Time first and sequences last: each step of a scan works on (K, n), where the sequences lie side by side."""
        n = len(ys)
        initial, transition = (jax.nn.log_softmax(params["pri"][name]) for name in ("initial", "transition"))
        real = jax.vmap(lambda c: real_steps(length, c), out_axes=1)(jnp.full(n, length) if cs is None else cs)
        rows = without_padding(jnp.swapaxes(ys, 0, 1), real).reshape(length * n, *family.shape)
        evidence = jnp.swapaxes(family.log_prob(params["gen"], rows).reshape(length, n, states), 1, 2)
        evidence = jnp.where(real[:, None], evidence, 0.0)
        known, (marginals, moves) = smooth(initial, transition, evidence, real, parallel=parallel)
        marginals = jnp.where(real[:, None], marginals, 0.0)
        weights = jnp.swapaxes(marginals, 1, 2).reshape(length * n, states)
        sums = {
            "initial": marginals[0].sum(axis=1),
            "transition": moves,
            "gen": family.stats(params["gen"], rows, weights),
        }
        return known.log_p.sum(axis=0), jax.tree.map(lambda s: s / n, sums)

    def maximise(params, stats, n):
        pri = {
            name: fitted_logits(stats[name], params["pri"][name], (concentration - 1) / n)
            for name, concentration in concentrations.items()
        }
        return {"pri": pri, "gen": family.maximise(params["gen"], stats["gen"], n)}

    def start(key, ys, cs=None):
        k_init, k_rows, k_centres = jax.random.split(key, 3)
        params = init(k_init)
        if not jnp.issubdtype(ys.dtype, jnp.floating):
            return params
        rows = _some_real(k_rows, ys, cs)
        features = family.features(rows)
        member = jax.nn.one_hot(assign(features, k_means(k_centres, features, states)), states, dtype=features.dtype)
        return {**params, "gen": fit_to_weights(family, params["gen"], rows, member)}

    def recentre(stats, old, new):
        return {**stats, "gen": family.recentre(stats["gen"], old["gen"], new["gen"])}

    def log_prior(params):
        of_chain = (log_dirichlet(params["pri"][name], concentration) for name, concentration in concentrations.items())
        return family.log_prior(params["gen"]) + sum(of_chain)

    def check(ys, cs=None):
        _check(family, states, length, np.asarray(ys), None if cs is None else np.asarray(cs))

    def emissions(params, c):
        path, count = parted(c)
        return Emissions(params, path, family, count)

    prior = Conditional(init_chain, chain)
    generator = Conditional(lambda key, c: family.init(key, states), emissions)
    em = EM(start, expect, maximise, posterior, prior, generator, recentre, log_prior, check)
    return Conditional(init, distribution, em=em)


def gaussian_hmm(
    size: int,
    states: int,
    length: int,
    covariance: Covariance = "full",
    *,
    floor: float = FLOOR,
    missing: bool = False,
    prior: CovariancePrior | None = None,
    parallel: bool | None = None,
) -> Conditional:
    """`hidden_markov(gaussians(size, covariance, ...), states, length)`: sequences (length, size) of real numbers.

    Example:
        >>> model = gaussian_hmm(1, 2, 5)  # one number a step, two states, five steps
        >>> params = jax.jit(model.init)(jax.random.key(0), None)
        >>> y = jnp.array([[0.1], [0.0], [3.0], [3.1], [2.9]])
        >>> jax.jit(lambda y: smoothing(model, params, y))(y).shape  # P(z_t|y)
        (5, 2)
    """
    family = gaussians(size, covariance, floor=floor, missing=missing, prior=prior)
    return hidden_markov(family, states, length, parallel=parallel)


def categorical_hmm(
    levels: int,
    states: int,
    length: int,
    *,
    missing: bool = False,
    prior: float | None = None,
    parallel: bool | None = None,
) -> Conditional:
    """`hidden_markov(categoricals((), levels, ...), states, length)`: sequences (length,) of 0 .. levels - 1."""
    family = categoricals((), levels, missing=missing, prior=prior)
    return hidden_markov(family, states, length, parallel=parallel)


def filtering(model: Conditional, params: Params, y: Any, c: Any = None) -> Filtered:
    """What is known of each state of ONE sequence y at its time, and ln P(y_t|y_1 .. y_{t-1}), nats; c: real steps."""
    return _posterior(model, params, y, c).filtered


def smoothing(model: Conditional, params: Params, y: Any, c: Any = None) -> Array:
    """(T, K) P(z_t|y) of ONE sequence y; c: real steps."""
    return _posterior(model, params, y, c).marginals


def viterbi(model: Conditional, params: Params, y: Any, c: Any = None) -> tuple[Array, Array]:
    """The most probable path z (T,) given ONE sequence y, and ln P(z, y) in nats; c: real steps (Viterbi 1967)."""
    return _posterior(model, params, y, c).viterbi()


def _posterior(model, params, y, c):
    params = fitting(model, params)
    model_of_y = model.dist(params, c)
    if not isinstance(model_of_y, HiddenMarkov):
        raise TypeError("this is no hidden Markov model: ask model.em.posterior(params, y, c), a distribution of z")
    if np.shape(y) != model_of_y.event_shape:
        raise ValueError(
            f"y is one sequence padded to the model's length, {model_of_y.event_shape}; got shape {np.shape(y)}: "
            "jax.vmap takes several"
        )
    return em_of(model).posterior(params, y, c)


def _some_real(key: Array, ys: Array, cs: Any) -> Array:
    """Steps for a start: all of them, or 10,000 at random where there are more, or where some are padding."""
    n, length = ys.shape[:2]
    rows = ys.reshape(n * length, *ys.shape[2:])
    if cs is None and len(rows) <= _START_ROWS:
        return rows
    k_sequence, k_step = jax.random.split(key)
    counts = jnp.full(n, length) if cs is None else cs
    shape = (min(len(rows), _START_ROWS),)
    sequence = jax.random.categorical(k_sequence, jnp.log(counts), shape=shape)
    step = jnp.floor(jax.random.uniform(k_step, shape) * counts[sequence]).astype(jnp.int32)
    return ys[sequence, jnp.minimum(step, counts[sequence] - 1)]


def _check(family: Family, states: int, length: int, ys: np.ndarray, cs: np.ndarray | None) -> None:
    """Make sure that ys are padded sequences of this model, and cs their lengths.

    Raises:
        ValueError: they are not.
    """
    wanted = ("n", length, *family.shape)
    if ys.ndim != len(wanted) or ys.shape[1:] != wanted[1:]:
        hint = ""
        if ys.shape == wanted[1:]:
            hint = ": one sequence alone is ys[None]"
        elif ys.ndim == 2 and family.shape and ys.dtype.kind in "iub":
            hint = ": are these labels or symbols? They are for categorical_hmm"
        elif ys.ndim == len(wanted) and ys.shape[1] == 0:
            hint = ": these sequences have no steps"
        elif ys.ndim == len(wanted) and ys.shape[2:] == family.shape:
            hint = f": build the model with length={ys.shape[1]}, or pad the sequences"
        shape = "(" + ", ".join(map(str, wanted)) + ")"
        raise ValueError(f"ys holds n sequences padded to the model's length, {shape}; got shape {ys.shape}{hint}")
    if cs is None:
        cs = np.full(len(ys), length)
    if cs.shape != ys.shape[:1] or cs.dtype.kind not in "iu":
        raise ValueError(
            f"cs holds the length of each of the {len(ys)} sequences, integers of shape ({len(ys)},); got "
            f"{cs.dtype}{list(cs.shape)}"
        )
    if cs.min() < 1 or cs.max() > length:
        bad = int(np.argmax((cs < 1) | (cs > length)))
        raise ValueError(
            f"cs[{bad}] is {cs[bad]}: each sequence has from 1 to {length} steps (the model's length). Leave empty "
            "sequences out"
        )
    rows = ys[np.arange(length)[None] < cs[:, None]]
    if len(rows) < states:
        raise ValueError(f"{len(rows)} steps in all cannot be fitted by {states} states: take fewer states")
    try:
        family.check(rows)
    except ValueError as error:
        error.add_note("Rows are counted over the real steps of all sequences, one sequence after the other.")
        raise
