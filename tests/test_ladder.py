"""Hierarchical VAEs: the exact likelihood of a linear-Gaussian ladder, the path walked by hand, and the networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.stats import multivariate_normal

from vae_jax import bernoulli, gaussian, l2, nets, vae
from vae_jax.core import as_network, means
from vae_jax.core.distributions import bounded_log_std, raw_log_std
from vae_jax.systems import Rung, ladder, ladder_latents, ladder_sample

# Everything here is small and called a few times: compiling is what takes time.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

SIGMA = 0.5  # of the generator of `chain`


def same(*xs):
    """The network that hands its first input on."""
    del xs
    return (lambda key, h, *inputs: {}), (lambda params, h, *inputs: h)


def linear():
    """(h, features) -> the pair (weights @ inputs + bias, raw), each of one number."""

    def init(key, *inputs):
        size = sum(np.size(x) for x in inputs)
        return {"weights": jax.random.normal(key, (1, size)), "bias": jnp.zeros(1), "raw": jnp.zeros(1)}

    def apply(params, *inputs):
        return params["weights"] @ jnp.concatenate(inputs) + params["bias"], params["raw"]

    return init, apply


def yhat():
    return (lambda key, h: jax.random.normal(key, (3, 1))), (lambda weights, h: weights @ h)


NEW = ((lambda key, h, z: {}), (lambda params, h, z: z))  # the state is the last z
CHAIN = [
    Rung(same(), same(), linear(), linear(), NEW),
    Rung(same(), same(), linear(), linear(), NEW, levels=2),
]
CHAIN_MODEL = ladder(CHAIN, l2(yhat(), SIGMA))


def chain(seed: int, *, widen: float = 1.0, shift: float = 0.0):
    """z1 ~ N(0, 1), z2 = a2 z1 + s2 eps, z3 = a3 z2 + s3 eps, y = W z3 + SIGMA eps (3 numbers): (params, y, ln P(y)).

    The encoder is the exact posterior, from the covariance of all that is drawn, its mean moved and its stds widened.
    """
    rng = np.random.default_rng(seed)
    a, s, w = np.array([0.0, *rng.normal(size=2)]), np.array([1.0, *rng.uniform(0.4, 1, 2)]), rng.normal(size=(3, 1))
    from_noise = np.zeros((6, 6))  # (z1, z2, z3, y) as a linear map of six standard normals
    for i in range(3):
        from_noise[i] = a[i] * from_noise[i - 1]
        from_noise[i, i] = s[i]
    from_noise[3:] = w @ from_noise[2:3] + SIGMA * np.eye(6)[3:]
    cov = from_noise @ from_noise.T
    level = [_posterior(cov, i, a[i], s[i], widen, shift) for i in range(3)]
    raws = raw_log_std(jnp.log(s))
    prior = [{"weights": a[i, None, None], "bias": np.zeros(1), "raw": raws[i : i + 1]} for i in range(3)]
    y = rng.multivariate_normal(np.zeros(3), cov[3:, 3:])
    params = {
        "enc": [{"bottom": {}, "posterior": stacked(level[:1])}, {"bottom": {}, "posterior": stacked(level[1:])}],
        "pri": [
            {"enter": {}, "levels": {"prior": stacked(prior[:1]), "update": {}}},
            {"enter": {}, "levels": {"prior": stacked(prior[1:]), "update": {}}},
        ],
        "gen": jnp.asarray(w),
    }
    return params, jnp.asarray(y), multivariate_normal(np.zeros(3), cov[3:, 3:]).logpdf(y)


def _posterior(cov, i, a, s, widen, shift):
    """P(z_i | z_{i-1}, y) relative to N(a z_{i-1}, s^2); at the top the state is 0."""
    seen = [3, 4, 5] if i == 0 else [i - 1, 3, 4, 5]
    weights = np.linalg.solve(cov[np.ix_(seen, seen)], cov[seen, i])
    std = np.sqrt(cov[i, i] - cov[i, seen] @ weights)
    weights = np.append(0.0, weights) if i == 0 else weights
    weights[0] -= a
    return {
        "weights": weights[None],
        "bias": np.full(1, shift),
        "raw": raw_log_std(jnp.log(widen * std / s)[None]),
    }


def stacked(levels):
    return jax.tree.map(lambda *xs: jnp.stack([jnp.asarray(x) for x in xs]), *levels)


@functools.partial(jit, static_argnums=0)
def each_key(function, params, keys, y):
    return jax.vmap(lambda key: function(params, key, y))(keys)


@pytest.mark.parametrize("seed", range(3))
def test_the_exact_posterior_leaves_no_gap(x64, seed):
    """Importance nats are -ln P(y) of the marginal Gaussian at every draw, the bound's are so on average."""
    params, y, log_p = chain(seed)
    keys = jax.random.split(jax.random.key(seed), 4000)
    exact = each_key(CHAIN_MODEL.importance, params, keys, y)
    np.testing.assert_allclose(-exact.nats, log_p, rtol=1e-10)
    gap = np.asarray(each_key(CHAIN_MODEL.terms, params, keys, y).nats) + log_p
    assert gap.std() > 0.01 and abs(gap.mean()) < 5 * gap.std() / np.sqrt(len(keys))


