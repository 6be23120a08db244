"""One metric against another: Figures 11, 13 and 14 of the supplement."""

from typing import TYPE_CHECKING, Any

from efficient_vits import results
from efficient_vits.plots import _data, _labels, _scatter, _style, fronts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS_OF_BAND = 60


def training_time_correlation(runs: Any = None, *, theme: str = "light") -> "Figure":
    """Time of fine-tuning against inference time; Figure 11.

    Args:
        runs: As `throughput_front`. Where they are of several devices, those of the first one that
            has both figures are drawn.
        theme: ``"light"`` or ``"dark"``.

    Raises:
        ImportError: matplotlib, adjustText or scipy is not installed.
        ValueError: Fewer than four runs have both figures, or no such theme.
    """
    stated = "training_time_inference_time"
    return _correlation(runs, "inference_time", "training_time", stated, "Fine-tuning", theme)


def training_memory_correlation(runs: Any = None, *, theme: str = "light") -> "Figure":
    """Training memory against inference time; Figure 13. Arguments likewise."""
    stated = "training_memory_inference_time"
    return _correlation(runs, "inference_time", "training_memory", stated, "Training memory", theme)


def _correlation(runs: Any, x: str, y: str, stated: str, subject: str, theme: str) -> "Figure":
    rows, left_out = _data.one_device(_data.rows_of(runs), x, y)
    found = results.metric_correlation(y, x, rows)
    with _style.themed(theme) as look:
        figure, axes = _empty(x, y)
        heading = f"{subject} and inference time: r = {found.value:.2f}, {found.count} runs"
        interval = "95 % interval of r: {:.2f} to {:.2f}.".format(*found.interval)
        published = f"The paper has r = {results.stated(stated).value}."
        return _finish(figure, axes, rows, x, y, heading, look, interval, published, left_out)


def memory_model(runs: Any = None, *, theme: str = "light") -> "Figure":
    """Training memory against FLOPs with the fitted line and the interval of a new run; Figure 14.

    By default the line is fitted to the published run records, see `results.fit_memory`.
    Arguments and errors as `training_time_correlation`.
    """
    rows, left_out = _data.one_device(_data.rows_of(runs), "flops", "training_memory")
    model = results.fit_memory(None if runs is None else rows)
    with _style.themed(theme) as look:
        figure, axes = _empty("flops", "training_memory")
        flops = [run.flops for run in rows if run.training_memory is not None]
        low, high = min(flops), max(flops)
        steps = [low + (high - low) * i / POINTS_OF_BAND for i in range(POINTS_OF_BAND + 1)]
        x = [step / 1e9 for step in steps]
        bounds = [model.predict_interval(step) for step in steps]
        axes.fill_between(
            x,
            [lower / 2**30 for lower, _ in bounds],
            [upper / 2**30 for _, upper in bounds],
            color=look.accent,
            alpha=0.12,
            linewidth=0,
            label=f"{100 * model.level:.0f} % of new runs",
        )
        line = [model.predict(step) / 2**30 for step in steps]
        axes.plot(x, line, color=look.accent, linewidth=1.2, label="fitted line", gid="fit")
        equation = f"{model.slope:.2f} GB/GFLOP + {model.intercept / 2**30:.2f} GiB"
        heading = f"Training memory: {equation}, r = {model.correlation:.2f}"
        steepness = "{:.2f} to {:.2f}".format(*model.slope_interval)
        fitted = f"Line: {model.count} runs, slope {steepness}."
        slope, intercept = results.stated("memory_slope"), results.stated("memory_intercept")
        published = (
            f"The paper has {slope.value} {slope.unit} and {intercept.value} {intercept.unit}."
        )
        return _finish(
            figure, axes, rows, "flops", "training_memory", heading, look, fitted, published,
            left_out,
        )  # fmt: skip


def _empty(x: str, y: str) -> "tuple[Figure, Axes]":
    figure = _style.new_figure(4.6)
    axes = figure.subplots()
    axes.set(xlabel=_data.axis_label(x), ylabel=_data.axis_label(y))
    return figure, axes


def _finish(
    figure: "Figure",
    axes: "Axes",
    rows: list[results.Run],
    x: str,
    y: str,
    heading: str,
    look: _style.Theme,
    *notes: str,
) -> "Figure":
    """Draw the runs and label those that have room."""
    places = _data.points(rows, x, y)
    known = [run for run, _, _ in places]
    marks = _scatter.draw_runs(axes, known, x, y, look, area=24)
    lines = _labels.lines_of(axes)
    fronts.widen(axes, cheap_on_the_left=False)
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 0.0))
    _scatter.title(figure, heading, _data.source_note(known, *notes), look)
    handles, _ = axes.get_legend_handles_labels()
    _scatter.legend(figure, known, look, *handles)
    _style.settle(figure)
    # The slowest and the largest are the least crowded: they get their labels first.
    places.sort(key=lambda place: -place[1])
    labels = {run.label: _labels.Label(run.label, a, b, False) for run, a, b in places}
    _labels.label_points(
        axes,
        list(labels.values()),
        marks=marks,
        lines=lines,
        colour=look.text,
        muted=look.muted,
    )
    return figure
