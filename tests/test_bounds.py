"""Bounds with several samples and gradients of drawn latents, against enumeration, quadrature and closed forms.

The expectation over draws of a discrete z is exact here: a gradient depends on nothing but which values were drawn, so
enough keys show every combination, and each then counts with its probability (`assert_unbiased`).
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from jax.nn import logsumexp
from scipy import special
from scipy.optimize import minimize

from vae_jax import (
    Conditional,
    Model,
    Terms,
    analytic,
    bernoulli,
    conditional,
    enumerated,
    fixed_encoder,
    init_state,
    l2,
    make_train_step,
    sampled,
    score_function,
    standard_normal,
    vae,
)
from vae_jax.core import (
    ciwae,
    doubly_reparameterised,
    elbo,
    importance_weighted,
    leave_one_out,
    miwae,
    piwae,
    renyi,
    share,
    vimco,
)
from vae_jax.evaluation import elbo_draws, refine
from vae_jax.parts import vampprior
from vae_jax.selfcheck.quadrature import at_nodes, hermite
from vae_jax.selfcheck.solvable import (
    LN_P,
    NEAR,
    POSTERIOR,
    STD1,
    STD2,
    Solvable,
    affine,
    affine_normal,
    discrete,
    full_normal,
    linear_gaussian,
    table,
    table_of,
    toy,
    two_layers,
)

NODES, WEIGHTS = hermite(80)


@functools.partial(jax.jit, static_argnums=(0, 1))
def draws(objective, model, params, keys, y):
    """(gradients, loss, terms) of a batch of the one example y, under every key."""

    def loss(params, key):
        value, terms = objective(model, params, key[None], y[None], None, 0)
        return value, (value, jax.tree.map(lambda x: x[0], terms))

    gradients, (losses, terms) = jax.vmap(jax.grad(loss, has_aux=True), in_axes=(None, 0))(params, keys)
    return gradients, losses, terms


def at_keys(objective, system: Solvable | tuple[Model, Any, Any], n: int, *, seed: int = 0):
    """`draws` at the first example, n keys; as numpy."""
    model, params, y = (system.model, system.params, system.ys[0]) if isinstance(system, Solvable) else system
    return jax.tree.map(np.asarray, draws(objective, model, params, jax.random.split(jax.random.key(seed), n), y))


def leaves(tree):
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x) for path, x in flat}


def assert_close(got, want, **tolerance):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for name, x in leaves(got).items():
        np.testing.assert_allclose(x, leaves(want)[name], err_msg=name, **tolerance)


def assert_same_mean(one, other, errors: float = 5):
    """Means over axis 0 of two trees of draws under the same noise, within that many standard errors."""
    for name, x in leaves(one).items():
        gap = x - leaves(other)[name]
        assert (np.abs(gap.mean(axis=0)) <= errors * gap.std(axis=0) / np.sqrt(len(gap)) + 1e-12).all(), name


# Latents that are drawn: exact expectations


class Drawn(NamedTuple):
    """A model with a discrete latent, at one example.

    Fields:
        model, params, y: as everywhere.
        outcomes: `params -> (ln probability, ln weight)` of everything that one importance sample can be, both (n,).
    """

    model: Model
    params: Any
    y: Any
    outcomes: Callable[[Any], tuple[jax.Array, jax.Array]]


def one_latent(codes: int, y: int = 1) -> Drawn:
    """y in 0 .. 3, z in 0 .. codes - 1, tables; a sample is one z."""
    system = discrete(4, codes, estimator=score_function())

    def outcomes(params):
        log_q = jax.nn.log_softmax(params["enc"][y])
        return log_q, jax.nn.log_softmax(params["pri"]) + jax.nn.log_softmax(params["gen"])[:, y] - log_q

    return Drawn(system.model, system.params, system.ys[y], outcomes)


def _two_tables(estimator):
    """vae(enc, vae(enc2, pri2, gen2), gen): y in 0 .. 3, z in 0 .. 2, z2 in 0 .. 1; the inner z2 is drawn."""
    rng = np.random.default_rng(5)
    prior = vae(table_of(3, 2), table(2), table_of(2, 3), estimator=score_function())
    model = vae(table_of(4, 3), prior, table_of(3, 4), estimator=estimator)
    enc, enc2, pri2, gen2, gen = (jnp.asarray(rng.normal(size=s)) for s in ((4, 3), (3, 2), (2,), (2, 3), (3, 4)))
    return model, {"enc": enc, "pri": {"enc": 0.3 * enc2, "pri": pri2, "gen": gen2}, "gen": gen}


def _parts_of_tables(params):
    """ln q(z2|z) (3, 2), ln w(z2; z) (3, 2) and ln P_gen(y = 1|z) (3,)."""
    log_q2 = jax.nn.log_softmax(params["pri"]["enc"])
    log_w2 = jax.nn.log_softmax(params["pri"]["pri"])[None] + jax.nn.log_softmax(params["pri"]["gen"]).T - log_q2
    return log_q2, log_w2, jax.nn.log_softmax(params["gen"])[:, 1]


def two_latents() -> Drawn:
    """Both are drawn: a sample is one (z, z2)."""
    model, params = _two_tables(score_function())

    def outcomes(params):
        log_q2, log_w2, gen = _parts_of_tables(params)
        log_q = jax.nn.log_softmax(params["enc"][1])
        return (log_q[:, None] + log_q2).ravel(), (log_w2 + (gen - log_q)[:, None]).ravel()

    return Drawn(model, params, jnp.int32(1), outcomes)


def every_z_and_a_latent() -> Drawn:
    """The outer z is enumerated: a sample is one z2 for each of the three z."""
    model, params = _two_tables(enumerated)
    each = np.array(list(itertools.product(range(2), repeat=3)))  # (8, 3): z2 of each z

    def outcomes(params):
        log_q2, log_w2, gen = _parts_of_tables(params)
        zs = np.arange(3)[None]
        return log_q2[zs, each].sum(axis=1), logsumexp(log_w2[zs, each] + gen[None], axis=1)

    return Drawn(model, params, jnp.int32(1), outcomes)


def assert_unbiased(objective, bound, system: Drawn, k: int, n: int):
    """The objective's gradient, averaged over all combinations of k outcomes, is that of -E bound(ln w_1 .. ln w_k).

    Those of n keys are told apart by their mean nats, which no two combinations share but for their order.
    """
    size = jax.eval_shape(system.outcomes, system.params)[0].size
    every = np.array(list(itertools.product(range(size), repeat=k)))

    def loss(params):
        log_q, log_w = system.outcomes(params)
        probabilities = jnp.exp(log_q[every].sum(axis=1))
        return -jnp.sum(probabilities * bound(log_w[every])), (probabilities, -log_w[every].mean(axis=1))

    exact, (probabilities, nats) = jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(system.params))
    gradients, _, terms = at_keys(objective, system[:3], n)
    values, groups = np.unique(np.round(nats, 9), return_inverse=True)
    nearest = np.abs(values[:, None] - terms.nats[None]).argmin(axis=0)
    np.testing.assert_allclose(terms.nats, values[nearest], atol=1e-8)
    _, first = np.unique(nearest, return_index=True)
    assert len(first) == len(values), "more keys, please: not every combination was drawn"
    weights = np.bincount(groups, weights=probabilities)
    assert_close(jax.tree.map(lambda x: np.tensordot(weights, x[first], axes=1), gradients), exact, atol=1e-10)


def mean_bound(log_w):
    return log_w.mean(axis=1)


def importance_bound(log_w):
    return logsumexp(log_w, axis=1) - np.log(log_w.shape[1])


DRAWN = {
    "3 codes, k = 2": (lambda: one_latent(3), 2, 1000),
    "3 codes, k = 3": (lambda: one_latent(3, y=3), 3, 4000),
    "8 codes, k = 2": (lambda: one_latent(8), 2, 20_000),
    "two latents": (two_latents, 2, 20_000),
    "one latent of every z": (every_z_and_a_latent, 2, 20_000),
}


@pytest.mark.parametrize("name", DRAWN)
def test_leave_one_out_is_unbiased(x64, name):
    """The exact gradient of -ELBO, for every part, to rounding."""
    make, k, n = DRAWN[name]
    assert_unbiased(leave_one_out(k), mean_bound, make(), k, n)


@pytest.mark.parametrize("name", DRAWN)
def test_vimco_is_unbiased(x64, name):
    """The exact gradient of -L_k, for every part, to rounding."""
    make, k, n = DRAWN[name]
    assert_unbiased(vimco(k), importance_bound, make(), k, n)


@pytest.mark.parametrize(("codes", "baseline"), [(3, 0.0), (8, 2.5), (3, lambda y, c: jnp.log1p(y))])
def test_score_function_is_unbiased(x64, codes, baseline):
    """The exact gradient of -ELBO whatever the baseline."""
    model = discrete(4, codes, estimator=score_function(baseline)).model
    assert_unbiased(elbo(), mean_bound, one_latent(codes)._replace(model=model), 1, 1000)


def test_score_function_of_two_latents_is_unbiased(x64):
    """A drawn latent inside another, by the bounds of both."""
    assert_unbiased(elbo(), mean_bound, two_latents(), 1, 1000)


def test_score_function_of_a_normal_latent(x64):
    """By quadrature over z: the gradients of distortion, rate and rate per unit are those of the analytic estimator.

    So for a loss that weighs them, too. And with baseline -ln P(y) each draw's gradient at the posterior is 0.
    """
    y = toy().ys[0]

    @functools.partial(jax.jit, static_argnums=0)
    def expected(model, params):
        def parts(enc):
            terms = at_nodes(model.terms, {**params, "enc": enc}, NODES, y)
            return [WEIGHTS @ x for x in (terms.distortion, terms.rate, terms.units.rate[:, 0])]

        return parts(params["enc"]), jax.jacrev(parts)(params["enc"])

    drawn, exact = toy(estimator=score_function(7.0)), toy(estimator=analytic)
    assert_close(expected(drawn.model, drawn.params), expected(exact.model, exact.params), rtol=1e-9, atol=1e-9)

    def at_posterior(baseline):
        system = toy(estimator=score_function(baseline))
        return np.asarray(leaves(at_keys(elbo(), (system.model, system.exact, y), 50)[0]["enc"])["bias"])

    assert np.abs(at_posterior(-LN_P)).max() < 1e-12
    assert np.abs(at_posterior(0.0)).min() > 1e-3


def test_baselines_lower_the_variance(x64):
    """Of the encoder's gradient, for each z drawn; 20,000 draws, within 5 %.

    With a number b as the baseline it is sum_z q_z (L_z - b)^2 |d ln q_z|^2 less the square of the mean. The other
    samples as the baseline come near to the best of them, the ELBO, as k grows.
    """
    system = one_latent(8)
    log_q, log_w = jax.device_get(jax.jit(system.outcomes)(system.params))
    q, nats = np.exp(log_q), -np.asarray(log_w)
    mean = float(q @ nats)

    def exact(baseline):
        each = (nats - baseline)[:, None] * (np.eye(8) - q)
        return q @ np.sum(each**2, axis=1) - np.sum((q @ each) ** 2)

    def variance(objective, estimator, k=1):
        model = discrete(4, 8, estimator=estimator).model
        gradients, _, _ = at_keys(objective, (model, system.params, system.y), 20_000)
        return k * gradients["enc"].var(axis=0).sum()

    plain, good = variance(elbo(), score_function()), variance(elbo(), score_function(mean))
    np.testing.assert_allclose([plain, good], [exact(0.0), exact(mean)], rtol=0.05)
    two, eight = (variance(leave_one_out(k), score_function(), k) for k in (2, 8))
    assert good < eight < 0.6 * two < 0.6 * plain


def test_leave_one_out_is_noiseless_at_the_posterior(x64):
    """The encoder's gradient is 0 for every draw, since all L_i are -ln P(y)."""
    system = discrete(4, 3, estimator=score_function())
    gradients, losses, _ = at_keys(leave_one_out(2), (system.model, system.exact, system.ys[0]), 50)
    assert np.abs(gradients["enc"]).max() < 1e-12 and np.abs(gradients["gen"]).max() > 0.1
    np.testing.assert_allclose(losses, -system.log_p[0], rtol=1e-12)


