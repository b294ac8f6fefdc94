"""The equations of the lecture, one test each: TTIC 31230, David McAllester, "Variational Auto-Encoders (VAEs)".

The systems are solved exactly by numpy (vae_jax.selfcheck.solvable). y takes finitely many values where the
lecture assumes universality: free tables of logits can represent every distribution.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax, logsumexp, rel_entr, softmax
from scipy.stats import chisquare, multivariate_normal

from vae_jax import (
    analytic,
    categorical,
    diffusion,
    enumerated,
    fixed_encoder,
    gaussian,
    init_state,
    l2,
    make_train_step,
    nets,
    sampled,
    standard_normal,
    sticking,
    vae,
)
from vae_jax.core import lift, means, reconstruct
from vae_jax.core.distributions import raw_log_std
from vae_jax.core.model import log_prob
from vae_jax.diffusion.steps import end, first_step
from vae_jax.em import as_vae, factor_analysis, mixture_of_gaussians
from vae_jax.evaluation import refine
from vae_jax.parts import autoregressive, vampprior
from vae_jax.parts.flows import coupling_flow
from vae_jax.selfcheck.quadrature import expected_terms, hermite, sigma_points
from vae_jax.selfcheck.solvable import (
    EIGENVALUES,
    affine,
    affine_normal,
    discrete,
    discrete_model,
    linear_gaussian,
    linear_gaussian_model,
    linear_vae_optimum,
    toy,
)
from vae_jax.systems import gan, non_saturating, with_discriminator
from vae_jax.vq import codebook, encode, uniform_codes, vq_vae

POP = np.array([0.1, 0.2, 0.3, 0.4])  # a population of y in 0 .. 3
POPULATION = np.repeat(np.arange(4), [1, 2, 3, 4])  # ten examples, exactly in its proportions


def train(model, params, ys, *, steps, optimizer, **options):
    """`steps` full-batch training steps from `params` in one compiled loop: the final parameters, the last metrics."""
    state = jax.jit(functools.partial(init_state, model, optimizer))(jax.random.key(0), ys[0])
    step = make_train_step(model, optimizer, **options)
    run = jax.jit(lambda state: jax.lax.scan(lambda s, _: step(s, jax.random.key(1), ys), state, length=steps))
    state, metrics = run(state._replace(params=params))
    assert int(state.skipped) == 0
    return state.params, {name: values[-1] for name, values in metrics.items()}


def joint_tables(params):
    """numpy: ln P_pri(z) P_gen(y|z) and ln P_enc(z|y), both (codes, values), of the discrete toy."""
    pri, gen, enc = (np.asarray(params[part], np.float64) for part in ("pri", "gen", "enc"))
    return log_softmax(pri)[:, None] + log_softmax(gen, axis=1), log_softmax(enc, axis=1).T


@jax.jit
def terms_of_every_y(params):
    """Terms of y = 0 .. 3 in the discrete toy, the expectation over z exact."""
    model = discrete_model(4, 3)
    return jax.vmap(lambda y: model.terms(params, jax.random.key(0), y))(jnp.arange(4))


def expected_loss(params):
    """E_{y ~ POP} E_z L(y, z) of the discrete toy, by the library."""
    return jnp.asarray(POP) @ terms_of_every_y(params).nats


def entropy(p):
    return -np.sum(p * np.log(p))


def test_a_vae_is_encoder_prior_and_generator(x64):
    """A VAE is defined by P_enc(z|y), P_pri(z), P_gen(y|z);  L(y, z) = -ln P_pri(z) P_gen(y|z) / P_enc(z|y)."""
    encoder, prior, generator = affine_normal(2), standard_normal(2), l2(affine(3), 0.7)
    model = vae(encoder, prior, generator)
    y = jnp.array([0.3, -1.0, 2.0])
    params = model.init(jax.random.key(0), y)
    assert set(params) == {"enc", "pri", "gen"}
    eps = np.array([0.4, -1.3])
    params["enc"]["noise"] = jnp.asarray(eps)
    enc, gen = (jax.tree.map(np.asarray, params[part]) for part in ("enc", "gen"))
    y = np.asarray(y)
    z = enc["weights"] @ y + enc["bias"] + np.exp(enc["log_std"]) * eps

    def normal(x, mean, std):
        return np.sum(-0.5 * ((x - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi))

    log_enc = normal(z, enc["weights"] @ y + enc["bias"], np.exp(enc["log_std"]))
    log_pri = normal(z, np.zeros(2), np.ones(2))
    log_gen = normal(y, gen["weights"] @ z + gen["bias"], np.full(3, 0.7))
    terms = jax.jit(model.terms)(params, jax.random.key(1), y)
    assert terms.nats == pytest.approx(log_enc - log_pri - log_gen, rel=1e-12)
    assert terms.rate == pytest.approx(log_enc - log_pri, rel=1e-12)
    assert terms.distortion == pytest.approx(-log_gen, rel=1e-12)


def test_generation_uses_prior_and_generator():
    """VAE generation uses P_pri(z) and P_gen(y|z): samples follow P_pri,gen(y) = sum_z P_pri(z) P_gen(y|z).

    40,000 samples, key 0; the chi-square statistic within 4 standard deviations of its mean.
    """
    system, n = discrete(), 40_000
    draw = jax.jit(jax.vmap(system.model.sample, in_axes=(None, 0)))
    keys = jax.random.split(jax.random.key(0), n)
    samples = np.asarray(draw(system.params, keys))
    statistic = chisquare(np.bincount(samples, minlength=4), n * np.exp(system.log_p)).statistic
    assert statistic < 3 + 4 * np.sqrt(2 * 3)
    np.testing.assert_array_equal(samples, draw(system.exact, keys))  # whatever the encoder


def test_generation_of_a_linear_gaussian_has_its_covariance():
    """y = W z + sigma eps with z ~ N(0, I) is N(0, W W' + sigma^2 I): 40,000 samples, key 1, within 4.5 errors each."""
    weights, n = np.array([[1.0, 0.5], [-0.5, 1.0], [0.0, 0.0]]), 40_000
    system = linear_gaussian(weights, 0.3, np.zeros((1, 3)))
    keys = jax.random.split(jax.random.key(1), n)
    samples = np.asarray(jax.jit(jax.vmap(system.model.sample, in_axes=(None, 0)))(system.params, keys), np.float64)
    covariance = weights @ weights.T + 0.3 * np.eye(3)
    variances = np.diag(covariance)
    error = np.sqrt((np.outer(variances, variances) + covariance**2) / n)
    assert (np.abs(samples.T @ samples / n - covariance) < 4.5 * error).all()
    assert (np.abs(samples.mean(axis=0)) < 4.5 * np.sqrt(variances / n)).all()


@pytest.mark.parametrize("sigma", [0.1, 1.0, 3.0])
def test_cross_entropy_is_l2_with_sigma_and_ln_z(x64, sigma):
    """-ln p_gen(y|z) = ||yhat_gen(z) - y||^2 / (2 sigma^2) + ln Z(sigma),  ln Z = D/2 ln(2 pi sigma^2).

    For a fixed sigma ln Z can be ignored: the gradient is that of the squared error over 2 sigma^2.
    """
    generator, z, y = l2(affine(3), sigma), jnp.array([0.4, -0.9]), jnp.array([1.0, 2.0, -0.5])
    params = jax.jit(generator.init)(jax.random.key(0), z)

    def squared_error(params):
        return jnp.sum((params["weights"] @ z + params["bias"] - y) ** 2) / (2 * sigma**2)

    def nats(params):
        return -log_prob(generator.dist(params, z), y)

    ln_z = 1.5 * np.log(2 * np.pi * sigma**2)
    (loss, slope), (error, wanted) = (jax.jit(jax.value_and_grad(f))(params) for f in (nats, squared_error))
    assert loss == pytest.approx(float(error) + ln_z, rel=1e-12)
    for ours, exact in zip(jax.tree.leaves(slope), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, exact, rtol=1e-12)


def test_generator_adds_sigma_times_noise(x64):
    """y = yhat_gen(z) + sigma eps, eps ~ N(0, I): the same key gives the same eps at every sigma and z."""
    z, key = jnp.array([0.4, -0.9]), jax.random.key(3)
    params = l2(affine(3), 1.0).init(jax.random.key(0), z)

    def eps(sigma, z):
        yhat = params["weights"] @ z + params["bias"]
        return (l2(affine(3), sigma).dist(params, z).sample(key) - yhat) / sigma

    np.testing.assert_allclose(eps(0.1, z), jax.random.normal(key, (3,)), rtol=1e-12)
    np.testing.assert_allclose(eps(7.0, -z), eps(0.1, z), rtol=1e-9)


def test_optimal_sigma_is_the_root_mean_squared_error(x64):
    """argmin_sigma of SSE / (2 sigma^2) + ln Z(sigma) is sigma^2 = MSE, where it is D/2 (1 + ln 2 pi MSE).

    One training step with l2(..., "optimal") puts sigma there, for yhat(z) before the step and its batch's own z.
    """
    y = jax.random.normal(jax.random.key(5), (16, 3))
    model = vae(affine_normal(2), standard_normal(2), l2(affine(3), "optimal"))
    state = init_state(model, optax.sgd(0.0), jax.random.key(0), y[0])
    step = jax.jit(make_train_step(model, optax.sgd(0.0)))  # nothing moves but sigma
    first, before = step(state, jax.random.key(1), y)
    _, after = step(first._replace(step=state.step), jax.random.key(1), y)  # the same noise again
    mse = (before["distortion"] - 1.5 * np.log(2 * np.pi)) * 2 / 3  # since sigma is 1 at the start
    assert after["distortion"] == pytest.approx(1.5 * (1 + np.log(2 * np.pi * float(mse))), rel=1e-6)
    assert after["distortion"] < before["distortion"]


@pytest.mark.parametrize("sigma", ["learned", "learned_per_dimension"])
def test_learned_sigma_comes_to_the_root_mean_squared_error(x64, sigma):
    """The same minimum by gradient descent on ln sigma; per dimension, each at its own root mean squared error."""
    generator, z = l2(affine(3), sigma), jnp.array([1.0, -2.0])
    ys = np.random.default_rng(6).normal(size=(50, 3)) * [0.1, 1.0, 10.0]
    params = generator.init(jax.random.key(0), z)
    yhat = generator.dist(params, z).mean
    mse = np.mean((ys - np.asarray(yhat)) ** 2, axis=None if sigma == "learned" else 0)

    def loss(log_sigma):
        return -jnp.mean(jax.vmap(generator.dist({**params, "log_sigma": log_sigma}, z).log_prob)(ys))

    descend = jax.jit(lambda x: jax.lax.fori_loop(0, 2000, lambda _, x: x - 0.05 * jax.grad(loss)(x), x))
    log_sigma = descend(jnp.zeros(mse.shape))
    variance = generator.dist({**params, "log_sigma": log_sigma}, z).variance
    np.testing.assert_allclose(variance, np.broadcast_to(mse, 3), rtol=1e-5)
    exact = 0.5 * np.sum(np.broadcast_to(1 + np.log(2 * np.pi * mse), 3))
    assert jax.jit(loss)(log_sigma) == pytest.approx(exact)


def test_fixed_encoder_loss_is_the_cross_entropy_to_the_joint(x64):
    """E_{y ~ Pop, z ~ enc} -ln P_pri(z) P_gen(y|z) = H(Pop enc) + KL(Pop enc || pri gen), and L lacks a constant of it.

    `fixed_encoder` estimates E L = cross-entropy - E H(enc(.|y)): 100,000 draws, key 2, within 4 standard errors. No
    gradient reaches the encoder, and that of prior and generator is the cross-entropy's.
    """
    system, n = discrete(estimator=fixed_encoder), 100_000
    log_joint, log_enc = joint_tables(system.params)
    pop_enc = POP * np.exp(log_enc)
    cross_entropy = -np.sum(pop_enc * log_joint)
    assert cross_entropy == pytest.approx(entropy(pop_enc) + rel_entr(pop_enc, np.exp(log_joint)).sum())
    ys = jnp.asarray(np.tile(POPULATION, n // 10))
    keys = jax.random.split(jax.random.key(2), n)

    @jax.jit
    def loss(params):
        return jax.vmap(system.model.terms, in_axes=(None, 0, 0))(params, keys, ys).nats

    nats, pull = jax.vjp(loss, system.params)
    exact = cross_entropy + np.sum(pop_enc * log_enc)
    assert abs(nats.mean() - exact) < 4 * nats.std() / np.sqrt(n)
    (gradient,) = pull(jnp.full(n, 1 / n))
    assert not np.any(gradient["enc"])
    pri = softmax(np.asarray(system.params["pri"]))
    aggregate = pop_enc.sum(axis=1)  # d/d logits of the cross-entropy is P_pri(z) - sum_y Pop(y) enc(z|y)
    error = np.sqrt(aggregate * (1 - aggregate) / n)
    assert (np.abs(np.asarray(gradient["pri"]) - (pri - aggregate)) < 4 * error).all()
    exact_gen = softmax(np.asarray(system.params["gen"]), axis=1) * aggregate[:, None] - pop_enc
    assert (np.abs(np.asarray(gradient["gen"]) - exact_gen) < 4 / np.sqrt(n)).all()


def test_fixed_encoder_training_makes_the_model_the_population(x64):
    """pri*, gen* = argmin E -ln P_pri(z) P_gen(y|z); under universality P_pri*,gen*(z, y) = Pop(y) enc(z|y), so
    P_pri*,gen*(y) = Pop(y).

    Trained from random tables with sampled z (estimator=fixed_encoder, parts=("pri", "gen"), key 1); 400,000 z in all,
    so that a cell of the joint has a standard error below 0.0008: allowed 0.004.
    """
    system = discrete(estimator=fixed_encoder)
    ys = jnp.asarray(np.tile(POPULATION, 100))
    rate = optax.exponential_decay(10.0, 100, 0.4)
    params, _ = train(system.model, system.params, ys, steps=400, optimizer=optax.sgd(rate), parts=("pri", "gen"))
    np.testing.assert_array_equal(params["enc"], system.params["enc"])
    log_joint, log_enc = joint_tables(params)
    np.testing.assert_allclose(np.exp(log_joint), POP * np.exp(log_enc), atol=0.004)
    np.testing.assert_allclose(np.exp(logsumexp(log_joint, axis=0)), POP, atol=0.004)


def test_fixed_encoder_training_without_noise_is_exact(x64):
    """As above with the expectation over z in closed form (estimator=enumerated): P_pri*,gen*(y) = Pop(y) to 1e-6."""
    system = discrete()
    params, metrics = train(
        system.model, system.params, jnp.asarray(POPULATION), steps=3000, optimizer=optax.sgd(3.0), parts=("pri", "gen")
    )
    np.testing.assert_array_equal(params["enc"], system.params["enc"])
    log_joint, log_enc = joint_tables(params)
    np.testing.assert_allclose(np.exp(log_joint), POP * np.exp(log_enc), atol=1e-6)
    assert metrics["loss"] == pytest.approx(entropy(POP), abs=1e-6)  # E L = H(Pop) where the joints agree


def test_training_the_encoder_alone_makes_it_the_posterior(x64):
    """enc* = argmin_enc E_y KL(P_enc(z|y), P_pri,gen(z|y)) + a constant: trained alone, enc drives the KL to zero."""
    system = discrete()
    log_joint, _ = joint_tables(system.params)

    def kl(params):
        return rel_entr(np.exp(joint_tables(params)[1]), np.exp(log_joint - system.log_p)).sum(axis=0)

    params, metrics = train(
        system.model, system.params, jnp.asarray(POPULATION), steps=3000, optimizer=optax.sgd(3.0), parts=("enc",)
    )
    assert (kl(system.params) > 0.01).all() and (np.abs(kl(params)) < 1e-9).all()
    for part in ("pri", "gen"):
        np.testing.assert_array_equal(params[part], system.params[part])
    assert metrics["loss"] == pytest.approx(-POP @ system.log_p, abs=1e-9)


def test_training_a_gaussian_encoder_alone_makes_it_the_posterior(x64):
    """The same by the reparameterisation trick: on the toy P_enc(z|y) comes to N(-2/11, 1/11) and L to -ln P(y).

    `sticking` has no noise at the optimum, so that plain gradient descent with one sample of z converges.
    """
    system = toy(estimator=sticking)
    params, metrics = train(
        system.model, system.params, system.ys, steps=1500, optimizer=optax.sgd(0.02), parts=("enc",)
    )
    q = affine_normal(1).dist(params["enc"], system.ys[0])
    assert q.mean.item() == pytest.approx(-2 / 11, abs=1e-6)
    assert q.variance.item() == pytest.approx(1 / 11, abs=1e-6)
    assert metrics["loss"] == pytest.approx(4.161859340430404, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_loss_is_kl_to_the_posterior_plus_cross_entropy(x64, seed):
    """E_y,z L = E_y KL(P_enc(z|y), P_pri,gen(z|y)) + E_y [-ln P_pri,gen(y)], every term by enumeration."""
    system = discrete(seed=seed)
    log_joint, log_enc = joint_tables(system.params)
    kl = rel_entr(np.exp(log_enc), np.exp(log_joint - system.log_p)).sum(axis=0)
    assert (kl > 0).all()
    assert expected_loss(system.params) == pytest.approx(POP @ kl - POP @ system.log_p, rel=1e-12)


def test_loss_decomposes_for_every_y_of_a_linear_gaussian(x64):
    """For an arbitrary fixed y: E_z L = KL(P_enc(z|y), P_pri,gen(z|y)) - ln P_pri,gen(y), with Gaussian KLs."""
    ys = np.random.default_rng(0).normal(size=(5, 3))
    weights = np.array([[1.0, 0.5], [-0.5, 1.0], [0.0, 0.0]])
    system = linear_gaussian(weights, 0.3, ys, widen=1.7, shift=0.4)
    loss = expected_terms(system.model, system.params, system.ys, sigma_points(2)).nats
    variance = 0.3 / (1.25 + 0.3)
    kl = 2 * (np.log(1 / 1.7) + (1.7**2 + 0.4**2 / variance - 1) / 2)
    np.testing.assert_allclose(loss, kl - system.log_p, rtol=1e-12)


def test_elbo_is_a_lower_bound(x64):
    """ln P_pri,gen(y) >= E_{z ~ P_enc(z|y)} [-L(y, z)] for every y and encoder, with equality at the posterior only."""
    system = discrete()
    encoders = 3 * jax.random.normal(jax.random.key(7), (200, 4, 3))

    elbos = jax.vmap(lambda enc: -terms_of_every_y({**system.params, "enc": enc}).nats)(encoders)
    assert (np.asarray(elbos) < system.log_p).all()
    np.testing.assert_allclose(-terms_of_every_y(system.exact).nats, system.log_p, rtol=1e-12)


@pytest.mark.parametrize("estimator", [sampled, analytic, sticking])
def test_elbo_is_a_lower_bound_for_every_gaussian_encoder(x64, estimator):
    """The same on the linear-Gaussian toy, by quadrature over z, for 200 encoders N(m, s^2)."""
    system = toy(estimator=estimator)
    means, log_stds = 2 * jax.random.normal(jax.random.key(8), (2, 200, 1))

    def elbo(mean, log_std):
        params = {**system.params, "enc": {**system.params["enc"], "bias": mean, "log_std": log_std}}
        return -expected_terms(system.model, params, system.ys, hermite()).nats

    assert (np.asarray(jax.vmap(elbo)(means, log_stds)) < system.log_p).all()
    at_posterior = elbo(jnp.array([-2 / 11]), jnp.log(jnp.array([1 / 11])) / 2)
    np.testing.assert_allclose(at_posterior, system.log_p, rtol=1e-12)


def consistent(enc_logits):
    """pri and gen with P_pri(z) P_gen(y|z) = POP(y) P_enc(z|y), for any encoder."""
    pop_enc = POP * softmax(enc_logits, axis=1).T
    pri = pop_enc.sum(axis=1)
    params = {"enc": enc_logits, "pri": np.log(pri), "gen": np.log(pop_enc / pri[:, None])}
    return jax.tree.map(jnp.asarray, params)


def test_objective_is_fully_optimised_iff_the_joints_agree(x64):
    """The objective is fully optimised whenever P_pri(z) P_gen(y|z) = Pop(y) P_enc(z|y).

    E L = H(Pop) + KL(Pop enc || pri gen) for any parameters: so its minimum is H(Pop), reached iff the joints agree.
    """
    loss = jax.jit(jax.value_and_grad(expected_loss))
    rng = np.random.default_rng(1)
    for _ in range(20):
        params = consistent(rng.normal(size=(4, 3)))
        value, gradient = loss(params)
        assert value == pytest.approx(entropy(POP), rel=1e-12)  # whenever they agree, whatever the encoder
        assert max(np.abs(g).max() for g in jax.tree.leaves(gradient)) < 1e-12
        moved = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape), params)
        log_joint, log_enc = joint_tables(moved)
        kl = rel_entr(POP * np.exp(log_enc), np.exp(log_joint)).sum()
        assert kl > 1e-3
        assert loss(moved)[0] == pytest.approx(entropy(POP) + kl, rel=1e-12)  # and only then


def test_training_all_three_reaches_the_entropy_of_the_population(x64):
    """Training P_pri and P_gen can drive the cross-entropy to H(Pop), and enc its KL to 0: the joints then agree."""
    system = discrete()
    params, metrics = train(system.model, system.params, jnp.asarray(POPULATION), steps=6000, optimizer=optax.sgd(2.0))
    log_joint, log_enc = joint_tables(params)
    assert metrics["loss"] == pytest.approx(entropy(POP), abs=1e-6)
    np.testing.assert_allclose(np.exp(log_joint), POP * np.exp(log_enc), atol=1e-4)


def test_posterior_collapse_is_an_optimum_too(x64):
    """Training the encoder allows it to ignore y: enc(z|y) = P_pri(z), P_gen(y|z) = Pop(y) is fully optimised as well.

    For discrete y the rate is then 0 and the distortion all of H(Pop).
    """
    collapsed = consistent(np.tile(np.random.default_rng(2).normal(size=3), (4, 1)))
    terms = terms_of_every_y(collapsed)
    np.testing.assert_allclose(terms.rate, 0, atol=1e-12)
    np.testing.assert_allclose(terms.distortion, -np.log(POP), rtol=1e-12)


def test_with_l2_distortion_z_nearly_specifies_y(x64):
    """With L2 distortion z nearly specifies y: at the optimum, as sigma shrinks, the squared error of yhat(z) goes to 0
    as D sigma^2, and I(y; z) grows by -ln sigma for each of the D dimensions.

    At the optimum the aggregate encoder is the prior, so that the rate is I(y; z): 1/2 sum ln(l_i / sigma^2).
    """
    d = len(EIGENVALUES)
    model, points = linear_gaussian_model(d, d, "learned"), sigma_points(d)

    def mean_nats(params, ys):
        return jnp.mean(expected_terms(model, params, ys, points).nats)

    gradient_of, seen = jax.jit(jax.grad(mean_nats)), {}
    for sigma in (0.1, 0.01, 0.001):
        ys, params = linear_vae_optimum(d, sigma**2)
        params["gen"] = {"net": params["gen"], "log_sigma": raw_log_std(jnp.log(jnp.array(sigma)))}
        terms = jax.tree.map(jnp.mean, expected_terms(model, params, ys, points))
        largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient_of(params, ys)))
        assert largest < 1e-9 / sigma**2  # an optimum, up to rounding of terms of order 1 / sigma^2
        squared_error = (terms.distortion - d / 2 * np.log(2 * np.pi * sigma**2)) * 2 * sigma**2
        assert squared_error == pytest.approx(d * sigma**2, rel=1e-6)
        assert terms.rate == pytest.approx(0.5 * np.log(EIGENVALUES / sigma**2).sum(), rel=1e-9)
        seen[sigma] = float(terms.rate)
    assert seen[0.01] - seen[0.1] == pytest.approx(d * np.log(10), rel=1e-9)
    assert seen[0.001] - seen[0.01] == pytest.approx(d * np.log(10), rel=1e-9)


