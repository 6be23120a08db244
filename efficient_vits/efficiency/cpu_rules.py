"""What operators of the CPU take while they run, beyond their results."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_SMALL = 20480  # elements
_PLAIN_CHANNELS = 3  # up to so many input channels, kernels read images as they are


def cpu_workspace(operator: str, arguments: Sequence[Any], result: Any) -> int:
    """Bytes of the copies that a convolution makes; 0 for other operators.

    oneDNN convolves in a layout of its own. Tensors that are not channels-last are copied into it,
    and the result is copied out of it: what torch's profiler records on x86. Where torch convolves
    itself, it unfolds an image, unless the kernel is a single pixel. Left out is the scratch space
    in which oneDNN adds up gradients of weights: its size is the choice of a kernel, and another on
    every processor. For bfloat16 the rules are those of the kernels for AVX-512: with AMX oneDNN
    copies the result once more, and without AVX-512 torch convolves itself.
    """
    if operator == "aten.convolution.default":
        images, weight = arguments[:2]
        dense, groups = _geometry(arguments[3:])
        if _is_native(images, weight, dense, groups):
            return _unfolded(weight, result, dense)
        if not images.is_contiguous():
            return 0
        # Copies of the arguments are released before the result is copied out.
        return max(_copied(images) + _bytes(weight), _bytes(result))
    if operator == "aten.convolution_backward.default":
        gradient, images, weight = arguments[:3]
        dense, groups = _geometry(arguments[4:])
        if _is_native(images, weight, dense, groups):
            return _unfolded(weight, gradient, dense)
        if not images.is_contiguous():
            return 0
        return _bytes(gradient) + _copied(images) + _bytes(weight)
    return 0


def _geometry(arguments: Sequence[Any]) -> tuple[bool, int]:
    """Whether stride and dilation leave no pixels out, and groups, from what follows the bias."""
    stride, _, dilation, _, _, groups = arguments[:6]
    return all(step == 1 for step in (*stride, *dilation)), groups


def _is_native(images: Tensor, weight: Tensor, dense: bool, groups: int) -> bool:
    """Whether torch convolves itself: `use_mkldnn` in its Convolution.cpp says when it doesn't.

    It does so in float32 only, for single pixels of few images with one thread, and for a single
    small map.
    """
    if images.dtype != torch.float32:
        return False
    pixels = weight.shape[2:].numel() == 1
    if dense and pixels and len(images) < 16 and torch.get_num_threads() == 1:
        return True
    small = len(images) == 1 and images.numel() <= _SMALL
    return small and groups == 1 and min((1, *weight.shape[2:])[-2:]) <= 3


def _unfolded(weight: Tensor, output: Tensor, dense: bool) -> int:
    """Bytes of an image's patches, a column for each pixel of the output."""
    if dense and weight.shape[2:].numel() == 1:
        return 0  # the image is its own
    return weight.shape[1:].numel() * output.shape[2:].numel() * output.element_size()


def _copied(images: Tensor) -> int:
    return 0 if images.shape[1] <= _PLAIN_CHANNELS else _bytes(images)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
