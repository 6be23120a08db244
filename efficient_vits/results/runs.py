"""Runs: the benchmark's, packaged, and a user's own measurements in the same form.

The packaged table has the 105 runs on ImageNet-1k of "Which Transformer to Favor"
(arXiv 2308.09372): 90 with the exact figures of the authors' published run records, 15 with the
rounded ones of the supplement's Table 6. `Run.source_of` says where a value comes from.
"""

import csv
import dataclasses
import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from efficient_vits import catalog
from efficient_vits.results.metrics import metric

ImgSize = int | tuple[int, int]

# Names of the benchmark that are one network, and the name it goes by here: DeiT-S/16 is ViT-S/16,
# and the benchmark's EViT and EViT-Fuse kept every token.
SAME_NETWORK = {"deit_s16": "vit_s16", "evit_s16": "vit_s16", "evit_fuse_s16": "vit_s16"}

CATALOG = "catalog"


@dataclass(frozen=True)
class Run:
    """One model, trained or measured once. What is not known is None.

    Attributes:
        name: Name in the catalog or in timm.
        img_size: Height and width in pixels; a pair (height, width) where they differ.
        params: Parameters.
        flops: FLOPs per image, a multiply-add being one.
        source: Where the figures come from.
        device: What throughput, memory and training were measured on.
        top1: Top-1 accuracy on the validation set of ImageNet-1k in per cent, of the best epoch.
        top5: Top-5 accuracy, likewise.
        throughput: Images per second at the fastest batch size.
        throughput_batch_size: That batch size.
        throughput_spread: Distance of the quartiles of the time of a batch, relative to its median.
        memory: Peak bytes of inference by batch size. The benchmark measured it inside its training
            process.
        training_memory: Sum of the processes' peaks in bytes, at a global batch of 2048.
        training_time: GPU-seconds of 50 epochs of fine-tuning.
        training_gpus: Processes of the fine-tuning.
        pretrain_size: Pixels of the pre-training images on ImageNet-21k.
        corrections: For single figures that differ from the source's, what was wrong there; for
            figures of another source, which.
        taxonomy_class: The benchmark's class; empty for a model that the catalog does not have.
        axis: What the model changes in a ViT, likewise.
        year: Year of its paper, likewise.
    """

    name: str
    img_size: ImgSize
    params: int
    flops: int
    source: str
    device: str
    top1: float | None = None
    top5: float | None = None
    throughput: float | None = None
    throughput_batch_size: int | None = None
    throughput_spread: float | None = None
    memory: Mapping[int, int] = field(default_factory=dict)
    training_memory: int | None = None
    training_time: float | None = None
    training_gpus: int | None = None
    pretrain_size: int | None = None
    corrections: Mapping[str, str] = field(default_factory=dict)
    taxonomy_class: str = ""
    axis: str = ""
    year: int | None = None

    @property
    def label(self) -> str:
        """The name, with the image size where that is not 224."""
        if self.img_size == 224:
            return self.name
        size = self.img_size
        return f"{self.name}@{size if isinstance(size, int) else 'x'.join(map(str, size))}"

    @property
    def network(self) -> str:
        """The name, or that of the model that the benchmark ran as the same network."""
        return SAME_NETWORK.get(self.name, self.name)

    @property
    def device_class(self) -> str:
        """The device without vendor, form factor and memory size: ``"A100"``, ``"RTX 3090"``."""
        text = re.sub(r"^(NVIDIA|AMD|Intel(\(R\))?)\s+", "", self.device)
        text = re.sub(r"^GeForce\s+", "", text)
        return re.sub(r"[- ](SXM\d?|PCIe|PCIE|\d+ ?GB)\b.*$", "", text)

    @property
    def inference_time(self) -> float | None:
        """Seconds per image."""
        return None if self.throughput is None else 1 / self.throughput

    @property
    def accuracy_per_parameter(self) -> float | None:
        """Top-1 accuracy in per cent per million parameters."""
        return None if self.top1 is None else self.top1 / (self.params / 1e6)

    def value(self, name: str) -> float | None:
        """The figure of a metric, such as ``"throughput"`` or ``"memory_64"``.

        Raises:
            ValueError: No such metric.
        """
        column = metric(name).column
        batch = re.fullmatch(r"memory_(\d+)", column)
        return self.memory.get(int(batch[1])) if batch else getattr(self, column)

    def source_of(self, column: str) -> str:
        """Where the value of one column comes from.

        Raises:
            ValueError: No such column.
        """
        if column not in _columns([self]):
            raise ValueError(f"no column {column!r}; accepted are {', '.join(_columns([self]))}")
        if column in self.corrections:
            return f"{self.source}; {self.corrections[column]}"
        if column in ("taxonomy_class", "axis", "year"):
            return CATALOG
        return self.source


_INTEGERS = ("params", "flops", "training_memory", "training_gpus", "throughput_batch_size")
_FLOATS = ("training_time", "throughput", "top1", "top5")
_MEASURED = (*_FLOATS, "throughput_spread", "inference_time", "accuracy_per_parameter")
_FIELDS = [f.name for f in dataclasses.fields(Run) if f.name not in ("memory", "corrections")]
_DERIVED = ("inference_time", "accuracy_per_parameter", "device_class")


