"""Latent diffusion: a diffusion as the prior of a VAE, trained on its codes with the encoder fixed, or with all of it.

    python -m experiments.latent_diffusion            # Fashion-MNIST mini: a VAE, then a diffusion on its codes
    python -m experiments.latent_diffusion --joint    # encoder, diffusion and generator together from the start
    python -m experiments.latent_diffusion --help     # every option

`vae(encoder, diffusion(denoiser), generator)` is one model, and its bound counts everything in nats: the distortion,
the encoder's rate and the steps of the diffusion. The same test codes with N(0, I) as the prior say what it gains.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import numpy as np

import vae_jax
from experiments.shared import two_stages
from experiments.shared.two_stages import FirstStage
from vae_jax import Evaluation, Fitted, core, nets
from vae_jax import diffusion as df
from vae_jax.command import publish
from vae_jax.command.config import Range, checked, read_back
from vae_jax.command.cosine_adam import Training
from vae_jax.command.image_report import Pictured, draw_samples
from vae_jax.command.images import load_splits
from vae_jax.command.placement import evaluate_on
from vae_jax.command.results import by_epoch, over_batch
from vae_jax.data import Preprocess
from vae_jax.evaluation import mean
from vae_jax.report import page, pictures


@dataclasses.dataclass(frozen=True)
class Config(FirstStage):
    """Train a VAE, train a diffusion as its prior, and report what changes."""

    joint: bool = False
    """Train all three parts together for all epochs, in place of two stages."""

    width: int = 256
    """Of the denoiser."""
    blocks: int = 3
    """Residual blocks of the denoiser."""
    start: Annotated[float, Range("below 5", lambda x: x < 5)] = -9.0
    """gamma = -ln SNR at t = 0: the noise has to be small beside the width of P_enc(z|y)."""
    prior_epochs: int = 100
    """Passes over the training data for the diffusion."""
    learning_rate: float = 1e-3
    """Of the diffusion, at its peak; it falls to 0 along a cosine."""
    steps: int = 100
    """Steps of the sampler (DPM-Solver++)."""
    times: int = 32
    """Times at which the bound of each test image is estimated."""
    out: str = "runs/latent_diffusion"


def denoiser_of(config: Config) -> df.Denoiser:
    """Of codes."""
    net = nets.DenoisingMLP(config.width, config.latent, config.blocks)
    return df.denoiser(net, (config.latent,), df.linear(config.start, 5.0))


def prior_of(config: Config) -> vae_jax.Model:
    """The diffusion as it is evaluated and drawn from."""
    times, sampler = df.times.stratified(config.times), df.dpm_solver(config.steps)
    return df.diffusion(denoiser_of(config), times=times, sampler=sampler)


def rebuild(*, shape: Sequence[int], **fields: Any) -> tuple[vae_jax.Model, Preprocess]:
    """For `vae_jax.open_run`."""
    config = read_back(Config, fields)
    model, pictured = two_stages.build(config, tuple(shape), prior_of(config))
    return model, pictured.preprocess


def table(before: Evaluation | None, after: Evaluation, n: int) -> list[page.Row]:
    """The bound of the whole and its parts, beside those with N(0, I)."""
    assert after.level_rate is not None
    where = f"nats per image, {n} test images, {after.convention}"
    rows = [page.Row("test ELBO", *mean(after.elbo), f"{where}; prior: a diffusion; higher is better")]
    if before is not None:
        rows += [
            page.Row("test ELBO, N(0, I)", *mean(before.elbo), "the same encoder and generator"),
            page.Row("gain", *mean(after.elbo - before.elbo), "nats; image by image"),
            page.Row("rate, N(0, I)", *mean(before.rate), "nats; ln enc(z|y) - ln N(z; 0, I)"),
        ]
    own, diffused, end = after.level_rate
    return [
        *rows,
        page.Row("rate", *mean(after.rate), "nats; ln enc(z|y) + the diffusion's bound on -ln pri(z)"),
        page.Row("of it at z", own, None, "nats; ln enc(z|y) - ln P(z|z_0): the step from the code to its first noise"),
        page.Row("of it diffusion", diffused, None, "nats; all steps of the diffusion"),
        page.Row("of it the end", end, None, "nats; what is left at t = 1, against N(0, I)"),
        page.Row("distortion", *mean(after.distortion), "nats; -ln gen(y|z), ln Z included"),
    ]


@publish.timed
def main(config: Config) -> dict[str, Any]:
    """Train, evaluate with both priors, report; returns the numbers of the table.

    Raises:
        ValueError: fewer than two latent dimensions, or options that do not fit the data.
    """
    config = checked(config)
    if config.smoke:
        config = dataclasses.replace(config, epochs=2, prior_epochs=2, width=32, blocks=1, steps=4, times=4)
    train, valid, test, source = load_splits(config.data, smoke=config.smoke)
    k_vae, k_prior, k_evaluate, k_pictures, k_codes, k_draws = jax.random.split(jax.random.key(config.seed), 6)

    denoiser, diffused = denoiser_of(config), prior_of(config)
    standard = vae_jax.standard_normal(config.latent)

    def with_prior(prior: Any) -> tuple[vae_jax.Model, Pictured]:
        return two_stages.build(config, train.ys.shape[1:], prior)

    def at(times: df.times.Times) -> vae_jax.Model:
        return with_prior(df.diffusion(denoiser, times=times))[0]

    spread = df.spread_times(at)
    model, pictured = with_prior(diffused)
    prepare = pictured.preprocess

    def train_all(model: vae_jax.Model, **options: Any) -> Fitted:
        """The parameters are the moving average."""
        how = Training(config.prior_epochs, min(128, len(train.ys)), config.learning_rate)
        seen: dict[str, Any] = {"objective": spread, "preprocess": prepare}
        return how.fit(config, model, train.ys, k_prior, **seen, clip_norm=10.0, ema_decay=0.999, **options)

    before = plain = None
    if config.joint:
        fitted = train_all(model)
    else:
        start, plain = with_prior(standard)
        trained = two_stages.train_first(config, start, prepare, train, valid, k_vae)
        second = core.start_from(model, {part: trained.params[part] for part in ("enc", "gen")})
        fitted = train_all(second, parts=("pri",))
        before = evaluate_on(config, start, trained.params, k_evaluate, test.ys, preprocess=prepare, samples=4)
    publish.save(config, rebuild, fitted.params, train.ys[0], history=fitted.history, shape=train.ys.shape[1:])
    after = evaluate_on(config, model, fitted.params, k_evaluate, test.ys, preprocess=prepare, samples=4)

    codes = two_stages.codes_of(pictured, fitted.params, k_codes, train, 1)
    keys = jax.random.split(k_draws, len(codes))
    drawn = {
        "codes": codes,
        "N(0, I)": over_batch(core.lift(standard).sample, {}, keys),
        "diffusion": over_batch(diffused.sample, fitted.params["pri"], keys),
    }
    samples = {"with the diffusion": draw_samples(pictured, fitted.params, k_pictures, None)}
    if plain is not None:
        samples = {"with N(0, I)": draw_samples(plain, fitted.params, k_pictures, None), **samples}
    how = "together" if config.joint else f"in two stages of {config.epochs} and {config.prior_epochs} epochs"
    return publish.write(
        "latent_diffusion",
        config,
        title="Latent diffusion",
        lead=(
            f"{config.latent} latent dimensions, {config.likelihood} likelihood, {len(train.ys)} training images; "
            f"VAE and diffusion trained {how}. Data: {source.source}."
        ),
        table=table(before, after, len(test.ys)),
        sections=sections(samples, drawn, fitted),
    )


def sections(samples: dict[str, np.ndarray], drawn: dict[str, np.ndarray], fitted: Fitted) -> list[page.Section]:
    """Samples with both priors, the codes beside draws of both, and the bound by epoch."""
    codes = drawn["codes"]
    axes = np.linalg.svd(codes[:2000] - codes[:2000].mean(axis=0)[None], full_matrices=False)[2][:2]
    curve = by_epoch(fitted.history, "elbo", -1)
    return [
        two_stages.samples_section(samples, "z from the prior, then the generator's mean."),
        two_stages.codes_section(
            drawn,
            np.concatenate([axes, -axes]),
            f"{', '.join(drawn)}, in the plane of the codes' two principal axes: the root of the density, on one "
            "scale; then the densities along these axes.",
        ),
        page.Section(
            "Learning curve",
            "The bound of the whole on the training images while the diffusion trains.",
            [page.Picture(pictures.curves({"training": curve}, y="-ELBO, nats per image"), "bound by epoch")],
        ),
    ]


if __name__ == "__main__":
    publish.run(main, Config)
