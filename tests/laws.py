"""Every system that the library ships, in one table: `SYSTEMS`. A new system is a new line there.

Everything is tiny: affine networks, latents of one or two numbers, data with so few values that they can be listed. So
ln P(y) is known by summing over z, a way that shares no code with the estimators.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from flax import nnx
from jax.scipy.special import logsumexp

from vae_jax import (
    Conditional,
    Model,
    Terms,
    analytic,
    bernoulli,
    categorical,
    conditional,
    discretised_logistic,
    enumerated,
    fixed_encoder,
    gaussian,
    gumbel,
    l2,
    learned_normal,
    nets,
    sampled,
    score_function,
    standard_normal,
    sticking,
    straight_through_gumbel,
    vae,
)
from vae_jax.core import Estimator, as_network, join, lift, share
from vae_jax.core.distributions import GumbelSoftmax, SimplexPoint
from vae_jax.diffusion import (
    Denoiser,
    ancestral,
    continuous,
    cosine,
    denoised,
    denoiser,
    diffusion,
    discrete,
    learned,
    linear,
    predict_data,
    predict_velocity,
    unrolled,
    variance_exploding,
)
from vae_jax.diffusion.steps import end, reverse_step
from vae_jax.em import (
    as_vae,
    categorical_hmm,
    factor_analysis,
    linear_gaussian_state_space,
    mixture_of_bernoullis,
    mixture_of_categoricals,
    mixture_of_gaussians,
)
from vae_jax.parts import (
    autoregressive,
    columns,
    gumbel_softmax,
    maybe_missing,
    negative_binomial,
    one_hot,
    poisson,
    seeing_what_is_missing,
    vampprior,
)
from vae_jax.parts.autoregression import Sentences
from vae_jax.parts.classes import OneHot
from vae_jax.parts.flows import autoregressive_flow, coupling_flow, inverse_autoregressive_flow
from vae_jax.systems import Rung, adversarial, chain, factor_vae, geco, ladder, partly_labelled
from vae_jax.tables import cell_vae
from vae_jax.vq import Quantiser, by_gradient, codebook, projected, residual, rotation, uniform_codes, vq_vae

BATCH = 8

# Compiling takes nearly all of the time in tests, and what they compile is too small to profit from being optimised.
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Grid(NamedTuple):
    """Points (m, *shape) and the log volume that each stands for: a sum over them is an integral; 0 for discrete x."""

    points: Any
    log_volume: float


class Data(NamedTuple):
    """Examples (8, *example), or a dict of such; all values that an example can have (or None), examples at the edge of
    the support."""

    ys: Any
    values: Grid | None
    extreme: Any


class System(NamedTuple):
    """One line of the table.

    Fields:
        model: what the laws are about.
        data: what it is a model of.
        density: `(params, y, c) -> ln P(y|c)`, by summing over the latent, or None where that takes too long.
        cs: (8, *condition), or a dict of such, or None.
        held: paths of parameters whose gradient is 0 by design.
        on_average: paths whose gradient is right on average, not for each draw, or biased (relaxed classes).
        same_as: name of the system with the same parts and another estimator.
        deterministic: whether the terms have no noise.
    """

    model: Model
    data: Data
    density: Callable[..., Any] | None = None
    cs: Any = None
    held: tuple[str, ...] = ()
    on_average: tuple[str, ...] = ()
    same_as: str | None = None
    deterministic: bool = False


def affine(*shape: int, scale: float = 0.4, bias: Any = 0.0):
    """(init, apply) of weights @ (all inputs, flat) + bias, as an array of that shape."""

    def init(key, *inputs):
        size = sum(math.prod(jnp.shape(x)) for x in jax.tree.leaves(inputs))
        weights = scale * jax.random.normal(key, (math.prod(shape), size))
        return {"weights": weights, "bias": jnp.broadcast_to(jnp.float32(bias), shape).ravel()}

    def apply(params, *inputs):
        flat = jnp.concatenate([jnp.ravel(x).astype(params["weights"].dtype) for x in jax.tree.leaves(inputs)])
        return (params["weights"] @ flat + params["bias"]).reshape(shape)

    return init, apply


def encoder(units: int, scale: float = 0.2) -> Conditional:
    """A Gaussian that is wide, so that importance weights have a variance."""
    return gaussian(affine(2 * units, scale=scale, bias=[0.0] * units + [0.3] * units))


def grid(size: int, reach: float = 8.0, step: float = 0.25) -> Grid:
    """Vectors of `size` numbers. Sums over an even grid are exact to e^-25 for densities as smooth as these."""
    line = np.arange(-reach, reach + step / 2, step)
    return Grid(np.stack(np.meshgrid(*[line] * size), axis=-1).reshape(-1, size), size * math.log(step))


def words(letters: int, length: int) -> Grid:
    """All vectors of `length` numbers from 0 .. letters - 1."""
    return Grid(np.array(list(itertools.product(range(letters), repeat=length))), 0.0)


def integers(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(n, size=(BATCH, *shape))


_reals = np.random.default_rng(0).normal(size=(BATCH, 2)).astype(np.float32) + np.float32([1, -1])
BITS = Data(integers(2, 3).astype(np.float32), words(2, 3), integers(2, 3).astype(np.float32))
CLASSES = Data(integers(3, 2), words(3, 2), np.tile([0, 2], (BATCH, 1)))
LEVELS = Data(integers(8, 2), words(8, 2), np.tile([0, 7], (BATCH, 1)))
COUNTS = Data(integers(5, 1), words(60, 1), np.full((BATCH, 1), 10_000))
PAIR_OF_COUNTS = Data(1 + integers(5, 2), None, np.full((BATCH, 2), 10_000))
REALS = Data(_reals, grid(2, reach=9.0, step=0.4), 1e4 * _reals)
_gaps = np.where(np.eye(2, dtype=bool)[integers(2)] & (integers(3)[:, None] > 0), np.nan, 1).astype(np.float32)
GAPS = REALS._replace(ys=_gaps * _reals, extreme=_gaps * REALS.extreme)
NO_SUM = REALS._replace(values=None)  # where a sum over y takes too long
IMAGES = Data(integers(2, 4, 4, 1).astype(np.float32), None, np.ones((BATCH, 4, 4, 1), np.float32))
_texts = words(3, 3).points[Sentences(3, 0)(words(3, 3).points)]
TEXTS = Data(np.random.default_rng(0).permutation(_texts)[:BATCH], Grid(_texts, 0.0), np.tile([2, 2, 2], (BATCH, 1)))
WIDE = grid(2, reach=16.0, step=0.5)
NUMBERS = Data(_reals[:, :1], grid(1, reach=16.0), 1e4 * _reals[:, :1])
LEVEL = Data(integers(8, 1), words(8, 1), np.tile([7], (BATCH, 1)))
STEPS = Data(_reals[..., None], Grid(WIDE.points[..., None], WIDE.log_volume), 1e4 * _reals[..., None])
LABELS = np.eye(2, dtype=np.float32)[integers(2)]

# Latents: all their values.
FINE = grid(2, reach=6.0, step=0.25)
PATHS = Grid(FINE.points[..., None], FINE.log_volume)
LINE, PLANE, THREE, PAIRS, TWO_BITS = grid(1), grid(2), Grid(np.arange(3), 0.0), words(3, 2), words(2, 2)


def latent(
    enc, pri, gen, data: Data, zs: Grid | None, *, estimator: Estimator = sampled, tied=False, **fields
) -> System:
    """The VAE of three parts, and its density by summing over `zs`. Prior and generator may be `System`s themselves."""
    (pri, pri_density), (gen, gen_density) = (
        (part.model, part.density) if isinstance(part, System) else (part, density_of(part)) for part in (pri, gen)
    )
    model = vae(enc, pri, gen, estimator=estimator)

    def density(params, y, c):
        pri_params = {**params["pri"], "enc": params["enc"]} if tied else params["pri"]

        def joint(z):
            return pri_density(pri_params, z, c) + gen_density(params["gen"], y, join(z, c))

        return logsumexp(jax.vmap(joint)(jax.tree.map(jnp.asarray, zs.points))) + zs.log_volume

    return System(
        share(model, "enc", "pri/enc") if tied else model,
        data,
        density if zs else None,
        **{
            "held": ("enc",) if estimator is fixed_encoder else (),
            "on_average": ("enc",) if estimator is sticking else (),
            "deterministic": estimator is enumerated,
            **fields,
        },
    )


def coded(quantiser: Quantiser, net, pri: Conditional, gen: Conditional, data: Data, zs: Grid, **fields) -> System:
    """A VQ-VAE, and its density by summing over all codes. Its encoder has the gradient of the vectors, not of z."""

    def density(params, y, c):
        def joint(z):
            vectors = quantiser.embed(params["codes"], z)
            return density_of(pri)(params["pri"], z, c) + density_of(gen)(params["gen"], y, join(vectors, c))

        return logsumexp(jax.vmap(joint)(jnp.asarray(zs.points)))

    fields = {"held": ("codes",), "on_average": ("enc",), "deterministic": True, **fields}
    return System(vq_vae(net, quantiser, pri, gen), data, density, **fields)


def density_of(part: Conditional) -> Callable[..., Any]:
    return lambda params, x, c: part.dist(params, c).log_prob(x)


def both(parts: dict[str, Conditional], data: Data) -> System:
    """P(y|z) of a dict y whose arrays are independent given z."""

    def density(params, y, c):
        return sum(part.dist(params[name], c).log_prob(y[name]) for name, part in parts.items())

    def terms(params, key, y, c=None):
        del key
        return Terms(distortion=-density(params, y, c), rate=0.0)

    def of_each(key, function):
        keys = jax.random.split(key, len(parts))
        return {name: function(name, part, k) for k, (name, part) in zip(keys, parts.items(), strict=True)}

    def init(key, y, c=None):
        del y
        return of_each(key, lambda name, part, k: part.init(k, c))

    def sample(params, key, c=None):
        return of_each(key, lambda name, part, k: part.dist(params[name], c).sample(k))

    return System(Model(init, terms, sample, terms), data, density)


def no_latent(part: Conditional, data: Data, cs: np.ndarray) -> System:
    """A likelihood alone, given c."""
    return System(lift(part), data, density_of(part), cs, deterministic=True)


def exact(part: Conditional, data: Data, zs: Grid) -> System:
    """A model with an exact posterior, and its density by summing over the latent of its own parts."""
    em = part.em

    def density(params, y, c):
        del c

        def joint(z):
            return em.prior.dist(params["pri"]).log_prob(z) + em.generator.dist(params["gen"], z).log_prob(y)

        return logsumexp(jax.vmap(joint)(jnp.asarray(zs.points))) + zs.log_volume

    return System(lift(part), data, density, deterministic=True)


def denoising(d: Denoiser, examples: Data, cs: np.ndarray | None = None, **fields) -> System:
    """A diffusion of one step on one number, and its density by summing over (z_0, z_1); in continuous time none."""

    def density(params, y, c):
        low, level = (d.level(params["enc"], t) for t in d.times())

        def denoise(z, level):
            return d.denoise(params["gen"], z, level, c)

        def joint(z):
            z_0, z_1 = z[:1], z[1:]
            back = reverse_step(denoise(z_1, level), z_1, low, level).log_prob(z_0)
            return d.observation.dist(z_0, low, denoise).log_prob(y) + back + end((1,), level).log_prob(z_1)

        return logsumexp(jax.vmap(joint)(jnp.asarray(PLANE.points))) + PLANE.log_volume

    if d.steps is None:
        return System(diffusion(d, sampler=ancestral(5)), examples, None, cs, **fields)
    return System(diffusion(d), examples, density, cs, **fields)


def climbed(rungs, gen: Conditional, data: Data, zs: Grid | None, **fields) -> System:
    """A ladder of levels with one number each, and its density by summing over all of them."""

    def density(params, y, c):
        def joint(z):
            h, log_p = jnp.zeros(1), 0.0
            for rung, own, z_l in zip(rungs, params["pri"], z, strict=True):
                level = jax.tree.map(lambda x: x[0], own["levels"])
                h = as_network(rung.enter).apply(own["enter"], h)
                log_p += gaussian(rung.prior).dist(level["prior"], h).log_prob(z_l[None])
                h = as_network(rung.update).apply(level["update"], h, z_l[None])
            return log_p + gen.dist(params["gen"], h).log_prob(y)

        return logsumexp(jax.vmap(joint)(jnp.asarray(zs.points))) + zs.log_volume

    return System(ladder(rungs, gen), data, density if zs else None, **fields)


def class_of(net) -> Conditional:
    """One class, a scalar; `categorical` gives arrays of them."""
    return conditional(net, lambda logits: dist.CategoricalLogits(logits))


def in_part(classes: int, inner: System, cs: np.ndarray) -> System:
    """A model of y and its class, which is -1 where it is not known, and the density of what is known."""

    def density(params, y, c):
        each = jnp.stack([inner.density(params["gen"], y, one) for one in jnp.eye(classes)])
        joint = jax.nn.log_softmax(params["pri"]["logits"]) + each
        return jnp.where(c < 0, logsumexp(joint), joint[c])

    return System(partly_labelled(affine(classes), inner.model, classes), inner.data, density, cs)


def uniform(shape: tuple[int, ...], make: Callable[[Any], dist.Distribution]) -> Conditional:
    """make(zeros of that shape): a prior without parameters."""
    return Conditional(lambda key, c=None: {}, lambda params, c=None: make(jnp.zeros(shape)))


def relaxed_at(temperature: float) -> System:
    """Two relaxed classes, and their density by summing over the logit of z, with dz / prod z as its volume."""
    step = 0.02
    logits = np.arange(-25, 25 + step / 2, step) / temperature
    segment = SimplexPoint(-np.logaddexp(0, np.stack([-logits, logits], axis=1)))
    return latent(
        gumbel_softmax(affine(2), temperature),
        uniform((2,), lambda logits: GumbelSoftmax(logits, temperature)),
        bernoulli(affine(3, scale=1.0)),
        BITS,
        Grid(segment, math.log(step / temperature)),
    )


UNIFORM_CLASS = uniform((3,), dist.CategoricalLogits)
UNIFORM_PAIR = uniform((2, 3), lambda logits: dist.CategoricalLogits(logits).to_event(1))
UNIFORM_BITS = uniform((2,), lambda logits: dist.Bernoulli(logits=logits).to_event(1))
NORMAL = (encoder(2), standard_normal(2), bernoulli(affine(3)), BITS, PLANE)
DISCRETE = (class_of(affine(3)), UNIFORM_CLASS, bernoulli(affine(3, scale=1.0)), BITS, THREE)
ONES = Grid(np.eye(3, dtype=np.float32), 0.0)
ONE_HOT = (one_hot(affine(3)), uniform((3,), OneHot), bernoulli(affine(3, scale=1.0)), BITS, ONES)
# A prior and a generator that are VAEs.
DEEP_PRIOR = latent(encoder(1), standard_normal(1), l2(affine(1, scale=1.0), 1.0), REALS, LINE, estimator=analytic)
DEEP_GENERATOR = latent(encoder(1), standard_normal(1), l2(affine(2), 0.8), REALS, LINE)

SMALL: dict[str, Any] = {"layers": 2, "hidden": (3,)}  # flows
RUNG = Rung(affine(2), affine(2), affine(2, scale=0.2), affine(2, scale=0.2, bias=[0.0, 0.3]), affine(2))

# One step of diffusion, with so much noise that sums over the latents are exact.
ONE_STEP = denoiser(affine(1), (1,), linear(-1.0, 2.0), prediction=predict_data, steps=1, observation=denoised())
ONE_DENOISING = denoising(ONE_STEP, NUMBERS)

MIXED = Data({"bits": BITS.ys, "reals": REALS.ys}, None, {"bits": BITS.extreme, "reals": REALS.extreme})
MIXED_PARTS = {"bits": bernoulli(affine(3)), "reals": l2(affine(2), 0.8)}

# For finite differences: no corner of relu, and the precision of the input.
SMOOTH = {"activation": nn.gelu, "dtype": None}

SYSTEMS: dict[str, System] = {
    # Estimators.
    "sampled": latent(*NORMAL),
    "analytic": latent(*NORMAL, estimator=analytic, same_as="sampled"),
    "sticking": latent(*NORMAL, estimator=sticking, same_as="sampled"),
    "fixed encoder": latent(*NORMAL, estimator=fixed_encoder, same_as="sampled"),
    "enumerated classes": latent(*DISCRETE, estimator=enumerated),
    "fixed encoder, classes": latent(*DISCRETE, estimator=fixed_encoder, same_as="enumerated classes"),
    "score function, classes": latent(
        *DISCRETE, estimator=score_function(baseline=2.0), on_average=("enc",), same_as="enumerated classes"
    ),
    "relaxed classes": relaxed_at(1.0),
    "relaxed classes, temperature 0.1": relaxed_at(0.1),
    "relaxed classes, temperature 0.01": relaxed_at(0.01),
    "enumerated pair of classes": latent(
        categorical(affine(2, 3)), UNIFORM_PAIR, categorical(affine(2, 3)), CLASSES, PAIRS, estimator=enumerated
    ),
    "enumerated bits": latent(
        bernoulli(affine(2)), UNIFORM_BITS, bernoulli(affine(3)), BITS, TWO_BITS, estimator=enumerated
    ),
    # Priors, each with one of the L2 generators.
    "learned normal, l2 sigma learned": latent(encoder(1), learned_normal(1), l2(affine(2)), REALS, LINE),
    "mixture, l2 sigma per dimension": latent(
        encoder(1), mixture_of_gaussians(1, 3), l2(affine(2), "learned_per_dimension"), REALS, LINE
    ),
    "VampPrior, l2 sigma predicted": latent(
        encoder(1), vampprior(encoder(1), _reals[:3]), l2(affine(4), "predicted"), REALS, LINE, tied=True
    ),
    "VAE of VAEs, l2 sigma fixed": latent(encoder(1), DEEP_PRIOR, DEEP_GENERATOR, REALS, LINE),
    "conditional, l2 sigma optimal": latent(
        encoder(1), standard_normal(1), l2(affine(2), "optimal"), REALS, LINE, cs=LABELS, held=("gen/log_sigma",)
    ),
    # Likelihoods.
    "no latent": no_latent(gaussian(affine(4)), REALS, LABELS),
    "categorical": latent(encoder(1), standard_normal(1), categorical(affine(2, 3)), CLASSES, LINE),
    "discretised logistic": latent(
        encoder(1, 0.05), standard_normal(1), discretised_logistic(affine(2, 2), levels=8), LEVELS, LINE
    ),
    "discretised logistic mixture": latent(
        encoder(1, 0.05), standard_normal(1), discretised_logistic(affine(2, 9), levels=8, components=3), LEVELS, LINE
    ),
    "a dict of arrays": latent(encoder(1), standard_normal(1), both(MIXED_PARTS, MIXED), MIXED, LINE),
    "rows of a table": latent(encoder(1), standard_normal(1), columns(affine(3), MIXED_PARTS), MIXED, LINE),
    "poisson": latent(encoder(1, 0.05), standard_normal(1), poisson(affine(1)), COUNTS, LINE),
    "negative binomial, more zeros": latent(
        encoder(1, 0.05), standard_normal(1), negative_binomial(affine(1, 2), zero_inflated=True), COUNTS, LINE
    ),
    "missing entries": latent(
        gaussian(seeing_what_is_missing(affine(2, scale=0.2, bias=[0.0, 0.3]))),
        standard_normal(1),
        maybe_missing(l2(affine(2))),
        GAPS,
        LINE,
    ),
    # Models with an exact posterior.
    "mixture of Gaussians": exact(mixture_of_gaussians(2, 3, "full"), REALS, THREE),
    "mixture of Bernoullis": exact(mixture_of_bernoullis((3,), 3), BITS, THREE),
    "mixture of categoricals": exact(mixture_of_categoricals((2,), 3, 3), CLASSES, THREE),
    "factor analysis": exact(factor_analysis(2, 1), REALS._replace(values=WIDE), LINE),
    "hidden Markov model": exact(categorical_hmm(3, 2, 2), CLASSES, TWO_BITS),
    "state-space model": exact(linear_gaussian_state_space(1, 1, 2), STEPS, PATHS),
    "mixture of Gaussians, as a VAE": System(
        as_vae(mixture_of_gaussians(2, 3, "full")),
        REALS,
        lambda params, y, c: mixture_of_gaussians(2, 3, "full").dist(params).log_prob(y),
        deterministic=True,
    ),
    # Flows.
    "coupling flow": no_latent(coupling_flow(2, **SMALL), REALS, LABELS),
    "coupling flow as prior": latent(encoder(2), coupling_flow(2, **SMALL), bernoulli(affine(3)), BITS, PLANE),
    "autoregressive flow as prior, conditional": latent(
        encoder(1), autoregressive_flow(1, **SMALL), l2(affine(2)), REALS, LINE, cs=LABELS
    ),
    "inverse autoregressive flow as encoder": latent(
        inverse_autoregressive_flow(2, base=encoder(2), **SMALL),
        standard_normal(2),
        bernoulli(affine(3)),
        BITS,
        PLANE,
    ),
    # Several steps.
    "chain of VAEs": latent(encoder(1), DEEP_PRIOR, l2(affine(2), 0.8), REALS, LINE)._replace(
        model=chain([(encoder(1), l2(affine(2), 0.8)), (encoder(1), l2(affine(1, scale=1.0), 1.0))], standard_normal(1))
    ),
    "diffusion, one step": ONE_DENOISING,
    "diffusion, one step, unrolled": ONE_DENOISING._replace(model=unrolled(ONE_STEP), same_as="diffusion, one step"),
    "diffusion of levels, variance learned, conditional": denoising(
        denoiser(
            affine(2),
            (1,),
            linear(-1.0, 0.8),
            steps=1,
            observation=discrete(8),
            variance="learned",
            process=variance_exploding,
            prediction=predict_data,
        ),
        LEVEL,
        LABELS,
    ),
    "diffusion, continuous time": denoising(
        denoiser(affine(2), (2,), cosine(-3.0, 3.0), observation=continuous(-1e5, 1e5), prediction=predict_velocity),
        NO_SUM,
    ),
    "diffusion, learned schedule": denoising(
        denoiser(affine(2), (2,), learned(-3.0, 3.0, ends="learned")), NO_SUM, held=("enc/curve",)
    ),
    "latent diffusion": latent(encoder(1), ONE_DENOISING, l2(affine(2), 0.8), NO_SUM, LINE),
    "ladder": climbed((RUNG, RUNG), bernoulli(affine(3)), BITS, PLANE),
    # Networks.
    "dense ladder, conditional": climbed(
        nets.mlp_rungs((1, 2), width=3, hidden=(3,), levels=2, **SMOOTH),
        bernoulli(nets.MLP((), 3, **SMOOTH)),
        BITS._replace(values=None),
        None,
        cs=LABELS,
    ),
    "convolutional ladder": climbed(
        nets.conv_rungs((4, 4, 1), scales=(4, 2), levels=(1, 2), channels=4, latent=1, **SMOOTH),
        bernoulli(nets.FromGrid((4, 4, 1), 2, **SMOOTH)),
        IMAGES,
        None,
    ),
    "U-Net": denoising(
        denoiser(nets.UNet((4,), heads=2, **SMOOTH), (4, 4, 1), linear(-3.0, 3.0), prediction=predict_velocity),
        IMAGES._replace(ys=2 * IMAGES.ys - 1),
    ),
    # Vector quantisation.
    "VQ-VAE": coded(codebook(3, 2), affine(2, 2), uniform_codes(3, 2), bernoulli(affine(3, scale=1.0)), BITS, PAIRS),
    "VQ-VAE, projected, residual, prior learned, conditional": coded(
        projected(residual(codebook(3, 2, update=by_gradient(), through=rotation), 2), 4, 2),
        affine(4),
        categorical(affine(2, 3)),
        l2(affine(2), 0.8),
        REALS,
        PAIRS,
        cs=LABELS,
        held=("codes/inner",),
        on_average=("enc", "codes/down"),
    ),
    # Classes and adversaries: relaxed gradients are biased, so they are compared with no difference quotient.
    "Gumbel-softmax": latent(*ONE_HOT, estimator=gumbel(1.0), on_average=("enc", "gen")),
    "straight-through Gumbel": latent(*ONE_HOT, estimator=straight_through_gumbel(1.0), on_average=("enc",)),
    "adversarial term": latent(
        encoder(2),
        standard_normal(2),
        System(
            adversarial(bernoulli(affine(3)), affine(1), weight=0.1),
            BITS,
            lambda params, y, c: bernoulli(affine(3)).dist(params["gen"], c).log_prob(y),
        ),
        BITS,
        PLANE,
        held=("gen/dis",),
    ),
    # Classes known in part, and models of particular data.
    "classes in part": in_part(
        2, latent(encoder(1), standard_normal(1), bernoulli(affine(3)), BITS, LINE), np.arange(BATCH) % 3 - 1
    ),
    "cells": System(
        cell_vae(2, 1, hidden=(3,)).model,
        PAIR_OF_COUNTS,
        cs={"total": PAIR_OF_COUNTS.ys.sum(axis=1).astype(np.float32)},
    ),
    # Parameters beside a model's own, which its bound does not see.
    "a distortion that is asked for": latent(*NORMAL)._replace(
        model=geco(vae(*NORMAL[:3]), 1.0)[0],
        density=lambda params, y, c: latent(*NORMAL).density(params["model"], y, c),
        held=("multiplier",),
    ),
    "FactorVAE": latent(*NORMAL, held=("dis",))._replace(
        model=factor_vae(vae(*NORMAL[:3]), NORMAL[0], affine(1), 1.0)[0]
    ),
    # Autoregressive models.
    "language model, given labels": no_latent(
        autoregressive(nets.LSTM(3, 2, 3, dtype=None), 3, 3, end=0), TEXTS, LABELS
    ),
    "text VAE": latent(
        encoder(1),
        standard_normal(1),
        autoregressive(nets.LSTM(3, 2, 3, skip=True, dtype=None), 3, 3, end=0),
        TEXTS,
        LINE,
    ),
    "PixelCNN as prior of codes": latent(
        categorical(affine(1, 2, 3)),
        autoregressive(nets.PixelCNN(3, 2, 1, dtype=None), (1, 2), 3),
        categorical(affine(2, 3)),
        CLASSES,
        Grid(PAIRS.points[:, None], 0.0),
        estimator=fixed_encoder,
    ),
    "MLP": latent(
        gaussian(nets.MLP((5,), 2, **SMOOTH)), standard_normal(1), bernoulli(nets.MLP((5,), 3, **SMOOTH)), BITS, LINE
    ),
    "nnx": latent(
        gaussian(functools.partial(nnx.Linear, 3, 2)),
        standard_normal(1),
        bernoulli(functools.partial(nnx.Linear, 1, 3)),
        BITS,
        LINE,
    ),
    "convolutional": latent(
        gaussian(nets.ConvEncoder((4,), 2, **SMOOTH)),
        standard_normal(1),
        bernoulli(nets.ConvDecoder((4,), (4, 4, 1), **SMOOTH)),
        IMAGES,
        LINE,
    ),
    "residual, conditional": latent(
        gaussian(nets.ResEncoder((4,), 2, **SMOOTH)),
        standard_normal(1),
        bernoulli(nets.ResDecoder((4,), (4, 4, 1), **SMOOTH)),
        IMAGES,
        LINE,
        cs=LABELS,
    ),
}

# Checkpoints, devices and evaluation treat every model alike but for these differences: rates per unit or none, a
# condition or none, tied parts, closed-form M-steps, parts without parameters or gradients. One of each kind is enough.
# One for each way in which terms are made and parameters change: in `make test` the laws run over these, then over all
# systems in `.ci/run`; those that compile much more, in `make test-all`.
REPRESENTATIVE = (
    "missing entries",
    "classes in part",
    "sampled",
    "sticking",
    "enumerated bits",
    "score function, classes",
    "mixture, l2 sigma per dimension",
    "discretised logistic mixture",
    "poisson",
    "mixture of Gaussians, as a VAE",
    "hidden Markov model",
    "state-space model",
    "coupling flow as prior",
    "inverse autoregressive flow as encoder",
    "chain of VAEs",
    "diffusion of levels, variance learned, conditional",
    "diffusion, learned schedule",
    "ladder",
    "VQ-VAE",
    "straight-through Gumbel",
    "adversarial term",
    "text VAE",
    "PixelCNN as prior of codes",
    "convolutional",
)

# The same for laws that train: one more program each, the step.
TRAINED = (
    "sampled",
    "score function, classes",
    "mixture of Gaussians, as a VAE",
    "hidden Markov model",
    "diffusion, learned schedule",
    "VQ-VAE",
    "adversarial term",
    "text VAE",
)

# The same for laws that compile for several devices, or write to the disk.
ON_DEVICES = (
    "analytic",
    "fixed encoder, classes",
    "VampPrior, l2 sigma predicted",
    "conditional, l2 sigma optimal",
)

# Further shapes of a system above whose programs take long to compile: in `make test-all`.
LARGER = ("dense ladder, conditional", "convolutional ladder")