def test_reconstructions_come_to_y_as_sigma_shrinks():
    """The same seen from outside: ||reconstruct(y) - y||^2 / D is near 2 sigma^2 (the noise of z's yhat and of y).

    5,000 reconstructions, key 4; the mean square within 5 standard errors.
    """
    d, n = len(EIGENVALUES), 500
    keys = jax.random.split(jax.random.key(4), (n, 2 * d))
    generator = l2(affine(d), "learned")

    @jax.jit
    def squared_errors(params, ys):
        def one(key, y):
            return jnp.mean((reconstruct(affine_normal(d), generator, params, key, y) - y) ** 2)

        return jax.vmap(lambda keys: jax.vmap(one)(keys, ys))(keys)

    for sigma in (0.3, 0.03):
        ys, params = linear_vae_optimum(d, sigma**2)
        params["gen"] = {"net": params["gen"], "log_sigma": raw_log_std(jnp.log(jnp.array(sigma)))}
        errors = np.asarray(squared_errors(params, ys))
        # yhat(z) - y = -(sigma^2 / l) y + noise of variance sigma^2 (1 - sigma^2 / l), and y's own sigma^2
        exact = np.mean(sigma**4 / EIGENVALUES + sigma**2 * (1 - sigma**2 / EIGENVALUES) + sigma**2)
        assert abs(errors.mean() - exact) < 5 * errors.std() / np.sqrt(errors.size)


