"""Table 5 of the supplement rebuilt from the runs: which families are on which front.

A front has accuracy as one objective and the task's metric as the other, over all runs at both
image sizes. What differs from the printed table is explained from the figures.
"""

from dataclasses import dataclass

from efficient_vits.results.fronts import Front, front
from efficient_vits.results.pareto import pareto_mask
from efficient_vits.results.runs import Run, as_rows
from efficient_vits.results.tables import TASKS, OptimalModels, table3, table5
from efficient_vits.results.uncertainty import membership

# The metric that each column of the table is about.
TASK_METRICS = dict(
    zip(TASKS, ("throughput", "training_time", "memory", "training_memory"), strict=True)
)

# Printed name of a family, and how the catalog's names of its models begin.
FAMILIES = {
    "ViT": "vit_",
    "DeiT": "deit_",
    "ResNet": "resnet",
    "Nystrom": "nystrom",
    "Linformer": "linformer",
    "XCiT": "xcit",
    "SwinV2": "swinv2",
    "Swin": "swin_",
    "Sinkhorn": "sinkhorn",
    "Routing": "routing",
    "WaveViT": "wavevit",
    "Informer": "informer",
    "Synthesizer-FD": "synthesizer_fd",
    "Synthesizer-FR": "synthesizer_fr",
    "PolySA": "polysa",
    "SLAB": "slab",
    "Hydra": "hydra",
    "EfficientFormerV2": "efficientformerv2",
    "CvT": "cvt",
    "CoaT": "coat",
    "EfficientViT": "efficientvit",
    "NextViT": "nextvit",
    "ResT": "rest_",
    "Mixer": "mixer",
    "FocalNet": "focalnet",
    "SwiftFormer": "swiftformer",
    "FastViT": "fastvit",
    "EfficientMod": "efficientmod",
    "FNet": "fnet",
    "GFNet": "gfnet",
    "AFNO": "afno",
    "EViT": "evit_s16",
    "EViT Fuse": "evit_fuse",
    "DynamicViT": "dynamicvit",
    "ToMe": "tome",
    "TokenLearner": "tokenlearner",
    "STViT": "stvit",
    "CaiT": "cait",
    "Switch": "switch",
    "HiViT": "hivit",
}

# From this size on the table marks images by @384; two families ran at 382.
_LARGE = 300


@dataclass(frozen=True)
class Cell:
    """One class and one task.

    Attributes:
        taxonomy_class: The benchmark's class.
        task: One of `TASKS`.
        printed: Families as printed.
        rebuilt: Families that the runs put on the front.
        reasons: For each family in one and not the other, why.
    """

    taxonomy_class: str
    task: str
    printed: tuple[str, ...]
    rebuilt: tuple[str, ...]
    reasons: dict[str, str]


def family_of(run: Run) -> str:
    """The printed name of a run's family, with ``@384`` for the larger images.

    Raises:
        ValueError: The model is none of the benchmark's.
    """
    for family, beginning in FAMILIES.items():
        if run.name.startswith(beginning):
            large = isinstance(run.img_size, int) and run.img_size >= _LARGE
            return f"{family}@384" if large else family
    raise ValueError(f"{run.name!r} belongs to no family of the benchmark")


def architectures() -> dict[str, int]:
    """How many families Table 3 has of each class; ResNet is counted among the baselines."""
    families: dict[str, set[str]] = {}
    for row in table3():
        family = next(f for f, beginning in FAMILIES.items() if row.name.startswith(beginning))
        if family.startswith("Synthesizer"):
            family = row.name
        families.setdefault(row.taxonomy_class.split(" (")[0], set()).add(family)
    return {name: len(members) for name, members in families.items()}


