"""What pictures show of runs: units, whose runs they are, and the line of sources below."""

import functools
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from efficient_vits import results
from efficient_vits.results import Run

PAPER = "arXiv 2308.09372"

# metric: label with the unit of the picture, and how many of the metric's own units that is.
_UNITS = {
    "accuracy": ("top-1 accuracy on ImageNet-1k [%]", 1.0),
    "throughput": ("throughput [images/s]", 1.0),
    "inference_time": ("inference time [ms/image]", 1e-3),
    "params": ("parameters [millions]", 1e6),
    "flops": ("FLOPs per image [10⁹ multiply-adds]", 1e9),
    "training_time": ("fine-tuning, 50 epochs [GPU-hours]", 3600.0),
    "training_memory": ("training memory, batch 2048 [GiB]", 2.0**30),
    "memory": ("inference memory, batch 1 [GiB]", 2.0**30),
    "accuracy_per_parameter": ("accuracy per million parameters [%]", 1.0),
}


def axis_label(name: str) -> str:
    """The metric and its unit."""
    if name in _UNITS:
        return _UNITS[name][0]
    return f"inference memory, batch {name.removeprefix('memory_')} [GiB]"


def shown(run: Run, name: str) -> float | None:
    """The figure of a run in the unit of `axis_label`."""
    value = run.value(name)
    factor = _UNITS[name][1] if name in _UNITS else 2.0**30
    return None if value is None else value / factor


def points(runs: Iterable[Run], x: str, y: str) -> list[tuple[Run, float, float]]:
    """Runs that have two metrics, with both."""
    pairs = ((run, shown(run, x), shown(run, y)) for run in runs)
    return [(run, a, b) for run, a, b in pairs if a is not None and b is not None]


def rows_of(runs: Any) -> list[Run]:
    """Runs as a list: the benchmark's for None, a frame, or what `read_measurements` takes.

    Own measurements without an accuracy have the one published for the model and size.

    Raises:
        ValueError, OSError: As `results.as_rows` and `results.read_measurements`.
    """
    if runs is None or hasattr(runs, "columns"):
        return results.as_rows(runs)
    return results.read_measurements(runs, accuracy=results.published_accuracy())


@functools.cache
def _published() -> frozenset[str]:
    return frozenset(run.source for run in results.load_rows())


def is_own(run: Run) -> bool:
    """Whether a run is none of the benchmark's."""
    return run.source not in _published()


def device_classes(runs: Iterable[Run], *metrics: str) -> list[str]:
    """Classes of device with a run that has all metrics, in the order of the runs."""
    return list(
        dict.fromkeys(
            run.device_class for run in runs if all(run.value(name) is not None for name in metrics)
        )
    )


def one_device(rows: Iterable[Run], *metrics: str) -> tuple[list[Run], str]:
    """The runs of the first class of device that has all metrics, and a note on the others.

    Raises:
        ValueError: No run has all metrics.
    """
    runs = list(rows)
    classes = device_classes(runs, *metrics)
    if not classes:
        raise ValueError(f"no run has all of {', '.join(metrics)}")
    chosen = [run for run in runs if run.device_class == classes[0]]
    left_out = [run for run in runs if run.device_class != classes[0]]
    devices = ", ".join(dict.fromkeys(run.device_class for run in left_out))
    note = f"Not comparable, so not drawn: {len(left_out)} runs on {devices}." if left_out else ""
    return chosen, note


def short(run: Run, name: str) -> str:
    """A figure with its unit, in a few characters."""
    value = shown(run, name)
    if value is None:
        raise ValueError(f"{run.label} has no {name}")
    if name == "throughput":
        return f"{value:,.0f} images/s"
    if name == "inference_time":
        return f"{value:.3f} ms/image"
    unit = {"training_time": "GPU-hours", "params": "M parameters", "flops": "G FLOPs"}.get(name)
    return f"{value:.1f} {unit}" if unit else f"{value:.2f} GiB"


def sizes_of(runs: Iterable[Run]) -> str:
    """The image sizes other than 224 px, for people."""
    sizes = {run.img_size for run in runs} - {224}
    return f"{', '.join(sorted(map(_size, sizes)))} px"


def _size(size: int | tuple[int, int]) -> str:
    return str(size) if isinstance(size, int) else "x".join(map(str, size))


def source_note(runs: Sequence[Run], *more: str, width: int = 150) -> str:
    """Where the figures of a picture come from, wrapped to its width."""
    own = [run for run in runs if is_own(run)]
    parts = []
    if len(own) < len(runs):
        parts.append(f"Benchmark: {len(runs) - len(own)} runs of {PAPER}.")
    if own:
        devices = ", ".join(dict.fromkeys(run.device_class for run in own))
        parts.append(f"Own: {len(own)} measurements on {devices}.")
        if any("top1" in run.corrections for run in own):
            parts.append("Accuracies of own runs are the published ones of model and size.")
    parts += [re.sub(r"\s+", " ", text) for text in more if text]
    return textwrap.fill(" ".join(parts), width)
