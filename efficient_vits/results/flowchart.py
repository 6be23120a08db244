"""A decision flowchart, derived from the fronts: what is scarce, which accuracy, which model.

For each scarce resource the front of accuracy and that resource is reduced to a few members: those
whose hypervolume is the largest. The answer for a needed accuracy is the cheapest of them that has
it.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from efficient_vits.results import pareto
from efficient_vits.results.fronts import front, on_device
from efficient_vits.results.metrics import metric
from efficient_vits.results.recommend import figure
from efficient_vits.results.runs import Run, as_rows

QUESTIONS = {
    "throughput": "Speed of inference",
    "training_time": "Time of training",
    "memory": "Memory of inference",
    "training_memory": "Memory of training",
    "params": "Parameters",
    "flops": "FLOPs",
    "inference_time": "Time per image",
}


@dataclass(frozen=True)
class Leaf:
    """An answer.

    Attributes:
        accuracy: Top-1 accuracy in per cent up to which this is the answer: the run's own.
        above: From which on; None for the first.
        run: The run.
    """

    accuracy: float
    above: float | None
    run: Run

    @property
    def condition(self) -> str:
        if self.above is None:
            return f"up to {self.accuracy:.1f} %"
        return f"{self.above:.1f} to {self.accuracy:.1f} %"


@dataclass(frozen=True)
class Branch:
    """What to take where one resource is scarce.

    Attributes:
        metric: The resource.
        question: For people.
        leaves: Answers by rising accuracy, and with it rising cost.
        front: How many runs the front has that they were chosen from.
        share: Hypervolume of the answers relative to that of the front.
        incomplete: Labels without the figure, which cannot be answers.
    """

    metric: str
    question: str
    leaves: tuple[Leaf, ...]
    front: int
    share: float
    incomplete: tuple[str, ...]


@dataclass(frozen=True)
class Flowchart:
    """The tree: one question, a branch per resource, leaves by accuracy."""

    question: str
    branches: tuple[Branch, ...]

    def choose(self, scarce: str, accuracy: float) -> Run | None:
        """The run at the end of a path; None where no run is so accurate.

        Args:
            scarce: A metric that has a branch.
            accuracy: Needed top-1 accuracy in per cent.

        Raises:
            ValueError: No such branch.
        """
        for branch in self.branches:
            if branch.metric == scarce:
                able = [leaf for leaf in branch.leaves if leaf.accuracy >= accuracy]
                return able[0].run if able else None
        known = ", ".join(branch.metric for branch in self.branches)
        raise ValueError(f"the flowchart has no branch {scarce!r}; accepted are {known}")

    def __str__(self) -> str:
        lines = [self.question]
        for branch in self.branches:
            lines.append(f"  {branch.question}: which accuracy is needed?")
            for leaf in branch.leaves:
                cost = figure(leaf.run, branch.metric)
                lines.append(f"    {leaf.condition}: {leaf.run.label} ({cost})")
            if branch.incomplete:
                lines.append(f"    not known for {', '.join(branch.incomplete)}")
        return "\n".join(lines)


def decision_flowchart(
    runs: Any = None,
    *,
    metrics: Sequence[str] = ("throughput", "training_time", "memory", "training_memory", "params"),
    choices: int = 4,
    device: str | None = None,
) -> Flowchart:
    """The flowchart of a set of runs.

    Args:
        runs: A frame of `load_runs`, or runs; by default the benchmark's.
        metrics: Resources, one branch each.
        choices: Most leaves of a branch.
        device: Class of device, as `front`.

    Raises:
        ValueError: As `front`; a metric twice or without a question (`QUESTIONS`), no positive
            number of choices, or a metric that no run has.
    """
    if isinstance(choices, bool) or not isinstance(choices, int) or choices < 1:
        raise ValueError(f"choices is a positive number, got {choices!r}")
    unknown = [name for name in metrics if name not in QUESTIONS]
    if unknown or len(set(metrics)) < len(metrics) or not metrics:
        raise ValueError(
            f"metrics are different ones out of {', '.join(QUESTIONS)}, got {list(metrics)}"
        )
    rows = on_device(as_rows(runs), device, metrics)
    return Flowchart(
        question="What is scarce?",
        branches=tuple(_branch(rows, name, choices) for name in metrics),
    )


def _branch(rows: list[Run], name: str, choices: int) -> Branch:
    found = front(rows, ("accuracy", name))
    if not found.members:
        raise ValueError(f"no run has both accuracy and {name}")
    directions = ["max", metric(name).direction]
    compared = [*found.members, *found.dominated]
    points = [[run.top1 or 0.0, run.value(name) or 0.0] for run in compared]
    worst = min if directions[1] == "max" else max
    # A little beyond the worst, so that the extremes of the front count.
    reference = [
        min(p[0] for p in points) - 1.0,
        worst(p[1] for p in points) * (0.99 if directions[1] == "max" else 1.01),
    ]
    on_front = points[: len(found.members)]

    def volume(indices: Sequence[int]) -> float:
        return pareto.hypervolume([on_front[i] for i in indices], reference, directions)

    whole = range(len(on_front))
    best = max(itertools.combinations(whole, min(choices, len(on_front))), key=volume)
    members = [found.members[i] for i in best]
    # The front is ordered by accuracy already.
    leaves = [
        Leaf(run.top1 or 0.0, members[i - 1].top1 if i else None, run)
        for i, run in enumerate(members)
    ]
    known = {run.label for run in compared}
    return Branch(
        metric=name,
        question=QUESTIONS[name],
        leaves=tuple(leaves),
        front=len(on_front),
        share=volume(best) / volume(whole),
        incomplete=tuple(sorted({run.label for run in found.incomplete} - known)),
    )
