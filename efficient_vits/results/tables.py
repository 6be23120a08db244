"""The tables of the paper's supplement as printed, typed: misprints are kept.

Source of every value is the table of its number in the supplementary material of "Which Transformer
to Favor" (arXiv 2308.09372); each row says so in `source`. Tables 1 to 5 are complete. The text
that Table 6 was taken from ends within its row of EViT Fuse at 384 px. `stated` has the figures
that stand in the supplement's text.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from efficient_vits.results.runs import data_rows

# The columns of Table 5.
TASKS = ("inference_speed", "training_speed", "inference_memory", "training_memory")


@dataclass(frozen=True)
class Setting:
    """A row of Table 1, the training pipeline: what pre-training and fine-tuning use."""

    parameter: str
    pretrain: str
    finetune: str
    source: ClassVar[str] = "supplement, Table 1"


@dataclass(frozen=True)
class DatasetSetting:
    """A row of Table 2: what fine-tuning on other data sets uses instead."""

    parameter: str
    cars: float
    flowers: float
    places: float
    source: ClassVar[str] = "supplement, Table 2"


@dataclass(frozen=True)
class DatasetAccuracy:
    """A row of Table 3: top-1 accuracy in per cent by data set, None where there is none.

    Attributes:
        name: Name in the catalog.
        printed_model: Name in the table.
        taxonomy_class: The benchmark's class.
        imagenet: On ImageNet-1k.
        cars: On Stanford Cars.
        flowers: On Oxford Flowers 102.
        places: On Places365.
    """

    name: str
    printed_model: str
    taxonomy_class: str
    imagenet: float
    cars: float | None
    flowers: float | None
    places: float | None
    source: ClassVar[str] = "supplement, Table 3"


@dataclass(frozen=True)
class HardwareCorrelation:
    """An entry of Table 4: correlations of throughput on two devices."""

    first: str
    second: str
    pearson: float
    spearman: float
    source: ClassVar[str] = "supplement, Table 4"


@dataclass(frozen=True)
class OptimalModels:
    """A row of Table 5: the Pareto-optimal families of a class.

    Attributes:
        taxonomy_class: The benchmark's class.
        architectures: How many the class has.
        families: Printed names by task (`TASKS`); ``@384`` marks the larger images.
    """

    taxonomy_class: str
    architectures: int
    families: Mapping[str, tuple[str, ...]]
    source: ClassVar[str] = "supplement, Table 5"


@dataclass(frozen=True)
class PrintedRun:
    """A row of Table 6 as printed; None where the text ends.

    Attributes:
        name: Name in the catalog of the model that is printed.
        printed_model: Name in the table.
        taxonomy_class: The benchmark's class.
        pretrain_size: Pixels of the pre-training images.
        img_size: Pixels of the fine-tuning images.
        params_millions: Parameters.
        gflops: FLOPs per image, a multiply-add being one.
        training_memory_gb: In GiB.
        memory_gb: Inference memory in GiB, see `memory_is_batch_64`.
        training_gpu_hours: Hours of fine-tuning times GPUs.
        throughput: Images per second.
        throughput_batch_size: At this batch size.
        top1: Accuracy in per cent.
        top5: Accuracy in per cent.
        run_parameters: Settings other than those of Table 1.
    """

    name: str
    printed_model: str
    taxonomy_class: str
    pretrain_size: int
    img_size: int
    params_millions: float
    gflops: float
    training_memory_gb: float
    memory_gb: float
    training_gpu_hours: float
    throughput: float | None
    throughput_batch_size: int | None
    top1: float | None
    top5: float | None
    run_parameters: str
    source: ClassVar[str] = "supplement, Table 6"


@dataclass(frozen=True)
class Stated:
    """A figure that the supplement's text gives.

    Attributes:
        key: What it is called here.
        value: The figure as printed.
        unit: Its unit.
        section: Where it stands.
    """

    key: str
    value: str
    unit: str
    section: str

    @property
    def number(self) -> float:
        return float(self.value)


def table1() -> list[Setting]:
    """Hyperparameters of the training pipeline."""
    return [Setting(**row) for row in data_rows("table1.csv")]


def table2() -> list[DatasetSetting]:
    """Hyperparameters for the other data sets."""
    return [
        DatasetSetting(
            row["parameter"], float(row["cars"]), float(row["flowers"]), float(row["places"])
        )
        for row in data_rows("table2.csv")
    ]


def table3() -> list[DatasetAccuracy]:
    """Accuracy on four data sets."""
    return [
        DatasetAccuracy(
            name=row["name"],
            printed_model=row["printed_model"],
            taxonomy_class=row["taxonomy_class"],
            imagenet=float(row["imagenet"]),
            cars=_number(row["cars"]),
            flowers=_number(row["flowers"]),
            places=_number(row["places"]),
        )
        for row in data_rows("table3.csv")
    ]


def table4() -> list[HardwareCorrelation]:
    """Correlations of throughput between devices; the throughputs were not published."""
    return [
        HardwareCorrelation(
            row["first"], row["second"], float(row["pearson"]), float(row["spearman"])
        )
        for row in data_rows("table4.csv")
    ]


def table5() -> list[OptimalModels]:
    """Pareto-optimal models by class; `table5_rebuilt` makes it from the runs."""
    return [
        OptimalModels(
            row["taxonomy_class"],
            int(row["architectures"]),
            {task: tuple(filter(None, row[task].split("; "))) for task in TASKS},
        )
        for row in data_rows("table5.csv")
    ]


def table6() -> list[PrintedRun]:
    """All runs on ImageNet as printed; `load_rows` has the mended figures."""
    return [
        PrintedRun(
            name=row["name"],
            printed_model=row["printed_model"],
            taxonomy_class=row["taxonomy_class"],
            pretrain_size=int(row["pretrain_size"]),
            img_size=int(row["img_size"]),
            params_millions=float(row["params_millions"]),
            gflops=float(row["gflops"]),
            training_memory_gb=float(row["training_memory_gb"]),
            memory_gb=float(row["memory_gb"]),
            training_gpu_hours=float(row["training_gpu_hours"]),
            throughput=_number(row["throughput"]),
            throughput_batch_size=int(row["throughput_batch_size"] or 0) or None,
            top1=_number(row["top1"]),
            top5=_number(row["top5"]),
            run_parameters=row["run_parameters"],
        )
        for row in data_rows("table6.csv")
    ]


@functools.cache
def _stated() -> dict[str, Stated]:
    return {row["key"]: Stated(**row) for row in data_rows("stated.csv")}


def stated(key: str) -> Stated:
    """A figure of the supplement's text.

    Raises:
        ValueError: No such figure; the message has those there are.
    """
    if key not in _stated():
        raise ValueError(f"the supplement states no {key!r}; accepted are {', '.join(_stated())}")
    return _stated()[key]


def _number(text: str) -> float | None:
    return float(text) if text else None
