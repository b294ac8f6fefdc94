"""What is compiled: every row of the README's tables of systems, in the sizes of the experiments, and the settings for
accelerators that these name. `row` is the first column of the README's tables.

Batches are those of one chip; where an experiment gives the whole batch, a chip of four has a quarter of it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from experiments import diffusion as diffusion_experiment
from experiments import few_labels, hierarchical, table, text_vae
from experiments import vq_vae as vq_experiment
from vae_jax import (
    Conditional,
    Model,
    bernoulli,
    categorical,
    conditional,
    discretised_logistic,
    em,
    enumerated,
    fixed_encoder,
    gaussian,
    gumbel,
    l2,
    nets,
    standard_normal,
    vae,
)
from vae_jax import diffusion as df
from vae_jax.core import beta_tc, elbo, hoist, importance_weighted, labelled, lift, means, share
from vae_jax.core.objectives import Objective
from vae_jax.data import dequantisation, dynamic_binarisation, eight_bit, load_columns
from vae_jax.data.preprocess import Preprocess, identity
from vae_jax.parts import (
    autoregressive,
    autoregressive_flow,
    coupling_flow,
    inverse_autoregressive_flow,
    learned_classes,
    maybe_missing,
    negative_binomial,
    one_hot,
    seeing_what_is_missing,
    student_t,
    vampprior,
)
from vae_jax.systems import adversarial, gan, with_discriminator
from vae_jax.tables import cell_vae, table_vae

SHAPE = (28, 28, 1)
PIXELS, POINT = np.zeros(SHAPE, np.uint8), np.zeros(20, np.float32)
WORDS, LENGTH, SENTENCE = 8000, 30, np.zeros(30, np.int32)


class Training(NamedTuple):
    """What a step needs.

    Fields:
        model: a model, whose step is `make_train_step`'s; or one of `vae_jax.em`, whose step is one of EM.
        y, c: one example as it comes from the data, and its condition.
        batch: examples on one chip.
    """

    model: Model | Conditional
    y: Any
    batch: int = 128
    preprocess: Preprocess = identity()
    objective: Objective = elbo()
    c: Any = None
    clip_norm: float | None = None
    ema_decay: float | None = None


class System(NamedTuple):
    """The row of the README that it belongs to, the training step at a dtype of its networks, whether bfloat16 is an
    option of them."""

    row: str
    build: Callable[[Any], Training]
    bfloat16: bool = True


def on_pixels(model: Model, **options: Any) -> Training:
    return Training(model, PIXELS, preprocess=dynamic_binarisation(), **options)


def encoder(dtype: Any, latent: int = 20) -> Conditional:
    return gaussian(nets.MLP((500,), 2 * latent, dtype=dtype))


def generator(dtype: Any) -> Conditional:
    return bernoulli(nets.MLP((500,), SHAPE, dtype=dtype))


def classic(dtype: Any, pri: Any = None, enc: Any = None, **options: Any) -> Training:
    """784-500-20 on binarised pixels, with another prior or encoder."""
    return on_pixels(vae(enc or encoder(dtype), pri or standard_normal(20), generator(dtype)), **options)


def convolutional(dtype: Any) -> Training:
    channels = (32, 64, 128)
    enc, gen = nets.ConvEncoder(channels, 40, dtype=dtype), nets.ConvDecoder(channels, SHAPE, dtype=dtype)
    return on_pixels(vae(gaussian(enc), standard_normal(20), bernoulli(gen)))


def l2_optimal(dtype: Any) -> Training:
    gen = l2(nets.MLP((500,), SHAPE, dtype=dtype), "optimal")
    return Training(vae(encoder(dtype), standard_normal(20), gen), PIXELS, preprocess=dequantisation())


def logistics(dtype: Any) -> Training:
    gen = discretised_logistic(nets.MLP((500,), (*SHAPE, 15), dtype=dtype), components=5)
    return Training(vae(encoder(dtype), standard_normal(20), gen), PIXELS, preprocess=eight_bit())


def levels(dtype: Any) -> Training:
    gen = categorical(nets.MLP((500,), (*SHAPE, 256), dtype=dtype))
    return Training(vae(encoder(dtype), standard_normal(20), gen), PIXELS, preprocess=eight_bit())


def vamp(dtype: Any) -> Training:
    enc = encoder(dtype)
    prior = vampprior(enc, np.zeros((500, *SHAPE), np.float32))
    return on_pixels(share(vae(enc, prior, generator(dtype)), "enc", "pri/enc"))


def two_layers(dtype: Any) -> Training:
    inner, outer = (gaussian(nets.MLP((300,), 2 * size, dtype=dtype)) for size in (10, 20))
    return classic(dtype, vae(inner, standard_normal(10), outer))


def dense_ladder(dtype: Any) -> Training:
    return on_pixels(hierarchical.build(hierarchical.Config(depths=(5,)), SHAPE)[-1].model)


def ladder_of_25(dtype: Any) -> Training:
    """The setting for accelerators of `experiments/hierarchical.py`; its batch of 100 on four chips."""
    grids: dict[str, Any] = {"scales": (28, 4, 2, 1), "levels": (3, 6, 10, 6), "channels": 128, "conv_latent": 8}
    config = hierarchical.Config(network="conv", bfloat16=dtype == jnp.bfloat16, **grids)
    (candidate,) = hierarchical.build(config, SHAPE)
    return on_pixels(
        candidate.model, batch=config.batch_size // 4, clip_norm=config.clip_norm, ema_decay=config.ema_decay
    )


def unet(dtype: Any) -> Training:
    """The setting for accelerators of `experiments/diffusion.py`, given labels; its batch of 256 on four chips."""
    config = diffusion_experiment.Config(scale="accelerator", conditional=True, bfloat16=dtype == jnp.bfloat16)
    config = diffusion_experiment.filled(config)
    denoise, prepare = diffusion_experiment.build(config, SHAPE)
    return Training(
        df.diffusion(denoise),
        PIXELS,
        config.batch_size // 4,
        prepare,
        diffusion_experiment.build_objective(config, denoise),
        np.zeros(10, np.float32),
        clip_norm=1.0,
        ema_decay=config.ema_decay,
    )


def latent_diffusion(dtype: Any) -> Training:
    """Encoder, diffusion and generator together."""
    denoise = df.denoiser(nets.DenoisingMLP(256, (20,), 3, dtype=dtype), (20,), df.linear(-9.0, 5.0))

    def at(times: df.times.Times) -> Model:
        return vae(encoder(dtype), df.diffusion(denoise, times=times), generator(dtype))

    return on_pixels(at(df.times.uniform), objective=df.spread_times(at), ema_decay=0.999)


def on_labels(dtype: Any) -> Training:
    return classic(dtype, c=np.zeros(10, np.float32))


def on_classes(dtype: Any) -> Training:
    return on_pixels(labelled(classic(dtype).model, 10), c=np.int32(0))


def summed_classes(dtype: Any) -> Training:
    """One of 16 classes, summed over."""
    enc, gen = one_hot(nets.MLP((100,), (1, 16), dtype=dtype)), bernoulli(nets.MLP((100,), SHAPE, dtype=dtype))
    return on_pixels(vae(enc, learned_classes(1, 16), gen, estimator=enumerated))


def relaxed_classes(dtype: Any) -> Training:
    enc = one_hot(nets.MLP((500,), (20, 16), dtype=dtype))
    return on_pixels(vae(enc, learned_classes(20, 16), generator(dtype), estimator=gumbel(0.5)))


def codes(dtype: Any) -> Training:
    """Stage one of the experiment: 7 x 7 codes out of 512, whose vectors are moving averages."""
    gen, _, model = vq_experiment.build(vq_experiment.Config(), SHAPE)
    return Training(model(vq_experiment.uniform_codes(512, (7, 7)), gen), PIXELS, preprocess=dequantisation())


def prior_of_codes(prior: str) -> Callable[[Any], Training]:
    """Stage two of the experiment: the prior of 7 x 7 codes."""
    config = vq_experiment.Config(prior=prior)  # type: ignore[arg-type]
    return lambda dtype: Training(lift(vq_experiment.prior_of(config, (7, 7))), np.zeros((7, 7), np.int32))


def transformer(dtype: Any) -> Training:
    net = nets.Transformer(WORDS, 512, depth=8, heads=8, dtype=dtype)
    return Training(lift(autoregressive(net, 256, WORDS)), np.zeros(256, np.int32), 16)


def language_lstm(dtype: Any) -> Training:
    net = nets.LSTM(WORDS, 128, 256, dtype=dtype)
    return Training(lift(autoregressive(net, LENGTH, WORDS, end=0)), SENTENCE, clip_norm=5.0)


def sentences(dtype: Any) -> Training:
    """The plain way of the experiment on texts, with a vocabulary of 8,000."""
    parts = text_vae.plain(text_vae.Config(), WORDS)
    return Training(vae(parts.encoder, parts.prior, parts.generator(LENGTH)), SENTENCE, 100, clip_norm=5.0)


def judge(dtype: Any) -> Any:
    return nets.PatchDiscriminator((32, 64), dtype=dtype)


def vae_gan(dtype: Any) -> Training:
    channels = (32, 64, 128)
    enc = gaussian(nets.ConvEncoder(channels, 40, dtype=dtype))
    gen = adversarial(l2(nets.ConvDecoder(channels, SHAPE, dtype=dtype), "learned"), judge(dtype))
    return Training(hoist(vae(enc, standard_normal(20), gen), "gen/dis", "dis"), PIXELS, preprocess=dequantisation())


def plain_gan(dtype: Any) -> Training:
    gen = means(l2(nets.ConvDecoder((32, 64, 128), SHAPE, dtype=dtype), 0.1))
    model = with_discriminator(vae(encoder(dtype), standard_normal(20), gen), judge(dtype))
    return Training(model, PIXELS, preprocess=dequantisation(), objective=gan(judge(dtype)))


def counts(dtype: Any) -> Training:
    gen = conditional(nets.MLP((500,), (784,), dtype=dtype), lambda raw: dist.Poisson(jnp.exp(raw)).to_event(1))
    return Training(vae(encoder(dtype), standard_normal(20), gen), np.zeros(784, np.int32))


def with_gaps(dtype: Any) -> Training:
    """784 numbers, some of them NaN; 20 importance samples."""
    enc = gaussian(seeing_what_is_missing(nets.MLP((500,), 40, dtype=dtype)))
    gen = maybe_missing(l2(nets.MLP((500,), 784, dtype=dtype), "learned_per_dimension"))
    return Training(
        vae(enc, standard_normal(20), gen), np.zeros(784, np.float32), 32, objective=importance_weighted(20)
    )


def penguins(dtype: Any) -> Training:
    """The table of the experiment."""
    of, config = load_columns("penguins"), table.Config()
    model = table_vae(of.columns, config.latent, hidden=config.hidden)
    y = {name: ys[0] for name, ys in of.ys.items()}
    return Training(model, y, config.batch_size, objective=importance_weighted(config.samples))


def overdispersed(dtype: Any) -> Training:
    gen = negative_binomial(nets.MLP((500,), (784,), dtype=dtype))
    return Training(vae(encoder(dtype), standard_normal(20), gen), np.zeros(784, np.int32))


def outliers(dtype: Any) -> Training:
    gen = student_t(nets.MLP((500,), 2 * 784, dtype=dtype))
    return Training(vae(encoder(dtype), standard_normal(20), gen), np.zeros(784, np.float32))


def cells(dtype: Any) -> Training:
    """2,000 genes, three batches."""
    c = {"total": np.float32(1000), "batch": np.zeros(3, np.float32)}
    return Training(cell_vae(2000, latent=10, batches=3).model, np.zeros(2000, np.int32), c=c)


def few(dtype: Any) -> Training:
    """The model of the experiment, of an image whose class is not known."""
    return on_pixels(few_labels.build(few_labels.Config(), SHAPE, 10)[2], c=np.int32(-1))


def total_correlation(dtype: Any) -> Training:
    enc = encoder(dtype)
    return classic(dtype, enc=enc, objective=beta_tc(enc, 4.0, 60_000))


def by_em(model: Conditional, y: Any, batch: int = 2048) -> Callable[[Any], Training]:
    return lambda dtype: Training(model, y, batch)


# Scans of sequences run in parallel on an accelerator, which the library asks the machine that traces.
SYSTEMS: dict[str, System] = {
    "VAE 784-500-20": System("classic VAE", classic),
    "VAE, convolutional 32-64-128": System("classic VAE", convolutional),
    "L2, sigma optimal": System("the lecture's L2 distortion, with ln Z(sigma)", l2_optimal),
    "5 discretised logistics": System("8-bit images", logistics),
    "256 levels": System("8-bit images", levels),
    "mixture prior of 100": System("learned priors", lambda d: classic(d, em.mixture_of_gaussians(20, 100))),
    "VampPrior of 500": System("VampPrior", vamp),
    "coupling flow prior": System("normalising flows", lambda d: classic(d, coupling_flow(20))),
    "IAF encoder": System(
        "normalising flows", lambda d: classic(d, enc=inverse_autoregressive_flow(20, base=encoder(d)))
    ),
    "autoregressive flow alone": System(
        "normalising flows", lambda d: Training(lift(autoregressive_flow(20)), POINT, 2048), False
    ),
    "two layers": System("two stochastic layers", two_layers),
    "ladder of 5": System("ladder VAE, VDVAE", dense_ladder, False),
    "ladder of 25, accelerator": System("ladder VAE, VDVAE", ladder_of_25),
    "U-Net 128-256-256, accelerator": System("diffusion", unet),
    "latent diffusion": System("latent diffusion", latent_diffusion),
    "conditional VAE": System("conditional", on_labels),
    "class-conditional VAE": System("class-conditional", on_classes),
    "16 classes, enumerated": System("discrete z, exactly", summed_classes),
    "20 x 16 classes, Gumbel": System("discrete z, relaxed", relaxed_classes),
    "VQ-VAE, 7 x 7 of 512": System("discrete z by VQ-VAE", codes, False),
    "transformer over codes": System("autoregressive models", prior_of_codes("transformer"), False),
    "PixelCNN over codes": System("autoregressive models", prior_of_codes("pixelcnn"), False),
    "transformer, language": System("autoregressive models", transformer),
    "LSTM, language": System("autoregressive models", language_lstm),
    "text VAE": System("text VAE", sentences, False),
    "VAE-GAN": System("VAE-GAN, VQGAN", vae_gan),
    "GAN": System("VAE-GAN, VQGAN", plain_gan),
    "fixed encoder": System(
        "fixed encoder",
        lambda d: on_pixels(vae(encoder(d), standard_normal(20), generator(d), estimator=fixed_encoder)),
    ),
    "Poisson counts": System("your likelihood", counts),
    "EM, 50 full Gaussians": System(
        "mixture of Gaussians", by_em(em.mixture_of_gaussians(50, 50, "full"), np.zeros(50, np.float32)), False
    ),
    "EM, 50 Bernoullis": System(
        "other mixtures", by_em(em.mixture_of_bernoullis(SHAPE, 50), np.zeros(SHAPE, np.float32)), False
    ),
    "EM, 10 factor analysers": System(
        "other mixtures", by_em(em.mixture_of_factor_analysers(50, 10, 5), np.zeros(50, np.float32)), False
    ),
    "EM, factor analysis": System(
        "factor analysis, probabilistic PCA", by_em(em.factor_analysis(784, 20), np.zeros(784, np.float32)), False
    ),
    "EM, pPCA": System("factor analysis, probabilistic PCA", by_em(em.ppca(784, 20), np.zeros(784, np.float32)), False),
    "EM, hidden Markov model": System(
        "hidden Markov model",
        by_em(em.categorical_hmm(32, 8, 500, parallel=True), np.zeros(500, np.int32), 64),
        False,
    ),
    "EM, Gaussian HMM": System(
        "hidden Markov model",
        by_em(em.gaussian_hmm(4, 3, 256, parallel=True), np.zeros((256, 4), np.float32), 64),
        False,
    ),
    "EM, state space": System(
        "linear-Gaussian state-space model",
        by_em(em.linear_gaussian_state_space(6, 4, 256, parallel=True), np.zeros((256, 6), np.float32), 64),
        False,
    ),
    "EM, k-means of 50": System(
        "k-means", by_em(em.mixture_of_gaussians(50, 50, "spherical", hard=True), np.zeros(50, np.float32)), False
    ),
    "784 numbers with gaps": System("missing entries (NaN)", with_gaps),
    "penguins": System("numbers, counts and classes together", penguins, False),
    "negative binomial counts": System("counts", overdispersed),
    "Student t": System("other numbers", outliers),
    "cells of 2,000 genes": System("single cells", cells, False),
    "M2, class not known": System("few labels", few, False),
    "total correlation": System("independent units of z", total_correlation),
}
SMALL = (
    ("VAE 784-500-20", "replicated"),
    ("VAE 784-500-20", "fsdp"),
    ("VAE, convolutional 32-64-128", "replicated"),
    ("EM, k-means of 50", "replicated"),
)
