"""A user's own measurements as runs: what ``measure --json``, sweeps and training runs write."""

import dataclasses
import json
import warnings
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from efficient_vits.results.runs import ImgSize, Run, as_rows, from_catalog

_BATCH, _EPOCHS, _CLASSES = 2048, 50, 1000  # of the benchmark's fine-tuning

_NEEDED = ("name", "parameters", "flops", "input_size", "environment")


def read_measurements(
    source: Any, *, accuracy: Mapping[tuple[str, ImgSize], float] | None = None
) -> list[Run]:
    """Runs of the user's own measurements.

    A measurement has no accuracy unless its row brings ``"top1"`` (and ``"top5"``), in per cent, or
    `accuracy` has one. A row of a model that could not be measured is left out with a warning.

    The ``result.json`` of a training run also brings what training cost on accelerators, where that
    compares with the benchmark's: memory of updates of 2048 images, time of a checkpoint that was
    fine-tuned for 1000 classes. `Run.corrections` says what was learnt, and where the time was
    scaled to 50 epochs.

    Args:
        source: A file of JSON (a list, or one object per line as sweeps write them), a
            `efficient_vits.efficiency.Measurement`, its ``to_dict()``, a `Run`, or an iterable of
            these.
        accuracy: Top-1 accuracy in per cent by (name, img_size); `published_accuracy()` has the
            benchmark's.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not JSON, or a row lacks what a measurement has.
    """
    if isinstance(source, str | PathLike):
        return [_borrow(_run(row, str(source)), accuracy) for row in _usable(_rows(Path(source)))]
    if isinstance(source, Run):
        return [_borrow(source, accuracy)]
    if isinstance(source, Mapping) or hasattr(source, "to_dict"):
        row = source if isinstance(source, Mapping) else source.to_dict()
        return [_borrow(_run(row, "own measurement"), accuracy) for row in _usable([row])]
    if isinstance(source, Iterable):
        return [run for part in source for run in read_measurements(part, accuracy=accuracy)]
    raise ValueError(
        f"measurements are a file, a Measurement, its to_dict() or several of these, got "
        f"{type(source).__name__}"
    )


def published_accuracy(runs: Any = None) -> dict[tuple[str, ImgSize], float]:
    """The best top-1 accuracy in per cent of each model at each image size.

    Args:
        runs: By default the benchmark's.
    """
    best: dict[tuple[str, ImgSize], float] = {}
    for run in as_rows(runs):
        if run.top1 is not None:
            key = (run.name, run.img_size)
            best[key] = max(run.top1, best.get(key, run.top1))
    return best


def _rows(path: Path) -> list[Any]:
    text = path.read_text(encoding="utf-8")
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:
        try:
            return _of_lines(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path} is neither JSON nor one JSON object per line: {error}"
            ) from error
    return whole if isinstance(whole, list) else [whole]


def _of_lines(text: str) -> list[Any]:
    """One object per line; of a sweep's rows, which have keys, the last of each key."""
    *lines, rest = text.split("\n")
    rows = [json.loads(line) for line in lines if line.strip()]
    try:
        rows += [json.loads(rest)] if rest.strip() else []
    except json.JSONDecodeError:
        # A sweep that is at work, or was killed, may not have written all of its last line.
        if not _have_keys(rows):
            raise
    return list({row["key"]: row for row in rows}.values()) if _have_keys(rows) else rows


def _have_keys(rows: list[Any]) -> bool:
    return bool(rows) and all(isinstance(row, Mapping) and "key" in row for row in rows)


def _usable(rows: Iterable[Any]) -> list[Mapping[str, Any]]:
    usable, failed = [], []
    for row in rows:
        if isinstance(row, Mapping) and "error" in row:
            failed.append(f"{row.get('name')}: {row['error']}")
        else:
            usable.append(row)
    if failed:
        warnings.warn(f"left out, not measured: {'; '.join(failed)}", stacklevel=4)
    return usable


def _run(row: Any, source: str) -> Run:
    if not isinstance(row, Mapping) or any(key not in row for key in _NEEDED):
        given = ", ".join(row) if isinstance(row, Mapping) else type(row).__name__
        raise ValueError(
            f"{source} has a row that is no measurement ({given}); one has {', '.join(_NEEDED)}"
        )
    try:
        return _from_measured(row, source)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{source} has a row of {row['name']!r} that is no measurement ({what})"
        ) from error


def _from_measured(row: Mapping[str, Any], source: str) -> Run:
    height, width = row["input_size"][-2:]
    speed, memory, training = (row.get(key) for key in ("throughput", "memory", "training"))
    return Run(
        name=row["name"],
        img_size=height if height == width else (height, width),
        params=row["parameters"],
        flops=row["flops"]["total"],
        source=source,
        device=_device(row["environment"], speed or memory or training),
        top1=row.get("top1"),
        top5=row.get("top5"),
        throughput=speed["images_per_second"] if speed else None,
        throughput_batch_size=speed["batch_size"] if speed else None,
        throughput_spread=speed["spread"] if speed else None,
        memory={memory["batch_size"]: memory["peak_bytes"]} if memory else {},
        **(_trained(row, training) if training else {}),
        **from_catalog(row["name"]),
    )


def _trained(row: Mapping[str, Any], training: Mapping[str, Any]) -> dict[str, Any]:
    """What training cost and began with, as fields of a run."""
    batch, epochs, lineage = training["batch"], training["epochs"], row["lineage"]
    fields: dict[str, Any] = {}
    notes = {"top1": f"on {row['data']}", "top5": f"on {row['data']}"}
    if lineage:
        fields["pretrain_size"] = lineage[0]["recipe"]["img_size"]
        notes["pretrain_size"] = f"on {lineage[0]['data']}"
    if training["peak_memory"] is None:  # not on CUDA
        return {**fields, "corrections": notes}
    fields["training_gpus"] = batch["processes"]
    if batch["total"] == _BATCH:
        fields["training_memory"] = training["peak_memory"]
        notes["training_memory"] = f"{batch['accumulation']} passes per update"
    if lineage and row["num_classes"] == _CLASSES:
        fields["training_time"] = training["gpu_hours"] * 3600 * _EPOCHS / epochs
        scaled = "" if epochs == _EPOCHS else f", {epochs} epochs scaled to {_EPOCHS}"
        notes["training_time"] = f"on {row['data']}{scaled}"
    return {**fields, "corrections": notes}


def _device(environment: Mapping[str, Any], measured: Mapping[str, Any] | None) -> str:
    kind = "cpu" if measured is None else str(measured["device"])
    if kind.startswith("cuda"):
        return str(environment.get("device", kind))
    return str(environment.get("cpu", kind)) if kind == "cpu" else kind


def _borrow(run: Run, accuracy: Mapping[tuple[str, ImgSize], float] | None) -> Run:
    known = (accuracy or {}).get((run.name, run.img_size))
    if run.top1 is not None or known is None:
        return run
    return dataclasses.replace(
        run,
        top1=known,
        corrections={**run.corrections, "top1": "published for this model and size"},
    )
