"""Start-up: what imports cost, and how long a fresh process takes to its first step, with and without what the
compiler kept of the one before."""

import os
import statistics
import subprocess
import sys
import tempfile

IMPORT = """
import time; start = time.perf_counter()
import {}
print(time.perf_counter() - start)
"""
FIRST_STEP = """
import time; start = time.perf_counter()
import jax, jax.numpy as jnp, optax, resource
import vae_jax
from vae_jax import data, nets
{model}
optimizer = optax.adam(1e-3)
state = vae_jax.init_state(model, optimizer, jax.random.key(0), ys[0].astype(example))
step = jax.jit(vae_jax.make_train_step(model, optimizer, preprocess=prepare), donate_argnums=0)
state, metrics = step(state, jax.random.key(1), ys)
metrics["loss"].block_until_ready()
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
MODELS = {
    "FC-VAE 784-500-20, batch 128": """
model = vae_jax.vae(vae_jax.gaussian(nets.MLP((500,), 40)), vae_jax.standard_normal(20),
                    vae_jax.bernoulli(nets.MLP((500,), (28, 28, 1))))
prepare, example, ys = data.dynamic_binarisation(), jnp.float32, jnp.zeros((128, 28, 28, 1), jnp.uint8)
""",
    "diffusion, U-Net 32-64-64, batch 32": """
from vae_jax import diffusion as df
net = nets.UNet((32, 64, 64), blocks=2, attention=(1,))
model = df.diffusion(df.denoiser(net, (28, 28, 1), df.cosine(), observation=df.discrete(256)))
prepare, example, ys = data.eight_bit(), jnp.int32, jnp.zeros((32, 28, 28, 1), jnp.uint8)
""",
    "text VAE, LSTM of 256, 8,000 words, batch 32": """
from vae_jax.parts import autoregressive
encoder = nets.SequenceEncoder(8000, 128, 256, 2 * 32)
generator = autoregressive(nets.LSTM(8000, 128, 256), 20, 8000, end=0)
model = vae_jax.vae(vae_jax.gaussian(encoder), vae_jax.standard_normal(32), generator)
prepare, example, ys = data.identity(), jnp.int32, jnp.ones((32, 20), jnp.int32)
""",
}


def start_up(rounds: int) -> None:
    """Print seconds and memory of fresh processes."""
    print(f"\nstart-up, {rounds} rounds of fresh processes, median (min .. max)")
    imports = {name: [row[0] for row in printed(IMPORT.format(name), rounds)] for name in ("jax", "jax, vae_jax")}
    for name, times in imports.items():
        print(f"  import {name:<46} {_spread(times)}")
    plain, ours = (statistics.median(times) for times in imports.values())
    print(f"  vae_jax adds                                          {ours - plain:.2f} s")
    for name, model in MODELS.items():
        code = FIRST_STEP.format(model=model)
        first = printed(code, rounds)
        print(f"  first step, import included, {name}\n{'':>54}{_spread([row[0] for row in first])}, ", end="")
        print(f"{statistics.median(row[1] for row in first):.0f} MiB at its peak")
        with tempfile.TemporaryDirectory() as kept:
            printed(code, 1, cache=kept)
            again = [row[0] for row in printed(code, rounds, cache=kept)]
        print(f"  {'the same with the compile cache of the one before':<51} {_spread(again)}", flush=True)


def printed(code: str, rounds: int, cache: str | None = None) -> list[list[float]]:
    """The numbers that fresh processes with this code print, round by round; with a compile cache in that folder."""
    kept = {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"} if cache else {}
    bare = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    run = [sys.executable, "-c", code]
    texts = [
        subprocess.run(run, capture_output=True, text=True, check=True, env=bare | kept).stdout for _ in range(rounds)
    ]
    return [[float(word) for word in text.split()] for text in texts]


def _spread(times: list[float]) -> str:
    return f"{statistics.median(times):.2f} s ({min(times):.2f} .. {max(times):.2f})"
