"""The codec: a file is the bound and gives every example back exactly; files that are not right say so."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from vae_jax import (
    bernoulli,
    conditional,
    discretised_logistic,
    enumerated,
    gaussian,
    nets,
    open_run,
    standard_normal,
    vae,
)
from vae_jax.codec import CodecError, compress, compressed, decompress
from vae_jax.codec.entropy import STEP, Classes, OutOfReach, Reals
from vae_jax.codec.files import Header
from vae_jax.codec.stack import Stack
from vae_jax.core import labelled, lift, share
from vae_jax.em import mixture_of_bernoullis, mixture_of_gaussians
from vae_jax.parts import autoregressive, learned_classes, one_hot, vampprior
from vae_jax.systems import chain, ladder
from vae_jax.vq import codebook, uniform_codes, vq_vae

PIXELS, N = 12, 200
RNG = np.random.default_rng(0)
BITS = (RNG.random((N, PIXELS)) < 0.3).astype(np.float32)
LEVELS = RNG.integers(0, 256, (N, 4)).astype(np.int32)
TOKENS = RNG.integers(0, 3, (N, 5)).astype(np.int32)


def encoder(size=3):
    return gaussian(nets.MLP((8,), 2 * size))


SYSTEMS = {
    "VAE": (vae(encoder(), standard_normal(3), bernoulli(nets.MLP((8,), PIXELS))), BITS),
    "two layers": (
        chain(
            [(encoder(), bernoulli(nets.MLP((8,), PIXELS))), (encoder(2), gaussian(nets.MLP((8,), 2 * 3)))],
            standard_normal(2),
        ),
        BITS,
    ),
    "VampPrior": (
        share(vae(e := encoder(), vampprior(e, BITS[:5]), bernoulli(nets.MLP((8,), PIXELS))), "enc", "pri/enc"),
        BITS,
    ),
    "mixture prior": (vae(encoder(), mixture_of_gaussians(3, 4), bernoulli(nets.MLP((8,), PIXELS))), BITS),
    "EM, mixture of Bernoullis": (lift(mixture_of_bernoullis(PIXELS, 3)), BITS),
    "levels": (vae(encoder(), standard_normal(3), discretised_logistic(nets.MLP((8,), (4, 2)))), LEVELS),
    "logistic mixtures": (
        vae(encoder(), standard_normal(3), discretised_logistic(nets.MLP((8,), (4, 3 * 2)), components=2)),
        LEVELS,
    ),
    "colour": (
        vae(
            encoder(),
            standard_normal(3),
            discretised_logistic(nets.MLP((8,), (2, 2, 20)), levels=16, components=2, coupled=True),
        ),
        RNG.integers(0, 16, (N, 2, 2, 3)).astype(np.int32),
    ),
    "ladder": (
        ladder(nets.mlp_rungs((2, 3), width=6, hidden=(8,), levels=2), bernoulli(nets.MLP((8,), PIXELS))),
        BITS,
    ),
    "VQ-VAE, PixelCNN over codes": (
        vq_vae(
            nets.MLP((8,), (2, 2, 3)),
            codebook(4, 3),
            autoregressive(nets.PixelCNN(4, 8, depth=1), (2, 2), 4),
            bernoulli(nets.MLP((8,), PIXELS)),
        ),
        BITS,
    ),
    "VQ-VAE, all codes alike": (
        vq_vae(nets.MLP((8,), (2, 2, 3)), codebook(4, 3), uniform_codes(4, (2, 2)), bernoulli(nets.MLP((8,), PIXELS))),
        BITS,
    ),
    "one-hot z": (
        vae(
            one_hot(nets.MLP((8,), (2, 3))),
            learned_classes(2, 3),
            bernoulli(nets.MLP((8,), PIXELS)),
            estimator=enumerated,
        ),
        BITS,
    ),
    "sentences": (
        vae(
            gaussian(nets.SequenceEncoder(3, 4, 8, 2 * 2)),
            standard_normal(2),
            autoregressive(nets.LSTM(3, 4, 8), 5, 3, end=0),
        ),
        np.where(np.cumsum(TOKENS == 0, axis=1) - (TOKENS == 0) > 0, 0, TOKENS),
    ),
}


def bound(model, params, ys):
    """(bits of all examples, their standard error) by 100 draws of each."""

    @jax.jit
    def nats(key):
        keys = jax.random.split(key, len(ys))
        return jax.vmap(lambda key, y: model.terms(params, key, y, None).nats)(keys, jnp.asarray(ys))

    drawn = np.array(jax.lax.map(nats, jax.random.split(jax.random.key(1), 100)))
    return drawn.mean(axis=0).sum() / np.log(2), np.sqrt(drawn.var(axis=0).sum()) / np.log(2)


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.over(["VAE", "two layers", "colour", "sentences"], others="afterwards")
def test_a_file_is_its_bound(name):
    """Every example comes back; the bits are the bound's within 4 standard errors of the latents' draws, and 0.5 %."""
    model, ys = SYSTEMS[name]
    params = jax.tree.map(lambda x: 0.1 * x, jax.jit(model.init)(jax.random.key(0), ys[0], None))
    found = compressed(model, params, ys, seed=3)
    bits, error = bound(model, params, ys)
    assert abs(found.bits - bits) < 4 * error + 0.005 * bits + 64
    back = decompress(model, params, found.data)
    assert back.dtype == ys.dtype
    np.testing.assert_array_equal(back, ys)
    assert 8 * len(found.data) == found.bits + found.first_bits + found.header_bits


def test_conditions():
    model = labelled(vae(encoder(), standard_normal(3), bernoulli(nets.MLP((8,), PIXELS))), 4)
    cs = RNG.integers(0, 4, N)
    params = jax.jit(model.init)(jax.random.key(0), BITS[0], 1)
    data = compress(model, params, BITS, cs)
    np.testing.assert_array_equal(decompress(model, params, data, cs), BITS)
    with pytest.raises(CodecError, match="damaged"):
        decompress(model, params, data, cs[::-1])
    with pytest.raises(CodecError, match="holds 200 examples, and wants as many conditions"):
        decompress(model, params, data, cs[1:])


def test_files_that_are_not_right():
    model, ys = SYSTEMS["VAE"]
    params = jax.jit(model.init)(jax.random.key(0), ys[0], None)
    data = compress(model, params, ys)
    flipped = bytearray(data)
    flipped[-30] ^= 1
    header, body = Header.read(data)
    elsewhere = header._replace(computed="0123456789abcdef").as_bytes() + body
    for wrong, why in (
        (bytes(flipped), "damaged"),
        (data[:-8], "damaged"),
        (data[:-4] + bytes(4), "damaged"),
        (data[:-3], "damaged or cut short"),
        (data[:20], "damaged or cut short"),
        (b"PK\x03\x04" + data, "no file of"),
        (b"", "no file of"),
        (elsewhere, "computes the model's numbers otherwise"),
    ):
        with pytest.raises(CodecError, match=why):
            decompress(model, params, wrong)
    with pytest.raises(CodecError, match="other parameters"):
        decompress(model, jax.tree.map(lambda x: x + 1, params), data)
    real = vae(encoder(), standard_normal(3), gaussian(nets.MLP((8,), 2 * PIXELS)))
    with pytest.raises(TypeError, match="real"):
        compress(real, jax.jit(real.init)(jax.random.key(0), ys[0], None), ys)
    counts = conditional(nets.MLP((8,), PIXELS), lambda logs: dist.Poisson(jnp.exp(logs)).to_event(1))
    of_counts = vae(encoder(), standard_normal(3), counts)
    with pytest.raises(TypeError, match="Poisson has no code"):
        compress(of_counts, jax.jit(of_counts.init)(jax.random.key(0), ys[0], None), ys)


def stack(*, seed=0, **options):
    words = np.random.default_rng(seed).integers(1, 2**32, size=500, dtype=np.uint32)
    return Stack(words, 4, **options)


def test_a_latent_out_of_reach_comes_back():
    """One of 20 is 100 standard deviations away, where a Gaussian of 24 bits has no mass."""
    arrays = np.full((4, 5), 0.3), np.ones((4, 5))
    values = np.rint(RNG.normal(size=(4, 5)) / STEP) * STEP
    values[1, 2] = 100.3
    written = stack()
    before = len(written.words())
    Reals().push(written, None, values, arrays)
    assert len(written.words()) - before <= 12  # 20 of 9 bits, and 23 + 22 for the one
    back = Reals().pop(Stack(written.words(), 4, written=True), None, arrays)
    np.testing.assert_array_equal(back, (np.rint(values / STEP) * STEP).astype(np.float32))


def test_a_latent_out_of_reach_is_no_reason_for_another():
    """The next draws by an encoder of the same shape are ordinary ones, and they are undone."""
    arrays = np.zeros((4, 5)), np.ones((4, 5))
    values = np.zeros((4, 5))
    values[1, 2] = 100.0
    written = stack()
    Reals().push(written, None, values, arrays)
    words = written.words()
    drawn = Reals().pop(written, None, arrays)
    assert 0 < np.abs(drawn).max() < 6
    reading = Stack(written.words(), 4, written=True)
    Reals().push(reading, None, drawn, arrays)
    np.testing.assert_array_equal(reading.words(), words)
    np.testing.assert_array_equal(Reals().pop(reading, None, arrays), values)


def test_numbers_that_have_no_code():
    zeros = np.zeros((4, 5))
    for loc, value in ((0.0, 1e5), (2e5, 2e5), (0.0, np.nan)):
        with pytest.raises(OutOfReach, match="is the model trained"):
            Reals().push(stack(), None, zeros + value, (zeros + loc, zeros + 1))
    with pytest.raises(OutOfReach, match="NaN"):
        stack().each(lambda params, x: jnp.log(x), None, zeros - 1)


def test_a_class_that_is_the_only_one_costs_nothing():
    one = stack()
    before = one.words()
    table = (np.ones((4, 5, 1), np.float32),)
    Classes(0).push(one, None, np.zeros((4, 5), np.int32), table)
    np.testing.assert_array_equal(Classes(0).pop(one, None, table), np.zeros((4, 5)))
    np.testing.assert_array_equal(one.words(), before)


ELSEWHERE = """
import sys
import numpy as np
from vae_jax import open_run
from vae_jax.codec import decompress

run = open_run("carried/fashion_vae")
np.save(sys.argv[2], decompress(run.model, run.params, open(sys.argv[1], "rb").read()))
"""


def test_another_process_reads_it(tmp_path):
    run = open_run("carried/fashion_vae")
    ys = (RNG.random((70, 28, 28, 1)) < 0.3).astype(np.float32)
    (tmp_path / "x.vj").write_bytes(compress(run.model, run.params, ys))
    line = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "x.vj"), str(tmp_path / "ys.npy")]
    subprocess.run(line, cwd=Path(__file__).parent.parent, check=True, timeout=200)
    np.testing.assert_array_equal(np.load(tmp_path / "ys.npy"), ys)
