"""What the page is given: runs, units, cards, sizes."""

import dataclasses
import json
import math
import re

import pytest

from efficient_vits.plots.explore._marks import UNCLASSIFIED, marks_of
from efficient_vits.plots.explore._page import embedded
from efficient_vits.plots.explore._rows import page_data, size_of
from efficient_vits.results import METRICS, load_rows


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *(("vit_ti16", "Ti"), ("swin_ti_w7", "Ti"), ("coat_tiny", "Ti"), ("afno_s16", "S")),
        *(("tokenlearner_s16_8_50", "S"), ("focalnet_small_srf", "S"), ("cait_s24", "S")),
        *(("efficientvit_b2", "B"), ("vit_base_patch16_224.augreg", "B"), ("hydra_l16", "L")),
        *(("vit_large_patch14", "L"), ("cvt_13", "other"), ("resnet50", "other"), ("", "other")),
    ],
)
def test_size_by_name(name, size):
    assert size_of(name) == size


def test_all_runs_and_metrics_are_there():
    data = json.loads(embedded(page_data(load_rows())))
    assert len(data["runs"]) == 105
    assert [metric["name"] for metric in data["metrics"]] == list(METRICS)
    directions = {metric["name"]: metric["direction"] for metric in data["metrics"]}
    assert directions == {name: metric.direction for name, metric in METRICS.items()}
    units = {metric["name"]: (metric["label"], metric["unit"]) for metric in data["metrics"]}
    assert units["params"] == ("parameters", "M")
    assert units["memory"] == ("inference memory, batch 1", "GiB")
    assert units["accuracy"] == ("top-1 accuracy", "%")
    for row, run in zip(data["runs"], load_rows(), strict=True):
        # Nothing is rounded on the way, so that ties stay ties.
        assert row["values"] == [run.value(name) for name in METRICS]
        assert not row["own"]
    assert data["cards"]["hydra_s16"]["arxiv"] == "2209.07484"
    assert all(card["licence"] for card in data["cards"].values() if card["code"])
    classes = [mark["name"] for mark in data["classes"]]
    assert len(classes) == 13
    assert UNCLASSIFIED not in classes


def test_own_runs_are_those_of_another_source():
    own = dataclasses.replace(load_rows()[0], source="mine", taxonomy_class="")
    data = page_data([*load_rows(), own])
    assert [run["own"] for run in data["runs"]] == [False] * 105 + [True]
    assert data["classes"][-1]["name"] == UNCLASSIFIED
    assert page_data([own])["runs"][0]["own"]


def test_classes_of_ones_own_follow_the_benchmarks():
    names = ["a", "Baseline", "b", UNCLASSIFIED]
    assert [mark.name for mark in marks_of(names)] == ["Baseline", "a", "b", UNCLASSIFIED]


def test_nothing_in_the_data_ends_its_element():
    wild = {"</script><!--": "a & b", "line": "\u2028\u2029", "half": "\ud800"}
    text = embedded(wild)
    assert not re.search("[<>&\u2028\ud800]", text)
    assert json.loads(text) == wild


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"throughput": 0}, "has throughput 0; accepted is positive"),
        ({"throughput": math.nan}, "has throughput nan"),
        ({"params": 0}, "has params 0; accepted is positive"),
        ({"top1": -1.0}, r"has top1 -1.0; accepted is 0 or more"),
        ({"top1": "80"}, "has top1 '80'"),
        ({"top5": math.inf}, "has top5 inf"),
        ({"memory": {1: True}}, "has memory True"),
    ],
)
def test_a_figure_that_is_none_is_refused(changes, complaint):
    run = dataclasses.replace(load_rows()[0], **changes)
    with pytest.raises(ValueError, match=f"^deit_s16 of published run records {complaint}"):
        page_data([run])


def test_no_run_is_refused():
    with pytest.raises(ValueError, match="there is no run to show"):
        page_data([])
