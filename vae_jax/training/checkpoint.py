"""Checkpoints: each is whole and verified, or skipped with a warning; written in the background.

    run/checkpoints/000007-step-1200/manifest.json     step, meta, leaves, SHA-256 of every file
    run/checkpoints/000007-step-1200/arrays/0/         what process 0 holds, by name: an Orbax checkpoint
    run/checkpoints/000007-step-1200/arrays/1/         the same of process 1, with its digests in arrays/1.json
    run/checkpoints/000008-step-1300.partial           000008-step-1300 is being written or removed, or that was killed

A checkpoint is begun with its `.partial`, written, read back and compared, sealed with the manifest, and complete when
the `.partial` is gone; a removal puts one first. To make and to delete one file are atomic on local disks and in
`gs://` alike, where no folder is: a process killed at any moment leaves the older checkpoints whole. The leading number
is new at every write: no leftover is in the way. No pickle.

Several processes (a TPU pod) all call these functions. Each writes the pieces of the state that it alone holds, and
process 0 what all hold; each reads what its devices need, on whatever mesh and number of processes. They meet in the
directory, which all of them have to see where the state is split over processes; nothing in the background runs on the
devices, whose programs it could block.

Orbax (0.12) serves each process alone. Its own way with several, and its `CheckpointManager`, cannot promise this: they
have no digests, and one flipped bit in an array restores as wrong values; a checkpoint is read back through the
devices' memory; a process that fails leaves the others in a barrier; damaged checkpoints count as good.
"""

import contextlib
import hashlib
import json
import logging
import re
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache, partial
from types import ModuleType
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from vae_jax.core.older_jax import key_impl
from vae_jax.training.processes import from_first
from vae_jax.training.run_directory import (
    PARTIAL,
    PathLike,
    entries,
    files_under,
    is_local,
    to_json,
    to_path,
    write_whole,
)

_NAME = re.compile(r"(\d+-step-\d+)(\.partial)?")
_NUMBERS = (bool, int, float, complex)
_MANIFEST = "manifest.json"
_PATIENCE, _SEEN_WITHIN, _LOOK_EVERY = 600.0, 10.0, 0.1  # seconds that processes wait for each other's files

Box = tuple[tuple[int, int], ...]  # (start, stop) along each axis


class Restored(NamedTuple):
    """A checkpoint, as it was saved; `meta` as JSON gives it back (tuples are lists)."""

    state: Any
    step: int
    meta: dict[str, Any]


class DamagedError(RuntimeError):
    """Says why a checkpoint cannot be used, or that none can."""


class _Unfinished(DamagedError):
    """What was killed while it was written or removed was no checkpoint, or is none any more."""


