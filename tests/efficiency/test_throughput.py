"""The clock is replaced where its times matter."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from efficient_vits.efficiency import Options, measure_throughput, throughput, timing


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], float]], list[int]]:
    """Seconds by batch size, on a quiet machine; returns the sizes that were run."""

    def set_clock(seconds: Callable[[int], float]) -> list[int]:
        sizes: list[int] = []

        def images(ready: object, input_size: Sequence[int], batch_size: int) -> Tensor:
            sizes.append(batch_size)
            return torch.zeros(batch_size, *input_size)

        def seconds_of(device: torch.device, run: Callable[[], Tensor]) -> tuple[float, ...]:
            return (seconds(len(run())),)

        monkeypatch.setattr(throughput.Prepared, "images", images)
        monkeypatch.setattr(throughput, "seconds_of", seconds_of)
        monkeypatch.setattr(timing.Watch, "flags", lambda *_: ())
        return sizes

    return set_clock


def test_the_real_clock_runs_the_model_in_inference_mode() -> None:
    seen = []

    class Model(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((self.training, torch.is_inference_mode_enabled(), tuple(x.shape)))
            return super().forward(x)

    model = Model(4, 4)
    result = measure_throughput(model, (4,), batch_size=3, min_seconds=1e-6)
    assert set(seen) == {(False, True, (3, 4))}
    assert len(seen) > result.repeats >= 5
    assert model.training
    assert result.images_per_second == pytest.approx(3 / result.latency_seconds)
    assert (result.batch_size, result.device, result.protocol) == (3, "cpu", "default v1")
    assert result.interval is not None
    assert result.prediction is not None
    for low, high in (result.interval, result.prediction):
        assert low <= result.images_per_second <= high
    assert result.options.threads == torch.get_num_threads()


def test_the_median_and_its_intervals_in_images_per_second(
    set_clock: Callable[[Callable[[int], float]], list[int]],
) -> None:
    # The first batch and three of the warm-up, then the timed ones.
    times = iter([9.0, 0.1, 0.1, 0.1, 10.0, 1.0, 2.0, 3.0, 4.0])
    set_clock(lambda _: next(times))
    result = measure_throughput(nn.Identity(), (4,), batch_size=6)
    assert (result.latency_seconds, result.images_per_second, result.repeats) == (3.0, 2.0, 5)
    assert result.spread == pytest.approx((4.0 - 2.0) / 3.0)
    assert result.interval == pytest.approx((6 / 10, 6 / 1))
    assert (result.flags, result.rerun) == ((), False)


def test_the_fastest_batch_is_searched_and_measured(
    set_clock: Callable[[Callable[[int], float]], list[int]],
) -> None:
    def seconds(batch_size: int) -> float:
        if batch_size > 12:
            raise MemoryError
        return 0.5

    sizes = set_clock(seconds)
    result = measure_throughput(nn.Identity(), (4,))
    assert (result.batch_size, result.images_per_second) == (12, 24.0)
    assert sizes == [1, 2, 4, 8, 16, 6, 12, 11, 14, 12]
    with pytest.raises(MemoryError):
        measure_throughput(nn.Identity(), (4,), batch_size=16)


def test_flags_and_the_second_attempt_are_in_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [("spread", "drift"), ("busy device",)]
    monkeypatch.setattr(timing.Watch, "flags", lambda *_: answers.pop(0))
    result = measure_throughput(nn.Identity(), (4,), batch_size=1, min_seconds=1e-6)
    assert (result.flags, result.rerun) == (("busy device",), True)


def test_options_reach_the_model() -> None:
    class Model(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            seen.add((x.dtype, out.dtype))
            return out

    seen: set[tuple[torch.dtype, ...]] = set()
    result = measure_throughput(
        Model(4, 4), (4,), batch_size=1, min_seconds=1e-6, options=Options(amp="bfloat16")
    )
    assert seen == {(torch.float32, torch.bfloat16)}
    assert (result.options.amp, result.options.dtype) == ("bfloat16", "float32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_seconds": 0}, "min_seconds must be a positive number of seconds, got 0"),
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"protocol": "mine"}, "protocol must be one of default, paper, got 'mine'"),
        ({"iterations": 3}, "iterations=3 is for protocol='paper' only"),
        ({"protocol": "paper", "iterations": 1}, "iterations must be an integer above 1, got 1"),
        (
            {"protocol": "paper", "options": Options(amp="float16", compile=True)},
            "protocol='paper' is amp=None, dtype='float32', tf32=True.*; "
            "got amp='float16', compile=True",
        ),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure_throughput(nn.Identity(), (4,), **arguments)
