"""Throughput on one device against another: Figure 4 of the supplement."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from efficient_vits import results
from efficient_vits.plots import _data, _labels, _scatter, _style, fronts
from efficient_vits.results import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEWEST = 4  # pairs that a correlation takes


@dataclass(frozen=True)
class Pair:
    """Two classes of device, and the models at a size that were measured on both."""

    devices: tuple[str, str]
    labels: tuple[str, ...]


def measured_on_both(rows: Sequence[Run]) -> Pair | None:
    """The first two classes of device with enough models in common; None where there are none."""
    classes = _data.device_classes(rows, "throughput")
    for i, first in enumerate(classes):
        for second in classes[i + 1 :]:
            on = [
                [r.label for r in rows if r.device_class == device and r.throughput is not None]
                for device in (first, second)
            ]
            common = tuple(dict.fromkeys(label for label in on[0] if label in set(on[1])))
            if len(common) >= FEWEST:
                return Pair((first, second), common)
    return None


def device_throughput(runs: Any = None, *, theme: str = "light") -> "Figure":
    """Throughput on two devices with the line of best fit; Figure 4.

    Several runs of a model at one size count with their mean. Where fewer than four models were
    measured on two devices, as among the benchmark's runs, the picture is the published Table 4 and
    says so.

    Args:
        runs: The user's own on two devices, or with the benchmark's: ``results.load_rows("own")``.
        theme: ``"light"`` or ``"dark"``.

    Raises:
        ImportError: matplotlib, adjustText or scipy is not installed.
        ValueError: No such theme.
    """
    rows = _data.rows_of(runs)
    pair = measured_on_both(rows)
    with _style.themed(theme) as look:
        if pair is None:
            figure = _style.new_figure(2.9, width=4.6)
            correlation_table(figure.subplots(), look)
            note = f"Supplement of {_data.PAPER}, Table 4."
            _scatter.title(figure, "Speed on different hardware", note, look)
            _style.settle(figure)
            return figure
        return _measured(rows, pair, look)


def _measured(rows: Sequence[Run], pair: Pair, look: _style.Theme) -> "Figure":
    from scipy.stats import linregress

    chosen = [run for run in rows if run.device_class in pair.devices and run.label in pair.labels]
    places = [mean_throughputs(chosen, pair.devices, label) for label in pair.labels]
    x, y = zip(*places, strict=True)
    line = linregress(x, y)
    figure = _style.new_figure(4.6)
    axes = figure.subplots()
    labels = [f"throughput on {device} [images/s]" for device in pair.devices]
    axes.set(xlabel=labels[0], ylabel=labels[1])
    by_label = {run.label: run for run in reversed(chosen)}
    for label, (a, b) in zip(pair.labels, places, strict=True):
        run = by_label[label]
        colour, hollow = look.colour(run.taxonomy_class), run.img_size != 224
        axes.scatter(
            [a], [b], s=26, marker=_style.marker(run.taxonomy_class), zorder=3,
            facecolors=look.background if hollow else colour,
            edgecolors=colour if hollow else look.background,
        )  # fmt: skip
    fronts.widen(axes, cheap_on_the_left=False)
    ends = [min(x), max(x)]
    fitted = [line.intercept + line.slope * end for end in ends]
    axes.plot(ends, fitted, color=look.accent, linewidth=1.2, gid="fit", label="line of best fit")
    found = [
        results.device_correlation(*pair.devices, chosen, method=method).value
        for method in ("pearson", "spearman")
    ]
    models = f"{len(places)} models on {' and '.join(pair.devices)}"
    heading = f"{models}: r = {found[0]:.2f}, rank r = {found[1]:.2f}"
    _scatter.title(figure, heading, _data.source_note(chosen), look)
    _scatter.legend(figure, chosen, look, *axes.lines)
    _style.settle(figure)
    _labels.label_points(
        axes,
        [_labels.Label(t, a, b, False) for t, (a, b) in zip(pair.labels, places, strict=True)],
        marks=places,
        lines=[list(zip(ends, fitted, strict=True))],
        colour=look.text,
        muted=look.muted,
    )
    return figure


def mean_throughputs(
    runs: Sequence[Run], devices: tuple[str, str], label: str
) -> tuple[float, float]:
    """Mean images per second of a model at one size on two devices."""
    first, second = (
        statistics.mean(
            run.throughput
            for run in runs
            if run.label == label and run.device_class == device and run.throughput is not None
        )
        for device in devices
    )
    return first, second


def correlation_table(axes: "Axes", look: _style.Theme) -> None:
    """Table 4 as bars: correlations of throughput between devices, marked as published."""
    entries = results.table4()
    names = [f"{short_device(e.first)}\n{short_device(e.second)}" for e in entries]
    heights = {"Pearson": [e.pearson for e in entries], "Spearman": [e.spearman for e in entries]}
    colours = {"Pearson": look.colour("Fourier Attention"), "Spearman": look.muted}
    for i, (method, values) in enumerate(heights.items()):
        places = [k + 0.38 * (i - 0.5) for k in range(len(entries))]
        bars = axes.bar(places, values, width=0.36, color=colours[method], label=method)
        axes.bar_label(bars, fmt="%.2f", fontsize=6.5, padding=1.5)
    axes.set_xticks(range(len(entries)), names)
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")
    axes.set(ylim=(0, 1.32), ylabel="correlation of throughput")
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0])
    axes.legend(loc="upper left", ncols=2)
    axes.set_title("published summary, no runs", loc="left", color=look.accent)


def short_device(name: str) -> str:
    return name.removeprefix("NVIDIA ").removeprefix("GeForce ").removeprefix("Intel ")
