"""From a model to trained parameters: one pure step, the loop around it, and runs that survive.

`step` is what jit, a sharded batch and pmap run, `sharding` says where, `loop` (`fit`) drives it on the host, one
of several processes where there is a `pod`. `run`, with `checkpoint` and `run_directory`, keeps what it has reached.
"""

from vae_jax.core.mesh import batch_sharding, replicated
from vae_jax.training.exported import export
from vae_jax.training.loop import Fitted, fit
from vae_jax.training.preemption import Preempted
from vae_jax.training.processes import pod
from vae_jax.training.recipes import Recipe, recipe
from vae_jax.training.sharding import fsdp, shardings
from vae_jax.training.step import TrainState, Turns, init_state, lagging, make_scan, make_train_step
from vae_jax.training.trained import Trained, open_run, save_run

__all__ = [
    "Fitted", "Preempted", "Recipe", "TrainState", "Trained", "Turns", "batch_sharding", "export", "fit", "fsdp",
    "init_state", "lagging", "make_scan", "make_train_step", "open_run", "pod", "recipe", "replicated", "save_run",
    "shardings",
]  # fmt: skip
