import dataclasses
import random

import pytest

from efficient_vits.results import (
    correlation,
    dataset_correlation,
    device_correlation,
    load_rows,
    load_runs,
    metric_correlation,
    metric_correlations,
)

RUNS = load_rows()


def test_by_hand():
    assert correlation([1, 2, 3, 4], [2, 4, 6, 8]).value == pytest.approx(1)
    assert correlation([1, 2, 3, 4], [1, 4, 9, 16], method="spearman").value == pytest.approx(1)
    assert correlation([1, 2, 3, 4], [1, 4, 9, 16]).value == pytest.approx(0.98437, abs=1e-5)
    assert correlation([1, 2, 3, 4], [4, 3, 2, 1]).value == pytest.approx(-1)


@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_the_interval_covers_as_often_as_it_says(method):
    """Of 400 samples with a true correlation of 0.6, 95 % +- 3 standard errors of 1.1 %."""
    generator = random.Random(0)
    # Spearman's coefficient of a normal pair: 6 / pi * asin(r / 2).
    truth = {"pearson": 0.6, "spearman": 0.582}[method]
    hits = 0
    for _ in range(400):
        x = [generator.gauss(0, 1) for _ in range(40)]
        y = [0.6 * a + 0.8 * generator.gauss(0, 1) for a in x]
        low, high = correlation(x, y, method=method).interval
        hits += low <= truth <= high
    assert 0.917 <= hits / 400 <= 0.983


def test_of_metrics():
    """Section D.8: 0.8."""
    found = metric_correlation("training_time", "inference_time")
    assert round(found.value, 1) == 0.8
    assert found.count == 103
    low, high = found.interval
    assert low < found.value < high
    assert metric_correlation("training_time", "inference_time", load_runs()) == found
    pairs = metric_correlations(["accuracy", "params", "flops"], method="spearman")
    assert set(pairs) == {("accuracy", "params"), ("accuracy", "flops"), ("params", "flops")}
    assert pairs["params", "flops"] == metric_correlation("params", "flops", method="spearman")


@pytest.mark.parametrize(
    ("dataset", "paper", "count"), [("cars", 0.71, 46), ("flowers", 0.93, 44), ("places", 0.83, 44)]
)
def test_rank_correlations_of_data_sets(dataset, paper, count):
    """Table 3, and that they exceed Pearson's."""
    found = dataset_correlation(dataset, method="spearman")
    assert (round(found.value, 2), found.count) == (paper, count)
    assert found.value > dataset_correlation(dataset).value


def test_devices():
    """Runs on a device that is twice as slow, and one that reverses the order."""
    fast = [r for r in RUNS if r.img_size == 224 and r.pretrain_size == 224][:20]
    slow = [dataclasses.replace(r, device="slow", throughput=r.throughput / 2) for r in fast]
    odd = [dataclasses.replace(r, device="odd", throughput=-r.throughput) for r in fast]
    runs = [*fast, *slow, *odd]
    assert device_correlation("A100", "slow", runs).value == pytest.approx(1)
    assert device_correlation("A100", "odd", runs, method="spearman").value == pytest.approx(-1)
    assert device_correlation("A100", "slow", runs).count == len({r.label for r in fast})
    with pytest.raises(ValueError, match="no run on device class 'cpu'; accepted are A100, odd"):
        device_correlation("A100", "cpu", runs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: correlation([1, 2, 3, 4], [1, 2, 3, 4], method="kendall"), "pearson, spearman"),
        (lambda: correlation([1, 2, 3, 4], [1, 2, 3, 4], level=95), "between 0 and 1, got 95"),
        (lambda: correlation([1, 2, 3, 4], [1, 2, 3]), "got 4 and 3"),
        (lambda: correlation([1, 2, 3], [1, 2, 3]), "at least 4"),
        (lambda: correlation([1, 1, 1, 1], [1, 2, 3, 4]), "constant"),
        (lambda: metric_correlation("speed", "flops"), "no metric 'speed'"),
        (lambda: dataset_correlation("cifar"), "no data set 'cifar'; accepted are imagenet, cars"),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
