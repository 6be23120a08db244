"""Runs as points: drawn by class, image size and whose they are, and the legend for it."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from efficient_vits.plots import _data, _style
from efficient_vits.results import Front, Run, metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SMALL, LARGE = 17.0, 40.0  # areas of markers in square points: off and on the front
NOTE_SIZE = 5.5


def draw_runs(
    axes: "Axes",
    runs: Iterable[Run],
    x: str,
    y: str,
    theme: _style.Theme,
    *,
    area: float = SMALL,
    zorder: float = 2.0,
) -> list[tuple[float, float]]:
    """Draw runs as points and say where they are, in the units of the axes.

    Other image sizes than 224 px are hollow, own measurements have a ring. A group of runs that
    look alike is one collection of matplotlib.
    """
    groups: dict[tuple[str, bool, bool], list[tuple[float, float]]] = {}
    for run, a, b in _data.points(runs, x, y):
        known = run.taxonomy_class if run.taxonomy_class in _style.CLASSES else _style.OTHER
        key = (known, run.img_size != 224, _data.is_own(run))
        groups.setdefault(key, []).append((a, b))
    for (name, hollow, own), places in groups.items():
        colour = theme.colour(name)
        a_of, b_of = zip(*places, strict=True)
        axes.scatter(
            a_of,
            b_of,
            s=area,
            marker=_style.marker(name),
            facecolors=theme.background if hollow else colour,
            edgecolors=colour if hollow else theme.background,
            linewidths=1.1 if hollow else 0.4,
            zorder=zorder,
        )
        if own:
            axes.scatter(
                a_of,
                b_of,
                s=2.2 * area,
                marker="o",
                facecolors="none",
                edgecolors=theme.accent,
                linewidths=1.1,
                zorder=zorder,
                gid="own",
            )
    return [place for places in groups.values() for place in places]


def staircase(front: Front, x: str, end: float, floor: float) -> list[tuple[float, float]]:
    """Corners of the line below which everything is dominated, in the units of the axes.

    Args:
        front: Of accuracy and a metric.
        x: That metric; accuracy is the vertical axis.
        end: Where the line ends on the side of cheap figures to the most accurate member: the
            axis' limit on the side of the worse figures.
        floor: Accuracy at which it ends below the cheapest member.

    Returns:
        The members and the corners between them, from the most accurate to the cheapest.
    """
    found = sorted(
        ((a, b) for _, a, b in _data.points(front.members, x, "accuracy")),
        key=lambda place: (-place[1], place[0] if metric(x).direction == "max" else -place[0]),
    )
    corners = [(end, found[0][1])]
    for a, b in found:
        corners += [(corners[-1][0], b), (a, b)]
    corners.append((corners[-1][0], floor))
    return [c for i, c in enumerate(corners) if i == 0 or c != corners[i - 1]]


def legend(
    figure: "Figure", runs: Sequence[Run], theme: _style.Theme, *lines: Any, below: bool = False
) -> None:
    """What colours, markers and lines mean, on the right of the figure or below it."""
    from matplotlib.lines import Line2D

    classes = {
        run.taxonomy_class if run.taxonomy_class in _style.CLASSES else _style.OTHER for run in runs
    }
    handles: list[Any] = [
        _mark(name, theme, theme.colour(name)) for name in _style.CLASSES if name in classes
    ]
    larger = [run for run in runs if run.img_size != 224]
    if larger:
        sizes = _data.sizes_of(larger)
        handles.append(_mark("Baseline", theme, theme.muted, label="224 px"))
        handles.append(_mark("Baseline", theme, theme.muted, label=sizes, hollow=True))
    if any(map(_data.is_own, runs)):
        ring = Line2D([], [], linestyle="", marker="o", markersize=7.5, label="own measurement")
        ring.set(markerfacecolor="none", markeredgecolor=theme.accent)
        handles.append(ring)
    below_or_right(figure, [*handles, *lines], below=below)


def below_or_right(figure: "Figure", handles: Sequence[Any], *, below: bool) -> None:
    """A legend outside of the axes."""
    figure.legend(
        handles=handles,
        loc="outside lower center" if below else "outside right upper",
        ncols=min(len(handles), 5) if below else 1,
        handlelength=1.6,
        labelspacing=0.55,
    )


def _mark(
    name: str, theme: _style.Theme, colour: str, *, label: str = "", hollow: bool = False
) -> Any:
    from matplotlib.lines import Line2D

    return Line2D(
        [],
        [],
        linestyle="",
        marker=_style.marker(name),
        markersize=5,
        markerfacecolor=theme.background if hollow else colour,
        markeredgecolor=colour if hollow else theme.background,
        markeredgewidth=1.1 if hollow else 0.4,
        label=label or name,
    )


def title(figure: "Figure", text: str, note: str, theme: _style.Theme) -> None:
    """The title above a picture and the sources below, both on the left."""
    figure.suptitle(text, x=0.01, ha="left")
    height = figure.get_figheight()
    room = (note.count("\n") + 1) * NOTE_SIZE * 1.3 / 72 / height
    figure.text(0.01, 0.04 / height, note, va="bottom", fontsize=NOTE_SIZE, color=theme.muted)
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, room, 1, 1 - room))
