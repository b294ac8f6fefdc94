"""Priors that train. Another VAE is a prior too, `vae(enc, vae(...), gen)`, and so is a mixture (`vae_jax.em`)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike
from numpyro.distributions.batch_util import promote_batch_shape

from vae_jax.core.distributions import bounded_log_std
from vae_jax.core.model import Conditional
from vae_jax.core.network import shape_of
from vae_jax.core.numbers import is_whole
from vae_jax.data.arrays import as_arrays


def standard_normal(size: int | tuple[int, ...]) -> Conditional:
    """N(0, I) over latents of shape `size`; no parameters, whatever the condition.

    Raises:
        ValueError: a size below 1.

    Example:
        >>> round(float(standard_normal(2).dist({}).log_prob(jnp.zeros(2))), 3)  # -ln 2 pi
        -1.838
    """
    shape = positive_shape("standard_normal", size)

    def init(key, c=None):
        del key, c
        return {}

    def distribution(params, c=None):
        del params, c
        return dist.Normal(jnp.zeros(shape), jnp.ones(shape)).to_event(len(shape))

    return Conditional(init, distribution)


def learned_normal(size: int | tuple[int, ...]) -> Conditional:
    """N(mean, std^2), diagonal, both trained; N(0, I) at the start.

    Raises:
        ValueError: a size below 1.
    """
    shape = positive_shape("learned_normal", size)

    def init(key, c=None):
        del key, c
        return {"mean": jnp.zeros(shape), "log_std": jnp.zeros(shape)}

    def distribution(params, c=None):
        del c
        return dist.Normal(params["mean"], jnp.exp(bounded_log_std(params["log_std"]))).to_event(len(shape))

    return Conditional(init, distribution)


def positive_shape(name: str, size: int | tuple[int, ...]) -> tuple[int, ...]:
    """`size` as a shape, all of it at least 1."""
    shape = shape_of(size)
    if not all(map(is_whole, shape)):
        raise ValueError(f"{name} wants the size of z, a whole number of at least 1 or a tuple of them; got {size}")
    return tuple(int(n) for n in shape)


def vampprior(encoder: Conditional, pseudo_inputs: ArrayLike, *, condition: Any = None) -> Conditional:
    """VampPrior (Tomczak & Welling 2018): 1/K sum_k P_enc(z | u_k), the pseudo-inputs u_k trained.

    Its parameters are `{"pseudo": ..., "enc": ...}`. To use the VAE's own encoder, as the paper does, tie them:

        share(vae(encoder, vampprior(encoder, ys[:500]), generator), "enc", "pri/enc")

    Args:
        encoder: the VAE's encoder; a Gaussian or another family that numpyro can mix.
        pseudo_inputs: (K, *example) where they start, in the form the encoder sees: training examples serve well.
        condition: fixed conditions of the pseudo-inputs, (K, *c), for an encoder that sees (y, c).

    Raises:
        ValueError: no pseudo-inputs, NaN among them, or one condition too many or few; or, when first called, an
            encoder that is tied and made for inputs of another shape.
    """
    start = jnp.asarray(as_arrays("pseudo_inputs", pseudo_inputs), jnp.float32)
    if start.ndim == 0 or len(start) == 0:
        raise ValueError(f"pseudo_inputs wants an array (K, *example) with K >= 1; got shape {start.shape}")
    if not jnp.isfinite(start).all():
        raise ValueError("pseudo_inputs holds NaN or infinity: take other examples, or fill them first")
    if condition is not None and len(condition) != len(start):
        raise ValueError(f"{len(start)} pseudo-inputs have {len(condition)} conditions: give one for each")

    def seen(pseudo):
        return pseudo if condition is None else (pseudo, jnp.asarray(condition))

    def init(key, c=None):
        del c
        return {"pseudo": start, "enc": encoder.init(key, jax.tree.map(lambda x: x[0], seen(start)))}

    def distribution(params, c=None):
        del c
        try:
            parts = jax.vmap(encoder.dist, in_axes=(None, 0))(params["enc"], seen(params["pseudo"]))
        except Exception as error:
            raise ValueError(
                f"pseudo_inputs of shape {start.shape[1:]} do not fit this encoder: they have to be examples as it "
                f"sees them, preprocessed, and with a condition= where it has one ({error})"
            ) from error
        return dist.MixtureSameFamily(dist.CategoricalLogits(jnp.zeros(len(start))), promote_batch_shape(parts))

    return Conditional(init, distribution)