def test_aggregate_prior_makes_the_rate_the_mutual_information(x64):
    """P_pri trained to the marginal of Pop(y) P_enc(z|y): the rate is I(y; z), which rises to H(Pop) as z specifies y.

    Four values of y with encoder N(y, s^2) and the VampPrior at those y as the marginal: I goes from 0 to ln 4.
    """
    ys = jnp.array([[-3.0], [-1.0], [1.0], [3.0]])
    encoder = affine_normal(1)
    model = vae(encoder, vampprior(encoder, ys), l2(affine(1), 1.0))

    def information(std):
        enc = {"weights": jnp.eye(1), "bias": jnp.zeros(1), "log_std": jnp.log(jnp.array([std]))}
        params = {"enc": enc, "pri": {"pseudo": ys, "enc": enc}, "gen": {"weights": jnp.eye(1), "bias": jnp.zeros(1)}}
        return jnp.mean(expected_terms(model, params, ys, hermite(120)).rate).item()

    rates = [information(std) for std in (30.0, 3.0, 1.0, 0.3, 0.1)]
    assert rates == sorted(rates)
    assert rates[0] == pytest.approx(0.5 * 5 / 900, rel=0.02)  # I -> var(y) / (2 s^2) where the encoder tells little
    assert rates[-1] == pytest.approx(np.log(4), abs=1e-6)


