"""The laws that every system keeps, over the whole table of `laws.py`.

Statistical laws fix their keys and allow 5 standard errors. Exempt from finite differences: `held` parameters (their
gradient is 0 by design, which is checked) and the encoder of `sticking` (its gradient is right on average, which is
checked as well).
"""

from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from laws import BATCH, LARGER, ON_DEVICES, REPRESENTATIVE, SYSTEMS, TRAINED, System, compiled

from vae_jax import evaluate, init_state, make_train_step
from vae_jax.core.objectives import batch_terms
from vae_jax.training import batch_sharding, checkpoint, replicated

DRAWS = 4000


class Case:
    """A system with parameters and the functions that several laws use, each compiled once."""

    def __init__(self, system: System):
        self.system, self.model = system, system.model
        self.ys = jax.tree.map(jnp.asarray, system.data.ys)
        self.cs = jax.tree.map(jnp.asarray, system.cs)
        self.y, self.c = jax.tree.map(lambda x: x[0], (self.ys, self.cs))
        self.optimizer = optax.adam(0.03)
        self.traces = {"graded": 0, "step": 0}
        self.init = compiled(lambda key: init_state(self.model, self.optimizer, key, self.y, self.c))
        self.params = self.fresh().params

    def fresh(self, seed: int = 0):
        with jax.debug_key_reuse(True):
            return self.init(jax.random.key(seed))

    @cached_property
    def graded(self):
        """`(params, keys, ys, cs) -> (gradients of nats, terms)`, each with the batch along axis 0."""

        def loss(params, key, y, c):
            terms = self.model.terms(params, key, y, c)
            return terms.nats, terms

        def of_batch(params, keys, ys, cs):
            self.traces["graded"] += 1
            return batch_terms(jax.grad(loss, has_aux=True), params, keys, ys, cs)

        return compiled(of_batch)

    def at(self, seed: int = 1, *, params=None, ys=None):
        ys = self.ys if ys is None else jax.tree.map(jnp.asarray, ys)
        params = self.params if params is None else params
        with jax.debug_key_reuse(True):
            return self.graded(params, jax.random.split(jax.random.key(seed), BATCH), ys, self.cs)

    @cached_property
    def draws(self):
        """(nats of the bound, nats of importance, samples) at the first example, with `DRAWS` keys each."""

        def one(keys):
            k_terms, k_importance, k_sample = jax.random.split(keys, 3)
            bound = self.model.terms(self.params, k_terms, self.y, self.c).nats
            importance = (self.model.importance or self.model.terms)(self.params, k_importance, self.y, self.c).nats
            return bound, importance, self.model.sample(self.params, k_sample, self.c)

        with jax.debug_key_reuse(True):
            return jax.device_get(compiled(jax.vmap(one))(jax.random.split(jax.random.key(2), DRAWS)))

    @cached_property
    def log_p(self):
        """(ln P(y) of the first example, ln P of every value that an example can have)."""
        values = self.system.data.values
        ys = jax.tree.map(lambda x: x[None], self.y)
        ys = ys if values is None else np.concatenate([ys, values.points])
        log_p = compiled(jax.vmap(lambda y: self.system.density(self.params, y, self.c)))(ys)
        return float(log_p[0]), np.asarray(log_p[1:], np.float64)

    @cached_property
    def step(self):
        def counted(state, key, ys, cs):
            self.traces["step"] += 1
            return make_train_step(self.model, self.optimizer)(state, key, ys, cs)

        return compiled(counted)

    def trained(self, state, steps: int):
        for _ in range(steps):
            state, _ = self.step(state, jax.random.key(3), self.ys, self.cs)
        return state


def runs_later(name):
    """What a system is marked with: `make test` has one of each kind."""
    if name in LARGER:
        return pytest.mark.thorough
    return () if name in REPRESENTATIVE else pytest.mark.afterwards


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=runs_later(name)) for name in SYSTEMS],
)
def case(request):
    return Case(SYSTEMS[request.param])


@pytest.fixture(scope="module", params=ON_DEVICES)
def on_devices(request):
    return Case(SYSTEMS[request.param])


