"""Examples that are read when they are needed: what is read is what lies there, in the order that was asked for."""

import contextlib
import inspect
import re
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vae_jax import bernoulli, evaluate, gaussian, standard_normal, vae
from vae_jax.core import Network, labelled
from vae_jax.data import dynamic_binarisation, identity, read_image, source
from vae_jax.data.check import check_source
from vae_jax.data.sources import as_source, batches, is_source
from vae_jax.evaluation.whole_split import over_split
from vae_jax.selfcheck.solvable import linear_gaussian

RNG = np.random.default_rng(0)
N = 23
YS = RNG.integers(0, 256, (N, 3, 2), dtype=np.uint8)
LABELS = np.arange(N) % 4
KEY = jax.random.key(0)


class OnDisk:
    """An array in the manner of zarr and HDF5: the latter takes places in ascending order only."""

    def __init__(self, array):
        self.array, self.dtype, self.shape, self.chunks = array, array.dtype, array.shape, (5, 3, 2)

    def __len__(self):
        return len(self.array)

    def __getitem__(self, places):
        assert (np.diff(places) > 0).all()
        return self.array[places]

    def __array__(self, *_, **__):
        raise MemoryError


class Records:
    """A data source in the manner of tensorflow-datasets: a dict at each place."""

    def __len__(self):
        return N

    def __getitem__(self, place):
        assert type(place) is int
        return {"image": YS[place], "label": LABELS[place], "id": b"text"}


class ManyRecords(Records):
    def __getitems__(self, places):
        return [super(ManyRecords, self).__getitem__(place) for place in places]

    def __getitem__(self, place):
        raise AssertionError("all at once, please")


def image_of(record):
    return record["image"]


def pair_of(record):
    return record["image"], record["label"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    np.save(folder / "ys.npy", YS)
    np.save(folder / "fortran.npy", np.asfortranarray(YS))
    for place, y in enumerate(YS):
        Image.fromarray(y).save(folder / f"{place:02}.png")
    return folder


def mapped(folder, name="ys.npy", mode="r"):
    return np.load(folder / name, mmap_mode=mode)


def changed(ys):
    ys[:5] += 1
    return ys


KINDS = {
    "memory-mapped": lambda f: (source(mapped(f)), YS),
    "every other row of it": lambda f: (source(mapped(f)[1::2]), YS[1::2]),
    "backwards": lambda f: (source(mapped(f)[::-1]), YS[::-1]),
    "a column of it": lambda f: (source(mapped(f)[:, :, 1]), YS[:, :, 1]),
    "in Fortran's order": lambda f: (source(mapped(f, "fortran.npy")), YS),
    "changed in memory": lambda f: (source(changed(mapped(f, mode="c"))), changed(YS.copy())),
    "an array": lambda f: (source(jnp.asarray(YS)), YS),
    "zarr": lambda f: (source(OnDisk(YS)), YS),
    "a dict of arrays": lambda f: (source({"a": mapped(f), "b": OnDisk(YS)}), {"a": YS, "b": YS}),
    "a function of rows": lambda f: (source(mapped(f), lambda y: (y[0], y.sum())), (YS[:, 0], YS.sum((1, 2)))),
    "records": lambda f: (source(Records(), image_of), YS),
    "many records at once": lambda f: (source(ManyRecords(), image_of), YS),
    "images": lambda f: (source(sorted(f.glob("*.png"))), YS[..., None]),
}


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_what_is_read_are_the_arrays_rows(folder, kind, data):
    read, ys = KINDS[kind](folder)
    n = len(jax.tree.leaves(ys)[0])
    assert len(read) == n and is_source(read)
    places = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=30)))
    found, cs = read.read(places)
    assert cs is None
    jax.tree.map(lambda got, y: np.testing.assert_array_equal(got, y[places], strict=True), found, in_jax(ys))


def in_jax(ys):
    """uint64, a sum's type, is uint32 for jax; strides, which assert_array_equal does not see, are of no interest."""
    return jax.tree.map(lambda y: y.astype(jax.dtypes.canonicalize_dtype(y.dtype)), ys)


