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


def count_active_parameters(model: nn.Module) -> int:
    """Number of scalar parameters that act on one token, or on one image without tokens.

    That is all of them, but for modules that choose among parts of theirs, such as experts. Such a
    module announces by an attribute ``active_parameters`` how many of those below it are at work.

    Args:
        model: any module, on any device including meta.
    """
    seen: set[nn.Module | nn.Parameter] = set()
    pending, active = [model], 0
    while pending:
        module = pending.pop()
        if module in seen:
            continue
        seen.add(module)
        announced: int | None = getattr(module, "active_parameters", None)
        if announced is not None:
            active += announced
            continue
        for parameter in module.parameters(recurse=False):
            if parameter not in seen:
                seen.add(parameter)
                active += parameter.numel()
        pending.extend(module.children())
    return active
