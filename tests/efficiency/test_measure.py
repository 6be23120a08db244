import functools
import json
from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

from efficient_vits.efficiency import Options, count_parameters, measure


def test_a_name_is_handed_to_timm_and_steps_are_announced() -> None:
    steps: list[str] = []
    result = measure("test_vit", device="cpu", batch_size=2, on_step=steps.append)
    assert steps == ["flops", "memory", "throughput"]
    assert result.name == "test_vit"
    assert result.parameters == count_parameters(timm.create_model("test_vit"))
    assert result.input_size == (3, 160, 160)
    assert result.memory is not None
    assert result.throughput is not None
    assert result.memory.batch_size == result.throughput.batch_size == 2


def test_a_transformed_model_is_what_is_measured() -> None:
    def halved(model: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(2, 1))

    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    quick = {"input_size": (2,), "memory": False, "throughput": False}
    for transform in (halved, functools.partial(halved)):
        result = measure(model, transform=transform, **quick)
        assert (result.name, result.transform) == ("Sequential", "halved")
        assert (result.parameters, result.flops.macs) == (3, 2)
        assert "transform   halved" in str(result)
        assert result.to_dict()["transform"] == "halved"
    plain = measure(model, **quick)
    assert (plain.transform, plain.parameters) == (None, 6)
    assert "transform" not in str(plain)


def test_an_unknown_name_gets_near_ones() -> None:
    with pytest.raises(ValueError, match=r"no model 'vit_tinny_patch16_224'.*vit_tiny_patch16_224"):
        measure("vit_tinny_patch16_224")


def test_measurements_can_be_left_out() -> None:
    steps: list[str] = []
    result = measure(
        nn.Flatten(), input_size=(2, 3), memory=False, throughput=False, on_step=steps.append
    )
    assert steps == ["flops"]
    assert (result.memory, result.throughput, result.flops.total) == (None, None, 0)


@pytest.mark.parametrize(
    ("arguments", "input_size"),
    [
        ({}, (3, 160, 160)),
        ({"img_size": 96}, (3, 96, 96)),
        ({"img_size": (96, 64), "in_chans": 1}, (1, 96, 64)),
    ],
)
def test_the_input_size_is_the_models_own(
    arguments: dict[str, object], input_size: tuple[int, ...]
) -> None:
    model = timm.create_model("test_vit", **arguments)
    result = measure(model, memory=False, throughput=False)
    assert result.input_size == input_size


def test_a_model_that_does_not_say_gets_224() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 224 * 224, 1))
    result = measure(model, memory=False, throughput=False)
    assert (result.input_size, result.flops.macs) == ((3, 224, 224), 3 * 224 * 224)


def test_as_a_dictionary_and_as_text() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1_000_000))
    result = measure(model, input_size=(4,), batch_size=1)
    assert json.loads(json.dumps(result.to_dict()))["flops"]["macs"] == 4_000_000
    text = str(result)
    assert "parameters  5.00 M" in text
    assert "MACs        0.004 G" in text
    assert "images/s at batch 1 on cpu" in text
    assert "not counted" not in text
    doubtful = replace(result, flops=replace(result.flops, uncounted={"aten::svd": 1}))
    assert "not counted  aten::svd" in str(doubtful)


def test_parameters_that_a_token_meets_are_told_apart() -> None:
    class Experts(nn.Module):
        active_parameters = 12

        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.one(x)

    result = measure(Experts(), input_size=(3, 8, 8), throughput=False, memory=False)
    assert (result.parameters, result.active_parameters) == (24, 12)
    assert "active per token" in str(result)
    plain = measure(nn.Conv2d(3, 3, 1), input_size=(3, 8, 8), throughput=False, memory=False)
    assert plain.parameters == plain.active_parameters
    assert "active" not in str(plain)


def test_all_that_is_timed_goes_by_the_options() -> None:
    steps: list[str] = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    result = measure(
        model,
        input_size=(4,),
        batch_size=3,
        memory=False,
        latency=True,
        training=True,
        energy=True,
        options=Options(amp="bfloat16", threads=1),
        on_step=steps.append,
    )
    assert steps == ["flops", "throughput", "latency", "training", "energy"]
    for row in (result.throughput, result.latency, result.training, result.energy):
        assert row is not None
        assert (row.options.amp, row.options.threads) == ("bfloat16", 1)
    assert result.dtype == "float32"
    row = json.loads(json.dumps(result.to_dict()))
    assert row["throughput"]["options"]["amp"] == "bfloat16"
    assert row["throughput"]["protocol"] == "default v1"
    assert row["latency"]["p50_seconds"] <= row["latency"]["p99_seconds"]
    assert row["training"]["batch_size"] == row["energy"]["batch_size"] == 3
    assert row["energy"]["joules_per_image"] is None
    text = str(result)
    for part in ("one image", "ms on cpu", "h per epoch", "a step", "AMP bfloat16", "a repeat"):
        assert part in text
    assert "energy      not available: NVML knows NVIDIA's GPUs only, not cpu" in text
    assert "protocol" not in text


def test_the_papers_protocol_is_named() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    result = measure(
        model, input_size=(4,), batch_size=2, memory=False, protocol="paper", iterations=3
    )
    assert result.throughput is not None
    assert (result.throughput.protocol, result.throughput.repeats) == ("paper", 3)
    assert "protocol    paper" in str(result)
    assert "a repeat" not in str(result)


def test_energy_and_noise_as_text() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    result = measure(model, input_size=(4,), batch_size=1, memory=False, energy=True)
    assert result.throughput is not None
    assert result.energy is not None
    noisy = replace(result.throughput, flags=("spread", "drift"), rerun=True)
    counted = replace(result.energy, joules_per_image=0.25, watts=300.0, unavailable=None)
    text = str(replace(result, throughput=noisy, energy=counted))
    assert "noisy       spread, drift, measured twice" in text
    assert "energy      0.2500 J per image at batch 1, 300 W" in text
    quiet = str(replace(result, throughput=replace(noisy, flags=())))
    assert "noisy" not in quiet
    assert "options" not in quiet
