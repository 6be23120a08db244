from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from efficient_vits.efficiency import noise

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
STEADY = [1.0, 1.01, 0.99] * 10


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A machine whose clocks stand where the test puts them: 4 cores, nothing running."""
    values: dict[str, Any] = {"clock": 0.0, "busy": 0.0, "own": 0.0, "thermal": 0, "load": 0.0}

    def reads(name: str) -> Callable[[], Any]:
        return lambda: values[name]

    monkeypatch.setattr(noise.time, "perf_counter", reads("clock"))
    monkeypatch.setattr(noise, "_processor_seconds", reads("busy"))
    monkeypatch.setattr(noise, "_own_seconds", reads("own"))
    monkeypatch.setattr(noise, "_thermal_events", reads("thermal"))
    monkeypatch.setattr(noise, "_load_average", reads("load"))
    monkeypatch.setattr(noise.os, "cpu_count", lambda: 4)
    return values


@pytest.mark.parametrize(
    ("times", "flags"),
    [
        (STEADY, ()),
        ([1.0, 1.2] * 15, ("spread",)),
        # A spike in thirty batches is neither.
        ([*STEADY[:-1], 5.0], ()),
        ([1.0] * 12 + [1.04] * 12, ()),
        ([1.0] * 12 + [1.08] * 12, ()),  # the quartiles are as far apart as the thirds
        ([1.0] * 6 + [1.06] * 24, ("drift",)),
        ([1 + i / 100 for i in range(30)], ("spread", "drift")),
        ([1 - i / 200 for i in range(18)], ("drift",)),
    ],
)
def test_spread_and_drift(
    machine: dict[str, Any], times: list[float], flags: tuple[str, ...]
) -> None:
    assert noise.Watch(CPU).flags(times) == flags


def test_other_processes_on_the_processor(machine: dict[str, Any]) -> None:
    # For 10 s on 4 cores a tenth is 4 s; what the process itself uses doesn't count.
    for others, flags in ((3.9, ()), (4.1, ("busy device",))):
        machine.update(clock=0.0, busy=100.0, own=7.0)
        watch = noise.Watch(CPU)
        machine.update(clock=10.0, busy=120.0 + others, own=27.0)
        assert watch.flags(STEADY) == flags
    machine.update(clock=0.0, busy=0.0, own=0.0)
    watch = noise.Watch(CPU)
    machine.update(clock=0.05, busy=0.2)  # too short for the system's ticks
    assert watch.flags(STEADY) == ()


def test_the_load_where_the_system_says_no_more(machine: dict[str, Any]) -> None:
    machine["busy"] = None
    for load, flags in ((3.9, ()), (4.1, ("busy device",))):
        machine.update(clock=0.0, load=load)
        watch = noise.Watch(CPU)
        machine["clock"] = 1.0
        assert watch.flags(STEADY) == flags


def test_heat(machine: dict[str, Any]) -> None:
    machine["thermal"] = 3
    watch = noise.Watch(CPU)
    assert watch.flags(STEADY) == ()
    machine["thermal"] = 4
    assert watch.flags(STEADY) == ("throttling",)


@pytest.mark.parametrize("throttled", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_a_gpu_is_asked_itself(
    monkeypatch: pytest.MonkeyPatch, machine: dict[str, Any], throttled: bool, shared: bool
) -> None:
    monkeypatch.setattr(noise.nvml, "is_throttled", lambda device: throttled and device == CUDA)
    monkeypatch.setattr(noise.nvml, "has_other_processes", lambda device: shared)
    watch = noise.Watch(CUDA)
    machine.update(clock=10.0, busy=40.0, thermal=1)  # the processor doesn't matter
    expected = ("throttling",) * throttled + ("busy device",) * shared
    assert watch.flags(STEADY) == expected


def test_the_systems_own_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 20 30 4000 500 6 7 8 9 10\ncpu0 1 2 3 4 5 6 7 8 9 10\n")
    counters = tmp_path / "cpu1" / "thermal_throttle"
    counters.mkdir(parents=True)
    (counters / "core_throttle_count").write_text("2\n")
    (counters / "package_throttle_count").write_text("3\n")
    places = {"/proc/stat": stat, "/sys/devices/system/cpu": tmp_path}
    monkeypatch.setattr(noise, "Path", places.__getitem__)
    monkeypatch.setattr(noise.os, "sysconf", lambda name: 100)
    # user, nice, system, irq, softirq, steal; guests are in the first two already
    assert noise._processor_seconds() == pytest.approx(1.71)
    assert noise._thermal_events() == 5
    stat.unlink()
    assert noise._processor_seconds() is None
    assert noise._own_seconds() > 0
    assert noise._load_average() >= 0