class Writer:
    """Writes the checkpoints of a run directory in the background, one after the other.

        with checkpoint.Writer(directory) as writer:
            writer.save(step, state, meta, best=True)

    At the end it waits for the last one. After an error in the block, what the write raises is a warning.

    Args:
        directory: the run directory; with several processes, the same for all.
    """

    def __init__(self, directory: PathLike):
        self._folder = _folder(directory)
        self._number = from_first(lambda: max(map(_number, _newest_first(self._folder)), default=0))
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def save(
        self, step: int, state: Any, meta: dict[str, Any], *, best: bool, then: Callable[[], None] = lambda: None
    ) -> None:
        """Waits for the one before, and returns as soon as `state` is copied: its buffers may be given away.

        When the checkpoint is complete and has been read back, older good ones are removed, except for one more, the
        newest, and the newest that was saved as best. Damaged and unfinished ones are left as they are.

        Args:
            step: the step that `state` has reached.
            state: a pytree of arrays (typed keys too) and Python numbers.
            meta: whatever else is worth keeping, plain JSON values: metrics, history, data position.
            best: whether this is the best one so far.
            then: called in the background by process 0, after all that.

        Raises:
            TypeError: a leaf is neither array nor number, or `meta` is not plain JSON.
            ValueError: the state has no leaves.
            OSError: what `wait` raises, of the one before.
        """
        meta = json.loads(to_json("meta", meta))
        self.wait()
        arrays = {name: _to_stored(name, leaf) for name, leaf in _named(state).items()}
        if not arrays:
            raise ValueError("state has no leaves, so there is nothing to save")
        manifest: dict[str, Any] = {
            "step": step,
            "best": best,
            "meta": meta,
            "leaves": {name: _spec(leaf) for name, leaf in _named(state).items()},
            "arrays": {name: _layout(array) for name, array in arrays.items()},
        }
        held: dict[str, Any] = {}
        for name, array in arrays.items():
            held |= _held(name, array, manifest["arrays"][name])
        held = jax.device_get(held)
        held = {key: np.array(array) for key, array in held.items()}  # copies: on CPUs they are the buffers themselves
        self._number += 1
        path = self._folder / f"{self._number:06d}-step-{step}"
        self._pending = self._thread.submit(_write, path, held, manifest, then)

    def wait(self) -> None:
        """Returns when nothing is being written any more.

        Raises:
            OSError: the disk is full or failing, here or at another process; the older ones are untouched.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self.wait()
        except Exception as why:
            if error is None:
                raise
            warnings.warn(f"the last checkpoint was lost: {why}", stacklevel=2)
        finally:
            self._thread.shutdown()


def save(directory: PathLike, step: int, state: Any, meta: dict[str, Any], *, best: bool) -> None:
    """Writes one checkpoint, as `Writer.save` does; returns when it is complete."""
    with Writer(directory) as writer:
        writer.save(step, state, meta, best=best)


def restore(directory: PathLike, like: Any, *, which: Literal["last", "best"] = "last") -> Restored | None:
    """The newest good checkpoint, or the newest good one saved as best; None before the first.

    Damaged and unfinished ones on the way are skipped, each with a warning. Nothing is deleted. Process 0 chooses and
    verifies for all. Where the others do not see its directory, they get from it what is whole on each process.

    Args:
        directory: the run directory.
        like: the state's structure: arrays, Python numbers or `jax.ShapeDtypeStruct`s. Each leaf comes back bit for bit
            as its counterpart is here: numpy array, Python number, or jax array with its sharding, committed or not.
            The sharding may be another than that of the state that was saved, on other processes, too.
        which: "last", or "best": only those that were saved as best.

    Raises:
        ValueError: the checkpoint does not fit `like`: the first differing leaf is named; or a leaf is split over
            processes that do not all see the directory.
        DamagedError: there are checkpoints, but all are damaged; they are listed.
    """
    return _restore(directory, which, lambda there: like)


def restore_params(directory: PathLike, like: Any, *, which: Literal["last", "best"] = "best") -> Restored | None:
    """As `restore`, of the parameters of a `TrainState` alone: of their moving average, where one was kept.

    Args:
        like: the parameters' structure; the optimiser need not be known.
    """

    def chosen(there: dict[str, str]) -> Any:
        averaged = any(name.startswith("state.ema") for name in there)
        return Parameters(ema=like) if averaged else Parameters(params=like)

    restored = _restore(directory, which, chosen, others=True)
    if restored is None:
        return None
    state = restored.state
    return restored._replace(state=state.params if state.ema is None else state.ema)


class Parameters(NamedTuple):
    """The fields of a `TrainState` that hold parameters."""

    params: Any = None
    ema: Any = None


def _restore(
    directory: PathLike, which: str, like_of: Callable[[dict[str, str]], Any], *, others: bool = False
) -> Restored | None:
    """Args: like_of: from the names of the leaves that are there; others: whether there may be more than it names."""
    if which not in ("last", "best"):
        raise ValueError(f'which must be "last" or "best"; got {which!r}')
    folder = _folder(directory)
    chosen = from_first(lambda: _choose(folder, like_of, best_only=which == "best", others=others))
    if "damaged" in chosen:
        raise DamagedError(chosen["damaged"])
    if "name" not in chosen:
        return None
    path, manifest = folder / chosen["name"], chosen["manifest"]
    like = like_of(manifest["leaves"])
    leaves, layouts = _named(like), manifest["arrays"]
    if multihost_utils.process_allgather(np.array((path / _MANIFEST).exists())).all():
        stored = _stored(path, layouts, leaves)
    else:
        layouts, stored = _from_process_0(path, layouts)
    found = [
        _to_like(leaf, layouts[name], partial(_part, name, layouts[name], stored)) for name, leaf in leaves.items()
    ]
    state = jax.tree.unflatten(jax.tree.structure(like), found)
    return Restored(state, manifest["step"], manifest["meta"])


def check_shared(directory: PathLike, state: Any) -> None:
    """Raise a ValueError if the state is split over processes that do not all see the directory, which exists."""
    leaves = [leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)]
    if all(leaf.is_fully_addressable or leaf.is_fully_replicated for leaf in leaves):
        return
    token = to_path(directory) / from_first(lambda: f"{uuid.uuid4()}{PARTIAL}")
    if jax.process_index() == 0:
        token.touch()
    seen = multihost_utils.process_allgather(np.array(_appears(token, _SEEN_WITHIN)))
    if jax.process_index() == 0:
        token.unlink()
    if not seen.all():
        raise ValueError(
            f"the state is split over {jax.process_count()} processes, and process {seen.argmin()} does not see what "
            f"process 0 writes into {directory}: choose a directory that all of them see, as gs:// is"
        )


def _choose(
    folder: epath.Path, like_of: Callable[[dict[str, str]], Any], *, best_only: bool, others: bool
) -> dict[str, Any]:
    """What process 0 tells all: a checkpoint's name and manifest, or nothing, or that all are damaged."""
    found: dict[str, Any] = {}
    skipped: list[str] = []
    damaged = False
    for path in _newest_first(folder):
        try:
            manifest = _verified(path)
        except DamagedError as why:
            unfinished = isinstance(why, _Unfinished)
            damaged |= not unfinished
            skipped.append(f"{_mark(path) if unfinished else path}: {why}")
            continue
        if not best_only or manifest["best"]:
            leaves = manifest["leaves"]
            _check_fits(path, leaves, like_of(leaves), others)
            found = {"name": path.name, "manifest": manifest}
            break
    if damaged and not found:
        return {"damaged": "no good checkpoint (none deleted):\n  " + "\n  ".join(skipped)}
    for problem in skipped:
        used = f"using {found['name']}" if found else "there is no other"
        warnings.warn(f"checkpoint skipped, not deleted: {problem}; {used}", stacklevel=4)
    return found


