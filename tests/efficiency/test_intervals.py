"""Both intervals are held against simulated runs whose truth is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from efficient_vits.efficiency.intervals import (
    block_medians,
    confidence_interval,
    prediction_interval,
)

RUNS = 400
LENGTH = 100
# The standard error of a coverage of 95 % over 400 runs is 1.1 %: three of them.
TOLERANCE = 0.033

Array = NDArray[np.float64]


def walk(rng: np.random.Generator, length: int, step: float) -> Array:
    return np.cumsum(step * rng.standard_normal((RUNS, length)), axis=1)


def autoregressive(rng: np.random.Generator, length: int, memory: float, size: float) -> Array:
    """A level that returns to zero within about `memory` batches, of standard deviation `size`."""
    keep = np.exp(-1 / memory)
    level = size * rng.standard_normal(RUNS)
    path = np.empty((RUNS, length))
    for i in range(length):
        path[:, i] = level
        level = keep * level + size * np.sqrt(1 - keep**2) * rng.standard_normal(RUNS)
    return path


def batches(rng: np.random.Generator, drift: Array) -> Array:
    """Times around 1 s with 2 % of white noise, and 3 % of spikes that take half as long again."""
    noise = drift + 0.02 * rng.standard_normal(drift.shape)
    spikes = rng.random(drift.shape) < 0.03
    return np.exp(noise + spikes * rng.exponential(0.5, drift.shape))


DRIFTS = {
    "none": lambda rng, n: np.zeros((RUNS, n)),
    "short memory": lambda rng, n: autoregressive(rng, n, 0.1 * LENGTH, 0.03),
    "long memory": lambda rng, n: autoregressive(rng, n, LENGTH, 0.03),
    "random walk": lambda rng, n: walk(rng, n, 0.003),
}


@pytest.mark.parametrize("drift", DRIFTS)
@pytest.mark.parametrize("quantile", [0.5, 0.9])
def test_the_confidence_interval_covers_the_quantile_of_its_run(
    drift: str, quantile: float
) -> None:
    rng = np.random.default_rng(1)
    levels = DRIFTS[drift](rng, LENGTH)
    times = batches(rng, levels)
    # The truth of a run: 50 times as many batches on the same course of its level.
    truth = np.array(
        [np.quantile(batches(rng, np.tile(level, (50, 1))), quantile) for level in levels]
    )
    found = np.array([confidence_interval(run, quantile=quantile) for run in times])
    coverage = np.mean((found[:, 0] <= truth) & (truth <= found[:, 1]))
    # Drift is sampled evenly and not by chance, so that intervals of drifting runs are too wide.
    assert coverage >= 0.95 - TOLERANCE
    assert coverage <= (0.95 + TOLERANCE if drift == "none" else 1)


@pytest.mark.parametrize(
    ("drift", "least"),
    [
        ("none", 0.95),
        ("short memory", 0.95),
        # A course as slow as the run looks like its level, and a walk leaves its past for good: one
        # run can't know how far. Without blocks both would be covered in 25 to 50 % of the cases.
        ("long memory", 0.85),
        ("random walk", 0.85),
    ],
)
def test_the_prediction_interval_covers_the_median_of_the_next_run(
    drift: str, least: float
) -> None:
    rng = np.random.default_rng(2)
    times = batches(rng, DRIFTS[drift](rng, 2 * LENGTH))
    first, second = times[:, :LENGTH], np.median(times[:, LENGTH:], axis=1)
    found = np.array([prediction_interval(run) for run in first])
    coverage = np.mean((found[:, 0] <= second) & (second <= found[:, 1]))
    assert coverage >= least - TOLERANCE


def test_blocks_that_differ_widen_the_prediction_but_not_the_confidence() -> None:
    rng = np.random.default_rng(3)
    times = np.exp(0.02 * rng.standard_normal(LENGTH))
    steps = times * np.repeat([1.0, 1.1], LENGTH // 2)

    def width(interval: tuple[float, float]) -> float:
        return interval[1] / interval[0] - 1

    # The same values in another order are the same to the bootstrap, and as good as no drift.
    shuffled = rng.permutation(steps)
    assert confidence_interval(steps) == confidence_interval(shuffled)
    assert width(prediction_interval(steps)) > 3 * width(prediction_interval(shuffled))
    assert width(prediction_interval(times)) < 0.1


@pytest.mark.parametrize(("n", "quantile"), [(5, 0.5), (6, 0.5), (37, 0.9), (40, 0.99), (9, 1.0)])
def test_the_shortcut_is_the_bootstrap(n: int, quantile: float) -> None:
    rng = np.random.default_rng(n)
    values = rng.exponential(size=n)
    resampled = np.quantile(rng.choice(values, (20_000, n)), quantile, axis=1)
    for q, end in zip((0.025, 0.975), confidence_interval(values, quantile=quantile), strict=True):
        # Both are quantiles of random draws. The share of resamples below the end must agree with
        # q, to four standard errors of 4000 draws; ties of a discrete law lie on both sides of it.
        assert np.mean(resampled < end) - 0.01 <= q <= np.mean(resampled <= end) + 0.01


def test_the_same_seed_gives_the_same_interval() -> None:
    values = [1.0, 4.0, 2.0, 8.0, 5.0, 7.0]
    assert confidence_interval(values) == confidence_interval(values)
    assert confidence_interval([3.0]) == (3.0, 3.0)


@given(st.lists(st.floats(1e-6, 1e3), min_size=3, max_size=40))
def test_intervals_contain_the_median_and_are_positive(values: list[float]) -> None:
    # The product of a median and one may be off by a rounding.
    median = float(np.median(values)) * np.array([1 - 1e-12, 1 + 1e-12])
    for low, high in (confidence_interval(values), prediction_interval(values)):
        assert 0 < low <= median[1]
        assert median[0] <= high


def test_blocks_are_stretches_of_time() -> None:
    assert list(block_medians(list(range(1, 101)))) == [5.5 + 10 * i for i in range(10)]
    assert list(block_medians([3.0, 1.0, 2.0])) == [3.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("values", "got"), [([], "0"), ([1, 2], "2, the least 1"), ([1, 2, 0], "3, the least 0")]
)
def test_a_prediction_takes_three_positive_times(values: list[float], got: str) -> None:
    with pytest.raises(ValueError, match=f"three positive times or more, got {got}"):
        prediction_interval(values)
