"""Examples that are rows of a table: a dict of columns, each with a likelihood of its own, given one z.

P(y|z) = prod_j P_j(y_j | h(z)),    h one network, and a head for each column
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from vae_jax.core.distributions import point_of
from vae_jax.core.missing import completed, expected
from vae_jax.core.model import Conditional, log_prob
from vae_jax.core.network import as_network
from vae_jax.parts.conditionals import arguments


def columns(net: Any, parts: Mapping[str, Conditional]) -> Conditional:
    """P(y|c) of a dict of columns, which are independent given what the network makes of c.

    Args:
        net: from the conditions to features h, one array.
        parts: of each column its likelihood given h: `{"age": l2(nets.MLP((), ())), ...}`, `maybe_missing(...)` where
            entries may be NaN.

    Raises:
        ValueError: no columns; or, at an example, other columns.

    Example:
        >>> heads = {"age": l2(nets.MLP((), ())), "ward": categorical(nets.MLP((), 3))}
        >>> generator = columns(nets.MLP((8,), 8), heads)
        >>> params = jax.jit(generator.init)(jax.random.key(0), jnp.ones(2))
        >>> sorted(generator.dist(params, jnp.ones(2)).sample(jax.random.key(1)))
        ['age', 'ward']
    """
    if not parts:
        raise ValueError("columns wants the likelihood of each column, by its name; got none")
    network, names = as_network(net), sorted(parts)
    if any(part.maximise is not None for part in parts.values()):
        raise ValueError(
            "columns wants likelihoods that are trained by gradient; sigma='optimal' is not: take 'learned'"
        )

    def init(key, c=None):
        k_net, k_heads = jax.random.split(key)
        params = network.init(k_net, *arguments(c))
        h = network.apply(params, *arguments(c))
        keys = jax.random.split(k_heads, len(names))
        return {"net": params, "columns": {name: parts[name].init(k, h) for name, k in zip(names, keys, strict=True)}}

    def distribution(params, c=None):
        h = network.apply(params["net"], *arguments(c))
        return Columns({name: parts[name].dist(params["columns"][name], h) for name in names})

    return Conditional(init, distribution)


class Columns(dist.Distribution):
    """Independent columns; values are dicts.

    Args:
        of: the distribution of each, by its name.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    pytree_data_fields = ("of",)

    def __init__(self, of: dict[str, dist.Distribution], *, validate_args=None):
        self.of = of
        super().__init__((), (), validate_args=validate_args)

    @property
    def support(self):
        return {name: each.support for name, each in self.of.items()}

    def each_log_prob(self, value: Mapping[str, Any]) -> dict[str, jax.Array]:
        """ln P of each column, in nats."""
        if set(value) != set(self.of):
            raise ValueError(f"these are columns {sorted(self.of)}; got {sorted(value)}")
        return {name: log_prob(each, value[name]) for name, each in self.of.items()}

    def log_prob(self, value):
        return sum(self.each_log_prob(value).values())

    def sample(self, key, sample_shape=()):
        keys = jax.random.split(key, len(self.of))
        return {name: self.of[name].sample(k, sample_shape) for name, k in zip(sorted(self.of), keys, strict=True)}

    @property
    def mean(self):
        """Means, and of classes the most probable one."""
        points = {name: point_of(getattr(each, "whole", each)) for name, each in self.of.items()}
        if any(point is None for point in points.values()):
            raise NotImplementedError
        return points

    def complete(self, key, y):
        keys = jax.random.split(key, len(self.of))
        return {name: completed(self.of[name], k, y[name]) for name, k in zip(sorted(self.of), keys, strict=True)}

    def expected(self, y):
        return {name: expected(each, y[name]) for name, each in self.of.items()}


def features_of(y: Mapping[str, Any], classes: Mapping[str, int], counts: Any = ()) -> jax.Array:
    """A row as one vector: classes as one-hot vectors, counts as ln(1 + y), numbers as they are, 0 where an entry is
    missing, and after them 1 for each that is.

    Args:
        classes: how many, of the columns that hold such.
        counts: names of the columns that hold such.
    """
    found, gone = [], []
    for name in sorted(y):
        missing = jnp.isnan(y[name])
        value = jnp.where(missing, 0.0, y[name])
        if name in classes:
            seen = jnp.where(missing, 0.0, jax.nn.one_hot(value.astype(jnp.int32), classes[name]))
        else:
            seen = jnp.atleast_1d(jnp.log1p(value) if name in counts else value)
        found.append(seen)
        gone.append(missing)
    return jnp.concatenate([*found, jnp.stack(gone).astype(found[0].dtype)])
