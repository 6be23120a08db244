"""Where a row of a sweep comes from: commits, host, clocks; what `environment` does not say."""

import datetime
import importlib
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

_CPU_CLOCKS = Path("/sys/devices/system/cpu/cpu0/cpufreq")
_GPU_CLOCKS = (
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "power.limit",
    "temperature.gpu",
)


def provenance(modules: Sequence[str], device: str) -> dict[str, Any]:
    """Host, start time in UTC, commits of the code and clocks of the device, now.

    Args:
        modules: importable modules whose commits are asked for.
        device: "cpu" or a CUDA device.

    Returns:
        ``host``; ``started`` in ISO 8601; ``commit``, a mapping from module to the commit of the
        checkout that it lies in, with "+changes" where tracked files differ from it, None outside
        one; ``clocks`` as `clocks`.
    """
    return {
        "host": platform.node(),
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": {module: commit(module) for module in modules},
        "clocks": clocks(device),
    }


def commit(module: str) -> str | None:
    """The commit of the git checkout that a module's file is tracked in."""
    file = getattr(importlib.import_module(module), "__file__", None)
    if file is None or shutil.which("git") is None:
        return None
    path = Path(file).resolve()
    # An installed copy may lie in the folder of somebody else's repository, untracked.
    if _git(path.parent, "ls-files", "--error-unmatch", path.name) is None:
        return None
    head = _git(path.parent, "rev-parse", "HEAD")
    changed = _git(path.parent, "status", "--porcelain", "--untracked-files=no")
    return f"{head}+changes" if head and changed else head


def clocks(device: str) -> dict[str, str]:
    """Clocks in MHz and what bounds them, empty where the system does not say.

    Of a GPU: those of nvidia-smi, and the limit of its power. Of a CPU: the frequency of the first
    core, its bounds and its governor.
    """
    if torch.device(device).type == "cuda":
        return _gpu_clocks(device)
    facts = {}
    for name in ("scaling_cur_freq", "scaling_max_freq", "cpuinfo_max_freq", "scaling_governor"):
        if (_CPU_CLOCKS / name).exists():
            text = (_CPU_CLOCKS / name).read_text().strip()
            facts[name] = f"{int(text) / 1000:g} MHz" if text.isdigit() else text
    if not facts:
        facts = _cpuinfo()
    return facts


def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else ():
        if line.startswith("cpu MHz"):
            return {"cpuinfo": f"{float(line.partition(':')[2]):g} MHz"}
    return {}


def _gpu_clocks(device: str) -> dict[str, str]:
    command = shutil.which("nvidia-smi")
    if command is None:
        return {}
    # CUDA_VISIBLE_DEVICES renumbers the GPUs for torch and not for nvidia-smi.
    uuid = getattr(torch.cuda.get_device_properties(torch.device(device)), "uuid", None)
    which = ["-i", f"GPU-{uuid}"] if uuid else []
    query = [command, *which, f"--query-gpu={','.join(_GPU_CLOCKS)}", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    values = [value.strip() for value in answer.stdout.partition("\n")[0].split(",")]
    if answer.returncode or len(values) != len(_GPU_CLOCKS):
        return {}
    return dict(zip(_GPU_CLOCKS, values, strict=True))


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says, None where it refuses."""
    command = ["git", "-C", str(folder), *arguments]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else None
