"""Batch norms that take their statistics over all processes, on the CPU too.

torch's and timm's synchronised batch norms run on accelerators only.
"""

from typing import Any

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise_batch_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with synchronised batch norms. Names of parameters and buffers stay.

    Args:
        model: Left with its batch norms replaced.
        device: Where it will run.
    """
    if device.type != "cpu":
        synchronised: nn.Module = convert_sync_batchnorm(model)
        return synchronised
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, CpuSyncBatchNorm(child))
    return model


class _Sum(torch.autograd.Function):
    """The sum over all processes, in which every process has the same part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Every process' loss depends on this one's x.
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _sum(x: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(x)
    return total


class CpuSyncBatchNorm(nn.Module):
    """A batch norm of which every process sees a part of the batch.

        mean = sum_p sum_x x / sum_p n_p,  var = sum_p sum_x x^2 / sum_p n_p - mean^2

    Equal to one batch norm over the whole batch, gradients and running statistics too.

    Args:
        norm: Its parameters, buffers and settings are taken over; what timm's variants do after
            the norm (dropout, activation) is kept.
    """

    running_mean: Tensor | None
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        self.eps, self.momentum = norm.eps, norm.momentum
        self.drop = getattr(norm, "drop", nn.Identity())
        self.act = getattr(norm, "act", nn.Identity())
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...)."""
        shape = (1, -1, *[1] * (x.ndim - 2))
        if self.training or self.running_mean is None:
            mean, var = self._statistics(x)
        else:
            mean, var = self.running_mean, self.running_var
        scale = (var + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        x = (x - mean.view(shape)) * scale.view(shape)
        if self.bias is not None:
            x = x + self.bias.view(shape)
        out: Tensor = self.act(self.drop(x))
        return out

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        dims = [dim for dim in range(x.ndim) if dim != 1]
        count = x.new_tensor([x.numel() / x.shape[1]])
        # The sums of all processes, through which gradients flow back to all of them.
        total = _sum(torch.cat([x.sum(dims), count]))
        mean = total[:-1] / total[-1]
        squares = _sum((x - mean.view(1, -1, *[1] * (x.ndim - 2))).square().sum(dims))
        var = squares / total[-1]
        with torch.no_grad():
            if self.training and self.running_mean is not None:
                self.num_batches_tracked += 1
                momentum = self.momentum or 1 / float(self.num_batches_tracked)
                unbiased = total[-1] / (total[-1] - 1).clamp(min=1)
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(var * unbiased, momentum)
        return mean, var
