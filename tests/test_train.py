"""The training step against steps written by hand, and all the ways to run it against each other.

Most tests use `LINE`, a model of three numbers whose step compiles in no time; those about noise, devices and the
reference use VAEs. Comparisons across devices use plain SGD: Adam's first step is the sign of the gradient, which turns
a rounding error at 0 into a whole step.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import Mesh, PartitionSpec
from laws import affine, class_of, compiled, encoder, uniform
from numpyro.distributions import CategoricalLogits, Normal

from vae_jax import (
    Model,
    Terms,
    bernoulli,
    enumerated,
    gaussian,
    init_state,
    l2,
    make_scan,
    make_train_step,
    standard_normal,
    vae,
)
from vae_jax.core import (
    Scatter,
    beta_elbo,
    elbo,
    free_bits,
    importance_weighted,
    lift,
    linear_annealing,
    per_example,
    share,
)
from vae_jax.core.objectives import batch_terms
from vae_jax.data import Preprocess, dynamic_binarisation
from vae_jax.parts import conditional, vampprior
from vae_jax.training import Turns, batch_sharding, lagging, replicated
from vae_jax.training.optimizer import split_parts
from vae_jax.training.step import epoch_order, leaf_names, make_fed_scan

KEY = jax.random.key(7)
YS = np.random.default_rng(1).normal(size=(8, 2)).astype(np.float32)
SGD, ADAM = optax.sgd(0.1), optax.adam(0.1)


def constant(params):
    """`Model.init` that gives these parameters."""
    return lambda key, y, c=None: jax.tree.map(jnp.float32, params)


def nothing(params, key, c=None):
    """`Model.sample` of a model that nobody samples."""
    return jnp.zeros(2)


def line_terms(params, key, y, c=None):
    """distortion = (gen + noise - mean y)^2 / 2, rate = (enc^2 + pri^2) / 2."""
    error = params["gen"] + jax.random.normal(key) - jnp.mean(y)
    return Terms(0.5 * error**2, 0.5 * (params["enc"] ** 2 + params["pri"] ** 2))


LINE = Model(constant({"enc": 1.0, "gen": 2.0, "pri": -1.0}), line_terms, nothing)


@functools.cache
def step_of(model, optimizer=SGD, **options):
    return compiled(make_train_step(model, optimizer, **options))


@functools.cache
def start(model=LINE, optimizer=SGD, *, ema=False):
    return init_state(model, optimizer, jax.random.key(0), YS[0], ema=ema)


def run(model=LINE, optimizer=SGD, *, steps=1, ys=YS, state=None, **options):
    """(state, metrics of the last step) after some steps on the same batch."""
    state = start(model, optimizer) if state is None else state
    for _ in range(steps):
        state, metrics = step_of(model, optimizer, **options)(state, KEY, ys)
    return state, metrics


def assert_same(got, want):
    """Bit for bit."""
    assert_close(got, want, rtol=0, atol=0)


def assert_close(got, want, rtol=2e-5, atol=2e-6):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(got)[0], jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))


# The step itself


def test_step_equals_one_written_by_hand():
    """A Bernoulli VAE with dynamic binarisation and Adam, in plain jax: two steps, parameters and metrics."""
    model = vae(gaussian(affine(4)), standard_normal(2), bernoulli(affine(6)))
    levels = np.random.default_rng(0).integers(256, size=(8, 6)).astype(np.uint8)
    state = init_state(model, ADAM, jax.random.key(0), levels[0].astype(np.float32))
    step = compiled(make_train_step(model, ADAM, preprocess=dynamic_binarisation()))

    def parts(params, key, level):
        k_data, k_model = jax.random.split(key)
        y = (jax.random.bits(k_data, (6,)) <= level.astype(jnp.uint32) * 0x01010101) & (level > 0)
        y = y.astype(jnp.float32)
        mean, raw = jnp.split(params["enc"]["weights"] @ y + params["enc"]["bias"], 2)
        log_std = 7 * jnp.tanh(raw / 7)
        z = mean + jnp.exp(log_std) * jax.random.normal(jax.random.split(k_model)[0], (2,))
        logits = params["gen"]["weights"] @ z + params["gen"]["bias"]
        distortion = jnp.sum(jax.nn.softplus(logits) - y * logits)
        rate = jnp.sum(0.5 * z**2 - 0.5 * ((z - mean) / jnp.exp(log_std)) ** 2 - log_std)
        return distortion, rate

    @compiled
    def by_hand(params, opt_state, key):
        def loss(params):
            keys = jnp.stack([jax.random.fold_in(key, i) for i in range(8)])
            distortion, rate = jax.tree.map(jnp.mean, jax.vmap(parts, (None, 0, 0))(params, keys, levels))
            return distortion + rate, (distortion, rate)

        (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = ADAM.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value, aux, optax.tree.norm(grads)

    params, opt_state = state.params, ADAM.init(state.params)
    for i in range(2):
        params, opt_state, loss, (distortion, rate), norm = by_hand(params, opt_state, jax.random.fold_in(KEY, i))
        state, metrics = step(state, KEY, levels)
        want = {"loss": loss, "elbo": -loss, "distortion": distortion, "rate": rate, "grad_norm": norm}
        assert_close(metrics, {**want, "penalty": 0.0, "in_a_row": 0}, rtol=1e-5)
        assert_close(state.params, params, rtol=1e-5, atol=1e-6)
    assert int(state.step) == 2 and int(state.skipped) == int(state.in_a_row) == 0 and int(state.culprit) == -1


def test_step_is_pure_and_its_key_typed():
    """Same inputs, same outputs; nothing is written to the inputs; another key or kind of key gives other noise."""
    ys = YS.copy()
    before = jax.device_get(start())
    first = step_of(LINE)(start(), KEY, ys)
    assert_same(step_of(LINE)(start(), jax.random.key(7), ys), first)
    assert_same(jax.device_get(start()), before)
    np.testing.assert_array_equal(ys, YS)
    for other in (jax.random.key(8), jax.random.key(7, impl="rbg")):
        state, _ = step_of(LINE)(start(), other, ys)
        assert np.isfinite(state.params["gen"]) and state.params["gen"] != first[0].params["gen"]


def test_noise_follows_from_key_step_and_place():
    """Another step or another place in the batch: other noise; the same example twice has two draws."""
    same_rows = np.zeros_like(YS)
    for step in range(2):
        _, metrics = run(ys=same_rows, state=start()._replace(step=jnp.int32(step)))
        keys = [jax.random.fold_in(jax.random.fold_in(KEY, step), i) for i in range(8)]
        want = np.mean([0.5 * (2 + jax.random.normal(jax.random.split(k)[1])) ** 2 for k in keys])
        np.testing.assert_allclose(metrics["distortion"], want, rtol=1e-6)


def test_every_key_is_used_once(one_use_keys):
    step = compiled(make_train_step(LINE, SGD, micro_batches=2))
    jax.block_until_ready(step(start(), jax.random.key(7), YS))


def test_condition_reaches_the_model():
    def terms(params, key, y, c):
        return Terms(params["w"] * jnp.mean(y) * c, 0.0)

    model = Model(constant({"w": 1.0}), terms, nothing)
    cs = np.arange(8, dtype=np.float32)
    state, metrics = step_of(model)(start(model), KEY, YS, cs)
    np.testing.assert_allclose(metrics["loss"], np.mean(YS.mean(1) * cs), rtol=1e-5)
    np.testing.assert_allclose(state.params["w"], 1 - 0.1 * np.mean(YS.mean(1) * cs), rtol=1e-5)


def test_data_may_be_a_tree_and_preprocessing_has_its_own_noise():
    def terms(params, key, y, c=None):
        return Terms(params["w"] * (y["a"] + (y["noise"] - jax.random.uniform(key)) ** 2), 0.0)

    model = Model(constant({"w": 1.0}), terms, nothing)
    noisy = Preprocess(lambda key, y: {**y, "noise": jax.random.uniform(key)}, "noisy", None)
    _, metrics = step_of(model, preprocess=noisy)(start(model), KEY, {"a": np.full(8, 5, np.float32)})
    assert 5 < metrics["loss"] < 6


def test_donated_state():
    """The state's memory is given back, and the numbers are the same."""
    step = compiled(make_train_step(LINE, ADAM, ema_decay=0.9), donate_argnums=0)
    state = old = init_state(LINE, ADAM, jax.random.key(0), YS[0], ema=True)
    for _ in range(3):
        state, _ = step(state, KEY, YS)
    assert all(x.is_deleted() for x in jax.tree.leaves(old))
    assert_same(state, run(LINE, ADAM, steps=3, state=start(LINE, ADAM, ema=True), ema_decay=0.9)[0])


