"""What the printed Table 6 and the run records differ in.

Printed rows and runs are matched by their figures, not by the model's name, which is misprinted,
too: each row goes with the run that agrees in most columns.
"""

from dataclasses import dataclass

from efficient_vits.results.runs import Run, as_rows
from efficient_vits.results.tables import PrintedRun, table6

GIB = 2**30
# One of these must agree and half of all columns, or a row and a run are two trainings.
_OUTCOMES = ("training_gpu_hours", "throughput", "top1", "top5")
_MOST_WRONG = 6


@dataclass(frozen=True)
class Difference:
    """A cell of the printed table that the run records contradict.

    Attributes:
        row: Number of the printed row, from 1.
        printed_model: Its model as printed.
        run: The run it stands for.
        column: The column.
        printed: Its value as printed.
        recorded: The value of the run, rounded as the table rounds.
    """

    row: int
    printed_model: str
    run: Run
    column: str
    printed: str
    recorded: str


@dataclass(frozen=True)
class Comparison:
    """Printed table against runs.

    Attributes:
        differences: Cells that differ, by row.
        matched: Rows of the table with their runs.
        unmatched: Numbers of printed rows that no run stands for, with the rows.
        unprinted: Runs that no printed row shows.
    """

    differences: tuple[Difference, ...]
    matched: tuple[tuple[PrintedRun, Run], ...]
    unmatched: tuple[tuple[int, PrintedRun], ...]
    unprinted: tuple[Run, ...]


def compare_printed() -> Comparison:
    """The printed Table 6 against the packaged runs."""
    rows, runs = table6(), as_rows()
    scores = []
    for i, row in enumerate(rows):
        for j, run in enumerate(runs):
            wrong = {column for column, _, _ in _disagreements(row, run)}
            known = {column for column in _OUTCOMES if getattr(row, column) is not None}
            if known - wrong and len(wrong) <= _MOST_WRONG:
                scores.append((len(wrong), i, j))
    pairs: dict[int, int] = {}
    for _, i, j in sorted(scores):
        if i not in pairs and j not in pairs.values():
            pairs[i] = j
    differences = [
        Difference(i + 1, rows[i].printed_model, runs[j], column, shown, recorded)
        for i, j in sorted(pairs.items())
        for column, shown, recorded in _disagreements(rows[i], runs[j])
    ]
    return Comparison(
        differences=tuple(differences),
        matched=tuple((rows[i], runs[j]) for i, j in sorted(pairs.items())),
        unmatched=tuple((i + 1, row) for i, row in enumerate(rows) if i not in pairs),
        unprinted=tuple(run for j, run in enumerate(runs) if j not in pairs.values()),
    )


def memory_is_batch_64() -> tuple[int, int]:
    """In how many matched rows with a recorded memory the printed one is that at batch 64.

    Returns:
        That number, and the number of such rows.
    """
    recorded = [(row, run) for row, run in compare_printed().matched if 32 in run.memory]
    fits = sum(abs(run.memory[64] / GIB - row.memory_gb) <= 0.00501 for row, run in recorded)
    return fits, len(recorded)


def _disagreements(row: PrintedRun, run: Run) -> list[tuple[str, str, str]]:
    """Columns that disagree: name, as printed, as recorded at the same precision."""
    found = []
    if row.name != run.name:
        found.append(("model", row.printed_model, run.name))
    memory = run.memory.get(64)
    columns: list[tuple[str, float | None, float | None, int]] = [
        ("pretrain_size", row.pretrain_size, run.pretrain_size, 0),
        ("img_size", row.img_size, run.img_size if isinstance(run.img_size, int) else None, 0),
        ("params_millions", row.params_millions, run.params / 1e6, 2),
        ("gflops", row.gflops, run.flops / 1e9, 2),
        ("training_memory_gb", row.training_memory_gb, _scaled(run.training_memory, GIB), 2),
        ("memory_gb", row.memory_gb, _scaled(memory, GIB), 2),
        ("training_gpu_hours", row.training_gpu_hours, _scaled(run.training_time, 3600), 1),
        ("throughput", row.throughput, run.throughput, 2),
        ("throughput_batch_size", row.throughput_batch_size, run.throughput_batch_size, 0),
        ("top1", row.top1, run.top1, 2),
        ("top5", row.top5, run.top5, 2),
    ]
    for column, shown, recorded, digits in columns:
        if shown is None:
            continue
        # Half a unit of the last digit, and a little for the decimal fraction's binary form.
        if recorded is None or abs(shown - recorded) > 0.501 * 10**-digits:
            text = "not recorded" if recorded is None else f"{recorded:.{digits}f}"
            found.append((column, f"{shown:.{digits}f}", text))
    return found


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit
