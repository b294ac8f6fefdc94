"""Hierarchical VAEs with top-down inference: the ladder VAE (Sonderby et al. 2016), deepened by NVAE (Vahdat & Kautz
2020) and VDVAE (Child 2021).

    features of y, bottom up                      x_l = bottom_l(x_{l+1}),  x_{L+1} = y
    P_pri(z)   = prod_l N(z_l; mean_l, std_l^2)              (mean_l, std_l) = prior_l(h_l)
    P_enc(z|y) = prod_l N(z_l; mean_l + delta_l, (std_l ratio_l)^2)    (delta_l, ratio_l) = posterior_l(h_l, x_l)
    the state, top down                           h_{l+1} = update_l(h_l, z_l)
    P_gen(y|z) = generator(h_{L+1})

Level 1 is the top. The posterior is relative to the prior (NVAE, section 3.2), and both go down the same path: for both
the state h sums up what is above a level. The estimator: one path z ~ P_enc, along it Gaussian KLs in closed form.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array

from vae_jax.core.model import Coder, Conditional, Latent, Model, Params, Units, example_of, join, lift, mean_sample
from vae_jax.core.network import Network, as_network
from vae_jax.core.numbers import is_whole
from vae_jax.parts.conditionals import gaussian


class Rung(NamedTuple):
    """Equal levels at one resolution; each field is a network for one example, as `as_network` takes it.

    A condition c is the last argument of each. The levels have parameters of their own, stacked along axis 0, and run
    in one scan: compile time does not grow with `levels`.

    Fields:
        bottom: `x ->` this rung's features of y, which all of its levels see; x is what the rung below sees, or y.
        enter: `h -> h`, the state from the rung above in the shape of this one; at the top of zeros(1), to learn one.
        prior: `h -> (mean, raw log_std)` of z, as a pair or stacked on the last axis, as `gaussian` has it.
        posterior: `(h, features) -> (delta, raw log_ratio)`, likewise: all 0 is the prior itself.
        update: `(h, z) -> h` of the same shape.
        levels: how many.
    """

    bottom: Any
    enter: Any
    prior: Any
    posterior: Any
    update: Any
    levels: int = 1


_Rate = Callable[[Array, Array, Array], Array]  # of each unit of z, from (shift, log_ratio, eps)
_Choose = Callable[..., tuple[Array, Any]]  # (h, mean and std of the prior, x) -> (z, what to keep)


def ladder(rungs: Sequence[Rung], generator: Conditional | Model, *, remat: bool = False) -> Model:
    """The hierarchical VAE of these rungs, the top one first (Sonderby et al. 2016; Child 2021).

    The parameters are `{"enc": ..., "pri": ..., "gen": ...}`: the bottom-up networks and posteriors; the top-down path
    with its priors, which the encoder shares; the generator. `Terms.rates` are those of the levels, and as with all
    models the one next to y comes first.

    Args:
        rungs: one for each resolution; networks from `vae_jax.nets` (`mlp_rungs`, `conv_rungs`) or your own.
        generator: P_gen(y|h) of the last state h.
        remat: compute levels anew in the backward pass instead of keeping their activations.

    Raises:
        ValueError: no rungs, or a rung without levels; at `init`, networks whose shapes do not fit together.
        TypeError: something that is no `Rung`, or a field that is no network.

    Example:
        >>> model = ladder(nets.mlp_rungs((1, 2), width=4, hidden=()), bernoulli(nets.MLP((), 3)))
        >>> params = jax.jit(model.init)(jax.random.key(0), jnp.ones(3), None)
        >>> jax.jit(model.terms)(params, jax.random.key(1), jnp.ones(3), None).rates.shape
        (2,)
    """
    gen, _ = lift(generator), _bound(rungs, None)
    shown = gen._replace(sample=mean_sample(gen))

    def init(key, y, c=None):
        k_rungs, k_gen = jax.random.split(key)
        enc, pri, h = _init(_bound(rungs, c), k_rungs, y)
        return {"enc": enc, "pri": pri, "gen": gen.init(k_gen, y, join(h, c))}

    def at_path(generator_terms, rate, params, key, y, c=None):
        k_z, k_gen = jax.random.split(key)
        h, kept = _infer(_bound(rungs, c), params, k_z, y, rate, remat)
        units = [of_rung.reshape(len(of_rung), -1) for _, of_rung in kept]  # (levels, units)
        rates = jnp.concatenate([x.sum(axis=1) for x in units])[::-1]
        end = generator_terms(params["gen"], k_gen, y, join(h, c))
        return end._replace(
            distortion=end.nats,
            rate=jnp.sum(rates),
            stats={"gen": end.stats},
            units=Units(rate=jnp.concatenate([x.ravel() for x in units])),
            rates=rates,
            detail={"gen": end.detail},
        )

    def maximise(params, stats):
        return {**params, "gen": gen.maximise(params["gen"], stats["gen"])}

    def support(params, c=None):
        h, _ = example_of(lambda: _generate(_bound(rungs, c), params["pri"], jax.random.key(0)))
        return gen.support and gen.support(params["gen"], join(h, c))

    def decode(params, key, zs, c=None):
        return ladder_sample(rungs, shown, params, key, c, given=zs)

    def draw(params, key, c=None, temperature=None):
        factor = 1.0 if temperature is None else temperature
        _check_temperature(rungs, factor)
        _, zs = _generate(_bound(rungs, c), params["pri"], key, factor)
        return zs

    return Model(
        init,
        terms=functools.partial(at_path, gen.terms, _kl),
        sample=functools.partial(ladder_sample, rungs, gen),
        importance=gen.importance and functools.partial(at_path, gen.importance, _log_ratio),
        maximise=maximise,
        support=gen.support and support,
        mean=functools.partial(ladder_sample, rungs, shown),
        latent=Latent(encode=functools.partial(ladder_latents, rungs), decode=decode, draw=draw),
        coder=gen.coder and ladder_coder(rungs, gen.coder),
    )


class _Level(NamedTuple):
    """One level, as its coder sees it: P_enc(z|h, x), P_pri(z|h) and `(params, h, z, c) -> h`; the rung it is of."""

    rung: int
    posterior: Conditional
    prior: Conditional
    update: Callable[..., Any]


def ladder_coder(rungs: Sequence[Rung], generator: Coder) -> Coder:
    """z of all levels popped from the top down, then y and the levels pushed from the bottom up."""
    levels = [_level_of(rungs, r, i) for r, rung in enumerate(rungs) for i in range(rung.levels)]
    enters = [functools.partial(_entered, rungs, r) for r in range(len(rungs))]

    def features(params, y, c):
        found, x = [], y
        for rung, enc in zip(_bound(rungs, c)[::-1], params["enc"][::-1], strict=True):
            x = rung.bottom.apply(enc["bottom"], x)
            found.append(x)
        return found[::-1]

    def down(stack, params, cs, z_of):
        """(h before each level, z of each, the last h)."""
        hs: list[Any] = []
        zs: list[Any] = []
        h, rung = np.zeros((stack.here, 1), np.float32), -1
        for level in levels:
            if level.rung != rung:
                rung, h = level.rung, stack.each(enters[level.rung], params, h, cs)
            z = z_of(level, h)
            hs.append(h)
            zs.append(z)
            h = stack.each(level.update, params, h, z, cs)
        return hs, zs, h

    def write(stack, params, ys, cs=None):
        xs = stack.each(features, params, ys, cs)
        hs, zs, h = down(stack, params, cs, lambda at, h: stack.pop(at.posterior, params, (h, xs[at.rung], cs)))
        generator.write(stack, params["gen"], ys, join(h, cs))
        for level, h, z in reversed([*zip(levels, hs, zs, strict=True)]):
            stack.push(level.prior, params, (h, cs), z)

    def read(stack, params, cs=None):
        hs, zs, h = down(stack, params, cs, lambda at, h: stack.pop(at.prior, params, (h, cs)))
        ys = generator.read(stack, params["gen"], join(h, cs))
        xs = stack.each(features, params, ys, cs)
        for level, h, z in reversed([*zip(levels, hs, zs, strict=True)]):
            stack.push(level.posterior, params, (h, xs[level.rung], cs), z)
        return ys

    return Coder(write, read)


def _entered(rungs: Sequence[Rung], r: int, params: Params, h: Any, c: Any) -> Any:
    return _bound(rungs, c)[r].enter.apply(params["pri"][r]["enter"], h)


def _level_of(rungs: Sequence[Rung], r: int, i: int) -> _Level:
    def prior_of(params, h, c):
        return _normal(_bound(rungs, c)[r].prior, _at(i, params["pri"][r]["levels"]["prior"]), h)

    def prior(params, given):
        return dist.Normal(*prior_of(params, *given)).to_event()

    def posterior(params, given):
        h, x, c = given
        mean, std = prior_of(params, h, c)
        delta, ratio = _normal(_bound(rungs, c)[r].posterior, _at(i, params["enc"][r]["posterior"]), h, x)
        return dist.Normal(mean + delta, std * ratio).to_event()

    def update(params, h, z, c):
        return _bound(rungs, c)[r].update.apply(_at(i, params["pri"][r]["levels"]["update"]), h, z)

    return _Level(r, Conditional(_no_params, posterior), Conditional(_no_params, prior), update)


def _no_params(key: Array, c: Any) -> None:
    """Those of the ladder are given."""


def ladder_latents(rungs: Sequence[Rung], params: Params, key: Array | None, y: Any, c: Any = None) -> list[Array]:
    """z of every level, the top one first, drawn from P_enc(z|y) for ONE example; with key None each level's mean."""
    _, kept = _infer(_bound(rungs, c), params, key, y, _kl, False)
    return [z for zs, _ in kept for z in zs]


