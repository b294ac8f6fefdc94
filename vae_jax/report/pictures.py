"""Arrays to pictures: image grids as PNG; curves, maps, densities and bars as SVG.

Pure functions: arrays in, an array or the bytes of a file out. The same input gives the same
bytes. Figures have no background and draw their text and axes in the reader's ink, so that they
sit on a light and on a dark page alike.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Bool, Shaped, UInt8

from vae_jax.core.extras import extra

Axes = Any  # matplotlib.axes.Axes: matplotlib is imported only where a figure is made

# Ten colours that colour-blind readers tell apart (Petroff 2021, arXiv:2107.02270).
COLOURS = (
    *("#3f90da", "#e76300", "#832db6", "#ffa90e", "#717581"),
    *("#bd1f01", "#92dadd", "#a96b59", "#b9ac70", "#94a4a2"),
)
_MARKERS = "osD^vP"  # each curve, and each further ten classes, also differ in shape
_INK = "#757b82"  # a grey that can be read on both, for programs that do not know the rules below
OVER_POINTS = "over-points"  # how names on a map are called in the file
_INK_RULES = """<style>
svg { color: #757b82; color-scheme: light dark; }
@media (prefers-color-scheme: light) { svg { color: #343a40; } }
@media (prefers-color-scheme: dark) { svg { color: #ced4da; } }
text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif !important; }
[id^="over-points"] text { font-weight: 600 !important; }
[id^="over-points"] text { paint-order: stroke; stroke: Canvas; stroke-width: 3px; }
</style>
"""


def grid(
    images: ArrayLike,
    columns: int = 10,
    gap: int = 2,
    *,
    background: int | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Lays images out row by row, `gap` pixels apart, without a margin.

    Args:
      images: (n, h, w, 1) or (n, h, w, 3), floats in [0, 1] (values outside are clipped), uint8, or what models
        sample: bool or whole numbers that are all 0 or 1 (black and white), else levels 0 to 255.
      columns: images in a row; fewer images than that make one shorter row.
      background: grey level, 0 to 255, of the gaps and of the cells left over in the last row;
        by default dark for dark images and light for light ones.

    Raises:
      ValueError: for another shape or dtype, for NaN or infinity, for columns < 1 or gap < 0.
    """
    tiles = _rgb("images", images)
    if background is None:
        background = 40 if np.median(tiles) < 128 else 215
    if columns < 1 or gap < 0 or not 0 <= background <= 255:
        raise ValueError(
            f"grid: got columns={columns}, gap={gap}, background={background}; "
            "wanted columns >= 1, gap >= 0, background in 0..255"
        )
    n, h, w, _ = tiles.shape
    columns = min(columns, n)
    rows = math.ceil(n / columns)
    cells = np.full((rows * columns, h + gap, w + gap, 3), background, np.uint8)
    cells[:n, :h, :w] = tiles
    canvas = cells.reshape(rows, columns, h + gap, w + gap, 3).swapaxes(1, 2)
    canvas = canvas.reshape(rows * (h + gap), columns * (w + gap), 3)
    return canvas[: rows * (h + gap) - gap, : columns * (w + gap) - gap].copy()


def pairs(
    originals: ArrayLike,
    reconstructions: ArrayLike,
    columns: int = 5,
    gap: int = 6,
    *,
    background: int | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Lays out each original with its reconstruction touching it on the right.

    Arguments and errors as for `grid`, where `columns` counts pairs; the two arguments must agree
    in the number, height and width of their images.
    """
    left, right = _rgb("originals", originals), _rgb("reconstructions", reconstructions)
    if left.shape != right.shape:
        raise ValueError(
            f"pairs: originals have shape {np.shape(originals)}, reconstructions "
            f"{np.shape(reconstructions)}; wanted one of the same size for each original"
        )
    return grid(np.concatenate([left, right], axis=2), columns, gap, background=background)


def png(array: Shaped[np.ndarray, "..."], zoom: int = 1) -> bytes:
    """Returns a picture, uint8 (H, W, 3), as a PNG file; each pixel becomes a square, `zoom` wide.

    Raises:
      ValueError: for another shape or dtype, for zoom < 1.
    """
    if array.ndim != 3 or array.shape[-1] != 3 or array.dtype != np.uint8:
        raise ValueError(
            f"array: got {array.dtype} of shape {array.shape}, wanted uint8 of shape (H, W, 3); "
            "images go through grid first"
        )
    if zoom < 1:
        raise ValueError(f"png: got zoom={zoom}, wanted a whole number >= 1")
    from PIL import Image

    picture = Image.fromarray(array)
    if (array == array[..., :1]).all():
        picture = picture.convert("L")  # grey: a third of the bytes
    size = (picture.width * zoom, picture.height * zoom)
    file = io.BytesIO()
    picture.resize(size, Image.Resampling.NEAREST).save(file, format="PNG", optimize=True)
    return file.getvalue()


def curves(
    lines: Mapping[str, tuple[Shaped[np.ndarray, "..."], Shaped[np.ndarray, "..."]]],
    *,
    x: str = "epoch",
    y: str = "nats per example",
) -> bytes:
    """Draws named lines (xs, ys), for instance the bound by epoch; returns SVG.

    Args:
      lines: name -> (xs, ys), two vectors of the same length, which may differ from line to line.
      x, y: what the axes show, with the unit.

    Raises:
      ValueError: for no lines, for vectors that do not match, for NaN or infinity.
    """
    if not lines:
        raise ValueError("curves: got no lines, wanted at least one name -> (xs, ys)")
    for name, (xs, ys) in lines.items():
        if xs.ndim != 1 or xs.shape != ys.shape or not xs.size:
            raise ValueError(
                f"curves: {name!r} has xs of shape {xs.shape} and ys of shape {ys.shape}; "
                "wanted two vectors of the same length >= 1"
            )
        _check_finite(f"curves: xs of {name!r}", xs)
        _check_finite(f"curves: ys of {name!r}", ys)

    def draw(axes: Axes) -> list[Any]:
        if all(np.issubdtype(xs.dtype, np.integer) for xs, _ in lines.values()):
            axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.grid(axis="y")
        axes.set(xlabel=x, ylabel=y)
        handles = []
        for i, (xs, ys) in enumerate(lines.values()):
            look = _look(i, i) | {"linestyle": "-" if i % 2 == 0 else "--"}
            handles += axes.plot(xs, ys, markevery=max(1, len(xs) // 12), markersize=4.5, **look)
        return handles

    return _svg(draw, list(lines), height=3.3)


def scatter(
    codes: Shaped[np.ndarray, "..."],
    labels: Shaped[np.ndarray, "..."] | None = None,
    names: Sequence[str] | None = None,
    *,
    x: str = "z₁",
    y: str = "z₂",
) -> bytes:
    """Draws a map of two-dimensional codes, coloured by class; returns SVG.

    Up to twelve classes are also named on the map, each at the median of its codes; where names would overlap, the
    larger class has its name.

    Args:
      codes: (n, 2), drawn to the same scale on both axes.
      labels: (n,) whole numbers, or None for one colour.
      names: the name of class 0, 1, ...; by default the number itself.

    Raises:
      ValueError: for another shape, for NaN or infinity, for a label without a name.
    """
    if codes.ndim != 2 or codes.shape[1] != 2 or not len(codes):
        raise ValueError(
            f"codes: got shape {codes.shape}, wanted (n, 2) with n >= 1; "
            "a larger latent space wants two of its units, or a projection"
        )
    _check_finite("codes", codes)
    groups = [("", np.ones(len(codes), bool))] if labels is None else _classes(labels, names, len(codes))

    def draw(axes: Axes) -> list[Any]:
        size = float(np.clip(16000 / len(codes), 5, 30))
        handles = []
        for i, (_, chosen) in enumerate(groups):
            look = _look(i, i // 10)
            flat = {"linewidths": 0, "rasterized": True}  # an image: many points stay small
            axes.scatter(*codes[chosen].T, s=size, alpha=0.75, **flat, **look)
            handles += axes.plot([], [], linestyle="", markersize=6, **look)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set(xlabel=x, ylabel=y)
        by_size = sorted(enumerate(groups), key=lambda each: -each[1][1].sum())
        for i, (name, chosen) in by_size if len(groups) <= 12 else []:
            centre = np.median(codes[chosen], axis=0)
            axes.text(*centre, name, ha="center", va="center", fontsize=8.5, gid=f"{OVER_POINTS}-{i}")
        return handles

    return _svg(draw, [] if labels is None else [name for name, _ in groups], height=4.7)


def bars(
    values: Shaped[np.ndarray, "..."] | Mapping[str, Shaped[np.ndarray, "..."]],
    names: Sequence[str] | None = None,
    *,
    x: str = "latent unit, largest first",
    y: str = "KL in nats",
) -> bytes:
    """Draws a bar for each value in the order given, for instance the sorted KL of each unit; returns SVG.

    Args:
      values: (n,), or name -> (n,): the bars of several sets stand side by side, each set in its colour.
      names: what stands below each bar or group of bars, by default 1 to n.
      x, y: what the axes show, with the unit.

    Raises:
      ValueError: for another shape than (n,), for sets of different lengths or none, for NaN or infinity, for names
        that do not match.
    """
    sets = _sets(values)
    n = len(next(iter(sets.values())))
    if names is not None and len(names) != n:
        raise ValueError(f"names: got {len(names)} names for {n} values")

    def draw(axes: Axes) -> list[Any]:
        places, width = np.arange(1, n + 1), (0.75 if n <= 60 else 1.0) / len(sets)
        handles = []
        for i, each in enumerate(sets.values()):
            colour, shift = _look(i, i)["color"], (i - (len(sets) - 1) / 2) * width
            handles.append(axes.bar(places + shift, each, width, color=colour, edgecolor=colour, linewidth=0.3))
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        if names is not None:
            axes.set_xticks(places, names)
            if n * (max(map(len, names)) + 1) > 50:  # more characters than there is room for side by side
                for text in axes.get_xticklabels():
                    text.set(rotation=45, rotation_mode="anchor", ha="right", va="center", fontsize=8)
        axes.grid(axis="y")
        axes.set(xlabel=x, ylabel=y, xlim=(0.4, n + 0.6))
        return handles

    return _svg(draw, list(sets) if isinstance(values, Mapping) else [], height=3.3)


def _sets(values: Shaped[np.ndarray, "..."] | Mapping[str, Shaped[np.ndarray, "..."]]) -> dict[str, np.ndarray]:
    """Checks what `bars` draws, and gives the one set without a name that of ""."""
    sets = dict(values) if isinstance(values, Mapping) else {"": values}
    for name, each in sets.items():
        where = f"values of {name!r}" if isinstance(values, Mapping) else "values"
        if each.ndim != 1 or not len(each):
            raise ValueError(
                f"{where}: got shape {each.shape}, wanted (n,) with n >= 1; "
                "an array with examples in it wants a mean over them first"
            )
        _check_finite(where, each)
    lengths = [len(each) for each in sets.values()]
    if len(set(lengths)) != 1:
        raise ValueError(f"bars: got sets of {lengths} values; wanted at least one set, and all of one length")
    return sets


def timeline(
    series: Shaped[np.ndarray, "..."],
    states: Shaped[np.ndarray, "..."],
    probabilities: Shaped[np.ndarray, "..."],
    *,
    columns: Sequence[str],
    names: Sequence[str],
    x: str = "step",
) -> bytes:
    """Draws a series, its points coloured by state, and below it how probable each state is; returns SVG.

    Args:
      series: (T, d), a panel for each of the d columns.
      states: (T,) whole numbers in 0 .. K-1.
      probabilities: (T, K), stacked in the lowest panel.
      columns: names of the d columns; names: those of the K states.

    Raises:
      ValueError: for shapes or names that do not match, for NaN or infinity, for other states.
    """
    steps = len(series)
    if series.shape != (steps, len(columns)) or probabilities.shape != (steps, len(names)) or not columns or not steps:
        raise ValueError(
            f"timeline: got a series of shape {series.shape} with {len(columns)} names of columns, and probabilities "
            f"of shape {probabilities.shape} with {len(names)} names of states; wanted (T, d) with d, (T, K) with K"
        )
    _check_finite("series", series)
    _check_finite("probabilities", probabilities)
    _classes(states, names, steps)

    def draw(panels: Axes) -> list[Any]:
        time, size = np.arange(1, steps + 1), float(np.clip(2500 / steps, 2, 14))
        looks = [_look(k, k) for k in range(len(names))]
        for axes, values, name in zip(panels, series.T, columns, strict=False):
            axes.plot(time, values, color=_INK, linewidth=0.5, alpha=0.4, rasterized=True)
            for k, look in enumerate(looks):
                chosen = states == k
                axes.scatter(time[chosen], values[chosen], s=size, linewidths=0, rasterized=True, **look)
            axes.set(ylabel=name)
        edges = np.append(np.zeros((steps, 1)), np.cumsum(probabilities, axis=1), axis=1).T
        for look, low, high in zip(looks, edges[:-1], edges[1:], strict=True):
            flat = {"fill": True, "linewidth": 0, "rasterized": True}
            panels[-1].stairs(high, np.arange(steps + 1) + 0.5, baseline=low, color=look["color"], **flat)
        panels[-1].set(xlabel=x, ylabel="P(state)", ylim=(0, 1), xlim=(0.5, steps + 0.5))
        return [panels[0].plot([], [], linestyle="", markersize=6, **look)[0] for look in looks]

    return _svg(draw, list(names), height=0.9 + 1.7 * len(columns), panels=[2] * len(columns) + [1])


def planes(
    panels: Mapping[str, tuple[Shaped[np.ndarray, "..."], float]],
    columns: int = 3,
    *,
    x: str = "y₁",
    y: str = "y₂",
) -> bytes:
    """Draws densities in the plane, a named panel for each, row by row; returns SVG.

    The darker the denser: shown is the root of the density, which does not hide the tails, on one scale in all panels.

    Args:
      panels: name -> (density, reach): (h, w), row by row upwards, over the square from -reach to reach.
      columns: panels in a row.
      x, y: what the axes show.

    Raises:
      ValueError: for no panels, for another shape, for NaN, infinity or a negative number, for reach <= 0.
    """
    if not panels or columns < 1:
        raise ValueError(f"planes: got {len(panels)} panels in {columns} columns, wanted at least one of each")
    for name, (density, reach) in panels.items():
        if density.ndim != 2 or not density.size or not reach > 0:
            raise ValueError(
                f"planes: {name!r} has shape {density.shape} and reach {reach}; wanted (h, w) and a reach > 0"
            )
        _check_finite(f"planes: {name!r}", density)
        if density.min() < 0:
            raise ValueError(f"planes: {name!r} goes down to {density.min()}; wanted a density, at least 0")
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    highest = max(density.max() for density, _ in panels.values()) or 1.0
    red, green, blue = (int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5))

    def draw(axes: Axes) -> list[Any]:
        axes = np.ravel(axes)
        for place, (name, (density, reach)) in zip(axes, panels.items(), strict=False):
            colours = np.broadcast_to(np.array([red, green, blue, 0], np.uint8), (*density.shape, 4)).copy()
            colours[..., 3] = np.rint(255 * np.sqrt(density / highest))
            place.imshow(colours, extent=(-reach, reach, -reach, reach), origin="lower", interpolation="nearest")
            place.locator_params(nbins=4)
            place.tick_params(labelsize=7)
            place.set_title(name, fontsize=8)
        for i, place in enumerate(axes):
            place.set_visible(i < len(panels))
            place.set(xlabel=x if i + columns >= len(panels) else "", ylabel=y if i % columns == 0 else "")
        return []

    return _svg(draw, [], height=rows * (4.4 / columns + 0.35) + 0.3, panels=[1] * rows, columns=columns)


def _rgb(name: str, images: ArrayLike) -> UInt8[np.ndarray, "n h w 3"]:
    """Checks a batch of images and makes it uint8 with three channels."""
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"{name}: got shape {images.shape}, wanted (n, h, w, 1) or (n, h, w, 3) with n >= 1; "
            "one image wants images[None], images without a channel axis want images[..., None]"
        )
    if np.issubdtype(images.dtype, np.floating):
        _check_finite(name, images)
        images = np.rint(np.clip(images.astype(np.float32), 0, 1) * 255).astype(np.uint8)
    elif images.dtype == bool or np.issubdtype(images.dtype, np.integer):
        low, high = images.min(), images.max()
        if low < 0 or high > 255:
            raise ValueError(f"{name}: got {images.dtype} from {low} to {high}, wanted 0 and 1, or levels 0 to 255")
        black_and_white = high <= 1 and images.dtype != np.uint8
        images = images.astype(np.uint8) * np.uint8(255 if black_and_white else 1)
    if images.dtype != np.uint8:
        raise ValueError(
            f"{name}: got dtype {images.dtype}, wanted numpy floats in [0, 1] or whole numbers; "
            "bfloat16 wants .astype(np.float32)"
        )
    return np.broadcast_to(images, (*images.shape[:3], 3))


def _check_finite(name: str, array: Shaped[np.ndarray, "..."]) -> None:
    bad = ~np.isfinite(array)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{name}: {bad.sum()} of {array.size} values are NaN or infinite, "
            f"the first at index {first}; the usual cause is a run that diverged"
        )


def _classes(
    labels: Shaped[np.ndarray, "..."], names: Sequence[str] | None, n: int
) -> list[tuple[str, Bool[np.ndarray, " n"]]]:
    """Returns (name, which of the n points belong to it) for each class that occurs."""
    if labels.shape != (n,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels: got {labels.dtype} of shape {labels.shape}, "
            f"wanted whole numbers of shape ({n},), one for each code"
        )
    if names is not None and not 0 <= labels.min() <= labels.max() < len(names):
        raise ValueError(
            f"labels: got {labels.min()} to {labels.max()}, "
            f"wanted 0 to {len(names) - 1}, for the {len(names)} names given"
        )
    return [(str(k) if names is None else str(names[k]), labels == k) for k in np.unique(labels)]


def _look(colour: int, marker: int) -> dict[str, str]:
    return {"color": COLOURS[colour % len(COLOURS)], "marker": _MARKERS[marker % len(_MARKERS)]}


def _remove_overlapping(figure: Any) -> None:
    """Takes away names over points that would lie on others, drawn before them."""
    names = [text for axes in figure.axes for text in axes.texts if str(text.get_gid()).startswith(OVER_POINTS)]
    if names:
        figure.draw_without_rendering()  # which is when everything gets its place
    taken: list[Any] = []
    for text in names:
        place = text.get_window_extent().expanded(1.1, 1.0)  # a reader's font may be wider
        if any(place.overlaps(other) for other in taken):
            text.remove()
        else:
            taken.append(place)


def _svg(
    draw: Callable[[Axes], list[Any]],
    names: list[str],
    height: float,
    panels: Sequence[int] = (1,),
    columns: int = 1,
) -> bytes:
    """Draws on axes of about `height` inches; what `draw` returns is named in a legend under them.

    With several `panels`, heights in proportion, `draw` is given that many axes, one above the other, or rows of
    `columns` axes.

    The one place that knows matplotlib. It leaves no global state behind, and neither the
    reader's style sheet nor the date changes the bytes.
    """
    with extra("report", "drawing"):
        import matplotlib
        from matplotlib.figure import Figure

    style: dict[Any, Any] = {f"{part}.color": _INK for part in ("text", "xtick", "ytick", "grid")} | {
        "axes.axisbelow": True,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "axes.linewidth": 0.6,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "grid.alpha": 0.3,
        "grid.linewidth": 0.5,
        "legend.columnspacing": 1.4,
        "legend.frameon": False,
        "legend.handletextpad": 0.4,
        "svg.fonttype": "none",
        "svg.hashsalt": "vae_jax",
        "text.parse_math": False,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
    }
    abreast = min(max(1, 60 // (6 + max(map(len, names), default=0))), max(1, len(names)))
    size = (5.2, height + 0.21 * math.ceil(len(names) / abreast))
    file = io.StringIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style)
        figure = Figure(figsize=size, layout="constrained")
        handles = draw(figure.subplots(len(panels), columns, sharex=columns == 1, height_ratios=panels))
        if names:
            figure.legend(handles, names, loc="outside lower left", ncols=abreast)
        _remove_overlapping(figure)
        undated = {"Date": None, "Creator": None}
        figure.savefig(file, format="svg", transparent=True, dpi=200, metadata=undated)
    head, body = file.getvalue().split("<defs>", 1)
    return (head + _INK_RULES + "<defs>" + body.replace(_INK, "currentColor")).encode()