@pytest.mark.parametrize("estimator", [sampled, analytic, sticking])
def test_reparameterised_gradient_is_the_exact_gradient(x64, estimator):
    """Gradient descent on E_{eps} L(y, z_enc(y, eps)): the gradient of one sample is unbiased for that of E_z L.

    On the toy at q = N(.3, .2) the exact d ELBO / d(mean, ln std) is (-5.3, -1.2). 50,000 draws of eps, key 9, within 4
    standard errors; and the exact expectation by quadrature, to 1e-9.
    """
    n, system = 50_000, toy(estimator=estimator)
    keys, enc = jax.random.split(jax.random.key(9), n), system.params["enc"]

    def loss(enc, key):
        return system.model.terms({**system.params, "enc": enc}, key, system.ys[0]).nats

    gradients = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(enc, keys)
    for name, exact in (("bias", 5.3), ("log_std", 1.2)):
        draws = np.asarray(gradients[name])[:, 0]
        assert abs(draws.mean() - exact) < 4 * draws.std() / np.sqrt(n)

    def expected(enc):
        return expected_terms(system.model, {**system.params, "enc": enc}, system.ys, hermite()).nats[0]

    gradient = jax.jit(jax.grad(expected))(enc)
    np.testing.assert_allclose([gradient["bias"].item(), gradient["log_std"].item()], [5.3, 1.2], rtol=1e-9)


