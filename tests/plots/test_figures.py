"""What holds for every figure: words that overlap nowhere, both themes, numbers from the data."""

import itertools
import re
from pathlib import Path

import matplotlib
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from efficient_vits import plots
from efficient_vits.plots import FIGURES

ROOT = Path(__file__).parents[2]


def boxes(figure, dpi):
    """Words that are drawn, with their places in pixels at a resolution; empty ones are left out.

    A figure also has words that it never draws, such as numbers beyond the limits of an axis.
    """
    words = []

    def draw(text, renderer):
        words.append(text)
        plain(text, renderer)

    plain, Text.draw = Text.draw, draw
    try:
        figure.set_dpi(dpi)
        figure.draw_without_rendering()
        with matplotlib.rc_context({"text.hinting": "no_hinting"}):
            found = [
                (t.get_text(), *t.get_window_extent().extents)
                for t in words
                if t.get_visible() and t.get_text().strip()
            ]
        return found, figure.bbox.width, figure.bbox.height
    finally:
        Text.draw = plain
        figure.set_dpi(100)


def clashes(figure, dpi=100):
    """Words that overlap each other or leave the canvas."""
    found, width, height = boxes(figure, dpi)
    assert found
    faults = [
        f"{text!r} leaves the canvas"
        for text, left, bottom, right, top in found
        if left < 0 or bottom < 0 or right > width or top > height
    ]
    for (a, *p), (b, *q) in itertools.combinations(found, 2):
        if p[0] < q[2] and q[0] < p[2] and p[1] < q[3] and q[1] < p[3]:
            faults.append(f"{a!r} overlaps {b!r}")
    return faults


@pytest.mark.parametrize("name", FIGURES)
def test_words_overlap_nowhere_and_stay_on_the_canvas(drawn, name):
    figure = drawn(name)
    assert clashes(figure, 100) == []
    assert clashes(figure, 72) == []


@pytest.mark.parametrize("name", ["throughput_front", "decision_flowchart", "device_fronts"])
def test_so_do_those_of_the_dark_theme(drawn, name):
    assert clashes(drawn(name, "dark")) == []


@pytest.mark.parametrize("name", ["throughput_front", "device_fronts", "device_throughput",
                                  "metric_variability", "parameter_front"])  # fmt: skip
def test_so_do_those_of_own_runs(with_own, name):
    assert clashes(plots.draw(name, with_own)) == []


def test_clashes_are_found():
    figure = Figure()
    figure.text(0.5, 0.5, "one")
    figure.text(0.51, 0.5, "two")
    figure.text(0.99, 0.1, "a long word")
    figure.text(0.1, 0.9, "free")
    assert clashes(figure) == ["'a long word' leaves the canvas", "'one' overlaps 'two'"]


def test_every_figure_of_the_supplement_is_there():
    numbers = [picture.number for picture in FIGURES.values() if picture.number is not None]
    assert numbers == list(range(1, 16))
    assert {p.number for p in FIGURES.values() if p.published} == {1, 4, 5, 8}
    for name, picture in FIGURES.items():
        assert getattr(plots, name) is picture.function
        assert picture.name == name
        assert name in plots.__all__


@pytest.mark.parametrize("name", [n for n, p in FIGURES.items() if p.published])
def test_a_published_summary_says_what_it_is(drawn, name):
    every = "\n".join(text for text, *_ in boxes(drawn(name), 100)[0])
    assert "published summary" in every


def test_a_figure_is_drawn_by_name(drawn):
    assert isinstance(drawn("metric_variability"), Figure)
    with pytest.raises(ValueError, match="did you mean 'memory_front'"):
        plots.draw("memory_frnt")
    with pytest.raises(ValueError, match="got float"):
        plots.draw("memory_front", 3.5)


PAGE = ROOT / "docs" / "pictures.md"
COMMITTED = [
    path
    for path in sorted((ROOT / "docs" / "images").glob("*.svg"))
    if path.stem.partition("-")[0] in FIGURES
]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_committed_pictures_are_what_the_functions_give(drawn, path, tmp_path):
    name, _, theme = path.stem.partition("-")
    plots.write_figure(drawn(name, theme or "light"), tmp_path / path.name)
    assert_same_picture(path.read_text(), (tmp_path / path.name).read_text())
    assert f"images/{path.name}" in PAGE.read_text()


def assert_same_picture(a, b):
    """The same but for the versions of tools and for a point (1/72 inch) in a coordinate."""
    number = re.compile(r"-?\d+\.\d+|(?<=[ML ])-?\d+(?=[ \n])")
    parts = [re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL) for svg in (a, b)]
    parts = [re.sub(r"(id=\"|#|url\(#)[pm][0-9a-f]{10}", r"\1", svg) for svg in parts]
    first, second = (number.sub("0", svg) for svg in parts)
    assert first == second
    values = [[float(value) for value in number.findall(svg)] for svg in parts]
    assert len(values[0]) == len(values[1]) > 100
    assert max(abs(x - y) for x, y in zip(*values, strict=True)) < 1.0


def test_a_picture_that_is_out_of_date_is_found():
    svg = "<svg>" + "".join(f"<path d='M {i}.5 1.25 L 3.5 4.5'/>" for i in range(60)) + "</svg>"
    assert_same_picture(svg, svg.replace("M 7.5", "M 7.9"))
    for other in (svg.replace("M 7.5", "M 9.5"), svg.replace("<svg>", "<svg><g/>")):
        with pytest.raises(AssertionError):
            assert_same_picture(svg, other)
