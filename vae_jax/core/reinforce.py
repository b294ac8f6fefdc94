"""The score function estimator: a gradient for encoders whose z is drawn, not computed from noise.

    d E_{z ~ P_enc} L  =  E (L - baseline) d ln P_enc(z|y)  +  E dL

(Williams 1992, REINFORCE; for VAEs Mnih & Gregor 2014.) Unbiased whatever the baseline, and noisy with a bad one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from vae_jax.core.estimators import Estimator, at_z, drawn, importances, total
from vae_jax.core.model import log_prob
from vae_jax.core.numbers import is_number


def score(signal: ArrayLike, log_q: Array) -> Array:
    """0, with the gradient signal * d log_q: what a z that was drawn adds to the gradient of E signal.

    A signal that is not finite counts as 0, so that a loss of inf stays inf and does not become NaN.
    """
    signal = jax.lax.stop_gradient(jnp.where(jnp.isfinite(signal), signal, 0.0))
    return signal * (log_q - jax.lax.stop_gradient(log_q))


def score_function(baseline: ArrayLike | Callable[..., ArrayLike] = 0.0) -> Estimator:
    """For any encoder, discrete or not.

    There is no noise at the exact posterior with baseline -ln P(y). The gradient is right for every loss that is linear
    in distortion and rate (`elbo`, `beta_elbo`). With several samples each is a baseline of the others: the objectives
    `leave_one_out(k)` and `vimco(k)` need none from here.

    Args:
        baseline: nats to compare L with, a number or a function of (y, c). No gradient reaches what is inside it.

    Raises:
        ValueError: a baseline that is neither; a traced one is not looked at.
    """
    if not (callable(baseline) or isinstance(baseline, jax.core.Tracer) or is_number(baseline)):
        raise ValueError(f"baseline is in nats, a number or a function of (y, c); got {baseline}")

    def terms(parts, params, key, y, c):
        q, z, k_parts = drawn(parts, params, key, y, c)
        log_q = log_prob(q, z)
        # E d ln P_enc = 0: what the rate would say of it is left out.
        plain = at_z(parts, params, k_parts, jax.lax.stop_gradient(q), z, y, c)
        expected = jnp.asarray(baseline(y, c) if callable(baseline) else baseline)
        # Each term has a score of its own: then any weighted sum of them has the right gradient.
        return plain._replace(
            distortion=plain.distortion + score(plain.distortion - expected, log_q),
            rate=_scored(plain.rate, log_q),
            penalty=_scored(plain.penalty, log_q),
            units=plain.units._replace(rate=_scored(plain.units.rate, log_q)),
        )

    def importance(parts, params, key, y, c):
        q, z, k_parts = drawn(parts, params, key, y, c)
        terms = at_z(importances(parts), params, k_parts, q, z, y, c)
        return terms._replace(log_drawn=total(terms.log_drawn, log_prob(q, z)))

    return Estimator(terms, importance)


def _scored(x: Any, log_q: Array) -> Any:
    return None if x is None else x + score(x, log_q)
