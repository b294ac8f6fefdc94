"""Latent diffusion: a diffusion as the prior of a VAE, trained on its codes with the encoder fixed, or with all of it.

    python -m experiments.latent_diffusion            # Fashion-MNIST mini: a VAE, then a diffusion on its codes
    python -m experiments.latent_diffusion --joint    # encoder, diffusion and generator together from the start
    python -m experiments.latent_diffusion --help     # every option

`vae(encoder, diffusion(denoiser), generator)` is one model, and its bound counts everything in nats: the distortion,
the encoder's rate and the steps of the diffusion. The same test codes with N(0, I) as the prior say what it gains.
"""

import dataclasses
from typing import Any, Literal

import jax
import numpy as np
import optax

import vae_jax
from experiments import gmm_prior, publish, vae, vae_report
from experiments.vae_report import Pictured
from vae_jax import Evaluation, Fitted, core, evaluate, fit, nets
from vae_jax import diffusion as df
from vae_jax.evaluation import mean
from vae_jax.report import page, pictures


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a VAE, train a diffusion as its prior, and report what changes."""

    data: str = "fashion_mnist_mini"
    """Data set: fashion_mnist_mini, emoji_mini, fashion_mnist, a file (npz, npy, IDX), a folder of images, or a name
    that tensorflow-datasets has prepared."""
    likelihood: Literal["bernoulli", "l2", "discretised-logistic", "categorical"] = "bernoulli"
    """P_gen(y|z): bernoulli on binarised pixels, l2 on dequantised ones, the others on the 256 levels."""
    hidden: tuple[int, ...] = (500,)
    """Hidden layers of encoder and generator."""
    latent: int = 16
    """Dimensions of z."""
    epochs: int = 20
    """Passes over the training data for the VAE."""
    joint: bool = False
    """Train all three parts together for all epochs, in place of two stages."""

    width: int = 256
    """Of the denoiser."""
    blocks: int = 3
    """Residual blocks of the denoiser."""
    start: float = -9.0
    """gamma = -ln SNR at t = 0: the noise has to be small beside the width of P_enc(z|y)."""
    prior_epochs: int = 100
    """Passes over the training data for the diffusion."""
    learning_rate: float = 1e-3
    """Of the diffusion, at its peak; it falls to 0 along a cosine."""
    steps: int = 100
    """Steps of the sampler (DPM-Solver++)."""
    times: int = 32
    """Times at which the bound of each test image is estimated."""
    seed: int = 0
    """Seed of everything random."""
    out: str = "runs/latent_diffusion"
    """Directory of the report."""
    smoke: bool = False
    """A few seconds instead of minutes: 512 + 64 images, 2 epochs each, a small denoiser. To see that all works."""


def train_all(
    config: Config, model: vae_jax.Model, objective: Any, train: vae_report.Split, key: jax.Array, **options: Any
) -> Fitted:
    """`prior_epochs` of Adam along a cosine; the parameters are the moving average."""
    steps = config.prior_epochs * (len(train.ys) // 128)
    return fit(
        model,
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, steps)),
        train.ys,
        key=key,
        epochs=config.prior_epochs,
        objective=objective,
        clip_norm=10.0,
        ema_decay=0.999,
        **options,
    )


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


def main(config: Config) -> dict[str, Any]:
    """Train, evaluate with both priors, report; returns the numbers of the table.

    Raises:
        ValueError: fewer than two latent dimensions, or options that do not fit the data.
    """
    if config.latent < 2:
        raise ValueError(f"latent={config.latent}: the report draws the codes in a plane, so it takes at least 2")
    if config.smoke:
        config = dataclasses.replace(config, epochs=2, prior_epochs=2, width=32, blocks=1, steps=4, times=4)
    setting = vae.Config(
        data=config.data, likelihood=config.likelihood, hidden=config.hidden, latent=config.latent, smoke=config.smoke
    )
    train, valid, test, source = vae.load_splits(setting)
    k_vae, k_prior, k_evaluate, k_pictures, k_codes, k_draws = jax.random.split(jax.random.key(config.seed), 6)

    denoiser = df.denoiser(
        nets.DenoisingMLP(config.width, config.latent, config.blocks), (config.latent,), df.linear(config.start, 5.0)
    )
    standard = vae_jax.standard_normal(config.latent)

    def with_prior(prior: Any) -> tuple[vae_jax.Model, Pictured]:
        return gmm_prior.build(setting, train.ys.shape[1:], prior)

    def at(times: df.times.Times) -> vae_jax.Model:
        return with_prior(df.diffusion(denoiser, times=times))[0]

    spread = df.spread_times(at)
    model, pictured = with_prior(df.diffusion(denoiser, sampler=df.dpm_solver(config.steps)))
    prepare = pictured.preprocess
    before = plain = None
    if config.joint:
        fitted = train_all(config, model, spread, train, k_prior, preprocess=prepare)
    else:
        start, plain = with_prior(standard)
        trained = gmm_prior.train_vae(setting, start, prepare, train, valid, k_vae, config.epochs)
        second = core.start_from(model, {part: trained.params[part] for part in ("enc", "gen")})
        fitted = train_all(config, second, spread, train, k_prior, preprocess=prepare, parts=("pri",))
        before = evaluate(start, trained.params, k_evaluate, test.ys, preprocess=prepare, samples=4)
    after = evaluate(
        at(df.times.stratified(config.times)), fitted.params, k_evaluate, test.ys, preprocess=prepare, samples=4
    )

    codes = gmm_prior.codes_of(pictured, fitted.params, k_codes, train, 1)
    drawn = {
        "codes": codes,
        "N(0, I)": gmm_prior.draws_of(standard, {}, k_draws, len(codes)),
        "diffusion": draws_of(denoiser, fitted.params["pri"], k_draws, len(codes), config.steps),
    }
    samples = {"with the diffusion": vae_report.draw_samples(pictured, fitted.params, k_pictures, None)}
    if plain is not None:
        samples = {"with N(0, I)": vae_report.draw_samples(plain, fitted.params, k_pictures, None), **samples}
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


def draws_of(denoiser: df.Denoiser, params: Any, key: jax.Array, n: int, steps: int) -> np.ndarray:
    """(n, latent) from the diffusion."""
    model = df.diffusion(denoiser, sampler=df.dpm_solver(steps))
    return np.asarray(jax.jit(jax.vmap(lambda key: model.sample(params, key)))(jax.random.split(key, n)))


def sections(samples: dict[str, np.ndarray], drawn: dict[str, np.ndarray], fitted: Fitted) -> list[page.Section]:
    """Samples with both priors, the codes beside draws of both, and the bound by epoch."""
    codes = drawn["codes"]
    axes = np.linalg.svd(codes[:2000] - codes[:2000].mean(axis=0)[None], full_matrices=False)[2][:2]
    planes, margins = gmm_prior.histograms(drawn, np.concatenate([axes, -axes]))
    rows = fitted.history
    curve = (np.array([row["epoch"] for row in rows]), np.array([-row["elbo"] for row in rows]))
    return [
        page.Section(
            "Samples",
            "z from the prior, then the generator's mean.",
            [
                page.Picture(
                    pictures.png(pictures.grid(images, 10), max(1, 56 // images.shape[1])), f"samples {name}", name
                )
                for name, images in samples.items()
            ],
        ),
        page.Section(
            "Codes and priors",
            f"In the plane of the codes' two principal axes, from left to right: {', '.join(drawn)}, on the same "
            "scale. Below them the densities along these axes.",
            [page.Picture(pictures.png(pictures.grid(planes, 3, 6), 3), "densities in a plane")]
            + [
                page.Picture(pictures.curves(lines, x=x, y="density"), f"densities along the {x}")
                for x, lines in margins.items()
            ],
        ),
        page.Section(
            "Learning curve",
            "The bound of the whole on the training images while the diffusion trains.",
            [page.Picture(pictures.curves({"training": curve}, y="-ELBO, nats per image"), "bound by epoch")],
        ),
    ]


if __name__ == "__main__":
    publish.run(main, Config)
