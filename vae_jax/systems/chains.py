"""A Markov chain of VAEs (Sohl-Dickstein et al. 2015): each is the prior of the one before.

    P(y) = sum over z_1 .. z_T of  P_gen1(y|z_1) P_gen2(z_1|z_2) ... P_genT(z_{T-1}|z_T) P_pri(z_T)

    chain([(enc1, gen1), (enc2, gen2)], pri)  =  vae(enc1, vae(enc2, pri, gen2), gen1)

With encoders that add noise and are not trained it is a diffusion (`vae_jax.diffusion.unrolling`).
"""

from collections.abc import Sequence

from vae_jax.core.combinator import vae
from vae_jax.core.estimators import Estimator, sampled
from vae_jax.core.model import Conditional, Model


def chain(
    steps: Sequence[tuple[Conditional, Model | Conditional]],
    prior: Model | Conditional,
    *,
    estimator: Estimator = sampled,
) -> Model:
    """The VAEs of `steps`, the one next to y first, folded into one model (Sohl-Dickstein et al. 2015).

    The parameters of step i are at "pri/pri/.../enc" and "gen", i - 1 times "pri"; `Terms.rates` has the rate
    of each step. Which encoders train is up to the estimator and `parts`.

    Args:
        steps: pairs (encoder, generator).
        prior: P_pri(z_T).
        estimator: of every step: `sampled` (the default), `fixed_encoder`, ...

    Raises:
        ValueError: no steps.
        TypeError: an element that is no pair, or an encoder without a density.

    Example:
        >>> first = gaussian(nets.MLP((), 4)), bernoulli(nets.MLP((), 3))
        >>> second = gaussian(nets.MLP((), 2)), l2(nets.MLP((), 2))
        >>> model = chain([first, second], standard_normal(1))
        >>> params = jax.jit(model.init)(jax.random.key(0), jnp.ones(3), None)
        >>> jax.jit(model.terms)(params, jax.random.key(1), jnp.ones(3), None).rates.shape
        (2,)
    """
    if len(steps) < 1:
        raise ValueError("a chain takes T >= 1 steps, each a pair (encoder, generator); got none")
    model = prior
    for pair in reversed(steps):
        if isinstance(pair, Conditional | Model) or len(pair) != 2:
            raise TypeError(f"each step of a chain is a pair (encoder, generator); got {type(pair).__name__}")
        encoder, generator = pair
        model = vae(encoder, model, generator, estimator=estimator)
    assert isinstance(model, Model)
    return model
