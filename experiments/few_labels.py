"""A classifier from few labels and many images: the class is a latent of the images that have no label (M2).

    python -m experiments.few_labels                                  # Fashion-MNIST mini, 100 labels
    python -m experiments.few_labels --data fashion_mnist --labels 100 1000
    python -m experiments.few_labels --help                           # every option

Kingma et al. 2014, "Semi-supervised learning with deep generative models": P(c), P(z), P(y|z, c), and the encoders
P(c|y) and P(z|y, c). The sum over the class of an image without a label is exact. Beside it the same classifier,
trained on the labelled images alone. Labelled images are repeated until they are half of an epoch.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import jax
import numpy as np

import vae_jax
from vae_jax import Evaluation, Fitted, core, nets
from vae_jax.command import publish
from vae_jax.command.config import Adam, Images, at_least, checked, read_back
from vae_jax.command.cosine_adam import warm_cosine
from vae_jax.command.image_report import learning_curve, picture
from vae_jax.command.images import Split, load_splits
from vae_jax.command.placement import Placed, evaluate_on, fit_on
from vae_jax.command.results import over_batch
from vae_jax.data import preprocess
from vae_jax.evaluation import Mean, mean
from vae_jax.report import page
from vae_jax.systems import class_probabilities, partly_labelled


@dataclasses.dataclass(frozen=True)
class Config(Images, Adam, Placed):
    """Train a classifier with few labels, with and without images that have none."""

    labels: tuple[int, ...] = (100,)
    """Labelled images, the same number of each class; one training for each number."""
    latent: int = 32
    """Dimensions of z."""
    hidden: tuple[int, ...] = (300,)
    """Hidden layers of every network."""
    weight: Annotated[float, at_least(0)] = 20.0
    """Of the classifier's own loss on labelled images, beside their bound."""
    epochs: int = 60
    """Passes over all images."""
    out: str = "runs/few_labels"


class Result(NamedTuple):
    """What was learnt from some labels."""

    labels: int
    fitted: Fitted
    test: Evaluation
    wrong: Mean
    wrong_alone: Mean


def build(config: Config, shape: tuple[int, ...], classes: int) -> tuple[Any, vae_jax.Conditional, vae_jax.Model]:
    """(the classifier's network, P_gen(y|z, c), the model of images and classes)."""
    classifier = nets.MLP(config.hidden, classes)
    encoder = vae_jax.gaussian(nets.MLP(config.hidden, 2 * config.latent))
    generator = vae_jax.bernoulli(nets.MLP(config.hidden, shape))
    inner = vae_jax.vae(encoder, vae_jax.standard_normal(config.latent), generator, estimator=vae_jax.analytic)
    return classifier, generator, partly_labelled(classifier, inner, classes, weight=config.weight)


def rebuild(*, shape: Sequence[int], classes: int, **fields: Any) -> tuple[vae_jax.Model, preprocess.Preprocess]:
    """The model of images and classes, for `vae_jax.open_run`."""
    return build(read_back(Config, fields), tuple(shape), classes)[2], preprocess.dynamic_binarisation()