def ladder_sample(
    rungs: Sequence[Rung],
    generator: Conditional | Model,
    params: Params,
    key: Array,
    c: Any = None,
    *,
    temperature: Any = 1.0,
    given: Sequence[Array] = (),
) -> Any:
    """One y: z from the prior, but for the upper levels that are given, then a draw from the generator.

    Given the first k of an image's `ladder_latents`, and `means(generator)`, it shows what these levels hold of it.

    Args:
        temperature: factor of the prior's standard deviations, one or (levels,) of them; 0 takes the prior's means.
        given: z of the upper levels, the top one first; at most all.

    Raises:
        ValueError: a negative temperature or a wrong number of them, or more z than levels.
    """
    count = _check_temperature(rungs, temperature)
    if len(given) > count:
        raise ValueError(f"given holds z of {len(given)} levels, and the ladder has {count}: give those of the upper k")
    k_z, k_y = jax.random.split(key)
    h, _ = _generate(_bound(rungs, c), params["pri"], k_z, temperature, given)
    return lift(generator).sample(params["gen"], k_y, join(h, c))


def _check_temperature(rungs: Sequence[Rung], temperature: Any) -> int:
    """How many levels there are, after making sure that the temperature is one for all or one for each of them."""
    count, shape = sum(rung.levels for rung in rungs), np.shape(temperature)
    if not isinstance(temperature, jax.core.Tracer) and not np.all(np.asarray(temperature) >= 0):
        raise ValueError(f"a temperature multiplies standard deviations and cannot be negative; got {temperature}")
    if shape not in ((), (count,)):
        raise ValueError(f"temperature wants one number, or one for each of the {count} levels; got shape {shape}")
    return count


