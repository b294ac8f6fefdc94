"""Normalising flows against Jacobians, quadrature, finite differences and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from scipy.special import logsumexp

from vae_jax import bernoulli, gaussian, init_state, l2, make_train_step, sampled, standard_normal, sticking, vae
from vae_jax.core import importance_weighted_bound, lift
from vae_jax.core.older_jax import enable_x64
from vae_jax.em import mixture_of_gaussians
from vae_jax.parts.flows import Flow, autoregressive_flow, coupling_flow, inverse_autoregressive_flow
from vae_jax.parts.flows.masked import init_net, log_scale_and_shift, made_masks
from vae_jax.selfcheck.solvable import affine, affine_normal, linear_gaussian

KINDS = {"coupling": coupling_flow, "MAF": autoregressive_flow, "IAF": inverse_autoregressive_flow}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
NO_CONTEXT = (lambda key, *c: {}, lambda params, *c: jnp.zeros(0))


def moved(params, key, scale=0.4):
    """The parameters, each moved at random: at its start a flow does nothing."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(key), len(leaves))
    noise = [scale * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, [leaf + eps for leaf, eps in zip(leaves, noise, strict=True)])


def moved_flow(flow, c=None, scale=0.4):
    return jax.jit(lambda key: moved(flow.init(key, c), 1, scale))(jax.random.key(0))


def draws(flow, params, c, n):
    """(n, size)"""
    return jax.jit(jax.vmap(lambda key: flow.dist(params, c).sample(key)))(jax.random.split(jax.random.key(2), n))


def copy(q):
    """The same distribution, having forgotten what it drew."""
    return jax.tree.map(lambda x: x, q)


def plane(reach=16.0, step=0.1):
    line = np.arange(-reach, reach, step)
    return np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2), step**2


@every_kind
def test_density_is_that_of_the_jacobian(x64, kind):
    """f^-1 (f(u)) = u, and ln P(f(u)) = ln N(u) - ln |det df/du|, the determinant by numpy."""
    flow, c = kind(5, layers=3, hidden=(7, 6)), jnp.array([0.5, -1.0])
    params = moved_flow(flow, c)

    @jax.jit
    def of(u):
        q = flow.dist(params, c)
        x, log_det = q.push.forward(q.params, u, q.h)
        back, log_det_back = q.push.inverse(q.params, x, q.h)
        jacobian = jax.jacfwd(lambda u: q.push.forward(q.params, u, q.h)[0])(u)
        return x, log_det, back, log_det_back, jacobian, q.log_prob(x)

    for u in np.random.default_rng(0).normal(size=(3, 5)):
        x, log_det, back, log_det_back, jacobian, log_p = of(u)
        exact = np.linalg.slogdet(jacobian)[1]
        assert abs(np.asarray(x) - u).max() > 0.1  # it does something
        np.testing.assert_allclose(back, u, atol=1e-11)
        np.testing.assert_allclose([log_det, -log_det_back], exact, atol=1e-11)
        assert float(log_p) == pytest.approx(stats.norm.logpdf(u).sum() - exact, abs=1e-10)


@every_kind
def test_density_integrates_to_one_and_draws_follow_it(x64, kind):
    """Over the plane; moments of 20,000 draws within 5 standard errors of those by quadrature."""
    flow, c = kind(2, layers=2, hidden=(6,)), jnp.array([0.0, 1.0])
    params = moved_flow(flow, c, scale=0.3)
    points, area = plane()
    p = np.exp(jax.jit(jax.vmap(lambda x: flow.dist(params, c).log_prob(x)))(points)) * area
    assert p.sum() == pytest.approx(1, abs=1e-4)
    xs = np.asarray(
        jax.jit(jax.vmap(lambda key: flow.dist(params, c).sample(key)))(jax.random.split(jax.random.key(2), 20_000))
    )
    for f in (lambda x: x[:, 0], lambda x: x[:, 1], lambda x: x[:, 0] * x[:, 1], lambda x: np.tanh(x[:, 1]) ** 2):
        error = f(xs).std() / np.sqrt(len(xs))
        assert f(xs).mean() == pytest.approx(p @ f(points), abs=5 * error)


