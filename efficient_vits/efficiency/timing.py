"""Clock, warm-up, timed batches, and whether their times can be trusted."""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from efficient_vits.efficiency.intervals import (
    Interval,
    confidence_interval,
    prediction_interval,
)
from efficient_vits.efficiency.noise import Watch

STEADY = 0.05  # warm-up ends when three successive times lie within 5 % of their median ...
MAX_WARM_UP = 50  # ... or after this many batches, or as many seconds as are timed
MIN_REPEATS = 5
TRIAL_SECONDS = 0.2  # how long one batch size is tried
TRIAL_REPEATS = 2

# Runs a batch once: the seconds of each of its parts.
Sample = Callable[[], tuple[float, ...]]


@dataclass(frozen=True)
class Times:
    """What was timed.

    Attributes:
        parts: for each batch the seconds of its parts.
        flags: why the times are noisy, see `noise`.
        rerun: whether these are the times of a second attempt.
    """

    parts: list[tuple[float, ...]]
    flags: tuple[str, ...] = ()
    rerun: bool = False

    @property
    def totals(self) -> list[float]:
        """Seconds of each batch."""
        return [sum(parts) for parts in self.parts]


@dataclass(frozen=True)
class Summary:
    """Median and intervals of a speed; the interval of a time turns round in that of its speed."""

    seconds: float
    spread: float
    interval: Interval
    prediction: Interval


def seconds_of(device: torch.device, *parts: Callable[[], object]) -> tuple[float, ...]:
    """Runs the parts one after the other and times each.

    On CUDA by events, and the host waits for the last only; elsewhere by the host's clock, which is
    read when the device has finished each part.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            events = [torch.cuda.Event(enable_timing=True) for _ in range(len(parts) + 1)]
            events[0].record()
            for part, event in zip(parts, events[1:], strict=True):
                part()
                event.record()
            events[-1].synchronize()
        pairs = itertools.pairwise(events)
        return tuple(start.elapsed_time(end) / 1000 for start, end in pairs)
    # torch.cpu, torch.mps, torch.xpu, ... each have this function.
    synchronize = getattr(torch, device.type).synchronize
    moments = [time.perf_counter()]
    for part in parts:
        part()
        synchronize()
        moments.append(time.perf_counter())
    return tuple(b - a for a, b in itertools.pairwise(moments))


def warm_up(sample: Sample, seconds: float) -> None:
    """Runs batches until their times are steady.

    The first is not looked at: a compiler may run in it, or a library may choose its kernels.
    """
    sample()
    times: list[float] = []
    while len(times) < MAX_WARM_UP and sum(times) < seconds and not _is_steady(times[-3:]):
        times.append(sum(sample()))


def timed(sample: Sample, *, seconds: float, repeats: int) -> list[tuple[float, ...]]:
    """At least `repeats` batches, for at least `seconds`."""
    parts: list[tuple[float, ...]] = []
    passed = 0.0
    while len(parts) < repeats or passed < seconds:
        parts.append(sample())
        passed += sum(parts[-1])
    return parts


def trial(sample: Sample) -> float:
    """A quick median, to compare batch sizes."""
    warm_up(sample, TRIAL_SECONDS)
    return statistics.median(map(sum, timed(sample, seconds=TRIAL_SECONDS, repeats=TRIAL_REPEATS)))


def steady_times(
    sample: Sample, device: torch.device, *, seconds: float, repeats: int = MIN_REPEATS
) -> Times:
    """Warm-up and timed batches; once more where they are noisy.

    Of the two attempts the one with fewer flags is returned, the second where both have as many.
    """
    attempts: list[Times] = []
    while len(attempts) < 2:
        warm_up(sample, seconds)
        watch = Watch(device)
        parts = timed(sample, seconds=seconds, repeats=repeats)
        attempts.append(Times(parts, watch.flags([sum(p) for p in parts])))
        if not attempts[-1].flags:
            break
    best = min(reversed(attempts), key=lambda times: len(times.flags))
    return Times(best.parts, best.flags, rerun=len(attempts) > 1)


def summary(times: Sequence[float]) -> Summary:
    """Median, distance of the quartiles relative to it, and both intervals, of seconds."""
    return Summary(
        seconds=statistics.median(times),
        spread=spread(times),
        interval=confidence_interval(times),
        prediction=prediction_interval(times),
    )


def spread(times: Sequence[float]) -> float:
    """Distance of the quartiles relative to the median, of two values or more."""
    lower, median, upper = statistics.quantiles(times, n=4, method="inclusive")
    return (upper - lower) / median


def speeds(images: int, seconds: Interval) -> Interval:
    """Images per second, the lower first, of an interval of seconds."""
    shortest, longest = seconds
    return images / longest, images / shortest


def _is_steady(times: Sequence[float]) -> bool:
    return len(times) == 3 and max(times) - min(times) <= STEADY * statistics.median(times)