def _kl(shift: Array, log_ratio: Array, eps: Array) -> Array:
    """KL(N(mean + shift std, (ratio std)^2) || N(mean, std^2)): exactly 0 at shift 0, ratio 1."""
    del eps
    return 0.5 * (shift**2 + jnp.expm1(2 * log_ratio) - 2 * log_ratio)


def _log_ratio(shift: Array, log_ratio: Array, eps: Array) -> Array:
    """ln q(z) - ln p(z) of the same two normals at z = mean + std (shift + ratio eps)."""
    return 0.5 * ((shift + jnp.exp(log_ratio) * eps) ** 2 - eps**2) - log_ratio


def _normal(network: Network, params: Params, *inputs: Any) -> tuple[Array, Array]:
    """(mean, std), the std bounded as that of `gaussian`."""
    distribution = gaussian(network).dist(params, inputs)
    base = getattr(distribution, "base_dist", distribution)
    return base.loc, base.scale


def _down(rung: Rung, params: Params, h: Any, choose: _Choose, xs: Any, remat: bool = False):
    """From level to level of one rung: (the state after them, what `choose` keeps of each)."""

    def level(h, inputs):
        own, x = inputs
        z, kept = choose(h, _normal(rung.prior, own["prior"], h), x)
        return rung.update.apply(own["update"], h, z), kept

    # In a scan remat needs no barriers against common subexpressions.
    return jax.lax.scan(jax.checkpoint(level, prevent_cse=False) if remat else level, h, (params, xs))


