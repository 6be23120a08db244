import pytest
from torch import Tensor, nn

from efficient_vits.efficiency import Energy, Options, energy, measure_energy


class Model(nn.Linear):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the clock is a second later."""
    seconds = iter(range(1000))
    monkeypatch.setattr(energy.time, "perf_counter", lambda: next(seconds))
    monkeypatch.setattr(energy, "warm_up", lambda *_: None)


def counter(monkeypatch: pytest.MonkeyPatch, *millijoules: int) -> None:
    readings = iter(millijoules)
    monkeypatch.setattr(energy.nvml, "energy_millijoules", lambda device: next(readings))


def test_the_difference_of_two_readings(monkeypatch: pytest.MonkeyPatch, clock: None) -> None:
    # The first reading only finds out whether there is a counter.
    counter(monkeypatch, 1, 10_000, 70_000)
    model = Model(4, 4)
    result = measure_energy(model, (4,), batch_size=5, min_seconds=10, options=Options(threads=1))
    # Began at 0; a look before each batch and two of its own clock; over at 10, and read at 11.
    assert model.calls == 3
    assert (result.images, result.seconds) == (15, 11)
    assert (result.joules_per_image, result.watts) == (4.0, 60 / 11)
    assert (result.unavailable, result.batch_size, result.device) == (None, 5, "cpu")
    assert result.options.threads == 1


def test_a_counter_that_does_not_move_is_no_zero(
    monkeypatch: pytest.MonkeyPatch, clock: None
) -> None:
    counter(monkeypatch, 7, 7, 7)
    result = measure_energy(Model(4, 4), (4,), min_seconds=4)
    assert (result.joules_per_image, result.watts) == (None, None)
    assert result.unavailable == "the counter of cpu did not move in 5.0 s"


def test_without_a_counter_nothing_is_run_and_the_reason_is_said() -> None:
    model = Model(4, 4)
    result = measure_energy(model, (4,), batch_size=2)
    assert model.calls == 0
    assert isinstance(result, Energy)
    assert (result.joules_per_image, result.watts, result.images) == (None, None, 0)
    assert result.unavailable == "NVML knows NVIDIA's GPUs only, not cpu"


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="min_seconds must be a positive number of seconds, got 0"):
        measure_energy(nn.Identity(), (4,), min_seconds=0)
    with pytest.raises(ValueError, match="meta device"):
        measure_energy(nn.Linear(4, 4, device="meta"), (4,))
