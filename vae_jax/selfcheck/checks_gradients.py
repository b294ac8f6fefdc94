"""Oracles 4 and 6 to 9: gradients of the encoder, against derivatives in closed form or by enumeration.

Signs are those of the loss: gradients of -ELBO, with respect to the (mean, ln std) of the toy's encoder.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.core import multi_sample, objectives
from vae_jax.core.distributions import GumbelSoftmax
from vae_jax.core.estimators import analytic, sampled, sticking
from vae_jax.core.model import Model
from vae_jax.core.reinforce import score_function
from vae_jax.selfcheck.check import Check, Row, average
from vae_jax.selfcheck.quadrature import at_nodes, hermite
from vae_jax.selfcheck.solvable import POSTERIOR, discrete, discrete_model, discrete_tables, floats, probabilities, toy


def of_encoder(loss: Callable[[Any], jax.Array], params: Any) -> jax.Array:
    """d loss(params) / d(mean, ln std)."""
    gradient = jax.grad(lambda enc: loss({**params, "enc": enc}))(params["enc"])
    return jnp.concatenate([gradient["bias"], gradient["log_std"]])


@functools.partial(jax.jit, static_argnums=(0, 1))
def objective_gradients(objective: objectives.Objective, model: Model, params: Any, keys: Any, y: Any) -> jax.Array:
    """(n, 2): the gradient of each draw of an objective of one y."""
    return jax.vmap(lambda key: of_encoder(lambda p: objective(model, p, key[None], y[None], None, 0)[0], params))(keys)


@functools.partial(jax.jit, static_argnums=0)
def gradients_at_nodes(model: Model, params: Any, nodes: Any, y: jax.Array) -> jax.Array:
    """(nodes, 2): the gradient of L at each node of the encoder's noise."""
    of = lambda params, key, y: of_encoder(lambda p: model.terms(p, key, y).nats, params)  # noqa: E731
    return at_nodes(of, params, nodes, y)


# one object each, so that two checks share what is compiled
PLAIN, DOUBLY = multi_sample.importance_weighted(5), multi_sample.doubly_reparameterised(5)
NODES, WEIGHTS = hermite(8)


def exact_gradient() -> list[Row]:
    rows = []
    for name, estimator in {"sampled": sampled, "analytic": analytic, "sticking": sticking}.items():
        system = toy(estimator=estimator)
        each = gradients_at_nodes(system.model, system.params, NODES, system.ys[0])
        rows.append(Row(f"(5.3, 1.2) at N(.3, .2), {name}", (5.3, 1.2), WEIGHTS @ np.asarray(each)))
    return rows


def noise_at_the_posterior() -> list[Row]:
    """The plain gradient there is d ln P_enc(z|y): its mean square is 1 / variance for the mean, 2 for ln std."""
    system = toy(*POSTERIOR)
    models = (toy(estimator=estimator).model for estimator in (sampled, sticking))
    plain, stuck = (np.asarray(gradients_at_nodes(model, system.params, NODES, system.ys[0])) for model in models)
    keys = jax.random.split(jax.random.key(7), 20_000)
    doubly = objective_gradients(DOUBLY, system.model, system.params, keys, system.ys[0])
    return [
        Row("largest sticking gradient of any draw", 0.0, np.abs(stuck).max()),
        Row("largest doubly reparameterised one, k = 5", 0.0, np.abs(doubly).max()),
        Row("mean square of the plain one", (11.0, 2.0), WEIGHTS @ plain**2),
    ]


def several_samples() -> list[Row]:
    """k = 5 at N(.3, .2), 20,000 draws. The constants are by quadrature over 5 nodes, exact to 2e-5 and 0.1 %."""
    at = (toy().model, toy().params, jax.random.split(jax.random.key(8), 20_000), toy().ys[0])
    plain, doubly = (np.asarray(objective_gradients(objective, *at)) for objective in (PLAIN, DOUBLY))
    exact = np.array([1.10273, -0.29252])
    return [
        average("plain gradient of L_5", exact, plain),
        average("doubly reparameterised", exact, doubly),
        average("variance of the plain one", (6.848, 2.068), (plain - exact[None]) ** 2),
        average("variance of the doubly reparameterised one", (0.577, 0.1033), (doubly - exact[None]) ** 2),
    ]


