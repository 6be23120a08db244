"""Fronts beside each other: of data sets, devices and years."""

import pytest

from efficient_vits import plots, results
from efficient_vits.plots._style import THEMES
from efficient_vits.plots.compared import DATASETS, STYLES, year_colour


def test_data_sets(drawn, points_of, line, title_of):
    figure = drawn("dataset_fronts")
    best = {run.name: run for run in results.accuracy_per_parameter()}
    for axes, name in zip(figure.axes, DATASETS, strict=True):
        places = {
            (round(best[row.name].throughput, 6), round(accuracy, 6))
            for row in results.table3()
            if row.name in best and (accuracy := getattr(row, name)) is not None
        }
        assert points_of(axes) == places
        members = {
            (x, y)
            for x, y in places
            if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in places)
        }
        corners = {(round(x, 6), round(y, 6)) for x, y in line(axes, "front")}
        assert members <= corners
        assert axes.get_title("left").startswith(f"{DATASETS[name]}: {len(members)} on the front")
    rank = results.dataset_correlation("flowers", method="spearman").value
    assert figure.axes[2].get_title("left").endswith(f"rank r = {rank:.2f}")
    assert f"{len(best)} models" in title_of(figure)


def test_devices_without_own_runs(drawn, line):
    left, right = drawn("device_fronts").axes
    front = results.front(objectives=("accuracy", "throughput"))
    assert {(r.throughput, r.top1) for r in front.members} <= set(line(left, "front"))
    heights = [bar.get_height() for bar in right.patches]
    assert heights == [e.pearson for e in results.table4()] + [e.spearman for e in results.table4()]


def test_devices_with_own_runs(with_own, own, points_of, line, title_of):
    figure = plots.device_fronts(with_own)
    labels = {run.label for run in own}
    assert title_of(figure) == f"{len(labels)} models on A100 and Some Processor"
    for axes, device in zip(figure.axes, ("A100", "Some Processor"), strict=True):
        runs = [r for r in with_own if r.device_class == device and r.label in labels]
        assert points_of(axes) == {(round(r.throughput, 6), round(r.top1, 6)) for r in runs}
        front = results.front(runs, ("accuracy", "throughput"))
        assert {(r.throughput, r.top1) for r in front.members} <= set(line(axes, "front"))
        assert f"{len(front.members)} of {len(runs)}" in axes.get_title("left")


def test_three_models_are_too_few_for_a_comparison(own, words):
    figure = plots.device_fronts(results.load_rows(own[:3]))
    assert "published summary" in words(figure)


def test_years(drawn, title_of):
    figure = drawn("fronts_over_time")
    (axes,) = figure.axes
    years = results.fronts_by_year()
    lines = [one for one in axes.lines if one.get_gid() == "front"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["2015: 1 run", "2020: 5 runs", "2021: 14 runs", "2022 to 2024: 16 runs"]
    shown = {2015: lines[0], 2020: lines[1], 2021: lines[2], 2022: lines[3], 2024: lines[3]}
    for year in years:
        if year.year in shown:
            corners = {(float(x), float(y)) for x, y in shown[year.year].get_xydata()}
            assert {(r.throughput, r.top1) for r in year.front.members} <= corners
    fresh = {label for year in years for label in year.added}
    assert fresh == {text.get_text() for text in axes.texts}
    assert title_of(figure) == "The front from 2015 to 2024: 1 to 16 runs"


@pytest.mark.parametrize("theme", THEMES.values(), ids=THEMES.keys())
def test_years_have_colours_and_lines_of_their_own(theme):
    colours = [tuple(year_colour(i, 4, theme)) for i in range(4)]
    assert len(set(colours)) == 4
    assert len(set(map(str, STYLES))) == 4