def test_z_is_the_mean_plus_sigma_times_noise(x64):
    """eps ~ N(0, I), z_enc(y, eps) = zhat_enc(y) + sigma eps: one key is one eps, whatever y and parameters."""
    encoder, key = gaussian(affine(4)), jax.random.key(10)
    y = jnp.array([1.0, -2.0])
    for seed in range(3):
        params = encoder.init(jax.random.key(seed), y)
        q = encoder.dist(params, (seed + 1) * y)
        assert q.has_rsample
        np.testing.assert_allclose((q.rsample(key) - q.mean) / jnp.sqrt(q.variance), jax.random.normal(key, (2,)))


def test_z_is_a_smooth_function_of_the_encoders_parameters_and_of_y(x64):
    """z_enc(y, eps) is a smooth function of the parameters (and of y): its jvp equals differences; so does L's."""
    encoder, key = gaussian(affine(4)), jax.random.key(11)
    y = jnp.array([1.0, -2.0])
    model = vae(encoder, standard_normal(2), l2(affine(2), 0.5))
    params = model.init(jax.random.key(0), y)
    tangent = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=float).reshape(x.shape)), (params, y))

    @jax.jit
    def functions(params, y):
        return encoder.dist(params["enc"], y).rsample(key), model.terms(params, key, y).nats

    _, derivative = jax.jvp(functions, (params, y), tangent)
    h = 1e-5
    ahead, behind = (functions(*jax.tree.map(lambda x, t, s=s: x + s * h * t, (params, y), tangent)) for s in (1, -1))
    for exact, a, b in zip(*map(jax.tree.leaves, (derivative, ahead, behind)), strict=True):
        np.testing.assert_allclose(exact, (a - b) / (2 * h), rtol=1e-7)


@pytest.mark.parametrize("estimator", [sampled, analytic, sticking])
def test_discrete_z_has_no_reparameterisation(estimator):
    """Optimising the encoder is tricky for discrete z: the sampled estimators refuse it and name what works."""
    model = vae(categorical(affine(3)), standard_normal(()), l2(affine(2)), estimator=estimator)
    params = {"enc": {"weights": jnp.ones((3, 2)), "bias": jnp.ones(3)}, "pri": {}, "gen": {}}
    with pytest.raises(TypeError, match=r"no reparameterisation z_enc\(y, eps\)(.|\n)*enumerated(.|\n)*fixed_encoder"):
        model.terms(params, jax.random.key(0), jnp.ones(2))


def test_discrete_z_trains_by_enumeration(x64):
    """For finite z the gradient of E_z L with respect to the encoder is exact: it equals differences of numpy's."""
    system = discrete(estimator=enumerated)
    gradient = jax.grad(lambda enc: expected_loss({**system.params, "enc": enc}))(system.params["enc"])

    def numpy_loss(enc):
        log_joint, log_enc = joint_tables({**system.params, "enc": enc})
        return np.sum(POP * np.exp(log_enc) * (log_enc - log_joint))

    enc, h = np.asarray(system.params["enc"]), 1e-5
    for index in np.ndindex(enc.shape):
        step = np.zeros(enc.shape)
        step[index] = h
        slope = (numpy_loss(enc + step) - numpy_loss(enc - step)) / (2 * h)
        assert gradient[index] == pytest.approx(slope, abs=1e-8)


# EM is alternating optimisation of the ELBO loss


