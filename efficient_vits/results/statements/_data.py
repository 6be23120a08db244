"""Sections A to D.3: measurements, data sets, classes, devices."""

import dataclasses
import statistics
from collections.abc import Iterable

from efficient_vits.results.correlations import DATASETS, dataset_correlation
from efficient_vits.results.fronts import front
from efficient_vits.results.history import accuracy_per_parameter
from efficient_vits.results.runs import Run, as_rows
from efficient_vits.results.statements._interface import NO_DATA, Checked, families, figure, verdict
from efficient_vits.results.tables import stated, table3, table4
from efficient_vits.results.uncertainty import repeat_spread


def variability() -> Iterable[Checked]:
    """A.4: what repeats of one measurement differ by."""
    speed, time = repeat_spread("throughput"), repeat_spread("training_time")
    for key, statement, spread in (
        ("throughput_relative_std", "standard deviation of throughput over 8 runs of ViT", speed),
        ("epoch_time_relative_std", "standard deviation of fine-tuning time, likewise", time),
    ):
        yield Checked(
            "A.4",
            statement,
            f"{stated(key).value} %",
            f"the 8 runs are not published; over repeats of a network {100 * spread.std:.1f} %, at "
            f"most {100 * spread.widest:.0f} % apart ({spread.group})",
            NO_DATA,
        )
    runs = [run for run in as_rows() if run.img_size == 224 and run.network == "vit_s16"]
    speeds = [run.throughput for run in runs if run.throughput is not None]
    width = (max(speeds) - min(speeds)) / statistics.mean(speeds)
    yield Checked(
        "A.4",
        "the measurements of all efficiency metrics are very robust",
        "range of throughput 0.15 % of the mean",
        f"{len({run.name for run in runs})} names of one network: {min(speeds):.0f} to "
        f"{max(speeds):.0f} images/s, {100 * width:.0f} % of the mean (taken as: below 1 %)",
        verdict(width < 0.01),
    )


def datasets() -> Iterable[Checked]:
    """C: accuracies on four data sets."""
    pairs = {}
    for dataset in DATASETS[1:]:
        for method in ("pearson", "spearman"):
            value = dataset_correlation(dataset, method=method).value
            pairs[dataset, method] = value
            statement = f"correlation of accuracy on {dataset} with ImageNet-1k, {method}"
            yield figure("Table 3", statement, f"{method}_{dataset}", value)
    higher = sum(pairs[d, "spearman"] > pairs[d, "pearson"] for d in DATASETS[1:])
    yield Checked(
        "C",
        "rank correlations between data sets are even higher",
        "all",
        f"{higher} of {len(DATASETS) - 1}",
        verdict(higher == len(DATASETS) - 1),
    )
    base = _dataset_front("imagenet")
    common = {d: len(base & _dataset_front(d)) for d in DATASETS[1:]}
    sizes = {d: len(_dataset_front(d)) for d in DATASETS[1:]}
    yield Checked(
        "C",
        "the front of throughput and accuracy stays largely the same on other data sets",
        "largely the same",
        f"of the {len(base)} models on that of ImageNet-1k, "
        + ", ".join(f"{common[d]} are on that of {d} (of {sizes[d]})" for d in DATASETS[1:])
        + " (taken as: more than half)",
        verdict(all(2 * common[d] > len(base) for d in common)),
    )


def _dataset_front(dataset: str) -> set[str]:
    """Models on the front of throughput at 224 px and accuracy on a data set."""
    fastest: dict[str, Run] = {}
    for run in as_rows():
        known = fastest.get(run.name)
        faster = (run.throughput or 0) > (known.throughput or 0 if known else 0)
        if run.img_size == 224 and faster:
            fastest[run.name] = run
    placed = [
        dataclasses.replace(fastest[row.name], top1=getattr(row, dataset))
        for row in table3()
        if row.name in fastest
    ]
    return set(front(placed).names)


def classes() -> Iterable[Checked]:
    """D.1 and D.2: what was trained, and how accurate the classes are."""
    missing = {"performer_s16", "linear_s16", "halonet_h0", "reformer_s16", "avit_s16", "gtp_s16"}
    trained = missing & {run.name for run in as_rows()}
    yield Checked(
        "D.1",
        "Performer, Linear Transformer, HaloNet, Reformer, A-ViT and GTP are not in the analysis",
        "no runs",
        f"{len(trained)} of {len(missing)} have runs",
        verdict(not trained),
    )
    best: dict[str, float] = {}
    for run in as_rows():
        if run.top1 is not None:
            best[run.taxonomy_class] = max(run.top1, best.get(run.taxonomy_class, 0.0))
    del best["Baseline (ResNet)"]
    lowest = sorted(best, key=best.__getitem__)[:2]
    yield Checked(
        "D.2",
        "fixed and kernel attention have comparatively low accuracies",
        "Fixed Attention, Kernel Attention",
        "lowest best accuracies: " + ", ".join(f"{c} {best[c]:.2f} %" for c in sorted(lowest)),
        verdict(set(lowest) == {"Fixed Attention", "Kernel Attention"}),
    )


def hardware() -> Iterable[Checked]:
    """D.3: speed on different devices."""
    smallest = min(row.spearman for row in table4())
    yield Checked(
        "D.3",
        "Spearman correlations of throughput between devices exceed 75 %",
        f"{smallest:.2f} to {max(row.spearman for row in table4()):.2f}",
        f"only the coefficients of Table 4 are published; the smallest is {smallest:.2f}",
        NO_DATA,
    )
    yield Checked(
        "D.3",
        "correlation of A100 and CPU without the outliers",
        f"{stated('pearson_without_outliers').value} %",
        "throughput on the CPU is not published",
        NO_DATA,
    )
    yield Checked(
        "D.3",
        "the fronts on A100 and CPU are largely the same",
        "largely the same",
        "throughput on the CPU is not published",
        NO_DATA,
    )
    speeds = {run.name: run.throughput for run in accuracy_per_parameter() if run.throughput}
    order = sorted(speeds, key=speeds.__getitem__)
    place = order.index("efficientformerv2_s0") + 1
    yield Checked(
        "D.3",
        "EfficientFormerV2 is one of the slowest models on the GPU",
        "one of the slowest",
        f"number {place} from below of {len(order)} (taken as: the slowest tenth)",
        verdict(place <= len(order) / 10),
    )
    named = {"EfficientFormerV2", "SwiftFormer", "EfficientMod"}
    there = named & families(front())
    yield Checked(
        "D.3",
        "EfficientFormerV2, SwiftFormer, HiViT and EfficientMod are not on the front on the GPU "
        "(and are on the CPU)",
        "none",
        f"{len(there)} of {len(named)} with runs; HiViT's run and the CPU's are not published",
        verdict(not there),
    )
