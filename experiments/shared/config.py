"""The options that many experiments have, each with its meaning said once; an experiment adds its own and its defaults.

`tyro` makes the command line of the fields: an experiment that only changes a default inherits the explanation.
"""

import dataclasses
from typing import Literal

from experiments.shared.training import Training


@dataclasses.dataclass(frozen=True)
class Run:
    """What every experiment is told."""

    seed: int = 0
    """Seed of everything random."""
    out: str = "runs"
    """Directory of the report, and of the checkpoints, metrics and TensorBoard events of a run that keeps them."""
    smoke: bool = False
    """A few seconds in place of minutes: few examples, one or two epochs, small networks. To see that all works."""


@dataclasses.dataclass(frozen=True)
class Resumable(Run):
    """A run that keeps its checkpoints in `out`."""

    resume: bool = False
    """Continue the run in `out`, if there is one."""


@dataclasses.dataclass(frozen=True)
class Images(Run):
    """An experiment on images."""

    data: str = "fashion_mnist_mini"
    """Data set: fashion_mnist_mini, emoji_mini, fashion_mnist, a file (npz, npy, IDX), a folder of images, or a name
    that tensorflow-datasets has prepared."""


@dataclasses.dataclass(frozen=True)
class ImageVAE(Images):
    """A VAE of images."""

    likelihood: Literal["bernoulli", "l2", "discretised-logistic", "categorical"] = "bernoulli"
    """P_gen(y|z): bernoulli on binarised pixels, l2 on dequantised ones, the others on the 256 levels."""
    hidden: tuple[int, ...] = (500,)
    """Hidden layers of encoder and generator, where these are of fully connected layers (mlp)."""
    latent: int = 20
    """Dimensions of z."""


@dataclasses.dataclass(frozen=True)
class Adam(Run):
    """Training by Adam in batches."""

    epochs: int = 30
    """Passes over the training data; for each model, where there are several."""
    batch_size: int = 100
    """Examples in a step."""
    learning_rate: float = 1e-3
    """Adam's learning rate."""


@dataclasses.dataclass(frozen=True)
class CosineAdam(Adam):
    """Training by Adam in batches, with ever smaller steps."""

    learning_rate: float = 3e-3
    """Adam's learning rate at its peak; it falls to 0 along a cosine, for each model anew."""

    @property
    def training(self) -> Training:
        """These options, as what trains."""
        return Training(self.epochs, self.batch_size, self.learning_rate)