def from_catalog(name: str) -> dict[str, Any]:
    """What the catalog knows about a model, as fields of a run; nothing for other models."""
    card = catalog.cards().get(name)
    if card is None:
        return {}
    return {"taxonomy_class": card.taxonomy_class, "axis": card.axis, "year": card.year}


def data_rows(file: str) -> list[dict[str, str]]:
    """Rows of one of the packaged tables, as text."""
    table = resources.files("efficient_vits.results").joinpath("data").joinpath(file)
    return list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))


def _parse(row: Mapping[str, str]) -> Run:
    figures: dict[str, Any] = {key: int(row[key]) for key in _INTEGERS if row[key]}
    figures |= {key: float(row[key]) for key in _FLOATS if row[key]}
    batches = [int(key.removeprefix("memory_")) for key in row if key.startswith("memory_")]
    return Run(
        name=row["name"],
        img_size=int(row["img_size"]),
        pretrain_size=int(row["pretrain_size"]),
        memory={b: int(row[f"memory_{b}"]) for b in batches if row[f"memory_{b}"]},
        source=row["source"],
        device=row["device"],
        corrections=json.loads(row["corrections"] or "{}"),
        **figures,
        **from_catalog(row["name"]),
    )


@functools.cache
def _packaged() -> tuple[Run, ...]:
    return tuple(_parse(row) for row in data_rows("runs.csv"))


def load_rows(*measurements: Any) -> list[Run]:
    """The benchmark's runs, and after them the user's own.

    Args:
        measurements: Each what `read_measurements` takes: the file of ``efficient-vits measure
            --json``, or measurements.

    Raises:
        ValueError, OSError: As `read_measurements`.
    """
    from efficient_vits.results.measurements import read_measurements

    own = [run for source in measurements for run in read_measurements(source)]
    return [*_packaged(), *own]


def load_runs(*measurements: Any) -> Any:
    """`load_rows` as a pandas frame, one row per run.

    The columns are the attributes of `Run`, one column ``memory_<batch size>`` per batch size, the
    derived ``inference_time``, ``accuracy_per_parameter`` and ``device_class``, and
    ``corrections``. ``source`` is that of a row's figures; where single ones differ,
    ``corrections`` says so. The frame goes into every function here that takes runs.

    Args:
        measurements: As `load_rows`.

    Raises:
        ImportError: pandas is not installed.
        ValueError, OSError: As `load_rows`.
    """
    return to_frame(load_rows(*measurements))


def to_frame(runs: Iterable[Run]) -> Any:
    """Runs as a pandas frame, see `load_runs`.

    Raises:
        ImportError: pandas is not installed.
    """
    pandas = _pandas()
    rows = list(runs)
    columns = _columns(rows)
    records = [
        {
            column: run.value(column) if column.startswith("memory_") else getattr(run, column)
            for column in columns
        }
        for run in rows
    ]
    frame = pandas.DataFrame(records, columns=columns)
    whole = [*_INTEGERS, "pretrain_size", "year", *(c for c in columns if c.startswith("memory_"))]
    types = dict.fromkeys(whole, "Int64") | dict.fromkeys(_MEASURED, "float64")
    return frame.astype(types)


def as_rows(runs: Any = None) -> list[Run]:
    """Runs as a list: the benchmark's for None, a frame of `load_runs`, or an iterable of runs.

    Raises:
        ValueError: Something else, or a frame without the columns of `load_runs`.
    """
    if runs is None:
        return list(_packaged())
    if hasattr(runs, "columns") and hasattr(runs, "to_dict"):
        return _from_frame(runs)
    rows = list(runs) if isinstance(runs, Iterable) else [runs]
    strange = next((row for row in rows if not isinstance(row, Run)), None)
    if strange is not None:
        raise ValueError(
            f"runs are a frame of load_runs() or Run objects, got {type(strange).__name__}"
        )
    return rows


def _from_frame(frame: Any) -> list[Run]:
    missing = [c for c in [*_FIELDS, "corrections"] if c not in frame.columns]
    if missing:
        raise ValueError(f"a frame of load_runs() has columns {', '.join(missing)}, this one not")
    pandas = _pandas()
    rows = []
    for record in frame.to_dict("records"):
        known = {
            key: value
            for key, value in record.items()
            if isinstance(value, tuple | Mapping) or not pandas.isna(value)
        }
        memory = {
            int(key.removeprefix("memory_")): int(value)
            for key, value in known.items()
            if re.fullmatch(r"memory_\d+", str(key))
        }
        fields = {key: known[key] for key in [*_FIELDS, "corrections"] if key in known}
        for key in [*_INTEGERS, "pretrain_size", "year"]:
            if key in fields:
                fields[key] = int(fields[key])
        rows.append(Run(memory=memory, **fields))
    return rows


def _columns(runs: Sequence[Run]) -> list[str]:
    batches = sorted({1, 64} | {batch for run in runs for batch in run.memory})
    return [*_FIELDS, *(f"memory_{b}" for b in batches), *_DERIVED, "corrections"]


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            "the frame needs pandas: pip install 'efficient-vits[results]'; "
            "load_rows() gives the same rows without it"
        ) from error
    return pandas
