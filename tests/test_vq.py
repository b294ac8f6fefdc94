"""Vector quantisation: gradients, the codebook as hard EM, several codes for a vector, and the bound of a VQ-VAE."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from jax.test_util import check_grads
from scipy.special import logsumexp
from scipy.stats import entropy, norm

from vae_jax import gaussian, init_state, l2, make_train_step
from vae_jax.core import lift, start_from
from vae_jax.core.model import average
from vae_jax.em import k_means, mixture_of_gaussians
from vae_jax.em.kmeans import assign, lloyd
from vae_jax.selfcheck.solvable import affine, table
from vae_jax.training import batch_sharding, replicated
from vae_jax.vq import (
    Quantiser,
    by_gradient,
    code_perplexity,
    codebook,
    cosine_distance,
    ema,
    encode,
    fsq,
    grouped,
    lfq,
    projected,
    residual,
    rotation,
    uniform_codes,
    usage,
    vq_vae,
)

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
KEY = jax.random.key(0)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def nearest(vectors, codes):
    """Indices and squared distances, by numpy and by definition."""
    vectors, codes = np.asarray(vectors), np.asarray(codes)
    squared = ((vectors[..., None, :] - codes) ** 2).sum(axis=-1)
    return squared.argmin(axis=-1), squared.min(axis=-1)


@functools.partial(jit, static_argnums=0)
def after(quantiser, params, batch):
    """The parameters after a training step on a batch (n, ..., D) with no gradient."""
    stats = jax.vmap(lambda vectors: quantiser.quantise(params, vectors).stats)(batch)
    return quantiser.maximise(params, average(stats))


@functools.partial(jit, static_argnums=0)
def started(quantiser, batch):
    return quantiser.start(KEY, quantiser.init(KEY, batch[0]), batch)


@functools.partial(jit, static_argnums=0)
def quantised(quantiser, params, vectors):
    return quantiser.quantise(params, vectors)


# The lookup


@pytest.mark.parametrize(("n", "k", "d"), [(1, 2, 1), (7, 3, 2), (3000, 600, 4)])
def test_assign_is_the_nearest_centre_also_in_blocks_and_under_vmap(n, k, d):
    rows, centres = normal(n, d), normal(k, d, seed=1)
    want, _ = nearest(rows, centres)
    np.testing.assert_array_equal(jit(assign)(rows, centres), want)
    both = jit(jax.vmap(assign, (0, None)))(jnp.stack([rows, rows[::-1]]), centres)
    np.testing.assert_array_equal(both, [want, want[::-1]])
    other = jit(jax.vmap(assign, (None, 0)))(rows, jnp.stack([centres, centres[::-1]]))
    np.testing.assert_array_equal(other, [want, k - 1 - want])


def test_of_equal_centres_the_first_is_nearest_and_nan_is_somewhere():
    rows = jnp.array([[1.0], [np.nan]])
    found = np.asarray(jit(assign)(rows, jnp.array([[0.0], [1.0], [1.0]])))
    assert found[0] == 1 and 0 <= found[1] < 3


# Gradients


def loss_at(model, quantiser, y):
    """The loss by the encoder's vectors (which are its parameters) and the codes."""

    def loss(vectors, codes, gen):
        terms = model.terms({"enc": vectors, "codes": codes, "pri": {}, "gen": gen}, KEY, y)
        return terms.nats + terms.penalty, terms

    return loss


@pytest.mark.parametrize("by_means", [True, False])
def test_straight_through_and_which_term_moves_what(x64, by_means):
    """Oracle 30: the generator's input gradient reaches the encoder as it is; each square moves one of the two."""
    commitment = 0.7
    quantiser = codebook(5, 3, update=ema() if by_means else by_gradient(), commitment=commitment)
    free = (lambda key, y: normal(4, 3), lambda params, y: params)
    generator = l2(affine_of_all(2), 0.5)
    model = vq_vae(free, quantiser, uniform_codes(5, 4), generator)
    y, vectors = normal(2, seed=1), normal(4, 3, seed=2)
    codes, gen = jit(quantiser.init)(KEY, vectors), jit(generator.init)(KEY, vectors)
    index, squared = nearest(vectors, codes["codes"])
    q = codes["codes"][index]

    loss = loss_at(model, quantiser, y)
    graded = jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    (_, terms), (to_enc, to_codes, to_gen) = graded(vectors, codes, gen)
    np.testing.assert_array_equal(terms.codes[0], index)
    np.testing.assert_array_equal(terms.detail["vectors"], q)
    np.testing.assert_allclose(terms.penalty, (commitment + (not by_means)) * squared.sum(), rtol=1e-12)
    distortion = jit(jax.grad(lambda q, gen: -generator.dist(gen, q).log_prob(y), (0, 1)))
    to_input, wanted_gen = distortion(q, gen)
    np.testing.assert_allclose(to_enc, to_input + 2 * commitment * (vectors - q), rtol=1e-12)
    jax.tree.map(lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-12), to_gen, wanted_gen)
    moved = np.zeros((5, 3)) if by_means else np.asarray(jnp.zeros((5, 3)).at[index].add(2 * (q - vectors)))
    np.testing.assert_allclose(to_codes["codes"], moved, rtol=1e-12)
    assert all(not np.any(x) for x in jax.tree.leaves(to_codes["running"]))


