"""Expectation maximisation: exact optimisation of the encoder and of (prior, generator) in turn, on the same ELBO.

The E-step makes enc the exact posterior, so that the ELBO is ln P; the M-step maximises it over pri and gen (Dempster,
Laird & Rubin 1977; Neal & Hinton 1998). One driver for every model with an exact posterior (`Conditional.em`).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec
from jax.typing import ArrayLike

from vae_jax.core.combinator import vae
from vae_jax.core.estimators import enumerated, fixed_encoder, sampled
from vae_jax.core.keys import as_key
from vae_jax.core.mesh import auto, batch_axes, check_divides
from vae_jax.core.model import EM, Conditional, Model, Params, example_of, parted
from vae_jax.core.numbers import is_whole
from vae_jax.data.arrays import as_arrays
from vae_jax.data.check import differing, leaves_by_path


class FittedEM(NamedTuple):
    """The result of `fit_em`.

    Fields:
        params: those of the best restart.
        history: (iterations + 1,) mean ln P(y) of the data in nats after 0, 1, 2, ... M-steps; for a model with a prior
            on its parameters, with ln prior / n added. EM never lowers it (but for rounding).
        converged: whether the last iteration gained less than the tolerance; False: the iterations ran out.
        restarts: (restarts,) the last value of each restart's history.
    """

    params: Params
    history: np.ndarray
    converged: bool
    restarts: np.ndarray


def fit_em(
    model: Conditional,
    ys: Any,
    cs: Any = None,
    *,
    key: Array | None = None,
    params: Params | None = None,
    iterations: int = 200,
    tolerance: float | None = 1e-5,
    restarts: int = 1,
    chunk: int = 2048,
) -> FittedEM:
    """Fit a model by EM (Dempster, Laird & Rubin 1977), in one compiled loop.

    Args:
        model: a Conditional with `em`: a mixture, factor analysis, a hidden Markov model, ...
        ys: (n, *example); cs: what the model takes as condition (lengths of sequences), or None.
        key: draws the starts.
        params: start here instead.
        iterations: at most so many.
        tolerance: stop as soon as an iteration gains less than this, in nats per example; None: never stop early.
        restarts: independent starts, run side by side; the best is returned.
        chunk: examples that are held at once with everything that belongs to them.

    Raises:
        TypeError: the model has no exact posterior, or what is no key.
        ValueError: data or params that are not the model's, or options that do not fit.
        FloatingPointError: the likelihood is not finite at any restart.

    Example:
        >>> iris = data.load_table("iris").ys
        >>> fitted = fit_em(mixture_of_gaussians(4, 2, "full"), iris, key=jax.random.key(0), restarts=4)
        >>> round(float(fitted.history[-1]) * len(iris)), bool(fitted.converged)  # total ln P, nats
        (-214, True)
    """
    em = em_of(model)
    _check_start(key, params)
    if params is not None and restarts != 1:
        raise ValueError(f"restarts={restarts} from the same params would all be the same: pass key= instead")
    if not all(map(is_whole, (iterations, restarts, chunk))):
        raise ValueError(f"want iterations, restarts and chunk >= 1; got {iterations}, {restarts} and {chunk}")
    ys, cs = jax.tree.map(np.asarray, (as_arrays("ys", ys), as_arrays("cs", cs)))
    n = len(jax.tree.leaves(ys)[0]) if jax.tree.leaves(ys) else 0
    if n == 0:
        raise ValueError("ys is empty: want an array (n, *example) with at least one example")
    em.check(ys, cs)
    ys, cs = jax.tree.map(jnp.asarray, (ys, cs))
    if key is None:
        starts = jax.tree.map(lambda x: x[None], fitting(model, params, ys))
    else:
        starts = _in_precision_of(ys, _starts(em)(jax.random.split(key, restarts), ys, cs))
    limit = -jnp.inf if tolerance is None else tolerance
    fitted, histories, done = jax.device_get(_loop(em, iterations, chunk)(starts, limit, ys, cs))
    last = histories[np.arange(restarts), done]
    if not np.isfinite(last).any():
        raise FloatingPointError(
            f"ln P of the data is {last[0]} after {done[0]} iterations of EM from every start: is the start positive "
            "definite, are the data far out of scale (standardise them), or does the start give them probability 0?"
        )
    best = int(np.argmax(np.where(np.isfinite(last), last, -np.inf)))
    history = histories[best, : done[best] + 1]
    converged = tolerance is not None and len(history) > 1 and bool(history[-1] - history[-2] < tolerance)
    chosen = jax.tree.map(lambda x: jnp.asarray(x[best]), fitted)
    return FittedEM(chosen, history, converged, last)


def em_of(model: Any) -> EM:
    """`model.em`.

    Raises:
        TypeError: the model has none.
    """
    em = getattr(model, "em", None)
    if em is None:
        raise TypeError(
            f"EM needs an exact posterior, which this {type(model).__name__} does not offer (its em is None). "
            "Models of vae_jax.em do; others are trained by gradient, with vae_jax.fit"
        )
    return em


def _check_start(key: Array | None, params: Params | None) -> None:
    if (key is None) == (params is None):
        raise ValueError("EM starts at params=, or at a random start drawn with key=: give one of them")
    if key is not None:
        as_key(key)


def fitting(model: Conditional, params: Params, ys: Any = ()) -> Params:
    """The params as arrays of floats, in the precision of ys if these are floats.

    Raises:
        ValueError: they are not of this model: other parts, another number of components, another size.
    """
    wanted = {name: x.shape for name, x in leaves_by_path(jax.eval_shape(model.init, jax.random.key(0))).items()}
    given = {name: np.shape(leaf) if _is_real(leaf) else "no numbers" for name, leaf in leaves_by_path(params).items()}
    for name, got, want in differing(given, wanted):
        raise ValueError(
            f"params are not of this model: {name or 'params'} holds {got}, and the model wants {want}: do they "
            "come from one with another number of components or states, another size or other options?"
        )
    return _in_precision_of(ys, jax.tree.map(jnp.asarray, params))


def _is_real(x: Any) -> bool:
    dtype = x.dtype if hasattr(x, "dtype") else np.asarray(x).dtype
    return any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_))


def _widened(x: Any) -> Any:
    """Floats of 16 bits as float32: sums over examples need its digits."""
    return x.astype(np.float32) if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4 else x


def _in_precision_of(ys: Any, params: Params) -> Params:
    """Parameters in the data's floating-point type; beside integers in their own, at least float32."""
    dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(ys))
    floating = any(jnp.issubdtype(y.dtype, jnp.floating) for y in jax.tree.leaves(ys))
    return jax.tree.map(lambda x: x.astype(dtype if floating else jnp.promote_types(x.dtype, jnp.float32)), params)


