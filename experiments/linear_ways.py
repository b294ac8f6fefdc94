"""Three ways to the maximum likelihood of one linear-Gaussian model: in closed form, by EM, and as a linear VAE.

The VAE's diagonal encoder can be the exact posterior only where the columns of W are orthogonal, which costs nothing,
as ln P(y) does not change when z is rotated.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vae_jax
from experiments.shared.ascent import epoch_by_epoch
from experiments.shared.linear import Parts, linear_vae
from vae_jax import evaluate
from vae_jax.command.cosine_adam import Training
from vae_jax.core import objectives
from vae_jax.em import fit_em, ppca, ppca_closed_form
from vae_jax.em.algorithm import em_of
from vae_jax.evaluation import Mean, mean
from vae_jax.report import page, pictures

CLOSED, EM, VAE = "closed form", "EM", "linear VAE"


def train(
    model: vae_jax.Model, ys: np.ndarray, key: jax.Array, how: Training, betas: tuple[float, ...] = (1.0,)
) -> Iterator[tuple[Any, float]]:
    """After each epoch the parameters, and the mean ELBO of the batches in it; all epochs at each beta in turn.

    It is compiled once, beta being a function of the step. Each beta starts where the one before ended.
    """
    k_init, k_train = jax.random.split(key)
    stage = how.steps(len(ys))
    peak = optax.cosine_decay_schedule(how.learning_rate, stage)
    weights = jnp.asarray(betas)
    objective = objectives.beta_elbo(lambda step: weights[jnp.minimum(step // stage, len(betas) - 1)])
    optimizer = optax.adam(lambda step: peak(step % stage))
    start = jax.jit(model.init)(k_init, ys[0])
    path = epoch_by_epoch(model, start, ys, k_train, optimizer, how.batch_size, objective)
    for params, metrics in itertools.islice(path, how.epochs * len(betas)):
        yield params, float(metrics["elbo"].mean())


class Ways(NamedTuple):
    """What the three ways reached, in nats per example.

    Fields:
        top: mean ln P(y) in closed form.
        em: (passes + 1,) mean ln P(y) after 0, 1, 2, ... iterations of EM.
        elbo: (passes,) mean ELBO of the VAE over the batches of each epoch.
        gap: ln P(y) in closed form less the ELBO of the trained VAE, over the examples.
        loadings: way -> (size, latent) W.
        sigma: way -> sigma.
        params: of the trained VAE.
    """

    top: float
    em: np.ndarray
    elbo: np.ndarray
    gap: Mean
    loadings: dict[str, np.ndarray]
    sigma: dict[str, float]
    params: Any


def trained(size: int, latent: int) -> Parts:
    """The VAE of the three ways, sigma learned."""
    return linear_vae(size, latent, "learned")


def evaluated(size: int, latent: int) -> vae_jax.Model:
    """The same, all terms at one sample: at the optimum, where enc is the posterior, the ELBO has no noise."""
    _, encoder, generator = trained(size, latent)
    return vae_jax.vae(encoder, vae_jax.standard_normal(latent), generator)


def three_ways(ys: np.ndarray, latent: int, key: jax.Array, how: Training) -> Ways:
    """Fit ys (n, d) three times; EM takes as many iterations as the VAE takes epochs."""
    k_em, k_vae, k_gap = jax.random.split(key, 3)
    model = ppca(ys.shape[1], latent)
    closed = ppca_closed_form(ys, latent)
    em = fit_em(model, ys, key=k_em, iterations=how.epochs, tolerance=None)
    parts = trained(ys.shape[1], latent)
    *_, (params, _) = path = list(train(parts.model, ys, k_vae, how))
    exact = evaluated(ys.shape[1], latent)
    log_p = np.asarray(em_of(model).expect(closed.params, jnp.asarray(ys))[0])
    gap = mean(log_p - evaluate(exact, params, k_gap, ys, batch_size=1000).elbo)
    in_closed_form, by_em = (
        (fitted.params["gen"]["loadings"], fitted.params["gen"]["log_std"]) for fitted in (closed, em)
    )
    loadings, sigma = affine(parts.generator, params["gen"], latent)
    return Ways(
        top=closed.log_p,
        em=em.history,
        elbo=np.array([elbo for _, elbo in path]),
        gap=gap,
        loadings={CLOSED: np.asarray(in_closed_form[0]), EM: np.asarray(by_em[0]), VAE: loadings},
        sigma={CLOSED: float(np.exp(in_closed_form[1])), EM: float(np.exp(by_em[1])), VAE: sigma},
        params=params,
    )


def affine(generator: vae_jax.Conditional, params: Any, latent: int) -> tuple[np.ndarray, float]:
    """(W, sigma) of a linear generator."""
    origin = jnp.zeros(latent)
    loadings = jax.jacfwd(lambda z: generator.dist(params, z).mean)(origin)
    return np.asarray(loadings), float(np.sqrt(generator.dist(params, origin).variance[0]))


def angle(a: np.ndarray, b: np.ndarray) -> float:
    """The largest angle between the spans of two matrices' columns, in degrees."""
    a, b = (np.linalg.qr(x.astype(np.float64))[0] for x in (a, b))
    return float(np.degrees(np.arcsin(min(1.0, float(np.linalg.norm(b - a @ (a.T @ b), 2))))))


