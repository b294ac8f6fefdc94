"""A trained model as a folder that opens where there is jax and none of this code: programs, parameters and a card.

    export(open_run("runs/vae"), "exported", licence="mit")

The programs are StableHLO, as `jax.export` writes it, for any number of examples; the parameters are safetensors; the
card, README.md, is what the hub of Hugging Face shows. Its code opens the folder with jax and numpy, and is tested.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np
from jax import export as jax_export
from numpyro.distributions.distribution import validation_enabled

from vae_jax._version import __version__
from vae_jax.core.extras import extra
from vae_jax.data.check import leaves_by_path
from vae_jax.evaluation.whole_split import check_options, values_of
from vae_jax.training.card import card, cell
from vae_jax.training.run_directory import PathLike, check_writable, entries, to_path
from vae_jax.training.trained import Trained, of_batch, one_code, one_sample, types_in_jax

Platform = Literal["cpu", "cuda", "tpu", "rocm"]
PLATFORMS: tuple[Platform, ...] = ("cpu", "cuda", "tpu")
CHUNK = 40  # importance samples of an example in memory at once


class Program(NamedTuple):
    """One file of the folder.

    Fields:
        call: `(params, key, places, data, cs) -> result`, of a batch.
        data: shapes and types of one example of its data; None where it takes none.
        takes, gives: names of data and result in the card's code.
        meaning: what it computes.
    """

    call: Callable[..., Any]
    data: Any
    takes: tuple[str, ...]
    gives: str
    meaning: str


def export(
    run: Trained,
    path: PathLike,
    *,
    k: int = 0,
    licence: str = "other",
    data: str = "",
    datasets: Sequence[str] = (),
    platforms: Sequence[str] = PLATFORMS,
) -> None:
    """Writes sampler.jax, encoder.jax, decoder.jax, bound.jax, params.safetensors and README.md.

    Each program is `(params, key, places, ...)`: the parameters by the names of their paths, the data of a key
    (`jax.random.key_data`), and the place of each example, which its noise follows from. Data are taken as they are
    stored; a last argument has the conditions, where the model has any. With the same key, and 0 .. n - 1 as places:

        sampler(params, key, places)        run.sample(key, n)
        encoder(params, key, places, ys)    run.encode(ys, noise=key), or where z has no mean run.encode(ys, key=key)
        decoder(params, key, places, zs)    run.decode(zs, key=key)
        bound(params, key, places, ys)      run.evaluate(key, ys).elbo, nats; with k that run's log_likelihood

    z is one array, or a list of those of all levels. A model without z has neither encoder nor decoder. The card quotes
    the command and the arguments of the run: read it before others do.

    Args:
        run: of `open_run`.
        path: a folder, local or `gs://bucket/folder`; it is made, or empty.
        k: importance samples of the bound; 0 is the ELBO.
        licence: of the parameters, by its name on the hub: "mit", "apache-2.0", "cc-by-4.0". It depends on that of the
            data; "other" is for the card's author to explain.
        data: what the model was trained on and where that is from, a sentence; by default what the run knows.
        datasets: names that these data have on the hub, "owner/name".
        platforms: where the programs are to run.

    Raises:
        TypeError: what is no `Trained`.
        ValueError: a platform for which jax cannot make one of the programs, or k for a model without importance
            samples.
        FileExistsError: the folder is not empty.
        OSError: it cannot be written.
        ImportError: safetensors or flatbuffers, which jax wants for this, is not installed.
    """
    root = _checked(run, path, k, platforms)
    with extra("export", "export"):
        import flatbuffers  # noqa: F401
        from safetensors.numpy import save
    params = {name: np.array(x, order="C") for name, x in leaves_by_path(run.params).items()}
    programs = programs_of(run, k)
    made = {name: _made(run, name, program, params, tuple(platforms)) for name, program in programs.items()}
    files = {f"{name}.jax": serialised for name, (serialised, _) in made.items()} | {"params.safetensors": save(params)}
    calls = "\n".join(_calls(run, programs))
    code = _CODE % {"types": json.dumps(_types(files["params.safetensors"], params)), "calls": calls}
    written = card(
        run,
        about=_FILES.format(files="\n".join(_files(programs, {name: result for name, (_, result) in made.items()}))),
        use=_USE.format(platforms=", ".join(platforms), vae_jax=__version__, jax=jax.__version__, code=code),
        licence=licence,
        terms=f"{licence}: the parameters, and the programs.",
        data=data,
        datasets=datasets,
        tags=("stablehlo",),
    )
    root.mkdir(parents=True, exist_ok=True)
    for name, content in {**files, "README.md": written.encode()}.items():
        (root / name).write_bytes(content)


def _checked(run: Trained, path: PathLike, k: int, platforms: Sequence[str]) -> Any:
    """The folder, after making sure that the arguments are right."""
    if not isinstance(run, Trained):
        raise TypeError(f'export wants an opened run, open_run("runs/vae"); got {type(run).__name__}')
    known = get_args(Platform)
    if isinstance(platforms, str) or not platforms or not set(platforms) <= set(known):
        raise ValueError(f"platforms wants some of {', '.join(known)}; got {platforms!r}")
    check_options(run.model, k, 1, 1, 1)
    root = to_path(path)
    check_writable(root)
    if there := sorted(entries(root)):
        raise FileExistsError(f"{root} is not empty: it holds {there[0]} ({len(there)} entries); choose another folder")
    return root


# The programs


def programs_of(run: Trained, k: int) -> dict[str, Program]:
    """Those that the model has, by their names, in the order in which the card calls them."""
    y, cs = types_in_jax(run.y), () if run.c is None else ("cs",)

    def bound(params, key, places, ys, cs):
        of_data = values_of(run.model, run.preprocess, k, 1, CHUNK, cs is not None)
        distortion, rate, weighted, *_ = of_data(params, key, places, ys, cs)
        return weighted if k else -(distortion + rate)

    of = f"a lower bound on ln P(y) by {k} importance samples" if k else "the ELBO, a lower bound on ln P(y)"
    means = "" if run.model.latent is None else ", means of P_gen(y|z) where it has them"
    return {
        "sampler": Program(of_batch(one_sample(run.model)), None, cs, "drawn", f"draws from the model{means}"),
        **({} if run.model.latent is None else _of_latent(run, cs)),
        "bound": Program(bound, y, ("ys", *cs), "bounds", f"{of}, nats"),
    }


def _of_latent(run: Trained, cs: tuple[str, ...]) -> dict[str, Program]:
    """Encoder and decoder; z that has no mean (or most probable value) is drawn."""
    latent, y, c, key = run.latent, types_in_jax(run.y), types_in_jax(run.c), jax.random.key(0)
    code = one_code(latent, run.preprocess, drawn=False)
    z = jax.eval_shape(code, run.params, (key, key), y, c)
    meaning = "the mean of P_enc(z|y), or its codes"
    if z is None:
        code, meaning = one_code(latent, run.preprocess, drawn=True), "draws from P_enc(z|y), which has no mean"
        z = jax.eval_shape(code, run.params, (key, key), y, c)
    structure = jax.tree.structure(z)

    def encode(params, key, y, c):
        return _plain(code(params, (key, key), y, c))

    def decode(params, key, z, c):
        return latent.decode(params, key, jax.tree.unflatten(structure, jax.tree.leaves(z)), c)

    shown = "the mean of P_gen(y|z), or a draw where it has none"
    return {
        "encoder": Program(of_batch(encode), y, ("ys", *cs), "zs", meaning),
        "decoder": Program(of_batch(decode), _plain(z), ("zs", *cs), "again", shown),
    }


def _plain(z: Any) -> Any:
    """Without types of this library: one array, or a list of them."""
    leaves = jax.tree.leaves(z)
    return leaves[0] if len(leaves) == 1 else leaves


def _made(
    run: Trained, name: str, program: Program, params: dict[str, np.ndarray], platforms: tuple[str, ...]
) -> tuple[bytes, str]:
    """The program for these platforms, and the shapes and types of what it gives.

    Raises:
        ValueError: jax cannot make it; the platforms are named.
    """
    structure, names = jax.tree.structure(run.params), list(params)
    (n,) = jax_export.symbolic_shape("n")

    def call(flat, key, places, *inputs):
        given = [*inputs]
        data = None if program.data is None else given.pop(0)
        cs = None if run.c is None else given.pop(0)
        own = jax.tree.unflatten(structure, [flat[name] for name in names])
        return program.call(own, jax.random.wrap_key_data(key), places, data, cs)

    def batch(x):
        return jax.ShapeDtypeStruct((n, *x.shape), x.dtype)

    inputs = [jax.tree.map(batch, tree) for tree in (program.data, types_in_jax(run.c)) if tree is not None]
    key, places = jax.random.key_data(jax.random.key(0)), jax.ShapeDtypeStruct((n,), np.int32)

    def made(platforms):
        with validation_enabled(False):  # numpyro's is no part of a program, and knows no n
            exported = jax_export.export(jax.jit(call), platforms=platforms)(params, key, places, *inputs)
        return bytes(exported.serialize()), ", ".join(aval.str_short() for aval in exported.out_avals)

    try:
        return made(platforms)
    except Exception as error:  # each rule of lowering has its own
        failed = [platform for platform in platforms if not _runs(made, (platform,))]
        others = tuple(platform for platform in platforms if platform not in failed)
        why = str(error).strip().partition("\n")[0]
        hint = f"; for the others it can: platforms={others}" if failed and others else ""
        raise ValueError(
            f"jax.export cannot make the {name} of {run.name} for {', '.join(failed or platforms)}: {why}{hint}"
        ) from error


def _runs(function: Callable[..., Any], *arguments: Any) -> bool:
    try:
        function(*arguments)
    except Exception:
        return False
    return True


# What the card says of it

_USE = """\
It wants `pip install jax flatbuffers`, and none of the code that trained it. The programs are for {platforms}. They
were written by vae_jax {vae_jax} and jax {jax}; newer versions of jax read them for six months at least; older ones may
refuse, whatever they give as the reason.

