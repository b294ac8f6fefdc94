"""The same fully connected VAE written out by hand in plain JAX and optax: the yardstick of the benchmark."""

import jax
import jax.numpy as jnp
import optax


def init(key, sizes):
    """Parameters of 784-500-20 by Lecun's normal initialisation; sizes = (data, hidden, latent)."""
    data, hidden, latent = sizes
    shapes = {"e1": (data, hidden), "e2": (hidden, 2 * latent), "d1": (latent, hidden), "d2": (hidden, data)}
    keys = dict(zip(shapes, jax.random.split(key, 4), strict=True))
    return {
        name: (jax.random.normal(keys[name], shape) / jnp.sqrt(shape[0]), jnp.zeros(shape[1]))
        for name, shape in shapes.items()
    }


def layer(params, x):
    kernel, bias = params
    return x @ kernel + bias


def loss(params, key, ys):
    """Mean -ELBO of a batch of 0/1 images (n, 784), in nats."""
    hidden = jax.nn.relu(layer(params["e1"], ys))
    mean, log_std = jnp.split(layer(params["e2"], hidden), 2, axis=-1)
    z = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
    log_enc = jnp.sum(jax.scipy.stats.norm.logpdf(z, mean, jnp.exp(log_std)), axis=-1)
    log_pri = jnp.sum(jax.scipy.stats.norm.logpdf(z), axis=-1)
    logits = layer(params["d2"], jax.nn.relu(layer(params["d1"], z)))
    log_gen = -jnp.sum(optax.sigmoid_binary_cross_entropy(logits, ys), axis=-1)
    return jnp.mean(log_enc - log_pri - log_gen)


def make_epoch(optimizer, batch):
    """(params, opt_state, key, pixels (n, 784) uint8) -> the same after one epoch, and the losses."""

    def step(carry, inputs):
        params, opt_state, pixels = carry
        key, chosen = inputs
        k_data, k_z = jax.random.split(key)
        ys = jax.random.bernoulli(k_data, pixels[chosen] / 255.0).astype(jnp.float32)
        value, grads = jax.value_and_grad(loss)(params, k_z, ys)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, pixels), value

    def epoch(params, opt_state, key, pixels):
        n = len(pixels) // batch
        k_order, k_steps = jax.random.split(key)
        order = jax.random.permutation(k_order, len(pixels))[: n * batch].reshape(n, batch)
        (params, opt_state, _), losses = jax.lax.scan(
            step, (params, opt_state, pixels), (jax.random.split(k_steps, n), order)
        )
        return params, opt_state, losses

    return jax.jit(epoch, donate_argnums=(0, 1))
