"""The card of a trained model, README.md: what it is, its data, its numbers with their errors, and how to use it.

It is what the hub of Hugging Face shows. `export` writes one, and the models that the package carries have theirs.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import PurePath

import numpy as np

from vae_jax.data.check import leaves_by_path
from vae_jax.data.datasets import CARRIED
from vae_jax.report.page import number_text
from vae_jax.training.trained import Trained, described, types_in_jax

_CARD = """---
{metadata}
---

# {title}

{what}

{about}

## Data

{data}

Give them as they were stored: {stored}. The model itself makes of them what it sees: {convention}. Numbers of different
conventions cannot be compared.{columns}

## Numbers

{numbers}

## How to use it

{use}

## What made it

{made}

## Licence

{terms}
"""


def card(
    run: Trained,
    *,
    about: str,
    use: str,
    licence: str,
    terms: str = "",
    data: str = "",
    datasets: Sequence[str] = (),
    tags: Sequence[str] = (),
) -> str:
    """The card as Markdown, with the metadata that the hub reads.

    Args:
        about: what else the model is, or what its files are.
        use: how it is opened.
        licence: of the parameters, by its name on the hub; terms: what there is to say of it.
        data: what the model was trained on, a sentence; by default what the run knows.
        datasets: names that these data have on the hub; tags: of the model there.
    """
    arguments = run.config.get("recipe", {}).get("arguments", {})
    data = data or CARRIED.get(arguments.get("data"), str(arguments.get("data", "")))
    conditions = "" if run.c is None else f", with conditions {described(types_in_jax(run.c))}"
    return _CARD.format(
        metadata="\n".join(_metadata(licence, datasets, tags)),
        title=PurePath(run.name).name,
        what=_what(run),
        about=about,
        data=f"{data[:1].upper()}{data[1:].rstrip('.')}."
        if data
        else "The run does not say what they were: say so here.",
        stored=f"{described(types_in_jax(run.y))}{conditions}",
        convention=run.preprocess.name,
        columns="\n".join(_columns(run)),
        numbers="\n".join(_numbers(run)),
        use=use,
        made="\n\n".join(_origin(run)),
        terms=_OTHER if licence == "other" else terms,
    )


_OTHER = "None was chosen: say here what others may do with the parameters. It depends on the licence of the data."


def _metadata(licence: str, datasets: Sequence[str], tags: Sequence[str]) -> Iterator[str]:
    """Lines of YAML, whose values are JSON."""
    yield f"license: {json.dumps(licence)}"
    yield "library_name: jax"
    yield f"tags: {json.dumps(['jax', 'vae_jax', *tags, 'latent-variable-model'])}"
    if datasets:
        yield f"datasets: {json.dumps(list(datasets))}"


def _what(run: Trained) -> str:
    given = "" if run.c is None else ", given conditions c"
    latent = "a latent z" if run.model.latent else "no z: so there is neither encoder nor decoder"
    step = f", those of step {run.step}" * (run.step > 0)  # not all are trained in steps
    return f"A model P(y) of {described(types_in_jax(run.y))}{given}, with {latent}. It has {_sizes(run)}{step}."


def _sizes(run: Trained) -> str:
    """How many parameters there are, and in which part."""
    parts: dict[str, int] = {}
    for name, x in leaves_by_path(run.params).items():
        part = name.split("/")[0]
        parts[part] = parts.get(part, 0) + int(np.size(x))
    of_parts = ", ".join(f"{part} {size:,}" for part, size in parts.items())
    return f"{sum(parts.values()):,} parameters" + f" ({of_parts})" * (len(parts) > 1)


def _columns(run: Trained) -> Iterator[str]:
    """Of rows of a table how its columns become numbers."""
    if run.preprocess.columns:
        yield "\n\nA missing entry is NaN. Samples come in these units:\n\n| column | as a number |\n|---|---|"
    for column in run.preprocess.columns:
        classes = ", ".join(f"{code} is {name}" for code, name in enumerate(column.categories))
        said = {"number": f"(value - {column.centre:.17g}) / {column.scale:.17g}", "count": "itself", "class": classes}
        yield f"| {cell(column.name)} | {cell(said[column.kind])} |"


def _numbers(run: Trained) -> Iterator[str]:
    rows = [row for row in run.numbers or () if row["value"] is not None]
    yield "± is one standard error." if rows else "None were kept with the run."
    if rows:
        yield "\n| | | |\n|---|---|---|"
    for row in rows:
        number = " ± ".join(filter(None, number_text(row["value"], row["standard_error"])))
        yield f"| {cell(row['name'])} | {number} | {cell(row['meaning'])} |"


def cell(text: str) -> str:
    """Text in a cell of a table."""
    return text.replace("|", "\\|")


def _origin(run: Trained) -> Iterator[str]:
    """When, how and with what it was trained."""
    for start in run.made[-1:]:
        versions = ", ".join(f"{name} {version}" for name, version in start["versions"].items())
        yield f"`{start['command']}`, started {start['date']} on {start['devices']}, with {versions}."
    if "recipe" in run.config:
        yield f"How the model was built:\n\n```json\n{json.dumps(run.config['recipe'], indent=1)}\n```"
