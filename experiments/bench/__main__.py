"""Speed, as ratios and as shares of what the machine can do. Contestants run in turn, in one process.

    python -m experiments.bench                   # everything; peers where they are installed
    python -m experiments.bench --rounds 9        # more rounds
    python -m experiments.bench --only start      # one part of it

Each row gives the median over the rounds, their spread (min .. max), the share of the machine's ceiling (see
`experiments.bench.ceiling`), and the median of the ratio to the first row, round by round.
"""

import dataclasses
import itertools
import resource
from collections.abc import Callable
from typing import Literal

import tyro

from experiments.bench import codebook, em, evaluation, filters, image_vaes, language, scaling, start, unet
from experiments.bench.compare import compare

Part = Literal[
    "all", "start", "fc", "conv", "unet", "language", "codebook", "filters", "mixture", "hmm", "evaluation", "scaling"
]


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare speeds."""

    rounds: int = 5
    """Rounds; every contestant runs once in each."""
    only: Part = "all"
    """What to compare."""
    data: str = "fashion_mnist"
    """Data set of 28x28 images (fashion_mnist_mini where the full one is missing)."""
    images: int | None = None
    """Images in an epoch (default: 25,600 for fc, 6,400 for conv)."""


def of_start(config: Config) -> None:
    start.start_up(min(config.rounds, 3))


def of_fc(config: Config) -> None:
    pixels = image_vaes.load_pixels(config.data)[: config.images or 25_600]
    work = image_vaes.work(image_vaes.fully_connected_model())
    count = len(pixels) // image_vaes.BATCH * image_vaes.BATCH
    title = "FC-VAE 784-500-20, dynamic binarisation"
    compare(title, image_vaes.fully_connected(pixels), work, count, config.rounds)
    share = image_vaes.host_share(pixels, config.rounds)
    print(f"  what fit does besides its compiled loop takes {share:.1%} of its time")


def of_conv(config: Config) -> None:
    pixels = image_vaes.load_pixels(config.data)[: config.images or 6_400]
    work = image_vaes.work(image_vaes.convolutional_model())
    count = len(pixels) // image_vaes.BATCH * image_vaes.BATCH
    compare("Convolutional VAE 32-64-128", image_vaes.convolutional(pixels), work, count, config.rounds)


def of_unet(config: Config) -> None:
    title = "U-Net 32-64-64 on 28x28, attention at 14 and 7, noise prediction, batch 32"
    compare(title, *unet.contestants(image_vaes.load_pixels(config.data)), unet.IMAGES, config.rounds)


def of_language(config: Config) -> None:
    title = "Language model, LSTM of 256, vocabulary of 8,000, batches of 32 sentences of 20"
    compare(title, *language.contestants(), language.TOKENS, config.rounds, unit="tokens")


def of_codebook(config: Config) -> None:
    title = "Codebook of 1,024 codes, vectors of 64 numbers: look-up and moving-average update, float32"
    error = "mean squared error"
    compare(title, *codebook.contestants(), codebook.VECTORS, config.rounds, unit="vectors", result=error)


def of_filters(config: Config) -> None:
    for count, parallel in itertools.product((1, filters.SEQUENCES), (False, True)):
        title = f"Kalman filter in {'parallel' if parallel else 'steps'}, 4 states, 6 numbers a step, float32"
        run = filters.contestants(count, parallel=parallel)
        compare(title, *run, count * filters.LENGTH, config.rounds, unit="steps", result="mean ln P")


def of_mixture(config: Config) -> None:
    rows = em.projected(image_vaes.load_pixels(config.data)[: config.images], 50)
    title = "EM of a mixture of 50 Gaussians with full covariances in 50 dimensions, float32"
    count = len(rows) * em.ITERATIONS
    compare(title, *em.mixtures(rows, 50), count, config.rounds, unit="rows", result="mean ln P")


def of_hmm(config: Config) -> None:
    ys, begin = em.sequences(200, 500, 8, 32)
    title = "Baum-Welch of a hidden Markov model of 8 states and 32 symbols on 200 sequences of 500, float32"
    run = em.hidden_markov_models(ys, begin)
    compare(title, *run, ys.size * em.ITERATIONS, config.rounds, unit="symbols", result="mean ln P")


def of_evaluation(config: Config) -> None:
    pixels = image_vaes.load_pixels(config.data)
    title = f"ln P(y) by {evaluation.SAMPLES:,} importance samples, FC-VAE"
    run = evaluation.contestants(pixels)
    compare(title, *run, evaluation.IMAGES, min(config.rounds, 3), result="ln P(y) at least")
    evaluation.certificates(pixels)


def of_scaling(config: Config) -> None:
    scaling.scaling()


PARTS: dict[str, Callable[[Config], None]] = {
    "start": of_start,
    "fc": of_fc,
    "conv": of_conv,
    "unet": of_unet,
    "language": of_language,
    "codebook": of_codebook,
    "filters": of_filters,
    "mixture": of_mixture,
    "hmm": of_hmm,
    "evaluation": of_evaluation,
    "scaling": of_scaling,
}


def main(config: Config) -> None:
    """Print the tables."""
    for name, part in PARTS.items():
        if config.only in ("all", name):
            part(config)
    print(f"\npeak memory of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main(tyro.cli(Config))
