"""Fixed-encoder training: a VAE is trained, then its prior is fitted by EM to the codes of the training images.

    python -m experiments.gmm_prior           # Fashion-MNIST mini, 16 latents, 20 epochs, then 20 Gaussians
    python -m experiments.gmm_prior --help    # every option

The prior after is a mixture of Gaussians of full covariance. Encoder and generator stay as they are: so the distortion
is the same, and the rate falls by what KL(aggregate posterior || prior) loses. `vae_jax.open_run` opens the VAE after.

Expected with the default settings (1,000 test images, dynamic binarisation): test ELBO -252.5 ± 2.4 nats before and
-247.8 ± 2.5 after, a gain of 4.73 ± 0.11 image by image; distortion 235.3 ± 2.4 both times.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import vae_jax
from experiments.shared import two_stages
from experiments.shared.two_stages import FirstStage
from vae_jax import Evaluation, core
from vae_jax.command import publish
from vae_jax.command.config import checked, read_back
from vae_jax.command.image_report import Pictured, draw_samples
from vae_jax.command.images import load_splits
from vae_jax.command.placement import evaluate_on
from vae_jax.command.results import over_batch
from vae_jax.data import Preprocess
from vae_jax.em import FittedEM, fit_em, mixture_of_gaussians
from vae_jax.evaluation import mean
from vae_jax.report import page, pictures


@dataclasses.dataclass(frozen=True)
class Config(FirstStage):
    """Train a VAE, fit its prior to its codes by EM, and report what changes."""

    components: int = 20
    """Gaussians in the prior after, each with a full covariance."""
    draws: int = 10
    """Codes drawn for each training image: the prior is fitted to all of them."""
    iterations: int = 200
    """Iterations of EM, at most."""
    out: str = "runs/gmm_prior"


def build(config: Config, shape: tuple[int, ...]) -> tuple[vae_jax.Model, Pictured]:
    """The VAE with the prior after, and the same for pictures."""
    return two_stages.build(config, shape, mixture_of_gaussians(config.latent, config.components, "full"))


def rebuild(*, shape: Sequence[int], **fields: Any) -> tuple[vae_jax.Model, Preprocess]:
    """For `vae_jax.open_run`."""
    model, pictured = build(read_back(Config, fields), tuple(shape))
    return model, pictured.preprocess


def table(before: Evaluation, after: Evaluation, components: int, n: int) -> list[page.Row]:
    """ELBO, rate and distortion with both priors; the gain is taken image by image."""
    where = f"nats per image, {n} test images, {before.convention}"
    mixture = f"prior: {components} Gaussians fitted by EM"
    return [
        page.Row("test ELBO before", *mean(before.elbo), f"{where}; prior: N(0, I); higher is better"),
        page.Row("test ELBO after", *mean(after.elbo), f"the same; {mixture}"),
        page.Row("gain", *mean(after.elbo - before.elbo), "nats; ELBO after less before, image by image"),
        page.Row("rate before", *mean(before.rate), "nats; ln enc(z|y) - ln pri(z)"),
        page.Row("rate after", *mean(after.rate), "nats; with the fitted prior"),
        page.Row("distortion before", *mean(before.distortion), "nats; -ln gen(y|z), ln Z included"),
        page.Row("distortion after", *mean(after.distortion), "nats; the same codes, the same generator"),
    ]


def sections(samples: dict[str, np.ndarray], fitted: FittedEM, drawn: dict[str, np.ndarray]) -> list[page.Section]:
    """Samples with both priors, the codes beside draws of both priors, and the climb of EM."""
    climb = {"codes of the training images": (np.arange(len(fitted.history)), fitted.history)}
    return [
        two_stages.samples_section(
            samples, "z from the prior, then the generator's mean: before with N(0, I), after with the mixture."
        ),
        two_stages.codes_section(
            drawn,
            np.asarray(fitted.params["gen"]["means"]),
            f"{', '.join(drawn)}, in the plane in which the components' means lie farthest apart: the root of the "
            "density, on one scale; then the densities along the two axes of that plane.",
        ),
        page.Section(
            "The climb of EM",
            "Mean ln p of the codes under the mixture, from its k-means start.",
            [page.Picture(pictures.curves(climb, x="iteration", y="ln p, nats per code"), "ln p by iteration")],
        ),
    ]


@publish.timed
def main(config: Config) -> dict[str, Any]:
    """Train, fit the prior, evaluate with both, report; returns the numbers of the table.

    Raises:
        ValueError: fewer than two latent dimensions, or options that do not fit the data.
    """
    config = checked(config)
    if config.smoke:
        config = dataclasses.replace(config, epochs=2, components=2, iterations=10)
    train, valid, test, source = load_splits(config.data, smoke=config.smoke)
    key = jax.random.key(config.seed)
    k_fit, k_codes, k_em, k_evaluate, k_pictures, k_before, k_after = jax.random.split(key, 7)

    standard = vae_jax.standard_normal(config.latent)
    mixture = mixture_of_gaussians(config.latent, config.components, "full")
    before, shown_before = two_stages.build(config, train.ys.shape[1:], standard)
    after, shown_after = build(config, train.ys.shape[1:])
    prepare = shown_before.preprocess
    trained = two_stages.train_first(config, before, prepare, train, valid, k_fit)
    codes = two_stages.codes_of(shown_before, trained.params, k_codes, train, config.draws)
    fitted = fit_em(mixture, codes, key=k_em, iterations=config.iterations)
    params = {**trained.params, "pri": fitted.params}

    publish.save(config, rebuild, params, train.ys[0], history=trained.history, shape=train.ys.shape[1:])

    # The same key: the same codes with both priors.
    result_before = evaluate_on(config, before, trained.params, k_evaluate, test.ys, preprocess=prepare)
    result_after = evaluate_on(config, after, params, k_evaluate, test.ys, preprocess=prepare)
    samples = {
        name: draw_samples(pictured, chosen, k_pictures, None)
        for name, pictured, chosen in (("before", shown_before, trained.params), ("after", shown_after, params))
    }
    drawn = {"codes": codes}
    for name, prior, chosen, k in (("N(0, I)", standard, {}, k_before), ("mixture", mixture, fitted.params, k_after)):
        drawn[name] = over_batch(core.lift(prior).sample, chosen, jax.random.split(k, len(codes)))
    return publish.write(
        "gmm_prior",
        config,
        title="A prior fitted by EM to the codes of a VAE",
        lead=(
            f"{config.latent} latent dimensions, {config.likelihood} likelihood, {len(train.ys)} training images, "
            f"{config.epochs} epochs; then {config.components} Gaussians of full covariance on {len(codes)} codes, "
            f"{len(fitted.history) - 1} iterations of EM. Data: {source.source}."
        ),
        table=table(result_before, result_after, config.components, len(test.ys)),
        sections=sections(samples, fitted, drawn),
    )


if __name__ == "__main__":
    publish.run(main, Config)