# Ways to run it


class Job(NamedTuple):
    """What devices and loops have to agree on: a conditional VAE with an M-step, clipping and an average."""

    model: Model
    cs: np.ndarray
    options: dict
    state: object
    reference: object


@pytest.fixture(scope="module")
def job():
    """`reference` is (state, metrics) after one step on one device."""
    model = vae(gaussian(affine(4)), standard_normal(2), l2(affine(2), "optimal"))
    cs = np.eye(2, dtype=np.float32)[np.arange(8) % 2]
    options = {"clip_norm": 1.0, "ema_decay": 0.9}
    state = init_state(model, SGD, jax.random.key(0), YS[0], cs[0], ema=True)
    return Job(model, cs, options, state, step_of(model, **options)(state, KEY, YS, cs))


def test_maximise_gives_the_root_mean_squared_error_of_the_batch(job):
    """sigma after the step: RMSE at the OLD networks and with the step's own noise."""
    enc, gen = job.state.params["enc"], job.state.params["gen"]["net"]
    errors = []
    for i, (y, c) in enumerate(zip(YS, job.cs, strict=True)):
        k_model = jax.random.split(jax.random.fold_in(jax.random.fold_in(KEY, 0), i))[1]
        mean, raw = jnp.split(enc["weights"] @ np.concatenate([y, c]) + enc["bias"], 2)
        z = mean + jnp.exp(7 * jnp.tanh(raw / 7)) * jax.random.normal(jax.random.split(k_model)[0], (2,))
        errors.append(gen["weights"] @ jnp.concatenate([z, c]) + gen["bias"] - y)
    sigma = np.exp(7 * np.tanh(job.reference[0].params["gen"]["log_sigma"] / 7))
    np.testing.assert_allclose(sigma, np.sqrt(np.mean(np.square(errors))), rtol=1e-5)


def test_micro_batches_equal_one_batch(job):
    step = step_of(job.model, micro_batches=4, **job.options)
    assert_close(step(job.state, KEY, YS, job.cs), job.reference)


@pytest.mark.parametrize(("devices", "micro_batches"), [(4, 1), (2, 2)])
def test_pmap_equals_one_device(job, devices, micro_batches):
    step = jax.pmap(
        make_train_step(job.model, SGD, axis_name="devices", micro_batches=micro_batches, **job.options),
        axis_name="devices",
        in_axes=(None, None, 0, 0),
        devices=jax.devices()[:devices],
    )
    split = jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), (YS, job.cs))
    result = step(job.state, KEY, *split)
    for device in range(devices):
        assert_close(jax.tree.map(lambda x, d=device: x[d], result), job.reference)


