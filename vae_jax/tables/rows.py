"""The VAE of a table of mixed columns: what `vae_jax.data.load_columns` read, in one call."""

from collections.abc import Mapping, Sequence
from typing import Any

from vae_jax.core.combinator import vae
from vae_jax.core.model import Conditional, Model
from vae_jax.core.network import Network, as_network
from vae_jax.data.columns import Column
from vae_jax.nets.mlp import MLP
from vae_jax.parts.conditionals import categorical, gaussian
from vae_jax.parts.counts import negative_binomial
from vae_jax.parts.l2_distortion import l2
from vae_jax.parts.missing import maybe_missing
from vae_jax.parts.priors import standard_normal
from vae_jax.parts.rows import columns, features_of


def table_vae(
    of: Sequence[Column],
    latent: int,
    *,
    hidden: tuple[int, ...] = (128,),
    likelihoods: Mapping[str, Conditional] | None = None,
    prior: Model | Conditional | None = None,
) -> Model:
    """A VAE whose examples are rows: dicts of columns, NaN where an entry is missing.

    The encoder sees what is there, and what is not. The generator has one network and a head for each column: for
    numbers a Gaussian with a standard deviation that is learned, for counts a negative binomial, for classes classes.

    Args:
        of: `table.columns`.
        latent: dimensions of z.
        hidden: widths of the hidden layers of both networks.
        likelihoods: of columns that want another one, by name, given the last hidden layer: `{"age":
            laplace(two_numbers()), "visits": poisson(nets.MLP((), ()))}`. Missing entries are added.
        prior: of z, by default N(0, I).

    Raises:
        ValueError: a likelihood of no column.
    """
    own = dict(likelihoods or {})
    if unknown := sorted(set(own) - {column.name for column in of}):
        raise ValueError(f"likelihoods has {unknown[0]!r}, and the columns are {[column.name for column in of]}")
    heads = {column.name: maybe_missing(own.get(column.name) or head(column)) for column in of}
    generator = columns(MLP(hidden[:-1], hidden[-1]), heads)
    prior = standard_normal(latent) if prior is None else prior
    return vae(gaussian(seeing_columns(MLP(hidden, 2 * latent), of)), prior, generator)


def head(column: Column) -> Conditional:
    """The likelihood of a column by its kind."""
    if column.kind == "class":
        return categorical(MLP((), len(column.categories)))
    return negative_binomial(MLP((), ()), "shared") if column.kind == "count" else l2(MLP((), ()))


def two_numbers(hidden: tuple[int, ...] = ()) -> Network:
    """A network that gives a pair of numbers: what `laplace`, `student_t` and others want for a single number."""
    network = as_network(MLP(hidden, 2))
    return Network(network.init, lambda params, *inputs: tuple(network.apply(params, *inputs)))


def seeing_columns(net: Any, of: Sequence[Column]) -> Network:
    """An encoder's network that is given a row as one vector (`features_of`)."""
    network = as_network(net)
    classes = {column.name: len(column.categories) for column in of if column.kind == "class"}
    counts = tuple(column.name for column in of if column.kind == "count")

    def init(key, y, *conditions):
        return network.init(key, features_of(y, classes, counts), *conditions)

    def apply(params, y, *conditions, **options):
        return network.apply(params, features_of(y, classes, counts), *conditions, **options)

    return Network(init, apply)
