"""Ways back from noise, and the exact likelihood, against data whose denoiser is known in closed form.

Of data N(0, v) the probability flow is known: z / alpha grows with sqrt(v + sigma^2 / alpha^2). A mixture of Gaussians
blurred by noise is a mixture again, and E[eps|z] is minus sigma times the slope of its ln p.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp
from scipy.integrate import trapezoid
from scipy.linalg import expm
from scipy.stats import multivariate_normal, norm

from vae_jax.diffusion import (
    ancestral,
    continuous,
    ddim,
    denoiser,
    diffusion,
    discrete,
    dpm_solver,
    heun,
    linear,
    log_likelihood,
    predict_data,
    table,
    trajectory,
    variance_exploding,
    variance_preserving,
)
from vae_jax.diffusion.samplers import guided

pytestmark = pytest.mark.usefixtures("x64")

PROCESSES = [variance_preserving, variance_exploding]
PARAMS: Any = {"enc": {}, "gen": {"net": {}}}


class Mixture(NamedTuple):
    """sum_k weights_k N(means_k, variance I): weights (K,), means (K, D)."""

    weights: np.ndarray
    means: np.ndarray
    variance: float

    def log_density(self, ys, blur=0.0):
        """numpy: (n,) of ys (n, D), with noise of variance `blur` on top."""
        scale = (self.variance + blur) * np.eye(self.means.shape[1])
        return np.log(
            sum(w * multivariate_normal(m, scale).pdf(ys) for w, m in zip(self.weights, self.means, strict=True))
        )


SKEWED = Mixture(np.array([0.3, 0.7]), np.array([[-1.4], [0.6]]), 0.04)  # mean 0, variance 0.88
DIAGONAL = Mixture(np.array([0.4, 0.6]), np.array([[0.9, 0.9], [-0.6, -0.6]]), 0.25)


def parts_of(gamma):
    """(a, s) on the scale of variance 1."""
    return jnp.sqrt(jax.nn.sigmoid(-gamma)), jnp.sqrt(jax.nn.sigmoid(gamma))


def network(apply):
    """A network without parameters, `apply(z, gamma[, c])`."""
    return (lambda key, *inputs: {}, lambda params, *inputs: apply(*inputs))


def gaussian_noise(v):
    """E[eps|z] for data N(0, v); with a condition c, for N(c, v)."""

    def apply(z, gamma, c=0.0):
        a, s = parts_of(gamma)
        return s * (z - a * c) / (a**2 * v + s**2)

    return network(apply)


def mixture_noise(mixture):
    """E[eps|z] for data from a mixture."""

    def apply(z, gamma):
        a, s = parts_of(gamma)

        def log_p(z):
            away = jnp.sum((z[None] - a * jnp.asarray(mixture.means)) ** 2, axis=1)
            return logsumexp(jnp.log(mixture.weights) - 0.5 * away / (a**2 * mixture.variance + s**2))

        return -s * jax.grad(log_p)(z)

    return network(apply)


def levels_of(schedule_ends, steps):
    """numpy: gamma, a and s at the times of a sampler, from noise to data."""
    gammas = np.linspace(schedule_ends[1], schedule_ends[0], steps + 1)
    return gammas, np.sqrt(1 / (1 + np.exp(gammas))), np.sqrt(1 / (1 + np.exp(-gammas)))


def trajectories(d, sampler, n, key=0, **options):
    """`n` draws and their ways."""
    one = functools.partial(trajectory, d, PARAMS, sampler=sampler, **options)
    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(key), n))


def within(values, exact, errors=5):
    """The mean of `values` (n, ...) is `exact` but for so many standard errors."""
    values = np.asarray(values)
    away = np.abs(values.mean(axis=0) - exact) / (values.std(axis=0, ddof=1) / np.sqrt(len(values)))
    assert np.all(away < errors), away


# The probability flow of a Gaussian


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(("make", "order"), [(ddim, 1), (heun, 2), (dpm_solver, 2)])
def test_order_of_convergence(make, order, process):
    """z_0 / alpha_0 is z_1 / alpha_1 times sqrt((v + tau_0^2) / (v + tau_1^2)): errors fall as steps^-order."""
    ends, v = (-5.0, 3.0), 0.4
    d = denoiser(gaussian_noise(v), (1,), linear(*ends), process=process)
    _, a, s = levels_of(ends, 1)
    tau = s / a
    exact = np.sqrt((v + tau[1] ** 2) / (v + tau[0] ** 2)) * a[1] / a[0]

    def error(steps):
        zs = np.asarray(trajectories(d, make(steps), 1).zs)[0]
        return abs(zs[-1] / zs[0] - exact).item()

    once, twice = error(80), error(160)
    assert np.log2(once / twice) == pytest.approx(order, abs=0.1)
    assert twice < (2e-2 if order == 1 else 1e-3)


@pytest.mark.parametrize("make", [ancestral, ddim, heun, dpm_solver])
def test_both_processes_are_one_on_the_scale_of_variance_one(make):
    """Which of the two adds the noise is a matter of units: the same key gives the same way."""
    found = [
        trajectories(denoiser(mixture_noise(SKEWED), (1,), linear(-6.0, 5.0), process=process), make(6), 3)
        for process in PROCESSES
    ]
    for preserving, exploding in zip(*found, strict=True):
        np.testing.assert_allclose(preserving, exploding, rtol=1e-9)


# Draws


@pytest.mark.parametrize(("variance", "v"), [("fixed", 0.5), ("fixed", 2.0), ("learned", 1.0)])
def test_ancestral_variances(variance, v):
    """Each step multiplies the variance and adds to it (Ho et al. 2020, equation 7): 5 standard errors at all levels.

    With data of variance 1 and the true variance of x given z_t every level has variance 1, however few the steps.
    """
    ends, steps, n = (-4.0, 2.0), 5, 20_000

    def says(z, gamma):
        a, s = parts_of(gamma)
        x = a * v * z / (a**2 * v + s**2)
        return jnp.append(x, jnp.zeros(1)) if variance == "learned" else x  # 0: what unit variance leaves

    d = denoiser(network(says), (1,), linear(*ends), prediction=predict_data, steps=steps, variance=variance)
    _, a, s = levels_of(ends, steps)
    known = s**2 * v / (a**2 * v + s**2) if variance == "learned" else 0 * s
    exact = [1.0]
    for i in range(steps):
        ratio = a[i] / a[i + 1]
        added = s[i] ** 2 - ratio**2 * s[i + 1] ** 2
        of_x = a[i + 1] * added / s[i] ** 2
        slope = ratio * s[i + 1] ** 2 / s[i] ** 2 + of_x * a[i] * v / (a[i] ** 2 * v + s[i] ** 2)
        exact.append(slope**2 * exact[-1] + added * s[i + 1] ** 2 / s[i] ** 2 + of_x**2 * known[i])
    found = trajectories(d, ancestral(), n)
    within(found.zs[..., 0] ** 2, np.array(exact))
    within(found.y**2, (exact[-1] + s[-1] ** 2) / a[-1] ** 2)
    if variance == "learned":
        np.testing.assert_allclose(exact, 1.0, rtol=1e-12)


@pytest.mark.parametrize("process", PROCESSES)
def test_ddim_with_all_noise_anew_is_ancestral(process):
    d = denoiser(mixture_noise(SKEWED), (1,), linear(-6.0, 5.0), process=process)
    both = [trajectories(d, sampler, 4) for sampler in (ddim(12, eta=1.0), ancestral(12))]
    for one, other in zip(*both, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8)


@pytest.mark.parametrize(
    "sampler", [ancestral(200), ddim(200), ddim(200, eta=0.5), heun(40), dpm_solver(80)], ids=lambda s: str(s.steps)
)
def test_draws_have_the_moments_of_the_mixture(sampler):
    """2,000 draws, 5 standard errors: mean, second and third moment, and how many are of the right component."""
    d = denoiser(mixture_noise(SKEWED), (1,), linear(-9.0, 9.0))
    ys = np.asarray(trajectories(d, sampler, 2000).y)[:, 0]
    w, m, v = SKEWED.weights, SKEWED.means[:, 0], SKEWED.variance
    within(ys, w @ m)
    within(ys**2, w @ (m**2 + v))
    within(ys**3, w @ (m**3 + 3 * m * v))
    within(ys > -0.4, w @ norm.sf(-0.4, m, np.sqrt(v)))


# Steps as their papers write them, in numpy: from z at time 0, which is noise, with the denoiser eps(z, i) at time i,
# alpha and sigma at every time, and the noise that each step may draw.


def by_ho_et_al(z, eps, alphas, sigmas, fresh):
    """Ho et al. 2020, equations 6 and 7."""
    for i in range(len(fresh)):
        bar, bar_s = alphas[i] ** 2, alphas[i + 1] ** 2
        beta = 1 - bar / bar_s
        x = (z - np.sqrt(1 - bar) * eps(z, i)) / np.sqrt(bar)
        mean = np.sqrt(bar_s) * beta / (1 - bar) * x + np.sqrt(1 - beta) * (1 - bar_s) / (1 - bar) * z
        z = mean + np.sqrt((1 - bar_s) / (1 - bar) * beta) * fresh[i]
        yield z


def by_song_et_al(z, eps, alphas, sigmas, fresh, eta=0.6):
    """Song et al. 2021, equations 12 and 16."""
    for i in range(len(fresh)):
        bar, bar_s = alphas[i] ** 2, alphas[i + 1] ** 2
        sigma = eta * np.sqrt((1 - bar_s) / (1 - bar)) * np.sqrt(1 - bar / bar_s)
        noise = eps(z, i)
        x = (z - np.sqrt(1 - bar) * noise) / np.sqrt(bar)
        z = np.sqrt(bar_s) * x + np.sqrt(1 - bar_s - sigma**2) * noise + sigma * fresh[i]
        yield z


def by_karras_et_al(z, eps, alphas, sigmas, fresh):
    """Karras et al. 2022, algorithm 1, in x = z / alpha and t = sigma / alpha; d = (x - D) / t is epshat."""
    x, ts = z / alphas[0], sigmas / alphas
    for i in range(len(fresh)):
        d = eps(alphas[i] * x, i)
        guess = x + (ts[i + 1] - ts[i]) * d
        x = x + (ts[i + 1] - ts[i]) * (d / 2 + eps(alphas[i + 1] * guess, i + 1) / 2)
        yield alphas[i + 1] * x


def by_lu_et_al(z, eps, alphas, sigmas, fresh):
    """Lu et al. 2022b, algorithm 2: DPM-Solver++(2M), r_i = h_{i-1} / h_i."""
    h, seen = np.diff(np.log(alphas / sigmas)), []
    for i in range(len(fresh)):
        seen.append((z - sigmas[i] * eps(z, i)) / alphas[i])
        r = h[i - 1] / h[i]
        ahead = seen[0] if i == 0 else (1 + 1 / (2 * r)) * seen[i] - 1 / (2 * r) * seen[i - 1]
        z = sigmas[i + 1] / sigmas[i] * z - alphas[i + 1] * np.expm1(-h[i]) * ahead
        yield z


JUMPY = np.array([-3.0, -2.9, -2.5, 1.9, 2.0, 2.8])


@pytest.mark.parametrize(
    ("make", "by_the_paper"),
    [
        (ancestral, by_ho_et_al),
        (functools.partial(ddim, eta=0.6), by_song_et_al),
        (heun, by_karras_et_al),
        (dpm_solver, by_lu_et_al),
    ],
)
@pytest.mark.parametrize("steps", [1, 7])
def test_unequal_steps_are_those_of_the_papers(make, by_the_paper, steps):
    """A table of ln SNR with a jump, from whose points the times differ; every z of a trajectory."""
    d = denoiser(network(lambda z, gamma: jnp.sin(z) + 0.3 * gamma), (2,), table(JUMPY))
    key = jax.random.key(5)
    found = jax.jit(functools.partial(trajectory, d, PARAMS, sampler=make(steps)))(key)
    gammas = np.interp(np.linspace(1, 0, steps + 1), np.linspace(0, 1, len(JUMPY)), JUMPY)
    k, fresh = jax.random.split(key, 3)[1], []
    for _ in range(steps):
        own, k = jax.random.split(k)
        fresh.append(np.asarray(jax.random.normal(own, (2,))))
    alphas, sigmas = np.sqrt(1 / (1 + np.exp(gammas))), np.sqrt(1 / (1 + np.exp(-gammas)))
    zs = by_the_paper(np.asarray(found.zs[0]), lambda z, i: np.sin(z) + 0.3 * gammas[i], alphas, sigmas, fresh)
    np.testing.assert_allclose(found.zs[1:], list(zs), rtol=1e-9)


def test_heun_says_where_it_goes_astray():
    """Its variance of N(0, 1), by the same steps: 3.0 in steps of 3.8, and 150,000 in one, which is refused."""
    d = denoiser(gaussian_noise(1.0), (1,), linear(-13.3, 13.3))
    zs = trajectories(d, heun(7), 1).zs[0, :, 0]
    assert (zs[-1] / zs[0]) ** 2 == pytest.approx(3.007, abs=1e-3)
    for steps in (1, 4):
        sample = diffusion(d, sampler=heun(steps)).sample
        with pytest.raises(ValueError, match=rf"with {steps} steps ln SNR rises by .*beyond 6: take more steps, or"):
            jax.jit(sample)(PARAMS, jax.random.key(0))


def test_a_trajectory():
    """It starts from noise, ends at the draw but for the observation's noise, and its xhat are the denoiser's."""
    ends = (-12.0, 4.0)
    d = denoiser(gaussian_noise(0.4), (3, 2), linear(*ends))
    model = diffusion(d, sampler=ddim(7))
    keys = jax.random.split(jax.random.key(0), 5)
    way = trajectories(d, ddim(7), 5)
    assert way.y.shape == (5, 3, 2) and way.zs.shape == (5, 8, 3, 2) and way.xs.shape == (5, 7, 3, 2)
    drawn = jax.jit(jax.vmap(functools.partial(model.sample, PARAMS)))(keys)
    np.testing.assert_allclose(drawn, way.y, rtol=1e-12)
    _, a, s = levels_of(ends, 7)
    a, s = a[:-1, None, None], s[:-1, None, None]
    np.testing.assert_allclose(way.xs, 0.4 * (a / (a**2 * 0.4 + s**2))[None] * way.zs[:, :-1], rtol=1e-9)
    _, a, s = levels_of(ends, 1)
    noise = (np.asarray(way.y - way.zs[:, -1] / a[1]) / (s[1] / a[1])).ravel()
    within(noise**2, 1.0)


@pytest.mark.parametrize(("steps", "taken"), [(6, 6), (None, 250)])
def test_steps_that_nobody_chose(steps, taken):
    """Those of the denoiser, and 250 in continuous time."""
    d = denoiser(gaussian_noise(1.0), (2,), linear(-6.0, 5.0), steps=steps)
    way = jax.eval_shape(functools.partial(trajectory, d, PARAMS, sampler=ancestral()), jax.random.key(0))
    assert way.zs.shape == (taken + 1, 2)


@pytest.mark.parametrize("make", [ancestral, ddim, heun, dpm_solver])
def test_sampling_is_one_loop_on_the_device(make):
    """One scan, nothing that asks the host, and a program whose size does not grow with the steps."""
    d = denoiser(gaussian_noise(1.0), (2,), linear(-6.0, 5.0))

    def traced(steps):
        return jax.make_jaxpr(functools.partial(trajectory, d, PARAMS, sampler=make(steps)))(jax.random.key(0))

    short, long = (primitives(traced(steps).jaxpr) for steps in (3, 300))
    assert short == long
    assert long.count("scan") == 1 and "while" not in long
    assert not any("callback" in name or "infeed" in name for name in long)


def primitives(jaxpr):
    """The names of all operations, those inside others included."""
    inner = [value for eqn in jaxpr.eqns for value in jax.tree.leaves(list(eqn.params.values()))]
    parts = [getattr(value, "jaxpr", value) for value in inner]
    return [eqn.primitive.name for eqn in jaxpr.eqns] + [
        name for part in parts if hasattr(part, "eqns") for name in primitives(part)
    ]


# Guidance


def test_guidance_mixes_with_and_without():
    """epshat = eps(z) + w (eps(z, c) - eps(z)), and xhat to match."""
    d = denoiser(network(lambda z, gamma, c: jnp.sin(z) * gamma + c**2 + 1), (2,), linear(-3.0, 3.0))
    z, c, level = jnp.array([0.3, -1.2]), jnp.array([2.0, 0.5]), d.level({}, jnp.float64(0.8))
    found = guided(d, PARAMS["gen"], c, 2.5)(z, level)
    noise = 1.8 * np.sin(z) + 1 + 2.5 * np.asarray(c) ** 2
    np.testing.assert_allclose(found.noise, noise, rtol=1e-12)
    np.testing.assert_allclose(level.alpha * found.x + level.sigma * found.noise, z, rtol=1e-12)


def test_guidance_of_a_learned_variance():
    """Without the condition at 0, with it at 1 and beyond, between them a straight line."""
    apply = lambda z, gamma, c: jnp.append(z, c.sum() - 1)  # noqa: E731
    d = denoiser(network(apply), (1,), linear(-3.0, 3.0), steps=2, variance="learned")
    z, c, level = jnp.ones(1), jnp.ones(1), d.level({}, jnp.float64(0.8))
    with_c, without = np.exp(7 * np.tanh(np.array([0.0, -1.0]) / 7)) / (1 + np.exp(-1.8))
    for w, part in ((0.0, 0.0), (0.25, 0.25), (1.0, 1.0), (4.0, 1.0)):
        variance = guided(d, PARAMS["gen"], c, w)(z, level).variance
        np.testing.assert_allclose(variance, without + part * (with_c - without), rtol=1e-12)


@pytest.mark.parametrize("make", [ancestral, dpm_solver])
def test_guidance_of_a_gaussian(make):
    """Data N(c, v), and N(0, v) without c: the flow with guidance w is that of N(w c, v), sample for sample.

    So guidance 1 is none, and guidance 0 ignores c.
    """
    d = denoiser(gaussian_noise(0.3), (1,), linear(-6.0, 5.0))
    key, c = jax.random.key(3), jnp.array([0.7])

    draw = {w: jax.jit(diffusion(d, sampler=make(5), guidance=w).sample) for w in (0.0, 1.0, 3.0)}
    for w, sample in draw.items():
        np.testing.assert_allclose(sample(PARAMS, key, c), draw[1.0](PARAMS, key, w * c), rtol=1e-10)
    np.testing.assert_allclose(draw[0.0](PARAMS, key, c), draw[0.0](PARAMS, key, -4 * c), rtol=1e-12)
    assert abs(draw[3.0](PARAMS, key, c) - draw[1.0](PARAMS, key, c)) > 0.5


# The exact likelihood


def of_each(d, ys, **options):
    one = jax.jit(jax.vmap(functools.partial(log_likelihood, d, PARAMS, jax.random.key(0), **options)))
    return np.asarray(one(jnp.asarray(ys)))


@pytest.mark.parametrize(("v", "process", "steps"), [(0.2, variance_preserving, 1), (3.0, variance_exploding, None)])
def test_likelihood_of_a_gaussian(v, process, steps):
    """The flow is linear, and takes N(0, I) at t = 1 to N(0, (v + tau_0^2) / (a_1^2 v + s_1^2)).

    The steps of the denoiser's own chain are not those of the flow.
    """
    ends, ys = (-3.0, 2.0), np.array([[0.1, -0.4], [1.5, 0.3], [-2.0, 2.5]])
    d = denoiser(gaussian_noise(v), (2,), linear(*ends), process=process, steps=steps)
    _, a, s = levels_of(ends, 1)
    variance = (v + (s[1] / a[1]) ** 2) / (a[0] ** 2 * v + s[0] ** 2)
    exact = norm.logpdf(ys, 0, np.sqrt(variance)).sum(axis=1)
    np.testing.assert_allclose(of_each(d, ys, tolerance=1e-8), exact, atol=1e-6)


@pytest.mark.parametrize(
    ("gamma_0", "observation", "middle", "half"), [(-2.0, continuous(), 0, 1), (-8.0, continuous(3.0, 7.0), 5, 2)]
)
def test_likelihood_of_a_mixture(gamma_0, observation, middle, half):
    """It is the density of the data with the noise of the first level on top, per unit of the data's range."""
    d = denoiser(mixture_noise(DIAGONAL), (2,), linear(gamma_0, 16.0), observation=observation)
    xs = np.array([[0.9, 0.8], [-0.5, -0.7], [0.2, 0.1], [1.5, -1.0]])
    exact = DIAGONAL.log_density(xs, blur=np.exp(gamma_0)) - 2 * np.log(half)
    found = of_each(d, middle + half * xs, tolerance=1e-7)
    np.testing.assert_allclose(found, exact, atol=2e-3)  # a_1 = 3e-4 of the data is left


