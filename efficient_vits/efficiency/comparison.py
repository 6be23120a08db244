"""The result of a comparison, and how it is shown."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from efficient_vits.efficiency import tables

_ABSENT = "-"


@dataclass(frozen=True)
class Column:
    """A figure of a row: where it is, how it is shown, and whether it depends on the device."""

    path: str
    title: str
    scale: float = 1.0
    device_bound: bool = True


COLUMNS = {
    "parameters": Column("parameters", "parameters (M)", 1e6, device_bound=False),
    "flops": Column("flops.total", "GFLOPs", 1e9, device_bound=False),
    "macs": Column("flops.macs", "GMACs", 1e9, device_bound=False),
    "memory": Column("memory.peak_bytes", "memory (MiB)", 2**20),
    "throughput": Column("throughput.images_per_second", "images/s"),
}


@dataclass(frozen=True)
class Figure:
    """A measured figure and its ratio to the baseline's, in the units of the row.

    Attributes:
        value: None where the row has none.
        interval: its lower and upper end, None where nothing is known about it.
        ratio: value over the baseline's value; None without a baseline or a figure of it.
        ratio_interval: that of the ratio, where both figures have one.
    """

    value: float | None
    interval: tuple[float, float] | None = None
    ratio: float | None = None
    ratio_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Entry:
    """One row of a comparison.

    Attributes:
        name: the model.
        labels: what tells the rows apart beside the name, by title, the same titles in all rows.
        figures: by column.
        error: why the model has no figures; None if it has.
    """

    name: str
    labels: Mapping[str, str]
    figures: Mapping[str, Figure]
    error: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Models beside each other; `str` gives a table for the terminal.

    Attributes:
        entries: one for each row.
        columns: names of what is compared.
        baseline: name of the model that the ratios are relative to, None without ratios.
        interval: what the intervals are: "confidence" or "prediction" intervals of the rows,
            "quartiles" of the times of single batches, or "none".
    """

    entries: tuple[Entry, ...]
    columns: tuple[str, ...]
    baseline: str | None
    interval: str

    def __str__(self) -> str:
        headers, cells, left = self.cells()
        return "\n".join([tables.to_text(headers, cells, left=left), *self.notes()])

    def to_markdown(self) -> str:
        """A Markdown table, and what is to be known about it."""
        headers, cells, left = self.cells()
        notes = [tables.markdown(note) for note in self.notes()]
        return "\n\n".join([tables.to_markdown(headers, cells, left=left), *notes])

    def to_latex(self) -> str:
        """A LaTeX table for booktabs, and what is to be known about it as comments."""
        headers, cells, left = self.cells()
        comments = [f"% {' '.join(note.split())}" for note in self.notes()]
        return "\n".join([*comments, tables.to_latex(headers, cells, left=left)])

    def to_csv(self) -> str:
        """All digits, in the units of the rows (bytes, operations); a field for each end."""
        labels = list(self.entries[0].labels)
        parts = ["", "_low", "_high"]
        if self.baseline is not None:
            parts += ["_ratio", "_ratio_low", "_ratio_high"]
        headers = ["name", *labels, *(c + part for c in self.columns for part in parts), "error"]
        rows = []
        for entry in self.entries:
            figures = [entry.figures.get(column, Figure(None)) for column in self.columns]
            values = [value for figure in figures for value in _flat(figure)[: len(parts)]]
            rows.append([entry.name, *entry.labels.values(), *values, entry.error])
        return tables.to_csv(headers, rows)

    def cells(self) -> tuple[list[str], list[list[str]], int]:
        """Headers, rows of text, and how many columns are no figures."""
        titles = list(self.entries[0].labels)
        headers = ["model", *titles]
        for name in self.columns:
            headers.append(column_of(name).title)
            if self.baseline is not None:
                headers.append("ratio")
        rows = []
        for entry in self.entries:
            row = [entry.name, *entry.labels.values()]
            for name in self.columns:
                figure = entry.figures.get(name, Figure(None))
                row.append(_shown(figure.value, figure.interval, column_of(name).scale))
                if self.baseline is not None:
                    row.append(_shown(figure.ratio, figure.ratio_interval))
            rows.append(row)
        return headers, rows, 1 + len(titles)

    def notes(self) -> list[str]:
        """What is to be known about the table, in lines."""
        notes = []
        if self.baseline is not None:
            notes.append(f"Ratios are relative to {self.baseline}.")
        said = {
            "confidence": "Intervals are the confidence intervals of the medians",
            "prediction": "Intervals are those that predict the median of a repeat",
            "quartiles": "Intervals hold the middle half of the timed batches",
        }
        if self.interval in said:
            ratios = "" if self.baseline is None else "; those of ratios follow from both"
            notes.append(f"{said[self.interval]}{ratios}.")
        notes += [f"{entry.name} failed: {entry.error}" for entry in self.entries if entry.error]
        return notes


def column_of(name: str) -> Column:
    own = not name.startswith(("parameters", "active_parameters", "flops"))
    return COLUMNS.get(name) or Column(name, name, device_bound=own)


def _flat(figure: Figure) -> list[float | None]:
    ends = figure.interval or (None, None)
    return [figure.value, *ends, figure.ratio, *(figure.ratio_interval or (None, None))]


def _shown(value: float | None, interval: tuple[float, float] | None, scale: float = 1.0) -> str:
    if value is None:
        return _ABSENT
    text = _number(value / scale)
    if interval is None:
        return text
    return f"{text} [{_number(interval[0] / scale)}, {_number(interval[1] / scale)}]"


def _number(value: float) -> str:
    """Four digits, all of them where the integer part has more."""
    if abs(value) >= 1000 or value == 0:
        return f"{value:.0f}"
    decimals = 3 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(decimals, 9)}f}"