@every_kind
def test_starts_as_its_base(x64, kind):
    """As N(0, I), or as any other, whatever the condition: every layer is the identity."""
    y, x = jnp.array([0.3, -2.0, 1.0]), np.array([0.5, -1.0, 2.0, 0.1])
    flow, base = kind(4), gaussian(affine(8))
    based = kind(4, base=base)

    @jax.jit
    def of(key):
        q = flow.dist(flow.init(key, y), y)
        params = based.init(key, y)
        return (
            q.push.forward(q.params, x, q.h)[0],
            q.log_prob(x),
            based.dist(params, y).log_prob(x),
            base.dist(params["base"], y).log_prob(x),
        )

    image, log_p, log_p_based, log_p_base = of(jax.random.key(0))
    np.testing.assert_array_equal(image, x)
    assert float(log_p) == pytest.approx(stats.norm.logpdf(x).sum(), abs=1e-12)
    assert float(log_p_based) == pytest.approx(float(log_p_base), abs=1e-12)


def test_masks_are_causal(x64):
    """Output i of the masked network has a gradient for inputs before i and the context, and exactly 0 for others."""
    context, size = 2, 4
    degrees = np.arange(1, size + 1)
    masks = made_masks(np.append(np.zeros(context), degrees), (9, 8), np.tile(degrees, 2))
    params = jax.jit(lambda key: moved(init_net(key, masks), 1))(jax.random.key(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=context + size))
    for of in jax.jit(jax.jacfwd(functools.partial(log_scale_and_shift, params, masks)))(x):
        of_context, of_x = np.split(np.asarray(of), [context], axis=1)
        assert (of_context != 0).all()
        assert (of_x[np.triu_indices(size)] == 0).all()
        assert (of_x[np.tril_indices(size, -1)] != 0).all()
    alone = made_masks(degrees, (9,), np.tile(degrees, 2))
    assert not alone[-1][0].any() and alone[-1][1].any()


def test_the_first_dimension_is_conditioned_too(x64):
    """Even where it is the only one; without a condition it is scaled and shifted by constants."""
    flow = autoregressive_flow(1, layers=1, hidden=(5,))
    params = moved_flow(flow, jnp.zeros(2))
    at = jax.jit(lambda c: flow.dist(params, c).log_prob(jnp.array([0.3])))
    curved = jax.jit(jax.hessian(at))(jnp.array([0.1, 0.2]))
    assert abs(np.linalg.det(curved)) > 1e-6  # of a hidden layer, not only affine in c
    params = moved_flow(flow)
    at = jax.jit(jax.vmap(jax.hessian(lambda x: flow.dist(params).log_prob(x))))
    second = at(jnp.array([[-1.0], [0.0], [2.0]]))
    assert np.ptp(second) == pytest.approx(0, abs=1e-12) and second.max() < 0


def test_every_dimension_is_moved_by_two_coupling_layers(x64):
    """By the first two and by the next two, also in odd sizes."""
    for size in (2, 5):
        flow, x = coupling_flow(size, layers=4, hidden=()), np.random.default_rng(0).normal(size=size)
        q = flow.dist(moved_flow(flow))
        image = jax.jit(lambda params, q=q, x=x: q.push.forward(params, x, q.h)[0])
        for on in ([1, 1, 0, 0], [0, 0, 1, 1]):
            some = jax.tree.map(lambda p, on=on: p * np.reshape(on, (-1,) + (1,) * (p.ndim - 1)), q.params)
            assert (np.asarray(image(some)) != x).all()


@every_kind
def test_a_draw_and_its_own_density(x64, kind):
    """What is remembered of a draw is its density by inversion, value and gradient; with x held, only the score."""
    flow, c = kind(3, layers=2, hidden=(5,), base=affine_normal(3)), jnp.array([0.5, -1.0])
    params = moved_flow(flow, c)

    def of_draw(of_q, of_x):
        def value(params):
            q = flow.dist(params, c)
            x = q.rsample(jax.random.key(3))
            return of_q(q).log_prob(of_x(x))

        return jax.value_and_grad(value)

    def of_point(params, x):
        return jax.value_and_grad(lambda params: flow.dist(params, c).log_prob(x))(params)

    def both_ways(params):
        x = flow.dist(params, c).sample(jax.random.key(3))
        remembered, by_inversion = (of_draw(of_q, lambda x: x)(params) for of_q in (lambda q: q, copy))
        return (remembered, of_draw(lambda q: q, jax.lax.stop_gradient)(params)), (by_inversion, of_point(params, x))

    for ours, exact in zip(*map(jax.tree.leaves, jax.jit(both_ways)(params)), strict=True):
        np.testing.assert_allclose(ours, exact, rtol=1e-9, atol=1e-10)


