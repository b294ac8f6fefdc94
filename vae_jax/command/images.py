"""Images: loaded in three splits; the networks that see and draw them, and the likelihood of their pixels."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import vae_jax
from vae_jax import core, data, nets
from vae_jax.data import preprocess


class Split(NamedTuple):
    """Images (n, h, w, channels) as levels, one-hot labels (n, classes) if the model is conditional, labels."""

    ys: np.ndarray
    cs: np.ndarray | None
    labels: np.ndarray | None

    def first(self, n: int) -> "Split":
        """The first n."""
        return jax.tree.map(lambda x: x[:n], self)


def load_both(name: str, **options: Any) -> tuple[data.Dataset, data.Dataset]:
    """(train, test) by `vae_jax.data.load`; `ValueError` where their images have not one shape."""
    train, test = (data.load(name, split, **options) for split in ("train", "test"))
    if train.ys.shape[1:] != test.ys.shape[1:]:
        raise ValueError(
            f"{name}: training images have the shape {train.ys.shape[1:]}, test images {test.ys.shape[1:]}; "
            "want (h, w, channels) the same"
        )
    return train, test


def load_splits(
    name: str, *, conditional: bool = False, smoke: bool = False, **options: Any
) -> tuple[Split, Split, Split, data.Dataset]:
    """(train, validation, test, the description of the data): a tenth of the training data validates.

    Args:
        conditional: the models are given the labels.
        smoke: few of them.
        options: of `vae_jax.data.load`.
    """
    train, test = load_both(name, **options)
    if conditional:
        if train.labels is None or test.labels is None:
            raise ValueError(f"--conditional wants labels, and {name} has none: use a labelled data set")
        if (unknown := np.setdiff1d(test.labels, train.labels)).size:
            raise ValueError(f"{name} has test images of the classes {unknown.tolist()}, and no such training images")
    classes = len(train.label_names or ()) or (0 if train.labels is None else int(train.labels.max()) + 1)

    def split(source: data.Dataset, rows: np.ndarray | slice) -> Split:
        labels = None if source.labels is None else source.labels[rows]
        cs = np.eye(classes, dtype=np.float32)[labels] if conditional else None
        return Split(source.ys[rows], cs, labels)

    # Files are often sorted by class, so what is held out is drawn: the same for every seed.
    order = np.random.default_rng(0).permutation(len(train.ys))[: 576 if smoke else None]
    held_out = max(1, len(order) // 10)
    return (
        split(train, order[held_out:]),
        split(train, order[:held_out]),
        split(test, slice(0, 64 if smoke else None)),
        train,
    )


def networks(
    kind: str, shape: tuple[int, ...], *, hidden: tuple[int, ...] = (), channels: tuple[int, ...] = (), dtype: Any
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`encoder_net(out)` and `generator_net(*extra)`, whose output has the shape of an image and extra axes."""
    if kind == "mlp":
        return (
            lambda out: nets.MLP(hidden, out, dtype=dtype),
            lambda *extra: nets.MLP(hidden[::-1], (*shape, *extra), dtype=dtype),
        )
    encoder, decoder = {
        "conv": (nets.ConvEncoder, nets.ConvDecoder),
        "residual": (nets.ResEncoder, nets.ResDecoder),
    }[kind]
    return (
        lambda out: encoder(channels, out, dtype=dtype),
        lambda *extra: decoder(channels, (*shape, *extra), dtype=dtype),
    )


def pixels(
    likelihood: str, net: Callable[..., Any], *, binarisation: str = "dynamic", sigma: Any = "learned"
) -> tuple[vae_jax.Conditional, preprocess.Preprocess]:
    """(P_gen(y|z), how pixels are prepared for it), by the options --likelihood, --binarisation and --sigma.

    `net` is the second of `networks`.
    """
    if likelihood == "bernoulli":
        prepare = {
            "dynamic": preprocess.dynamic_binarisation,
            "static": preprocess.static_binarisation,
            "threshold": preprocess.threshold_binarisation,
        }[binarisation]()
        return vae_jax.bernoulli(net()), prepare
    if likelihood == "l2":
        yhat = split_last(net(2)) if sigma == "predicted" else net()
        return vae_jax.l2(yhat, sigma), preprocess.dequantisation()
    if likelihood == "categorical":
        return vae_jax.categorical(net(256)), preprocess.eight_bit()
    return vae_jax.discretised_logistic(net(2)), preprocess.eight_bit()


def split_last(net: Any) -> core.Network:
    """A network with output (..., 2) as one that gives the pair (yhat, raw log_std)."""
    network = core.as_network(net)
    return core.Network(network.init, lambda *args: tuple(jnp.moveaxis(network.apply(*args), -1, 0)))
