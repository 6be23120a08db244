"""Images per second of inference."""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from efficient_vits.efficiency.inputs import check_arguments, evaluating, placed, random_images

_STEADY = 0.05  # warm-up ends when three successive times lie within 5 % of their median ...
_MAX_WARM_UP = 50  # ... or after this many batches, or as many seconds as are timed
_WORTHWHILE = 1.03  # a doubled batch must be faster by 3 %
_TRIAL_SECONDS = 0.2  # how long one batch size is tried
_LONG_BATCH_SECONDS = 1.0  # a batch that takes this long is not doubled
_MIN_REPEATS = 5

_OUT_OF_MEMORY_MESSAGES = (
    "out of memory",  # MPS and XPU
    "not enough memory",  # the CPU allocator
    "can't allocate",
    "canUse32BitIndexMath",  # a tensor with more elements than the kernel can address
)


@dataclass(frozen=True)
class Throughput:
    """Speed of the forward pass.

    Attributes:
        images_per_second: `batch_size / latency_seconds`.
        latency_seconds: median time of a batch.
        spread: distance of the quartiles of that time, relative to the median.
        repeats: timed batches.
        batch_size: images in a batch.
        device: where it was measured, such as "cpu" or "cuda:0".
    """

    images_per_second: float
    latency_seconds: float
    spread: float
    repeats: int
    batch_size: int
    device: str


def measure_throughput(
    model: nn.Module,
    input_size: Sequence[int] = (3, 224, 224),
    *,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    min_seconds: float = 1.0,
) -> Throughput:
    """Times the forward pass in eval mode under `torch.inference_mode`.

    Batches run untimed until their times are steady, then for `min_seconds` and at least 5 times.
    On CUDA the times are those of CUDA events; elsewhere the host's clock is read when the device
    has finished. Precision is what the model and torch are set to: float32 with or without TF32
    (`torch.set_float32_matmul_precision`), or the dtype of the model's parameters.

    Args:
        model: any module that takes a tensor `(batch_size, *input_size)`; left as it was.
        input_size: size of one image without the batch, `(channels, height, width)`.
        batch_size: images in a batch. None doubles it from 1 on, as long as that makes the model
            more than 3 % faster, memory lasts and a batch takes less than a second, and measures
            at the fastest.
        device: where to measure; by default where the model is.
        min_seconds: how long to time.

    Raises:
        TypeError, ValueError: an argument is not of the kind above, or the model is on the meta
            device or on several devices.
        torch.OutOfMemoryError, RuntimeError: the batch (without `batch_size`: one image) doesn't
            fit. Other errors of the model are passed on at any batch size.
    """
    check_arguments(model, input_size, 1 if batch_size is None else batch_size)
    if not min_seconds > 0:
        raise ValueError(f"min_seconds must be a positive number of seconds, got {min_seconds!r}")
    with placed(model, device) as target, evaluating(model), torch.inference_mode():
        if batch_size is None:
            batch_size = _fastest_batch_size(model, input_size, target)
        images = random_images(model, input_size, batch_size, device=target)
        times = _times(model, images, seconds=min_seconds, repeats=_MIN_REPEATS)

    latency = statistics.median(times)
    lower, _, upper = statistics.quantiles(times, n=4, method="inclusive")
    return Throughput(
        images_per_second=batch_size / latency,
        latency_seconds=latency,
        spread=(upper - lower) / latency,
        repeats=len(times),
        batch_size=batch_size,
        device=str(target),
    )


def _fastest_batch_size(model: nn.Module, input_size: Sequence[int], device: torch.device) -> int:
    best, best_speed = 1, 0.0
    for batch_size, speed in _speeds(model, input_size, device):
        if speed <= _WORTHWHILE * best_speed:
            break
        best, best_speed = batch_size, speed
    return best


def _speeds(
    model: nn.Module, input_size: Sequence[int], device: torch.device
) -> Iterator[tuple[int, float]]:
    """Batch sizes 1, 2, 4, ... and their images per second, until memory is exhausted."""
    batch_size = 1
    while True:
        try:
            images = random_images(model, input_size, batch_size, device=device)
            times = _times(model, images, seconds=_TRIAL_SECONDS, repeats=2)
        except RuntimeError as error:
            if batch_size == 1 or not _is_out_of_memory(error):
                raise
            break
        yield batch_size, batch_size / statistics.median(times)
        if statistics.median(times) > _LONG_BATCH_SECONDS:
            break
        batch_size *= 2
    if device.type == "cuda":
        # What the failed attempt had taken is needed for the measurement.
        torch.cuda.empty_cache()


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(
        message in str(error) for message in _OUT_OF_MEMORY_MESSAGES
    )


def _times(model: nn.Module, images: Tensor, *, seconds: float, repeats: int) -> list[float]:
    """Seconds of each of at least `repeats` batches, for at least `seconds`, once steady."""
    warm_up = [_seconds_of_batch(model, images)]
    while len(warm_up) < _MAX_WARM_UP and sum(warm_up) < seconds and not _is_steady(warm_up[-3:]):
        warm_up.append(_seconds_of_batch(model, images))
    times: list[float] = []
    while len(times) < repeats or sum(times) < seconds:
        times.append(_seconds_of_batch(model, images))
    return times


def _is_steady(times: Sequence[float]) -> bool:
    return len(times) == 3 and max(times) - min(times) <= _STEADY * statistics.median(times)


def _seconds_of_batch(model: nn.Module, images: Tensor) -> float:
    device = images.device
    if device.type == "cuda":
        with torch.cuda.device(device):
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            start.record()
            model(images)
            end.record()
            end.synchronize()
        return start.elapsed_time(end) / 1000
    began = time.perf_counter()
    model(images)
    # torch.cpu, torch.mps, torch.xpu, ... each have this function.
    getattr(torch, device.type).synchronize()
    return time.perf_counter() - began
