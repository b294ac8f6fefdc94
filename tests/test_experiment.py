"""`vae-jax train`, which is `experiments.vae`: every option trains; what is mistyped is an error in one line."""

import dataclasses
import html
import os
import re
import subprocess
import sys
import typing
from html.parser import HTMLParser
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from PIL import Image

from vae_jax import init_state, make_train_step
from vae_jax.command.images import load_splits
from vae_jax.command.placement import WHERE
from vae_jax.command.train import Config, build, build_objective, build_optimizer, main, too_few
from vae_jax.data.check import check_data

pytestmark = pytest.mark.usefixtures("quickly_compiled")

REPOSITORY = Path(__file__).parents[1]
TINY = {"data": "labelled", "hidden": (16,), "channels": (4,), "latent": 2, "batch_size": 20, "k": 0}
SETTINGS = {  # what is trained
    "bernoulli": {"data": "fashion_mnist_mini", "hidden": (500,), "latent": 20, "batch_size": 128, "k": 500},
    "conv": {
        "data": "emoji_mini",
        "size": (9, 8),
        "likelihood": "l2",
        "sigma": "predicted",
        "network": "conv",
        "channels": (4, 8),
        "estimator": "analytic",
        "beta": 0.5,
        "beta_schedule": "linear",
        "beta_epochs": 1,
        "clip_norm": 10.0,
    },
    "residual": {
        "likelihood": "l2",
        "sigma": "optimal",
        "network": "residual",
        "bfloat16": True,
        "objective": "importance-weighted",
        "importance_samples": 3,
    },
    "levels": {
        "likelihood": "discretised-logistic",
        "prior": "normal",
        "objective": "free-bits",
        "free_bits": 0.2,
        "schedule": "cosine",
        "latent": 1,
        "k": 10,
    },
    "classes": {"likelihood": "categorical", "prior": "vae", "conditional": True, "beta_schedule": "sigmoid"},
    "vamp": {"binarisation": "static", "prior": "vamp", "components": 7, "conditional": True, "ema_decay": 0.9},
    "mixture": {
        "binarisation": "threshold",
        "prior": "mixture",
        "objective": "free-bits",
        "free_bits_definition": "per-example",
        "micro_batches": 2,
        "patience": 1,
        "epochs": 1,
    },
}
BUILT = [  # what is only checked against its data: the other values
    {"likelihood": "l2", "sigma": 0.1, "train_parts": ("pri", "gen"), "learning_rate": 1e-2},
    {"likelihood": "l2", "sigma": "learned", "beta_schedule": "cyclical", "seed": 1},
    {
        "likelihood": "l2",
        "sigma": "learned_per_dimension",
        "estimator": "sticking",
        "objective": "free-bits",
        "free_bits_definition": "per-unit",
    },
]


def save_labelled(path):
    """60 + 20 images of 8 x 8, of three classes: a bright column that moves."""
    rng = np.random.default_rng(0)

    def split(n):
        labels = np.arange(n) % 3
        ys = rng.integers(0, 60, (n, 8, 8), dtype=np.uint8)
        ys[np.arange(n), :, 2 * labels] += 180
        return ys, labels

    (ys, labels), (test_ys, test_labels) = split(60), split(20)
    names = np.array(["left", "middle", "right"])
    np.savez(path, train_image=ys, train_label=labels, test_image=test_ys, test_label=test_labels, label_names=names)
    return str(path)


def config_of(options, folder):
    options = {**TINY, **options, "smoke": True, "out": str(folder / "run")}
    if options["data"] == "labelled":
        options["data"] = save_labelled(folder / "labelled.npz")
    return Config(**options)


@pytest.mark.parametrize("name", SETTINGS)
def test_trains_evaluates_and_reports(name, tmp_path, capsys):
    config = config_of(SETTINGS[name], tmp_path)
    numbers = main(config)
    printed = capsys.readouterr().out
    assert np.isfinite([value for name, value in numbers.items() if name != "training speed"]).all()
    assert numbers["training speed"] > 0 or config.epochs == 1
    assert numbers["rate"] + numbers["distortion"] == pytest.approx(-numbers["test ELBO"], rel=1e-5)
    assert ("bits/dim at most" in numbers) and numbers["bits/dim at most"] > 0
    if config.k:
        assert numbers["ln P(y) at least (k=10)"] > numbers["test ELBO"]
    page = Page((tmp_path / "run/report.html").read_text())
    check_page(page, config, numbers, printed)
    if name == "bernoulli":
        assert -700 < numbers["test ELBO"] < -300  # 784 ln 2 = 543 nats would be a coin for each pixel


class Page(HTMLParser):
    """What a page says and what it refers to."""

    def __init__(self, text):
        super().__init__()
        self.text, self.tags, self.words, self.references = text, [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data):
        self.words.append(data.strip())


def check_page(page, config, numbers, printed):
    """It needs nothing but itself, holds the printed numbers, every picture and every option."""
    assert len(page.references) >= 6 and all(found.startswith("data:image/") for found in page.references)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"https?://|@import|url\(", page.text)
    for name, value in numbers.items():
        (shown,) = re.findall(rf"^{re.escape(name)}  +(\S+)", printed, re.MULTILINE)
        assert float(shown) == pytest.approx(value, rel=0.06) or np.isnan(value)
        assert page.words[page.words.index(name) + 1] == shown.replace("-", "−")
    for title in ("Learning curve", "Samples", "Reconstructions", "Interpolations", "Traversals", "Latent map"):
        assert title in page.words
    for field in dataclasses.fields(Config):
        assert field.name in page.words, field.name
    assert html.unescape(str(config.data)) in page.words


