import importlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import timm
from torch import nn

from efficient_vits.efficiency import Measurement, count_flops, count_parameters
from efficient_vits.efficiency import measure as measure_model

SMALL = ("--img-size", "64", "--batch-size", "1", "--device", "cpu")
QUICK = (*SMALL, "--no-throughput", "--no-memory")

# `efficient_vits.cli.measure` is the module, whatever its functions are called.
measure_module = importlib.import_module("efficient_vits.cli.measure")


def failing_at(name: str) -> Callable[..., nn.Module]:
    def create(model_name: str, *args: Any, **arguments: Any) -> nn.Module:
        if model_name == name:
            raise RuntimeError("out of memory:\n  tried to allocate [much]")
        return timm.create_model(model_name, img_size=64)

    return create


def test_the_figures_are_those_of_measure(run_json: Callable[..., Any]) -> None:
    first, second = run_json("measure", "hydra_ti16", "vit_ti16", *QUICK)
    expected = measure_model(
        timm.create_model("vit_ti16", img_size=64), throughput=False, memory=False, device="cpu"
    ).to_dict()
    for row in (second, expected):
        row["environment"].pop("state")  # the time of day
    assert second == {**json.loads(json.dumps(expected)), "name": "vit_ti16"}
    assert first["name"] == "hydra_ti16"
    assert first["flops"]["total"] < second["flops"]["total"]


def test_a_size_that_is_not_square(run_json: Callable[..., Any]) -> None:
    size = ("--img-size", "64x96")
    for name, arguments in (("hydra_ti16", {"img_size": (64, 96)}), ("resnet18", {})):
        (row,) = run_json("measure", name, *size, "--no-throughput", "--no-memory")
        model = timm.create_model(name, **arguments)
        assert row["input_size"] == [3, 64, 96]
        assert row["parameters"] == count_parameters(model)
        assert row["flops"]["total"] == count_flops(model, (3, 64, 96)).total


