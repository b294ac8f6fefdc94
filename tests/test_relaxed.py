"""One-hot classes and their relaxed gradients, against enumeration, quadrature and hand computation.

One model throughout: y in 0 .. 2, z one of K classes as a one-hot vector, every distribution a table of free logits.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.special import expit, log_expit, log_softmax, logsumexp, softmax
from scipy.stats import logistic

from vae_jax import (
    Conditional,
    bernoulli,
    categorical,
    conditional,
    enumerated,
    gaussian,
    gumbel,
    score_function,
    standard_normal,
    straight_through_gumbel,
    vae,
)
from vae_jax.core import elbo, leave_one_out, lift, of, vimco
from vae_jax.core.distributions import GumbelSoftmax, enumerate_support
from vae_jax.core.model import log_prob
from vae_jax.parts import gumbel_softmax, learned_classes, one_hot
from vae_jax.parts.classes import OneHot

compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
Y = jnp.int32(1)

look_up = (lambda key, y: None, lambda table, y: table[y])
weigh = (lambda key, z: None, lambda table, z: z @ table)
ENC, GEN = one_hot(look_up), conditional(weigh, dist.CategoricalLogits)
EXACT = vae(ENC, learned_classes((), 8), GEN, estimator=enumerated)


def tables(classes=8, values=3, seed=0):
    rng = np.random.default_rng(seed)
    enc, pri, gen = (jnp.asarray(rng.normal(size=s)) for s in ((values, classes), (classes,), (classes, values)))
    return {"enc": enc, "pri": {"logits": pri}, "gen": gen}


def model_with(estimator, classes=8):
    return vae(ENC, learned_classes((), classes), GEN, estimator=estimator)


@functools.partial(compiled, static_argnums=(0, 1))
def draws(objective, model, params, keys):
    """(gradients, losses) of a batch of the one example Y, under every key."""

    def loss(params, key):
        return objective(model, params, key[None], Y[None], None, 0)[0]

    losses, gradients = jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0))(params, keys)
    return gradients, losses


def at_keys(estimator, params, n, objective=None, seed=0, classes=8):
    keys = jax.random.split(jax.random.key(seed), n)
    return jax.tree.map(np.asarray, draws(objective or elbo(), model_with(estimator, classes), params, keys))


def exact_gradients(params, classes=8):
    return compiled(jax.grad(lambda p: model_with(enumerated, classes).terms(p, jax.random.key(0), Y).nats))(params)


def gap(values, want):
    """(mean - want, standard error of the mean), over axis 0."""
    return values.mean(axis=0) - np.asarray(want), values.std(axis=0, ddof=1) / np.sqrt(len(values))


# The distribution


def test_density_mean_and_divergence_of_one_hot_classes(x64):
    rng = np.random.default_rng(0)
    logits, others = rng.normal(size=(2, 3, 4))
    q, p = (OneHot(jnp.asarray(x)).to_event(1) for x in (logits, others))
    z = np.eye(4)[[2, 0, 3]]
    log_q, log_p = log_softmax(logits, axis=1), log_softmax(others, axis=1)
    np.testing.assert_allclose(log_prob(q, z), (z * log_q).sum(), rtol=1e-12)
    np.testing.assert_allclose(log_prob(q, z.astype(int)), (z * log_q).sum(), rtol=1e-12)
    np.testing.assert_allclose(q.mean, softmax(logits, axis=1), rtol=1e-12)
    np.testing.assert_allclose(q.variance, q.mean * (1 - q.mean), rtol=1e-12)
    np.testing.assert_allclose(dist.kl_divergence(q, p), (np.exp(log_q) * (log_q - log_p)).sum(), rtol=1e-12)


def test_samples_of_one_hot_classes():
    """20,000 draws: each is in the support, and the frequencies are the probabilities within 4 standard errors."""
    q = OneHot(jnp.asarray([[0.3, -1.0, 0.8], [2.0, 0.0, 0.0]])).to_event(1)
    zs, means = compiled(lambda key: (q.sample(key, (20_000,)), q.mean))(jax.random.key(0))
    assert zs.shape == (20_000, 2, 3) and zs.dtype == jnp.float32 and bool(q.support(zs).all())
    off, error = gap(np.asarray(zs), means)
    assert (np.abs(off) < 4 * error).all()
    for wrong in (zs[0] * 0.5, zs[0].at[0].set(1), zs[0].at[1].set(0), zs[0].at[0].set(jnp.array([2, -1, 0]))):
        assert not q.support(wrong)


def test_classes_that_are_impossible():
    """Logits of -inf, as a network may give them, cost inf where they are chosen and nothing where not.

    Gradients stay finite. (numpyro refuses such logits outside of compiled code.)
    """
    none, even, log_p = jnp.array([0.0, -jnp.inf, 1.0]), jnp.zeros(3), log_softmax([0.0, 1.0])
    score = jax.jit(lambda logits, z: OneHot(logits).log_prob(z))
    divergence = jax.jit(lambda q, p: dist.kl_divergence(OneHot(q), OneHot(p)))
    np.testing.assert_allclose([score(none, z) for z in np.eye(3)], [log_p[0], -np.inf, log_p[1]], rtol=1e-6)
    np.testing.assert_allclose(divergence(none, even), np.exp(log_p) @ log_p + np.log(3), rtol=1e-6)
    assert divergence(none, none) == 0 and divergence(even, none) == np.inf
    for gradient in (jax.grad(score)(none, jnp.eye(3)[0]), *jax.grad(divergence, argnums=(0, 1))(none, none)):
        assert np.isfinite(gradient).all()


def test_all_values_of_a_vector_of_one_hot_classes(x64):
    """The product of the rows of the identity, once each; their probabilities sum to 1. Batches are as numpyro's."""
    q = OneHot(jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)))).to_event(1)
    zs = enumerate_support(q)
    want = [np.eye(3)[list(each)] for each in itertools.product(range(3), repeat=2)]
    np.testing.assert_array_equal(zs, want)
    assert np.exp(jax.vmap(q.log_prob)(zs)).sum() == pytest.approx(1, rel=1e-12)
    np.testing.assert_array_equal(enumerate_support(OneHot(jnp.zeros(4))), np.eye(4))
    assert q.base_dist.enumerate_support().shape == (3, 2, 3)
    assert q.base_dist.enumerate_support(expand=False).shape == (3, 1, 3)
    with pytest.raises(ValueError, match=r"the latent has 3\^11 values"):
        enumerate_support(OneHot(jnp.zeros((11, 3))).to_event(1))