def affine_of_all(size):
    """weights @ (all of z, flat) + bias."""
    init, apply = affine(size)
    return (lambda key, z: init(key, jnp.ravel(z))), (lambda params, z: apply(params, jnp.ravel(z)))


def test_without_commitment_the_encoders_gradient_is_the_generators_bit_for_bit():
    quantiser = codebook(4, 2, commitment=0.0)
    params = jit(quantiser.init)(KEY, jnp.zeros((3, 2)))
    cotangent, vectors = normal(3, 2, seed=3).astype(jnp.float32), normal(3, 2).astype(jnp.float32)

    @jit
    def pulled(vectors, cotangent):
        found, pull = jax.vjp(lambda e: quantiser.quantise(params, e).vectors, vectors)
        return found, pull(cotangent)[0]

    found, to_encoder = pulled(vectors, cotangent)
    np.testing.assert_array_equal(to_encoder, cotangent)
    np.testing.assert_array_equal(found, params["codes"][nearest(vectors, params["codes"])[0]])


turned = jit(lambda e, q: (rotation(e, q), jax.jacobian(rotation)(e, q)))


def test_the_rotation_turns_and_scales(x64):
    """Its Jacobian is |q|/|e| times a rotation in the plane of e and q that takes one direction to the other."""
    for seed in range(3):
        e, q = np.asarray(normal(2, 4, seed=seed))
        found, slope = turned(e, q)
        np.testing.assert_allclose(found, q, rtol=1e-12)
        turn = np.asarray(slope) * np.linalg.norm(e) / np.linalg.norm(q)
        np.testing.assert_allclose(turn @ turn.T, np.eye(4), atol=1e-12)
        np.testing.assert_allclose(np.linalg.det(turn), 1.0)
        np.testing.assert_allclose(turn @ e / np.linalg.norm(e), q / np.linalg.norm(q))
        aside = np.linalg.svd(np.stack([e, q]))[2][2:]  # orthogonal to both: stays
        np.testing.assert_allclose(aside @ turn.T, aside, atol=1e-12)


@pytest.mark.parametrize("e", [[0.0, 0.0], [-2.0, 0.0], [1e-30, 0.0], [1e30, 0.0]])
def test_the_rotation_is_finite_where_there_is_no_direction(e):
    q, e = jnp.array([1.0, 0.0]), jnp.array(e)
    found, slope = turned(e, q)
    np.testing.assert_array_equal(found, q)
    assert np.all(np.isfinite(slope))


# The codebook

LLOYD = codebook(12, 2, update=ema(0.0), revive=0.0)
LLOYD_INIT, LLOYD_STEP = jit(LLOYD.init), jit(functools.partial(lloyd, iterations=1))


@pytest.mark.parametrize("seed", range(3))
def test_decay_0_on_a_full_batch_is_one_step_of_lloyd(x64, seed):
    """Oracle 31; means by numpy, and codes without vectors stay."""
    batch = normal(40, 5, 2, seed=seed)
    quantiser = LLOYD
    params = LLOYD_INIT(jax.random.key(seed), batch[0])
    params = {**params, "codes": params["codes"].at[0].set(50.0)}
    rows, codes = np.asarray(batch).reshape(-1, 2), np.asarray(params["codes"])
    index, squared = nearest(rows, codes)
    means = [rows[index == k].mean(axis=0) if k in index else codes[k] for k in range(12)]
    new = after(quantiser, params, batch)
    np.testing.assert_allclose(new["codes"], np.stack(means), rtol=1e-12)
    np.testing.assert_allclose(new["codes"], LLOYD_STEP(rows, codes), rtol=1e-12)
    np.testing.assert_allclose(new["running"]["count"], np.bincount(index, minlength=12) / 40, rtol=1e-12)
    np.testing.assert_allclose(new["running"]["error"].sum(), squared.sum() / 40, rtol=1e-12)


def test_it_is_the_limit_of_the_mixture_of_gaussians(x64):
    """One iteration of EM from equal weights; the smaller the variance, the nearer to the codebook's step."""
    batch = normal(60, 1, 2)
    quantiser = codebook(4, 2, update=ema(0.0), revive=0.0)
    params = jit(quantiser.init)(KEY, batch[0])
    em = mixture_of_gaussians(2, 4, "spherical").em
    want = np.asarray(after(quantiser, params, batch)["codes"])
    means = jit(lambda soft: em.maximise(soft, em.expect(soft, batch[:, 0], None)[1], 60)["gen"]["means"])
    away = []
    for std in (0.5, 0.1, 0.003):
        gen = {"means": params["codes"], "covariances": np.full(4, np.log(std))}
        soft = {"pri": {"logits": np.zeros(4)}, "gen": gen}
        away.append(np.abs(means(soft) - want).max())
    assert away[0] > away[1] > away[2] and away[2] < 1e-6