def test_drawn_latents_of_weight_zero(x64):
    """P_gen(y|z) = 0 for all z but one: gradients stay finite where a sample has weight, and losses are no NaN."""
    system = one_latent(3)
    params = {**system.params, "gen": system.params["gen"].at[:2, 1].set(-np.inf)}
    for objective in (elbo(), leave_one_out(2), vimco(2)):
        gradients, losses, _ = at_keys(objective, (system.model, params, system.y), 200)
        assert not np.isnan(losses).any() and np.isinf(losses).any() and np.isfinite(losses).any()
        for name, x in leaves(gradients).items():
            assert np.isfinite(x[np.isfinite(losses)]).all(), name


def test_leave_one_out_trains_an_encoder_to_the_posterior():
    """Prior and generator fixed, by the library's own training step: tables of logits, so the gap closes to 0."""
    system = discrete(4, 3, estimator=score_function())
    params = jax.tree.map(lambda x: x.astype(jnp.float32), system.params)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 400))
    step = make_train_step(system.model, optimizer, objective=leave_one_out(4), parts=("enc",))
    state = init_state(system.model, optimizer, jax.random.key(0), system.ys[0])._replace(params=params)
    exact = discrete(4, 3).model

    @jax.jit
    def gaps(state):
        trained = jax.lax.scan(lambda s, _: step(s, jax.random.key(1), system.ys), state, length=400)[0].params
        nats = [
            jax.vmap(lambda y, p=p: exact.terms(p, jax.random.key(0), y).nats)(system.ys) for p in (params, trained)
        ]
        return jnp.stack(nats)

    before, after = np.mean(np.asarray(gaps(state)) + system.log_p[None], axis=1)
    assert before > 0.2 and 0 <= after < 1e-3


