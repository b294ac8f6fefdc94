"""Vector quantisation: VQ-VAEs, whose latents are codes, and the quantisers from vectors to codes.

    model = vq_vae(net, codebook(512, 64), uniform_codes(512, (7, 7)), l2(net_back))
    after = vq_vae(net, codebook(512, 64), autoregressive(transformer, (7, 7), 512), l2(net_back))

The second trains with `parts=("pri",)` from the first's other parts. `quantiser` says what a quantiser is, `codebook`
has vectors to choose from, `scalar` rounds numbers, `composed` makes quantisers of quantisers, `vq_vae` the model.
"""

from vae_jax.vq.codebooks import by_gradient, codebook, cosine_distance, ema, euclidean_distance
from vae_jax.vq.composed import grouped, projected, residual
from vae_jax.vq.model import encode, uniform_codes, vq_vae
from vae_jax.vq.quantiser import Quantised, Quantiser, code_perplexity, rotation, straight_through, usage
from vae_jax.vq.scalar import fsq, lfq

__all__ = [
    "Quantised", "Quantiser", "by_gradient", "code_perplexity", "codebook", "cosine_distance", "ema", "encode",
    "euclidean_distance", "fsq", "grouped", "lfq", "projected", "residual", "rotation", "straight_through",
    "uniform_codes", "usage", "vq_vae",
]  # fmt: skip