# A relaxed z


def exact_divergence(logits, others):
    """KL of relaxed classes at one temperature, which it does not depend on: numpy, from the mean of ln sum w b over
    even weights w, which is a divided difference (Hermite and Genocchi)."""
    n, b = len(logits), np.exp(others - logits)
    apart = b[:, None] - b + np.eye(n)
    mean = np.sum(b ** (n - 1) * (np.log(b) - np.sum(1 / np.arange(1, n))) / apart.prod(axis=1))
    return np.sum(logits - others) + n * mean


def log_density(x, logits, temperature):
    """Maddison et al. 2017, appendix C.3, of x = ln z, by numpy in float64."""
    n, inside = x.shape[-1], logits - temperature * x
    constant = np.log(np.arange(1, n)).sum() + (n - 1) * np.log(temperature)
    return constant + inside.sum(-1) - n * logsumexp(inside, axis=-1)


@functools.partial(compiled, static_argnums=0)
def relaxed_terms(model_at, params, temperatures, keys):
    """(terms, nats by `pathwise`, gradient of the rate) of a batch of the one example Y, under every key."""

    def of_one(key):
        model = model_at(*temperatures)
        rate = lambda p: model.terms(p, key, Y).rate  # noqa: E731
        return model.terms(params, key, Y), model.pathwise(params, key, Y).nats, jax.grad(rate)(params)

    return jax.vmap(of_one)(keys)


