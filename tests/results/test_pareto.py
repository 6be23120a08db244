"""The front against its definition, and the hypervolume against other ways to compute it."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficient_vits.results import dominates, dominators, hypervolume, pareto_mask

# Few values, so that there are many ties.
VALUES = st.integers(min_value=0, max_value=5)


@st.composite
def problems(draw, max_dimensions=4, max_points=12):
    size = draw(st.integers(1, max_dimensions))
    directions = draw(st.lists(st.sampled_from(["max", "min"]), min_size=size, max_size=size))
    point = st.tuples(*[VALUES] * size)
    return draw(st.lists(point, max_size=max_points)), directions


def naive_dominates(a, b, directions):
    no_worse = all(
        (x >= y) if way == "max" else (x <= y) for x, y, way in zip(a, b, directions, strict=True)
    )
    better = any(
        (x > y) if way == "max" else (x < y) for x, y, way in zip(a, b, directions, strict=True)
    )
    return no_worse and better


def naive_mask(points, directions):
    return [not any(naive_dominates(q, p, directions) for q in points) for p in points]


def naive_volume(points, reference, directions):
    """Unit cells of the integer grid whose centre some point and the reference enclose."""
    total = 0
    for cell in itertools.product(range(6), repeat=len(directions)):
        centre = [c + 0.5 for c in cell]
        if naive_dominates(centre, reference, directions):
            inside = all(
                (c > r) if way == "max" else (c < r)
                for c, r, way in zip(centre, reference, directions, strict=True)
            )
            total += inside and any(naive_dominates(p, centre, directions) for p in points)
    return total


@given(problems())
def test_the_front_is_what_its_definition_says(problem):
    points, directions = problem
    assert pareto_mask(points, directions) == naive_mask(points, directions)


@given(problems())
def test_who_dominates_whom(problem):
    points, directions = problem
    assert dominators(points, directions) == [
        [j for j, q in enumerate(points) if naive_dominates(q, p, directions)] for p in points
    ]


@given(problems(max_dimensions=3))
def test_dominance_is_a_strict_order(problem):
    points, directions = problem
    for a, b in itertools.product(points, repeat=2):
        assert dominates(a, b, directions) == naive_dominates(a, b, directions)
        assert not (dominates(a, b, directions) and dominates(b, a, directions))


@given(problems(), st.randoms())
def test_order_and_units_do_not_matter(problem, random):
    points, directions = problem
    order = list(range(len(points)))
    random.shuffle(order)
    mask = pareto_mask(points, directions)
    assert pareto_mask([points[i] for i in order], directions) == [mask[i] for i in order]
    scaled = [[1000 * value + 7 for value in point] for point in points]
    assert pareto_mask(scaled, directions) == mask
    flipped = ["min" if way == "max" else "max" for way in directions]
    assert pareto_mask([[-v for v in point] for point in points], flipped) == mask


@given(problems(max_dimensions=3, max_points=7), st.data())
def test_hypervolume_is_the_number_of_enclosed_cells(problem, data):
    points, directions = problem
    reference = data.draw(st.tuples(*[VALUES] * len(directions)))
    expected = naive_volume(points, reference, directions)
    assert hypervolume(points, reference, directions) == pytest.approx(expected)


@given(problems(max_dimensions=4, max_points=8), st.data())
def test_hypervolume_grows_with_points_and_ignores_dominated_ones(problem, data):
    points, directions = problem
    worst = [0 if way == "max" else 5 for way in directions]
    whole = hypervolume(points, worst, directions)
    mask = pareto_mask(points, directions)
    front = [point for point, on in zip(points, mask, strict=True) if on]
    assert hypervolume(front, worst, directions) == pytest.approx(whole)
    extra = data.draw(st.tuples(*[VALUES] * len(directions)))
    assert hypervolume([*points, extra], worst, directions) >= whole - 1e-9


@given(problems(max_dimensions=3, max_points=6))
def test_hypervolume_scales_with_the_units(problem):
    """A tenth of every unit: what the grid of whole numbers does not see."""
    points, directions = problem
    worst = [0 if way == "max" else 5 for way in directions]
    tenths = [[value / 10 for value in point] for point in points]
    found = hypervolume(tenths, [value / 10 for value in worst], directions)
    whole = hypervolume(points, worst, directions)
    assert found == pytest.approx(whole / 10 ** len(directions))


def test_equal_points_are_on_the_front_together():
    assert pareto_mask([(1, 2), (1, 2), (0, 2)], ["max", "max"]) == [True, True, False]


def test_a_tie_in_one_objective_does_not_save():
    assert pareto_mask([(80, 5), (80, 4)], ["max", "max"]) == [True, False]
    assert pareto_mask([(80, 5), (80, 4)], ["max", "min"]) == [False, True]


def test_hypervolume_by_hand():
    points = [(3, 1), (2, 2), (1, 3)]
    assert hypervolume(points, (0, 0), ["max", "max"]) == 6
    assert hypervolume(points, (4, 4), ["min", "min"]) == 6
    assert hypervolume([(2, 2, 2)], (0, 0, 0), ["max"] * 3) == 8
    assert hypervolume([], (0,), ["max"]) == 0


def test_no_points():
    assert pareto_mask([], ["max"]) == []
    assert dominators([], ["max"]) == []


@pytest.mark.parametrize(
    ("points", "directions", "message"),
    [
        ([(1, 2)], ["max"], "got 2 for 1"),
        ([(1,)], ["up"], "got 'up'"),
        ([(1,)], [], "at least one direction"),
        ([(math.nan,)], ["max"], "finite"),
        ([(math.inf,)], ["max"], "finite"),
    ],
)
def test_mistakes(points, directions, message):
    with pytest.raises(ValueError, match=message):
        pareto_mask(points, directions)