def one_family() -> list[Row]:
    """Their gradients are equal draw by draw, under the noise that they share; m = 3 and k = 4."""
    m, k, model = 3, 4, toy().model
    same = {
        "MIWAE(1, k) = IWAE(k)": multi_sample.miwae(1, k),
        "CIWAE(0, k) = IWAE(k)": multi_sample.ciwae(0.0, k),
        "MIWAE(m, 1) = VAE": multi_sample.miwae(m, 1),
        "CIWAE(1, m) = VAE": multi_sample.ciwae(1.0, m),
    }

    @jax.jit
    def gradients(params, key, y):
        of = lambda objective: objective_gradients(objective, model, params, key[None], y)[0]  # noqa: E731
        keys, ys = jax.random.split(key, m), jnp.broadcast_to(y[None], (m, *y.shape))
        of_vae = of_encoder(lambda params: objectives.elbo()(model, params, keys, ys, None, 0)[0], params)
        return of_vae, of(multi_sample.importance_weighted(k)), [of(objective) for objective in same.values()]

    of_vae, of_iwae, mixed = gradients(toy().params, jax.random.key(4), toy().ys[0])
    exact = (of_iwae, of_iwae, of_vae, of_vae)
    return [Row(label, *pair) for label, *pair in zip(same, exact, mixed, strict=True)]


def expected_bound(tables: dict[str, np.ndarray], y: int, k: int, logits: np.ndarray) -> float:
    """numpy: -E ln 1/k sum w_i over all k-tuples of z, for `discrete`; logits are the encoder's at y."""
    q, pri, gen = (probabilities(x) for x in (logits, tables["pri"], tables["gen"]))
    w = pri * gen[:, y] / q
    tuples = np.array(list(itertools.product(range(3), repeat=k)))
    return float(-np.prod(q[tuples], axis=1) @ np.log(w[tuples].mean(axis=1)))


def differences(function: Callable[[np.ndarray], float], x: np.ndarray, h: float = 1e-5) -> np.ndarray:
    """numpy: the gradient, by central differences."""
    return np.array([(function(x + h * e) - function(x - h * e)) / (2 * h) for e in np.eye(len(x))])


def drawn_codes() -> list[Row]:
    """y = 1 of `discrete`, gradient of its row of the encoder: 20,000 draws of each estimator."""
    tables, y, system = discrete_tables(), 1, discrete()
    of_elbo, of_bound = (differences(functools.partial(expected_bound, tables, y, k), tables["enc"][y]) for k in (1, 3))
    of = {
        "score function with a baseline": (objectives.elbo(), score_function(1.5), of_elbo),
        "VIMCO, 3 samples": (multi_sample.vimco(3), score_function(), of_bound),
    }

    @jax.jit
    def gradients(params, keys, y):
        def draws(objective, estimator):
            model = discrete_model(4, 3, estimator)
            loss = lambda p, key: objective(model, p, key[None], y[None], None, 0)[0]  # noqa: E731
            return jax.vmap(jax.grad(loss), in_axes=(None, 0))(params, keys)["enc"][:, y]

        enumerated = jax.grad(lambda p: system.model.terms(p, keys[0], y).nats)(params)["enc"][y]
        return enumerated, [draws(objective, estimator) for objective, estimator, _ in of.values()]

    enumerated, draws = gradients(system.params, jax.random.split(jax.random.key(9), 20_000), system.ys[y])
    rows = [average(label, of[label][2], draw) for label, draw in zip(of, draws, strict=True)]
    return [Row("enumerated", of_elbo, enumerated), *rows, relaxed_codes()]


def relaxed_codes() -> Row:
    """d E f(z) / d logits at temperature 0.02, f a curved function, against the sum over one-hot z: 40,000 draws."""
    logits, values = np.array([0.3, -0.5, 0.4]), np.array([1.0, -2.0, 0.5])
    p = probabilities(logits)
    exact = p * (values**2 - p @ values**2)

    @jax.jit
    def gradients(logits, values, keys):
        def loss(logits, key):
            return jnp.dot(GumbelSoftmax(logits, 0.02).rsample(key).parts, values, precision="highest") ** 2

        return jax.vmap(jax.grad(loss), in_axes=(None, 0))(logits, keys)

    draws = gradients(floats(logits), floats(values), jax.random.split(jax.random.key(10), 40_000))
    return average("Gumbel-softmax, temperature 0.02", exact, draws)


CHECKS = [
    Check(4, "MIWAE, CIWAE, IWAE and VAE are one family", one_family, 1e-5, 1e-12),
    Check(6, "d(-ELBO) / d(mean, ln std) of the toy", exact_gradient, 1e-4, 1e-9),
    Check(7, "no noise at the posterior in the pathwise gradients", noise_at_the_posterior, 2e-4, 1e-12),
    Check(8, "gradients of 5 samples: unbiased, doubly reparameterised an order quieter", several_samples, 2e-3, 2e-3),
    Check(9, "drawn codes: unbiased gradients", drawn_codes, 1e-5, 1e-8),
]