def _with_dtypes(new: Params, old: Params) -> Params:
    return jax.tree.map(lambda x, y: x.astype(y.dtype), new, old)


@functools.lru_cache(maxsize=32)
def _starts(em: EM) -> Callable[..., Params]:
    return jax.jit(jax.vmap(em.start, in_axes=(0, None, None)))


@functools.lru_cache(maxsize=32)
def _loop(em: EM, iterations: int, chunk: int) -> Callable[..., Any]:
    """`(starts, tolerance, ys, cs) -> (params, history, iterations done)`, each with an axis of restarts."""

    def run(params, tolerance, ys, cs):
        n = len(jax.tree.leaves(ys)[0])

        def unfinished(carry):
            """Decided by what is stored, not by what is computed: that may be rounded differently each time."""
            looks, _, _, history = carry
            gain = history[looks - 1] - history[looks - 2]
            return (looks < 2) | ((looks <= iterations) & (gain >= tolerance))

        def iterate(carry):
            """The E-step at the next parameters, and the M-step from there."""
            looks, _, params, history = carry
            log_p, stats = expect_in_chunks(em, params, ys, cs, chunk)
            value = (log_p + em.log_prior(params) / n).astype(history.dtype)
            moved = _with_dtypes(em.maximise(params, stats, n), params)
            return looks + 1, params, moved, history.at[looks].set(value)

        dtype = jax.eval_shape(lambda: expect_in_chunks(em, params, ys, cs, chunk)[0]).dtype
        history = jnp.full(iterations + 1, jnp.nan, dtype)
        looks, params, _, history = jax.lax.while_loop(unfinished, iterate, (0, params, params, history))
        return params, history, looks - 1

    return jax.jit(jax.vmap(run, in_axes=(0, None, None, None)))


def expect_in_chunks(em: EM, params: Params, ys: Any, cs: Any, chunk: int) -> tuple[Array, Any]:
    """(mean ln P(y) in nats, the average stats) of all ys (n, *example), with at most `chunk` examples at once."""
    n = len(jax.tree.leaves(ys)[0])
    chunk = _even(n, chunk)
    whole = n // chunk * chunk

    def share(ys, cs):
        """The part of the averages that these examples make up."""
        log_p, stats = em.expect(params, ys, cs)
        return jax.tree.map(lambda x: x * (len(log_p) / n), (log_p.mean(), stats))

    def add(total, part):
        return jax.tree.map(jnp.add, total, share(*part)), None

    if chunk == n:
        return share(ys, cs)
    cut = jax.tree.map(lambda x: x[:whole].reshape(-1, chunk, *x.shape[1:]), (ys, cs))
    total, _ = jax.lax.scan(add, example_of(share, *jax.tree.map(lambda x: x[0], cut)), cut)
    if whole == n:
        return total
    return add(total, jax.tree.map(lambda x: x[whole:], (ys, cs)))[0]


