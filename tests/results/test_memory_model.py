import dataclasses

import pytest

from efficient_vits.results import fit_memory, load_rows

RUNS = load_rows()


def test_the_papers_line():
    """Section D.9: VRAM [GB] = 25.43 GFLOPs + 25.50, both with G = 2^30."""
    model = fit_memory()
    assert round(model.slope, 2) == 25.43
    assert round(model.intercept / 2**30, 2) == 25.50
    assert model.count == 89
    assert model.slope_interval[0] < 25.43 < model.slope_interval[1]
    assert model.intercept_interval[0] < 25.50 * 2**30 < model.intercept_interval[1]
    binary = model.predict(4.66 * 2**30) / 2**30
    assert binary == pytest.approx(25.43 * 4.66 + 25.50, abs=0.05)


def test_other_runs_give_another_line():
    """All 105 runs do not: the paper's line is that of the run records."""
    model = fit_memory(RUNS)
    assert round(model.slope, 2) != 25.43
    assert round(model.intercept / 2**30, 2) != 25.50


def line(noise):
    return [
        dataclasses.replace(RUNS[0], flops=x, training_memory=3 * x + 7 * 10**9 + noise * (-1) ** i)
        for i, x in enumerate(range(10**9, 9 * 10**9, 10**9))
    ]


def test_an_exact_line_is_found():
    model = fit_memory(line(noise=0))
    assert model.slope == pytest.approx(3)
    assert model.intercept == pytest.approx(7e9)
    assert model.residual == pytest.approx(0, abs=1e3)
    assert model.predict(2e9) == pytest.approx(13e9)


def test_intervals_widen_with_the_level_and_away_from_the_data():
    narrow, wide = fit_memory(line(10**8), level=0.5), fit_memory(line(10**8), level=0.99)
    assert narrow.slope == wide.slope

    def width(interval):
        return interval[1] - interval[0]

    assert width(narrow.slope_interval) < width(wide.slope_interval)
    near, far = narrow.predict_interval(4.5e9), narrow.predict_interval(40e9)
    assert near[0] < narrow.predict(4.5e9) < near[1]
    assert width(near) * 1.5 < width(far)


def test_most_runs_lie_in_the_interval_of_a_new_one():
    model = fit_memory()
    runs = [r for r in RUNS if r.source == "published run records" and r.training_memory]
    inside = 0
    for run in runs:
        low, high = model.predict_interval(run.flops)
        inside += low <= run.training_memory <= high
    assert 0.9 <= inside / len(runs) < 1


def test_mistakes():
    with pytest.raises(ValueError, match="positive number per image, got 0"):
        fit_memory().predict(0)
    with pytest.raises(ValueError, match="at least 4"):
        fit_memory(RUNS[:2])
    with pytest.raises(ValueError, match="constant"):
        fit_memory([RUNS[0]] * 5)
    with pytest.raises(ValueError, match="level"):
        fit_memory(level=2)