def test_em_alternates_exact_optimisation_of_enc_and_of_pri_and_gen(x64):
    """On one loss: min over enc is the exact posterior, where the loss is -ln P; min over (pri, gen) is the M-step.

    Each half is held against 300 steps of gradient descent on the same half, which come no lower and to the same place.
    """
    ys = jnp.asarray(np.random.default_rng(0).normal(size=(40, 1)) + 4 * (np.arange(40) % 3 == 0)[:, None])
    mixture = mixture_of_gaussians(1, 2)
    system = as_vae(mixture)
    rough = jax.jit(mixture.init)(jax.random.key(0))
    rough = {**rough, "gen": {**rough["gen"], "means": jnp.array([[-1.0], [2.0]])}}

    @jax.jit
    def loss(enc, pri_gen):
        return jax.vmap(lambda y: system.terms({"enc": enc, **pri_gen}, jax.random.key(0), y).nats)(ys).mean()

    expect, maximise = jax.jit(mixture.em.expect), jax.jit(mixture.em.maximise)
    losses = [loss(jax.tree.map(lambda x: x + 0.3, rough), rough)]
    params = rough
    for _ in range(3):
        losses.append(loss(params, params))  # enc: the exact posterior of the present (pri, gen)
        log_p, stats = expect(params, ys)
        assert losses[-1] == pytest.approx(float(-np.mean(log_p)), abs=1e-12)
        enc, params = params, maximise(params, stats, len(ys))
        losses.append(loss(enc, params))  # (pri, gen): their optimum for that enc
    assert (np.diff(losses) < 0).all()
    start = {"enc": enc, **jax.tree.map(lambda x: x + 0.1, params)}
    trained, _ = train(system, start, ys, steps=300, optimizer=optax.adam(0.05), parts=("pri", "gen"))
    by_gradient = loss(enc, {part: trained[part] for part in ("pri", "gen")})
    assert losses[-1] - 1e-12 < by_gradient < losses[-1] + 1e-4
    trained, _ = train(system, {"enc": enc, **params}, ys, steps=300, optimizer=optax.adam(0.05), parts=("enc",))
    by_gradient = loss(trained["enc"], params)
    assert loss(params, params) - 1e-12 < by_gradient < loss(params, params) + 1e-4


def test_in_em_the_posterior_can_be_sampled_and_computed(x64):
    """P_pri,gen(z|y) of factor analysis: computed it is Bayes' rule; sampled, every L(y, z) is -ln P_pri,gen(y)."""
    rng = np.random.default_rng(1)
    model = factor_analysis(3, 2)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape)), shapes)
    y = jnp.asarray(rng.normal(size=3))
    loadings, mean, log_std = (np.asarray(params["gen"][name]) for name in ("loadings", "mean", "log_std"))
    noise = np.diag(np.exp(2 * log_std))
    precision = np.eye(2) + loadings.T @ np.linalg.inv(noise) @ loadings
    posterior = jax.jit(model.em.posterior)(params, y)
    np.testing.assert_allclose(posterior.covariance_matrix, np.linalg.inv(precision), rtol=1e-9)
    expected = np.linalg.solve(precision, loadings.T @ np.linalg.inv(noise) @ (np.asarray(y) - mean))
    np.testing.assert_allclose(posterior.mean, expected, rtol=1e-9)
    log_p = multivariate_normal(mean, loadings @ loadings.T + noise).logpdf(np.asarray(y))
    system = as_vae(model)
    keys = jax.random.split(jax.random.key(0), 20)
    nats = jax.jit(jax.vmap(lambda key: system.terms({"enc": params, **params}, key, y).nats))(keys)
    np.testing.assert_allclose(nats, np.full(20, -log_p), rtol=1e-10)


# The Bayesian interpretation


def test_training_the_encoder_is_variational_bayesian_inference(x64):
    """With prior and generator fixed, refining q for one y raises the ELBO to ln P(y), and q to the posterior."""
    system = toy()
    q = refine(
        affine_normal(1), standard_normal(1), l2(affine(2), np.sqrt(0.5)), system.params, jax.random.key(0),
        system.ys[0], steps=400, learning_rate=optax.cosine_decay_schedule(0.1, 400),
    )  # fmt: skip
    np.testing.assert_allclose(q.q.mean, [-2 / 11], atol=1e-4)
    np.testing.assert_allclose(q.q.variance, [1 / 11], atol=1e-4)
    assert q.elbo[-1] == pytest.approx(system.log_p[0], abs=1e-4)  # every draw of L is -ln P at the posterior


# Diffusion


def exact_denoising(points: np.ndarray):
    """yhat(z) = E[y|z], the best denoiser of a population of points (n, d) that are equally likely."""

    def apply(params, z, gamma):
        del params
        level = diffusion.variance_preserving(gamma)
        away = jnp.sum((z[None] - level.alpha * points) ** 2, axis=1)
        return jax.nn.softmax(-0.5 * away / level.sigma**2) @ points

    return (lambda key, z, gamma: {}), apply


def test_diffusion_is_a_multi_step_vae_with_a_fixed_encoder(x64):
    """T + 1 VAEs, one the prior of the other, with encoders without parameters, have the bound of the diffusion."""
    points = jnp.array([[1.0, 0.2], [-0.8, 0.9], [0.1, -1.3]])
    steps = diffusion.denoiser(
        exact_denoising(points), (2,), diffusion.linear(-2.0, 2.0), steps=3, prediction=diffusion.predict_data
    )
    chained, direct = diffusion.unrolled(steps), diffusion.diffusion(steps)
    params = chained.init(jax.random.key(0), points[0])
    assert params["enc"] == {}
    keys = jax.random.split(jax.random.key(1), 4000)
    both = [
        np.asarray(jax.jit(jax.vmap(lambda key, m=model: m.terms(params, key, points[0]).nats))(keys))
        for model in (chained, direct)
    ]
    error = np.hypot(*(draws.std(ddof=1) / np.sqrt(len(draws)) for draws in both))
    assert abs(both[0].mean() - both[1].mean()) < 5 * error


def test_each_step_of_diffusion_adds_a_little_noise(x64):
    """Of DDPM's thousand steps none takes more than 2 % of the variance; together they leave almost nothing of y."""
    schedule = diffusion.ddpm()
    at = jax.jit(jax.vmap(lambda t: diffusion.variance_preserving(schedule.gamma({}, t))))
    levels = at(jnp.arange(1000) / 999)
    kept = (levels.alpha[1:] / levels.alpha[:-1]) ** 2
    assert kept.min() >= 0.98 - 1e-9 and levels.alpha[-1] < 0.01


