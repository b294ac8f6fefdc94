"""Priors against scipy; the VampPrior and its tying against the sum written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import log_softmax, logsumexp

from vae_jax import analytic, gaussian, l2, learned_normal, sampled, standard_normal, sticking, vae
from vae_jax.core import share, start_from
from vae_jax.core.model import log_prob
from vae_jax.em import mixture_of_gaussians
from vae_jax.parts import learned_classes, vampprior
from vae_jax.selfcheck.quadrature import at_nodes, expected_terms, hermite
from vae_jax.selfcheck.solvable import affine, affine_normal, full_normal, two_layers


def density(prior, params, z, c=None):
    """ln P_pri(z), compiled."""
    return jax.jit(lambda params: log_prob(prior.dist(params, c), z))(params)


def bounded(raw):
    return 7 * np.tanh(np.asarray(raw) / 7)


@pytest.mark.parametrize(("size", "shape"), [(3, (3,)), ((2, 3), (2, 3)), ((), ())])
def test_standard_normal(x64, size, shape):
    """N(0, I) of that shape, without parameters, whatever the condition."""
    prior, z = standard_normal(size), np.random.default_rng(0).normal(size=shape)
    assert prior.init(jax.random.key(0)) == prior.init(jax.random.key(0), jnp.ones(2)) == {}
    assert density(prior, {}, z) == pytest.approx(stats.norm.logpdf(z).sum(), rel=1e-12)
    assert density(prior, {}, z, jnp.ones(2)) == pytest.approx(stats.norm.logpdf(z).sum(), rel=1e-12)
    assert prior.dist({}).sample(jax.random.key(1)).shape == shape


@pytest.mark.parametrize("size", [3, (2, 2)])
def test_learned_normal(x64, size):
    """N(0, I) at the start; afterwards N(mean, exp(bounded log_std)^2)."""
    prior = learned_normal(size)
    params = prior.init(jax.random.key(0))
    rng = np.random.default_rng(1)
    z, mean, log_std = rng.normal(size=(3, *params["mean"].shape))
    assert density(prior, params, z) == pytest.approx(stats.norm.logpdf(z).sum(), rel=1e-12)
    params = {"mean": jnp.asarray(mean), "log_std": jnp.asarray(3 * log_std)}
    exact = stats.norm(mean, np.exp(bounded(3 * log_std))).logpdf(z).sum()
    assert density(prior, params, z, jnp.ones(5)) == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize(("size", "components"), [(3, 1), (3, 4), ((2, 2), 3)])
def test_mixture_of_gaussians(x64, size, components):
    """sum_k w_k N(mean_k, std_k^2)."""
    prior = mixture_of_gaussians(size, components)
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape), jax.eval_shape(prior.init, jax.random.key(0)))
    z = rng.normal(size=size)
    gen = params["gen"]
    each = stats.norm(gen["means"], np.exp(gen["covariances"])).logpdf(z.reshape(1, -1))
    exact = logsumexp(log_softmax(params["pri"]["logits"]) + each.sum(axis=1))
    assert density(prior, params, z) == pytest.approx(exact, rel=1e-12)


def test_mixture_of_gaussians_starts_spread_out(x64):
    """Equal weights, std 1, means from N(0, spread^2 I): 5,000 means, key 3, standard deviation within 4 errors."""
    params = mixture_of_gaussians(2, 5000, spread=3.0).init(jax.random.key(3))
    assert not params["pri"]["logits"].any() and not params["gen"]["covariances"].any()
    assert params["gen"]["means"].std() == pytest.approx(3.0, abs=4 * 3 / np.sqrt(2 * 10_000))


def test_mixture_of_gaussians_is_finite_far_away():
    """In float32, value and gradient at a z 1,000 standard deviations from every component."""
    prior = mixture_of_gaussians(2, 3)
    params = prior.init(jax.random.key(0))
    value, gradient = jax.jit(jax.value_and_grad(lambda p: log_prob(prior.dist(p), jnp.full(2, 1e3))))(params)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_mixture_of_gaussians_samples(x64):
    """20,000 samples of one dimension, key 4: Kolmogorov-Smirnov p > 1e-4."""
    prior = mixture_of_gaussians(1, 2)
    params = {
        "pri": {"logits": jnp.array([0.0, 1.0])},
        "gen": {"means": jnp.array([[-2.0], [1.0]]), "covariances": jnp.array([[0.5], [-1.0]])},
    }
    samples = jax.jit(jax.vmap(lambda key: prior.dist(params).sample(key)))(jax.random.split(jax.random.key(4), 20_000))
    weights, stds = np.exp(log_softmax([0.0, 1.0])), np.exp([0.5, -1.0])

    def cdf(z):
        return stats.norm.cdf(np.asarray(z)[..., None], [-2.0, 1.0], stds) @ weights

    assert stats.kstest(np.asarray(samples).ravel(), cdf).pvalue > 1e-4


def test_learned_normal_at_its_optimum_has_the_moments_of_the_aggregate(x64):
    """Trained alone, a normal prior comes to mean and variance of the marginal of z: there its gradient is 0."""
    ys, std = jnp.array([[-1.0], [0.5], [2.0]]), 0.4
    model = vae(affine_normal(1), learned_normal(1), l2(affine(1), 1.0))
    enc = {"weights": jnp.eye(1), "bias": jnp.zeros(1), "log_std": jnp.log(jnp.array([std]))}
    mean, variance = np.mean(ys), np.var(ys) + std**2
    params = {
        "enc": enc,
        "pri": {"mean": jnp.array([mean]), "log_std": jnp.array([7 * np.arctanh(np.log(variance) / 14)])},
    }
    params["gen"] = {"weights": jnp.eye(1), "bias": jnp.zeros(1)}

    def rate(pri):
        return jnp.mean(expected_terms(model, {**params, "pri": pri}, ys, hermite()).rate)

    for leaf in jax.tree.leaves(jax.jit(jax.grad(rate))(params["pri"])):
        np.testing.assert_allclose(leaf, 0, atol=1e-12)


# VampPrior


def affine_log_density(enc, z, us):
    """numpy: ln N(z; weights u + bias, exp(log_std)^2) of each u."""
    means = us @ np.asarray(enc["weights"]).T + np.asarray(enc["bias"])
    return stats.norm(means, np.exp(np.asarray(enc["log_std"]))).logpdf(z).sum(axis=-1)


def test_vampprior_is_the_average_of_the_encoder_at_its_pseudo_inputs(x64):
    """1/K sum_k P_enc(z | u_k), the u_k starting where they are told to."""
    us, z = np.random.default_rng(5).normal(size=(4, 3)), np.array([0.3, -0.8])
    prior = vampprior(affine_normal(2), us)
    params = prior.init(jax.random.key(0))
    assert set(params) == {"pseudo", "enc"}
    np.testing.assert_allclose(params["pseudo"], us, rtol=1e-6)
    params["pseudo"] = jnp.asarray(us)
    exact = logsumexp(affine_log_density(params["enc"], z, us)) - np.log(4)
    assert density(prior, params, z) == pytest.approx(exact, rel=1e-12)
    assert density(prior, params, z, jnp.ones(2)) == pytest.approx(exact, rel=1e-12)  # whatever the condition


def test_vampprior_of_other_encoders(x64):
    """A full covariance, and a latent with two axes."""
    rng = np.random.default_rng(6)
    us, z = rng.normal(size=(3, 4)), rng.normal(size=2)
    prior = vampprior(full_normal(2), us)
    params = {**jax.jit(prior.init)(jax.random.key(1)), "pseudo": jnp.asarray(us)}
    params["enc"]["tril"] = jnp.array([[1.0, 0.0], [0.5, 0.7]])
    covariance = np.array([[1.0, 0.5], [0.5, 0.74]])
    means = us @ np.asarray(params["enc"]["weights"]).T
    exact = logsumexp([stats.multivariate_normal(m, covariance).logpdf(z) for m in means]) - np.log(3)
    assert density(prior, params, z) == pytest.approx(exact, rel=1e-12)

    square = gaussian((lambda key, y: {}, lambda params, y: y))
    us, z = rng.normal(size=(3, 2, 4)), rng.normal(size=(2, 2))
    prior = vampprior(square, us)
    each = stats.norm(us[..., :2], np.exp(bounded(us[..., 2:]))).logpdf(z).sum(axis=(1, 2))
    assert density(prior, {"pseudo": jnp.asarray(us), "enc": {}}, z) == pytest.approx(logsumexp(each) - np.log(3))


def test_vampprior_with_conditions(x64):
    """An encoder that sees (y, c): each pseudo-input has a fixed condition of its own, which does not train."""
    encoder = gaussian((lambda key, y, c: {}, lambda params, y, c: jnp.concatenate([y * c, c * jnp.ones(2)])))
    us, cs, z = np.random.default_rng(7).normal(size=(3, 2)), np.array([-1.0, 0.5, 2.0]), np.array([0.1, 0.2])
    prior = vampprior(encoder, us, condition=cs)
    params = {**prior.init(jax.random.key(0)), "pseudo": jnp.asarray(us)}
    each = stats.norm(us * cs[:, None], np.exp(bounded(cs))[:, None]).logpdf(z).sum(axis=1)
    assert density(prior, params, z, jnp.array(9.0)) == pytest.approx(logsumexp(each) - np.log(3), rel=1e-10)


def test_vampprior_samples_are_the_encoders(x64):
    """20,000 samples, key 8: Kolmogorov-Smirnov against the mixture, p > 1e-4."""
    us = np.array([[-2.0], [0.0], [3.0]])
    prior = vampprior(affine_normal(1), us)
    params = {
        "pseudo": jnp.asarray(us),
        "enc": {"weights": jnp.eye(1), "bias": jnp.zeros(1), "log_std": jnp.array([-1.0])},
    }
    samples = jax.jit(jax.vmap(lambda key: prior.dist(params).sample(key)))(jax.random.split(jax.random.key(8), 20_000))

    def cdf(z):
        return stats.norm.cdf(np.asarray(z)[..., None], us[:, 0], np.exp(-1.0)).mean(axis=-1)

    assert stats.kstest(np.asarray(samples).ravel(), cdf).pvalue > 1e-4


def hand_written_loss(params, y, nodes, weights):
    """E_eps of ln q(z|y) - ln 1/K sum_k q(z|u_k) - ln p(y|z) at z = mean + std eps, for affine q and p: one encoder."""
    enc, us, gen = params["enc"], params["pri"]["pseudo"], params["gen"]

    def log_normal(x, mean, std):
        return jnp.sum(-0.5 * ((x - mean) / std) ** 2 - jnp.log(std) - 0.5 * jnp.log(2 * jnp.pi))

    def log_q(z, y):
        return log_normal(z, enc["weights"] @ y + enc["bias"], jnp.exp(enc["log_std"]))

    total = 0.0
    for node, weight in zip(nodes, weights, strict=True):
        z = enc["weights"] @ y + enc["bias"] + jnp.exp(enc["log_std"]) * node
        log_prior = jnp.log(sum(jnp.exp(log_q(z, u)) for u in us) / len(us))
        log_gen = log_normal(y, gen["weights"] @ z + gen["bias"], jnp.full(2, 0.7))
        total += weight * (log_q(z, y) - log_prior - log_gen)
    return total


def test_shared_vampprior_has_the_gradient_written_out(x64):
    """`share(..., "enc", "pri/enc")`: the tree has no pri/enc; the encoder's gradient comes through both its uses."""
    encoder, us, y = affine_normal(1), np.random.default_rng(9).normal(size=(3, 2)), jnp.array([0.4, -1.1])
    untied = vae(encoder, vampprior(encoder, us), l2(affine(2), 0.7))
    tied = share(untied, "enc", "pri/enc")
    params = jax.jit(tied.init)(jax.random.key(0), y)
    assert set(params) == {"enc", "pri", "gen"} and set(params["pri"]) == {"pseudo"}
    params["pri"]["pseudo"] = jnp.asarray(us)
    nodes, weights = hermite(7)

    def loss(model):
        return lambda params: weights @ at_nodes(model.terms, params, nodes, y).nats

    ours = jax.jit(jax.value_and_grad(loss(tied)))(params)
    exact = jax.jit(jax.value_and_grad(hand_written_loss))(params, y, jnp.asarray(nodes), jnp.asarray(weights))
    assert jax.tree.structure(ours) == jax.tree.structure(exact)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)

    both = {**params, "pri": {**params["pri"], "enc": params["enc"]}}
    apart = jax.jit(jax.grad(loss(untied)))(both)
    for tied_leaf, one, other in zip(
        *(jax.tree.leaves(g) for g in (ours[1]["enc"], apart["enc"], apart["pri"]["enc"])), strict=True
    ):
        assert jnp.abs(one).max() > 1e-3 and jnp.abs(other).max() > 1e-3
        np.testing.assert_allclose(tied_leaf, one + other, rtol=1e-9, atol=1e-12)


