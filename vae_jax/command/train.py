"""`vae-jax train`: a variational auto-encoder of images, evaluated, with a report; its directory can be opened again.

The three distributions of the lecture are three lines of `build`; all else is data, training and reporting.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vae_jax
from vae_jax import core, nets
from vae_jax.command import publish, vae_report
from vae_jax.command.config import SHARE, Adam, ImageVAE, Resumable, at_least, checked, fitting, read_back
from vae_jax.command.cosine_adam import warm_cosine
from vae_jax.command.images import Split, load_splits, networks, pixels
from vae_jax.command.placement import WHERE, Placed, evaluate_on, fit_on
from vae_jax.core import multi_sample, objectives
from vae_jax.data import Dataset, preprocess
from vae_jax.em import mixture_of_gaussians
from vae_jax.parts import vampprior
from vae_jax.training import Recipe, recipe


@dataclasses.dataclass(frozen=True)
class Config(ImageVAE, Adam, Resumable, Placed):
    """Train a variational auto-encoder on images, evaluate it on the test set and write a report."""

    data_dir: str | None = None
    """Directory of tensorflow-datasets (default: its own)."""
    download: bool = False
    """Let tensorflow-datasets download the data set. Nothing is ever downloaded otherwise."""
    size: tuple[int, int] | None = None
    """Resize images to this height and width."""

    binarisation: Literal["dynamic", "static", "threshold"] = "dynamic"
    """How pixels become 0 or 1 for the bernoulli likelihood."""
    sigma: Literal["learned", "learned_per_dimension", "predicted", "optimal"] | float = "learned"
    """Noise of the l2 likelihood y = yhat(z) + sigma eps: a number (fixed), or how it is found."""
    prior: Literal["standard", "normal", "mixture", "vamp", "vae"] = "standard"
    """P_pri(z): N(0, I), a learned normal, a mixture of Gaussians, a VampPrior, or another VAE."""
    components: int = 100
    """Components of the mixture prior, pseudo-inputs of the VampPrior."""
    network: Literal["mlp", "conv", "residual"] = "mlp"
    """Networks of encoder and generator."""
    channels: tuple[int, ...] = (32, 64, 128)
    """Channels of the conv and residual networks, one entry for each halving of the image."""
    conditional: bool = False
    """Condition every part on the class label c."""
    bfloat16: bool = False
    """Run the networks in bfloat16; log-probabilities stay in float32."""

    estimator: Literal["sampled", "analytic", "sticking"] = "sampled"
    """Estimator of the loss: one sample, closed-form KL, or sticking the landing."""
    objective: Literal["elbo", "free-bits", "importance-weighted"] = "elbo"
    """What is minimised. The bound that is reported is the ELBO whatever is minimised."""
    beta: Annotated[float, at_least(0)] = 1.0
    """Weight of the rate in the objective (elbo, free-bits)."""
    beta_schedule: Literal["constant", "linear", "sigmoid", "cyclical"] = "constant"
    """How the weight reaches beta."""
    beta_epochs: int = 10
    """Epochs that the rise to beta takes (one cycle, for cyclical)."""
    free_bits: Annotated[float, at_least(0)] = 0.1
    """Floor of free-bits in nats."""
    free_bits_definition: Literal["batch-mean-per-unit", "per-unit", "per-example"] = "batch-mean-per-unit"
    """Which definition of free bits."""
    importance_samples: int = 5
    """Samples of the importance-weighted objective."""
    train_parts: tuple[Literal["enc", "pri", "gen"], ...] = ("enc", "pri", "gen")
    """Which parts train."""

    batch_size: int = 128
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over the run; cosine warms up during the first twentieth, and falls to 0."""
    clip_norm: float | None = None
    """Bound on the global norm of the gradient."""
    ema_decay: Annotated[float | None, SHARE] = None
    """Keep an exponential moving average of the parameters with this decay, and evaluate that."""
    micro_batches: int = 1
    """Accumulate the gradient over this many slices of the batch."""
    patience: int | None = None
    """Stop after so many epochs without a better validation ELBO."""
    k: Annotated[int, at_least(0)] = 500
    """Importance samples for the test log-likelihood; 0 leaves it out."""
    out: str = "runs/vae"