def test_shard_map_equals_one_device(job):
    mesh = Mesh(jax.devices(), ("devices",))
    whole, split = PartitionSpec(), PartitionSpec("devices")
    step = jax.shard_map(
        make_train_step(job.model, SGD, axis_name="devices", **job.options),
        mesh=mesh,
        in_specs=(whole, whole, split, split),
        out_specs=whole,
        check_vma=False,  # that the results are alike on all devices is what this test compares
    )
    result = compiled(step)(job.state, KEY, YS, job.cs)
    assert_close(result, job.reference)
    for x in jax.tree.leaves(result):
        assert all(np.array_equal(shard.data, x.addressable_data(0)) for shard in x.addressable_shards)


def test_sharded_batch_equals_one_device(job):
    mesh = Mesh(jax.devices(), ("data",))
    sharded = jax.device_put((YS, job.cs), batch_sharding(mesh))
    result = step_of(job.model, **job.options)(jax.device_put(job.state, replicated(mesh)), KEY, *sharded)
    assert_close(result, job.reference)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(result[0]))


def test_scan_equals_single_steps_also_over_a_mesh(job):
    """3 steps with 4 examples each, of 12 on the device: step by step, in one loop, in one loop over 4 devices."""
    ys, cs = np.concatenate([YS, -YS[:4]]), np.concatenate([job.cs, job.cs[:4]])
    train_step = make_train_step(job.model, SGD, **job.options)
    scanned = compiled(make_scan(train_step, 4, 3))(job.state, KEY, ys, cs)

    k_order, k_steps = jax.random.split(KEY)
    order = epoch_order(k_order, jnp.int32(0), 12, 12).reshape(3, 4)
    state, rows = job.state, []
    for chosen in order:
        state, metrics = step_of(job.model, **job.options)(state, k_steps, ys[chosen], cs[chosen])
        rows.append(metrics)
    assert_close((state, jax.tree.map(lambda *x: jnp.stack(x), *rows)), scanned)

    mesh = Mesh(jax.devices(), ("data",))
    whole = jax.device_put((job.state, ys, cs), replicated(mesh))
    meshed = compiled(make_scan(train_step, 4, 3, mesh=mesh)).lower(whole[0], KEY, *whole[1:]).compile()
    assert_close(meshed(whole[0], KEY, *whole[1:]), scanned)
    assert "all-reduce" in meshed.as_text()  # the devices share the work


def visited(n: int, batch_size: int, calls: list[int]) -> list[set[int]]:
    """Which examples each step of some `make_scan` calls saw: example i adds 2^i to the loss."""
    model = Model(constant({"w": 0.0}), lambda params, key, y, c=None: Terms(2.0**y + 0 * params["w"], 0.0), nothing)
    state, ys = start(model), np.arange(n, dtype=np.float32)
    scans = {steps: compiled(make_scan(make_train_step(model, SGD), batch_size, steps)) for steps in set(calls)}
    seen = []
    for steps in calls:
        state, metrics = scans[steps](state, KEY, ys)
        seen += [{i for i in range(n) if round(float(x)) >> i & 1} for x in metrics["distortion"] * batch_size]
    assert int(state.step) == sum(calls)
    return seen


def test_an_epoch_visits_each_example_once():
    """10 examples by 3: 9 of them in each epoch, in another order, whatever calls it is cut into."""
    seen = visited(10, 3, [3, 3, 3])
    epochs = [seen[i : i + 3] for i in (0, 3, 6)]
    for epoch in epochs:
        assert [len(batch) for batch in epoch] == [3, 3, 3] and len(set.union(*epoch)) == 9
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert len({frozenset(set.union(*epoch)) for epoch in epochs}) > 1  # each epoch leaves out another example
    assert visited(10, 3, [1] * 9) == seen


def test_epoch_order_is_a_permutation_of_its_own_for_each_epoch():
    orders = np.array([epoch_order(KEY, jnp.int32(epoch), 100, 100) for epoch in range(3)])
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(100), (3, 1)))
    assert np.mean(orders[0] == orders[1]) < 0.1 and np.mean(orders[0] == np.arange(100)) < 0.1
    np.testing.assert_array_equal(epoch_order(KEY, jnp.int32(2), 30, 100), orders[2][:30])


# Options


@pytest.mark.parametrize("parts", [None, ("gen", "pri")])
@pytest.mark.parametrize("bound", [0.5, 1e6])
def test_clip_norm_is_that_of_optax_over_the_parts_that_train(bound, parts):
    def moves(**options):
        state, metrics = run(parts=parts, **options)
        moved = jax.tree.map(lambda new, old: (new - old) / -0.1, state.params, start().params)
        return moved, metrics["grad_norm"]

    gradient, norm = moves()
    clipped, norm_before = moves(clip_norm=bound)
    want, _ = optax.clip_by_global_norm(bound).update(gradient, optax.EmptyState())
    assert_close(clipped, want, rtol=1e-5)
    assert_close([norm, norm_before], [optax.tree.norm(gradient)] * 2, rtol=1e-5)


