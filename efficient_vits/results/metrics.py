"""The metrics that models are compared by: their units, and which direction is better."""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

MAX, MIN = "max", "min"


@dataclass(frozen=True)
class Metric:
    """One figure of a run.

    Attributes:
        name: What functions take, such as ``"throughput"``.
        column: Its column in the frame of `load_runs`, and the attribute of a `Run`.
        label: Name with unit, for people.
        direction: ``"max"`` where more is better, else ``"min"``.
        device_bound: Whether it holds on one class of device only.
        kind: What units a bound may have: ``""``, ``"%"``, ``"count"``, ``"bytes"``, ``"time"``.
    """

    name: str
    column: str
    label: str
    direction: str
    device_bound: bool = False
    kind: str = ""


# Metrics by name; `metric` also knows ``memory_<batch size>``.
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "top1", "top-1 accuracy [%]", MAX, kind="%"),
        Metric("top5", "top5", "top-5 accuracy [%]", MAX, kind="%"),
        Metric("throughput", "throughput", "throughput [images/s]", MAX, True),
        Metric("inference_time", "inference_time", "time per image [s]", MIN, True, "time"),
        Metric("params", "params", "parameters", MIN, kind="count"),
        Metric("flops", "flops", "FLOPs per image", MIN, kind="count"),
        Metric("memory", "memory_1", "inference memory, batch 1 [bytes]", MIN, True, "bytes"),
        Metric("training_memory", "training_memory", "training memory [bytes]", MIN, True, "bytes"),
        Metric("training_time", "training_time", "fine-tuning [GPU-seconds]", MIN, True, "time"),
        Metric(
            "accuracy_per_parameter",
            "accuracy_per_parameter",
            "top-1 accuracy per million parameters [%]",
            MAX,
        ),
    )
}


def metric(name: str) -> Metric:
    """The metric of this name; ``"memory_64"`` is inference memory at batch 64, and so on.

    Raises:
        ValueError: No such metric; the message has those there are.
    """
    if name in METRICS:
        return METRICS[name]
    batch = re.fullmatch(r"memory_([1-9]\d*)", str(name))
    if batch:
        label = f"inference memory, batch {batch[1]} [bytes]"
        return Metric(name, name, label, MIN, True, "bytes")
    near = difflib.get_close_matches(str(name), METRICS, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
        f"no metric {name!r}; {hint}accepted are {', '.join(METRICS)} and memory_<batch size>"
    )


def objectives_of(objectives: Iterable[str] | Mapping[str, str]) -> dict[str, str]:
    """Directions by metric name: those given, or each metric's own.

    Args:
        objectives: Names of metrics, or a mapping from them to ``"max"`` or ``"min"``.

    Raises:
        ValueError: An unknown metric or direction, a metric twice, or no objective at all.
    """
    if isinstance(objectives, str):
        raise ValueError(f"objectives are a sequence of metrics, got the string {objectives!r}")
    if isinstance(objectives, Mapping):
        chosen = dict(objectives)
    else:
        names = list(objectives)
        if len(set(names)) < len(names):
            raise ValueError(f"objectives name a metric twice: {', '.join(names)}")
        chosen = {name: metric(name).direction for name in names}
    if not chosen:
        raise ValueError(f"no objectives; accepted are {', '.join(METRICS)}")
    for name, direction in chosen.items():
        metric(name)
        if direction not in (MAX, MIN):
            raise ValueError(f"direction of {name} is 'max' or 'min', got {direction!r}")
    return chosen
