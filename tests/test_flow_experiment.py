"""`python -m experiments.flow`: it runs and reports; its toys have the entropy that theory gives them."""

import dataclasses

import jax
import numpy as np
import pytest
from reopened import check_reopened, evaluations

from experiments import flow
from vae_jax.evaluation import mean

pytestmark = pytest.mark.usefixtures("quickly_compiled")


def test_flow(tmp_path, monkeypatch):
    """A flow, and a VAE with a flow, on the default toy."""
    config = flow.Config(models=("flow", "iaf-encoder"), out=str(tmp_path), smoke=True)
    seen = evaluations(monkeypatch, flow)
    numbers = flow.main(config)
    assert check_reopened(tmp_path, seen).model.latent is None
    check_reopened(tmp_path / "iaf-encoder", seen)
    assert np.isfinite(list(numbers.values())).all()
    assert numbers["iaf-encoder: ELBO"] < numbers["iaf-encoder: IWAE"]
    for name, number in (("flow", "ln p"), ("iaf-encoder", "IWAE")):
        below = numbers["truth: ln p"] - numbers[f"{name}: {number}"]
        assert numbers[f"{name}: below the truth"] == pytest.approx(below, abs=1e-5)
        assert below > 0
    page = (tmp_path / "report.html").read_text()
    titles = ("Densities", "Draws", "Learning curves")
    for word in (*titles, *(field.name for field in dataclasses.fields(config))):
        assert word in page, word


def test_all_models_start_alike():
    """At its start a flow is its base: with the same key, the same VAE with or without one has the same terms."""
    models, y, key = flow.build(flow.Config(layers=2), 2), np.ones(2, np.float32), jax.random.key(0)
    assert tuple(models) == flow.Config().models
    nets = jax.jit(models["vae"].init)(key, y)
    flows = {name: jax.jit(models[name].init)(key, y) for name in ("flow-prior", "iaf-encoder")}
    params = {
        "vae": nets,
        "flow-prior": {**nets, "pri": flows["flow-prior"]["pri"]},
        "iaf-encoder": {**nets, "enc": {**flows["iaf-encoder"]["enc"], "base": nets["enc"]}},
    }
    nats = [float(jax.jit(models[name].terms)(params[name], key, y).nats) for name in params]
    assert nats == pytest.approx([nats[0]] * 3, abs=1e-4)


def test_images(tmp_path):
    """16 means of blocks of images, by RealNVP alone: no truth to compare with, and no density to draw."""
    options = {"models": ("flow",), "flow": "coupling", "smoke": True}
    numbers = flow.main(flow.Config(data="fashion_mnist_mini", out=str(tmp_path), **options))
    assert list(numbers) == ["flow: ln p"] and np.isfinite(numbers["flow: ln p"])
    page = (tmp_path / "report.html").read_text()
    assert "Draws" in page and "Densities" not in page


@pytest.mark.parametrize("name", flow.toys())
def test_toys(name):
    """The density has mass 1; draws cost the entropy, within 5 standard errors."""
    toy = flow.toys()[name]
    points, area = flow.plane(120)
    assert np.exp(toy.log_density(points)).sum() * area == pytest.approx(1, abs=1e-4)
    cost = mean(-toy.log_density(toy.draw(jax.random.key(0), 5_000)))
    assert cost.value == pytest.approx(toy.entropy, abs=5 * cost.standard_error)


def test_entropy_of_separate_gaussians():
    """Eight that do not overlap: ln 8 + ln(2 pi e sigma^2)."""
    toy = flow.toys()["gaussians"]._replace(std=0.1)
    assert toy.entropy == pytest.approx(np.log(8) + np.log(2 * np.pi * np.e * 0.01), abs=1e-4)


def test_the_plane_is_a_picture():
    """Row by row from the top left."""
    points, area = flow.plane(2)
    half = flow.REACH / 2
    np.testing.assert_allclose(points, [[-half, half], [half, half], [-half, -half], [half, -half]])
    assert area == flow.REACH**2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": ()}, "at least one model"),
        ({"k": 0}, "k >= 5"),
        ({"layers": 0}, "want size, layers and widths >= 1; got 2, 0"),
        ({"latent": 1, "flow": "coupling"}, "at least 2 dimensions"),
        ({"batch_size": 20_000}, "batch_size=20000"),
    ],
)
def test_what_cannot_be_run_is_an_error_in_words(options, message):
    with pytest.raises(ValueError, match=message):
        flow.main(flow.Config(**options))
