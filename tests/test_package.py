"""The wheel: built as a user's pip builds it, it works from another directory, its data included."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROGRAM = """
import jax, jax.numpy as jnp, optax
import vae_jax
from vae_jax import data, nets, preprocess
assert "site" in vae_jax.__file__, vae_jax.__file__
emoji = data.load("emoji_mini", "test")
fashion = data.load("fashion_mnist_mini")
assert fashion.ys.shape == (5000, 28, 28, 1) and emoji.ys.shape[1:] == (32, 32, 3)
net = nets.MLP((8,), (28, 28, 1))
model = vae_jax.vae(vae_jax.gaussian(nets.MLP((8,), 4)), vae_jax.standard_normal(2), vae_jax.bernoulli(net))
state = vae_jax.init_state(model, optax.adam(1e-3), jax.random.key(0), jnp.zeros((28, 28, 1)))
step = vae_jax.make_train_step(model, optax.adam(1e-3), preprocess=preprocess.dynamic_binarisation())
state, metrics = step(state, jax.random.key(1), jnp.asarray(fashion.ys[:16]))
print(float(metrics["elbo"]))
"""


def test_the_wheel_works_from_another_directory(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("vae_jax-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert not [name for name in names if name.split("/")[0] in ("tests", "experiments", "colab")]
    for part in ("vae_jax/py.typed", "vae_jax/data/files/fashion_mnist_mini.npz", "vae_jax/data/files/NOTICES.md"):
        assert part in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0
