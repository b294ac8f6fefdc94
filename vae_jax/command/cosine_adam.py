"""Training by Adam with steps that become smaller."""

from typing import Any, NamedTuple

import jax
import optax

import vae_jax
from vae_jax import Fitted
from vae_jax.command.placement import Placed, fit_on


class Training(NamedTuple):
    """Adam with a rate that falls from its peak to 0 along a cosine, in batches, for so many epochs."""

    epochs: int
    batch_size: int
    learning_rate: float

    def steps(self, examples: int) -> int:
        """At least 1: what is left over at the end of an epoch is no batch."""
        return max(1, self.epochs * (examples // self.batch_size))

    def optimizer(self, examples: int) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(self.learning_rate, self.steps(examples)))

    def fit(self, config: Placed, model: vae_jax.Model, ys: Any, key: jax.Array, **options: Any) -> Fitted:
        """`fit_on` with this optimizer, and options of its own."""
        adam = self.optimizer(len(ys))
        how: dict[str, Any] = {"epochs": self.epochs, "batch_size": self.batch_size, **options}
        return fit_on(config, model, adam, ys, key=key, **how)


def warm_cosine(peak: float, steps: int) -> optax.GradientTransformation:
    """Adam whose rate first rises from 0, during a twentieth of the steps: large first steps harm some networks."""
    return optax.adam(optax.warmup_cosine_decay_schedule(0.0, peak, max(1, steps // 20), steps))
