"""Single cells: a VAE of their gene counts, what types they fall into, and which genes differ between two types.

    python -m experiments.cells                            # 4,000 simulated cells, whose truth is known
    python -m experiments.cells --data counts.npz          # your own: counts (n, genes), cell_type and batch (n,)
    python -m experiments.cells --total inferred           # the total of a cell as a dimension of z
    python -m experiments.cells --scvi                     # scvi-tools beside it, where that is installed
    python -m experiments.cells --certify 20               # ln P(y) of 20 held-out cells by annealing, from below
    python -m experiments.cells --help                     # every option

A tenth of the cells is held out. Of these ln P(y) is bounded with k importance samples. The codes of all cells are
clustered by a mixture of Gaussians with as many components as there are types; the adjusted Rand index says how far
clusters are types (1: they are; 0: by chance; it wants scikit-learn). The two most frequent types are compared gene by
gene: for simulated cells the list is held against the truth. `vae_jax.open_run` opens the model.
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np

import vae_jax
from vae_jax import Evaluation, Fitted
from vae_jax.command import publish
from vae_jax.command.config import CosineAdam, at_least, checked, fitting, read_back
from vae_jax.command.cosine_adam import Training
from vae_jax.command.image_report import learning_curve
from vae_jax.command.placement import Placed, evaluate_on
from vae_jax.command.results import over_batch
from vae_jax.data import simulated_cells
from vae_jax.data.local import path_of
from vae_jax.data.preprocess import Preprocess, identity
from vae_jax.em import fit_em, mixture_of_gaussians
from vae_jax.em.algorithm import em_of
from vae_jax.evaluation import Certificate, Differential, certified, differential_expression, mean
from vae_jax.report import page, pictures
from vae_jax.tables import CellVAE, cell_vae, log_shares_of, totals_of

DELTA = 1.0  # log2 of the quotient of shares beyond which a gene differs: twice, or half


@dataclasses.dataclass(frozen=True)
class Config(CosineAdam, Placed):
    """Train a VAE of cells, cluster their codes, compare two types, and report."""

    data: str = "simulated"
    """simulated, or an .npz file: counts (n, genes); where they are known cell_type, cell_type_names, batch, gene."""
    cells: Annotated[int, at_least(50)] = 4000
    """Simulated cells."""
    genes: Annotated[int, at_least(2)] = 500
    """Genes of simulated cells."""
    total: Literal["given", "inferred"] = "given"
    """The total of a cell: its sum, or a dimension of z."""
    likelihood: Literal["negative_binomial", "poisson"] = "negative_binomial"
    """Of the counts."""
    zero_inflated: bool = False
    """With more zeros than that."""
    latent: int = 10
    """Dimensions of z."""
    hidden: tuple[int, ...] = (128,)
    """Hidden layers of encoder and generator."""
    epochs: int = 200
    learning_rate: float = 3e-3
    decay: Annotated[float, at_least(0)] = 500.0
    """Of weights, divided by the cells that are trained on: a prior on them counts the less, the more cells there are.
    """
    rate: float = 0.05
    """Expected part of false discoveries among the genes that are said to differ."""
    k: Annotated[int, at_least(2)] = 1000
    """Importance samples for ln P(y)."""
    certify: Annotated[int, at_least(0)] = 0
    """Held-out cells whose ln P(y) is also estimated by annealed importance sampling."""
    scvi: bool = False
    """Train SCVI of scvi-tools on the same cells, of the same widths, and print what it says of the same held-out ones.
    """
    out: str = "runs/cells"

    @property
    def training(self) -> Training:
        """These options, as what trains."""
        return super().training._replace(decay=self.decay)


class Data(NamedTuple):
    """Counts (n, genes), what is known of them, and of simulated cells the truth (types, genes)."""

    ys: np.ndarray
    batches: np.ndarray | None
    types: np.ndarray | None
    names: list[str]
    genes: list[str]
    log_shares: np.ndarray | None
    source: str

    def conditions(self, config: Config) -> Any:
        """What the model is given beside the counts."""
        cs = {"total": self.ys.sum(axis=1).astype(np.float32)} if config.total == "given" else {}
        if self.batches is not None:
            cs["batch"] = np.eye(self.batches.max() + 1, dtype=np.float32)[self.batches]
        return cs or None


def load(config: Config) -> Data:
    """The cells that the options name.

    Raises:
        ValueError: counts that are no whole numbers from 0 on, or arrays of other lengths.
    """
    if config.data == "simulated":
        made = simulated_cells(config.cells, genes=config.genes, seed=config.seed)
        names = [f"type {k}" for k in range(len(made.log_shares))]
        genes = [f"gene {g}" for g in range(config.genes)]
        return Data(made.ys, made.batches, made.types, names, genes, made.log_shares, f"simulated, seed {config.seed}")
    with np.load(path_of(config.data), allow_pickle=False) as file:
        held = dict(file)
    if "counts" not in held or held["counts"].ndim != 2:
        raise ValueError(f"{config.data}: want an array `counts` of cells by genes; it has {sorted(held)}")
    ys = held["counts"]
    if not np.all((ys >= 0) & (ys % 1 == 0)):
        raise ValueError(f"{config.data}: counts are whole numbers from 0 on; normalised values are no counts")
    known = {name: held.get(name) for name in ("batch", "cell_type")}
    for name, values in known.items():
        if values is not None and values.shape != (len(ys),):
            raise ValueError(f"{config.data}: {name} has shape {values.shape}, and there are {len(ys)} cells")
    (_, batches), (kinds, types) = (_numbered(known[name]) for name in ("batch", "cell_type"))
    given = held.get("cell_type_names")
    names = [str(given[int(k)]) if given is not None else str(k) for k in kinds]
    genes = [str(gene) for gene in held.get("gene", np.arange(ys.shape[1]))]
    batches = batches if batches is not None and batches.max() > 0 else None
    return Data(ys.astype(np.int32), batches, types, names, genes, None, config.data)


def _numbered(values: np.ndarray | None) -> tuple[Any, np.ndarray | None]:
    """(what there is, its numbers from 0 on)."""
    return ([], None) if values is None else np.unique(values, return_inverse=True)


def build(
    config: Config, width: int, batches: int, log_total: Sequence[float] | None, log_shares: Sequence[float]
) -> CellVAE:
    """The model of cells."""
    return cell_vae(
        width,
        config.latent,
        hidden=config.hidden,
        batches=batches,
        log_total=None if log_total is None else (log_total[0], log_total[1]),
        log_shares=np.asarray(log_shares, np.float32),
        dispersion="per_column" if config.likelihood == "negative_binomial" else None,
        zero_inflated=config.zero_inflated,
    )


def rebuild(
    *, width: int, batches: int, log_total: Any, log_shares: Any, **fields: Any
) -> tuple[vae_jax.Model, Preprocess]:
    """The model, for `vae_jax.open_run`."""
    return build(read_back(Config, fields), width, batches, log_total, log_shares).model, identity()


def clusters(zs: np.ndarray, types: int, key: jax.Array) -> np.ndarray:
    """(n,) the most probable component of each code, of a mixture of Gaussians."""
    model = mixture_of_gaussians(zs.shape[1], types)
    params, posterior = fit_em(model, zs, key=key, restarts=10).params, em_of(model).posterior
    return np.asarray(jax.jit(jax.vmap(lambda z: posterior(params, z).logits.argmax()))(zs))


def rand_index(found: np.ndarray, types: np.ndarray) -> float | None:
    """How far clusters are types, adjusted for chance (Hubert and Arabie 1985); None without scikit-learn."""
    try:
        from sklearn.metrics import adjusted_rand_score
    except ImportError:
        return None
    return float(adjusted_rand_score(types, found))


class Peer(NamedTuple):
    """What SCVI says: ln P(y) of each held-out cell in nats, and the cells/s of its training."""

    log_p: np.ndarray
    cells_per_second: float


def by_scvi(config: Config, train: Any, test: Any) -> Peer:
    """SCVI with the same widths, likelihood, batches, epochs and rate: its own networks, trainer and estimate.

    Raises:
        ImportError: scvi-tools is not installed.
    """
    try:
        import anndata
        import scvi
    except ImportError as error:
        raise ImportError("--scvi wants scvi-tools: pip install scvi-tools") from error
    scvi.settings.seed = config.seed

    def annotated(part):
        ys, cs = part
        whole = anndata.AnnData(ys.astype(np.float32))
        batches = cs["batch"].argmax(axis=1) if cs and "batch" in cs else np.zeros(len(ys), int)
        whole.obs["batch"] = batches.astype(str)
        return whole

    own = {"negative_binomial": "zinb" if config.zero_inflated else "nb", "poisson": "poisson"}[config.likelihood]
    cells = annotated(train)
    scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
    model = scvi.model.SCVI(
        cells,
        n_hidden=config.hidden[0],
        n_layers=len(config.hidden),
        n_latent=config.latent,
        gene_likelihood=own,
        use_observed_lib_size=config.total == "given",
    )
    began = time.perf_counter()
    model.train(
        max_epochs=config.epochs,
        batch_size=config.batch_size,
        train_size=1.0,
        accelerator="cpu",
        plan_kwargs={"lr": config.learning_rate},
        enable_progress_bar=False,
    )
    seconds = time.perf_counter() - began
    log_p = model.get_marginal_ll(annotated(test), n_mc_samples=config.k, return_mean=False)
    return Peer(np.asarray(log_p, np.float64), config.epochs * len(train[0]) / seconds)


def anneal(config: Config, cells: CellVAE, params: Any, key: jax.Array, test: Any) -> Certificate:
    """ln P(y) of the first held-out cells by annealing from P_enc(z|y), with bounds on as many that are simulated."""
    ys, cs = jax.tree.map(lambda x: x[: config.certify], test)
    parts: dict[str, Any] = {"encoder": cells.encoder, "simulate": len(ys)}
    if config.smoke:
        parts |= {"temperatures": 10, "chains": 2}
    return certified(cells.prior, cells.generator, params, key, ys, cs, progress=True, **parts)


class Compared(NamedTuple):
    """Two types, and of each gene whether it differs between them; for simulated cells which do: else None."""

    types: tuple[int, int]
    found: Differential
    truth: np.ndarray | None

    @property
    def false(self) -> float:
        """The part of the list that is false."""
        listed = self.found.found
        return float(np.mean(~self.truth[listed])) if self.truth is not None and listed.any() else 0.0


def compare(config: Config, cells: CellVAE, params: Any, key: jax.Array, data: Data, cs: Any) -> Compared | None:
    """The two most frequent types; None where types are not known, or one alone."""
    if data.types is None or len(data.names) < 2:
        return None
    types, (a, b) = data.types, np.argsort(-np.bincount(data.types), kind="stable")[:2].tolist()

    def share(key, y, c):
        return cells.shares(params, cells.encode(params, key, y, c), c)

    groups = [jax.tree.map(lambda x, k=k: x[types == k], (data.ys, cs)) for k in (a, b)]
    found = differential_expression(share, key, groups[0], groups[1], delta=DELTA, rate=config.rate)
    truth = data.log_shares
    beyond = None if truth is None else np.abs(truth[b] - truth[a]) / np.log(2) > DELTA
    return Compared((a, b), found, beyond)


def table(
    config: Config,
    data: Data,
    result: Evaluation,
    index: float | None,
    compared: Compared | None,
    fitted: Fitted,
    annealed: Certificate | None,
    peer: Peer | None,
) -> list[page.Row]:
    """ln P of held-out cells, how far clusters are types, how many genes differ; what a peer says."""
    where, by_samples = f"nats per cell, {len(result.elbo)} cells held out", np.asarray(result.log_likelihood)
    rows = [
        page.Row("ln P(y) at least", *mean(result.log_likelihood), f"{where}; k={result.k}"),
        page.Row("ELBO", *mean(result.elbo), where),
        page.Row("rate", *mean(result.rate), "nats; ln enc(z|y) - ln pri(z)"),
    ]
    if index is not None:
        rows.append(page.Row("adjusted Rand index", index, None, f"clusters of codes against {len(data.names)} types"))
    if compared is not None:
        a, b = (data.names[k] for k in compared.types)
        found = compared.found
        about = f"between {a} and {b}, expected part that is false {found.false:.3f}"
        rows.append(page.Row("genes that differ", int(found.found.sum()), None, about))
        if compared.truth is not None:
            missed = np.mean(~found.found[compared.truth]) if compared.truth.any() else 0.0
            about = f"part of the list; of {int(compared.truth.sum())} that do differ {missed:.3f} are not on it"
            rows.append(page.Row("of these false", compared.false, None, about))
    rows.append(page.Row("training speed", fitted.images_per_second, None, "cells/s, median epoch after the first"))
    if annealed is not None:
        some, of = len(annealed.each), "nats per cell"
        rows += [
            page.Row("ln P(y) by annealing", *annealed.lower, f"{of}, {some} of the cells held out; from below"),
            page.Row("beyond samples", *mean(annealed.each - by_samples[:some]), f"{of}, of the same cells"),
            page.Row("between both bounds", *annealed.gap, f"{of}, {some} simulated cells: annealing is this close"),
        ]
    if peer is not None:
        rows += [
            page.Row("SCVI: ln P(y) at least", *mean(peer.log_p), f"by scvi-tools; {where}; k={config.k}"),
            page.Row("gain over SCVI", *mean(by_samples - peer.log_p), "nats per cell, cell by cell"),
            page.Row("SCVI: training speed", peer.cells_per_second, None, "cells/s, mean over all epochs"),
        ]
    return rows


def sections(data: Data, zs: np.ndarray, compared: Compared | None, fitted: Fitted) -> list[page.Section]:
    """The map of cells, the genes that differ, the learning curve."""
    centred = zs - zs.mean(axis=0)
    plane = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    some = np.random.default_rng(0).permutation(len(plane))[:3000]
    labels = None if data.types is None else data.types[some]
    axes = {"x": "first principal axis", "y": "second principal axis"}
    shown = [
        page.Section(
            "Map of cells",
            f"Means of P_enc(z|y) of {len(some)} cells, in the two directions in which they vary most.",
            [page.Picture(pictures.scatter(plane[some], labels, data.names or None, **axes), "map of cells")],
        )
    ]
    if compared is not None:
        a, b = (data.names[k] for k in compared.types)
        found = compared.found
        order = np.argsort(-np.abs(found.change) * found.found, kind="stable")[:20]
        cells = [
            [data.genes[g], f"{found.change[g]:+.2f}", f"{found.probability[g]:.3f}"] for g in order if found.found[g]
        ]
        about = (
            f"log₂ of the quotient of shares, {b} over {a}: median, and the probability that it is beyond "
            f"{DELTA:g} either way; the largest of those on the list."
        )
        listed = page.TextTable(("gene", "change", "probability"), cells) if cells else None
        about += "" if cells else f" None of {len(data.genes)} genes is."
        shown.append(page.Section("Genes that differ", about, table=listed))
    return [*shown, learning_curve(fitted.history, unit="cell")]


@publish.timed
def main(config: Config) -> dict[str, Any]:
    """Train, evaluate, cluster, compare, report; returns the numbers of the table.

    Raises:
        ValueError: what are no counts, or a cell without any.
    """
    config = checked(config)
    if config.smoke:
        small: dict[str, Any] = {"cells": 200, "genes": 30, "epochs": 2, "hidden": (16,), "latent": 2, "k": 10}
        config = dataclasses.replace(config, **small)
    data = load(config)
    log_total = totals_of(data.ys)
    n, cs = len(data.ys), data.conditions(config)
    order, held = np.random.default_rng(config.seed).permutation(n), max(2, n // 10)
    train, test = (jax.tree.map(lambda x, rows=rows: x[rows], (data.ys, cs)) for rows in (order[held:], order[:held]))
    config = fitting(config, n - held)
    shape = {
        "width": data.ys.shape[1],
        "batches": 0 if data.batches is None else int(data.batches.max()) + 1,
        "log_total": log_total if config.total == "inferred" else None,
        "log_shares": log_shares_of(train[0]).tolist(),
    }
    cells = build(config, **shape)
    k_fit, k_test, k_clusters, k_genes = jax.random.split(jax.random.key(config.seed), 4)
    fitted = config.training.fit(
        config, cells.model, train[0], k_fit, cs=train[1], validation=test, validate_every=max(1, config.epochs // 40)
    )
    params = fitted.state.params  # not those with the best validation, which are the cells that are held out
    result = evaluate_on(config, cells.model, params, k_test, *test, k=config.k)
    annealed = anneal(config, cells, params, k_test, test) if config.certify else None
    peer = by_scvi(config, train, test) if config.scvi else None
    zs = over_batch(
        lambda p, key, y, c: cells.encode(p, None, y, c), params, jax.random.split(k_test, n), data.ys, cs, at_once=1000
    )
    types = len(data.names)
    index = rand_index(clusters(zs, types, k_clusters), data.types) if data.types is not None and types > 1 else None
    compared = compare(config, cells, params, k_genes, data, cs)
    y, c = jax.tree.map(lambda x: x[0], train)
    publish.save(config, rebuild, params, y, c, history=fitted.history, **shape)
    return publish.write(
        "cells",
        config,
        title=f"A VAE of cells: {config.data}",
        lead=(
            f"{n} cells of {shape['width']} genes; {held} cells held out; {config.epochs} epochs; totals "
            f"{config.total}. Data: {data.source}."
        ),
        table=table(config, data, result, index, compared, fitted, annealed, peer),
        sections=sections(data, zs, compared, fitted),
    )


if __name__ == "__main__":
    publish.run(main, Config)
