"""Discrete Fourier transforms of tokens, for the mixers that work on frequencies.

Modes are real tensors (B, H, V, C, 2) of real and imaginary parts, with V = W // 2 + 1: the input
is real, so that the other columns of the spectrum mirror these. Both transforms are orthonormal.

FFTs need float32 at least: half-precision ones exist for powers of two only, and 14 is none. Where
an FFT has no place, in exported graphs, the same transform is a product with the matrices of
cosines and sines, in real numbers throughout.
"""

import math
from typing import Optional, Tuple  # noqa: UP035 (TorchScript reads Tuple)

import torch
from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """`x` in float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


def waves(points: int, frequencies: int, like: Tensor) -> Tuple[Tensor, Tensor]:  # noqa: UP006
    """cos and sin of 2 pi f n / points, (frequencies, points) each, made like the tensor `like`."""
    n = torch.arange(points, device=like.device)
    f = torch.arange(frequencies, device=like.device)
    # Whole turns are taken off as integers, which keeps the angles exact.
    turn = torch.remainder(f.unsqueeze(1) * n, points)
    angle = turn.to(like.dtype) * (2 * math.pi / points)
    return angle.cos(), angle.sin()


def to_modes(x: Tensor, products: bool) -> Tensor:
    """Orthonormal real 2-D DFT of a grid of tokens.

    Args:
        x: (B, H, W, C), float32 or float64.
        products: Use matrix products instead of the FFT.

    Returns:
        Modes (B, H, V, C, 2).
    """
    if not products:
        return torch.view_as_real(torch.fft.rfft2(x, dim=(1, 2), norm="ortho"))
    B, H, W, C = x.shape
    V = W // 2 + 1
    cos, sin = waves(W, V, x)
    re, im = cos @ x, -(sin @ x)  # (B, H, V, C)
    re, im = re.reshape(B, H, V * C), im.reshape(B, H, V * C)
    cos, sin = waves(H, H, x)
    modes = torch.stack([cos @ re + sin @ im, cos @ im - sin @ re], dim=-1)
    return modes.reshape(B, H, V, C, 2) / math.sqrt(H * W)


def from_modes(modes: Tensor, width: int, products: bool) -> Tensor:
    """The inverse of `to_modes`.

    A real image has conjugate modes at opposite frequencies. Of modes that break this, only the
    part that keeps it counts, as in `torch.fft.irfft2`.

    Args:
        modes: (B, H, V, C, 2), float32 or float64.
        width: W, which V does not tell.
        products: Use matrix products instead of the FFT.

    Returns:
        (B, H, W, C).
    """
    B, H, V, C, _ = modes.shape
    if not products:
        z = torch.view_as_complex(modes.contiguous())
        return torch.fft.irfft2(z, s=(H, width), dim=(1, 2), norm="ortho")
    re, im = modes.reshape(B, H, V * C, 2).unbind(-1)
    cos, sin = waves(H, H, modes)
    re, im = cos @ re - sin @ im, cos @ im + sin @ re
    # Columns other than the first and, in an even width, the last stand for their mirror, too.
    column = torch.arange(V, device=modes.device)
    mirrored = (column > 0) & (2 * column != width)
    weight = (1 + mirrored.to(modes.dtype)) / math.sqrt(H * width)
    cos, sin = waves(width, V, modes)
    cos, sin = weight * cos.t(), weight * sin.t()  # (W, V)
    return cos @ re.reshape(B, H, V, C) - sin @ im.reshape(B, H, V, C)


def refuse_arguments(name: str, qk_norm: bool, scale_norm: bool, attn_drop: float) -> None:
    """Raise for what presupposes queries, keys or attention weights."""
    if qk_norm or scale_norm:
        raise ValueError(
            f"{name} has neither queries and keys nor an output projection; qk_norm and scale_norm "
            f"must be False"
        )
    if attn_drop:
        raise ValueError(f"{name} has no attention weights to drop, got {attn_drop=}; pass 0.0")


def checked_grid(name: str, grid_size: Optional[Tuple[int, int]]) -> Tuple[int, int]:  # noqa: UP006
    """Rows and columns of patch tokens; raises where they are not known."""
    if grid_size is None:
        raise ValueError(f"{name} transforms the grid of patches and needs grid_size, got None")
    height, width = grid_size
    return int(height), int(width)
