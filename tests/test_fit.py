"""The host loop: what a run computes, what it chooses, what it writes, how it stops and how it goes on."""

import inspect
import json
import re
import shutil
import struct
import zlib
from collections import defaultdict
from functools import partial as partial_of

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, PartitionSpec

from vae_jax import (
    Conditional,
    analytic,
    evaluate,
    fit,
    init_state,
    l2,
    learned_normal,
    make_train_step,
    standard_normal,
    vae,
)
from vae_jax.core import beta_elbo, elbo, free_bits, lift, per_example
from vae_jax.data.preprocess import identity
from vae_jax.em import fit_em, mixture_of_gaussians
from vae_jax.evaluation import mean
from vae_jax.selfcheck.solvable import affine, affine_normal
from vae_jax.training import checkpoint
from vae_jax.training.description import describe
from vae_jax.training.plan import call_sizes

RNG = np.random.default_rng(0)
MODEL = vae(affine_normal(1), standard_normal(1), l2(affine(2), 0.5))
YS = (RNG.normal(size=(47, 1)) * [1.0, -0.5] + 0.3 * RNG.normal(size=(47, 2)) + 1).astype(np.float32)
NEAR, FAR = YS[:9] + np.float32(0.1), -YS[:9]  # the better YS are known, the worse FAR are
ADAM = optax.adam(1e-2)
KEY = jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def compiled_once(tmp_path_factory):
    """Most runs here compile the same programs: they share them."""
    was = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()
    compilation_cache.set_cache_dir(str(tmp_path_factory.mktemp("programs")))
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", was)
    compilation_cache.reset_cache()


def run(ys=YS, optimizer=ADAM, *, model=MODEL, **options):
    """A small run: 4 steps of 11 examples an epoch, 3 of the 47 examples wait for the next order."""
    options = {"key": KEY, "epochs": 3, "batch_size": 11, "validation": (NEAR, None), "progress": False} | options
    return fit(model, optimizer, ys, **options)


def with_sigma(sigma):
    return vae(affine_normal(1), standard_normal(1), l2(affine(2), sigma))


def order_with(skip):
    return lambda key, epoch, size, n: jnp.arange(size) * skip % n


FACTOR = 3.0
FINISHED = {"epochs": 1, "config": {"latent": 2}, "objective": elbo(), "order": order_with(1)}


def assert_same_bits(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert (a.dtype, a.shape, np.asarray(a).tobytes()) == (b.dtype, b.shape, np.asarray(b).tobytes())


def differs(a, b):
    return any(bool(jnp.any(x != y)) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def without_speed(history):
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in history]


class Dropping(nn.Module):
    """A network with dropout at every call."""

    @nn.compact
    def __call__(self, *inputs):
        return nn.Dropout(0.5, deterministic=False)(
            nn.Dense(2)(jnp.concatenate(inputs, -1) if inputs else jnp.ones((1, 1)))
        )


# What is computed


def test_a_run_is_its_steps_in_order():
    """The same written out: each epoch's order from its key, one jitted step after the other."""
    fitted = run(validation=None)
    step, (k_init, k_train, _) = jax.jit(make_train_step(MODEL, ADAM)), jax.random.split(KEY, 3)
    k_order, k_steps = jax.random.split(k_train)
    state, history = init_state(MODEL, ADAM, k_init, jnp.zeros(2)), []
    for epoch in range(3):
        order = jax.random.permutation(jax.random.fold_in(k_order, epoch), 47)
        each = []
        for batch in np.asarray(order)[:44].reshape(4, 11):
            state, metrics = step(state, k_steps, YS[batch])
            each.append(metrics)
        history.append({name: np.mean([metrics[name] for metrics in each]) for name in metrics})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), fitted.state, state)
    assert_same_bits(fitted.params, fitted.state.params)  # nothing validated: the last ones
    assert [(row["epoch"], row["step"], row["skipped"]) for row in fitted.history] == [(1, 4, 0), (2, 8, 0), (3, 12, 0)]
    for row, wanted in zip(fitted.history, history, strict=True):
        for name in ("loss", "elbo", "rate", "distortion", "penalty", "grad_norm"):
            np.testing.assert_allclose(row[name], wanted[name], rtol=1e-4)
    assert fitted.images_per_second == np.median([row["images_per_second"] for row in fitted.history[1:]])


