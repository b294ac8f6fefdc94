"""Two stages: all of a VAE of images with a simple prior, then a prior for its codes, with all else as it is."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vae_jax
from vae_jax import Fitted, core
from vae_jax.command.config import ImageVAE
from vae_jax.command.image_report import Pictured, picture
from vae_jax.command.images import Split, networks, pixels
from vae_jax.command.placement import Placed, fit_on
from vae_jax.command.results import counted, over_batch
from vae_jax.data import Preprocess
from vae_jax.report import page, pictures


@dataclasses.dataclass(frozen=True)
class FirstStage(ImageVAE, Placed):
    """The VAE of the first stage."""

    latent: int = 16
    epochs: int = 20
    """Passes over the training data for the VAE."""


def build(config: FirstStage, shape: tuple[int, ...], prior: Any) -> tuple[vae_jax.Model, Pictured]:
    """The VAE with this prior, and the same for pictures."""
    if config.latent < 2:
        raise ValueError(f"latent={config.latent}: the report draws the codes in a plane, so it takes at least 2")
    encoder_net, generator_net = networks("mlp", shape, hidden=config.hidden, dtype=jnp.float32)
    encoder = vae_jax.gaussian(encoder_net(2 * config.latent))
    generator, prepare = pixels(config.likelihood, generator_net)
    means = core.means(generator)
    pictured = Pictured(encoder, means, vae_jax.vae(encoder, prior, means), prepare)
    return vae_jax.vae(encoder, prior, generator), pictured


def train_first(
    config: FirstStage, model: vae_jax.Model, prepare: Preprocess, train: Split, valid: Split, key: jax.Array
) -> Fitted:
    """All of the VAE; the parameters of the best epoch."""
    return fit_on(
        config,
        model,
        optax.adam(1e-3),
        train.ys,
        key=key,
        epochs=config.epochs,
        preprocess=prepare,
        validation=(valid.ys, None),
    )


def codes_of(pictured: Pictured, params: Any, key: jax.Array, split: Split, draws: int) -> np.ndarray:
    """(n * draws, latent): z ~ P_enc(z|y), so that what they are drawn from is the aggregate posterior."""

    def one(params, key, y):
        k_data, k_z = jax.random.split(key)
        q = pictured.encoder.dist(params["enc"], pictured.preprocess.apply(k_data, y))
        return jax.vmap(q.sample)(jax.random.split(k_z, draws))

    codes = over_batch(one, params, jax.random.split(key, len(split.ys)), split.ys)
    return codes.reshape(-1, codes.shape[-1])


def samples_section(samples: dict[str, np.ndarray], caption: str) -> page.Section:
    """Samples with each prior, by its name."""
    return page.Section(
        "Samples", caption, [picture(images, 10, f"samples {name}", name) for name, images in samples.items()]
    )


def codes_section(drawn: dict[str, np.ndarray], directions: np.ndarray, caption: str) -> page.Section:
    """The codes beside draws of the priors (n, latent), in the principal plane of some directions (m, latent)."""
    plane = np.linalg.svd(directions - directions.mean(axis=0)[None])[2][:2].T
    edges = np.linspace(-4, 4, 65)
    middles = (edges[1:] + edges[:-1]) / 2
    flat = {name: zs @ plane for name, zs in drawn.items()}
    panels = {name: counted(xs, 64, 4.0) for name, xs in flat.items()}
    planes = pictures.planes(panels, x="first axis", y="second axis")
    shown = [page.Picture(planes, "densities in a plane")]
    for i, axis in enumerate(("first axis", "second axis")):
        lines = {name: (middles, np.histogram(xs[:, i], edges, density=True)[0]) for name, xs in flat.items()}
        shown.append(page.Picture(pictures.curves(lines, x=axis, y="density"), f"densities along the {axis}"))
    return page.Section("Codes and priors", caption, shown)
