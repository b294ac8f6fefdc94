"""What the report of every experiment holds."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np


def check_report(folder: Path, config: Any, numbers: dict[str, Any], titles: tuple[str, ...]) -> None:
    """The page holds its sections and every option; the numbers are finite."""
    assert np.isfinite(list(numbers.values())).all()
    page = (folder / "report.html").read_text()
    for word in (*titles, *(field.name for field in dataclasses.fields(config))):
        assert word in page, word
