"""Checkpoints: each is whole and verified, or skipped with a warning.

    run/checkpoints/000007-step-1200/manifest.json     step, meta, leaves, SHA-256 of every file
    run/checkpoints/000007-step-1200/arrays/           the leaves by name: an Orbax checkpoint
    run/checkpoints/000008-step-1300.partial/          a write (or a removal) that was killed

A checkpoint is written under a name that ends in `.partial`, read back and compared, sealed with the manifest, and only
then renamed, which is atomic: a process killed at any moment leaves the older ones whole. The leading number is new at
every write: no leftover is in the way. No pickle.

Orbax's `CheckpointManager` (0.12) cannot promise this: it has no digests, and one flipped bit in an array restores as
wrong values; its last files are written after every hook that could seal or compare them; it counts damaged checkpoints
as good and removes in place, so that a removal that is killed looks like a checkpoint.

Several processes (a TPU pod) all call these functions, on a directory that all of them see: process 0 alone writes (on
the others `save` returns at once), each one reads. The state must be whole on process 0, as replicated parameters are.
"""

import contextlib
import hashlib
import json
import logging
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from vae_jax.training.run_directory import PARTIAL, PathLike, to_json

_NAME = re.compile(r"\d+-step-\d+(\.partial)?")
_NUMBERS = (bool, int, float, complex)


class Restored(NamedTuple):
    """A checkpoint, as it was saved; `meta` as JSON gives it back (tuples are lists)."""

    state: Any
    step: int
    meta: dict[str, Any]


class DamagedError(RuntimeError):
    """Says why a checkpoint cannot be used, or that none can."""


def save(directory: PathLike, step: int, state: Any, meta: dict[str, Any], *, best: bool) -> None:
    """Writes a checkpoint; returns when it is complete and has been read back.

    Older good ones are then removed, except for one more, the newest, and the newest that was
    saved as best. Damaged and unfinished ones are left as they are.

    Args:
        directory: the run directory.
        step: the step that `state` has reached.
        state: a pytree of arrays (typed keys too) and Python numbers.
        meta: whatever else is worth keeping, plain JSON values: metrics, history, data position.
        best: whether this is the best one so far.

    Raises:
        TypeError: a leaf is neither array nor number, or `meta` is not plain JSON.
        ValueError: the state has no leaves, or one that is spread over several processes.
        OSError: the disk is full or failing; the older ones are untouched.
    """
    meta = json.loads(to_json("meta", meta))
    arrays = {name: _to_stored(name, leaf) for name, leaf in _named(state).items()}
    if not arrays:
        raise ValueError("state has no leaves, so there is nothing to save")
    if jax.process_index() != 0:
        return
    folder = _folder(directory)
    folder.mkdir(parents=True, exist_ok=True)
    number = 1 + max(map(_number, _newest_first(folder)), default=0)
    final = folder / f"{number:06d}-step-{step}"
    partial = final.with_name(final.name + PARTIAL)
    partial.mkdir()
    _write_arrays(partial / "arrays", arrays)
    leaves = {name: _spec(leaf) for name, leaf in _named(state).items()}
    _seal(partial, {"step": step, "best": best, "meta": meta, "leaves": leaves})
    partial.rename(final)
    _prune(folder)


def restore(directory: PathLike, like: Any, *, which: Literal["last", "best"] = "last") -> Restored | None:
    """The newest good checkpoint, or the newest good one saved as best; None before the first.

    Damaged and unfinished ones on the way are skipped, each with a warning. Nothing is deleted.

    Args:
        directory: the run directory.
        like: the state's structure: arrays, Python numbers or `jax.ShapeDtypeStruct`s. Each leaf comes back bit for bit
            as its counterpart is here: numpy array, Python number, or jax array with its sharding, committed or not.
        which: "last", or "best": only those that were saved as best.

    Raises:
        ValueError: the checkpoint does not fit `like`: the first differing leaf is named.
        DamagedError: there are checkpoints, but all are damaged; they are listed.
    """
    if which not in ("last", "best"):
        raise ValueError(f'which must be "last" or "best"; got {which!r}')
    found: Restored | None = None
    skipped: dict[Path, str] = {}
    for path in _newest_first(_folder(directory)):
        try:
            found = _load(path, like, best_only=which == "best")
        except DamagedError as why:
            skipped[path] = f"{path}: {why}"
        if found:
            break
    if not found and any(path.suffix != PARTIAL for path in skipped):
        raise DamagedError("no good checkpoint (none deleted):\n  " + "\n  ".join(skipped.values()))
    for problem in skipped.values():
        used = f"using {path.name}" if found else "there is no other"
        warnings.warn(f"checkpoint skipped, not deleted: {problem}; {used}", stacklevel=2)
    return found


def _load(path: Path, like: Any, *, best_only: bool) -> Restored | None:
    manifest = _verified(path)
    if best_only and not manifest["best"]:
        return None
    _check_fits(path, manifest["leaves"], like)
    arrays = _read_arrays(path / "arrays")
    leaves = [_to_like(arrays[name], leaf) for name, leaf in _named(like).items()]
    state = jax.tree.unflatten(jax.tree.structure(like), leaves)
    return Restored(state, manifest["step"], manifest["meta"])


