"""`python -m experiments.linear_vae`: it runs, reports, and meets the closed forms of probabilistic PCA."""

import dataclasses

import jax
import numpy as np
import pytest
from reopened import check_reopened, evaluations

from experiments import linear_vae, linear_ways
from experiments.shared.linear import load_blocks
from vae_jax.command.cosine_adam import Training

TRAINING = Training(epochs=60, batch_size=50, learning_rate=0.02)


pytestmark = pytest.mark.usefixtures("quickly_compiled")


def data_with_variances(values, n=1000):
    """(n, d) whose covariance has exactly these eigenvalues, in directions of no importance."""
    rng = np.random.default_rng(0)
    ys = rng.normal(size=(n, len(values)))
    white = np.linalg.qr(ys - ys.mean(axis=0)[None])[0] * np.sqrt(n)
    axes = np.linalg.qr(rng.normal(size=(len(values),) * 2))[0]
    return (white * np.sqrt(values)[None] @ axes.T).astype(np.float32)


def test_smoke(tmp_path, capsys, monkeypatch):
    config = linear_vae.Config(out=str(tmp_path), smoke=True)
    seen = evaluations(monkeypatch, linear_ways, "evaluate")
    numbers = linear_vae.main(config)
    check_reopened(tmp_path, seen)
    assert np.isfinite(list(numbers.values())).all()
    assert abs(numbers["closed form - EM"]) < 1e-3
    assert 0 < numbers["closed form - ELBO"] < 0.3
    assert numbers["ELBO, linear VAE"] == pytest.approx(numbers["ln p, closed form"] - numbers["closed form - ELBO"])
    printed, page = capsys.readouterr().out, (tmp_path / "report.html").read_text()
    assert "theory for a linear model predicts 0" in printed and "theory for a linear model predicts 0" in page
    titles = ("Three ways to one optimum", "Directions", "Collapse as beta grows")
    for word in (*titles, *(field.name for field in dataclasses.fields(config))):
        assert word in page, word
    assert page.count("<img ") == 4


def test_three_ways_to_a_known_optimum():
    """Eigenvalues (4, 2, 1, .5, .5), two units: ln p = -7.52621577 and sigma^2 = 2/3 (Tipping & Bishop 1999)."""
    ys = data_with_variances([4, 2, 1, 0.5, 0.5])
    ways = linear_ways.three_ways(ys, 2, jax.random.key(0), TRAINING)
    assert ways.top == pytest.approx(-7.52621577, abs=1e-4)
    assert ways.em[-1] == pytest.approx(ways.top, abs=1e-3)
    assert -1e-4 < ways.gap.value < 0.02
    for way, sigma in ways.sigma.items():
        assert sigma**2 == pytest.approx(2 / 3, rel=0.02), way
        assert linear_ways.angle(ways.loadings["closed form"], ways.loadings[way]) < 2
    # W'W is the same for EM up to a rotation, and diagonal for the VAE
    squares = {way: loadings.T @ loadings for way, loadings in ways.loadings.items()}
    np.testing.assert_allclose(np.linalg.eigvalsh(squares["EM"]), np.array([4 / 3, 10 / 3]), rtol=0.01)
    np.testing.assert_allclose(np.sort(np.diag(squares["linear VAE"])), np.array([4 / 3, 10 / 3]), rtol=0.05)
    assert abs(squares["linear VAE"][0, 1]) < 0.1


def test_collapse_is_as_predicted():
    """The same data, sigma^2 = 0.7: three directions and 1.57473319 nats at beta 1; two and 0.70324853 at beta 2."""
    config = linear_vae.Config(
        betas=(2.0, 1.0), sigma=0.7**0.5, epochs=TRAINING.epochs, batch_size=50, learning_rate=0.02
    )
    one, two = linear_vae.sweep(config, data_with_variances([4, 2, 1, 0.5, 0.5]), jax.random.key(0))
    assert (one.beta, two.beta) == (1.0, 2.0)
    assert (one.active, two.active) == (one.theory.active, two.theory.active) == (3, 2)
    assert (one.theory.rate, two.theory.rate) == pytest.approx((1.57473319, 0.70324853), abs=1e-5)
    assert one.rate.value == pytest.approx(1.57473319, abs=0.02)
    assert two.rate.value == pytest.approx(0.70324853, abs=0.02)


def test_blocks_are_means_in_their_place(tmp_path):
    """4 x 4 images to 2 x 2 blocks: the plain loop, centred, on one scale."""
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", train_image=images, test_image=images)
    ys, _ = load_blocks(str(tmp_path / "images.npz"), 2)
    corners = [(i, j) for i in (0, 2) for j in (0, 2)]
    wanted = np.stack([images[:, i : i + 2, j : j + 2].mean(axis=(1, 2)) for i, j in corners], axis=1)
    wanted = wanted - wanted.mean(axis=0)[None]
    np.testing.assert_allclose(ys, wanted / np.sqrt(np.mean(wanted**2)), atol=1e-5)


def test_angles_by_hand():
    first, second, third = np.eye(3)
    plane = np.stack([first, second], axis=1)
    tilted = np.stack([first, second + third], axis=1)
    assert linear_ways.angle(plane, 3 * plane[:, ::-1]) == pytest.approx(0, abs=1e-6)
    assert linear_ways.angle(plane, tilted) == pytest.approx(45)
    assert linear_ways.angle(plane, np.stack([first, third], axis=1)) == pytest.approx(90)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"betas": ()}, "at least one beta"),
        ({"sigma": 0.0}, "want sigma > 0"),
        ({"passes": 0}, "want passes and epochs >= 1"),
        ({"side": 5}, "side=5: images of 28 x 28 pixels"),
        ({"batch_size": 5001}, "batch_size=5001: there are 5000 images"),
        ({"latent": 16}, "1 <= latent < D"),
    ],
)
def test_what_cannot_be_run_is_an_error_in_words(options, message):
    with pytest.raises(ValueError, match=message):
        linear_vae.main(linear_vae.Config(**options))
