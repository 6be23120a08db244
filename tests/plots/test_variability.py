"""Boxes of repeats, and the published ranges without them."""

import numpy as np
import pytest

from efficient_vits import plots, results


def test_without_own_runs_it_is_the_published_range(drawn, line, words):
    figure = drawn("metric_variability")
    first, second = figure.axes
    assert line(first, "range") == [(11878.0, 0.0), (11896.0, 0.0)]
    assert line(second, "range") == [(0.2504, 0.0), (0.2670, 0.0)]
    for text in ("0.15 % of the mean", "6.33 % of the mean", "11878", "11896", "0.2504", "0.2670"):
        assert text in words(figure)
    assert "published summary" in words(figure)


def test_the_benchmark_s_own_runs_are_no_repeats(words):
    assert "published summary" in words(plots.metric_variability(results.load_rows()))


def test_own_repeats_are_boxes(own, title_of, words):
    figure = plots.metric_variability(own)
    (axes,) = figure.axes
    values = np.array([run.throughput for run in own if run.name == "vit_ti16"])
    differences = 100 * (values / np.median(values) - 1)
    box = axes.patches[0].get_path().vertices[:, 0]
    assert box.min() == pytest.approx(np.percentile(differences, 25))
    assert box.max() == pytest.approx(np.percentile(differences, 75))
    assert title_of(figure) == "5 repeats of vit_ti16 on Some Processor"
    assert "published" not in words(figure)
    assert len(axes.patches) == 1