def test_many_draws_at_once(x64):
    """`sample_shape`, as numpyro has it: draws (2, 4, 3) of three numbers, each with the density it has alone."""
    flow = coupling_flow(3, layers=2, hidden=(5,))
    params = moved_flow(flow)
    with jax.numpy_rank_promotion("allow"):  # numpyro's own
        q = flow.dist(params)
        xs = q.sample(jax.random.key(4), (2, 4))
        remembered = q.log_prob(xs)
    assert xs.shape == (2, 4, 3) and remembered.shape == (2, 4)
    np.testing.assert_allclose(remembered, copy(q).log_prob(xs), atol=1e-11)
    np.testing.assert_allclose(remembered[1, 2], q.log_prob(xs[1, 2]), atol=1e-11)


@pytest.mark.parametrize("kind", [coupling_flow, autoregressive_flow], ids=["coupling", "MAF"])
def test_vmap_is_a_loop(x64, kind):
    """Over conditions; the distributions themselves can leave the vmap and be used under another."""
    flow, cs, key = kind(3, layers=2, hidden=(4,)), np.random.default_rng(0).normal(size=(4, 2)), jax.random.key(0)
    params = moved_flow(flow, cs[0])
    xs = np.random.default_rng(1).normal(size=(4, 3))
    qs = jax.jit(jax.vmap(lambda c: flow.dist(params, c)))(cs)
    log_p, drawn = jax.jit(jax.vmap(lambda q, x: (q.log_prob(x), q.sample(key))))(qs, xs)
    for c, x, value, draw in zip(cs, xs, log_p, drawn, strict=True):
        q = flow.dist(params, c)
        assert float(q.log_prob(x)) == pytest.approx(float(value), abs=1e-11)
        np.testing.assert_allclose(q.sample(key), draw, atol=1e-11)


def test_context_network(x64):
    """`context=net`: the same as being given the network's output; a pair (y, c) is two of its arguments."""
    net = affine(3)
    flow, plain = coupling_flow(2, layers=2, hidden=(4,), context=net), coupling_flow(2, layers=2, hidden=(4,))
    c, x = jnp.array([1.0, -0.5]), jnp.array([0.2, 0.7])
    params = moved_flow(flow, c)
    h = jax.jit(net.apply)(params["context"], c)
    given_c, given_h = (jax.jit(lambda p, c, of=of: of.dist(p, c).log_prob(x)) for of in (flow, plain))
    assert float(given_c(params, c)) == float(given_h(params, h))
    joined = jax.jit(plain.init)(jax.random.key(0), (c, jnp.array(True)))  # a truth value beside floats
    assert plain.dist(joined, (c, jnp.array(True))).h.tolist() == [1.0, -0.5, 1.0]
    pair = (lambda key, y, c: {}, lambda params, y, c: jnp.append(y, c))
    flow = coupling_flow(2, layers=2, hidden=(4,), context=pair)
    params = jax.jit(flow.init)(jax.random.key(0), (c, c))
    np.testing.assert_array_equal(flow.dist(params, (c, c)).h, np.append(c, c))


def test_an_affine_flow_reaches_the_entropy_of_gaussian_data(x64):
    """One autoregressive layer without hidden ones can be any Gaussian: 1/2 ln det(2 pi e covariance) of the data."""
    ys = np.random.default_rng(0).normal(size=(2000, 3)) @ np.array([[1.0, 0.8, -0.5], [0, 0.6, 0.3], [0, 0, 0.4]]) + 1
    exact = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * np.cov(ys.T, bias=True))[1]
    model = lift(autoregressive_flow(3, layers=1, hidden=()))
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 300))
    state = init_state(model, optimizer, jax.random.key(0), ys[0])
    step = make_train_step(model, optimizer)
    run = jax.jit(lambda state: jax.lax.scan(lambda s, _: step(s, jax.random.key(1), ys), state, None, length=300))
    state, metrics = run(state)
    assert float(metrics["elbo"][0]) < -exact - 1
    # s_i is affine in x, which gains about (number of its weights) / 2n on data that are Gaussian only in truth
    assert float(metrics["elbo"][-1]) == pytest.approx(-exact, abs=3e-3)


