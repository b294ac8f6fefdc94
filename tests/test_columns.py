"""Tables of mixed columns: what they are taken for, what is refused, the likelihood of a row, and a VAE of rows."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from scipy.special import log_softmax

from vae_jax import categorical, fit, l2, nets
from vae_jax.core.model import log_prob
from vae_jax.data import load_columns
from vae_jax.evaluation import impute
from vae_jax.parts import columns, laplace, maybe_missing, negative_binomial
from vae_jax.parts.rows import features_of
from vae_jax.tables import table_vae, two_numbers

CSV = """age,ward,visits,smoker,id
31.5,north,0,1,a1
60.25,south,2,0,a2
,south,11,1,a3
44,east,1,,a4
52,?,0,0,a5
"""
WITHOUT_ID = {"id": None}


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "own.csv"
    file.write_text(CSV)
    return file


def test_what_columns_are_taken_for(path):
    table = load_columns(path, kinds=WITHOUT_ID)
    assert [(column.name, column.kind, column.missing) for column in table.columns] == [
        ("age", "number", 1),
        ("ward", "class", 1),
        ("visits", "count", 0),
        ("smoker", "class", 1),
    ]
    ages = np.array([31.5, 60.25, 44, 52])
    np.testing.assert_allclose(table.ys["age"][[0, 1, 3, 4]], (ages - ages.mean()) / ages.std(), rtol=1e-6)
    np.testing.assert_array_equal(table.ys["ward"], [1, 2, 2, 0, np.nan])
    assert table.columns[1].categories == ("east", "north", "south") and table.columns[3].categories == ("0", "1")
    assert table.log_scale == pytest.approx(np.log(ages.std()))
    assert str(table).splitlines()[1:3] == [
        "  age: number, mean 46.94, standard deviation 10.6; 1 missing",
        "  ward: 3 classes: east, north, south; 1 missing",
    ]


def test_penguins():
    """As it was published: 344 rows, means of the four measurements, 19 fields without an entry."""
    table = load_columns("penguins")
    kinds = {column.name: column.kind for column in table.columns}
    assert [name for name, kind in kinds.items() if kind == "class"] == ["species", "island", "sex"]
    means = [column.centre for column in table.columns if column.kind == "number"]
    np.testing.assert_allclose(means, [43.92193, 17.15117, 200.91520, 4201.75439], rtol=1e-6)
    assert len(table.ys["sex"]) == 344 and sum(column.missing for column in table.columns) == 19


def test_it_is_undone(path):
    table = load_columns(path, kinds=WITHOUT_ID)
    back = table.restored(table.ys)
    np.testing.assert_allclose(back["age"], [31.5, 60.25, np.nan, 44, 52], rtol=1e-6)
    assert back["ward"].tolist() == ["north", "south", "south", "east", ""]
    again = table.again(path)
    for name, values in table.ys.items():
        np.testing.assert_array_equal(again.ys[name], values)


def test_frames_and_dicts(path):
    class Frame(dict):
        columns = ("age", "ward")

    frame = Frame(age=np.array([1.0, 2.0, np.nan]), ward=np.array(["b", None, "a"], object))
    table = load_columns(frame)
    assert table.source == "a dict" or table.source == "a Frame"
    np.testing.assert_array_equal(table.ys["ward"], [1, np.nan, 0])
    counted = load_columns(path, kinds={"id": None, "visits": "number", "smoker": "count"})
    assert [column.kind for column in counted.columns] == ["number", "class", "number", "count"]


@pytest.mark.parametrize(
    ("change", "kinds", "message"),
    [
        ("", {}, r"column 'id': 5 different words in 5 rows, 'a1' for instance, are no classes"),
        ("31.5>thirty", WITHOUT_ID | {"age": "number"}, r"column 'age': 'thirty' is no number, and kinds wants number"),
        ("11>1.5", WITHOUT_ID | {"visits": "count"}, r"column 'visits': 1.5 is no count"),
        ("11>-2", WITHOUT_ID | {"visits": "count"}, r"column 'visits': -2 is no count: want whole numbers from 0 to"),
        ("", WITHOUT_ID | {"agee": "count"}, r"has no column 'agee'; there are 'age', 'ward'"),
        ("", WITHOUT_ID | {"age": "real"}, r"kinds=\{'age': 'real'\}: want 'number', 'count', 'class'"),
        ("visits>age", WITHOUT_ID, r"two columns have one name"),
        ("", dict.fromkeys(["age", "ward", "visits", "smoker", "id"]), r"has no column left"),
    ],
)
def test_what_is_refused(path, change, kinds, message):
    if change:
        path.write_text(CSV.replace(*change.split(">"), 1))
    with pytest.raises(ValueError, match=message):
        load_columns(path, kinds=kinds)


def test_what_is_no_table(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file 'nowhere\.csv'"):
        load_columns("nowhere.csv")
    with pytest.raises(ValueError, match="want a CSV file, a frame or a dict of columns; got ndarray"):
        load_columns(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="column 'a': no entry, of which nothing is learnt; leave it out"):
        load_columns({"a": [None, None], "b": [1.0, 2.0]})
    with pytest.raises(ValueError, match=r"column 'a': one value alone, 3\.0"):
        load_columns({"a": [3, 3], "b": [1.0, 2.0]})
    with pytest.raises(ValueError, match="columns of one length"):
        load_columns({"a": [3, 4, 5], "b": [1.0, 2.0]})


def test_other_rows(path):
    table = load_columns(path, kinds=WITHOUT_ID)
    rows = {"age": [50.0], "ward": ["west"], "visits": [3], "smoker": [1]}
    with pytest.raises(
        ValueError, match="column 'ward': the class 'west' is none of those that are known, east, north"
    ):
        table.again(rows)
    with pytest.raises(ValueError, match="has no column 'visits'"):
        table.again({name: rows[name] for name in ("age", "ward", "smoker")})
    new = table.again(rows | {"ward": [""], "further": [1]})
    assert set(new.ys) == set(table.ys) and np.isnan(new.ys["ward"][0])


def test_ln_p_of_a_row():
    """The sum over the columns; the network's output is what each head gets."""
    heads = {
        "a": l2((lambda key, h: {}, lambda params, h: h[0]), 0.5),
        "b": categorical((lambda key, h: {}, lambda params, h: h)),
    }
    heads["c"] = maybe_missing(negative_binomial((lambda key, h: {}, lambda params, h: h[1]), "shared"))
    generator = columns((lambda key, z: {}, lambda params, z: 2 * z), heads)
    z = jnp.array([0.1, 0.3, -0.2])
    params = generator.init(jax.random.key(0), z)
    distribution = generator.dist(params, z)
    y = {"a": jnp.float32(1.0), "b": jnp.float32(2.0), "c": jnp.float32(4.0)}
    m = np.exp(0.6)
    wanted = {
        "a": stats.norm(0.2, 0.5).logpdf(1.0),
        "b": log_softmax([0.2, 0.6, -0.4])[2],
        "c": stats.nbinom(1, 1 / (1 + m)).logpmf(4),
    }
    for name, value in distribution.each_log_prob(y).items():
        assert float(value) == pytest.approx(wanted[name], rel=1e-5)
    assert float(log_prob(distribution, y)) == pytest.approx(sum(wanted.values()), rel=1e-5)
    gap = y | {"c": jnp.float32(np.nan)}
    assert float(log_prob(distribution, gap)) == pytest.approx(wanted["a"] + wanted["b"], rel=1e-5)
    assert float(distribution.expected(gap)["c"]) == pytest.approx(m, rel=1e-5)
    assert "random" not in str(jax.make_jaxpr(distribution.expected)(gap))  # what is expected needs no draw
    with pytest.raises(ValueError, match=r"these are columns \['a', 'b', 'c'\]; got \['a', 'b'\]"):
        log_prob(distribution, {"a": y["a"], "b": y["b"]})


