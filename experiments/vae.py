"""Train a variational auto-encoder on images, evaluate it and write a report.

    python -m experiments.vae                 # Fashion-MNIST mini, fully connected, 20 latents, 30 epochs
    python -m experiments.vae --help          # every option
    python -m experiments.vae --data ~/pictures --network conv --likelihood l2 --out runs/pictures

The three distributions of the lecture are three lines of `build`; all else is data, training and reporting.
"""

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import vae_jax
from vae_jax import data, nets, objectives, pictures, preprocess, report
from vae_jax.evaluate import Evaluation, active_units, bits_per_dimension, evaluate, mean
from vae_jax.fit import Fitted, fit


@dataclasses.dataclass(frozen=True)
class Config:
    """Train a variational auto-encoder on images, evaluate it on the test set and write a report."""

    data: str = "fashion_mnist_mini"
    """Data set: fashion_mnist_mini, emoji_mini, fashion_mnist, a file (npz, npy, IDX), a folder of images, or a name
    that tensorflow-datasets has prepared."""
    data_dir: str | None = None
    """Directory of tensorflow-datasets (default: its own)."""
    download: bool = False
    """Let tensorflow-datasets download the data set. Nothing is ever downloaded otherwise."""
    size: tuple[int, int] | None = None
    """Resize images to this height and width."""

    likelihood: Literal["bernoulli", "l2", "discretised-logistic", "categorical"] = "bernoulli"
    """P_gen(y|z): bernoulli on binarised pixels, l2 on dequantised ones, the others on the 256 levels."""
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
    hidden: tuple[int, ...] = (500,)
    """Hidden layers of the mlp."""
    channels: tuple[int, ...] = (32, 64, 128)
    """Channels of the conv and residual networks, one entry for each halving of the image."""
    latent: int = 20
    """Dimensions of z."""
    conditional: bool = False
    """Condition every part on the class label c."""
    bfloat16: bool = False
    """Run the networks in bfloat16; log-probabilities stay in float32."""

    estimator: Literal["sampled", "analytic", "sticking"] = "sampled"
    """Estimator of the loss: one sample, closed-form KL, or sticking the landing."""
    objective: Literal["elbo", "free-bits", "importance-weighted"] = "elbo"
    """What is minimised. The bound that is reported is the ELBO whatever is minimised."""
    beta: float = 1.0
    """Weight of the rate in the objective (elbo, free-bits)."""
    beta_schedule: Literal["constant", "linear", "sigmoid", "cyclical"] = "constant"
    """How the weight reaches beta."""
    beta_epochs: int = 10
    """Epochs that the rise to beta takes (one cycle, for cyclical)."""
    free_bits: float = 0.1
    """Floor of free-bits in nats."""
    free_bits_definition: Literal["batch-mean-per-unit", "per-unit", "per-example"] = "batch-mean-per-unit"
    """Which definition of free bits."""
    importance_samples: int = 5
    """Samples of the importance-weighted objective."""
    train_parts: tuple[Literal["enc", "pri", "gen"], ...] = ("enc", "pri", "gen")
    """Which parts train."""

    epochs: int = 30
    """Passes over the training data."""
    batch_size: int = 128
    """Examples in a step."""
    learning_rate: float = 1e-3
    """Adam's learning rate (its peak, with a schedule)."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over the run; cosine warms up during the first twentieth."""
    clip_norm: float | None = None
    """Bound on the global norm of the gradient."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the parameters with this decay, and evaluate that."""
    micro_batches: int = 1
    """Accumulate the gradient over this many slices of the batch."""
    patience: int | None = None
    """Stop after so many epochs without a better validation ELBO."""
    seed: int = 0
    """Seed of everything random."""

    k: int = 500
    """Importance samples for the test log-likelihood; 0 leaves it out."""
    out: str = "runs/vae"
    """Directory of checkpoints, metrics, TensorBoard events and the report."""
    resume: bool = False
    """Continue the run in `out`, if there is one."""
    smoke: bool = False
    """A few seconds instead of minutes: 512 + 64 examples, 2 epochs, k = 10. To see that all works."""


NOT_THE_RUN = ("out", "resume", "k")


class System(NamedTuple):
    """A model, its parts and how data reach it."""

    model: vae_jax.Model
    encoder: vae_jax.Conditional
    generator: vae_jax.Model  # gives means, for pictures
    shown: vae_jax.Model  # the model with that generator
    preprocess: preprocess.Preprocess
    white: float  # the value of y that is shown as white


