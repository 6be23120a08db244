"""The front over publication years, and accuracy per parameter."""

from dataclasses import dataclass
from typing import Any

from efficient_vits.results.fronts import SPEED, Front, Objectives, front, on_device
from efficient_vits.results.metrics import objectives_of
from efficient_vits.results.runs import Run, as_rows


@dataclass(frozen=True)
class YearFront:
    """The front of what was published up to the end of a year.

    Attributes:
        year: The year, of the paper's first public version.
        front: The front.
        added: Labels on it that the front of the year before has not.
        dropped: Labels that only that one has.
        hypervolume: Volume that it dominates above the worst figures of all runs.
    """

    year: int
    front: Front
    added: tuple[str, ...]
    dropped: tuple[str, ...]
    hypervolume: float


def fronts_by_year(
    runs: Any = None, objectives: Objectives = SPEED, *, device: str | None = None
) -> list[YearFront]:
    """The front of each year in which a model was published, from the first to the last.

    Args:
        runs: A frame of `load_runs`, or runs; by default the benchmark's. Those of models whose
            year the catalog does not know are left out.
        objectives: As `front`.
        device: As `front`.

    Raises:
        ValueError: As `front`; or no run has a year.
    """
    chosen = objectives_of(objectives)
    rows = on_device(as_rows(runs), device, chosen)
    known = [run for run in rows if run.year is not None]
    if not known:
        raise ValueError("no run is of a model whose year the catalog knows")
    reference = {name: _worst(known, name, direction) for name, direction in chosen.items()}
    years: list[YearFront] = []
    for year in sorted({run.year for run in known if run.year is not None}):
        current = front([run for run in known if (run.year or 0) <= year], chosen)
        before = years[-1].front.names if years else []
        years.append(
            YearFront(
                year=year,
                front=current,
                added=tuple(name for name in current.names if name not in before),
                dropped=tuple(name for name in before if name not in current.names),
                hypervolume=current.hypervolume(reference),
            )
        )
    return years


def accuracy_per_parameter(runs: Any = None, *, img_size: int = 224) -> list[Run]:
    """The most accurate run of each model at one image size, by rising accuracy.

    Its ``accuracy_per_parameter`` is in per cent per million parameters.

    Args:
        runs: A frame of `load_runs`, or runs; by default the benchmark's.
        img_size: Pixels.

    Raises:
        ValueError: No run with an accuracy is of this size.
    """
    best: dict[str, Run] = {}
    for run in as_rows(runs):
        if run.img_size == img_size and run.top1 is not None:
            known = best.get(run.name)
            if known is None or run.top1 > (known.top1 or 0):
                best[run.name] = run
    if not best:
        raise ValueError(f"no run with an accuracy has img_size={img_size!r}")
    return sorted(best.values(), key=lambda run: (run.top1 or 0, run.name))


def _worst(runs: list[Run], name: str, direction: str) -> float:
    values = [value for run in runs if (value := run.value(name)) is not None]
    return min(values) if direction == "max" else max(values)