def test_a_row_as_a_vector():
    row = {"b": np.float32(2.0), "a": np.float32(np.nan), "c": np.float32(3.0)}
    vector = features_of(row, {"b": 3}, ("c",))
    np.testing.assert_allclose(vector, [0, 0, 0, 1, np.log(4), 1, 0, 0], rtol=1e-6)


def test_a_vae_of_rows():
    """Columns that say one thing: each is found from the others where it is missing. Nothing needs to be told."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, 900)
    whole = {
        "size": 10 * kind + rng.normal(size=900),
        "colour": np.array(["red", "green", "blue"])[kind],
        "legs": rng.poisson(np.array([0.3, 4, 12])[kind]),
    }
    table = load_columns(whole)
    gone = {name: rng.random(900) < 0.2 for name in whole}
    ys = {name: np.where(gone[name], np.nan, values).astype(np.float32) for name, values in table.ys.items()}
    model = table_vae(table.columns, 2, hidden=(32,))
    fitted = fit(model, optax.adam(1e-2), ys, key=jax.random.key(0), epochs=40, batch_size=100, progress=False)
    each = jax.jit(jax.vmap(lambda key, y: impute(model, fitted.params, key, y, n=20, k=100)))
    found = each(jax.random.split(jax.random.key(1), 900), ys)
    colour = np.asarray(found.draws["colour"])[gone["colour"] & ~gone["size"]]
    truth = table.ys["colour"][gone["colour"] & ~gone["size"]]
    assert np.mean(colour == truth[:, None]) > 0.9
    sizes = np.asarray(found.mean["size"])[gone["size"] & ~gone["colour"]]
    error = np.sqrt(np.mean((sizes - table.ys["size"][gone["size"] & ~gone["colour"]]) ** 2))
    assert error < 0.35  # in standard deviations; 0.12 is the spread within a kind
    assert set(table.restored(jax.tree.map(np.asarray, found.draws))["colour"].ravel()) == {"red", "green", "blue"}


def test_a_likelihood_of_ones_own():
    table = load_columns({"a": [0.5, 2.0, 3.5], "b": [1.0, 2.5, -1.0]})
    model = table_vae(table.columns, 1, hidden=(4,), likelihoods={"a": laplace(two_numbers())})
    y = {name: values[0] for name, values in table.ys.items()}
    params = jax.jit(model.init)(jax.random.key(0), y, None)
    assert np.isfinite(model.terms(params, jax.random.key(1), y, None).nats)
    with pytest.raises(ValueError, match="likelihoods has 'c', and the columns are"):
        table_vae(table.columns, 1, likelihoods={"c": laplace(nets.MLP((), 2))})
