"""An exported folder opens where there is jax and none of this code, by the code of its own card."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import flatbuffers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from vae_jax import Trained, bernoulli, l2, learned_normal, nets, standard_normal, vae
from vae_jax.command.main import main
from vae_jax.core import Network, labelled, lift
from vae_jax.data import dynamic_binarisation, identity
from vae_jax.data.check import leaves_by_path
from vae_jax.em import mixture_of_gaussians
from vae_jax.parts import gumbel_softmax
from vae_jax.selfcheck.solvable import affine, affine_normal
from vae_jax.systems import ladder
from vae_jax.training import export, recipe, save_run
from vae_jax.training.exported import programs_of
from vae_jax.vq import codebook, uniform_codes, vq_vae

KEY = jax.random.key(0)  # that of the card's code
RNG = np.random.default_rng(0)
LEVELS = RNG.integers(0, 256, (5, 6)).astype(np.uint8)
FLOATS = RNG.normal(size=(5, 6)).astype(np.float32)
CLASSES = np.arange(5, dtype=np.int32) % 3

# Runs the code of the cards in a Python that finds jax and what jax needs: one as it stands, the others on data.
OPEN = """
import os, re, sys
root, *path = sys.argv[1:]
sys.path.extend(path)
sys.modules.update(dict.fromkeys(["vae_jax", "safetensors", "flax", "numpyro", "optax"]))  # not found
import numpy as np
for name in sorted(os.listdir(root)):
    os.chdir(os.path.join(root, name))
    code = re.search(r"```python\\n(import json.*?)```", open("README.md").read(), re.DOTALL).group(1)
    given = np.load("given.npz")
    if name != "levels":
        code = code.replace("n = 3\\n", "n = 5\\n")
        code = re.sub(r"^(ys|cs) = .*  # yours", r"\\1 = given['\\1']  # yours", code, flags=re.MULTILINE)
    space = {"given": given}
    exec(code, space)
    several = space["zs"] if isinstance(space["zs"], list) else [space["zs"]]
    found = {f"z{i}": z for i, z in enumerate(several)}
    np.savez("found.npz", drawn=space["drawn"], again=space["again"], bounds=space["bounds"], **found)
"""


def opened(name, model, y, c=None, preprocess=identity(), **said):
    """What `open_run` would give, with parameters as they start."""
    params = jax.jit(model.init)(KEY, preprocess.apply(KEY, y), c)
    return Trained(model, params, preprocess, y, c, name=f"runs/{name}", **said)


def binary():
    return vae(affine_normal(2), standard_normal(2), bernoulli(affine(6)))


def codes():
    """Codes for z, and a class to be conditioned on."""
    model = vq_vae(nets.MLP((), (3, 2)), codebook(4, 2), uniform_codes(4, 3), l2(nets.MLP((), 6), 0.5))
    return labelled(model, 3)


def levels():
    return ladder(nets.mlp_rungs((1,), width=2, hidden=(), levels=2), l2(nets.MLP((), 6), 0.5))


def test_the_folder_opens_without_this_library(tmp_path):
    """By the card's code, for any number of examples, and with the numbers of the run."""
    cases = {
        "binary": (opened("binary", binary(), LEVELS[0], preprocess=dynamic_binarisation()), LEVELS, None),
        "codes": (opened("codes", codes(), FLOATS[0], CLASSES[0]), FLOATS, CLASSES),
        "levels": (opened("levels", levels(), FLOATS[0]), np.zeros((3, 6), np.float32), None),
    }
    for name, (run, ys, cs) in cases.items():
        folder = tmp_path / name
        export(run, folder, **({"k": 3} if name == "binary" else {"platforms": ("cpu",)}))
        np.savez(folder / "given.npz", ys=ys, **({} if cs is None else {"cs": cs}))
        params = leaves_by_path(run.params)
        kept = load_file(folder / "params.safetensors")
        assert kept.keys() == params.keys() and all(np.array_equal(kept[path], params[path]) for path in params)
    paths = {str(Path(module.__file__).parents[1]) for module in (jax, np, flatbuffers)}
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", OPEN, tmp_path, *paths], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    for name, (run, ys, cs) in cases.items():
        with np.load(tmp_path / name / "found.npz") as file:
            found = dict(file)
        zs = run.encode(ys, cs, noise=KEY)
        numbers = run.evaluate(KEY, ys, cs, k=3 if name == "binary" else 0)
        wanted = {
            "drawn": run.sample(KEY, len(ys), c=cs),
            "again": run.decode(zs, cs, key=KEY),
            "bounds": numbers.log_likelihood if name == "binary" else numbers.elbo,
            **{f"z{i}": z for i, z in enumerate(jax.tree.leaves(zs))},
        }
        assert found.keys() == wanted.keys()
        for what, x in wanted.items():
            np.testing.assert_allclose(found[what], x, rtol=1e-6, atol=1e-6, err_msg=f"{name}: {what}")
            assert found[what].dtype == x.dtype


