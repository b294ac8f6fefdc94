"""`python -m vae_jax.selfcheck`: the library on this machine's device against numbers that are known exactly.

A file of checks per subject; `check.py` is what a check is, `solvable.py` the models that they share.
"""
