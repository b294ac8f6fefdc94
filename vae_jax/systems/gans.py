"""Adversarial training: a term for sharper generators, and a GAN of the same prior and generator.

A VAE draws z from P_pri and y from P_gen, as a GAN does; what a GAN lacks is an encoder, which inverts its generator. A
discriminator D gives logits of "this is data", one for an image or one for each patch of it, which are averaged:

    hinge           D loses  relu(1 - D(y)) + relu(1 + D(yhat))             the generator loses  -D(yhat)
    non-saturating           softplus(-D(y)) + softplus(D(yhat))                                  softplus(-D(yhat))

(Lim & Ye 2017, Goodfellow et al. 2014.) `adversarial(generator, discriminator)` adds both to the penalty of a VAE, in
which the bound has no part: VAE-GAN (Larsen et al. 2016) and VQGAN (Esser et al. 2021) are compositions of it. `hoist`
(`vae_jax.core`) gives the discriminator an optimiser state of its own:

    hoist(vae(encoder, prior, adversarial(generator, discriminator)), "gen/dis", "dis")

`gan(discriminator)` is the objective of a GAN proper, and what it leaves out is trained after it:

    model = with_discriminator(vae(encoder, prior, means(generator)), discriminator)
    fit(model, ..., objective=gan(discriminator), parts=("pri", "gen", "dis"))         then parts=("enc",), by the ELBO
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array

from vae_jax.core.distributions import mean_of
from vae_jax.core.model import Conditional, Model, join, lift
from vae_jax.core.network import Network, as_network
from vae_jax.core.objectives import Objective, batch_terms
from vae_jax.core.parameters import beside
from vae_jax.parts.conditionals import arguments

MOST = 1e4  # of the ratio that weighs an adaptive term


class Game(NamedTuple):
    """Losses of the two players as functions of logits.

    Fields:
        real, fake: the discriminator's, at data and at what was generated.
        fool: the generator's.
    """

    real: Callable[[Array], Array]
    fake: Callable[[Array], Array]
    fool: Callable[[Array], Array]


hinge = Game(lambda d: jax.nn.relu(1 - d), lambda d: jax.nn.relu(1 + d), lambda d: -d)
"""Its optimum in D is 2 - 2 TV(data, model), TV the total variation distance."""

non_saturating = Game(lambda d: jax.nn.softplus(-d), jax.nn.softplus, lambda d: jax.nn.softplus(-d))
"""Its optimum in D is ln 4 - 2 JS(data, model), JS the Jensen-Shannon divergence."""


def adversarial(
    generator: Any, discriminator: Any, *, weight: float = 1.0, loss: Game = hinge, adaptive: bool = True
) -> Model:
    """The generator, whose means yhat have to look like data to a discriminator; params `{"gen": ..., "dis": ...}`.

    The penalty is weight * ratio * fool(D(yhat)), whose gradient reaches the generator and the encoder, plus the
    discriminator's own loss at y and yhat, whose gradient reaches the discriminator alone. Distortion, samples and
    importance are those of the generator.

    The ratio is |d distortion / d yhat| / |d fool / d yhat|, at most 10,000, and a constant to the gradient: where the
    weight is 1, the two pull equally at each example's yhat. (Esser et al. 2021, equation 7, take the norms of the
    gradients by the last layer's weights, averaged over the batch.) The first norm is that of (yhat - y) / variance,
    as in every exponential family; for other families it is that of the Gaussian with the same moments.

    Args:
        generator: P_gen(y|z), of values with a mean.
        discriminator: a network from one y to a logit, or an array of them.
        weight: of the generator's adversarial loss.
        loss: `hinge` or `non_saturating`.
        adaptive: multiply the weight by the ratio.

    Raises:
        TypeError: the generator is no Conditional; or, when first called, has no mean.
        ValueError: a negative weight.
    """
    if not isinstance(generator, Conditional):
        raise TypeError(f"adversarial wants a generator with a mean, a Conditional; got {type(generator).__name__}")
    if not weight >= 0:
        raise ValueError(f"the weight of the adversarial loss cannot be negative; got {weight}")
    net = as_network(discriminator)

    def judged(params, terms, y, c):
        distribution = generator.dist(params["gen"], c)
        yhat = mean_of(distribution)
        if yhat is None:
            raise TypeError(
                f"the discriminator judges the mean of P_gen(y|z), and {type(distribution).__name__} has none: classes "
                "are no numbers; use discretised_logistic, bernoulli or l2"
            )

        def fool(yhat):
            return jnp.mean(loss.fool(net.apply(jax.lax.stop_gradient(params["dis"]), yhat)))

        y_seen = jnp.asarray(y, yhat.dtype)
        scale = weight * (_ratio(distribution, y_seen, jax.grad(fool)(yhat)) if adaptive else 1.0)
        judgement = judge(net, loss, params["dis"], (y_seen,), (yhat,))
        return terms._replace(penalty=terms.penalty + scale * fool(yhat) + judgement)

    return beside(lift(generator), "gen", "dis", lambda key, y, c: net.init(key, y), judged)


def with_discriminator(model: Model, discriminator: Any) -> Model:
    """The model with parameters "dis" beside its own, for `gan(discriminator)`; it makes no use of them.

    The discriminator is called with y, or with (y, c) where there is a condition.
    """
    return beside_its_own(model, as_network(discriminator), lambda params, key, y, c: arguments(join(y, c)))


def beside_its_own(model: Model, net: Network, seen: Callable[..., tuple[Any, ...]]) -> Model:
    """The model with parameters "dis" beside its own: of a network for what `seen(params, key, y, c)` gives."""

    def init(key, y, c=None):
        k_model, k_dis, k_seen = jax.random.split(key, 3)
        params = model.init(k_model, y, c)
        return {**params, "dis": net.init(k_dis, *seen(params, k_seen, y, c))}

    def maximise(params, stats):
        return {**model.maximise(params, stats), "dis": params["dis"]}

    return model._replace(init=init, maximise=maximise)


def gan(discriminator: Any, *, loss: Game = hinge) -> Objective:
    """The adversarial game on samples of the model, not its bound: fool(D(sample)) + D's loss, mean over the batch.

    It trains `pri`, `gen` and `dis`, and has no gradient for an encoder. The terms that are reported are the
    model's own bound, as good as its encoder. The samples need a gradient: those of a continuous generator have one,
    and so have those of `means(generator)`.

    Raises:
        ValueError: parameters without "dis", or samples of integers (when first called).
    """
    net = as_network(discriminator)

    def objective(model, params, keys, ys, cs, step):
        del step
        if not isinstance(params, dict) or "dis" not in params:
            raise ValueError("gan trains params['dis'], and this model has none: with_discriminator(model, net)")
        k_sample, k_terms = (jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys) for i in (0, 1))
        terms = batch_terms(model.terms, jax.lax.stop_gradient(params), k_terms, ys, cs)

        def one(key, y, c):
            yhat = model.sample(params, key, c)
            if not jnp.issubdtype(yhat.dtype, jnp.floating):
                raise ValueError(
                    f"samples of type {yhat.dtype} have no gradient, and a GAN needs one: means(generator) in the model"
                )
            real, fake = arguments(join(jnp.asarray(y, yhat.dtype), c)), arguments(join(yhat, c))
            fooled = loss.fool(net.apply(jax.lax.stop_gradient(params["dis"]), *fake))
            return jnp.mean(fooled) + judge(net, loss, params["dis"], real, fake)

        losses = jax.vmap(one, in_axes=(0, 0, None if cs is None else 0))(k_sample, ys, cs)
        return jnp.mean(losses), terms

    return objective


def judge(net: Network, loss: Game, params: Any, real: tuple[Any, ...], fake: tuple[Any, ...]) -> Array:
    """The discriminator's loss; no gradient reaches what it judges."""
    d_real, d_fake = (net.apply(params, *jax.lax.stop_gradient(seen)) for seen in (real, fake))
    return jnp.mean(loss.real(d_real)) + jnp.mean(loss.fake(d_fake))


def _ratio(distribution: dist.Distribution, y: Array, push: Array) -> Array:
    """How much longer the distortion's gradient at the mean is than `push`."""
    pull = (distribution.mean - y) / jnp.maximum(distribution.variance, jnp.finfo(y.dtype).tiny)
    ratio = jnp.linalg.norm(jnp.ravel(pull)) / (jnp.linalg.norm(jnp.ravel(push)) + 1e-6)
    return jax.lax.stop_gradient(jnp.minimum(ratio, MOST))
