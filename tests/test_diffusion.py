"""The bound of a diffusion against what is known exactly.

Where the denoiser is linear every term is quadratic in (y, eps), so that its expectation over Gaussians is the average
over the corners (+-1, +-1) of both: the oracles of Gaussian data hold to rounding, without sampling.
"""

import itertools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from vae_jax import evaluate
from vae_jax.core import objectives
from vae_jax.diffusion import (
    ancestral,
    continuous,
    cosine,
    ddpm,
    denoised,
    denoiser,
    diffusion,
    discrete,
    fit_variance,
    learned,
    linear,
    predict_data,
    predict_noise,
    predict_velocity,
    schedule,
    table,
    times,
    unrolled,
    variance_exploding,
    variance_preserving,
)
from vae_jax.diffusion.bound import prior_rate, step_terms
from vae_jax.diffusion.steps import end, first_step, forward_step, reverse_step
from vae_jax.diffusion.weightings import measure, min_snr, sigmoid_weighting, simple, spread_times, weighted
from vae_jax.evaluation import mean

PROCESSES = (variance_preserving, variance_exploding)
ERRORS = 5  # standard errors that a statistical test allows


def exact(variance: float):
    """The denoiser of data N(0, variance), which gives E[x|z]."""

    def apply(params, z, gamma):
        signal, left = jax.nn.sigmoid(-gamma), jax.nn.sigmoid(gamma)
        return jnp.sqrt(signal) * variance * z / (signal * variance + left)

    return (lambda key, z, gamma: {}), apply


def small(size: int = 2, out: int | None = None):
    """A network of (z, gamma[, c]) with something of everything."""

    def init(key, z, gamma, *c):
        inputs = size + 1 + sum(x.size for x in c)
        return {"w": 0.5 * jax.random.normal(key, (out or size, inputs))}

    def apply(params, z, gamma, *c):
        return jnp.tanh(params["w"] @ jnp.concatenate([z, gamma[None] / 5, *c]))

    return init, apply


def corners(variance: float):
    """(y, eps) at the four corners, whose averages are those of N(0, variance) x N(0, 1) for quadratic functions."""
    pairs = jnp.asarray(list(itertools.product([-1.0, 1.0], repeat=2)))
    return pairs[:, :1] * jnp.sqrt(variance), pairs[:, 1:]


def diffused(d, params, variance: float, count: int) -> float:
    """E of the diffusion's rate for Gaussian data: over all T steps, or by a midpoint rule in continuous time."""
    ys, eps = corners(variance)
    ts = (jnp.arange(count) + 0.5) / count

    def at(t):
        each = jax.vmap(lambda y, e: step_terms(d, params["enc"], params["gen"], e, y, t, None).nats)(ys, eps)
        return jnp.mean(each)

    return float(jax.jit(lambda: jnp.mean(jax.vmap(at)(ts)))())


def limit(variance: float, start: float, end: float) -> float:
    """The diffusion's rate in continuous time: 1/2 ln (1 + l SNR_max) / (1 + l SNR_min), for any schedule."""
    return 0.5 * float(np.log1p(variance * np.exp(-start)) - np.log1p(variance * np.exp(-end)))


# The fixed encoders


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("gammas", [linear(-4.0, 3.0), cosine(-4.0, 3.0), ddpm(30, 1e-3, 0.3), learned(-4.0, 3.0)])
def test_chaining_the_encoders_gives_the_marginal(x64, process, gammas):
    d = denoiser(exact(1.0), (1,), gammas, process=process, steps=6)
    enc = d.init(jax.random.key(0))["enc"]
    ts = d.times()
    mean, variance = jnp.asarray(1.0), jnp.asarray(0.0)
    level = d.level(enc, ts[0])
    first = first_step(jnp.ones(1), level)
    mean, variance = first.mean, first.variance
    for s, t in itertools.pairwise(ts):
        low, level = d.level(enc, s), d.level(enc, t)
        step = forward_step(mean, low, level)
        mean, variance = step.mean, (level.alpha / low.alpha) ** 2 * variance + step.variance
        np.testing.assert_allclose([mean[0], variance[0]], [level.alpha, level.sigma**2], rtol=1e-9)
        np.testing.assert_allclose(level.alpha**2 / level.sigma**2, np.exp(-level.gamma), rtol=1e-9)


