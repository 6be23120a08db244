"""Terms that mechanisms add to the training loss."""

import torch
from torch import Tensor, nn


def auxiliary_loss(model: nn.Module) -> Tensor:
    """Sum of the loss terms that the modules of `model` left in their last forward pass.

    A module leaves one by setting ``auxiliary_loss`` to a scalar in training, and to None in
    evaluation. Add the result to the task's loss and call ``backward`` once.

    Returns:
        A differentiable scalar, float32 at least; zero for models without such terms, and after a
        forward pass in evaluation mode.
    """
    terms = [
        term
        for module in model.modules()
        if isinstance(term := getattr(module, "auxiliary_loss", None), Tensor)
    ]
    if terms:
        return torch.stack(terms).sum()
    parameter = next(model.parameters(), None)
    return torch.zeros((), device=None if parameter is None else parameter.device)
