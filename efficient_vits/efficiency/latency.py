"""How long one image takes, and how long in the worst of cases."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from efficient_vits.efficiency.inputs import check_arguments, evaluating
from efficient_vits.efficiency.intervals import Interval, confidence_interval
from efficient_vits.efficiency.options import Options, prepared
from efficient_vits.efficiency.timing import seconds_of, steady_times


@dataclass(frozen=True)
class Latency:
    """Seconds that one image takes, alone in its batch.

    Attributes:
        p50_seconds: the median.
        p90_seconds: nine of ten images take no longer.
        p99_seconds: 99 of 100 images take no longer.
        p50_interval: 95 % confidence interval of `p50_seconds` in this run.
        p90_interval: likewise.
        p99_interval: likewise; with few repeats it says little beyond the slowest image.
        repeats: timed images.
        device: where it was measured, such as "cpu" or "cuda:0".
        flags: why the times may be wrong, as in `Throughput`.
        rerun: whether the first attempt was flagged and the times were taken again.
        options: how the model was run.
    """

    p50_seconds: float
    p90_seconds: float
    p99_seconds: float
    p50_interval: Interval
    p90_interval: Interval
    p99_interval: Interval
    repeats: int
    device: str
    flags: tuple[str, ...]
    rerun: bool
    options: Options


def measure_latency(
    model: nn.Module,
    input_size: Sequence[int] = (3, 224, 224),
    *,
    device: torch.device | str | None = None,
    min_seconds: float = 1.0,
    min_repeats: int = 100,
    options: Options | None = None,
) -> Latency:
    """Times the forward pass of one image in eval mode under `torch.inference_mode`.

    Warm-up, clock, flags and the second attempt are those of `measure_throughput`.

    Args:
        model: any module that takes a tensor `(1, *input_size)`; left as it was.
        input_size: size of one image without the batch, `(channels, height, width)`.
        device: where to measure; by default where the model is.
        min_seconds: how long to time.
        min_repeats: how many images at least, five or more. A 99th percentile takes 100.
        options: how to run it; by default as model and process are.

    Raises:
        TypeError, ValueError: an argument is not of the kind above, or the model is on the meta
            device or on several devices.
    """
    check_arguments(model, input_size, 1)
    if not min_seconds > 0:
        raise ValueError(f"min_seconds must be a positive number of seconds, got {min_seconds!r}")
    if type(min_repeats) is not int or min_repeats < 5:
        raise ValueError(f"min_repeats must be an integer of 5 or more, got {min_repeats!r}")
    with (
        prepared(model, device, options) as ready,
        evaluating(model),
        torch.inference_mode(),
    ):
        images = ready.images(input_size, 1)
        times = steady_times(
            lambda: seconds_of(ready.device, lambda: ready.run(images)),
            ready.device,
            seconds=min_seconds,
            repeats=min_repeats,
        )
    p50, p90, p99 = (float(np.quantile(times.totals, q)) for q in (0.5, 0.9, 0.99))
    intervals = [confidence_interval(times.totals, quantile=q) for q in (0.5, 0.9, 0.99)]
    return Latency(
        p50_seconds=p50,
        p90_seconds=p90,
        p99_seconds=p99,
        p50_interval=intervals[0],
        p90_interval=intervals[1],
        p99_interval=intervals[2],
        repeats=len(times.parts),
        device=str(ready.device),
        flags=times.flags,
        rerun=times.rerun,
        options=ready.options,
    )
