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
    "root_of_square": (linalg.root_of_square, lambda x: lower(x @ jnp.swapaxes(x, -1, -2)), matrices),
    "root_of_square, 9": (
        linalg.root_of_square,
        lambda x: lower(x @ jnp.swapaxes(x, -1, -2)),
        lambda *batch: matrices(*batch, size=9),
    ),
    "triangularised": (
        lambda x: linalg.triangularised(x, 4)[0],
        lambda x: jnp.swapaxes(lower(jnp.swapaxes(x, -1, -2) @ x), -1, -2),
        matrices,
    ),
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
    for function in (linalg.cholesky, linalg.root_of_square, lambda m: linalg.eigh(m)[0], linalg.upper_of_qr):
        np.testing.assert_allclose(jax.jit(jax.vmap(function))(x), function(x), rtol=1e-12)
    np.testing.assert_allclose(linalg.eigh(x)[0], np.linalg.eigvalsh(x), rtol=1e-10)
    upper = linalg.upper_of_qr(x)
    np.testing.assert_allclose(jnp.swapaxes(upper, -1, -2) @ upper, jnp.swapaxes(x, -1, -2) @ x, rtol=1e-10)


def test_small_rows_keep_their_digits_beside_large_ones():
    """R of [1e5 b; I] in float32, where what it says of the other directions is 1e-10 of the whole."""
    rng, split = np.random.default_rng(0), jax.jit(linalg.triangularised, static_argnums=1)
    for rows in (1, 2, 3):
        x = np.concatenate([1e5 * rng.normal(size=(rows, 3)), np.eye(3)]).astype(np.float32)
        wide = np.concatenate([x, np.eye(len(x), dtype=np.float32)], axis=1)
        upper, rest = (np.asarray(part, np.float64) for part in split(wide, 3))
        covariance = np.linalg.inv(x.T.astype(np.float64) @ x)
        inverse = np.linalg.inv(upper[:, :3])
        np.testing.assert_allclose(np.diag(inverse @ inverse.T), np.diag(covariance), rtol=1e-4)
        orthogonal = np.concatenate([upper[:, 3:], rest])
        np.testing.assert_allclose(orthogonal.T @ orthogonal, np.eye(len(x)), atol=1e-6)
        np.testing.assert_allclose(rest @ x, 0.0, atol=0.05)


def test_columns_of_zeros_and_their_derivatives(x64):
    """A zero column gives a row of zeros, takes nothing from the others, and has the derivatives of R'R."""
    x = np.random.default_rng(0).normal(size=(5, 4))
    x[:, 1] = 0.0
    square = jax.jit(lambda x: (lambda upper: upper.T @ upper)(linalg.triangularised(x, 4)[0]))
    np.testing.assert_allclose(square(x), x.T @ x, atol=1e-12)
    np.testing.assert_array_equal(linalg.triangularised(jnp.asarray(x), 4)[0][1], 0.0)
    assert np.isfinite(jax.jit(jax.jacobian(square))(x)).all()


def test_residuals_have_the_digits_that_are_left():
    """y - m - W x where it is 1e-5 of y: 1e-4 of float64's, with the derivatives of the formula."""
    rng = np.random.default_rng(0)
    w, x, m = rng.normal(size=(6, 3)), rng.normal(size=(9, 3)), rng.normal(size=6)
    y, m, w, x = (a.astype(np.float32) for a in (m + x @ w.T + 1e-5 * rng.normal(size=(9, 6)), m, w, x))
    weights = rng.normal(size=y.shape).astype(np.float32)
    slopes = jax.grad(lambda *parts: jnp.sum(weights * linalg.residual(*parts)), argnums=(0, 1, 2, 3))
    got, (of_y, of_m, of_w, of_x) = jax.jit(lambda *parts: (linalg.residual(*parts), slopes(*parts)))(y, m, w, x)
    exact = y.astype(np.float64) - m.astype(np.float64) - x.astype(np.float64) @ w.T.astype(np.float64)
    np.testing.assert_allclose(got, exact, atol=1e-9)
    for slope, expected in ((of_y, weights), (of_m, -weights.sum(0)), (of_w, -weights.T @ x), (of_x, -weights @ w)):
        np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-6)


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