def test_running_averages_weigh_a_batch_by_its_age(x64):
    """With decay d the mean of a code is sum_t d^(T-t) (sum of its vectors) / sum_t d^(T-t) (their number)."""
    batches, decay = normal(3, 20, 2, 2), 0.8
    quantiser = codebook(3, 2, update=ema(decay), revive=0.0)
    start = params = jit(quantiser.init)(KEY, batches[0, 0])
    count, total = np.asarray(start["running"]["count"]), np.asarray(start["running"]["total"])
    np.testing.assert_allclose(count.sum(), 2)  # vectors of an example
    for batch in batches:
        index, _ = nearest(batch.reshape(-1, 2), params["codes"])
        member = np.eye(3)[index] / len(batch)
        count = decay * count + (1 - decay) * member.sum(axis=0)
        total = decay * total + (1 - decay) * member.T @ batch.reshape(-1, 2)
        params = after(quantiser, params, batch)
        np.testing.assert_allclose(params["codes"], total / count[:, None], rtol=1e-12)
    np.testing.assert_allclose(quantiser.usage(params), count / count.sum(), rtol=1e-12)


def test_a_code_without_use_moves_beside_the_largest_error(x64):
    """Codes 2 and 3 have no vectors: the two cells with the largest errors are split, and all their statistics."""
    quantiser = codebook(5, 1, update=ema(0.0), revive=0.1)
    vectors = jnp.array([[-1.0], [1.0], [9.0], [11.0], [20.0], [26.0]])
    params = jit(quantiser.init)(KEY, vectors)
    params = {**params, "codes": jnp.array([[0.0], [10.5], [-70.0], [80.0], [22.0]])}
    new = after(quantiser, params, vectors[None])
    count, error = 2.0, np.array([2.0, 2.5, 20.0])  # of codes 0, 1 and 4
    steps = 0.1 * np.sqrt(error / count)
    want = [0.0, 10 - steps[1], 23 - steps[2], 10 + steps[1], 23 + steps[2]]  # 2 comes from below, 3 from above
    np.testing.assert_allclose(new["codes"][:, 0], want, rtol=1e-12)
    running = new["running"]
    np.testing.assert_allclose(running["count"], [2, 1, 1, 1, 1])
    np.testing.assert_allclose(running["error"], [2.0, 1.25, 10.0, 1.25, 10.0])
    np.testing.assert_allclose(running["total"], running["count"][:, None] * new["codes"], rtol=1e-12)
    np.testing.assert_allclose(running["total"].sum(), vectors.sum(), rtol=1e-12)
    assert len(np.unique(nearest(vectors, new["codes"])[0])) == 5


def test_no_more_codes_move_than_there_are_cells_to_split():
    """One cell holds everything: one code joins it, then two the two halves."""
    quantiser = codebook(4, 1, update=ema(0.0), revive=0.5)
    params = jit(quantiser.init)(KEY, jnp.zeros((1, 1)))
    params = {**params, "codes": jnp.array([[0.0], [70.0], [80.0], [90.0]])}
    batch = normal(100, 1, 1).astype(jnp.float32)
    used = []
    for _ in range(4):
        params = after(quantiser, params, batch)
        used.append(int((params["running"]["count"] > 0).sum()))
    assert used == [2, 4, 4, 4]


def test_a_rare_cell_is_not_split():
    """Cell 1 has the largest error and 3 of 13 vectors: half of them would be below the limit of 13/6."""
    quantiser = codebook(3, 1, update=ema(0.0), revive=0.5)
    vectors = np.array([*[-1.0, 1.0] * 5, 80.0, 100.0, 120.0], np.float32)[:, None]
    params = {**jit(quantiser.init)(KEY, vectors), "codes": jnp.array([[0.0], [100.0], [-900.0]])}
    new = after(quantiser, params, vectors[None])
    np.testing.assert_allclose(new["codes"], [[0.1], [100.0], [-0.1]], rtol=1e-5)


def test_revival_brings_a_poor_start_to_use():
    """32 codes for 200 directions, all but one of them far off at the start: without revival one is used."""
    batch = np.asarray(normal(200, 1, 3).astype(jnp.float32))
    batch = batch / np.linalg.norm(batch, axis=-1, keepdims=True)
    far = np.where(np.arange(32)[:, None] > 0, 100.0, np.zeros((1, 3))).astype(np.float32)
    found = {}
    for revive in (0.0, 0.05):
        quantiser = codebook(32, 3, update=ema(0.9), revive=revive)
        running = jit(quantiser.init)(KEY, batch[0])["running"]
        params = {"codes": far, "running": {**running, "total": np.asarray(running["count"])[:, None] * far}}
        for _ in range(150):
            params = after(quantiser, params, batch)
        found[revive] = float(code_perplexity(quantiser.usage(params)))
    assert found[0.0] < 1.001 and found[0.05] > 20


