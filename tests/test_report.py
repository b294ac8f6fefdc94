"""Pictures and reports: exact layouts, honest digits, and a page that needs nothing but itself."""

import base64
import io
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from reported import check_report

from experiments import em_routes
from vae_jax.command import publish
from vae_jax.command.config import Run
from vae_jax.command.image_report import learning_curve
from vae_jax.evaluation import Mean, mean
from vae_jax.report import page, pictures
from vae_jax.report.page import Picture, Row, Section, TextTable

NASTY = "<script>alert('x')</script> & \"quoted\" {braces} $5 to $9 ü"
PNG = pictures.png(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'


# ---- grids


def test_grid_layout_is_exact():
    images = np.arange(1, 7, dtype=np.uint8).reshape(3, 1, 2, 1)
    expected = [[1, 2, 9, 3, 4], [9, 9, 9, 9, 9], [5, 6, 9, 9, 9]]
    array = pictures.grid(images, columns=2, gap=1, background=9)
    assert array.dtype == np.uint8
    for channel in range(3):
        np.testing.assert_array_equal(array[..., channel], expected)


@pytest.mark.parametrize(("n", "columns", "gap"), [(1, 1, 0), (7, 3, 2), (6, 3, 0), (2, 10, 5)])
def test_grid_equals_a_plain_loop(n, columns, gap):
    h, w = 3, 4
    images = np.random.default_rng(n).integers(0, 256, (n, h, w, 3), dtype=np.uint8)
    used = min(n, columns)
    rows = -(-n // columns)
    expected = np.full((rows * h + (rows - 1) * gap, used * w + (used - 1) * gap, 3), 77, np.uint8)
    for i in range(n):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        expected[top : top + h, left : left + w] = images[i]
    np.testing.assert_array_equal(pictures.grid(images, columns, gap, background=77), expected)


def test_floats_are_scaled_and_clipped():
    images = np.array([-3.0, 0.0, 0.2, 1.0, 7.0], np.float32).reshape(1, 1, 5, 1)
    np.testing.assert_array_equal(pictures.grid(images)[0, :, 0], [0, 0, 51, 255, 255])


def test_what_models_sample_is_shown():
    """Bernoulli samples are int32: 0 and 1 are black and white. Whole numbers beyond that are levels, as uint8 is."""
    drawn = np.array([0, 1, 1, 0]).reshape(1, 1, 4, 1)
    kinds = (bool, np.int8, np.int32, np.int64, np.uint16)
    for binary in (*(drawn.astype(kind) for kind in kinds), jnp.asarray(drawn, jnp.int32), jnp.asarray(drawn, bool)):
        np.testing.assert_array_equal(pictures.grid(binary)[0, :, 0], [0, 255, 255, 0])
    np.testing.assert_array_equal(pictures.grid(drawn.astype(np.uint8))[0, :, 0], [0, 1, 1, 0])
    np.testing.assert_array_equal(pictures.grid(jnp.asarray(85 * drawn, jnp.int32))[0, :, 0], [0, 85, 85, 0])
    both = pictures.pairs(np.full((1, 1, 1, 1), 7, np.uint8), jnp.ones((1, 1, 1, 1), jnp.int32))
    np.testing.assert_array_equal(both[0, :, 0], [7, 255])


def test_gaps_follow_the_images_in_dark_and_light():
    dark = np.zeros((2, 1, 1, 1))
    np.testing.assert_array_equal(pictures.grid(dark, gap=1)[0, :, 0], [0, 40, 0])
    np.testing.assert_array_equal(pictures.grid(dark + 1, gap=1)[0, :, 0], [255, 215, 255])


def test_pairs_put_each_original_left_of_its_reconstruction():
    originals = np.array([1, 2, 3], np.uint8).reshape(3, 1, 1, 1)
    array = pictures.pairs(originals, originals + 10, columns=2, gap=1, background=0)
    expected = [[1, 11, 0, 2, 12], [0, 0, 0, 0, 0], [3, 13, 0, 0, 0]]
    np.testing.assert_array_equal(array[..., 0], expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pictures.grid(np.zeros((4, 28, 28))), r"images: got shape \(4, 28, 28\).*None"),
        (lambda: pictures.grid(np.zeros((0, 2, 2, 1))), r"images: got shape \(0, 2, 2, 1\)"),
        (lambda: pictures.grid(np.zeros((1, 2, 2, 1), np.complex64)), "images: got dtype complex64"),
        (lambda: pictures.grid(np.full((1, 2, 2, 1), 256)), "images: got int64 from 256 to 256, wanted 0 and 1, or"),
        (lambda: pictures.grid(np.full((1, 2, 2, 1), -1, np.int8)), "images: got int8 from -1 to -1"),
        (lambda: pictures.grid(np.zeros((1, 2, 2, 1)), 0), "columns=0"),
        (lambda: pictures.grid(np.zeros((1, 2, 2, 1)), gap=-1), "gap=-1"),
        (lambda: pictures.png(np.zeros((2, 2, 3))), "array: got float64"),
        (lambda: pictures.png(np.zeros((2, 2, 3), np.uint8), 0), "zoom=0"),
        (
            lambda: pictures.pairs(np.zeros((2, 1, 1, 1)), np.full((2, 1, 1, 1), np.nan)),
            r"reconstructions: 2 of 2 values are NaN or infinite, .* \(0, 0, 0, 0\)",
        ),
        (
            lambda: pictures.pairs(np.zeros((2, 1, 1, 1)), np.zeros((3, 1, 1, 1))),
            r"originals have shape \(2, 1, 1, 1\), reconstructions \(3, 1, 1, 1\)",
        ),
        (lambda: pictures.planes({}), "planes: got 0 panels in 3 columns"),
        (lambda: pictures.planes({"a": (np.zeros(4), 1.0)}), r"planes: 'a' has shape \(4,\) and reach 1.0"),
        (lambda: pictures.planes({"a": (np.zeros((2, 2)), 0.0)}), r"planes: 'a' has shape \(2, 2\) and reach 0.0"),
        (lambda: pictures.planes({"a": (np.full((2, 2), np.nan), 1.0)}), "planes: 'a': 4 of 4 values are NaN"),
        (lambda: pictures.planes({"a": (np.full((2, 2), -1.0), 1.0)}), "planes: 'a' goes down to -1.0"),
        (lambda: pictures.curves({}), "got no lines"),
        (lambda: pictures.curves({"a": (np.zeros(2), np.zeros(3))}), r"'a' has xs of shape \(2,\)"),
        (
            lambda: pictures.curves({"a": (np.zeros(2), np.array([0, np.nan]))}),
            r"ys of 'a': 1 of 2 .* index \(1,\)",
        ),
        (lambda: pictures.scatter(np.zeros((4, 3))), r"codes: got shape \(4, 3\)"),
        (lambda: pictures.scatter(np.array([[0, np.inf]])), "codes: 1 of 2"),
        (lambda: pictures.scatter(np.zeros((2, 2)), np.zeros(2)), "labels: got float64"),
        (
            lambda: pictures.scatter(np.zeros((2, 2)), np.array([0, 2]), ["a", "b"]),
            "labels: got 0 to 2, wanted 0 to 1",
        ),
        (lambda: pictures.bars(np.zeros((2, 2))), r"values: got shape \(2, 2\)"),
        (lambda: pictures.bars(np.array([np.nan])), "values: 1 of 1"),
        (lambda: pictures.bars(np.zeros(2), ["a"]), "got 1 names for 2 values"),
        (lambda: pictures.bars({}), r"got sets of \[\] values; wanted at least one set"),
        (lambda: pictures.bars({"a": np.zeros(2), "b": np.zeros(1)}), r"got sets of \[2, 1\] values"),
        (lambda: pictures.bars({"a": np.zeros(2), "b": np.array([0, np.nan])}), "values of 'b': 1 of 2"),
        (lambda: _timeline(series=np.zeros(3)), r"a series of shape \(3,\) with 1 names of columns"),
        (lambda: _timeline(series=np.zeros((0, 1))), r"a series of shape \(0, 1\)"),
        (lambda: _timeline(probabilities=np.ones((3, 3))), r"shape \(3, 3\) with 2 names of states"),
        (lambda: _timeline(series=np.array([[0], [np.nan], [0]])), r"series: 1 of 3 .* at index \(1, 0\)"),
        (lambda: _timeline(probabilities=np.full((3, 2), np.inf)), "probabilities: 6 of 6"),
        (lambda: _timeline(states=np.zeros(2, int)), r"labels: got int64 of shape \(2,\)"),
        (lambda: _timeline(states=np.array([0, 1, 2])), "labels: got 0 to 2, wanted 0 to 1, for the 2 names"),
    ],
)
def test_bad_pictures_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_png_decodes_to_the_zoomed_pixels():
    colour = np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)
    grey = np.broadcast_to(colour[..., :1], colour.shape)
    for array in (colour, grey):
        data = pictures.png(array, zoom=4)
        decoded = Image.open(io.BytesIO(data))
        assert decoded.size == (20, 12)
        expected = array.repeat(4, 0).repeat(4, 1)
        np.testing.assert_array_equal(np.asarray(decoded.convert("RGB")), expected)
        assert data == pictures.png(array, zoom=4)


