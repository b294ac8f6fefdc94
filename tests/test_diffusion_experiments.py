"""`python -m experiments.diffusion` and `experiments.latent_diffusion`: they run, report, and refuse what cannot be."""

import pytest
from reopened import check_reopened, evaluations
from reported import check_report

from experiments import diffusion, latent_diffusion

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.mark.parametrize(
    "options",
    [
        {
            "network": "mlp",
            "width": 16,
            "size": (14, 14),
            "repeat": 2,
            "keep": "last",
            "steps": 5,
            "sampler": "ancestral",
        },
        {},
        {
            "data": "emoji_mini",
            "conditional": True,
            "guidance": 2.0,
            "schedule": "learned",
            "likelihood": "continuous",
            "objective": "bound",
            "prediction": "noise",
            "sampler": "ddim",
        },
    ],
)
def test_diffusion(tmp_path, options, monkeypatch):
    config = diffusion.Config(out=str(tmp_path), smoke=True, **options)
    seen = evaluations(monkeypatch, diffusion)
    numbers = diffusion.main(config)
    check_reopened(tmp_path, seen, config.keep)
    check_report(tmp_path, config, numbers, ("Samples", "The denoising chain", "The fixed encoder", "Learning curve"))
    assert (tmp_path / "samples.png").stat().st_size > 1000
    parts = numbers["diffusion"] + numbers["prior"] + numbers["reconstruction"]
    assert numbers["test bound"] == pytest.approx(parts, rel=1e-4)
    assert numbers["updates skipped"] == 0


def test_guidance_wants_labels(tmp_path):
    with pytest.raises(ValueError, match="pass --conditional"):
        diffusion.main(diffusion.Config(out=str(tmp_path), smoke=True, guidance=2.0))


def test_a_size_that_the_u_net_cannot_halve(tmp_path):
    with pytest.raises(ValueError, match="multiples of 4"):
        diffusion.main(diffusion.Config(out=str(tmp_path), smoke=True, size=(30, 30)))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("joint", [False, True])
def test_latent_diffusion(tmp_path, joint, monkeypatch):
    """Two stages leave encoder and generator alone: what changes is the rate."""
    config = latent_diffusion.Config(out=str(tmp_path), smoke=True, joint=joint)
    seen = evaluations(monkeypatch, latent_diffusion)
    numbers = latent_diffusion.main(config)
    check_reopened(tmp_path, seen)
    check_report(tmp_path, config, numbers, ("Samples", "Codes and priors", "Learning curve"))
    parts = numbers["of it at z"] + numbers["of it diffusion"] + numbers["of it the end"]
    assert numbers["rate"] == pytest.approx(parts, rel=1e-4)
    if not joint:
        gained = numbers["rate, N(0, I)"] - numbers["rate"]
        assert numbers["gain"] == pytest.approx(gained, rel=1e-3, abs=1e-2)
