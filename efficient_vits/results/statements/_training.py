"""Sections D.8 to D.10: fine-tuning time, training memory, Table 5."""

from collections.abc import Iterable

from efficient_vits.results.correlations import metric_correlation
from efficient_vits.results.fronts import front
from efficient_vits.results.memory_model import MemoryModel, fit_memory
from efficient_vits.results.runs import Run, as_rows
from efficient_vits.results.statements._interface import Checked, families, figure, verdict
from efficient_vits.results.table5 import architectures, table5_rebuilt
from efficient_vits.results.tables import TASKS, table5


def training() -> Iterable[Checked]:
    """D.8 and D.9: fine-tuning time and training memory."""
    yield figure(
        "D.8",
        "correlation of fine-tuning time and inference time",
        "training_time_inference_time",
        metric_correlation("training_time", "inference_time").value,
    )
    recorded_all = [run for run in as_rows() if run.source == "published run records"]
    recorded = [run for run in recorded_all if run.pretrain_size == 224]
    part = metric_correlation("training_memory", "inference_time", recorded)
    yield figure(
        "D.9",
        "correlation of training memory and inference time",
        "training_memory_inference_time",
        metric_correlation("training_memory", "inference_time").value,
        f"; {part.value:.2f} over the {part.count} run records with pre-training at 224 px",
    )
    model = fit_memory()
    yield figure(
        "D.9",
        "correlation of FLOPs and training memory",
        "flops_training_memory",
        metric_correlation("flops", "training_memory").value,
        f"; {model.correlation:.3f} over the {model.count} run records",
    )
    yield figure(
        "D.9",
        "slope of training memory on FLOPs",
        "memory_slope",
        model.slope,
        " (95 %: {:.1f} to {:.1f})".format(*model.slope_interval),
    )
    low, high = (end / 2**30 for end in model.intercept_interval)
    yield figure(
        "D.9",
        "intercept of training memory on FLOPs",
        "memory_intercept",
        model.intercept / 2**30,
        f", as GiB (95 %: {low:.1f} to {high:.1f})",
    )
    outside = [run for run in recorded_all if _residual(run, model) > 3 * model.residual]
    yield Checked(
        "D.9",
        "there are no significant outliers from the line",
        "none",
        f"{len(outside)} of {model.count} runs are more than 3 standard deviations away"
        + (f" ({', '.join(sorted({run.label for run in outside}))})" if outside else ""),
        verdict(not outside),
    )
    speed = families(front())
    for section, name, metric in (
        ("D.8", "fine-tuning time", "training_time"),
        ("D.9", "training memory", "training_memory"),
    ):
        other = families(front(objectives=("accuracy", metric)))
        yield Checked(
            section,
            f"the front of {name} is similar to that of throughput",
            "similar",
            f"{len(speed & other)} of {len(other)} families are on that of throughput, which has "
            f"{len(speed)} (taken as: more than half)",
            verdict(2 * len(speed & other) > len(other)),
        )


def _residual(run: Run, model: MemoryModel) -> float:
    """Distance of a run from the line in bytes; 0 where its memory is not known."""
    if run.training_memory is None:
        return 0.0
    return abs(run.training_memory - model.predict(run.flops))


def optimal() -> Iterable[Checked]:
    """Table 5."""
    printed = {row.taxonomy_class: row.architectures for row in table5()}
    counted = architectures()
    same = sum(counted.get(name) == number for name, number in printed.items())
    yield Checked(
        "Table 5",
        "number of architectures of each class",
        ", ".join(str(number) for number in printed.values()),
        f"{same} of {len(printed)} as in Table 3",
        verdict(same == len(printed)),
    )
    cells = table5_rebuilt()
    for task in TASKS:
        there = {family for cell in cells if cell.task == task for family in cell.printed}
        ours = {family for cell in cells if cell.task == task for family in cell.rebuilt}
        missing, added = sorted(there - ours), sorted(ours - there)
        text = f"{len(there & ours)} of them"
        text += f", not {', '.join(missing)}" if missing else ""
        text += f", but {', '.join(added)}" if added else ""
        yield Checked(
            "Table 5",
            f"Pareto-optimal families for {task.replace('_', ' ')}",
            f"{len(there)} families",
            text,
            verdict(there == ours),
        )
