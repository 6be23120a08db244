"""Tokens on a grid, as a sequence and as an image.

With ``transpose(1, 2)`` and ``reshape(B, C, H, W)`` a batch of one gets strides that torch takes
for channels-last here and for contiguous there; its batch norm on the CPU then gives wrong
gradients. The order of steps below keeps the strides plain.
"""

import torch.nn.functional as F
from timm.layers import register_notrace_function
from torch import Tensor


def to_image(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (B, H * W, C) as an image (B, C, H, W), channels last."""
    return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def to_tokens(image: Tensor) -> Tensor:
    """An image (B, C, H, W) as tokens (B, H * W, C)."""
    return image.permute(0, 2, 3, 1).flatten(1, 2)


@register_notrace_function
def at_least_as_wide(image: Tensor, width: int) -> Tensor:
    """An image (B, C, H, W) with columns of zeros on its right, `width` in all if it has fewer.

    For a convolution with stride `width` whose kernel is centred (odd, half of it as padding): the
    result is the same. Of an image narrower than the stride, torch's bfloat16 gradient for the
    weights contains memory that nothing has written, NaN at times (torch 2.14 with oneDNN, on CPUs
    with AVX512-BF16).
    """
    missing = width - image.shape[3]
    return F.pad(image, (0, missing)) if missing > 0 else image