def _prune(folder: Path) -> None:
    """Removes good checkpoints but the two newest and the newest best; never a damaged one."""
    good: dict[Path, dict[str, Any]] = {}
    for path in _newest_first(folder):
        with contextlib.suppress(DamagedError):
            good[path] = _verified(path)
    best = next((path for path in good if good[path]["best"]), None)
    for path in list(good)[2:]:
        if path != best:
            shutil.rmtree(path.rename(path.with_name(path.name + PARTIAL)))


# Files


def _folder(directory: PathLike) -> Path:
    return Path(directory).absolute() / "checkpoints"  # Orbax insists on absolute paths


def _newest_first(folder: Path) -> list[Path]:
    """Every checkpoint, unfinished and damaged ones too; files with other names are not ours."""
    ours = [path for path in folder.glob("*") if _NAME.fullmatch(path.name)]
    return sorted(ours, key=_number, reverse=True)


def _number(path: Path) -> int:
    return int(path.name.partition("-")[0])


def _seal(path: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest, with the digest of every file and of the manifest itself."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    manifest["files"] = {file.relative_to(path).as_posix(): _digest(file) for file in files}
    sealed = {"sha256": _json_digest(manifest), "manifest": manifest}
    (path / "manifest.json").write_text(json.dumps(sealed, indent=1))


def _verified(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose every file is as it was written."""
    if path.suffix == PARTIAL:
        raise DamagedError("unfinished, the process was killed while writing or removing it")
    try:
        sealed = json.loads((path / "manifest.json").read_text())
        manifest, digest = sealed["manifest"], sealed["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"manifest.json does not read: {error}") from error
    if _json_digest(manifest) != digest:
        raise DamagedError("manifest.json was changed: its SHA-256 differs")
    for name, digest in manifest["files"].items():
        try:
            intact = _digest(path / name) == digest
        except OSError as error:
            raise DamagedError(f"{name} does not read: {error}") from error
        if not intact:
            raise DamagedError(f"{name} was changed: its SHA-256 differs")
    return manifest


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json_digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    try:
        with _silence_of_absl(), _checkpointer() as checkpointer:
            checkpointer.save(path, args=_orbax().args.PyTreeSave(arrays))
        back = _read_arrays(path)
    except OSError:
        raise
    except Exception as error:  # a full disk is a ValueError there, of many lines
        why = "no space left on the disk" if "RESOURCE_EXHAUSTED" in str(error) else str(error).partition("\n")[0]
        raise OSError(f"no checkpoint could be written to {path.parent}: {why}; the older ones are whole") from error
    for name, array in arrays.items():
        if back[name].dtype != array.dtype or back[name].tobytes() != array.tobytes():
            raise OSError(f"{name} does not read back as it was written to {path}")


@contextlib.contextmanager
def _silence_of_absl() -> Iterator[None]:
    """Orbax logs the traces of its threads; what they raise comes here anyway."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    with _checkpointer() as checkpointer:
        return checkpointer.restore(path, args=_orbax().args.PyTreeRestore())


def _checkpointer() -> Any:
    """Orbax on this process alone, without barriers; uncompressed, since weights are noise."""
    ocp, me = _orbax(), jax.process_index()
    alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _orbax() -> ModuleType:
    """Imported with the first checkpoint only: it takes a third as long as jax."""
    import orbax.checkpoint

    return orbax.checkpoint


# Leaves


def _named(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"state" + jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _spec(leaf: Any) -> str:
    """What a leaf is: "float32[3, 4]", or "int" for a Python number."""
    return type(leaf).__name__ if type(leaf) in _NUMBERS else f"{leaf.dtype}{list(leaf.shape)}"


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_stored(name: str, leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array):
        if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            raise ValueError(f"{name} is spread over several processes; replicate it before saving")
        leaf = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    array = np.asarray(leaf)
    if array.dtype.kind in "OSUMm":
        raise TypeError(f"{name} is {type(leaf).__name__}; a state holds arrays and numbers only")
    return array if array.size else np.zeros(1, array.dtype)  # Orbax refuses size 0


def _to_like(array: np.ndarray, like: Any) -> Any:
    if type(like) in _NUMBERS:
        return type(like)(array.item())
    if 0 in like.shape:
        array = np.zeros(like.shape, array.dtype)
    if isinstance(like, np.ndarray | np.generic):
        return array if isinstance(like, np.ndarray) else array[()]
    sharding = like.sharding if getattr(like, "committed", True) else None
    leaf = jax.device_put(array, sharding, may_alias=False)
    return jax.random.wrap_key_data(leaf, impl=like.dtype) if _is_key(like) else leaf


def _check_fits(path: Path, there: dict[str, str], like: Any) -> None:
    wanted = {name: _spec(leaf) for name, leaf in _named(like).items()}
    for name in {**wanted, **there}:
        got, want = there.get(name, "absent"), wanted.get(name, "absent")
        if got != want:
            problem = f"{name} is {got} there, {want} wanted; usually it is of another model or optimiser"
            raise ValueError(f"{path} does not fit: {problem}")