def test_the_key_decides_everything():
    assert_same_bits(run(epochs=1).state, run(epochs=1).state)
    assert differs(run(epochs=1).params, run(epochs=1, key=jax.random.key(1)).params)


def test_four_devices_compute_what_one_does(tmp_path):
    """A run on a mesh goes on as any other."""
    mesh = Mesh(np.array(jax.devices()[:4]), ("batch",))
    options = {"ema_decay": 0.9, "batch_size": 12}
    one = run(**options)
    run(**options, epochs=2, mesh=mesh, directory=tmp_path / "run")
    four = run(**options, mesh=mesh, directory=tmp_path / "run", resume=True)
    assert len(four.state.step.devices()) == 4
    got, want = ((fitted.state, fitted.params, without_speed(fitted.history)) for fitted in (four, one))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, want)


@pytest.mark.parametrize("sharding", ["fsdp", lambda path, shape, mesh: PartitionSpec(*("fsdp",) * (len(shape) == 1))])
def test_split_parameters_are_whole_while_they_are_used(sharding):
    """By fsdp: then examples alone are split, and none is sent. A rule of the user's is left to XLA."""
    seen = []

    def objective(model, params, *rest):
        jax.debug.inspect_array_sharding(params["mean"], callback=seen.append)
        return elbo()(model, params, *rest)

    mesh = Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("data", "fsdp"))
    options = {"epochs": 1, "batch_size": 44, "key": KEY, "mesh": mesh, "objective": objective, "progress": False}
    fitted = fit(lift(learned_normal(2)), ADAM, YS, sharding=sharding, **options)
    assert fitted.state.params["mean"].sharding.spec == PartitionSpec("fsdp")
    assert {where.is_fully_replicated for where in seen} == {sharding == "fsdp"}


@given(st.integers(1, 10_000), st.integers(1, 300))
def test_an_epoch_is_cut_into_few_sizes_of_calls(per_epoch, most):
    sizes = call_sizes(per_epoch, most)
    assert sum(sizes) == per_epoch
    assert len(set(sizes)) <= 2
    assert 1 <= min(sizes) <= max(sizes) <= most


def test_calls_of_two_sizes_are_one_epoch(monkeypatch):
    whole = run(epochs=2, validation=None)
    monkeypatch.setattr("vae_jax.training.plan.call_sizes", lambda steps, most: [3, steps - 3])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        run(epochs=2, validation=None).state,
        whole.state,
    )


# What is chosen


def test_the_best_validated_parameters_are_the_result(tmp_path):
    """Training leads away from FAR, so the first epoch is the best; two epochs later patience is out."""
    fitted = run(epochs=9, validation=(FAR, None), patience=2, directory=tmp_path)
    elbos = [row["valid_elbo"] for row in fitted.history]
    assert len(elbos) == 3 and np.argmax(elbos) == 0
    first = run(epochs=1, validation=(FAR, None))
    assert_same_bits(fitted.params, first.params)
    assert differs(fitted.state.params, first.params)
    assert_same_bits(checkpoint.restore(tmp_path, fitted.state, which="best").state, first.state)
    assert_same_bits(checkpoint.restore(tmp_path, fitted.state, which="last").state, fitted.state)
    again = run(epochs=9, validation=(FAR, None), patience=2, directory=tmp_path, resume=True)
    assert_same_bits((again.state, again.params), (fitted.state, fitted.params))
    assert (again.history, again.images_per_second) == (fitted.history, fitted.images_per_second)


def test_validation_is_of_the_moving_average_every_n_epochs_and_at_the_end():
    fitted = run(epochs=3, validate_every=2, ema_decay=0.9)
    assert ["valid_elbo" in row for row in fitted.history] == [False, True, True]
    assert_same_bits(fitted.params, fitted.state.ema)  # NEAR is learned: the last is the best
    result = evaluate(MODEL, fitted.state.ema, jax.random.split(KEY, 3)[2], NEAR)
    row = fitted.history[-1]
    assert (row["valid_elbo"], row["valid_elbo_standard_error"]) == mean(result.elbo)
    assert row["valid_elbo"] == pytest.approx(-row["valid_rate"] - row["valid_distortion"], rel=1e-5)


