"""Scaling the model against scaling the image: Figure 6 of the supplement."""

from typing import TYPE_CHECKING, Any

from efficient_vits import results
from efficient_vits.plots import _data, _scatter, _style
from efficient_vits.results import Run, Scaling
from efficient_vits.results.scaling import COSTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AREAS = {False: 26.0, True: 90.0}  # of markers: 224 px and larger images


def model_or_image(runs: Any = None, *, theme: str = "light") -> "Figure":
    """Each small model, itself on larger images, and the next larger model; Figure 6.

    A column is a pair of `results.PAIRS`, a row a cost. Large markers are 382 or 384 px. A panel
    whose figures were not published says so.

    Args:
        runs: As `throughput_front`. A pair that was not run is left out.
        theme: ``"light"`` or ``"dark"``.

    Raises:
        ImportError: matplotlib or adjustText is not installed.
        ValueError: No pair was run, or no such theme.
    """
    rows = _data.rows_of(runs)
    columns = {pair: found for pair in results.PAIRS if (found := scalings(*pair, rows))}
    if not columns:
        names = ", ".join(f"{small} and {large}" for small, large in results.PAIRS)
        raise ValueError(
            f"no pair of models was run at both sizes, pre-trained at 224 px; pairs are {names}"
        )
    entries = [entry for found in columns.values() for entry in found.values()]
    with _style.themed(theme) as look:
        figure = _style.new_figure(8.6)
        grid = figure.subplots(len(COSTS), len(columns), squeeze=False, sharey="col")
        for row, cost in zip(grid, COSTS, strict=True):
            for axes, (pair, found) in zip(row, columns.items(), strict=True):
                _panel(axes, found.get(cost), look)
                if cost == COSTS[0]:
                    axes.set_title(f"{pair[0]}\nto {pair[1]}", loc="left", fontsize=7)
                if axes is row[0]:
                    axes.set_ylabel("top-1 accuracy [%]", fontsize=7)
                axes.set_xlabel(_short_label(cost), fontsize=6.5)
        won = sum(entry.better == "model" for entry in entries)
        heading = f"Scaling the model is better in {won} of {len(entries)} comparisons"
        used = {id(r): r for e in entries for r in (e.start, e.image, e.model)}
        about = "Large markers: 382 or 384 px. Arrows start at the small model on 224 px."
        _scatter.title(figure, heading, _data.source_note(list(used.values()), about), look)
        _legend(figure, look)
        _style.settle(figure)
        return figure


def scalings(small: str, large: str, rows: list[Run]) -> dict[str, Scaling]:
    """Comparisons of a pair by cost; none where one of its three runs is missing."""
    try:
        return {entry.metric: entry for entry in results.model_or_image(small, large, rows)}
    except ValueError:
        return {}


def _panel(axes: "Axes", entry: Scaling | None, look: _style.Theme) -> None:
    axes.tick_params(labelsize=6)
    if entry is None:
        axes.text(
            0.5, 0.5, "not published", transform=axes.transAxes, ha="center", va="center",
            fontsize=7, color=look.muted,
        )  # fmt: skip
        axes.set_xticks([])
        axes.grid(visible=False)
        return
    places = {
        way: _data.points([run], entry.metric, "accuracy")[0]
        for way, run in (("start", entry.start), ("image", entry.image), ("model", entry.model))
    }
    _, x, y = places["start"]
    for way, colour in _colours(look).items():
        run, a, b = places[way]
        if way != "start":
            arrow = {"arrowstyle": "-|>", "color": colour, "shrinkA": 3, "shrinkB": 4}
            axes.annotate("", (a, b), (x, y), arrowprops={**arrow, "linewidth": 1.0})
        area = AREAS[run.img_size != 224]
        axes.scatter(
            [a], [b], s=area, marker=_style.marker(run.taxonomy_class), color=colour,
            edgecolors=look.background, linewidths=0.5, zorder=3, gid=way,
        )  # fmt: skip
    axes.margins(0.25)


def _colours(look: _style.Theme) -> dict[str, str]:
    return {
        "image": look.colour("Sparse Attention"),
        "model": look.colour("Fourier Attention"),
        "start": look.text,
    }


def _short_label(cost: str) -> str:
    label = _data.axis_label(cost).replace(", 50 epochs", "").replace(", batch 2048", "")
    return label.replace("inference memory", "inference")


def _legend(figure: "Figure", look: _style.Theme) -> None:
    from matplotlib.lines import Line2D

    texts = {"start": "small model", "image": "larger images", "model": "larger model"}
    colours = _colours(look)
    handles = [
        Line2D(
            [], [], linestyle="", marker="o", color=colours[way], label=text,
            markersize=AREAS[way == "image"] ** 0.5,
        )
        for way, text in texts.items()
    ]  # fmt: skip
    _scatter.below_or_right(figure, handles, below=True)
