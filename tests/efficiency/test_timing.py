"""The clock is replaced: what is tested is what is made of its times."""

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch

from efficient_vits.efficiency import timing
from efficient_vits.efficiency.timing import (
    Sample,
    seconds_of,
    speeds,
    steady_times,
    summary,
    timed,
    warm_up,
)

CPU = torch.device("cpu")


def sample_of(times: Iterator[float]) -> Sample:
    return lambda: (next(times),)


@pytest.fixture
def set_flags(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[float]]]:
    """What the watch says of each attempt; returns the times that it was asked about."""

    def set_flags(*answers: tuple[str, ...]) -> list[list[float]]:
        left, asked = list(answers), []

        class Watch:
            def __init__(self, device: torch.device) -> None:
                assert device == CPU

            def flags(self, times: Sequence[float]) -> tuple[str, ...]:
                asked.append(list(times))
                return left.pop(0)

        monkeypatch.setattr(timing, "Watch", Watch)
        return asked

    return set_flags


def test_warm_up_lasts_until_times_are_steady() -> None:
    # The first is not looked at; the last three lie within 5 %.
    times = iter([9.0, 0.09, 0.05, 0.03, 0.02, 0.0204, 0.02, 7.0])
    warm_up(sample_of(times), seconds=1.0)
    assert next(times) == 7.0


@pytest.mark.parametrize("lasting", [[0.001, 0.002] * 25, [0.4, 0.7]], ids=["batches", "seconds"])
def test_warm_up_is_bounded(lasting: list[float]) -> None:
    times = iter([9.0, *lasting, 7.0])
    warm_up(sample_of(times), seconds=1.0)
    assert next(times) == 7.0


def test_batches_are_repeated_for_the_time_asked_and_a_few_times_at_least() -> None:
    assert len(timed(lambda: (0.1, 0.025), seconds=2.0, repeats=5)) == 16
    assert timed(lambda: (1.0, 2.0), seconds=2.0, repeats=5) == [(1.0, 2.0)] * 5


def test_quiet_times_are_taken_once(set_flags: Callable[..., list[list[float]]]) -> None:
    asked = set_flags(())
    # First batch, three steady ones of the warm-up, then the timed ones.
    times = steady_times(sample_of(iter([9, 1, 1, 1, 2, 3, 4, 5, 6])), CPU, seconds=10)
    assert (times.totals, times.flags, times.rerun) == ([2, 3, 4, 5, 6], (), False)
    assert asked == [[2, 3, 4, 5, 6]]


@pytest.mark.parametrize(
    ("first", "second", "chosen"),
    [
        (("spread",), (), "second"),
        (("spread",), ("drift",), "second"),
        (("spread",), ("spread", "drift"), "first"),
    ],
)
def test_noisy_times_are_taken_once_more_and_no_more(
    set_flags: Callable[..., list[list[float]]],
    first: tuple[str, ...],
    second: tuple[str, ...],
    chosen: str,
) -> None:
    set_flags(first, second)
    attempts = iter([9, 1, 1, 1, *[2] * 5, 9, 1, 1, 1, *[3] * 5])
    times = steady_times(sample_of(attempts), CPU, seconds=10)
    assert next(attempts, None) is None
    assert times.rerun
    assert times.totals == ([3] * 5 if chosen == "second" else [2] * 5)
    assert times.flags == (second if chosen == "second" else first)


def test_parts_run_in_order_and_are_timed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(moments))
    ran: list[str] = []
    parts = [lambda name=name: ran.append(name) for name in "abc"]
    assert seconds_of(CPU, *parts) == (1.0, 2.0, 4.0)
    assert ran == ["a", "b", "c"]


def test_cuda_is_timed_by_its_events_and_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[object] = []

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            log.append("record")
            self.moment = len(log)

        def synchronize(self) -> None:
            log.append("wait")

        def elapsed_time(self, end: "Event") -> float:
            return 1000.0 * (end.moment - self.moment)

    monkeypatch.setattr(torch.cuda, "Event", Event)

    class Device:
        """A context manager in place of `torch.cuda.device`."""

        def __init__(self, device: torch.device) -> None:
            assert device.type == "cuda"

        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(torch.cuda, "device", Device)
    parts = [lambda: log.append("first"), lambda: log.extend(["second", "and more"])]
    assert seconds_of(torch.device("cuda"), *parts) == (2.0, 3.0)
    assert log == ["record", "first", "record", "second", "and more", "record", "wait"]


def test_median_quartiles_and_speeds() -> None:
    found = summary([1.0, 2.0, 3.0, 4.0, 10.0])
    assert found.seconds == 3.0
    assert found.spread == pytest.approx((4.0 - 2.0) / 3.0)
    assert found.interval[0] <= 3.0 <= found.interval[1]
    assert speeds(6, (2.0, 3.0)) == (2.0, 3.0)
    assert speeds(8, (2.0, 4.0)) == (2.0, 4.0)