```python
{code}
```

On the hub, with `pip install huggingface_hub`:

```python
from huggingface_hub import HfApi, snapshot_download

HfApi().create_repo("OWNER/NAME", exist_ok=True)
HfApi().upload_folder(repo_id="OWNER/NAME", folder_path=".")
folder = snapshot_download("OWNER/NAME")
```"""

_FILES = """| file | call | gives | |
|---|---|---|---|
{files}

`key` is the data of a key of `jax.random`, and `places` holds the place of each example among all: its noise follows
from both, so that it is the same in any batch. With 0 .. n - 1 the results are those of `vae_jax`."""

_CODE = """import json
import pathlib

import jax
import jax.export
import numpy as np

folder = pathlib.Path(".")  # where these files are


def read(file):  # as safetensors.numpy.load_file
    raw = file.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    types = %(types)s

    def array(dtype, shape, data_offsets):
        first, last = data_offsets
        return np.frombuffer(raw[start + first : start + last], types[dtype]).reshape(shape)

    return {name: array(**of) for name, of in json.loads(raw[8:start]).items()}


def program(name):
    return jax.jit(jax.export.deserialize(bytearray((folder / f"{name}.jax").read_bytes())).call)


params = read(folder / "params.safetensors")
n = 3
key, places = jax.random.key_data(jax.random.key(0)), np.arange(n, dtype="int32")
%(calls)s"""


def _types(stored: bytes, params: dict[str, np.ndarray]) -> dict[str, str]:
    """What numpy calls the types in the header of a safetensors file."""
    header = json.loads(stored[8 : 8 + int.from_bytes(stored[:8], "little")])
    return {header[name]["dtype"]: str(x.dtype) for name, x in params.items()}


def _files(programs: dict[str, Program], results: dict[str, str]) -> Iterator[str]:
    for name, program in programs.items():
        call = f"{name}({', '.join(('params', 'key', 'places', *program.takes))})"
        yield f"| {name}.jax | `{call}` | {results[name]} | {cell(program.meaning)} |"


def _calls(run: Trained, programs: dict[str, Program]) -> Iterator[str]:
    """Lines that call each program once."""
    if run.c is not None:
        yield f"cs = {_zeros(types_in_jax(run.c))}  # yours"
    yield f"ys = {_zeros(types_in_jax(run.y))}  # yours, as they are stored"
    for name, program in programs.items():
        takes = ", ".join(("params", "key", "places", *program.takes))
        yield f'{program.gives} = program("{name}")({takes})'


def _zeros(tree: Any) -> str:
    """A batch of zeros, as Python."""
    if isinstance(tree, dict):
        return "{" + ", ".join(f"{name!r}: {_zeros(each)}" for name, each in tree.items()) + "}"
    if isinstance(tree, tuple | list):
        inside = "".join(f"{_zeros(each)}, " for each in tree)
        return f"({inside})" if isinstance(tree, tuple) else f"[{inside}]"
    return f'np.zeros([{", ".join(map(str, ("n", *tree.shape)))}], "{tree.dtype}")'
