"""Data in a plane whose density is known: one VAE, chains of two, and a diffusion, all held against its entropy.

    python -m experiments.two_steps           # eight Gaussians on a ring; about four minutes
    python -m experiments.two_steps --help    # every option

A chain has either encoders that are trained or encoders that add noise and are not; a diffusion is the second kind with
infinitely many steps. Every bound exceeds the entropy by KL(data || model) and by what its encoders lose.

Expected with the default settings, in nats, the entropy being 1.121 ± 0.001; beyond it, point by point on 4,000 points
(errors of the evaluation; another seed of training moves the chain with trained encoders by 0.07):

                                bound              KL(data || model)
    one VAE                     0.467 ± 0.009      0.312 ± 0.008      importance-weighted
    chain, trained encoders     0.183 ± 0.005      0.096 ± 0.005      importance-weighted
    chain, fixed encoders       1.138 ± 0.014      0.829 ± 0.013      importance-weighted
    diffusion                   0.021 ± 0.011      0.018 ± 0.003      exact, by the flow's ODE
    the exact denoiser          0.000 ± 0.011

`vae_jax.open_run` opens the diffusion in `out`, the others in `out`/"one VAE" and so on.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array

import vae_jax
from experiments import two_steps_report
from experiments.two_steps_report import Result, Shown, rates_by_time
from vae_jax import Fitted, core, diffusion, evaluate, nets
from vae_jax.command import publish
from vae_jax.command.config import CosineAdam, Range, at_least, checked, read_back
from vae_jax.command.placement import Placed, evaluate_on
from vae_jax.core import objectives
from vae_jax.diffusion import weightings as diffusion_objectives
from vae_jax.diffusion.steps import first_step, forward_step
from vae_jax.evaluation import mean
from vae_jax.systems import chain

Step = tuple[vae_jax.Conditional, vae_jax.Conditional]  # (encoder, generator)
FIRST, LAST = -10.0, 6.0  # gamma of the diffusion: noise of a hundredth of the data, signal of a twentieth


@dataclasses.dataclass(frozen=True)
class Config(CosineAdam, Placed):
    """Train one VAE, two chains of two, and a diffusion on points in a plane, and compare them with the entropy."""

    components: int = 8
    """Gaussians on the ring."""
    std: Annotated[float, Range("above 0 and below 1", lambda x: 0 < x < 1)] = 0.15
    """Standard deviation of each; the ring is as wide as gives the data unit variance."""
    train: int = 50_000
    """Points to train on."""
    test: Annotated[int, at_least(2)] = 4_000
    """Points to evaluate on."""
    noise: Annotated[tuple[float, ...], Range("of either sign", lambda x: True)] = (-1.5, 2.0)
    """gamma = -ln SNR after each step of the chain with fixed encoders: as many steps as numbers."""
    hidden: tuple[int, ...] = (64, 64)
    """Hidden layers of encoders and generators."""
    denoiser_hidden: tuple[int, ...] = (128, 128, 128)
    """Hidden layers of the denoiser."""
    epochs: int = 200
    batch_size: int = 500
    learning_rate: float = 2e-3
    k: int = 256
    """Importance samples for ln p of VAE and chains."""
    times: int = 64
    """Times in an evaluation of the diffusion's bound."""
    steps: int = 100
    """Steps of the diffusion's sampler."""
    pixels: int = 48
    """Height and width of the densities in the report."""
    out: str = "runs/two_steps"


def ring(config: Config, alpha: Any = 1.0, sigma: Any = 0.0) -> dist.Distribution:
    """The data's density, or that of alpha y + sigma eps, which is a mixture too."""
    angles = 2 * np.pi * np.arange(config.components) / config.components
    radius = np.sqrt(2 * (1 - config.std**2))
    means = alpha * jnp.asarray(radius * np.stack([np.cos(angles), np.sin(angles)], axis=1), jnp.result_type(float))
    std = jnp.sqrt((alpha * config.std) ** 2 + sigma**2)
    parts = dist.Normal(means, jnp.broadcast_to(std, means.shape)).to_event(1)
    return dist.MixtureSameFamily(dist.CategoricalLogits(jnp.zeros(config.components)), parts)


def points(config: Config, key: Array, n: int) -> np.ndarray:
    """(n, 2) draws of the data."""
    return np.asarray(jax.jit(jax.vmap(ring(config).sample))(jax.random.split(key, n)))


def true_log_p(config: Config, ys: Any) -> np.ndarray:
    """(n,) ln p of the data's density."""
    return np.asarray(jax.jit(jax.vmap(ring(config).log_prob))(jnp.asarray(ys)), np.float64)


def exact_denoiser(config: Config) -> core.Network:
    """E[eps|z], minus sigma times the gradient of ln p(z): what the diffusion's network should learn."""

    def apply(params, z, gamma):
        level = diffusion.variance_preserving(gamma)
        return -level.sigma * jax.grad(ring(config, level.alpha, level.sigma).log_prob)(z)

    return core.Network(lambda key, *inputs: {}, apply)


