"""Libraries that only some users need: imported where they are used, and named where they are missing."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def extra(name: str, purpose: str) -> Iterator[None]:
    """Around an import: what is missing is said with the command that installs it.

        with extra("ode", "an exact likelihood"):
            import diffrax

    Raises:
        ImportError: the library is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(f"{purpose} needs the package {error.name}: pip install 'vae_jax[{name}]'") from error
