"""Oracle 39: a file is as long as the bound, or as -ln P(y) where the posterior is exact, and gives back every example.

Needs the extra `codec`; without it there is nothing to check.
"""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.codec import compressed, decompress
from vae_jax.core.combinator import vae
from vae_jax.core.model import Model, Params, lift
from vae_jax.em import mixture_of_bernoullis
from vae_jax.nets import MLP
from vae_jax.parts.conditionals import bernoulli, gaussian
from vae_jax.parts.priors import standard_normal
from vae_jax.selfcheck.check import Check, Row

EXAMPLES, PIXELS, DRAWS = 400, 16, 200


def bits_back() -> list[Row]:
    """Of 400 examples that the models draw themselves; the bound of the VAE by 200 draws of z."""
    mixture, chain = lift(mixture_of_bernoullis(PIXELS, 4)), small_vae()
    params = [jax.jit(model.init)(jax.random.key(0), jnp.zeros(PIXELS), None) for model in (mixture, chain)]
    calm = jax.tree.map(lambda x: 0.1 * x, params[1])  # encoders near their priors: the bound is not a few outliers'
    return [
        *of(mixture, params[0], "mixture, by its exact posterior", draws=1),
        *of(chain, calm, "VAE of a VAE", draws=DRAWS),
    ]


def small_vae() -> Model:
    inner = vae(gaussian(MLP((8,), 2 * 2)), standard_normal(2), gaussian(MLP((8,), 2 * 3)))
    return vae(gaussian(MLP((8,), 2 * 3)), inner, bernoulli(MLP((8,), PIXELS)))


def of(model: Model, params: Params, name: str, draws: int) -> list[Row]:
    keys = jax.random.split(jax.random.key(1), EXAMPLES)
    ys = np.asarray(jax.jit(jax.vmap(model.sample, in_axes=(None, 0)))(params, keys))

    @jax.jit
    def nats(key):
        each = jax.vmap(lambda key, y: model.terms(params, key, y, None).nats)
        return each(jax.random.split(key, EXAMPLES), ys)

    drawn = np.asarray(jax.lax.map(nats, jax.random.split(jax.random.key(2), draws)), np.float64)
    error = np.sqrt(drawn.var(axis=0).sum()) if draws > 1 else 0.0  # of one draw for each example, as the file makes
    total = drawn.mean(axis=0).sum()
    found = compressed(model, params, ys)
    wrong = np.sum(decompress(model, params, found.data) != ys)
    return [
        Row(f"{name}: bits over the bound", 0.0, found.bits * np.log(2) / total - 1, error / total),
        Row(f"{name}: pixels that came back otherwise", 0.0, float(wrong)),
    ]


CHECKS = [Check(39, "a file is as long as the bound, and exact", bits_back, 0.01, 0.01)] * bool(
    importlib.util.find_spec("constriction")
)
