"""`python -m experiments.hmm`: it runs, reports, agrees with hmmlearn and scikit-learn, and reads what it is given."""

import dataclasses
import gzip
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reopened import check_reopened, evaluation_of, evaluations

from experiments import hmm, series
from vae_jax.data import load_table
from vae_jax.em import gaussian_hmm

pytestmark = pytest.mark.usefixtures("quickly_compiled")


@pytest.mark.filterwarnings("ignore:Setting the shape on a NumPy array:DeprecationWarning")  # hmmlearn
def test_geyser(tmp_path, monkeypatch):
    """ln P per eruption is that of hmmlearn and scikit-learn, both started at the short and the long eruptions."""
    from hmmlearn.hmm import GaussianHMM
    from sklearn.mixture import GaussianMixture

    config = hmm.Config(out=str(tmp_path), smoke=True)
    seen = evaluations(monkeypatch, hmm, "evaluate")
    numbers = hmm.main(config)
    ys = load_table("geyser").ys
    (whole,) = evaluation_of(check_reopened(tmp_path, seen), seen).elbo.astype(np.float64)
    assert numbers["ln P, 2 states"] == (whole - len(ys) * np.log(ys.std(axis=0)).sum()) / len(ys)
    options = {"covars_prior": 0, "covars_weight": 1, "n_iter": 100, "tol": 1e-6}
    peer = GaussianHMM(2, "full", init_params="stc", random_state=0, **options)
    means = np.stack([ys[ys[:, 1] > 3].mean(axis=0), ys[ys[:, 1] <= 3].mean(axis=0)])
    peer.means_ = means
    found = peer.fit(ys).score(ys) / len(ys)
    mixture = GaussianMixture(2, means_init=means, max_iter=500, tol=1e-8, reg_covar=0).fit(ys).score(ys)
    assert numbers["ln P, 2 states"] == pytest.approx(found, abs=1e-4)
    assert numbers["ln P, mixture of 2"] == pytest.approx(mixture, abs=1e-4)
    assert numbers["order brings, 2 states"] == pytest.approx(found - mixture, abs=2e-4)
    held_out = [numbers[f"held-out {name}"] for name in ("ln P, 2 states", "ln P, mixture of 2")]
    assert numbers["held-out order brings, 2 states"] == pytest.approx(held_out[0] - held_out[1])
    page = (tmp_path / "report.html").read_text()
    for word in ("The climb", "2 states", "P(next state)", *(field.name for field in dataclasses.fields(config))):
        assert word in page, word
    assert page.count("<img ") == 5


def test_scores_are_of_every_step():
    """Their sum is ln P of the whole series in its own units, and the last quarter is scored by a fit that has not seen
    it: where that quarter runs backwards, the mixture gives each of its steps the same score."""
    rng = np.random.default_rng(0)
    ys = 10 * (rng.normal(size=(60, 1)) + 4 * np.repeat(rng.integers(0, 2, 12), 5)[:, None])

    def compare(ys):
        drawn = series.Series(ys, ("level",), "step", "drawn")
        return hmm.compare(hmm.Config(restarts=2, iterations=5), drawn, 2, jax.random.key(0))

    found, turned = compare(ys), compare(np.concatenate([ys[:45], ys[:44:-1]]))
    zs = jnp.asarray((ys - ys.mean()) / ys.std(), jnp.float32)
    whole = found.model.dist(found.fitted.params).log_prob(zs) - 60 * np.log(ys.std())
    assert found.markov.sum() == pytest.approx(float(whole), abs=1e-3)
    assert found.markov.shape == found.mixture.shape == (60,)
    assert found.late_markov.shape == (15,)
    np.testing.assert_allclose(turned.late_mixture, found.late_mixture[::-1], atol=1e-4)
    assert not np.allclose(turned.late_markov, found.late_markov[::-1], atol=0.01)
    assert (np.diff(found.fitted.history) > -1e-3).all()


