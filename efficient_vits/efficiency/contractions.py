"""Cost of an einsum: what the matrix products, products and sums it stands for would cost."""

from collections import Counter
from collections.abc import Sequence


def einsum_cost(
    equation: str,
    shapes: Sequence[Sequence[int]],
    path: Sequence[int] | None = None,
    *,
    gradients: Sequence[bool] | None = None,
) -> dict[str, int]:
    """Operations of `torch.einsum(equation, ...)` on operands of these shapes.

    Operands are contracted two at a time, along `path` (pairs of positions, flattened, the result
    appended at the end, as torch records it) or from left to right. In each step an index that
    only one of the two has and nobody needs any more is summed first; then a multiply-add per
    combination of the remaining indices.

    With `gradients` it is the operations of the backward pass instead, which gives a gradient to
    the operands that are marked there: each step's product again, once for each of its two
    operands that one of those went into. A summed index costs nothing then, its gradient repeats.

    Returns:
        "einsum": multiply-adds of steps that sum over a shared index, "mul": multiplications of
        steps that don't, "sum": additions of indices that belong to one operand.
    """
    operands, output = _parse(equation, shapes)
    sizes: dict[str, int] = {}
    for labels, shape in zip(operands, shapes, strict=True):
        for label, size in zip(labels, shape, strict=True):
            # 1 broadcasts against any other size.
            sizes[label] = max(size, sizes.get(label, 1))

    def volume(labels: set[str]) -> int:
        total = 1
        for label in labels:
            total *= sizes[label]
        return total

    cost: Counter[str] = Counter()
    remaining = [set(labels) for labels in operands]
    wanted = list(gradients or [False] * len(remaining))
    steps = iter(path or ())
    while len(remaining) > 1:
        first, second = next(steps, 0), next(steps, 1)
        positions = sorted((first, second), reverse=True)
        b, a = (remaining.pop(i) for i in positions)
        wants_b, wants_a = (wanted.pop(i) for i in positions)
        needed = set(output).union(*remaining)
        kept_a, kept_b = a & (b | needed), b & (a | needed)
        met = kept_a | kept_b
        result, product = met & needed, volume(met)
        name = "mul" if result == met else "einsum"
        if gradients is None:
            cost["sum"] += volume(a) - volume(kept_a) + volume(b) - volume(kept_b)
            cost[name] += product
        else:
            cost[name] += product * (wants_a + wants_b)
            for kept, wants in ((kept_a, wants_a), (kept_b, wants_b)):
                if wants and name == "mul" and kept != met:
                    # What was repeated to meet the other operand is added up.
                    cost["sum"] += product
        remaining.append(result)
        wanted.append(wants_a or wants_b)
        if not path:
            # The intermediate result stays the left operand.
            remaining.insert(0, remaining.pop())
            wanted.insert(0, wanted.pop())
    if gradients is None:
        cost["sum"] += volume(remaining[0]) - volume(set(output))
    return dict(cost)


def _parse(equation: str, shapes: Sequence[Sequence[int]]) -> tuple[list[list[str]], list[str]]:
    """One label per dimension for every operand, and the labels of the output."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    operands = [_labels(term, len(shape)) for term, shape in zip(terms, shapes, strict=True)]
    batch = max((_ellipsis(labels) for labels in operands), key=len)
    if arrow:
        return operands, _labels(right, len(right.replace("...", "")) + len(batch))
    occurrences = Counter(label for labels in operands for label in labels)
    once = sorted(label for label, n in occurrences.items() if n == 1 and label.isalpha())
    return operands, batch + once


def _labels(term: str, rank: int) -> list[str]:
    """Letters of a term; the dimensions of an ellipsis get numbers, counted from the right."""
    before, dots, after = term.partition("...")
    if not dots:
        return list(term)
    count = rank - len(before) - len(after)
    return [*before, *(str(i) for i in reversed(range(count))), *after]


def _ellipsis(labels: list[str]) -> list[str]:
    return [label for label in labels if not label.isalpha()]