def test_by_gradient_a_code_without_use_moves_too():
    quantiser = codebook(2, 1, update=by_gradient(0.0), revive=0.1)
    params = {**jit(quantiser.init)(KEY, jnp.zeros((2, 1))), "codes": jnp.array([[1.0], [50.0]])}
    new = after(quantiser, params, jnp.array([[[-1.0], [3.0]]]))
    np.testing.assert_allclose(new["codes"], [[1 - 0.2], [1 + 0.2]], rtol=1e-6)  # 0.1 times the error of 2


def test_the_start_is_that_of_k_means(x64):
    batch = normal(30, 4, 2)
    quantiser = codebook(6, 2)
    params = started(quantiser, batch)
    rows = np.asarray(batch).reshape(-1, 2)
    np.testing.assert_allclose(params["codes"], jit(k_means, static_argnums=2)(KEY, rows, 6), rtol=1e-12)
    index, squared = nearest(rows, params["codes"])
    np.testing.assert_allclose(params["running"]["count"], np.bincount(index, minlength=6) / 30, rtol=1e-12)
    np.testing.assert_allclose(params["running"]["error"].sum(), squared.sum() / 30, rtol=1e-12)
    with pytest.raises(ValueError, match=r"8 vectors to start from \(2 examples\) are fewer than the 9 codes"):
        codebook(9, 2).start(KEY, jit(codebook(9, 2).init)(KEY, batch[0]), batch[:2])


def test_cosine_looks_at_the_angle(x64):
    quantiser = codebook(6, 3, distance=cosine_distance)
    vectors = 10 * normal(50, 3)
    params = jit(quantiser.init)(KEY, vectors)
    found = quantised(quantiser, params, vectors)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    np.testing.assert_array_equal(found.codes, (units @ params["codes"].T).argmax(axis=1))
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1.0)
    new = after(quantiser, params, vectors[None])
    np.testing.assert_allclose(np.linalg.norm(new["codes"], axis=1), 1.0)


# Every quantiser

QUANTISERS = {
    "codebook": (codebook(6, 4), (), 4),
    "by gradient, rotation": (codebook(6, 4, update=by_gradient(), through=rotation), (), 4),
    "cosine": (codebook(6, 4, distance=cosine_distance), (), 4),
    "projected": (projected(codebook(6, 2), 5, 2), (), 5),
    "grouped residual": (grouped(residual(codebook(6, 2), 3), 2), (3, 2), 4),
    "projected, residual, fsq": (projected(residual(fsq((3, 2)), 2), 5, 2), (2,), 5),
    "fsq": (fsq((5, 4, 3)), (), 3),
    "lfq": (lfq(4), (), 4),
}


@pytest.fixture(params=QUANTISERS)
def case(request) -> tuple[Quantiser, tuple[int, ...], int]:
    return QUANTISERS[request.param]


def test_codes_stand_for_the_vectors(case, x64):
    """embed(codes) = vectors; codes in range; the usage counts them; a start and a step keep the shapes."""
    quantiser, streams, size = case
    batch = normal(8, 2, 3, size)
    params = jit(quantiser.init)(KEY, batch[0])
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), params)
    starts = jax.eval_shape(quantiser.start, KEY, params, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), starts) == shapes
    found = jit(jax.vmap(quantiser.quantise, (None, 0)))(params, batch)
    assert found.codes.shape == (8, 2, 3, *streams) and found.codes.dtype == jnp.int32
    assert found.codes.min() >= 0 and found.codes.max() < quantiser.levels
    np.testing.assert_allclose(quantiser.embed(params, found.codes), found.vectors, rtol=1e-12)
    new = after(quantiser, params, batch)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), new) == shapes
    used = np.asarray(quantiser.usage(new))
    assert used.shape == (*streams, quantiser.levels)
    np.testing.assert_allclose(used.sum(axis=-1), 1.0)


def test_the_gradient_reaches_the_encoder_and_is_finite(case):
    quantiser, _, size = case
    reached = []
    for vectors in (normal(3, size).astype(jnp.float32), jnp.zeros((3, size)), jnp.full((3, size), 1e6)):
        params = jit(quantiser.init)(KEY, vectors)

        def loss(vectors, params):
            found = quantiser.quantise(params, vectors)
            return jnp.sum(found.vectors**2) + found.penalty

        grads = jit(jax.grad(loss, (0, 1)))(vectors, params)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(grads))
        reached.append(bool(np.any(grads[0])))
    assert reached[0]


@pytest.mark.parametrize("codes", [-1, 6, 0.0])
def test_codes_out_of_range_are_refused(codes):
    quantiser = codebook(6, 2)
    params = jit(quantiser.init)(KEY, jnp.zeros(2))
    with pytest.raises(ValueError, match=r"codes (go from 0 to 5|are whole numbers)"):
        quantiser.embed(params, np.array([0, codes]))


