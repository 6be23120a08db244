"""The search, against tables of what batches take."""

import pytest
from torch import nn

from efficient_vits.efficiency import MemoryUse, estimate_memory, largest_batch
from efficient_vits.efficiency.largest_batch import _search


def use(batch_size: int, peak: int) -> MemoryUse:
    return MemoryUse(0, 0, peak, peak, batch_size, "cpu", "estimate")


@pytest.mark.parametrize("memory", [5, 10, 99, 100, 101, 1000, 12345, 10**9])
@pytest.mark.parametrize(
    "peak",
    [lambda n: 3 + 7 * n, lambda n: max(100, 7 * n), lambda n: n**2, lambda n: 512 * (n // 9)],
)
def test_the_largest_that_fits_and_no_other(memory, peak) -> None:
    calls = []

    def estimate(batch_size: int) -> MemoryUse:
        calls.append(batch_size)
        return use(batch_size, peak(batch_size))

    found = _search(estimate, memory)
    if found is None:
        assert peak(1) > memory
    else:
        n = found.batch_size
        assert peak(n) <= memory
        assert n == 2**20 or peak(n + 1) > memory
    assert len(calls) <= 40


def test_a_model() -> None:
    model = nn.Linear(1000, 10)
    found = largest_batch(model, 10**6, input_size=(1000,), optimizer="sgd", amp=None)
    assert found is not None
    assert found.peak_bytes <= 10**6
    larger = estimate_memory(
        model, found.batch_size + 1, input_size=(1000,), optimizer="sgd", amp=None
    )
    assert larger.peak_bytes > 10**6
    assert largest_batch(model, 10**4, input_size=(1000,), optimizer="sgd") is None


def test_no_memory() -> None:
    with pytest.raises(ValueError, match="positive number of bytes, got 0"):
        largest_batch(nn.Linear(1, 1), 0)
