"""Bars are as long as the numbers, and words say the numbers."""

import itertools
import statistics

import pytest

from efficient_vits import plots, results
from efficient_vits.plots.bars import START, larger_images


def test_accuracy_by_class(drawn, title_of):
    figure = drawn("class_accuracy")
    (axes,) = figure.axes
    best = {run.name: run.top1 for run in results.accuracy_per_parameter()}
    names = [label.get_text() for label in axes.get_yticklabels()]
    larger, base = axes.containers
    assert sorted(names) == sorted(best)
    for name, bar, behind in zip(names, base, larger, strict=True):
        assert START + bar.get_width() == pytest.approx(best[name])
        end = max(best[name], larger_images(results.load_rows()).get(name, 0))
        assert START + behind.get_width() == pytest.approx(end)
    gaining = sum(b.get_width() > a.get_width() for a, b in zip(base, larger, strict=True))
    assert title_of(figure) == f"Accuracy of {len(best)} models; larger images add to {gaining}"
    assert gaining > 10
    of = {run.name: run.taxonomy_class for run in results.load_rows()}
    groups = [name for name, _ in itertools.groupby(of[name] for name in names)]
    assert len(groups) == len(set(groups))


def test_accuracy_per_parameter(drawn, title_of):
    figure = drawn("accuracy_per_parameter")
    left, right = figure.axes
    ordered = results.accuracy_per_parameter()
    assert [bar.get_height() for bar in left.patches] == [r.accuracy_per_parameter for r in ordered]
    assert list(right.lines[0].get_ydata()) == [run.top1 for run in ordered]
    assert [t.get_text() for t in left.get_xticklabels()] == [run.name for run in ordered]
    best = max(ordered, key=lambda run: run.accuracy_per_parameter)
    assert f"{best.name} has {best.accuracy_per_parameter:.1f} %" in title_of(figure)


def differences(axes):
    return [float(c.get_offsets()[0][1]) for c in axes.collections if c.get_gid() == "difference"]


def test_pretraining_without_speedups(drawn, title_of, words, line):
    figure = drawn("pretraining_resolution")
    (axes,) = figure.axes
    found = results.pretraining_sizes()
    assert differences(axes) == pytest.approx([entry.difference for entry in found])
    mean = statistics.mean(entry.difference for entry in found)
    assert line(axes, "mean")[0][1] == pytest.approx(mean)
    assert f"{mean:+.2f} points on average of {len(found)} models" in title_of(figure)
    assert "published summary: 1.39 times faster" in words(figure)
    assert "-0.16 points" in words(figure)


def test_pretraining_with_speedups(words):
    figure = plots.pretraining_resolution(speedups={"vit_s16": 1.4, "cvt_13": 1.2, "other": 2.0})
    (axes,) = figure.axes
    places = {
        tuple(map(float, c.get_offsets()[0]))
        for c in axes.collections
        if c.get_gid() == "difference"
    }
    found = {entry.name: entry.difference for entry in results.pretraining_sizes()}
    assert places == {(1.4, found["vit_s16"]), (1.2, found["cvt_13"])}
    assert "published summary" not in words(figure)
    assert {"vit_s16", "cvt_13"} <= {text.get_text() for text in axes.texts}


@pytest.mark.parametrize("speedups", [{}, {"other": 1.0}, {"vit_s16": 0.0}])
def test_speedups_that_are_none_are_refused(speedups):
    with pytest.raises(ValueError, match="positive ratios by model, of at least one of cvt_13"):
        plots.pretraining_resolution(speedups=speedups)


def test_runs_of_one_size_are_refused(own):
    with pytest.raises(ValueError, match="both 192 and 224"):
        plots.pretraining_resolution([run for run in own if run.name == "hydra_s16"])
