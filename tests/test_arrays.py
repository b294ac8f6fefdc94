"""Arrays of every kind that a user may hand in: their values arrive, or the reason why not is said."""

import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vae_jax import evaluate, fit, gaussian, l2, standard_normal, vae
from vae_jax.data import load
from vae_jax.data.arrays import as_arrays
from vae_jax.nets import MLP

NORMAL = np.random.default_rng(0).normal(size=(50, 2))
SECONDS = 1_700_000_000 + np.arange(50)


class Frame:
    """What numpy sees of a table of pandas."""

    def __init__(self, values, columns):
        self.values, self.columns = values, columns

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype)


class OnDevice:
    """What numpy sees of a tensor that lies elsewhere."""

    def __array__(self, dtype=None, copy=None):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


@pytest.mark.parametrize(
    ("xs", "message"),
    [
        (
            NORMAL + np.array([0, 1e6]),
            r"ys, column 1, lies between 99999.* and 100000.*up to 0\.031: subtract .* mean in float64",
        ),
        (NORMAL.reshape(50, 2, 1) + 1e7, r"ys, entry \[0, 0\], lies between .* subtract"),
        (Frame(NORMAL + np.array([0, 1.7e9]), ["x", "t"]), "ys, column 't', lies between"),
        ({"t": SECONDS * 1.0}, r"ys\['t'\] lies between 1700000000 and 1700000049, and float32 would move .* up to 49"),
        ([0.5, 1e9, 1e9 + 1, 1e9 + 2][1:], "ys lies between 1000000000 and 1000000002"),
        (SECONDS, "ys lies between 1700000000 and 1700000049"),
        (np.where(NORMAL > 1, np.nan, 1e7 + NORMAL), "ys, column 0, lies between"),
        (NORMAL * 1e39, r"ys, column 0, lies between -.*e\+39 and .*e\+39, beyond the range of float32: scale it"),
        (np.full((3, 1), 1e39), "beyond the range of float32"),
        (NORMAL * 1e-50, "float32 would move its values"),
        (np.arange(3) + 2**31, r"ys holds whole numbers in \[2147483648, 2147483650\], and int32 ends at 2147483647"),
        (np.arange(3, dtype=np.uint64) + 2**40, "uint32 ends at 4294967295"),
        (-(2**31) - np.arange(3), "int32 ends at"),
        (np.ma.masked_greater(NORMAL, 1), r"ys is a masked array.*ys\.filled\(np\.nan\)"),
        ([[1.0, 2.0], [3.0]], "ys is a list that is no array .*all examples of one shape"),
        (OnDevice(), "ys is a OnDevice that is no array .can't convert cuda"),
        (Frame([["Paris", 1], ["Rome", 2]], ["city", "n"]), r"ys has dtype .* \(Frame\); want numbers"),
        (np.array([1, None]), "dtype object"),
        (NORMAL * 1j, "dtype complex128"),
        (np.array(["2020-01-01"], "M8[D]"), "dtype datetime64"),
        ((x for x in "abc"), r"dtype object \(generator\)"),
        (jax.random.split(jax.random.key(0)), "dtype key"),
    ],
)
def test_what_jax_cannot_hold_is_refused(xs, message):
    with pytest.raises(ValueError, match=message):
        as_arrays("ys", xs)


@pytest.mark.parametrize(
    "xs",
    [
        NORMAL + 1e4,
        NORMAL.astype(">f8"),
        NORMAL.astype(">f4"),
        NORMAL.astype(np.float16),
        jnp.asarray(NORMAL, jnp.bfloat16),
        NORMAL.astype(np.longdouble),
        np.asfortranarray(NORMAL),
        NORMAL[::-2, ::-1],
        np.broadcast_to(0.1, (4, 2)),  # a constant loses nothing that tells examples apart
        0.3 + 1e-17 * np.arange(4),
        np.where(np.arange(60_000) == 5, 0.996, 1.0),  # a white pixel that one image lacks
        [0, 2**31 - 1],
        np.array([0, 2**32 - 1], np.uint32),
        np.arange(6, dtype=">i2").reshape(3, 2),
        np.arange(6, dtype=np.uint8),
        NORMAL > 0,
        [NORMAL[0], jnp.asarray(NORMAL[1])],
        range(4),
        Frame(NORMAL, ["x", "y"]),
        np.ma.masked_array(NORMAL),
    ],
)
def test_values_arrive(xs):
    got, want = as_arrays("ys", xs), np.asarray(xs)
    assert got.dtype == jax.dtypes.canonicalize_dtype(got.dtype) and got.dtype.isnative
    kind = np.floating if want.dtype.kind in "fV" else want.dtype.type
    assert got.dtype == np.float32 if kind is np.floating else got.dtype.kind == want.dtype.kind
    np.testing.assert_allclose(np.asarray(got, np.float64), want.astype(np.float64), rtol=2**-24, atol=0)


def test_double_precision_stays(x64):
    for xs in (SECONDS + 0.25, SECONDS.astype(">f8"), np.arange(3) + 2**40, NORMAL * 1e39):
        got = as_arrays("ys", xs)
        assert got.dtype == xs.dtype.newbyteorder("=")
        np.testing.assert_array_equal(got, xs)


