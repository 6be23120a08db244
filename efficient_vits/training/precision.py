"""Mixed precision: float16 with scaled gradients on CUDA, float32 elsewhere.

torch's autocast and scaler. Those of Accelerate are one for a whole Python process, in which runs
with and without mixed precision could not follow each other.
"""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from efficient_vits.training.sharding import whole_tensor

HALF_ON = {"cuda"}  # kinds of devices


def exact_dtype(device: torch.device) -> torch.dtype:
    """What sums over an epoch are kept in: float64, but for Apple's GPUs, which have none."""
    return torch.float32 if device.type == "mps" else torch.float64


class Precision:
    """In what precision a pass runs, and what its gradients need for it.

    Args:
        device: Where the model is.
        mixed: Whether mixed precision is wanted.
    """

    def __init__(self, device: torch.device, *, mixed: bool) -> None:
        self.device = device
        self.scaler = GradScaler(device.type) if mixed and device.type in HALF_ON else None

    def autocast(self) -> AbstractContextManager[object]:
        """What a pass is to run in."""
        if self.scaler is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.float16)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a loss, scaled, to those that are there."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def clip(
        self, optimizer: Optimizer, parameters: Iterable[nn.Parameter], largest: float | None
    ) -> Tensor:
        """Takes the scale from the gradients, and clips them.

        Args:
            optimizer: Of these parameters.
            parameters: What has gradients.
            largest: Norm that they are clipped to; None for no clipping.

        Returns:
            Their norm before, a scalar.
        """
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        return whole_tensor(clip_grad_norm_(parameters, math.inf if largest is None else largest))

    def step(self, optimizer: Optimizer) -> None:
        """An update of the parameters, left out if the scale was too large for float16."""
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()
