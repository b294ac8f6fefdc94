"""The default experiment: a variational auto-encoder of images, trained, evaluated and reported.

    python -m experiments.vae                 # Fashion-MNIST mini, fully connected, 20 latents, 30 epochs
    python -m experiments.vae --help          # every option
    python -m experiments.vae --data ~/pictures --network conv --likelihood l2 --out runs/pictures

It is what `vae-jax train` runs, wherever the package is installed: `vae_jax.command.train`.
"""

from vae_jax.command import publish
from vae_jax.command.train import Config, main

if __name__ == "__main__":
    publish.run(main, Config)