def leaves(tree):
    """{path: array}, the path joined by "/"."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x) for path, x in flat}


def begins(path: str, prefixes: tuple[str, ...]) -> bool:
    return any(path == prefix or path.startswith(prefix + "/") for prefix in prefixes)


def assert_identical(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for name, x in leaves(got).items():
        np.testing.assert_array_equal(x, leaves(want)[name], err_msg=name)


def assert_mean(draws: np.ndarray, want, what: str, slack: float = 2e-4):
    """Is the mean of the draws (along axis 0) within 5 standard errors of what is wanted?"""
    draws = np.asarray(draws, np.float64)
    error = draws.std(axis=0, ddof=1) / np.sqrt(len(draws))
    assert np.all(np.abs(draws.mean(axis=0) - want) <= 5 * error + slack), (
        f"{what}: {draws.mean(axis=0)} +- {error}, want {want}"
    )


def test_init_and_shapes(case):
    """`init` gives finite float32 parameters, others for another key; terms are scalars, gradients and samples fit."""
    abstract = jax.eval_shape(case.model.init, jax.random.key(0), case.y, case.c)
    assert jax.tree.map(jnp.shape, case.params) == jax.tree.map(jnp.shape, abstract)
    assert all(x.dtype == np.float32 and np.all(np.isfinite(x)) for x in leaves(case.params).values())
    other = leaves(case.fresh(seed=1).params)
    assert any(np.any(other[name] != x) for name, x in leaves(case.params).items())

    gradients, terms = case.at()
    assert terms.distortion.shape == terms.nats.shape == (BATCH,)
    assert terms.distortion.dtype == terms.nats.dtype == jnp.float32
    assert jax.tree.map(lambda g: g.shape[1:], gradients) == jax.tree.map(jnp.shape, case.params)
    y = jax.eval_shape(case.model.sample, case.params, jax.random.key(0), case.c)
    assert jax.tree.map(jnp.shape, y) == jax.tree.map(jnp.shape, case.y)
    assert all(jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == jnp.float32 for x in jax.tree.leaves(y))


def test_what_is_offered_of_z_fits_together(case):
    """z of an example is like z of the prior, and both give examples; means have the shape of samples."""
    key, like = jax.random.key(0), jax.tree.map(jnp.shape, case.y)

    def shapes(function, *arguments):
        return jax.tree.map(jnp.shape, jax.eval_shape(lambda c: function(case.params, key, *arguments, c), case.c))

    if case.model.mean:
        assert shapes(case.model.mean) == like
    if latent := case.model.latent:
        z = jax.eval_shape(latent.draw, case.params, key, case.c)
        assert shapes(latent.encode, case.y) == jax.tree.map(jnp.shape, z)
        point = jax.eval_shape(lambda y, c: latent.encode(case.params, None, y, c), case.y, case.c)
        assert point is None or jax.tree.map(jnp.shape, point) == jax.tree.map(jnp.shape, z)
        example = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), z)
        assert shapes(latent.decode, example) == like


def test_same_key_same_terms_another_key_others(case):
    """Bit for bit. A system without noise has the same terms for every key."""
    assert_identical(case.at(seed=1), case.at(seed=1))
    one, other = case.at(seed=1)[1].nats, case.at(seed=2)[1].nats
    if case.system.deterministic:
        np.testing.assert_array_equal(one, other)
    else:
        assert np.any(one != other)


def test_values_and_gradients_are_finite(case):
    """Also for data at the edges of their range, and for parameters a hundred times as large."""
    large = jax.tree.map(lambda x: 100 * x, case.params)
    for result in (
        case.at(),
        case.at(ys=case.system.data.extreme),
        case.at(params=large),
        case.at(params=large, ys=case.system.data.extreme),
    ):
        for name, x in leaves(result).items():
            assert np.all(np.isfinite(x)), name


@pytest.mark.over(REPRESENTATIVE)
def test_gradients_are_derivatives(case, x64):
    """Central differences along one random direction for each leaf of the parameters."""
    rng = np.random.default_rng(0)
    params, ys, cs = jax.tree.map(
        lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, (case.params, case.ys, case.cs)
    )
    ys = jax.tree.map(lambda x: x[:2], ys)
    keys, cs = jax.random.split(jax.random.key(4), 2), None if cs is None else cs[:2]

    def loss(params, key, y, c):
        nats = case.model.terms(params, key, y, c).nats
        return nats, nats

    @compiled
    def at(params):
        return batch_terms(jax.grad(loss, has_aux=True), params, keys, ys, cs)

    gradients, nats = at(params)
    assert nats.dtype == jnp.float64
    paths = list(leaves(params))
    flat, structure = jax.tree.flatten(params)
    for i, (path, x, gradient) in enumerate(zip(paths, flat, jax.tree.leaves(gradients), strict=True)):
        if begins(path, case.system.held):
            np.testing.assert_array_equal(gradient, 0, err_msg=path)
        elif not begins(path, case.system.on_average):
            direction = rng.normal(size=x.shape)
            step = 1e-5
            ahead, behind = (
                at(jax.tree.unflatten(structure, [*flat[:i], x + s * direction, *flat[i + 1 :]]))[1]
                for s in (step, -step)
            )
            want = (ahead - behind) / (2 * step)
            got = np.sum(np.asarray(gradient) * direction, axis=tuple(range(1, gradient.ndim)))
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6, err_msg=path)


def test_rows_do_not_touch_each_other(case):
    """Another example in row 1: row 1 changes, and no other row does in any bit."""
    ys = jax.tree.map(lambda x: x.at[1].set(x[1] + 1 if x[1].max() == 0 else 0 * x[1]), case.ys)
    before, after = case.at(), case.at(ys=ys)
    rest = np.delete(np.arange(BATCH), 1)
    assert_identical(*(jax.tree.map(lambda x: x[rest], result) for result in (after, before)))
    assert before[1].nats[1] != after[1].nats[1]


@pytest.mark.over(TRAINED)
def test_nothing_is_compiled_twice(case):
    """Other parameters, keys and data of the same shapes: no new trace. Nor for a state that the step made itself."""
    case.at(seed=1)
    case.at(seed=5, params=case.fresh(seed=1).params, ys=jax.tree.map(lambda x: x[::-1], case.ys))
    case.trained(case.fresh(), 2)
    case.trained(case.fresh(seed=1), 1)
    assert case.traces == {"graded": 1, "step": 1}


@pytest.mark.over(REPRESENTATIVE, others="afterwards")
def test_another_key_another_sample(case):
    """Also of a system whose terms have no noise."""
    _, _, samples = case.draws
    assert all(len(np.unique(x.reshape(DRAWS, -1), axis=0)) > 1 for x in jax.tree.leaves(samples))


@pytest.mark.over(REPRESENTATIVE, others="afterwards")
def test_bound_and_importance(case):
    """E nats >= -ln P(y) and E exp(-importance nats) = P(y), P(y) from a sum over the latent."""
    if case.system.density is None:
        pytest.skip("P(y) is not known exactly")
    bound, importance, _ = case.draws
    log_p, _ = case.log_p
    gap = bound.astype(np.float64) + log_p
    assert gap.mean() >= -5 * gap.std(ddof=1) / np.sqrt(DRAWS) - 2e-4
    if case.model.importance is None:
        return
    assert_mean(np.exp(-importance.astype(np.float64) - log_p), 1.0, "importance / P(y)")


@pytest.mark.over(REPRESENTATIVE, others="afterwards")
def test_samples_follow_the_density(case):
    """E cos(w y) and E sin(w y) over samples against the sum over all y; at w = 0, that P sums to 1."""
    if case.system.data.values is None:
        pytest.skip("the values of y cannot be listed")
    points, log_volume = case.system.data.values
    points = points.reshape(len(points), -1)
    weights = np.exp(case.log_p[1] + log_volume)
    frequencies = np.random.default_rng(0).normal(size=(8, points.shape[1]))
    assert abs(weights.sum() - 1) < 2e-4
    samples = case.draws[2].astype(np.float64).reshape(-1, points.shape[1])
    for wave in (np.cos, np.sin):
        assert_mean(wave(samples @ frequencies.T), weights @ wave(points @ frequencies.T), wave.__name__)


@pytest.mark.over(TRAINED)
def test_loss_falls(case):
    """30 steps of Adam; the same 20 draws before and after."""

    def loss(params):
        return np.mean([case.at(seed, params=params)[1].nats for seed in range(20)])

    assert loss(case.trained(case.fresh(), 30).params) < loss(case.params) - 0.05


def test_restored_run_equals_the_uninterrupted(on_devices, tmp_path):
    """Bit for bit, the optimiser's state included."""
    case = on_devices
    state = case.trained(case.fresh(), 2)
    checkpoint.save(tmp_path, 2, state, {}, best=False)
    restored = checkpoint.restore(tmp_path, case.fresh(seed=1)).state
    assert_identical(restored, state)
    assert_identical(case.trained(restored, 1), case.trained(state, 1))


