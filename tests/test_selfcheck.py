"""`python -m vae_jax.selfcheck`: passes in both precisions, sees errors that are planted, and knows how to compare."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import special
from scipy.stats import multivariate_normal

from vae_jax import Terms
from vae_jax.selfcheck import checks_em
from vae_jax.selfcheck.__main__ import CHECKS, Config, main
from vae_jax.selfcheck.check import Check, Row, average, compare
from vae_jax.selfcheck.solvable import LN_P, log_normal, log_softmax, toy

REPOSITORY = Path(__file__).parents[1]


def test_command_passes_in_double_precision():
    """Compiled without optimisation, in half the time: what is tested here are the checks."""
    flags = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "vae_jax.selfcheck", "--x64"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"jax {jax.__version__} on cpu (cpu), float64" in done.stdout
    assert f"{len(CHECKS)} of {len(CHECKS)} identities hold" in done.stdout
    assert "FAIL" not in done.stdout and "warning" not in done.stderr.lower()


def test_all_identities_hold_in_single_precision(capsys):
    assert main(Config()) == 0
    table = capsys.readouterr().out
    assert "float32\n" in table and "precision 'highest'" in table
    assert [line for check in CHECKS if (line := f"{check.oracle:>2} {check.name}") not in table] == []
    assert "FAIL" not in table


def test_every_oracle_is_checked():
    """All of them."""
    assert {check.oracle for check in CHECKS} == {*range(1, 38), *range(39, 47)}


def test_closed_forms_are_those_of_scipy():
    rng = np.random.default_rng(0)
    ys, covariance, logits = rng.normal(size=(4, 3)), np.cov(rng.normal(size=(3, 9))), rng.normal(size=(2, 5))
    np.testing.assert_allclose(log_normal(ys, covariance), multivariate_normal(np.zeros(3), covariance).logpdf(ys))
    np.testing.assert_allclose(log_softmax(logits), special.log_softmax(logits, axis=-1))
    np.testing.assert_allclose(toy().log_p, LN_P, rtol=1e-14)


def without_ln_z(self, value):
    return -0.5 * ((value - self.loc) / self.scale) ** 2


def weights_of_the_start(params, stats, n):
    return {**M_STEP(params, stats, n), "pri": params["pri"]}


M_STEP = checks_em.on_a_line().em.maximise


@pytest.mark.parametrize("oracle", [1, 10, 14, 36])
def test_a_likelihood_without_ln_z_is_seen(monkeypatch, capsys, oracle):
    monkeypatch.setattr(dist.Normal, "log_prob", without_ln_z)
    assert_seen(oracle, capsys)


@pytest.mark.parametrize("oracle", [1, 19])
def test_a_rate_of_the_wrong_weight_is_seen(monkeypatch, capsys, oracle):
    monkeypatch.setattr(Terms, "nats", property(lambda terms: terms.distortion + 0.999 * terms.rate))
    assert_seen(oracle, capsys)


def test_an_m_step_that_forgets_the_weights_is_seen(monkeypatch, capsys):
    model = checks_em.on_a_line()
    wrong = model._replace(em=model.em._replace(maximise=weights_of_the_start))
    monkeypatch.setattr(checks_em, "on_a_line", lambda: wrong)
    assert_seen(21, capsys)


def assert_seen(oracle, capsys):
    """Compiled anew, with what is planted, and forgotten."""
    checks = [check for check in CHECKS if check.oracle == oracle]
    jax.clear_caches()
    status = main(Config(), checks)
    jax.clear_caches()
    assert status == 1
    table = capsys.readouterr().out
    assert f"\n0 of {len(checks)} identities hold" in table
    assert all(f"FAIL {check.oracle} {check.name}\n" in table for check in checks)


def test_a_check_that_raises_fails_and_the_others_run(capsys):
    def broken():
        raise RuntimeError("no such device\nat all")

    good = Check(2, "good", lambda: [Row("one", 1.0, 1.0)], 1e-6, 1e-6)
    assert main(Config(), [Check(1, "broken", broken, 1e-6, 1e-6), good]) == 1
    table = capsys.readouterr().out
    assert "FAIL RuntimeError: no such device at all\n" in table
    assert "1 of 2 identities hold" in table and table.rstrip().endswith("FAIL 1 broken")


def test_tolerances_are_those_of_the_precision(capsys):
    """The difference is between the two tolerances; and each precision is the one that is set."""
    check = Check(1, "off by 1e-8", lambda: [Row("one", 1.0, 1.0 + 1e-8)], 1e-6, 1e-10)
    assert (main(Config(), [check]), main(Config(x64=True), [check])) == (0, 1)
    check = Check(1, "bits", lambda: [Row("of a float", 64, jax.numpy.zeros(()).dtype.itemsize * 8)], 1e-6, 1e-6)
    assert (main(Config(), [check]), main(Config(x64=True), [check])) == (1, 0)
    assert not jax.config.jax_enable_x64


def test_the_worst_entry_is_compared():
    verdict = compare(Row("three", (1.0, 2.0, 3.0), np.array([1.0, 2.5, 3.1])), 0.2)
    assert (verdict.expected, verdict.obtained, verdict.passed, verdict.statistical) == (2.0, 2.5, False, False)
    assert compare(Row("three", (1.0, 2.0, 3.0), np.array([1.0, 2.1, 3.1])), 0.2).passed
    for strange in (np.nan, np.inf):
        assert not compare(Row("strange", 1.0, np.array([1.0, strange])), 1e6).passed
    with pytest.raises(ValueError, match="broadcast"):
        compare(Row("shapes", (1.0, 2.0), np.array([1.0, 2.0, 3.0])), 0.2)


def test_standard_errors_are_added_to_the_tolerance():
    """Draws 0 and 2 in turn: mean 1, standard error 1 / sqrt(n - 1); four of them are allowed."""
    draws = np.resize([0.0, 2.0], 101**2 - 101**2 % 2)
    row = average("draws", 1.0, draws)
    assert row.standard_error == pytest.approx(1 / np.sqrt(len(draws) - 1))
    assert compare(row, 1e-3).tolerance == pytest.approx(1e-3 + 4 * row.standard_error)
    assert compare(row._replace(expected=1 + 3.9 * row.standard_error), 1e-9).passed
    assert not compare(row._replace(expected=1 + 4.1 * row.standard_error), 1e-9).passed
