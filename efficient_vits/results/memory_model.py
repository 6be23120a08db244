"""Training memory from FLOPs: a straight line, as in section D.9 of the supplement.

    VRAM [GB] = 25.43 * GFLOPs + 25.50

The published run records give both numbers if G is 2^30 in memory and in FLOPs. The slope is the
same in any units that treat the two alike; the intercept in 10^9 bytes is larger by 7 %.
"""

import math
from dataclasses import dataclass
from typing import Any

from efficient_vits.results.correlations import correlation, scipy_stats
from efficient_vits.results.runs import as_rows


@dataclass(frozen=True)
class MemoryModel:
    """Least squares of training memory on FLOPs per image.

    Attributes:
        slope: Bytes per FLOP, which is GB per GFLOP.
        slope_interval: At `level`.
        intercept: Bytes.
        intercept_interval: At `level`, in bytes.
        correlation: Pearson's, of the two.
        count: Runs that it was fitted to.
        level: Of the intervals, under independent normal errors of one size.
        residual: Standard deviation of the errors in bytes.
        mean_flops: Mean of the FLOPs.
        flops_squares: Sum of squared differences of the FLOPs from their mean.
    """

    slope: float
    slope_interval: tuple[float, float]
    intercept: float
    intercept_interval: tuple[float, float]
    correlation: float
    count: int
    level: float
    residual: float
    mean_flops: float
    flops_squares: float

    def predict(self, flops: float) -> float:
        """Bytes of training memory at a global batch of 2048, summed over the processes.

        Args:
            flops: Per image, a multiply-add being one.

        Raises:
            ValueError: Not a positive number.
        """
        if not flops > 0:
            raise ValueError(f"flops is a positive number per image, got {flops!r}")
        return self.slope * flops + self.intercept

    def predict_interval(self, flops: float) -> tuple[float, float]:
        """Bytes between which a new run lies at `level`; the lower end can be negative.

        Raises:
            ImportError: scipy is not installed.
            ValueError: As `predict`.
        """
        centre = self.predict(flops)
        distance = (flops - self.mean_flops) ** 2 / self.flops_squares
        quantile = scipy_stats().t.ppf((1 + self.level) / 2, self.count - 2)
        step = float(quantile * self.residual * math.sqrt(1 + 1 / self.count + distance))
        return centre - step, centre + step


def fit_memory(runs: Any = None, *, level: float = 0.95) -> MemoryModel:
    """Fits training memory to FLOPs.

    Args:
        runs: A frame of `load_runs`, or runs; by default the benchmark's with published run
            records, which give the paper's line.
        level: Of the intervals.

    Raises:
        ImportError: scipy is not installed.
        ValueError: Fewer than 4 runs with both figures, all with the same FLOPs, or a level not
            between 0 and 1.
    """
    if runs is None:
        runs = [run for run in as_rows() if run.source == "published run records"]
    known = [
        (float(run.flops), float(run.training_memory))
        for run in as_rows(runs)
        if run.training_memory is not None
    ]
    x, y = [a for a, _ in known], [b for _, b in known]
    found = correlation(x, y, level=level)
    stats = scipy_stats()
    line = stats.linregress(x, y)
    quantile = float(stats.t.ppf((1 + level) / 2, len(x) - 2))
    mean = sum(x) / len(x)
    errors = [b - line.slope * a - line.intercept for a, b in known]

    def around(centre: float, error: float) -> tuple[float, float]:
        return float(centre - quantile * error), float(centre + quantile * error)

    return MemoryModel(
        slope=float(line.slope),
        slope_interval=around(line.slope, line.stderr),
        intercept=float(line.intercept),
        intercept_interval=around(line.intercept, line.intercept_stderr),
        correlation=found.value,
        count=len(x),
        level=level,
        residual=math.sqrt(sum(e * e for e in errors) / (len(x) - 2)),
        mean_flops=mean,
        flops_squares=sum((a - mean) ** 2 for a in x),
    )
