"""Labels of points that overlap neither each other nor the points, within the axes.

adjustText finds the places of the labels that must be there. What still collides after it is put
into the nearest free place, and labels that may be left out only appear where there is room beside
their point.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

Box = tuple[float, float, float, float]  # left, bottom, right, top, in pixels

GAP = 2.0  # pixels between a label and anything else
RADIUS = 4.5  # pixels around a point that its marker takes
NEAR = 14.0  # pixels up to which a label needs no line to its point
ITERATIONS = 150
NO_ROOM = "there is no room for all the labels of a front: they are too many or too long"


@dataclass(frozen=True)
class Label:
    """A word at a point, in the units of the axes; `essential` ones always find a place."""

    text: str
    x: float
    y: float
    essential: bool = True


def overlap(a: Box, b: Box, gap: float = 0.0) -> bool:
    """Whether two boxes are nearer to each other than the gap."""
    return a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap


def around(point: Any, width: float, height: float, radius: float) -> Iterator[Box]:
    """Boxes of one size around a point, from the right counter-clockwise, in growing rings."""
    turns = 8 if radius < 12 else 16
    for i in (0, *(j * s for j in range(1, turns // 2) for s in (1, -1)), turns // 2):
        angle = 2 * math.pi * i / turns
        centre_x = point[0] + math.cos(angle) * (radius + width / 2)
        centre_y = point[1] + math.sin(angle) * (radius + height / 2)
        yield (
            centre_x - width / 2,
            centre_y - height / 2,
            centre_x + width / 2,
            centre_y + height / 2,
        )


class Places:
    """What room there is in some axes."""

    def __init__(self, inside: Box, marks: np.ndarray, line: np.ndarray) -> None:
        self.inside = inside
        self.marks = marks  # (N, 2) pixels, points that no label may cover
        self.line = line  # (M, 2) pixels, a line that labels should not cover
        self.taken: list[Box] = []

    def is_free(self, box: Box) -> bool:
        """Whether a box lies inside and on no label."""
        within = (
            box[0] >= self.inside[0]
            and box[1] >= self.inside[1]
            and box[2] <= self.inside[2]
            and box[3] <= self.inside[3]
        )
        return within and not any(overlap(box, other, GAP) for other in self.taken)

    def covered(self, box: Box, marks: np.ndarray, gap: float) -> int:
        """How many marks a box covers."""
        left, bottom, right, top = box
        x, y = marks[:, 0], marks[:, 1]
        hit = (x > left - gap) & (x < right + gap) & (y > bottom - gap) & (y < top + gap)
        return int(hit.sum())

    def cost(self, box: Box) -> float:
        """What it is worth to keep a label from here: a mark more than a stretch of the line."""
        marks, line = (
            self.covered(box, self.marks, RADIUS),
            self.covered(box, self.line, 1.5),
        )
        return 3.0 * marks + 0.5 * line


def label_points(
    axes: "Axes",
    labels: Sequence[Label],
    *,
    marks: Iterable[tuple[float, float]],
    lines: Iterable[Sequence[tuple[float, float]]] = (),
    colour: str,
    muted: str,
    size: float = 6.0,
) -> "list[Text]":
    """Put labels at points, without a change of the axes' limits.

    Args:
        axes: Laid out for good: their place on the figure does not change any more.
        labels: The words. One that is not essential is left out where it has no room.
        marks: All points that no label may cover, in the units of the axes.
        lines: Corners of lines that labels avoid, likewise.
        colour: Of essential labels.
        muted: Of the others, and of lines from a label to its point.
        size: Of the font in points.

    Returns:
        The labels that are there.
    """
    axes.set_autoscale_on(False)
    places = Places(_box(axes.get_window_extent()), _pixels(axes, marks), _dense(axes, lines))
    wanted = [label for label in labels if label.essential]
    placed = [
        (label, axes.text(label.x, label.y, label.text, fontsize=size, color=colour))
        for label in wanted
    ]
    _adjust(axes, [text for _, text in placed], marks)
    for label, text in placed:
        point = _pixels(axes, [(label.x, label.y)])[0]
        box = _box(text.get_window_extent())
        if not places.is_free(box) or places.cost(box):
            box = _nearest(places, point, box)
        _move(axes, text, box)
        places.taken.append(box)
        _leader(axes, label, box, point, muted)
    there = [text for _, text in placed]
    for label in labels:
        if not label.essential:
            text = axes.text(label.x, label.y, label.text, fontsize=size - 0.5, color=muted)
            free = _beside(places, _pixels(axes, [(label.x, label.y)])[0], text)
            if free is None:
                text.remove()
            else:
                _move(axes, text, free)
                places.taken.append(free)
                there.append(text)
    return there


def _adjust(axes: "Axes", texts: "list[Text]", marks: Iterable[tuple[float, float]]) -> None:
    from adjustText import adjust_text  # type: ignore[import-untyped]

    if not texts:
        return
    x, y = zip(*marks, strict=True)
    room = axes.get_window_extent()
    for text in texts:
        box = text.get_window_extent()
        if box.width > room.width or box.height > room.height:
            raise ValueError(NO_ROOM)
        text.set(ha="center", va="center")
    # A bound on the iterations, and none on the time: the same labels on a slow machine.
    adjust_text(
        texts, x=list(x), y=list(y), ax=axes, expand=(1.1, 1.4), force_text=(0.2, 0.4),
        force_static=(0.2, 0.4), iter_lim=ITERATIONS,
    )  # fmt: skip


def _nearest(places: Places, point: Any, box: Box) -> Box:
    """The free box that is near and covers little; the whole axes are looked through."""
    width, height = box[2] - box[0], box[3] - box[1]
    best, least = None, math.inf
    for radius in (7.0, 10.0, 16.0, 24.0, 34.0, 46.0, 60.0, 80.0, 110.0, 150.0, 200.0, 300.0):
        if radius / 12 > least:
            break
        for candidate in around(point, width, height, radius):
            cost = places.cost(candidate) + radius / 12
            if cost < least and places.is_free(candidate):
                best, least = candidate, cost
    if best is None:
        raise ValueError(NO_ROOM)
    return best


def _beside(places: Places, point: Any, text: "Text") -> Box | None:
    box = _box(text.get_window_extent())
    for candidate in around(point, box[2] - box[0], box[3] - box[1], 5.5):
        if places.is_free(candidate) and places.cost(candidate) == 0:
            return candidate
    return None


def _leader(axes: "Axes", label: Label, box: Box, point: Any, colour: str) -> None:
    end = np.clip(point, (box[0], box[1]), (box[2], box[3]))
    if math.dist(end, point) > NEAR:
        x, y = axes.transData.inverted().transform(end)
        axes.plot([label.x, x], [label.y, y], color=colour, linewidth=0.5, zorder=1.5)


def _move(axes: "Axes", text: "Text", box: Box) -> None:
    centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    text.set(ha="center", va="center")
    text.set_position(tuple(axes.transData.inverted().transform(centre)))


def _pixels(axes: "Axes", places: Iterable[tuple[float, float]]) -> np.ndarray:
    return np.asarray(axes.transData.transform(np.array(list(places)).reshape(-1, 2)))


def _dense(axes: "Axes", lines: Iterable[Sequence[tuple[float, float]]]) -> np.ndarray:
    """Lines as points that are about 4 pixels apart."""
    parts = [np.empty((0, 2))]
    for line in lines:
        corners = _pixels(axes, line)
        for start, end in itertools.pairwise(corners):
            count = max(int(np.abs(end - start).max() / 4), 1)
            parts.append(np.linspace(start, end, count, endpoint=False))
    return np.concatenate(parts)


def lines_of(axes: "Axes") -> list[list[tuple[float, float]]]:
    """Corners of all lines in some axes."""
    return [[(float(x), float(y)) for x, y in np.asarray(line.get_xydata())] for line in axes.lines]


def _box(extent: Any) -> Box:
    return float(extent.x0), float(extent.y0), float(extent.x1), float(extent.y1)