def test_likelihood_integrates_to_one():
    """Whatever the network says, a flow keeps the mass."""
    d = denoiser(network(lambda z, gamma: z * jax.nn.sigmoid(gamma) + jnp.sin(2 * z + gamma)), (1,), linear(-4.0, 3.0))
    grid = np.linspace(-12, 12, 1201)
    density = np.exp(of_each(d, grid[:, None], tolerance=1e-6))
    assert trapezoid(density, grid) == pytest.approx(1, abs=1e-4)
    assert density.max() > 0.2 and density[[0, -1]].max() < 1e-6


def test_probes_are_unbiased():
    """epshat = s A z, a flow by the exponential of a matrix: 300 times two probes, 5 standard errors.

    The Jacobian is not diagonal, so that each probe errs.
    """
    ends, matrix, y = (-2.0, 4.0), np.array([[1.5, 0.2], [0.1, 1.9]]), np.array([0.3, -0.1])
    d = denoiser(network(lambda z, gamma: parts_of(gamma)[1] * (jnp.asarray(matrix) @ z)), (2,), linear(*ends))
    time = 0.5 * (np.log1p(np.exp(ends[1])) - np.log1p(np.exp(ends[0])))
    a = 1 / np.sqrt(1 + np.exp(ends[0]))
    end = expm(time * (matrix - np.eye(2))) @ (a * y)
    exact = norm.logpdf(end).sum() + time * (np.trace(matrix) - 2) + 2 * np.log(a)
    one = functools.partial(log_likelihood, d, PARAMS, probes=2)
    drawn = jax.jit(jax.vmap(one, in_axes=(0, None)))(jax.random.split(jax.random.key(1), 300), jnp.asarray(y))
    assert np.std(drawn) > 0.05
    within(drawn, exact)