def test_sharing_ties_every_function_of_the_model():
    """Terms, importance, samples, support and M-step see the encoder twice; what comes back has it once."""
    encoder, us, y = affine_normal(1), jnp.array([[-1.0, 0.0], [2.0, 1.0]]), jnp.array([0.4, -1.1])
    untied = vae(encoder, vampprior(encoder, us), l2(affine(2), "optimal"))
    tied, key = share(untied, "enc", "pri/enc"), jax.random.key(1)
    params = jax.jit(tied.init)(jax.random.key(0), y)
    both = {**params, "pri": {**params["pri"], "enc": params["enc"]}}

    @jax.jit
    def everything(params, both):
        return [
            (model.terms(p, key, y).nats, model.importance(p, key, y).nats, model.sample(p, key))
            for model, p in ((tied, params), (untied, both))
        ]

    for ours, theirs in zip(*everything(params, both), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert tied.support(params) == untied.support(both)
    stats_of_y = jax.jit(tied.terms)(params, key, y).stats
    m_steps = jax.jit(lambda p, both, stats: (tied.maximise(p, stats), untied.maximise(both, stats)))
    new, apart = m_steps(params, both, stats_of_y)
    assert jax.tree.structure(new) == jax.tree.structure(params)
    assert new["gen"]["log_sigma"] == apart["gen"]["log_sigma"] != 0


def test_sharing_names_what_is_missing():
    encoder = affine_normal(1)
    model, y = vae(encoder, vampprior(encoder, jnp.ones((2, 2))), l2(affine(2), 1.0)), jnp.ones(2)
    for source, target, missing in (
        ("encoder", "pri/enc", "encoder"),
        ("enc", "pri/encoder", "encoder"),
        ("enc/net", "pri/enc", "enc/net"),
    ):
        with pytest.raises(KeyError, match=f"no parameters at '{missing}'"):
            jax.eval_shape(share(model, source, target).init, jax.random.key(0), y)


# Another VAE as a prior


def test_a_vae_as_a_prior(x64):
    """Its bound takes the place of -ln P_pri(z), looser by the inner KL on average, and sampling goes through it."""
    system = two_layers()
    prior_params, y = system.params["pri"], system.ys[0]
    inner = vae(affine_normal(1), standard_normal(1), l2(affine(2), 0.6))

    weights = np.asarray(prior_params["gen"]["weights"])
    covariance = weights @ weights.T + 0.36 * np.eye(2)
    keys = jax.random.split(jax.random.key(0), 2000)
    z1 = jnp.asarray(np.random.default_rng(0).normal(size=(2000, 2)))
    bound = -np.asarray(jax.jit(jax.vmap(inner.terms, in_axes=(None, 0, 0)))(prior_params, keys, z1).nats)
    gap = stats.multivariate_normal(np.zeros(2), covariance).logpdf(z1) - bound
    widened = 1.15  # of the inner encoder's standard deviation over the posterior's
    kl = (widened**2 - 1) / 2 - np.log(widened)
    assert abs(gap.mean() - kl) < 4 * gap.std() / np.sqrt(2000)

    terms = jax.jit(system.model.terms)(system.params, jax.random.key(1), y)
    assert set(terms.detail) == {"pri", "gen"} and set(terms.detail["pri"]) == {"pri", "gen", "units", "rates"}
    assert terms.rates.shape == (2,) and terms.detail["pri"]["rates"].shape == (1,)
    np.testing.assert_allclose(terms.rates.sum(), terms.rate, rtol=1e-5)
    assert terms.units.rate is None and terms.detail["pri"]["units"].rate.shape == (1,)
    assert terms.units.mean.shape == (2,)

    samples = np.asarray(jax.jit(jax.vmap(system.model.sample, in_axes=(None, 0)))(system.params, keys))
    gen = np.asarray(system.params["gen"]["weights"])
    exact = gen @ covariance @ gen.T + 0.49 * np.eye(3)
    error = np.sqrt((np.outer(np.diag(exact), np.diag(exact)) + exact**2) / 2000)
    assert (np.abs(samples.T @ samples / 2000 - exact) < 4.5 * error).all()


def test_analytic_wants_a_prior_with_a_density():
    inner = vae(affine_normal(1), standard_normal(1), l2(affine(2), 1.0))
    with pytest.raises(TypeError, match="analytic needs a prior with a density; this one is a Model"):
        vae(affine_normal(2), inner, l2(affine(3), 1.0), estimator=analytic)


def test_analytic_says_where_no_closed_form_is_known():
    """A mixture has a density and no closed-form KL."""
    model, y = vae(affine_normal(2), mixture_of_gaussians(2, 3), l2(affine(3), 1.0), estimator=analytic), jnp.ones(3)
    params = jax.eval_shape(model.init, jax.random.key(0), y)
    with pytest.raises(
        TypeError, match=r"no closed form is known for KL\(Independent \|\| MixtureSameFamily\); use estimator"
    ):
        jax.eval_shape(model.terms, params, jax.random.key(0), y)


@pytest.mark.parametrize("estimator", [sampled, sticking])
def test_mixtures_have_no_rate_per_unit(estimator):
    model, y = vae(affine_normal(2), mixture_of_gaussians(2, 3), l2(affine(3), 1.0), estimator=estimator), jnp.ones(3)
    params = jax.eval_shape(model.init, jax.random.key(0), y)
    assert jax.eval_shape(model.terms, params, jax.random.key(0), y).units.rate is None


# What is refused


def test_priors_refuse():
    with pytest.raises(ValueError, match="a mixture has at least one component; got components=0"):
        mixture_of_gaussians(2, 0)
    for nothing in (jnp.zeros((0, 3)), 1.0):
        with pytest.raises(ValueError, match=r"pseudo_inputs wants an array \(K, \*example\) with K >= 1; got shape"):
            vampprior(affine_normal(1), nothing)
    with pytest.raises(ValueError, match="3 pseudo-inputs have 2 conditions: give one for each"):
        vampprior(affine_normal(1), jnp.zeros((3, 2)), condition=jnp.zeros(2))
    with pytest.raises(ValueError, match="pseudo_inputs holds NaN or infinity"):
        vampprior(affine_normal(1), np.array([[0.0, np.nan]]))
    with pytest.raises(ValueError, match="pseudo_inputs has dtype <U1"):
        vampprior(affine_normal(1), np.array([["a"]]))


@pytest.mark.parametrize("size", [0, -1, 2.0, (3, 0), "2", None, True])
def test_sizes_of_a_latent(size):
    for name, make in (
        ("standard_normal", standard_normal),
        ("learned_normal", learned_normal),
        ("learned_classes", lambda size: learned_classes(size, 2)),
    ):
        with pytest.raises(ValueError, match=rf"{name} wants the size of z, a whole number of at least 1 .*; got"):
            make(size)
    assert standard_normal(np.int64(3)).dist({}).event_shape == (3,)


def test_pseudo_inputs_of_another_shape_than_the_examples():
    model = vae(affine_normal(2), vampprior(affine_normal(2), jnp.ones((5, 3))), l2(affine(4), 1.0))
    tied = share(model, "enc", "pri/enc")
    params = jax.eval_shape(tied.init, jax.random.key(0), jnp.ones(4))
    with pytest.raises(ValueError, match=r"pseudo_inputs of shape \(3,\) do not fit this encoder: .*preprocessed"):
        jax.eval_shape(tied.terms, params, jax.random.key(0), jnp.ones(4))


def test_wrong_latent_size_is_named():
    """A prior of another size than the encoder's z."""
    model = vae(affine_normal(2), standard_normal(3), l2(affine(4), 1.0))
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.ones(4))
    with pytest.raises(ValueError, match=r"over arrays of shape \(3,\), and was given one of shape \(2,\)"):
        jax.eval_shape(model.terms, params, jax.random.key(0), jnp.ones(4))
    for size in (3, 1):  # a KL of one number would be broadcast
        model = vae(affine_normal(2), standard_normal(size), l2(affine(4), 1.0), estimator=analytic)
        with pytest.raises(ValueError, match=rf"encoder is .* over z of shape \(2,\), and the prior .* \({size},\)"):
            jax.eval_shape(model.terms, params, jax.random.key(0), jnp.ones(4))


# A second stage


def test_start_from_keeps_the_parts_of_an_earlier_stage():
    model = vae(affine_normal(2), learned_normal(2), l2(affine(3), 0.5))
    first = model.init(jax.random.key(0), jnp.zeros(3), None)
    second = start_from(model, {"enc": first["enc"]}).init(jax.random.key(1), jnp.zeros(3), None)
    again = model.init(jax.random.key(1), jnp.zeros(3), None)
    jax.tree.map(np.testing.assert_array_equal, second, {**again, "enc": first["enc"]})
    assert np.any(first["enc"]["weights"] != again["enc"]["weights"])
    with pytest.raises(KeyError, match=r"parts \['enc', 'gen', 'pri'\].*\['encoder'\]"):
        start_from(model, {"encoder": first["enc"]}).init(jax.random.key(1), jnp.zeros(3), None)