def test_importance_averages_to_the_likelihood_and_the_bound_does_not(x64):
    """E exp(-nats) = P(y), E nats > -ln P(y); 20,000 draws, 5 standard errors."""
    params, y, log_p = chain(3, widen=1.2, shift=0.2)
    keys = jax.random.split(jax.random.key(4), 20_000)
    ratio = np.exp(-np.asarray(each_key(CHAIN_MODEL.importance, params, keys, y).nats) - log_p)
    error = ratio.std() / np.sqrt(len(keys))
    assert ratio.std() > 0.05 and abs(ratio.mean() - 1) < 5 * error
    gap = np.asarray(each_key(CHAIN_MODEL.terms, params, keys, y).nats) + log_p
    assert gap.mean() > 5 * gap.std() / np.sqrt(len(keys))


def test_closed_form_rates_are_the_means_of_the_sampled_ones(x64):
    """Level by level, 20,000 draws, 5 standard errors of their difference."""
    params, y, _ = chain(5, widen=1.3, shift=0.3)
    keys = jax.random.split(jax.random.key(6), 20_000)
    closed, drawn = (
        np.asarray(each_key(f, params, keys, y).rates) for f in (CHAIN_MODEL.terms, CHAIN_MODEL.importance)
    )
    away = closed - drawn
    assert closed.shape == (20_000, 3) and (closed >= 0).all() and (drawn.min(axis=0) < 0).all()
    assert (np.abs(away.mean(axis=0)) < 5 * away.std(axis=0) / np.sqrt(len(keys))).all()


def test_samples_follow_the_density(x64):
    """Covariance of y, 20,000 draws, 5 standard errors."""
    params, _, _ = chain(7)
    ys = jit(jax.vmap(lambda key: CHAIN_MODEL.sample(params, key)))(jax.random.split(jax.random.key(8), 20_000))
    w, (_, rung) = np.asarray(params["gen"]), params["pri"]
    variance = 1.0
    for level in range(2):
        own = jax.tree.map(lambda x, i=level: np.asarray(x[i]), rung["levels"]["prior"])
        std = np.exp(7 * np.tanh(own["raw"] / 7)).item()
        variance = own["weights"].item() ** 2 * variance + std**2
    products = np.asarray(ys)[:, :, None] * np.asarray(ys)[:, None]
    error = products.std(axis=0) / np.sqrt(len(ys))
    assert (np.abs(products.mean(axis=0) - (variance * w @ w.T + SIGMA**2 * np.eye(3))) < 5 * error).all()


# A ladder of networks, walked by hand.

RUNGS = nets.mlp_rungs((2, 3), width=6, hidden=(5,), levels=2, activation=jnp.tanh)
GENERATOR = bernoulli(nets.MLP((5,), 4, jnp.tanh))
MODEL = ladder(RUNGS, GENERATOR)
Y = jnp.array([0.0, 1, 1, 0])


