"""On what a figure was measured."""

import importlib.metadata
import platform
import shutil
import subprocess
from pathlib import Path

import torch


def environment() -> dict[str, str | int]:
    """Software, processor and accelerator of this process, as JSON-able values.

    Keys: `python`, `torch`, `timm`, `fvcore`, `efficient_vits` (versions; "unknown" where a package
    is not installed as one), `platform`, `cpu`, `threads`, `float32_matmul_precision`; with CUDA
    also `device` (name of the current GPU), `cuda` (what torch was built with) and `driver`.
    """
    facts: dict[str, str | int] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": _version("timm"),
        "fvcore": _version("fvcore"),
        "efficient_vits": _version("efficient-vits"),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
    if torch.cuda.is_available():
        facts["device"] = torch.cuda.get_device_name()
        facts["cuda"] = torch.version.cuda or "unknown"
        facts["driver"] = _nvidia_driver()
    return facts


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _nvidia_driver() -> str:
    command = shutil.which("nvidia-smi")
    if command is None:
        return "unknown"
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    return answer.stdout.partition("\n")[0].strip() or "unknown"