def _infer(rungs: Sequence[Rung], params: Params, key: Array | None, y: Any, rate: _Rate, remat: bool):
    """(the last state, for each rung (z, rate of each unit), stacked by level), along a path z ~ P_enc(z|y)."""
    features, x = [], y
    for rung, enc in zip(rungs[::-1], params["enc"][::-1], strict=True):
        x = rung.bottom.apply(enc["bottom"], x)
        features.append(x)
    h, kept = jnp.zeros(1), []
    keys = [None] * len(rungs) if key is None else jax.random.split(key, len(rungs))
    for rung, enc, pri, x, k in zip(rungs, params["enc"], params["pri"], features[::-1], keys, strict=True):
        h = rung.enter.apply(pri["enter"], h)
        xs = (enc["posterior"], _noise(rung, pri["levels"], k, h))
        h, of_rung = _down(rung, pri["levels"], h, _from_posterior(rung, x, rate), xs, remat)
        kept.append(of_rung)
    return h, kept


def _from_posterior(rung: Rung, features: Any, rate: _Rate) -> _Choose:
    """z from the posterior; kept are z and the rate of each of its units."""

    def choose(h, prior, x):
        (mean, std), (own, eps) = prior, x
        delta, ratio = _normal(rung.posterior, own, h, features)
        z = mean + delta + std * ratio * eps
        return z, (z, rate(delta / std, jnp.log(ratio), eps))

    return choose


def _generate(rungs: Sequence[Rung], pri: Params, key: Array, temperature: Any = 1.0, given: Sequence[Array] = ()):
    """(the last state, z of every level), with z as given and then from the prior."""
    h, level, zs = jnp.zeros(1), 0, list(given)
    temperatures = jnp.broadcast_to(temperature, (sum(rung.levels for rung in rungs),))
    for rung, params, k in zip(rungs, pri, jax.random.split(key, len(rungs)), strict=True):
        h = rung.enter.apply(params["enter"], h)
        known = given[level : level + rung.levels]
        n, noise = len(known), _noise(rung, params["levels"], k, h)
        if known:
            h, _ = _down(rung, _at(slice(n), params["levels"]), h, _as_given, jnp.stack(known))
        if n < rung.levels:
            xs = (noise[n:], temperatures[level + n : level + rung.levels])
            h, drawn = _down(rung, _at(slice(n, None), params["levels"]), h, _from_prior, xs)
            zs += [z for z in drawn]
        level += rung.levels
    return h, zs


def _noise(rung: Rung, params: Params, key: Array | None, h: Any) -> Array:
    """eps ~ N(0, I) of all levels of a rung, (levels, *shape of z); without a key its mean."""
    z, _ = jax.eval_shape(lambda: _normal(rung.prior, _at(0, params["prior"]), h))
    shape = (rung.levels, *z.shape)
    return jnp.zeros(shape, z.dtype) if key is None else jax.random.normal(key, shape, z.dtype)


def _at(levels: int | slice, params: Params) -> Params:
    return jax.tree.map(lambda x: x[levels], params)