def _even(n: int, chunk: int) -> int:
    """The largest divisor of n between half of `chunk` and `chunk`, if there is one: no rest to compile for."""
    return next((size for size in range(min(chunk, n), chunk // 2, -1) if n % size == 0), min(chunk, n))


class EMState(NamedTuple):
    """What the next step of stepwise EM needs: `params`, the running averages `stats`, and `step`, how many so far."""

    params: Params
    stats: Any
    step: Array


def init_em(model: Conditional, ys: Any, cs: Any = None, *, key: Array | None = None, params: Params | None = None):
    """The state before the first step: a start drawn with the key, or the params, and the stats of this first batch.

    Raises:
        TypeError: the model has no exact posterior.
        ValueError: neither or both of key and params, or params that are not the model's.
    """
    em = em_of(model)
    _check_start(key, params)
    ys, cs = jax.tree.map(lambda x: _widened(jnp.asarray(x)), (ys, cs))
    params = jax.jit(em.start)(key, ys, cs) if params is None else fitting(model, params, ys)
    return EMState(params, jax.jit(em.expect)(params, ys, cs)[1], jnp.zeros((), jnp.int32))


def make_em_step(
    model: Conditional,
    *,
    decay: float | Callable[[Array], Any],
    examples: float = float("inf"),
    mesh: Mesh | None = None,
) -> Callable[..., tuple[EMState, Array]]:
    """Stepwise EM for data that do not fit: `(state, ys[, cs]) -> (state, mean ln P of the batch before the step)`.

    The stats are running averages, stats <- decay * stats + (1 - decay) * those of the batch, and the M-step is taken
    on them (Sato & Ishii 2000; Cappe & Moulines 2009). With decay 0 and all data in the batch it is EM. It converges to
    a maximum where 1 - decay falls as step^-a, 1/2 < a <= 1: `decay=lambda step: 1 - (step + 2.0) ** -0.6`. A VQ-VAE's
    moving-average codebook is this, with a hard E-step.

    Args:
        decay: a number in [0, 1), or a function of the step.
        examples: how many there are in all, which a prior on the parameters is weighed against.
        mesh: split each batch over it, as `fit` does: each device takes the E-step of its own examples.

    Raises:
        TypeError: the model has no exact posterior.
        ValueError: the decay is out of range; at the call, a batch that does not divide over the mesh.
    """
    em = em_of(model)
    expect = em.expect if mesh is None else _on_each_device(em.expect, auto(mesh))
    if not callable(decay):
        check_decay(decay)

    def step(state: EMState, ys: Any, cs: Any = None) -> tuple[EMState, Array]:
        past = decay(state.step) if callable(decay) else decay
        ys, cs = jax.tree.map(lambda x: _widened(jnp.asarray(x)), (ys, cs))
        log_p, new = expect(state.params, ys, cs)
        stats = running_average(state.stats, new, past)
        params = _with_dtypes(em.maximise(state.params, stats, examples), state.params)
        return EMState(params, em.recentre(stats, state.params, params), state.step + 1), log_p.mean()

    return step


def _on_each_device(expect: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """An E-step of which each device takes that of its own examples; the averages are those of all.

    Left to itself XLA gathers the examples, where the E-step branches, and each device computes all of it: a hidden
    Markov model of 500 steps wanted 98 GiB of each of 16 x 16 TPU chips.
    """
    split, everywhere = PartitionSpec(batch_axes(mesh)), PartitionSpec()

    def local(params, ys, cs):
        log_p, stats = expect(params, ys, cs)
        return log_p, jax.lax.pmean(stats, batch_axes(mesh))

    read, given = (everywhere, split, split), (split, everywhere)
    mapped = jax.shard_map(local, mesh=mesh, in_specs=read, out_specs=given, check_vma=False)

    def of_all(params, ys, cs):
        check_divides(len(jax.tree.leaves(ys)[0]), mesh)
        return mapped(params, ys, cs)

    return of_all


def running_average(old: Any, new: Any, past: ArrayLike) -> Any:
    """The past has weight `past`, what is new the rest."""
    return jax.tree.map(lambda x, y: past * x + (1 - past) * y, old, new)


def check_decay(decay: float) -> None:
    """Raise a ValueError unless this can be the weight of the past."""
    if not 0 <= decay < 1:
        raise ValueError(f"decay is the weight of the past, in [0, 1); got {decay}")


def as_vae(model: Conditional) -> Model:
    """The same model as encoder, prior and generator: P_enc(z|y) is the exact posterior of parameters of its own.

    With `enc = {"pri": ..., "gen": ...}` equal to the model's parameters (an E-step) every bound is -ln P(y); training
    the rest alone is an M-step. A latent with finitely many values is summed over, another one sampled; the encoder is
    fixed where the sample has no gradient (paths of states).

    Raises:
        TypeError: the model has no exact posterior, or does not offer its parts.
    """
    em = em_of(model)
    if em.prior is None or em.generator is None:
        raise TypeError("this model does not offer its prior and generator as parts")

    def posterior(enc, c):
        y, c = parted(c)
        return em.posterior(enc, y, c)

    encoder = Conditional(lambda key, c: model.init(key), posterior)
    pri = em.prior.dist(em.prior.init(jax.random.key(0)))
    estimator = enumerated if pri.has_enumerate_support else sampled if pri.has_rsample else fixed_encoder
    return vae(encoder, em.prior, em.generator, estimator=estimator)
