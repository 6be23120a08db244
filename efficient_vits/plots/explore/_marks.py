"""Colour and shape of each class: colours of Okabe and Ito, told apart by shape as well."""

from collections.abc import Iterable
from dataclasses import dataclass

GREY, WHITE, ORANGE, SKY, GREEN = "#8a8f98", "#ffffff", "#e69f00", "#56b4e9", "#009e73"
YELLOW, BLUE, VERMILLION, PURPLE = "#f0e442", "#0072b2", "#d55e00", "#cc79a7"

# What a run without a class is listed under.
UNCLASSIFIED = "not classified"


@dataclass(frozen=True)
class Mark:
    """How a class is drawn.

    Attributes:
        name: The benchmark's class.
        colour: Of the filling; the outline is the page's text colour.
        symbol: Name of the shape, in plotly and among the page's swatches.
    """

    name: str
    colour: str
    symbol: str


# In the order of the benchmark's taxonomy. No two have both colour and shape in common.
MARKS = (
    Mark("Baseline", GREY, "circle"),
    Mark("Baseline (ResNet)", GREY, "square"),
    Mark("Low-Rank Attention", BLUE, "circle"),
    Mark("Sparse Attention", ORANGE, "square"),
    Mark("Fixed Attention", GREEN, "diamond"),
    Mark("Kernel Attention", VERMILLION, "triangle-up"),
    Mark("Hybrid Attention", PURPLE, "triangle-down"),
    Mark("Fourier Attention", SKY, "pentagon"),
    Mark("Non-Attention Shuffling", YELLOW, "hexagon"),
    Mark("Token Removal", GREEN, "cross"),
    Mark("Token Merging", VERMILLION, "x"),
    Mark("Summary Tokens", BLUE, "bowtie"),
    Mark("More MLPs", ORANGE, "hourglass"),
)
# For classes that the benchmark does not have; colours repeat sooner than the class's name.
_MORE = tuple((colour, "diamond") for colour in (PURPLE, SKY, ORANGE, VERMILLION, YELLOW, BLUE))


def marks_of(classes: Iterable[str]) -> list[Mark]:
    """The marks of classes in the order of the taxonomy, others by name, unclassified last."""
    present = set(classes)
    known = [mark for mark in MARKS if mark.name in present]
    others = sorted(present - {mark.name for mark in known} - {UNCLASSIFIED})
    more = [Mark(name, *_MORE[i % len(_MORE)]) for i, name in enumerate(others)]
    rest = [Mark(UNCLASSIFIED, WHITE, "diamond")] if UNCLASSIFIED in present else []
    return [*known, *more, *rest]
