"""A stand-in for NVIDIA's library, in `sys.modules`; there need not be a GPU."""

import os
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from efficient_vits.efficiency import nvml

UUIDS = ["GPU-aaaa-0", "GPU-aabb-1", "GPU-cccc-2"]


class NVMLError(Exception):
    pass


class FakeNvml(SimpleNamespace):
    """Three GPUs; a handle is the GPU's number. Functions can be replaced."""

    def __init__(self) -> None:
        super().__init__(NVMLError=NVMLError, open=0, pids=[], reasons=0)
        self.NVML_CLOCK_SM, self.NVML_CLOCK_MEM, self.NVML_TEMPERATURE_GPU = 1, 2, 0

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(UUIDS)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:
        return UUIDS.index(uuid)

    def nvmlDeviceGetUUID(self, handle: int) -> bytes:
        return UUIDS[handle].encode()

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        assert self.open == 1
        return 1000 + handle

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: int) -> int:
        return self.reasons

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid) for pid in self.pids]

    def nvmlDeviceGetPowerManagementLimit(self, handle: int) -> int:
        return 400_000

    def nvmlDeviceGetPersistenceMode(self, handle: int) -> int:
        return 1

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"580.1"

    def nvmlDeviceGetMaxClockInfo(self, handle: int, kind: int) -> int:
        return 1400 + kind

    def nvmlDeviceGetClockInfo(self, handle: int, kind: int) -> int:
        return 1000 + kind

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        raise NVMLError("Not Supported")


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


@pytest.fixture
def visible(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """CUDA's view: UUIDs if torch knows them, and the environment."""

    def visible(uuids: list[str] | None = None, **variables: str) -> None:
        for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(
            torch.cuda,
            "get_device_properties",
            lambda i: SimpleNamespace(**({} if uuids is None else {"uuid": uuids[i]})),
        )

    return visible


def gpu(index: int) -> int:
    """NVML's number of a CUDA device."""
    return nvml.energy_millijoules(torch.device("cuda", index)) - 1000


def test_a_gpu_is_found_by_its_uuid(library: FakeNvml, visible: Callable[..., None]) -> None:
    # CUDA shows the third and the first only; the environment is not looked at.
    visible(["cccc-2", "aaaa-0"], CUDA_VISIBLE_DEVICES="1,0")
    assert (gpu(0), gpu(1)) == (2, 0)
    assert library.open == 0


def test_a_torch_that_knows_no_uuid(library: FakeNvml, visible: Callable[..., None]) -> None:
    visible(CUDA_VISIBLE_DEVICES="2, 0", CUDA_DEVICE_ORDER="PCI_BUS_ID")
    assert (gpu(0), gpu(1)) == (2, 0)
    visible(CUDA_DEVICE_ORDER="PCI_BUS_ID")
    assert gpu(1) == 1
    visible(CUDA_VISIBLE_DEVICES="GPU-cc,GPU-aabb-1")
    assert (gpu(0), gpu(1)) == (2, 1)


@pytest.mark.parametrize("variables", [{}, {"CUDA_VISIBLE_DEVICES": "GPU-aa"}])
def test_a_gpu_that_cannot_be_told_is_not_guessed(
    library: FakeNvml, visible: Callable[..., None], variables: dict[str, str]
) -> None:
    visible(**variables)
    with pytest.raises(nvml.Unavailable, match="which of NVML's 3 GPUs cuda:0 is cannot be told"):
        gpu(0)
    assert library.open == 0


def test_a_single_gpu_needs_no_order(
    library: FakeNvml, visible: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    visible()
    monkeypatch.setattr(library, "nvmlDeviceGetCount", lambda: 1, raising=False)
    assert gpu(0) == 0


def test_a_counter_that_is_not_there_says_why(
    library: FakeNvml, visible: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise NVMLError("Not Supported")

    visible(["aaaa-0"])
    monkeypatch.setattr(library, "nvmlDeviceGetTotalEnergyConsumption", fail, raising=False)
    with pytest.raises(nvml.Unavailable, match="NVML on cuda:0: Not Supported"):
        gpu(0)
    assert library.open == 0
    monkeypatch.setattr(library, "nvmlInit", fail, raising=False)
    with pytest.raises(nvml.Unavailable, match="NVML does not start: Not Supported"):
        gpu(0)
    with pytest.raises(nvml.Unavailable, match="NVIDIA's GPUs only, not cpu"):
        nvml.energy_millijoules(torch.device("cpu"))


def test_the_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(nvml.Unavailable, match=r"pip install 'efficient-vits\[energy\]'"):
        gpu(0)
    assert not nvml.is_throttled(torch.device("cuda:0"))
    assert not nvml.has_other_processes(torch.device("cuda:0"))


@pytest.mark.parametrize(
    ("reasons", "throttled"),
    [(0, False), (0x01, False), (0x04, False), (0x08, True), (0x20, True), (0x80 | 1, True)],
    ids=["none", "idle", "power cap", "hardware", "heat", "brake and idle"],
)
def test_throttling(
    library: FakeNvml, visible: Callable[..., None], reasons: int, throttled: bool
) -> None:
    visible(["aaaa-0"])
    library.reasons = reasons
    assert nvml.is_throttled(torch.device("cuda:0")) is throttled


@pytest.mark.parametrize(
    ("pids", "shared"),
    [([], False), (["own"], False), (["own", 1], True), ([1], False), ([1, 2], True)],
)
def test_other_processes(
    library: FakeNvml, visible: Callable[..., None], pids: list[Any], shared: bool
) -> None:
    visible(["aaaa-0"])
    library.pids = [os.getpid() if pid == "own" else pid for pid in pids]
    assert nvml.has_other_processes(torch.device("cuda:0")) is shared


def test_facts(library: FakeNvml, visible: Callable[..., None]) -> None:
    visible(["aaaa-0"])
    assert nvml.facts(torch.device("cuda:0")) == {
        "driver": "580.1",
        "persistence_mode": 1,
        "power_limit_watts": 400.0,
        "max_sm_clock_mhz": 1401,
        "sm_clock_mhz": 1001,
        "memory_clock_mhz": 1002,
        "temperature_celsius": None,
    }
