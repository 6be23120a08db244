"""Tokens on a grid, as a sequence and as an image.

With ``transpose(1, 2)`` and ``reshape(B, C, H, W)`` a batch of one gets strides that torch takes
for channels-last here and for contiguous there; its batch norm on the CPU then gives wrong
gradients. The order of steps below keeps the strides plain.
"""

from torch import Tensor


def to_image(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (B, H * W, C) as an image (B, C, H, W), channels last."""
    return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def to_tokens(image: Tensor) -> Tensor:
    """An image (B, C, H, W) as tokens (B, H * W, C)."""
    return image.permute(0, 2, 3, 1).flatten(1, 2)
