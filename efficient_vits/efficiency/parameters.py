"""Counting parameters."""

from torch import nn


def count_parameters(model: nn.Module, *, trainable_only: bool = False) -> int:
    """Number of scalar parameters of `model`.

    A parameter that several modules share counts once. Buffers (running statistics, index tables)
    are not parameters.

    Args:
        model: any module, on any device including meta.
        trainable_only: count only parameters with `requires_grad`.
    """
    # nn.Module.parameters() already leaves out repeated parameters.
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)
