"""Hierarchical VAEs on binarised images: one layer, a chain of two VAEs, and ladders of more and more levels.

    python -m experiments.hierarchical                  # Fashion-MNIST mini, dense networks: four models
    python -m experiments.hierarchical --network conv   # a convolutional ladder, small enough for a CPU
    python -m experiments.hierarchical --help           # every option

For an accelerator, the convolutional ladder on all of Fashion-MNIST:

    python -m experiments.hierarchical --network conv --data fashion_mnist --scales 28 4 2 1 --levels 3 6 10 6 \\
        --channels 128 --conv-latent 8 --bfloat16 --epochs 100

Expected with the default settings (1,000 test images, dynamic binarisation): test ELBO and bound with 100 samples,
-250.8 and -245.5 (each ± 2.4 nats) with one layer, -246.3 and -241.8 with two, -244.9 and -243.1 with the ladder of 2,
-244.4 and -242.7 with that of 5. The last level carries all 11 nats of a ladder's rate: only its 20 units limit it.

`vae_jax.open_run` opens the last ladder in `out`, the other models in `out`/NAME, the headings of the report.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vae_jax
from vae_jax import Evaluation, Fitted, core, nets
from vae_jax.command import publish
from vae_jax.command.config import SHARE, Adam, Images, at_least, checked, fitting, read_back
from vae_jax.command.image_report import picture
from vae_jax.command.images import load_splits
from vae_jax.command.placement import Placed, evaluate_on, fit_on
from vae_jax.command.results import by_epoch, over_batch
from vae_jax.core import objectives
from vae_jax.data import preprocess
from vae_jax.evaluation import mean
from vae_jax.report import page, pictures
from vae_jax.systems import Rung, ladder, ladder_latents, ladder_sample

SHOWN = 10  # images in a row


@dataclasses.dataclass(frozen=True)
class Config(Images, Adam, Placed):
    """Train hierarchical VAEs on binarised images, and report what each of their levels carries and holds."""

    network: Literal["mlp", "conv"] = "mlp"
    """mlp compares one layer, two layers and ladders; conv is one convolutional ladder."""
    depths: tuple[int, ...] = (2, 5)
    """Levels of the dense ladders, one training for each; the last is the one that is pictured."""
    latent: int = 20
    """Units of z in each level of the dense models."""
    width: int = 300
    """Units of the hidden layers, of the state and of the features of the dense models."""
    scales: tuple[int, ...] = (28, 4, 2)
    """Pixels along a side of one place of each grid of the convolutional ladder, the top one first."""
    levels: tuple[int, ...] = (2, 3, 4)
    """Levels at each scale."""
    channels: int = 32
    """Channels of the convolutional ladder's state."""
    conv_latent: int = 4
    """Channels of z in each level of the convolutional ladder."""
    bfloat16: bool = False
    """Run the convolutional networks in bfloat16; log-probabilities stay in float32."""
    remat: bool = False
    """Compute the levels anew in the backward pass: slower, and the memory of one level in place of all."""
    warm_up: Annotated[int, at_least(0)] = 10
    """Epochs in which the rate's weight rises to 1 (Sonderby et al. 2016): without it upper levels may stay unused."""
    clip_norm: float = 200.0
    """Bound on the global norm of the gradient."""
    ema_decay: Annotated[float, SHARE] = 0.99
    """Decay of the moving average of the parameters, which is what is evaluated."""
    k: int = 100
    """Importance samples for the test log-likelihood."""
    out: str = "runs/hierarchical"


class Candidate(NamedTuple):
    """A model, and its parts where it is a ladder."""

    name: str
    model: vae_jax.Model
    rungs: Sequence[Rung] = ()
    generator: Any = None


class Result(NamedTuple):
    """A trained candidate."""

    candidate: Candidate
    fitted: Fitted
    test: Evaluation

    @property
    def rates(self) -> np.ndarray:
        """(levels,) Mean rate of each over the test images, nats, the top one first."""
        assert self.test.level_rate is not None
        return self.test.level_rate[::-1]


def build(config: Config, shape: tuple[int, ...]) -> list[Candidate]:
    """The models that are compared."""
    if config.network == "conv":
        dtype = jnp.bfloat16 if config.bfloat16 else jnp.float32
        options: dict[str, Any] = {"channels": config.channels, "latent": config.conv_latent, "dtype": dtype}
        rungs = nets.conv_rungs(shape, scales=config.scales, levels=config.levels, **options)
        generator = vae_jax.bernoulli(nets.FromGrid(shape, config.scales[-1], dtype=dtype))
        return [_ladder(f"convolutional ladder of {sum(config.levels)}", rungs, generator, config.remat)]

    hidden = (config.width,)
    depths = config.depths[:1] if config.smoke else config.depths

    def ladder_of(depth):
        rungs = nets.mlp_rungs((config.latent,) * depth, width=config.width, hidden=hidden)
        return _ladder(f"ladder of {depth}", rungs, vae_jax.bernoulli(nets.MLP(hidden, shape)), config.remat)

    layers = [two_layers] if config.smoke else [one_layer, two_layers]
    return [*(make(config, shape) for make in layers), *map(ladder_of, depths)]


