"""Models side by side: Figures 3, 8 and 9 of the supplement."""

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from efficient_vits import results
from efficient_vits.plots import _data, _labels, _scatter, _style
from efficient_vits.results import Pretraining, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

START = 60.0  # per cent at which bars of accuracy begin


def class_accuracy(runs: Any = None, *, theme: str = "light") -> "Figure":
    """Accuracy at 224 px by class, and in a lighter bar what larger images add; Figure 3.

    The best run of each model counts. Larger images that lose are not drawn.

    Args:
        runs: As `throughput_front`.
        theme: ``"light"`` or ``"dark"``.

    Raises:
        ImportError: matplotlib or adjustText is not installed.
        ValueError: No run at 224 px has an accuracy, or no such theme.
    """
    rows = _data.rows_of(runs)
    order = list(_style.CLASSES)
    base = sorted(
        results.accuracy_per_parameter(rows),
        key=lambda run: (_place(run, order), -(run.top1 or 0), run.name),
    )
    large = larger_images(rows)
    with _style.themed(theme) as look:
        figure = _style.new_figure(1.2 + 0.142 * len(base))
        axes = figure.subplots()
        heights = positions(base)
        accuracies = [run.top1 or 0.0 for run in base]
        colours = [look.colour(run.taxonomy_class) for run in base]
        ends = [max(large.get(r.name, a), a) for r, a in zip(base, accuracies, strict=True)]
        lowest = min(START, min(accuracies) - 5)
        axes.barh(
            heights, [e - lowest for e in ends], left=lowest, height=0.78, color=colours,
            alpha=0.45, gid="larger",
        )  # fmt: skip
        axes.barh(
            heights, [a - lowest for a in accuracies], left=lowest, height=0.78, color=colours
        )
        for y, end, accuracy in zip(heights, ends, accuracies, strict=True):
            text = f"{accuracy:.1f}" + (f" → {end:.1f}" if end > accuracy else "")
            axes.text(end + 0.2, y, text, va="center", fontsize=5.5)
        axes.set_yticks(heights, [run.name for run in base], fontsize=6)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set(xlim=(lowest, max(ends) + 3), ylim=(heights[-1] - 0.8, heights[0] + 0.8))
        axes.set_xlabel(f"{_data.axis_label('accuracy')}, from {lowest:g}")
        gaining = sum(e > a for e, a in zip(ends, accuracies, strict=True))
        heading = f"Accuracy of {len(base)} models; larger images add to {gaining}"
        note = _data.source_note(rows, "Full bars: 224 px. Lighter bars: 382 or 384 px.")
        _scatter.title(figure, heading, note, look)
        _scatter.legend(figure, base, look)
        _style.settle(figure)
        return figure


def larger_images(rows: Sequence[Run]) -> dict[str, float]:
    """The best accuracy of each model at more than 224 px."""
    sizes = {run.img_size for run in rows if isinstance(run.img_size, int) and run.top1 is not None}
    best: dict[str, float] = {}
    for size in sorted(size for size in sizes if isinstance(size, int) and size > 224):
        for run in results.accuracy_per_parameter(rows, img_size=size):
            best[run.name] = max(run.top1 or 0.0, best.get(run.name, 0.0))
    return best


def positions(runs: Sequence[Run]) -> list[float]:
    """Heights of bars from top to bottom, with gaps between classes."""
    height, heights = 0.0, []
    for i, run in enumerate(runs):
        if i and run.taxonomy_class != runs[i - 1].taxonomy_class:
            height -= 0.6
        heights.append(height)
        height -= 1.0
    return heights


def _place(run: Run, order: Sequence[str]) -> int:
    return order.index(run.taxonomy_class if run.taxonomy_class in order else _style.OTHER)


def accuracy_per_parameter(runs: Any = None, *, theme: str = "light") -> "Figure":
    """Accuracy per million parameters as bars, accuracy as a line; Figure 9.

    The models are at 224 px and ordered by accuracy. Arguments and errors as `class_accuracy`.
    """
    rows = _data.rows_of(runs)
    ordered = results.accuracy_per_parameter(rows)
    with _style.themed(theme) as look:
        from matplotlib.ticker import MultipleLocator

        figure = _style.new_figure(4.4)
        axes = figure.subplots()
        places = range(len(ordered))
        axes.bar(
            places,
            [run.accuracy_per_parameter or 0.0 for run in ordered],
            color=[look.colour(run.taxonomy_class) for run in ordered],
        )
        axes.set_xticks(places, [run.name for run in ordered], rotation=90, fontsize=6)
        axes.tick_params(axis="x", length=0)
        axes.grid(visible=False, axis="x")
        axes.margins(x=0.01)
        axes.set_ylabel(_data.axis_label("accuracy_per_parameter"))
        right = axes.twinx()
        right.yaxis.set_major_formatter("{x:.0f}")
        right.yaxis.set_major_locator(MultipleLocator(5))
        right.grid(visible=False)
        right.plot(
            places, [run.top1 or 0.0 for run in ordered], color=look.accent, marker=".",
            markersize=4, linewidth=1.2,
        )  # fmt: skip
        right.set_ylabel("top-1 accuracy [%]", color=look.accent)
        right.tick_params(axis="y", labelcolor=look.accent)
        best = max(ordered, key=lambda run: run.accuracy_per_parameter or 0.0)
        most = f"{best.name} has {best.accuracy_per_parameter:.1f} % per million"
        heading = f"Accuracy per parameter of {len(ordered)} models: {most}"
        _scatter.title(figure, heading, _data.source_note(ordered), look)
        _scatter.legend(figure, ordered, look, below=True)
        _style.settle(figure)
        return figure