def table5_rebuilt() -> list[Cell]:
    """All cells of Table 5 that are printed or rebuilt with some family, by class and task."""
    runs = as_rows()
    cells = []
    for task, metric in TASK_METRICS.items():
        objectives = ("accuracy", metric)
        found = front(runs, objectives)
        sure = {m.label: m.probability for m in membership(runs, objectives, by="model", draws=300)}
        for row in table5():
            cells.append(_cell(row, task, metric, found, sure))
    order = [row.taxonomy_class for row in table5()]
    cells.sort(key=lambda cell: (order.index(cell.taxonomy_class), TASKS.index(cell.task)))
    return [cell for cell in cells if cell.printed or cell.rebuilt]


def _cell(row: OptimalModels, task: str, metric: str, found: Front, sure: dict[str, float]) -> Cell:
    members = [r for r in found.members if r.taxonomy_class == row.taxonomy_class]
    rebuilt = tuple(dict.fromkeys(map(family_of, members)))
    printed = row.families[task]
    reasons = {
        family: _why_missing(family, metric, found, sure)
        for family in printed
        if family not in rebuilt
    }
    for family in rebuilt:
        if family not in printed:
            runs = [run for run in members if family_of(run) == family]
            reasons[family] = _why_added(runs, metric, found, sure)
    return Cell(row.taxonomy_class, task, printed, rebuilt, reasons)


def _why_missing(family: str, metric: str, found: Front, sure: dict[str, float]) -> str:
    runs = [run for run in found.dominated if family_of(run) == family]
    if not runs:
        lacking = [run for run in found.incomplete if family_of(run) == family]
        return _unpublished(max(lacking, key=lambda run: run.top1 or 0), found)
    best = min(runs, key=lambda run: len(found.dominators(run)))
    other = found.dominators(best)[0]
    text = f"{_figures(best, metric)} is dominated by {_figures(other, metric)}"
    if best.network == other.network:
        text += ", the same network"
    return f"{text}; on the front in {sure[best.label]:.0%} of draws"


def _unpublished(run: Run, found: Front) -> str:
    """Inference memory at batch 1 that was not published, bounded by that at batch 64."""
    bound = run.memory[64]
    better = [
        other
        for other in (*found.members, *found.dominated)
        if (other.top1 or 0) >= (run.top1 or 0) and other.memory[1] <= bound
    ]
    text = f"no figure at batch 1 was published; at batch 64 it is {bound / 2**30:.2f} GiB"
    if not better:
        return f"{text}, which no run dominates: with any figure at batch 1 it is on the front"
    least = min(better, key=lambda other: other.memory[1])
    limit = least.memory[1] / 2**30
    return f"{text}; it is on the front if batch 1 takes less than the {limit:.2f} of {least.label}"


def _why_added(runs: list[Run], metric: str, found: Front, sure: dict[str, float]) -> str:
    best = max(runs, key=lambda run: sure[run.label])
    text = f"no run dominates {_figures(best, metric)}"
    bounded = [
        run
        for run in found.incomplete
        if metric == "memory"
        and (run.top1 or 0) >= (best.top1 or 0)
        and run.memory[64] <= best.memory[1]
    ]
    everyone = (*found.members, *found.dominated)
    points = [(run.top1 or 0.0, _as_printed(run, metric)) for run in everyone]
    mask = pareto_mask(points, list(found.objectives.values()))
    if bounded:
        text += f" but {bounded[0].label}, whose figure at batch 64 is as small already"
    elif not any(on for run, on in zip(everyone, mask, strict=True) if run in runs):
        text += ", but with the digits of the printed table one does"
    return f"{text}; on the front in {sure[best.label]:.0%} of draws"


def _as_printed(run: Run, metric: str) -> float:
    value = run.value(metric) or 0.0
    if metric == "training_time":
        return round(value / 3600, 1)
    return value if metric == "throughput" else round(value / 2**30, 2)


def _figures(run: Run, metric: str) -> str:
    value = _as_printed(run, metric)
    unit = {"throughput": "images/s", "training_time": "GPU-hours"}.get(metric, "GiB")
    return f"{run.label} ({run.top1} %, {value:g} {unit})"
