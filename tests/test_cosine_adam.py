"""Adam of the experiments: its rate falls along a cosine, and matrices alone decay."""

import jax.numpy as jnp
import numpy as np
import optax

from vae_jax.command.cosine_adam import cosine_adam


def test_matrices_decay_and_offsets_do_not():
    """Without a gradient Adam moves nothing, so one step is the decay: (1 - rate * decay) of each matrix."""
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    optimizer = cosine_adam(0.1, 10, decay=0.5)
    updates, _ = optimizer.update(
        {name: jnp.zeros_like(x) for name, x in params.items()}, optimizer.init(params), params
    )
    moved = optax.apply_updates(params, updates)
    np.testing.assert_allclose(moved["kernel"], 1 - 0.1 * 0.5, rtol=1e-6)
    np.testing.assert_array_equal(moved["bias"], 1)