def test_the_schedule_of_ddpm(x64):
    """alpha-bar_T of linear betas, and every alpha-bar by a plain product."""
    gammas = ddpm()
    np.testing.assert_allclose(jax.nn.sigmoid(-gammas.gamma({}, 1.0)), 4.035829765e-5, rtol=1e-9)
    products = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    got = jax.vmap(lambda t: jax.nn.sigmoid(-gammas.gamma({}, t)))(jnp.arange(1000) / 999)
    np.testing.assert_allclose(got, products, rtol=1e-9)


def test_the_cosine_schedule(x64):
    """alpha is a cosine of an angle that is linear in t."""
    ts = jnp.linspace(0, 1, 7)
    alphas = jax.vmap(lambda t: variance_preserving(cosine(-3.0, 2.0).gamma({}, t)).alpha)(ts)
    angles = np.arccos(np.asarray(alphas))
    np.testing.assert_allclose(np.diff(angles), np.diff(angles)[0], rtol=1e-9)
    np.testing.assert_allclose([cosine(-3.0, 2.0).gamma({}, t) for t in (0.0, 1.0)], [-3, 2], rtol=1e-9)


@pytest.mark.parametrize("ends", ["fixed", "learned"])
@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_learned_schedules_rise_between_their_ends(x64, ends, scale):
    gammas = learned(-6.0, 4.0, ends=ends)
    params = gammas.init(jax.random.key(0))
    assert ("ends" in params) == (ends == "learned")
    params["curve"] = jax.tree.map(lambda x: x + scale * np.sin(7 * np.asarray(x)), params["curve"])
    values = np.asarray(jax.jit(jax.vmap(lambda t: gammas.gamma(params, t)))(np.linspace(0, 1, 101)))
    assert np.all(np.diff(values) > 0)
    np.testing.assert_allclose(values[[0, -1]], [-6, 4], rtol=1e-6)


# One step


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("prediction", [predict_noise, predict_data, predict_velocity])
def test_three_forms_of_a_steps_rate_agree(x64, process, prediction):
    """KL of the Gaussians (by Bayes' rule from the encoders), weighted error of x, and of eps, per sample."""
    d = denoiser(small(), (2,), linear(-3.0, 2.0), process=process, prediction=prediction, steps=4)
    params = d.init(jax.random.key(0))
    x, eps = jnp.array([0.7, -1.2]), jnp.array([0.3, 1.1])
    s, t = d.times()[1], d.times()[2]
    low, level = d.level({}, s), d.level({}, t)
    z = level.alpha * x + level.sigma * eps
    known = d.denoise(params["gen"], z, level)

    # P(z_s|z_t, x) from P(z_s|x) P(z_t|z_s): a product of Gaussians.
    ratio = level.alpha / low.alpha
    forward = forward_step(z, low, level)
    precision = 1 / low.sigma**2 + ratio**2 / forward.variance
    centre = (low.alpha * x / low.sigma**2 + ratio * z / forward.variance) / precision
    posterior = dist.Normal(centre, 1 / jnp.sqrt(precision)).to_event(1)
    gaussians = dist.kl_divergence(posterior, reverse_step(known, z, low, level))

    weighted_x = 0.5 * (jnp.exp(-low.gamma) - jnp.exp(-level.gamma)) * jnp.sum((x - known.x) ** 2)
    weighted_eps = 0.5 * jnp.expm1(level.gamma - low.gamma) * jnp.sum((eps - known.noise) ** 2)
    ours = step_terms(d, {}, params["gen"], eps, x, (s + t) / 2, None).nats / 4
    np.testing.assert_allclose([ours, weighted_x, weighted_eps], np.full(3, gaussians), rtol=1e-9)


@pytest.mark.parametrize("variance", ["learned", "analytic"])
def test_a_step_with_its_own_variance_is_the_kl_of_gaussians(x64, variance):
    d = denoiser(small(2, 4 if variance == "learned" else 2), (2,), linear(-3.0, 2.0), steps=4, variance=variance)
    params = d.init(jax.random.key(0))
    x, eps = jnp.array([0.7, -1.2]), jnp.array([0.3, 1.1])
    s, t = d.times()[1], d.times()[2]
    low, level = d.level({}, s), d.level({}, t)
    z = level.alpha * x + level.sigma * eps
    known = d.denoise(params["gen"], z, level)
    truth = known._replace(x=x, variance=0.0)
    wanted = dist.kl_divergence(reverse_step(truth, z, low, level), reverse_step(known, z, low, level))
    got = step_terms(d, {}, params["gen"], eps, x, (s + t) / 2, None).nats / 4
    np.testing.assert_allclose(got, wanted, rtol=1e-9)