def rebuild(*, name: str, shape: Sequence[int], **fields: Any) -> tuple[vae_jax.Model, preprocess.Preprocess]:
    """One of the models, for `vae_jax.open_run`."""
    candidates = build(read_back(Config, fields), tuple(shape))
    return next(one.model for one in candidates if one.name == name), preprocess.dynamic_binarisation()


def _ladder(name: str, rungs: Sequence[Rung], generator: vae_jax.Conditional, remat: bool) -> Candidate:
    return Candidate(name, ladder(rungs, generator, remat=remat), rungs, generator)


def one_layer(config: Config, shape: tuple[int, ...]) -> Candidate:
    """The classic VAE, with as many units as one level has."""
    hidden, prior = (config.width,), vae_jax.standard_normal(config.latent)
    encoder = vae_jax.gaussian(nets.MLP(hidden, 2 * config.latent))
    return Candidate("one layer", vae_jax.vae(encoder, prior, vae_jax.bernoulli(nets.MLP(hidden, shape))))


def two_layers(config: Config, shape: tuple[int, ...]) -> Candidate:
    """A VAE whose prior is a VAE: both encoders go bottom up, and share nothing with the generators."""
    hidden, size = (config.width,), 2 * config.latent
    inner = vae_jax.vae(
        vae_jax.gaussian(nets.MLP(hidden, size)),
        vae_jax.standard_normal(config.latent),
        vae_jax.gaussian(nets.MLP(hidden, size)),
    )
    model = vae_jax.vae(vae_jax.gaussian(nets.MLP(hidden, size)), inner, vae_jax.bernoulli(nets.MLP(hidden, shape)))
    return Candidate("two layers", model)


