"""Running a model once under fvcore's tracer, and leaving it as it was."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from efficient_vits.efficiency.inputs import evaluating, state_of


class TensorsOnly(nn.Module):
    """Returns the tensors among a model's outputs, the only thing that the tracer accepts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        tensors = tuple(_tensors(self.model(images)))
        if not tensors:
            # The tracer drops what no output needs: it would find nothing to count.
            raise TypeError("the model returned no tensor")
        return tensors


def _tensors(output: object) -> Iterator[Tensor]:
    """Tensors in containers, or else in the attributes of the objects there."""
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            yield leaf
        else:
            attributes = tree_leaves(getattr(leaf, "__dict__", {}))
            yield from (value for value in attributes if isinstance(value, Tensor))


def zeros_on_cpu(model: nn.Module) -> nn.Module:
    """A copy of a model on meta whose parameters and buffers are zeros that take no memory."""
    twin = copy.deepcopy(model).to_empty(device="cpu")
    for tensor in filter(Tensor.numel, state_of(twin)):
        # The system hands out pages of zeros only once they are written to, which nobody does.
        memory = np.zeros(tensor.numel() * tensor.element_size(), np.uint8)
        tensor.data = torch.from_numpy(memory).view(tensor.dtype).view(tensor.shape)
    return twin


@contextmanager
def traceable(
    model: nn.Module, device: torch.device, *, training: bool, gradients: bool
) -> Iterator[None]:
    """The mode to count in, no warnings, no fast paths; everything restored afterwards."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    # The fast path of nn.MultiheadAttention is one operator that says nothing of what it does.
    torch.backends.mha.set_fastpath_enabled(False)
    rng_devices = [device] if device.type == "cuda" else []
    try:
        with (
            warnings.catch_warnings(),
            torch.random.fork_rng(devices=rng_devices),
            torch.set_grad_enabled(gradients),
            _as_it_was(model, values=training),
            evaluating(model),
        ):
            warnings.simplefilter("ignore")
            if training:
                model.train()
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


@contextmanager
def _as_it_was(model: nn.Module, *, values: bool) -> Iterator[None]:
    """Restores what a forward pass leaves: hooks, loss terms and, with `values`, statistics."""
    modules = [(module, dict(vars(module))) for module in model.modules()]
    # Hooks are removed through the very table that they are in, so that its content is restored.
    tables = [
        (table, dict(table))
        for _, attributes in modules
        for table in attributes.values()
        if isinstance(table, dict)
    ]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if values]
    try:
        yield
    finally:
        for module, attributes in modules:
            vars(module).clear()
            vars(module).update(attributes)
        for table, content in tables:
            table.clear()
            table.update(content)
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