@pytest.mark.parametrize("prediction", [predict_noise, predict_data, predict_velocity])
def test_predictions_are_consistent(x64, prediction):
    """z = alpha x + sigma eps, and a network that says the truth gives the truth."""
    x, eps = jnp.array([0.7, -1.2]), jnp.array([0.3, 1.1])
    level = variance_preserving(jnp.asarray(-1.3))
    z = level.alpha * x + level.sigma * eps
    said = {predict_noise: eps, predict_data: x, predict_velocity: level.alpha * eps - level.sigma * x}[prediction]
    got = prediction(said, z, level.alpha, level.sigma)
    np.testing.assert_allclose(got, (x, eps), rtol=1e-9)


def test_processes_differ_in_scale_only(x64):
    """The same network, schedule and noise: the same bound to the last digit, and latents that differ by a factor."""
    y, key = jnp.array([0.7, -1.2]), jax.random.key(5)
    both = [diffusion(denoiser(small(), (2,), linear(-3.0, 2.0), process=p, steps=3)) for p in PROCESSES]
    params = both[0].init(jax.random.key(0), y)
    for name in ("terms", "importance"):
        one, other = (jax.jit(getattr(model, name))(params, key, y).nats for model in both)
        np.testing.assert_allclose(one, other, rtol=1e-9)


# Gaussian data: everything is known


