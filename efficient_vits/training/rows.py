"""What a run writes down: a row per epoch, and one for the whole run."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from efficient_vits.efficiency import count_flops, count_parameters
from efficient_vits.training.batches import BatchPlan
from efficient_vits.training.recipe import Recipe


@dataclass(frozen=True)
class EpochRow:
    """One epoch. A line of ``epochs.jsonl``.

    Attributes:
        epoch: Number, from 1.
        updates: Updates done since the beginning of the run.
        lr: Learning rate of the last update.
        losses: Mean of each term of the loss over all updates and processes.
        gradient_norm: Mean before clipping; None if all updates were left out.
        top1: Accuracy on the test part in per cent.
        top5: Likewise among five; None for five classes or fewer.
        test_loss: Cross entropy there.
        ema_top1: Accuracy of the averaged weights, None without averaging.
        seconds: Training, without evaluation.
        images_per_second: Training images of all processes.
        gpu_hours: `seconds` times the processes, in hours.
        peak_memory: Bytes, summed over the processes' peaks as the benchmark does; None on the CPU.
        skipped_updates: Left out because their gradients were too large for float16.
        ema_top5: As `top5`, of the averaged weights.
    """

    epoch: int
    updates: int
    lr: float
    losses: dict[str, float]
    gradient_norm: float | None
    top1: float
    top5: float | None
    test_loss: float
    ema_top1: float | None
    seconds: float
    images_per_second: float
    gpu_hours: float
    peak_memory: int | None
    skipped_updates: int = 0
    ema_top5: float | None = None

    @property
    def accuracy(self) -> tuple[float, float | None]:
        """Top-1 and top-5 of the weights that `evaluate` and `finetune` take: averaged or plain."""
        if self.ema_top1 is None:
            return self.top1, self.top5
        return self.ema_top1, self.ema_top5


def best_epoch(history: Sequence[EpochRow]) -> EpochRow:
    """The most accurate epoch; the first of equal ones."""
    return max(history, key=lambda row: row.accuracy[0])


def result_row(
    model: nn.Module,
    identity: Mapping[str, Any],
    recipe: Recipe,
    history: Sequence[EpochRow],
    plan: BatchPlan,
    facts: Mapping[str, Any],
    *,
    device: str,
    sharded: bool = False,
) -> dict[str, Any]:
    """The whole run as a row that `efficient_vits.results` reads beside measurements.

    Args:
        model: What was trained.
        identity: Model, arguments, data, seed and lineage.
        recipe: How it was trained.
        history: All epochs.
        plan: How a batch was spread.
        facts: As `efficiency.environment` gives.
        device: Kind of device that the processes were on, such as "cuda".
        sharded: Whether each process had a part of the parameters only.

    Returns:
        Accuracy of the best epoch in per cent (of the averaged weights if the run keeps them),
        parameters, FLOPs, and what the training cost.
    """
    input_size = (3, recipe.img_size, recipe.img_size)
    best = best_epoch(history)
    top1, top5 = best.accuracy
    memory = [row.peak_memory for row in history if row.peak_memory is not None]
    return {
        "name": identity["model"],
        **identity,
        "parameters": count_parameters(model),
        "flops": asdict(count_flops(model, input_size)),
        "input_size": input_size,
        "top1": top1,
        "top5": top5,
        "best_epoch": best.epoch,
        "training": {
            "seconds": sum(row.seconds for row in history),
            "gpu_hours": sum(row.gpu_hours for row in history),
            "gpu_hours_per_epoch": sum(row.gpu_hours for row in history) / len(history),
            "images_per_second": sum(row.images_per_second for row in history) / len(history),
            "peak_memory": max(memory) if memory else None,
            "device": device,
            "batch": asdict(plan),
            "sharded": sharded,
            "epochs": len(history),
        },
        "environment": dict(facts),
    }


def tensorboard_writer(run: Path, epochs_done: int) -> Any:
    """TensorBoard's writer for a run; what it had of later epochs is forgotten.

    Raises:
        ModuleNotFoundError: TensorBoard is not installed; the message says how to.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ModuleNotFoundError(
            "tensorboard is not installed: pip install tensorboard", name="tensorboard"
        ) from error
    return SummaryWriter(str(run / "tensorboard"), purge_step=epochs_done + 1)


def write_scalars(writer: Any, row: EpochRow) -> None:
    """One epoch's numbers, on the epochs' axis."""
    values = asdict(row) | {f"loss/{name}": value for name, value in row.losses.items()}
    for name, value in values.items():
        if isinstance(value, int | float) and name != "epoch":
            writer.add_scalar(name, value, row.epoch)
    writer.flush()


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is there with all of this text, or as it was."""
    draft = path.with_name(f".{path.name}.part")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