# ---- figures


def _paths(svg: bytes, colour: str) -> list[np.ndarray]:
    """The corners, in the page's coordinates, of every path drawn in the colour."""
    found = re.findall(rf'<path d="([^"]*)"[^>]*style="[^"]*{colour}', svg.decode())
    numbers = [re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path) for path in found]
    return [np.array(corners, float) for corners in numbers]


def test_curves_are_drawn_where_the_numbers_are():
    xs, ys = np.arange(1, 9), np.array([5.0, 3.0, 4.0, 1.0, 1.5, 0.0, 0.2, -1.0])
    svg = pictures.curves({"train": (xs, ys)})
    line = max(_paths(svg, pictures.COLOURS[0]), key=len)
    for data, drawn, direction in ((xs, line[:, 0], 1), (ys, line[:, 1], -1)):
        slope, start = np.polyfit(data, drawn, 1)
        assert slope * direction > 0  # downwards is positive in an SVG
        np.testing.assert_allclose(slope * data + start, drawn, atol=1e-3)


@pytest.mark.parametrize(
    ("of", "caption", "legends"),
    [
        (
            lambda row: [row],
            "The bound -ELBO in nats per row (lower is better), and its two parts on the validation rows.",
            [{"training", "validation"}, {"rate", "distortion"}],
        ),
        (
            lambda row: [row | {"valid_rate": 0.0}],
            "The bound -ELBO in nats per row (lower is better).",
            [{"training", "validation"}],
        ),
        (
            lambda row: {"a": [row | {"valid_elbo": np.nan, "valid_rate": np.nan}], "b": [row]},
            "and its two parts",
            [{"a, training", "b, training", "b, validation"}, {"b, rate", "a, distortion", "b, distortion"}],
        ),
    ],
)
def test_a_learning_curve_shows_what_there_is(of, caption, legends):
    """Two parts where something is latent; several trainings by their names; nothing of what was never taken."""
    row = {"epoch": 1, "elbo": -3.0, "valid_elbo": -4.0, "valid_rate": 1.0, "valid_distortion": 3.0}
    section = learning_curve(of(row), unit="row", note="So it is.")
    assert caption in section.caption and section.caption.endswith(". So it is.")
    for picture, names in zip(section.pictures, legends, strict=True):
        texts = {element.text for element in ET.fromstring(picture.data).iter() if element.tag.endswith("text")}
        assert names <= texts and any("nats per row" in text for text in texts)
        assert not ({"training", "a, validation", "a, rate"} - names) & texts


