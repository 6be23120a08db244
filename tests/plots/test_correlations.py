"""One metric against another: the points, the coefficient, the line."""

import pytest

from efficient_vits import plots, results
from efficient_vits.plots import _data


@pytest.mark.parametrize(
    ("name", "metric", "stated"),
    [
        ("training_time_correlation", "training_time", "0.8"),
        ("training_memory_correlation", "training_memory", "0.75"),
    ],
)
def test_the_coefficient_is_that_of_the_points(
    drawn, points_of, title_of, words, name, metric, stated
):
    figure = drawn(name)
    found = results.metric_correlation(metric, "inference_time")
    assert f"r = {found.value:.2f}, {found.count} runs" in title_of(figure)
    places = _data.points(results.load_rows(), "inference_time", metric)
    assert len(places) == found.count
    assert points_of(figure.axes[0]) == {(round(x, 6), round(y, 6)) for _, x, y in places}
    assert f"The paper has r = {stated}." in words(figure)
    low, high = found.interval
    assert f"{low:.2f} to {high:.2f}" in words(figure)


def test_the_memory_model(drawn, line, title_of, words):
    figure = drawn("memory_model")
    model = results.fit_memory()
    (axes,) = figure.axes
    corners = line(axes, "fit")
    for x, y in (corners[0], corners[-1]):
        assert y * 2**30 == pytest.approx(model.predict(x * 1e9))
    assert "25.43 GB/GFLOP + 25.50 GiB, r = 0.86" in title_of(figure)
    assert f"{model.slope:.2f} GB/GFLOP + {model.intercept / 2**30:.2f} GiB" in title_of(figure)
    band = axes.collections[0].get_paths()[0].vertices
    low, high = model.predict_interval(corners[-1][0] * 1e9)
    ends = [y for x, y in band if x == pytest.approx(corners[-1][0])]
    assert min(ends) == pytest.approx(low / 2**30)
    assert max(ends) == pytest.approx(high / 2**30)
    assert f"Line: {model.count} runs" in words(figure)


def test_own_runs_without_training_are_refused(own):
    with pytest.raises(ValueError, match="no run has all of inference_time, training_time"):
        plots.training_time_correlation(own)
    with pytest.raises(ValueError, match="no run has all of flops, training_memory"):
        plots.memory_model(own)


def test_other_devices_are_left_out_and_named(with_own, words):
    figure = plots.training_time_correlation(with_own)
    assert "Not comparable, so not drawn: 10 runs on Some Processor." in words(figure)