def chosen(labels: np.ndarray, n: int, classes: int, seed: int) -> np.ndarray:
    """Places of n images, as many of each class as can be."""
    rng = np.random.default_rng(seed)
    by_class = [rng.permutation(np.flatnonzero(labels == k)) for k in range(classes)]
    return np.sort(np.concatenate([places[: n // classes + (k < n % classes)] for k, places in enumerate(by_class)]))


def train(config: Config, n: int, splits: Sequence[Split], classes: int) -> Result:
    """Both classifiers, from n labels."""
    training, _, test = splits
    assert training.labels is not None and test.labels is not None
    prepare, shape = preprocess.dynamic_binarisation(), training.ys.shape[1:]
    classifier, _, model = build(config, shape, classes)
    k_fit, k_evaluate, k_alone, k_test = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), n), 4)
    known = chosen(training.labels, n, classes, config.seed)
    again = np.resize(known, len(training.ys))
    ys = np.concatenate([training.ys, training.ys[again]])
    cs = np.concatenate([np.full(len(training.ys), -1), training.labels[again]]).astype(np.int32)
    batch = min(config.batch_size, len(ys))
    steps = max(1, config.epochs * (len(ys) // batch))
    options: dict[str, Any] = {"batch_size": batch, "preprocess": prepare, "progress": True}
    fitted = fit_on(
        config, model, warm_cosine(config.learning_rate, steps), ys, cs, key=k_fit, epochs=config.epochs, **options
    )
    unknown = np.full(len(test.ys), -1, np.int32)
    result = evaluate_on(config, model, fitted.params, k_evaluate, test.ys, unknown, preprocess=prepare)
    wrong = _wrong(lambda params, y: class_probabilities(classifier, params, y), fitted.params, k_test, test, prepare)
    params = alone(config, classifier, training.ys[known], training.labels[known], k_alone, prepare)
    network = core.as_network(classifier)
    wrong_alone = _wrong(network.apply, params, k_test, test, prepare)
    return Result(n, fitted, result, wrong, wrong_alone)


def alone(config: Config, classifier: Any, ys: np.ndarray, labels: np.ndarray, key: jax.Array, prepare: Any) -> Any:
    """Parameters of the classifier, trained on labelled images: P(c|y) is a model of classes given images."""
    seen = np.asarray(jax.vmap(prepare.apply)(jax.random.split(key, len(ys)), ys))
    batch, epochs = min(config.batch_size, len(ys)), 50 if config.smoke else 200
    optimizer = warm_cosine(config.learning_rate, max(1, epochs * (len(ys) // batch)))
    model = core.lift(vae_jax.categorical(classifier))
    fitted = vae_jax.fit(
        model, optimizer, labels.astype(np.int32), seen, key=key, epochs=epochs, batch_size=batch, progress=False
    )
    return fitted.params


def _wrong(scores: Any, params: Any, key: jax.Array, test: Split, prepare: preprocess.Preprocess) -> Mean:
    """The part of the test images that gets another class."""

    def one(params, key, y):
        return scores(params, prepare.apply(key, y)).argmax()

    found = over_batch(one, params, jax.random.split(key, len(test.ys)), test.ys, at_once=1000)
    return mean(np.asarray(found != test.labels, np.float64))


def table(results: Sequence[Result], n: int) -> list[page.Row]:
    """Errors with and without unlabelled images, and the bound of images without labels."""
    rows = []
    for labels, fitted, test, wrong, wrong_alone in results:
        rows += [
            page.Row(f"{labels} labels: error", *wrong, f"part of {n} test images; with all images"),
            page.Row(
                f"{labels} labels: error, labels alone", *wrong_alone, "the same classifier, labelled images only"
            ),
            page.Row(
                f"{labels} labels: ELBO", *mean(test.elbo), f"nats per image without its label, {test.convention}"
            ),
            page.Row(f"{labels} labels: training speed", fitted.images_per_second, None, "images/s"),
        ]
    return rows


def sections(results: Sequence[Result], drawn: np.ndarray, names: Sequence[str]) -> list[page.Section]:
    """What the last model draws of each class, and the learning curve of each."""
    histories = {f"{result.labels} labels": result.fitted.history for result in results}
    return [
        page.Section(
            "Classes",
            "A class in each column, the same z along each row: means of P_gen(y|z, c).",
            [picture(drawn, len(names), "samples by class", above=names)],
        ),
        learning_curve(histories, note="Half of the images have labels, and the bound of these is on ln P(y, c)."),
    ]


@publish.timed
def main(config: Config) -> dict[str, Any]:
    """Train for each number of labels, evaluate, report; returns the numbers of the table.

    Raises:
        ValueError: data without labels, or fewer labels than classes.
    """
    config = checked(config)
    if config.smoke:
        config = dataclasses.replace(config, epochs=2, hidden=(32,), latent=4, labels=(20,))
    *splits, source = load_splits(config.data, smoke=config.smoke)
    training = splits[0]
    if training.labels is None:
        raise ValueError(f"{config.data} has no labels, and this experiment learns classes")
    classes = len(source.label_names or ()) or int(training.labels.max()) + 1
    if min(config.labels) < classes:
        raise ValueError(f"labels={config.labels}: want one of each of the {classes} classes at least")
    results = [train(config, n, splits, classes) for n in config.labels]
    last, shape = results[-1], training.ys.shape[1:]
    publish.save(
        config,
        rebuild,
        last.fitted.params,
        training.ys[0],
        np.int32(-1),
        history=last.fitted.history,
        shape=shape,
        classes=classes,
    )
    _, generator, _ = build(config, shape, classes)
    zs = np.repeat(np.random.default_rng(config.seed).normal(size=(6, config.latent)), classes, axis=0)
    of_classes = np.tile(np.eye(classes, dtype=np.float32), (6, 1))

    def show(params, key, z, c):
        return generator.dist(params["gen"]["gen"], (z, c)).mean

    keys = jax.random.split(jax.random.key(0), len(zs))
    drawn = over_batch(show, last.fitted.params, keys, zs.astype(np.float32), of_classes)
    return publish.write(
        "few_labels",
        config,
        title=f"Few labels on {config.data}",
        lead=(
            f"{len(training.ys)} training images of shape {shape}, of which {', '.join(map(str, config.labels))} have "
            f"a label; {config.epochs} epochs. Data: {source.source}."
        ),
        table=table(results, len(splits[2].ys)),
        sections=sections(results, drawn, source.label_names or [str(k) for k in range(classes)]),
    )


if __name__ == "__main__":
    publish.run(main, Config)