@pytest.mark.parametrize("variance", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("gammas", [linear(-8.0, 5.0), cosine(-8.0, 5.0), learned(-8.0, 5.0)])
def test_continuous_rate_depends_on_the_ends_alone(x64, variance, gammas):
    d = denoiser(exact(variance), (1,), gammas, prediction=predict_data)
    got = diffused(d, d.init(jax.random.key(0)), variance, 20_000)
    np.testing.assert_allclose(got, limit(variance, -8.0, 5.0), rtol=1e-5)


def test_rate_of_finitely_many_steps(x64):
    """It falls with T to the one of continuous time."""
    for steps, wanted in ((10, 17.70785), (100, 7.24379), (1000, 6.70325)):
        d = denoiser(exact(1.0), (1,), linear(-13.3, 5.0), prediction=predict_data, steps=steps)
        np.testing.assert_allclose(diffused(d, d.init(jax.random.key(0)), 1.0, steps), wanted, atol=1e-5)
    np.testing.assert_allclose(limit(1.0, -13.3, 5.0), 6.646643, atol=1e-6)


@pytest.mark.parametrize("variance", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_optimal_reverse_variance_makes_every_step_count_exact(x64, variance, steps):
    """With the variance of x given z_t in it, a reverse step is the true one: no rate is lost to finite T."""
    d = denoiser(exact(variance), (1,), linear(-6.0, 4.0), prediction=predict_data, steps=steps, variance="analytic")
    params = d.init(jax.random.key(0))
    snr = np.exp(-jax.jit(lambda: jax.vmap(lambda t: d.gamma({}, t))(d.times()))())
    params["gen"]["variance"] = jnp.asarray(variance / (1 + variance * snr))
    np.testing.assert_allclose(diffused(d, params, variance, steps), limit(variance, -6.0, 4.0), rtol=1e-9)


def test_measured_variance_is_the_optimal_one(x64):
    """Fitted on 40,000 draws: a mean of squares of normals has a relative standard error of sqrt(2/n)."""
    d = denoiser(exact(2.0), (1,), linear(-6.0, 4.0), prediction=predict_data, steps=5, variance="analytic")
    ys = np.sqrt(2.0) * jax.random.normal(jax.random.key(1), (40_000, 1))
    params = fit_variance(d, d.init(jax.random.key(0)), jax.random.key(2), ys)
    snr = np.exp(-np.asarray(jax.vmap(lambda t: d.gamma({}, t))(d.times())))
    np.testing.assert_allclose(params["gen"]["variance"], 2 / (1 + 2 * snr), rtol=ERRORS * np.sqrt(2 / 40_000))


@pytest.mark.parametrize("variance", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("steps", [None, 4])
def test_the_whole_bound_of_gaussian_data(x64, variance, steps):
    """E[bound] = h(y) + KL(N(0, a_1^2 l + s_1^2) || N(0, 1)), with the optimal steps. Any wrong term breaks it."""
    kind = "fixed" if steps is None else "analytic"
    gammas = linear(-6.0, 2.0)
    d = denoiser(
        exact(variance), (1,), gammas, prediction=predict_data, steps=steps, variance=kind, observation=denoised()
    )
    params = d.init(jax.random.key(0))
    first, last = d.level({}, jnp.zeros(())), d.level({}, jnp.ones(()))
    known = variance / (1 + variance * jnp.exp(-first.gamma))
    if steps is not None:
        snr = jnp.exp(-jax.vmap(lambda t: d.gamma({}, t))(d.times()))
        params["gen"]["variance"] = variance / (1 + variance * snr)
    else:  # the last step takes sigmoid(gamma) for the variance of x, which is right for data of variance 1
        d = d._replace(observation=d.observation._replace(dist=lambda z, level, denoise: dist.Normal(
            denoise(z, level).x, jnp.sqrt(known)).to_event(1)))  # fmt: skip
    ys, eps = corners(variance)
    zs = first.alpha * ys + first.sigma * eps

    def last_step(y, z):
        of = d.observation.dist(z, first, lambda z, level: d.denoise(params["gen"], z, level))
        return -of.log_prob(y)

    total = (
        diffused(d, params, variance, steps or 20_000)
        + jnp.mean(jax.vmap(lambda y: jnp.sum(prior_rate(y, last)))(ys))
        + jnp.mean(jax.vmap(last_step)(ys, zs))
    )
    end_variance = last.alpha**2 * variance + last.sigma**2
    wanted = 0.5 * np.log(2 * np.pi * np.e * variance) + 0.5 * (end_variance - 1 - jnp.log(end_variance))
    np.testing.assert_allclose(total, wanted, rtol=1e-6)


def test_entropy_of_the_unit_normal(x64):
    """The instance that the papers' constants give: 1/2 ln 2 pi e, by the model's own terms."""
    model = diffusion(
        denoiser(exact(1.0), (1,), linear(-13.3, 5.0), prediction=predict_data, observation=denoised()),
        times=times.stratified(64),
    )
    ys = jax.random.normal(jax.random.key(0), (2000, 1))
    found = evaluate(model, model.init(jax.random.key(1), ys[0]), jax.random.key(2), ys)
    value, error = mean(found.elbo)
    assert abs(-value - 1.4189385332) < ERRORS * error and error < 0.05
    np.testing.assert_allclose(found.level_rate.sum(), found.rate.mean(), rtol=1e-6)


def testprior_rate_is_the_kl_to_the_end(x64):
    for gamma in (-3.0, 1.0, 12.0):
        for process in PROCESSES:
            level, x = process(gamma), jnp.array([0.3, -2.0])
            wanted = dist.kl_divergence(first_step(x, level), end((2,), level))
            np.testing.assert_allclose(jnp.sum(prior_rate(x, level)), wanted, rtol=1e-7)


# The chain


def of_draws(function, n: int = 20_000):
    return jax.jit(jax.vmap(function))(jax.random.split(jax.random.key(2), n))


@pytest.mark.parametrize("process", PROCESSES)
def test_a_random_step_has_the_expectation_of_the_folded_chain(x64, process):
    """The rate at a random t, all T of them, and T + 1 VAEs folded by `vae`: one bound. With a condition, too."""
    d = denoiser(small(), (2,), linear(-2.0, 2.0), steps=3, process=process, observation=denoised())
    y, c = jnp.array([0.7, -1.0]), jnp.array([1.0, 0.0])
    models = [diffusion(d), diffusion(d, times=times.every(3)), unrolled(d)]
    params = models[0].init(jax.random.key(1), y, c)
    draws = [of_draws(lambda key, m=model: m.terms(params, key, y, c)) for model in models]
    (random, error), (every, less), (chain, chains) = (mean(t.nats) for t in draws)
    assert abs(random - chain) < ERRORS * np.hypot(error, chains)
    assert abs(every - chain) < ERRORS * np.hypot(less, chains)
    assert less < error
    assert draws[2].rates.shape[1] == 4
    np.testing.assert_allclose(draws[2].rates.sum(axis=1), draws[2].rate, rtol=1e-9)


@pytest.mark.parametrize("variance", ["fixed", "learned"])
def test_importance_samples_average_to_the_likelihood(x64, variance):
    """One scan over the chain, and the VAEs folded: E exp(-nats) is the same P(y)."""
    net = small(1, 2 if variance == "learned" else 1)
    d = denoiser(net, (1,), linear(-1.0, 2.0), steps=2, observation=denoised(), variance=variance)
    y = jnp.array([0.4])
    models = [diffusion(d), unrolled(d)]
    params = models[0].init(jax.random.key(1), y)
    (one, error), (other, others) = (
        mean(np.exp(-of_draws(lambda key, m=model: m.importance(params, key, y).nats))) for model in models
    )
    assert abs(one - other) < ERRORS * np.hypot(error, others)
    # P(y) by a Riemann sum over z_0, z_1, z_2.
    line = np.linspace(-9, 9, 121)[:, None]

    @jax.jit
    def riemann_sum(gen):
        low, middle, last = (d.level({}, t) for t in d.times())

        def table_of(log_prob):
            return jnp.exp(jax.vmap(lambda z: jax.vmap(lambda x: log_prob(x, z))(line))(line)) * 0.15

        back_1 = table_of(lambda x, z: reverse_step(d.denoise(gen, z, last), z, middle, last).log_prob(x))
        back_0 = table_of(lambda x, z: reverse_step(d.denoise(gen, z, middle), z, low, middle).log_prob(x))
        start = jnp.exp(jax.vmap(end((1,), last).log_prob)(line)) * 0.15
        seen = jax.vmap(
            lambda z: jnp.exp(d.observation.dist(z, low, lambda z, level: d.denoise(gen, z, level)).log_prob(y))
        )(line)
        return start @ back_1 @ back_0 @ seen

    assert abs(one - float(riemann_sum(params["gen"]))) < ERRORS * error


def test_rates_of_a_chain_are_those_of_its_steps(x64):
    """Fixed Gaussian encoders on a chain: the rate of each step by its own densities."""
    d = denoiser(small(), (2,), linear(-2.0, 2.0), steps=2)
    y = jnp.array([0.7, -1.0])
    model = unrolled(d)
    params = model.init(jax.random.key(1), y)
    got = of_draws(lambda key: model.terms(params, key, y).rates)
    every = of_draws(lambda key: diffusion(d, times=times.every(2)).terms(params, key, y).diffusions[0])
    # Level 0 of the chain has z_0 and the step to z_1 back; the steps of `every` are the KLs given y.
    wanted = every.nats.sum(axis=1) / 2
    total, known = mean(got.sum(axis=1)), mean(wanted)
    prior = float(jnp.sum(prior_rate(y, d.level({}, jnp.ones(())))))
    assert abs(total.value - prior - known.value) < ERRORS * np.hypot(total.standard_error, known.standard_error)


# Times


def test_times_change_the_variance_only(x64):
    d = denoiser(small(), (2,), linear(-6.0, 5.0))
    y = jnp.array([0.7, -1.0])
    params = diffusion(d).init(jax.random.key(1), y)
    weights = measure(lambda ts: diffusion(d, times=ts), params, jax.random.key(3), jnp.tile(y, (500, 1)), parts=8)
    assert weights.shape == (8,) and np.all(weights > 0)
    found = {}
    for name, ts in {
        "uniform": times.uniform,
        "stratified": times.stratified(8),
        "proposal": times.proposal(weights),
    }.items():
        model = diffusion(d, times=ts)
        found[name] = mean(of_draws(lambda key, m=model: m.terms(params, key, y).nats))
    plain = found.pop("uniform")
    for value, error in found.values():
        assert abs(value - plain.value) < ERRORS * np.hypot(error, plain.standard_error)
        assert error < plain.standard_error


def test_times_spread_over_a_batch(x64):
    """The same expectation, less variance; with conditions. Predicting x, the loss varies with t more than with eps."""
    d = denoiser(small(), (2,), linear(-6.0, 5.0), prediction=predict_data)
    ys, cs = jnp.tile(jnp.array([0.7, -1.0]), (16, 1)), jnp.tile(jnp.array([1.0, 0.0]), (16, 1))
    model = diffusion(d)
    params = model.init(jax.random.key(1), ys[0], cs[0])
    spread = spread_times(lambda ts: diffusion(d, times=ts))

    def loss(objective):
        return lambda key: objective(model, params, jax.random.split(key, 16), ys, cs, 0)[0]

    plain, even = (mean(of_draws(loss(objective), 3000)) for objective in (objectives.elbo(), spread))
    assert abs(plain.value - even.value) < ERRORS * np.hypot(*(m.standard_error for m in (plain, even)))
    assert even.standard_error < 0.5 * plain.standard_error


# Other losses


def weighted_terms():
    d = denoiser(small(), (2,), linear(-6.0, 5.0))
    model = diffusion(d, times=times.stratified(3))
    ys = jax.random.normal(jax.random.key(4), (5, 2))
    params = model.init(jax.random.key(1), ys[0])
    return model, params, jax.random.split(jax.random.key(2), 5), ys


def test_the_bounds_own_weight_gives_the_bound(x64):
    model, params, keys, ys = weighted_terms()
    losses = [
        jax.jit(jax.value_and_grad(lambda p, o=objective: o(model, p, keys, ys, None, 0)[0]))(params)
        for objective in (objectives.elbo(), weighted(lambda gamma, slope: slope))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), *losses)


@pytest.mark.parametrize(
    ("weighting", "by_hand"),
    [
        (simple, lambda gamma: np.ones_like(gamma)),
        (min_snr(5.0), lambda gamma: np.minimum(np.exp(-gamma), 5) / np.exp(-gamma)),
        (sigmoid_weighting(-2.0), lambda gamma: 11 / (1 + np.exp(-gamma - 2))),
    ],
)
def test_weighted_losses_by_hand(x64, weighting, by_hand):
    """The reported terms do not change, and the diffusion's part is 1/2 w |eps - epshat|^2."""
    model, params, keys, ys = weighted_terms()
    loss, terms = weighted(weighting)(model, params, keys, ys, None, 0)
    _, plain = objectives.elbo()(model, params, keys, ys, None, 0)
    np.testing.assert_array_equal(terms.nats, plain.nats)
    part = plain.diffusions[0]
    wanted = np.mean(0.5 * by_hand(part.gamma) * part.squared)
    rest = np.mean(plain.distortion) + np.mean(plain.rates[:, 1])
    np.testing.assert_allclose(loss, wanted + rest, rtol=1e-6)


def test_learned_schedule_lowers_the_variance_and_nothing_else(x64):
    """nats has no gradient in the curve; the penalty is 0 and its gradient that of the squared loss."""
    d = denoiser(small(), (2,), learned(-6.0, 5.0, ends="learned"))
    model, y, key = diffusion(d), jnp.array([0.7, -1.0]), jax.random.key(3)
    params = model.init(jax.random.key(1), y)
    bound = jax.jit(jax.grad(lambda p: model.terms(p, key, y).nats))(params)["enc"]
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(bound["curve"]))
    assert all(np.all(leaf != 0) for leaf in jax.tree.leaves(bound["ends"]))
    penalty, slope = jax.jit(jax.value_and_grad(lambda p: model.terms(p, key, y).penalty))(params)
    assert penalty == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(slope["gen"]))

    @jax.jit
    def squared(shift):
        moved = jax.tree.map(lambda x: x, params)
        moved["enc"]["curve"]["middle"] = params["enc"]["curve"]["middle"].at[3].add(shift)
        return model.terms(moved, key, y).diffusions[0].bound ** 2 / 2

    by_hand = (squared(1e-5) - squared(-1e-5)) / 2e-5
    np.testing.assert_allclose(slope["enc"]["curve"]["middle"][3], by_hand, rtol=1e-5)


