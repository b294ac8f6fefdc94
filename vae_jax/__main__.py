"""`python -m vae_jax`, and the console command `vae-jax`: see `vae_jax.command`."""

import os
import sys


def main() -> None:
    """The command line; an error is one line. As with `python -m`, recipes are found in the folder that one is in."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        from vae_jax.command.main import main as command
    except ImportError as error:
        sys.exit(f"error: {error}")
    command()


if __name__ == "__main__":
    main()
