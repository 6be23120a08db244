"""Correlations between metrics, data sets and devices. They need scipy."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from efficient_vits.results.metrics import metric
from efficient_vits.results.runs import Run, as_rows
from efficient_vits.results.tables import table3

METHODS = ("pearson", "spearman")
DATASETS = ("imagenet", "cars", "flowers", "places")


@dataclass(frozen=True)
class Correlation:
    """A correlation coefficient.

    Attributes:
        value: Between -1 and 1.
        interval: At the level asked for, from Fisher's transformation; for Spearman's coefficient
            with the variance of Bonett and Wright (2000). Runs of one model are not independent,
            so it is too narrow where there are several.
        count: Pairs of values.
        method: ``"pearson"`` or ``"spearman"``.
    """

    value: float
    interval: tuple[float, float]
    count: int
    method: str


def correlation(
    x: Sequence[float], y: Sequence[float], *, method: str = "pearson", level: float = 0.95
) -> Correlation:
    """The correlation of two sequences.

    Args:
        x: N numbers.
        y: N numbers.
        method: ``"pearson"`` or ``"spearman"``.
        level: Of the interval.

    Raises:
        ImportError: scipy is not installed.
        ValueError: The lengths differ or are below 4, one sequence is constant, or an unknown
            method or level.
    """
    if method not in METHODS:
        raise ValueError(f"method is one of {', '.join(METHODS)}, got {method!r}")
    if not 0 < level < 1:
        raise ValueError(f"level is between 0 and 1, got {level!r}")
    if len(x) != len(y) or len(x) < 4:
        raise ValueError(
            f"a correlation takes two sequences of one length, at least 4; got {len(x)} and "
            f"{len(y)}"
        )
    if min(x) == max(x) or min(y) == max(y):
        raise ValueError("a correlation with a constant sequence is not defined")
    stats = scipy_stats()
    compute = stats.pearsonr if method == "pearson" else stats.spearmanr
    value = float(compute(x, y).statistic)
    variance = 1.0 if method == "pearson" else 1 + value**2 / 2
    step = stats.norm.ppf((1 + level) / 2) * math.sqrt(variance / (len(x) - 3))
    centre = math.atanh(max(-1 + 1e-15, min(1 - 1e-15, value)))
    interval = (math.tanh(centre - step), math.tanh(centre + step))
    return Correlation(value, interval, len(x), method)


def metric_correlation(
    first: str, second: str, runs: Any = None, *, method: str = "pearson", level: float = 0.95
) -> Correlation:
    """The correlation of two metrics over runs that have both.

    Args:
        first: A metric, such as ``"training_time"``.
        second: Another one, such as ``"inference_time"``.
        runs: A frame of `load_runs`, or runs; by default the benchmark's.
        method: As `correlation`.
        level: As `correlation`.

    Raises:
        ImportError, ValueError: As `correlation`; or an unknown metric.
    """
    metric(first), metric(second)
    pairs = [(run.value(first), run.value(second)) for run in as_rows(runs)]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    return correlation([a for a, _ in known], [b for _, b in known], method=method, level=level)


def metric_correlations(
    metrics: Iterable[str], runs: Any = None, *, method: str = "pearson"
) -> dict[tuple[str, str], Correlation]:
    """Correlations of all pairs of metrics, as `metric_correlation`.

    Raises:
        ImportError, ValueError: As `metric_correlation`.
    """
    names, rows = list(metrics), as_rows(runs)
    return {
        (a, b): metric_correlation(a, b, rows, method=method)
        for i, a in enumerate(names)
        for b in names[i + 1 :]
    }


def dataset_correlation(
    dataset: str, other: str = "imagenet", *, method: str = "pearson", level: float = 0.95
) -> Correlation:
    """The correlation of accuracies on two data sets over the models of Table 3 that have both.

    Args:
        dataset: ``"imagenet"``, ``"cars"``, ``"flowers"`` or ``"places"``.
        other: Likewise.
        method: As `correlation`.
        level: As `correlation`.

    Raises:
        ImportError, ValueError: As `correlation`; or an unknown data set.
    """
    for name in (dataset, other):
        if name not in DATASETS:
            raise ValueError(f"no data set {name!r}; accepted are {', '.join(DATASETS)}")
    pairs = [(getattr(row, dataset), getattr(row, other)) for row in table3()]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    return correlation([a for a, _ in known], [b for _, b in known], method=method, level=level)


def device_correlation(
    first: str,
    second: str,
    runs: Any,
    *,
    metric_name: str = "throughput",
    method: str = "pearson",
    level: float = 0.95,
) -> Correlation:
    """The correlation of one metric on two classes of device, over models measured on both.

    A model at an image size that was measured several times on a device counts with its mean.

    Args:
        first: A device class, such as ``"A100"``.
        second: Another one.
        runs: A frame of `load_runs` or runs, with the user's own. The benchmark's are all on A100;
            its other devices are in `table4` only.
        metric_name: A metric.
        method: As `correlation`.
        level: As `correlation`.

    Raises:
        ImportError, ValueError: As `correlation`; or no run is of such a class.
    """
    rows = as_rows(runs)
    means = []
    for device in (first, second):
        of_device = [run for run in rows if run.device_class == device]
        if not of_device:
            classes = ", ".join(sorted({run.device_class for run in rows}))
            raise ValueError(f"no run on device class {device!r}; accepted are {classes}")
        means.append(_means(of_device, metric_name))
    common = [key for key in means[0] if key in means[1]]
    return correlation(
        [means[0][key] for key in common],
        [means[1][key] for key in common],
        method=method,
        level=level,
    )


def _means(runs: Iterable[Run], name: str) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for run in runs:
        value = run.value(name)
        if value is not None:
            values.setdefault(run.label, []).append(value)
    return {label: sum(v) / len(v) for label, v in values.items()}


def scipy_stats() -> Any:
    """`scipy.stats`, or an error that says how to get it."""
    try:
        from scipy import stats
    except ImportError as error:
        raise ImportError(
            "this analysis needs scipy: pip install 'efficient-vits[results]'"
        ) from error
    return stats
