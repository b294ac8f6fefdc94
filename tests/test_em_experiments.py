"""`python -m experiments.em_mixture` and `experiments.gmm_prior`: they run, report, and say what theory says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reopened import check_reopened, evaluations
from reported import check_report

from experiments import em_mixture, em_routes, gmm_prior
from vae_jax.command.cosine_adam import Training
from vae_jax.data import unit_scale

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def test_em_mixture(tmp_path, monkeypatch):
    config = em_mixture.Config(data="fashion_mnist_mini", out=str(tmp_path), smoke=True)
    seen = evaluations(monkeypatch, em_mixture, "evaluate")
    numbers = em_mixture.main(config)
    check_reopened(tmp_path, seen)
    check_report(tmp_path, config, numbers, ("The climb", "Components", "Samples", "Four routes to one mixture"))
    assert numbers["test ln p"] > numbers["test ln p of one Gaussian"]  # by 4.5 nats, 10 standard errors
    assert 0.3 < numbers["class purity"] <= 1  # chance: 0.1


def test_gmm_prior(tmp_path, monkeypatch):
    """Encoder and generator are the same, so the distortion is, and all that is gained is rate."""
    config = gmm_prior.Config(out=str(tmp_path), smoke=True)
    seen = evaluations(monkeypatch, gmm_prior)
    numbers = gmm_prior.main(config)
    check_reopened(tmp_path, seen)
    check_report(tmp_path, config, numbers, ("Samples", "Codes and priors", "The climb of EM"))
    assert numbers["gain"] > 0  # by 6.8 nats, 12 standard errors
    assert numbers["distortion after"] == pytest.approx(numbers["distortion before"], rel=1e-6)
    assert numbers["rate before"] - numbers["rate after"] == pytest.approx(numbers["gain"], abs=1e-3)
    assert numbers["test ELBO after"] - numbers["test ELBO before"] == pytest.approx(numbers["gain"], abs=1e-3)


def test_the_routes_end_at_one_optimum():
    """Three clusters on a line: EM, VAE and gradient meet; hard EM ends below in ln p, above in its own bound."""
    rng = np.random.default_rng(0)
    ys = (rng.normal(size=(300, 1)) + 3.0 * rng.integers(0, 3, (300, 1))).astype(np.float32)
    routes = em_routes.four_routes(ys, 3, jax.random.key(1), Training(60, 50, 0.05))
    end = {name: values[-1] for name, values in routes.log_p.items()}
    starts = [values[0] for values in routes.log_p.values()]
    assert np.ptp(starts) == 0
    assert (np.diff(routes.log_p[em_routes.EM]) > -1e-5).all()
    assert end[em_routes.VAE] == pytest.approx(end[em_routes.EM], abs=3e-3)
    assert end[em_routes.GRADIENT] == pytest.approx(end[em_routes.EM], abs=3e-3)
    assert routes.elbo <= end[em_routes.VAE] + 1e-5
    assert end[em_routes.HARD] < end[em_routes.EM]
    assert routes.best[em_routes.HARD] > routes.best[em_routes.EM]


def test_principal_components_keep_what_varies():
    """Images in a plane of two directions: two components give them back; the coordinates are centred, uncorrelated."""
    rng = np.random.default_rng(0)
    base, first, second = rng.integers(0, 80, (3, 4, 4, 1))
    ys = (base + first * rng.integers(0, 2, (50, 1, 1, 1)) + second * rng.integers(0, 2, (50, 1, 1, 1))).astype(
        np.uint8
    )
    projection = em_mixture.principal_components(ys, 2)
    zs = jax.vmap(lambda y: projection.preprocess().apply(jax.random.key(0), y))(jnp.asarray(ys))
    assert projection.kept == pytest.approx(1, abs=1e-4)
    exact = jax.vmap(lambda y: unit_scale().apply(jax.random.key(0), y))(jnp.asarray(ys))
    np.testing.assert_allclose(projection.images(np.asarray(zs)), exact, atol=1e-4)
    covariance = np.cov(np.asarray(zs).T)
    assert abs(covariance[0, 1]) < 1e-4 and covariance[0, 0] >= covariance[1, 1]
    np.testing.assert_allclose(np.asarray(zs).mean(axis=0), 0, atol=1e-5)


def test_purity_by_hand():
    """Component 0 is of class 1, component 1 of class 0: three of four test images are in one of theirs."""
    members, labels = np.array([0, 0, 0, 1, 1]), np.array([1, 1, 0, 0, 0])
    value, _ = em_mixture.purity(members, labels, np.array([0, 1, 1, 0]), np.array([1, 0, 1, 1]))
    assert value == 0.75


@pytest.mark.parametrize(
    ("main", "config", "message"),
    [
        (
            em_mixture.main,
            em_mixture.Config(data="fashion_mnist_mini", dimensions=800),
            "dimensions=800: 5000 images of",
        ),
        (em_mixture.main, em_mixture.Config(data="no/such/file.npz"), "does not exist"),
        (gmm_prior.main, gmm_prior.Config(latent=1), "latent=1"),
    ],
)
def test_what_cannot_be_run_is_an_error_in_words(main, config, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        main(config)
