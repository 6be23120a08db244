"""Fronts of accuracy and one cost: Figures 10, 12 and 15 of the supplement, and the main subject.

Runs of each class of device have a panel of their own where the cost depends on the device.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from efficient_vits import results
from efficient_vits.plots import _data, _labels, _scatter, _style
from efficient_vits.results import Front, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FRONT, LARGE_IMAGES = "front", "front of larger images"
ACCURACY_THROUGHPUT = ("accuracy", "throughput")


def throughput_front(runs: Any = None, *, theme: str = "light") -> "Figure":
    """Accuracy and throughput, with the front of all runs and that of the larger images.

    Args:
        runs: The benchmark's for None, a frame of `results.load_runs`, or what
            `results.read_measurements` takes; ``results.load_rows("own.json")`` has both.
        theme: ``"light"`` or ``"dark"``.

    Raises:
        ImportError: matplotlib or adjustText is not installed.
        ValueError: No run has both figures, or no such theme.
    """
    return _figure(runs, "throughput", "Throughput and accuracy", theme, large_images=True)


def memory_front(runs: Any = None, *, theme: str = "light") -> "Figure":
    """Accuracy and inference memory at batch 1; arguments and errors as `throughput_front`."""
    return _figure(runs, "memory", "Inference memory and accuracy", theme)


def parameter_front(runs: Any = None, *, theme: str = "light") -> "Figure":
    """Accuracy and parameters; Figure 10. Arguments and errors as `throughput_front`."""
    return _figure(runs, "params", "Parameters and accuracy", theme, logarithmic=True)


def training_time_front(runs: Any = None, *, theme: str = "light") -> "Figure":
    """Accuracy and time of fine-tuning; Figure 12. Arguments and errors as `throughput_front`."""
    return _figure(runs, "training_time", "Fine-tuning time and accuracy", theme)


def training_memory_front(runs: Any = None, *, theme: str = "light") -> "Figure":
    """Accuracy and training memory; Figure 15. Arguments and errors as `throughput_front`."""
    return _figure(runs, "training_memory", "Training memory and accuracy", theme)


def _figure(
    runs: Any,
    cost: str,
    heading: str,
    theme: str,
    *,
    logarithmic: bool = False,
    large_images: bool = False,
) -> "Figure":
    rows = _data.rows_of(runs)
    panels = fronts_by_device(rows, cost)
    with _style.themed(theme) as look:
        figure = _style.new_figure(1.0 + 3.8 * len(panels))
        grid = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
        for axes, (device, front) in zip(grid, panels, strict=True):
            axes.set(xlabel=_data.axis_label(cost), ylabel=_data.axis_label("accuracy"))
            if logarithmic:
                plain_logarithmic(axes)
            if len(panels) > 1:
                axes.set_title(f"{device}: {counted(front)}", loc="left")
        compared = [run for _, f in panels for run in (*f.members, *f.dominated)]
        text = heading if len(panels) > 1 else f"{heading}: {counted(panels[0][1])}"
        note = _data.source_note(compared, *(note_of(front) for _, front in panels))
        _scatter.title(figure, text, note, look)
        lines = [line_of(FRONT, look)]
        large = [run for run in compared if run.img_size != 224]
        if large_images and large:
            lines.append(line_of(LARGE_IMAGES, look))
        _scatter.legend(figure, compared, look, *lines)
        drawn = [draw_front(axes, f, cost, look) for axes, (_, f) in zip(grid, panels, strict=True)]
        if large_images:
            for axes, (device, _) in zip(grid, panels, strict=True):
                draw_large_images(axes, rows, cost, device, look)
        _style.settle(figure)
        for axes, (_, front), marks in zip(grid, panels, drawn, strict=True):
            label_front(axes, front, cost, marks, look)
        return figure


def fronts_by_device(rows: Sequence[Run], cost: str) -> list[tuple[str | None, Front]]:
    """The front of accuracy and a cost for each class of device, or one that holds on all.

    Raises:
        ValueError: No run has both.
    """
    devices: list[str | None] = [None]
    if results.metric(cost).device_bound:
        devices = [*_data.device_classes(rows, "accuracy", cost)]
    panels = [
        (device, results.front(rows, ("accuracy", cost), device=device)) for device in devices
    ]
    if not any(front.members for _, front in panels):
        raise ValueError(f"no run has both accuracy and {cost}")
    return panels


def counted(front: Front) -> str:
    """How many runs are on a front."""
    compared = len(front.members) + len(front.dominated)
    return f"{len(front.members)} of {compared} runs are on the front"


def note_of(front: Front) -> str:
    """What a front did not compare, and which networks it takes under some names only."""
    parts = []
    if front.incomplete:
        names = list(dict.fromkeys(run.label for run in front.incomplete))
        listed = ", ".join(names) if len(names) <= 4 else f"{len(names)} models"
        parts.append(f"Without the figure: {listed}.")
    parts += [
        f"One network: {', '.join(on)} on the front, {', '.join(off)} not."
        for on, off in front.split
    ]
    return " ".join(parts)


def draw_front(
    axes: "Axes", front: Front, cost: str, look: _style.Theme
) -> list[tuple[float, float]]:
    """Draw the runs of a front and its line; returns the places of the points."""
    marks = _scatter.draw_runs(axes, front.dominated, cost, "accuracy", look)
    marks += _scatter.draw_runs(
        axes, front.members, cost, "accuracy", look, area=_scatter.LARGE, zorder=3
    )
    widen(axes, cheap_on_the_left=results.metric(cost).direction == "min")
    x, y = zip(*corners(axes, front, cost), strict=True)
    axes.plot(x, y, color=look.text, linewidth=1.1, zorder=1.8, gid=FRONT)
    return marks


def widen(axes: "Axes", *, cheap_on_the_left: bool) -> None:
    """Limits that leave room around the points for labels, most on the side of the front."""
    axes.margins(0.05)
    axes.autoscale_view()
    scale = axes.transScale.inverted()
    low, high = axes.transScale.transform(
        [(axes.get_xlim()[i], axes.get_ylim()[i]) for i in (0, 1)]
    )
    span = high - low
    low = low - span * (0.08 if cheap_on_the_left else 0.0, 0.0)
    high = high + span * (0.0 if cheap_on_the_left else 0.04, 0.03)
    (left, bottom), (right, top) = scale.transform([low, high])
    axes.set(xlim=(left, right), ylim=(bottom, top))


def corners(axes: "Axes", front: Front, cost: str) -> list[tuple[float, float]]:
    """The line of a front from one limit of the axes to the other."""
    limits = axes.get_xlim()
    end = limits[0] if results.metric(cost).direction == "max" else limits[1]
    return _scatter.staircase(front, cost, end, axes.get_ylim()[0])


def draw_large_images(
    axes: "Axes", rows: Sequence[Run], cost: str, device: str | None, look: _style.Theme
) -> None:
    """The front of the runs on larger images alone, where a device has some."""
    large = [run for run in rows if run.img_size != 224 and run.device_class == device]
    if large:
        front = results.front(large, ("accuracy", cost))
        if front.members:
            x, y = zip(*corners(axes, front, cost), strict=True)
            style = {"color": look.muted, "linewidth": 0.9, "linestyle": (0, (4, 2))}
            axes.plot(x, y, zorder=1.7, gid=LARGE_IMAGES, **style)  # type: ignore[arg-type]


def label_front(
    axes: "Axes",
    front: Front,
    cost: str,
    marks: Sequence[tuple[float, float]],
    look: _style.Theme,
    *,
    others: bool = True,
) -> None:
    """Label the members of a front and own measurements, and of the others those with room."""
    best: dict[str, _labels.Label] = {}
    for on_front, runs in ((True, front.members[::-1]), (False, front.dominated[::-1])):
        for run, x, y in _data.points(runs, cost, "accuracy"):
            essential = on_front or _data.is_own(run)
            if essential or others:
                best.setdefault(run.label, _labels.Label(run.label, x, y, essential))
    # Every line in the axes so far is that of a front.
    lines = _labels.lines_of(axes)
    _labels.label_points(
        axes,
        list(best.values()),
        marks=marks,
        lines=lines,
        colour=look.text,
        muted=look.muted,
    )


def plain_logarithmic(axes: "Axes") -> None:
    """A logarithmic horizontal axis with numbers that people read."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def line_of(label: str, look: _style.Theme) -> Any:
    """What a line means, for the legend."""
    from matplotlib.lines import Line2D

    if label == FRONT:
        return Line2D([], [], color=look.text, linewidth=1.1, label=label)
    return Line2D([], [], color=look.muted, linewidth=0.9, linestyle=(0, (4, 2)), label=label)
