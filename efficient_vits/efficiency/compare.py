"""Puts measurements beside each other, relative to a baseline, with intervals."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from efficient_vits.efficiency._comparable import (
    Facts,
    counting,
    differences,
    machine,
    protocol,
    refuse,
    variant,
)
from efficient_vits.efficiency.comparison import (
    COLUMNS,
    Column,
    Comparison,
    Entry,
    Figure,
    column_of,
)
from efficient_vits.efficiency.journal import Row, read_rows

INTERVALS = {"confidence": "interval", "prediction": "prediction"}
ACROSS = ("machines", "protocols")
_ABSENT = "-"
_DEFAULT_COLUMNS = ("parameters", "flops", "memory", "throughput")


def compare(
    rows: Any,
    baseline: str | None = None,
    *,
    columns: Sequence[str] = _DEFAULT_COLUMNS,
    interval: str = "confidence",
    across: Sequence[str] = (),
) -> Comparison:
    """Puts measurements beside each other.

    The interval of a ratio a / b follows from those of a and b, which are taken to be independent,
    on the logarithmic scale: with r = log a - log b, its lower end is
    ``r - sqrt((log a - log a_low)^2 + (log b_high - log b)^2)``, the upper one likewise (Zou and
    Donner, "Construction of confidence intervals about functions of parameters", Statistics in
    Medicine 27, 2008). It holds at the level of the two intervals. Rows without intervals get the
    quartiles of their batch times instead, all rows then, since unlike intervals do not compare.

    Args:
        rows: the file of a sweep, or several of its rows, of `Measurement` or its ``to_dict()``.
        baseline: name of the model that ratios are relative to; None for no ratios. Where several
            rows have this name, each is the baseline of the rows that are like it in all else.
        columns: "parameters", "flops", "macs", "memory", "throughput", or the path of any number in
            a row, such as "memory.activation_bytes".
        interval: "confidence", or "prediction" for the interval that holds the median of a repeat.
        across: "machines" or "protocols" that may differ from row to row.

    Raises:
        ValueError: no rows; a name, a column or an option that there is not; no row or no single
            row is the baseline; or figures that depend on the device are of different machines or
            protocols, operations counted by different rules, and `across` does not allow it.
        OSError: the file cannot be read.
    """
    if interval not in INTERVALS:
        raise ValueError(f"interval must be one of {', '.join(INTERVALS)}, got {interval!r}")
    if isinstance(across, str) or any(name not in ACROSS for name in across):
        raise ValueError(f"across takes a list of {', '.join(ACROSS)}, got {across!r}")
    columns = tuple(columns)
    all_rows = _rows(rows)
    measured = [row for row in all_rows if "error" not in row]
    if not measured:
        raise ValueError(f"there is nothing to compare: {len(all_rows)} rows, and none measured")
    _check_columns(columns, measured)
    _check_alike(columns, measured, across)
    kind = _kind(measured, columns, interval)
    labels = _labels(all_rows)
    entries = []
    for row, label in zip(all_rows, labels, strict=True):
        if "error" in row:
            entries.append(Entry(row["name"], label, {}, row["error"]))
            continue
        reference = None if baseline is None else _baseline(row, all_rows, baseline)
        figures = {name: _figure(row, reference, column_of(name), kind) for name in columns}
        entries.append(Entry(row["name"], label, figures))
    return Comparison(tuple(entries), columns, baseline, kind)


def ratio_interval(
    a: float, a_interval: tuple[float, float], b: float, b_interval: tuple[float, float]
) -> tuple[float, float]:
    """The interval of a / b for independent positive a and b; see `compare`."""
    up_a, down_a = math.log(a_interval[1] / a), math.log(a / a_interval[0])
    up_b, down_b = math.log(b_interval[1] / b), math.log(b / b_interval[0])
    ratio = a / b
    return ratio * math.exp(-math.hypot(down_a, up_b)), ratio * math.exp(math.hypot(up_a, down_b))


def _rows(source: Any) -> list[Row]:
    if isinstance(source, str | os.PathLike):
        return read_rows(source)
    if isinstance(source, Mapping):
        return [dict(source)]
    if hasattr(source, "to_dict"):
        return [source.to_dict()]
    if isinstance(source, Iterable):
        return [row for part in source for row in _rows(part)]
    raise ValueError(
        "measurements are the file of a sweep, rows of one, or Measurements, got "
        f"{type(source).__name__}"
    )


def _at(row: Mapping[str, Any], path: str) -> float | None:
    value: Any = row
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


def _check_columns(columns: Sequence[str], rows: Sequence[Row]) -> None:
    if not columns:
        raise ValueError(f"columns is empty; there are {', '.join(COLUMNS)}, and paths in a row")
    for name in columns:
        if name not in COLUMNS and all(_at(row, name) is None for row in rows):
            raise ValueError(
                f"no row has a number at {name!r}; there are {', '.join(COLUMNS)}, and paths in a "
                "row such as 'memory.activation_bytes'"
            )


def _check_alike(columns: Sequence[str], rows: Sequence[Row], across: Sequence[str]) -> None:
    names = [row["name"] for row in rows]
    bound = [
        name
        for name in columns
        if column_of(name).device_bound and any(_at(row, column_of(name).path) for row in rows)
    ]
    if bound:
        for what, facts in (("machines", machine), ("protocols", protocol)):
            remedy = f"across=[{what!r}] allows it, and parameters and FLOPs compare anyway"
            if what not in across:
                refuse(what, names, [*map(facts, rows)], columns=bound, remedy=remedy)
    counted = [name for name in columns if column_of(name).path.startswith("flops")]
    if counted and "protocols" not in across:
        remedy = "across=['protocols'] does so all the same"
        refuse("protocols", names, [*map(counting, rows)], columns=counted, remedy=remedy)


def _labels(rows: Sequence[Row]) -> list[Facts]:
    """What tells rows apart: of the model, and of machine and protocol where these may differ."""
    everything = [{**variant(row), **protocol(row), **machine(row)} for row in rows]
    # A row of a failure knows less about itself, which is no difference between the measured ones.
    measured = [fact for fact, row in zip(everything, rows, strict=True) if "error" not in row]
    titles = list(differences(measured))
    return [{title: fact.get(title, _ABSENT) for title in titles} for fact in everything]


def _baseline(row: Row, rows: Sequence[Row], name: str) -> Row:
    """The row that another is relative to; one of that name is so to itself."""
    if row["name"] == name:
        return row
    candidates = [other for other in rows if other["name"] == name]
    usable = [other for other in candidates if "error" not in other]
    if not candidates:
        names = ", ".join(dict.fromkeys(other["name"] for other in rows))
        raise ValueError(f"no row of the baseline {name!r}; there are {names}")
    if not usable:
        raise ValueError(f"the baseline {name!r} failed: {candidates[0]['error']}")
    if len(usable) == 1:
        return usable[0]
    for facts in (_everything, _setting):
        same = [other for other in usable if facts(other) == facts(row)]
        if len(same) == 1:
            return same[0]
    raise ValueError(
        f"{len(usable)} rows are of the baseline {name!r}, and no single one of them is like "
        f"{row['name']} ({', '.join(f'{k} {v}' for k, v in _setting(row).items())})"
    )


def _everything(row: Row) -> Facts:
    return {**variant(row), **_setting(row)}


def _setting(row: Row) -> Facts:
    facts = variant(row)
    size = {"input": facts["input"]} if "input" in facts else {}
    return {**size, **protocol(row), **machine(row)}


def _kind(rows: Sequence[Row], columns: Sequence[str], wanted: str) -> str:
    """What intervals all rows can have."""
    timed = [row["throughput"] for row in rows if row.get("throughput")]
    if "throughput" not in columns or not timed:
        return "none"
    if all(speed.get(INTERVALS[wanted]) for speed in timed):
        return wanted
    if wanted == "prediction":
        speeds = ((row["name"], row.get("throughput")) for row in rows)
        lacking = [name for name, speed in speeds if speed and not speed.get(INTERVALS[wanted])]
        raise ValueError(f"there is no prediction interval of {', '.join(lacking)}")
    return "quartiles" if all("spread" in speed for speed in timed) else "none"


def _interval(row: Row, column: Column, kind: str) -> tuple[float, float] | None:
    if column != COLUMNS["throughput"] or not row.get("throughput") or kind == "none":
        return None
    speed = row["throughput"]
    if kind == "quartiles":
        # The spread is that of the times; half of it is to either side of their median.
        value, half = speed["images_per_second"], speed["spread"] / 2
        # Where they are as far apart as this, half of it says nothing about either side.
        return (value / (1 + half), value / (1 - half)) if half < 1 else None
    low, high = speed[INTERVALS[kind]]
    return low, high


def _figure(row: Row, baseline: Row | None, column: Column, kind: str) -> Figure:
    value, interval = _at(row, column.path), _interval(row, column, kind)
    if baseline is None or value is None:
        return Figure(value, interval)
    reference, known = _at(baseline, column.path), _interval(baseline, column, kind)
    if not reference:
        return Figure(value, interval)
    if row is baseline:
        return Figure(value, interval, 1.0)  # of itself it is known exactly
    both = ratio_interval(value, interval, reference, known) if interval and known else None
    return Figure(value, interval, value / reference, both)
