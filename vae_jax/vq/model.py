"""VQ-VAE (van den Oord et al. 2017): a VAE whose z are codes, each y with one of them for certain.

    P(y) = sum_z P_pri(z) P_gen(y|z)        P_enc(z|y) = 1 at the codes nearest to the encoder's vectors, else 0
    rate = ln P_enc - ln P_pri = -ln P_pri(z)        distortion = -ln P_gen(y|z)

P_enc is a distribution like any other, so the bound is honest: it counts one term of the sum over z, the length of a
code for y. Its gradient is not: the choice of z has none, and the encoder is given that of the vectors which stand for
z (`vae_jax.vq.quantiser`).

Stage two is training with a fixed encoder: `parts=("pri",)`, with any prior over arrays of codes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array

from vae_jax.core.distributions import unit_log_prob
from vae_jax.core.estimators import latent_terms
from vae_jax.core.model import (
    Coder,
    Conditional,
    Latent,
    Model,
    Params,
    Units,
    drawn,
    example_of,
    join,
    lift,
    mean_sample,
)
from vae_jax.core.network import as_network, shape_of
from vae_jax.core.numbers import is_whole
from vae_jax.parts.conditionals import arguments, full_precision
from vae_jax.vq.quantiser import Quantiser, check_levels, code_perplexity

AT_ONCE = 256  # examples in memory when the codes are placed


def uniform_codes(levels: int, shape: int | tuple[int, ...]) -> Conditional:
    """All arrays of codes 0 .. levels - 1 of this shape alike: n codes cost n ln levels nats. No parameters.

    Raises:
        ValueError: fewer than two levels, or a size below 1.
    """
    check_levels(levels)
    shape = shape_of(shape)
    if not all(map(is_whole, shape)):
        raise ValueError(f"uniform_codes wants positive whole sizes in shape; got {shape}")

    def distribution(params, c=None):
        del params, c
        # of numpy: the bounds are numbers also where this is traced, and a code (`vae_jax.codec`) asks for them
        return dist.DiscreteUniform(np.zeros(shape, np.int32), levels - 1).to_event(len(shape))

    return Conditional(lambda key, c=None: {}, distribution)


def vq_vae(
    encoder: Any,
    quantiser: Quantiser,
    prior: Model | Conditional,
    generator: Model | Conditional,
    *,
    start: Any = None,
) -> Model:
    """P(y|c) = sum_z P_pri(z|c) P_gen(y|z, c), bounded with one z: the codes of the encoder's vectors.

    The parameters are `{"enc": ..., "codes": ..., "pri": ..., "gen": ...}`. `Terms.codes` has those of y, and
    `detail` the `vectors` that stand for them, the running `usage` (..., K) and the `perplexity` (...) of the codes.

    There is no `importance`: P_enc gives all of its probability to one z, and of the sum over z nothing is learnt from
    that but one term.

    Args:
        encoder: a network from y to vectors (..., D), not a distribution.
        quantiser: `codebook(K, D)`, `fsq()`, `lfq(bits)`, or one made of these by `residual`, `grouped`, `projected`.
        prior: over int32 arrays of codes: `uniform_codes(K, shape)`, or an autoregressive model.
        generator: P_gen(y|vectors): it sees the vectors (..., D) that stand for the codes, and c where there is one.
        start: examples (n, *example) in the form that the encoder sees, or a pair (ys, cs) where there is a condition:
            the codes start on their vectors, by k-means. By default they start at random.

    Raises:
        TypeError: the encoder is no network, or prior or generator neither Model nor Conditional.
        ValueError: vectors of another size than the quantiser's, or fewer vectors to start from than codes (when first
            called).

    Example:
        >>> parts = nets.MLP((), (4, 8)), codebook(16, 8), uniform_codes(16, 4), l2(nets.MLP((), 2), 1.0)
        >>> model = vq_vae(*parts)
        >>> params = jax.jit(model.init)(jax.random.key(0), jnp.zeros(2), None)
        >>> round(float(jax.jit(model.terms)(params, jax.random.key(1), jnp.zeros(2), None).rate), 2)  # 4 ln 16 nats
        11.09
    """
    if isinstance(encoder, Conditional):
        raise TypeError(
            "the encoder of a vq_vae is a network from y to vectors (..., D), which the quantiser turns into codes; "
            "got a Conditional: leave out gaussian(...) or categorical(...)"
        )
    network = as_network(encoder)
    tractable = prior if isinstance(prior, Conditional) else None
    prior, generator = lift(prior), lift(generator)

    def vectors_of(enc, y, c):
        return full_precision(network.apply(enc, *arguments(join(y, c))))

    def init(key, y, c=None):
        k_enc, k_codes, k_start, k_pri, k_gen = jax.random.split(key, 5)
        enc = network.init(k_enc, *arguments(join(y, c)))
        codes = quantiser.init(k_codes, example_of(vectors_of, enc, y, c))
        if start is not None:
            inputs = jax.tree.map(jnp.asarray, arguments(start))
            vectors = jax.lax.map(lambda one: full_precision(network.apply(enc, *one)), inputs, batch_size=AT_ONCE)
            codes = quantiser.start(k_start, codes, vectors)
        z = example_of(lambda: quantiser.quantise(codes, vectors_of(enc, y, c)))
        return {
            "enc": enc,
            "codes": codes,
            "pri": prior.init(k_pri, z.codes, c),
            "gen": generator.init(k_gen, y, join(z.vectors, c)),
        }

    def terms(params, key, y, c=None):
        k_pri, k_gen = jax.random.split(key)
        z = quantiser.quantise(params["codes"], vectors_of(params["enc"], y, c))
        pri = prior.terms(params["pri"], k_pri, z.codes, c)
        gen = generator.terms(params["gen"], k_gen, y, join(z.vectors, c))
        used = quantiser.usage(params["codes"])
        log_pri = None if tractable is None else unit_log_prob(tractable.dist(params["pri"], c), z.codes)
        inner = latent_terms(0.0, pri, gen)  # ln P_enc = 0 at the codes that are taken
        shown = {"vectors": z.vectors, "usage": used, "perplexity": code_perplexity(used)}
        return inner._replace(
            penalty=z.penalty + inner.penalty,
            stats={"codes": z.stats, **inner.stats},
            units=Units(rate=None if log_pri is None else -log_pri),
            codes=(z.codes, *inner.codes),
            detail={**shown, **inner.detail},
        )

    def sample(params, key, c=None):
        k_z, k_y = jax.random.split(key)
        codes = prior.sample(params["pri"], k_z, c)
        return generator.sample(params["gen"], k_y, join(quantiser.embed(params["codes"], codes), c))

    def maximise(params, stats):
        return {
            "enc": params["enc"],
            "codes": quantiser.maximise(params["codes"], stats["codes"]),
            "pri": prior.maximise(params["pri"], stats["pri"]),
            "gen": generator.maximise(params["gen"], stats["gen"]),
        }

    def support(params, c=None):
        codes = prior.sample(params["pri"], jax.random.key(0), c)
        vectors = quantiser.embed(params["codes"], codes)
        return generator.support and generator.support(params["gen"], join(vectors, c))

    shown = mean_sample(generator)

    def encode(params, key, y, c=None):
        del key
        return quantiser.quantise(params["codes"], vectors_of(params["enc"], y, c)).codes

    def decode(params, key, codes, c=None):
        return shown(params["gen"], key, join(quantiser.embed(params["codes"], codes), c))

    def draw(params, key, c=None, temperature=None):
        return drawn(prior, tractable, params["pri"], key, c, temperature)

    def mean(params, key, c=None):
        k_z, k_y = jax.random.split(key)
        return decode(params, k_y, prior.sample(params["pri"], k_z, c), c)

    support_or_none = generator.support and support
    latent = Latent(encode, decode, draw)
    coder = _coder_of_codes(encode, quantiser, prior.coder, generator.coder)
    return Model(init, terms, sample, None, maximise, support_or_none, mean=mean, latent=latent, coder=coder)


def _coder_of_codes(
    encode: Callable[..., Array], quantiser: Quantiser, pri: Coder | None, gen: Coder | None
) -> Coder | None:
    """The codes are no draw, so that no bits are back: y, and then the codes by their prior."""
    if pri is None or gen is None:
        return None

    def write(stack, params, ys, cs=None):
        codes = stack.each(encode, params, None, ys, cs)
        vectors = stack.each(quantiser.embed, params["codes"], codes)
        gen.write(stack, params["gen"], ys, join(vectors, cs))
        pri.write(stack, params["pri"], codes, cs)

    def read(stack, params, cs=None):
        codes = pri.read(stack, params["pri"], cs)
        vectors = stack.each(quantiser.embed, params["codes"], codes)
        return gen.read(stack, params["gen"], join(vectors, cs))

    return Coder(write, read)


def encode(model: Model, params: Params, y: Any, c: Any = None) -> Array:
    """The codes of one y, those next to it where VQ-VAEs are nested: what stage two is trained on.

        codes = jax.jit(jax.vmap(lambda y: encode(model, params, y)))(ys)
        prior = fit(lift(prior), optimizer, codes, key=key, epochs=20)
        params = {**params, "pri": prior.params}

    Raises:
        ValueError: the model has no codes.
    """
    codes = model.terms(params, jax.random.key(0), y, c).codes
    if not codes:
        raise ValueError("this model's terms tell of no codes: encode is for the models that vq_vae makes")
    return codes[0]
