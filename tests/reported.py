"""What the report of every experiment holds."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vae_jax import __version__
from vae_jax.command.publish import SMOKE


def check_report(folder: Path, config: Any, numbers: dict[str, Any], titles: tuple[str, ...]) -> None:
    """The page holds its sections and every option, says whether it is a smoke run, and how it was made."""
    assert np.isfinite(list(numbers.values())).all()
    page = (folder / "report.html").read_text()
    for word in (*titles, *(field.name for field in dataclasses.fields(config))):
        assert word in page, word
    assert (SMOKE in page) == config.smoke
    foot = page.split("<footer>")[1]
    for word in ("Made in ", jax.devices()[0].device_kind, f"vae_jax {__version__}", f"jax {jax.__version__}"):
        assert word in foot, word