def test_bars_are_as_high_as_the_values():
    values = np.array([4.0, 2.0, 0.5])
    drawn = _paths(pictures.bars(values), pictures.COLOURS[0])
    heights = np.array([np.ptp(bar[:, 1]) for bar in drawn])
    np.testing.assert_allclose(heights / heights[0], values / values[0], atol=1e-4)


def test_bars_of_several_sets_stand_side_by_side():
    """Above each name the one set's bar, then the other's, which touches it; both on one scale, and in the legend."""
    sets = {"rows": np.array([4.0, 2.0]), "drawn": np.array([1.0, 3.0])}
    svg = pictures.bars(sets, ["a", "b"], x="ward", y="part")
    bars = np.array([_paths(svg, colour)[:2] for colour in pictures.COLOURS[:2]])  # then that of the legend
    heights, left, right = np.ptp(bars[..., 1], axis=2), bars[..., 0].min(axis=2), bars[..., 0].max(axis=2)
    np.testing.assert_allclose(heights / heights[0, 0], np.stack(list(sets.values())) / 4, atol=1e-4)
    np.testing.assert_allclose(right[0], left[1], atol=1e-4)
    assert right[1, 0] < left[0, 1]
    texts = [element.text for element in ET.fromstring(svg).iter() if element.tag.endswith("text")]
    assert all(texts.count(name) == 1 for name in ("rows", "drawn", "a", "b", "ward", "part"))


