"""Evaluation: ln P(y) by 5,000 importance samples of 1,000 images, and certificates by annealing of 100."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import image_vaes
from experiments.bench.ceiling import Work, work_of
from experiments.bench.compare import Contestants
from vae_jax import bernoulli, evaluate, nets, standard_normal
from vae_jax.data import dynamic_binarisation
from vae_jax.evaluation import mean
from vae_jax.evaluation.certify import certified

IMAGES, SAMPLES, CERTIFIED = 1000, 5000, 100


def contestants(pixels: np.ndarray) -> tuple[Contestants, Work]:
    """The importance-weighted bound of the FC-VAE, and the work of one image: each sample through the generator."""
    model, how = image_vaes.fully_connected_model(), dynamic_binarisation()
    y = jnp.zeros((28, 28, 1))
    params = jax.jit(model.init)(jax.random.key(0), y, None)

    def run() -> float:
        found = evaluate(model, params, jax.random.key(1), pixels[:IMAGES], preprocess=how, k=SAMPLES)
        return mean(found.log_likelihood).value

    encoded = work_of(lambda params, y: model.terms(params, jax.random.key(0), y, None).nats, params, y)
    z, generator = jnp.zeros(image_vaes.SIZES[-1]), bernoulli(nets.MLP((500,), (28, 28, 1)))
    generated = work_of(lambda params, z: generator.dist(params, z).log_prob(y), params["gen"], z)
    return {"vae_jax": run}, Work(encoded.flops + SAMPLES * generated.flops, encoded.bytes)


def certificates(pixels: np.ndarray) -> None:
    """Print the seconds that `certified` takes at its defaults."""
    prior, generator = standard_normal(20), bernoulli(nets.MLP((500,), (28, 28, 1)))
    z = jnp.zeros(20)
    params = {"pri": prior.init(jax.random.key(0), None), "gen": generator.init(jax.random.key(1), z)}
    start = time.perf_counter()
    found = certified(
        prior, generator, params, jax.random.key(2), pixels[:CERTIFIED], preprocess=dynamic_binarisation()
    )
    seconds = time.perf_counter() - start
    what = f"certificates at their defaults, {CERTIFIED} images and {CERTIFIED} simulated"
    print(f"\n{what}: {seconds:.0f} s with compiling")
    print(f"  ln P(y) at least {found.lower}; simulated {found.simulated_lower} .. {found.simulated_upper} nats")
