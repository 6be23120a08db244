"""The Pareto front of runs: who is on it, who dominates whom, what could not be compared."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from efficient_vits.results import pareto
from efficient_vits.results.metrics import metric, objectives_of
from efficient_vits.results.runs import Run, as_rows

SPEED = ("accuracy", "throughput")

Objectives = Iterable[str] | Mapping[str, str]


@dataclass(frozen=True)
class Front:
    """A Pareto front.

    Attributes:
        objectives: Direction by metric.
        members: Runs that no other dominates, by the first objective from worst to best.
        dominated: The other runs that have all objectives, likewise.
        incomplete: Runs that lack one of them and were not compared.
        split: For each network that the benchmark ran under several names (`SAME_NETWORK`) and the
            front takes under some only: the names on it and those off it.
    """

    objectives: Mapping[str, str]
    members: tuple[Run, ...]
    dominated: tuple[Run, ...]
    incomplete: tuple[Run, ...]
    split: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]

    @property
    def names(self) -> list[str]:
        """Labels of the members without repetition, in their order."""
        return list(dict.fromkeys(run.label for run in self.members))

    def dominators(self, run: Run) -> list[Run]:
        """Members and other runs that dominate a run; it need not be one of this front's.

        Raises:
            ValueError: The run lacks one of the objectives.
        """
        point, directions = _point(run, self.objectives), list(self.objectives.values())
        return [
            other
            for other in (*self.members, *self.dominated)
            if pareto.dominates(_point(other, self.objectives), point, directions)
        ]

    def dominated_by(self, run: Run) -> list[Run]:
        """Runs that a run dominates; it need not be one of this front's.

        Raises:
            ValueError: The run lacks one of the objectives.
        """
        point, directions = _point(run, self.objectives), list(self.objectives.values())
        return [
            other
            for other in (*self.members, *self.dominated)
            if pareto.dominates(point, _point(other, self.objectives), directions)
        ]

    def hypervolume(self, reference: Mapping[str, float]) -> float:
        """Volume that the front dominates, in the product of the objectives' units.

        Args:
            reference: The worst value that counts, by objective.

        Raises:
            ValueError: `reference` has not exactly the objectives.
        """
        if reference.keys() != self.objectives.keys():
            raise ValueError(
                f"the reference has one value for each of {', '.join(self.objectives)}, got "
                f"{', '.join(reference) or 'none'}"
            )
        return pareto.hypervolume(
            [_point(run, self.objectives) for run in self.members],
            [reference[name] for name in self.objectives],
            list(self.objectives.values()),
        )

    def __str__(self) -> str:
        goal = ", ".join(f"{name} ({way})" for name, way in self.objectives.items())
        lines = [f"front of {goal}: {len(self.members)} of {self._compared} runs"]
        for run in self.members:
            figures = ", ".join(f"{name} {run.value(name):g}" for name in self.objectives)
            lines.append(f"  {run.label}: {figures}")
        for on, off in self.split:
            lines.append(f"  one network: {', '.join(on)} on the front, {', '.join(off)} not")
        if self.incomplete:
            lines.append(f"  {len(self.incomplete)} runs lack a figure")
        return "\n".join(lines)

    @property
    def _compared(self) -> int:
        return len(self.members) + len(self.dominated)


def front(runs: Any = None, objectives: Objectives = SPEED, *, device: str | None = None) -> Front:
    """The Pareto front of runs.

    Args:
        runs: A frame of `load_runs`, or runs; by default the benchmark's.
        objectives: Metrics, each in its own direction, or a mapping from them to ``"max"`` or
            ``"min"``.
        device: Take the runs of this device class only, such as ``"A100"``.

    Raises:
        ValueError: An unknown metric, direction or device class; or an objective that depends on
            the device, and runs of several classes.
    """
    chosen = objectives_of(objectives)
    rows = on_device(as_rows(runs), device, chosen)
    complete = [run for run in rows if all(run.value(name) is not None for name in chosen)]
    points = [_point(run, chosen) for run in complete]
    mask = pareto.pareto_mask(points, list(chosen.values()))
    signs = [1 if way == "max" else -1 for way in chosen.values()]

    def best_last(i: int) -> list[float]:
        return [sign * value for sign, value in zip(signs, points[i], strict=True)]

    order = sorted(range(len(complete)), key=best_last)
    members = tuple(complete[i] for i in order if mask[i])
    dominated = tuple(complete[i] for i in order if not mask[i])
    return Front(
        objectives=chosen,
        members=members,
        dominated=dominated,
        incomplete=tuple(run for run in rows if any(run.value(name) is None for name in chosen)),
        split=_split(members, dominated),
    )


def on_device(rows: list[Run], device: str | None, metrics: Iterable[str]) -> list[Run]:
    """The runs of a device class; all of them where no metric depends on the device.

    Raises:
        ValueError: No run is of this class; or none is given, a metric depends on it, and the runs
            are of several.
    """
    classes = sorted({run.device_class for run in rows})
    if device is not None:
        if device not in classes:
            raise ValueError(
                f"no run on device class {device!r}; accepted are {', '.join(classes)}"
            )
        return [run for run in rows if run.device_class == device]
    bound = [name for name in metrics if metric(name).device_bound]
    if bound and len(classes) > 1:
        raise ValueError(
            f"{', '.join(bound)} of different devices cannot be compared; choose one with device=, "
            f"accepted are {', '.join(classes)}"
        )
    return rows


def _point(run: Run, objectives: Iterable[str]) -> list[float]:
    point = []
    for name in objectives:
        value = run.value(name)
        if value is None:
            raise ValueError(f"{run.label} has no {name}; the objectives need it")
        point.append(value)
    return point


def _split(
    members: Sequence[Run], dominated: Sequence[Run]
) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    groups: dict[tuple[str, object], tuple[list[str], list[str]]] = {}
    for place, runs in enumerate((members, dominated)):
        for run in runs:
            groups.setdefault((run.network, run.img_size), ([], []))[place].append(run.label)
    found = []
    for on, off in groups.values():
        names = tuple(dict.fromkeys(on))
        others = tuple(dict.fromkeys(label for label in off if label not in names))
        if names and others:
            found.append((names, others))
    return tuple(found)