def test_scatter_shows_every_class_in_its_colour():
    codes = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    svg = pictures.scatter(codes, np.array([0, 2, 1]), ["zero", "one", "two"])
    (image,) = re.findall(r"data:image/png;base64,\s*([^\"]+)", svg.decode())
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(image)))).reshape(-1, 4)
    inside = pixels[pixels[:, 3] > 180, :3].astype(int)
    for colour in pictures.COLOURS[:3]:
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(inside - rgb).max(1) <= 3).sum() > 20, colour
    texts = [element.text for element in ET.fromstring(svg).iter() if element.tag.endswith("text")]
    assert all(texts.count(name) == 2 for name in ("zero", "one", "two"))  # map and legend


def test_names_on_a_map_do_not_overlap():
    """Two classes in one place: the larger one is named there, and the legend names both."""
    codes = np.array([[0.0, 0.0], [0.0, 0.0], [0.01, 0.0], [5.0, 5.0]])
    svg = pictures.scatter(codes, np.array([1, 1, 0, 2]), ["smaller", "larger", "elsewhere"])
    texts = [element.text for element in ET.fromstring(svg).iter() if element.tag.endswith("text")]
    assert [texts.count(name) for name in ("smaller", "larger", "elsewhere")] == [1, 2, 2]


def test_planes_are_as_dark_as_the_root_of_the_density():
    """Upwards is upwards, the scale is that of all panels, and each has its name and its range."""
    one, two = np.array([[4.0, 1.0], [0.0, 0.0]]), np.array([[0.0, 0.0], [0.0, 1.0]])
    svg = pictures.planes({"one": (one, 2.0), "two": (two, 30.0)}, x="z₁", y="z₂").decode()
    alphas = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(image))).convert("RGBA"))[..., 3]
        for image in re.findall(r"data:image/png;base64,\s*([^\"]+)", svg)
    ]
    for alpha, want in zip(alphas, ([[255, 128], [0, 0]], [[0, 0], [0, 128]]), strict=True):
        h, w = alpha.shape
        corners = alpha[np.ix_([h // 4, -h // 4], [w // 4, -w // 4])]  # an image inside goes upwards
        np.testing.assert_array_equal(corners, want)
    texts = [element.text for element in ET.fromstring(svg).iter() if element.tag.endswith("text")]
    assert texts.count("z₂") == 1 and texts.count("z₁") == 2 and {"one", "two", "2", "20"} <= set(texts)


def _timeline(**changes):
    arrays = {
        "series": np.array([[0.0], [1.0], [0.0]]),
        "states": np.array([0, 1, 0]),
        "probabilities": np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]),
    }
    return pictures.timeline(**(arrays | changes), columns=["level"], names=["low", "high"], x="day")


def test_a_timeline_shows_the_states_and_how_probable_they_are():
    """Of three points two are in the first colour, and the other one is the highest; of the lowest panel two thirds."""
    svg = _timeline(probabilities=np.array([[1, 0], [0.5, 0.5], [0.5, 0.5]]))
    found = []
    for image in re.findall(r"data:image/png;base64,\s*([^\"]+)", svg.decode()):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(image)))).astype(int)
        rgbs = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in pictures.COLOURS[:2]]
        found.append(
            [np.argwhere((np.abs(pixels[..., :3] - rgb).max(-1) <= 3) & (pixels[..., 3] > 180)) for rgb in rgbs]
        )
    (low, high), (first, second) = found
    assert high[:, 0].min() > low[:, 0].max()  # the rows of an image inside go upwards
    assert low[:, 1].min() < high[:, 1].min() < high[:, 1].max() < low[:, 1].max()
    assert len(first) / (len(first) + len(second)) == pytest.approx(2 / 3, abs=0.01)
    texts = [element.text for element in ET.fromstring(svg).iter() if element.tag.endswith("text")]
    assert all(texts.count(name) == 1 for name in ("low", "high", "level", "day", "P(state)"))


