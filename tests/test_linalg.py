"""Small matrices one by one: values and derivatives equal jax's batched functions, under vmap, jit and grad."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax.core import linalg


def matrices(*batch, size=4):
    """Positive definite ones."""
    roots = np.random.default_rng(0).normal(size=(*batch, size, size))
    return jnp.asarray(roots @ np.swapaxes(roots, -1, -2) + size * np.eye(size))


def lower(x):
    return jnp.linalg.cholesky(x)


PEERS = {
    "cholesky": (linalg.cholesky, jnp.linalg.cholesky, matrices),
    "inverse": (linalg.inverse, jnp.linalg.inv, matrices),
    "inverse_of_lower": (linalg.inverse_of_lower, jnp.linalg.inv, lambda *batch: lower(matrices(*batch))),
}


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
@pytest.mark.parametrize("name", PEERS)
def test_values_and_derivatives_are_those_of_jax(x64, name, batch):
    ours, peer, make = PEERS[name]
    x = make(*batch)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=x.shape))
    weights = jnp.tril(weights) if name == "inverse_of_lower" else weights

    def both(function):
        def value(x):
            x = jnp.tril(x) if name == "inverse_of_lower" else 0.5 * (x + jnp.swapaxes(x, -1, -2))
            return jnp.sum(weights * function(x)), function(x)

        return jax.jit(jax.value_and_grad(value, has_aux=True))(x)

    ((_, got), slope), ((_, wanted), expected) = both(ours), both(peer)
    np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(slope, expected, rtol=1e-8, atol=1e-10)


def test_vmap_is_the_batch(x64):
    x = matrices(5)
    for function in (linalg.cholesky, linalg.inverse, lambda m: linalg.eigh(m)[0], linalg.upper_of_qr):
        np.testing.assert_allclose(jax.jit(jax.vmap(function))(x), function(x), rtol=1e-12)
    np.testing.assert_allclose(linalg.eigh(x)[0], np.linalg.eigvalsh(x), rtol=1e-10)
    upper = linalg.upper_of_qr(x)
    np.testing.assert_allclose(jnp.swapaxes(upper, -1, -2) @ upper, jnp.swapaxes(x, -1, -2) @ x, rtol=1e-10)


def test_not_positive_definite_is_nan():
    x = matrices(2).at[1].multiply(-1.0)
    assert np.isfinite(linalg.cholesky(x)[0]).all() and np.isnan(linalg.cholesky(x)[1]).any()


def test_products_are_in_full_precision(x64):
    a, b, c = matrices(3)
    np.testing.assert_allclose(linalg.matmul(a, b, c), np.asarray(a) @ np.asarray(b) @ np.asarray(c), rtol=1e-12)
    jaxpr = str(jax.make_jaxpr(linalg.matmul)(a, b))
    assert "HIGHEST" in jaxpr


def test_no_batched_call_is_left_on_cpu():
    """In the compiled program every LAPACK call is of one matrix, also under two vmaps and in the gradient."""

    def loss(x):
        values, _ = linalg.eigh(jax.lax.stop_gradient(x))
        return jnp.sum(linalg.inverse_of_lower(linalg.cholesky(x))) + jnp.sum(values)

    compiled = jax.jit(jax.grad(lambda x: jnp.sum(jax.vmap(jax.vmap(loss))(x)))).lower(matrices(2, 3)).compile()
    calls = [line for line in compiled.as_text().splitlines() if "custom-call" in line and "lapack" in line]
    assert calls
    assert all("[2,3,4,4]" not in line and "[3,4,4]" not in line for line in calls)
