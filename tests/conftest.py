"""Strict settings for every test: no silent rank promotion, no reused key, four devices, shapes checked.

The environment is set here, before jax is imported. Shapes in annotations are enforced by jaxtyping's import hook with
beartype as its checker, in the tests only.
"""

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
        "--xla_backend_optimization_level=0",  # what tests compile is small: compiling takes longer than running it
        "--xla_cpu_multi_thread_eigen=false",  # two processes run side by side
    ]
)
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", ".hypothesis")

import jax
import pytest
from hypothesis import HealthCheck, settings
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_rank_promotion", "raise")

install_import_hook("vae_jax", "beartype.beartype").__enter__()

settings.register_profile(
    "house", deadline=None, max_examples=20, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("house")


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def one_use_keys():
    """Raise where a key is used twice."""
    with jax.debug_key_reuse(True):
        yield


@pytest.fixture(scope="module")
def quickly_compiled():
    """For tests of what runs for moments and is compiled for seconds."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Let go of compiled programs before they are too many: each takes memory maps, of which Linux allows a process
    65,530, and beyond that the compiler crashes."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
