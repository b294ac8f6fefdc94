"""VAEs of tables with their networks: rows of mixed columns, entries missing; single cells, whose genes are counted.

Each is one call. By hand they are `columns`, `maybe_missing` and the likelihoods of counts of `vae_jax.parts`.
"""

from vae_jax.tables.cells import CellVAE, cell_vae, log_shares_of, totals_of
from vae_jax.tables.filling import fill_in
from vae_jax.tables.rows import table_vae, two_numbers

__all__ = ["CellVAE", "cell_vae", "fill_in", "log_shares_of", "table_vae", "totals_of", "two_numbers"]