@pytest.fixture(scope="module")
def params():
    return jit(MODEL.init)(jax.random.key(0), Y)


def normal(net, params, *inputs):
    """(mean, std) of the Gaussian that a network gives."""
    base = gaussian(net).dist(params, inputs).base_dist
    return base.loc, base.scale


def walk(params, choose, *, y=Y, c=()):
    """(h, [(prior, posterior or None, z)]) from level to level in Python; z = choose(level, prior)."""
    features, x = {}, y
    for i, rung in reversed(list(enumerate(RUNGS))):
        features[i] = x = as_network(rung.bottom).apply(params["enc"][i]["bottom"], x, *c)
    h, path = jnp.zeros(1), []
    for i, rung in enumerate(RUNGS):
        h = as_network(rung.enter).apply(params["pri"][i]["enter"], h, *c)
        for level in range(rung.levels):
            own, enc = jax.tree.map(
                lambda x, level=level: x[level], (params["pri"][i]["levels"], params["enc"][i]["posterior"])
            )
            mean, std = normal(rung.prior, own["prior"], h, *c)
            delta, ratio = normal(rung.posterior, enc, h, features[i], *c)
            z = choose(len(path), (mean, std))
            path.append((dist.Normal(mean, std), dist.Normal(mean + delta, std * ratio), z))
            h = as_network(rung.update).apply(own["update"], h, z, *c)
    return h, path


def test_the_path_walked_by_hand(params):
    """Rates and distortion of `terms` and `importance`, from the latents and numpyro's densities, in a Python loop."""
    key = jax.random.key(1)
    k_z, _ = jax.random.split(key)
    zs = jit(lambda params: ladder_latents(RUNGS, params, k_z, Y))(params)
    assert [z.shape for z in zs] == [(2,), (2,), (3,), (3,)]

    @jit
    def by_hand(params):
        h, path = walk(params, lambda level, prior: zs[level])
        closed = [dist.kl_divergence(q, p).sum() for p, q, _ in path]
        drawn = [(q.log_prob(z) - p.log_prob(z)).sum() for p, q, z in path]
        return closed, drawn, -GENERATOR.dist(params["gen"], h).log_prob(Y)

    closed, drawn, distortion = by_hand(params)
    for function, rates in ((MODEL.terms, closed), (MODEL.importance, drawn)):
        terms = jit(function)(params, key, Y)
        np.testing.assert_allclose(terms.rates, rates[::-1], rtol=2e-4, atol=2e-5)  # next to y first
        np.testing.assert_allclose(terms.rate, np.sum(rates), rtol=2e-4)
        np.testing.assert_allclose(terms.distortion, distortion, rtol=1e-5)
        per_unit = np.split(np.asarray(terms.units.rate), [2, 4, 7])
        np.testing.assert_allclose([x.sum() for x in per_unit], rates, rtol=2e-4, atol=2e-5)


def test_temperature_and_given_latents(params):
    """Temperature 0 takes the prior's means below what is given, for every number of given levels."""
    shown = means(GENERATOR)
    zs = jit(lambda params: ladder_latents(RUNGS, params, jax.random.key(2), Y))(params)

    @functools.partial(jit, static_argnums=0)
    def cold(k):
        h, _ = walk(params, lambda level, prior: zs[level] if level < k else prior[0])
        return GENERATOR.dist(params["gen"], h).mean

    @functools.partial(jit, static_argnums=2)
    def drawn(key, temperature, k):
        return ladder_sample(RUNGS, shown, params, key, temperature=temperature, given=zs[:k])

    for k in (0, 1, 3, 4):
        got = drawn(jax.random.key(k), 0.0, k)
        np.testing.assert_allclose(got, cold(k), rtol=1e-5)
        np.testing.assert_array_equal(drawn(jax.random.key(9), 0.0, k), got)
        warm = drawn(jax.random.key(9), 1.0, k)
        assert (k == 4) == np.array_equal(warm, got)


