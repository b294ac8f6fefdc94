"""The models that the package carries, small and trained: `open_run("carried/fashion_vae")`, ...

    python -m vae_jax.command.carried FOLDER           # trains them anew, in a minute
    python -m vae_jax.command.carried FOLDER --cards   # writes their cards alone, of what is there

All are of Fashion-MNIST mini (5,000 images to train on, 1,000 to test), binarised anew at every look. Each is a run
directory with what `open_run` wants, its numbers in numbers.json, and a card, README.md.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import vae_jax
from vae_jax import nets
from vae_jax.command import publish, train
from vae_jax.command.images import load_splits
from vae_jax.command.results import rows_of
from vae_jax.core import lift
from vae_jax.data import load
from vae_jax.data.datasets import CARRIED
from vae_jax.data.preprocess import dynamic_binarisation
from vae_jax.em import fit_em, mixture_of_bernoullis
from vae_jax.parts import autoregressive
from vae_jax.report import page
from vae_jax.training import Recipe, recipe, save_run
from vae_jax.training.card import card
from vae_jax.vq import codebook, vq_vae

DATA, SHAPE = "fashion_mnist_mini", (28, 28, 1)
VAE = train.Config(
    data=DATA, hidden=(128,), latent=16, epochs=60, schedule="cosine", learning_rate=2e-3, batch_size=100
)
CODES, LEVELS = 8, 64  # each image is so many codes, each of so many vectors
K = {"fashion_vae": 100, "fashion_vq_vae": 0, "fashion_mixture": 0}  # importance samples of the numbers
ABOUT = {
    "fashion_vae": "A VAE: z is 16 numbers with a normal prior. Encoder and generator have a hidden layer of 128.",
    "fashion_vq_vae": "A VQ-VAE: z is 8 codes, each one of 64 vectors of 16 numbers, and their prior is a small "
    "Transformer, trained beside the rest. Encoder and generator have a hidden layer of 96.",
    "fashion_mixture": "A mixture, fitted by EM: z is one of 20 kinds of images, each with a probability for each "
    "pixel. Its ELBO is ln P(y), exactly.",
}
USE = """It comes with the package:

```python
import jax

from vae_jax import data, open_run

run = open_run("carried/{name}")
key, ys = jax.random.key(0), data.load("{data}", "test").ys
drawn = run.sample(key, 16)  # of each, the mean of P_gen(y|z)
zs = run.encode(ys)
again = run.decode(zs)
result = run.evaluate(key, ys{k})  # the numbers above come from it
```"""
TERMS = (
    "apache-2.0, as the code of vae_jax: the parameters. The data are under the MIT licence, whose notice is in "
    "`vae_jax/data/files/NOTICES.md`."
)


def fashion_vq_vae():
    """(model, preprocess): 8 codes of 64, with an autoregressive prior that is trained beside."""
    prior = autoregressive(nets.Transformer(LEVELS, 32, 1, 2, max_length=CODES), CODES, LEVELS)
    encoder, generator = nets.MLP((96,), (CODES, 16)), vae_jax.bernoulli(nets.MLP((96,), SHAPE))
    return vq_vae(encoder, codebook(LEVELS, 16), prior, generator), dynamic_binarisation()


def fashion_mixture():
    """(model, preprocess): 20 kinds of images, each a Bernoulli for each pixel."""
    return lift(mixture_of_bernoullis(SHAPE, 20)), dynamic_binarisation()


def trained() -> dict[str, tuple[Recipe, Any]]:
    """How to build each model, and its parameters."""
    key = jax.random.key(0)
    images, valid, _, whole = load_splits(DATA)
    validation = (valid.ys, None)
    made = train.recipe_of(VAE, images)
    steps = VAE.epochs * (len(images.ys) // VAE.batch_size)
    options: dict[str, Any] = {"key": key, "batch_size": VAE.batch_size, "validation": validation}
    options["preprocess"] = dynamic_binarisation()
    vae = vae_jax.fit(made.build().model, train.build_optimizer(VAE, steps), images.ys, epochs=VAE.epochs, **options)
    codes = recipe(fashion_vq_vae)
    vq = vae_jax.fit(codes.build().model, train.build_optimizer(VAE, steps), images.ys, epochs=VAE.epochs, **options)
    keys = jax.random.split(key, len(whole.ys))
    binary = jax.vmap(dynamic_binarisation().apply)(keys, jnp.asarray(whole.ys))
    mixture = fit_em(mixture_of_bernoullis(SHAPE, 20), binary, key=key, iterations=200)
    return {
        "fashion_vae": (made, vae.params),
        "fashion_vq_vae": (codes, vq.params),
        "fashion_mixture": (recipe(fashion_mixture), mixture.params),
    }


def main(folder: Path) -> None:
    """Train them, and write a run directory for each."""
    test = load(DATA, "test")
    for name, (made, params) in trained().items():
        shutil.rmtree(folder / name, ignore_errors=True)
        save_run(folder / name, made, params, test.ys[0])
        for file in ("lock", "config.json.partial"):
            (folder / name / file).unlink(missing_ok=True)
        result = vae_jax.open_run(folder / name).evaluate(jax.random.key(0), test.ys, k=K[name], progress=True)
        rows = rows_of(result, "test ELBO", f"{len(test.ys)} test images")
        (folder / name / "numbers.json").write_text(json.dumps(publish.plain_rows(rows), indent=1))
        print(f"{name}\n{page.table_text(rows)}\n")
    write_cards(folder)


def card_of(name: str, run: vae_jax.Trained) -> str:
    """The card of one of them."""
    use = USE.format(name=name, data=DATA, k=f", k={K[name]}" * (K[name] > 0))
    return card(run, about=ABOUT[name], use=use, licence="apache-2.0", terms=TERMS, data=CARRIED[DATA])


def write_cards(folder: Path) -> None:
    """README.md of each of the run directories in a folder."""
    for name in K:
        (folder / name / "README.md").write_text(card_of(name, vae_jax.open_run(folder / name)), encoding="utf8")


if __name__ == "__main__":
    where, *options = sys.argv[1:]
    (write_cards if options == ["--cards"] else main)(Path(where))
