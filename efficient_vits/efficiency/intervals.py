"""How far a median can be trusted: in the run that it comes from, and for a repeat of that run.

The confidence interval is the percentile bootstrap of a quantile. It speaks of the run's own
conditions: more batches in the same stretch of time would give a median in there.

The prediction interval says where the median of another run will be. Batches don't know that, they
share the machine's state; blocks of time do. With the logarithms of the medians of K blocks, their
standard deviation s and their autocorrelation r, corrected for the bias of short series,

    K' = K (1 - r) / (1 + r),    log median +- t(K' - 1) s sqrt(1 + 1 / K').

That takes a repeat to differ from this run as much as one block from another, not as little as the
means of K blocks: slow changes of clocks, temperature and neighbours make the blocks of one run
alike and its repeat different. Where the noise has no memory the interval is therefore too wide.
Changes that are slower than the run can't be seen in it; a longer run sees more of them.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
BLOCKS = 10
_DRAWS = 4000
_MOST_CORRELATED = 0.95

# Two-sided 95 % quantiles of Student's t for 2 to 9 degrees of freedom. Fewer than 2 would follow
# from strongly correlated blocks, with intervals beyond any use.
_STUDENT = {2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}

Interval = tuple[float, float]


def confidence_interval(
    values: Sequence[float], *, quantile: float = 0.5, seed: int = 0
) -> Interval:
    """95 % bootstrap interval of a quantile of `values`.

    Resamples are not drawn one by one. A resample's order statistics are those of uniform numbers,
    which have a beta distribution, taken through the sorted values: the same in law, at a cost that
    doesn't grow with the number of values.

    Args:
        values: one or more, from one run.
        quantile: which one, from 0 to 1, interpolated linearly between the values.
        seed: of the draws; the same gives the same interval.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = len(ordered)
    generator = np.random.default_rng(seed)
    position = (n - 1) * quantile
    k = int(position)
    lower = generator.beta(k + 1, n - k, _DRAWS)
    estimates = _at(ordered, lower)
    if position > k:
        # The least of the n - k - 1 uniform numbers above `lower`.
        upper = lower + (1 - lower) * generator.beta(1, n - k - 1, _DRAWS)
        estimates = estimates + (position - k) * (_at(ordered, upper) - estimates)
    return _interval(np.quantile(estimates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))


def prediction_interval(values: Sequence[float]) -> Interval:
    """95 % interval for the median of another run, from values in the order of time.

    Args:
        values: three or more positive times, of one run.

    Raises:
        ValueError: there are fewer than three, or one is not positive.
    """
    times = np.asarray(values, dtype=np.float64)
    if len(times) < 3 or not (times > 0).all():
        least = f", the least {times.min()}" if len(times) else ""
        raise ValueError(
            f"a prediction takes three positive times or more, got {len(times)}{least}"
        )
    levels = np.log(block_medians(times))
    k = len(levels)
    r = _autocorrelation(levels)
    independent = max(k * (1 - r) / (1 + r), 1.0)
    student = _STUDENT[max(int(independent) - 1, 2)]
    half = student * levels.std(ddof=1) * np.sqrt(1 + 1 / independent)
    return _interval(np.median(times) * np.exp([-half, half]))


def block_medians(values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """Medians of up to 10 stretches of equally many values in the order of time."""
    blocks = np.array_split(np.asarray(values, dtype=np.float64), min(BLOCKS, len(values)))
    return np.array([np.median(block) for block in blocks])


def _autocorrelation(series: NDArray[np.float64]) -> float:
    """Between successive values, from 0 to 0.95."""
    deviations = series - series.mean()
    squares = float((deviations**2).sum())
    if not squares:
        return 0.0
    r = float((deviations[1:] * deviations[:-1]).sum()) / squares
    # Kendall (1954): the estimate is too small by (1 + 3 r) / K.
    return min(max(r + (1 + 3 * r) / len(series), 0.0), _MOST_CORRELATED)


def _at(ordered: NDArray[np.float64], uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values at uniform numbers: the inverse of the empirical distribution."""
    ranks = np.ceil(uniform * len(ordered)).astype(np.int64) - 1
    return ordered[np.clip(ranks, 0, len(ordered) - 1)]


def _interval(pair: NDArray[np.float64]) -> Interval:
    return float(pair[0]), float(pair[1])