def one_latent(flow_of, kind):
    """z of two numbers, y of three bits, and a flow in one of the places."""
    flow = kind(2, layers=2, hidden=(4,))
    enc, pri, gen = affine_normal(2, 0.2), standard_normal(2), bernoulli(affine(3))
    return {"prior": vae(enc, flow, gen), "encoder": vae(flow, pri, gen)}[flow_of]


@pytest.mark.parametrize(
    ("place", "name"), [("prior", "coupling"), ("prior", "MAF"), ("encoder", "coupling"), ("encoder", "IAF")]
)
def test_in_a_vae(x64, place, name):
    """ln P(y) by importance sampling is that by summing over z; the gradient is that of finite differences."""
    kind, y = KINDS[name], jnp.array([1.0, 0.0, 1.0])
    model = one_latent(place, kind)
    params = jax.jit(lambda key: moved(model.init(key, y), 1, scale=0.2))(jax.random.key(0))
    if place == "prior":
        params["enc"]["log_std"] = jnp.full(2, 0.6)  # wide, so that importance weights have a variance
    points, area = plane(step=0.15)
    pri = kind(2, layers=2, hidden=(4,)) if place == "prior" else standard_normal(2)
    gen = bernoulli(affine(3))

    def joint(z):
        return pri.dist(params["pri"]).log_prob(z) + gen.dist(params["gen"], z).log_prob(y)

    exact = logsumexp(jax.jit(jax.vmap(joint))(points)) + np.log(area)
    draw = jax.jit(jax.vmap(lambda key: jnp.exp(-model.importance(params, key, y).nats)))
    weights = np.asarray(draw(jax.random.split(jax.random.key(2), 20_000)))
    error = weights.std() / np.sqrt(len(weights))
    assert error < 0.05 * np.exp(exact)
    assert weights.mean() == pytest.approx(np.exp(exact), abs=5 * error)

    direction = moved(jax.tree.map(jnp.zeros_like, params), 3)

    @jax.jit
    def nats(t):
        return model.terms(jax.tree.map(lambda p, d: p + t * d, params, direction), jax.random.key(4), y).nats

    slope = float(nats(1e-5) - nats(-1e-5)) / 2e-5
    assert float(jax.grad(nats)(0.0)) == pytest.approx(float(slope), abs=1e-6 * (1 + abs(slope)))


def test_sticking_the_landing_is_exact_at_the_posterior(x64):
    """Encoder = prior, and a generator that ignores z: the encoder's gradient is 0 at every draw; the naive is not."""
    flow = inverse_autoregressive_flow(3, layers=2, hidden=(5,), context=NO_CONTEXT)
    gen = bernoulli((lambda key, z: {}, lambda params, z: jnp.zeros(2)))
    y = jnp.array([1.0, 0.0])
    plain = inverse_autoregressive_flow(3, layers=2, hidden=(5,))
    params = jax.jit(lambda key: moved(vae(flow, plain, gen).init(key, y), 1))(jax.random.key(0))
    params = {**params, "pri": params["enc"]}

    def gradient(estimator):
        model = vae(flow, plain, gen, estimator=estimator)
        grad = jax.jit(jax.grad(lambda params: model.terms(params, jax.random.key(1), y).nats))(params)["enc"]
        return max(float(abs(leaf).max()) for leaf in jax.tree.leaves(grad["layers"]))

    assert gradient(sticking) < 1e-10
    assert gradient(sampled) > 0.1


def test_a_flow_encoder_of_a_linear_gaussian_model(x64):
    """Importance-weighted bounds meet the exact ln p from below, and all encoders bound it."""
    system = linear_gaussian([[1.0], [2.0]], 0.5, [[1.0, -1.0]])
    y, gen = jnp.array([1.0, -1.0]), {"weights": jnp.array([[1.0], [2.0]]), "bias": jnp.zeros(2)}
    encoder = inverse_autoregressive_flow(1, layers=1, hidden=(4,), base=gaussian(affine(2)))
    model = vae(encoder, standard_normal(1), l2(affine(2), 0.5**0.5))
    params = {"enc": encoder.init(jax.random.key(0), y), "pri": {}, "gen": gen}
    bound = jax.jit(jax.vmap(lambda key: importance_weighted_bound(model, params, key, y, k=500)))
    values = np.asarray(bound(jax.random.split(jax.random.key(1), 50)))
    assert values.mean() == pytest.approx(float(system.log_p[0]), abs=5 * values.std() / np.sqrt(50) + 0.01)
    elbo = jax.jit(jax.vmap(lambda key: -model.terms(params, key, y).nats))(jax.random.split(jax.random.key(2), 4000))
    assert elbo.mean() < system.log_p[0]


