"""Where one's own model lands against a front, and what dominates it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from efficient_vits.results.fronts import SPEED, Front, Objectives, front
from efficient_vits.results.measurements import read_measurements
from efficient_vits.results.metrics import metric, objectives_of
from efficient_vits.results.runs import Run, as_rows


@dataclass(frozen=True)
class Placement:
    """A model against a front.

    Attributes:
        run: The model.
        front: The front without it.
        on_front: Whether none of the runs dominates it.
        dominators: Runs that do, by rising first objective.
        displaced: Members of the front that it dominates.
        gaps: What it lacks, by objective: with any more than this added to one of them (negative
            where less is better) and all else as it is, no run would dominate it. Empty where none
            does.
        notes: What the comparison does not see.
    """

    run: Run
    front: Front
    on_front: bool
    dominators: tuple[Run, ...]
    displaced: tuple[Run, ...]
    gaps: Mapping[str, float]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        goal = ", ".join(self.front.objectives)
        if self.on_front:
            lines = [f"{self.run.label} is on the front of {goal}"]
            if self.displaced:
                labels = dict.fromkeys(run.label for run in self.displaced)
                lines.append(f"  it displaces {', '.join(labels)}")
        else:
            labels = dict.fromkeys(run.label for run in self.dominators)
            needed = [
                f"{name} beyond {(self.run.value(name) or 0) + gap:.6g}"
                for name, gap in self.gaps.items()
            ]
            lines = [
                f"{self.run.label} is not on the front of {goal}",
                f"  dominated by {', '.join(labels)}",
                f"  it would be with {' or '.join(needed)}",
            ]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def place(
    measurement: Any,
    objectives: Objectives = SPEED,
    *,
    accuracy: float | None = None,
    runs: Any = None,
) -> Placement:
    """Where a measurement lands against the front of other runs.

    Args:
        measurement: One `efficient_vits.efficiency.Measurement`, its ``to_dict()``, or a `Run`.
        objectives: As `front`.
        accuracy: Top-1 accuracy of the model in per cent, where the measurement has none.
        runs: A frame of `load_runs`, or runs; by default the benchmark's, which are on an A100.
            Where an objective depends on the device, those of the measurement's class are taken.

    Raises:
        ValueError: Not one measurement; it lacks an objective; or an objective depends on the
            device and no other run is on this class.
    """
    chosen = objectives_of(objectives)
    found = read_measurements(measurement)
    if len(found) != 1:
        raise ValueError(f"one measurement can be placed, got {len(found)}")
    run = found[0]
    if accuracy is not None:
        if not 0 <= accuracy <= 100:
            raise ValueError(f"accuracy is in per cent, between 0 and 100, got {accuracy!r}")
        run = dataclasses.replace(run, top1=accuracy)
    missing = [name for name in chosen if run.value(name) is None]
    if missing:
        hint = "; accuracy= gives the accuracy" if "accuracy" in missing else ""
        raise ValueError(
            f"{run.label} has no {', '.join(missing)}, which the objectives need{hint}"
        )
    others = _comparable([other for other in as_rows(runs) if other is not run], run, chosen)
    reference = front(others, chosen)
    dominators = tuple(reference.dominators(run))
    return Placement(
        run=run,
        front=reference,
        on_front=not dominators,
        dominators=dominators,
        displaced=tuple(
            other for other in reference.dominated_by(run) if other in reference.members
        ),
        gaps=_gaps(run, dominators, chosen),
        notes=tuple(_notes(run, others, chosen)),
    )


def _comparable(others: list[Run], run: Run, chosen: Mapping[str, str]) -> list[Run]:
    bound = [name for name in chosen if metric(name).device_bound]
    if not bound:
        return others
    same = [other for other in others if other.device_class == run.device_class]
    if not same:
        classes = ", ".join(sorted({other.device_class for other in others})) or "none"
        raise ValueError(
            f"{', '.join(bound)} of {run.label} was measured on {run.device_class!r}, and there is "
            f"no other run on it (there are {classes}); objectives that hold on every device are "
            f"accuracy, params and flops"
        )
    return same


def _gaps(run: Run, dominators: tuple[Run, ...], chosen: Mapping[str, str]) -> dict[str, float]:
    gaps = {}
    for name, direction in chosen.items() if dominators else ():
        extreme = max if direction == "max" else min
        reached = extreme(other.value(name) or 0.0 for other in dominators)
        gaps[name] = reached - (run.value(name) or 0.0)
    return gaps


def _notes(run: Run, others: list[Run], chosen: Mapping[str, str]) -> list[str]:
    notes = []
    if any(name.startswith("memory") for name in chosen) and run.training_memory is None:
        notes.append(
            "the benchmark's inference memory contains what its training process held; one "
            "measured by itself is smaller"
        )
    if "accuracy" in chosen and run.img_size not in {other.img_size for other in others}:
        notes.append(f"no other run is at {run.img_size} px")
    return notes