def test_moving_average_follows_its_formula():
    """ema <- d ema + (1 - d) params with d = min(decay, (1 + step) / (10 + step))."""
    state = start(ema=True)
    want = jax.device_get(state.params)
    for t in range(5):
        state, _ = run(state=state, ema_decay=0.25)
        d = min(0.25, (1 + t) / (10 + t))
        want = {name: d * want[name] + (1 - d) * float(state.params[name]) for name in want}
        assert_close(jax.device_get(state.ema), want, rtol=1e-5)
    assert state.ema["gen"] != state.params["gen"]


def test_no_average_unless_asked_for():
    assert start().ema is None
    kept, _ = run(state=start(ema=True))
    assert_same(kept.ema, start().params)


def test_frozen_parts_keep_everything():
    """Parameters and optimiser state bit for bit; and any part can be switched at any step with the same state."""
    state = start(LINE, ADAM)
    structure = jax.tree.structure(state)
    for trained in (("gen",), ("pri", "gen"), None, ("enc",)):
        old = state
        state, _ = run(LINE, ADAM, state=old, parts=trained, steps=2)
        assert jax.tree.structure(state) == structure
        for part in ("enc", "pri", "gen"):
            if trained is None or part in trained:
                assert state.params[part] != old.params[part]
                assert int(state.opt_state[part][0].count) == int(old.opt_state[part][0].count) + 2
            else:
                assert_same((state.params[part], state.opt_state[part]), (old.params[part], old.opt_state[part]))
    assert [int(state.opt_state[part][0].count) for part in ("enc", "pri", "gen")] == [4, 4, 6]
    assert int(state.step) == 8


def test_part_that_trains_has_the_gradient_that_it_has_among_all():
    """Fixed-encoder training: pri and gen move as if enc trained too."""
    every, some = run()[0].params, run(parts=("pri", "gen"))[0].params
    assert_close(some, {**every, "enc": start().params["enc"]}, rtol=1e-6)


def test_closed_form_parameters_are_frozen_with_their_part():
    """`maximise` sets gen to the mean of y and enc to 5: only where that part trains."""

    def terms(params, key, y, c=None):
        return line_terms(params, key, y)._replace(stats={"y": jnp.mean(y)})

    model = LINE._replace(terms=terms, maximise=lambda params, stats: {**params, "gen": stats["y"], "enc": 5.0})
    both = run(model)[0].params
    np.testing.assert_allclose([both["gen"], both["enc"]], [np.mean(YS), 5], rtol=1e-6)
    gen = run(model, parts=("gen",))[0].params
    np.testing.assert_allclose([gen["gen"], gen["enc"]], [np.mean(YS), 1], rtol=1e-6)
    assert_same({k: run(model, parts=("pri",))[0].params[k] for k in ("enc", "gen")}, {"enc": 1.0, "gen": 2.0})


def test_learning_rate_schedules_are_those_of_optax():
    """The gradient of enc is enc: enc_t = prod (1 - rate_t). A part counts the steps in which it trained."""
    schedule = optax.sgd(optax.piecewise_constant_schedule(0.1, {2: 0.5}))
    state, _ = run(LINE, schedule, steps=4)
    np.testing.assert_allclose(state.params["enc"], 0.9 * 0.9 * 0.95 * 0.95, rtol=1e-6)
    late, _ = run(LINE, schedule, steps=2, parts=("gen",))
    late, _ = run(LINE, schedule, steps=2, state=late)
    np.testing.assert_allclose(late.params["enc"], 0.9 * 0.9, rtol=1e-6)


def test_objective_sees_the_step():
    """beta rises from 0 to 1 in two steps: the gradient of enc is beta enc."""
    state, metrics = run(objective=beta_elbo(linear_annealing(2)), steps=3)
    np.testing.assert_allclose(state.params["enc"], (1 - 0.05) * (1 - 0.1), rtol=1e-6)
    np.testing.assert_allclose(metrics["elbo"], -(metrics["distortion"] + metrics["rate"]), rtol=1e-6)


def test_penalty_is_trained_and_not_reported():
    def fined(params, key, y, c=None):
        return line_terms(params, key, y)._replace(penalty=3.0 * params["enc"])

    plain_state, plain = run()
    state, metrics = run(LINE._replace(terms=fined))
    np.testing.assert_allclose(state.params["enc"], plain_state.params["enc"] - 0.1 * 3, rtol=1e-6)
    want = {**plain, "loss": plain["loss"] + 3, "penalty": 3.0, "grad_norm": metrics["grad_norm"]}
    assert_close(metrics, want, rtol=1e-6)


def test_free_bits_for_each_example_agree_across_devices():
    """Below the floor nothing rewards a smaller rate; and pmap gives what one device gives."""
    options = {"objective": free_bits(3.0, per_example)}
    want, _ = run(**options)
    step = jax.pmap(make_train_step(LINE, SGD, axis_name="devices", **options), "devices", in_axes=(None, None, 0))
    got, _ = step(start(), KEY, YS.reshape(4, 2, 2))
    assert_close(jax.tree.map(lambda x: x[3], got), want)
    assert got.params["enc"][0] == 1.0 and got.params["gen"][0] != 2.0


def test_importance_weighted_training_of_an_enumerated_model():
    """Its importance sample is the exact likelihood: the loss is -ln P(y), whatever k."""
    gen = bernoulli(affine(2))
    model = vae(class_of(affine(3)), uniform((3,), CategoricalLogits), gen, estimator=enumerated)
    ys = (YS > 0).astype(np.float32)
    state, metrics = run(model, ys=ys, objective=importance_weighted(3))
    params = start(model).params["gen"]
    log_p = [np.log(np.mean([np.exp(gen.dist(params, jnp.int32(z)).log_prob(y)) for z in range(3)])) for y in ys]
    np.testing.assert_allclose(metrics["loss"], -np.mean(log_p), rtol=1e-5)
    assert np.any(state.params["gen"]["weights"] != params["weights"])


