"""Fronts beside each other: Figures 2, 5 and 7 of the supplement."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from efficient_vits import results
from efficient_vits.plots import _data, _labels, _scatter, _style, fronts
from efficient_vits.plots.hardware import correlation_table, measured_on_both
from efficient_vits.results import Front, Run, YearFront

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DATASETS = {
    "imagenet": "ImageNet-1k",
    "cars": "Cars",
    "flowers": "Flowers",
    "places": "Places365",
}
STYLES = ("-", (0, (5, 1.5)), (0, (3, 1.5, 1, 1.5)), (0, (1, 1)))


def dataset_fronts(runs: Any = None, *, theme: str = "light") -> "Figure":
    """Throughput at 224 px and accuracy on four data sets; Figure 2.

    The accuracies are those of Table 3, the throughput is that of the most accurate run of a model
    on ImageNet-1k. Arguments and errors as `throughput_front`.
    """
    rows, left_out = _data.one_device(_data.rows_of(runs), "accuracy", "throughput")
    found = {name: _dataset_front(rows, name) for name in DATASETS}
    with _style.themed(theme) as look:
        figure = _style.new_figure(6.4)
        grid = figure.subplots(2, 2).flatten()
        for axes, (name, front) in zip(grid, found.items(), strict=True):
            axes.set(xlabel=_data.axis_label("throughput"), ylabel="top-1 accuracy [%]")
            axes.set_title(dataset_title(name, front), loc="left")
        drawn = [*found["imagenet"].members, *found["imagenet"].dominated]
        about = "Accuracies: supplement, Table 3. rank r: Spearman's correlation with ImageNet-1k."
        note = _data.source_note(drawn, about, left_out)
        heading = f"Throughput and accuracy of {len(drawn)} models on four data sets"
        _scatter.title(figure, heading, note, look)
        _scatter.legend(figure, drawn, look, fronts.line_of(fronts.FRONT, look))
        marks = [
            fronts.draw_front(axes, front, "throughput", look)
            for axes, front in zip(grid, found.values(), strict=True)
        ]
        _style.settle(figure)
        for axes, front, places in zip(grid, found.values(), marks, strict=True):
            fronts.label_front(axes, front, "throughput", places, look, others=False)
        return figure


def dataset_title(name: str, front: Front) -> str:
    """The data set, the size of its front, and its rank correlation with ImageNet-1k."""
    count = f"{len(front.members)} on the front"
    if name == "imagenet":
        return f"{DATASETS[name]}: {count}"
    rank = results.dataset_correlation(name, method="spearman").value
    return f"{DATASETS[name]}: {count}, rank r = {rank:.2f}"


def _dataset_front(rows: Sequence[Run], dataset: str) -> Front:
    accuracy = {row.name: getattr(row, dataset) for row in results.table3()}
    replaced = [
        dataclasses.replace(run, top1=accuracy[run.name])
        for run in results.accuracy_per_parameter(rows)
        if accuracy.get(run.name) is not None
    ]
    return results.front(replaced, fronts.ACCURACY_THROUGHPUT)


def device_fronts(runs: Any = None, *, theme: str = "light") -> "Figure":
    """Accuracy and throughput on two devices; Figure 5.

    Of the runs, those of models and sizes are drawn that were measured on both of the first two
    classes of device. Where there are fewer than four of these, the picture is the front on the
    one device that was published, with the published correlations of Table 4 beside it, and says
    so. Arguments and errors as `throughput_front`.
    """
    rows = _data.rows_of(runs)
    pair = measured_on_both(rows)
    if pair is None:
        return _published_devices(theme)
    chosen = [run for run in rows if run.device_class in pair.devices and run.label in pair.labels]
    found = {
        device: results.front(chosen, fronts.ACCURACY_THROUGHPUT, device=device)
        for device in pair.devices
    }
    with _style.themed(theme) as look:
        figure = _style.new_figure(4.4)
        grid = figure.subplots(1, 2, sharey=True)
        for axes, (device, front) in zip(grid, found.items(), strict=True):
            axes.set(xlabel=_data.axis_label("throughput"))
            axes.set_title(f"{device}: {fronts.counted(front)}", loc="left")
        grid[0].set(ylabel=_data.axis_label("accuracy"))
        heading = f"{len(pair.labels)} models on {' and '.join(pair.devices)}"
        _scatter.title(figure, heading, _data.source_note(chosen), look)
        line = fronts.line_of(fronts.FRONT, look)
        _scatter.legend(figure, chosen, look, line, below=True)
        marks = [
            fronts.draw_front(axes, front, "throughput", look)
            for axes, front in zip(grid, found.values(), strict=True)
        ]
        _style.settle(figure)
        for axes, front, places in zip(grid, found.values(), marks, strict=True):
            fronts.label_front(axes, front, "throughput", places, look)
        return figure


def _published_devices(theme: str) -> "Figure":
    rows = results.load_rows()
    front = results.front(rows, fronts.ACCURACY_THROUGHPUT)
    with _style.themed(theme) as look:
        figure = _style.new_figure(4.4)
        left, right = figure.subplots(1, 2, width_ratios=(1.5, 1.0))
        left.set(xlabel=_data.axis_label("throughput"), ylabel=_data.axis_label("accuracy"))
        left.set_title(f"NVIDIA A100: {fronts.counted(front)}", loc="left")
        correlation_table(right, look)
        compared = [*front.members, *front.dominated]
        note = _data.source_note(compared, fronts.note_of(front), "Right: supplement, Table 4.")
        _scatter.title(figure, "Published: one device, and how others correlate", note, look)
        line = fronts.line_of(fronts.FRONT, look)
        _scatter.legend(figure, compared, look, line, below=True)
        marks = fronts.draw_front(left, front, "throughput", look)
        _style.settle(figure)
        fronts.label_front(left, front, "throughput", marks, look, others=False)
        return figure


def fronts_over_time(runs: Any = None, *, theme: str = "light") -> "Figure":
    """The front of accuracy and throughput of what was published up to each year; Figure 7.

    Years whose front is the same are one line. Arguments and errors as `throughput_front`.
    """
    rows, left_out = _data.one_device(_data.rows_of(runs), "accuracy", "throughput")
    years = results.fronts_by_year(rows, fronts.ACCURACY_THROUGHPUT)
    groups = [
        list(group) for _, group in itertools.groupby(years, key=lambda year: year.front.members)
    ]
    with _style.themed(theme) as look:
        figure = _style.new_figure(4.6)
        axes = figure.subplots()
        axes.set(xlabel=_data.axis_label("throughput"), ylabel=_data.axis_label("accuracy"))
        last = years[-1].front
        compared = [*last.members, *last.dominated]
        marks = [(x, y) for _, x, y in _data.points(compared, "throughput", "accuracy")]
        x, y = zip(*marks, strict=True)
        axes.scatter(x, y, s=6, color=look.muted, alpha=0.5, zorder=1.5)
        fronts.widen(axes, cheap_on_the_left=False)
        labels: dict[str, _labels.Label] = {}
        for i, group in enumerate(groups):
            colour = year_colour(i, len(groups), look)
            x, y = zip(*fronts.corners(axes, group[0].front, "throughput"), strict=True)
            style, text = STYLES[-1 - i % len(STYLES)], group_label(group)
            axes.plot(x, y, color=colour, linestyle=style, linewidth=1.3, label=text, gid="front")
            fresh = [run for run in group[0].front.members if run.label in group[0].added]
            places = _data.points(fresh, "throughput", "accuracy")
            for run, a, b in reversed(places):
                labels.setdefault(run.label, _labels.Label(run.label, a, b))
            if places:
                _, x, y = zip(*places, strict=True)
                axes.scatter(x, y, s=26, color=colour, edgecolors=look.background, zorder=3)
        sizes = f"{len(years[0].front.members)} to {len(last.members)} runs"
        heading = f"The front from {years[0].year} to {years[-1].year}: {sizes}"
        _scatter.title(figure, heading, _data.source_note(compared, left_out), look)
        figure.legend(loc="outside right upper", handlelength=2.4)
        _style.settle(figure)
        lines = _labels.lines_of(axes)
        _labels.label_points(
            axes, list(labels.values()), marks=marks, lines=lines, colour=look.text,
            muted=look.muted,
        )  # fmt: skip
        return figure


def year_colour(i: int, count: int, look: _style.Theme) -> Any:
    """One of `count` colours from early to late, all of which stand out from the background."""
    import matplotlib

    early, late = (0.72, 0.0) if look.name == "light" else (0.4, 1.0)
    return matplotlib.colormaps["viridis"](early + (late - early) * i / max(count - 1, 1))


def group_label(group: Sequence[YearFront]) -> str:
    """Years of one front and how many runs are on it."""
    first, last = group[0].year, group[-1].year
    years = f"{first}" if first == last else f"{first} to {last}"
    count = len(group[0].front.members)
    return f"{years}: {count} {'run' if count == 1 else 'runs'}"