def test_vectors_of_another_size_are_refused(case):
    quantiser, _, _ = case
    with pytest.raises(ValueError, match=r"shape \(3, 7\)"):
        quantiser.init(KEY, jnp.zeros((3, 7)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: codebook(1, 2), "K >= 2; got K=1"),
        (lambda: codebook(4, 0), "size >= 1"),
        (lambda: codebook(4, 2, commitment=-1.0), "commitment >= 0"),
        (lambda: codebook(4, 2, revive=1.0), r"revive in \[0, 1\)"),
        (lambda: ema(1.0), r"decay .* \[0, 1\); got 1.0"),
        (lambda: by_gradient(-0.1), r"decay .* got -0.1"),
        (lambda: fsq(()), "levels"),
        (lambda: fsq((8, 1)), "from 2 to 256"),
        (lambda: fsq((8, 2.5)), r"from 2 to 256.*got \(8, 2.5\): whole numbers"),
        (lambda: codebook(4.0, 2), "K >= 2; got K=4.0: a whole number"),
        (lambda: codebook(4, 2.5), "size >= 1"),
        (lambda: codebook(4, 2, commitment=float("nan")), "commitment >= 0"),
        (lambda: lfq(2.5), "bits in 1 .. 20, .*got 2.5"),
        (lambda: residual(codebook(4, 2), 1.5), "depth is .* at least 1; got 1.5: a whole number"),
        (lambda: grouped(codebook(4, 2), -2), "groups .* got -2"),
        (lambda: projected(codebook(4, 2), 4, 0), "projected goes from size to inner .* got 4 and 0"),
        (lambda: uniform_codes(4, (7, 2.5)), r"positive whole sizes in shape; got \(7, 2.5\)"),
        (lambda: lfq(0), "bits in 1"),
        (lambda: lfq(4, decay=2.0), "decay"),
        (lambda: residual(codebook(4, 2), 0), "depth"),
        (lambda: grouped(codebook(4, 2), 0), "groups"),
        (lambda: uniform_codes(1, 3), "K=1"),
    ],
)
def test_options_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Several codes for a vector


def test_what_is_left_falls_with_depth():
    """Each codebook is started by k-means on what those before it left over."""
    batch = normal(400, 1, 4).astype(jnp.float32)
    quantiser = residual(codebook(8, 4), 3)
    params = started(quantiser, batch)
    codes = jit(jax.vmap(quantiser.quantise, (None, 0)))(params, batch).codes
    parts = np.stack([params[i]["codes"][codes[..., i]] for i in range(3)])
    left = [((batch - parts[:depth].sum(axis=0)) ** 2).mean() for depth in range(4)]
    assert all(b < 0.7 * a for a, b in itertools.pairwise(left))


def test_residual_codes_are_those_of_what_is_left(x64):
    quantiser = residual(codebook(5, 2, commitment=1.0), 2)
    vectors = normal(7, 2)
    first, second = jax.tree.map(np.asarray, jit(quantiser.init)(KEY, vectors))

    @jit
    def pulled(vectors, cotangents):
        found, pull = jax.vjp(lambda e: quantiser.quantise((first, second), e)[1:3], vectors)
        return found, pull(cotangents)[0]

    index, squared = nearest(vectors, first["codes"])
    rest = np.asarray(vectors) - first["codes"][index]
    index2, squared2 = nearest(rest, second["codes"])
    ones = np.ones((7, 2))
    (found, of_vectors), (_, of_penalty) = (pulled(vectors, c) for c in ((ones, 0.0), (0 * ones, 1.0)))
    codes = quantised(quantiser, (first, second), vectors).codes
    np.testing.assert_array_equal(codes, np.stack([index, index2], 1))
    np.testing.assert_allclose(found[0], first["codes"][index] + second["codes"][index2], rtol=1e-12)
    np.testing.assert_allclose(found[1], squared.sum() + squared2.sum(), rtol=1e-12)
    np.testing.assert_array_equal(of_vectors, ones)  # once, not once for each codebook
    to_encoder = 2 * (2 * rest - second["codes"][index2])
    np.testing.assert_allclose(of_penalty, to_encoder, rtol=1e-12)


def test_groups_are_quantisers_side_by_side():
    inner = codebook(5, 2)
    quantiser, vectors = grouped(inner, 3), normal(4, 6).astype(jnp.float32)
    params = jit(quantiser.init)(KEY, vectors)
    found = quantised(quantiser, params, vectors)
    for i in range(3):
        own = quantised(inner, params[i], vectors[:, 2 * i : 2 * i + 2])
        np.testing.assert_array_equal(found.codes[:, i], own.codes)
        np.testing.assert_array_equal(found.vectors[:, 2 * i : 2 * i + 2], own.vectors)