def trained_denoiser(config: Config) -> core.Network:
    """An MLP of z and a few waves of gamma."""
    mlp = core.as_network(nets.MLP(config.denoiser_hidden, 2, jax.nn.silu))

    def seen(gamma):
        phase = gamma * jnp.array([0.2, 0.4, 0.8])
        return jnp.concatenate([jnp.reshape(gamma / 8, (1,)), jnp.sin(phase), jnp.cos(phase)])

    return core.Network(
        lambda key, z, gamma: mlp.init(key, z, seen(gamma)), lambda params, z, gamma: mlp.apply(params, z, seen(gamma))
    )


def trained_steps(config: Config, count: int) -> list[Step]:
    """Encoders and generators that are both MLPs, all latents in the plane."""

    def normal():
        return vae_jax.gaussian(nets.MLP(config.hidden, 4, jax.nn.silu))

    return [(normal(), normal()) for _ in range(count)]


def noising_steps(config: Config) -> list[Step]:
    """Encoders that add noise up to the given levels, and generators that are MLPs."""
    known = [diffusion.variance_preserving(jnp.float32(gamma)) for gamma in config.noise]
    encoders = [functools.partial(first_step, level=known[0])]
    encoders += [functools.partial(forward_step, low=low, level=level) for low, level in itertools.pairwise(known)]
    return [
        (vae_jax.Conditional(lambda key, y=None: {}, lambda params, y, encode=encode: encode(y)), generator)
        for encode, (_, generator) in zip(encoders, trained_steps(config, len(known)), strict=True)
    ]


def chains_of(config: Config) -> dict[str, tuple[list[Step], dict[str, Any]]]:
    """By name: the steps, and options of the chain."""
    return {
        "one VAE": (trained_steps(config, 1), {}),
        "chain, trained encoders": (trained_steps(config, len(config.noise)), {}),
        "chain, fixed encoders": (noising_steps(config), {"estimator": vae_jax.fixed_encoder}),
    }


def diffusion_of(config: Config) -> tuple[diffusion.Denoiser, vae_jax.Model]:
    """The denoiser, and the model as it is evaluated and drawn from."""
    net, schedule = trained_denoiser(config), diffusion.linear(FIRST, LAST)
    d = diffusion.denoiser(net, (2,), schedule, prediction=diffusion.predict_velocity)
    times, sampler = diffusion.times.stratified(config.times), diffusion.dpm_solver(config.steps)
    return d, diffusion.diffusion(d, times=times, sampler=sampler)


def rebuild(*, name: str, **fields: Any) -> vae_jax.Model:
    """One of the models, for `vae_jax.open_run`."""
    config = read_back(Config, fields)
    if name == "diffusion":
        return diffusion_of(config)[1]
    steps, options = chains_of(config)[name]
    return chain(steps, vae_jax.standard_normal(2), **options)


def train(config: Config, model: vae_jax.Model, key: Array, ys: np.ndarray, objective: objectives.Objective) -> Fitted:
    """The parameters are the moving average."""
    return config.training.fit(config, model, ys, key, clip_norm=10.0, objective=objective, ema_decay=0.999)


def up(steps: Sequence[Step], params: Any, key: Array, y: Array) -> list[Array]:
    """y and the latents that the encoders make of it, one after the other."""
    if not steps:
        return [y]
    k_own, k_rest = jax.random.split(key)
    z = steps[0][0].dist(params["enc"], y).sample(k_own)
    return [y, *up(steps[1:], params["pri"], k_rest, z)]


def down(steps: Sequence[Step], params: Any, key: Array) -> list[Array]:
    """y and the latents that it is generated from, the last a draw from N(0, I)."""
    if not steps:
        return [jax.random.normal(key, (2,))]
    k_own, k_rest = jax.random.split(key)
    zs = down(steps[1:], params["pri"], k_rest)
    return [steps[0][1].dist(params["gen"], zs[0]).sample(k_own), *zs]


