"""Diffusion, said the long way: T + 1 VAEs, one inside the other, each adding a little noise."""

from typing import Any

from vae_jax.core.estimators import Estimator, fixed_encoder
from vae_jax.core.model import Conditional, Model, Params, parted
from vae_jax.core.parameters import through
from vae_jax.diffusion.denoisers import Denoiser
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

    def own(joined: Any) -> Any:
        return parted(joined)[0]

    def part(make: Any) -> Conditional:
        return Conditional(lambda key, c=None: None, make)

    def encoder(i: int) -> Conditional:
        if i == 0:
            return part(lambda params, y: first_step(d.observation.embed(own(y)), d.level(params["enc"], times[0])))
        return part(
            lambda params, z: forward_step(
                own(z), d.level(params["enc"], times[i - 1]), d.level(params["enc"], times[i])
            )
        )

    def generator(i: int) -> Conditional:
        def make(params, condition):
            z, c = parted(condition)
            level = d.level(params["enc"], times[i])

            def denoise(z, level):
                return d.denoise(params["gen"], z, level, c)

            if i == 0:
                return d.observation.dist(z, level, denoise)
            return reverse_step(denoise(z, level), z, d.level(params["enc"], times[i - 1]), level)

        return part(make)

    prior = part(lambda params, c: end(d.shape, d.level(params["enc"], times[-1])))
    steps = [(encoder(i), generator(i)) for i in range(count)]
    folded = chain(steps, prior, estimator=estimator)

    def spread(params: Params) -> Params:
        """The same parameters at every step of the chain."""
        nested = params
        for _ in steps:
            nested = {"enc": params, "pri": nested, "gen": params}
        return nested

    model = through(folded, spread, init=lambda key, y, c=None: d.init(key, c))
    return model._replace(support=lambda params, c=None: d.observation.support)