def test_in_diffusion_z_contains_almost_all_the_information_in_y(x64):
    """I(y; z) of one step on Gaussian data is 1/2 ln(1 + SNR): 6.7 nats a dimension at the start, 0.003 at the end.

    By E ln P(z|y) - ln P(z) from the library's encoder, whose marginal with the data is P_pri.
    """

    @jax.jit
    def information(gamma):
        level = diffusion.variance_preserving(gamma)
        y, eps = jnp.meshgrid(*[jnp.array([-1.0, 1.0])] * 2)  # the mean of a quadratic function of two N(0, 1)
        z = level.alpha * y.ravel() + level.sigma * eps.ravel()
        conditional = jax.vmap(lambda y, z: first_step(y[None], level).log_prob(z[None]))(y.ravel(), z)
        return jnp.mean(conditional - jax.vmap(lambda z: end((1,), level).log_prob(z[None]))(z))

    for gamma in (-13.3, 0.0, 5.0):
        np.testing.assert_allclose(information(gamma), 0.5 * np.log1p(np.exp(-gamma)), rtol=1e-9)


def test_the_best_denoiser_is_the_mean_of_y_given_z(x64):
    """Any change of yhat(z) = E[y|z] raises the bound of the fixed encoder's steps."""
    points = jnp.array([[1.0, 0.2], [-0.8, 0.9], [0.1, -1.3]])
    init, apply = exact_denoising(points)
    keys = jax.random.split(jax.random.key(1), 3000)
    ys = points[jnp.arange(3000) % 3]

    def bound(shift, gain):
        net = (init, lambda params, z, gamma: shift + gain * apply(params, z, gamma))
        d = diffusion.denoiser(net, (2,), diffusion.linear(-2.0, 2.0), prediction=diffusion.predict_data)
        model = diffusion.diffusion(d, times=diffusion.times.stratified(8))
        params = model.init(jax.random.key(0), ys[0])
        return jnp.mean(jax.vmap(lambda key, y: model.terms(params, key, y).nats)(keys, ys))

    at_best, slopes = jax.jit(jax.value_and_grad(bound, argnums=(0, 1)))(0.0, 1.0)
    # The same draws: what a change costs is quadratic in it, but for the noise in the slope.
    for shift, gain in ((0.3, 1.0), (-0.3, 1.0), (0.0, 1.3), (0.0, 0.7)):
        assert jax.jit(bound)(shift, gain) > at_best
    assert np.all(np.abs(np.asarray(slopes)) < 0.3)


def test_denoising_by_a_u_net():
    """yhat(z) by a U-Net: no gradient reaches the encoder, which has no parameters, and training lowers the bound."""
    net = nets.UNet((8,), heads=2)
    d = diffusion.denoiser(net, (4, 4, 1), diffusion.cosine(-6.0, 4.0), prediction=diffusion.predict_velocity)
    model = diffusion.diffusion(d)
    ys = jnp.sign(jax.random.normal(jax.random.key(0), (16, 1, 1, 1))) * jnp.ones((1, 4, 4, 1))
    start = jax.jit(model.init)(jax.random.key(1), ys[0])
    assert start["enc"] == {}
    params, _ = train(model, start, ys, steps=40, optimizer=optax.adam(3e-3))
    keys = jax.random.split(jax.random.key(2), 16)
    nats = jax.jit(lambda params: jnp.mean(jax.vmap(lambda k, y: model.terms(params, k, y).nats)(keys, ys)))
    assert nats(params) < nats(start)


# Flows


def test_flows_are_trained_by_cross_entropy(x64):
    """A flow has no encoder and no bound: its loss is the cross-entropy itself, by the Jacobian of the map."""
    flow = coupling_flow(2, layers=2, hidden=(8,))
    params = jax.jit(flow.init)(jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), params)
    y = jnp.array([0.4, -1.1])

    @jax.jit
    def both(params, y):
        of = flow.dist(params)
        inverse = lambda y: of.push.inverse(of.params, y, of.h)[0]  # noqa: E731
        by_jacobian = jnp.linalg.slogdet(jax.jacfwd(inverse)(y))[1]
        return lift(flow).terms(params, jax.random.key(2), y), inverse(y), by_jacobian

    terms, z, by_jacobian = both(params, y)
    assert terms.rate == 0
    np.testing.assert_allclose(-terms.nats, multivariate_normal(np.zeros(2)).logpdf(z) + by_jacobian, rtol=1e-9)


# Autoregressive models, and collapse in language models

SENTENCES = np.array([[a, b, c] for a in range(2) for b in range(2) for c in range(2)])
LANGUAGE = np.repeat(SENTENCES, [1, 2, 3, 4, 1, 2, 4, 3], axis=0)  # twenty sentences of three words


def any_language(latent: int = 0):
    """A free table of logits for every prefix of three words of two kinds: any P(y). With z, an affine change of it."""

    def init(key, y, *c):
        del c
        k_table, k_z = jax.random.split(key)
        table = 0.1 * jax.random.normal(k_table, (7, 2))
        return {"table": table, "z": 0.3 * jax.random.normal(k_z, (latent, 7, 2))} if latent else {"table": table}

    def apply(params, y, *c):
        table = params["table"]
        if c:
            table = table + jnp.einsum("i,ijk->jk", c[0], params["z"])
        return table[jnp.array([0, 1, 3]) + jnp.array([0, y[0], 2 * y[0] + y[1]])]

    return autoregressive((init, apply), 3, 2)


def entropy_of_the_language():
    return entropy(np.unique(LANGUAGE, axis=0, return_counts=True)[1] / len(LANGUAGE))


def test_a_language_model_computes_p_gen_and_trains_by_cross_entropy(x64):
    """gen* = argmin E_{y ~ Pop} -ln P_gen(y): P_gen(y) is computed, not bounded, and comes to Pop."""
    model = lift(any_language())
    params = jax.jit(model.init)(jax.random.key(0), SENTENCES[0])
    nats = jax.jit(jax.vmap(lambda params, y: model.terms(params, jax.random.key(0), y).nats, in_axes=(None, 0)))
    assert np.exp(-nats(params, SENTENCES)).sum() == pytest.approx(1, rel=1e-12)
    params, metrics = train(model, params, jnp.asarray(LANGUAGE), steps=600, optimizer=optax.adam(0.05))
    assert metrics["rate"] == 0
    assert metrics["loss"] == pytest.approx(entropy_of_the_language(), abs=1e-4)
    np.testing.assert_allclose(np.exp(-nats(params, SENTENCES)), np.array([1, 2, 3, 4, 1, 2, 4, 3]) / 20, atol=5e-3)


def language_vae():
    encoder, generator = affine_normal(2), any_language(latent=2)
    model = vae(encoder, standard_normal(2), generator, estimator=analytic)
    return model, jax.jit(model.init)(jax.random.key(3), SENTENCES[0].astype(float))


