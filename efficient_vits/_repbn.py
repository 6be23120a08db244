r"""Progressive RepBN: a LayerNorm that becomes a BatchNorm while the model trains.

    RepBN(x)  = BatchNorm(x) + alpha * x
    PRepBN(x) = gamma * LayerNorm(x) + (1 - gamma) * RepBN(x),    gamma = 1 - progress

`progress` goes from 0 to 1 in the course of the training. In evaluation the norm is RepBN alone,
which is affine, so that it can be folded into the linear layer that follows.

Source: Guo et al., "SLAB: Efficient Transformers with Simplified Linear Attention and Progressive
Re-parameterized Batch Normalization", ICML 2024 (arXiv 2405.11582), section 3. Written
anew; the authors' code has no licence.
"""

from typing import Any, ClassVar

import torch
from timm.layers import Attention, Mlp, register_notrace_module
from torch import Tensor, nn

from efficient_vits._state import rename


class RepBN(nn.Module):
    """BatchNorm with a scaled shortcut, over the last dimension: (..., dim) -> the same."""

    def __init__(self, dim: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.bn = nn.BatchNorm1d(dim, **factory)
        self.alpha = nn.Parameter(torch.empty(1, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The shortcut as it is."""
        nn.init.ones_(self.alpha)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x.flatten(0, -2)).reshape(x.shape) + self.alpha * x

    def affine(self) -> tuple[Tensor, Tensor]:
        """The scale and shift (dim,) that the norm is in evaluation, in float64."""
        mean, var = self.bn.running_mean, self.bn.running_var
        if mean is None or var is None:
            raise ValueError("a BatchNorm without running statistics is not affine in evaluation")
        weight = self.bn.weight.double() / (var.double() + self.bn.eps).sqrt()
        return weight + self.alpha.double(), self.bn.bias.double() - weight * mean.double()


@register_notrace_module  # a traced graph follows train() and eval() this way
class ProgressiveRepBN(nn.Module):
    """LayerNorm at `progress` 0, RepBN at 1 and in evaluation; the mixture of both between.

    A new one has progress 1: who trains without a schedule trains what will be evaluated. Both
    norms run in training whatever the progress is, so that BatchNorm's statistics are there when
    they are needed. As with any BatchNorm, one training step needs more than one token.

    Args:
        dim: Channels.
        eps: Of the LayerNorm.

    Shape: (..., dim) -> the same.
    """

    # Where a training stands; weights may come without.
    structural_buffers: ClassVar[tuple[str, ...]] = ("progress",)
    progress: Tensor

    def __init__(
        self, dim: int, eps: float = 1e-6, *, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.ln = nn.LayerNorm(dim, eps=eps, **factory)
        self.repbn = RepBN(dim, **factory)
        self.register_buffer("progress", torch.empty((), **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """RepBN alone."""
        nn.init.ones_(self.progress)

    def forward(self, x: Tensor) -> Tensor:
        y = self.repbn(x)
        if self.training:
            y = (1 - self.progress) * self.ln(x) + self.progress * y
        return y

    @torch.jit.ignore
    def set_progress(self, fraction: float) -> None:
        """Set how much of the norm is RepBN in training, from 0 to 1."""
        self.progress.fill_(fraction)

    @torch.jit.ignore
    def affine(self) -> tuple[Tensor, Tensor]:
        """The scale and shift (dim,) that the norm is in evaluation, in float64."""
        return self.repbn.affine()

    def fuse(self) -> nn.Module:
        """What remains where no linear layer takes the norm in: a scale and a shift."""
        scale, shift = (z.detach().to(self.ln.weight.dtype) for z in self.affine())
        return ChannelAffine(scale, shift)

    @staticmethod
    def from_reference(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parameter names of the benchmark's code to ours; it counts the steps that are left."""
        out = rename(state, {"norm1.": "ln.", "norm2.": "repbn."})
        warm, left, steps = (out.pop(name, None) for name in ("warm", "iter", "total_step"))
        if left is not None and steps is not None:
            started = warm is None or not warm.any()
            out["progress"] = 1 - left / steps.clamp(min=1) if started else torch.zeros(())
        return out


class ChannelAffine(nn.Module):
    """What is left of a norm that no linear layer takes in: scale * x + shift."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale)
        self.shift = nn.Parameter(shift)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, self.scale, x)


def set_progress(model: nn.Module, fraction: float) -> None:
    """Move every progressive norm of a model from LayerNorm (0) to RepBN (1).

    In the paper it grows linearly: call this once per step.

    Args:
        model: A model with norms that have ``set_progress``.
        fraction: Steps done over the steps that the change takes.

    Raises:
        ValueError: The fraction is not within 0 and 1, or the model has no such norm.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"progress goes from 0 to 1, got {fraction}")
    norms: list[Any] = [m for m in model.modules() if isinstance(m, ProgressiveRepBN)]
    if not norms:
        raise ValueError(f"{type(model).__name__} has no progressive norms")
    for norm in norms:
        norm.set_progress(fraction)


def fold_affine(scale: Tensor, shift: Tensor, linear: nn.Linear) -> nn.Linear:
    """One layer for ``linear(scale * x + shift)``; scale and shift (in_features,)."""
    weight = linear.weight.detach().double()
    bias = weight @ shift
    if linear.bias is not None:
        bias = bias + linear.bias.detach().double()
    folded = nn.Linear(
        linear.in_features,
        linear.out_features,
        device=linear.weight.device,
        dtype=linear.weight.dtype,
    )
    with torch.no_grad():
        folded.weight.copy_(weight * scale)
        folded.bias.copy_(bias)
    return folded.requires_grad_(linear.weight.requires_grad).train(linear.training)


def first_linear(module: nn.Module) -> str | None:
    """Name of the linear layer that all of a module's input goes to first, where there is one.

    A module of this package says so in its attribute ``first_linear``.
    """
    if isinstance(module, Mlp):
        name = "fc1"
    elif isinstance(module, Attention):
        name = "qkv"
    else:
        name = getattr(module, "first_linear", "")
    return name if isinstance(getattr(module, name, None), nn.Linear) else None


def fold_norm(norm: nn.Module, consumer: nn.Module) -> nn.Module:
    """Fold `norm` into the module that alone reads its output; returns what takes its place.

    Norms that are not affine in evaluation stay as they are.
    """
    name = first_linear(consumer)
    if name is None or not isinstance(norm, ProgressiveRepBN):
        return norm
    scale, shift = (z.detach() for z in norm.affine())
    setattr(consumer, name, fold_affine(scale, shift, getattr(consumer, name)))
    return nn.Identity()