def test_temperature_scales_the_deviation_from_the_mean(x64):
    """In the linear chain y is linear in each z: half the temperature, half the deviation."""
    params, _, _ = chain(1)
    shown = means(l2(yhat(), SIGMA))
    draw = jit(lambda t: ladder_sample(CHAIN, shown, params, jax.random.key(5), temperature=t))
    np.testing.assert_allclose(draw(0.0), 0, atol=1e-12)
    np.testing.assert_allclose(draw(0.5), 0.5 * draw(1.0), rtol=1e-10)
    parts = [draw(jnp.eye(3)[i]) for i in range(3)]
    np.testing.assert_allclose(sum(parts), draw(1.0), rtol=1e-10)
    assert all(np.abs(part).max() > 1e-3 for part in parts)


def test_a_posterior_of_zeros_is_the_prior(params):
    """delta = 0 and log_ratio = 0: rates of exactly 0, closed form and sampled."""
    zeros = {**params, "enc": jax.tree.map(jnp.zeros_like, params["enc"])}
    for function in (MODEL.terms, MODEL.importance):
        terms = jit(function)(zeros, jax.random.key(1), Y)
        np.testing.assert_array_equal(terms.rates, np.zeros(4))
        assert np.isfinite(terms.nats)


def test_remat_changes_nothing(params):
    def gradient(model):
        return jit(jax.grad(lambda params: model.terms(params, jax.random.key(1), Y).nats))(params)

    kept, anew = (jax.tree.leaves(gradient(model)) for model in (MODEL, ladder(RUNGS, GENERATOR, remat=True)))
    for got, want in zip(anew, kept, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


def test_the_program_does_not_grow_with_depth():
    """As many operations for 3 levels as for 40, in the bound's gradient."""

    def size(levels):
        model = ladder(nets.mlp_rungs((2,), width=6, hidden=(5,), levels=levels), GENERATOR)
        params = jax.eval_shape(model.init, jax.random.key(0), Y)
        loss = jax.grad(lambda params, key: model.terms(params, key, Y).nats)
        return str(jax.make_jaxpr(loss)(params, jax.random.key(0))).count(" = ")

    assert size(3) == size(40)


def test_every_part_has_a_gradient(params):
    """No network of the ladder is left out, but for what a first state is made of (it sees zeros)."""
    moved = jax.tree.map(lambda x: x + 0.1, params)
    gradient = jit(jax.grad(lambda params: MODEL.terms(params, jax.random.key(1), Y).nats))(moved)
    for path, g in jax.tree_util.tree_flatten_with_path(gradient)[0]:
        assert np.any(g != 0), jax.tree_util.keystr(path)


def test_a_condition_reaches_every_network(x64):
    """c is the last argument of each: what was the bias of the linear chain, now given as c, gives the same terms."""

    def taking_c(network):
        init, apply = network
        return (lambda key, *xs: init(key, *xs[:-1])), (lambda params, *xs: apply(params, *xs[:-1]))

    def prior_mean_c():
        init, apply = linear()

        def with_mean(params, h, c):
            mean, raw = apply(params, h)
            return mean + c, raw

        return (lambda key, h, c: init(key, h)), with_mean

    params, y, _ = chain(2)
    given = [
        Rung(taking_c(same()), taking_c(same()), prior_mean_c(), taking_c(linear()), taking_c(NEW), rung.levels)
        for rung in CHAIN
    ]
    moved = {**params, "pri": [_with_bias(of_rung, 0.7) for of_rung in params["pri"]]}
    model = ladder(given, l2(taking_c(yhat()), SIGMA))
    key, c = jax.random.key(3), jnp.array([0.7])
    want = jit(CHAIN_MODEL.importance)(moved, key, y)
    got = jit(model.importance)(params, key, y, c)
    np.testing.assert_allclose(got.rates, want.rates, rtol=1e-12)
    np.testing.assert_allclose(got.nats, want.nats, rtol=1e-12)
    np.testing.assert_allclose(jit(model.sample)(params, key, c), jit(CHAIN_MODEL.sample)(moved, key), rtol=1e-12)
    with pytest.raises(TypeError, match="argument"):
        model.terms(params, key, y)


def _with_bias(of_rung, bias):
    prior = of_rung["levels"]["prior"]
    return {**of_rung, "levels": {**of_rung["levels"], "prior": {**prior, "bias": jnp.full_like(prior["bias"], bias)}}}


def test_a_ladder_is_a_model_like_any_other():
    """As the prior of a VAE; and with a generator whose sigma has a closed form, the root mean squared error."""
    prior = ladder(nets.mlp_rungs((1, 1), width=3, hidden=()), gaussian(nets.MLP((), 4)))
    model = vae(gaussian(nets.MLP((), 4)), prior, bernoulli(nets.MLP((), 4)))
    params = jit(model.init)(jax.random.key(0), Y)
    terms = jit(model.terms)(params, jax.random.key(1), Y)
    np.testing.assert_allclose(terms.rates[1:], terms.detail["pri"]["rates"])
    np.testing.assert_allclose(terms.rates.sum(), terms.rate, rtol=1e-5)
    optimal = ladder(CHAIN, l2(yhat(), "optimal"))
    params = jit(optimal.init)(jax.random.key(0), Y[:3])
    key = jax.random.key(1)
    terms = jit(optimal.terms)(params, key, Y[:3])
    h = jit(lambda p: ladder_latents(CHAIN, p, jax.random.split(key)[0], Y[:3])[-1])(params)
    log_sigma = jit(optimal.maximise)(params, terms.stats)["gen"]["log_sigma"]
    away = Y[:3] - params["gen"]["net"] @ h
    np.testing.assert_allclose(bounded_log_std(log_sigma), 0.5 * np.log(np.mean(away**2)), rtol=1e-5)


# Networks.

IMAGE = (12, 8, 2)


def conv_ladder(shape=IMAGE, scales=(4, 2), levels=(1, 3), **options):
    rungs = nets.conv_rungs(shape, scales=scales, levels=levels, channels=8, latent=2, **options)
    return ladder(rungs, bernoulli(nets.FromGrid(shape, scales[-1], **options)))


@pytest.mark.parametrize("c", [None, jnp.array([0.0, 1.0])], ids=["no condition", "a condition"])
def test_convolutional_rungs(c):
    """Grids of 3 x 2 and 6 x 4; all rates are 0 at the start; the condition matters to bound and samples."""
    model = conv_ladder()
    y = jnp.asarray(np.random.default_rng(0).integers(2, size=IMAGE), jnp.float32)
    params = jit(model.init)(jax.random.key(0), y, c)
    terms = jit(model.terms)
    at_start = terms(params, jax.random.key(1), y, c)
    np.testing.assert_array_equal(at_start.rates, np.zeros(4))
    assert at_start.units.rate.shape == (2 * (3 * 2 + 3 * 6 * 4),)
    moved = jax.tree.map(lambda x: x + 0.05, params)
    rates = terms(moved, jax.random.key(1), y, c).rates
    assert (rates > 0).all()
    draw = jit(model.sample)
    sample = draw(moved, jax.random.key(2), c)
    assert sample.shape == IMAGE and set(np.unique(sample)) <= {0, 1}
    if c is not None:
        assert np.all(rates != terms(moved, jax.random.key(1), y, 1 - c).rates)
        assert np.any(sample != draw(moved, jax.random.key(2), 20 * c))


def test_state_and_numbers_are_float32_under_bfloat16():
    """The networks compute in 16 bits; state, rates and distortion keep 32, and stay near those of 32."""
    half, whole = (conv_ladder((4, 4, 1), (2,), (2,), dtype=dtype) for dtype in (jnp.bfloat16, jnp.float32))
    y = jnp.ones((4, 4, 1))
    params = jax.tree.map(lambda x: x + 0.05, jit(half.init)(jax.random.key(0), y))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    got, want = (jit(model.terms)(params, jax.random.key(1), y) for model in (half, whole))
    assert got.rate.dtype == got.distortion.dtype == jnp.float32
    assert got.nats != want.nats
    np.testing.assert_allclose(got.nats, want.nats, rtol=0.05)


def test_dense_rungs_take_conditions_and_any_shape():
    model = ladder(nets.mlp_rungs((2, 1), width=4, hidden=()), bernoulli(nets.MLP((), (2, 3))))
    y, c = jnp.ones((2, 3)), jnp.array([1.0, 0.0])
    params = jit(model.init)(jax.random.key(0), y, c)
    one, other = (jit(model.terms)(params, jax.random.key(1), y, x).rates for x in (c, 1 - c))
    assert one.shape == (2,) and np.all(one != other)


# Bad input.


def test_what_is_no_ladder():
    with pytest.raises(ValueError, match=r"at least one rung.*levels \[\]"):
        ladder([], GENERATOR)
    with pytest.raises(ValueError, match=r"at least one level in each; got levels \[1, 0\]"):
        ladder([CHAIN[0], CHAIN[0]._replace(levels=0)], GENERATOR)
    for wrong in (CHAIN[0], [CHAIN[0], "rung"]):
        with pytest.raises(TypeError, match="Rung"):
            ladder(wrong, GENERATOR)
    with pytest.raises(TypeError, match="a network is"):
        ladder([CHAIN[0]._replace(prior=3)], GENERATOR)
    with pytest.raises(TypeError, match="Conditional"):
        ladder(CHAIN, nets.MLP((), 4))


def test_networks_that_do_not_fit_together():
    def init_with(**fields):
        jax.eval_shape(ladder([CHAIN[0], CHAIN[1]._replace(**fields)], GENERATOR).init, jax.random.key(0), Y)

    with pytest.raises(ValueError, match=r"rung 1 .*prior gives z of shape \(1,\) and its posterior of shape \(2,\)"):
        init_with(posterior=nets.MLP((), 4))
    with pytest.raises(ValueError, match=r"rung 1 .*update makes float32\[3\] of a state float32\[1\]"):
        init_with(update=nets.MLP((), 3))
    with pytest.raises(ValueError, match="splits its network's output in two"):
        init_with(prior=nets.MLP((), 3))


def test_samples_that_cannot_be_drawn(params):
    draw = functools.partial(ladder_sample, RUNGS, GENERATOR, params, jax.random.key(0))
    for temperature in (-0.1, [1.0, 1.0, -1.0, 1.0], float("nan")):
        with pytest.raises(ValueError, match="cannot be negative"):
            draw(temperature=temperature)
    with pytest.raises(ValueError, match=r"one for each of the 4 levels; got shape \(3,\)"):
        draw(temperature=np.ones(3))
    with pytest.raises(ValueError, match="z of 5 levels, and the ladder has 4"):
        draw(given=[jnp.zeros(2)] * 5)
    with pytest.raises(ValueError, match=r"given holds z of shape \(3,\), and this level's has shape \(2,\)"):
        draw(given=[jnp.zeros(3)])


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"scales": (28, 8), "levels": (1, 1)}, "8 does not divide 28"),
        ({"scales": (8, 4), "levels": (1, 1)}, r"8 does not divide \(28, 28\)"),
        ({"scales": (2, 4), "levels": (1, 1)}, "4 does not divide 2"),
        ({"scales": (4, 2), "levels": (1,)}, "as many levels as scales"),
        ({"scales": (), "levels": ()}, "as many levels as scales"),
        ({"scales": (4,), "levels": (0,)}, "positive sizes in levels"),
        ({"scales": (4,), "levels": (1,), "latent": 0}, "positive sizes in latent"),
    ],
)
def test_grids_that_do_not_divide(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        nets.conv_rungs((28, 28, 1), **options)


def test_dense_rungs_without_latents():
    with pytest.raises(ValueError, match="got none"):
        nets.mlp_rungs(())
    with pytest.raises(ValueError, match="positive sizes in latents"):
        nets.mlp_rungs((3, 0))
