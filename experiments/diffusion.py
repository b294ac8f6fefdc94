"""Train a diffusion model on images: a multi-step VAE with a fixed encoder, its bound in nats and bits, its pictures.

    python -m experiments.diffusion                                     # Fashion-MNIST, ten minutes on two quiet cores
    python -m experiments.diffusion --data emoji_mini --network mlp --prediction data --likelihood continuous \\
        --repeat 50 --epochs 22 --batch-size 32 --keep last             # 32x32 in colour, learnt by heart
    python -m experiments.diffusion --scale accelerator --conditional   # sized for an accelerator
    python -m experiments.diffusion --help                              # every option

The loss that trains weighs the noise levels for the eye; the bound that is reported is the exact one, whatever trained:
nearly all of it is paid at the lowest noise levels, which this loss weighs least.

Expected with the default settings (1,000 test images, 8-bit levels): test bound 2745 ± 14 nats per image, that is at
most 5.052 ± 0.025 bits/dim; of it the end of the chain 1.8 and the reconstruction 4.3 nats. The emoji's samples are
pictures of the training data; the bound of test images is then far from any use (56 million nats).
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import vae_jax
from experiments import diffusion_report
from vae_jax import diffusion as df
from vae_jax import nets
from vae_jax.command import publish
from vae_jax.command.config import SHARE, Adam, Images, Resumable, at_least, checked, fitting, read_back
from vae_jax.command.cosine_adam import warm_cosine
from vae_jax.command.images import load_splits
from vae_jax.command.placement import WHERE, Placed, evaluate_on, fit_on
from vae_jax.core import objectives
from vae_jax.data import preprocess
from vae_jax.training import recipe


@dataclasses.dataclass(frozen=True)
class Config(Images, Adam, Resumable, Placed):
    """Train a diffusion model on images, evaluate its bound on the test set and write a report."""

    size: tuple[int, int] | None = None
    """Resize images to this height and width."""
    conditional: bool = False
    """Condition on the class label."""
    scale: Literal["cpu", "accelerator"] = "cpu"
    """Size of what is not set below: for ten minutes on two CPU cores, or for an accelerator (not
    timed)."""

    network: Literal["unet", "mlp"] = "unet"
    """The denoiser: a U-Net, or for few small images an MLP, which is twenty times faster on CPU."""
    width: int = 512
    """Of the MLP."""
    channels: tuple[int, ...] = ()
    """Channels of the U-Net, one entry for each grid (none: by scale)."""
    blocks: Annotated[int, at_least(0)] = 0
    """Residual blocks a level and way (0: by scale)."""
    attention: Annotated[tuple[int, ...], at_least(0)] = ()
    """Levels with self-attention, besides the last."""
    patch: Annotated[int, at_least(0)] = 0
    """Fold so many pixels a side into channels: 2 is a quarter of the cost (0: by scale)."""
    dropout: Annotated[float, SHARE] = 0.0
    """Probability of dropout in the residual blocks, in training."""
    bfloat16: bool = False
    """Run the network in bfloat16; the loss stays in float32."""
    remat: bool = False
    """Compute blocks again in the backward pass, to save memory."""
    unroll: bool = False
    """Write blocks out rather than as a loop: on a TPU a third of the memory and its traffic, and a longer compile."""

    schedule: Literal["cosine", "linear", "learned"] = "cosine"
    """gamma(t) = -ln SNR from -13.3 to 5."""
    process: Literal["preserving", "exploding"] = "preserving"
    """What the noise does to the variance."""
    prediction: Literal["velocity", "noise", "data"] = "velocity"
    """What the network gives."""
    steps: int | None = None
    """T, or continuous time."""
    likelihood: Literal["levels", "continuous"] = "levels"
    """P(y|z_0): of the 256 levels, or a density of dequantised pixels."""
    objective: Literal["sigmoid", "simple", "min-snr", "bound"] = "sigmoid"
    """How the training loss weighs the noise levels."""

    epochs: Annotated[int, at_least(0)] = 0
    """Passes over the training data (0: by scale)."""
    repeat: int = 1
    """Passes that count as one, for few images: checkpoints and validations come once an epoch."""
    batch_size: Annotated[int, at_least(0)] = 0
    """Examples in a step (0: by scale)."""
    learning_rate: float = 1e-3
    """Adam's learning rate at its peak; it warms up and falls to 0 along a cosine."""
    ema_decay: Annotated[float, SHARE] = 0.999
    """Decay of the average of the parameters, which is what is evaluated."""
    drop_condition: Annotated[float, SHARE] = 0.1
    """Part of the labels that is dropped in training, for guidance."""
    keep: Literal["best", "last"] = "best"
    """Which parameters are used: those with the best validation bound, or the last, which know few images by heart."""
    sampler: Literal["dpm-solver", "heun", "ddim", "ancestral"] = "dpm-solver"
    """The way back from noise."""
    sampler_steps: int = 50
    """Its steps."""
    guidance: Annotated[float, at_least(0)] = 1.0
    """Weight of the label in the samples; 1 is the model."""
    evaluated_times: int = 8
    """Noise levels at which the bound of each test image is estimated."""
    out: str = "runs/diffusion"


