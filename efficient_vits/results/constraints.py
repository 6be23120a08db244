"""Bounds on metrics as people write them: ``">=80"``, ``"<2 GiB"``, ``"<= 25M"``."""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass

from efficient_vits.results.metrics import Metric, metric
from efficient_vits.results.runs import Run

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}

UNITS: dict[str, dict[str, float]] = {
    "": {"": 1},
    "%": {"": 1, "%": 1},
    "count": {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9, "T": 1e12},
    "bytes": {
        **{"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12},
        **{"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40},
    },
    "time": {"": 1, "s": 1, "us": 1e-6, "ms": 1e-3, "min": 60, "h": 3600},
}


@dataclass(frozen=True)
class Constraint:
    """A bound on one metric.

    Attributes:
        metric: Its name.
        operator: ``">="``, ``">"``, ``"<="`` or ``"<"``.
        bound: In the metric's own unit: per cent, images/s, bytes, seconds, or a count.
        text: As it was written.
    """

    metric: str
    operator: str
    bound: float
    text: str

    def holds(self, run: Run) -> bool | None:
        """Whether a run keeps it; None if the run lacks the figure.

        An upper bound on memory at batch 1 is also kept where that was not published and batch 64
        takes no more.
        """
        value = run.value(self.metric)
        if value is None and self.metric == "memory" and self.operator.startswith("<"):
            larger = run.memory.get(64)
            return True if larger is not None and self._compare(larger) else None
        return None if value is None else self._compare(value)

    def _compare(self, value: float) -> bool:
        return _OPERATORS[self.operator](value, self.bound)

    def __str__(self) -> str:
        return f"{self.metric} {self.text}"


def parse_constraint(name: str, value: str | float) -> Constraint:
    """A bound as written.

    Args:
        name: A metric.
        value: ``">=80"``, with a unit where the metric has one: ``%``; K, M, G (or B), T for
            counts; B, KB, KiB, MB, MiB, ... for bytes; us, ms, s, min, h for times. Without
            a comparison the value is the worst that is accepted.

    Raises:
        ValueError: An unknown metric, or a value that is no such bound.
    """
    known = metric(name)
    units = UNITS[known.kind]
    usual = ">=" if known.direction == "max" else "<="
    if isinstance(value, str):
        match = re.fullmatch(
            r"\s*(>=|<=|>|<|)\s*(\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*([A-Za-z%]*)\s*", value
        )
        factor = None if match is None else _unit(match[3], units)
        if match is not None and factor is not None:
            return Constraint(
                name, match[1] or usual, float(match[2]) * factor, _tidy(match, usual)
            )
    elif (
        not isinstance(value, bool) and isinstance(value, int | float) and 0 <= value < float("inf")
    ):
        return Constraint(name, usual, float(value), f"{usual} {value:g}")
    raise ValueError(f"{name}={value!r} is no bound; accepted are {_accepted(known, usual)}")


def _tidy(match: re.Match[str], usual: str) -> str:
    return " ".join(filter(None, (match[1] or usual, match[2], match[3])))


def _unit(text: str, units: dict[str, float]) -> float | None:
    """The factor of a unit; in any case of letters where that is unambiguous."""
    if text in units:
        return units[text]
    folded = {factor for unit, factor in units.items() if unit.lower() == text.lower()}
    return folded.pop() if len(folded) == 1 else None


def _accepted(known: Metric, usual: str) -> str:
    units = [unit for unit in UNITS[known.kind] if unit]
    unit = f", with a unit out of {', '.join(units)} or none" if units else ""
    return f"a number after {', '.join(_OPERATORS)} or alone, which means {usual}{unit}"
