"""What operators of the CPU take while they run, beyond their results."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

_SMALL = 20480  # elements
_PLAIN_CHANNELS = 3  # up to so many input channels, kernels read images as they are


def cpu_workspace(operator: str, arguments: Sequence[Any], result: Any) -> int:
    """Bytes of the copies that a convolution makes; 0 for other operators.

    oneDNN convolves in a layout of its own. Tensors that are not channels-last are copied into it,
    and the result is copied out of it: what torch's profiler records on x86.
    """
    if operator == "aten.convolution.default":
        images, weight = arguments[:2]
        if _lies_as_needed(images, weight):
            return 0
        # Copies of the arguments are released before the result is copied out.
        return max(_copied(images) + _bytes(weight), _bytes(result))
    if operator == "aten.convolution_backward.default":
        gradient, images, weight = arguments[:3]
        if _lies_as_needed(images, weight):
            return 0
        return _bytes(gradient) + _copied(images) + _bytes(weight)
    return 0


def _lies_as_needed(images: Tensor, weight: Tensor) -> bool:
    # torch convolves a single small map by itself.
    small = (
        images.shape[0] == 1
        and images.numel() <= _SMALL
        and weight.shape[1] == images.shape[1]
        and min(weight.shape[2:]) <= 3
    )
    return small or images.ndim != 4 or not images.is_contiguous()


def _copied(images: Tensor) -> int:
    return 0 if images.shape[1] <= _PLAIN_CHANNELS else _bytes(images)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
