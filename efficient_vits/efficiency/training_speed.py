"""Images per second of training: forward, backward, optimizer step."""

import copy
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from torch import Tensor, nn
from torch.nn import functional as F

from efficient_vits.efficiency.batch_search import fastest_batch_size
from efficient_vits.efficiency.inputs import check_arguments, device_of
from efficient_vits.efficiency.intervals import Interval
from efficient_vits.efficiency.options import Options, Prepared, prepared
from efficient_vits.efficiency.timing import (
    Sample,
    seconds_of,
    speeds,
    steady_times,
    summary,
    trial,
)

EPOCH_IMAGES = 1_281_167  # the training images of ImageNet-1k


@dataclass(frozen=True)
class TrainingSpeed:
    """Speed of a training step, data loading apart.

    Attributes:
        images_per_second: `batch_size / step_seconds`.
        step_seconds: median time of a step.
        forward_seconds: median time of the forward pass and the loss.
        backward_seconds: median time of the backward pass.
        optimizer_seconds: median time of the optimizer's step and of clearing the gradients.
        hours_per_epoch: hours that the device takes for the 1,281,167 images of ImageNet-1k.
        spread: distance of the quartiles of a step's time, relative to the median.
        repeats: timed steps.
        batch_size: images in a step.
        optimizer: timm's name of it.
        device: where it was measured, such as "cpu" or "cuda:0".
        interval: 95 % confidence interval of `images_per_second` in this run.
        prediction: 95 % prediction interval for the `images_per_second` of another run.
        flags: why the times may be wrong, as in `Throughput`.
        rerun: whether the first attempt was flagged and the times were taken again.
        options: how the model was run.
    """

    images_per_second: float
    step_seconds: float
    forward_seconds: float
    backward_seconds: float
    optimizer_seconds: float
    hours_per_epoch: float
    spread: float
    repeats: int
    batch_size: int
    optimizer: str
    device: str
    interval: Interval
    prediction: Interval
    flags: tuple[str, ...]
    rerun: bool
    options: Options


def measure_training(
    model: nn.Module,
    input_size: Sequence[int] = (3, 224, 224),
    *,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    min_seconds: float = 1.0,
    optimizer: str = "lamb",
    options: Options | None = None,
) -> TrainingSpeed:
    """Times training steps of a copy of the model in train mode, on random images and classes.

    The loss is the cross entropy of the outputs (of all of them, where a model in training returns
    several), plus the loss terms that modules leave in an attribute `auxiliary_loss`. With AMP in
    float16 the loss is scaled. Warm-up, clock, flags and the second attempt are those of
    `measure_throughput`. The random state is as before afterwards.

    Args:
        model: any module that takes a tensor `(batch_size, *input_size)` and returns
            `(batch_size, classes)`; a copy is trained.
        input_size: size of one image without the batch, `(channels, height, width)`.
        batch_size: images in a step; None searches the fastest as `measure_throughput` does.
        device: where to measure; by default where the model is.
        min_seconds: how long to time, and at least 5 steps.
        optimizer: a name of `timm.optim.list_optimizers()`.
        options: how to run it; by default as model and process are.

    Raises:
        TypeError, ValueError: an argument is not of the kind above, the model has nothing to train
            or returns no classes, or it is on the meta device or on several devices.
        torch.OutOfMemoryError, RuntimeError, MemoryError: the batch (without `batch_size`: one
            image) doesn't fit. Other errors of the model are passed on at any batch size.
    """
    check_arguments(model, input_size, 1 if batch_size is None else batch_size)
    if not min_seconds > 0:
        raise ValueError(f"min_seconds must be a positive number of seconds, got {min_seconds!r}")
    if optimizer not in list_optimizers():
        raise ValueError(f"timm knows no optimizer {optimizer!r}; see timm.optim.list_optimizers()")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"{type(model).__name__} has no parameters to train")
    target = device_of(model) if device is None else torch.device(device)
    devices = [target] if target.type == "cuda" else []
    # A caller's inference mode or no_grad would leave nothing to go backward through.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.random.fork_rng(devices),
        prepared(_trainable_copy(model), device, options) as ready,
    ):
        if batch_size is None:
            batch_size = fastest_batch_size(
                lambda size: trial(_step(ready, input_size, size, optimizer)), ready.device
            )
        sample = _step(ready, input_size, batch_size, optimizer)
        times = steady_times(sample, ready.device, seconds=min_seconds)
    found = summary(times.totals)
    forward, backward, update = (statistics.median(p) for p in zip(*times.parts, strict=True))
    return TrainingSpeed(
        images_per_second=batch_size / found.seconds,
        step_seconds=found.seconds,
        forward_seconds=forward,
        backward_seconds=backward,
        optimizer_seconds=update,
        hours_per_epoch=EPOCH_IMAGES * found.seconds / batch_size / 3600,
        spread=found.spread,
        repeats=len(times.parts),
        batch_size=batch_size,
        optimizer=optimizer,
        device=str(ready.device),
        interval=speeds(batch_size, found.interval),
        prediction=speeds(batch_size, found.prediction),
        flags=times.flags,
        rerun=times.rerun,
        options=ready.options,
    )


def _trainable_copy(model: nn.Module) -> nn.Module:
    """A copy in train mode, without the graphs that a past pass left: they can't be copied."""
    memo: dict[int, Any] = {
        id(value): None
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    return copy.deepcopy(model, memo).train()


def _step(
    ready: Prepared, input_size: Sequence[int], batch_size: int, optimizer_name: str
) -> Sample:
    """A training step on a batch of this size, with an optimizer of its own."""
    optimizer = create_optimizer_v2(ready.model, opt=optimizer_name, lr=1e-4, weight_decay=0.02)
    optimizer.zero_grad()  # those of the batch size before
    scaler = torch.amp.GradScaler(ready.device.type, enabled=ready.options.amp == "float16")
    images = ready.images(input_size, batch_size)
    generator = torch.Generator().manual_seed(0)
    choices = torch.rand(batch_size, generator=generator).to(ready.device)
    losses: list[Tensor] = []

    def forward() -> None:
        losses[:] = [_loss(ready.model, ready.run(images), choices)]

    def backward() -> None:
        scaler.scale(losses.pop()).backward()

    def update() -> None:
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return lambda: seconds_of(ready.device, forward, backward, update)


def _loss(model: nn.Module, outputs: Any, choices: Tensor) -> Tensor:
    several = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
    terms = []
    for scores in several:
        if not isinstance(scores, Tensor) or scores.ndim != 2:
            got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores)
            raise ValueError(f"training takes outputs (batch, classes), the model returns {got}")
        classes = (choices * scores.shape[1]).long()
        terms.append(F.cross_entropy(scores.float(), classes))
    found = (getattr(module, "auxiliary_loss", None) for module in model.modules())
    terms += [term for term in found if isinstance(term, Tensor)]
    return torch.stack(terms).sum()