def relaxed_model(temperature, other):
    prior = Conditional(lambda key, c=None: None, lambda table, c=None: GumbelSoftmax(table, other))
    return vae(gumbel_softmax(look_up, temperature), prior, GEN)


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_the_rate_of_a_relaxed_z_is_right_at_any_temperature(classes):
    """In float32, draw by draw against float64, and on average against the closed form, within 4 standard errors.

    The generator is given z, and the gradient of the rate is that of the closed form for the noise drawn.
    """
    rng = np.random.default_rng(classes)
    q, p = (np.array([2.0, -1, 0]), np.zeros(3)) if classes == 3 else rng.normal(size=(2, classes))
    gen = rng.normal(size=(classes, 3)).astype(np.float32)
    params = {"enc": jnp.tile(jnp.float32(q), (3, 1)), "pri": jnp.float32(p), "gen": jnp.asarray(gen)}
    keys = jax.random.split(jax.random.key(0), 20_000)
    noise = np.float64(jax.vmap(lambda key: jax.random.gumbel(jax.random.split(key)[0], (classes,)))(keys))
    for t, other in ((1.0, 1.0), (0.1, 0.1), (0.05, 0.05), (0.02, 0.02), (0.01, 0.01), (1e-4, 1e-4), (0.01, 0.02)):
        terms, pathwise, gradient = relaxed_terms(relaxed_model, params, (jnp.float32(t), jnp.float32(other)), keys)
        x = log_softmax((q + noise) / t, axis=1)
        rate = log_density(x, q, t) - log_density(x, p, other)
        np.testing.assert_allclose(terms.rate, rate, rtol=1e-4, atol=1e-3)
        logits = np.exp(x) @ gen
        distortion = logsumexp(logits, axis=1) - logits[:, 1]
        np.testing.assert_allclose(terms.distortion, distortion, atol=1e-4 + 2e-6 / t)  # the noise in float32, over t
        np.testing.assert_allclose(pathwise, terms.nats, rtol=1e-5, atol=1e-4)
        if t == other:
            off, error = gap(np.asarray(terms.rate), exact_divergence(q, p))
            assert abs(off) < 4 * error
            share = softmax(p - q - noise, axis=1)  # d/dl of sum(l - l') + n ln sum w exp(l' - l), w = softmax(-noise)
            np.testing.assert_allclose(gradient["enc"][:, 1], 1 - classes * share, atol=1e-3)


def test_a_relaxed_z_is_the_data_of_another_vae():
    """As the prior a VAE of z: the network of its encoder is given z, too, and ln P(z) is that of the points."""
    inner = vae(gaussian((lambda key, z: None, lambda w, z: w @ z)), standard_normal(1), gumbel_softmax(weigh, 0.01))
    model = vae(gumbel_softmax(look_up, 0.01), inner, GEN)
    rng = np.random.default_rng(0)
    enc, mid, out, gen = (jnp.float32(rng.normal(size=s)) for s in ((3, 3), (2, 3), (1, 3), (3, 3)))
    params = {"enc": enc, "pri": {"enc": mid, "pri": {}, "gen": out}, "gen": gen}
    key = jax.random.key(0)
    terms = compiled(model.terms)(params, key, Y)
    k_z, k_parts = jax.random.split(key)
    x = log_softmax((np.float64(enc[1]) + jax.random.gumbel(k_z, (3,))) / 0.01)
    k_u, _ = jax.random.split(jax.random.split(k_parts)[0])
    (mean, raw), noise = np.float64(mid) @ np.exp(x), np.float64(jax.random.normal(k_u, (1,)))
    std = np.exp(7 * np.tanh(raw / 7))
    u = mean + std * noise
    rate = 0.5 * np.sum(u**2 - noise**2) - np.log(std)
    rate += log_density(x, np.float64(enc[1]), 0.01) - log_density(x, u @ np.float64(out), 0.01)
    assert terms.rate == pytest.approx(rate, rel=1e-4)


def test_a_relaxed_z_wants_a_relaxed_prior():
    simplex = Conditional(lambda key, c=None: None, lambda _, c=None: dist.Dirichlet(jnp.ones(8)))
    with pytest.raises(TypeError, match=r"Dirichlet was given a relaxed class.*the prior is another one"):
        vae(gumbel_softmax(look_up, 0.5), simplex, GEN).terms(tables() | {"pri": None}, jax.random.key(0), Y)


# The model


