import datetime
import importlib
import json
import platform
import subprocess
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch

from efficient_vits.efficiency import environment

# `efficient_vits.efficiency.environment` is the function, whatever its module is called.
module = importlib.import_module("efficient_vits.efficiency.environment")


def test_versions_and_machine_are_named() -> None:
    facts = environment()
    assert facts["python"] == platform.python_version()
    assert facts["torch"] == torch.__version__
    assert facts["timm"] == timm.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert all(value != "" for value in facts.values())
    assert ("device" in facts) == ("driver" in facts) == torch.cuda.is_available()
    json.dumps(facts)


def test_what_changes_from_moment_to_moment_is_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("HOME_OF_SECRETS", "no")
    first, second = environment(), environment()
    states = first.pop("state"), second.pop("state")
    assert first == second
    assert first["variables"]["OMP_NUM_THREADS"] == "3"
    assert "HOME_OF_SECRETS" not in first["variables"]
    assert platform.node() not in first.values()
    now = datetime.datetime.now(datetime.timezone.utc)
    for state in states:
        passed = now - datetime.datetime.fromisoformat(state["time"])
        assert datetime.timedelta(-1) < passed < datetime.timedelta(1)
        assert passed.total_seconds() >= -1
    assert {"time", "load_average", "cpu_mhz"} <= states[0].keys()


def git(*arguments: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=b", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(uuid="aaaa-0", total_memory=40)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


def test_a_gpu_by_nvml(monkeypatch: pytest.MonkeyPatch, gpu: None) -> None:
    told = {"driver": "580", "power_limit_watts": 400.0, "sm_clock_mhz": 1000}
    monkeypatch.setattr(module.nvml, "facts", lambda device: told if device.index == 1 else {})
    facts = environment()
    assert (facts["device"], facts["device_memory_bytes"]) == ("GPU 1", 40)
    assert (facts["driver"], facts["power_limit_watts"]) == ("580", 400.0)
    assert facts["state"]["sm_clock_mhz"] == 1000
    assert "sm_clock_mhz" not in facts


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (
            "580.1, Enabled, [N/A], 1410, 1005, 1215, 40",
            {"driver": "580.1", "persistence_mode": 1, "power_limit_watts": None}
            | {"max_sm_clock_mhz": 1410.0},
        ),
        ("", {"driver": "unknown"}),
        ("No devices were found", {"driver": "unknown"}),
    ],
)
def test_a_gpu_by_nvidia_smi(
    monkeypatch: pytest.MonkeyPatch, gpu: None, answer: str, expected: dict[str, Any]
) -> None:
    def unavailable(device: torch.device) -> None:
        raise module.nvml.Unavailable("no library")

    commands: list[tuple[str, ...]] = []

    def output(*command: str) -> str:
        commands.append(command)
        return answer if command[0] == "nvidia-smi" else ""

    monkeypatch.setattr(module.nvml, "facts", unavailable)
    monkeypatch.setattr(module, "_output", output)
    facts = environment()
    assert {name: facts[name] for name in expected} == expected
    assert "--id=GPU-aaaa-0" in commands[-1]
    assert facts["state"].get("temperature_celsius") == (40.0 if "1410" in answer else None)
    json.dumps(facts)
