"""Strict settings for every test: no silent rank promotion, no reused key, four devices, shapes checked.

The environment is set here, before jax is imported. Shapes in annotations are enforced by jaxtyping's import hook with
beartype as its checker, in the tests only.
"""

import ctypes
import functools
import gc
import math
import os
from collections import Counter
from importlib import metadata
from pathlib import Path

# Nearly all of the time of these tests is compiling, and what they compile is too small to profit from being optimised.
# `make test-all` compiles as users do. What was compiled is kept in a folder: the second run takes a part of the first.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its threads turn in circles while they wait
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=4",
        "--xla_cpu_multi_thread_eigen=false",  # two processes run side by side
    ]
    + ("COMPILED_AS_USERS_DO" not in os.environ)
    * [
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",
        # Its elder compiles the same in a third of the time. jaxlib 0.12 has it no more, and takes no unknown flag.
        *metadata.version("jaxlib").startswith(("0.7.", "0.10.")) * ["--xla_cpu_use_fusion_emitters=false"],
    ]
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", ".hypothesis")

import jax
import pytest
from hypothesis import HealthCheck, settings
from jax._src.interpreters import mlir
from jaxtyping import install_import_hook
from thorough import AFTER_ALL, INSTANCES

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_traceback_in_locations_limit", 0)  # nothing here reads where an operation was written
gc.set_threshold(100_000, 50, 50)  # traces are many small objects that live for a moment
# jax makes an MLIR context anew for each program: 7 of the 10 ms that the lowering of a small one takes, and there are
# 13,000 in these tests. One serves them all. To be deleted when jax keeps its own (0.10.2 and 0.12 do not).
mlir.make_ir_context = functools.cache(mlir.make_ir_context)
MOST_BYTES, MOST_MAPS = 3 * 2**29, 20_000

# Where shapes are written, and nowhere else: the checker decorates inner functions anew at each call of the outer one.
checked = [f"vae_jax.{room}" for room in ("nets", "data", "report", "text", "evaluation.accounting")]
install_import_hook(checked, "beartype.beartype").__enter__()

settings.register_profile(
    "house", deadline=None, max_examples=20, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("house")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark what `thorough.py` leaves to `make test-all`, further instances of a test or all of it, and to `.ci/run`."""
    seen = Counter()
    for item in items:
        name = f"{item.path.name}::{item.originalname}"
        over = item.get_closest_marker("over")
        if over:
            further = not set(item.callspec.params.values()) & set(over.args[0])
        else:
            further = seen[name] >= INSTANCES.get(name, math.inf)
        seen[name] += 1
        if further:
            item.add_marker(over.kwargs.get("others", "thorough") if over else "thorough")
        elif name in AFTER_ALL:
            item.add_marker("afterwards")


@pytest.fixture
def x64():
    """Double precision for one test."""
    from vae_jax.core.older_jax import enable_x64  # not before the import hook

    with enable_x64(True):
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
    """Let go of compiled programs before they are too many: they take memory, and each takes memory maps, of which
    Linux allows a process 65,530; beyond that the compiler crashes."""
    yield
    maps, sizes = Path("/proc/self/maps"), Path("/proc/self/statm")
    if not maps.exists():
        return
    resident = int(sizes.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if resident > MOST_BYTES or maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        mlir.make_ir_context.cache_clear()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system
