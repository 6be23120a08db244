"""Tables of the results page, made from the packaged data when the page is built.

The directive ``results-table`` stands for one of `TABLES`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from efficient_vits import results


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def misprints() -> str:
    """Cells of the printed Table 6 that the run records contradict."""
    return markdown(
        ("row", "as printed", "run", "column", "printed", "recorded"),
        (
            (
                d.row,
                d.printed_model,
                f"`{d.run.label}`, from {d.run.pretrain_size} px",
                d.column,
                d.printed,
                d.recorded,
            )
            for d in results.compare_printed().differences
        ),
    )


def without_record() -> str:
    """Printed rows that no run stands for."""
    return markdown(
        ("row", "model", "size", "top-1", "further parameters"),
        (
            (number, row.printed_model, row.img_size, row.top1, row.run_parameters)
            for number, row in results.compare_printed().unmatched
        ),
    )


def only_recorded() -> str:
    """Runs without a printed row."""
    return markdown(
        ("model", "pre-training size", "top-1"),
        (
            (f"`{run.label}`", run.pretrain_size, run.top1)
            for run in results.compare_printed().unprinted
        ),
    )


def corrections() -> str:
    """Corrected figures of the packaged runs."""
    return markdown(
        ("model", "top-1", "column", "correction"),
        (
            (f"`{run.label}`", run.top1, column, text)
            for run in results.load_rows()
            for column, text in run.corrections.items()
        ),
    )


def statements(verdicts: Iterable[str]) -> str:
    """Statements of the supplement with one of these verdicts."""
    chosen = list(verdicts)
    return markdown(
        ("section", "statement", "paper", "from the runs", "verdict"),
        (
            (c.section, c.statement, c.paper, c.ours, c.verdict)
            for c in results.check_statements()
            if c.verdict in chosen
        ),
    )


def optimal() -> str:
    """Cells of Table 5 that differ, with the reasons."""
    rows = []
    for cell in results.table5_rebuilt():
        for family, reason in cell.reasons.items():
            where = "printed only" if family in cell.printed else "rebuilt only"
            rows.append((cell.task.replace("_", " "), cell.taxonomy_class, family, where, reason))
    return markdown(("task", "class", "family", "", "why"), rows)


def spreads() -> str:
    """How far repeats lie apart."""
    rows = []
    for name in ("accuracy", "throughput", "training_time", "training_memory", "memory"):
        spread = results.repeat_spread(name)
        if name == "accuracy":
            figures = (f"{spread.std:.2f} points", f"{spread.widest:.2f} points")
        else:
            figures = (f"{100 * spread.std:.1f} %", f"{100 * spread.widest:.0f} %")
        rows.append((name, *figures, spread.group, spread.repeats))
    return markdown(("metric", "standard deviation", "widest", "where", "values"), rows)


def members() -> str:
    """Probability to be on the front of accuracy and throughput, by network."""
    return markdown(
        ("network", "on the front", "probability"),
        (
            (f"`{m.label}`".replace(", ", "`, `"), "yes" if m.on_front else "no", m.probability)
            for m in results.membership(by="network")
            if m.on_front or m.probability >= 0.1
        ),
    )


def memory_model() -> str:
    """The line of training memory over FLOPs."""
    model = results.fit_memory()
    gib = 2**30
    low, high = model.intercept_interval
    slope = "{:.2f} to {:.2f}".format(*model.slope_interval)
    stated = results.stated
    return markdown(
        ("", "runs", "interval, 95 %", "paper"),
        (
            ("slope [GB per GFLOP]", f"{model.slope:.2f}", slope, stated("memory_slope").value),
            (
                "intercept [GiB]",
                f"{model.intercept / gib:.2f}",
                f"{low / gib:.2f} to {high / gib:.2f}",
                stated("memory_intercept").value,
            ),
            (
                "intercept [10⁹ bytes]",
                f"{model.intercept / 1e9:.2f}",
                f"{low / 1e9:.2f} to {high / 1e9:.2f}",
                "",
            ),
        ),
    )


def flowchart() -> str:
    """The decision flowchart as a table."""
    rows = []
    for branch in results.decision_flowchart().branches:
        for leaf in branch.leaves:
            value = leaf.run.value(branch.metric)
            rows.append(
                (
                    branch.question,
                    leaf.condition,
                    f"`{leaf.run.label}`",
                    _short(branch.metric, value),
                )
            )
    return markdown(("what is scarce", "needed accuracy", "model", "costs"), rows)


def _short(metric: str, value: float | None) -> str:
    if value is None:
        return ""
    if metric == "throughput":
        return f"{value:,.0f} images/s"
    if metric == "training_time":
        return f"{value / 3600:.1f} GPU-hours"
    return f"{value / 1e6:.1f} M" if metric == "params" else f"{value / 2**30:.2f} GiB"


TABLES: dict[str, Callable[[], str]] = {
    "misprints": misprints,
    "without-record": without_record,
    "only-recorded": only_recorded,
    "corrections": corrections,
    "not-confirmed": lambda: statements(["differs", "no data"]),
    "confirmed": lambda: statements(["confirmed"]),
    "table-5": optimal,
    "spreads": spreads,
    "membership": members,
    "memory-model": memory_model,
    "flowchart": flowchart,
}


class ResultsTable(SphinxDirective):
    """``results-table``: the table of TABLES that its argument names."""

    required_arguments = 1
    has_content: ClassVar[bool] = False
    tables: ClassVar[dict[str, Callable[[], str]]] = TABLES

    def run(self) -> list[nodes.Node]:
        choice = self.arguments[0]
        if choice not in self.tables:
            raise self.error(f"no table {choice!r}; there are {', '.join(self.tables)}")
        return self.parse_text_to_nodes(self.tables[choice]())


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("results-table", ResultsTable)
    return {"parallel_read_safe": True}