FIGURES = {
    "curves": lambda name: pictures.curves(
        {name: (np.arange(3), np.arange(3.0)), "_b": (np.arange(1), np.ones(1))}, x=name, y=name
    ),
    "scatter": lambda name: pictures.scatter(np.eye(2), np.arange(2), [name, name]),
    "plain scatter": lambda name: pictures.scatter(np.eye(2), x=name),
    "many classes": lambda name: pictures.scatter(
        np.arange(274.0).reshape(137, 2), np.arange(137), [f"{name} {i}" for i in range(137)]
    ),
    "planes": lambda name: pictures.planes({name: (np.eye(2), 1.0), "b": (np.eye(3), 2.0)}, 1, x=name, y=name),
    "bars": lambda name: pictures.bars(np.ones(1), [name]),
    "bars of sets": lambda name: pictures.bars({name: np.ones(3), "_b": np.zeros(3)}, [name] * 3, x=name, y=name),
    "timeline": lambda name: pictures.timeline(
        np.eye(3)[:, :2], np.arange(3), np.eye(3), columns=[name, "b"], names=[name, "_c", "d"], x=name
    ),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_figures_are_safe_repeatable_and_follow_the_page(draw):
    import matplotlib

    svg = draw(NASTY)
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30}):
        style = dict(matplotlib.rcParams)
        assert draw(NASTY) == svg  # neither time nor the reader's style changes it
        assert dict(matplotlib.rcParams) == style
    root = ET.fromstring(svg)  # well-formed, so nothing in the name is markup
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert any(text.startswith(NASTY) for text in texts)
    references = re.findall(rb'(?:href|src)="([^"]*)"', svg)
    assert all(reference.startswith((b"#", b"data:")) for reference in references)
    assert b"currentColor" in svg and b"prefers-color-scheme: dark" in svg
    drawn = re.sub(rb"<style.*?</style>", b"", svg, flags=re.DOTALL)
    assert b"#000000" not in drawn and b"#ffffff" not in drawn


def test_names_with_an_underscore_are_in_the_legend():
    assert b">_b</text>" in FIGURES["curves"]("a")


def test_drawing_libraries_are_imported_only_when_used():
    code = (
        "import sys, numpy as np; from vae_jax.report import page, pictures\n"
        "assert not {'matplotlib', 'PIL'} & set(sys.modules)\n"
        "pictures.bars(np.ones(2)); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- numbers


@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [
        (-105.3187, 0.4123, ("-105.32", "0.41")),
        (-105.3187, None, ("-105.3", "")),
        (13.2, 0.0513, ("13.200", "0.051")),
        (1.0, 0.0996, ("1.00", "0.10")),
        (15302.3, 123.4, ("15300", "120")),
        (15302.3, 12.3, ("15302", "12")),
        (15302.3, None, ("15300", "")),
        (15302, None, ("15302", "")),
        (np.int64(20), None, ("20", "")),
        (np.float32(0.439617), np.float32(0.00065), ("0.43962", "0.00065")),
        (0.000123456, None, ("0.0001235", "")),
        (1e-9, None, ("1.000e-09", "")),
        (1.23456e12, None, ("1.235e+12", "")),
        (-0.001, 0.4, ("0.00", "0.40")),
        (0.0, None, ("0", "")),
        (1.0, 0.0, ("1.000", "0")),
        (2.0, 3e-18, ("2.000000000", "3.0e-18")),
        (float("nan"), None, ("nan", "")),
        (float("-inf"), 1.0, ("-inf", "1.000")),
        (2.5, float("nan"), ("2.500", "nan")),
    ],
)
def test_numbers_have_the_digits_that_their_error_supports(value, error, expected):
    assert page.number_text(value, error) == expected


def test_a_negative_standard_error_is_refused():
    with pytest.raises(ValueError, match=r"standard_error: got -0\.1"):
        page.number_text(1.0, -0.1)


def test_a_mean_prints_as_tables_do():
    found = mean(np.array([1.0, 2.0, 4.0]))  # 7 / 3 and sqrt(7 / 9)
    assert (str(found), repr([found]), f"{found}") == ("2.33 ± 0.88", "[2.33 ± 0.88]", "2.33 ± 0.88")
    assert str(Mean(-279.571462600708, 2.4452615697289666)) == "-279.6 ± 2.4"
    assert repr(Mean(1.5, float("nan"))) == "1.500 ± nan"
    for other in (Mean(jnp.ones(2), None), Mean(1.0, -1.0), jax.eval_shape(lambda: Mean(0.0, 1.0))):  # type: ignore
        assert repr(other).startswith("(")