# Updates that are not finite


class Knobs(NamedTuple):
    a: jax.Array
    b: jax.Array


def broken(at, how: str, init=None) -> Model:
    """Finite values; but where the data are above 100, the leaf `at(params)` has a gradient of nan or inf."""

    def terms(params, key, y, c=None):
        bad = jnp.where(jnp.mean(y) > 100, 0.0, 1.0)
        leaf = at(params)
        root = jnp.sqrt(bad + jnp.sum(leaf - jax.lax.stop_gradient(leaf)))  # 1 / 0 at bad = 0
        return Terms(sum(jnp.sum(x**2) for x in jax.tree.leaves(params)) + root * (1.0 if how == "inf" else bad), 0.0)

    return Model(init or constant({"enc": Knobs(1.0, 1.0), "gen": {"w": 1.0}, "pri": {}}), terms, nothing)


GOOD, BAD = np.ones((8, 2), np.float32), np.full((8, 2), 1000, np.float32)


def test_steps_that_are_not_finite_are_skipped_and_counted():
    """NaN in one example at steps 1, 2 and 4: nothing moves but the counters."""
    nan = YS.copy()
    nan[3, 1] = np.nan
    state = start(LINE, ADAM, ema=True)
    counts = []
    for t, ys in enumerate((YS, nan, nan, YS, nan)):
        old = state
        state, metrics = run(LINE, ADAM, ys=ys, state=old, ema_decay=0.9, clip_norm=1.0)
        counts.append((int(state.step), int(state.skipped), int(state.in_a_row), int(metrics["in_a_row"])))
        if t in (1, 2, 4):
            assert_same((state.params, state.opt_state, state.ema), (old.params, old.opt_state, old.ema))
            assert np.isnan(metrics["loss"])
        else:
            assert state.params["gen"] != old.params["gen"]
    assert counts == [(1, 0, 0, 0), (2, 1, 1, 1), (3, 2, 2, 2), (4, 2, 0, 0), (5, 3, 1, 1)]
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))
    assert leaf_names(state.params)[int(state.culprit)] == "distortion"  # and the loss, which is a sum


def test_run_goes_on_as_if_the_bad_batch_had_not_been():
    model = broken(lambda params: params["gen"]["w"], "inf")
    interrupted, _ = run(model, ADAM, ys=GOOD)
    interrupted, _ = run(model, ADAM, ys=BAD, state=interrupted)
    interrupted, _ = run(model, ADAM, ys=GOOD, state=interrupted)
    clean, _ = run(model, ADAM, ys=GOOD, steps=2)
    assert_same((interrupted.params, interrupted.opt_state), (clean.params, clean.opt_state))
    assert (int(interrupted.step), int(interrupted.skipped), int(clean.skipped)) == (3, 1, 0)


def test_objective_that_breaks_at_one_step():
    def objective(model, params, keys, ys, cs, step):
        loss, terms = elbo()(model, params, keys, ys, cs, step)
        return jnp.where(step == 2, jnp.nan, loss), terms

    state, _ = run(objective=objective, steps=4)
    assert (int(state.skipped), int(state.in_a_row), int(state.step)) == (1, 0, 4)
    assert leaf_names(state.params)[int(state.culprit)] == "loss"


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize("how", ["nan", "inf"])
@pytest.mark.parametrize("name", ["enc/a", "enc/b", "gen/w"])
def test_culprit_is_the_first_leaf_that_is_not_finite(name, how, clip_norm):
    at = {"enc/a": lambda p: p["enc"].a, "enc/b": lambda p: p["enc"].b, "gen/w": lambda p: p["gen"]["w"]}[name]
    model = broken(at, how)
    state, metrics = run(model, ys=BAD, clip_norm=clip_norm)
    assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["grad_norm"])
    assert leaf_names(state.params)[int(state.culprit)] == f"gradient of {name}"
    assert_same(state.params, start(model).params)


def test_culprit_may_be_a_term_of_the_loss():
    """The loss that is minimised is finite here, its gradient is not, and the first culprit is the penalty."""

    def objective(model, params, keys, ys, cs, step):
        terms = batch_terms(model.terms, params, keys, ys, cs)
        return jnp.mean(terms.nats) + jnp.sqrt(params["gen"] * 0), terms._replace(penalty=jnp.full(8, jnp.inf))

    state, _ = run(objective=objective)
    assert leaf_names(state.params)[int(state.culprit)] == "penalty"


@pytest.mark.parametrize("params", [np.ones(3), (np.ones(2), 1.0), Knobs(1.0, np.ones(2))])
def test_parameters_that_are_no_dict_are_one_part(params):
    """They train, skip and have names like others; here the last leaf breaks."""
    model = broken(lambda params: jax.tree.leaves(params)[-1], "inf", constant(params))
    params = start(model).params
    assert set(start(model).opt_state) == set(split_parts(params)) == {"all"}
    after, _ = run(model, ys=GOOD, clip_norm=1.0)
    assert jax.tree.structure(after.params) == jax.tree.structure(params)
    assert all(np.all(a != b) for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(params), strict=True))
    skipped, _ = run(model, ys=BAD, clip_norm=1.0)
    assert_same(skipped.params, params)
    assert leaf_names(params)[int(skipped.culprit)].startswith("gradient of ")
    assert int(skipped.culprit) == 3 + len(jax.tree.leaves(params))
    with pytest.raises(ValueError, match=r"\['all'\]"):
        run(model, parts=("gen",))


