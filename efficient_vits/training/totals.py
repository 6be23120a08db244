"""Sums over the updates of an epoch, in one process and over all."""

from typing import Any

import torch
from accelerate import Accelerator

from efficient_vits.training.precision import exact_dtype
from efficient_vits.training.trainer import Update


class Totals:
    """Losses, gradient norms and time of the updates so far.

    Args:
        accelerator: The processes.
        begun: What `mean` gave when the epoch was interrupted.
    """

    def __init__(self, accelerator: Accelerator, begun: dict[str, Any] | None = None) -> None:
        self.accelerator = accelerator
        self.updates = begun["updates"] if begun else 0
        self.seconds = begun["seconds"] if begun else 0.0
        means = begun["means"] if begun else {}
        self._sums = {name: self._tensor(mean * self.updates) for name, mean in means.items()}

    def add(self, update: Update) -> None:
        """Counts an update in."""
        self.updates += 1
        self.seconds += update.seconds
        values: dict[str, Any] = {f"loss.{name}": x for name, x in update.losses.items()}
        norm = update.gradient_norm
        values |= {"skipped": float(norm is None), "gradient_norm": 0.0 if norm is None else norm}
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + self._tensor(value)

    def mean(self) -> dict[str, Any]:
        """Means over updates and processes; every process must call it.

        That of the gradient norm is over all updates, with 0 for those that were left out.
        """
        names = sorted(self._sums)
        stacked = torch.stack([self._sums[name] for name in names]) / self.updates
        means = self.accelerator.reduce(stacked, reduction="mean").tolist()
        return {
            "updates": self.updates,
            "seconds": self.seconds,
            "means": dict(zip(names, means, strict=True)),
        }

    def _tensor(self, value: Any) -> torch.Tensor:
        device = self.accelerator.device
        return torch.as_tensor(value, dtype=exact_dtype(device), device=device)
