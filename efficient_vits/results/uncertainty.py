"""The front under uncertainty: what repeats of one measurement differ by, and what follows.

A front takes figures at their word. Two runs of one configuration differ, and four names of the
benchmark are one network whose throughput it measured with a range of 12 %. `repeat_spread` sums up
such differences, `membership` redraws every figure with them and counts how often a run is on the
front.
"""

import math
import random
import statistics
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from efficient_vits.results import pareto
from efficient_vits.results.fronts import SPEED, Objectives, on_device
from efficient_vits.results.metrics import objectives_of
from efficient_vits.results.runs import Run, as_rows

# Accuracies scatter by points, all else in proportion.
ABSOLUTE = ("accuracy", "top5")


@dataclass(frozen=True)
class Spread:
    """How far repeats of one configuration lie apart.

    Attributes:
        metric: Name of the metric.
        std: Pooled standard deviation: in points for accuracies, else of the logarithm, which is
            the relative deviation.
        widest: Largest distance of two repeats: in points, else relative to the smaller one.
        group: The network and image size, or whatever was repeated, that has this distance.
        repeats: Values that have another one of the same configuration.
        degrees: Degrees of freedom: those values less the number of configurations.
    """

    metric: str
    std: float
    widest: float
    group: str
    repeats: int
    degrees: int


@dataclass(frozen=True)
class Membership:
    """How sure it is that a run, or one of several, is on a front.

    Attributes:
        label: Of the run, the model or the network.
        runs: The run, or all runs of it.
        on_front: Whether one of them is there with the figures as they are.
        probability: Share of the draws in which one of them is.
    """

    label: str
    runs: tuple[Run, ...]
    on_front: bool
    probability: float


def repeat_spread(name: str, runs: Any = None) -> Spread:
    """The spread of one metric over repeats of one configuration.

    A configuration is a network at an image size; for accuracies it is a model at an image and a
    pre-training size, as the same network was trained differently under its names.

    Args:
        name: A metric.
        runs: A frame of `load_runs`, or runs; by default the benchmark's.

    Raises:
        ValueError: An unknown metric, or no configuration has two values of it.
    """
    objectives_of([name])
    key = _trained if name in (*ABSOLUTE, "accuracy_per_parameter") else _built
    groups: dict[Hashable, list[float]] = {}
    labels: dict[Hashable, str] = {}
    for run in as_rows(runs):
        value = run.value(name)
        if value is not None:
            groups.setdefault(key(run), []).append(value)
            labels.setdefault(key(run), f"{run.network} at {run.img_size} px")
    repeated = {key: values for key, values in groups.items() if len(values) > 1}
    if not repeated:
        raise ValueError(f"no configuration has two values of {name}: its spread is not known")
    scaled = {key: _scale(name, values) for key, values in repeated.items()}
    degrees = sum(len(values) - 1 for values in scaled.values())
    squares = sum(statistics.variance(v) * (len(v) - 1) for v in scaled.values())
    distances = {key: max(values) - min(values) for key, values in scaled.items()}
    widest = max(distances, key=distances.__getitem__)
    return Spread(
        metric=name,
        std=math.sqrt(squares / degrees),
        widest=distances[widest] if name in ABSOLUTE else math.expm1(distances[widest]),
        group=labels[widest],
        repeats=sum(map(len, repeated.values())),
        degrees=degrees,
    )


def membership(
    runs: Any = None,
    objectives: Objectives = SPEED,
    *,
    by: str = "run",
    spread: Mapping[str, float] | None = None,
    device: str | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> list[Membership]:
    """The probability to be on the front, for each run, model or network.

    Each draw adds independent normal deviations to accuracies and multiplies other figures by
    log-normal ones; parameters and FLOPs have none. The figures of a run are one measurement, so
    the probability of a run that is far from all others is 1 or 0.

    Args:
        runs: A frame of `load_runs`, or runs; by default the benchmark's.
        objectives: As `front`.
        by: ``"run"``; ``"model"`` for all runs of a name at an image size; ``"network"`` for the
            names together that are one network (`SAME_NETWORK`), too.
        spread: Standard deviation by metric, in points for accuracies, else relative; by default
            that of `repeat_spread` over the benchmark's runs.
        device: As `front`.
        draws: How often the figures are drawn.
        seed: Of the random numbers.

    Returns:
        Those that have all objectives, by falling probability.

    Raises:
        ValueError: As `front`; or another `by`, a spread that is negative or not of an objective,
            or no positive number of draws.
    """
    chosen = objectives_of(objectives)
    if by not in GROUPS:
        raise ValueError(f"by is one of {', '.join(GROUPS)}, got {by!r}")
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ValueError(f"draws is a positive number, got {draws!r}")
    stds = {name: _default_spread(name) for name in chosen} | _checked(spread or {}, chosen)
    rows = on_device(as_rows(runs), device, chosen)
    complete = [run for run in rows if all(run.value(name) is not None for name in chosen)]
    points = [[run.value(name) or 0.0 for name in chosen] for run in complete]
    directions = list(chosen.values())
    groups: dict[Hashable, list[int]] = {}
    for i, run in enumerate(complete):
        groups.setdefault(GROUPS[by](i, run), []).append(i)
    generator = random.Random(seed)
    hits = dict.fromkeys(groups, 0)
    for _ in range(draws):
        drawn = [
            [_draw(name, v, stds[name], generator) for name, v in zip(chosen, point, strict=True)]
            for point in points
        ]
        mask = pareto.pareto_mask(drawn, directions)
        for key, indices in groups.items():
            hits[key] += any(mask[i] for i in indices)
    exact = pareto.pareto_mask(points, directions)
    out = []
    for key, indices in groups.items():
        runs_of = tuple(complete[i] for i in indices)
        on_front = any(exact[i] for i in indices)
        out.append(Membership(_label(runs_of), runs_of, on_front, hits[key] / draws))
    return sorted(out, key=lambda m: (-m.probability, m.label))


GROUPS: dict[str, Callable[[int, Run], Hashable]] = {
    "run": lambda i, run: i,
    "model": lambda i, run: (run.name, run.img_size),
    "network": lambda i, run: (run.network, run.img_size),
}


def _label(runs: tuple[Run, ...]) -> str:
    return ", ".join(dict.fromkeys(run.label for run in runs))


def _built(run: Run) -> Hashable:
    return run.network, run.img_size


def _trained(run: Run) -> Hashable:
    return run.name, run.img_size, run.pretrain_size


def _scale(name: str, values: list[float]) -> list[float]:
    return values if name in ABSOLUTE else [math.log(value) for value in values]


def _default_spread(name: str) -> float:
    return 0.0 if name in ("params", "flops") else repeat_spread(name).std


def _checked(spread: Mapping[str, float], chosen: Mapping[str, str]) -> dict[str, float]:
    for name, value in spread.items():
        if name not in chosen:
            raise ValueError(
                f"spread has {name!r}, which is no objective; these are {', '.join(chosen)}"
            )
        if not value >= 0:
            raise ValueError(f"the spread of {name} is 0 or more, got {value!r}")
    return dict(spread)


def _draw(name: str, value: float, std: float, generator: random.Random) -> float:
    if std == 0:
        return value
    if name in ABSOLUTE:
        return generator.gauss(value, std)
    return value * math.exp(generator.gauss(0, std))