def test_devices_agree(on_devices):
    """One device, a batch sharded over two, and pmap over two: the same parameters after a step."""
    case = on_devices
    key, two, sgd = jax.random.key(3), jax.devices()[:2], optax.sgd(0.1)
    state = init_state(case.model, sgd, jax.random.key(0), case.y, case.c)
    step = compiled(make_train_step(case.model, sgd))
    want = step(state, key, case.ys, case.cs)
    assert any(np.any(x != leaves(state.params)[name]) for name, x in leaves(want[0].params).items())

    mesh = Mesh(two, ("data",))
    whole = jax.device_put(state, replicated(mesh))
    sharded = step(whole, key, *jax.device_put((case.ys, case.cs), batch_sharding(mesh)))
    split = jax.tree.map(lambda x: x.reshape(2, BATCH // 2, *x.shape[1:]), (case.ys, case.cs))
    on_each = make_train_step(case.model, sgd, axis_name="devices")
    mapped = jax.pmap(on_each, "devices", in_axes=(None, None, 0, 0), out_axes=None, devices=two)(state, key, *split)
    for got in (sharded, mapped):
        for name, x in leaves(got).items():
            np.testing.assert_allclose(x, leaves(want)[name], rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("name", [name for name, system in SYSTEMS.items() if system.same_as])
def test_estimators_agree_in_expectation(name):
    """Mean bound and mean gradients of two estimators at the same parameters."""
    case, other = Case(SYSTEMS[name]), Case(SYSTEMS[SYSTEMS[name].same_as])
    held = case.system.held

    def of(case, seed):
        ys = jnp.broadcast_to(case.y, (DRAWS, *case.y.shape))
        gradients, terms = case.graded(other.params, jax.random.split(jax.random.key(seed), DRAWS), ys, None)
        kept = {path: g for path, g in leaves(gradients).items() if not begins(path, held)}
        return {"nats": np.asarray(terms.nats), **kept}

    ours, theirs = of(case, 5), of(other, 6)
    assert len(ours) >= 3
    for path, draws in ours.items():
        assert_mean(draws - theirs[path], 0.0, path)


@pytest.mark.parametrize("name", ["analytic", "conditional, l2 sigma optimal"])
def test_evaluation_is_independent_of_batches_and_padding(name):
    """7 examples in one batch, and in batches of 4 of which the last is padded."""
    case = Case(SYSTEMS[name])
    ys, cs = jax.tree.map(lambda x: np.asarray(x[:7]), (case.ys, case.cs))
    whole, cut = (evaluate(case.model, case.params, jax.random.key(7), ys, cs, k=3, batch_size=size) for size in (7, 4))
    assert whole.elbo.shape == whole.log_likelihood.shape == (7,)
    assert len(np.unique(whole.elbo)) > 1
    for field, value in whole._asdict().items():
        if isinstance(value, np.ndarray):
            np.testing.assert_allclose(getattr(cut, field), value, rtol=1e-5, atol=1e-6, err_msg=field)