@pytest.mark.parametrize("options", BUILT)
def test_builds(options, tmp_path):
    """The training step in the abstract: scalars for a batch, and a state of the same form."""
    config = config_of(options, tmp_path)
    train, *_ = load_splits(config.data, conditional=config.conditional, smoke=config.smoke)
    model, prepare = build(config, train)
    check_data(model, train.ys, train.cs, prepare)
    optimizer, key = build_optimizer(config, 10), jax.random.key(0)
    step = make_train_step(
        model,
        optimizer,
        objective=build_objective(config, 5),
        preprocess=prepare,
        parts=config.train_parts,
    )
    state = jax.eval_shape(lambda key: init_state(model, optimizer, key, jnp.zeros((8, 8, 1))), key)
    after, metrics = jax.eval_shape(step, state, key, train.ys[:20])
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    assert {value.shape for value in metrics.values()} == {()}


def test_the_settings_touch_every_option():
    """Every value of every choice, and every other option with a value of its own."""
    tried = [dataclasses.asdict(Config(**{**TINY, **options})) for options in (*SETTINGS.values(), *BUILT)]
    for field, kind in typing.get_type_hints(Config).items():
        if field in WHERE:  # see tests/test_pods.py and test_experiments_house.py
            continue
        values = {str(options[field]) for options in tried}
        if field != "train_parts":
            assert {str(value) for value in choices(kind)} <= values, field
        if field not in ("smoke", "out", "resume", "data_dir", "download"):  # the others; and tests/test_tfds.py
            assert len(values) > 1, field


def choices(kind):
    if typing.get_origin(kind) is typing.Literal:
        return typing.get_args(kind)
    if kind is bool:
        return ()
    return [value for inner in typing.get_args(kind) for value in choices(inner)]


def test_a_folder_of_pictures_and_a_run_that_goes_on(tmp_path):
    """20 PNGs of 12 x 10 in colour, the options as on the command line; once more with --resume is the same run."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(folder / f"{i:02}.png")
    line = f"--data {folder} --out {tmp_path / 'run'} --hidden 16 --likelihood l2 --latent 2"
    arguments = [*line.split(), "--epochs", "2", "--k", "0", "--resume"]  # 16 are fewer than the default batch
    first = main(tyro.cli(Config, args=arguments))
    assert first["bits/dim at most"] > 8  # noise costs 8 bits at the least
    assert main(tyro.cli(Config, args=arguments)) == first
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 2


# The command line


def command(*arguments):
    """(exit code, stdout, stderr)."""
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-m", "experiments.vae", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    return done.returncode, done.stdout, done.stderr


def test_a_short_training_is_said_to_be_short():
    assert too_few(60, 30) == "60 steps in all, in which little is learnt: --epochs 500 takes 1000"
    assert not too_few(1000, 30)


def test_help_shows_every_option_with_its_default():
    code, out, _ = command("--help")
    assert code == 0
    described = re.split(r"\n\W*--", out)[1:]
    assert len(described) == len(dataclasses.fields(Config))
    for field, text in zip(dataclasses.fields(Config), described, strict=True):
        assert text.startswith(field.name.replace("_", "-"))
        default = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else str(field.default) or "''"
        meaning, shown = re.search(r"(?s)\n(.*)\(default: (.*?)\)", text).groups()
        assert shown == default and len(re.findall(r"\w+", meaning)) >= 3


def test_a_misspelt_option_is_an_error_that_suggests_the_right_one():
    code, out, errors = command("--lattent", "3")
    assert code != 0
    assert "--lattent" in out + errors and "--latent" in out + errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--data", "fashion_mnits"],
            "unknown data set 'fashion_mnits'.*emoji_mini, fashion_mnist",
        ),
        (["--latent", "3"], "holds a run with another configuration.*\n  latent: 2 there, 3 asked"),
    ],
)
def test_what_cannot_be_run_is_an_error_without_a_traceback(tmp_path, arguments, message):
    (tmp_path / "config.json").write_text('{"latent": 2}')
    code, _, errors = command("--smoke", "--out", str(tmp_path), *arguments)
    assert code == 1
    assert re.match(f"error: .*{message}", errors[errors.index("error: ") :])
    assert "Traceback" not in errors


def test_a_test_label_that_training_lacks(tmp_path):
    images = np.zeros((20, 8, 8), np.uint8)
    labels = {"train_label": np.arange(20) % 3, "test_label": np.arange(20) % 5}
    np.savez(tmp_path / "data.npz", train_image=images, test_image=images, **labels)
    with pytest.raises(ValueError, match=r"data\.npz has test images of the classes \[3, 4\], and no such"):
        load_splits(str(tmp_path / "data.npz"), conditional=True)
    assert load_splits(str(tmp_path / "data.npz"))[2].labels.max() == 4  # unconditional models do not ask
