"""Compare the library with numbers that are known exactly, on the device that jax has chosen.

    python -m vae_jax.selfcheck          # float32
    python -m vae_jax.selfcheck --x64    # float64, tight tolerances

Products of matrices are taken at the highest precision, since accelerators round their inputs by default: the header
says how much that costs here. Exit status 1 if an identity does not hold.
"""

import dataclasses
import functools
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax._version import __version__
from vae_jax.core.extras import extra
from vae_jax.core.older_jax import enable_x64
from vae_jax.selfcheck import (
    checks_bayes,
    checks_bounds,
    checks_codec,
    checks_composition,
    checks_diffusion,
    checks_discrete,
    checks_em,
    checks_gradients,
    checks_likelihoods,
    checks_linear,
    checks_sequences,
    checks_tables,
)
from vae_jax.selfcheck.check import ERRORS, Check, Verdict, compare

SUBJECTS = (
    checks_bounds,
    checks_gradients,
    checks_linear,
    checks_likelihoods,
    checks_bayes,
    checks_em,
    checks_diffusion,
    checks_discrete,
    checks_sequences,
    checks_composition,
    checks_codec,
    checks_tables,
)
CHECKS = sorted((check for subject in SUBJECTS for check in subject.CHECKS), key=lambda check: check.oracle)
PRECISION = "highest"


@dataclasses.dataclass(frozen=True)
class Config:
    """Compare the library with numbers that are known exactly, on this machine's device."""

    x64: bool = False
    """In float64, with tolerances to match."""


def main(config: Config, checks: Sequence[Check] = CHECKS) -> int:
    """Print the table; the exit status, 1 if an identity does not hold."""
    start = time.perf_counter()
    print(header(config), end="\n\n")
    print(line("identity", "expected", "obtained", "difference", "tolerance"), flush=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # most of the time goes into compiling, which Python does not lock
        found = pool.map(functools.partial(verdicts, config), checks)
        failed = [check for check, verdicts in zip(checks, found, strict=True) if not show(check, verdicts)]
    print(f"\n{len(checks) - len(failed)} of {len(checks)} identities hold; {time.perf_counter() - start:.0f} s")
    for check in failed:
        print(f"FAIL {check.oracle} {check.name}")
    return int(bool(failed))


def verdicts(config: Config, check: Check) -> list[Verdict] | Exception:
    """What comes out of a check; or what it raises, so that the others still run."""
    try:
        with enable_x64(config.x64), jax.default_matmul_precision(PRECISION):
            return [compare(row, check.atol64 if config.x64 else check.atol32) for row in check.run()]
    except Exception as error:
        return error


def show(check: Check, found: list[Verdict] | Exception) -> bool:
    """Print what came out of a check; whether all of it holds."""
    print(f"{check.oracle:>2} {check.name}")
    if isinstance(found, Exception):
        print(f"     FAIL {type(found).__name__}: {' '.join(str(found).split())}", flush=True)
        return False
    print("\n".join(map(row, found)), flush=True)
    return all(verdict.passed for verdict in found)


def header(config: Config) -> str:
    device = jax.devices()[0]
    return (
        f"vae_jax {__version__}, jax {jax.__version__} on {device.platform} ({device.device_kind}), "
        f"{'float64' if config.x64 else 'float32'}\n"
        f"matrix products at precision {PRECISION!r}; at jax's default one in float32 errs by {default_error():.0e}\n"
        f"tolerances are absolute; s.e.: {ERRORS} standard errors are added, for averages of draws with a fixed key"
    )


def default_error() -> float:
    """Of a product of matrices, relative to its norm, at the precision that jax takes by default."""
    a, b = np.random.default_rng(0).normal(size=(2, 128, 128)).astype(np.float32)
    with jax.default_matmul_precision("default"):
        product = np.asarray(jax.jit(jnp.matmul)(a, b), np.float64)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    return float(np.linalg.norm(product - exact) / np.linalg.norm(exact))


def row(verdict: Verdict) -> str:
    tolerance = f"{verdict.tolerance:.1e}" + (" s.e." if verdict.statistical else "")
    numbers = (f"{verdict.expected:.8f}", f"{verdict.obtained:.8f}", f"{verdict.difference:.1e}", tolerance)
    return line("  " + verdict.label, *numbers, "pass" if verdict.passed else "FAIL")


def line(label: str, expected: str, obtained: str, difference: str, tolerance: str, last: str = "") -> str:
    return f"   {label:<48} {expected:>14} {obtained:>14} {difference:>10} {tolerance:<12} {last}".rstrip()


if __name__ == "__main__":
    with extra("cli", "the command line"):
        import tyro
    sys.exit(main(tyro.cli(Config)))
