"""Peak memory of inference."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.profiler import profile

from efficient_vits.efficiency.inputs import (
    check_arguments,
    evaluating,
    placed,
    random_images,
    state_of,
)


@dataclass(frozen=True)
class MemoryUse:
    """Memory of one forward pass, in bytes.

    Attributes:
        weights_bytes: parameters and buffers, shared ones once.
        input_bytes: the batch of images.
        activation_bytes: the most that was allocated at one time beyond weights and input.
        peak_bytes: the sum of the three.
        batch_size: images in the batch.
        device: where it was measured, such as "cpu" or "cuda:0".
        method: "cuda allocator" or "profiler events".
    """

    weights_bytes: int
    input_bytes: int
    activation_bytes: int
    peak_bytes: int
    batch_size: int
    device: str
    method: str


def measure_memory(
    model: nn.Module,
    input_size: Sequence[int] = (3, 224, 224),
    *,
    batch_size: int = 1,
    device: torch.device | str | None = None,
) -> MemoryUse:
    """Measures the peak memory of a forward pass in eval mode, without gradients.

    On CUDA the figure is the allocator's peak over what was allocated before the pass; on the CPU
    it is the highest running sum of the allocations and releases that the profiler records. The
    process' resident memory is never used: it says more about the process than about the model.
    A first pass is not measured, so that what a model or a library keeps from its first call on
    (tables, workspaces) doesn't count as activations. Not seen: memory that libraries take without
    torch's allocator.

    Args:
        model: any module that takes a tensor `(batch_size, *input_size)`; left as it was.
        input_size: size of one image without the batch, `(channels, height, width)`.
        batch_size: images in the batch.
        device: where to measure, "cpu" or a CUDA device; by default where the model is.

    Raises:
        TypeError, ValueError: an argument is not of the kind above, the device is another one, or
            the model is on the meta device or on several devices.
    """
    check_arguments(model, input_size, batch_size)
    with placed(model, device) as target, evaluating(model), torch.inference_mode():
        methods = {"cuda": _cuda_peak, "cpu": _cpu_peak}
        if target.type not in methods:
            raise ValueError(f"memory is measured on 'cpu' and 'cuda' devices, got '{target}'")
        images = random_images(model, input_size, batch_size, device=target)
        model(images)
        activation_bytes = methods[target.type](model, images)
        weights_bytes = sum(map(_bytes, state_of(model)))

    return MemoryUse(
        weights_bytes=weights_bytes,
        input_bytes=_bytes(images),
        activation_bytes=activation_bytes,
        peak_bytes=weights_bytes + _bytes(images) + activation_bytes,
        batch_size=batch_size,
        device=str(target),
        method="cuda allocator" if target.type == "cuda" else "profiler events",
    )


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _cuda_peak(model: nn.Module, images: Tensor) -> int:
    device = images.device
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    model(images)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _cpu_peak(model: nn.Module, images: Tensor) -> int:
    with profile(use_kineto=True, profile_memory=True) as record:
        model(images)
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
    return peak