def rows(ways: Ways, where: str) -> list[page.Row]:
    """The three optima, and how far they are apart. `where` names the data."""
    em, reached = float(ways.em[-1]), ways.top - ways.gap.value
    meaning = {EM: "degrees, the largest between its span and the principal directions", VAE: "the same"}
    return [
        page.Row("ln p, closed form", ways.top, None, f"nats per image, {where}; higher is better"),
        page.Row("ln p, EM", em, None, f"the same after {len(ways.em) - 1} iterations"),
        page.Row("closed form - EM", ways.top - em, None, "nats"),
        page.Row("ELBO, linear VAE", reached, None, f"after {len(ways.elbo)} epochs; at most ln p of the closed form"),
        page.Row("closed form - ELBO", *ways.gap, "nats, image by image"),
        *(page.Row(f"sigma, {way}", sigma, None, "of the generator") for way, sigma in ways.sigma.items()),
        *(
            page.Row(f"angle, {way}", angle(ways.loadings[CLOSED], ways.loadings[way]), None, words)
            for way, words in meaning.items()
        ),
    ]


def climb(ways: Ways) -> page.Section:
    """ln p and ELBO by passes over the data."""
    lines = {CLOSED: (np.array([0, len(ways.em) - 1]), np.full(2, ways.top))}
    for name, first, values in (("EM: ln p", 0, ways.em), ("linear VAE: ELBO", 1, ways.elbo)):
        near = values > ways.top - 3
        if near.any():
            lines[name] = (np.arange(first, first + len(values))[near], values[near])
    cells = [
        [CLOSED, "eigenvectors of the covariance", f"{ways.top:.4f}", f"{ways.sigma[CLOSED]:.4f}"],
        [EM, "enc: the exact posterior; then gen in closed form", f"{ways.em[-1]:.4f}", f"{ways.sigma[EM]:.4f}"],
        [VAE, "enc and gen climb the ELBO together", f"{ways.top - ways.gap.value:.4f}", f"{ways.sigma[VAE]:.4f}"],
    ]
    return page.Section(
        "Three ways to one optimum",
        "Mean ln p of the images, or the ELBO, a lower bound on it; the last 3 nats of the climb. A pass is an "
        "iteration of EM, or an epoch of Adam, whose ELBO is the mean over its batches.",
        [page.Picture(pictures.curves(lines, x="passes over the data", y="nats per image"), "ln p and ELBO by passes")],
        page.TextTable(["way", "what it does", "nats per image", "sigma"], cells),
    )


def directions(ways: Ways, shape: tuple[int, int, int]) -> page.Section:
    """The columns of W as images of this shape, a row for each way."""
    images = []
    for loadings in ways.loadings.values():
        ordered = loadings[:, np.argsort(-np.square(loadings).sum(axis=0))].T
        signs = np.where(np.sum(ordered * ways.loadings[CLOSED].T, axis=1) < 0, -1, 1)
        ordered = ordered * (signs / np.abs(ordered).max(axis=1))[:, None]
        images.append(0.5 + 0.5 * ordered.reshape(-1, *shape))
    tiles = np.concatenate(images).repeat(20, 1).repeat(20, 2)
    png = pictures.png(pictures.grid(tiles, len(images[0]), 4, background=255))
    return page.Section(
        "Directions",
        "The columns of W as images, the longest first. The likelihood does not know a rotation of z, so EM finds any "
        "basis of the same space. The diagonal encoder does: at the optimum the columns of the VAE are principal "
        "directions too, and come to them slowly where two of these have similar variances.",
        [page.Picture(png, "columns of W", rows=list(ways.loadings))],
    )
