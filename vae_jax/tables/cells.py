"""A VAE of single cells: how many molecules of each gene were seen in a cell (Lopez et al. 2018, scVI).

    P_pri(z) = N(0, I)
    P_gen(y|z, total, batch): y_g ~ negative binomial of mean total * softmax(b + f(z, batch))_g
    P_enc(z|y, batch) = N(g(ln(1 + y), batch))

The total of a cell says how deep it was read, not what it is. It is given (the sum of its counts), or inferred: then
its logarithm is one more dimension of z, scaled to the mean and standard deviation of the data's.

b are the log shares of genes over all cells, where they are given. f then learns how cells differ; the shares of genes
themselves are orders of magnitude apart, and would take Adam thousands of steps.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from vae_jax.core.combinator import vae
from vae_jax.core.distributions import mean_of
from vae_jax.core.model import Conditional, Model, join, parted
from vae_jax.core.network import Network, as_network
from vae_jax.core.numbers import is_number, is_whole
from vae_jax.nets.mlp import MLP
from vae_jax.parts.conditionals import gaussian
from vae_jax.parts.counts import Dispersion, negative_binomial, poisson
from vae_jax.parts.priors import standard_normal


class CellVAE(NamedTuple):
    """A model of cells, and what is asked of it beside ln P(y).

    Fields:
        model: for `fit` and `evaluate`; conditions are dicts, `{"total": (n,), "batch": (n, batches)}`, of those that
            it has; None where it has none.
        prior, generator, encoder: its three distributions, as `vae_jax.evaluation.certified` takes them.
        encode: `(params, key, y, c) -> z`, a draw; without a key the mean. The total's dimension is left out.
        shares: `(params, z, c) -> (genes,)`, what part of a cell's molecules each gene has; they sum to 1.
    """

    model: Model
    prior: Conditional
    generator: Conditional
    encoder: Conditional
    encode: Callable[..., Array]
    shares: Callable[..., Array]


def cell_vae(
    genes: int,
    latent: int = 10,
    *,
    hidden: tuple[int, ...] = (128,),
    batches: int = 0,
    log_total: tuple[float, float] | None = None,
    log_shares: Sequence[float] | Array | np.ndarray | None = None,
    dispersion: Dispersion | None = "per_column",
    zero_inflated: bool = False,
) -> CellVAE:
    """A VAE of counts (genes,) of cells.

    Args:
        genes: numbers of a cell.
        latent: dimensions of z.
        hidden: hidden layers of encoder and generator.
        batches: of the experiment, as one-hot vectors `c["batch"]` that both networks see; 0 for none.
        log_total: (mean, standard deviation) of ln total, which is then inferred; None: totals are given, `c["total"]`.
        log_shares: (genes,) b above, up to a constant, from `log_shares_of`; without, 0.
        dispersion: of `negative_binomial`; None for Poisson counts.
        zero_inflated: as there.

    Raises:
        ValueError: numbers that are not whole or positive, log shares that are not one for each gene; or, when first
            called, conditions that are not there.

    Example:
        >>> cells = cell_vae(20, latent=2, hidden=(16,))
        >>> y, c = jnp.ones(20), {"total": jnp.float32(20)}
        >>> params = cells.model.init(jax.random.key(0), y, c)
        >>> cells.shares(params, jnp.zeros(2), c).shape
        (20,)
    """
    if not is_whole(genes, 2) or not is_whole(latent) or not is_whole(batches, 0) or batches == 1:
        raise ValueError(f"want genes >= 2, latent >= 1, batches 0 or >= 2; got {genes}, {latent} and {batches}")
    if log_total is not None and not (len(log_total) == 2 and is_number(log_total[0]) and log_total[1] > 0):
        raise ValueError(f"log_total is the mean and the standard deviation of ln total; got {log_total}")
    if log_shares is not None and not (np.shape(log_shares) == (genes,) and np.all(np.isfinite(log_shares))):
        raise ValueError(f"log_shares are {genes} finite numbers, one a gene; got a shape {np.shape(log_shares)}")
    d = latent + (log_total is not None)
    numbers = 1 + (dispersion == "predicted") + zero_inflated
    of_counts = as_network(MLP(hidden[::-1], genes if numbers == 1 else (genes, numbers)))
    if log_shares is not None:
        start = np.zeros((genes, numbers), np.float32)
        start[:, 0] = log_shares
        of_counts = _from(of_counts, start[:, 0] if numbers == 1 else start)
    if dispersion is None:
        counts = poisson(of_counts, zero_inflated=zero_inflated, of_total=True)
    else:
        counts = negative_binomial(of_counts, dispersion, zero_inflated=zero_inflated, of_total=True)

    def batch_of(c: Any) -> tuple[Array, ...]:
        return (_of(c, "batch", (batches,)),) if batches else ()

    def seen(y_and_c: Any) -> tuple[Array, ...]:
        y, c = parted(y_and_c)
        return jnp.log1p(jnp.asarray(y, jnp.float32)), *batch_of(c)

    def given(z_and_c: Any) -> tuple[Array, ...]:
        z, c = parted(z_and_c)
        total = jnp.exp(log_total[0] + log_total[1] * z[-1]) if log_total else _of(c, "total", ())
        return z[:latent], *batch_of(c), total

    encoder, prior = _through(gaussian(MLP(hidden, 2 * d)), seen), standard_normal(d)
    generator = _through(counts, given)
    model = vae(encoder, prior, generator)

    def encode(params, key, y, c=None):
        q = encoder.dist(params["enc"], join(y, c))
        return jnp.asarray(mean_of(q) if key is None else q.sample(key))[:latent]

    def shares(params, z, c=None):
        own = params["gen"] if dispersion in (None, "predicted") else params["gen"]["net"]
        output = of_counts.apply(own, z, *batch_of(c))
        return jax.nn.softmax(output if numbers == 1 else output[..., 0])

    return CellVAE(model, prior, generator, encoder, encode, shares)


def totals_of(ys: Any) -> tuple[float, float]:
    """(mean, standard deviation) of ln total over cells (n, genes), for `log_total`.

    Raises:
        ValueError: a cell without any molecule.
    """
    totals = ys.sum(axis=1)
    if (totals <= 0).any():
        raise ValueError(f"cell {int((totals <= 0).argmax())} has no molecule: leave out such cells")
    logs = [math.log(total) for total in totals.tolist()]
    mean = sum(logs) / len(logs)
    return mean, max(1e-3, (sum((x - mean) ** 2 for x in logs) / len(logs)) ** 0.5)


def log_shares_of(ys: Any) -> np.ndarray:
    """(genes,) ln of the share of each gene in all molecules of cells ys (n, genes), half a molecule added to each."""
    molecules = np.asarray(ys.sum(axis=0), np.float64) + 0.5
    return np.asarray(np.log(molecules / molecules.sum()), np.float32)


def _from(network: Network, start: np.ndarray) -> Network:
    """The network, whose outputs start from there."""
    return Network(network.init, lambda params, *inputs: network.apply(params, *inputs) + start)


def _through(conditional: Conditional, inputs: Callable[[Any], tuple[Array, ...]]) -> Conditional:
    """The conditional, which is given `inputs(c)`."""
    return Conditional(
        lambda key, c=None: conditional.init(key, inputs(c)),
        lambda params, c=None: conditional.dist(params, inputs(c)),
    )


def _of(c: Any, name: str, shape: tuple[int, ...]) -> Array:
    """The condition of this name, float32."""
    if not isinstance(c, dict) or name not in c or jnp.shape(c[name]) != shape:
        got = {key: jnp.shape(x) for key, x in c.items()} if isinstance(c, dict) else type(c).__name__
        raise ValueError(f"cells want the condition {name!r} of shape {shape}, in a dict c; got {got}")
    return jnp.asarray(c[name], jnp.float32)