def _prune(folder: epath.Path) -> None:
    """Removes good checkpoints but the two newest and the newest best; never a damaged one."""
    good: dict[epath.Path, dict[str, Any]] = {}
    for path in _newest_first(folder):
        with contextlib.suppress(DamagedError):
            good[path] = _verified_once(path, _mark(path).exists(), tuple(_stamp(file) for file in files_under(path)))
    best = next((path for path in good if good[path]["best"]), None)
    for path in list(good)[2:]:
        if path != best:
            _mark(path).touch()
            path.rmtree()
            _mark(path).unlink()


# Files


def _folder(directory: PathLike) -> epath.Path:
    folder = to_path(directory) / "checkpoints"
    return folder.absolute() if is_local(folder) else folder  # Orbax insists on absolute paths


def _mark(path: epath.Path) -> epath.Path:
    """The file beside a checkpoint that is not complete."""
    return path.with_name(path.name + PARTIAL)


def _newest_first(folder: epath.Path) -> list[epath.Path]:
    """Every checkpoint, unfinished and damaged ones too; files with other names are not ours."""
    ours = {match[1] for name in entries(folder) if (match := _NAME.fullmatch(name))}
    return sorted((folder / name for name in ours), key=_number, reverse=True)


def _number(path: epath.Path) -> int:
    return int(path.name.partition("-")[0])


def _write(path: epath.Path, held: dict[str, np.ndarray], manifest: dict[str, Any], then: Callable[[], None]) -> None:
    """Writes this process's part of a checkpoint; process 0 begins and completes it."""
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        _mark(path).touch()
        path.mkdir(exist_ok=True)  # another process may have seen the mark, and begun with its part
        files = _write_part(path, held)
        _seal(path, manifest | {"files": files | _files_of_others(path, manifest["arrays"])})
        _mark(path).unlink()
        _prune(path.parent)
        then()
    elif held:
        _await(_mark(path), 0)
        try:
            said = {"files": _write_part(path, held)}
        except Exception as error:
            with contextlib.suppress(OSError):
                write_whole(_note(path, jax.process_index()), json.dumps({"error": str(error)}))
            raise
        write_whole(_note(path, jax.process_index()), json.dumps(said))


