"""A model as a lossless code: a file whose length is the bound, and every example back exactly.

    data = compress(model, params, ys, seed=0)
    ys = decompress(model, params, data)

`Model.coder` says in which order y and its latents are pushed and popped; `stack` does it for batches; `entropy` is
what one distribution is to an entropy coder; `files` is the file around it, with what has to be the same on both sides.
"""

from vae_jax.codec.files import CodecError, Compressed, compress, compressed, decompress

__all__ = ["CodecError", "Compressed", "compress", "compressed", "decompress"]