def test_states_in_another_order_are_the_same_model():
    model = gaussian_hmm(2, 3, 7)
    params = jax.jit(model.init)(jax.random.key(0))
    ys = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
    log_p = jax.jit(lambda params: model.dist(params).log_prob(ys))
    anew = hmm.in_order(params, jnp.array([2, 0, 1]))
    assert float(log_p(anew)) == pytest.approx(float(log_p(params)), abs=1e-4)
    np.testing.assert_array_equal(anew["gen"]["means"][0], params["gen"]["means"][2])
    assert anew["pri"]["transition"][0, 1] == params["pri"]["transition"][2, 0]


def test_the_error_over_time_is_that_of_ten_blocks():
    """Ten blocks of four equal steps: as if there were ten steps."""
    means = np.random.default_rng(0).normal(size=10)
    value, error = hmm.over_time(np.repeat(means, 4))
    assert value == pytest.approx(means.mean()) and error == pytest.approx(means.std(ddof=1) / np.sqrt(10))


def test_the_description_of_states_by_hand():
    """Two states, fixed: means and deviations in units, how long they last, and what follows."""
    of = series.Series(np.array([[-10.0], [30.0]] * 20), ("level",), "step", "drawn")  # mean 10, std 20
    model = gaussian_hmm(1, 2, 40)
    transition = np.array([[0.75, 0.25], [1.0, 0.0]])
    params = {
        "pri": {"initial": jnp.zeros(2), "transition": jnp.asarray(np.log(np.maximum(transition, 1e-30)))},
        "gen": {**jax.jit(model.init)(jax.random.key(0))["gen"], "means": jnp.array([[0.5], [-1.0]])},
    }
    fitted = hmm.FittedEM(params, np.zeros(1), True, np.zeros(1))
    found = hmm.Comparison(model, fitted, 0.0, *(np.zeros(40),) * 4)
    std = 20 * np.sqrt(hmm.covariances(params)[:, 0, 0])
    table = hmm.describe(found, of)
    assert table.columns == ["state", "share of steps", "level: mean", "std", "lasts, steps", "P(next state)"]
    (_, _, *first), (_, _, *second) = table.rows
    assert first == ["20", f"{std[0]:.4g}", "4", "0.750, 0.250"]
    assert second == ["-10", f"{std[1]:.4g}", "1", "1.000, 0.000"]


def test_returns_are_read_from_the_package_without_importing_it(tmp_path, monkeypatch):
    """Closes of 100, 110, 99, ...: ln of the ratios, in percent."""
    closes = 100 * np.cumprod(np.append(1.0, np.tile([1.1, 0.9], 25)))
    folder = tmp_path / "arch/data/sp500"
    folder.mkdir(parents=True)
    (tmp_path / "arch/__init__.py").write_text("raise AssertionError('imported')")
    lines = ["Date,Open,Close", *(f"day {i},0,{close!r}" for i, close in enumerate(closes.tolist()))]
    with gzip.open(folder / "sp500.csv.gz", "wt") as file:
        file.write("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    found = series.load_series("sp500")
    np.testing.assert_allclose(found.ys[:, 0], np.tile(100 * np.log([1.1, 0.9]), 25))
    assert "day 0 to day 50" in found.source and "arch" not in sys.modules


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(series.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install arch"):
        series.load_series("sp500")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["1,2"] * 50, "column 'a' is 1 throughout: leave it out"),
        ([f"{i},{i * i}" for i in range(39)], "39 steps are too few, want at least 40"),
        (
            [f"{i},{'' if i == 7 else i}" for i in range(50)],
            "column 'b' has gaps or infinite values, from line 9 on, where",
        ),
    ],
)
def test_a_series_that_cannot_be_fitted(tmp_path, rows, message):
    path = tmp_path / "own.csv"
    path.write_text("\n".join(["a,b", *rows]))
    with pytest.raises(ValueError, match=message):
        hmm.main(hmm.Config(data=str(path)))


def test_options_out_of_range(tmp_path):
    with pytest.raises(ValueError, match="states wants at least one number"):
        hmm.main(hmm.Config(states=()))
    with pytest.raises(FileNotFoundError, match="no file"):
        hmm.main(hmm.Config(data=str(tmp_path / "none.csv")))
