"""Losses that are not finite: where they come from."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from efficient_vits.training.sharding import whole_tensor


class NotFiniteError(RuntimeError):
    """Loss or gradient became infinite or no number; the message says in which update and where."""


def diagnose(model: nn.Module, forward: Callable[[], Tensor]) -> str:
    """Says what is not finite when `forward` is repeated.

    Args:
        model: What is trained; its gradients are replaced.
        forward: Computes the loss of the batch again, with the same random numbers.

    Returns:
        A sentence with the first module whose output is not finite, its input's largest value,
        and the gradient norms of the model's parts.
    """
    with _watching(model) as first:
        loss = forward()
    model.zero_grad(set_to_none=True)
    if loss.requires_grad:
        loss.backward()
    parameters = [(name, whole_tensor(p)) for name, p in model.named_parameters()]
    weights = [name for name, p in parameters if not bool(p.isfinite().all())]
    facts = []
    if weights:
        facts.append(f"parameters that are not finite: {', '.join(weights[:5])}")
    if first:
        facts.append(first[0])
    else:
        alone = "" if bool(loss.isfinite()) else ", the loss alone is not"
        facts.append(f"every module's output is finite{alone}")
    norms = gradient_norms(model)
    facts.append(
        "gradient norms: " + ", ".join(f"{name} {norm:.3g}" for name, norm in norms.items())
    )
    return "; ".join(facts)


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """Norm of the gradient of each part: blocks one by one, the model's other children whole."""
    parts: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleList | nn.Sequential) and len(child):
            parts |= {f"{name}.{i}": block for i, block in child.named_children()}
        else:
            parts[name] = child
    norms = {}
    for name, part in parts.items():
        gradients = [whole_tensor(p.grad).norm() for p in part.parameters() if p.grad is not None]
        if gradients:
            norms[name] = float(torch.stack(gradients).norm())
    return norms


@contextmanager
def _watching(model: nn.Module) -> Iterator[list[str]]:
    """A list that gets a sentence about the first module with an output that is not finite."""
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and not all(map(_is_finite, _floats(output))):
                largest = max(
                    (float(x.detach().abs().max()) for x in _floats(inputs)), default=math.nan
                )
                found.append(
                    f"first output that is not finite: {name or 'the model'} "
                    f"({type(module).__name__}), largest input {largest:.3g}"
                )

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _floats(value: Any) -> list[Tensor]:
    return [
        x
        for x in tree_leaves(value)
        if isinstance(x, Tensor) and x.is_floating_point() and x.numel()
    ]


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.detach().isfinite().all())
