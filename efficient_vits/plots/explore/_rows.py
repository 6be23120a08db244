"""What the page knows: runs, metrics, classes and model cards, as values for JSON."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from efficient_vits import catalog
from efficient_vits.plots.explore._marks import UNCLASSIFIED, marks_of
from efficient_vits.results import METRICS, Metric, Run, as_rows

# Units that people read, for metrics whose own unit makes long numbers: factor and name.
_UNITS = {
    "params": (1e6, "M"),
    "flops": (1e9, "G"),
    "inference_time": (1e-3, "ms"),
    "training_time": (3600.0, "GPU-hours"),
}
_UNITS_OF_KIND = {"bytes": (2.0**30, "GiB")}
_SIZES = {
    **{"ti": "Ti", "tiny": "Ti", "s": "S", "small": "S"},
    **{"b": "B", "base": "B", "l": "L", "large": "L"},
}
SIZES = ("Ti", "S", "B", "L", "other")


def page_data(runs: Sequence[Run]) -> dict[str, Any]:
    """Everything that the page shows.

    Raises:
        ValueError: There is no run, or one has a figure that is no finite number of 0 or more.
    """
    if not runs:
        raise ValueError("there is no run to show")
    published = {run.source for run in as_rows()}
    return {
        "metrics": [_metric(metric) for metric in METRICS.values()],
        "classes": [asdict(mark) for mark in marks_of(_class_of(run) for run in runs)],
        "sizes": SIZES,
        "cards": _cards({run.name for run in runs}),
        "runs": [_run(run, own=run.source not in published) for run in runs],
    }


def size_of(name: str) -> str:
    """The size that a model's name speaks of: one of `SIZES`."""
    for part in re.split(r"[_.]", name.lower()):
        size = _SIZES.get(re.sub(r"\d+$", "", part))
        if size:
            return size
    return "other"


def _metric(metric: Metric) -> dict[str, Any]:
    text, _, unit = metric.label.rstrip("]").partition(" [")
    factor, unit = _UNITS.get(metric.name) or _UNITS_OF_KIND.get(metric.kind) or (1.0, unit)
    return {
        "name": metric.name,
        "label": text,
        "unit": unit,
        "factor": factor,
        "direction": metric.direction,
        "device_bound": metric.device_bound,
    }


def _class_of(run: Run) -> str:
    return run.taxonomy_class or UNCLASSIFIED


def _run(run: Run, *, own: bool) -> dict[str, Any]:
    size = run.img_size
    height, width = (size, size) if isinstance(size, int) else size
    return {
        "name": run.name,
        "label": run.label,
        "network": run.network,
        "class": _class_of(run),
        "year": run.year,
        "size": size_of(run.name),
        "resolution": str(height) if height == width else f"{height}x{width}",
        "pretrain_size": run.pretrain_size,
        "device": run.device,
        "device_class": run.device_class,
        "batch_size": run.throughput_batch_size,
        "own": own,
        "source": run.source,
        "notes": [f"{column}: {text}" for column, text in run.corrections.items()],
        "values": [_figure(run, name) for name in METRICS],
    }


def _figure(run: Run, name: str) -> float | None:
    # Time per image and accuracy per parameter divide by these two.
    for column in ("params", "throughput"):
        _check(run, column, getattr(run, column), positive=True)
    _check(run, "top1", run.top1)
    value = run.value(name)
    _check(run, name, value)
    return value


def _check(run: Run, name: str, value: Any, *, positive: bool = False) -> None:
    if value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0 or (positive and value == 0):
        kind = "positive" if positive else "0 or more"
        raise ValueError(f"{run.label} of {run.source} has {name} {value!r}; accepted is {kind}")


def _cards(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    cards = catalog.cards()
    return {
        name: {
            "axis": card.axis,
            "title": card.paper.title if card.paper else "",
            "author": card.paper.first_author if card.paper else "",
            "venue": card.paper.venue if card.paper else "",
            "arxiv": card.paper.arxiv if card.paper else "",
            "code": card.authors_code,
            "licence": card.licence,
            "note": card.note,
        }
        for name, card in ((name, cards.get(name)) for name in sorted(names))
        if card is not None
    }
