"""Entries that are not seen: NaN in y. Where a density factorises they cost nothing, and are drawn given the others."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array
from numpyro.distributions import constraints
from numpyro.distributions.util import sum_rightmost

from vae_jax.core.distributions import factors, mean_of


class OrMissing(constraints.Constraint):
    """What another constraint of single numbers allows, or NaN."""

    event_dim = 0

    def __init__(self, seen: Any):
        self.seen = seen

    @property
    def is_discrete(self) -> bool:
        return self.seen.is_discrete

    def __call__(self, x):
        missing = jnp.isnan(x)
        return missing | self.seen(jnp.where(missing, self.seen.feasible_like(x), x))

    def __repr__(self) -> str:
        return f"{self.seen}, or NaN where an entry is missing"

    def feasible_like(self, prototype):
        return self.seen.feasible_like(prototype)

    def tree_flatten(self):
        return (self.seen,), (("seen",), {})

    def eq(self, other: object, static: bool = False) -> bool:
        return isinstance(other, OrMissing) and self.seen.eq(other.seen, static=static)


class Seen(dist.Distribution):
    """A distribution that factorises, of values some of which are missing: NaN. Samples are complete.

    Args:
        whole: the distribution of complete values.

    Raises:
        TypeError: it does not factorise over the numbers of a value.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    pytree_data_fields = ("whole",)

    def __init__(self, whole: dist.Distribution, *, validate_args=None):
        if _each(whole) is None:
            raise TypeError(
                f"missing entries are left out of a density number by number, and {type(whole).__name__} does not "
                "factorise: for Gaussians of full covariance see mixture_of_gaussians(..., missing=True)"
            )
        self.whole = whole
        super().__init__((), whole.event_shape, validate_args=validate_args)

    @constraints.dependent_property
    def support(self):
        return constraints.independent(OrMissing(_base(self.whole).support), len(self.event_shape))

    def log_prob(self, value):
        base, missing = _base(self.whole), jnp.isnan(value)
        each = base.log_prob(jnp.where(missing, base.support.feasible_like(jnp.asarray(value)), value))
        return sum_rightmost(jnp.where(missing, 0.0, each), len(self.event_shape))

    def sample(self, key, sample_shape=()):
        return self.whole.sample(key, sample_shape)

    @property
    def mean(self):
        return self.whole.mean

    @property
    def variance(self):
        return self.whole.variance

    def complete(self, key: Array, y: Array) -> Array:
        """y with its missing entries drawn."""
        y = jnp.asarray(y)
        return jnp.where(jnp.isnan(y), self.whole.sample(key).astype(y.dtype), y)

    def expected(self, y: Array) -> Array:
        """y with the means of its missing entries; NaN where classes are missing."""
        mean = mean_of(self.whole)
        return y if mean is None else jnp.where(jnp.isnan(y), mean, y)


def _each(whole: dist.Distribution) -> dist.Distribution | None:
    """The distribution of each number; one of a single number is that."""
    return whole if whole.batch_shape == whole.event_shape == () else factors(whole)


def _base(whole: dist.Distribution) -> dist.Distribution:
    found = _each(whole)
    assert found is not None
    return found


def completed(distribution: dist.Distribution, key: Array, y: Any) -> Any:
    """y with what is missing drawn, given the rest; y where nothing can be missing."""
    return distribution.complete(key, y) if hasattr(distribution, "complete") else y


def expected(distribution: dist.Distribution, y: Any) -> Any:
    """y with what is expected of what is missing, given the rest; y where nothing can be missing."""
    return distribution.expected(y) if hasattr(distribution, "expected") else y


def filled_and_missing(y: Any) -> Any:
    """Of each array of numbers its entries, 0 where they are missing, and 1 where they are, on the last axis."""

    def one(x):
        x = jnp.atleast_1d(x)
        missing = jnp.isnan(x)
        return jnp.concatenate([jnp.where(missing, 0, x), missing.astype(x.dtype)], axis=-1)

    return jax.tree.map(one, y)