def test_trees_keep_their_structure():
    got = as_arrays("ys", {"a": (NORMAL, [1, 2]), "b": None})
    assert jax.tree.structure(got) == jax.tree.structure({"a": (0, 0), "b": None})
    assert got["a"][1].dtype == np.int32
    assert as_arrays("cs", None) is None


def test_arrays_on_several_devices_come_to_the_host():
    here, there = (jax.device_put(jnp.ones(3), device) for device in jax.devices()[:2])
    assert all(isinstance(x, np.ndarray) for x in as_arrays("ys", (here, there)))
    assert as_arrays("ys", (here, here))[0] is here


@pytest.mark.parametrize("library", ["pandas", "torch"])
def test_tables_and_tensors(library):
    module = pytest.importorskip(library)
    if library == "pandas":
        frame = module.DataFrame(NORMAL)  # its columns are whole numbers: frame[0] is no example
        np.testing.assert_array_equal(as_arrays("ys", frame), NORMAL.astype(np.float32))
        np.testing.assert_array_equal(as_arrays("cs", module.Series([3, 1, 2], index=[7, 8, 9])), [3, 1, 2])
        with pytest.raises(ValueError, match="column 't'"):
            as_arrays("ys", module.DataFrame({"t": SECONDS * 1.0}))
        return
    np.testing.assert_array_equal(as_arrays("ys", module.tensor(NORMAL)), NORMAL.astype(np.float32))
    with pytest.raises(ValueError, match="requires grad"):
        as_arrays("ys", module.ones(3, requires_grad=True))


# fit, evaluate and load with whatever comes

MODEL = vae(gaussian(MLP((), 2)), standard_normal(1), l2(MLP((), 2), 1.0))
PARAMS = MODEL.init(jax.random.key(0), jnp.zeros(2), None)
DTYPES = ("f2", "f4", ">f4", "f8", ">f8", ">i4", "i8", "?", "c8", "O", "U3", "M8[s]")
_shapes = st.sampled_from([(6, 2), (6, 2), (6, 2), (6,), (6, 2, 1), (0, 2), ()])


@st.composite
def odd_arrays(draw, shapes=_shapes):
    """Arrays of any type, order, strides, size of values and container."""
    shape, dtype = draw(shapes), np.dtype(draw(st.sampled_from(DTYPES)))
    scale, offset = draw(st.sampled_from([(1, 0), (1, 0), (0, 3), (1, 1e6), (1, 1.7e9), (1e39, 0), (1e-50, 0)]))
    values = scale * np.random.default_rng(0).normal(size=shape) + offset
    with np.errstate(all="ignore"):
        x = np.asarray(np.trunc(values) if dtype.kind in "iuM" else values).astype(dtype)
    change = draw(st.sampled_from(["C", "F", "strided", "read-only", "list", "nan", "masked", "jax", "frame", "tuple"]))
    if change == "strided" and x.ndim:
        return np.repeat(x, 2, axis=0)[::-2]
    if change == "read-only":
        x.flags.writeable = False
    if change == "nan" and x.dtype.kind == "f" and x.size:
        x.flat[-1] = np.nan
    made = {
        "F": np.asfortranarray,
        "list": lambda x: x.tolist(),
        "masked": np.ma.masked_invalid if x.dtype.kind == "f" else np.ma.masked_array,
        "jax": lambda x: jnp.asarray(x) if x.dtype.kind in "fiu?" and x.dtype.isnative else x,
        "frame": lambda x: Frame(x, ["a", "b"]),
        "tuple": lambda x: (x,),
    }
    return made[change](x) if change in made else x


class Reached(Exception):
    """The data were taken, and the training step is made."""


def refusal(name, call):
    """None where the call went through, else its message, which has to name the argument."""
    try:
        call()
    except Reached:
        return None
    except (ValueError, TypeError) as error:
        message = " ".join([str(error), *getattr(error, "__notes__", [])])
        assert re.search(name, message), message
        return message
    return None


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@given(odd_arrays())
def test_fit_and_evaluate_take_an_array_or_say_why_not(ys):
    """What one takes, the other takes, and its numbers are finite; all programs are of one shape and few types."""
    evaluated = []
    with mock.patch("vae_jax.training.loop.make_train_step", side_effect=Reached):
        options = {"key": jax.random.key(0), "epochs": 1, "batch_size": 2}
        check = refusal(r"\bys?\b", lambda: fit(MODEL, optax.sgd(0.1), ys, **options))
    told = refusal(r"\bys?\b", lambda: evaluated.append(evaluate(MODEL, PARAMS, jax.random.key(0), ys, batch_size=6)))
    assert (check is None) == (told is None), (check, told)
    assert not evaluated or np.isfinite(evaluated[0].elbo).all()


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@given(odd_arrays(st.sampled_from([(12, 4, 4), (12, 4, 4, 3), (12,), (0, 4, 4)])))
def test_load_takes_a_file_or_says_why_not(tmp_path_factory, array):
    path = tmp_path_factory.mktemp("odd") / "array.npy"
    np.save(path, np.asarray(array), allow_pickle=True)
    if refusal(r"array\.npy", lambda: load(str(path))) is None:
        assert load(str(path)).ys.dtype == np.uint8
