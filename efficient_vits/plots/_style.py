"""How pictures look: one colour and one marker per taxonomy class, two themes, vector files.

The colours of a theme are told apart with normal sight and with protanopia and deuteranopia, and
stand out from the background by a contrast of 3 or more; the marker of a class is its own, so that
no picture depends on colour. Nothing here changes matplotlib's settings for anybody else.
"""

import functools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 7.0  # inches: two columns of a paper
FORMATS = ("svg", "pdf", "png")
OTHER = "other"  # the class of a model that the taxonomy does not have

# class: marker, colour on light, colour on dark; in the order of the supplement's Table 5.
CLASSES: dict[str, tuple[str, str, str]] = {
    "Baseline": ("o", "#1a1a1a", "#f2f2f2"),
    "Baseline (ResNet)": ("p", "#575d10", "#8aba02"),
    "Low-Rank Attention": ("s", "#1707ca", "#8197fd"),
    "Sparse Attention": ("D", "#b76907", "#fcda37"),
    "Fixed Attention": ("^", "#ff4d73", "#f71115"),
    "Kernel Attention": ("v", "#680089", "#ba00bf"),
    "Hybrid Attention": ("<", "#049f85", "#2affa7"),
    "Fourier Attention": (">", "#3996ff", "#4bdbff"),
    "Non-Attention Shuffling": ("P", "#6d1e21", "#e8a395"),
    "Token Removal": ("X", "#b12069", "#fe5cbe"),
    "Token Merging": ("h", "#7a2af3", "#6c47ff"),
    "Summary Tokens": ("d", "#4a5e9f", "#42852d"),
    "More MLPs": ("8", "#b36ec8", "#925f7f"),
    OTHER: ("*", "#767676", "#909090"),
}


@dataclass(frozen=True)
class Theme:
    """The colours of a picture.

    Attributes:
        name: ``"light"`` or ``"dark"``.
        background: Of the picture.
        text: Of words and of the front.
        muted: Of what is less important.
        grid: Of lines in the background.
        accent: Of a line that is fitted or compared with.
        colours: By taxonomy class, see `CLASSES`.
    """

    name: str
    background: str
    text: str
    muted: str
    grid: str
    accent: str
    colours: dict[str, str] = field(default_factory=dict)

    def colour(self, taxonomy_class: str) -> str:
        return self.colours.get(taxonomy_class, self.colours[OTHER])


THEMES = {
    theme.name: theme
    for theme in (
        Theme(
            "light",
            "#ffffff",
            "#1a1a1a",
            "#5f6570",
            "#e3e5e9",
            "#b3261e",
            {name: colours[1] for name, colours in CLASSES.items()},
        ),
        Theme(
            "dark",
            "#12161c",
            "#f2f2f2",
            "#a3abb8",
            "#2b323d",
            "#ff8a80",
            {name: colours[2] for name, colours in CLASSES.items()},
        ),
    )
}


def marker(taxonomy_class: str) -> str:
    """matplotlib's name of the marker of a class."""
    return CLASSES.get(taxonomy_class, CLASSES[OTHER])[0]


def _settings(theme: Theme) -> dict[str, Any]:
    return {
        # A font that comes with matplotlib: the same picture on every machine.
        "font.family": ["DejaVu Sans"],
        "font.size": 8,
        "figure.facecolor": theme.background,
        "savefig.facecolor": theme.background,
        "figure.titlesize": 9.5,
        "figure.titleweight": "bold",
        "axes.facecolor": theme.background,
        "axes.edgecolor": theme.muted,
        "axes.labelcolor": theme.text,
        "axes.titlecolor": theme.text,
        "axes.titlesize": 8.5,
        "axes.labelsize": 8,
        "axes.axisbelow": True,
        "axes.grid": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": theme.grid,
        "grid.linewidth": 0.6,
        "text.color": theme.text,
        **_HINTING,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelcolor": theme.text,
        "ytick.labelcolor": theme.text,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "legend.fontsize": 7,
        "legend.frameon": False,
        **_FILES,
    }


# The width of a word then does not depend on the resolution, so that what has room has it always.
_HINTING: Any = {"text.hinting": "no_hinting"}

# Fonts lie inside of the files: as outlines in SVG, as TrueType in PDF. The same picture is the
# same bytes.
_FILES: Any = {
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "svg.hashsalt": "efficient_vits",
}
_METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
    "png": {},
}


@contextmanager
def themed(theme: str) -> Iterator[Theme]:
    """matplotlib's settings inside of the block are those of a theme, whatever the user's are.

    Raises:
        ImportError: matplotlib or adjustText is not installed.
        ValueError: No such theme.
    """
    if theme not in THEMES:
        raise ValueError(f"theme is one of {', '.join(THEMES)}, got {theme!r}")
    try:
        import adjustText  # type: ignore[import-untyped]  # noqa: F401 (labels need it)
        import matplotlib.style
    except ImportError as error:
        raise ImportError(
            f"pictures need {error.name}: pip install 'efficient-vits[plots]'"
        ) from error
    with matplotlib.style.context(["default", _settings(THEMES[theme])]):
        yield THEMES[theme]


@functools.cache
def _figure_class() -> "type[Figure]":
    import matplotlib
    from matplotlib.figure import Figure

    class Picture(Figure):
        """A figure that draws its words as wide as it measured them, whoever asks it to."""

        def draw(self, renderer: Any) -> None:
            with matplotlib.rc_context(_HINTING):
                super().draw(renderer)

    return Picture


def new_figure(height: float, *, width: float = WIDTH) -> "Figure":
    """An empty figure that pyplot knows nothing of; sizes in inches."""
    figure = _figure_class()(figsize=(width, height), dpi=100, layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(w_pad=0.06, h_pad=0.06)
    return figure


def settle(figure: "Figure") -> None:
    """Lay everything out and keep it there, so that labels can be put where there is room."""
    for _ in range(2):  # the first layout can change the numbers at the axes
        figure.draw_without_rendering()
    engine: Any = figure.get_layout_engine()
    left, bottom, width, height = engine.get()["rect"]
    for legend in figure.legends:
        # The layout made room for the legend above the note and leaves it at the figure's edge.
        legend.set_bbox_to_anchor((left, bottom, width, height), transform=figure.transFigure)
    figure.set_layout_engine("none")


def write_figure(figure: "Figure", path: str | os.PathLike[str]) -> None:
    """Write a figure to a file, all of it or nothing; the same figure becomes the same bytes.

    Args:
        figure: One of this package's, or any other.
        path: Ends in ``.svg``, ``.pdf`` or ``.png``, which has 200 dots per inch.

    Raises:
        OSError: The folder does not exist or cannot be written to.
        ValueError: Another ending.
    """
    import matplotlib

    target = Path(path)
    kind = target.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise ValueError(f"a picture is written to .{', .'.join(FORMATS)}, got {target.name!r}")
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.stem}-")
    try:
        with os.fdopen(handle, "wb") as file, matplotlib.rc_context(_FILES):
            figure.savefig(file, format=kind, dpi=200, metadata=_METADATA[kind])
        # mkstemp's files are the owner's alone; a picture has the rights of any new file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
