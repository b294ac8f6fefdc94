"""Training by Adam with steps that become smaller."""

from typing import Any, NamedTuple

import jax
import optax

import vae_jax
from vae_jax import Fitted
from vae_jax.command.placement import Placed, fit_on


class Training(NamedTuple):
    """Adam with a rate that falls from its peak to 0 along a cosine, in batches, for so many epochs.

    Weights decay by `decay` / examples: as a prior on them would, which counts the less, the more examples there are.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    decay: float = 0.0

    def steps(self, examples: int) -> int:
        """At least 1: what is left over at the end of an epoch is no batch."""
        return max(1, self.epochs * (examples // self.batch_size))

    def optimizer(self, examples: int) -> optax.GradientTransformation:
        return cosine_adam(self.learning_rate, self.steps(examples), self.decay / examples)

    def fit(self, config: Placed, model: vae_jax.Model, ys: Any, key: jax.Array, **options: Any) -> Fitted:
        """`fit_on` with this optimizer, and options of its own."""
        adam = self.optimizer(len(ys))
        how: dict[str, Any] = {"epochs": self.epochs, "batch_size": self.batch_size, **options}
        return fit_on(config, model, adam, ys, key=key, **how)


def cosine_adam(peak: float, steps: int, decay: float = 0.0) -> optax.GradientTransformation:
    """Adam whose rate falls from its peak to 0 along a cosine; matrices of weights decay by `decay` times that rate."""
    falling = optax.cosine_decay_schedule(peak, steps)
    return optax.adamw(falling, weight_decay=decay, mask=_matrices) if decay else optax.adam(falling)


def _matrices(params: Any) -> Any:
    """Which parameters decay: neither offsets nor what is said of noise."""
    return jax.tree.map(lambda x: x.ndim > 1, params)


def warm_cosine(peak: float, steps: int) -> optax.GradientTransformation:
    """Adam whose rate first rises from 0, during a twentieth of the steps: large first steps harm some networks."""
    return optax.adam(optax.warmup_cosine_decay_schedule(0.0, peak, max(1, steps // 20), steps))
