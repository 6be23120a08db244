"""The processes of a run and their device."""

import torch
from accelerate import Accelerator


def meet(*, cpu: bool) -> Accelerator:
    """Finds the other processes, if there are any, and this one's device.

    Precision and accumulation are not left to Accelerate: it takes them from the environment too.

    Args:
        cpu: Leave accelerators alone.

    Raises:
        RuntimeError: This Python process had a run on another kind of device, and Accelerate keeps
            the first one.
    """
    before = _chosen.setdefault("cpu", cpu)
    if before != cpu and has_accelerator():
        first, second = ("the CPU", "an accelerator")[:: 1 if before else -1]
        raise RuntimeError(
            f"this Python process has trained or evaluated on {first} already, where Accelerate "
            f"stays: begin another process for {second}, or give cpu={before}"
        )
    return Accelerator(cpu=cpu, mixed_precision="no")


_chosen: dict[str, bool] = {}


def has_accelerator() -> bool:
    """Whether there is anything but the CPU that Accelerate would take."""
    return torch.cuda.is_available() or torch.backends.mps.is_available()
