import pytest
import torch
from torch import Tensor, nn

from efficient_vits.efficiency import Options, latency, measure_latency
from efficient_vits.efficiency.timing import Times


def test_percentiles_of_single_images(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def steady_times(sample: object, device: torch.device, **how: object) -> Times:
        asked.update(how)
        return Times([(float(i),) for i in range(101)], ("drift",), rerun=True)

    monkeypatch.setattr(latency, "steady_times", steady_times)
    result = measure_latency(nn.Identity(), (4,), min_seconds=3.0)
    assert asked == {"seconds": 3.0, "repeats": 100}
    assert (result.p50_seconds, result.p90_seconds, result.p99_seconds) == (50.0, 90.0, 99.0)
    assert (result.repeats, result.flags, result.rerun) == (101, ("drift",), True)
    intervals = (result.p50_interval, result.p90_interval, result.p99_interval)
    for (low, high), value in zip(intervals, (50.0, 90.0, 99.0), strict=True):
        assert low < value < high


def test_one_image_in_inference_mode() -> None:
    seen = set()

    class Model(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            seen.add((self.training, torch.is_inference_mode_enabled(), *x.shape, out.dtype))
            return out

    model = Model(4, 4)
    options = Options(amp="bfloat16")
    result = measure_latency(model, (4,), min_seconds=1e-6, min_repeats=7, options=options)
    assert seen == {(False, True, 1, 4, torch.bfloat16)}
    assert model.training
    assert result.repeats >= 7
    assert 0 < result.p50_seconds <= result.p90_seconds <= result.p99_seconds
    assert (result.device, result.options.amp) == ("cpu", "bfloat16")


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="min_seconds must be a positive number of seconds, got 0"):
        measure_latency(nn.Identity(), (4,), min_seconds=0)
    with pytest.raises(ValueError, match="min_repeats must be an integer of 5 or more, got 4"):
        measure_latency(nn.Identity(), (4,), min_repeats=4)
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        measure_latency("vit", (4,))
