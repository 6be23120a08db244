"""Colours that everybody tells apart, files that are the same bytes, settings left alone."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import matplotlib.colors
import numpy as np
import pytest

from efficient_vits import catalog, plots, results
from efficient_vits.plots._style import CLASSES, OTHER, THEMES, marker, themed

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}
LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)


def linear(colour):
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def oklab(colour, sight):
    return LAB @ np.cbrt(LMS @ np.clip(SIGHT[sight] @ linear(colour), 0, 1))


def contrast(a, b):
    low, high = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


def nearest(colours, sight):
    """The smallest distance of two colours in Oklab."""
    seen = [oklab(colour, sight) for colour in colours]
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2))


def test_every_class_has_a_marker_and_a_colour_of_its_own():
    markers = [marker(name) for name in CLASSES]
    assert len(set(markers)) == len(CLASSES) == 14
    classes = {card.taxonomy_class for card in catalog.cards().values()} - {""}
    classes |= {row.taxonomy_class for row in results.table5()}
    assert classes <= CLASSES.keys()
    assert next(iter(CLASSES)) == "Baseline"


# 0.02 in Oklab is just noticeable side by side; grey, for what has no class, is not counted.
@pytest.mark.parametrize(
    ("sight", "least"), [("normal", 0.15), ("protanopia", 0.08), ("deuteranopia", 0.08)]
)
@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES.keys())
def test_colours_are_told_apart(theme, sight, least):
    assert nearest([theme.colour(name) for name in CLASSES if name != OTHER], sight) > least


def test_colours_that_are_not_are_found():
    assert nearest(["#d62728", "#2ca02c", "#1f77b4"], "normal") > 0.15
    assert nearest(["#ff7f0e", "#98a000", "#1f77b4"], "deuteranopia") < 0.08


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES.keys())
def test_everything_stands_out_from_the_background(theme):
    for colour in (*theme.colours.values(), theme.accent):
        assert contrast(colour, theme.background) >= 2.99
    for colour in (theme.text, theme.muted):
        assert contrast(colour, theme.background) >= 4.5


def test_an_unknown_theme_is_refused():
    with (
        pytest.raises(ValueError, match="light, dark, got 'neon'"),
        themed("neon"),
    ):
        pass
    with pytest.raises(ValueError, match="neon"):
        plots.metric_variability(theme="neon")


def test_no_setting_changes_and_none_is_taken_over(monkeypatch):
    before = dict(matplotlib.rcParams)
    plain = plots.metric_variability()
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 20, "lines.linewidth": 9}):
        other = plots.metric_variability()
    for a, b in zip(plain.axes, other.axes, strict=True):
        assert a.get_facecolor() == b.get_facecolor()
        assert a.get_position().bounds == b.get_position().bounds


def test_pyplot_knows_nothing_of_the_figures(drawn):
    from matplotlib import pyplot

    drawn("metric_variability")
    drawn("throughput_front")
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize("ending", ["svg", "pdf", "png"])
def test_the_same_figure_is_the_same_bytes(ending, tmp_path):
    files = [tmp_path / f"{i}.{ending}" for i in range(2)]
    for path in files:
        plots.write_figure(plots.metric_variability(), path)
    first, second = (path.read_bytes() for path in files)
    assert first == second
    assert len(first) > 2000
    assert sorted(tmp_path.iterdir()) == files
    umask = os.umask(0)
    os.umask(umask)
    assert files[0].stat().st_mode & 0o777 == 0o666 & ~umask


def test_fonts_are_in_the_files(tmp_path):
    figure = plots.metric_variability()
    plots.write_figure(figure, tmp_path / "a.svg")
    plots.write_figure(figure, tmp_path / "a.pdf")
    svg = (tmp_path / "a.svg").read_text()
    assert "<text" not in svg
    assert "DejaVuSans" in svg  # outlines of its letters
    assert b"/FontFile2" in (tmp_path / "a.pdf").read_bytes()


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    figure, path = plots.metric_variability(), tmp_path / "a.svg"
    path.write_text("old")

    def fail(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="no space left"):
        plots.write_figure(figure, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ValueError, match=r"\.svg, \.pdf, \.png, got 'a\.gif'"):
        plots.write_figure(figure, tmp_path / "a.gif")


@pytest.mark.parametrize("missing", ["matplotlib", "adjustText"])
def test_without_an_extra_it_says_what_to_install(missing):
    script = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from efficient_vits import plots\n"
        "try: plots.throughput_front()\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout == f"pictures need {missing}: pip install 'efficient-vits[plots]'\n"
