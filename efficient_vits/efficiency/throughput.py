"""Images per second of inference."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from efficient_vits.efficiency.batch_search import fastest_batch_size
from efficient_vits.efficiency.inputs import check_arguments, evaluating
from efficient_vits.efficiency.intervals import Interval
from efficient_vits.efficiency.options import Options, Prepared, prepared
from efficient_vits.efficiency.protocol import (
    ITERATIONS,
    PAPER,
    check_iterations,
    paper_options,
    paper_times,
)
from efficient_vits.efficiency.timing import (
    Sample,
    seconds_of,
    speeds,
    spread,
    steady_times,
    summary,
    trial,
)

DEFAULT = "default v1"
PROTOCOLS = ("default", "paper")


@dataclass(frozen=True)
class Throughput:
    """Speed of the forward pass.

    Attributes:
        images_per_second: `batch_size / latency_seconds`.
        latency_seconds: median time of a batch; under the paper's protocol the mean.
        spread: distance of the quartiles of that time, relative to the median.
        repeats: timed batches.
        batch_size: images in a batch.
        device: where it was measured, such as "cpu" or "cuda:0".
        interval: 95 % confidence interval of `images_per_second` in this run; None under the
            paper's protocol, which has none.
        prediction: 95 % prediction interval for the `images_per_second` of another run; None
            likewise. See `efficient_vits.efficiency.intervals` for both.
        flags: why the times may be wrong, "spread", "drift", "throttling", "busy device"; empty
            where nothing says so.
        rerun: whether the first attempt was flagged and the times were taken again.
        options: how the model was run.
        protocol: "default v1" or "paper".
    """

    images_per_second: float
    latency_seconds: float
    spread: float
    repeats: int
    batch_size: int
    device: str
    interval: Interval | None
    prediction: Interval | None
    flags: tuple[str, ...]
    rerun: bool
    options: Options
    protocol: str


def measure_throughput(
    model: nn.Module,
    input_size: Sequence[int] = (3, 224, 224),
    *,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    min_seconds: float = 1.0,
    options: Options | None = None,
    protocol: str = "default",
    iterations: int | None = None,
) -> Throughput:
    """Times the forward pass in eval mode under `torch.inference_mode`.

    Batches run untimed until their times are steady, then for `min_seconds` and at least 5 times.
    On CUDA the times are those of CUDA events; elsewhere the host's clock is read when the device
    has finished. Noisy times are taken once more, and the result says so.

    Args:
        model: any module that takes a tensor `(batch_size, *input_size)`; left as it was.
        input_size: size of one image without the batch, `(channels, height, width)`.
        batch_size: images in a batch. None doubles it from 1 on, as long as that makes the model
            more than 3 % faster, memory lasts and a batch takes less than a second, looks between
            the best size and its neighbours, and measures at the fastest.
        device: where to measure; by default where the model is.
        min_seconds: how long to time. A longer run sees slower changes of the machine, and its
            prediction interval is the more honest for it.
        options: how to run it; by default as model and process are.
        protocol: "default", or "paper" for the benchmark's: float32 with TF32, the mean of 1000
            iterations without warm-up, the best of the powers of two and the largest batch that
            fits. `min_seconds` has no part in it.
        iterations: of the paper's protocol, 1000 if None.

    Raises:
        TypeError, ValueError: an argument is not of the kind above, or the model is on the meta
            device or on several devices.
        torch.OutOfMemoryError, RuntimeError, MemoryError: the batch (without `batch_size`: one
            image) doesn't fit. Other errors of the model are passed on at any batch size.
    """
    check_arguments(model, input_size, 1 if batch_size is None else batch_size)
    if not min_seconds > 0:
        raise ValueError(f"min_seconds must be a positive number of seconds, got {min_seconds!r}")
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    if protocol == "paper":
        iterations = ITERATIONS if iterations is None else iterations
        return _by_the_paper(model, input_size, batch_size, device, options, iterations)
    if iterations is not None:
        raise ValueError(f"iterations={iterations!r} is for protocol='paper' only")
    with (
        prepared(model, device, options) as ready,
        evaluating(model),
        torch.inference_mode(),
    ):
        if batch_size is None:
            batch_size = fastest_batch_size(
                lambda size: trial(_forward(ready, input_size, size)), ready.device
            )
        sample = _forward(ready, input_size, batch_size)
        times = steady_times(sample, ready.device, seconds=min_seconds)
    found = summary(times.totals)
    return Throughput(
        images_per_second=batch_size / found.seconds,
        latency_seconds=found.seconds,
        spread=found.spread,
        repeats=len(times.parts),
        batch_size=batch_size,
        device=str(ready.device),
        interval=speeds(batch_size, found.interval),
        prediction=speeds(batch_size, found.prediction),
        flags=times.flags,
        rerun=times.rerun,
        options=ready.options,
        protocol=DEFAULT,
    )


def _forward(ready: Prepared, input_size: Sequence[int], batch_size: int) -> Sample:
    images = ready.images(input_size, batch_size)
    return lambda: seconds_of(ready.device, lambda: ready.run(images))


def _by_the_paper(
    model: nn.Module,
    input_size: Sequence[int],
    batch_size: int | None,
    device: torch.device | str | None,
    options: Options | None,
    iterations: int,
) -> Throughput:
    options = paper_options(options)
    check_iterations(iterations)
    with (
        prepared(model, device, options) as ready,
        evaluating(model),
        torch.inference_mode(),
    ):
        batch_size, times, flags = paper_times(ready, input_size, batch_size, iterations)
    mean = statistics.fmean(times)
    return Throughput(
        images_per_second=batch_size / mean,
        latency_seconds=mean,
        spread=spread(times),
        repeats=len(times),
        batch_size=batch_size,
        device=str(ready.device),
        interval=None,
        prediction=None,
        flags=flags,
        rerun=False,
        options=ready.options,
        protocol=PAPER,
    )