def test_range_of_the_data():
    """Data in [low, high] are those in [-1, 1] in other units."""
    plain, ranged = (
        denoiser(mixture_noise(DIAGONAL), (2,), linear(-6.0, 5.0), observation=observation)
        for observation in (continuous(), continuous(3.0, 7.0))
    )
    draws = [trajectories(d, dpm_solver(6), 3).y for d in (plain, ranged)]
    np.testing.assert_allclose(draws[1], 5 + 2 * draws[0], rtol=1e-12)


# What is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: ancestral(0), "at least one step; got 0"),
        (lambda d: ddim(0), "at least one step; got 0"),
        (lambda d: heun(-1), "at least one step; got -1"),
        (lambda d: dpm_solver(0), "at least one step; got 0"),
        (lambda d: dpm_solver(2.5), "at least one step; got 2.5: a whole number is wanted"),
        (lambda d: ancestral(4.0), "at least one step; got 4.0"),
        (lambda d: heun(True), "at least one step; got True"),
        (lambda d: ddim(5, eta=1.5), r"eta .* in \[0, 1\]; got 1.5"),
        (lambda d: ddim(5, eta=float("nan")), r"eta .* in \[0, 1\]; got nan"),
        (lambda d: diffusion(d, guidance=-1.0), "cannot be negative; got -1"),
        (
            lambda d: diffusion(d, sampler=ddim(2), guidance=2.0).sample(PARAMS, jax.random.key(0)),
            "guidance=2.0 weighs a condition, and none is given",
        ),
        (lambda d: log_likelihood(d, PARAMS, jax.random.key(0), jnp.zeros(1), probes=0), "at least 1; got 0"),
        (lambda d: log_likelihood(d, PARAMS, jax.random.key(0), jnp.zeros(1), probes=1.5), "at least 1; got 1.5"),
        (lambda d: log_likelihood(d, PARAMS, jax.random.key(0), jnp.zeros(1), most_steps=0), ">= 1, .* got 0 and"),
        (lambda d: log_likelihood(d, PARAMS, jax.random.key(0), jnp.zeros(1), tolerance=0.0), "got 4096 and 0.0"),
        (
            lambda d: log_likelihood(d._replace(observation=discrete(4)), PARAMS, jax.random.key(0), jnp.zeros(1)),
            "data are levels, which have probabilities",
        ),
        (lambda d: continuous(1.0, 1.0), "needs low < high"),
        (lambda d: continuous(low=1.0), "needs low < high"),
    ],
)
def test_what_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(denoiser(gaussian_noise(1.0), (1,), linear(-6.0, 5.0)))
