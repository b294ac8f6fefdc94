"""Classes that are known of some examples: one model of y and its class, of which the others' are latent.

    a labelled example      -ln P(y, c) <= -ln P(c) + L(y|c)
    an unlabelled one       -ln P(y)    <= E_{c ~ P_enc(c|y)} [ln P_enc(c|y) - ln P(c) + L(y|c)]

Kingma et al. 2014, "Semi-supervised learning with deep generative models", M2, equations 6 to 9. The classifier
P_enc(c|y) learns from labels only by a term of its own, which is in the loss and not in the bound.
"""

from typing import Any

import jax
import jax.numpy as jnp

from vae_jax.core.combinator import vae
from vae_jax.core.estimators import Estimator, enumerated, importance_of, latent_terms
from vae_jax.core.model import Conditional, Model, Units, lift, log_prob
from vae_jax.core.numbers import is_number, is_whole
from vae_jax.parts.classes import learned_classes, one_hot


def partly_labelled(
    classifier: Any,
    model: Model | Conditional,
    classes: int,
    *,
    weight: float = 1.0,
    prior: Conditional | None = None,
    estimator: Estimator = enumerated,
) -> Model:
    """P(y, c) of a class c that is known (0 .. classes - 1) or not (-1), for batches of both.

    The parameters are `{"enc": classifier's, "pri": class prior's, "gen": model's}`. Of a labelled example the bound is
    on ln P(y, c), of another one on ln P(y). An epoch holds few labels where they are few: give them more weight, or
    repeat them.

    Args:
        classifier: network from y to logits (classes,).
        model: P(y|c); the condition is a one-hot vector: a VAE whose encoder and generator see it.
        weight: of -ln P_enc(c|y) at the known classes, nats for nats, beside the bound (alpha in the paper; it has 0.1
            times the examples for each label).
        prior: of one-hot classes, by default one that is trained from equal parts.
        estimator: of the sum over unknown classes: `enumerated`, exact, or `gumbel` at one relaxed class.

    Raises:
        ValueError: fewer than two classes, a negative weight.

    Example:
        >>> inner = vae(gaussian(nets.MLP((8,), 4)), standard_normal(2), bernoulli(nets.MLP((8,), 3)))
        >>> model = partly_labelled(nets.MLP((8,), 10), inner, 10)
        >>> params = jax.jit(model.init)(jax.random.key(0), jnp.ones(3), 7)
        >>> terms = jax.jit(model.terms)
        >>> known, unknown = (terms(params, jax.random.key(1), jnp.ones(3), c) for c in (7, -1))
        >>> bool(known.penalty > 0), float(unknown.penalty)
        (True, 0.0)
    """
    if not is_whole(classes, 2):
        raise ValueError(f"partly_labelled wants the number of classes, at least two; got {classes}")
    if not (is_number(weight) and weight >= 0):
        raise ValueError(f"weight is that of the classifier's own loss, 0 or more; got {weight}")
    encoder, inner = one_hot(classifier), lift(model)
    prior = learned_classes((), classes) if prior is None else prior
    of_class, whole = lift(prior), vae(encoder, prior, inner, estimator=estimator)

    def either(of_unknown, of_known):
        def terms(params, key, y, c=None):
            c = jnp.int32(-1) if c is None else jnp.asarray(c)
            known = jax.nn.one_hot(jnp.maximum(c, 0), classes)
            k_unknown, k_pri, k_gen = jax.random.split(key, 3)
            pri = of_class.terms(params["pri"], k_pri, known, None)
            there = latent_terms(0.0, pri, of_known(params["gen"], k_gen, y, known))
            guess = log_prob(encoder.dist(params["enc"], y), known)
            there = there._replace(penalty=there.penalty - weight * guess)
            unknown = of_unknown(params, k_unknown, y)
            unknown, there = (each._replace(units=Units(), detail={}) for each in (unknown, there))
            return jax.tree.map(lambda a, b: jnp.where(c < 0, a, b), unknown, there)

        return terms

    def sample(params, key, c=None):
        k_class, k_y = jax.random.split(key)
        drawn = of_class.sample(params["pri"], k_class, None)
        c = jnp.int32(-1) if c is None else jnp.asarray(c)
        return inner.sample(params["gen"], k_y, jnp.where(c < 0, drawn, jax.nn.one_hot(jnp.maximum(c, 0), classes)))

    offered, support = whole.importance is not None, whole.support
    return whole._replace(
        init=lambda key, y, c=None: whole.init(key, y, None),
        terms=either(whole.terms, inner.terms),
        sample=sample,
        importance=either(whole.importance, importance_of(inner)) if offered else None,
        pathwise=None,
        classes=classes,
        support=support and (lambda params, c=None: support(params, None)),
        mean=None,
        latent=None,
        coder=None,
        complete=None,
    )


def class_probabilities(classifier: Any, params: Any, y: Any) -> jax.Array:
    """(classes,) P_enc(c|y) of ONE example, with the parameters of `partly_labelled`."""
    return one_hot(classifier).dist(params["enc"], y).mean
