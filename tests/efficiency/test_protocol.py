from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from efficient_vits.efficiency import Options, measure_throughput, protocol


class Model(nn.Module):
    """Runs up to a number of images."""

    def __init__(self, most: int = 1000) -> None:
        super().__init__()
        self.most = most
        self.sizes: list[int] = []
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise MemoryError
        self.sizes.append(len(x))
        self.seen = (x.dtype, torch.get_float32_matmul_precision())
        return x


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[int], float]], None]:
    def set_clock(seconds: Callable[[int], float]) -> None:
        monkeypatch.setattr(
            protocol,
            "seconds_of",
            lambda device, *parts: tuple(seconds(len(part())) for part in parts),
        )

    return set_clock


def measured(model: nn.Module, iterations: int = 2, **arguments: object) -> object:
    return measure_throughput(model, (4,), protocol="paper", iterations=iterations, **arguments)


def test_float32_with_tf32_and_exactly_the_iterations() -> None:
    model = Model().bfloat16()
    result = measured(model, iterations=7, batch_size=3)
    assert model.sizes == [3] * 7  # nothing before them
    assert model.seen == (torch.float32, "high")
    assert model.weight.dtype == torch.bfloat16
    assert torch.get_float32_matmul_precision() == "highest"
    assert (result.protocol, result.repeats, result.batch_size) == ("paper", 7, 3)
    assert (result.options.dtype, result.options.tf32, result.options.amp) == (
        "float32",
        True,
        None,
    )
    assert (result.interval, result.prediction, result.rerun) == (None, None, False)


def test_a_thousand_iterations_unless_told_otherwise() -> None:
    model = Model()
    measure_throughput(model, (4,), protocol="paper", batch_size=1)
    assert len(model.sizes) == 1000


def test_the_mean_counts(set_clock: Callable[[Callable[[int], float]], None]) -> None:
    times = iter([1.0, 1.0, 1.0, 5.0])
    set_clock(lambda _: next(times))
    result = measured(Model(), iterations=4, batch_size=6)
    assert (result.latency_seconds, result.images_per_second) == (2.0, 3.0)


def test_powers_of_two_and_the_largest_that_fits(
    set_clock: Callable[[Callable[[int], float]], None],
) -> None:
    set_clock(lambda n: 0.5)
    model = Model(most=45)
    result = measured(model)
    # Halving between 32 and 64 goes to a 16th of 32: each size that fits is run once, the last 2 x.
    assert model.sizes == [1, 1, 2, 2, 4, 4, 8, 8, 16, 16, 32, 32, 40, 44, 44, 44]
    assert result.batch_size == 44


def test_the_best_of_them_is_the_result(
    set_clock: Callable[[Callable[[int], float]], None],
) -> None:
    set_clock(lambda n: 0.5 if n <= 4 else 1.0 * n)
    assert measured(Model(most=45)).batch_size == 4


def test_the_processor_ends_at_128(set_clock: Callable[[Callable[[int], float]], None]) -> None:
    set_clock(lambda n: 0.5)
    model = Model()
    assert measured(model).batch_size == 128
    assert model.sizes == [size for size in (1, 2, 4, 8, 16, 32, 64, 128) for _ in range(2)]


def test_what_does_not_fit_or_fails_is_an_error() -> None:
    with pytest.raises(MemoryError):
        measured(Model(most=0))
    with pytest.raises(MemoryError):
        measured(Model(most=2), batch_size=3)

    class Broken(Model):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 2:
                raise RuntimeError("size mismatch")
            return super().forward(x)

    with pytest.raises(RuntimeError, match="size mismatch"):
        measured(Broken())


def test_threads_and_fused_attention_are_free() -> None:
    result = measured(Model(), options=Options(threads=1, fused_attention=False), batch_size=1)
    assert result.options.threads == 1
