"""Parameters that a pass leaves without a gradient: processes that exchange gradients must know."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def unused_parameters(objective: nn.Module, images: Tensor, targets: Tensor) -> list[str]:
    """Names of the parameters that have no gradient after a pass forth and back.

    A copy is tried; neither weights nor buffers of the model change. If its modules talk to other
    processes, all processes must call this.

    Args:
        objective: Takes images and targets, gives the terms of a loss by name.
        images: (B, 3, height, width).
        targets: As the objective takes them.
    """
    tried = copy.deepcopy(objective).train()
    terms: Mapping[str, Tensor] = tried(images, targets)
    torch.stack(list(terms.values())).sum().backward()
    return [name for name, p in tried.named_parameters() if p.requires_grad and p.grad is None]
