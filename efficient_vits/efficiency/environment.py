"""On what a figure was measured."""

import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from efficient_vits.efficiency import nvml
from efficient_vits.efficiency.commits import commit

# What libraries under torch read when they start; they change times without a trace elsewhere.
_VARIABLES = (
    "OMP_NUM_THREADS",
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "KMP_AFFINITY",
    "KMP_BLOCKTIME",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "CUDA_LAUNCH_BLOCKING",
    "NVIDIA_TF32_OVERRIDE",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "TIMM_FUSED_ATTN",
)
_NVIDIA_SMI = {
    "driver": "driver_version",
    "persistence_mode": "persistence_mode",
    "power_limit_watts": "power.limit",
    "max_sm_clock_mhz": "clocks.max.sm",
    "sm_clock_mhz": "clocks.sm",
    "memory_clock_mhz": "clocks.mem",
    "temperature_celsius": "temperature.gpu",
}
_MOMENTARY = ("sm_clock_mhz", "memory_clock_mhz", "temperature_celsius")


def environment() -> dict[str, Any]:
    """Software, processor and accelerator of this process, as JSON-able values.

    Keys: `python`, `torch`, `timm`, `fvcore`, `efficient_vits` (versions; "unknown" where a package
    is not installed as one), `commit` (of the checkout that the package runs from, with "+" where
    its files differ from it; None without one), `platform`, `cpu`, `cpus`, `cpu_governor`,
    `memory_bytes`, `threads`, `float32_matmul_precision`, `cudnn_tf32`, `variables` (those of the
    process' environment that change times); with CUDA also `device` (name of the current GPU),
    `device_memory_bytes`, `cuda` (what torch was built with), `driver`, `persistence_mode`,
    `power_limit_watts` and `max_sm_clock_mhz`. None stands for what the system doesn't say.

    What changes from one moment to the next is apart, in `state`: `time` (UTC), `load_average` (of
    a minute), `cpu_mhz`, and with CUDA `sm_clock_mhz`, `memory_clock_mhz`, `temperature_celsius`.
    """
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": _version("timm"),
        "fvcore": _version("fvcore"),
        "efficient_vits": _version("efficient-vits"),
        "commit": commit(__package__.partition(".")[0]),
        "platform": platform.platform(),
        "cpu": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "cpu_governor": _cpufreq("scaling_governor"),
        "memory_bytes": _memory_bytes(),
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }
    state: dict[str, Any] = {
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "cpu_mhz": _cpu_mhz(),
    }
    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
        facts["device"] = torch.cuda.get_device_name(device)
        facts["device_memory_bytes"] = torch.cuda.get_device_properties(device).total_memory
        facts["cuda"] = torch.version.cuda or "unknown"
        for name, value in _gpu(device).items():
            (state if name in _MOMENTARY else facts)[name] = value
    return {**facts, "state": state}


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _cpuinfo(key: str) -> str | None:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key and value.strip():
                return value.strip()
    return None


def _cpufreq(name: str) -> str | None:
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq") / name
    return path.read_text().strip() if path.exists() else None


def _cpu_mhz() -> float | None:
    # In kHz here, in MHz there.
    if frequency := _cpufreq("scaling_cur_freq"):
        return int(frequency) / 1000
    frequency = _cpuinfo("cpu MHz")
    return None if frequency is None else float(frequency)


def _memory_bytes() -> int | None:
    # Not on Windows, and SC_PHYS_PAGES not everywhere else.
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names or "SC_PAGE_SIZE" not in names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _gpu(device: torch.device) -> dict[str, Any]:
    """From NVML, else from nvidia-smi."""
    try:
        return nvml.facts(device)
    except nvml.Unavailable:
        return _from_nvidia_smi(device)


def _from_nvidia_smi(device: torch.device) -> dict[str, Any]:
    fields = ",".join(_NVIDIA_SMI.values())
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    # Without a UUID the first GPU answers: its driver is right, its clocks may be another's.
    which = [] if uuid is None else [f"--id=GPU-{uuid}"]
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", *which]
    values = _output(*command).partition("\n")[0].split(", ")
    if len(values) != len(_NVIDIA_SMI):
        return {"driver": "unknown"}
    facts = dict(zip(_NVIDIA_SMI, values, strict=True))
    return {name: _READ.get(name, _number)(text) for name, text in facts.items()}


def _number(text: str) -> float | None:
    """None for "[N/A]" and its like."""
    try:
        return float(text)
    except ValueError:
        return None


def _switch(text: str) -> int | None:
    return {"Enabled": 1, "Disabled": 0}.get(text)


_READ: dict[str, Callable[[str], Any]] = {"driver": str, "persistence_mode": _switch}


def _output(*command: str) -> str:
    """Of a program; "" where it is not there, fails or doesn't answer."""
    program = shutil.which(command[0])
    if program is None:
        return ""
    try:
        answer = subprocess.run(
            [program, *command[1:]], capture_output=True, text=True, timeout=30, check=False
        )
    except subprocess.TimeoutExpired:
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""