def pretraining_resolution(
    runs: Any = None, *, speedups: Mapping[str, float] | None = None, theme: str = "light"
) -> "Figure":
    """What pre-training at 192 px instead of 224 px does to the accuracy; Figure 8.

    Args:
        runs: As `throughput_front`.
        speedups: Time of pre-training at 224 px over that at 192 px, by model. These were not
            published; without them the models are side by side, with the published mean.
        theme: ``"light"`` or ``"dark"``.

    Raises:
        ImportError: matplotlib or adjustText is not installed.
        ValueError: No model was pre-trained at both sizes, or none of those has a speed-up; a
            speed-up that is not positive; or no such theme.
    """
    rows = _data.rows_of(runs)
    found = results.pretraining_sizes(rows)
    if not found:
        raise ValueError("no model was pre-trained at both 192 and 224 px")
    if speedups is not None:
        known = [entry for entry in found if entry.name in speedups]
        wrong = {name: value for name, value in speedups.items() if not value > 0}
        if wrong or not known:
            names = ", ".join(entry.name for entry in found)
            raise ValueError(
                f"speedups are positive ratios by model, of at least one of {names}; got "
                f"{dict(speedups)}"
            )
        found = known
    mean = statistics.mean(entry.difference for entry in found)
    classes = {run.name: run for run in reversed(rows)}
    with _style.themed(theme) as look:
        figure = _style.new_figure(4.6)
        axes = figure.subplots()
        axes.axhline(0, color=look.muted, linewidth=0.8)
        axes.axhline(mean, color=look.accent, linewidth=1.0, linestyle=(0, (4, 2)), gid="mean")
        axes.set_ylabel("accuracy after 192 px less after 224 px [points]")
        draw = _beside if speedups is None else _over_speedups
        labels = draw(axes, found, classes, speedups or {}, look)
        heading = f"Pre-training at 192 px: {mean:+.2f} points on average of {len(found)} models"
        published = (
            f"Published: {results.stated('pretraining_speedup').value} times faster, "
            f"{results.stated('pretraining_accuracy').value} points on average."
        )
        used = [run for run in rows if run.name in {entry.name for entry in found}]
        used = [run for run in used if run.img_size == 224 and run.pretrain_size is not None]
        _scatter.title(figure, heading, _data.source_note(used, published), look)
        _scatter.legend(figure, used, look, below=True)
        _style.settle(figure)
        if speedups is not None:
            _labels.label_points(
                axes,
                labels,
                marks=[(label.x, label.y) for label in labels],
                colour=look.text,
                muted=look.muted,
            )
        return figure


def _beside(
    axes: "Axes",
    found: Sequence[Pretraining],
    classes: Mapping[str, Run],
    speedups: Mapping[str, float],
    look: _style.Theme,
) -> list[_labels.Label]:
    for i, entry in enumerate(found):
        axes.plot([i, i], [0, entry.difference], color=look.grid, linewidth=2.5, zorder=1.2)
        _draw(axes, i, entry, classes[entry.name], look)
    axes.set_xticks(range(len(found)), [entry.name for entry in found], rotation=90, fontsize=6.5)
    axes.tick_params(axis="x", length=0)
    axes.grid(visible=False, axis="x")
    axes.margins(x=0.02, y=0.1)
    text = (
        f"published summary: {results.stated('pretraining_speedup').value} times faster on "
        f"average,\nspeed-ups of single models are not published"
    )
    axes.text(0.02, 0.96, text, transform=axes.transAxes, va="top", fontsize=7, color=look.accent)
    return []


def _over_speedups(
    axes: "Axes",
    found: Sequence[Pretraining],
    classes: Mapping[str, Run],
    speedups: Mapping[str, float],
    look: _style.Theme,
) -> list[_labels.Label]:
    for entry in found:
        _draw(axes, speedups[entry.name], entry, classes[entry.name], look)
    axes.set_xlabel("speed-up of pre-training at 192 px over 224 px")
    axes.margins(0.08)
    return [_labels.Label(e.name, speedups[e.name], e.difference) for e in found]


def _draw(axes: "Axes", x: float, entry: Pretraining, run: Run, look: _style.Theme) -> None:
    axes.scatter(
        [x], [entry.difference], s=30, zorder=3, marker=_style.marker(run.taxonomy_class),
        color=look.colour(run.taxonomy_class), edgecolors=look.background, linewidths=0.4,
        gid="difference",
    )  # fmt: skip