def test_the_one_part_may_be_named():
    model = broken(lambda params: params, "inf", constant(np.ones(2)))
    assert_same(run(model, ys=GOOD, parts=("all",)), run(model, ys=GOOD))


def test_leaf_names():
    leaves = ["enc/a", "enc/b", "gen/w"]
    wanted = [f"{what} of {leaf}" for what in ("gradient", "update") for leaf in leaves]
    params = {"gen": {"w": 0.0}, "enc": Knobs(0.0, 1.0)}
    assert leaf_names(params) == ["distortion", "rate", "penalty", "loss", *wanted]


HALF = lift(conditional(nn.Dense(2, param_dtype=jnp.float16, dtype=jnp.float16), lambda x: Normal(x, 1.0).to_event(1)))


@pytest.mark.parametrize(
    ("model", "optimizer", "culprit"),
    [
        (LINE, optax.adam(float("nan")), "update of enc"),
        (LINE, optax.chain(optax.scale(1e30), optax.scale(1e30)), "update of enc"),
        # Adam's eps of 1e-8 is 0 in float16, and so is the square of a small gradient: 0 / 0.
        (HALF, ADAM, "update of params/kernel"),
        (lift(conditional(affine(2), lambda x: Normal(x, 1e-20).to_event(1))), SGD, "distortion"),
        (lift(conditional(affine(2), lambda x: Normal(x, float("inf")).to_event(1))), SGD, "distortion"),
    ],
)
def test_what_is_not_finite_after_the_update_is_noticed_too(model, optimizer, culprit):
    c, ys = jnp.zeros(1), jnp.ones((4, 2))
    state = init_state(model, optimizer, KEY, ys[0], c)
    after, _ = step_of(model, optimizer)(state, KEY, ys, jnp.zeros((4, 1)))
    assert_same((after.params, after.opt_state), (state.params, state.opt_state))
    assert (int(after.skipped), int(after.in_a_row)) == (1, 1)
    assert leaf_names(after.params)[int(after.culprit)] == culprit


def test_an_update_that_breaks_in_the_middle_of_a_scan_is_skipped_as_in_single_steps():
    """An optimiser that breaks where the loss is high, which it is at some of six steps."""

    def update(grads, state, params=None, *, value, **_):
        return jax.tree.map(lambda g: jnp.where(value > 3.0, jnp.inf, -0.1 * g), grads), state

    spiky = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    step, ys = make_train_step(LINE, spiky), np.concatenate([YS, YS, YS])[:24]
    state, in_a_row = init_state(LINE, spiky, KEY, ys[0]), []
    in_order = make_scan(step, 4, 6, order=lambda key, epoch, size, n: jnp.arange(size))
    scanned, metrics = compiled(in_order)(state, KEY, ys)
    fed, fed_metrics = compiled(make_fed_scan(step))(state, KEY, ys.reshape(6, 4, *ys.shape[1:]))
    for batch in ys.reshape(6, 4, *ys.shape[1:]):
        state, each = compiled(step)(state, jax.random.split(KEY)[1], batch)
        in_a_row.append(int(each["in_a_row"]))
    assert 0 < int(state.skipped) < 6 and in_a_row[-1] == 0
    assert leaf_names(state.params)[int(state.culprit)] == "update of enc"
    assert_close((scanned, fed), (state, state))
    assert metrics["in_a_row"].tolist() == fed_metrics["in_a_row"].tolist() == in_a_row


# Optimisers


def tree_terms(params, key, y, c=None):
    """A distortion of enc and gen, whose numbers pull at each other; no noise."""
    enc, gen = params["enc"], params["gen"]
    return Terms(jnp.sum((gen["w"] * enc["a"] - y) ** 2) + jnp.sin(enc["b"]) * jnp.sum(gen["w"]), enc["b"] ** 2)


TREE = Model(constant({"enc": {"a": 1.5, "b": 0.5}, "gen": {"w": np.ones(2)}, "pri": {}}), tree_terms, nothing)


def by_path(slow, params):
    """A label for each parameter by the path to it."""

    def label(path, _):
        return "slow" if jax.tree_util.keystr(path, simple=True, separator="/").startswith(slow) else "fast"

    return jax.tree_util.tree_map_with_path(label, params)


def is_weight(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "w", params)


PLAIN, SLOW_AND_FAST = optax.sgd(0.1), {"slow": optax.sgd(0.01), "fast": optax.adam(0.1)}
OPTIMIZERS = {
    "adam": optax.adam(optax.exponential_decay(0.1, 2, 0.5)),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)),
    "clipped after": optax.chain(optax.adam(0.5), optax.clip_by_global_norm(0.1)),
    "labels by path": optax.multi_transform(SLOW_AND_FAST, functools.partial(by_path, "enc/a")),
    "labels by part": optax.multi_transform(SLOW_AND_FAST, {"enc": "slow", "gen": "fast", "pri": "fast"}),
    "labels of leaves": optax.multi_transform(
        SLOW_AND_FAST, {"enc": {"a": "slow", "b": "fast"}, "gen": {"w": "slow"}, "pri": {}}
    ),
    "masked": optax.chain(optax.masked(optax.scale(3.0), is_weight), optax.adamw(0.1, mask=is_weight)),
    "on plateau": optax.chain(PLAIN, optax.contrib.reduce_on_plateau(patience=1, rtol=0.5)),
    "polyak": optax.polyak_sgd(1.0),
    "schedule-free": optax.contrib.schedule_free_sgd(0.1),
    "distance over gradients": optax.contrib.dog(1.0),
    "every second": optax.MultiSteps(optax.adam(0.1), 2),
}