def test_the_terminal_table_is_aligned():
    rows = [
        Row("test ELBO", -238.9134, 0.3512, "nats per image"),
        Row("active units", 14, None, "of 20"),
        Row("k", 5000),
    ]
    assert page.table_text(rows).split("\n") == [
        "test ELBO      -238.91 ± 0.35   nats per image",
        "active units        14          of 20",
        "k                 5000",
    ]
    assert page.table_text([]) == ""


# ---- the page


class _Page(HTMLParser):
    """Collects tags with their attributes, and the text under each tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self.tags[-1][0] if self.tags else "", data))


def _write(path, **changes):
    arguments = {
        "title": "A title",
        "lead": "A lead.",
        "table": [Row("test ELBO", -105.3187, 0.4123, "nats")],
        "sections": [Section("Samples", "From the prior.", [Picture(PNG, "four pixels")])],
        "configuration": {"seed": 0},
        "command": "python -m experiments.vae",
    }
    return page.write(path, **(arguments | changes))


def test_the_page_escapes_everything_it_is_given(tmp_path):
    section = Section(NASTY, NASTY, [Picture(PNG, NASTY, NASTY)], TextTable([NASTY], [[NASTY], [NASTY]]))
    path = _write(
        tmp_path / "r.html",
        title=NASTY,
        lead=NASTY,
        table=[Row(NASTY, 1, None, NASTY)],
        sections=[section],
        configuration={NASTY: NASTY},
        command=NASTY,
    )
    page = _Page(path.read_text(encoding="utf-8"))
    assert "script" not in {tag for tag, _ in page.tags}
    assert [attributes["alt"] for tag, attributes in page.tags if tag == "img"] == [NASTY]
    places = [tag for tag, text in page.texts if text == NASTY]
    once = ["title", "h1", "h2", "figcaption", "dt", "dd", "code"]
    assert sorted(places) == sorted([*once, "p", "p", "th", "th", "td", "td", "td"])


def test_notice_and_foot_frame_the_page(tmp_path):
    plain, framed = (
        _write(tmp_path / "r.html", **more).read_text(encoding="utf-8")
        for more in ({}, {"notice": f"first {NASTY}", "foot": f"last {NASTY}"})
    )
    assert "role=note" not in plain and "<footer>" not in plain
    texts = [text for _, text in _Page(framed).texts]
    places = [texts.index(text) for text in ("A lead.", f"first {NASTY}", "Results", f"last {NASTY}")]
    assert places == sorted(places) and places[-1] == len(texts) - 1


def test_columns_and_rows_of_a_grid_have_names(tmp_path):
    grid = Picture(PNG, "grid", rows=["top", NASTY], columns=["left", NASTY])
    text = _write(tmp_path / "r.html", sections=[Section("S", "", [grid, Picture(PNG, "plain")])]).read_text()
    assert [text for tag, text in _Page(text).texts if tag == "span"] == ["left", NASTY, "top", NASTY]
    assert text.count("<div class=named>") == 1


def test_a_table_of_text_can_be_scrolled_and_breaks_only_long_cells(tmp_path):
    """What is wider than the screen scrolls in a region with a name and a shadow at its edge."""
    table = TextTable(["a", "b"], [["0.22 ± 0.26", "a sentence of many words, one after the other"], ["1", "2"]])
    page = _Page(_write(tmp_path / "r.html", sections=[Section("Said", "", table=table)]).read_text())
    (region,) = [attributes for tag, attributes in page.tags if attributes.get("class") == "scroll"]
    assert (region["role"], region["aria-label"], region["tabindex"]) == ("region", "Said", "0")
    classes = [attributes.get("class") for tag, attributes in page.tags if tag == "td"]
    assert classes[-4:] == [None, "long", None, "long"]


def test_a_run_is_published_with_how_it_was_made(tmp_path, capsys):
    """A smoke run says so above its numbers, and in the terminal; every page ends with time, device and versions."""

    @publish.timed
    def main(config):
        words = {"title": "T", "lead": "L.", "table": [Row("a", 1)], "sections": []}
        return publish.write("vae", config, **words)

    for smoke in (True, False):
        out = tmp_path / str(smoke)
        assert main(Run(out=str(out), smoke=smoke)) == {"a": 1}
        check_report(out, Run(smoke=smoke), {"a": 1}, ("T", "Results"))
        assert (publish.SMOKE in capsys.readouterr().out) == smoke
    assert publish.made(125.2, resumed=True).startswith("Made in 2 min 5 s since its last start on ")
    assert publish.made(59.97, resumed=False).startswith("Made in 1 min 0 s on ")


@pytest.mark.parametrize(("hard", "where"), [(-5.5, "not above EM"), (-4.5, "ends above EM")])
def test_what_is_said_of_hard_em_follows_from_the_numbers(hard, where):
    names = (em_routes.EM, em_routes.HARD, em_routes.VAE, em_routes.GRADIENT)
    best = dict.fromkeys(names, -5.0) | {em_routes.HARD: hard}
    climbs = {name: np.array([-7.0, -6.0, hard if name == em_routes.HARD else -5.0]) for name in names}
    section = em_routes.section(em_routes.Routes(climbs, best, -5.0), "Data")
    assert where in section.caption and section.table is not None
    assert "lower" not in str(section.table.rows) and "at most E ln P(y)" in str(section.table.rows)


def test_the_page_needs_nothing_but_itself(tmp_path):
    figure = pictures.curves({"a": (np.arange(3), np.ones(3))})
    shown = [Picture(PNG, "png"), Picture(figure, "curve"), Picture(SVG, "empty")]
    path = _write(tmp_path / "r.html", sections=[Section("Pictures", "", shown)])
    text = path.read_text(encoding="utf-8")
    page = _Page(text)
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    heads, bodies = zip(*(source.split(";base64,") for source in sources), strict=True)
    assert heads == ("data:image/png", "data:image/svg+xml", "data:image/svg+xml")
    assert [base64.b64decode(body) for body in bodies] == [PNG, figure, SVG]
    for body in bodies:
        text = text.replace(body, "")
    assert not re.search(r"https?:|//|url\(|@import", text)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert all("href" not in a and "srcset" not in a for _, a in page.tags)
    (policy,) = [a["content"] for _, a in page.tags if "http-equiv" in a]
    assert policy.startswith("default-src 'none'")


def test_the_page_is_structured_for_readers_and_screen_readers(tmp_path):
    sections = [Section("One", "Said.", [Picture(PNG, "pixels")]), Section("Two", "")]
    page = _Page(_write(tmp_path / "r.html", sections=sections).read_text(encoding="utf-8"))
    headings = [text for tag, text in page.texts if tag in ("h1", "h2")]
    assert headings == ["A title", "Results", "One", "Two", "Configuration"]
    assert ("html", {"lang": "en"}) in page.tags
    assert ("th", {"scope": "row"}) in page.tags
    assert any(attributes.get("name") == "viewport" for _, attributes in page.tags)
    assert [text for tag, text in page.texts if tag == "td"] == ["−105.32", "± 0.41", "nats"]


def test_inner_configurations_become_dotted_names(tmp_path):
    configuration = {"seed": 0, "objective": {"beta": 1.0, "schedule": {"steps": None}}}
    path = _write(tmp_path / "r.html", configuration=configuration)
    texts = _Page(path.read_text(encoding="utf-8")).texts
    assert [text for tag, text in texts if tag in ("dt", "dd")] == (
        ["seed", "0", "objective.beta", "1.0", "objective.schedule.steps", "None"]
    )


def test_the_same_report_has_the_same_bytes_and_makes_its_folder(tmp_path):
    first = _write(tmp_path / "new" / "folder" / "a.html")
    assert first == tmp_path / "new" / "folder" / "a.html"
    assert first.read_bytes() == _write(tmp_path / "b.html").read_bytes()


def test_an_interrupted_write_leaves_the_old_report(tmp_path, monkeypatch):
    path = _write(tmp_path / "r.html")
    old = path.read_bytes()

    def fail(source, target):
        raise OSError(f"no space to move {source} to {target}")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        _write(path, title="Another title")
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == ["r.html"]


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (Section("S", "", [Picture(b"GIF89a", "a")]), "section 'S': got a picture b'GIF89a'"),
        (Section("S", "", [Picture(np.zeros(2), "a")]), "pictures.png first"),  # type: ignore
        (Section("S", "", [Picture(PNG, " ")]), "section 'S': a picture has no alt text"),
        (Section("S", "", table=TextTable(["a", "b"], [["c"]])), "1 cells, wanted 2"),
    ],
)
def test_bad_sections_are_named(tmp_path, section, message):
    with pytest.raises(ValueError, match=message):
        _write(tmp_path / "r.html", sections=[section])
    assert not os.listdir(tmp_path)
