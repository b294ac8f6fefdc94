"""Results for people: a table for the terminal, and one self-contained HTML page.

Numbers keep only the digits that their standard error supports. The page needs no network, no
script and no other file: pictures are inside it, and all text that it is given is escaped.
"""

import base64
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import NamedTuple

import numpy as np
from etils import epath

Number = float | int | np.integer | np.floating
LONG = 24  # characters, from which on a cell of a table of text may be broken into lines


class Row(NamedTuple):
    """One number of a result table. A whole number (an `int`) is exact and printed in full."""

    name: str
    value: Number
    standard_error: Number | None = None
    meaning: str = ""  # the unit, the data convention, what is good


class Picture(NamedTuple):
    """A PNG (shown with crisp pixels) or SVG file; `alt` is for those who cannot see it.

    Of a grid of images the columns may have names, which stand above them, and the rows, on their left.
    """

    data: bytes
    alt: str
    caption: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[str] = ()


class TextTable(NamedTuple):
    """A table of text, for instance sentences beside their reconstructions; a cell per column."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Section(NamedTuple):
    """A part of a report: a title, a caption, then pictures or a table of text or both."""

    title: str
    caption: str
    pictures: Sequence[Picture] = ()
    table: TextTable | None = None


def number_text(value: Number, standard_error: Number | None = None) -> tuple[str, str]:
    """Formats a value and its standard error: ("-105.32", "0.41"), or ("-105.3", "") without one.

    The standard error gets two significant digits and the value as many decimals (at most nine).
    Without one, a value gets four significant digits and a whole number is printed in full.

    Raises:
      ValueError: for a negative standard error.
    """
    if standard_error is None and isinstance(value, int | np.integer):
        return str(value), ""
    if standard_error is None:
        return _significant(float(value)), ""
    value, error = float(value), float(standard_error)
    if error < 0:
        raise ValueError(f"standard_error: got {error}, wanted at least 0, or None for a number without one")
    if error == 0 or not (math.isfinite(error) and math.isfinite(value)):
        return _significant(value), _significant(error)
    decimals = 1 - int(f"{error:.1e}".split("e")[1])
    if decimals > 9:
        return f"{value:.9f}", f"{error:.1e}"
    return _rounded(value, decimals), _rounded(error, decimals)


def table_text(rows: Sequence[Row]) -> str:
    """Returns the table for a terminal: name, value ± standard error, meaning, aligned."""
    cells = [(row.name, *_cells(row), row.meaning) for row in rows]
    n, v, e, _ = (max(map(len, column), default=0) for column in zip(*cells, [""] * 4, strict=True))
    lines = (f"{name:<{n}}   {value:>{v}} {error:<{e}}   {text}" for name, value, error, text in cells)
    return "\n".join(line.rstrip() for line in lines)


def write(
    path: str | os.PathLike[str],
    *,
    title: str,
    lead: str,
    table: Sequence[Row],
    sections: Sequence[Section],
    configuration: Mapping[str, object],
    command: str,
    notice: str = "",
    foot: str = "",
) -> epath.Path:
    """Writes the report as one HTML file and returns its path.

    An older file is replaced whole or not at all.

    Args:
      path: the HTML file, local or `gs://`; missing folders are made.
      title, lead: the heading, and a paragraph that says what was done.
      table: the numbers.
      sections: pictures and tables of text, in order.
      configuration: every option of the run; an inner dict becomes dotted names.
      command: the command line that makes this report again.
      notice: what a reader has to know before all else, shown above the numbers.
      foot: the last line, for instance when and on what this was made.

    Raises:
      ValueError: for a picture that is neither PNG nor SVG or has no `alt`, and for a row of a
        text table of another length than its columns.
    """
    file = epath.Path(path)
    parts = [
        f"<header><h1>{escape(title)}</h1><p>{escape(lead)}</p></header>",
        f"<p class=notice role=note>{escape(notice)}</p>" if notice else "",
        _results(table),
        *map(_section, sections),
        _origin(configuration, command),
        f"<footer>{escape(foot)}</footer>" if foot else "",
    ]
    page = _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(filter(None, parts)))
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    return file


def _cells(row: Row) -> tuple[str, str]:
    """Returns the number of a row as shown: ("-105.32", "± 0.41") or ("12", "")."""
    value, error = number_text(row.value, row.standard_error)
    return value, f"± {error}" if error else ""


def _significant(value: float, digits: int = 4) -> str:
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = int(f"{value:.{digits - 1}e}".split("e")[1])
    if not -5 <= exponent < 9:
        return f"{value:.{digits - 1}e}"
    return _rounded(value, digits - 1 - exponent)


def _rounded(value: float, decimals: int) -> str:
    return f"{round(value, decimals) + 0.0:.{max(decimals, 0)}f}"  # + 0.0: no minus zero


def _results(table: Sequence[Row]) -> str:
    rows = []
    for row in table:
        value, error = (part.replace("-", "−") for part in _cells(row))  # a true minus sign
        rows.append(
            f"<tr><th scope=row>{escape(row.name)}<td class=value>{value}"
            f"<td class=error>{error}<td class=meaning>{escape(row.meaning)}"
        )
    note = "" if all(row.standard_error is None for row in table) else "± is one standard error."
    return _block("Results", note, f"<table class=results>{''.join(rows)}</table>") if rows else ""


def _section(section: Section) -> str:
    pictures = "".join(_figure(section.title, picture) for picture in section.pictures)
    body = f"<div class=pictures>{pictures}</div>" if pictures else ""
    if section.table is not None:
        body += _text_table(section.title, section.table)
    return _block(section.title, section.caption, body)


def _figure(where: str, picture: Picture) -> str:
    data = picture.data
    if isinstance(data, bytes) and data.startswith(b"\x89PNG\r\n\x1a\n"):
        kind = "png"
    elif isinstance(data, bytes) and data.lstrip().startswith((b"<svg", b"<?xml")):
        kind = "svg+xml"
    else:
        raise ValueError(
            f"section {where!r}: got a picture {data!r:.40}, wanted the bytes of a PNG or SVG "
            "file; an array goes through pictures.png first"
        )
    if not picture.alt.strip():
        raise ValueError(f"section {where!r}: a picture has no alt text; say what it shows")
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    caption = f"<figcaption>{escape(picture.caption)}</figcaption>" if picture.caption else ""
    image = _named(f'<img src="{source}" alt="{escape(picture.alt)}">', picture)
    return f"<figure class={kind[:3]}>{image}{caption}</figure>"


def _named(image: str, picture: Picture) -> str:
    """The image with the names of its columns above it and those of its rows on its left."""
    if not picture.columns and not picture.rows:
        return image
    across, down = (
        "".join(f"<span>{escape(name)}</span>" for name in names) for names in (picture.columns, picture.rows)
    )
    return f"<div class=named><div class=across>{across}</div><div class=down>{down}</div>{image}</div>"


def _text_table(where: str, table: TextTable) -> str:
    for row in table.rows:
        if len(row) != len(table.columns):
            raise ValueError(
                f"section {where!r}: a row of the table has {len(row)} cells, "
                f"wanted {len(table.columns)}, one per column"
            )
    kinds = [" class=long" if max(map(len, cells), default=0) > LONG else "" for cells in zip(*table.rows, strict=True)]
    head = "".join(f"<th scope=col>{escape(name)}" for name in table.columns)
    rows = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}" for kind, cell in zip(kinds, row, strict=True))
        for row in table.rows
    )
    return (
        f'<div class=scroll tabindex=0 role=region aria-label="{escape(where)}">'
        f"<table class=text><thead><tr>{head}<tbody>{rows}</table></div>"
    )


def _origin(configuration: Mapping[str, object], command: str) -> str:
    options = "".join(f"<div><dt>{escape(name)}<dd>{escape(str(value))}</div>" for name, value in _flat(configuration))
    return _block(
        "Configuration",
        "The command makes this report again; every option is listed.",
        f"<pre><code>{escape(command)}</code></pre><dl>{options}</dl>",
    )


def _flat(configuration: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in configuration.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _block(title: str, caption: str, body: str) -> str:
    """A heading and its caption, beside the body on a wide screen and above it on a narrow one."""
    caption = f"<p>{escape(caption)}</p>" if caption else ""
    return f"<section>\n<div><h2>{escape(title)}</h2>{caption}</div>\n<div>{body}</div>\n</section>"


_STYLE = """
:root {
  --page: #fff; --ink: #1f2328; --soft: #59636e; --line: #dde1e6; --code: #f4f5f7; --shade: #8c959f80;
  color-scheme: light dark;
}
@media (prefers-color-scheme: dark) {
  :root { --page: #121416; --ink: #e4e7ea; --soft: #9ba5af; --line: #2e343a; --code: #1c2024; --shade: #f0f3f640; }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink); overflow-wrap: break-word;
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  -webkit-text-size-adjust: 100%;
}
main { max-width: 74rem; margin: auto; padding: clamp(1.5rem, 5vw, 4rem) clamp(1rem, 4vw, 2.5rem); }
h1 { margin: 0 0 .75rem; font-size: clamp(1.6rem, 4vw, 2.3rem); line-height: 1.2; }
h2 { margin: 0 0 .4rem; font-size: 1.1rem; line-height: 1.35; }
header p { max-width: 44rem; margin: 0 0 2.5rem; font-size: 1.1rem; color: var(--soft); }
section { display: grid; gap: 1rem 3rem; padding: 1.75rem 0; border-top: 1px solid var(--line); }
section p { margin: 0; max-width: 40rem; font-size: .92rem; color: var(--soft); }
section > div { min-width: 0; }
.notice { margin: 0 0 2rem; padding: .8rem 1rem; border-left: .3rem solid #e76300; background: var(--code); }
@media (min-width: 60rem) { section { grid-template-columns: 15rem 1fr; } }
.pictures { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start; }
figure { margin: 0; max-width: 100%; }
figure.svg { flex: 1 1 22rem; max-width: 34rem; }
figcaption { margin-top: .4rem; font-size: .85rem; color: var(--soft); }
img { display: block; max-width: 100%; height: auto; }
.svg img { width: 100%; }
.png img { image-rendering: pixelated; }
.named { display: grid; grid-template-columns: auto minmax(0, max-content); font-size: .72rem; line-height: 1.1; }
.named img { grid-column: 2; }
.across { grid-column: 2; display: flex; margin-bottom: .3rem; }
.across span {
  flex: 1 1 0; min-width: 0; align-content: center; writing-mode: vertical-rl; transform: rotate(180deg);
}
.down { display: flex; flex-direction: column; max-width: 14rem; }
.down span {
  flex: 1 1 0; min-height: 0; padding-right: .6rem; align-content: center; text-align: right;
  white-space: nowrap; overflow: hidden; text-overflow: ellipsis;
}
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem 1.5rem .45rem 0; text-align: left; vertical-align: baseline; }
th { font-weight: 400; }
tr + tr > *, thead + tbody > tr > * { border-top: 1px solid var(--line); }
.value { padding-right: 0; text-align: right; font-weight: 600; white-space: nowrap; }
.error { padding-left: .35em; color: var(--soft); white-space: nowrap; }
.results tr:first-child > * { padding-top: 0; }
.meaning { width: 50%; padding-right: 0; color: var(--soft); font-size: .92rem; }
@media (max-width: 40rem) {
  .results tr { display: grid; grid-template-columns: 1fr auto auto; padding: .4rem 0; }
  .results tr + tr { border-top: 1px solid var(--line); }
  .results tr > * { border: 0; padding-top: .1rem; padding-bottom: .1rem; }
  .error { padding-right: 0; }
  .error:empty { padding: 0; }
  .meaning { grid-column: 1 / -1; width: auto; }
  .down { max-width: 6.5rem; }
}
.text { font-size: .9rem; }
.text :is(th, td) { padding-right: 1.1rem; }
.text thead th { color: var(--soft); font-size: .85rem; vertical-align: bottom; }
.text td { white-space: nowrap; }
.text .long { white-space: normal; min-width: 14rem; }
.pictures + .scroll { margin-top: 1.5rem; }
/* What is wider than the page is scrolled sideways; a shadow stands at the edge behind which there is more. */
.scroll {
  overflow-x: auto;
  background: linear-gradient(to right, var(--page) 40%, transparent) left,
    linear-gradient(to left, var(--page) 40%, transparent) right,
    linear-gradient(to right, var(--shade), transparent) left,
    linear-gradient(to left, var(--shade), transparent) right;
  background-repeat: no-repeat; background-size: 3rem 100%, 3rem 100%, 1.1rem 100%, 1.1rem 100%;
  background-attachment: local, local, scroll, scroll;
}
pre {
  margin: 0 0 1.25rem; padding: .8rem 1rem; border-radius: .4rem; background: var(--code);
  white-space: pre-wrap;
}
code, dd { font: .88rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
dl { margin: 0; columns: 2 20rem; column-gap: 3rem; font-size: .92rem; }
dl div { display: flex; justify-content: space-between; gap: 1rem; padding: .2rem 0; }
dl div { break-inside: avoid; }
dt { color: var(--soft); }
dd { margin: 0; text-align: right; min-width: 0; }
footer { padding: 1.75rem 0; border-top: 1px solid var(--line); color: var(--soft); font-size: .92rem; }
"""

# The policy makes the browser refuse whatever would come from outside the file.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