def test_dropout_is_for_training_only():
    """With it two keys differ although t and eps do not; the model without is the same network without dropout."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, z, gamma):
            h = nn.Dense(16)(z) + gamma[:, None]
            return nn.Dense(2)(nn.Dropout(0.5, deterministic=not self.has_rng("dropout"))(h))

    d = denoiser(Net(), (2,), linear(-6.0, 5.0))
    y, key = jnp.array([0.7, -1.0]), jax.random.key(3)
    plain, noisy = (diffusion(d, times=times.stratified(4), dropout=dropout) for dropout in (False, True))
    params = plain.init(jax.random.key(1), y)
    one, other = (model.terms(params, key, y).diffusions[0] for model in (plain, noisy))
    np.testing.assert_array_equal(one.t, other.t)
    assert np.all(one.squared != other.squared)
    level = d.level({}, jnp.asarray(0.5))
    draws = [d.denoise(params["gen"], y, level, key=key).noise for key in jax.random.split(key, 400)]
    average, error = np.mean(draws, axis=0), np.std(draws, axis=0) / 20
    assert np.all(np.abs(average - d.denoise(params["gen"], y, level).noise) < ERRORS * error)  # linear behind it


def test_dropped_conditions(x64):
    """Rate 0 and 1 by hand; the rest of the objective is untouched."""
    d = denoiser(small(), (2,), linear(-6.0, 5.0))
    model, ys = diffusion(d), jax.random.normal(jax.random.key(4), (400, 2))
    cs = jnp.ones((400, 2))
    params = jax.jit(model.init)(jax.random.key(1), ys[0], cs[0])

    def spy(model, params, keys, ys, cs, step):
        return objectives.elbo()(model, params, keys, ys, cs, step)[0], cs

    @jax.jit
    def dropped(params):
        keys = jax.random.split(jax.random.key(5), 400)
        return [objectives.drop_condition(spy, rate)(model, params, keys, ys, cs, 0)[1] for rate in (0.0, 1.0, 0.3)]

    seen = dropped(params)
    np.testing.assert_array_equal(seen[0], cs)
    np.testing.assert_array_equal(seen[1], 0 * cs)
    kept = np.asarray(seen[2])
    assert set(kept.sum(axis=1)) == {0.0, 2.0}
    assert abs(np.mean(kept) - 0.7) < ERRORS * np.sqrt(0.21 / 400)


# The data


@pytest.mark.parametrize("gamma", [-9.0, -2.0])
def test_levels_are_probabilities(x64, gamma):
    of = jax.jit(lambda z: discrete(8).dist(z, variance_preserving(gamma), None))(jnp.array([0.3, -2.0]))
    pairs = jnp.asarray(list(itertools.product(range(8), repeat=2)))
    np.testing.assert_allclose(np.sum(np.exp(jax.jit(jax.vmap(of.log_prob))(pairs))), 1.0, rtol=1e-9)
    np.testing.assert_allclose(discrete(256).embed(jnp.array([0, 255])), [-1 + 1 / 256, 1 - 1 / 256])


def test_a_range_is_a_change_of_units(x64):
    """Data in [0, 1] are those of [-1, 1] at half the size: the density is twice as high in each dimension."""
    y, key = jnp.array([0.7, -1.0]), jax.random.key(3)
    for make in (continuous, denoised):
        plain, ranged = (
            diffusion(denoiser(small(), (2,), linear(-3.0, 2.0), observation=o)) for o in (make(), make(0.0, 1.0))
        )
        params = plain.init(jax.random.key(1), y)
        one, other = plain.terms(params, key, y).nats, ranged.terms(params, key, (y + 1) / 2).nats
        np.testing.assert_allclose(one - other, 2 * np.log(2), rtol=1e-9)


def test_expected_reconstruction_is_the_average_over_z(x64):
    """`continuous` knows it; the same density, sampled, agrees."""
    d = denoiser(small(), (2,), linear(-3.0, 2.0), observation=continuous(0.0, 4.0))
    sampled = d._replace(observation=d.observation._replace(nats=None))
    y = jnp.array([0.7, 3.0])
    params = diffusion(d).init(jax.random.key(1), y)
    known = diffusion(d).terms(params, jax.random.key(0), y).distortion
    value, error = mean(of_draws(lambda key: diffusion(sampled).terms(params, key, y).distortion))
    assert abs(value - known) < ERRORS * error


# Bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedule(lambda t: 5 - 10 * t), "has to rise"),
        (lambda: schedule(lambda t: jnp.log(t)), "finite on"),
        (lambda: table([0.0, 1.0, 0.5]), "rise"),
        (lambda: table([1.0]), "at least two"),
        (lambda: linear(5.0, -5.0), "start to end"),
        (lambda: cosine(-1000.0, 5.0), "within"),
        (lambda: learned(hidden=0), "at least 1"),
        (lambda: learned(hidden=1.5), "at least 1; got 1.5"),
        (lambda: ddpm(1), "steps >= 2"),
        (lambda: ddpm(2.5), "steps >= 2"),
        (lambda: denoiser(small(), (2,), steps=0), "T >= 1"),
        (
            lambda: denoiser(small(), (2,), steps=2.5),
            "or None for continuous time; got steps=2.5: a whole",
        ),
        (lambda: denoiser(small(), (2,), steps=-1), "got steps=-1"),
        (lambda: denoiser(small(), ()), "shape is that of one example"),
        (lambda: denoiser(small(), 2.5), "shape is that of one example, (28, 28, 1) or (2,); got (2.5,)"),
        (lambda: denoiser(small(), (2,), steps=3, variance="lerned"), "variance is one of ('fixed', 'learned', 'ana"),
        (lambda: learned(ends="free"), 'the ends are "fixed" or "learned"; got \'free\''),
        (lambda: schedule(lambda t: jnp.stack([t, t])), "one number for one t; it has shape (2,)"),
        (lambda: denoiser(small(), (2,), variance="learned"), "needs steps"),
        (lambda: denoiser(small(), (2,), learned(), steps=3, variance="analytic"), "learned schedule moves"),
        (lambda: continuous(0.0), "low < high"),
        (lambda: continuous(1.0, 0.0), "low < high"),
        (lambda: discrete(1), "at least 2 levels"),
        (lambda: discrete(8.0), "at least 2 levels; got 8.0: a whole"),
        (lambda: times.proposal([1.0, 0.0]), "weight of 0"),
        (lambda: times.stratified(0), "at least one time"),
        (lambda: times.every(2.5), "at least one time; got 2.5: a whole"),
        (lambda: measure(None, {}, jax.random.key(0), jnp.zeros((1, 2)), parts=0), "parts of [0, 1): want a whole"),
        (lambda: weighted(simple, bound=-1.0), "at least 0"),
        (lambda: min_snr(0.0), "positive"),
        (lambda: objectives.drop_condition(objectives.elbo(), 2.0), "in [0, 1]"),
        (lambda: unrolled(denoiser(small(), (2,))), "finitely many"),
        (lambda: fit_variance(denoiser(small(), (2,)), {}, jax.random.key(0), jnp.zeros((1, 2))), "analytic"),
    ],
)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: denoiser(small(), (2,), lambda t: 10 * t - 5),
            r"schedule\(function\) of a function of t; got function",
        ),
        (lambda: denoiser(small(), (2,), cosine), "ddpm.*called.*got function"),
        (lambda: denoiser(small(), (2,), observation=discrete), "observation wants .* called; got function"),
        (lambda: schedule(5.0), "wants a function of t.*got float"),
        (lambda: diffusion(small()), r"wants denoiser\(net, shape, \.\.\.\); got tuple"),
        (lambda: diffusion(denoiser(small(), (2,)), sampler=ancestral), "sampler wants .* called; got function"),
    ],
)
def test_what_is_none_of_these(make, message):
    with pytest.raises(TypeError, match=message):
        make()


def test_bad_data_are_refused_before_compilation():
    """8-bit likelihood on float data, data outside the declared range, another shape."""
    ranged = diffusion(denoiser(small(), (2,), observation=continuous(0.0, 1.0)))
    binned = diffusion(denoiser(small(), (2,), observation=discrete(256)))
    params = jax.jit(ranged.init)(jax.random.key(0), jnp.zeros(2))
    for model, ys in ((ranged, [[0.5, 1.5]]), (binned, [[0.5, 3.0]]), (binned, [[0, 256]])):
        with pytest.raises(ValueError):
            evaluate(model, params, jax.random.key(1), np.asarray(ys, np.float32))
    with pytest.raises(ValueError, match="examples of shape"):
        ranged.init(jax.random.key(0), jnp.zeros(3))
    with pytest.raises(ValueError, match="network gives shape"):
        diffusion(denoiser(small(2, 3), (2,))).terms(
            {"enc": {}, "gen": {"net": {"w": jnp.zeros((3, 3))}}}, jax.random.key(0), jnp.zeros(2)
        )
