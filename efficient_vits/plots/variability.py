"""How far repeats of one measurement lie apart: Figure 1 of the supplement."""

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from efficient_vits import results
from efficient_vits.plots import _data, _scatter, _style
from efficient_vits.results import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRICS = ("throughput", "training_time", "training_memory", "memory", "memory_64")
FEWEST = 3  # repeats that a box is drawn of

# What the supplement's text gives: key of the figures, name and unit.
STATED = (
    ("throughput", "throughput", "images/s"),
    ("epoch_time", "fine-tuning, one epoch", "GPU-hours"),
)


def metric_variability(runs: Any = None, *, theme: str = "light") -> "Figure":
    """Box plots of the repeats of one configuration, relative to their median; Figure 1.

    The configuration is the network, image size and device with the most repeats among the user's
    own runs; metrics of which it has fewer than three values are left out. Without such repeats the
    picture is the range and the standard deviation that the supplement's text gives, and says so.

    Args:
        runs: The user's own runs, as `throughput_front` takes them. Benchmark's runs among them do
            not count.
        theme: ``"light"`` or ``"dark"``.

    Raises:
        ImportError: matplotlib or adjustText is not installed.
        ValueError: No such theme.
    """
    rows = [run for run in _data.rows_of(runs) if _data.is_own(run)]
    repeats = most_repeated(rows)
    values = repeated_values(repeats)
    with _style.themed(theme) as look:
        if not values:
            return _published(look)
        figure = _style.new_figure(0.9 + 0.5 * len(values), width=5.6)
        axes = figure.subplots()
        boxes = axes.boxplot(
            list(values.values()), orientation="horizontal", widths=0.5, patch_artist=True
        )
        colour(boxes, look)
        texts = [
            f"{_data.axis_label(name).split(' [')[0]}\n{len(v)} values"
            for name, v in values.items()
        ]
        axes.set_yticks(range(1, len(values) + 1), texts)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("difference from the median [%]")
        run = repeats[0]
        heading = f"{len(repeats)} repeats of {run.label} on {run.device_class}"
        _scatter.title(figure, heading, _data.source_note(repeats), look)
        _style.settle(figure)
        return figure


def most_repeated(rows: Sequence[Run]) -> list[Run]:
    """The runs of the network, image size and device that has the most."""
    groups: dict[Hashable, list[Run]] = {}
    for run in rows:
        groups.setdefault((run.network, run.img_size, run.device_class), []).append(run)
    return max(groups.values(), key=len, default=[])


def repeated_values(repeats: Sequence[Run]) -> dict[str, list[float]]:
    """Differences from the median in per cent, by metric with enough values."""
    import statistics

    found = {}
    for name in METRICS:
        values = [value for run in repeats if (value := run.value(name)) is not None]
        if len(values) >= FEWEST:
            middle = statistics.median(values)
            found[name] = [100 * (value / middle - 1) for value in values]
    return found


def _published(look: _style.Theme) -> "Figure":
    figure = _style.new_figure(2.1, width=5.6)
    for axes, (key, name, unit) in zip(figure.subplots(2, 1), STATED, strict=True):
        _range(axes, key, look)
        axes.set_yticks([0], [f"{name}\n[{unit}]"])
        axes.tick_params(axis="y", length=0)
    note = f"Supplement of {_data.PAPER}, section A.4: 8 runs of ViT."
    heading = "Variability of 8 training runs: published summary"
    _scatter.title(figure, heading, note, look)
    _style.settle(figure)
    return figure


def _range(axes: "Axes", key: str, look: _style.Theme) -> None:
    low, high = (results.stated(f"{key}_{end}") for end in ("min", "max"))
    std, share = results.stated(f"{key}_std"), results.stated(f"{key}_range")
    axes.plot([low.number, high.number], [0, 0], color=look.text, linewidth=6, gid="range")
    axes.set_xticks([low.number, high.number], [low.value, high.value])
    text = f"range {share.value} % of the mean, standard deviation {std.value}"
    axes.text(0.5, 0.78, text, transform=axes.transAxes, ha="center", fontsize=7)
    axes.set_ylim(-1, 1.6)
    axes.margins(x=0.15)
    axes.grid(visible=False)


def colour(boxes: Mapping[str, Sequence[Any]], look: _style.Theme) -> None:
    """Boxes, whiskers and outliers in the theme's colours."""
    for box in boxes["boxes"]:
        box.set(facecolor=look.grid, edgecolor=look.text)
    for part in ("whiskers", "caps"):
        for line in boxes[part]:
            line.set(color=look.text)
    for line in boxes["medians"]:
        line.set(color=look.accent)
    for line in boxes["fliers"]:
        line.set(markeredgecolor=look.text, markersize=4)