@every_kind
def test_finite_at_extremes(kind):
    """Values and gradients in float32, far out and with parameters far off."""
    flow = kind(3, hidden=(8,))
    params = jax.tree.map(lambda x: 30 * x, moved_flow(flow))

    @jax.jit
    def of(params, x):
        return jax.value_and_grad(lambda params, x: flow.dist(params).log_prob(x), argnums=(0, 1))(params, x)

    for x in (jnp.zeros(3), jnp.full(3, 1e4), jnp.array([1e4, -1e4, 1e-4])):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(of(params, x)))
    assert np.isfinite(draws(flow, params, None, 100)).all()


@every_kind
def test_one_flow_in_both_precisions(kind):
    """The same object in float32, then in float64."""
    flow, x = kind(3, layers=2, hidden=(4,)), np.array([0.3, -1.0, 0.5])
    params = moved_flow(flow)

    def of(params, x):
        return jax.value_and_grad(lambda params: flow.dist(params).log_prob(x))(params)

    single, _ = jax.jit(of)(params, x.astype(np.float32))
    with enable_x64(True):
        double, gradient = jax.jit(of)(jax.tree.map(lambda p: np.asarray(p, np.float64), params), x)
    assert single.dtype == jnp.float32 and double.dtype == gradient["layers"][0]["bias"].dtype == jnp.float64
    assert float(single) == pytest.approx(float(double), abs=1e-4)


def test_what_a_flow_says_of_itself():
    """Reparameterised where its base is; no mean; real vectors; float32 data go with what they are given to."""
    q = coupling_flow(2).dist(jax.jit(coupling_flow(2).init)(jax.random.key(0)))
    assert isinstance(q, Flow) and q.has_rsample and q.event_shape == (2,) and q.batch_shape == ()
    assert jax.eval_shape(q.sample, jax.random.key(0)).dtype == jnp.float32
    assert np.isfinite(jax.jit(q.log_prob)(np.array([1, 2])))  # integers
    with pytest.raises(NotImplementedError):
        _ = q.mean
    flow = coupling_flow(2, base=mixture_of_gaussians(2, 3))
    assert not flow.dist(jax.jit(flow.init)(jax.random.key(0))).has_rsample


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: coupling_flow(1), "size=1"),
        (lambda: autoregressive_flow(0), "autoregressive_flow: want size, layers and widths >= 1; got 0"),
        (lambda: inverse_autoregressive_flow(2, layers=0), "inverse_autoregressive_flow: want .* got 2, 0"),
        (lambda: coupling_flow(2, hidden=(8, 0)), r"got 2, 6 and \(8, 0\)"),
    ],
)
def test_sizes_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_does_not_fit_is_an_error_in_words():
    key, y = jax.random.key(0), jnp.zeros(4)
    flow = coupling_flow(2, base=standard_normal(3))
    with pytest.raises(ValueError, match=r"one vector of 2 numbers; got batch shape .* and event shape \(3,\)"):
        flow.dist(flow.init(key))
    flow = coupling_flow(2)
    with pytest.raises(ValueError, match="condition than one of 0 numbers: were the labels"):
        flow.dist(flow.init(key, y))
    with pytest.raises(ValueError, match="condition than one of 4 numbers"):
        flow.dist(flow.init(key), y)
    with pytest.raises(ValueError, match="another size"):
        flow.dist(coupling_flow(5).init(key))
    with pytest.raises(ValueError, match="over arrays of shape"):
        lift(flow).terms(flow.init(key), key, jnp.zeros(3))
    with pytest.raises(ValueError, match="given nothing"):
        coupling_flow(2, context=affine(2)).init(key)
    with pytest.raises(TypeError, match="a network is"):
        coupling_flow(2, context=3)