def test_a_projection_starts_as_one(x64):
    """down and up are orthonormal, so vectors in their plane come back as the inner quantiser has them."""
    quantiser = projected(codebook(400, 2), 5, 2)
    params = jax.tree.map(np.asarray, jit(quantiser.init)(KEY, normal(3, 5)))
    np.testing.assert_allclose(params["down"].T @ params["down"], np.eye(2), atol=1e-12)
    plane = np.asarray(normal(200, 2)) @ params["up"]
    found = quantised(quantiser, params, plane)
    want, _ = nearest(plane @ params["down"], params["inner"]["codes"])
    np.testing.assert_array_equal(found.codes, want)
    np.testing.assert_allclose(found.vectors, params["inner"]["codes"][want] @ params["up"], atol=1e-12)


# Without a codebook


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (2,), (3, 2), (7, 256)])
def test_fsq_codes_and_values_are_in_bijection(levels, x64):
    """Oracle 33: over all codes; each value is quantised to itself, the first digit counts fastest."""
    quantiser, n = fsq(levels), int(np.prod(levels))
    codes = np.arange(n)
    values = np.asarray(quantiser.embed({}, codes))
    assert len(np.unique(values, axis=0)) == n
    digits = np.stack(np.unravel_index(codes, levels, order="F"), axis=-1)
    half = np.array(levels) // 2
    np.testing.assert_allclose(values, (digits - half) / half, rtol=1e-12)
    reach, offset = (np.array(levels) - 1) * 1.001 / 2, (1 - np.array(levels) % 2) / 2
    before = np.arctanh((values * half + offset) / reach)
    found = quantised(quantiser, quantiser.init(KEY, values), before)
    np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_allclose(found.vectors, values, rtol=1e-12)
    ends = quantised(quantiser, quantiser.init(KEY, values), np.array([[-1e9], [1e9]]) * np.ones((1, len(levels))))
    np.testing.assert_array_equal(ends.codes, [0, n - 1])


