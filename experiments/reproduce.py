"""Published architectures on binarised Fashion-MNIST, row by row: ln P(y) of all test images beside what is published.

    python -m experiments.reproduce                             # every row that is missing, then the table
    python -m experiments.reproduce --only vae iwae-50          # some rows
    python -m experiments.reproduce --table                     # the table of what there is; nothing is trained
    python -m experiments.reproduce --binarisation static

Rows are trained in `out`/ROW/SEED, each with several seeds. What was stopped goes on from its last checkpoint, what is
done is not done again. A tenth of the training images chooses the epoch, the test images choose nothing: they are
evaluated once, with k importance samples. Hidden layers are two of 300 units, and z has 50 or 40, as in the papers.

The goals of `vae` and `two-layers` are of Bauer and Mnih 2019, "Resampled priors for variational autoencoders" (arXiv
1810.11428), as they are remembered; the others are what the row's method has to gain over them.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import vae_jax
from vae_jax import core, nets, parts
from vae_jax.command import publish
from vae_jax.command.config import Run, at_least, checked, read_back
from vae_jax.command.cosine_adam import warm_cosine
from vae_jax.command.images import Split, load_splits
from vae_jax.command.placement import Placed, evaluate_on, fit_on
from vae_jax.core import multi_sample, objectives
from vae_jax.data import preprocess
from vae_jax.em import mixture_of_gaussians
from vae_jax.evaluation import mean
from vae_jax.systems import ladder
from vae_jax.training import recipe
from vae_jax.training.run_directory import to_path

HIDDEN, LATENT = (300, 300), 50
BATCH, RATE, EMA, CLIP = 128, 1e-3, 0.999, 200.0


@dataclasses.dataclass(frozen=True)
class Config(Run, Placed):
    """Train published architectures on binarised images, and print what they are worth beside what is published."""

    data: str = "fashion_mnist"
    """Data set of images, as vae_jax.data.load takes it."""
    binarisation: Literal["dynamic", "static"] = "dynamic"
    """Pixels drawn anew each time they are seen, or once for all."""
    only: tuple[str, ...] = ()
    """Rows by name (default: all)."""
    seeds: int = 3
    """Trainings of each row."""
    epochs: Annotated[int, at_least(0)] = 0
    """Passes over the training data (0: each row's own number)."""
    k: int = 5000
    """Importance samples for ln P(y) of each test image."""
    table: bool = False
    """Print the table of what is there, and train nothing."""
    out: str = "runs/reproduce"


class Row(NamedTuple):
    """An architecture, and how it is trained.

    Fields:
        about: in words.
        build: `(shape of an image, training images as the model sees them) -> model`; the images start a VampPrior.
        epochs: passes over the training data.
        goal: nats, at most; None where nothing is published.
        warm_up: epochs in which the rate's weight rises to 1.
        samples: of the importance-weighted objective; 1 is the ELBO.
    """

    about: str
    build: Callable[[tuple[int, ...], Any], vae_jax.Model]
    epochs: int
    goal: float | None = None
    warm_up: int = 0
    samples: int = 1


def encoder(latent: int = LATENT) -> vae_jax.Conditional:
    return vae_jax.gaussian(nets.MLP(HIDDEN, 2 * latent))


def generator(shape: tuple[int, ...]) -> vae_jax.Conditional:
    return vae_jax.bernoulli(nets.MLP(HIDDEN, shape))


def with_prior(prior: Callable[[], Any], latent: int = LATENT) -> Callable[..., vae_jax.Model]:
    return lambda shape, images: vae_jax.vae(encoder(latent), prior(), generator(shape))


def vamp(components: int, latent: int = 40) -> Callable[..., vae_jax.Model]:
    """Tomczak and Welling 2018: the prior is the mixture of the encoder's distributions of trained images."""

    def build(shape, images):
        shared = encoder(latent)
        model = vae_jax.vae(shared, parts.vampprior(shared, images[:components]), generator(shape))
        return core.share(model, "enc", "pri/enc")

    return build


def iaf(shape: tuple[int, ...], images: Any) -> vae_jax.Model:
    """Kingma et al. 2016: the encoder's Gaussian, bent by four inverse autoregressive layers."""
    context = nets.MLP(HIDDEN, HIDDEN[-1])
    bent = parts.inverse_autoregressive_flow(LATENT, layers=4, hidden=(300,), base=encoder(), context=context)
    return vae_jax.vae(bent, vae_jax.standard_normal(LATENT), generator(shape))


def two_layers(shape: tuple[int, ...], images: Any) -> vae_jax.Model:
    """A VAE whose prior is a VAE."""
    between = vae_jax.gaussian(nets.MLP(HIDDEN, 2 * LATENT))
    return vae_jax.vae(encoder(), vae_jax.vae(encoder(), vae_jax.standard_normal(LATENT), between), generator(shape))


def dense_ladder(shape: tuple[int, ...], images: Any) -> vae_jax.Model:
    rungs = nets.mlp_rungs((LATENT,) * 5, width=HIDDEN[0], hidden=HIDDEN[:1])
    return ladder(rungs, vae_jax.bernoulli(nets.MLP(HIDDEN[:1], shape)))


def conv_ladder(shape: tuple[int, ...], images: Any) -> vae_jax.Model:
    scales, levels = (shape[0], 4, 2), (2, 3, 4)
    rungs = nets.conv_rungs(shape, scales=scales, levels=levels, channels=48, latent=4)
    return ladder(rungs, vae_jax.bernoulli(nets.FromGrid(shape, scales[-1])))


def conv_vae(shape: tuple[int, ...], images: Any) -> vae_jax.Model:
    channels = (32, 64)
    return vae_jax.vae(
        vae_jax.gaussian(nets.ResEncoder(channels, 2 * LATENT)),
        vae_jax.standard_normal(LATENT),
        vae_jax.bernoulli(nets.ResDecoder(channels, shape)),
    )


ROWS = {
    "vae": Row("standard normal prior", with_prior(lambda: vae_jax.standard_normal(LATENT)), 400, 228.7),
    "iwae-50": Row(
        "50 importance samples in training", with_prior(lambda: vae_jax.standard_normal(LATENT)), 100, 227.0, samples=50
    ),
    "vampprior": Row("VampPrior of 500, z of 40", vamp(500), 200, 227.0, warm_up=20),
    "mixture-prior": Row(
        "prior of 100 Gaussians", with_prior(lambda: mixture_of_gaussians(LATENT, 100)), 300, 228.7, warm_up=20
    ),
    "flow-prior": Row(
        "prior of 6 coupling layers", with_prior(lambda: parts.coupling_flow(LATENT, hidden=(300,))), 300, 228.7
    ),
    "iaf-encoder": Row("encoder with 4 IAF layers", iaf, 300, 228.7),
    "two-layers": Row("a VAE as the prior of a VAE", two_layers, 300, 227.4, warm_up=50),
    "ladder": Row("dense ladder of 5 levels", dense_ladder, 200, 227.4, warm_up=20),
    "conv-vae": Row("residual convolutions, 32 and 64 channels", conv_vae, 60, 226.0),
    "conv-ladder": Row("convolutional ladder of 9 levels", conv_ladder, 60, 223.0, warm_up=5),
}


class Done(NamedTuple):
    """One training and its evaluation, as `numbers.json` has it; nats of all test images, and their standard errors."""

    log_p: float
    log_p_error: float
    elbo: float
    elbo_error: float
    rate: float
    images: int
    k: int
    convention: str
    epochs: int
    minutes: float
    made: str


def prepared(config: Config) -> preprocess.Preprocess:
    return {"dynamic": preprocess.dynamic_binarisation, "static": preprocess.static_binarisation}[config.binarisation]()


def model_of(config: Config, name: str, shape: tuple[int, ...], images: np.ndarray) -> vae_jax.Model:
    """The row's model; `images` as they are stored."""
    some = jnp.asarray(images[:500])
    keys = jax.random.split(jax.random.key(config.seed), len(some))
    return ROWS[name].build(shape, jax.vmap(prepared(config).apply)(keys, some))


def rebuild(*, name: str, shape: Sequence[int], images: int, **fields: Any) -> tuple[vae_jax.Model, Any]:
    """For `vae_jax.open_run`."""
    config = read_back(Config, fields)
    return model_of(config, name, tuple(shape), np.zeros((images, *shape), np.uint8)), prepared(config)


def train_one(config: Config, name: str, seed: int, splits: tuple[Split, Split, Split]) -> Done:
    """Train one row with one seed, from its last checkpoint, and evaluate it."""
    train, valid, test = splits
    row, prepare, shape = ROWS[name], prepared(config), train.ys.shape[1:]
    began, epochs = time.perf_counter(), config.epochs or row.epochs
    k_fit, k_evaluate = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), seed))
    batch = min(BATCH, len(train.ys))
    steps = max(1, len(train.ys) // batch)
    rise = objectives.linear_annealing(row.warm_up * steps) if row.warm_up else 1.0
    weighted = multi_sample.importance_weighted(row.samples) if row.samples > 1 else objectives.beta_elbo(rise)
    model = model_of(config, name, shape, train.ys)
    fitted = fit_on(
        config,
        model,
        warm_cosine(RATE, epochs * steps),
        train.ys,
        key=k_fit,
        epochs=epochs,
        batch_size=batch,
        preprocess=prepare,
        validation=(valid.ys, None),
        directory=str(to_path(config.out) / name / str(seed)),
        config={"row": name, "seed": [config.seed, seed], "binarisation": config.binarisation},
        recipe=recipe(
            rebuild, name=name, shape=shape, images=min(500, len(train.ys)), **publish.fields(config, ("only", "table"))
        ),
        resume=True,
        objective=weighted,
        clip_norm=CLIP,
        ema_decay=EMA,
    )
    result = evaluate_on(
        config, model, fitted.params, k_evaluate, test.ys, preprocess=prepare, k=config.k, progress=True
    )
    minutes = (time.perf_counter() - began) / 60
    return Done(
        *mean(result.log_likelihood),
        *mean(result.elbo),
        mean(result.rate).value,
        images=len(test.ys),
        k=config.k,
        convention=result.convention,
        epochs=epochs,
        minutes=minutes,
        made=publish.made(60 * minutes, resumed=True),
    )


def found(config: Config) -> dict[str, list[Done]]:
    """What is done, by row."""
    done: dict[str, list[Done]] = {}
    for name in config.only or ROWS:
        files = [to_path(config.out) / name / str(seed) / "numbers.json" for seed in range(config.seeds)]
        done[name] = [Done(**json.loads(file.read_text())) for file in files if file.exists()]
    return done


def table(done: dict[str, list[Done]]) -> str:
    """Markdown: of each row the mean over its seeds and the standard error of that mean."""
    lines = [
        "| row | what it is | -ln P(y) at most | error over images | goal | ELBO | rate | seeds | minutes each |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in done.items():
        if not runs:
            continue
        row, costs = ROWS[name], -np.array([run.log_p for run in runs])
        over_seeds = f" ± {costs.std(ddof=1) / np.sqrt(len(costs)):.2f}" if len(costs) > 1 else ""
        elbo, rate, minutes = (np.mean([getattr(run, field) for run in runs]) for field in ("elbo", "rate", "minutes"))
        goal = "" if row.goal is None else f"{row.goal:.1f}, {'met' if costs.mean() <= row.goal else 'missed'}"
        cells = (
            *(name, row.about, f"{costs.mean():.2f}{over_seeds}", f"{runs[0].log_p_error:.2f}", goal),
            *(f"{elbo:.2f}", f"{rate:.2f}", len(runs), f"{minutes:.0f}"),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    some = next((runs[0] for runs in done.values() if runs), None)
    if some is not None:
        lines += ["", f"{some.images} test images, {some.convention}, k = {some.k}, nats. {some.made}"]
    return "\n".join(lines)


def main(config: Config) -> str:
    """Train what is missing, print and return the table.

    Raises:
        ValueError: no such row.
    """
    config = checked(config)
    if unknown := sorted(set(config.only) - set(ROWS)):
        raise ValueError(f"no such row: {unknown}; there are {list(ROWS)}")
    if config.smoke:
        config = dataclasses.replace(config, seeds=1, epochs=1, k=10)
    if not config.table:
        splits = load_splits(config.data, smoke=config.smoke)[:3]
        for name in config.only or ROWS:
            for seed in range(config.seeds):
                file = to_path(config.out) / name / str(seed) / "numbers.json"
                if not file.exists():
                    print(f"{name}, seed {seed}", flush=True)
                    done = train_one(config, name, seed, splits)
                    file.write_text(json.dumps(done._asdict(), indent=1))
    text = table(found(config))
    print(text)
    return text


if __name__ == "__main__":
    publish.run(main, Config)