def _as_given(h: Any, prior: tuple[Array, Array], z: Array) -> tuple[Array, None]:
    del h
    if z.shape != prior[0].shape:
        raise ValueError(f"given holds z of shape {z.shape}, and this level's has shape {prior[0].shape}")
    return z, None


def _from_prior(h: Any, prior: tuple[Array, Array], x: Any) -> tuple[Array, Array]:
    del h
    (mean, std), (eps, temperature) = prior, x
    z = mean + jnp.asarray(temperature, eps.dtype) * std * eps
    return z, z


def _init(rungs: Sequence[Rung], key: Array, y: Any) -> tuple[list[Params], list[Params], Array]:
    """(enc, pri, zeros in the shape of the last state)."""
    bottoms, features, x = [], [], y
    k_bottom, k_rungs = jax.random.split(key)
    for rung, k in zip(rungs[::-1], jax.random.split(k_bottom, len(rungs)), strict=True):
        bottoms.append(rung.bottom.init(k, x))
        x = example_of(rung.bottom.apply, bottoms[-1], x)
        features.append(x)
    enc, pri, h = [], [], jnp.zeros(1)
    keys = jax.random.split(k_rungs, len(rungs))
    for i, (rung, bottom, x, k) in enumerate(zip(rungs, bottoms[::-1], features[::-1], keys, strict=True)):
        posterior, own, h = _init_rung(f"rung {i} (0 is the top)", rung, k, h, x)
        enc.append({"bottom": bottom, "posterior": posterior})
        pri.append(own)
    return enc, pri, h


def _init_rung(name: str, rung: Rung, key: Array, h: Any, features: Any) -> tuple[Params, Params, Array]:
    """(posteriors, the rung's part of "pri", zeros in the shape of its state)."""
    k_enter, k_prior, k_posterior, k_update = jax.random.split(key, 4)

    def stacked(network, key, *inputs):
        params = jax.vmap(lambda k: network.init(k, *inputs))(jax.random.split(key, rung.levels))
        return params, _at(0, params)

    enter = rung.enter.init(k_enter, h)
    h = example_of(rung.enter.apply, enter, h)
    prior, first = stacked(rung.prior, k_prior, h)
    z, _ = example_of(lambda: _normal(rung.prior, first, h))
    posterior, first = stacked(rung.posterior, k_posterior, h, features)
    delta, _ = example_of(lambda: _normal(rung.posterior, first, h, features))
    if delta.shape != z.shape:
        raise ValueError(f"{name}: its prior gives z of shape {z.shape} and its posterior of shape {delta.shape}")
    update, first = stacked(rung.update, k_update, h, z)
    after = example_of(rung.update.apply, first, h, z)
    if (after.shape, after.dtype) != (h.shape, h.dtype):
        got = f"{after.dtype}{list(after.shape)} of a state {h.dtype}{list(h.shape)}"
        raise ValueError(f"{name}: its update makes {got}: it has to keep shape and type, and enter changes them")
    return posterior, {"enter": enter, "levels": {"prior": prior, "update": update}}, h


def _bound(rungs: Sequence[Rung], c: Any) -> list[Rung]:
    """The rungs with every field a `Network` that is given c behind its inputs."""
    if isinstance(rungs, Rung) or not all(isinstance(rung, Rung) for rung in rungs):
        raise TypeError("a ladder wants a sequence of Rung, the top one first: ladder([Rung(...)], generator)")
    levels = [rung.levels for rung in rungs]
    if not levels or not all(map(is_whole, levels)):
        raise ValueError(f"a ladder wants at least one rung, and at least one level in each; got levels {levels}")
    nets = Rung._fields[:-1]
    return [rung._replace(**{net: _with_condition(getattr(rung, net), c) for net in nets}) for rung in rungs]


def _with_condition(net: Any, c: Any) -> Any:
    network = as_network(net)
    if c is None:
        return network
    return Network(lambda key, *xs: network.init(key, *xs, c), lambda params, *xs: network.apply(params, *xs, c))
