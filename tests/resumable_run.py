"""A small run with everything in its state, for tests/test_resume.py to kill: python resumable_run.py FOLDER EPOCHS.

Writes the run to FOLDER/run and, at the end, the result's leaves to FOLDER/result.npz.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint  # noqa: F401  before "ready", so that no kill is wasted on the import

from vae_jax import bernoulli, fit, gaussian, standard_normal, vae
from vae_jax.data import dynamic_binarisation


def affine(size):
    """x -> weights @ x + bias."""
    return (
        lambda key, x: {"weights": 0.1 * jax.random.normal(key, (size, x.size)), "bias": jnp.zeros(size)},
        lambda params, x: params["weights"] @ x.ravel() + params["bias"],
    )


def main(folder: Path, epochs: int) -> None:
    """1200 steps an epoch, in 12 calls; noise in the data and in z, a schedule, a moving average, validation."""
    rng = np.random.default_rng(0)
    levels = np.clip(128 + 40 * rng.normal(size=(9_904, 2)) @ rng.normal(size=(2, 12)), 0, 255).astype(np.uint8)
    model = vae(gaussian(affine(4)), standard_normal(2), bernoulli(affine(12)))
    fitted = fit(
        model,
        optax.adam(optax.cosine_decay_schedule(1e-2, 1200 * epochs)),
        levels[300:],
        key=jax.random.key(0),
        epochs=epochs,
        batch_size=8,
        preprocess=dynamic_binarisation(),
        validation=(levels[:300], None),
        directory=folder / "run",
        config={"epochs": epochs},
        resume=True,
        ema_decay=0.99,
        progress=False,
    )
    leaves, _ = jax.tree_util.tree_flatten_with_path((fitted.state, fitted.params))
    np.savez(folder / "result.npz", **{jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves})


if __name__ == "__main__":
    print("ready", flush=True)
    sys.stdin.readline()
    main(Path(sys.argv[1]), int(sys.argv[2]))
