"""Four ways to the maximum likelihood of one mixture: EM, hard EM, the enumerated VAE, and gradient ascent on ln p.

All start at the same parameters. EM, the VAE and gradient ascent climb the same function, E ln P(y): the VAE by way of
its ELBO, which equals ln P(y) where its encoder is the posterior. Hard EM climbs another one, E max_k ln P(y, k).
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.shared.ascent import along, by_em, epoch_by_epoch, stacked
from vae_jax import core
from vae_jax.command.cosine_adam import Training
from vae_jax.em import as_vae, mixture_of_gaussians
from vae_jax.em.algorithm import em_of
from vae_jax.report import page, pictures

EM, HARD, VAE, GRADIENT = "EM", "hard EM", "enumerated VAE", "gradient ascent"


class Routes(NamedTuple):
    """What the four routes reached, in nats per example.

    Fields:
        log_p: route -> (passes + 1,) mean ln P(y) of all examples after 0, 1, 2, ... passes over them.
        best: route -> mean max_k ln P(y, k) after the last pass.
        elbo: ELBO of the VAE, averaged over the last pass.
    """

    log_p: dict[str, np.ndarray]
    best: dict[str, float]
    elbo: float


def four_routes(ys: np.ndarray, components: int, key: jax.Array, how: Training) -> Routes:
    """Fit ys (n, d) by `components` Gaussians of full covariance along each route; EM takes as many passes as Adam."""
    k_start, k_ascent, k_vae = jax.random.split(key, 3)
    soft, hard = (
        mixture_of_gaussians(ys.shape[1], components, "full", start="k-means++", hard=hard) for hard in (False, True)
    )
    start = jax.jit(em_of(soft).start)(k_start, jnp.asarray(ys))

    def ascend(model, start, key):
        _, k_train = jax.random.split(key)
        epochs = epoch_by_epoch(model, start, ys, k_train, how.optimizer(len(ys)), how.batch_size)
        path, metrics = zip(*itertools.islice(epochs, how.epochs), strict=True)
        return stacked([start, *path]), float(metrics[-1]["elbo"].mean())

    ascent, _ = ascend(core.lift(soft), start, k_ascent)
    by_vae, elbo = ascend(as_vae(soft), {"enc": start, **start}, k_vae)
    paths = {
        EM: by_em(soft, start, ys, how.epochs),
        HARD: by_em(hard, start, ys, how.epochs),
        VAE: {part: by_vae[part] for part in ("pri", "gen")},
        GRADIENT: ascent,
    }
    log_p, best = (along(model, paths, ys) for model in (soft, hard))
    return Routes(log_p, {name: float(values[-1]) for name, values in best.items()}, elbo)


_WORDS = {
    EM: "enc becomes the exact posterior, then (pri, gen) the optimum given it, both in closed form",
    HARD: "enc is a point, the most probable k: it maximises E max_k ln P(y, k), which is at most E ln P(y)",
    VAE: "enc, pri and gen climb the ELBO together, enc with parameters of its own; at the end ELBO = {elbo}",
    GRADIENT: "pri and gen climb ln p itself; the posterior is not needed",
}


def rows(routes: Routes) -> list[page.Row]:
    """The four numbers for the table of results."""
    return [
        page.Row(f"ln p, {name}", float(values[-1]), None, f"nats; a small mixture, {len(values) - 1} passes")
        for name, values in routes.log_p.items()
    ]


def section(routes: Routes, what: str) -> page.Section:
    """The four curves in one picture, and where they end. `what` names data and mixture."""
    passes = np.arange(len(routes.log_p[EM]))
    first = 1 if len(passes) > 2 else 0  # the start is far below
    lines = {name: (passes[first:], values[first:]) for name, values in routes.log_p.items()}
    end = float(routes.log_p[EM][-1])
    ahead = "above" if routes.best[HARD] > routes.best[EM] else "not above"
    cells = [
        [
            name,
            _WORDS[name].format(elbo=f"{routes.elbo:.4f}"),
            f"{values[-1]:.4f}",
            f"{values[-1] - end:+.4f}",
            f"{routes.best[name]:.4f}",
        ]
        for name, values in routes.log_p.items()
    ]
    return page.Section(
        "Four routes to one mixture",
        f"{what}, from the same start. A pass is an iteration of EM, or an epoch of Adam. EM, the VAE and gradient "
        "ascent maximise the same likelihood; hard EM maximises the joint probability of y and its best component, the "
        f"last column, in which it ends {ahead} EM. Each can end at a local maximum of its own.",
        [
            page.Picture(
                pictures.curves(lines, x="passes over the data", y="mean ln p, nats per image"),
                "ln p along four routes",
            )
        ],
        page.TextTable(["route", "what it does", "mean ln p", "minus EM's", "mean max ln P(y, k)"], cells),
    )
