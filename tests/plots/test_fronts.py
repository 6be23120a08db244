"""Fronts: the points are the data's, the line is the front's, the words are the numbers'."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficient_vits import plots, results
from efficient_vits.plots import _data
from efficient_vits.plots._scatter import staircase

COSTS = {
    "throughput_front": "throughput",
    "memory_front": "memory",
    "parameter_front": "params",
    "training_time_front": "training_time",
    "training_memory_front": "training_memory",
}


@pytest.mark.parametrize(("name", "cost"), COSTS.items())
def test_points_and_line_are_those_of_the_data(drawn, points_of, line, title_of, name, cost):
    (axes,) = drawn(name).axes
    front = results.front(objectives=("accuracy", cost))
    places = {
        (round(x, 6), round(y, 6))
        for _, x, y in _data.points([*front.members, *front.dominated], cost, "accuracy")
    }
    assert points_of(axes) == places
    corners = line(axes, "front")
    members = [(x, y) for _, x, y in _data.points(front.members, cost, "accuracy")]
    assert set(members) <= set(corners)
    assert len(front.members) > 5
    # No run lies beyond the line: a member is as good as it in both.
    sign = 1 if results.metric(cost).direction == "max" else -1
    known = {(sign * round(x, 6), round(y, 6)) for x, y in members}
    assert all(any(a >= sign * x and b >= y for a, b in known) for x, y in places)
    labels = {text.get_text() for text in axes.texts}
    assert set(front.names) <= labels
    assert f"{len(front.members)} of {len(places_of(front, cost))} runs" in title_of(drawn(name))


def places_of(front, cost):
    return _data.points([*front.members, *front.dominated], cost, "accuracy")


def test_the_note_says_what_is_split_and_what_is_missing(drawn, words):
    text = words(drawn("throughput_front"))
    front = results.front(objectives=("accuracy", "throughput"))
    ((on, off),) = front.split
    assert f"One network: {', '.join(on)} on the front, {', '.join(off)} not." in text
    assert "Without the figure: routing_s16@384." in text
    assert "Benchmark: 103 runs of arXiv 2308.09372." in text
    assert "Without the figure: 15 models." in words(drawn("memory_front"))


def test_larger_images_have_a_front_of_their_own_and_hollow_markers(drawn, line):
    figure = drawn("throughput_front")
    large = [run for run in results.load_rows() if run.img_size != 224]
    front = results.front(large, ("accuracy", "throughput"))
    corners = line(figure.axes[0], "front of larger images")
    members = {(x, y) for _, x, y in places_of(front, "throughput")[: len(front.members)]}
    assert members <= set(corners)
    hollow = {
        (round(float(x), 6), round(float(y), 6))
        for collection in figure.axes[0].collections
        if collection.get_facecolor()[0][:3].tolist() == [1, 1, 1]
        for x, y in collection.get_offsets()
    }
    assert hollow == {(round(x, 6), round(y, 6)) for _, x, y in places_of(front, "throughput")}
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "382, 384 px" in legend


def test_units():
    run = results.front(objectives=("accuracy", "training_time")).members[-1]
    assert _data.shown(run, "training_time") == pytest.approx(run.training_time / 3600)
    assert _data.shown(run, "memory_64") == run.memory[64] / 2**30
    assert _data.axis_label("memory_64") == "inference memory, batch 64 [GiB]"
    assert _data.axis_label("training_time").endswith("[GPU-hours]")


def test_own_measurements_have_a_panel_and_rings(with_own, own, words):
    figure = plots.throughput_front(with_own)
    first, second = figure.axes
    assert first.get_title("left").startswith("A100: 16 of 103")
    front = results.front(own, ("accuracy", "throughput"))
    assert second.get_title("left") == (
        f"Some Processor: {len(front.members)} of {len(own)} runs are on the front"
    )
    rings = [c for c in second.collections if c.get_gid() == "own"]
    places = {(float(x), float(y)) for ring in rings for x, y in ring.get_offsets()}
    assert places == {(run.throughput, run.top1) for run in own}
    assert not [c for c in first.collections if c.get_gid() == "own"]
    assert {run.label for run in own} <= {text.get_text() for text in second.texts}
    assert "Own: 10 measurements on Some Processor." in words(figure)


def test_own_measurements_are_among_the_others_where_the_device_does_not_matter(with_own):
    (axes,) = plots.parameter_front(with_own).axes
    assert [c for c in axes.collections if c.get_gid() == "own"]


def test_frames_are_taken(own, points_of):
    frame = results.to_frame(own)
    figure = plots.throughput_front(frame)
    assert points_of(figure.axes[0]) == points_of(plots.throughput_front(own).axes[0])


def test_runs_without_the_figures_are_refused(own):
    with pytest.raises(ValueError, match="no run has both accuracy and training_time"):
        plots.training_time_front(own)
    with pytest.raises(ValueError, match="no run has both accuracy and params"):
        plots.parameter_front([])


@given(
    st.lists(st.tuples(st.floats(1, 100), st.floats(1, 100)), min_size=1, max_size=20, unique=True),
    st.sampled_from(["throughput", "params"]),
)
def test_a_staircase_is_monotonic_and_passes_every_member(points, cost):
    runs = [
        results.Run(
            f"m{i}", 224, round(x * 1e6), 1, "own", "A100", top1=y, throughput=x
        )
        for i, (x, y) in enumerate(points)
    ]  # fmt: skip
    front = results.front(runs, ("accuracy", cost))
    end = 0.0 if cost == "throughput" else 200.0
    corners = staircase(front, cost, end, 0.0)
    members = {(x, y) for _, x, y in _data.points(front.members, cost, "accuracy")}
    assert members <= set(corners)
    sign = 1 if cost == "throughput" else -1
    for x, y in corners:
        assert any(sign * a >= sign * x and b >= y for a, b in members)
    for (a, b), (c, d) in itertools.pairwise(corners):
        assert a == c or b == d
        assert d <= b
        assert c >= a if cost == "throughput" else c <= a
    assert corners[0][0] == end
    assert corners[-1][1] == 0.0