@pytest.mark.parametrize("estimator", [gumbel(0.5), straight_through_gumbel(2.0), enumerated, score_function()])
def test_one_model_whatever_the_estimator(x64, estimator):
    """E nats is the ELBO and E exp(-importance) is P(y), by hand: 4,000 draws, 5 standard errors."""
    params = tables()
    log_q = log_softmax(params["enc"][1])
    log_joint = log_softmax(params["pri"]["logits"]) + log_softmax(params["gen"], axis=1)[:, 1]
    model, keys = model_with(estimator), jax.random.split(jax.random.key(1), 4000)
    for function, what, want in (
        (model.terms, lambda nats: -nats, np.exp(log_q) @ (log_joint - log_q)),
        (model.importance, lambda nats: np.exp(-nats), np.exp(logsumexp(log_joint))),
    ):
        nats = compiled(jax.vmap(lambda key, f=function: f(params, key, Y).nats))(keys)
        off, error = gap(what(np.asarray(nats)), want)
        assert abs(off) <= 5 * error + 1e-12


def test_an_array_of_classes_by_hand(x64):
    """z of two variables with three classes: ln P(y) by numpy over the nine z, also through a relaxed model."""
    enc = one_hot((lambda key, y: None, lambda w, y: w))
    gen = bernoulli((lambda key, z: None, lambda w, z: w @ z.ravel()))
    rng = np.random.default_rng(0)
    logits, weights = rng.normal(size=(2, 2, 3)), rng.normal(size=(4, 6))
    params = {"enc": jnp.asarray(logits[0]), "pri": {"logits": jnp.asarray(logits[1])}, "gen": jnp.asarray(weights)}
    y, log_pri = np.array([1.0, 0.0, 0.0, 1.0]), log_softmax(logits[1], axis=1)
    zs = [np.eye(3)[[i, j]] for i, j in itertools.product(range(3), repeat=2)]
    log_p = logsumexp([(z * log_pri).sum() + log_expit((2 * y - 1) * (weights @ z.ravel())).sum() for z in zs])
    exact, relaxed = (vae(enc, learned_classes(2, 3), gen, estimator=e) for e in (enumerated, gumbel(0.5)))
    found = compiled(lambda p, key: exact.importance(p, key, y).nats)(params, jax.random.key(0))
    np.testing.assert_allclose(found, -log_p, rtol=1e-12)
    nats = compiled(jax.vmap(lambda key: relaxed.importance(params, key, y).nats))(
        jax.random.split(jax.random.key(0), 4000)
    )
    off, error = gap(np.exp(-np.asarray(nats)), np.exp(log_p))
    assert abs(off) < 5 * error
    terms = jax.eval_shape(relaxed.terms, params, jax.random.key(0), y)
    sample = jax.eval_shape(relaxed.sample, params, jax.random.key(0))
    assert sample.shape == (4,) and terms.units.mean.shape == (2, 3)


# Gradients


def relaxed_gradient(params, temperature):
    """Of the encoder's logits (2,): E d distortion(z), z = sigmoid((l_0 - l_1 + noise) / t), plus that of the KL."""
    enc, pri, gen = (np.asarray(x) for x in (params["enc"][1], params["pri"]["logits"], params["gen"]))
    noise = logistic.ppf((np.arange(200_000) + 0.5) / 200_000)
    z = expit((enc[0] - enc[1] + noise) / temperature)
    seen = softmax(z[:, None] * gen[0] + (1 - z)[:, None] * gen[1], axis=1)
    slope = seen @ (gen[0] - gen[1]) - (gen[0, 1] - gen[1, 1])
    first = np.mean(slope * z * (1 - z) / temperature)
    q, ratio = softmax(enc), log_softmax(enc) - log_softmax(pri)
    return np.array([first, -first]) + q * (ratio - q @ ratio)


@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0])
def test_gumbel_by_quadrature(x64, temperature):
    """Two classes: the mean of 20,000 gradients is the integral over the noise, within 4 standard errors."""
    params = tables(classes=2)
    gradients, _ = at_keys(gumbel(temperature), params, 20_000, classes=2)
    off, error = gap(gradients["enc"][:, 1], relaxed_gradient(params, temperature))
    assert (np.abs(off) < 4 * error).all() and (error > 1e-5).all()