def test_a_language_model_computes_p_gen_though_z_carries_nothing(x64):
    """Where the generator ignores z, P_gen(y|z) is P(y) of the language model with the same decoder, for every draw of
    z and every encoder; where the encoder ignores y as well, the bound is ln P(y)."""
    model, params = language_vae()
    params["gen"]["z"] = jnp.zeros_like(params["gen"]["z"])
    alone = {"table": params["gen"]["table"]}
    language = -jax.jit(jax.vmap(lambda y: any_language().dist(alone).log_prob(y)))(SENTENCES)

    def terms(params, key):
        return jax.vmap(lambda y: model.terms(params, key, y))(SENTENCES.astype(float))

    for key in jax.random.split(jax.random.key(1), 3):
        np.testing.assert_allclose(jax.jit(terms)(params, key).distortion, language, rtol=1e-12)
    silent = {**params, "enc": jax.tree.map(jnp.zeros_like, params["enc"])}
    got = jax.jit(terms)(silent, jax.random.key(2))
    np.testing.assert_allclose(got.rate, 0, atol=1e-12)
    np.testing.assert_allclose(got.nats, language, rtol=1e-12)


def test_training_lets_the_encoder_of_a_language_model_ignore_y(x64):
    """Posterior collapse: a generator that can be Pop without z comes to H(Pop) nats, and z carries almost none of
    them. With L2 distortion the same encoder cannot ignore y: z has to specify it."""
    model, params = language_vae()
    ys = jnp.tile(jnp.asarray(LANGUAGE, float), (50, 1))
    adam = optax.adam(optax.cosine_decay_schedule(0.05, 800))
    _, metrics = train(model, params, ys, steps=800, optimizer=adam)
    assert metrics["loss"] == pytest.approx(entropy_of_the_language(), abs=0.04)
    assert metrics["rate"] < 0.1 * entropy_of_the_language()
    continuous = vae(affine_normal(2), standard_normal(2), l2(affine(3), 0.1), estimator=analytic)
    _, metrics = train(continuous, jax.jit(continuous.init)(jax.random.key(3), ys[0]), ys, steps=800, optimizer=adam)
    assert metrics["rate"] > 1.5 * entropy_of_the_language()


# Discrete z by VQ-VAE; GANs

CORNERS = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])


def test_a_vq_vae_trains_a_discrete_z(x64):
    """Each of four points gets its own code: ln 4 nats of rate, which is H(Pop), and the distortion of yhat = y."""
    model = vq_vae(affine(2), codebook(4, 2), uniform_codes(4, ()), l2(affine(2), 0.1), start=CORNERS)
    params = jax.jit(model.init)(jax.random.key(0), CORNERS[0])
    with_codes = jax.jit(jax.vmap(lambda params, y: encode(model, params, y), in_axes=(None, 0)))
    params, metrics = train(
        model, params, CORNERS, steps=1500, optimizer=optax.adam(optax.cosine_decay_schedule(0.03, 1500))
    )
    assert sorted(with_codes(params, CORNERS).tolist()) == [0, 1, 2, 3]
    assert metrics["rate"] == pytest.approx(np.log(4), rel=1e-6)
    assert metrics["distortion"] == pytest.approx(np.log(2 * np.pi * 0.01), abs=1e-3)


def of_squares():
    """A discriminator with the best logit between two normals: a quadratic function of y."""
    init = lambda key, y: {"w": jnp.zeros(2), "b": jnp.zeros(())}  # noqa: E731
    return init, lambda params, y: params["w"] @ jnp.stack([y[0] - 2, (y[0] - 2) ** 2]) + params["b"]


@functools.cache
def gan_of_a_normal():
    """yhat = w z + b, which is what is sampled, trained on 256 points of N(2, 1/4) by discrimination alone."""
    model = vae(affine_normal(1), standard_normal(1), means(l2(affine(1), 0.5)))
    model = with_discriminator(model, of_squares())
    ys = np.random.default_rng(0).normal(size=(256, 1)).astype(np.float32)
    ys = 2 + 0.5 * (ys - ys.mean()) / ys.std()
    start = jax.jit(model.init)(jax.random.key(0), ys[0])
    adam = optax.adam(optax.cosine_decay_schedule(0.02, 4000), b1=0.0)
    game = {"objective": gan(of_squares(), loss=non_saturating), "parts": ("pri", "gen", "dis")}
    params, _ = train(model, start, jnp.asarray(ys), steps=4000, optimizer=adam, **game)
    return model, jnp.asarray(ys), start, params


def test_a_gan_is_trained_by_discrimination():
    """No likelihood takes part: b comes to the mean 2 and |w| to the deviation 1/2, each within 0.1, by the
    discriminator, which has nothing left to tell apart: its loss is 2 ln 2 within 0.02."""
    _, ys, start, params = gan_of_a_normal()
    w, b = float(params["gen"]["weights"][0, 0]), float(params["gen"]["bias"][0])
    assert abs(b - 2) < 0.1 and abs(abs(w) - 0.5) < 0.1
    jax.tree.map(np.testing.assert_array_equal, params["enc"], start["enc"])  # a GAN has no use for an encoder
    fakes = w * np.random.default_rng(1).normal(size=(20_000, 1)) + b
    _, judge = of_squares()

    @jax.jit
    def lost(dis, ys, fakes):
        of_data, of_fakes = (jax.vmap(lambda y: judge(dis, y))(x) for x in (ys, fakes))
        return jnp.mean(jax.nn.softplus(-of_data)) + jnp.mean(jax.nn.softplus(of_fakes))

    loss = lost(params["dis"], ys, fakes)
    assert loss == pytest.approx(2 * np.log(2), abs=0.02)


def test_an_encoder_inverts_a_gan():
    """VAE training adds P_enc(z|y): trained alone it finds the z that the GAN makes y of; the GAN stays as it is."""
    model, ys, _, params = gan_of_a_normal()
    inverted, _ = train(model, params, ys, steps=800, optimizer=optax.adam(0.02), parts=("enc",))
    for part in ("pri", "gen", "dis"):
        jax.tree.map(np.testing.assert_array_equal, inverted[part], params[part])
    w, b = float(params["gen"]["weights"][0, 0]), float(params["gen"]["bias"][0])
    enc = inverted["enc"]
    for z in (-1.5, 0.0, 1.5):  # the posterior mean shrinks z by w^2 / (w^2 + sigma^2)
        found = float(enc["weights"][0, 0]) * (w * z + b) + float(enc["bias"][0])
        assert found == pytest.approx(z * w**2 / (w**2 + 0.25), abs=0.1)
