"""The decision flowchart: what is scarce, which accuracy is needed, which model to take."""

from typing import TYPE_CHECKING, Any

from efficient_vits import results
from efficient_vits.plots import _data, _scatter, _style
from efficient_vits.results import Branch, Leaf, Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRICS = ("throughput", "training_time", "memory", "training_memory", "params")

# Heights in units of a box and its gap.
ROOT, QUESTION, FIRST, BOX, HALF_WIDTH = 1.15, 0.0, -1.15, 0.36, 0.47


def decision_flowchart(runs: Any = None, *, theme: str = "light") -> "Figure":
    """The flowchart of `results.decision_flowchart` as a tree.

    A column is what is scarce, the boxes below are its answers by rising accuracy; the colour of a
    box is the class of the model.

    Args:
        runs: As `throughput_front`. Where they are of several devices, those of the first one with
            accuracy and throughput are used; what none of them has is no branch.
        theme: ``"light"`` or ``"dark"``.

    Raises:
        ImportError: matplotlib or adjustText is not installed.
        ValueError: No run has accuracy and throughput, or no such theme.
    """
    rows, left_out = _data.one_device(_data.rows_of(runs), "accuracy", "throughput")
    metrics = [name for name in METRICS if _data.device_classes(rows, "accuracy", name)]
    chart = results.decision_flowchart(rows, metrics=metrics)
    with _style.themed(theme) as look:
        most = max(len(branch.leaves) for branch in chart.branches)
        figure = _style.new_figure(1.35 + 0.72 * most)
        axes = figure.subplots()
        axes.set_axis_off()
        axes.set(
            xlim=(-0.5, len(chart.branches) - 0.5), ylim=(FIRST - most + BOX, ROOT + BOX + 0.1)
        )
        middle = (len(chart.branches) - 1) / 2
        for column, branch in enumerate(chart.branches):
            axes.plot(
                [middle, middle, column, column],
                [ROOT, (ROOT + QUESTION) / 2, (ROOT + QUESTION) / 2, QUESTION],
                color=look.muted, linewidth=0.9, zorder=1,
            )  # fmt: skip
            _branch(axes, column, branch, look)
        _box(axes, middle, ROOT, chart.question, look.text, look, bold=True)
        shares = [branch.share for branch in chart.branches]
        heading = (
            f"Which model to take: {sum(len(b.leaves) for b in chart.branches)} answers that keep "
            f"{100 * min(shares):.0f} to {100 * max(shares):.0f} % of the fronts"
        )
        note = _data.source_note(rows, *map(_not_known, chart.branches), left_out)
        _scatter.title(figure, heading, note, look)
        _scatter.legend(figure, _answers(chart.branches), look, below=True)
        _style.settle(figure)
        return figure


def _answers(branches: tuple[Branch, ...]) -> list[Run]:
    return [leaf.run for branch in branches for leaf in branch.leaves]


def _not_known(branch: Branch) -> str:
    names = branch.incomplete
    if not names:
        return ""
    listed = ", ".join(names) if len(names) <= 4 else f"{len(names)} models"
    return f"{branch.question} not known for {listed}."


def _branch(axes: "Axes", column: int, branch: Branch, look: _style.Theme) -> None:
    lowest = FIRST - len(branch.leaves) + 1
    axes.plot([column, column], [QUESTION, lowest], color=look.muted, linewidth=0.9, zorder=1)
    text = branch.question.replace(" of ", "\nof ")
    _box(axes, column, QUESTION, f"{text}:\nneeded accuracy?", look.muted, look)
    for i, leaf in enumerate(branch.leaves):
        _leaf(axes, column, FIRST - i, leaf, branch.metric, look)


def _leaf(axes: "Axes", x: float, y: float, leaf: Leaf, metric: str, look: _style.Theme) -> None:
    colour = look.colour(leaf.run.taxonomy_class)
    _box(axes, x, y, "", colour, look)
    axes.scatter(
        [x - HALF_WIDTH + 0.08], [y + 0.2], s=16, edgecolors=colour, zorder=4,
        facecolors=colour if leaf.run.img_size == 224 else look.background,
        marker=_style.marker(leaf.run.taxonomy_class),
    )  # fmt: skip
    # A long name gets a smaller font instead of a wider box.
    size = min(6.5, 6.5 * 19 / len(leaf.run.label))
    for height, text, weight, points in (
        (0.2, leaf.condition, "normal", 6.0),
        (0.0, leaf.run.label, "bold", size),
        (-0.2, _data.short(leaf.run, metric), "normal", 6.0),
    ):
        axes.text(
            x, y + height, text, ha="center", va="center", fontsize=points, fontweight=weight,
            zorder=4,
        )  # fmt: skip


def _box(
    axes: "Axes", x: float, y: float, text: str, colour: str, look: _style.Theme, *,
    bold: bool = False,
) -> None:  # fmt: skip
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(
        FancyBboxPatch(
            (x - HALF_WIDTH, y - BOX), 2 * HALF_WIDTH, 2 * BOX, facecolor=look.background,
            edgecolor=colour, linewidth=1.4, zorder=2, boxstyle="round,pad=0,rounding_size=0.06",
        )
    )  # fmt: skip
    if text:
        weight = "bold" if bold else "normal"
        axes.text(x, y, text, ha="center", va="center", fontsize=7, fontweight=weight, zorder=4)
