"""Throughput on two devices."""

import numpy as np
import pytest

from efficient_vits import plots, results
from efficient_vits.plots.hardware import measured_on_both


def test_without_own_runs_it_is_table_4(drawn, words):
    figure = drawn("device_throughput")
    entries = results.table4()
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == [e.pearson for e in entries] + [e.spearman for e in entries]
    assert "i9-12900H" in words(figure)
    assert measured_on_both(results.load_rows()) is None


def test_own_runs_have_the_line_of_best_fit(with_own, own, line, points_of, title_of):
    figure = plots.device_throughput(with_own)
    (axes,) = figure.axes
    places = points_of(axes)
    assert len(places) == len({run.label for run in own}) == 6
    x, y = np.array(sorted(places)).T
    slope, intercept = np.polyfit(x, y, 1)
    for a, b in line(axes, "fit"):
        assert b == pytest.approx(slope * a + intercept, rel=1e-5)
    r = np.corrcoef(x, y)[0, 1]
    assert f"6 models on A100 and Some Processor: r = {r:.2f}, rank r = " in title_of(figure)
    mean = np.mean([run.throughput for run in own if run.name == "vit_ti16"])
    assert any(b == pytest.approx(mean) for b in y)
