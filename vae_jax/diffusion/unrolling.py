"""Diffusion, said the long way: T + 1 VAEs, one inside the other, each adding a little noise."""

import functools
from typing import Any

from vae_jax.core.estimators import Estimator, fixed_encoder
from vae_jax.core.model import Conditional, Model, Params, parted
from vae_jax.core.parameters import through
from vae_jax.diffusion.denoisers import Denoiser
from vae_jax.diffusion.schedules import Level
from vae_jax.diffusion.steps import end, first_step, forward_step, reverse_step
from vae_jax.systems.chains import chain


def unrolled(denoiser: Denoiser, *, estimator: Estimator = fixed_encoder) -> Model:
    """The model of `diffusion(denoiser)`, with the same parameters, as a chain of VAEs with `fixed_encoder`.

    One bound costs T + 1 calls of the network, and compiling it T + 1 copies: it is here to be read, and to hold
    `diffusion` to its expectation. `Terms.rates` has the rate of each step, the one next to y first.

    Raises:
        ValueError: a denoiser in continuous time.
    """
    d = denoiser
    if d.steps is None:
        raise ValueError("only finitely many steps can be unrolled: denoiser(..., steps=10)")
    times, count = d.times(), d.steps + 1

    def level(params: Params, i: int) -> Level:
        return d.level(params["enc"], times[i])

    def part(make: Any) -> Conditional:
        return Conditional(lambda key, c=None: None, make)

    def step(i: int) -> tuple[Conditional, Conditional]:
        def encode(params, joined):
            own, _ = parted(joined)
            if i == 0:
                return first_step(d.observation.embed(own), level(params, 0))
            return forward_step(own, level(params, i - 1), level(params, i))

        def generate(params, condition):
            z, c = parted(condition)
            denoise = functools.partial(d.denoise, params["gen"], c=c)
            if i == 0:
                return d.observation.dist(z, level(params, 0), denoise)
            return reverse_step(denoise(z, level(params, i)), z, level(params, i - 1), level(params, i))

        return part(encode), part(generate)

    steps = [step(i) for i in range(count)]
    folded = chain(steps, part(lambda params, c: end(d.shape, level(params, -1))), estimator=estimator)

    def spread(params: Params) -> Params:
        """The same parameters at every step of the chain."""
        nested = params
        for _ in steps:
            nested = {"enc": params, "pri": nested, "gen": params}
        return nested

    model = through(folded, spread, init=lambda key, y, c=None: d.init(key, c))
    return model._replace(support=lambda params, c=None: d.observation.support)
