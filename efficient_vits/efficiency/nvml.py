"""What NVIDIA's management library says of a GPU; needs nvidia-ml-py, the extra `energy`.

NVML and CUDA number the GPUs differently: `CUDA_VISIBLE_DEVICES` hides and reorders, and CUDA puts
the fastest first unless `CUDA_DEVICE_ORDER` says otherwise. A GPU is therefore found by its UUID,
and by its number only where that can't be wrong.
"""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Bits of NVML's reasons for lower clocks: slowdown of the hardware, by heat or a power brake, and
# by heat in software. A power cap or application clocks are how the GPU is set, and no accident.
_HELD_BACK = 0x08 | 0x20 | 0x40 | 0x80


class Unavailable(Exception):
    """NVML has no answer, and why."""


def energy_millijoules(device: torch.device) -> int:
    """What the GPU has used since the driver was loaded.

    Raises:
        Unavailable: there is no such counter; its text says why.
    """
    with _gpu(device) as (library, handle):
        return int(library.nvmlDeviceGetTotalEnergyConsumption(handle))


def is_throttled(device: torch.device) -> bool:
    """Whether heat or a power brake holds the clocks back now; False where nobody knows."""
    try:
        with _gpu(device) as (library, handle):
            reasons = int(library.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
    except Unavailable:
        return False
    return bool(reasons & _HELD_BACK)


def has_other_processes(device: torch.device) -> bool:
    """Whether another process computes on the GPU; False where nobody knows."""
    try:
        with _gpu(device) as (library, handle):
            running = {p.pid for p in library.nvmlDeviceGetComputeRunningProcesses(handle)}
    except Unavailable:
        return False
    # In a container this process may go by a number that it doesn't know: one is then its own.
    return len(running - {os.getpid()}) > (0 if os.getpid() in running else 1)


def facts(device: torch.device) -> dict[str, str | int | float | None]:
    """Driver, limits and clocks of a GPU; None for what NVML doesn't say.

    Keys: `driver`, `persistence_mode`, `power_limit_watts`, `max_sm_clock_mhz`, `sm_clock_mhz`,
    `memory_clock_mhz`, `temperature_celsius`.

    Raises:
        Unavailable: there is no NVML here.
    """
    with _gpu(device) as (library, handle):

        def ask(name: str, *arguments: int) -> Any:
            try:
                return getattr(library, name)(handle, *arguments)
            except library.NVMLError:
                return None

        limit = ask("nvmlDeviceGetPowerManagementLimit")
        persistent = ask("nvmlDeviceGetPersistenceMode")
        driver = library.nvmlSystemGetDriverVersion()
        return {
            "driver": driver.decode() if isinstance(driver, bytes) else driver,
            "persistence_mode": None if persistent is None else int(persistent),
            "power_limit_watts": None if limit is None else limit / 1000,
            "max_sm_clock_mhz": ask("nvmlDeviceGetMaxClockInfo", library.NVML_CLOCK_SM),
            "sm_clock_mhz": ask("nvmlDeviceGetClockInfo", library.NVML_CLOCK_SM),
            "memory_clock_mhz": ask("nvmlDeviceGetClockInfo", library.NVML_CLOCK_MEM),
            "temperature_celsius": ask("nvmlDeviceGetTemperature", library.NVML_TEMPERATURE_GPU),
        }


@contextmanager
def _gpu(device: torch.device) -> Iterator[tuple[Any, Any]]:
    """NVML and its handle of a CUDA device."""
    if device.type != "cuda":
        raise Unavailable(f"NVML knows NVIDIA's GPUs only, not {device}")
    try:
        library = importlib.import_module("pynvml")
    except ModuleNotFoundError as error:
        raise Unavailable(
            "the counters of the GPU need nvidia-ml-py: pip install 'efficient-vits[energy]'"
        ) from error
    try:
        library.nvmlInit()
    except library.NVMLError as error:
        raise Unavailable(f"NVML does not start: {error}") from error
    try:
        yield library, _handle(library, device)
    except library.NVMLError as error:
        raise Unavailable(f"NVML on {device}: {error}") from error
    finally:
        library.nvmlShutdown()


def _handle(library: Any, device: torch.device) -> Any:
    index = torch.cuda.current_device() if device.index is None else device.index
    uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    if uuid is not None:
        return library.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    count = library.nvmlDeviceGetCount()
    listed = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    visible = [entry.strip() for entry in listed if entry.strip()]
    name = visible[index] if index < len(visible) else str(index)
    if not name.isdigit():
        # The first characters of a UUID will do for CUDA.
        handles = [library.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
        matching = [h for h in handles if _text(library.nvmlDeviceGetUUID(h)).startswith(name)]
        if len(matching) == 1:
            return matching[0]
    elif count == 1 or os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
        return library.nvmlDeviceGetHandleByIndex(int(name))
    raise Unavailable(
        f"which of NVML's {count} GPUs {device} is cannot be told; set CUDA_DEVICE_ORDER=PCI_BUS_ID"
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
