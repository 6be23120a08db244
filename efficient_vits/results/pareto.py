"""Pareto fronts of points: dominance, the front, hypervolume. Plain numbers, any objectives.

A point dominates another if it is at least as good in every objective and better in one. Equal
points do not dominate each other: either both are on the front or neither.
"""

import math
from collections.abc import Sequence

Points = Sequence[Sequence[float]]


def dominates(a: Sequence[float], b: Sequence[float], directions: Sequence[str]) -> bool:
    """Whether point `a` dominates point `b`.

    Args:
        a: D numbers, one per objective.
        b: D numbers.
        directions: D times ``"max"`` or ``"min"``.

    Raises:
        ValueError: The lengths differ, a direction is neither, or a number is not finite.
    """
    first, second = _oriented([a, b], directions)
    return _better(first, second)


def pareto_mask(points: Points, directions: Sequence[str]) -> list[bool]:
    """Which points no other dominates.

    Points are visited from the best first objective to the worst, ties by the next one. A point's
    dominators come before it, and one of them is on the front; so it is compared with the front of
    what came before.

    Args:
        points: N points of D numbers.
        directions: D times ``"max"`` or ``"min"``.

    Returns:
        N booleans, in the order of `points`.

    Raises:
        ValueError: As `dominates`.
    """
    oriented = _oriented(points, directions)
    order = sorted(range(len(oriented)), key=lambda i: oriented[i], reverse=True)
    mask = [False] * len(oriented)
    front: list[tuple[float, ...]] = []
    for i in order:
        if not any(_better(other, oriented[i]) for other in front):
            mask[i] = True
            front.append(oriented[i])
    return mask


def dominators(points: Points, directions: Sequence[str]) -> list[list[int]]:
    """For each of N points the indices of those that dominate it, rising.

    Args:
        points: N points of D numbers.
        directions: D times ``"max"`` or ``"min"``.

    Raises:
        ValueError: As `dominates`.
    """
    oriented = _oriented(points, directions)
    return [[j for j, other in enumerate(oriented) if _better(other, point)] for point in oriented]


def hypervolume(points: Points, reference: Sequence[float], directions: Sequence[str]) -> float:
    """Volume of the region that the points dominate and that itself dominates the reference.

    Computed by slicing along the last objective; the time grows with the power D - 1 of the number
    of points on the front.

    Args:
        points: N points of D numbers. One that is not better than the reference in every objective
            adds nothing.
        reference: D numbers, in the objectives' units.
        directions: D times ``"max"`` or ``"min"``.

    Returns:
        The product of the objectives' units.

    Raises:
        ValueError: As `dominates`.
    """
    *oriented, origin = _oriented([*points, reference], directions)
    shifted = [tuple(v - o for v, o in zip(p, origin, strict=True)) for p in oriented]
    return _volume([point for point in shifted if all(v > 0 for v in point)])


def _volume(points: list[tuple[float, ...]]) -> float:
    """Volume between the origin and the points; all coordinates are positive, more is better."""
    if not points:
        return 0.0
    if len(points[0]) == 1:
        return max(point[0] for point in points)
    total = 0.0
    slices: list[tuple[float, ...]] = []
    ordered = sorted(points, key=lambda point: point[-1], reverse=True)
    for i, point in enumerate(ordered):
        above = ordered[i + 1][-1] if i + 1 < len(ordered) else 0.0
        slices.append(point[:-1])
        if point[-1] > above:
            slices = [p for p in slices if not any(_better(q, p) for q in slices)]
            total += (point[-1] - above) * _volume(slices)
    return total


def _better(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    """Whether `a` dominates `b` where more is better."""
    return a != b and all(x >= y for x, y in zip(a, b, strict=True))


def _oriented(points: Points, directions: Sequence[str]) -> list[tuple[float, ...]]:
    """The points with all objectives turned so that more is better."""
    for direction in directions:
        if direction not in ("max", "min"):
            raise ValueError(f"a direction is 'max' or 'min', got {direction!r}")
    if not directions:
        raise ValueError("there must be at least one direction, got none")
    signs = [1.0 if direction == "max" else -1.0 for direction in directions]
    oriented = []
    for point in points:
        if len(point) != len(signs):
            raise ValueError(
                f"a point has one number per direction: got {len(point)} for {len(signs)}"
            )
        if not all(math.isfinite(value) for value in point):
            raise ValueError(f"a point has finite numbers, got {tuple(point)}")
        oriented.append(tuple(s * float(v) for s, v in zip(signs, point, strict=True)))
    return oriented
