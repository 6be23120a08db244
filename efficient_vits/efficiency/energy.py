"""Energy per image, where the GPU counts it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from efficient_vits.efficiency import nvml
from efficient_vits.efficiency.inputs import check_arguments, evaluating
from efficient_vits.efficiency.options import Options, prepared
from efficient_vits.efficiency.timing import seconds_of, warm_up


@dataclass(frozen=True)
class Energy:
    """What the GPU used for the forward pass of an image.

    Attributes:
        joules_per_image: the whole card's, idle power included; None where it is not available.
        watts: mean power over the measurement; None likewise.
        unavailable: why there is no figure; None where there is one.
        images: that ran between the two readings.
        seconds: between the two readings.
        batch_size: images in a batch.
        device: where it was measured, such as "cpu" or "cuda:0".
        options: how the model was run.
    """

    joules_per_image: float | None
    watts: float | None
    unavailable: str | None
    images: int
    seconds: float
    batch_size: int
    device: str
    options: Options


def measure_energy(
    model: nn.Module,
    input_size: Sequence[int] = (3, 224, 224),
    *,
    batch_size: int = 1,
    device: torch.device | str | None = None,
    min_seconds: float = 5.0,
    options: Options | None = None,
) -> Energy:
    """Reads NVML's counter of total energy before and after `min_seconds` of forward passes.

    Needs a GPU of NVIDIA's that has the counter (since Volta) and nvidia-ml-py, the extra `energy`.
    Where there is no counter, nothing is run and the result says why. The counter is of the whole
    card: another process on it counts as well.

    Args:
        model: any module that takes a tensor `(batch_size, *input_size)`; left as it was.
        input_size: size of one image without the batch, `(channels, height, width)`.
        batch_size: images in a batch.
        device: where to measure; by default where the model is.
        min_seconds: how long. The counter moves in steps of up to a tenth of a second.
        options: how to run it; by default as model and process are.

    Raises:
        TypeError, ValueError: an argument is not of the kind above, or the model is on the meta
            device or on several devices.
    """
    check_arguments(model, input_size, batch_size)
    if not min_seconds > 0:
        raise ValueError(f"min_seconds must be a positive number of seconds, got {min_seconds!r}")
    with (
        prepared(model, device, options) as ready,
        evaluating(model),
        torch.inference_mode(),
    ):
        target = ready.device

        def result(joules: float, images: int, seconds: float, unavailable: str | None) -> Energy:
            known = unavailable is None
            return Energy(
                joules_per_image=joules / images if known else None,
                watts=joules / seconds if known else None,
                unavailable=unavailable,
                images=images,
                seconds=seconds,
                batch_size=batch_size,
                device=str(target),
                options=ready.options,
            )

        try:
            nvml.energy_millijoules(target)
        except nvml.Unavailable as reason:
            return result(0.0, 0, 0.0, str(reason))
        images = ready.images(input_size, batch_size)

        def sample() -> tuple[float, ...]:
            return seconds_of(target, lambda: ready.run(images))

        warm_up(sample, min_seconds)
        before, began, batches = nvml.energy_millijoules(target), time.perf_counter(), 0
        while time.perf_counter() - began < min_seconds:
            sample()
            batches += 1
        seconds = time.perf_counter() - began
        joules = (nvml.energy_millijoules(target) - before) / 1000
        unmoved = None if joules > 0 else f"the counter of {target} did not move in {seconds:.1f} s"
        return result(joules, batches * batch_size, seconds, unmoved)