def test_parameters_without_a_finite_validation_are_the_first(monkeypatch):
    monkeypatch.setattr("vae_jax.training.loop._validate", lambda *_: {"valid_elbo": float("nan")})
    fitted = run(epochs=2, patience=9)
    assert np.isfinite(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(fitted.params)])).all()


# What is written


def test_metrics_and_events_hold_the_history(tmp_path):
    fitted = run(directory=tmp_path, config={"name": "small"})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == fitted.history
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["name"] == "small" and config["fit"]["batch_size"] == 11
    wanted = {
        name.replace("valid_", "valid/"): [(row["step"], pytest.approx(row[name])) for row in fitted.history]
        for name in fitted.history[0]
    }
    assert scalars(tmp_path / "tensorboard") == wanted
    assert {"elbo", "rate", "distortion", "valid/elbo", "images_per_second"} <= wanted.keys()


def scalars(folder):
    """{tag: [(step, value)]} of TensorBoard's event files: records of length, its crc, the event and its crc."""
    from tensorboardX.proto.event_pb2 import Event

    found = defaultdict(list)
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack_from("<Q", data)
            event = Event.FromString(data[12 : 12 + length])
            for value in event.summary.value:
                found[value.tag].append((event.step, value.simple_value))
            data = data[16 + length :]
    return found