@pytest.mark.parametrize("make", [gumbel, straight_through_gumbel])
def test_bias_vanishes_with_the_temperature(x64, make):
    """Eight classes, 40,000 draws, the same noise at each temperature; exact gradients by enumeration.

    The bias of the encoder's gradient is more than 15 standard errors at temperature 3, within 4 of them at the lowest;
    the variance rises.
    """
    params, exact = tables(), exact_gradients(tables())["enc"][1]
    seen = {t: gap(at_keys(make(t), params, 40_000)[0]["enc"][:, 1], exact) for t in (3.0, 0.5, 0.05)}
    worst = [np.abs(off / error).max() for off, error in seen.values()]
    size = [np.linalg.norm(off) for off, _ in seen.values()]
    assert worst[0] > 15 and worst[-1] < 4, worst
    assert size[0] > 3 * size[1], size
    assert np.all(np.diff([np.linalg.norm(error) for _, error in seen.values()]) > 0)


def test_straight_through_by_hand(x64):
    """Each draw: the generator at the class drawn, its input gradient through the softmax of the same noise."""
    params, t = tables(), 0.7
    keys = jax.random.split(jax.random.key(0), 50)
    gradients, losses = at_keys(straight_through_gumbel(t), params, 50)
    log_q, log_p = log_softmax(params["enc"][1]), log_softmax(params["pri"]["logits"])
    kl = np.exp(log_q) @ (log_q - log_p)
    of_kl = np.exp(log_q) * (log_q - log_p - kl)
    gen = np.asarray(params["gen"])
    for i, key in enumerate(keys):
        soft = np.asarray(GumbelSoftmax(params["enc"][1], t).sample(jax.random.split(key)[0]).parts)
        row = gen[soft.argmax()]
        back = gen @ softmax(row) - gen[:, 1]
        through = soft * (back - soft @ back) / t
        np.testing.assert_allclose(losses[i], kl - log_softmax(row)[1], rtol=1e-10)
        np.testing.assert_allclose(gradients["enc"][i, 1], of_kl + through, atol=1e-10)
        np.testing.assert_allclose(gradients["gen"][i], np.outer(np.eye(8)[soft.argmax()], softmax(row) - np.eye(3)[1]))


def test_the_gumbel_gradient_is_that_of_the_relaxed_loss(x64):
    """Value at the class drawn, gradient of every part at the relaxed z: against autodiff of that loss alone."""
    params, t = tables(), 0.7
    gradients, losses = at_keys(gumbel(t), params, 50)

    def relaxed_loss(params, key):
        z = GumbelSoftmax(params["enc"][1], t).sample(jax.random.split(key)[0]).parts
        rate = dist.kl_divergence(OneHot(params["enc"][1]), OneHot(params["pri"]["logits"]))
        return rate - jax.nn.log_softmax(z @ params["gen"])[1]

    keys = jax.random.split(jax.random.key(0), 50)
    want = compiled(jax.vmap(jax.grad(relaxed_loss), in_axes=(None, 0)))(params, keys)
    jax.tree.map(lambda got, want: np.testing.assert_allclose(got, want, atol=1e-12), gradients, want)
    np.testing.assert_allclose(losses, at_keys(straight_through_gumbel(t), params, 50)[1], rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "estimator", "objective"),
    [
        ("REINFORCE", score_function(), elbo()),
        ("with baseline", score_function(2.0), elbo()),
        ("leave one out", score_function(), leave_one_out(4)),
        ("leave one out, relaxed model", gumbel(1.0), leave_one_out(4)),
        ("VIMCO", score_function(), vimco(3)),
        ("VIMCO, relaxed model", straight_through_gumbel(1.0), vimco(3)),
        ("generator of the straight-through form", straight_through_gumbel(1.0), elbo()),
    ],
)
def test_unbiased(x64, name, estimator, objective):
    """20,000 draws against the exact gradient, 5 standard errors; VIMCO's by enumeration of three draws."""
    params = tables(classes=4)
    want = multi_sample_gradients(params, 3) if "VIMCO" in name else exact_gradients(params, classes=4)
    gradients, _ = at_keys(estimator, params, 20_000, objective, classes=4)
    if "generator" in name:
        gradients.pop("enc"), want.pop("enc")
    for got, exact in zip(jax.tree.leaves(gradients), jax.tree.leaves(want), strict=True):
        off, error = gap(got, exact)
        assert (np.abs(off) <= 5 * error + 1e-12).all() and error.max() < 0.05, name


