"""VQ-VAE: images as grids of codes; then a prior of the codes, trained with everything else fixed.

    python -m experiments.vq_vae                           # Fashion-MNIST mini: 7 x 7 codes out of 512, a transformer
    python -m experiments.vq_vae --prior pixelcnn          # masked convolutions in its place
    python -m experiments.vq_vae --data emoji_mini         # any images, folders and files too
    python -m experiments.vq_vae --help                    # every option

Stage one trains encoder, codebook and generator under the uniform prior, whose rate is a constant. Stage two trains an
autoregressive prior on the stored codes. The bound of the whole is counted in bits with both priors, image by image.
`vae_jax.open_run` opens the whole, with the trained prior.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import vae_jax
from vae_jax import Evaluation, Fitted, core, nets
from vae_jax.command import publish
from vae_jax.command.config import Images, at_least, checked, read_back
from vae_jax.command.cosine_adam import Training
from vae_jax.command.image_report import picture
from vae_jax.command.images import load_splits
from vae_jax.command.placement import Placed, evaluate_on
from vae_jax.command.results import by_epoch, over_batch
from vae_jax.data import preprocess
from vae_jax.evaluation import bits_per_dimension, mean
from vae_jax.nets import Conv, ConvTranspose, ResBlock
from vae_jax.nets.conv import Size, halved
from vae_jax.parts import autoregressive
from vae_jax.report import page, pictures
from vae_jax.vq import code_perplexity, codebook, encode, uniform_codes, usage, vq_vae


@dataclasses.dataclass(frozen=True)
class Config(Images, Placed):
    """Train a VQ-VAE and a prior of its codes, and report what both are worth."""

    codes: Annotated[int, at_least(2)] = 512
    """Vectors in the codebook, K."""
    dimensions: int = 16
    """Numbers of a vector, D."""
    channels: tuple[int, int] = (32, 64)
    """Of the convolutions at half and at a quarter of the resolution."""
    epochs: int = 30
    """Passes over the training data of stage one."""
    learning_rate: float = 1e-3
    """Of both stages, at its peak; it falls to 0 along a cosine."""

    prior: Literal["transformer", "pixelcnn"] = "transformer"
    """The network of P_pri(z) in stage two."""
    width: int = 96
    """Its channels."""
    depth: int = 3
    """Its layers."""
    prior_epochs: int = 20
    """Passes over the stored codes; the parameters with the best validation are kept."""
    out: str = "runs/vq_vae"


class GridEncoder(nn.Module):
    """Images (n, h, w, a) to vectors (n, h/4, w/4, size): two convolutions with stride 2 and a residual block."""

    channels: tuple[int, int]
    size: int

    @nn.compact
    def __call__(self, y):
        for features in self.channels:
            y = nn.relu(Conv(features, (4, 4), stride=2)(y))
        y = ResBlock(self.channels[-1])(y)
        return Conv(self.size, (1, 1))(y)


class GridDecoder(nn.Module):
    """`GridEncoder` mirrored: vectors (n, h/4, w/4, size) to images of `shape`."""

    channels: tuple[int, int]
    shape: tuple[int, int, int]

    @nn.compact
    def __call__(self, z):
        h = ResBlock(self.channels[-1])(Conv(self.channels[-1])(z))
        h = ConvTranspose(self.channels[0], (4, 4), size=halved(self.shape[:2]))(nn.relu(h))
        return ConvTranspose(self.shape[2], (4, 4), size=self.shape[:2])(nn.relu(h))


def grid_of(shape: tuple[int, ...]) -> Size:
    """The grid of codes of an image (h, w, channels): (h, w) halved twice."""
    return halved(halved((shape[0], shape[1])))


def build(config: Config, shape: tuple[int, ...], start: Any = None):
    """(P_gen(y|z), the quantiser, the model given its prior and generator); the codes start on images `start`."""
    h, w, channels = shape
    generator = vae_jax.l2(GridDecoder(config.channels, (h, w, channels)), "optimal")
    quantiser = codebook(config.codes, config.dimensions)

    def model(prior: Any, generator: Any) -> vae_jax.Model:
        return vq_vae(GridEncoder(config.channels, config.dimensions), quantiser, prior, generator, start=start)

    return generator, quantiser, model


def prior_of(config: Config, grid: Size) -> vae_jax.Conditional:
    """The autoregressive prior of stage two."""
    if config.prior == "pixelcnn":
        net: Any = nets.PixelCNN(config.codes, config.width, config.depth)
    else:
        net = nets.Transformer(config.codes, config.width, config.depth, heads=4, max_length=grid[0] * grid[1])
    return autoregressive(net, grid, config.codes)


def rebuild(*, shape: Sequence[int], **fields: Any) -> tuple[vae_jax.Model, preprocess.Preprocess]:
    """The model with the prior of stage two, for `vae_jax.open_run`."""
    config = read_back(Config, fields)
    generator, _, model_of = build(config, tuple(shape))
    return model_of(prior_of(config, grid_of(tuple(shape))), generator), preprocess.dequantisation()


def over_images(function: Any, params: Any, key: jax.Array, ys: np.ndarray) -> Any:
    """`function(params, key, y)` of every image, some at once."""
    return over_batch(function, params, jax.random.split(key, len(ys)), ys, at_once=500)


def table(
    uniform: Evaluation,
    trained: Evaluation,
    codes: dict[str, np.ndarray],
    config: Config,
    stages: tuple[Fitted, Fitted],
) -> list[page.Row]:
    """The bound with both priors, what it is made of, and how the codes are used."""
    n, cells = len(uniform.elbo), codes["test"][0].size
    before, after = bits_per_dimension(uniform), bits_per_dimension(trained)
    assert before is not None and after is not None
    gain = (trained.elbo - uniform.elbo) / (uniform.dimensions * np.log(2))
    used = {split: usage(zs, config.codes) for split, zs in codes.items()}
    rows = [
        page.Row("bits/dim, uniform prior", *before, f"at most; {n} test images, {uniform.convention}"),
        page.Row("bits/dim, trained prior", *after, "at most; the same codes"),
        page.Row("gain", *mean(gain), "bits/dim; image by image"),
        page.Row("rate, uniform prior", *mean(uniform.rate), f"nats; {cells} ln {config.codes}"),
        page.Row("rate, trained prior", *mean(trained.rate), "nats; -ln P_pri(codes)"),
        page.Row("distortion", *mean(uniform.distortion), "nats; -ln gen(y|z), ln Z included"),
    ]
    for split, how_often in used.items():
        where = f"of {config.codes}, over the codes of the {len(codes[split])} {split} images"
        rows.append(page.Row(f"codes in use, {split}", int((how_often > 0).sum()), None, where))
        rows.append(page.Row(f"perplexity, {split}", float(code_perplexity(how_often)), None, where))
    speeds = (("VQ-VAE", "images"), ("prior", "arrays of codes"))
    return rows + [
        page.Row(f"training speed, {name}", stage.images_per_second, None, f"{unit}/s, median epoch after the first")
        for (name, unit), stage in zip(speeds, stages, strict=True)
    ]


def colours(vectors: np.ndarray) -> np.ndarray:
    """(K, 3): a colour for each code, by the three principal axes of the codebook; codes near each other look alike."""
    centred = vectors - vectors.mean(axis=0)[None]
    along = centred @ np.linalg.svd(centred, full_matrices=False)[2][:3].T
    ranks = along.argsort(axis=0).argsort(axis=0)
    return ranks / max(1, len(vectors) - 1)


def sections(
    originals: np.ndarray,
    shown: np.ndarray,
    codes: np.ndarray,
    params: Any,
    samples: dict[str, np.ndarray],
    stages: tuple[Fitted, Fitted],
) -> list[page.Section]:
    """Reconstructions with their codes, usage, samples from both priors, learning curves."""
    wide, side = min(10, len(shown)), originals.shape[1]
    n = len(shown) // wide * wide
    palette = colours(np.asarray(params["codes"]["codes"]))
    maps = palette[codes[:n]].repeat(-(-side // codes.shape[1]), axis=1).repeat(-(-side // codes.shape[2]), axis=2)
    maps = maps[:, :side, : originals.shape[2]]
    three = [np.broadcast_to(x, (*x.shape[:3], 3)) for x in (originals[:n] / np.float32(255), maps, shown[:n])]
    rows = np.concatenate([part[i : i + wide] for i in range(0, n, wide) for part in three])
    names = ["image", "codes", "mean"] * (n // wide)
    how_often = np.sort(usage(codes, len(palette)))[::-1]
    return [
        page.Section(
            "Reconstructions",
            "Test images, below each its codes and what the generator makes of them. A code's colour tells where its "
            "vector lies along the three principal axes of the codebook.",
            [picture(rows, wide, "originals, codes and reconstructions", beside=names)],
        ),
        page.Section(
            "Samples",
            "Codes from the prior, then the generator's mean.",
            [picture(images, 10, f"samples, {name} prior", f"{name} prior") for name, images in samples.items()],
        ),
        page.Section(
            "Usage",
            "How often each code occurs in the test images, in parts of an even usage.",
            [
                page.Picture(
                    pictures.bars(how_often * len(palette), x="code, most frequent first", y="usage, 1 is even"),
                    "usage of the codes",
                )
            ],
        ),
        page.Section(
            "Learning curves",
            "The bound of the VQ-VAE with the uniform prior, then -ln P of the codes under the trained one.",
            [
                page.Picture(pictures.curves(learning(stage), y="nats per image"), f"{name} by epoch", name)
                for name, stage in zip(("VQ-VAE", "prior"), stages, strict=True)
            ],
        ),
    ]


def learning(stage: Fitted) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """-ELBO by epoch of training and validation."""
    return {"training": by_epoch(stage.history, "elbo", -1), "validation": by_epoch(stage.history, "valid_elbo", -1)}


@publish.timed
def main(config: Config) -> dict[str, Any]:
    """Train both stages, evaluate with both priors, report; returns the numbers of the table.

    Raises:
        ValueError: options that do not fit the data.
    """
    config = checked(config)
    if config.smoke:
        small: dict[str, Any] = {
            "epochs": 4,
            "prior_epochs": 2,
            "codes": 32,
            "channels": (8, 8),
            "width": 16,
            "depth": 1,
            "learning_rate": 1e-2,  # in some 130 steps the pictures come to show something
        }
        config = dataclasses.replace(config, **small)
    train, valid, test, source = load_splits(config.data, smoke=config.smoke)
    prepare = preprocess.dequantisation()
    k_first, k_codes, k_prior, k_evaluate, k_pictures = jax.random.split(jax.random.key(config.seed), 5)
    grid = grid_of(train.ys.shape[1:])
    some = jnp.asarray(train.ys[:512])
    start = jax.vmap(prepare.apply)(jax.random.split(jax.random.key(config.seed), len(some)), some)
    generator, quantiser, model_of = build(config, train.ys.shape[1:], start)
    uniform, prior = uniform_codes(config.codes, grid), prior_of(config, grid)

    def how(epochs: int) -> Training:
        return Training(epochs, min(16 if config.smoke else 128, len(train.ys)), config.learning_rate)

    first = model_of(uniform, generator)
    stage_one = how(config.epochs).fit(
        config, first, train.ys, k_first, validation=(valid.ys, None), preprocess=prepare
    )

    def codes_of(params, key, y):
        return encode(first, params, prepare.apply(key, y))

    splits = {"training": train, "validation": valid, "test": test}
    codes = {name: over_images(codes_of, stage_one.params, k_codes, split.ys) for name, split in splits.items()}
    valid_codes = codes.pop("validation")
    stage_two = how(config.prior_epochs).fit(
        config, core.lift(prior), codes["training"], k_prior, validation=(valid_codes, None)
    )
    params = {**stage_one.params, "pri": stage_two.params}
    publish.save(config, rebuild, params, train.ys[0], history=stage_one.history, shape=train.ys.shape[1:])
    before, after = (  # the same key: the same codes
        evaluate_on(config, model, chosen, k_evaluate, test.ys, preprocess=prepare)
        for model, chosen in ((first, stage_one.params), (model_of(prior, generator), params))
    )

    def reconstruct(params, key, y):
        codes = encode(first, params, prepare.apply(key, y))
        return generator.dist(params["gen"], quantiser.embed(params["codes"], codes)).mean

    def sample(prior, params):
        model = model_of(prior, core.means(generator))
        return np.clip(over_images(lambda p, key, _: model.sample(p, key), params, k_pictures, np.zeros(60)), 0, 1)

    shown = np.clip(over_images(reconstruct, stage_one.params, k_codes, test.ys[:40]), 0, 1)
    samples = {"uniform": sample(uniform, stage_one.params), config.prior: sample(prior, params)}
    stages = (stage_one, stage_two)
    return publish.write(
        "vq_vae",
        config,
        title=f"A VQ-VAE on {config.data}",
        lead=(
            f"{grid[0]} x {grid[1]} codes out of {config.codes}, vectors of {config.dimensions} numbers, L2 generator; "
            f"prior: a {config.prior} on the codes. {len(train.ys)} training images of shape {train.ys.shape[1:]}; "
            f"{config.epochs} and {config.prior_epochs} epochs. Data: {source.source}."
        ),
        table=table(before, after, codes, config, stages),
        sections=sections(test.ys[:40], shown, codes["test"], params, samples, stages),
    )


if __name__ == "__main__":
    publish.run(main, Config)