def test_a_run_without_a_directory_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(run(epochs=1).history) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def as_wide_as_wanted(monkeypatch):
    """A bar is cut to COLUMNS, which readline sets for the processes that tests run in."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.mark.usefixtures("as_wide_as_wanted")
def test_the_bar_shows_elbo_and_speed(capsys):
    history = run(epochs=2, progress=True).history
    shown = re.findall(r"ELBO (\S+), valid (\S+) nats, (\S+) examples/s", capsys.readouterr().err)
    wanted = [(f"{r['elbo']:.2f}", f"{r['valid_elbo']:.2f}", f"{r['images_per_second']:,.0f}") for r in history]
    assert list(dict.fromkeys(shown)) == wanted


def test_the_bar_warns_of_posterior_collapse(capsys):
    """An encoder that starts at the prior, and parts that do not let it move; without a latent there is no warning."""
    silent = Conditional(lambda key, c: {}, lambda params, c: dist.Normal(jnp.zeros(1), 1.01).to_event(1))
    run(model=vae(silent, standard_normal(1), l2(affine(2), 0.5), estimator=analytic), epochs=3, progress=True)
    shown = capsys.readouterr()
    assert (shown.out + shown.err).count("posterior collapse") == 1
    run(model=lift(learned_normal(2)), epochs=1, progress=True)
    shown = capsys.readouterr()
    assert "collapse" not in shown.out + shown.err


def test_order_decides_what_is_seen():
    """An order that takes the first example again and again: training on copies of it."""
    first = run(order=lambda key, epoch, size, n: jnp.zeros(size, int), validation=None)
    copies = run(ys=np.repeat(YS[:1], 47, axis=0), validation=None)
    assert_same_bits(first.params, copies.params)


# How a run goes on


def test_more_epochs_later_are_the_longer_run(tmp_path):
    longer = run(epochs=5, ema_decay=0.9)
    run(epochs=2, ema_decay=0.9, directory=tmp_path / "run", resume=True)  # nothing there yet: it starts
    resumed = run(epochs=5, ema_decay=0.9, directory=tmp_path / "run", resume=True)
    assert_same_bits((resumed.state, resumed.params), (longer.state, longer.params))
    assert without_speed(resumed.history) == without_speed(longer.history)
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 5


def test_the_best_on_disk_may_be_damaged(tmp_path):
    """Epoch 1 is best and its checkpoint is lost: the run goes on, with a warning."""
    run(epochs=3, validation=(FAR, None), directory=tmp_path)
    (tmp_path / "checkpoints/000001-step-4/manifest.json").write_text("{")
    with pytest.warns(UserWarning, match=r"the last parameters serve as the best.*\s.*000001-step-4"):
        fitted = run(epochs=3, validation=(FAR, None), directory=tmp_path, resume=True)
    assert_same_bits(fitted.params, fitted.state.params)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({}, FileExistsError, "holds this run already.*resume=True"),
        ({"resume": True, "config": {"latent": 3}}, ValueError, "latent: 2 there, 3 asked"),
        ({"resume": True, "key": jax.random.key(1)}, ValueError, r"fit.key: \[0, 0\] there, \[0, 1\] asked"),
        ({"resume": True, "ys": YS + 1}, ValueError, r"fit.data.crc32: \d+ there, \d+ asked"),
        ({"resume": True, "batch_size": 10}, ValueError, "fit.batch_size: 11 there, 10 asked"),
        ({"resume": True, "ema_decay": 0.9}, ValueError, "fit.ema_decay: absent there, 0.9 asked"),
        ({"resume": True, "validation": (FAR, None)}, ValueError, r"fit.validation.crc32: \d+ there, \d+ asked"),
        ({"resume": True, "validation": None}, ValueError, r"fit.validation.crc32: \d+ there, absent asked"),
        ({"resume": True, "optimizer": optax.adam(2e-2)}, ValueError, "step_size: -0.01 there, -0.02 asked"),
        ({"resume": True, "optimizer": optax.adam(1e-2, b1=0.5)}, ValueError, "b1: 0.9 there, 0.5 asked"),
        ({"resume": True, "optimizer": optax.sgd(1e-2)}, ValueError, r"fit.optimizer.*: .*there, .*asked"),
        ({"resume": True, "objective": beta_elbo(2.0)}, ValueError, r"fit\.objective\..*beta: 1.0 there, 2.0 asked"),
        ({"resume": True, "objective": free_bits(1.0, per_example)}, ValueError, "fit.objective.is: .*beta_elbo.*free"),
        ({"resume": True, "model": with_sigma(0.6)}, ValueError, "fit.model.*sigma: 0.5 there, 0.6 asked"),
        ({"resume": True, "order": order_with(2)}, ValueError, "fit.order.skip: 1 there, 2 asked"),
        ({"resume": True, "preprocess": identity()._replace(name="x")}, ValueError, "preprocess.name: .* there, 'x'"),
    ],
)
def test_a_directory_takes_one_run(finished, changes, error, message):
    with pytest.raises(error, match=message):
        run(**FINISHED | {"directory": finished} | changes)


def test_the_same_run_made_anew_is_the_same(finished):
    """Other objects of the same names and values; more epochs may be asked for."""
    anew = {"optimizer": optax.adam(1e-2), "objective": elbo(), "model": with_sigma(0.5), "order": order_with(1)}
    assert len(run(**FINISHED | anew | {"directory": finished, "resume": True}).history) == 1
    assert json.loads((finished / "config.json").read_text())["fit"]["epochs"] == 1


def test_what_tells_functions_apart():
    """Names, closures, defaults, numbers written or read; what has none of them is said not to be compared."""
    scale = np.float32(0.5)

    def schedule(step, power=2.0):
        return scale * step**power * FACTOR - 0.25

    inner = {"is": f"{__name__}.test_what_tells_functions_apart.schedule", "scale": 0.5, "power": 2.0}
    inner |= {"FACTOR": 3.0, "constants": {"0": 0.25}}
    assert describe({"of": schedule, "again": schedule}) == {"of": inner}
    partial = {"is": "functools.partial", "of": inner, "args": {}, "power": 1}
    assert describe(partial_of(schedule, power=1)) == partial
    assert describe(np.arange(3, dtype=np.int16)) == f"int16[3] crc32 {zlib.crc32(bytes([0, 0, 1, 0, 2, 0]))}"
    assert describe((float("nan"), jax.random.key(1), object())) == {
        "0": "nan",
        "1": f"uint32[2] crc32 {zlib.crc32(bytes([0, 0, 0, 0, 1, 0, 0, 0]))}",
        "2": "builtins.object (not compared)",
    }
    assert describe(nn.Dense(3))["features"] == 3
    assert json.loads(json.dumps(describe(MODEL))) == describe(with_sigma(0.5))


@pytest.mark.filterwarnings("error")
def test_checkpoints_that_are_gone_are_not_started_over(tmp_path):
    """Two epochs counted and none kept is an error; none counted is a run that was killed early, and is said."""
    run(epochs=2, directory=tmp_path)
    rows = (tmp_path / "metrics.jsonl").read_text()
    shutil.rmtree(tmp_path / "checkpoints")
    with pytest.raises(
        FileNotFoundError, match=r"lost its checkpoints: metrics.jsonl counts 2 epochs, .*there is none"
    ):
        run(epochs=2, directory=tmp_path, resume=True)
    assert (tmp_path / "metrics.jsonl").read_text() == rows
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.warns(UserWarning, match="has no checkpoint yet: the run starts at its beginning"):
        assert len(run(epochs=2, directory=tmp_path, resume=True).history) == 2


def test_a_directory_is_free_again_after_an_error(tmp_path):
    run(epochs=1, directory=tmp_path)
    (manifest,) = tmp_path.rglob("manifest.json")
    good = manifest.read_text()
    manifest.write_text("{")
    with pytest.raises(checkpoint.DamagedError, match="no good checkpoint"):
        run(epochs=1, directory=tmp_path, resume=True)
    manifest.write_text(good)
    assert len(run(epochs=1, directory=tmp_path, resume=True).history) == 1


@pytest.fixture(scope="module")
def finished(tmp_path_factory, compiled_once):
    directory = tmp_path_factory.mktemp("finished")
    run(**FINISHED, directory=directory)
    return directory


# How a run stops


def test_updates_that_are_not_finite_stop_the_run(tmp_path):
    """Step 4, the first of the second epoch, is absurdly long: no step after it can be taken."""
    explodes = optax.sgd(lambda step: jnp.where(step < 4, 1e-3, 1e30))
    with pytest.raises(FloatingPointError) as caught:
        run(optimizer=explodes, epochs=9, max_skipped_in_a_row=3, directory=tmp_path)
    message = str(caught.value)
    assert "3 updates in a row were not finite, from step 5 on" in message
    assert "the first leaf that was not finite: distortion" in message
    assert f"{tmp_path / 'checkpoints'} holds the last good checkpoints" in message
    first = run(optimizer=explodes, epochs=1)
    found = checkpoint.restore(tmp_path, first.state)
    assert found.step == 4
    assert_same_bits(found.state, first.state)


def test_the_leaf_that_is_not_finite_is_named():
    """|w| has no derivative where it is written sqrt(w^2) and w = 0: the loss is finite, its gradient is not."""
    init, apply = affine(2)
    net = (
        lambda key, z: init(key, z) | {"zero": jnp.zeros(())},
        lambda params, z: apply(params, z) + jnp.sqrt(params["zero"] ** 2),
    )
    model = vae(affine_normal(1), standard_normal(1), l2(net, 0.5))
    with pytest.raises(FloatingPointError, match=r"from step 0 on.*not finite: gradient of gen/zero\..*directory=None"):
        run(model=model, epochs=2, max_skipped_in_a_row=6)


@pytest.mark.usefixtures("as_wide_as_wanted")
def test_skipped_updates_are_counted_and_change_nothing(capsys):
    def broken_later(model, params, keys, ys, cs, step):
        loss, terms = elbo()(model, params, keys, ys, cs, step)
        return jnp.where(step < 4, loss, jnp.nan), terms

    fitted = run(epochs=2, max_skipped_in_a_row=9, progress=True, objective=broken_later)
    assert [row["skipped"] for row in fitted.history] == [0, 4] and int(fitted.state.skipped) == 4
    assert np.isnan(fitted.history[1]["elbo"]) and "4 skipped" in capsys.readouterr().err
    assert_same_bits(fitted.state.params, run(epochs=1).state.params)


def test_a_run_without_one_update_is_an_error_at_its_end(tmp_path):
    says = rf"none of the 4 updates was finite.*not finite: update of enc/bias\..*{tmp_path}"
    with pytest.raises(FloatingPointError, match=says):
        run(optimizer=optax.adam(float("nan")), epochs=1, max_skipped_in_a_row=5, directory=tmp_path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"clip_nrom": 1.0}, TypeError, "clip_nrom"),
        ({"epochs": 0}, ValueError, "epochs >= 1.*got 0"),
        ({"validate_every": 0}, ValueError, "want validate_every >= 1, a whole number; got 0"),
        ({"patience": 2, "validation": None}, ValueError, r"pass validation=\(ys, cs\)"),
        ({"patience": -1}, ValueError, "patience counts validations .* at least 1; got -1"),
        ({"max_skipped_in_a_row": 0}, ValueError, "want max_skipped_in_a_row >= 1, a whole number; got 0"),
        ({"key": 0}, TypeError, r"key wants one random key, for instance jax.random.key\(0\); got 0"),
        ({"key": np.int64(3)}, TypeError, r"one random key.*got .*3"),
        ({"key": jax.random.split(KEY)}, TypeError, r"one random key.*got key<fry>\[2\]"),
        ({"objective": None}, TypeError, r"objective wants one of vae_jax.core, for instance elbo\(\); got None"),
        ({"optimizer": None}, TypeError, "optimizer wants an optax optimiser.*got None"),
        ({"optimizer": optax.adam}, TypeError, "the function adam, which has to be called first"),
        ({"validation": (NEAR, np.ones((9, 1)))}, ValueError, r"trained without conditions, .* wants cs None"),
        (
            {"cs": np.ones((47, 1), np.float32)},
            ValueError,
            r"trained with conditions, so validation=\(ys, cs\) wants cs for its examples",
        ),
        (
            {"model": lift(l2(affine(2), 0.5)), "cs": np.ones((47, 1)), "validation": (NEAR, np.ones((9, 2)))},
            ValueError,
            r"the parameters do not fit these data: .*labels \(cs\) left out or added",
        ),
        (
            {"model": lift(l2(Dropping(), 0.5)), "cs": np.ones((47, 1)), "validation": None},
            ValueError,
            r'Dropping draws .*has_rng\("dropout"\)',
        ),
        ({"validation": (NEAR * np.nan, None)}, ValueError, "validation ys holds NaN"),
        ({"clip_norm": -1.0}, ValueError, "clip_norm.*got -1"),
        ({"ema_decay": 1.0}, ValueError, "ema_decay.*got 1"),
        ({"epochs": 1.5}, ValueError, "want epochs >= 1, a whole number; got 1.5"),
        ({"micro_batches": 1.5}, ValueError, "micro_batches must be at least 1; got 1.5"),
        ({"micro_batches": 3}, ValueError, "batch of 11 does not divide into micro_batches=3"),
        ({"parts": ("prior",)}, ValueError, r"parts=\('prior',\).*\['enc', 'gen', 'pri'\]"),
    ],
)
def test_options_that_do_not_fit_are_errors_before_anything_is_made(tmp_path, caplog, options, error, message):
    options = {"optimizer": optax.adam(1e-2)} | options  # one that nothing has been compiled for
    with jax.log_compiles(), pytest.raises(error, match=message):
        run(directory=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()
    assert not re.search("Compiling .*(init|scan)", caplog.text)


def test_validation_data_without_their_pair_are_an_error():
    with pytest.raises(ValueError, match=r"validation wants a pair \(ys, cs\).*ndarray"):
        inspect.unwrap(fit)(MODEL, ADAM, YS, key=KEY, epochs=1, validation=NEAR)  # before jaxtyping sees it


def test_keys_of_the_old_style_are_keys_and_seeds_are_none():
    params = run(epochs=1).params
    assert_same_bits(run(epochs=1, key=jax.random.PRNGKey(0)).params, params)
    for use in (
        lambda key: evaluate(MODEL, params, key, NEAR),
        lambda key: fit_em(mixture_of_gaussians(2, 2, "full"), NEAR, key=key, iterations=1),
    ):
        with pytest.raises(TypeError, match=r"key wants one random key.*got 0"):
            use(0)


def test_by_default_a_batch_is_128_or_all_data():
    with pytest.warns(UserWarning, match="batch_size=47, which is all data; by default it is 128"):
        few = run(epochs=1, batch_size=None)
    assert few.history[0]["step"] == 1
    many = np.tile(YS, (6, 1))
    assert run(ys=many, epochs=1, batch_size=None).history[0]["step"] == len(many) // 128 == 2


def test_what_the_absence_of_compilation_is_judged_by(caplog):
    with jax.log_compiles():
        run(optimizer=optax.adam(1e-2), epochs=1, validation=None)
    assert {"start", "scan"} <= set(re.findall(r"Compiling \W*(?:jit)?\W*(\w+)", caplog.text))


def test_another_run_of_the_same_model_compiles_no_step(caplog):
    run(epochs=1)
    with jax.log_compiles():
        run(epochs=2, key=jax.random.key(1))
    assert "scan" not in re.findall(r"Compiling \W*(?:jit)?\W*(\w+)", caplog.text)