def multi_sample_gradients(params, k):
    """Of -E ln 1/k sum w_i over all combinations of k classes."""

    def loss(params):
        log_q = jax.nn.log_softmax(params["enc"][1])
        log_w = jax.nn.log_softmax(params["pri"]["logits"]) + jax.nn.log_softmax(params["gen"])[:, 1] - log_q
        every = np.array(list(itertools.product(range(len(log_q)), repeat=k)))
        return -jnp.sum(jnp.exp(log_q[every].sum(1)) * jax.scipy.special.logsumexp(log_w[every] - np.log(k), axis=1))

    return jax.grad(loss)(params)


# Temperature


def test_a_traced_temperature_is_that_temperature(x64):
    """One compilation for all of them, and the numbers of the concrete ones; and as a schedule."""
    params, y, key = tables(), Y[None], jax.random.key(0)[None]
    traces = []

    @compiled
    def traced(t):
        traces.append(t)
        return jax.grad(lambda p: model_with(gumbel(t)).terms(p, key[0], Y).nats)(params)

    schedule = of(lambda step: model_with(gumbel(2.0 / (1 + step))))

    @compiled
    def scheduled(step):
        return jax.grad(lambda p: schedule(EXACT, p, key, y, None, step)[0])(params)

    for step, t in ((0, 2.0), (3, 0.5)):
        want = compiled(jax.grad(lambda p, t=t: model_with(gumbel(t)).terms(p, key[0], Y).nats))(params)
        for got in (traced(t), scheduled(step)):
            jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-10), got, want)
    assert len(traces) == 1
    logits, z = jnp.zeros(3), jnp.array([0.2, 0.3, 0.5])
    density = jax.jit(lambda t: GumbelSoftmax(logits, t).log_prob(z))(0.7)
    np.testing.assert_allclose(density, jax.jit(GumbelSoftmax(logits, 0.7).log_prob)(z), rtol=1e-12)


@pytest.mark.parametrize("make", [gumbel, straight_through_gumbel])
def test_extreme_numbers_stay_finite(make):
    """Logits of 1e4 and temperatures of 1e-3 and 1e3, in float32."""
    params = jax.tree.map(lambda x: jnp.float32(1e4) * jnp.float32(x), tables())
    for t in (1e-3, 1e3):
        gradients, losses = at_keys(make(t), params, 20)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((gradients, losses)))


def test_keys_are_used_once(one_use_keys):
    for estimator in (gumbel(1.0), straight_through_gumbel(1.0)):
        compiled(model_with(estimator).terms)(jax.tree.map(jnp.float32, tables()), jax.random.key(0), Y)


# What is refused


@pytest.mark.parametrize("make", [gumbel, straight_through_gumbel])
def test_what_is_refused(make):
    for t in (0.0, -1.0, float("nan"), float("inf"), jnp.float32(0)):
        with pytest.raises(ValueError, match="temperature of relaxed classes must be positive; got"):
            make(t)
    prior, y, params = (
        learned_classes(2, 3),
        jnp.zeros(6),
        {"enc": None, "pri": {"logits": jnp.zeros((2, 3))}, "gen": None},
    )
    numbers, same = (lambda key, x: None, lambda _, x: x.reshape(2, 3)), (lambda key, x: None, lambda _, x: x.ravel())
    for enc, pri, message in (
        (categorical(numbers), prior, r"one-hot encoder, one_hot\(net\).*gives Categorical\. Classes as integers"),
        (gaussian(same), prior, "one-hot encoder.*gives Normal"),
        (one_hot(numbers), standard_normal((2, 3)), "one-hot prior.*gives Normal"),
        (one_hot(numbers), lift(prior), "this prior is a Model without density"),
    ):
        with pytest.raises(TypeError, match=message):
            vae(enc, pri, bernoulli(same), estimator=make(1.0)).terms(params, jax.random.key(0), y)
    for shape, classes in ((3, 1), (3, 2.5)):
        with pytest.raises(ValueError, match="at least two classes to choose from; got"):
            learned_classes(shape, classes)
    for shape in (2.5, (2, 0)):
        with pytest.raises(ValueError, match="learned_classes wants the size of z, a whole number of at least 1"):
            learned_classes(shape, 3)
