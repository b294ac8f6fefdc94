"""A run directory is opened again: the same model, the same numbers, and what can be asked of its z."""

import json
import re
import shutil
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vae_jax import bernoulli, em, evaluate, fit, gaussian, l2, nets, open_run, standard_normal, vae
from vae_jax.command.carried import card_of
from vae_jax.command.publish import plain_rows
from vae_jax.command.results import rows_of
from vae_jax.core import labelled, lift
from vae_jax.data import dynamic_binarisation
from vae_jax.parts.flows import coupling_flow
from vae_jax.selfcheck.solvable import affine, affine_normal
from vae_jax.training import recipe, save_run
from vae_jax.training.trained import CARRIED

KEY = jax.random.key(0)
YS = np.random.default_rng(0).integers(0, 256, (47, 6)).astype(np.uint8)
CS = np.arange(47) % 3


def build(latent=2):
    return vae(affine_normal(latent), standard_normal(latent), bernoulli(affine(6))), dynamic_binarisation()


def of_classes():
    encoder, generator = gaussian(nets.MLP((), 4)), bernoulli(nets.MLP((), 6))
    return labelled(vae(encoder, standard_normal(2), generator), 3), dynamic_binarisation()


def trained(directory, made=recipe(build, latent=2), cs=None, **options):
    model, preprocess = made.build()
    options = {"epochs": 2, "validation": (YS[:9], None if cs is None else cs[:9])} | options
    run = {"key": KEY, "batch_size": 8, "preprocess": preprocess, "progress": False, "directory": directory}
    return fit(model, optax.adam(0.1), YS, cs, recipe=made, **run, **options)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """(directory, what fit gave)"""
    directory = tmp_path_factory.mktemp("run")
    return directory, trained(directory, ema_decay=0.9)


@pytest.fixture(scope="module")
def run(fitted):
    return open_run(fitted[0])


