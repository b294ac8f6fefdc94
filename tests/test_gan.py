"""The adversarial term and the GAN: closed forms at known densities, gradients by hand; the bound never moves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from laws import affine
from scipy.special import expit
from scipy.stats import norm

from vae_jax import (
    Model,
    Terms,
    bernoulli,
    categorical,
    gaussian,
    init_state,
    l2,
    make_train_step,
    nets,
    standard_normal,
    sticking,
    vae,
)
from vae_jax.core import hoist, lift, means
from vae_jax.nets import PatchDiscriminator
from vae_jax.systems import Game, adversarial, gan, hinge, non_saturating, with_discriminator
from vae_jax.vq import codebook, uniform_codes, vq_vae

compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
ENC, PRI, DIS = gaussian(affine(4)), standard_normal(2), affine(1)
Y = jnp.array([0.3, -1.2, 0.8])


def vae_gan(generator=None, **options):
    """(VAE with the adversarial term, VAE without, parameters of the first)."""
    generator = l2(affine(3), 0.5) if generator is None else generator
    model = vae(ENC, PRI, adversarial(generator, DIS, **options))
    return model, vae(ENC, PRI, generator), compiled(model.init)(jax.random.key(0), Y)


def without(params):
    return {**params, "gen": params["gen"]["gen"]}


# The term


def test_the_bound_has_no_part_in_it():
    """Distortion, rate, importance and samples are bit for bit those of the VAE without the term."""
    model, plain, params = vae_gan(weight=3.0)
    key = jax.random.key(1)
    got, want = compiled(model.terms)(params, key, Y), compiled(plain.terms)(without(params), key, Y)
    assert got.distortion == want.distortion and got.rate == want.rate and got.penalty > 0
    assert compiled(model.importance)(params, key, Y).nats == want.nats
    np.testing.assert_array_equal(compiled(model.sample)(params, key), compiled(plain.sample)(without(params), key))
    assert model.support(params) == plain.support(without(params))


@pytest.mark.parametrize("loss", [hinge, non_saturating])
@pytest.mark.parametrize("adaptive", [True, False])
def test_gradients_go_where_they_should(x64, loss, adaptive):
    """Discriminator: its own loss alone. Encoder and generator: weight * ratio * fool at a fixed discriminator.

    By hand for D = w . y + b and yhat = W z + b: the ratio of the norms is |yhat - y| / sigma^2 |dfool/dD| |w|.
    """
    model, _, params = vae_gan(weight=0.7, loss=loss, adaptive=adaptive)
    params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
    y, key = Y.astype(jnp.float64), jax.random.key(1)
    value, got = compiled(jax.value_and_grad(lambda p: model.terms(p, key, y).penalty))(params)

    def yhat_of(enc, gen):
        z = ENC.dist(enc, y).rsample(jax.random.split(key)[0])
        return gen["weights"] @ z + gen["bias"]

    w, b = params["gen"]["dis"]["weights"][0], params["gen"]["dis"]["bias"][0]

    @compiled
    def by_hand(params):
        yhat = yhat_of(params["enc"], params["gen"]["gen"])
        real, fake = w @ y + b, w @ yhat + b
        ends = (loss.fool, fake), (loss.real, real), (loss.fake, fake)
        return yhat, [jax.value_and_grad(of)(d) for of, d in ends]

    yhat, ((fooled, slope), (real_lost, real), (fake_lost, fake)) = jax.tree.map(np.asarray, by_hand(params))
    ratio = np.linalg.norm((yhat - y) / 0.25) / np.linalg.norm(slope * w) if adaptive else 1.0
    scale = 0.7 * ratio
    want_enc, want_gen = compiled(jax.grad(lambda e, g: scale * loss.fool(w @ yhat_of(e, g) + b), argnums=(0, 1)))(
        params["enc"], params["gen"]["gen"]
    )
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4 if adaptive else 1e-9)  # the 1e-6 of the ratio
    jax.tree.map(close, (got["enc"], got["gen"]["gen"]), (want_enc, want_gen))
    close(got["gen"]["dis"]["weights"][0], real * y + fake * yhat)
    close(got["gen"]["dis"]["bias"][0], real + fake, atol=1e-12)
    close(value, scale * fooled + real_lost + fake_lost)
    bound = compiled(jax.grad(lambda p: model.terms(p, key, y).nats))(params)
    assert not np.any(bound["gen"]["dis"]["weights"])


def test_the_ratio_of_a_bernoulli_generator(x64):
    """d distortion / d mean = (p - y) / (p (1 - p)): by autodiff of the likelihood as a function of its mean."""
    model, _, params = vae_gan(bernoulli(affine(3)), loss=hinge)
    params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
    y, key = jnp.array([0.0, 1.0, 1.0]), jax.random.key(1)
    z = compiled(lambda enc: ENC.dist(enc, y).rsample(jax.random.split(key)[0]))(params["enc"])
    weights, w = np.asarray(params["gen"]["gen"]["weights"]), np.asarray(params["gen"]["dis"]["weights"][0])
    p = expit(weights @ z)
    pull = compiled(jax.grad(lambda p: -jnp.sum(y * jnp.log(p) + (1 - y) * jnp.log1p(-p))))(p)
    scale = np.linalg.norm(pull) / np.linalg.norm(w)
    d_real, d_fake = w @ y, w @ p
    want = -scale * d_fake + max(1 - d_real, 0) + max(1 + d_fake, 0)
    np.testing.assert_allclose(compiled(model.terms)(params, key, y).penalty, want, rtol=1e-4)


def test_the_ratio_is_capped():
    """A discriminator without a gradient: 10,000, not infinity, and no NaN."""
    model, _, params = vae_gan()
    params["gen"]["dis"] = jax.tree.map(jnp.zeros_like, params["gen"]["dis"]) | {"bias": jnp.ones(1)}
    penalty, gradients = compiled(jax.value_and_grad(lambda p: model.terms(p, jax.random.key(1), Y).penalty))(params)
    np.testing.assert_allclose(penalty, -1e4 + 0 + 2, rtol=1e-6)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


# The two games at densities that are known


P, Q = np.array([0.1, 0.2, 0.3, 0.4, 0.0]), np.array([0.3, 0.3, 0.2, 0.1, 0.1])


def divergence(p, q):
    return np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / q), 0))


@pytest.mark.parametrize(
    ("loss", "best", "optimum"),
    [
        (
            non_saturating,
            np.log(np.maximum(P, 1e-300) / Q),
            np.log(4) - divergence(P, (P + Q) / 2) - divergence(Q, (P + Q) / 2),
        ),
        (hinge, np.sign(P - Q), 2 - np.abs(P - Q).sum()),
    ],
)
def test_the_optimal_discriminator(x64, loss, best, optimum):
    """ln 4 - 2 JS at D = ln p/q, and 2 - 2 TV at D = sign(p - q); any other D loses more."""
    lost = jax.jit(lambda d: P @ loss.real(d) + Q @ loss.fake(d))
    np.testing.assert_allclose(lost(best), optimum, rtol=1e-12)
    for noise in 0.3 * np.random.default_rng(0).normal(size=(50, 5)):
        assert lost(best + noise) >= optimum - 1e-12
    assert (np.asarray(compiled(jax.vmap(jax.grad(loss.fool)))(jnp.asarray(best))) < 0).all()  # fooling pushes D up


def normals(shift):
    """Samples of N(shift, 1); its "bound" is y."""
    return Model(
        lambda key, y, c=None: {"gen": jnp.float32(shift)},
        lambda params, key, y, c=None: Terms(params["gen"] * y[0], 0.0),
        lambda params, key, c=None: params["gen"] + jax.random.normal(key, (1,)),
    )


def test_the_objective_at_two_normals(x64):
    """Data N(0, 1), samples N(1, 1), D = ln p/q: ln 4 - 2 JS by quadrature; 20,000 draws, 4 standard errors."""
    log_ratio = (lambda key, y: {}, lambda params, y: 0.5 - y)
    judged = Game(non_saturating.real, non_saturating.fake, lambda d: 0 * d)
    grid = np.linspace(-12, 13, 100_001)
    p, q = norm.pdf(grid), norm.pdf(grid, 1)
    want = np.log(4) - (divergence(p, (p + q) / 2) + divergence(q, (p + q) / 2)) * (grid[1] - grid[0])
    ys, keys = jax.random.normal(jax.random.key(0), (20_000, 1)), jax.random.split(jax.random.key(1), 20_000)
    model, params = normals(1.0), {"gen": jnp.array(1.0), "dis": {}}
    each = jax.jit(jax.vmap(lambda key, y: gan(log_ratio, loss=judged)(model, params, key[None], y[None], None, 0)[0]))
    losses = np.asarray(each(keys, ys))
    assert abs(losses.mean() - want) < 4 * losses.std() / np.sqrt(len(losses))
    loss, terms = compiled(lambda p: gan(log_ratio, loss=judged)(model, p, keys, ys, None, 0))(params)
    np.testing.assert_allclose(loss, losses.mean(), rtol=1e-12)
    np.testing.assert_allclose(terms.nats, ys[:, 0])  # what is reported is the model's own


def test_the_players_of_the_game(x64):
    """D's gradient is that of its loss alone, the generator's that of fooling a fixed D; the encoder has none."""
    dis = (lambda key, y: {"w": jnp.ones(1)}, lambda params, y: params["w"] * y)
    params, ys, keys = (
        {"gen": jnp.array(1.0), "dis": {"w": jnp.array([0.5])}},
        jnp.array([[0.2]]),
        jax.random.key(0)[None],
    )
    got = compiled(jax.grad(lambda p: gan(dis, loss=non_saturating)(normals(1.0), p, keys, ys, None, 0)[0]))(params)
    sample = 1.0 + float(jax.random.normal(jax.random.fold_in(keys[0], 0), (1,))[0])
    np.testing.assert_allclose(got["gen"], -0.5 * expit(-0.5 * sample), rtol=1e-9)
    want = -0.2 * expit(-0.5 * 0.2) + sample * expit(0.5 * sample)
    np.testing.assert_allclose(got["dis"]["w"], [want], rtol=1e-9)
    plain = with_discriminator(vae(gaussian(affine(2)), standard_normal(1), means(l2(affine(1), 1.0))), dis)
    params = compiled(plain.init)(jax.random.key(0), ys[0])
    by_vae = compiled(jax.grad(lambda p: gan(dis)(plain, p, keys, ys, None, 0)[0]))(params)
    assert not any(np.any(x) for x in jax.tree.leaves(by_vae["enc"])) and np.any(by_vae["gen"]["bias"])


def test_a_discriminator_that_sees_the_condition():
    """With labels it is called with (y, c), data and samples alike."""
    seen = []

    def apply(params, y, c):
        seen.append((y.shape, c.shape))
        return y.sum() + c.sum()

    dis = (lambda key, y, c: {"size": jnp.zeros(y.size + c.size)}, apply)
    model = with_discriminator(vae(gaussian(affine(2)), standard_normal(1), means(l2(affine(3), 1.0))), dis)
    ys, cs = jnp.zeros((2, 3)), jnp.ones((2, 5))
    params = compiled(model.init)(jax.random.key(0), ys[0], cs[0])
    assert params["dis"]["size"].shape == (8,)
    loss, _ = compiled(lambda p: gan(dis)(model, p, jax.random.split(jax.random.key(0), 2), ys, cs, 0))(params)
    assert np.isfinite(loss) and set(seen) == {((3,), (5,))}


# Training


def trained(model, state, ys, steps, batch_size, optimizer, **options):
    """(state, metrics of each step) after so many steps, the batches in turn."""
    step = make_train_step(model, optimizer, **options)
    batches = jnp.asarray(ys).reshape(-1, batch_size, *ys.shape[1:])

    def body(state, i):
        return step(state, jax.random.key(1), batches[i % len(batches)])

    return jax.jit(lambda state: jax.lax.scan(body, state, jnp.arange(steps)))(state)


def test_a_gan_in_one_dimension_and_its_inverter():
    """Data N(2, 1/4), yhat = w z + b, D with y and y^2: b -> 2 and |w| -> 1/2, each within 0.1.

    The players circle about the equilibrium: it is the moving average of the parameters that comes near. Then the
    encoder alone, by the ELBO: the parts that it inverts stay as they are, and in a linear-Gaussian model it becomes
    the posterior, of mean w (y - b) / (w^2 + sigma^2), within 0.05 at two y.
    """
    squares = (
        lambda key, y: {"w": jnp.zeros(2), "b": jnp.zeros(())},
        lambda p, y: p["w"] @ jnp.stack([y[0] - 2, (y[0] - 2) ** 2]) + p["b"],
    )
    parts = (gaussian(affine(2)), standard_normal(1), means(l2(affine(1), 0.5)))
    model = with_discriminator(vae(*parts, estimator=sticking), squares)
    ys = (2 + 0.5 * np.random.default_rng(0).normal(size=(2000, 1))).astype(np.float32)
    optimizer = optax.adam(0.01, b1=0.0)
    state = init_state(model, optimizer, jax.random.key(0), ys[0], ema=True)
    game = {"objective": gan(squares, loss=non_saturating), "parts": ("pri", "gen", "dis"), "ema_decay": 0.99}
    state, _ = trained(model, state, ys, 2000, 200, optimizer, **game)
    state = state._replace(params=state.ema, ema=None)
    w, b = float(state.params["gen"]["weights"][0, 0]), float(state.params["gen"]["bias"][0])
    assert abs(b - 2) < 0.1 and abs(abs(w) - 0.5) < 0.1

    inverted, metrics = trained(model, state, ys, 1000, 200, optimizer, parts=("enc",))
    for part in ("pri", "gen", "dis"):
        jax.tree.map(np.testing.assert_array_equal, inverted.params[part], state.params[part])
    for y in (1.5, 2.6):
        mean = gaussian(affine(2)).dist(inverted.params["enc"], jnp.array([y])).mean
        np.testing.assert_allclose(mean, [w * (y - b) / (w**2 + 0.25)], atol=0.05)
    assert metrics["elbo"][-1] > metrics["elbo"][0]


def test_a_vae_gan_of_images_is_one_composition():
    """Convolutions and a discriminator of patches: all parts train; then the discriminator alone, whose loss falls."""

    def model_with(weight):
        generator = adversarial(bernoulli(nets.ConvDecoder((4,), (8, 8, 1))), PatchDiscriminator((4,)), weight=weight)
        return hoist(vae(gaussian(nets.ConvEncoder((4,), 4)), PRI, generator), "gen/dis", "dis")

    model = model_with(0.1)
    ys = np.random.default_rng(0).integers(0, 2, (32, 8, 8, 1)).astype(np.float32)
    optimizer = optax.adam(3e-3)
    state = init_state(model, optimizer, jax.random.key(0), ys[0])
    assert set(state.params) == set(state.opt_state) == {"enc", "pri", "gen", "dis"}
    together, metrics = trained(model, state, ys, 5, 16, optimizer)
    assert np.isfinite(metrics["loss"]).all() and int(together.skipped) == 0
    alone, metrics = trained(model_with(0.0), state, ys, 40, 16, optimizer, parts=("dis",))
    jax.tree.map(np.testing.assert_array_equal, alone.params["gen"], state.params["gen"])
    assert metrics["penalty"][-1] < metrics["penalty"][0] - 0.2


def test_a_vqgan_is_one_composition():
    """Codes, an adversarial generator and a discriminator with an optimiser state of its own: the rate stays n ln K."""
    generator = adversarial(l2(affine(3), "optimal"), DIS, weight=0.5)
    model = hoist(vq_vae(affine(2, 4), codebook(8, 4), uniform_codes(8, 2), generator), "gen/dis", "dis")
    ys = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    state = init_state(model, optax.adam(3e-3), jax.random.key(0), ys[0])
    assert set(state.params) == set(state.opt_state) == {"enc", "codes", "pri", "gen", "dis"}
    after, metrics = trained(model, state, ys, 40, 16, optax.adam(3e-3))
    assert metrics["elbo"][-1] > metrics["elbo"][0]
    np.testing.assert_allclose(metrics["rate"], 2 * np.log(8), rtol=1e-6)
    assert (after.params["dis"]["weights"] != state.params["dis"]["weights"]).any()


# Parameters


def test_hoist_moves_parameters_and_nothing_else():
    model, _, params = vae_gan(l2(affine(3), "optimal"))
    moved = hoist(model, "gen/dis", "dis")
    key, flat = jax.random.key(0), {**params, "gen": {"gen": params["gen"]["gen"]}, "dis": params["gen"]["dis"]}
    jax.tree.map(np.testing.assert_array_equal, compiled(moved.init)(key, Y), flat)
    jax.tree.map(
        np.testing.assert_array_equal, compiled(moved.terms)(flat, key, Y), compiled(model.terms)(params, key, Y)
    )
    np.testing.assert_array_equal(compiled(moved.sample)(flat, key), compiled(model.sample)(params, key))
    assert compiled(moved.pathwise)(flat, key, Y).nats == compiled(model.pathwise)(params, key, Y).nats
    stats = compiled(model.terms)(params, key, Y).stats
    got, want = compiled(moved.maximise)(flat, stats), compiled(model.maximise)(params, stats)
    assert jax.tree.structure(got) == jax.tree.structure(flat)
    jax.tree.map(np.testing.assert_array_equal, got["gen"]["gen"], want["gen"]["gen"])
    jax.tree.map(np.testing.assert_array_equal, got["dis"], params["gen"]["dis"])
    with pytest.raises(ValueError, match="there is a part 'enc' beside 'gen/dis'"):
        hoist(model, "gen/dis", "enc").init(key, Y)
    with pytest.raises(KeyError, match="no parameters at"):
        hoist(model, "gen/judge", "dis").init(key, Y)


# Patches


@pytest.mark.parametrize(("shape", "grid"), [((28, 28, 1), (7, 7)), ((9, 26, 3), (3, 7))])
def test_patches(shape, grid):
    """A logit for each cell of the grid; the first depends on the corner and not on what is 22 pixels away."""
    dis = PatchDiscriminator((4, 4))
    y = jax.random.normal(jax.random.key(0), shape)
    params = compiled(dis.init)(jax.random.key(1), y[None])
    logits = jax.eval_shape(dis.apply, params, y[None])
    assert logits.shape == (1, *grid) and logits.dtype == jnp.float32
    reach = np.abs(compiled(jax.grad(lambda y: dis.apply(params, y[None])[0, 0, 0]))(y)).sum(axis=-1)
    assert reach[0, 0] > 0 and not reach[:, 22:].any()


# What is refused


def test_what_is_refused():
    with pytest.raises(TypeError, match=r"a generator with a mean, a Conditional; got Model"):
        adversarial(lift(PRI), DIS)
    with pytest.raises(ValueError, match="cannot be negative; got -1"):
        adversarial(bernoulli(affine(3)), DIS, weight=-1.0)
    model, _, params = vae_gan(categorical(affine(3, 2)))
    with pytest.raises(TypeError, match=r"judges the mean .* has none"):
        jax.eval_shape(model.terms, params, jax.random.key(0), jnp.zeros(3, int))
    plain, key = vae(ENC, PRI, bernoulli(affine(3))), jax.random.key(0)
    with pytest.raises(ValueError, match=r"trains params\['dis'\], and this model has none"):
        gan(DIS)(plain, jax.eval_shape(plain.init, key, Y), key[None], Y[None], None, 0)
    model = with_discriminator(plain, DIS)
    with pytest.raises(ValueError, match=r"samples of type int32 have no gradient.*means\(generator\)"):
        jax.eval_shape(lambda: gan(DIS)(model, model.init(key, Y), key[None], Y[None], None, 0))
    with pytest.raises(ValueError, match="PatchDiscriminator wants channels"):
        PatchDiscriminator(())
