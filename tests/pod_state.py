"""A state that two processes save together and restore, for tests/test_buckets.py: python pod_state.py DIRECTORY.

Prints "ready" when both have met, and goes on with a line.
"""

import sys

import jax
import numpy as np
import orbax.checkpoint  # noqa: F401  before "ready", so that no time is lost after it
from jax.sharding import NamedSharding, PartitionSpec

from vae_jax.training import checkpoint, pod
from vae_jax.training.run_directory import claim


def numbers() -> dict[str, np.ndarray]:
    """What is split, by its rows, and what both have whole."""
    split = {f"split {i}": np.arange(8 * i, dtype=np.float32).reshape(4, 2 * i) for i in range(1, 11)}
    return split | {"whole": np.arange(5, dtype=np.int32)}


def main(directory: str) -> None:
    mesh = jax.make_mesh((2,), ("fsdp",))

    def placed(name, array):
        rows = PartitionSpec("fsdp") if name.startswith("split") else PartitionSpec()
        return jax.make_array_from_callback(array.shape, NamedSharding(mesh, rows), lambda where: array[where])

    with claim(directory, {}, resume=True):
        state = {name: placed(name, array) for name, array in numbers().items()}
        checkpoint.check_shared(directory, state)
        checkpoint.save(directory, 7, state, {}, best=True)
        found = checkpoint.restore(directory, {name: placed(name, 0 * array) for name, array in numbers().items()})
    assert found is not None and found.step == 7
    for name, array in numbers().items():
        for shard in found.state[name].addressable_shards:
            np.testing.assert_array_equal(shard.data, array[shard.index])


if __name__ == "__main__":
    with pod(10):
        print("ready", flush=True)
        sys.stdin.readline()
        main(sys.argv[1])
