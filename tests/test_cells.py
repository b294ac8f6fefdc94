"""Single cells: the VAE of their counts, cells simulated from a known truth, genes that differ, rows kept sparse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vae_jax import fit
from vae_jax.data import SparseRows, simulated_cells, source
from vae_jax.evaluation import differential_expression
from vae_jax.evaluation.differential import discoveries
from vae_jax.tables import cell_vae, log_shares_of, totals_of

GENES, BATCHES = 7, 3
Y = jnp.asarray([3, 0, 1, 12, 0, 0, 5], jnp.int32)
Z = jnp.asarray([0.3, -1.2])
C = {"total": jnp.float32(21), "batch": jnp.asarray([0.0, 1.0, 0.0])}


def made(**options):
    cells = cell_vae(GENES, 2, hidden=(8,), batches=BATCHES, **options)
    return cells, cells.model.init(jax.random.key(0), Y, C)


@pytest.mark.parametrize("options", [{}, {"dispersion": "predicted"}, {"dispersion": None}])
def test_means_are_shares_of_the_total(options):
    cells, params = made(**options)
    shares = cells.shares(params, Z, C)
    assert float(shares.sum()) == pytest.approx(1, rel=1e-6)
    np.testing.assert_allclose(cells.model.latent.decode(params, None, Z, C), 21 * shares, rtol=1e-5)
    other = cells.shares(params, Z, {**C, "batch": jnp.asarray([1.0, 0.0, 0.0])})
    assert np.abs(other - shares).max() > 1e-4


def test_nats_are_those_of_scipy():
    """Negative binomials about total * shares, at a z that the encoder knows to 1e-3; to 0.05 nats of some 25."""
    cells, params = made()
    params["gen"]["log_dispersion"] = jnp.linspace(-1, 1, GENES)
    params["enc"] = jax.tree.map(jnp.zeros_like, params["enc"])
    last = max(params["enc"]["params"])
    params["enc"]["params"][last]["bias"] = jnp.asarray([*Z, -1e4, -1e4])
    terms = cells.model.terms(params, jax.random.key(3), Y, C)
    dispersion = np.exp(np.linspace(-1, 1, GENES))
    mean = 21 * np.asarray(cells.shares(params, Z, C), np.float64)
    wanted = -stats.nbinom.logpmf(np.asarray(Y), 1 / dispersion, 1 / (1 + dispersion * mean)).sum()
    assert float(terms.distortion) == pytest.approx(wanted, abs=0.05)


@pytest.mark.parametrize("options", [{}, {"dispersion": "predicted", "zero_inflated": True}])
def test_a_generator_starts_from_the_shares_it_is_given(options):
    ys = np.array([[5, 0, 1, 30, 2, 1, 7], [3, 0, 1, 12, 0, 0, 5]])
    cells, params = made(log_shares=log_shares_of(ys), **options)
    params["gen"] = jax.tree.map(jnp.zeros_like, params["gen"])
    wanted = (ys.sum(axis=0) + 0.5) / (ys.sum() + 0.5 * GENES)
    np.testing.assert_allclose(cells.shares(params, Z, C), wanted, rtol=1e-6)


def test_an_inferred_total_is_one_more_dimension():
    cells = cell_vae(GENES, 2, hidden=(8,), log_total=(3.0, 0.5))
    params = cells.model.init(jax.random.key(0), Y, None)
    z = jnp.asarray([0.3, -1.2, 2.0])
    assert float(cells.model.latent.decode(params, None, z, None).sum()) == pytest.approx(np.exp(3 + 0.5 * 2), rel=1e-5)
    assert cells.encode(params, None, Y).shape == (2,)
    mean, std = totals_of(np.array([[1, 1], [np.e**2, 0], [0, 2]]))
    assert (mean, std) == pytest.approx((np.mean([np.log(2), 2, np.log(2)]), np.std([np.log(2), 2, np.log(2)])))


def test_simulated_cells_have_the_shares_that_are_said():
    """E y = E total * share, with ln total normal about ln 2000, standard deviation 0.4; to 5 standard errors."""
    cells = simulated_cells(4000, genes=30, types=1, batches=1, seed=1)
    wanted = 2000 * np.exp(0.4**2 / 2 + cells.log_shares[0])
    error = cells.ys.std(axis=0, ddof=1) / np.sqrt(len(cells.ys))
    assert np.all(np.abs(cells.ys.mean(axis=0) - wanted) < 5 * error + 1e-3)
    again = simulated_cells(4000, genes=30, types=1, batches=1, seed=1)
    np.testing.assert_array_equal(again.ys, cells.ys)
    assert simulated_cells(9, genes=4).log_shares.shape == (5, 4)


def test_false_discoveries_are_as_few_as_is_said():
    """Changes and what is seen of them are Gaussian, so the posterior is exact: over 50 lists of 400 genes the mean
    part that is false is at most the rate, and the expectation that is printed agrees with it to 0.02."""
    rng, delta, false, said = np.random.default_rng(0), 0.5, [], []
    for _ in range(50):
        truth = rng.normal(size=400)
        seen = truth + rng.normal(size=400)
        probability = 1 - np.diff(stats.norm.cdf([[-delta], [delta]], seen / 2, np.sqrt(0.5)), axis=0)[0]
        found, expected = discoveries(probability, 0.2)
        false.append(np.mean(np.abs(truth[found]) <= delta))
        said.append(expected)
    assert np.mean(said) <= 0.2
    assert abs(np.mean(false) - np.mean(said)) < 0.02
    assert discoveries(np.zeros(3), 0.2)[0].sum() == 0


def test_changes_are_those_of_the_posterior():
    """Shares whose logarithms are normal: the change of two cells is, too; medians to 0.1, probabilities to 0.05."""
    centre = jnp.asarray([0.0, 1.0, 3.0, -2.0])

    def share(key, y, c):
        return jnp.exp2(-10 + y * centre + jax.random.normal(key, (4,)))

    first, second = ((np.full(5, float(k), np.float32), None) for k in (0, 1))
    found = differential_expression(share, jax.random.key(0), first, second, delta=1.0, draws=4000, rate=0.2)
    np.testing.assert_allclose(found.change, centre, atol=0.1)
    wanted = 1 - np.diff(stats.norm.cdf([[-1.0], [1.0]], np.asarray(centre), np.sqrt(2)), axis=0)[0]
    np.testing.assert_allclose(found.probability, wanted, atol=0.05)
    with pytest.raises(ValueError, match="want cells in both groups"):
        differential_expression(share, jax.random.key(0), (np.zeros(0), None), second)


def test_sparse_rows_are_the_dense_ones(tmp_path):
    dense = np.random.default_rng(0).poisson(0.3, (20, GENES)).astype(np.int32)
    row, column = np.nonzero(dense)
    starts = np.searchsorted(row, np.arange(21))
    rows = SparseRows(dense[row, column], column, starts, GENES)
    np.testing.assert_array_equal(np.stack([rows[i] for i in range(len(rows))]), dense)
    ys, cs = source(rows).read([3, 1])
    np.testing.assert_array_equal(ys, dense[[3, 1]])
    assert cs is None
    for name, x in {"values": dense[row, column], "columns": column}.items():
        np.save(tmp_path / f"{name}.npy", x)
    values, columns = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("values", "columns"))
    on_disk = SparseRows(values, columns, starts, GENES)
    np.testing.assert_array_equal(source(on_disk).read(np.arange(len(dense)))[0], dense)
    assert not any(isinstance(x, np.ndarray) for x in (on_disk.values, on_disk.columns))  # whose pages would stay
    for wrong in ((dense[row, column][1:], column, starts), (dense[row, column], column + GENES, starts)):
        with pytest.raises(ValueError, match=r"sparse rows want|columns are from 0"):
            SparseRows(*wrong, GENES)


def test_it_trains_on_what_is_read():
    """The bound of sparse rows read by a source is that of the arrays, bit for bit."""
    import optax

    cells = simulated_cells(64, genes=GENES, seed=2)
    row, column = np.nonzero(cells.ys)
    rows = SparseRows(cells.ys[row, column], column, np.searchsorted(row, np.arange(65)), GENES)
    cs = {"total": cells.ys.sum(axis=1).astype(np.float32)}
    model = cell_vae(GENES, 2, hidden=(8,)).model
    runs = [
        fit(model, optax.adam(1e-3), ys, cs, key=jax.random.key(0), epochs=2, batch_size=16, progress=False)
        for ys in (cells.ys, source(rows))
    ]
    for a, b in zip(*(jax.tree.leaves(run.params) for run in runs), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: cell_vae(1), "want genes >= 2"),
        (lambda: cell_vae(5, batches=1), "batches 0 or >= 2"),
        (lambda: cell_vae(5, log_total=(1.0, 0.0)), "log_total is the mean and the standard deviation"),
        (lambda: made()[0].model.init(jax.random.key(0), Y, {"total": 1.0}), "want the condition 'batch' of shape"),
        (lambda: made()[0].model.init(jax.random.key(0), Y, None), "want the condition 'batch' of shape"),
        (lambda: totals_of(np.array([[1, 0], [0, 0]])), "cell 1 has no molecule"),
        (lambda: simulated_cells(0), "want positive numbers"),
    ],
)
def test_what_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
