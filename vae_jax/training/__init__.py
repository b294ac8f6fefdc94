"""From a model to trained parameters: one pure step, the loop around it, and runs that survive.

`step` is what jit, a sharded batch and pmap run, `loop` (`fit`) drives it on the host, `checkpoint` and `run_directory`
keep what it has reached.
"""

from vae_jax.training.loop import Fitted, fit
from vae_jax.training.step import (
    TrainState,
    Turns,
    batch_sharding,
    init_state,
    lagging,
    make_scan,
    make_train_step,
    replicated,
)

__all__ = [
    "Fitted", "TrainState", "Turns", "batch_sharding", "fit", "init_state", "lagging", "make_scan", "make_train_step",
    "replicated",
]  # fmt: skip