def test_fsq_uses_all_levels_of_normal_numbers_alike(x64):
    """Thresholds by numpy, shares of N(0, 1) by scipy, and the slope at 0: the entropy is 0.98 of the most or more."""
    line = np.linspace(-5, 5, 4001)
    for n in range(2, 257):
        edges = np.arctanh((2 * np.arange(1, n) - n) / ((n - 1) * 1.001))
        shares = np.diff(norm.cdf(edges), prepend=0, append=1)
        np.testing.assert_allclose(shares, shares[::-1], rtol=1e-9)
        assert entropy(shares) > 0.98 * np.log(n)
        x = np.where(np.isin(line, edges), 6.0, line)
        np.testing.assert_array_equal(fsq((n,)).quantise({}, x[:, None]).codes, np.searchsorted(edges, x))
        if n in (2, 3, 8, 255, 256):
            slope = jax.grad(lambda x, n=n: fsq((n,)).quantise({}, x[None]).vectors[0])(jnp.zeros(()))
            assert slope == pytest.approx((n - 1) * 1.001 / 2 / (n // 2), rel=1e-9)


def test_lfq_codes_are_signs(x64):
    quantiser, vectors = lfq(3), normal(20, 3)
    found = quantised(quantiser, quantiser.init(KEY, vectors), vectors)
    np.testing.assert_array_equal(found.codes, (np.asarray(vectors) > 0) @ [1, 2, 4])
    np.testing.assert_array_equal(found.vectors, np.sign(vectors))


def test_lfq_has_the_gradient_of_the_batch_entropy(x64):
    """Where the running mean is the batch's: mean H(p) - H(mean p) and its gradient, by scipy's and by definition."""
    quantiser, batch = lfq(3, commitment=0.0, entropy=1.0, decay=0.0), 0.3 * normal(50, 1, 3)
    params = after(quantiser, quantiser.init(KEY, batch[0]), batch)

    def ours(batch):
        return jnp.mean(jax.vmap(lambda e: quantiser.quantise(params, e).penalty)(batch))

    def bits(batch):
        """softmax(-||e - sign||^2) over the two signs."""
        both = jnp.stack([-((batch + 1) ** 2), -((batch - 1) ** 2)], axis=-1)
        return jax.nn.softmax(both)

    def entropies(p):
        return -jnp.sum(p * jnp.log(p), axis=-1).sum(axis=-1)

    def wanted(batch):
        p = bits(batch)
        return jnp.mean(entropies(p)) - entropies(p.mean(axis=(0, 1)))

    p = np.asarray(bits(batch))
    by_scipy = entropy(p, axis=-1).sum(axis=-1).mean() - entropy(p.mean(axis=(0, 1)), axis=-1).sum()
    (value, gradient), (also, want) = (jit(jax.value_and_grad(f))(batch) for f in (ours, wanted))
    np.testing.assert_allclose([value, also], by_scipy, rtol=1e-10)
    np.testing.assert_allclose(gradient, want, rtol=1e-10, atol=1e-14)


# Numbers about codes


def test_perplexity():
    """Oracle 32, and scipy's entropy on other instances; codes without use cost nothing."""
    np.testing.assert_allclose(code_perplexity([0.5, 0.25, 0.125, 0.125]), 3.36358566, rtol=1e-6)
    counts = np.random.default_rng(0).integers(0, 5, size=(4, 3, 20))
    np.testing.assert_allclose(code_perplexity(counts), np.exp(entropy(counts, axis=-1)), rtol=1e-5)
    np.testing.assert_allclose(code_perplexity(np.ones(512)), 512, rtol=1e-5)
    assert code_perplexity(np.zeros(3)) == 1.0
    np.testing.assert_allclose(usage([[0, 1], [1, 3]], 5), [0.25, 0.5, 0, 0.25, 0])


@pytest.mark.parametrize(("levels", "shape"), [(2, 3), (512, (7, 7)), (1000, (4, 4, 2))])
def test_uniform_codes_cost_n_ln_k(levels, shape, x64):
    """Oracle 32."""
    prior = lift(uniform_codes(levels, shape))
    codes = prior.sample({}, KEY)
    assert codes.shape == tuple(np.atleast_1d(shape)) and codes.max() < levels and codes.dtype.kind == "i"
    np.testing.assert_allclose(prior.terms({}, KEY, codes).nats, codes.size * np.log(levels), rtol=1e-12)


# The model


def tiny(quantiser=None, shape=(2,), **options):
    """(model, prior, generator): y of 3 numbers; two vectors in the plane; a prior of free logits for each code."""
    quantiser = codebook(4, 2) if quantiser is None else quantiser
    free = table((*shape, 4))
    prior = free._replace(dist=lambda params, c=None: free.dist(params).to_event(len(shape)))
    init, apply = affine(4)
    generator = l2(affine_of_all(3), 0.7)
    encoder = (init, lambda params, y: apply(params, y).reshape(2, 2))
    return vq_vae(encoder, quantiser, prior, generator, **options), prior, generator


def test_the_bound_against_enumeration(x64):
    """nats = -ln of one term of P(y) = sum_z P_pri(z) P_gen(y|z): above -ln P(y), by what the others add."""
    model, prior, generator = tiny()
    zs = jnp.array(list(itertools.product(range(4), repeat=2)))
    init = jit(model.init)

    @jit
    def both(params, y):
        def joint(z):
            vectors = params["codes"]["codes"][z]
            return prior.dist(params["pri"]).log_prob(z) + generator.dist(params["gen"], vectors).log_prob(y)

        return jnp.stack([joint(z) for z in zs]), model.terms(params, KEY, y)

    for seed in range(5):
        y = normal(3, seed=seed)
        params = init(jax.random.key(seed), y)
        joint, terms = both(params, y)
        mine = int((np.asarray(zs) == np.asarray(terms.codes[0])).all(axis=1).argmax())
        np.testing.assert_allclose(terms.nats, -joint[mine], rtol=1e-12)
        assert terms.nats > -logsumexp(joint)
        np.testing.assert_allclose(terms.units.rate.sum(), terms.rate, rtol=1e-12)
        np.testing.assert_allclose(terms.rates, [terms.rate], rtol=1e-12)
    assert model.importance is None


def test_gradients_equal_finite_differences_where_there_is_no_choice(x64):
    """Prior and generator, whose parameters move no code."""
    model, _, _ = tiny()
    y = normal(3)
    params = jit(model.init)(KEY, y)
    others = {part: params[part] for part in ("enc", "codes")}

    @jax.jit
    def nats(parts):
        return model.terms({**others, **parts}, KEY, y).nats

    check_grads(nats, ({part: params[part] for part in ("pri", "gen")},), order=1, modes=["rev"])


def test_samples_come_from_the_codes_of_the_prior(x64):
    model, _, _ = tiny()
    params = jit(model.init)(KEY, normal(3))
    params = {**params, "pri": 200.0 * jnp.array([[0, 1, 0, 0], [0, 0, 0, 1.0]])}
    ys = jit(jax.vmap(lambda key: model.sample(params, key)))(jax.random.split(KEY, 4000))
    mean = params["gen"]["weights"] @ params["codes"]["codes"][jnp.array([1, 3])].ravel() + params["gen"]["bias"]
    error = 0.7 / np.sqrt(4000)
    np.testing.assert_allclose(ys.mean(axis=0), mean, atol=5 * error)
    np.testing.assert_allclose(ys.std(axis=0), 0.7, atol=5 * error)


def test_a_condition_reaches_every_part():
    seen = []

    def note(name, size):
        def apply(params, *inputs):
            seen.append((name, len(inputs)))
            return jnp.full(size, sum(x.sum() for x in inputs))

        return (lambda key, *inputs: {}), apply

    model = vq_vae(note("enc", (2, 2)), codebook(4, 2), uniform_codes(4, 2), l2(note("gen", 3)), start=None)
    y, c = jnp.ones(3), jnp.ones(2)
    params = jax.eval_shape(model.init, KEY, y, c)
    seen.clear()
    jax.eval_shape(model.terms, params, KEY, y, c)
    assert set(seen) == {("enc", 2), ("gen", 2)}
    both = vq_vae(
        note("enc", (2, 2)), codebook(4, 2), uniform_codes(4, 2), l2(note("gen", 3)), start=(normal(5, 3), normal(5, 2))
    )
    assert jax.eval_shape(both.init, KEY, y, c)["codes"]["codes"].shape == (4, 2)


def test_examples_place_the_codes(x64):
    ys = normal(300, 3)
    model, _, _ = tiny(start=ys)
    params = jit(model.init)(KEY, ys[0])
    plain, _, _ = tiny()
    unplaced = jit(plain.init)(KEY, ys[0])
    np.testing.assert_allclose(params["enc"]["weights"], unplaced["enc"]["weights"])

    def error(params):
        vectors = jax.vmap(lambda y: (params["enc"]["weights"] @ y + params["enc"]["bias"]).reshape(2, 2))(ys)
        return nearest(vectors, params["codes"]["codes"])[1].mean()

    assert error(params) < 0.5 * error(unplaced)
    few, _, _ = tiny(start=ys[:1])
    with pytest.raises(ValueError, match="fewer than the 4 codes"):
        few.init(KEY, ys[0])


def test_stage_two_is_training_with_a_fixed_encoder(x64):
    """The prior's gradient in the whole model is that of a model of the stored codes; nothing else moves."""
    model, prior, _ = tiny()
    ys = normal(16, 3)
    state = init_state(model, optax.sgd(0.1), KEY, ys[0])
    step = jit(make_train_step(model, optax.sgd(0.1), parts=("pri",)))
    after_stage, metrics = step(state, KEY, ys)
    for part in ("enc", "codes", "gen"):
        jax.tree.map(np.testing.assert_array_equal, after_stage.params[part], state.params[part])
    codes = jit(jax.vmap(lambda y: encode(model, state.params, y)))(ys)
    alone = start_from(lift(prior)._replace(init=lambda key, y, c=None: {"pri": state.params["pri"]}), {})
    alone = alone._replace(terms=lambda params, key, y, c=None: lift(prior).terms(params["pri"], key, y, c))
    stored, alone_metrics = jit(make_train_step(alone, optax.sgd(0.1)))(
        init_state(alone, optax.sgd(0.1), KEY, codes[0]), KEY, codes
    )
    np.testing.assert_allclose(stored.params["pri"], after_stage.params["pri"], rtol=1e-12)
    np.testing.assert_allclose(alone_metrics["loss"], metrics["rate"], rtol=1e-12)


def test_encode_wants_codes():
    model = lift(gaussian(affine(4)))
    with pytest.raises(ValueError, match="vq_vae"):
        encode(model, jit(model.init)(KEY, jnp.zeros(2), jnp.zeros(1)), jnp.zeros(2), jnp.zeros(1))


def test_the_encoder_is_a_network():
    with pytest.raises(TypeError, match=r"leave out gaussian"):
        vq_vae(gaussian(affine(4)), codebook(4, 2), uniform_codes(4, 2), l2(affine(3)))


@pytest.fixture(scope="module")
def stepped():
    """A step on one device, with codes that will be revived: (model, ys, state, the state after)."""
    model, _, _ = tiny(residual(codebook(4, 2, update=ema(0.2), revive=0.5), 2), (2, 2))
    ys = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    state = init_state(model, optax.sgd(0.05), KEY, ys[0])
    result, _ = jit(make_train_step(model, optax.sgd(0.05)))(state, KEY, ys)
    return model, ys, state, result


def assert_close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), got.params, want.params)


def test_the_codebook_stays_in_step_between_devices(stepped):
    """A sharded batch on two devices, and pmap on two: both give what one device gives."""
    model, ys, state, want = stepped
    mesh = Mesh(jax.devices()[:2], ("data",))
    sharded = jit(make_train_step(model, optax.sgd(0.05)))(
        jax.device_put(state, replicated(mesh)), KEY, jax.device_put(ys, batch_sharding(mesh))
    )[0]
    assert_close(sharded, want)
    assert all(x.sharding.is_fully_replicated for x in jax.tree.leaves(sharded))
    step = make_train_step(model, optax.sgd(0.05), axis_name="devices")
    each, _ = jax.pmap(step, "devices", in_axes=(None, None, 0), devices=jax.devices()[:2])(
        state, KEY, ys.reshape(2, 4, 3)
    )
    for device in range(2):
        assert_close(jax.tree.map(lambda x, d=device: x[d], each), want)
    moved = np.abs(np.asarray(want.params["codes"][0]["codes"] - state.params["codes"][0]["codes"]))
    assert np.all(moved.max(axis=1) > 0)  # the unused ones too: they were revived
