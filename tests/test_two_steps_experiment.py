"""`python -m experiments.two_steps`: it runs and reports, and a diffusion recovers a density that is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reopened import check_reopened, evaluations
from reported import check_report
from scipy.stats import multivariate_normal

from experiments import two_steps
from vae_jax.evaluation import mean

ONE = "one VAE"
CHAINS = ("chain, trained encoders", "chain, fixed encoders")


def true_log_p(config, ys, alpha=1.0, sigma=0.0):
    """scipy: (n,) ln p of alpha y + sigma eps for y on the ring, float64."""
    angles = np.arange(config.components) * 2 * np.pi / config.components
    means = alpha * np.sqrt(2 - 2 * config.std**2) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    covariance = ((alpha * config.std) ** 2 + sigma**2) * np.eye(2)
    return np.log(np.mean([multivariate_normal(m, covariance).pdf(ys) for m in means], axis=0))


def test_a_small_diffusion_recovers_the_density():
    """Three Gaussians, 2,000 test points: bound, exact likelihood of the flow and entropy agree to 0.05 nats.

    The excess is taken point by point, with standard errors below 0.01 and 0.02. A single Gaussian would miss 0.7 nats.
    """
    config = two_steps.Config(
        components=3, std=0.4, train=20_000, epochs=120, learning_rate=4e-3, denoiser_hidden=(128, 128), times=64
    )
    ys, test = (two_steps.points(config, jax.random.key(seed), n) for seed, n in ((0, 20_000), (1, 2000)))
    result, _, _ = two_steps.of_diffusion(config, jax.random.key(2), ys, test)
    log_p = true_log_p(config, test)
    likelihood, bound = mean(log_p - result.log_p), mean(log_p - result.evaluation.elbo)
    assert likelihood.standard_error < 0.01 and bound.standard_error < 0.02
    assert -3 * likelihood.standard_error < likelihood.value < 0.05
    assert -3 * bound.standard_error < bound.value < 0.05
    entropy = -true_log_p(config, ys).mean()  # of 20,000 points, a standard error of 0.007
    assert -result.log_p.mean() == pytest.approx(entropy, abs=0.05 + 5 * 0.024)
    drawn = true_log_p(config, result.draws)
    assert -drawn.mean() == pytest.approx(entropy, abs=0.05)  # draws off the ring would cost far more


def test_the_ring_and_its_denoiser():
    """ln p as scipy has it, unit variance, and E[eps|z] as minus sigma times the slope of scipy's ln p of z."""
    config = two_steps.Config(components=5, std=0.3)
    points = np.array([[0.3, -1.0], [1.4, 0.1], [-0.2, 0.5]])
    np.testing.assert_allclose(two_steps.true_log_p(config, points), true_log_p(config, points), rtol=1e-5)
    draws = two_steps.points(config, jax.random.key(0), 20_000)
    np.testing.assert_allclose(np.cov(draws.T), np.eye(2), atol=0.05)  # 5 standard errors

    gamma = jnp.float32(-0.7)
    a, s = 1 / np.sqrt(1 + np.exp(-0.7)), 1 / np.sqrt(1 + np.exp(0.7))
    slope = [
        (true_log_p(config, points + e, a, s) - true_log_p(config, points - e, a, s)) / 2e-4 for e in 1e-4 * np.eye(2)
    ]
    denoise = jax.jit(jax.vmap(two_steps.exact_denoiser(config).apply, in_axes=(None, 0, None)))
    noise = denoise({}, jnp.asarray(points), gamma)
    np.testing.assert_allclose(noise, -s * np.transpose(slope), atol=1e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (two_steps.Config(components=0), "components >= 1"),
        (two_steps.Config(std=1.0), "0 < std < 1"),
        (two_steps.Config(noise=(1.0, -1.0)), "rising"),
        (two_steps.Config(noise=()), "at least one"),
    ],
)
def test_what_cannot_be_run_is_an_error_in_words(config, message):
    with pytest.raises(ValueError, match=message):
        two_steps.main(config)


def test_two_steps(tmp_path, quickly_compiled, monkeypatch):
    config = two_steps.Config(out=str(tmp_path), smoke=True)
    seen = evaluations(monkeypatch, two_steps)
    numbers = two_steps.main(config)
    for folder in ("", "chain, fixed encoders"):
        check_reopened(tmp_path / folder, seen)
    titles = ("Bounds", "Samples", "Marginals", "Diffusion", "Density", "Rates", "Training")
    check_report(tmp_path, config, numbers, titles)
    assert numbers["entropy of the data"] == pytest.approx(np.log(8) + np.log(2 * np.pi * np.e * 0.15**2), abs=0.02)
    for name in (ONE, *CHAINS, "diffusion"):
        assert numbers[f"{name}: KL"] > 0
    for name in (ONE, *CHAINS):
        assert numbers[f"{name}: KL"] < numbers[f"{name}: bound - H"]
