"""Classes as conditions: whole numbers are classes wherever they enter, and none of them means "no condition"."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from laws import BITS, affine, encoder

from vae_jax import bernoulli, evaluate, fit, gaussian, l2, nets, standard_normal, vae
from vae_jax.core import as_network, drop_condition, labelled, share
from vae_jax.diffusion import denoiser, diffusion
from vae_jax.diffusion.samplers import guided
from vae_jax.parts.flows import inverse_autoregressive_flow

KEY = jax.random.key(0)
YS, CLASSES = jnp.asarray(BITS.ys), np.arange(8, dtype=np.uint8) % 3
INNER = vae(encoder(1), standard_normal(1), bernoulli(affine(3, scale=1.0)))
MODEL = labelled(INNER, 3)
PARAMS = MODEL.init(KEY, YS[0], np.int32(0))


def test_a_class_is_its_one_hot_vector():
    """In every function of the model; -1 is zeros, and a float is what it was."""
    for c, vector in ((2, [0, 0, 1]), (np.uint8(1), [0, 1, 0]), (True, [0, 1, 0]), (-1, [0, 0, 0])):
        seen = jnp.array(vector, jnp.float32)
        assert MODEL.terms(PARAMS, KEY, YS[0], c).nats == INNER.terms(PARAMS, KEY, YS[0], seen).nats
        assert MODEL.importance(PARAMS, KEY, YS[0], c).nats == INNER.importance(PARAMS, KEY, YS[0], seen).nats
        assert MODEL.pathwise(PARAMS, KEY, YS[0], c, 0.5).nats == INNER.pathwise(PARAMS, KEY, YS[0], seen, 0.5).nats
        np.testing.assert_array_equal(MODEL.sample(PARAMS, KEY, c), INNER.sample(PARAMS, KEY, seen))
        assert MODEL.terms(PARAMS, KEY, YS[0], seen).nats == INNER.terms(PARAMS, KEY, YS[0], seen).nats
    assert share(MODEL, "enc", "pri").classes == 3


def test_labels_train_and_evaluate_as_one_hot_vectors():
    fitted = [
        fit(model, optax.adam(0.1), YS, cs, key=KEY, epochs=2, batch_size=4, progress=False).params
        for model, cs in ((MODEL, CLASSES.astype(int)), (INNER, np.eye(3, dtype=np.float32)[CLASSES]))
    ]
    for got, want in zip(*map(jax.tree.leaves, fitted), strict=True):
        np.testing.assert_array_equal(got, want)
    for cs in (CLASSES + 100, CLASSES.astype(int) - 2, CLASSES + 1):
        with pytest.raises(ValueError, match=r"cs has classes in .*, and this model knows 0 \.\. 2 \(labelled"):
            evaluate(MODEL, PARAMS, KEY, YS, cs)
    with pytest.raises(ValueError, match=r"validation cs has classes in 1 \.\. 3"):
        fit(MODEL, optax.adam(0.1), YS, CLASSES, key=KEY, epochs=1, batch_size=4, validation=(YS, CLASSES + 1))
    with pytest.raises(ValueError, match="wants a class"):
        evaluate(MODEL, PARAMS, KEY, YS)


def test_classes_that_are_none():
    with pytest.raises(ValueError, match=r"c=3: this model knows the classes 0 \.\. 2, and -1 for no condition"):
        MODEL.sample(PARAMS, KEY, 3)
    assert np.isnan(jax.jit(MODEL.terms)(PARAMS, KEY, YS[0], 3).nats)  # a traced class cannot raise
    for classes in (1, 2.0, True, None):
        with pytest.raises(ValueError, match="number of classes, at least two; got"):
            labelled(INNER, classes)


@pytest.mark.parametrize(
    "net",
    [
        nets.MLP((4,), 2),
        nets.ConvEncoder((2,), 2),
        nets.ResEncoder((2,), 2),
        nets.ConvDecoder((2,), (4, 4, 1)),
        nets.ResDecoder((2,), (4, 4, 1)),
        nets.LSTM(3, 2, 2),
        nets.SequenceEncoder(3, 2, 2, 2),
        nets.Transformer(3, 4, 1, heads=1),
        nets.PixelCNN(3, 2, 1),
        nets.UNet((4,), heads=2),
        nets.DenoisingMLP(4, (4,)),
    ],
    ids=lambda net: type(net).__name__,
)
def test_networks_take_no_class_for_a_quantity(net):
    tokens = isinstance(net, nets.LSTM | nets.SequenceEncoder | nets.Transformer | nets.PixelCNN)
    noise = (jnp.zeros(()),) if isinstance(net, nets.UNet | nets.DenoisingMLP) else ()
    shape = (4, 4) if isinstance(net, nets.PixelCNN) else (4,) if tokens else (4, 4, 1)
    image = jnp.zeros(shape, jnp.int32 if tokens else jnp.float32)
    for c in (np.int32(2), np.array([0, 1], np.uint8)):
        with pytest.raises(ValueError, match=r"condition of whole numbers \(c has dtype .*labelled\(model, classes\)"):
            jax.eval_shape(as_network(net).init, KEY, image, *noise, c)


def test_flows_take_no_class_for_a_quantity():
    flow = inverse_autoregressive_flow(2, base=encoder(2), layers=1, hidden=(3,))
    with pytest.raises(ValueError, match="condition of whole numbers"):
        jax.eval_shape(flow.init, KEY, (YS[0], np.int32(1)))


def test_dropped_classes_are_no_class(one_use_keys):
    """Rate 1: every class becomes -1, unsigned ones too. Of a model that is not `labelled` zeros would be class 0."""
    seen = []

    def spy(model, params, keys, ys, cs, step):
        seen.append(cs)

    keys = jax.random.split(KEY, 8)
    drop_condition(spy, 1.0)(MODEL, PARAMS, keys, YS, CLASSES, 0)
    np.testing.assert_array_equal(seen[0], -1)
    for i, cs in enumerate((CLASSES, CLASSES > 0)):
        keys = jax.random.split(jax.random.key(i + 1), 8)
        with pytest.raises(ValueError, match=r"0 is a class among whole numbers .*labelled\(model, classes\)"):
            drop_condition(spy, 0.5)(INNER, PARAMS, keys, YS, cs, 0)


def test_guidance_by_a_class():
    """epshat = eps(0) + 3 (eps(c) - eps(0)), by the network written out; class 0 is guided like any other."""
    weights = jnp.array([0.3, -0.7, 1.1])
    net = (lambda key, z, gamma, c: {}, lambda params, z, gamma, c: z * 0 + 0.2 + c @ weights)
    d = denoiser(net, (1,))
    params = diffusion(d).init(KEY, jnp.zeros(1), jnp.zeros(3))
    level = d.level(params["enc"], 0.5)
    for c in range(3):
        found = guided(d, params["gen"], jax.nn.one_hot(c, 3), 3.0)(jnp.ones(1), level).noise
        np.testing.assert_allclose(found, 0.2 + 3 * weights[c], rtol=1e-6)
    with pytest.raises(ValueError, match="0 is a class among whole numbers"):
        guided(d, params["gen"], 0, 3.0)


def test_quantities_stay_as_they_are():
    """Floats as conditions, beside a class in a dict."""
    net = (lambda key, z, c: {}, lambda params, z, c: z + c["at"] + jnp.arange(3.0) @ c["kind"])
    model = labelled(vae(gaussian((net[0], lambda params, y, c: jnp.zeros(2))), standard_normal(1), l2(net, 1.0)), 3)
    params = model.init(KEY, jnp.zeros(1), {"at": 0.0, "kind": 0})
    there, here = (model.sample(params, KEY, c) for c in ({"at": 2.5, "kind": 2}, {"at": 0.0, "kind": 0}))
    np.testing.assert_allclose(there - here, 4.5, rtol=1e-6)
