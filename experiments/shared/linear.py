"""The linear VAE: its encoder, its data, the variances that decide which units collapse, and how it is trained."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import vae_jax
from vae_jax import core, data, nets


class Parts(NamedTuple):
    """A VAE with an L2 generator and N(0, I) as its prior, and its parts."""

    model: vae_jax.Model
    encoder: vae_jax.Conditional
    generator: vae_jax.Conditional


def with_l2(encoder: vae_jax.Conditional, net: Any, latent: int, sigma: Any) -> Parts:
    """The rate in closed form; `net` gives the mean of y."""
    generator = vae_jax.l2(net, sigma)
    model = vae_jax.vae(encoder, vae_jax.standard_normal(latent), generator, estimator=vae_jax.analytic)
    return Parts(model, encoder, generator)


def linear_vae(shape: int | tuple[int, ...], latent: int, sigma: Any) -> Parts:
    """Affine networks, one log standard deviation for each unit of z, KL in closed form."""
    return with_l2(vae_jax.gaussian(constant_std(latent)), nets.MLP((), shape), latent, sigma)


def constant_std(latent: int) -> core.Network:
    """The encoder of the linear VAE: an affine mean, and one log standard deviation for each unit, whatever y."""
    mean_of = core.as_network(nets.MLP((), latent))

    def init(key, y):
        return {"mean": mean_of.init(key, y), "log_std": jnp.zeros(latent)}

    return core.Network(init, lambda params, y: (mean_of.apply(params["mean"], y), params["log_std"]))


def downwards(
    name: str, values: tuple[float, ...], key: jax.Array, at: Callable[[float, jax.Array, Any], tuple[Any, Any]]
) -> list[Any]:
    """Train at each value, the largest first, each from where the last one ended; the points, the smallest first.

    So units become active a few at a time, along the data's axes. From a random start they are mixtures of many axes,
    and a diagonal encoder unmixes them slowly.

    Args:
        name: of the value, for what is printed.
        at: from a value, a key and the parameters to start from, or None, to a point, which has a `theory`, and
            parameters.
    """
    points: list[Any] = []
    params = None
    for i, value in enumerate(sorted(values, reverse=True)):
        point, params = at(value, jax.random.fold_in(key, i), params)
        points.insert(0, point)
        print(f"{name} = {value:g}: {point.theory.sentence}")
    return points


def eigenvalues_of(ys: np.ndarray, levels: int = 256) -> np.ndarray:
    """Variances of data of levels along their principal directions, as dequantisation leaves them, largest first."""
    flat = ys.reshape(len(ys), -1) / levels
    return np.linalg.eigvalsh(np.cov(flat.T))[::-1] + 1 / (12 * levels**2)


def load_blocks(name: str, side: int, *, smoke: bool = False) -> tuple[np.ndarray, str]:
    """(n, side * side * channels) means of blocks, centred, of variance 1 on average; and where they come from.

    Raises:
        ValueError: images that cannot be cut into so many blocks, or that are all the same.
    """
    source = data.load(name, "train")
    ys = source.ys[np.random.default_rng(0).permutation(len(source.ys))[:1000]] if smoke else source.ys
    n, h, w, channels = ys.shape
    if side < 1 or h % side or w % side:
        raise ValueError(f"side={side}: images of {h} x {w} pixels cannot be cut into {side} x {side} equal blocks")
    blocks = ys.reshape(n, side, h // side, side, w // side, channels).mean(axis=(2, 4)).reshape(n, -1)
    blocks -= blocks.mean(axis=0)[None]
    scale = np.sqrt(np.square(blocks).mean())
    if not scale > 0:
        raise ValueError(f"{name}: all images have the same blocks")
    return (blocks / scale).astype(np.float32), source.source
