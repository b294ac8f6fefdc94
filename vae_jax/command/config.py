"""The options that many experiments have, each with its meaning said once; an experiment adds its own and its defaults.

`tyro` makes the command line of the fields: an experiment that only changes a default inherits the explanation.
Whole numbers are at least 1 and others above 0, unless the `Annotated` type of the field says otherwise; see `checked`.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_type_hints

from vae_jax.command.cosine_adam import Training
from vae_jax.command.placement import Placed, mesh_of
from vae_jax.data.local import path_of


class Range(NamedTuple):
    """The numbers that an option takes; each of them, where it takes several."""

    words: str
    holds: Callable[[Any], bool]


def at_least(low: int) -> Range:
    return Range(f"at least {low}", lambda x: x >= low)


POSITIVE = Range("above 0", lambda x: x > 0)
SEED = Range("from 0 to 4294967295", lambda x: 0 <= x < 2**32)
SHARE = Range("at least 0 and below 1", lambda x: 0 <= x < 1)


@dataclasses.dataclass(frozen=True)
class Run:
    """What every experiment is told."""

    seed: Annotated[int, SEED] = 0
    """Seed of everything random."""
    out: str = "runs"
    """Directory of the report, and of the checkpoints, metrics and TensorBoard events of a run that keeps them; local,
    or gs://bucket/path."""
    smoke: bool = False
    """About a minute in place of many: few examples, one or two epochs, small networks. To see that all works. A second
    one into the same `out` goes on from there."""


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


Config = TypeVar("Config", bound=Run)


def checked(config: Config) -> Config:
    """The configuration, with ~ in `out` expanded.

    Raises:
        ValueError: a number is not finite or out of its range, or there is no such mesh of devices.
    """
    if isinstance(config, Placed):
        mesh_of(config)
    check_numbers(config)
    return config if "://" in config.out else dataclasses.replace(config, out=str(path_of(config.out)))


def check_numbers(config: Any) -> None:
    """Raise a ValueError for an option that is not finite, or out of its range."""
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        whole = float not in _inside(hint)
        ranges = [one for one in _inside(hint) if isinstance(one, Range)] or [at_least(1) if whole else POSITIVE]
        wanted = f"want a {'whole' if whole else 'finite'} number, {ranges[0].words}"
        value = getattr(config, name)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, numbers.Real) and not isinstance(one, bool):
                right = isinstance(one, numbers.Integral) if whole else math.isfinite(one)
                if not (right and ranges[0].holds(one)):
                    raise ValueError(f"{name}={value}: {wanted}")


def read_back(config: type[Config], fields: Mapping[str, Any]) -> Config:
    """The configuration whose fields these are, as JSON gives them back; those that are not there have their defaults.

    Raises:
        ValueError: a field that this experiment does not have.
    """
    known = {field.name for field in dataclasses.fields(config)}
    if unknown := sorted(set(fields) - known):
        raise ValueError(f"{config.__module__} has no option {unknown[0]}: was this written by another version?")
    return config(**{name: _tupled(value) for name, value in fields.items()})


def _tupled(value: Any) -> Any:
    """JSON has lists where the options have tuples."""
    return tuple(_tupled(each) for each in value) if isinstance(value, list) else value


def _inside(hint: Any) -> list[Any]:
    """A type, what it is made of, and what is said about it."""
    return [hint, *getattr(hint, "__metadata__", ()), *(x for inner in get_args(hint) for x in _inside(inner))]


AdamConfig = TypeVar("AdamConfig", bound=Adam)


def fitting(config: AdamConfig, examples: int, default: int | None = None) -> AdamConfig:
    """With a batch no larger than the data, and said so; one that was asked for is left, for `fit` to refuse."""
    chosen = config.batch_size != (default or type(config).batch_size) and not config.smoke
    if config.batch_size <= examples or chosen:
        return config
    print(f"batch_size={examples}: all training examples, which are fewer than {config.batch_size}")
    return dataclasses.replace(config, batch_size=examples)