# Bounds of k samples, under shared noise


def pca(estimator=sampled) -> Solvable:
    """Two latents, three numbers, an encoder that is not the posterior."""
    weights = np.array([[1.0, 0.5], [-0.5, 1.0], [0.0, 0.0]])
    return linear_gaussian(weights, 0.3, np.random.default_rng(0).normal(size=(4, 3)), widen=1.5, estimator=estimator)


iwae = functools.cache(importance_weighted)  # one object for the same k, compiled once
dreg = functools.cache(doubly_reparameterised)


@functools.cache
def mean_of_nats(k: int):
    """The ELBO of the k samples, whose gradient is that of what `importance_weighted` reports."""

    def objective(*args):
        _, terms = iwae(k)(*args)
        return jnp.mean(terms.nats), terms

    return objective


@pytest.mark.parametrize(
    ("objective", "same"),
    [
        (miwae(4, 1), mean_of_nats(4)),
        (miwae(1, 4), iwae(4)),
        (ciwae(1.0, 4), mean_of_nats(4)),
        (ciwae(0.0, 4), iwae(4)),
        (renyi(1.0, 4), mean_of_nats(4)),
        (renyi(0.0, 4), iwae(4)),
        (piwae(1, 4), iwae(4)),
    ],
)
def test_bounds_meet_the_elbo_and_the_importance_weighted_bound(x64, objective, same):
    """Equal losses and equal gradients of every parameter, draw for draw."""
    ours, theirs = (at_keys(which, pca(), 20) for which in (objective, same))
    assert_close(ours[:2], theirs[:2], rtol=1e-10, atol=1e-12)
    assert np.abs(leaves(ours[0]["enc"])["weights"]).max() > 0.1