class Split(NamedTuple):
    """Images (n, h, w, channels) as levels, one-hot labels (n, classes) if the model is conditional, labels."""

    ys: np.ndarray
    cs: np.ndarray | None
    labels: np.ndarray | None


def networks(config: Config, shape: tuple[int, ...]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`encoder_net(out)` and `generator_net(*extra)`, whose output has the shape of an image and extra axes."""
    dtype = jnp.bfloat16 if config.bfloat16 else jnp.float32
    if config.network == "mlp":
        hidden = config.hidden
        return (
            lambda out: nets.MLP(hidden, out, dtype=dtype),
            lambda *extra: nets.MLP(hidden[::-1], (*shape, *extra), dtype=dtype),
        )
    encoder, decoder = {
        "conv": (nets.ConvEncoder, nets.ConvDecoder),
        "residual": (nets.ResEncoder, nets.ResDecoder),
    }[config.network]
    return (
        lambda out: encoder(config.channels, out, dtype=dtype),
        lambda *extra: decoder(config.channels, (*shape, *extra), dtype=dtype),
    )


def build(config: Config, train: Split) -> System:
    """The model of the lecture: an encoder, a prior and a generator."""
    shape = train.ys.shape[1:]
    encoder_net, generator_net = networks(config, shape)
    encoder = vae_jax.gaussian(encoder_net(2 * config.latent))
    generator, prepare, white = build_generator(config, generator_net)
    prior = build_prior(config, encoder, train, prepare)
    estimator = {"sampled": vae_jax.sampled, "analytic": vae_jax.analytic, "sticking": vae_jax.sticking}

    def assemble(generator: vae_jax.Conditional | vae_jax.Model) -> vae_jax.Model:
        model = vae_jax.vae(encoder, prior, generator, estimator=estimator[config.estimator])
        return vae_jax.share(model, "enc", "pri/enc") if config.prior == "vamp" else model

    pictured = vae_jax.means(generator)
    return System(assemble(generator), encoder, pictured, assemble(pictured), prepare, white)


def build_generator(config: Config, net: Callable[..., Any]):
    """(P_gen(y|z), how pixels are prepared for it, the value of white)."""
    if config.likelihood == "bernoulli":
        binarisation = {
            "dynamic": preprocess.dynamic_binarisation,
            "static": preprocess.static_binarisation,
            "threshold": preprocess.threshold_binarisation,
        }
        return vae_jax.bernoulli(net()), binarisation[config.binarisation](), 1.0
    if config.likelihood == "l2":
        out = net(2) if config.sigma == "predicted" else net()
        yhat = split_last(out) if config.sigma == "predicted" else out
        return vae_jax.l2(yhat, config.sigma), preprocess.dequantisation(), 1.0
    if config.likelihood == "categorical":
        return vae_jax.categorical(net(256)), preprocess.levels(), 255.0
    return vae_jax.discretised_logistic(net(2)), preprocess.levels(), 255.0


def split_last(net: Any) -> vae_jax.Network:
    """A network with output (..., 2) as one that gives the pair (yhat, raw log_std)."""
    network = vae_jax.as_network(net)
    return vae_jax.Network(network.init, lambda *args: tuple(jnp.moveaxis(network.apply(*args), -1, 0)))


def build_prior(config: Config, encoder: vae_jax.Conditional, train: Split, prepare: preprocess.Preprocess):
    """P_pri(z)."""
    latent = config.latent
    if config.prior == "standard":
        return vae_jax.standard_normal(latent)
    if config.prior == "normal":
        return vae_jax.learned_normal(latent)
    if config.prior == "mixture":
        return vae_jax.mixture_of_gaussians(latent, config.components)
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
    return vae_jax.vampprior(encoder, jax.vmap(prepare.apply)(keys, jnp.asarray(chosen)), condition=conditions)


def build_objective(config: Config, steps_per_epoch: int) -> objectives.Objective:
    """What is minimised."""
    steps = config.beta_epochs * steps_per_epoch
    beta: Any = {
        "constant": lambda: config.beta,
        "linear": lambda: objectives.linear(steps, end=config.beta),
        "sigmoid": lambda: objectives.sigmoid(steps, end=config.beta),
        "cyclical": lambda: objectives.cyclical(steps, end=config.beta),
    }[config.beta_schedule]()
    if config.objective == "importance-weighted":
        return objectives.importance_weighted(config.importance_samples)
    if config.objective == "elbo":
        return objectives.beta_elbo(beta)
    definition = {
        "batch-mean-per-unit": objectives.batch_mean_per_unit,
        "per-unit": objectives.per_unit,
        "per-example": objectives.per_example,
    }[config.free_bits_definition]
    return objectives.free_bits(config.free_bits, definition, beta=beta)


def load_splits(config: Config) -> tuple[Split, Split, Split, data.Dataset]:
    """(train, validation, test, the description of the data): a tenth of the training data validates."""
    load = lambda split: data.load(  # noqa: E731
        config.data, split, data_dir=config.data_dir, download=config.download, size=config.size
    )
    train, test = load("train"), load("test")
    if config.conditional and train.labels is None:
        raise ValueError(f"--conditional wants labels, and {config.data} has none: use a labelled data set")
    classes = len(train.label_names or ()) or (0 if train.labels is None else int(train.labels.max()) + 1)

    def split(source: data.Dataset, rows: np.ndarray | slice) -> Split:
        labels = None if source.labels is None else source.labels[rows]
        cs = np.eye(classes, dtype=np.float32)[labels] if config.conditional else None
        return Split(source.ys[rows], cs, labels)

    # Files are often sorted by class, so what is held out is drawn: the same for every seed.
    order = np.random.default_rng(0).permutation(len(train.ys))[: 576 if config.smoke else None]
    held_out = max(1, len(order) // 10)
    return (
        split(train, order[held_out:]),
        split(train, order[:held_out]),
        split(test, slice(0, 64 if config.smoke else None)),
        train,
    )


def build_optimizer(config: Config, steps: int) -> optax.GradientTransformation:
    """Adam, with a constant or a cosine learning rate."""
    if config.schedule == "constant":
        return optax.adam(config.learning_rate)
    return optax.adam(optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, max(1, steps // 20), steps))


def run_config(config: Config) -> dict[str, Any]:
    """What decides the parameters; with a constant learning rate a run may be continued for more epochs."""
    fields = {name: value for name, value in dataclasses.asdict(config).items() if name not in NOT_THE_RUN}
    if config.schedule == "constant":
        fields.pop("epochs")
    return json.loads(json.dumps(fields))


def main(config: Config) -> dict[str, Any]:
    """Train, evaluate, report; returns the numbers of the table."""
    if config.smoke:
        config = dataclasses.replace(config, epochs=min(config.epochs, 2), k=min(config.k, 10))
    train, valid, test, source = load_splits(config)
    system = build(config, train)
    steps_per_epoch = max(1, len(train.ys) // config.batch_size)
    key = jax.random.key(config.seed)
    fitted = fit(
        system.model,
        build_optimizer(config, config.epochs * steps_per_epoch),
        train.ys,
        train.cs,
        key=jax.random.fold_in(key, 0),
        epochs=config.epochs,
        batch_size=config.batch_size,
        preprocess=system.preprocess,
        validation=(valid.ys, valid.cs),
        patience=config.patience,
        directory=config.out,
        config=run_config(config),
        resume=config.resume,
        objective=build_objective(config, steps_per_epoch),
        parts=config.train_parts,
        clip_norm=config.clip_norm,
        ema_decay=config.ema_decay,
        micro_batches=config.micro_batches,
    )
    result = evaluate(
        system.model,
        fitted.params,
        jax.random.fold_in(key, 1),
        test.ys,
        test.cs,
        preprocess=system.preprocess,
        k=config.k,
        progress=True,
    )
    rows = table(result, fitted, len(test.ys))
    path = write_report(config, system, fitted, result, rows, train, test, source)
    overview = draw_overview(system, fitted.params, jax.random.fold_in(key, 2), test)
    (Path(config.out) / "overview.png").write_bytes(pictures.png(overview, max(1, 56 // test.ys.shape[1])))
    print(report.table_text(rows))
    print(f"\nreport: {path}")
    return {row.name: row.value for row in rows}


def table(result: Evaluation, fitted: Fitted, n: int) -> list[report.Row]:
    """The numbers of the run, with what they mean."""
    where = f"nats per image, {n} test images, {result.convention}"
    rows = [
        report.Row("test ELBO", *mean(result.elbo), f"{where}; higher is better"),
        report.Row("rate", *mean(result.rate), "nats; ln enc(z|y) - ln pri(z)"),
        report.Row("distortion", *mean(result.distortion), "nats; -ln gen(y|z), ln Z included"),
    ]
    if result.log_likelihood is not None:
        rows.append(
            report.Row(
                f"ln P(y) at least (k={result.k})", *mean(result.log_likelihood), "nats; importance-weighted bound"
            )
        )
    bits = bits_per_dimension(result)
    if bits is not None:
        rows.append(report.Row("bits/dim at most", *bits, f"from the ELBO; {result.dimensions} dimensions"))
    active = active_units(result)
    if active is not None and result.unit_variance is not None:
        units = len(result.unit_variance)
        rows.append(report.Row("active units", active, None, f"of {units}; variance of the posterior mean > 0.01"))
    rows.append(report.Row("training speed", fitted.images_per_second, None, "images/s, median epoch after the first"))
    return rows


def write_report(config, system, fitted, result, rows, train, test, source) -> Path:
    """One HTML page: the numbers, the learning curve and what the model makes."""
    return report.write(
        Path(config.out) / "report.html",
        title=f"A variational auto-encoder on {config.data}",
        lead=(
            f"{config.latent} latent dimensions, {config.network} networks, {config.likelihood} likelihood, "
            f"{config.prior} prior; {len(train.ys)} training images of shape {train.ys.shape[1:]}, "
            f"{fitted.history[-1]['epoch']} epochs. Data: {source.source}."
        ),
        table=rows,
        sections=sections(config, system, fitted, result, test, source),
        configuration=dataclasses.asdict(config),
        command=command(),
    )


def command() -> str:
    """The command line of this run."""
    return "python -m experiments.vae " + shlex.join(sys.argv[1:]) if sys.argv[0].endswith("vae.py") else "main(config)"


def sections(config, system, fitted, result, test, source) -> list[report.Section]:
    """The pictures of the report."""
    key = jax.random.key(config.seed)
    zoom = max(1, 56 // test.ys.shape[1])
    picture = lambda images, alt: report.Picture(pictures.png(images, zoom), alt)  # noqa: E731
    epochs = [row["epoch"] for row in fitted.history]
    lines = {"training": (epochs, [-row["elbo"] for row in fitted.history])}
    validated = [row for row in fitted.history if "valid_elbo" in row]
    xs = [row["epoch"] for row in validated]
    lines["validation"] = (xs, [-row["valid_elbo"] for row in validated])
    parts = {
        "rate": (xs, [row["valid_rate"] for row in validated]),
        "distortion": (xs, [row["valid_distortion"] for row in validated]),
    }
    found = [
        report.Section(
            "Learning curve",
            "The bound -ELBO in nats per image (lower is better), and its two parts on the validation images.",
            [
                report.Picture(pictures.curves(as_arrays(lines), y="-ELBO, nats per image"), "bound by epoch"),
                report.Picture(pictures.curves(as_arrays(parts), y="nats per image"), "rate and distortion by epoch"),
            ],
        ),
        report.Section(
            "Samples",
            "z from the prior, then the generator's mean" + (", a column for each class." if test.cs is not None else "."),
            [picture(pictures.grid(draw_samples(system, fitted.params, key, test.cs), 10), "samples from the model")],
        ),
        report.Section(
            "Reconstructions",
            "Test images, and beside each the generator's mean for one z drawn from the encoder.",
            [picture(pictures.pairs(*draw_pairs(system, fitted.params, key, test)), "originals and reconstructions")],
        ),
        report.Section(
            "Interpolations",
            "In each row the first and the last picture are the generator's means for the codes of two test images; "
            "between them, the straight line from one code to the other.",
            [picture(pictures.grid(draw_interpolations(system, fitted.params, key, test), 10), "interpolations")],
        ),
        latent_map(system, fitted.params, key, test, source),
    ]
    if result.unit_rate is not None:
        rates = np.sort(result.unit_rate)[::-1]
        found.append(
            report.Section(
                "Rate per unit",
                "How many nats each unit of z carries on average over the test images; a unit at 0 is not used.",
                [report.Picture(pictures.bars(rates, y="nats"), "rate of each latent unit")],
            )
        )
    return found


def as_arrays(lines: dict[str, tuple[list[float], list[float]]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Only what is finite can be drawn: an epoch in which every update was skipped has no mean."""
    drawn = {}
    for name, (xs, ys) in lines.items():
        keep = np.isfinite(ys)
        drawn[name] = (np.asarray(xs)[keep], np.asarray(ys)[keep])
    return drawn


def over_batch(function: Callable[..., Any], params: Any, keys: jax.Array, *batch: Any) -> Any:
    """`function(params, key, *example)` of every example; None where an input is None."""
    axes = (None, 0, *(None if x is None else 0 for x in batch))
    return jax.jit(jax.vmap(function, in_axes=axes))(params, keys, *batch)


def show(system: System, means: jax.Array) -> np.ndarray:
    """Means in the model's units as pictures in [0, 1]."""
    return np.clip(np.asarray(means, np.float32) / system.white, 0, 1)


def draw_samples(system: System, params: Any, key: jax.Array, cs: np.ndarray | None, n: int = 60) -> np.ndarray:
    """n pictures (n, h, w, channels): the generator's means at z from the prior."""
    classes = None if cs is None else np.eye(cs.shape[1], dtype=np.float32)[np.arange(n) % cs.shape[1]]
    return show(system, over_batch(system.shown.sample, params, jax.random.split(key, n), classes))


def draw_pairs(system: System, params: Any, key: jax.Array, test: Split, n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """(originals, reconstructions), as many as there are up to n."""
    ys = test.ys[:n]
    cs = None if test.cs is None else test.cs[:n]

    def one(params, key, y, c):
        k_data, k_model = jax.random.split(key)
        seen = system.preprocess.apply(k_data, y)
        return vae_jax.reconstruct(system.encoder, system.generator, params, k_model, seen, c)

    return ys / np.float32(255), show(system, over_batch(one, params, jax.random.split(key, len(ys)), ys, cs))


def draw_overview(system: System, params: Any, key: jax.Array, test: Split) -> np.ndarray:
    """The run in one picture: ten test images, their reconstructions below them, then twenty samples."""
    originals, reconstructions = draw_pairs(system, params, key, test, 10)
    samples = draw_samples(system, params, jax.random.fold_in(key, 1), test.cs, 20)
    return pictures.grid(np.concatenate([originals, reconstructions, samples]), len(originals))


def encode(system: System, params: Any, key: jax.Array, split: Split) -> np.ndarray:
    """(n, latent): the encoder's mean of each image."""

    def one(params, key, y, c):
        return system.encoder.dist(params["enc"], vae_jax.join(system.preprocess.apply(key, y), c)).mean

    return np.asarray(over_batch(one, params, jax.random.split(key, len(split.ys)), split.ys, split.cs))


def draw_interpolations(system: System, params: Any, key: jax.Array, test: Split, rows: int = 6, columns: int = 10):
    """(rows * columns, h, w, channels): straight lines between the codes of neighbouring test images."""
    first = Split(test.ys[: 2 * rows], None if test.cs is None else test.cs[: 2 * rows], None)
    codes = encode(system, params, key, first)
    rows = len(codes) // 2
    steps = np.linspace(0, 1, columns, dtype=np.float32)[None, :, None]

    def mix(ends: np.ndarray) -> np.ndarray:
        line = (1 - steps) * ends[0::2][:rows, None] + steps * ends[1::2][:rows, None]
        return line.reshape(-1, ends.shape[-1])

    def one(params, key, z, c):
        return system.generator.sample(params["gen"], key, vae_jax.join(z, c))

    cs = None if first.cs is None else mix(first.cs)
    return show(system, over_batch(one, params, jax.random.split(key, rows * columns), mix(codes), cs))


def latent_map(system: System, params: Any, key: jax.Array, test: Split, source: data.Dataset) -> report.Section:
    """The test images' codes in the plane: z itself where it has two dimensions, else its two principal axes."""
    codes = encode(system, params, key, test).reshape(len(test.ys), -1)
    x, y = "z₁", "z₂"
    if codes.shape[1] == 1:
        codes, y = np.concatenate([codes, np.zeros_like(codes)], axis=1), ""
    if codes.shape[1] > 2:
        centred = codes - codes.mean(axis=0)
        codes = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
        x, y = "first principal axis", "second principal axis"
    labels = None if test.labels is None else test.labels[:2000]
    drawn = pictures.scatter(codes[:2000], labels, source.label_names, x=x, y=y)
    caption = "The encoder's mean for each test image, in the two directions in which the codes vary most."
    return report.Section("Latent map", caption, [report.Picture(drawn, "map of the latent space")])


if __name__ == "__main__":
    try:
        main(tyro.cli(Config))
    except (ValueError, FileNotFoundError, FileExistsError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
