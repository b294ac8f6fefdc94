"""What a user may get wrong is an error that names the argument, what was got, what was wanted and the usual cause.

Each mistake goes through `fit`, and where it can through `evaluate`, before the training step is even made.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest

from vae_jax import (
    bernoulli,
    categorical,
    conditional,
    discretised_logistic,
    em,
    enumerated,
    evaluate,
    fit,
    gaussian,
    l2,
    standard_normal,
    vae,
)
from vae_jax.core import labelled
from vae_jax.data import dynamic_binarisation, eight_bit, identity, load, unit_scale
from vae_jax.data.check import check_data
from vae_jax.nets.mlp import check_sizes
from vae_jax.parts.flows import coupling_flow
from vae_jax.selfcheck.solvable import affine

ENCODER, PRIOR = gaussian(affine(2)), standard_normal(1)
AS_GIVEN = identity()
EIGHT_BIT = np.arange(24, dtype=np.uint8).reshape(8, 3) * 10
BINARY = (np.arange(24).reshape(8, 3) % 2).astype(np.float32)
REAL = np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3)


def shaped(*shape):
    """z -> an array of this shape."""
    flat = affine(int(np.prod(shape)))
    return flat.init, lambda params, z: flat.apply(params, z).reshape(shape)


def with_float_inputs(net):
    """The network after y is made a float."""
    return lambda key, y: net.init(key, y * 1.0), lambda params, y: net.apply(params, y * 1.0)


def poisson(*shape):
    return conditional(shaped(*shape), lambda rate: dist.Poisson(jnp.exp(rate)).to_event(len(shape)))


def model_of(generator, *, encoder=None, prior=PRIOR, **options):
    return vae(encoder or gaussian(with_float_inputs(affine(2))), prior, generator, **options)


@pytest.fixture
def train(monkeypatch):
    """`fit` with a training step that must not be reached."""

    def unreached(*_, **__):
        raise AssertionError("the training step is made before the data are checked")

    monkeypatch.setattr("vae_jax.training.loop.make_train_step", unreached)
    return lambda model, ys, cs=None, **options: fit(
        model, optax.adam(1e-3), ys, cs, key=jax.random.key(0), epochs=1, batch_size=4, **options
    )


@pytest.fixture
def test(monkeypatch):
    """`evaluate` with a compiled function that must not be reached."""

    def unreached(*_, **__):
        raise AssertionError("evaluation is compiled before the data are checked")

    monkeypatch.setattr("vae_jax.evaluation.whole_split.values_of", unreached)

    def evaluated(model, ys, cs=None, *, params=None, **options):
        if params is None:
            y, c = jax.tree.map(lambda x: x[0], (ys, cs))
            params = model.init(jax.random.key(0), y, c)
        return evaluate(model, params, jax.random.key(0), ys, cs, **options)

    return evaluated


# Arrays


L2 = model_of(l2(affine(3), 1.0))
NAN_AT_FIVE = np.where(np.arange(8)[:, None] == 5, np.nan, REAL)


@pytest.mark.parametrize(
    ("ys", "message"),
    [
        (np.zeros((0, 3), np.float32), "ys is empty: want an array"),
        (None, "ys is empty"),
        ({}, "ys is empty"),
        (np.float32(3), r"ys wants the examples along its first axis; got shapes \[\(\)\]"),
        ({"a": REAL, "b": REAL[:5]}, r"ys wants the examples.*\[\(8, 3\), \(5, 3\)\]"),
        (REAL.astype(str), "ys has dtype <U.*want numbers"),
        (NAN_AT_FIVE, "ys holds NaN or infinity in 1 of 8 examples, the first at index 5: remove or fill"),
        (np.where(np.arange(8)[:, None] < 2, np.inf, REAL), "in 2 of 8 examples, the first at index 0"),
        (jnp.asarray(NAN_AT_FIVE, jnp.bfloat16), "the first at index 5"),
    ],
)
def test_arrays_that_are_no_data(train, test, ys, message):
    with pytest.raises(ValueError, match=message):
        train(L2, ys)
    with pytest.raises(ValueError, match=message):
        test(L2, ys, params=())


@pytest.mark.parametrize("batch_size", [0, 9, True])
def test_a_batch_larger_than_the_data(batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size} does not fit data of 8 examples: .* 1 to 8"):
        fit(L2, optax.adam(1e-3), REAL, key=jax.random.key(0), epochs=1, batch_size=batch_size)


@pytest.mark.parametrize(
    ("ys", "likelihood"),
    [
        (REAL.reshape(8, 3, 1), l2(affine(3), 1.0)),
        (REAL[:, :2], l2(affine(3), 1.0)),
        (EIGHT_BIT.reshape(8, 3, 1), discretised_logistic(shaped(3, 2))),
        (EIGHT_BIT, categorical(shaped(3, 1, 256))),
    ],
)
def test_examples_of_another_shape_than_the_likelihood(train, test, ys, likelihood):
    """Got and wanted are named, and so are the data: the network may be right and the data wrong."""
    model = model_of(likelihood, encoder=gaussian(flattening(affine(2))))
    got = rf"given one of shape \({', '.join(map(str, ys.shape[1:]))},?\).*the shape of one example"
    for check in (train, lambda *args: test(*args, params=())):
        with pytest.raises(ValueError, match=rf"over arrays of shape \(3,.*{got}") as caught:
            check(model, ys)
        assert f"one example: y {ys.dtype}{list(ys.shape[1:])}" in caught.value.__notes__[-1]


def flattening(net):
    return lambda key, y: net.init(key, y.ravel() * 1.0), lambda params, y: net.apply(params, y.ravel() * 1.0)


def test_parameters_made_for_other_data(test):
    params = L2.init(jax.random.key(0), REAL[0], None)
    model = model_of(l2(affine(2), 1.0))
    with pytest.raises(
        ValueError, match=r"do not fit these data: enc/weights holds \(2, 3\), and the data want \(2, 2\).*cs"
    ):
        test(model, REAL[:, :2], params=params)


# Values outside the likelihood's support


@pytest.mark.parametrize(
    ("likelihood", "ys", "preprocess", "got", "wanted", "advice"),
    [
        (
            bernoulli(affine(3)),
            EIGHT_BIT,
            AS_GIVEN,
            "[0, 230] (as given)",
            "0 or 1",
            "preprocess=dynamic_binarisation()",
        ),
        (bernoulli(affine(3)), EIGHT_BIT, unit_scale(), "[0, 0.901961] (unit scale", "0 or 1", "binarise them"),
        (bernoulli(affine(3)), REAL, AS_GIVEN, "[-1, 1] (as given)", "0 or 1", "Scale them to 0 .. 255"),
        (bernoulli(affine(3)), np.abs(REAL), AS_GIVEN, "[0.0434783, 1]", "0 or 1", "not a log-probability"),
        (
            discretised_logistic(shaped(3, 2)),
            EIGHT_BIT,
            unit_scale(),
            "[0, 0.901961]",
            "integers in [0, 255]",
            "preprocess=",
        ),
        (
            discretised_logistic(shaped(3, 2), levels=32),
            EIGHT_BIT,
            eight_bit(),
            "[0, 230]",
            "integers in [0, 31]",
            "preprocess=",
        ),
        (
            discretised_logistic(shaped(3, 6), components=2),
            REAL,
            AS_GIVEN,
            "[-1, 1]",
            "integers in [0, 255]",
            "preprocess",
        ),
        (categorical(shaped(3, 16)), EIGHT_BIT, AS_GIVEN, "[0, 230]", "integers in [0, 15]", "another likelihood"),
        (poisson(3), REAL, AS_GIVEN, "[-1, 1]", "integers >= 0", "another likelihood"),
        (poisson(3), np.abs(REAL), AS_GIVEN, "[0.0434783, 1]", "integers >= 0", "another likelihood"),
    ],
)
def test_values_outside_the_support(train, test, likelihood, ys, preprocess, got, wanted, advice):
    model = model_of(likelihood)
    for check in (train, test):
        with pytest.raises(ValueError, match="the likelihood wants") as caught:
            check(model, ys, preprocess=preprocess)
        message = str(caught.value)
        assert f"ys has values in {got}" in message and f"the likelihood wants {wanted}. " in message
        assert advice in message


def test_one_value_outside_the_support_is_found_wherever_it_is(train):
    ys = np.zeros((5000, 3), np.float32)
    ys[-1, -1] = 2
    with pytest.raises(ValueError, match=r"values in \[0, 2\]"):
        train(model_of(bernoulli(affine(3))), ys)


@pytest.mark.parametrize(
    ("likelihood", "ys", "preprocess"),
    [
        (bernoulli(affine(3)), BINARY, AS_GIVEN),
        (bernoulli(affine(3)), BINARY.astype(bool), AS_GIVEN),
        (bernoulli(affine(3)), EIGHT_BIT, dynamic_binarisation()),
        (discretised_logistic(shaped(3, 2)), EIGHT_BIT, eight_bit()),
        (categorical(shaped(3, 256)), EIGHT_BIT, AS_GIVEN),
        (poisson(3), EIGHT_BIT, AS_GIVEN),
        (l2(affine(3), "learned"), REAL, AS_GIVEN),
    ],
)
def test_values_inside_the_support_pass(train, likelihood, ys, preprocess):
    with pytest.raises(AssertionError, match="the training step is made"):
        train(model_of(likelihood), ys, preprocess=preprocess)


def test_validation_data_are_named(train):
    binary = model_of(bernoulli(affine(3)))
    with pytest.raises(ValueError, match="validation ys has values in"):
        train(binary, BINARY, validation=(BINARY + 1, None))
    with pytest.raises(ValueError, match="validation ys has 8 examples and validation cs 7"):
        train(CONDITIONAL, REAL, LABELS, validation=(REAL, LABELS[:7]))


@pytest.mark.parametrize(
    ("model", "preprocess", "message"),
    [
        (l2(affine(2), 1.0), identity(), r"model wants a Model, .*got Conditional: lift\(conditional\)"),
        (model_of(l2(affine(3), 1.0)), np.floor, "preprocess wants one of vae_jax.data.preprocess, .*; got ufunc"),
    ],
)
def test_what_is_of_another_kind(model, preprocess, message):
    with pytest.raises(TypeError, match=message):
        inspect.unwrap(check_data)(model, BINARY, None, preprocess)  # before jaxtyping sees it


@pytest.mark.parametrize("n", [2.5, 0, True, np.float32(3), "3"])
def test_sizes_are_whole_numbers(n):
    for make in (
        lambda: check_sizes("MLP", hidden=(n,)),  # before jaxtyping sees MLP((n,), 2)
        lambda: coupling_flow(n),
        lambda: coupling_flow(2, layers=n),
        lambda: em.mixture_of_gaussians(2, n),
        lambda: em.mixture_of_gaussians(n, 2),
        lambda: em.mixture_of_categoricals(n, 3, 2),
        lambda: em.mixture_of_categoricals(2, n, 2),
        lambda: em.factor_analysis(3, n),
        lambda: em.gaussian_hmm(n, 2, 4),
        lambda: em.gaussian_hmm(2, 2, n),
        lambda: em.linear_gaussian_state_space(2, n, 4),
        lambda: standard_normal(n),
        lambda: labelled(model_of(l2(affine(3), 1.0)), n),
    ):
        with pytest.raises(ValueError, match=rf"{n}"):
            make()


# Conditions

LABELS = np.eye(2, dtype=np.float32)[np.arange(8) % 2]


def two_inputs(size):
    """A network that always wants two inputs."""
    net = affine(size)
    return (
        lambda key, x, label: net.init(key, jnp.concatenate([x, label])),
        lambda params, x, label: net.apply(params, jnp.concatenate([x, label])),
    )


CONDITIONAL = vae(gaussian(two_inputs(2)), PRIOR, l2(two_inputs(3), 1.0))


def any_inputs(size):
    """A network that takes what it gets, as those of `vae_jax.nets` do."""
    net = affine(size)
    return (
        lambda key, *inputs: net.init(key, jnp.concatenate(inputs)),
        lambda params, *inputs: net.apply(params, jnp.concatenate(inputs)),
    )


def test_labels_missing_for_a_network_that_wants_them(train, test):
    params = CONDITIONAL.init(jax.random.key(0), REAL[0], LABELS[0])
    for check in (train, lambda *args: test(*args, params=params)):
        with pytest.raises(TypeError, match=r"(?s)'label'.*no c; a conditional model wants cs, one for each example"):
            check(CONDITIONAL, REAL)


def test_labels_left_out_or_added_after_training(test):
    model = vae(gaussian(any_inputs(2)), PRIOR, l2(any_inputs(3), 1.0))
    with_labels = model.init(jax.random.key(0), REAL[0], LABELS[0])
    without = model.init(jax.random.key(0), REAL[0], None)
    for params, cs, held, wanted in ((with_labels, None, 5, 3), (without, LABELS, 3, 5)):
        message = rf"enc/weights holds \(2, {held}\), and the data want \(2, {wanted}\).*\(cs\) left out or added"
        with pytest.raises(ValueError, match=message):
            test(model, REAL, cs, params=params)


def test_labels_for_a_model_that_takes_none(train):
    with pytest.raises(TypeError, match=r"(?s)positional argument.*y float32\[3\], c float32\[2\]"):
        train(L2, REAL, LABELS)


def test_labels_that_do_not_match_the_data(train, test):
    for cs, message in (
        (LABELS[:5], "ys has 8 examples and cs 5: give one condition for each example"),
        (LABELS[:0], "cs is empty"),
        (LABELS * np.nan, "cs holds NaN or infinity in 8 of 8 examples, the first at index 0"),
    ):
        with pytest.raises(ValueError, match=message):
            train(CONDITIONAL, REAL, cs)
        with pytest.raises(ValueError, match=message):
            test(CONDITIONAL, REAL, cs, params=())


# Distributions and estimators


def test_a_log_prob_that_is_not_a_scalar(train, test):
    model = model_of(conditional(affine(3), lambda mean: dist.Normal(mean, 1.0)))
    for check in (train, test):
        with pytest.raises(ValueError, match=r"batch shape \(3,\).*not a scalar: did you forget \.to_event\(1\)"):
            check(model, REAL)


def test_terms_that_are_not_scalars(train):
    model = L2._replace(terms=lambda params, key, y, c=None: L2.terms(params, key, y, c)._replace(rate=y))
    with pytest.raises(ValueError, match=r"its rate has to be a scalar and has shape \(3,\)"):
        train(model, REAL)


def test_an_encoder_that_cannot_be_reparameterised(train, test):
    model = vae(bernoulli(affine(2)), standard_normal(2), l2(with_float_inputs(affine(3)), 1.0))
    for check in (train, test):
        with pytest.raises(
            TypeError, match=r"gives Independent, which has no reparameterisation.*enumerated.*fixed_encoder"
        ):
            check(model, REAL)


def test_a_continuous_latent_cannot_be_enumerated(train):
    with pytest.raises(TypeError, match=r"no finite list of values.*discrete"):
        train(model_of(l2(affine(3), 1.0), estimator=enumerated), REAL)


def test_an_encoder_of_another_size_than_the_prior(train):
    with pytest.raises(ValueError, match=r"over arrays of shape \(1,\), and was given one of shape \(2,\)"):
        train(model_of(l2(affine(3), 1.0), encoder=gaussian(affine(4))), REAL)


def test_what_is_no_distribution(train):
    with pytest.raises(TypeError, match="has to become a numpyro Distribution; got"):
        train(model_of(conditional(affine(3), lambda mean: mean)), REAL)


def test_an_unknown_data_set():
    with pytest.raises(ValueError, match=r"unknown data set 'fashion_mnits'.*emoji_mini, fashion_mnist"):
        load("fashion_mnits")
