"""A library that only some users need and that is missing is named, with the command that installs it."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vae_jax import Trained, evaluate, fit, gaussian, learned_normal, standard_normal, vae
from vae_jax.codec.stack import Stack
from vae_jax.core import Network, lift
from vae_jax.core.extras import extra
from vae_jax.data import identity, source
from vae_jax.data.sources import batches
from vae_jax.diffusion import denoiser, log_likelihood
from vae_jax.report import pictures
from vae_jax.text import subwords
from vae_jax.training import export

NOISE = denoiser(Network(lambda key, z, gamma: {}, lambda params, z, gamma: z), (2,))
TRAINED = Trained(lift(standard_normal(2)), {}, identity(), np.zeros(2, np.float32))
USES = {
    "matplotlib": ("report", lambda: pictures.curves({"a": (np.arange(2), np.arange(2))})),
    "diffrax": (
        "ode",
        lambda: log_likelihood(NOISE, NOISE.init(jax.random.key(0)), jax.random.key(0), jnp.zeros(2)),
    ),
    "grain": ("sources", lambda: next(batches(source([1, 2]), [[0]]))),
    "tokenizers": ("text", lambda: subwords(["a b"])),
    "flatbuffers": ("export", lambda: export(TRAINED, "never")),
    "safetensors": ("export", lambda: export(TRAINED, "never")),
    "constriction": ("codec", lambda: Stack(np.ones(3, np.uint32), 1)),
    "tqdm": (
        "cli",
        lambda: evaluate(lift(standard_normal(2)), {}, jax.random.key(0), np.zeros((3, 2), np.float32), progress=True),
    ),
}


@pytest.mark.parametrize("package", USES)
def test_a_missing_extra_says_what_installs_it(package, monkeypatch):
    name, use = USES[package]
    for module in [module for module in sys.modules if module.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs the package {package}.*pip install 'vae_jax\[{name}\]'"):
        use()


def test_arrays_in_memory_are_read_without_grain(monkeypatch, tmp_path):
    """Evaluation, and training over a mesh; arrays on disk want it."""
    for module in [module for module in sys.modules if module.split(".")[0] == "grain"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "grain", None)
    model, ys = lift(learned_normal(2)), np.ones((8, 2), np.float32)
    mesh = jax.make_mesh((4,), ("data",))
    fitted = fit(model, optax.sgd(0.1), ys, key=jax.random.key(0), epochs=1, batch_size=4, mesh=mesh, progress=False)
    assert len(evaluate(model, fitted.params, jax.random.key(0), ys).elbo) == 8
    np.save(tmp_path / "ys.npy", ys)
    with pytest.raises(ImportError, match="needs the package grain"):
        evaluate(model, fitted.params, jax.random.key(0), np.load(tmp_path / "ys.npy", mmap_mode="r"))


def test_an_extra_that_is_there_is_imported():
    with extra("report", "drawing"):
        import numpy
    assert numpy is np


def test_without_tensorboardx_a_run_keeps_all_else(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    model = vae(gaussian(affine(2)), standard_normal(1), gaussian(affine(4)))
    ys = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    fit(model, optax.sgd(1e-3), ys, key=jax.random.key(0), epochs=1, batch_size=4, directory=tmp_path, progress=False)
    kept = {"config.json", "made.json", "metrics.jsonl", "checkpoints", "lock"}
    assert {path.name for path in tmp_path.iterdir()} == kept


def affine(size):
    return Network(lambda key, x: {"w": jnp.ones((size, x.size))}, lambda params, x: params["w"] @ x)