def _write_part(path: epath.Path, held: dict[str, np.ndarray]) -> dict[str, str]:
    """Writes what this process holds, and gives the digest of each file."""
    part = _part_of(path, jax.process_index())
    if held:
        _write_arrays(part, held)
    return {file.relative_to(path).as_posix(): _digest(file) for file in files_under(part)}


def _files_of_others(path: epath.Path, layouts: dict[str, Any]) -> dict[str, str]:
    """The digests that the other processes have left when their parts were written."""
    digests: dict[str, str] = {}
    for process in sorted({process for layout in layouts.values() for process, _ in layout["pieces"]} - {0}):
        note = _note(path, process)
        _await(note, process)
        said = json.loads(note.read_text())
        if "error" in said:
            raise OSError(f"process {process}: {said['error']}")
        digests |= said["files"] | {note.relative_to(path).as_posix(): _digest(note)}
    return digests


def _part_of(path: epath.Path, process: int) -> epath.Path:
    return path / "arrays" / str(process)


def _note(path: epath.Path, process: int) -> epath.Path:
    return path / "arrays" / f"{process}.json"


def _await(file: epath.Path, process: int) -> None:
    if not _appears(file, _PATIENCE):
        raise OSError(f"no checkpoint: process {process} has not written {file} within {_PATIENCE:.0f} s")


def _appears(file: epath.Path, seconds: float) -> bool:
    """Whether a file that another process writes is seen in time."""
    end = time.monotonic() + seconds
    while not (seen := file.name in entries(file.parent)) and time.monotonic() < end:
        time.sleep(_LOOK_EVERY)
    return seen