NOT_THE_RUN = (*WHERE, "out", "resume", "k")


def build(config: Config, train: Split) -> tuple[vae_jax.Model, preprocess.Preprocess]:
    """The model of the lecture, an encoder, a prior and a generator; and how images reach it."""
    encoder_net, generator_net = networks(
        config.network,
        train.ys.shape[1:],
        hidden=config.hidden,
        channels=config.channels,
        dtype=jnp.bfloat16 if config.bfloat16 else jnp.float32,
    )
    encoder = vae_jax.gaussian(encoder_net(2 * config.latent))
    generator, prepare = pixels(config.likelihood, generator_net, binarisation=config.binarisation, sigma=config.sigma)
    prior = build_prior(config, encoder, train, prepare)
    estimator = {"sampled": vae_jax.sampled, "analytic": vae_jax.analytic, "sticking": vae_jax.sticking}
    model = vae_jax.vae(encoder, prior, generator, estimator=estimator[config.estimator])
    return core.share(model, "enc", "pri/enc") if config.prior == "vamp" else model, prepare


def build_prior(config: Config, encoder: vae_jax.Conditional, train: Split, prepare: preprocess.Preprocess):
    """P_pri(z)."""
    latent = config.latent
    if config.prior == "standard":
        return vae_jax.standard_normal(latent)
    if config.prior == "normal":
        return vae_jax.learned_normal(latent)
    if config.prior == "mixture":
        return mixture_of_gaussians(latent, config.components)
    if config.prior == "vae":
        inner = max(1, latent // 2)
        return vae_jax.vae(
            vae_jax.gaussian(nets.MLP((128,), 2 * inner)),
            vae_jax.standard_normal(inner),
            vae_jax.gaussian(nets.MLP((128,), 2 * latent)),
        )
    chosen = train.ys[: config.components]
    keys = jax.random.split(jax.random.key(config.seed), len(chosen))
    conditions = None if train.cs is None else train.cs[: config.components]
    return vampprior(encoder, jax.vmap(prepare.apply)(keys, jnp.asarray(chosen)), condition=conditions)


def recipe_of(config: Config, train: Split) -> Recipe:
    """How to build this model again."""
    classes = None if train.cs is None else train.cs.shape[1]
    start = min(config.components, len(train.ys))
    return recipe(rebuild, shape=train.ys.shape[1:], classes=classes, start=start, **run_config(config))


def rebuild(*, shape: Sequence[int], classes: int | None, start: int, **fields: Any):
    """What `build` gave, for `open_run`; a VampPrior has so many pseudo-inputs."""
    cs = None if classes is None else np.zeros((start, classes), np.float32)
    return build(read_back(Config, fields), Split(np.zeros((start, *shape), np.uint8), cs, None))


def build_objective(config: Config, steps_per_epoch: int) -> objectives.Objective:
    """What is minimised."""
    steps = config.beta_epochs * steps_per_epoch
    beta: Any = {
        "constant": lambda: config.beta,
        "linear": lambda: objectives.linear_annealing(steps, end=config.beta),
        "sigmoid": lambda: objectives.sigmoid_annealing(steps, end=config.beta),
        "cyclical": lambda: objectives.cyclical_annealing(steps, end=config.beta),
    }[config.beta_schedule]()
    if config.objective == "importance-weighted":
        return multi_sample.importance_weighted(config.importance_samples)
    if config.objective == "elbo":
        return objectives.beta_elbo(beta)
    definition = {
        "batch-mean-per-unit": objectives.batch_mean_per_unit,
        "per-unit": objectives.per_unit,
        "per-example": objectives.per_example,
    }[config.free_bits_definition]
    return objectives.free_bits(config.free_bits, definition, beta=beta)


def build_optimizer(config: Config, steps: int) -> optax.GradientTransformation:
    """Adam, with a constant or a cosine learning rate."""
    if config.schedule == "constant":
        return optax.adam(config.learning_rate)
    return warm_cosine(config.learning_rate, steps)


def run_config(config: Config) -> dict[str, Any]:
    """What decides the parameters; with a constant learning rate a run may be continued for more epochs."""
    left_out = NOT_THE_RUN + (("epochs",) if config.schedule == "constant" else ())
    return publish.fields(config, left_out)


def load(config: Config) -> tuple[Split, Split, Split, Dataset]:
    """(train, validation, test, the data set) of these options."""
    return load_splits(
        config.data,
        conditional=config.conditional,
        smoke=config.smoke,
        data_dir=config.data_dir,
        download=config.download,
        size=config.size,
    )


FEW = 1000  # steps in which little is learnt


def too_few(steps: int, epochs: int) -> str:
    """What to say of a training as short as that on some dozens of pictures is by default; or nothing."""
    enough = -(-epochs * FEW // steps)
    return "" if steps >= FEW else f"{steps} steps in all, in which little is learnt: --epochs {enough} takes {FEW}"


@publish.timed
def main(config: Config) -> dict[str, Any]:
    """Train, evaluate, report; returns the numbers of the table."""
    config = checked(config)
    if config.smoke:
        config = dataclasses.replace(config, epochs=min(config.epochs, 2), k=min(config.k, 10))
    train, valid, test, source = load(config)
    config = fitting(config, len(train.ys))
    model, prepare = build(config, train)
    steps_per_epoch = max(1, len(train.ys) // config.batch_size)
    steps = config.epochs * steps_per_epoch
    if not config.smoke and (said := too_few(steps, config.epochs)):
        print(said)
    fitted = fit_on(
        config,
        model,
        build_optimizer(config, steps),
        train.ys,
        train.cs,
        key=jax.random.fold_in(jax.random.key(config.seed), 0),
        epochs=config.epochs,
        batch_size=config.batch_size,
        preprocess=prepare,
        validation=(valid.ys, valid.cs),
        patience=config.patience,
        directory=config.out,
        config=run_config(config),
        recipe=recipe_of(config, train),
        resume=config.resume or config.smoke,
        objective=build_objective(config, steps_per_epoch),
        parts=config.train_parts,
        clip_norm=config.clip_norm,
        ema_decay=config.ema_decay,
        micro_batches=config.micro_batches,
    )
    c = None if train.cs is None else train.cs[0]
    run = vae_jax.Trained(model, fitted.params, prepare, train.ys[0], c, name=config.out, history=fitted.history)
    return report(config, run, test, source, len(train.ys))


def report(config: Config, run: vae_jax.Trained, test: Split, source: Dataset, examples: int) -> dict[str, Any]:
    """Evaluate on the test set, and write the page; returns the numbers of its table."""
    k_evaluate, k_pictures = (jax.random.fold_in(jax.random.key(config.seed), i) for i in (1, 2))
    result = evaluate_on(
        config,
        run.model,
        run.params,
        k_evaluate,
        test.ys,
        test.cs,
        preprocess=run.preprocess,
        k=config.k,
        progress=True,
    )
    return publish.write(
        "vae",
        config,
        title=f"A variational auto-encoder on {config.data}",
        lead=(
            f"{config.latent} latent dimensions, {config.network} networks, {config.likelihood} likelihood, "
            f"{config.prior} prior; {examples} training images of shape {test.ys.shape[1:]}, "
            f"{run.history[-1]['epoch']} epochs. Data: {source.source}."
        ),
        table=vae_report.table(result, run.history, len(test.ys)),
        sections=vae_report.sections(run, result, k_pictures, test, source.label_names, config.out),
    )