def test_all_parts_together_are_optax_on_the_whole_tree():
    """Four steps of each optimiser, beside a loop that knows of no parts: parameters and states, bit for bit."""
    steps = {name: make_train_step(TREE, optimizer) for name, optimizer in OPTIMIZERS.items()}
    states = {name: init_state(TREE, optimizer, KEY, YS[0]) for name, optimizer in OPTIMIZERS.items()}

    @compiled
    def ours(states):
        return {name: step(states[name], KEY, YS)[0] for name, step in steps.items()}

    def by_hand(optimizer, params, opt_state):
        keys = jax.random.split(KEY, len(YS))
        loss, grads = jax.value_and_grad(lambda p: elbo()(TREE, p, keys, YS, None, 0)[0])(params)
        updates, opt_state = optax.with_extra_args_support(optimizer).update(grads, opt_state, params, value=loss)
        return optax.apply_updates(params, updates), opt_state

    @compiled
    def theirs(states):
        return {name: by_hand(OPTIMIZERS[name], *state) for name, state in states.items()}

    hands = {name: (states[name].params, optimizer.init(states[name].params)) for name, optimizer in OPTIMIZERS.items()}
    for _ in range(4):
        states, hands = ours(states), theirs(hands)
    for name, (params, opt_state) in hands.items():
        assert_same(states[name].params, params)
        for part in ("enc", "gen", "pri"):
            assert_same(*own_leaves(states[name].opt_state[part], opt_state))


def own_leaves(state, whole):
    """(the leaves that a part keeps of an optimiser's state, the same of the whole state)."""
    masked = lambda leaf: isinstance(leaf, optax.MaskedNode)  # noqa: E731
    pairs = jax.tree.leaves(jax.tree.map(lambda a, b: None if masked(a) else (a, b), state, whole, is_leaf=masked))
    return pairs[::2], pairs[1::2]


@pytest.mark.parametrize("name", ["clipped", "labels by path", "labels of leaves", "masked"])
def test_frozen_parts_are_not_there_for_the_optimizer(name):
    """gen alone, then enc alone: each moves as in a model that has no other part, the other one keeps every bit."""
    state = start(TREE, OPTIMIZERS[name])
    after, _ = run(TREE, OPTIMIZERS[name], parts=("gen", "pri"), steps=2)
    assert_same((after.params["enc"], after.opt_state["enc"]), (state.params["enc"], state.opt_state["enc"]))
    assert np.all(after.params["gen"]["w"] != state.params["gen"]["w"])
    if name == "clipped":  # by 1 in all at each step: the norm of what trains, and of nothing else
        moved = run(TREE, OPTIMIZERS[name], parts=("gen",))[0].params["gen"]["w"] - state.params["gen"]["w"]
        np.testing.assert_allclose(np.linalg.norm(moved), 1.0, rtol=1e-6)
    both, _ = run(TREE, OPTIMIZERS[name], parts=("enc",), state=after)
    assert_same((both.params["gen"], both.opt_state["gen"]), (after.params["gen"], after.opt_state["gen"]))
    assert all(both.params["enc"][leaf] != after.params["enc"][leaf] for leaf in "ab")


@pytest.mark.parametrize(
    ("optimizer", "error", "message"),
    [
        (None, TypeError, r"optimizer wants an optax optimiser, .* got None"),
        (optax.adam, TypeError, r"got the function adam, which has to be called first"),
        (0.1, TypeError, r"got 0\.1"),
        (
            optax.multi_transform(SLOW_AND_FAST, functools.partial(by_path, "encoder/")),
            ValueError,
            r"no parameter has the label 'slow' .*: it goes by the whole tree of parameters, enc/a, enc/b, gen/w",
        ),
        (optax.masked(PLAIN, {"enc": False, "gen": False, "pri": True}), ValueError, "mask .* picks no parameter"),
        (optax.chain(PLAIN, optax.masked(PLAIN, lambda p: jax.tree.map(jnp.iscomplexobj, p))), ValueError, "mask "),
        (optax.flatten(optax.adam(0.1)), ValueError, r"cannot be divided by the parts .*optax\.flatten"),
        (optax.lbfgs(), ValueError, "no state for the part 'pri' alone .*line search"),
    ],
)
def test_optimizers_that_would_do_nothing(optimizer, error, message):
    with pytest.raises(error, match=message):
        init_state(TREE, optimizer, KEY, YS[0])
    if error is TypeError:
        with pytest.raises(error, match=message):
            make_train_step(TREE, optimizer)


def test_pmap_skips_on_every_device():
    """NaN on one device only: all of them skip, and stay the same."""
    nan = YS.reshape(4, 2, 2).copy()
    nan[2, 0, 0] = np.nan
    step = jax.pmap(make_train_step(LINE, SGD, axis_name="devices"), "devices", in_axes=(None, None, 0))
    state, _ = step(start(), KEY, nan)
    np.testing.assert_array_equal(state.skipped, np.ones(4))
    np.testing.assert_array_equal(state.params["gen"], np.full(4, 2.0))


# Errors


@pytest.mark.parametrize(
    ("option", "value"),
    [("clip_norm", 0.0), ("clip_norm", float("nan")), ("ema_decay", 1.0), ("ema_decay", -0.1), ("micro_batches", 0)],
)
def test_options_out_of_range(option, value):
    with pytest.raises(ValueError, match=rf"{option}.*{value}"):
        make_train_step(LINE, SGD, **{option: value})