def _seal(path: epath.Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest, with a digest of its own."""
    sealed = {"sha256": _json_digest(manifest), "manifest": manifest}
    (path / _MANIFEST).write_text(json.dumps(sealed, indent=1))


def _verified(path: epath.Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose every file is as it was written."""
    if _mark(path).exists():
        raise _Unfinished("unfinished, the process was killed while writing or removing it")
    try:
        sealed = json.loads((path / _MANIFEST).read_text())
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


@lru_cache(maxsize=16)
def _verified_once(path: epath.Path, unfinished: bool, stamps: tuple[tuple[str, int, int], ...]) -> dict[str, Any]:
    """`_verified`, which reads every byte, once in a process while no file changes its size or time."""
    return _verified(path)


def _stamp(file: epath.Path) -> tuple[str, int, int]:
    found = file.stat()
    return str(file), found.length, found.mtime


def _digest(path: epath.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json_digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _write_arrays(path: epath.Path, arrays: dict[str, np.ndarray]) -> None:
    try:
        _save(path, arrays)
        back = _read_arrays(path, arrays)
    except OSError:
        raise
    except Exception as error:  # a full disk is a ValueError there, of many lines
        why = "no space left on the disk" if "RESOURCE_EXHAUSTED" in str(error) else str(error).partition("\n")[0]
        raise OSError(
            f"no checkpoint could be written to {path.parents[1]}: {why}; the older ones are whole"
        ) from error
    for name, array in arrays.items():
        if back[name].dtype != array.dtype or back[name].tobytes() != array.tobytes():
            raise OSError(f"{name} does not read back as it was written to {path}")


@contextlib.contextmanager
def _silence_of_absl() -> Iterator[None]:
    """Orbax logs the traces of its threads; what they raise comes here anyway."""
    logger = logging.getLogger("absl")

    def of_others(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    logger.addFilter(of_others)
    try:
        yield
    finally:
        logger.removeFilter(of_others)


def _read_arrays(path: epath.Path, keys: Iterable[str]) -> dict[str, np.ndarray]:
    if path.name != "0":
        return {key: np.asarray(_opened(path, key).read().result()) for key in keys}
    names, ocp = dict.fromkeys(keys, 0), _orbax()
    as_numpy = dict.fromkeys(names, ocp.RestoreArgs(restore_type=np.ndarray))
    with _checkpointer() as checkpointer:
        asked = ocp.args.PyTreeRestore(names, restore_args=as_numpy, partial_restore=True)
        return checkpointer.restore(path, args=asked)


def _save(path: epath.Path, arrays: dict[str, np.ndarray]) -> None:
    """By Orbax; in its store, without it, where this is not process 0: Orbax 0.12 then writes no array of numpy, and no
    array of jax that other processes do not hold as well. To go when it does."""
    if path.name == "0":
        with _silence_of_absl(), _checkpointer() as checkpointer:
            checkpointer.save(path, args=_orbax().args.PyTreeSave(arrays))
        return
    path.mkdir(parents=True)
    # In one context all arrays have one writer, and its index is written once: a bucket takes a file once a second.
    together = {"context": _tensorstore().Context(), "transaction": _tensorstore().Transaction()}
    for name, array in arrays.items():
        store = _opened(path, name, create=True, dtype=array.dtype, shape=array.shape, **together)
        store.write(array).result()
    together["transaction"].commit_sync()


def _opened(path: epath.Path, name: str, **options: Any) -> Any:
    base = f"file://{path}/" if is_local(path) else f"{path}/"
    kvstore = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
    return _tensorstore().open({"driver": "zarr", "kvstore": kvstore}, **options).result()


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


def _tensorstore() -> ModuleType:
    """Orbax's own store."""
    import tensorstore

    return tensorstore


# Leaves


def _named(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"state" + jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _spec(leaf: Any) -> str:
    """What a leaf is: "float32[3, 4]", or "int" for a Python number."""
    return type(leaf).__name__ if type(leaf) in _NUMBERS else f"{leaf.dtype}{list(leaf.shape)}"


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_stored(name: str, leaf: Any) -> Any:
    """A leaf as an array, of numpy or jax."""
    if isinstance(leaf, jax.Array):
        return jax.random.key_data(leaf) if _is_key(leaf) else leaf
    array = np.asarray(leaf)
    if array.dtype.kind in "OSUMm":
        raise TypeError(f"{name} is {type(leaf).__name__}; a state holds arrays and numbers only")
    return array


def _to_like(like: Any, layout: dict[str, Any], part: Callable[[Box], np.ndarray]) -> Any:
    """A leaf like this one, made of those parts of the stored array that this process asks for."""
    whole = _whole(layout["shape"])
    if type(like) in _NUMBERS:
        return type(like)(part(whole).item())
    if isinstance(like, np.ndarray | np.generic):
        return part(whole) if isinstance(like, np.ndarray) else part(whole)[()]
    sharding = _sharding(like)
    if sharding is None:
        leaf = jax.device_put(part(whole), may_alias=False)
    else:
        shape = tuple(layout["shape"])
        shards = [jax.device_put(part(box), to, may_alias=False) for to, box in _boxes(sharding, shape, local=True)]
        leaf = jax.make_array_from_single_device_arrays(shape, sharding, shards)
    return jax.random.wrap_key_data(leaf, impl=key_impl(like)) if _is_key(like) else leaf


def _check_fits(path: epath.Path, there: dict[str, str], like: Any, others: bool) -> None:
    wanted = {name: _spec(leaf) for name, leaf in _named(like).items()}
    for name in wanted if others else {**wanted, **there}:
        got, want = there.get(name, "absent"), wanted.get(name, "absent")
        if got != want:
            problem = f"{name} is {got} there, {want} wanted; usually it is of another model or optimiser"
            raise ValueError(f"{path} does not fit: {problem}")


# Pieces: where a leaf is split over devices, each device has a box of it


def _layout(array: Any) -> dict[str, Any]:
    """What is stored of an array: its boxes, each with the process that writes it. The same on every process."""
    pieces: dict[Box, int] = {}
    if not isinstance(array, jax.Array) or array.is_fully_replicated:
        pieces[_whole(array.shape)] = 0
    else:
        for device, box in _boxes(array.sharding, array.shape):
            pieces.setdefault(box, 0 if array.is_fully_addressable else device.process_index)
    return {
        "dtype": array.dtype.name,
        "shape": array.shape,
        "pieces": [[process, box] for box, process in pieces.items()],
    }


def _held(name: str, array: Any, layout: dict[str, Any]) -> dict[str, Any]:
    """The boxes that this process writes."""
    mine = {box for process, box in layout["pieces"] if process == jax.process_index()}
    if not array.size:
        return {name: np.zeros(1, array.dtype)} if mine else {}  # Orbax refuses size 0
    if not isinstance(array, jax.Array) or array.is_fully_replicated:
        return {name: array} if mine else {}
    shards = {_box(shard.index, array.shape): shard.data for shard in array.addressable_shards}
    return {_key(name, box, array.shape): shards[box] for box in mine}


def _stored(path: epath.Path, layouts: dict[str, Any], like: dict[str, Any]) -> dict[str, np.ndarray]:
    """Reads the pieces that have something of what this process needs."""
    keys: dict[int, list[str]] = {}
    for name, leaf in like.items():
        shape, sharding = layouts[name]["shape"], _sharding(leaf)
        needed = {box for _, box in _boxes(sharding, shape, local=True)} if sharding else {_whole(shape)}
        for process, piece in layouts[name]["pieces"]:
            if any(_overlap(piece, box) is not None for box in needed):
                keys.setdefault(process, []).append(_key(name, piece, shape))
    found: dict[str, np.ndarray] = {}
    for process, wanted in keys.items():
        found |= _read_arrays(_part_of(path, process), wanted)
    return found


def _part(name: str, layout: dict[str, Any], stored: dict[str, np.ndarray], box: Box) -> np.ndarray:
    """One box of an array, of the pieces that have something of it."""
    out = np.empty([stop - start for start, stop in box], np.dtype(layout["dtype"]))
    for _, piece in layout["pieces"]:
        shared = _overlap(piece, box)
        if shared is not None:
            out[_slices(shared, box)] = stored[_key(name, piece, layout["shape"])][_slices(shared, piece)]
    return out


def _from_process_0(path: epath.Path, layouts: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """All arrays, whole, for processes that do not see the files; as bytes, since sums make 0.0 of -0.0."""
    stored = _stored(path, layouts, dict.fromkeys(layouts)) if jax.process_index() == 0 else {}
    raw: dict[str, np.ndarray] = {}
    for name, layout in layouts.items():
        if jax.process_index() == 0:
            array = _part(name, layout, stored, _whole(layout["shape"]))
        else:
            array = np.zeros(layout["shape"], np.dtype(layout["dtype"]))
        raw[name] = np.frombuffer(array.tobytes(), np.uint8)
    raw = multihost_utils.broadcast_one_to_all(raw)
    whole = {name: layout | {"pieces": [[0, _whole(layout["shape"])]]} for name, layout in layouts.items()}
    arrays = {
        name: np.frombuffer(raw[name].tobytes(), layout["dtype"]).reshape(layout["shape"])
        for name, layout in layouts.items()
    }
    return whole, arrays


def _sharding(like: Any) -> jax.sharding.Sharding | None:
    """Where a leaf has to lie; None is the host, or wherever jax puts it."""
    return getattr(like, "sharding", None) if getattr(like, "committed", True) else None


def _boxes(sharding: jax.sharding.Sharding, shape: Sequence[int], *, local: bool = False) -> list[tuple[Any, Box]]:
    """The box that each device has, of all devices or of this process's."""
    indices = sharding.addressable_devices_indices_map if local else sharding.devices_indices_map
    return [(device, _box(index, shape)) for device, index in indices(tuple(shape)).items()]


def _box(index: tuple[slice, ...] | None, shape: Sequence[int]) -> Box:
    return tuple(each.indices(size)[:2] for each, size in zip(index or (), shape, strict=True))


def _whole(shape: Sequence[int]) -> Box:
    return tuple((0, size) for size in shape)


def _key(name: str, box: Box, shape: Sequence[int]) -> str:
    """The name of a piece: the leaf's own, where it is all of it."""
    if _overlap(box, _whole(shape)) in (None, _whole(shape)):
        return name
    return f"{name}[{', '.join(f'{start}:{stop}' for start, stop in box)}]"


def _overlap(one: Box, other: Box) -> Box | None:
    shared = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))
    return shared if all(start < stop for start, stop in shared) else None


def _slices(box: Box, within: Box) -> tuple[slice, ...]:
    return tuple(slice(start - first, stop - first) for (start, stop), (first, _) in zip(box, within, strict=True))