def test_the_model_is_the_one_that_was_trained(fitted, run):
    """The parameters to use (moving averages here) bit for bit, and the numbers with them."""
    directory, was = fitted
    jax.tree.map(np.testing.assert_array_equal, run.params, was.params)
    assert run.history == was.history and run.step in (5, 10)
    model, preprocess = build()
    want = evaluate(model, was.params, KEY, YS, preprocess=preprocess, k=3)
    got = run.evaluate(KEY, YS, k=3)
    for name in ("elbo", "rate", "log_likelihood"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
    assert got.convention == "dynamic binarisation"
    (start,) = json.loads((directory / "made.json").read_text())
    assert start["versions"]["jax"] == jax.__version__ and start["step"] == 0 and start["command"]


def test_what_can_be_asked_of_z(run):
    """Against the parts, called by hand."""
    binary = (YS > 127).astype(np.uint8) * 255  # whose binarisation is certain
    enc, gen = affine_normal(2), bernoulli(affine(6))
    seen = jnp.asarray(binary / 255, jnp.float32)
    means = jax.vmap(lambda y: enc.dist(run.params["enc"], y).mean)(seen)
    shown = jax.vmap(lambda z: gen.dist(run.params["gen"], z).mean)
    zs = run.encode(binary)
    np.testing.assert_allclose(zs, means, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run.decode(zs), shown(means), rtol=1e-5, atol=1e-6)
    draws = np.stack([run.encode(binary, key=key) for key in jax.random.split(KEY, 40)])
    errors = (draws.mean(axis=0) - means) / (draws.std(axis=0) / 40**0.5)
    assert np.abs(errors).max() < 5 and draws.std() > 0

    line = run.interpolate(binary[:5], steps=3)
    assert line.shape == (2, 3, 6)
    np.testing.assert_allclose(
        line[1], shown(jnp.stack([means[2], (means[2] + means[3]) / 2, means[3]])), rtol=1e-5, atol=1e-6
    )

    moved = run.traverse(binary, units=1, steps=5, reach=1.0)
    assert moved.shape == (1, 5, 6)
    unit = int(np.argmax(np.var(means, axis=0)))
    assert run.units_of(zs, 1) == [unit]
    drawn = run.encode(binary, key=jax.random.key(0))[:, unit]
    ends = np.stack([means[0], means[0]])
    ends[:, unit] = drawn.mean() - drawn.std(), drawn.mean() + drawn.std()
    np.testing.assert_allclose(moved[0, [0, -1]], shown(jnp.asarray(ends)), rtol=1e-5, atol=1e-6)


def test_samples_and_reconstructions(run):
    """At temperature 0 all samples are one; an example has its own noise, whatever the others are."""
    at_zero = run.sample(KEY, 3, temperature=0.0)
    np.testing.assert_allclose(at_zero, run.decode(np.zeros((3, 2), np.float32)), rtol=1e-5, atol=1e-6)
    many, few = run.sample(KEY, 130), run.sample(KEY, 4)
    np.testing.assert_array_equal(many[:4], few)
    assert len({tuple(y) for y in many.tolist()}) == 130
    assert set(np.unique(run.sample(KEY, 5, mean=False))) == {0.0, 1.0}
    again, other = run.reconstruct(KEY, YS), run.reconstruct(jax.random.key(1), YS)
    assert again.shape == (47, 6) and not np.array_equal(again, other)
    np.testing.assert_array_equal(again[:3], run.reconstruct(KEY, YS[:3]))


def test_conditions(tmp_path):
    trained(tmp_path, recipe(of_classes), CS)
    run = open_run(tmp_path)
    of_one = run.sample(KEY, 2, c=np.int64(1))
    np.testing.assert_array_equal(run.sample(KEY, 2, c=np.array([1, 2]))[0], of_one[0])
    assert run.encode(YS, CS).shape == (47, 2)
    line = run.interpolate(YS[:2], CS[:2], steps=4)[0]  # from class 0 to class 1
    ends = run.encode(YS[:2], CS[:2])
    np.testing.assert_allclose(line[1], run.decode((2 * ends[:1] + ends[1:]) / 3, CS[:1])[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(line[3], run.decode(ends[1:], CS[1:2])[0], rtol=1e-5, atol=1e-6)
    for c, message in (
        (None, r"has a condition c like int32\[\]; got none"),
        (np.ones((3, 1)), "or 2 of them; got float64"),
    ):
        with pytest.raises(ValueError, match=message):
            run.sample(KEY, 2, c=c)


def not_this():
    return vae(affine_normal(2), standard_normal(2), l2(affine(5), 0.5))


def nothing():
    return None


def test_what_is_no_run_is_said_in_a_sentence(fitted, tmp_path, recwarn):
    directory, _ = fitted
    config = json.loads((directory / "config.json").read_text())

    def copy(name, **changed):
        folder = tmp_path / name
        folder.mkdir()
        kept = {key: value for key, value in {**config, **changed}.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))
        return folder

    elsewhere = {"function": "no_such_module:build", "arguments": {}}
    cases = (
        (tmp_path / "none", FileNotFoundError, "is no run directory: it has no config.json"),
        (copy("empty"), FileNotFoundError, "empty has no checkpoint yet"),
        (copy("newer", format=99), ValueError, r"written by a newer vae_jax \(format 99, this one reads 1\)"),
        (copy("unsaid", recipe=None), ValueError, "unsaid does not say how its model is built: give open_run"),
        (
            copy("elsewhere", recipe=elsewhere),
            ImportError,
            "recipe no_such_module:build cannot be imported .*PYTHONPATH",
        ),
    )
    for folder, kind, message in cases:
        with pytest.raises(kind, match=message):
            open_run(folder)
        assert not (folder / "lock").exists()
    with pytest.raises(ValueError, match=r"does not fit: state\.\w+\['enc'\].* wanted; usually it is of another model"):
        open_run(directory, recipe=recipe(build, latent=3))


def test_a_recipe_of_a_module_that_is_run(monkeypatch):
    """`python -m package.module`, whose functions say that they are of __main__; a script has no name."""
    monkeypatch.setattr(not_this, "__module__", "__main__")
    main = SimpleNamespace(__spec__=SimpleNamespace(name="package.module"))
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert recipe(not_this).function == "package.module:not_this"
    main.__spec__ = None
    with pytest.raises(ValueError, match="__main__:not_this cannot be: define the function at the top of a module"):
        recipe(not_this)


@pytest.mark.parametrize(
    ("made", "kind", "message"),
    [
        (lambda: recipe(lambda: None), ValueError, "cannot be: define the function at the top of a module"),
        (lambda: recipe(build, latent={1}), TypeError, "recipe .*:build must be plain JSON values"),
        (lambda: build, TypeError, r"recipe wants one of vae_jax.training.recipe, .*; got function"),
        (lambda: recipe(nothing), TypeError, r"has to return a model, or a pair \(model, preprocess\); got NoneType"),
        (lambda: recipe(build, latent=3), ValueError, "builds another model than the one that is trained: its enc/"),
    ],
)
def test_a_recipe_is_tried_before_anything_is_trained(tmp_path, made, kind, message):
    model, preprocess = build()
    with pytest.raises(kind, match=message):
        fit(model, optax.adam(0.1), YS, key=KEY, epochs=1, batch_size=8, preprocess=preprocess,
            directory=tmp_path / "run", recipe=made())  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_data_of_another_shape_or_convention(run):
    with pytest.raises(
        ValueError,
        match=r"run0 was trained on ys like uint8\[6\], each, and these ys are of shape \(47, 5\); the first",
    ):
        run.encode(YS[:, :5])
    with pytest.raises(TypeError, match="dynamic_binarisation"):
        run.reconstruct(KEY, YS / np.float32(255))


def test_damaged_parameters_are_named_and_older_ones_used(fitted, tmp_path):
    directory, _ = fitted
    shutil.copytree(directory, tmp_path / "run")
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    (newest / "manifest.json").write_text("{}")
    with pytest.warns(UserWarning, match=f"{newest.name}: manifest.json does not read"):
        opened = open_run(tmp_path / "run", which="last")
    assert opened.step == 5


def test_parameters_trained_otherwise_are_kept_the_same_way(run, tmp_path):
    """A mixture by EM, whose z is a class; saved twice, the second time another one."""
    ys = np.concatenate([YS[:20] % 7, 250 + YS[:20] % 5]).astype(np.float32)
    for components in (3, 2):
        made = recipe(em.mixture_of_gaussians, size=6, components=components)
        fitted = em.fit_em(em.mixture_of_gaussians(6, components), ys, key=KEY, iterations=20)
        save_run(tmp_path, made, fitted.params, ys[0])
    opened = open_run(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, opened.params, fitted.params)
    codes = opened.encode(ys)
    assert set(codes[:20]) | set(codes[20:]) == {0, 1} and len(set(codes[:20])) == len(set(codes[20:])) == 1
    np.testing.assert_allclose(opened.decode(codes)[[0, 39]], [ys[:20].mean(axis=0), ys[20:].mean(axis=0)], rtol=1e-3)
    with pytest.raises(TypeError, match="are classes or codes, with nothing between them: no interpolate"):
        opened.interpolate(ys)


@pytest.mark.parametrize("name", ["fashion_vae", "fashion_vq_vae", "fashion_mixture"])
def test_models_that_the_package_carries(name):
    """By the code of their cards; their numbers are those that they are published with, to the rounding of another
    machine."""
    found: dict = {}
    exec(re.search("```python\n(.*?)```", (CARRIED / name / "README.md").read_text(), re.DOTALL)[1], found)
    run, ys = found["run"], found["ys"]
    rows = rows_of(found["result"], "test ELBO", f"{len(ys)} test images")
    assert [row.name for row in rows] == [row["name"] for row in run.numbers]
    for row, published in zip(plain_rows(rows), run.numbers, strict=True):
        assert row["value"] == pytest.approx(published["value"], rel=1e-4)
        assert (row["standard_error"] or 0) == pytest.approx(published["standard_error"] or 0, rel=1e-3)
    for shown in (run.reconstruct(KEY, ys[:2]), found["drawn"][:2], found["again"][:2]):
        assert shown.shape == (2, 28, 28, 1) and len(np.unique(shown)) > 2  # means, no draws


@pytest.mark.parametrize("name", ["fashion_vae", "fashion_vq_vae", "fashion_mixture"])
def test_the_cards_of_the_carried_models(name):
    """As the command writes them of what is there; each value and error of numbers.json, to the digits shown."""
    run, written = open_run(f"carried/{name}"), (CARRIED / name / "README.md").read_text(encoding="utf8")
    assert written == card_of(name, run)
    shown = {row[0]: row[1].split(" ± ") for row in re.findall(r"^\| (.+?) \| (.+?) \| .* \|$", written, re.MULTILINE)}
    assert list(shown) == [row["name"] for row in run.numbers]
    for row in run.numbers:
        value, *error = map(float, shown[row["name"]])
        assert value == pytest.approx(row["value"], abs=0.5 * (error or [0])[0] / 9)
        assert sum(error) == pytest.approx(row["standard_error"] or 0, rel=0.05)
    for said in ("MIT, Zalando SE 2017", "makes of them what it sees: dynamic binarisation", 'license: "apache-2.0"'):
        assert said in written


def test_the_carried_models_are_small():
    assert sum(file.stat().st_size for file in CARRIED.rglob("*")) < 2e6


def flow():
    return coupling_flow(6)


def test_a_model_without_z_says_so(tmp_path):
    fit(lift(flow()), optax.adam(0.01), YS / np.float32(255), key=KEY, epochs=1, batch_size=8, directory=tmp_path,
        recipe=recipe(flow), progress=False)  # fmt: skip
    run = open_run(tmp_path)
    assert run.sample(KEY, 3).shape == (3, 6)
    for ask in (lambda: run.encode(YS / np.float32(255)), lambda: run.decode(np.zeros((1, 2)))):
        with pytest.raises(
            TypeError, match=r"has no z to be encoded or decoded .*: what it has is sample and evaluate"
        ):
            ask()
