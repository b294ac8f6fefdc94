"""The version, alone, so that building the package imports nothing else."""

__version__ = "0.2.0"
"""The version of the package."""