def test_the_table(run: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = run("measure", "hydra_ti16", *SMALL)
    header, _, row, *_, machine = out.splitlines()
    assert status == 0
    assert err == ""  # no progress where nobody watches
    assert header.split("   ")[0] == "name"
    assert " ".join(header.split()).startswith(
        "name parameters GFLOPs GMACs peak memory images/s spread a repeat"
    )
    assert row.startswith("hydra_ti16 ")
    assert "(batch 1)" in row
    assert "MiB" in row
    assert "%" in row
    assert " to " in row
    assert machine.startswith("cpu: ")
    assert f"timm {timm.__version__}" in machine


@pytest.fixture(scope="module")
def everything() -> Measurement:
    """All that can be measured, of a model that takes no time."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    return measure_model(
        model, input_size=(4,), batch_size=1, latency=True, training=True, energy=True
    )


def test_more_on_request(run_json: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    timing = importlib.import_module("efficient_vits.efficiency.timing")
    monkeypatch.setattr(timing.Watch, "flags", lambda *_: ())  # no second attempt
    argv = ("measure", "hydra_ti16", *SMALL, "--no-memory", "--no-throughput")
    asked = ("--latency", "--training", "--energy", "--amp", "bfloat16", "--threads", 1)
    (row,) = run_json(*argv, *asked)
    for name in ("latency", "training", "energy"):
        assert (row[name]["options"]["amp"], row[name]["options"]["threads"]) == ("bfloat16", 1)
    assert row["training"]["batch_size"] == 1
    assert row["energy"]["joules_per_image"] is None


def test_more_columns_on_request(
    run: Callable[..., tuple[int, str, str]],
    everything: Measurement,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure_module, "measure", lambda *_, **options: everything)
    argv = ("measure", "hydra_ti16", "--no-memory", "--no-throughput")
    status, out, _ = run(*argv, "--latency", "--training", "--energy")
    assert status == 0
    header, _, line, *_ = out.splitlines()
    expected = "name parameters GFLOPs GMACs p50 p90 p99 training images/s h/epoch J/image note"
    assert " ".join(header.split()) == expected
    assert line.count(" ms ") == 3
    assert "(batch 1)" in line
    assert "no energy: NVML" in " ".join(out.split())


def test_the_papers_protocol(
    run: Callable[..., tuple[int, str, str]], run_json: Callable[..., Any]
) -> None:
    argv = ("measure", "hydra_ti16", *SMALL, "--no-memory", "--protocol", "paper")
    (row,) = run_json(*argv, "--iterations", 2)
    speed = row["throughput"]
    assert (speed["protocol"], speed["repeats"], speed["options"]["tf32"]) == ("paper", 2, True)
    line = run(*argv, "--iterations", 2)[1].splitlines()[2]
    assert " to " not in line  # it predicts nothing of a repeat


def test_noise_is_noted(
    run: Callable[..., tuple[int, str, str]],
    everything: Measurement,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert everything.throughput is not None
    for flags, noted in (((), False), (("drift", "busy device"), True)):
        speed = replace(everything.throughput, flags=flags)
        row = replace(everything, throughput=speed, latency=None, training=None)
        monkeypatch.setattr(measure_module, "measure", lambda *_, row=row, **options: row)
        out = run("measure", "hydra_ti16")[1]
        assert ("noisy: drift, busy device" in out) is noted


def test_fused_models_are_labelled(
    run: Callable[..., tuple[int, str, str]], run_json: Callable[..., Any]
) -> None:
    (plain,) = run_json("measure", "resnet18", *QUICK)
    (fused,) = run_json("measure", "resnet18", *QUICK, "--fuse")
    assert (plain["name"], plain["transform"]) == ("resnet18", None)
    assert (fused["name"], fused["transform"]) == ("resnet18", "fuse")
    assert fused["parameters"] < plain["parameters"]
    assert fused["flops"]["total"] < plain["flops"]["total"]
    row = run("measure", "resnet18", *QUICK, "--fuse")[1].splitlines()[2]
    assert row.startswith("resnet18 (fused) ")
    assert "fused" not in run("measure", "resnet18", *QUICK)[1]


def test_what_is_not_wanted_has_no_column(run: Callable[..., tuple[int, str, str]]) -> None:
    header = run("measure", "hydra_ti16", *QUICK)[1].splitlines()[0]
    assert header.split() == ["name", "parameters", "GFLOPs", "GMACs"]


def test_a_model_that_fails_keeps_the_others_rows(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure_module, "create", failing_at("vit_ti16"))
    argv = ("measure", "vit_ti16", "hydra_ti16", "--no-throughput", "--no-memory", "--device=cpu")
    reason = "RuntimeError: out of memory: tried to allocate [much]"
    status, out, err = run(*argv)
    assert (status, err) == (1, "")
    failed, measured = out.splitlines()[2:4]
    assert failed.split(maxsplit=4) == ["vit_ti16", "-", "-", "-", reason]
    assert measured.startswith("hydra_ti16   ")
    status, out, err = run(*argv, "--json")
    assert (status, err) == (1, "")
    failed, measured = json.loads(out)
    assert failed == {"name": "vit_ti16", "error": reason}
    assert measured["name"] == "hydra_ti16"


def test_progress_on_a_terminal(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., tuple[int, str, str]],
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    run("measure", "hydra_ti16", "vit_ti16", *QUICK)
    shown = terminal.getvalue()
    assert "hydra_ti16: building, 1 more to go" in shown
    assert "vit_ti16: flops, 0 more to go" in shown


def test_operators_that_are_not_counted_are_named(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Odd(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.flatten(1).erfinv()

    monkeypatch.setattr(measure_module, "create", lambda name, size: Odd())
    _, out, _ = run("measure", "vit_ti16", "--no-throughput", "--no-memory")
    assert "FLOPs lack aten::erfinv" in out


def test_all_is_checked_before_the_first_is_measured(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*args: object, **options: object) -> None:
        pytest.fail("measured")

    monkeypatch.setattr(measure_module, "measure", measure)
    assert "did you mean hydra_ti16" in refused("measure", "hydra_ti16", "hydra_ti61")
    assert "'64x'" in refused("measure", "hydra_ti16", "--img-size", "64x")
    line = refused("measure", "resnet18", "hydra_ti16", "--img-size", "100")
    assert "100x100" in line
    assert "16x16" in line
    assert "'-1'" in refused("measure", "hydra_ti16", "--batch-size", "-1")
    line = refused("measure", "hydra_ti16", "--device", "cuda:99")
    assert "'cuda:99'" in line
    assert "cpu" in line
    assert "(foo)" in refused("measure", "resnet18.foo")


def test_a_model_of_a_later_version(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = importlib.import_module("efficient_vits.cli._models")
    monkeypatch.setattr(models, "cards", lambda: {"future_s16": None})
    assert "in the catalog, but not yet" in refused("measure", "future_s16")


def test_a_size_that_cannot_be_built(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(name: str, size: object, **arguments: object) -> None:
        raise ValueError("too few tokens\nto merge")

    monkeypatch.setattr(importlib.import_module("efficient_vits.cli._models"), "create", create)
    line = refused("measure", "tome_ti16_r8", "--img-size", "16")
    assert line == "error: --img-size 16x16 does not suit tome_ti16_r8: too few tokens to merge\n"


def test_nothing_but_json_in_a_process_of_its_own() -> None:
    script = "import sys; from efficient_vits.cli import main; sys.exit(main())"
    argv = ["measure", "hydra_ti16", *SMALL, "--no-throughput", "--json"]
    process = subprocess.run(
        [sys.executable, "-c", script, *argv], capture_output=True, text=True, check=False
    )
    assert (process.returncode, process.stderr) == (0, "")
    (row,) = json.loads(process.stdout)
    assert row["memory"]["peak_bytes"] > row["memory"]["weights_bytes"] >= 4 * row["parameters"]
