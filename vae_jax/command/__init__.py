"""The command line, `vae-jax` or `python -m vae_jax`: a VAE of images from data to report, and what opens it again.

`main` has the commands, `train` is the one that trains. `config` says the options that runs have, `placement` where
they train, `images` what they are given, `publish` how they end; the experiments are made of the same.
"""