def of_chain(
    config: Config, steps: Sequence[Step], key: Array, ys: np.ndarray, test: np.ndarray, **options: Any
) -> tuple[Result, np.ndarray]:
    """Train a chain; what came of it, and (2, T + 1, n, 2): data and their latents, draws and theirs."""
    k_fit, k_test, k_up, k_down = jax.random.split(key, 4)
    model = chain(steps, vae_jax.standard_normal(2), **options)
    # The rate counts little at first: otherwise a step that has not learned anything yet is not worth its rate, and
    # its encoder never learns.
    warm_up = objectives.linear_annealing(max(1, config.training.steps(config.train) // 4), start=0.1)
    fitted = train(config, model, k_fit, ys, objectives.beta_elbo(warm_up))
    result = evaluate_on(config, model, fitted.params, k_test, test, k=config.k, samples=8)
    seen = ys[:20_000]
    encode, draw = (jax.jit(jax.vmap(functools.partial(way, steps, fitted.params))) for way in (up, down))
    encoded = encode(jax.random.split(k_up, len(seen)), jnp.asarray(seen))
    drawn = draw(jax.random.split(k_down, len(seen)))
    assert result.log_likelihood is not None
    by = f"importance-weighted, k = {config.k}"
    found = Result(result, result.log_likelihood, by, True, np.asarray(drawn[0]), fitted.params, fitted.history)
    return found, np.stack([encoded, drawn])


def of_diffusion(
    config: Config, key: Array, ys: np.ndarray, test: np.ndarray
) -> tuple[Result, diffusion.Denoiser, Any]:
    """Train a diffusion; what came of it, its denoiser and parameters."""
    k_fit, k_test, k_draw = jax.random.split(key, 3)
    d, model = diffusion_of(config)
    spread = diffusion_objectives.spread_times(lambda times: diffusion.diffusion(d, times=times))
    fitted = train(config, diffusion.diffusion(d), k_fit, ys, spread)
    result = evaluate_on(config, model, fitted.params, k_test, test, samples=4)
    draw = jax.jit(jax.vmap(functools.partial(model.sample, fitted.params)))
    draws = np.asarray(draw(jax.random.split(k_draw, min(20_000, len(ys)))))
    log_p = flow_log_p(d, fitted.params, test)
    return (
        Result(result, log_p, "exact, by the flow's ODE", False, draws, fitted.params, fitted.history),
        d,
        fitted.params,
    )


def flow_log_p(d: diffusion.Denoiser, params: Any, ys: np.ndarray) -> np.ndarray:
    """(n,) ln p(y) by the probability-flow ODE, without probes."""
    one = functools.partial(diffusion.log_likelihood, d, params, jax.random.key(0), tolerance=1e-4)
    return np.asarray(jax.jit(jax.vmap(one))(jnp.asarray(ys)))


def densities(config: Config, log_p: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """(2, pixels, pixels): the true density, and that of `log_p`, within `REACH`, row by row upwards."""
    axis = (((np.arange(config.pixels) + 0.5) / config.pixels * 2 - 1) * two_steps_report.REACH).astype(np.float32)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    both = np.stack([true_log_p(config, grid), log_p(grid)])
    return np.exp(both).reshape(2, config.pixels, config.pixels)


@publish.timed
def main(config: Config) -> dict[str, Any]:
    """Train all four, evaluate, report; returns the numbers of the table.

    Raises:
        ValueError: no Gaussians, a std that leaves no ring, or levels of noise that do not rise.
    """
    if config.components < 1 or not 0 < config.std < 1:
        raise ValueError(f"want components >= 1 and 0 < std < 1; got {config.components} and {config.std}")
    if not config.noise or np.any(np.diff(config.noise) <= 0):
        raise ValueError(f"noise wants -ln SNR after each step, rising, at least one; got {config.noise}")
    config = checked(config)
    if config.smoke:
        config = dataclasses.replace(config, train=1000, test=64, hidden=(16,), denoiser_hidden=(16,), epochs=1)
        config = dataclasses.replace(config, batch_size=100, k=8, times=8, steps=10, pixels=12)
    k_train, k_test, k_many, k_exact, k_walk, k_rates, *keys = jax.random.split(jax.random.key(config.seed), 10)
    ys, test = points(config, k_train, config.train), points(config, k_test, config.test)
    entropy = mean(-true_log_p(config, points(config, k_many, 1_000_000)))
    log_p = true_log_p(config, test)

    results: dict[str, Result] = {}
    marginals: dict[str, np.ndarray] = {}
    for (name, (steps, options)), key in zip(chains_of(config).items(), keys[:3], strict=True):
        results[name], marginals[name] = of_chain(config, steps, key, ys, test, **options)
    results["diffusion"], d, params = of_diffusion(config, keys[3], ys, test)
    publish.save_all(config, rebuild, results, ys[0], main="diffusion")

    ideal = diffusion.denoiser(exact_denoiser(config), (2,), diffusion.linear(FIRST, LAST))
    nothing = ideal.init(keys[3])
    exact = evaluate(
        diffusion.diffusion(ideal, times=diffusion.times.stratified(config.times)), nothing, k_exact, test, samples=4
    )
    parts = (np.arange(config.times) + 0.5) / config.times
    shown = Shown(
        data=ys[:20_000],
        marginals=marginals,
        walk=two_steps_report.walk(d, params, k_walk, ys[:20_000], config.steps),
        densities=densities(config, functools.partial(flow_log_p, d, params)),
        rates={
            "trained": (parts, rates_by_time(d, params, k_rates, test, config.times)),
            "exact denoiser": (parts, rates_by_time(ideal, nothing, k_rates, test, config.times)),
        },
    )
    return publish.write(
        "two_steps",
        config,
        title="Steps from noise to data: a VAE, chains of two, a diffusion",
        lead=(
            f"{config.components} Gaussians of standard deviation {config.std:g} on a ring, {config.train} points to "
            f"train on, {config.epochs} epochs for each model. The density is known, so is its entropy."
        ),
        table=two_steps_report.table(results, exact, entropy, log_p),
        sections=two_steps_report.sections(results, shown, config.pixels),
    )


if __name__ == "__main__":
    publish.run(main, Config)
