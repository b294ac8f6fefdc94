"""One file per result. Run as modules from the repository's root: `python -m experiments.vae --help`."""
