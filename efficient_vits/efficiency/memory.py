"""Peak memory of inference and of a training step, measured."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.autograd.profiler import profile

from efficient_vits.efficiency.fresh_process import call_in_fresh_process
from efficient_vits.efficiency.inputs import check_arguments, evaluating, placed, random_images
from efficient_vits.efficiency.named import build, own_input_size
from efficient_vits.efficiency.storages import KINDS, StorageTracker
from efficient_vits.efficiency.training_step import (
    Step,
    amp_dtype,
    chosen_optimizer,
    create_optimizer,
    set_checkpointing,
    track,
)


@dataclass(frozen=True)
class MemoryUse:
    """Memory of one forward pass or one training step, in bytes.

    Attributes:
        weights_bytes: parameters and buffers, shared ones once.
        input_bytes: the batch of images, and in training the labels.
        activation_bytes: all other tensors at the moment of the peak, autocast's copies of the
            weights among them.
        peak_bytes: the most that was allocated at one time: the sum of weights, input,
            activations, gradients, optimizer and workspace.
        batch_size: images in the batch.
        device: where it was measured, such as "cpu" or "cuda:0"; for an estimate, whose rules hold.
        method: "cuda allocator", "profiler events", or "estimate".
        gradient_bytes: gradients of parameters, at the moment of the peak.
        optimizer_bytes: what the optimizer keeps from step to step.
        workspace_bytes: what kernels took beyond the tensors that they return; in an estimate
            that of convolutions on the CPU only.
        reserved_bytes: what the allocator held from the device at the most; None on the CPU, and in
            an estimate.
        training: whether it was a training step.
        optimizer: its name in training, else None.
        amp: the dtype of autocast, None without it.
        grad_checkpointing: whether blocks kept their input only.
        fresh_process: whether it was measured in a process of its own.
    """

    weights_bytes: int
    input_bytes: int
    activation_bytes: int
    peak_bytes: int
    batch_size: int
    device: str
    method: str
    gradient_bytes: int = 0
    optimizer_bytes: int = 0
    workspace_bytes: int = 0
    reserved_bytes: int | None = None
    training: bool = False
    optimizer: str | None = None
    amp: str | None = None
    grad_checkpointing: bool = False
    fresh_process: bool = False


@overload
def measure_memory(
    model: nn.Module | str,
    input_size: Sequence[int] | None = None,
    *,
    batch_size: int = 1,
    device: torch.device | str | None = None,
    training: bool = False,
    optimizer: str | None = None,
    amp: bool | str | None = None,
    grad_checkpointing: bool = False,
    fresh_process: bool | None = None,
) -> MemoryUse: ...


@overload
def measure_memory(
    model: nn.Module | str,
    input_size: Sequence[int] | None = None,
    *,
    batch_size: Sequence[int],
    device: torch.device | str | None = None,
    training: bool = False,
    optimizer: str | None = None,
    amp: bool | str | None = None,
    grad_checkpointing: bool = False,
    fresh_process: bool | None = None,
) -> tuple[MemoryUse, ...]: ...


def measure_memory(
    model: nn.Module | str,
    input_size: Sequence[int] | None = None,
    *,
    batch_size: int | Sequence[int] = 1,
    device: torch.device | str | None = None,
    training: bool = False,
    optimizer: str | None = None,
    amp: bool | str | None = None,
    grad_checkpointing: bool = False,
    fresh_process: bool | None = None,
) -> MemoryUse | tuple[MemoryUse, ...]:
    """Measures the peak memory of a forward pass without gradients, or of a training step.

    On CUDA the figure is the allocator's peak; on the CPU it is the highest running sum of the
    allocations and releases that the profiler records. The process' resident memory is never used:
    it says more about the process than about the model. A first step is not measured, so that what
    a model or a library keeps from its first call on (tables, the optimizer's state) counts as what
    it is. Not seen: memory that libraries take without torch's allocator.

    Measured in a process of its own, nothing else is allocated, and on CUDA the workspaces of its
    libraries are part of the figure. Measured in this process, the figure is what the step takes
    beyond what is there, and workspaces that are warm already are not in it.

    A training step is: forward pass in train mode, cross entropy against fixed labels (the classes
    being dimension 1 of the output; several outputs are added up) and the scalars that modules
    left in an attribute `auxiliary_loss`, backward pass, optimizer step, release of the gradients.

    Args:
        model: any module that takes a tensor `(batch_size, *input_size)`; left as it was, a
            training step in this process is done on a copy. Or a name that timm knows.
        input_size: size of one image without the batch, `(channels, height, width)`; by default
            the one the model was built for, or `(3, 224, 224)` where it doesn't say.
        batch_size: images in the batch; of several batch sizes each is measured on its own.
        device: where to measure, "cpu" or a CUDA device; by default where the module is, for a name
            the current CUDA device if there is one.
        training: whether to measure a training step.
        optimizer: timm's name of it, for training only; "lamb" by default.
        amp: autocast, "float16" or "bfloat16"; True for torch's own choice on the device, False or
            None for none.
        grad_checkpointing: whether blocks keep their input only in training, as timm's models can.
        fresh_process: whether to measure in a process of its own, which takes some seconds to
            start. By default a name is, and a module is not: it has to be pickled for that, and its
            class must be importable.

    Returns:
        One figure; for several batch sizes as many, in their order.

    Raises:
        TypeError, ValueError: an argument is not of the kind above, the device is another one, the
            model is on the meta device or on several devices, cannot be pickled for a process of
            its own, timm knows no model or optimizer of this name, or a forward pass is to have
            what only training has.
        MemoryError: memory ran out in the process of its own. Other errors there, CUDA's
            `torch.OutOfMemoryError` among them, come back as themselves.
    """
    if not isinstance(batch_size, int):
        batch_sizes = tuple(batch_size)
        if not batch_sizes:
            raise ValueError("batch_size is a positive integer, or several; got none")
    else:
        batch_sizes = (batch_size,)
    optimizer = chosen_optimizer(training, optimizer, grad_checkpointing)
    own = isinstance(model, str) if fresh_process is None else fresh_process
    if isinstance(model, nn.Module) and input_size is None:
        input_size = own_input_size(model)
    if not isinstance(model, str):
        for size in batch_sizes:
            check_arguments(model, input_size or (), size)
    uses = []
    for size in batch_sizes:
        setting: dict[str, Any] = {
            "input_size": None if input_size is None else tuple(input_size),
            "batch_size": size,
            "device": None if device is None else str(device),
            "training": training,
            "optimizer": optimizer,
            "amp": amp,
            "grad_checkpointing": grad_checkpointing,
        }
        if own:
            uses.append(call_in_fresh_process(_measure, model, {**setting, "alone": True}))
        else:
            uses.append(_measure(model, **setting))
    return uses[0] if isinstance(batch_size, int) else tuple(uses)


def _measure(
    model: nn.Module | str,
    *,
    input_size: tuple[int, ...] | None,
    batch_size: int,
    device: str | None,
    training: bool,
    optimizer: str | None,
    amp: bool | str | None,
    grad_checkpointing: bool,
    alone: bool = False,
) -> MemoryUse:
    """Measures here; `alone` says that nothing else is or was in this process."""
    if isinstance(model, str):
        model = build(model, input_size)
        if device is None and torch.cuda.is_available():
            device = "cuda"
    elif training and not alone:
        model = copy.deepcopy(model)
    input_size = own_input_size(model) if input_size is None else input_size
    check_arguments(model, input_size, batch_size)
    with placed(model, device) as target, evaluating(model):
        methods = {"cuda": _cuda_peak, "cpu": _cpu_peak}
        if target.type not in methods:
            raise ValueError(f"memory is measured on 'cpu' and 'cuda' devices, got '{target}'")
        dtype = amp_dtype(amp, target.type)
        if grad_checkpointing:
            set_checkpointing(model)
        model.train(training)
        step = Step(
            model,
            random_images(model, input_size, batch_size, device=target),
            create_optimizer(model, optimizer) if optimizer else None,
            dtype,
        )
        step()
        tensors = track(step, StorageTracker())
        resident = sum(_bytes(t) for ts in step.resident().values() for t in ts)
        peak, reserved = methods[target.type](step, resident, alone)

    # Kernels take what the allocator saw and no tensor explains.
    workspace = max(peak - sum(tensors.values()), 0)
    weights, inputs, gradients, optimizer_state, *_ = (tensors[kind] for kind in KINDS)
    return MemoryUse(
        weights_bytes=weights,
        input_bytes=inputs,
        activation_bytes=peak - workspace - weights - inputs - gradients - optimizer_state,
        peak_bytes=peak,
        batch_size=batch_size,
        device=str(target),
        method="cuda allocator" if target.type == "cuda" else "profiler events",
        gradient_bytes=gradients,
        optimizer_bytes=optimizer_state,
        workspace_bytes=workspace,
        reserved_bytes=reserved,
        training=training,
        optimizer=optimizer,
        amp=None if dtype is None else str(dtype).removeprefix("torch."),
        grad_checkpointing=grad_checkpointing,
        fresh_process=alone,
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _cuda_peak(step: Step, resident: int, alone: bool) -> tuple[int, int]:
    """Peak bytes of a step, and bytes that the allocator held.

    Args:
        resident: bytes of the tensors that are there before and after the step.
        alone: whether all that is allocated belongs to the step.
    """
    device = step.images.device
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    return peak if alone else peak - before + resident, torch.cuda.max_memory_reserved(device)


def _cpu_peak(step: Step, resident: int, alone: bool) -> tuple[int, None]:
    with profile(use_kineto=True, profile_memory=True) as record:
        step()
    assert record.kineto_results is not None
    # Releases have negative sizes.
    allocations = sorted(
        (event.start_ns(), event.nbytes())
        for event in record.kineto_results.events()
        if event.name() == "[memory]"
    )
    allocated = peak = 0
    for _, size in allocations:
        allocated += size
        peak = max(peak, allocated)
    return resident + peak, None
