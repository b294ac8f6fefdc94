"""Train a VAE of images on all devices of a pod. Copy this file and image_vae.py, and change the model and the data.

Every host runs it, with the same arguments; README.md beside it says how to start it there. On one machine:

    JAX_COORDINATOR_ADDRESS=localhost:9000 JAX_NUM_PROCESSES=1 JAX_PROCESS_ID=0 python train.py --directory runs/pod
"""

import argparse
import sys

import jax
import numpy as np
import optax
from image_vae import build

import vae_jax
from vae_jax import data
from vae_jax.evaluation import mean
from vae_jax.training import Preempted, pod, recipe

AGAIN = 75  # the exit code of "not at its end: start me again"


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a VAE of images on all devices of a pod.")
    add = parser.add_argument
    add("--directory", required=True, help="of the run, which all hosts see: gs://bucket/run, or on a shared disk")
    add("--images", help="an .npy file of uint8 images (n, height, width, channels); a small packaged set without")
    add("--steps", type=int, default=2000, help="length of the run")
    add("--record-every", type=int, default=500, help="steps from one checkpoint and validation to the next")
    add("--batch-size", type=int, default=512, help="examples in a step, over all devices")
    add("--fsdp", type=int, default=1, help="devices over which parameters are split; 1: each has all of them")
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    """What each process does: all call the same functions in the same order."""
    # All devices of all hosts. A batch is split over both axes, parameters over the second one.
    mesh = jax.make_mesh((jax.device_count() // args.fsdp, args.fsdp), ("data", "fsdp"))

    # Nothing is loaded here: each process reads its own examples of each batch, when they are needed.
    images = np.load(args.images, mmap_mode="r") if args.images else data.load("fashion_mnist_mini", "train").ys
    held_out = min(1000, len(images) // 10)
    train, valid = images[:-held_out], images[-held_out:]

    shape = images.shape[1:]
    model, preprocess = build(shape)
    fitted = vae_jax.fit(
        model,
        optax.adam(optax.cosine_decay_schedule(1e-3, args.steps)),
        train,
        key=jax.random.key(0),
        steps=args.steps,
        batch_size=args.batch_size,
        preprocess=preprocess,
        validation=(valid, None),
        record_every=args.record_every,
        directory=args.directory,
        recipe=recipe(build, shape=shape),  # how open_run builds the model again
        resume=True,  # the same command starts the run and continues it
        mesh=mesh,
        sharding="fsdp" if args.fsdp > 1 else "replicated",
    )
    key = jax.random.key(1)
    result = vae_jax.evaluate(model, fitted.params, key, valid, preprocess=preprocess, k=50, mesh=mesh)
    if jax.process_index() == 0:  # all have the numbers
        print(f"ELBO {mean(result.elbo)} nats, ln P(y) at least {mean(result.log_likelihood)} nats")


if __name__ == "__main__":
    args = options()
    try:
        with pod():  # before anything else of jax; a process that fails or is lost ends the others
            main(args)
    except Preempted as stopped:  # SIGTERM: the state is saved
        print(stopped, file=sys.stderr)
        sys.exit(AGAIN)