def without_z():
    return lift(learned_normal(6))


def test_the_command_and_a_model_without_z(tmp_path, monkeypatch, capsys):
    """The card says what is known of the run, and that there is neither encoder nor decoder."""
    made = recipe(without_z)
    params = jax.jit(without_z().init)(KEY, FLOATS[0])
    save_run(tmp_path / "run", made, params, FLOATS[0])
    numbers = [
        {"name": "ELBO", "value": -3.14159, "standard_error": 0.021, "meaning": "nats; of P(y|z)"},
        {"name": "examples", "value": 12, "standard_error": None, "meaning": ""},
        {"name": "lost", "value": None, "standard_error": None, "meaning": ""},
    ]
    (tmp_path / "run" / "numbers.json").write_text(json.dumps(numbers))
    asked = ["--platforms", "cpu", "--licence", "mit", "--datasets", "me/rain", "--data", "Rain, measured by me"]
    monkeypatch.setattr(
        sys, "argv", ["vae-jax", "export", str(tmp_path / "run"), "--out", str(tmp_path / "to"), *asked]
    )
    main()
    files = {"README.md", "params.safetensors", "sampler.jax", "bound.jax"}
    assert {path.name for path in (tmp_path / "to").iterdir()} == files
    card = (tmp_path / "to" / "README.md").read_text()
    head = '---\nlicense: "mit"\nlibrary_name: jax\ntags: ["jax", "vae_jax", "stablehlo", "latent-variable-model"]\n'
    assert card.startswith(head + 'datasets: ["me/rain"]\n---\n\n# run\n')
    for line in (
        "A model P(y) of float32[6], with no z: so there is neither encoder nor decoder. It has 12 parameters",
        "| bound.jax | `bound(params, key, places, ys)` | float32[n] | the ELBO, a lower bound on ln P(y), nats |\n",
        "\nRain, measured by me.\n",
        "\n| ELBO | -3.142 ± 0.021 | nats; of P(y\\|z) |\n| examples | 12 |  |\n\n",
        f" with python {platform.python_version()}, ",
        '"function": "test_exported:without_z"',
        "\nmit: the parameters, and the programs.\n",
    ):
        assert line in card, line
    capsys.readouterr()
    with pytest.raises(
        SystemExit, match=r"^error: .*to is not empty: it holds README.md \(4 entries\); choose another"
    ):
        main()


def schur():
    """A network that jax has for CPU alone."""
    return Network(lambda key, z: {}, lambda params, z: jax.scipy.linalg.schur(jnp.outer(z, z))[0].ravel())


def test_what_cannot_be_exported_is_said_before_anything_is_written(tmp_path):
    run = opened("run", vae(affine_normal(2), standard_normal(2), bernoulli(schur())), np.zeros(4, np.float32))
    cases = (
        ("runs/vae", {}, TypeError, r'export wants an opened run, open_run\("runs/vae"\); got str'),
        (run, {"platforms": ("gpu",)}, ValueError, r"platforms wants some of cpu, cuda, tpu, rocm; got \('gpu',\)"),
        (run, {"k": -1}, ValueError, "got k=-1"),
        (
            run,
            {},
            ValueError,
            r"cannot make the sampler of runs/run for cuda, tpu: MLIR .*'schur'.*; for the others it can: "
            r"platforms=\('cpu',\)",
        ),
    )
    for given, options, kind, message in cases:
        with pytest.raises(kind, match=message):
            export(given, tmp_path / "to", **options)
    assert not (tmp_path / "to").exists()


def test_z_without_a_mean_is_drawn():
    """And is an array to whoever has no types of this library."""
    relaxed = gumbel_softmax(affine(4), 0.5)
    prior = vae(affine_normal(1), standard_normal(1), relaxed)
    run = opened("run", vae(relaxed, prior, bernoulli(affine(6))), FLOATS[0])
    programs = programs_of(run, 0)
    assert programs["encoder"].meaning == "draws from P_enc(z|y), which has no mean"
    places = np.arange(5)
    zs = jax.eval_shape(programs["encoder"].call, run.params, KEY, places, FLOATS, None)
    assert (zs.shape, zs.dtype) == ((5, 4), np.float32) and programs["decoder"].data.shape == (4,)
    ys = jax.eval_shape(programs["decoder"].call, run.params, KEY, places, zs, None)
    assert ys.shape == (5, 6)


def test_a_mixture_is_exported(tmp_path):
    """Whose covariances numpyro would check at each call."""
    export(
        opened("run", lift(mixture_of_gaussians(6, 2, covariance="full")), FLOATS[0]),
        tmp_path / "to",
        platforms=("cpu",),
    )
    assert "| encoder.jax | `encoder(params, key, places, ys)` | int32[n] |" in (tmp_path / "to/README.md").read_text()