def train(config: Config, candidate: Candidate, key: jax.Array, splits: Any, prepare: preprocess.Preprocess) -> Result:
    """Train one model and evaluate it on the test images."""
    training, valid, test = splits
    k_fit, k_evaluate = jax.random.split(key)
    rise = config.warm_up * max(1, len(training.ys) // config.batch_size)
    fitted = fit_on(
        config,
        candidate.model,
        optax.adam(config.learning_rate),
        training.ys,
        key=k_fit,
        epochs=config.epochs,
        batch_size=config.batch_size,
        preprocess=prepare,
        validation=(valid.ys, None),
        objective=objectives.beta_elbo(objectives.linear_annealing(rise) if rise else 1.0),
        clip_norm=config.clip_norm,
        ema_decay=config.ema_decay,
    )
    result = evaluate_on(config, candidate.model, fitted.params, k_evaluate, test.ys, preprocess=prepare, k=config.k)
    return Result(candidate, fitted, result)


def table(results: Sequence[Result], n: int) -> list[page.Row]:
    """Of each model the ELBO, the bound with k samples, the rate, and how the training went."""
    rows = []
    for result in results:
        (name, *_), fitted, test = result
        by_level = ", ".join(f"{rate:.2f}" for rate in result.rates)
        where = f"nats per image, {n} test images, {test.convention}"
        speed = fitted.images_per_second
        rows += [
            page.Row(f"{name}: test ELBO", *mean(test.elbo), f"{where}; higher is better"),
            page.Row(f"{name}: ln P(y) at least", *mean(test.log_likelihood), f"nats; bound with k={test.k} samples"),
            page.Row(f"{name}: rate", *mean(test.rate), f"nats; by level, the top one first: {by_level}"),
            page.Row(f"{name}: training speed", speed, None, f"images/s; {int(fitted.state.skipped)} updates skipped"),
        ]
    return rows


def sections(results: Sequence[Result], key: jax.Array, ys: np.ndarray, prepare: Any) -> list[page.Section]:
    """Learning curves, rates by level, and what the last model, a ladder, draws."""
    rates = {r.candidate.name: (np.arange(1, len(r.rates) + 1), r.rates) for r in results}
    curves = {r.candidate.name: by_epoch(r.fitted.history, "valid_elbo", -1) for r in results}
    last, name = results[-1], results[-1].candidate.name
    k_samples, k_held = jax.random.split(key)
    drawn = {t: samples(last, k_samples, t) for t in (1.0, 0.7)}
    held, known = held_by_levels(last, k_held, ys[:SHOWN], prepare)
    levels = ", ".join(map(str, known))

    return [
        page.Section(
            "Learning curves",
            "-ELBO of the validation images in nats (lower is better), of the moving average of the parameters.",
            [page.Picture(pictures.curves(curves, y="-ELBO, nats per image"), "bound by epoch")],
        ),
        page.Section(
            "Rate by level",
            "How many nats each level carries, mean over the test images. Level 1 is the top.",
            [
                page.Picture(pictures.curves(rates, x="level", y="rate, nats per image"), "rate by level"),
                page.Picture(
                    pictures.bars(last.rates, x=f"level of the {name}", y="rate, nats per image"),
                    "rates of the last model",
                ),
            ],
        ),
        page.Section(
            f"Samples of the {name}",
            "z of every level from the prior, its standard deviations times the temperature; then the mean of y.",
            [picture(images, SHOWN, "samples", f"temperature {t}") for t, images in drawn.items()],
        ),
        page.Section(
            f"What the upper levels of the {name} hold",
            f"Test images in the first row. Below them {levels} of the upper levels are those of the image, drawn from "
            "the encoder, and all others are the prior's means given what is above them: then the generator's mean.",
            [
                picture(
                    held,
                    len(ys[:SHOWN]),
                    "held by upper levels",
                    beside=["test image", *(f"{n} levels" for n in known)],
                )
            ],
        ),
    ]


def samples(result: Result, key: jax.Array, temperature: float, n: int = 4 * SHOWN) -> np.ndarray:
    """(n, h, w, channels): the generator's means."""
    rungs, shown = result.candidate.rungs, core.means(result.candidate.generator)

    def one(params, key):
        return ladder_sample(rungs, shown, params, key, temperature=temperature)

    return over_batch(one, result.fitted.params, jax.random.split(key, n))


def held_by_levels(result: Result, key: jax.Array, ys: np.ndarray, prepare: Any) -> tuple[np.ndarray, list[int]]:
    """(images, and what upper levels of theirs hold, row by row; of how many levels, from none to all, by rungs)."""
    rungs, shown = result.candidate.rungs, core.means(result.candidate.generator)
    known = [0, *np.cumsum([rung.levels for rung in rungs]).tolist()]

    def one(params, key, y):
        k_data, k_z, k_rest = jax.random.split(key, 3)
        zs = ladder_latents(rungs, params, k_z, prepare.apply(k_data, y))
        keys = jax.random.split(k_rest, len(known))
        upper = [(zs[:n], k) for n, k in zip(known, keys, strict=True)]
        return jnp.stack([ladder_sample(rungs, shown, params, k, temperature=0.0, given=z) for z, k in upper])

    drawn = over_batch(one, result.fitted.params, jax.random.split(key, len(ys)), ys)
    rows = np.concatenate([ys[:, None] / np.float32(255), drawn], axis=1)
    return rows.swapaxes(0, 1).reshape(-1, *ys.shape[1:]), known


@publish.timed
def main(config: Config) -> dict[str, Any]:
    """Train, evaluate, report; returns the numbers of the table.

    Raises:
        ValueError: no depths, or options that do not fit the data.
    """
    if not config.depths:
        raise ValueError("depths: want at least one number of levels, such as 2; got none")
    config = checked(config)
    if config.smoke:
        config = dataclasses.replace(config, epochs=2, warm_up=1, k=5)
    *splits, source = load_splits(config.data, smoke=config.smoke)
    config = fitting(config, len(splits[0].ys))
    prepare = preprocess.dynamic_binarisation()
    key, k_pictures = jax.random.split(jax.random.key(config.seed))
    candidates = build(config, splits[0].ys.shape[1:])
    keys = jax.random.split(key, len(candidates))
    results = [train(config, candidate, k, splits, prepare) for candidate, k in zip(candidates, keys, strict=True)]
    test = splits[-1].ys
    fitted = {result.candidate.name: result.fitted for result in results}
    publish.save_all(config, rebuild, fitted, test[0], main=candidates[-1].name, shape=test.shape[1:])
    return publish.write(
        "hierarchical",
        config,
        title="Hierarchical VAEs",
        lead=(
            f"{config.network} networks, Bernoulli likelihood; {len(splits[0].ys)} training images, {config.epochs} "
            f"epochs, the first {config.warm_up} with a rising weight of the rate. Data: {source.source}."
        ),
        table=table(results, len(test)),
        sections=sections(results, k_pictures, test, prepare),
    )


if __name__ == "__main__":
    publish.run(main, Config)