# What may change when a run is continued: it shows in the report only.
NOT_THE_RUN = (*WHERE, "out", "resume", "sampler", "sampler_steps", "guidance", "evaluated_times", "keep")
SCALES: dict[str, dict[str, Any]] = {
    "cpu": {"channels": (64, 128), "blocks": 1, "patch": 2, "epochs": 25, "batch_size": 64},
    "accelerator": {"channels": (128, 256, 256), "blocks": 3, "patch": 1, "epochs": 400, "batch_size": 256},
}
SMOKE: dict[str, Any] = {
    "channels": (16, 16),
    "blocks": 1,
    "patch": 2,
    "epochs": 2,
    "batch_size": 64,
    "sampler_steps": 4,
}


def filled(config: Config) -> Config:
    """The configuration with what was left open by its scale."""
    defaults = SCALES[config.scale]
    given = {name: getattr(config, name) for name in defaults}
    full = {name: value or defaults[name] for name, value in given.items()}
    return dataclasses.replace(config, **(SMOKE if config.smoke else full))


def build(config: Config, shape: tuple[int, ...]) -> tuple[df.Denoiser, preprocess.Preprocess]:
    """The denoiser, which holds the fixed encoders and the network, and how data reach it."""
    dtype = jnp.bfloat16 if config.bfloat16 else jnp.float32
    if config.network == "mlp":
        net: Any = nets.DenoisingMLP(config.width, shape, dtype=dtype)
    else:
        net = nets.UNet(
            config.channels,
            out=shape[-1],
            blocks=config.blocks,
            attention=config.attention,
            patch=config.patch,
            dropout=config.dropout,
            remat=config.remat,
            unroll=config.unroll,
            dtype=dtype,
        )
    schedule = {"cosine": df.cosine, "linear": df.linear, "learned": df.learned}[config.schedule]()
    predictions = {"velocity": df.predict_velocity, "noise": df.predict_noise, "data": df.predict_data}
    in_levels = config.likelihood == "levels"
    denoiser = df.denoiser(
        net,
        shape,
        schedule,
        process={"preserving": df.variance_preserving, "exploding": df.variance_exploding}[config.process],
        prediction=predictions[config.prediction],
        observation=df.discrete(256) if in_levels else df.continuous(0.0, 1.0),
        steps=config.steps,
    )
    return denoiser, preprocess.eight_bit() if in_levels else preprocess.dequantisation()


def build_sampler(config: Config) -> df.Sampler:
    """The way back from noise; T steps of a chain are walked one by one."""
    make = {"dpm-solver": df.dpm_solver, "heun": df.heun, "ddim": df.ddim, "ancestral": df.ancestral}[config.sampler]
    return make(config.sampler_steps)


