"""A model seen through other parameters: some tied, some elsewhere, some given, some added.

A path is keys joined by "/", "pri/enc" for the encoder of a prior.
"""

from collections.abc import Callable
from typing import Any

import jax

from vae_jax.core.model import Coder, Latent, Model, Params, Terms, mean_sample


def through(
    model: Model,
    inner: Callable[[Params], Params],
    *,
    init: Callable[..., Params],
    outer: Callable[[Params, Params], Params] = lambda params, own: params,
    change: Callable[..., Terms] = lambda params, terms, y, c: terms,
) -> Model:
    """The model on other parameters, with its terms changed.

    Args:
        inner: from the parameters to the model's own.
        init: `(key, y, c) -> params`.
        outer: `(params, own) -> params`: puts back what the model's M-step made of `inner(params)`.
        change: `(params, terms, y, c) -> terms`: of the bound, and of each importance sample.
    """

    def of(function):
        def terms(params, key, y, c=None, *scale):
            return change(params, function(inner(params), key, y, c, *scale), y, c)

        return function and terms

    def seen(function):
        return lambda params, *arguments: function(inner(params), *arguments)

    def from_stack(function):
        return lambda stack, params, *arguments: function(stack, inner(params), *arguments)

    support = model.support
    return Model(
        init=init,
        terms=of(model.terms),
        sample=lambda params, key, c=None: model.sample(inner(params), key, c),
        importance=of(model.importance),
        maximise=lambda params, stats: outer(params, model.maximise(inner(params), stats)),
        support=support and (lambda params, c=None: support(inner(params), c)),
        pathwise=of(model.pathwise),
        classes=model.classes,
        mean=lambda params, key, c=None: mean_sample(model)(inner(params), key, c),
        latent=model.latent and Latent(*map(seen, model.latent)),
        coder=model.coder and Coder(*map(from_stack, model.coder)),
        complete=model.complete and seen(model.complete),
    )


def beside(model: Model, own: str, other: str, init: Callable[..., Params], change: Callable[..., Terms]) -> Model:
    """The model with its parameters at `own`, and at `other` those of a network that changes its terms.

    Args:
        init: `(key, y, c) ->` the network's parameters.
        change: as in `through`.
    """

    def both(key, y, c=None):
        k_own, k_other = jax.random.split(key)
        return {own: model.init(k_own, y, c), other: init(k_other, y, c)}

    return through(
        model,
        lambda params: params[own],
        init=both,
        outer=lambda params, changed: {**params, own: changed},
        change=change,
    )


def share(model: Model, source: str, target: str) -> Model:
    """Tie parameters: those at `target` are the ones at `source`, and only `source` is kept.

    `share(vae(enc, vampprior(enc, ys), gen), "enc", "pri/enc")` ties the VampPrior's encoder to the VAE's.

    Raises:
        KeyError: a path is not in the model's parameters.

    Example:
        >>> encoder = gaussian(nets.MLP((), 2))
        >>> model = vae(encoder, parts.vampprior(encoder, np.ones((5, 3))), bernoulli(nets.MLP((), 3)))
        >>> shared = share(model, "enc", "pri/enc")
        >>> sorted(shared.init(jax.random.key(0), jnp.ones(3), None)["pri"])
        ['pseudo']
    """
    source_path, target_path = source.split("/"), target.split("/")

    def init(key, y, c=None):
        params = model.init(key, y, c)
        _get(params, source_path)
        return _drop(params, target_path)

    return through(
        model,
        lambda params: _put(params, target_path, _get(params, source_path)),
        init=init,
        outer=lambda params, own: _drop(own, target_path),
    )


def hoist(model: Model, path: str, name: str) -> Model:
    """The parameters at `path` as a top-level part, `name`: it has an optimiser state of its own.

    Raises:
        KeyError: there are no parameters at the path.
        ValueError: there is a part of that name.
    """
    keys = path.split("/")

    def above(params):
        if name in params:
            raise ValueError(f"hoist: there is a part {name!r} beside {path!r}; another name, please")
        return {**_drop(params, keys), name: _get(params, keys)}

    return through(
        model,
        lambda params: _put(_drop(params, [name]), keys, params[name]),
        init=lambda key, y, c=None: above(model.init(key, y, c)),
        outer=lambda params, own: above(own),
    )


def start_from(model: Model, parts: dict[str, Any]) -> Model:
    """The same model, whose parameters start with these parts: what a second stage of training goes on from.

    Raises:
        KeyError: the model has no such part (when first called).
    """

    def init(key, y, c=None):
        params = model.init(key, y, c)
        unknown = sorted(set(parts) - set(params))
        if unknown:
            raise KeyError(f"this model has the parts {sorted(params)}, and was given {unknown} to start from")
        return {**params, **parts}

    return model._replace(init=init)


def _get(params, path):
    for key in path:
        if not isinstance(params, dict) or key not in params:
            raise KeyError(f"no parameters at {'/'.join(path)!r}: there are {sorted(params)} beside {key!r}")
        params = params[key]
    return params


def _put(params, path, value):
    head, *rest = path
    return {**params, head: _put(params[head], rest, value) if rest else value}


def _drop(params, path):
    head, *rest = path
    if head not in params:
        raise KeyError(f"no parameters at {head!r}: there are {sorted(params)}")
    if rest:
        return {**params, head: _drop(params[head], rest)}
    return {key: value for key, value in params.items() if key != head}
