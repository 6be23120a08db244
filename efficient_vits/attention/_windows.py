"""Windows of tokens on a grid, shifted or not, for the mixers that work inside them.

Two tokens share a window where they lie in one cell of a lattice of ``window_size`` squares, which
begins at the first token or, shifted, ``shift`` tokens to the right and below. For one batched
product the grid is padded to whole windows and rolled, so that the partial windows at opposite
borders fill one; a mask keeps them, and the padding, apart.
"""

import math
from typing import Any, Optional, Tuple  # noqa: UP035 (TorchScript reads Tuple)

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def checked_windows(
    name: str,
    grid_size: Optional[Tuple[int, int]],  # noqa: UP006
    window_size: int,
) -> Tuple[int, int]:  # noqa: UP006
    """Rows and columns of patch tokens; raises where they are not known, or there is no window."""
    if grid_size is None:
        raise ValueError(f"{name} cuts the grid of patches and needs grid_size, got None")
    if window_size < 1:
        raise ValueError(f"{name} needs window_size >= 1, got {window_size}")
    height, width = grid_size
    return int(height), int(width)


def cells(points: int, window: int, shift: int) -> Tensor:
    """Number of the window of each point along one axis, in the order after padding and rolling.

    Padding has the number -1.
    """
    padded = math.ceil(points / window) * window
    point = (torch.arange(padded) + shift) % padded
    cell = torch.div(point - shift, window, rounding_mode="floor") + 1
    return torch.where(point < points, cell, -1)


def window_mask(grid_size: Tuple[int, int], window: int, shift: Tuple[int, int]) -> Tensor:  # noqa: UP006
    """What is added to the logits: 0 between tokens of one window, -inf between others.

    Padding belongs together, so that no row is all -inf.

    Returns:
        (windows, window**2, window**2), float32.
    """
    rows = cells(grid_size[0], window, shift[0])
    columns = cells(grid_size[1], window, shift[1])
    number = rows.unsqueeze(1) * (len(columns) + 2) + columns
    outside = (rows < 0).unsqueeze(1) | (columns < 0)
    number = number.masked_fill(outside, -1)
    number = partition(number[None, :, :, None], window)[0, :, :, 0]  # (windows, window**2)
    different = number.unsqueeze(1) != number.unsqueeze(2)
    return torch.zeros(different.shape).masked_fill(different, -math.inf)


def partition(x: Tensor, window: int) -> Tensor:
    """A grid of whole windows (B, H, W, C) -> (B, windows, window**2, C)."""
    B, H, W, C = x.shape
    rows, columns = H // window, W // window
    x = x.reshape(B, rows, window, columns, window, C).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(B, rows * columns, window * window, C)


def attention_in_windows(
    qkv: Tensor, bias: Tensor, mask: Optional[Tensor], scale: float, dropout: float, fused: bool
) -> Tensor:
    """Softmax attention in every window and head.

    Windows are handled as if they were heads, so that one bias serves the whole batch.

    Args:
        qkv: (3, B, windows, heads, A, d).
        bias: What is added to the logits, (heads, A, A).
        mask: Likewise (windows, A, A), or None.
        scale: Factor of the logits.
        dropout: Dropout on the attention weights.
        fused: Use PyTorch's fused attention.

    Returns:
        (B, windows, A, heads * d).
    """
    _, B, T, h, A, d = qkv.shape
    bias = bias.expand(T, h, A, A) if mask is None else bias + mask.unsqueeze(1)
    bias = bias.reshape(T * h, A, A).to(qkv.dtype)
    q, k, v = qkv.flatten(2, 3).unbind(0)  # (B, T * h, A, d)
    if fused:
        y = F.scaled_dot_product_attention(q, k, v, bias, dropout_p=dropout, scale=scale)
    else:
        weights = ((q * scale) @ k.transpose(-2, -1) + bias).softmax(dim=-1)
        y = F.dropout(weights, dropout).to(v.dtype) @ v
    return y.reshape(B, T, h, A, d).transpose(2, 3).reshape(B, T, A, h * d)


class Windows(nn.Module):
    """Cuts a grid of tokens into windows and puts them together again.

    Args:
        grid_size: Rows and columns of tokens.
        window_size: Side of a window in tokens.
        shift: Whether the windows are shifted by half of that, down and to the right. An axis that
            fits into one window is not.
    """

    mask: Optional[Tensor]
    place: Tensor

    def __init__(
        self,
        grid_size: tuple[int, int],
        window_size: int,
        shift: bool,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.shifted = shift
        # A mask is not always there, so that something else has to know where it belongs.
        self.register_buffer("place", torch.empty(0, device=device, dtype=dtype), persistent=False)
        self.set_grid_size(grid_size)

    @torch.jit.ignore
    def set_grid_size(self, grid_size: tuple[int, int]) -> None:
        """Work on another grid."""
        window = self.window_size
        half = window // 2 if self.shifted else 0
        self.grid_size = grid_size
        rows, columns = grid_size
        self.shift = (half if rows > window else 0, half if columns > window else 0)
        self.padded = (math.ceil(rows / window) * window, math.ceil(columns / window) * window)
        mask = None
        if any(self.shift) or self.padded != tuple(grid_size):
            mask = window_mask(self.grid_size, window, self.shift).to(self.place)
        self.register_buffer("mask", mask, persistent=False)

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """Make the mask anew."""
        self.set_grid_size(self.grid_size)

    def split(self, x: Tensor) -> Tensor:
        """Tokens (B, H * W, C) -> (B, windows, window_size**2, C)."""
        B, C = x.shape[0], x.shape[2]
        H, W = self.grid_size
        x = x.reshape(B, H, W, C)
        x = F.pad(x, [0, 0, 0, self.padded[1] - W, 0, self.padded[0] - H])
        x = torch.roll(x, shifts=[-self.shift[0], -self.shift[1]], dims=[1, 2])
        return partition(x, self.window_size)

    def join(self, x: Tensor) -> Tensor:
        """The inverse of `split`; padding is cut off."""
        C, window = x.shape[-1], self.window_size
        H, W = self.padded
        x = x.reshape(-1, H // window, W // window, window, window, C)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(-1, H, W, C)
        x = torch.roll(x, shifts=[self.shift[0], self.shift[1]], dims=[1, 2])
        x = x[:, : self.grid_size[0], : self.grid_size[1]]
        return x.reshape(-1, self.grid_size[0] * self.grid_size[1], C)