def bound(config: Config, denoiser: df.Denoiser) -> vae_jax.Model:
    """The model whose bound validates and is reported; the objective trains at times of its own.

    In continuous time the bound does not depend on the schedule between its ends, and along a line its estimate has the
    least variance of those that are fixed.
    """
    if config.steps is None and config.schedule == "cosine":
        denoiser = denoiser._replace(schedule=df.linear())
    return df.diffusion(denoiser, times=df.times.stratified(config.evaluated_times))


def rebuild(*, shape: Sequence[int], **fields: Any) -> tuple[vae_jax.Model, preprocess.Preprocess]:
    """The trained model with its way back from noise, for `vae_jax.open_run`."""
    config = read_back(Config, fields)
    denoiser, prepare = build(config, tuple(shape))
    drawn = df.diffusion(denoiser, sampler=build_sampler(config), guidance=config.guidance)
    return bound(config, denoiser)._replace(sample=drawn.sample), prepare


def build_objective(config: Config, denoiser: df.Denoiser) -> objectives.Objective:
    """The weighted loss, at times spread over the batch."""
    weighting = {
        "sigmoid": df.sigmoid_weighting(),
        "simple": df.simple,
        "min-snr": df.min_snr(),
        "bound": None,
    }[config.objective]
    inner = objectives.elbo() if weighting is None else df.weighted(weighting)
    dropout = config.dropout > 0
    objective = df.spread_times(lambda times: df.diffusion(denoiser, times=times, dropout=dropout), inner)
    return objectives.drop_condition(objective, config.drop_condition) if config.conditional else objective


@publish.timed
def main(config: Config) -> dict[str, Any]:
    """Train, evaluate, report; returns the numbers of the table.

    Raises:
        ValueError: options that do not fit the data or each other.
    """
    asked = checked(config)
    config = filled(asked)
    if config.guidance != 1 and not config.conditional:
        raise ValueError(f"guidance={config.guidance} weighs the label, and the model has none: pass --conditional")
    train, valid, test, source = load_splits(
        config.data, conditional=config.conditional, smoke=config.smoke, size=config.size
    )
    denoiser, prepare = build(config, train.ys.shape[1:])
    again = np.tile(np.arange(len(train.ys)), config.repeat)
    ys, cs = train.ys[again], None if train.cs is None else train.cs[again]
    config = fitting(config, len(ys), config.batch_size if asked.batch_size == 0 else None)
    steps = max(1, config.epochs * (len(ys) // config.batch_size))
    k_fit, k_evaluate, k_pictures = jax.random.split(jax.random.key(config.seed), 3)
    model = bound(config, denoiser)
    fitted = fit_on(
        config,
        model,
        warm_cosine(config.learning_rate, steps),
        ys,
        cs,
        key=k_fit,
        epochs=config.epochs,
        batch_size=config.batch_size,
        preprocess=prepare,
        validation=(valid.ys, valid.cs),
        validate_every=max(1, config.epochs // 20),
        directory=config.out,
        config=publish.fields(config, NOT_THE_RUN),
        recipe=recipe(rebuild, shape=train.ys.shape[1:], **publish.fields(config)),
        resume=config.resume or config.smoke,
        objective=build_objective(config, denoiser),
        clip_norm=1.0,
        ema_decay=config.ema_decay,
    )
    if config.keep == "last":
        fitted = fitted._replace(params=fitted.state.ema)
    result = evaluate_on(config, model, fitted.params, k_evaluate, test.ys, test.cs, preprocess=prepare)
    return publish.write(
        "diffusion",
        config,
        title="Diffusion: a multi-step VAE with a fixed encoder",
        lead=(
            f"{diffusion_report.count(fitted.params):,} parameters, {config.schedule} schedule, {config.objective} "
            f"loss, {len(train.ys)} training images, {config.epochs} epochs. Data: {source.source}."
        ),
        table=diffusion_report.table(result, fitted, len(test.ys)),
        sections=diffusion_report.sections(
            denoiser,
            fitted,
            k_pictures,
            test,
            source.label_names,
            prepare,
            sampler=build_sampler(config),
            guidance=config.guidance,
            directory=config.out,
        ),
    )


if __name__ == "__main__":
    publish.run(main, Config)
