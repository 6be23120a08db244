"""Accuracy on a whole data set, whatever the number of processes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from efficient_vits.training.checkpoint import CheckpointError
from efficient_vits.training.data import Data, DataError
from efficient_vits.training.devices import meet
from efficient_vits.training.loaders import evaluation_loader
from efficient_vits.training.precision import exact_dtype
from efficient_vits.training.recipe import Recipe
from efficient_vits.training.start import Start, build_model, from_checkpoint
from efficient_vits.training.streams import stream_size


@dataclass(frozen=True)
class Accuracy:
    """What a model gets right.

    Attributes:
        top1: Per cent of the images whose class has the highest logit.
        top5: Per cent of the images whose class is among the five highest; None for five classes
            or fewer.
        loss: Mean cross entropy.
        images: How many there were.
    """

    top1: float
    top5: float | None
    loss: float
    images: int


def evaluate_model(
    model: nn.Module, loader: Any, accelerator: Accelerator, *, stand_in: Tensor | None = None
) -> Accuracy:
    """Accuracy of a model in eval mode; its mode is as before afterwards.

    Args:
        model: Gives logits (B, classes), on the accelerator's device.
        loader: This process' share of the images, which may be none; the shares of all together
            are counted.
        accelerator: The processes.
        stand_in: Images that a process without any runs the model on while others have some, for a
            model that all must run together; None for a model that each has to itself.

    Raises:
        DataError: A stream of timm's has fewer images than it says.
    """
    was_training = model.training
    model.eval()
    device = accelerator.device
    # Hits in the first, hits in the first five, loss, images, those of more than five classes.
    dtype = exact_dtype(device)
    sums = torch.zeros(5, dtype=dtype, device=device)
    try:
        with torch.no_grad():
            for batch in loader if stand_in is None else _in_step(loader, accelerator):
                if batch is None:
                    model(stand_in)
                    continue
                images, targets = batch
                targets = targets.to(device, non_blocking=True)
                logits = model(images.to(device, non_blocking=True)).float()
                classes = logits.shape[1]
                ranked = logits.topk(min(5, classes), dim=1).indices == targets.unsqueeze(1)
                loss = F.cross_entropy(logits, targets, reduction="sum")
                here = len(targets)
                counts = (ranked[:, 0].sum(), ranked.sum(), loss, here, here * (classes > 5))
                exact = [torch.as_tensor(x, dtype=dtype, device=device) for x in counts]
                sums += torch.stack(exact)
    finally:
        model.train(was_training)
    sums = accelerator.reduce(sums, reduction="sum")
    first, five, loss_sum, images_seen, of_many = sums.tolist()
    expected = stream_size(getattr(loader, "dataset", None))
    if expected is not None and images_seen < expected:
        raise DataError(
            f"only {int(images_seen)} of {expected} test images could be read; timm's log says why"
        )
    if not images_seen:
        raise ValueError("there are no images to evaluate on")
    return Accuracy(
        top1=100 * first / images_seen,
        top5=100 * five / images_seen if of_many else None,
        loss=loss_sum / images_seen,
        images=int(images_seen),
    )


def _in_step(loader: Any, accelerator: Accelerator) -> Iterator[Any]:
    """Batches, and None instead of one while only other processes have some."""
    batches = iter(loader)
    while True:
        batch = next(batches, None)
        here = torch.tensor(float(batch is not None), device=accelerator.device)
        if not accelerator.reduce(here, reduction="sum"):
            return
        yield batch


def evaluate_source(
    source: str | Path,
    data: Data,
    *,
    img_size: int | None = None,
    batch_size: int = 64,
    workers: int = 0,
    cpu: bool = False,
) -> Accuracy:
    """Accuracy of a checkpoint, or of the weights that are published for a model.

    Args:
        source: A run's folder (its best checkpoint), a checkpoint, or a name for timm.
        data: Its test part counts.
        img_size: Pixels; by default those of the checkpoint's training, or the model's own.
        batch_size: Images at a time, of all processes.
        workers: Processes that load images, per process.
        cpu: Leave accelerators alone.

    Raises:
        CheckpointError: The checkpoint is damaged, or there is neither one nor such a model.
        DataError: The data has another number of classes than the model.
        RuntimeError: This Python process had a run on another kind of device.
    """
    accelerator = meet(cpu=cpu)
    model, recipe = _with_recipe(str(source), data.num_classes, img_size)
    if model.num_classes != data.num_classes:
        raise DataError(
            f"{source} knows {model.num_classes} classes, {data.name} has {data.num_classes}"
        )
    loader = evaluation_loader(
        data.test,
        recipe,
        batch_size=batch_size,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
        workers=workers,
        device=accelerator.device,
    )
    return evaluate_model(model.to(accelerator.device), loader, accelerator)


def _with_recipe(source: str, num_classes: int, img_size: int | None) -> tuple[Any, Recipe]:
    """A model with its weights, and a recipe with its image size and normalisation."""
    if Path(source).exists():
        start = from_checkpoint(source)
        recipe = Recipe(**start.lineage[-1]["recipe"])
        if img_size is not None:
            recipe = recipe.with_changes(img_size=img_size)
        return build_model(start, recipe, start.lineage[-1]["num_classes"]), recipe
    if not timm.is_model(source):
        raise CheckpointError(f"{source} is neither a checkpoint nor a model's name")
    config = timm.get_pretrained_cfg(source)
    recipe = Recipe(img_size=img_size or config.input_size[-1], mean=config.mean, std=config.std)
    return build_model(Start(source, pretrained=True), recipe, num_classes), recipe