def test_piwae_trains_the_encoder_by_another_bound(x64):
    """The encoder's gradient is that of MIWAE, everything else's and the loss are those of IWAE, draw for draw."""
    gradients, losses, _ = at_keys(piwae(3, 2), pca(), 20)
    of_miwae, _, _ = at_keys(miwae(3, 2), pca(), 20)
    of_iwae, losses_of_iwae, _ = at_keys(iwae(6), pca(), 20)
    assert_close(gradients, {**of_iwae, "enc": of_miwae["enc"]}, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(losses, losses_of_iwae, rtol=1e-12)
    assert np.abs(of_miwae["enc"]["bias"] - of_iwae["enc"]["bias"]).max() > 0.1


at_noise = jax.jit(at_nodes, static_argnums=0)


def log_weights(mean: float, variance: float, nodes) -> np.ndarray:
    """ln w of the toy with encoder N(mean, variance), by the library, at these values of its noise."""
    system = toy(mean, variance)
    return -np.asarray(at_noise(system.model.importance, system.params, nodes, system.ys[0]).nats)


VALUES = {  # of k = 2 log weights along the last axis, for tensor quadrature
    "renyi .5": (renyi(0.5, 2), lambda w: 2 * np.log(np.mean(np.exp(0.5 * w), axis=-1))),
    "renyi 2": (renyi(2.0, 2), lambda w: -np.log(np.mean(np.exp(-w), axis=-1))),
    "ciwae .3": (ciwae(0.3, 2), lambda w: 0.3 * w.mean(axis=-1) + 0.7 * np.log(np.mean(np.exp(w), axis=-1))),
    "doubly reparameterised": (dreg(2), lambda w: np.log(np.mean(np.exp(w), axis=-1))),
    "vimco": (vimco(2), lambda w: np.log(np.mean(np.exp(w), axis=-1))),
    "leave one out": (leave_one_out(2), lambda w: w.mean(axis=-1)),
}


@pytest.mark.parametrize("name", VALUES)
def test_expected_value_with_two_samples(x64, name):
    """On the toy at N(0, .3): 20,000 draws of the loss within 4 standard errors of quadrature over both samples."""
    objective, value = VALUES[name]
    log_w = log_weights(0.0, 0.3, NODES)
    pairs = np.stack(np.broadcast_arrays(log_w[:, None], log_w[None]), axis=-1)
    exact = WEIGHTS @ value(pairs) @ WEIGHTS
    system = toy(0.0, 0.3, estimator=score_function() if name in ("vimco", "leave one out") else sampled)
    _, losses, _ = at_keys(objective, system, 20_000)
    assert abs(losses.mean() + exact) < 4 * losses.std() / np.sqrt(len(losses))


def renyi_bound(alpha: float, mean: float, variance: float) -> float:
    """numpy: ln P(y) + 1/(1 - alpha) ln of the integral of q^alpha posterior^(1 - alpha), of two normals."""
    shares = np.array([alpha, 1 - alpha])
    means, variances = np.array([mean, POSTERIOR[0]]), np.array([variance, POSTERIOR[1]])
    precision = np.sum(shares / variances)
    exponent = np.sum(shares * means**2 / variances) - np.sum(shares * means / variances) ** 2 / precision
    return LN_P - 0.5 * (shares @ np.log(variances) + np.log(precision) + exponent) / (1 - alpha)


@pytest.mark.parametrize("encoder", [NEAR, (0.0, 0.12), (-0.3, 0.06)])
def test_renyi_bounds_fall_with_alpha(x64, encoder):
    """With the library's weights, by quadrature: equal to the closed form, falling, through ln P(y) and the ELBO."""
    nodes, weights = hermite(160)
    log_w = log_weights(*encoder, nodes)
    alphas = [-0.5, 0.0, 0.25, 0.5, 0.9, 1.1, 1.5]
    got = np.array([special.logsumexp((1 - a) * log_w, b=weights) / (1 - a) for a in alphas])
    np.testing.assert_allclose(got, [renyi_bound(a, *encoder) for a in alphas], rtol=1e-7)
    assert (np.diff(got) < 0).all()
    assert got[1] == pytest.approx(LN_P, rel=1e-10) and got[4] > weights @ log_w > got[5]
    if encoder == NEAR:
        assert got[3] == pytest.approx(-4.63663997, abs=5e-9)


@pytest.mark.parametrize(
    ("alpha", "variance", "finite"),
    [
        (1.8, 0.2, True),
        (1.87, 0.2, False),
        (2.5, 0.15, True),
        (2.5, 0.152, False),
        (-2.0, 0.061, True),
        (-2.0, 0.06, False),
    ],
)
def test_where_renyi_bounds_diverge(x64, alpha, variance, finite):
    """At alpha > 1 from v_enc = v_post alpha / (alpha - 1) on, at alpha < 0 up to v_post |alpha| / (1 + |alpha|).

    There q w^(1 - alpha) rises with z instead of falling, by the library's weights far out.
    """
    limit = (
        POSTERIOR[1] * alpha / (alpha - 1)
    )  # the same number for both: |alpha| / (1 + |alpha|) = alpha / (alpha - 1)
    assert finite == (variance < limit if alpha > 1 else variance > limit)
    noise = np.array([[300.0], [600.0], [-300.0], [-600.0]])
    log_integrand = (1 - alpha) * log_weights(POSTERIOR[0], variance, noise) - noise[:, 0] ** 2 / 2
    assert ((log_integrand[1::2] < log_integrand[::2]) == finite).all()


OF_SAMPLED = [iwae(6), miwae(2, 3), piwae(2, 3), ciwae(0.2, 6), renyi(0.5, 6), renyi(1.0, 6)]


def with_penalty(model: Model, penalty) -> Model:
    """The model whose importance samples have `penalty(terms)`."""

    def penalised(function):
        def terms(*args):
            plain = function(*args)
            return plain._replace(penalty=penalty(plain))

        return function and terms

    return model._replace(importance=penalised(model.importance), pathwise=penalised(model.pathwise))


def test_all_report_the_elbo(x64, one_use_keys):
    """Unweighted averages over the samples, the same whatever is minimised; and penalties are in the loss, once.

    No key is used twice but by cloning it.
    """
    system, drawn = pca(), pca(score_function())
    keys = jax.random.split(jax.random.key(0), 4)
    cases = [(objective, system) for objective in [*OF_SAMPLED, dreg(6)]]
    cases += [(objective, drawn) for objective in (leave_one_out(6), vimco(6))]

    @jax.jit
    def values(params, ys):
        def at(objective, model):
            return objective(model, params, jax.random.clone(keys), ys, None, 0)

        return [(at(o, s.model), at(o, with_penalty(s.model, lambda terms: 3.0))) for o, s in cases]

    results = values(system.params, system.ys)
    for (loss, terms), (penalised, again) in results:
        assert float(penalised) == pytest.approx(float(loss) + 3, rel=1e-12)
        np.testing.assert_allclose(again.nats, terms.nats, rtol=1e-12)
        np.testing.assert_allclose(terms.nats, terms.rate + terms.distortion, rtol=1e-12)
        assert terms.units.mean.shape == terms.units.rate.shape == (4, 2)
    for (_, terms), _ in results[1 : len(OF_SAMPLED) + 1]:
        assert_close(terms, results[0][0][1], rtol=1e-12)


# The doubly reparameterised gradient


def test_doubly_reparameterised_agrees_with_an_order_less_variance(x64):
    """k = 5 on the toy at N(.3, .2), 20,000 draws of each: means within 5 standard errors, variances apart."""
    naive, _, _ = at_keys(iwae(5), toy(), 20_000, seed=1)
    ours, _, _ = at_keys(dreg(5), toy(), 20_000, seed=1)
    assert_same_mean(ours["enc"], naive["enc"])
    for name, ratio in (("bias", 9), ("log_std", 14)):  # measured: 11.9 and 19.7
        assert naive["enc"][name].var() > ratio * ours["enc"][name].var()


def test_doubly_reparameterised_leaves_the_gradient_of_penalties_alone(x64):
    """A penalty that depends on z, here the distortion once more, draw for draw."""

    def distortion(*args):
        _, terms = iwae(3)(*args)
        return jnp.mean(terms.distortion), terms

    system, objective = pca(), dreg(3)
    penalised = (with_penalty(system.model, lambda terms: terms.distortion), system.params, system.ys[0])
    got, plain, alone = (
        at_keys(*case, 20)[0] for case in ((objective, penalised), (objective, system), (distortion, system))
    )
    assert_close(got, jax.tree.map(np.add, plain, alone), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("k", [1, 5])
def test_doubly_reparameterised_is_noiseless_at_the_posterior(x64, k):
    """0 for every draw, where the plain gradient is not; the generator's is the plain one, draw for draw."""
    system = pca()
    at_posterior = (system.model, system.exact, system.ys[0])
    ours, losses, _ = at_keys(dreg(k), at_posterior, 50)
    naive, same_losses, _ = at_keys(iwae(k), at_posterior, 50)
    assert max(np.abs(x).max() for x in leaves(ours["enc"]).values()) < 1e-11
    assert np.abs(naive["enc"]["bias"]).max() > 1e-2
    assert_close(ours["gen"], naive["gen"], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(losses, same_losses, rtol=1e-12)


def test_doubly_reparameterised_gradient_written_out(x64):
    """sum_i (w_i / sum w)^2 d ln w_i / dz_i (dz_i / d mean, dz_i / d ln std) on the toy, d ln w / dz in closed form.

    d ln w / dz = -11 (z - mean_post) + (z - mean) / var. The weights and z of each draw follow from its gradient's two
    halves, so k = 1 is written out: (a, a eps) with a = d ln w / dz.
    """
    mean, variance = NEAR
    gradients, _, terms = at_keys(dreg(1), toy(), 50)
    z_slope = -gradients["enc"]["bias"][:, 0]
    eps = (z_slope + 11 * (mean - POSTERIOR[0])) * np.sqrt(variance) / (1 - 11 * variance)
    np.testing.assert_allclose(-gradients["enc"]["log_std"][:, 0], z_slope * eps * np.sqrt(variance), rtol=1e-9)
    z = mean + np.sqrt(variance) * eps
    np.testing.assert_allclose(terms.nats, -LN_P + log_normal(z, *NEAR) - log_normal(z, *POSTERIOR), rtol=1e-9)


def log_normal(z, mean, variance):
    return -0.5 * (np.log(2 * np.pi * variance) + (z - mean) ** 2 / variance)


def tied_vampprior() -> tuple[Model, Any, Any]:
    """The prior is the encoder at pseudo-inputs: the encoder's parameters also stand in P_pri."""
    encoder, pseudo = affine_normal(1), jnp.array([[1.0, -1.0], [-1.0, 0.5], [0.2, 0.3]])
    model = share(vae(encoder, vampprior(encoder, pseudo), l2(affine(2), 0.8)), "enc", "pri/enc")
    params = jax.tree.map(lambda x: x.astype(float), jax.jit(model.init)(jax.random.key(0), pseudo[0]))
    return model, params, pseudo[0]


def two_layers_at_y() -> tuple[Model, Any, Any]:
    system = two_layers(widen=1.4)
    return system.model, system.params, system.ys[0]


@pytest.mark.parametrize("make", [tied_vampprior, two_layers_at_y])
def test_doubly_reparameterised_with_shared_and_nested_parts(x64, make):
    """Tied to the prior, the encoder has the plain gradient there; so has the encoder of a VAE as the prior.

    k = 3, 20,000 draws of each, within 5 standard errors; generators the same draw for draw, and all of a prior.
    """
    case = make()
    naive, _, _ = at_keys(iwae(3), case, 20_000, seed=3)
    ours, _, _ = at_keys(dreg(3), case, 20_000, seed=3)
    for gradients in (naive, ours):  # above the diagonal no density sees the factor of a covariance
        gradients["enc"] = {name: np.tril(x) if x.ndim == 3 else x for name, x in gradients["enc"].items()}
    assert_same_mean(ours["enc"], naive["enc"])
    for part in ("pri", "gen"):
        assert_close(ours[part], naive[part], rtol=1e-8, atol=1e-11)


def test_doubly_reparameterised_with_samples_of_weight_zero(x64):
    """Half of the weights are 0: the loss of importance weights, inf where all of them are 0 and never NaN."""

    def sample(params, key, y, c=None, scale=1.0):
        k_lost, k_z = jax.random.split(key)
        distortion = (params["enc"] + jax.random.normal(k_z)) ** 2
        return Terms(jnp.where(jax.random.bernoulli(k_lost), jnp.inf, distortion), 0.0)

    model = toy().model._replace(importance=sample, pathwise=sample)
    case = (model, {"enc": jnp.array(0.5)}, jnp.zeros(2))
    gradients, losses, _ = at_keys(dreg(2), case, 100)
    np.testing.assert_allclose(losses, at_keys(iwae(2), case, 100)[1], rtol=1e-12)
    assert 0 < np.isinf(losses).mean() < 1 and np.isfinite(gradients["enc"][np.isfinite(losses)]).all()


# Errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: importance_weighted(0), "k >= 1 samples; got k=0"),
        (lambda: doubly_reparameterised(0), "k=0"),
        (lambda: renyi(0.5, -1), "k=-1"),
        (lambda: miwae(0, 5), "m >= 1 samples; got m=0"),
        (lambda: miwae(5, 0), "k=0"),
        (lambda: piwae(0, 5), "m=0"),
        (lambda: ciwae(0.5, 0), "k=0"),
        (lambda: ciwae(1.5, 4), r"beta.*1\.5"),
        (lambda: ciwae(-0.1, 4), r"beta.*-0\.1"),
        (lambda: leave_one_out(1), "k >= 2 samples; got k=1"),
        (lambda: vimco(1), "k >= 2 samples; got k=1"),
    ],
)
def test_options_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_models_of_the_other_kind_are_refused():
    for objective in OF_SAMPLED:
        with pytest.raises(ValueError, match=r"drawn, not reparameterised.*vimco"):
            at_keys(objective, one_latent(3)[:3], 1)
    for objective in (leave_one_out(2), vimco(2)):
        with pytest.raises(ValueError, match=r"score_function\(\).*importance_weighted"):
            at_keys(objective, toy(), 1)
    for estimator in (score_function(), enumerated, fixed_encoder):
        with pytest.raises(ValueError, match="pathwise is None"):
            at_keys(doubly_reparameterised(2), discrete(estimator=estimator), 1)
    net = (lambda key, z: jnp.ones((2, 1)), lambda params, z: params[z])
    prior = vae(class_of_line(), table(2), l2(net, 1.0), estimator=score_function())
    nested = vae(affine_normal(1), prior, l2(affine(2), 1.0))
    params = jax.jit(nested.init)(jax.random.key(0), jnp.zeros(2))
    with pytest.raises(ValueError, match="drawn, not reparameterised"):
        at_keys(doubly_reparameterised(2), (nested, params, jnp.zeros(2)), 1)


def class_of_line() -> Conditional:
    """P(x|c), x in 0 or 1, c one number."""
    net = affine(2)
    return conditional(net, dist.CategoricalLogits)


def test_piwae_wants_an_encoder_by_name():
    renamed = share(
        vae(affine_normal(1), vampprior(affine_normal(1), jnp.zeros((2, 2))), l2(affine(2), 1.0)), "pri/enc", "enc"
    )
    params = jax.jit(renamed.init)(jax.random.key(0), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"params\['enc'\].*\['gen', 'pri'\]"):
        at_keys(piwae(2, 2), (renamed, params, jnp.zeros(2)), 1)


# Refining the posterior of one example


def normal_kl(mean, std, mean_p, std_p):
    """numpy: KL of two diagonal normals, summed over the last axis."""
    return np.sum(np.log(std_p / std) + (std**2 + (mean - mean_p) ** 2) / (2 * std_p**2) - 0.5, axis=-1)


def test_refining_closes_the_amortisation_gap(x64):
    """Two latents, four examples under vmap: the exact posterior, whose ELBO is ln P(y) in each draw.

    Before, the gap is KL(enc || posterior): by 4,000 draws under the same noise, key 1, within 4 standard errors.
    """
    system = pca()
    parts = (affine_normal(2), standard_normal(2), l2(affine(3), float(np.sqrt(0.3))))
    keys = jax.random.split(jax.random.key(0), 4)

    @jax.jit
    def run(params, exact, ys):
        def of_one(key, y):
            refined = refine(*parts, params, key, y, steps=1500, learning_rate=optax.cosine_decay_schedule(0.05, 1500))
            qs = (parts[0].dist(params["enc"], y), refined.q)
            elbos = [elbo_draws(q, *parts[1:], params, jax.random.key(1), y, samples=4000) for q in qs]
            return refined, elbos, [(q.base_dist.loc, q.base_dist.scale) for q in (*qs, parts[0].dist(exact["enc"], y))]

        return jax.vmap(of_one)(keys, ys)

    refined, (before, after), (amortised, found, posterior) = jax.device_get(
        run(system.params, system.exact, system.ys)
    )
    np.testing.assert_allclose(found, posterior, atol=1e-6)
    np.testing.assert_allclose(after, np.broadcast_to(system.log_p[:, None], (4, 4000)), atol=1e-4)
    assert refined.elbo.shape == (4, 1500)
    np.testing.assert_allclose(refined.elbo[:, -1], system.log_p, atol=1e-4)
    gap, exact = after - before, normal_kl(*amortised, *posterior)
    assert (exact > 0.2).all()
    assert (np.abs(gap.mean(axis=1) - exact) < 4 * gap.std(axis=1) / np.sqrt(4000)).all()


def test_refining_a_full_covariance_under_a_nested_prior(x64):
    """The outer encoder of two layers, N(mean, tril tril'): mean and factor become those of the posterior."""
    system = two_layers()
    parts = (full_normal(2), vae(affine_normal(1), standard_normal(1), l2(affine(2), STD2)), l2(affine(3), STD1))
    exact, y = system.exact["enc"], system.ys[0]
    params = {**system.exact, "enc": {**exact, "bias": jnp.array([0.3, -0.4]), "tril": 0.5 * jnp.eye(2)}}

    @jax.jit
    def run(params):
        schedule = optax.cosine_decay_schedule(0.05, 1500)
        q = refine(*parts, params, jax.random.key(0), y, steps=1500, learning_rate=schedule).q
        return q.loc, q.scale_tril

    loc, tril = run(params)
    np.testing.assert_allclose(loc, exact["weights"] @ y, atol=1e-6)
    np.testing.assert_allclose(tril, exact["tril"], atol=1e-6)
    assert abs(tril[1, 0]) > 0.01


def test_refining_finds_the_best_normal_distribution(x64):
    """A posterior that is not normal: one number z, bits y, scalar distributions, a condition c that shifts both parts.

    Against scipy's minimum over (mean, ln std) of -ELBO by quadrature: within 0.004, and 2e-5 in nats.
    """
    slopes, offsets = np.array([2.0, -1.0, 4.0]), np.array([0.5, 0.2, -1.0])
    y, c = np.array([1.0, 0.0, 1.0]), 0.7
    encoder = conditional((lambda key, y, c: (), lambda params, y, c: c), lambda c: dist.Normal(c, 0.5 + 0 * c))
    prior = Conditional(lambda key, c: {}, lambda params, c: dist.Normal(0 * c, 1.0))
    generator = bernoulli((lambda key, z, c: (), lambda params, z, c: slopes * z + offsets + c))
    params = {"enc": (), "pri": {}, "gen": ()}

    def loss(at):
        mean, log_std = at
        z = mean + np.exp(log_std) * NODES[:, 0]
        logits = slopes[None] * z[:, None] + offsets[None] + c
        log_joint = -np.log1p(np.exp((1 - 2 * y) * logits)).sum(axis=1) - z**2 / 2 - np.log(2 * np.pi) / 2
        return -WEIGHTS @ log_joint - log_std - 0.5 * np.log(2 * np.pi * np.e)

    best = minimize(loss, [0.0, 0.0], method="BFGS", options={"gtol": 1e-9})
    options = {"steps": 500, "samples": 256, "learning_rate": optax.cosine_decay_schedule(0.05, 500)}
    run = jax.jit(lambda y, c: refine(encoder, prior, generator, params, jax.random.key(0), y, c, **options).q)
    q = run(jnp.asarray(y), jnp.float64(c))
    assert q.event_shape == ()
    np.testing.assert_allclose([q.loc, np.log(q.scale)], best.x, atol=4e-3)
    assert loss((float(q.loc), float(np.log(q.scale)))) == pytest.approx(best.fun, abs=2e-5)
    elbo = jax.jit(lambda y, c: elbo_draws(q, prior, generator, params, jax.random.key(1), y, c, samples=20_000))(
        jnp.asarray(y), jnp.float64(c)
    )
    assert abs(elbo.mean() + best.fun) < 4 * elbo.std() / np.sqrt(len(elbo))


def test_what_cannot_be_refined():
    args = (jax.random.key(0), jnp.zeros(2))
    system, parts = toy(), (affine_normal(1), standard_normal(1), l2(affine(2), 1.0))
    laplace = conditional(affine(1), lambda x: dist.Laplace(x, 1.0).to_event(1))
    for encoder, name in ((laplace, "Independent of Laplace"), (table_of(4, 3), "CategoricalLogits")):
        enc = encoder.init(jax.random.key(0), jnp.zeros(2))
        y = jnp.zeros(2) if encoder is laplace else jnp.int32(0)
        with pytest.raises(TypeError, match=f"Normal or MultivariateNormal; this one gives {name}"):
            refine(encoder, *parts[1:], {**system.params, "enc": enc}, jax.random.key(0), y, steps=1)
    for options in ({"steps": 0}, {"steps": 1, "samples": 0}):
        with pytest.raises(ValueError, match="steps >= 1 and samples >= 1"):
            refine(*parts, system.params, *args, **options)
    with pytest.raises(TypeError, match="no reparameterisation"):
        elbo_draws(dist.Poisson(1.0), *parts[1:], system.params, *args, samples=1)
