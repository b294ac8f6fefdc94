"""Images as uint8 arrays: carried by the package, one's own, or from tensorflow-datasets. Small tables of numbers.

    ys, labels, label_names, *_ = load("fashion_mnist_mini", "train")
    ys, columns, source = load_table("geyser")

A whole split is read once into one array, or by a `source` when it is needed, where it does not fit; scaling,
dequantisation and binarisation happen inside jit (`preprocess`), and what a model is handed is checked once (`check`).
Importing this package reads nothing; pillow, grain and tensorflow-datasets are imported where used.
"""

from vae_jax.data.cells import Cells, simulated_cells
from vae_jax.data.columns import Column, Columns, load_columns
from vae_jax.data.datasets import NAMES, load
from vae_jax.data.folders import read_image
from vae_jax.data.images import Dataset
from vae_jax.data.preprocess import (
    Preprocess,
    dequantisation,
    dynamic_binarisation,
    eight_bit,
    identity,
    of_columns,
    static_binarisation,
    threshold_binarisation,
    unit_scale,
)
from vae_jax.data.sources import Source, source
from vae_jax.data.sparse import SparseRows
from vae_jax.data.tables import Table, load_table

__all__ = [
    "NAMES", "Cells", "Column", "Columns", "Dataset", "Preprocess", "Source", "SparseRows", "Table", "dequantisation",
    "dynamic_binarisation", "eight_bit", "identity", "load", "load_columns", "load_table", "of_columns", "read_image",
    "simulated_cells", "source", "static_binarisation", "threshold_binarisation", "unit_scale",
]  # fmt: skip
