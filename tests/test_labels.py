"""Classes in part unknown (oracle 41): on a toy whose every value can be listed, and with few labels of many."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import expit, log_softmax, logsumexp

from vae_jax import bernoulli, categorical, enumerated, fit, gaussian, nets, standard_normal, vae
from vae_jax.core import labelled
from vae_jax.parts import learned_classes
from vae_jax.systems import class_probabilities, partly_labelled

CLASSES, STATES = 3, 2
RNG = np.random.default_rng(0)
LOGITS_OF_CLASS, LOGITS_OF_STATE = RNG.normal(size=CLASSES), RNG.normal(size=STATES)
LOGITS = RNG.normal(size=(STATES, CLASSES, 2))  # of the bits of y, given z and c
YS = np.array(list(itertools.product([0.0, 1.0], repeat=2)), np.float32)


def log_joint(y):
    """ln P(c, z, y), (classes, states)."""
    p = expit(LOGITS)
    log_p = np.sum(np.log(np.where(y, p, 1 - p)), axis=-1).T
    return log_softmax(LOGITS_OF_CLASS)[:, None] + log_softmax(LOGITS_OF_STATE)[None] + log_p


def toy(exact=True):
    """The model, whose encoders are exact or know nothing."""

    def find(y):
        """ln P(c, z, y) again, for a y that is traced."""
        table = jnp.asarray([log_joint(each) for each in YS], jnp.float32)
        return table[jnp.argmax(jnp.all(y == YS, axis=1))]

    def of_state(params, y, c):
        return jnp.einsum("c,cz->z", c, find(y)) if exact else jnp.zeros(STATES)

    def of_class(params, y):
        return jax.nn.logsumexp(find(y), axis=1) if exact else jnp.zeros(CLASSES)

    def bits(params, z, c):
        return jnp.einsum("c,cd->d", c, jnp.asarray(LOGITS, jnp.float32)[z])

    nothing = lambda key, *x: {}  # noqa: E731
    states = categorical((nothing, lambda params, c: jnp.asarray(LOGITS_OF_STATE, jnp.float32)))
    inner = vae(categorical((nothing, of_state)), states, bernoulli((nothing, bits)), estimator=enumerated)
    model = partly_labelled((nothing, of_class), inner, CLASSES, weight=0.5)
    params = model.init(jax.random.key(0), YS[0], -1)
    params["pri"]["logits"] = jnp.asarray(LOGITS_OF_CLASS, jnp.float32)
    return model, params


@pytest.mark.parametrize("y", YS)
def test_the_bound_is_tight_where_the_encoders_are_exact(y):
    """-ln P(y, c) of a known class, -ln P(y) of an unknown one; above them with encoders that know nothing."""
    model, params = toy()
    wanted = [*-logsumexp(log_joint(y), axis=1), -logsumexp(log_joint(y))]
    nats = jax.jit(lambda c: model.terms(params, jax.random.key(0), y, c))
    poor, _ = toy(exact=False)
    for c, cost in zip((0, 1, 2, -1), wanted, strict=True):
        terms = nats(c)
        assert float(terms.nats) == pytest.approx(cost, abs=1e-5)
        guess = log_softmax(logsumexp(log_joint(y), axis=1))
        assert float(terms.penalty) == pytest.approx(0 if c < 0 else -0.5 * guess[c], abs=1e-5)
        assert float(model.importance(params, jax.random.key(0), y, c).nats) == pytest.approx(cost, abs=1e-5)
        assert float(poor.terms(params, jax.random.key(0), y, c).nats) > cost + 1e-3


def test_samples_follow_the_classes():
    model, params = toy()
    keys = jax.random.split(jax.random.key(0), 20_000)
    run = jax.jit(jax.vmap(lambda key, c: model.sample(params, key, c), (0, None)))
    for c in (-1, 2):
        prior = np.exp(log_softmax(LOGITS_OF_CLASS)) if c < 0 else np.eye(CLASSES)[c]
        mean = np.einsum("c,z,zcd->d", prior, np.exp(log_softmax(LOGITS_OF_STATE)), expit(LOGITS))
        drawn = np.asarray(run(keys, c)).mean(axis=0)
        assert np.all(np.abs(drawn - mean) < 5 * np.sqrt(mean * (1 - mean) / len(keys)))


def test_few_labels_teach_a_classifier():
    """Two clusters, eight labels of each: the others' classes are found by what they look like."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 400)
    p = np.where(truth[:, None] == np.arange(12)[None] // 6, 0.9, 0.1)
    ys = (rng.random(p.shape) < p).astype(np.float32)
    cs = np.full(400, -1)
    for k in (0, 1):
        cs[np.flatnonzero(truth == k)[:8]] = k
    classifier = nets.MLP((16,), 2)
    inner = vae(gaussian(nets.MLP((16,), 2)), standard_normal(1), bernoulli(nets.MLP((16,), 12)))
    model = partly_labelled(classifier, inner, 2, weight=20.0)
    fitted = fit(model, optax.adam(5e-3), ys, cs, key=jax.random.key(0), epochs=60, batch_size=100, progress=False)
    found = jax.vmap(lambda y: class_probabilities(classifier, fitted.params, y))(ys)
    assert np.mean(np.argmax(found, axis=1) == truth) > 0.95


def test_what_is_refused():
    inner = labelled(bernoulli(nets.MLP((), 3)), 2)
    with pytest.raises(ValueError, match="partly_labelled wants the number of classes, at least two; got 1"):
        partly_labelled(nets.MLP((), 1), inner, 1)
    with pytest.raises(ValueError, match="weight is that of the classifier's own loss"):
        partly_labelled(nets.MLP((), 2), inner, 2, weight=-1)
    with pytest.raises(ValueError, match="cs"):
        model = partly_labelled(nets.MLP((), 2), bernoulli(nets.MLP((), 3)), 2)
        fit(
            model,
            optax.adam(0.1),
            np.zeros((4, 3), np.float32),
            np.array([0, 1, 2, -1]),
            key=jax.random.key(0),
            epochs=1,
        )
    assert learned_classes((), 2).dist({"logits": jnp.zeros(2)}).event_shape == (2,)