def test_parts_take_turns():
    """The encoder alone in steps 0, 1, 3, 4; all parts in step 2 and from step 5 on: step by step the step of those."""
    state = by_hand = start(LINE, ADAM)
    for step in range(8):
        parts = ("enc",) if step in (0, 1, 3, 4) else None
        state, metrics = step_of(LINE, ADAM, parts=lagging(2, 5))(state, KEY, YS)
        by_hand, wanted = step_of(LINE, ADAM, parts=parts)(by_hand, KEY, YS)
        assert_same((state, metrics), (by_hand, wanted))


def test_turns_of_other_parts():
    turns = Turns((("gen",), ("pri",)), lambda step: step % 2)
    first, _ = run(parts=turns)
    assert_same({k: first.params[k] for k in ("enc", "pri")}, {"enc": 1.0, "pri": -1.0})
    second, _ = run(state=first, parts=turns)
    assert_same({k: second.params[k] for k in ("enc", "gen")}, {k: first.params[k] for k in ("enc", "gen")})
    assert second.params["pri"] != first.params["pri"]


@pytest.mark.parametrize(("inner", "until"), [(0, 10), (3, 0)])
def test_lagging_wants_steps(inner, until):
    with pytest.raises(ValueError, match=f"got {inner} and {until}"):
        lagging(inner, until)


def test_scattered_statistics_are_added_up_over_the_batch():
    """The closed-form update sees the mean over examples of what would be an array of 5 rows for each."""
    index = np.random.default_rng(0).integers(5, size=(8, 3))
    values = np.random.default_rng(1).normal(size=(8, 3, 2)).astype(np.float32)
    model = LINE._replace(
        init=constant({"pri": np.zeros((5, 2))}),
        terms=lambda params, key, y, c=None: Terms(0.0 * jnp.sum(params["pri"]), 0.0, stats=Scatter(*y, 5)),
        maximise=lambda params, stats: {"pri": stats},
    )
    ys = (jnp.asarray(index), jnp.asarray(values))
    state = init_state(model, SGD, KEY, jax.tree.map(lambda y: y[0], ys))
    want = np.zeros((5, 2))
    np.add.at(want, index.ravel(), values.reshape(-1, 2))
    for options in ({}, {"micro_batches": 4}):
        got = step_of(model, SGD, **options)(state, KEY, ys)[0].params["pri"]
        np.testing.assert_allclose(got, want / 8, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parts", [("encoder",), ("gen", "typo"), ()])
def test_unknown_or_no_part(parts):
    with pytest.raises(ValueError, match=r"parts=.*\['enc', 'gen', 'pri'\]"):
        run(parts=parts)


def test_batch_that_does_not_divide():
    with pytest.raises(ValueError, match=r"batch of 8 .* micro_batches=3"):
        run(micro_batches=3)


def test_misspelt_option():
    with pytest.raises(TypeError, match="clipnorm"):
        make_train_step(LINE, SGD, clipnorm=1.0)


# Shared parameters


@pytest.fixture(scope="module")
def tied():
    """(the VampPrior VAE with two encoders, the same with one, its parameters, those with the encoder twice)."""
    enc = encoder(1)
    full = vae(enc, vampprior(enc, YS[:3]), l2(affine(2), "optimal"))
    one = share(full, "enc", "pri/enc")
    params = compiled(one.init)(jax.random.key(0), YS[0])
    return full, one, params, {**params, "pri": {**params["pri"], "enc": params["enc"]}}


def test_share_keeps_one_copy(tied):
    full, one, params, twice = tied
    assert set(params["pri"]) == {"pseudo"}
    every = compiled(full.init)(jax.random.key(0), YS[0])
    assert jax.tree.structure(every) == jax.tree.structure(twice)
    assert_same(every["enc"], params["enc"])
    assert type(one.support(params)) is type(full.support(twice))


def test_shared_parameters_give_the_same_terms_and_the_sum_of_the_gradients(tied):
    full, one, params, twice = tied

    def of(model, params):
        @compiled
        def everything(params):
            k_terms, k_importance, k_sample = jax.random.split(jax.random.key(1), 3)
            nats, gradient = jax.value_and_grad(lambda p: model.terms(p, k_terms, YS[0]).nats)(params)
            stats = {"pri": (), "gen": {"squared_error": 0.25}}
            importance = model.importance(params, k_importance, YS[0]).nats
            return (nats, importance, model.sample(params, k_sample)), gradient, model.maximise(params, stats)

        return everything(params)

    ours, gradient, maximised = of(one, params)
    theirs, gradients, maximised_twice = of(full, twice)
    assert_close(ours, theirs)
    both = jax.tree.map(jnp.add, gradients["enc"], gradients["pri"]["enc"])
    assert_close(gradient, {"enc": both, "pri": {"pseudo": gradients["pri"]["pseudo"]}, "gen": gradients["gen"]})
    assert jax.tree.structure(maximised) == jax.tree.structure(params)
    assert_close(maximised["gen"], maximised_twice["gen"])
    np.testing.assert_allclose(7 * np.tanh(maximised["gen"]["log_sigma"] / 7), np.log(0.5), rtol=1e-5)


@pytest.mark.parametrize(("source", "target"), [("encoder", "pri/enc"), ("enc", "prior/enc"), ("enc", "pri/encoder")])
def test_share_names_the_path_that_is_not_there(tied, source, target):
    with pytest.raises(KeyError, match="no parameters at"):
        jax.eval_shape(share(tied[0], source, target).init, jax.random.key(0), YS[0])
