"""Objectives with several importance samples of each example: tighter bounds, and gradients for z that is drawn.

    w_i = P_pri(z_i) P_gen(y|z_i) / P_enc(z_i|y),  z_i ~ P_enc(z|y),    E w_i = P(y)

They are objectives as those of `vae_jax.core.objectives`. The terms that they report are averages over the samples, so
the reported bound is always the ELBO, whatever was minimised. The samples are the model's `importance`, whatever its
estimator; nested models count as one sample each.

Two kinds of encoder, and a model whose encoder is of the other kind is refused (ValueError, when first called):
reparameterised ones (`sampled`, `sticking`, `analytic`) train with the bounds, in the plain gradient or in the doubly
reparameterised one; `vimco` and `leave_one_out` train those of `score_function()`. Sticking the landing is not offered
with k > 1: dropping the score term from the gradient of ln mean w makes it biased (Tucker et al. 2019, section 3).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp

from vae_jax.core.estimators import importance_of
from vae_jax.core.model import Model, Params, Terms
from vae_jax.core.numbers import is_number, is_whole
from vae_jax.core.objectives import Objective, batch_terms
from vae_jax.core.reinforce import score

Bound = Callable[[Array], Array]  # from ln w of k samples to a bound on ln P(y)


def importance_weighted(k: int) -> Objective:
    """Minus ln 1/k sum_i w_i (Burda et al. 2016, equation 8), in the plain reparameterised gradient.

    Raises:
        ValueError: k < 1.
    """
    _check("k", k)
    return _of_bound(k, log_mean)


def renyi(alpha: float, k: int) -> Objective:
    """Minus 1/(1 - alpha) ln 1/k sum_i w_i^(1 - alpha) (Li & Turner 2016, equation 8).

    alpha = 1 is the ELBO and alpha = 0 the importance-weighted bound. Its population value, k -> infinity, falls with
    alpha: from ln P(y) at 0 to the ELBO at 1. Outside of [0, 1] that value may be infinite. For an encoder of variance
    v_enc and a posterior of variance v_post, both Gaussian: at alpha > 1 it is -inf where
    v_enc >= v_post alpha / (alpha - 1); at alpha < 0, where it is no lower bound, it is +inf where
    v_enc <= v_post |alpha| / (1 + |alpha|). What k samples give is then finite and says nothing.

    Raises:
        ValueError: k < 1, or an alpha that is no finite number.
    """
    _check("k", k)
    if not is_number(alpha):
        raise ValueError(f"alpha, the order of the bound, wants a number; got {alpha}")
    if alpha == 1:
        return _of_bound(k, jnp.mean)
    return _of_bound(k, lambda log_w: log_mean((1 - alpha) * log_w) / (1 - alpha))


def miwae(m: int, k: int) -> Objective:
    """Minus the mean of m importance-weighted bounds of k samples each (Rainforth et al. 2018, MIWAE).

    `miwae(m, 1)` is the ELBO with m samples, `miwae(1, k)` the importance-weighted bound.

    Raises:
        ValueError: m < 1 or k < 1.
    """
    _check("m", m)
    _check("k", k)
    return _of_bound(m * k, _mean_of_groups(m, k))


def ciwae(beta: float, k: int) -> Objective:
    """Minus beta ELBO + (1 - beta) importance-weighted bound of the same k samples (Rainforth et al. 2018, CIWAE).

    Raises:
        ValueError: beta outside [0, 1], or k < 1.
    """
    _check("k", k)
    if not is_number(beta, 0, 1):
        raise ValueError(f"beta is the ELBO's share in the combination, in [0, 1]; got {beta}")
    return _of_bound(k, lambda log_w: beta * jnp.mean(log_w) + (1 - beta) * log_mean(log_w))


def piwae(m: int, k: int) -> Objective:
    """The encoder follows `miwae(m, k)`, everything else `importance_weighted(m k)` (Rainforth et al. 2018, PIWAE).

    One set of m k samples; the loss is that of the second. The encoder is `params["enc"]`.

    Raises:
        ValueError: m < 1 or k < 1; or, when first called, parameters without "enc".
    """
    _check("m", m)
    _check("k", k)

    def one(model, params, key, y, c):
        fixed = jax.lax.stop_gradient(params)
        if not isinstance(params, dict) or "enc" not in params:
            names = sorted(params) if isinstance(params, dict) else type(params).__name__
            raise ValueError(
                f"piwae trains params['enc'] by a bound of its own, and the model's parameters are {names}: it wants "
                "the VAE itself, with no other name for its encoder"
            )
        # The same draws twice, which the compiler merges.
        again = jax.random.clone(key)
        enc = _reparameterised(model, {**fixed, "enc": params["enc"]}, key, m * k, y, c)
        rest = _reparameterised(model, {**params, "enc": fixed["enc"]}, again, m * k, y, c)
        enc_loss = _loss(enc, _mean_of_groups(m, k))
        return _loss(rest, log_mean) + enc_loss - jax.lax.stop_gradient(enc_loss), rest

    return _objective(one)


def doubly_reparameterised(k: int) -> Objective:
    """`importance_weighted(k)`, with another gradient of the encoder (Tucker et al. 2019, equation 8: DReG).

    sum_i (w_i / sum w)^2 (d ln w_i / dz_i) dz_i/d enc: unbiased, without the term that makes the plain one noisier the
    more samples there are, and 0 for each draw at the exact posterior. All else has the plain gradient, also what is
    tied to the encoder (`share`), and the encoders of nested models.

    Raises:
        ValueError: k < 1; or, when first called, the encoder is not reparameterised.
    """
    _check("k", k)

    def one(model, params, key, y, c):
        sample, keys = model.pathwise, jax.random.split(key, k)
        if sample is None:
            raise ValueError(
                "the doubly reparameterised gradient wants a z that is a smooth function of the encoder's noise "
                "(Model.pathwise is None): a VAE with estimator sampled, sticking or analytic. Discrete z have vimco"
            )

        def draws(keys, scales):
            return jax.vmap(lambda key, scale: sample(params, key, y, c, scale))(keys, scales)

        # The same draws twice, which the compiler merges: the weights are needed to scale what comes back to each z.
        again = jax.random.clone(keys)
        terms = _without_drawn(draws(keys, jnp.ones(k)))
        log_w = jax.lax.stop_gradient(-terms.nats)
        shares = jax.nn.softmax(log_w)
        nats = jnp.sum(jnp.where(shares > 0, shares * draws(again, shares).nats, 0.0))
        return jnp.mean(terms.penalty) - log_mean(log_w) + nats - jax.lax.stop_gradient(nats), terms

    return _objective(one)


def leave_one_out(k: int) -> Objective:
    """Minus the ELBO with k samples of a z that is drawn: the others' mean is the baseline of each (Kool et al. 2019).

    d = 1/k sum_i (L_i - mean_{j != i} L_j) d ln P_enc(z_i|y) + 1/k sum_i dL_i; unbiased. For `score_function()`.

    Raises:
        ValueError: k < 2.
    """
    _check("k", k, least=2)

    def one(model, params, key, y, c):
        terms, log_q = _drawn(model, params, key, k, y, c)
        losses = terms.nats + terms.penalty
        # -1: the losses hold ln P_enc, whose own gradient is 0 on average.
        return jnp.mean(losses + score(losses - _mean_of_others(losses) - 1, log_q)), terms

    return _objective(one)


def vimco(k: int) -> Objective:
    """Minus the importance-weighted bound of a z that is drawn (Mnih & Rezende 2016, equations 9 and 10: VIMCO).

    The baseline of sample i is the bound with w_i replaced by the geometric mean of the others; unbiased. For
    `score_function()`.

    Raises:
        ValueError: k < 2.
    """
    _check("k", k, least=2)

    def one(model, params, key, y, c):
        terms, log_q = _drawn(model, params, key, k, y, c)
        log_w = -terms.nats
        bound = log_mean(log_w)
        without = jax.vmap(log_mean)(_replaced(log_w, _mean_of_others(log_w)))
        penalty = jnp.asarray(terms.penalty)
        signal = without - bound + (penalty - _mean_of_others(penalty)) / k
        return jnp.mean(penalty) - bound + jnp.sum(score(signal, log_q)), terms

    return _objective(one)


def log_mean(log_w: Array) -> Array:
    """ln 1/k sum_i w_i along the last axis."""
    return logsumexp(log_w, axis=-1) - jnp.log(log_w.shape[-1])


def _mean_of_groups(m: int, k: int) -> Bound:
    return lambda log_w: jnp.mean(log_mean(log_w.reshape(m, k)))


def _replaced(x: Array, values: Array) -> Array:
    """(k, k): row i is x with x_i replaced by value i."""
    return jnp.where(jnp.eye(len(x), dtype=bool), values[:, None], x[None, :])


def _mean_of_others(x: Array) -> Array:
    """(k,): the mean of x without x_i."""
    return jnp.sum(_replaced(x, jnp.zeros_like(x)), axis=1) / (len(x) - 1)


def _of_bound(k: int, bound: Bound) -> Objective:
    """Minus a function of the log weights of k samples."""

    def one(model, params, key, y, c):
        terms = _reparameterised(model, params, key, k, y, c)
        return _loss(terms, bound), terms

    return _objective(one)


def _loss(terms: Terms, bound: Bound) -> Array:
    return jnp.mean(terms.penalty) - bound(-terms.nats)


def _objective(one: Callable[..., tuple[Array, Terms]]) -> Objective:
    """The mean over the batch of `one(model, params, key, y, c) -> (loss, Terms of each sample)`."""

    def objective(model, params, keys, ys, cs, step):
        del step
        losses, terms = batch_terms(functools.partial(one, model), params, keys, ys, cs)
        return jnp.mean(losses), jax.tree.map(lambda x: jnp.mean(x, axis=1), terms)

    return objective


def _samples(model: Model, params: Params, key: Array, k: int, y: Any, c: Any) -> Terms:
    """k importance samples, stacked."""
    sample = importance_of(model)
    return jax.vmap(lambda key: sample(params, key, y, c))(jax.random.split(key, k))


def _reparameterised(model: Model, params: Params, key: Array, k: int, y: Any, c: Any) -> Terms:
    return _without_drawn(_samples(model, params, key, k, y, c))


def _without_drawn(terms: Terms) -> Terms:
    if terms.log_drawn is not None:
        raise ValueError(
            "a latent of this model is drawn, not reparameterised (estimator=score_function()), and this objective's "
            "gradient would miss it: use vimco(k), or leave_one_out(k)"
        )
    return terms


def _drawn(model: Model, params: Params, key: Array, k: int, y: Any, c: Any) -> tuple[Terms, Array]:
    """The samples, and ln of the density by which each was drawn."""
    terms = _samples(model, params, key, k, y, c)
    if terms.log_drawn is None:
        raise ValueError(
            "vimco and leave_one_out are for a z that is drawn (estimator=score_function()), and this model has none: "
            "use importance_weighted(k) or doubly_reparameterised(k)"
        )
    return terms, terms.log_drawn


def _check(name: str, value: int, least: int = 1) -> None:
    if not is_whole(value, least):
        raise ValueError(f"this objective takes {name} >= {least} samples; got {name}={value} (want a whole number)")
