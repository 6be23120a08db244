r"""Adaptive Fourier neural operator: one small MLP for all frequencies, in blocks of channels.

    y = F^-1(S(W_2 relu(W_1 F(x) + b_1) + b_2)),    S(z) = sign(z) max(|z| - lambda, 0)

W_1 and W_2 are complex and block-diagonal; relu and the soft shrinkage S work on real and
imaginary parts. High frequencies can be cut off, which makes the MLP cheaper.

Source: Guibas et al., "Adaptive Fourier Neural Operators: Efficient Token Mixers for
Transformers", ICLR 2022 (arXiv 2111.13587), section 4. Written anew; the authors' code
is not free for commercial use. The hard threshold keeps the lowest frequencies along both axes,
positive and negative; in the benchmark's code, which counts tokens instead, fractions above 0.08
change nothing at 224 px.
"""

from typing import Any, ClassVar, Final, Optional

import torch
import torch.nn.functional as F
from timm.layers import is_exportable, register_notrace_function
from torch import Tensor, nn

from efficient_vits._numerics import without_autocast
from efficient_vits.attention._fourier import (
    checked_grid,
    from_modes,
    refuse_arguments,
    to_modes,
    widened,
)
from efficient_vits.attention._interface import AttentionTraits, refuse_mask, register_attention


