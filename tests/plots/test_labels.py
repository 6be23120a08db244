"""Labels: none on another, none outside, all essential ones there."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from efficient_vits.plots import _style
from efficient_vits.plots._labels import Label, label_points, overlap


def place(labels, size=(7.0, 4.0)):
    with _style.themed("light"):
        figure = Figure(figsize=size, dpi=100)
        axes = figure.subplots()
        axes.set(xlim=(0, 1), ylim=(0, 1))
        found = label_points(
            axes, labels, marks=[(x.x, x.y) for x in labels], colour="k", muted="grey"
        )
        return axes, found, [tuple(text.get_window_extent().extents) for text in found]


POINT = st.tuples(st.floats(0, 1), st.floats(0, 1), st.booleans())


@settings(max_examples=12, deadline=None)
@given(st.lists(POINT, min_size=1, max_size=25))
def test_labels_overlap_nowhere(points):
    labels = [Label(f"model_{i}", *point) for i, point in enumerate(points)]
    axes, found, boxes = place(labels)
    assert not [pair for pair in itertools.combinations(boxes, 2) if overlap(*pair)]
    inside = axes.get_window_extent()
    for left, bottom, right, top in boxes:
        assert left >= inside.x0 - 1e-6
        assert bottom >= inside.y0 - 1e-6
        assert right <= inside.x1 + 1e-6
        assert top <= inside.y1 + 1e-6
    words = [text.get_text() for text in found]
    assert {label.text for label in labels if label.essential} <= set(words)
    assert axes.get_xlim() == axes.get_ylim() == (0, 1)


def test_one_that_may_be_left_out_is_beside_its_point_or_not_there():
    crowd = [
        Label(f"m{i}", 0.5 + 0.004 * (i % 5), 0.5 + 0.006 * (i // 5), False) for i in range(25)
    ]
    axes, found, boxes = place([*crowd, Label("alone", 0.1, 0.1, False)])
    assert "alone" in [text.get_text() for text in found]
    assert len(found) < 26
    x, y = axes.transData.transform((0.1, 0.1))
    left, bottom, right, top = boxes[-1]
    assert left - 8 < x < right + 8
    assert bottom - 8 < y < top + 8


def test_one_that_is_far_from_its_point_has_a_line_to_it():
    labels = [Label(f"a_long_name_{i}", 0.5, 0.5 + 1e-4 * i) for i in range(12)]
    axes, found, _ = place(labels)
    assert len(found) == 12
    assert axes.lines
    for line in axes.lines:
        x, y = line.get_xydata()[0]
        assert (x, round(y, 2)) == (0.5, 0.5)


@pytest.mark.parametrize(("size", "count"), [((2.0, 0.6), 9), ((5.0, 0.6), 30)])
def test_without_room_it_says_so(size, count):
    labels = [Label("a very long name of a model", 0.5, i / count) for i in range(count)]
    with pytest.raises(ValueError, match="no room for all the labels"):
        place(labels, size=size)


def test_the_same_labels_each_time():
    labels = [Label(f"model_{i}", i / 30, (i * 7 % 30) / 30, i % 2 == 0) for i in range(30)]
    assert place(labels)[2] == place(labels)[2]