def test_conditions_come_with_the_pairs_or_lie_beside(folder):
    places = np.array([5, 0, 5, 22])
    for given_ in (
        source(ManyRecords(), pair_of, pairs=True),
        as_source(mapped(folder), list(LABELS)),
        as_source(source(Records(), image_of), source(LABELS)),
    ):
        ys, cs = given_.read(places)
        np.testing.assert_array_equal(ys, YS[places])
        np.testing.assert_array_equal(cs, LABELS[places])
        assert cs.dtype == np.int32
    with pytest.raises(ValueError, match=r"the source gives the conditions with each example \(pairs=True\), and cs"):
        as_source(source(Records(), pair_of, pairs=True), LABELS)


def test_numbers_are_read_in_jaxs_types(tmp_path):
    """By the rule of `as_arrays`: native, floats of 32 bits."""
    for given_, wanted in ((">f8", "float32"), ("<f2", "float32"), (">i8", "int32"), ("<u2", "uint16"), ("?", "bool")):
        np.save(tmp_path / "ys.npy", YS.astype(given_))
        ys, _ = source(mapped(tmp_path)).read([3, 1])
        np.testing.assert_array_equal(ys, YS[[3, 1]].astype(wanted), strict=True)


def test_a_mapped_file_does_not_become_memory_of_the_process(tmp_path):
    """Every row of 64 MiB is read; of the pages of a mapping all would be the process's."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("Linux says how much of a file a process has in memory")
    np.save(tmp_path / "ys.npy", np.ones((1024, 2**16), np.uint8))

    def of_files():
        return int(re.search(r"RssFile:\s+(\d+) kB", status.read_text())[1])

    read, before = source(mapped(tmp_path)), of_files()
    for start in range(0, 1024, 64):
        assert read.read(np.arange(start, start + 64))[0].all()
    assert of_files() - before < 2**12


# Ahead of its use


ORDER = [np.array([3, 1, 2]), np.array([0, 0, 22]), np.array([9, 8, 7]), np.array([5, 6, 4])]


class Lazy:
    """Places that are computed when they are asked for."""

    def __len__(self):
        return len(ORDER)

    def __getitem__(self, i):
        return ORDER[i]


@pytest.mark.parametrize("start", [0, 2, 4])
@pytest.mark.parametrize("places", [ORDER, Lazy()])
def test_batches_come_in_their_order_from_any_start(folder, start, places):
    slow = source(YS, lambda y: (time.sleep(1e-3 * float(y[0, 0] % 3)), y)[1])
    for read in (source(mapped(folder)), slow, source(sorted(folder.glob("*.png")), lambda p: read_image(p)[..., 0])):
        found = list(batches(read, places, start=start))
        assert len(found) == 4 - start
        for (ys, cs), wanted in zip(found, ORDER[start:], strict=True):
            np.testing.assert_array_equal(ys, YS[wanted])
            assert cs is None


def test_no_more_is_read_ahead_than_two_batches_a_thread_and_no_thread_stays():
    read = []
    with contextlib.closing(batches(source(Records(), lambda e: read.append(0) or e["image"]), [[0]] * 100)) as ahead:
        next(ahead)
        time.sleep(0.05)
    assert 2 <= len(read) <= 11  # the first example, one batch given, eight that wait, one begun
    assert no_threads()


def test_what_goes_wrong_is_raised_in_its_turn_and_ends_the_threads():
    def fails(record):
        if record["label"] == 2:
            raise OSError("the disk is gone")
        return record["image"]

    ahead = batches(source(Records(), fails), [[0], [1], [2], [3]])
    next(ahead), next(ahead)
    with pytest.raises(OSError, match="the disk is gone") as raised:
        next(ahead)
    assert "example 2 of the source was read" in "".join(raised.value.__notes__)
    assert no_threads()


def no_threads():
    end = time.monotonic() + 5
    while time.monotonic() < end and any(t.name.startswith("grain") for t in threading.enumerate()):
        time.sleep(0.01)
    return not any(t.name.startswith("grain") for t in threading.enumerate())


def test_workers_read_the_same(folder):
    """One process, which gets the memory-mapped file by its name and the function by its code."""
    scale = 2
    read = as_source(source(mapped(folder), lambda y: y.astype(np.float64) * scale, workers=1), LABELS)
    found = list(batches(read, ORDER, start=1))
    assert len(found) == 3
    for (ys, cs), places in zip(found, ORDER[1:], strict=True):
        np.testing.assert_array_equal(ys, np.float32(2) * YS[places], strict=True)
        np.testing.assert_array_equal(cs, LABELS[places])
        assert type(ys) is np.ndarray


# What is no source, and what no model takes


def test_what_is_read_and_what_is_held(folder):
    read = (mapped(folder), {"a": mapped(folder)}, OnDisk(YS), Records(), [Path("a.png")], ["a.png"], source(YS))
    held = (YS, jnp.asarray(YS), [1, 2], [[1.0]], range(3), (YS, YS), {"a": YS}, None, 3.0, "text", np.float32(1), [])
    assert [is_source(x) for x in read] == [True] * len(read)
    assert [is_source(x) for x in held] == [False] * len(held)


def test_what_cannot_be_read_is_said(folder, tmp_path):
    def raises(message, act):
        with pytest.raises(ValueError, match=message):
            act()

    for nothing in (3, {1: 2}, iter("ab")):
        raises("source wants items with a length and pl", lambda nothing=nothing: inspect.unwrap(source)(nothing))
    raises("workers is how many processes read, 0 for threads of this one; got -1", lambda: source(YS, workers=-1))
    raises(r"the source wants the examples along its first axis; got shapes", lambda: source((YS, YS[1:])))
    raises(
        r"pairs=True wants \(y, c\) for each example, and example 0 of the source is a ndarray",
        lambda: source(YS, pairs=True).read([1]),
    )
    Image.new("L", (5, 4)).save(tmp_path / "large.png")
    raises(
        r"example 1 of the source is uint8\[4, 5, 1\], and the first is uint8\[3, 2, 1\]: all have to be alike, so "
        r"make them so in read= \(of images: lambda file: read_image\(file, size=\(h, w\), channels=3\)\)",
        lambda: source([folder / "00.png", tmp_path / "large.png"]).read([0, 1]),
    )
    raises(r"is \{a: uint8\[.*, and the first is uint8", lambda: source([YS, {"a": YS}]).read([0, 1]))
    np.save(tmp_path / "ys.npy", YS)
    read = source(mapped(tmp_path))
    (tmp_path / "ys.npy").write_bytes((tmp_path / "ys.npy").read_bytes()[:-1])
    raises("ys.npy ends within example 22: was it cut short", lambda: read.read([22]))


REAL = RNG.normal(size=(1000, 3))
SOLVED = linear_gaussian(np.array([[1.0, 2.0], [2.0, 0.0], [2.0, -1.0]]) / 2, 0.5, REAL)


@pytest.mark.parametrize(
    ("ys", "cs", "options", "message"),
    [
        (np.where(np.arange(1000)[:, None] == 999, np.nan, REAL), None, {}, "in 1 of 256 examples, .* index 999: rem"),
        (REAL, np.full(1000, np.inf), {}, "cs holds NaN or infinity in 1000 of 1000 examples, the first at index 0"),
        (REAL, np.zeros(5), {}, "ys has 1000 examples and cs 5: give one condition for each"),
        (REAL[:0], None, {}, "ys is empty: want a source with at least one example"),
        (REAL, None, {"batch_size": 1001}, "batch_size=1001 does not fit data of 1000 examples"),
        (REAL + 1e12, None, {}, "ys, column 0, lies between .* and float32 would move its values"),
        (
            REAL,
            None,
            {"params": jax.tree.map(lambda x: x[..., :1], SOLVED.params)},
            "the parameters do not fit these data",
        ),
    ],
)
def test_what_a_model_does_not_take_is_said_before_anything_is_compiled(ys, cs, options, message):
    read = as_source(source(list(ys), lambda y: y), cs)
    with pytest.raises(ValueError, match=message):
        check_source(SOLVED.model, read, identity(), **options)


def test_the_classes_of_a_source_are_checked():
    model = labelled(vae(gaussian(NOTHING), standard_normal(1), bernoulli(GREY)), 3)
    with pytest.raises(ValueError, match=r"valid cs has classes in 0 .. 3, and this model knows 0 .. 2"):
        check_source(model, source(Records(), pair_of, pairs=True), dynamic_binarisation(), where="valid ")


# Numbers of a source


NOTHING = Network(lambda key, *_: {}, lambda params, y, c: jnp.zeros(2))
GREY = Network(lambda key, *_: {}, lambda params, z, c: jnp.broadcast_to(c.mean() + z[0], (3, 2)))
MODEL = vae(gaussian(NOTHING), standard_normal(1), bernoulli(GREY))
CS = RNG.normal(size=(N, 2)).astype(np.float32)


def evaluated(ys, cs=CS, **options):
    return evaluate(MODEL, {"enc": {}, "pri": {}, "gen": {}}, KEY, ys, cs, preprocess=dynamic_binarisation(), **options)


def test_numbers_of_a_source_are_those_of_the_array_to_the_bit(folder):
    held = evaluated(YS, batch_size=8, k=2)
    pairs = source(list(zip(YS, CS, strict=True)), pairs=True)
    for ys, cs in ((mapped(folder), CS), (pairs, None), (source(Records(), image_of), source(CS))):
        read = evaluated(ys, cs, batch_size=8, k=2)
        for name in ("elbo", "rate", "distortion", "log_likelihood"):
            np.testing.assert_array_equal(getattr(read, name), getattr(held, name))


@pytest.mark.parametrize("axes", [{"data": 4}, {"data": 2, "fsdp": 2}, {"x": 2, "y": 2}])
def test_numbers_do_not_depend_on_the_mesh(folder, axes):
    """Four devices, batches of 6 rounded up to 8; with parameters on the host and on the mesh."""
    held = run(REAL32[:N], batch_size=8)
    np.save(folder / "real.npy", REAL32[:N])
    mesh = jax.make_mesh(tuple(axes.values()), tuple(axes))
    on_mesh = jax.device_put(SOLVED.params, jax.NamedSharding(mesh, jax.P()))
    for ys, params in ((REAL32[:N], SOLVED.params), (mapped(folder, "real.npy"), on_mesh)):
        split = run(ys, params, batch_size=6 if "x" not in axes else 7, mesh=mesh)
        for name in ("elbo", "rate", "log_likelihood"):
            np.testing.assert_allclose(getattr(split, name), getattr(held, name), rtol=2e-6, atol=2e-6)


REAL32 = REAL.astype(np.float32)


def run(ys, params=SOLVED.params, **options):
    return evaluate(SOLVED.model, params, KEY, ys, k=2, at_once=16, **options)


def test_parameters_split_by_fsdp_are_whole_while_they_are_used():
    """As in training. What a rule splits by other axes stays split."""
    mesh = jax.make_mesh((2, 2), ("fsdp", "model"))
    specs = {"gathered": jax.P(None, "fsdp"), "kept": jax.P(("fsdp", "model")), "whole": jax.P()}
    params = {name: jax.device_put(jnp.ones((4, 4)), jax.NamedSharding(mesh, spec)) for name, spec in specs.items()}
    seen = {}

    def of_batch(params, key, indices, ys, cs):
        for name, value in params.items():
            jax.debug.inspect_array_sharding(value, callback=lambda found, name=name: seen.update({name: found}))
        return ys.sum(axis=1) + indices + sum(value.sum() for value in params.values())

    sums = over_split(of_batch, params, KEY, REAL32[:8], None, batch_size=8, mesh=mesh)
    np.testing.assert_allclose(sums, REAL32[:8].sum(axis=1) + np.arange(8) + 48, rtol=1e-6)
    assert {name: where.is_fully_replicated for name, where in seen.items()} == {
        "gathered": True,
        "kept": False,
        "whole": True,
    }


def test_a_second_evaluation_over_a_mesh_compiles_nothing(caplog):
    mesh = jax.make_mesh((4,), ("data",))
    run(REAL32[:8], batch_size=8, mesh=mesh)
    with jax.log_compiles():
        run(REAL32[:8], batch_size=8, mesh=mesh)
    assert "Finished tracing" in caplog.text
    assert "Compiling" not in caplog.text