def complex_linear(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A complex linear layer per block, as one product in real numbers.

    Args:
        z: Real parts, then imaginary parts, (blocks, T, 2 * in).
        weight: Real and imaginary part (2, blocks, in, out).
        bias: Likewise (2, blocks, out).

    Returns:
        (blocks, T, 2 * out).
    """
    a, b = weight.unbind(0)
    real = torch.cat([torch.cat([a, b], dim=2), torch.cat([-b, a], dim=2)], dim=1)
    return torch.baddbmm(bias.transpose(0, 1).flatten(1).unsqueeze(1), z, real)


def mix_modes(
    modes: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, threshold: float
) -> Tensor:
    """The MLP and the shrinkage, (B, H, V, C, 2) -> the same."""
    B, H, V, C, _ = modes.shape
    blocks, inner = w1.shape[1], w1.shape[2]
    z = modes.reshape(B * H * V, blocks, inner, 2).permute(1, 0, 3, 2)
    z = z.reshape(blocks, B * H * V, 2 * inner)
    z = complex_linear(F.relu(complex_linear(z, w1, b1)), w2, b2)
    z = F.softshrink(z, threshold)
    z = z.reshape(blocks, B * H * V, 2, inner).permute(1, 0, 3, 2)
    return z.reshape(B, H, V, C, 2)


def operated(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    threshold: float,
    fraction: float,
    products: bool,
) -> Tensor:
    """The operator on a grid of tokens, (B, H, W, C) -> the same, in float32 or float64."""
    modes = to_modes(x, products)
    if fraction == 1:
        return from_modes(mix_modes(modes, w1, b1, w2, b2, threshold), x.shape[2], products)
    B, H, V, C, _ = modes.shape
    # Rows are the frequencies 0, 1, ..., -2, -1; columns 0, 1, ...
    columns = max(int(fraction * V), 1)
    low = max(int(fraction * (H // 2 + 1)), 1)
    high = min(low - 1, H - low)
    kept = torch.cat([modes[:, :low, :columns], modes[:, H - high :, :columns]], dim=1)
    kept = mix_modes(kept, w1, b1, w2, b2, threshold)
    gap = kept.new_zeros([B, H - low - high, columns, C, 2])
    modes = torch.cat([kept[:, :low], gap, kept[:, low:]], dim=1)
    modes = F.pad(modes, [0, 0, 0, 0, 0, V - columns])
    return from_modes(modes, x.shape[2], products)


@register_notrace_function
def fourier_operator(
    x: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    threshold: float,
    fraction: float,
    products: bool,
) -> Tensor:
    """`operated` in float32 at least, whatever autocast says."""
    wide = widened(x)
    w1, b1, w2, b2 = w1.to(wide.dtype), b1.to(wide.dtype), w2.to(wide.dtype), b2.to(wide.dtype)
    if torch.jit.is_scripting():
        return operated(wide, w1, b1, w2, b2, threshold, fraction, products).to(x.dtype)
    with without_autocast(x.device.type):
        return operated(wide, w1, b1, w2, b2, threshold, fraction, products).to(x.dtype)


@register_attention("afno", vit={"class_token": False, "global_pool": "avg"})
class AfnoAttention(nn.Module):
    """The adaptive Fourier neural operator.

    Args:
        dim: Channels, divisible by `num_blocks`.
        num_heads: Part of the interface, as are `qkv_bias` and `proj_bias`: the operator has blocks
            and biases of its own.
        qk_norm: Refused, as are `scale_norm` and `attn_drop`: there is nothing to norm or drop.
        proj_drop: Dropout on the output.
        grid_size: Rows and columns of patch tokens; required.
        num_prefix_tokens: Tokens in front of them, which pass by as they are. A class token never
            sees the patches; pool these instead.
        num_blocks: Blocks of channels that the MLP does not mix.
        sparsity_threshold: What real and imaginary parts are shrunk by.
        hard_thresholding_fraction: Fraction of the frequencies along each axis that is kept, from
            the lowest on; the others become zero.
        add_input: Add the tokens to the result, as the authors' code does with skip connections
            around filter and MLP; the benchmark's does not.

    Shape: (B, P + H * W, dim) -> the same.

    Raises:
        ValueError: No grid, or an option out of its range.
    """

    traits: ClassVar[AttentionTraits] = AttentionTraits(
        grid=True, mixes_prefix=False, refuses=frozenset({"qk_norm", "scale_norm"})
    )
    products: Final[bool]
    add_input: Final[bool]

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: type[nn.Module] | None = None,
        scale_norm: bool = False,
        *,
        grid_size: tuple[int, int] | None = None,
        num_prefix_tokens: int = 1,
        num_blocks: int = 8,
        sparsity_threshold: float = 0.01,
        hard_thresholding_fraction: float = 1.0,
        add_input: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        refuse_arguments("afno", qk_norm, scale_norm, attn_drop)
        if num_blocks < 1 or dim % num_blocks:
            raise ValueError(f"afno needs dim divisible by num_blocks, got {dim=}, {num_blocks=}")
        if sparsity_threshold < 0:
            raise ValueError(f"afno needs sparsity_threshold >= 0, got {sparsity_threshold}")
        if not 0 < hard_thresholding_fraction <= 1:
            raise ValueError(
                f"afno needs 0 < hard_thresholding_fraction <= 1, got {hard_thresholding_fraction}"
            )
        self.grid_size = checked_grid("afno", grid_size)
        self.num_prefix_tokens = num_prefix_tokens
        self.sparsity_threshold = float(sparsity_threshold)
        self.hard_thresholding_fraction = float(hard_thresholding_fraction)
        self.add_input = add_input
        self.products = is_exportable()
        factory = {"device": device, "dtype": dtype}
        inner = dim // num_blocks
        self.w1 = nn.Parameter(torch.empty(2, num_blocks, inner, inner, **factory))
        self.b1 = nn.Parameter(torch.empty(2, num_blocks, inner, **factory))
        self.w2 = nn.Parameter(torch.empty(2, num_blocks, inner, inner, **factory))
        self.b2 = nn.Parameter(torch.empty(2, num_blocks, inner, **factory))
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights and biases anew: normal, of width 0.02."""
        for parameter in (self.w1, self.b1, self.w2, self.b2):
            nn.init.normal_(parameter, std=0.02)

    def forward(
        self, x: Tensor, attn_mask: Optional[Tensor] = None, is_causal: bool = False
    ) -> Tensor:
        refuse_mask("afno", attn_mask, is_causal)
        B, N, C = x.shape
        H, W = self.grid_size
        P = self.num_prefix_tokens
        torch._assert(
            N == P + H * W, "afno got another number of tokens than its grid has; set_grid_size"
        )
        y = fourier_operator(
            x[:, P:].reshape(B, H, W, C),
            self.w1,
            self.b1,
            self.w2,
            self.b2,
            self.sparsity_threshold,
            self.hard_thresholding_fraction,
            self.products,
        )
        y = y.reshape(B, H * W, C)
        if self.add_input:
            y = y + x[:, P:]
        return self.proj_drop(torch.cat([x[:, :P], y], dim=1))

    @torch.jit.ignore
    def set_grid_size(self, grid_size: tuple[int, int]) -> None:
        """Work on another grid; the parameters are the same for all."""
        self.grid_size = checked_grid("afno", grid_size)
