r"""Halo attention: blocks of pixels attend to themselves and to a margin around them.

    y_i = sum_j softmax_j(q_i . (k_j + r_(j - i)) / sqrt(d)) v_j,    j in the window of i's block

Blocks of b x b pixels do not overlap; the window of a block is the block with a halo of h pixels on
each side, cut off where the image ends. The embedding of a displacement is the sum of one for its
rows and one for its columns. The cost is (b + 2 h)^2 keys per pixel, whatever the size of the grid.

Source: Vaswani et al., "Scaling Local Self-Attention for Parameter Efficient Visual Backbones",
CVPR 2021 (arXiv 2103.12731), section 3. Written from the paper; its authors published
no code. What the paper leaves open: a grid that the blocks do not divide is padded, and padding and
what lies beyond the edge take no part in the softmax. Convolutional networks with this attention
are in `efficient_vits.models.halonet`; there queries may be strided.
"""

from typing import Any, ClassVar, Optional, Tuple  # noqa: UP035 (TorchScript reads Tuple)

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function, trunc_normal_
from torch import Tensor, nn

from efficient_vits._numerics import widen
from efficient_vits.attention._interface import (
    AttentionTraits,
    check_heads,
    optional_norm,
    refuse_mask,
    register_attention,
)
from efficient_vits.catalog import Paper


def block_count(pixels: int, block: int) -> int:
    """Blocks that cover so many pixels."""
    return (pixels + block - 1) // block


def inside(pixels: int, block: int, halo: int, like: Tensor) -> Tensor:
    """Which keys of every block's window lie in the image, along one axis: (blocks, window)."""
    first = block * torch.arange(block_count(pixels, block), device=like.device) - halo
    position = first.unsqueeze(1) + torch.arange(block + 2 * halo, device=like.device)
    return (position >= 0) & (position < pixels)


def displaced(table: Tensor, block: int, halo: int, stride: int) -> Tensor:
    """Embeddings of the displacements along one axis.

    Args:
        table: (2 (block + halo) - 1, d), from the farthest key before the query to that behind it.
        stride: Pixels from one query to the next.

    Returns:
        (block / stride queries, block + 2 halo keys, d).
    """
    query = stride * torch.arange(block // stride, device=table.device)
    key = torch.arange(block + 2 * halo, device=table.device)
    return table[key - query.unsqueeze(1) + block - 1]


def windows(x: Tensor, block: int, halo: int) -> Tensor:
    """The window of every block, (B, heads, d, H, W) -> (B, heads, blocks, blocks, d, window^2)."""
    B, heads, d, H, W = x.shape
    rows, columns = block_count(H, block), block_count(W, block)
    bottom, right = rows * block - H + halo, columns * block - W + halo
    x = F.pad(x, [halo, right, halo, bottom])
    size = block + 2 * halo
    x = x.unfold(3, size, block).unfold(4, size, block)  # (B, heads, d, rows, columns, size, size)
    return x.permute(0, 1, 3, 4, 2, 5, 6).reshape(B, heads, rows, columns, d, size * size)


@register_notrace_function
def halo_weights(
    q: Tensor,
    k: Tensor,
    height_rel: Tensor,
    width_rel: Tensor,
    block: int,
    halo: int,
    stride: int,
) -> Tensor:
    """Attention weights, block by block.

    Args:
        q: Scaled queries (B, heads, d, ceil(H / stride), ceil(W / stride)).
        k: Keys (B, heads, d, H, W).
        height_rel: Embeddings of row displacements, see `displaced`; `width_rel` likewise.
        block: Pixels along one side of a block, a multiple of `stride`.
        halo: Pixels around it that are seen, too.
        stride: Pixels from one query to the next.

    Returns:
        (B, heads, block rows, block columns, queries of a block, keys of a window), float32 or
        float64; padding has weight 0.
    """
    B, heads, d, H, W = k.shape
    rows, columns, b = block_count(H, block), block_count(W, block), block // stride
    q = F.pad(q, [0, columns * b - q.shape[4], 0, rows * b - q.shape[3]])
    q = q.reshape(B, heads, d, rows, b, columns, b).permute(0, 1, 3, 5, 4, 6, 2)

    by_row = torch.einsum("bhrcyxd,yid->bhrcyxi", q, displaced(height_rel, block, halo, stride))
    by_column = torch.einsum("bhrcyxd,xjd->bhrcyxj", q, displaced(width_rel, block, halo, stride))
    position = by_row.unsqueeze(-1) + by_column.unsqueeze(-2)  # (..., b, b, window, window)
    logits = q.reshape(B, heads, rows, columns, b * b, d) @ windows(k, block, halo)
    logits = widen(logits + position.reshape(logits.shape))

    seen_rows = inside(H, block, halo, q).reshape(rows, 1, 1, -1, 1)
    seen_columns = inside(W, block, halo, q).reshape(1, columns, 1, 1, -1)
    seen = (seen_rows & seen_columns).flatten(3)  # (rows, columns, 1, window^2)
    return logits.masked_fill(~seen, float("-inf")).softmax(dim=-1)


@register_notrace_function
def halo_average(
    weights: Tensor, v: Tensor, height: int, width: int, block: int, halo: int, stride: int
) -> Tensor:
    """Average values by `halo_weights`.

    Args:
        weights: As `halo_weights` returns them.
        v: Values (B, heads, e, H, W).
        height: Rows of queries; `width` likewise.
        block: As there; `halo` and `stride` likewise.

    Returns:
        (B, heads, e, height, width).
    """
    B, heads, rows, columns = weights.shape[:4]
    b, e = block // stride, v.shape[2]
    y = weights.to(v.dtype) @ windows(v, block, halo).transpose(-2, -1)
    y = y.reshape(B, heads, rows, columns, b, b, e).permute(0, 1, 6, 2, 4, 3, 5)
    return y.reshape(B, heads, e, rows * b, columns * b)[:, :, :, :height, :width]


@register_attention(
    "halo",
    vit={"class_token": False, "global_pool": "avg"},
    paper=Paper(
        title="Scaling Local Self-Attention for Parameter Efficient Visual Backbones",
        first_author="Vaswani",
        venue="CVPR 2021",
        year=2021,
        arxiv="2103.12731",
    ),
)
class HaloAttention(nn.Module):
    """Halo attention on the grid of patches.

    Args:
        dim: Channels, divisible by `num_heads`.
        num_heads: Heads; they share the embeddings of displacements.
        grid_size: Rows and columns of patch tokens; required.
        num_prefix_tokens: Tokens in front of them, which pass by as they are. A class token never
            sees the patches; pool these instead.
        block_size: Patches along one side of a block. The paper's smallest models have 8; 7 divides
            the 14 x 14 patches of 224 px.
        halo_size: Patches around a block that it sees, too.

    Shape: (B, P + H * W, dim) -> the same.

    Raises:
        ValueError: No grid, or a size out of its range.
    """

    traits: ClassVar[AttentionTraits] = AttentionTraits(grid=True, mixes_prefix=False)

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
        grid_size: Tuple[int, int] | None = None,  # noqa: UP006
        num_prefix_tokens: int = 1,
        block_size: int = 7,
        halo_size: int = 3,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_heads("halo", dim, num_heads)
        if block_size < 1 or halo_size < 0:
            raise ValueError(
                f"halo needs block_size >= 1 and halo_size >= 0, got {block_size=}, {halo_size=}"
            )
        if grid_size is None:
            raise ValueError("halo cuts the grid of patches into blocks: grid_size is required")
        factory = {"device": device, "dtype": dtype}
        self.set_grid_size(grid_size)
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.scale = self.head_dim**-0.5
        self.num_prefix_tokens = num_prefix_tokens
        self.block_size, self.halo_size = block_size, halo_size
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **factory)
        self.q_norm = optional_norm("halo", qk_norm, norm_layer, self.head_dim, **factory)
        self.k_norm = optional_norm("halo", qk_norm, norm_layer, self.head_dim, **factory)
        displacements = 2 * (block_size + halo_size) - 1
        self.height_rel = nn.Parameter(torch.empty(displacements, self.head_dim, **factory))
        self.width_rel = nn.Parameter(torch.empty(displacements, self.head_dim, **factory))
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = optional_norm("halo", scale_norm, norm_layer, dim, **factory)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **factory)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the embeddings of displacements anew: normal, of width d^-1/2."""
        trunc_normal_(self.height_rel, std=self.scale)
        trunc_normal_(self.width_rel, std=self.scale)

    def forward(
        self, x: Tensor, attn_mask: Optional[Tensor] = None, is_causal: bool = False
    ) -> Tensor:
        refuse_mask("halo", attn_mask, is_causal)
        B, N, C = x.shape
        H, W = self.grid_size
        P = self.num_prefix_tokens
        torch._assert(
            N == P + H * W, "halo got another number of tokens than its grid has; set_grid_size"
        )
        qkv = self.qkv(x[:, P:]).reshape(B, H, W, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.unbind(3)  # (B, H, W, heads, d)
        q = (self.q_norm(q) * self.scale).permute(0, 3, 4, 1, 2)
        k = self.k_norm(k).permute(0, 3, 4, 1, 2)
        v = v.permute(0, 3, 4, 1, 2)
        weights = self.attn_drop(
            halo_weights(q, k, self.height_rel, self.width_rel, self.block_size, self.halo_size, 1)
        )
        y = halo_average(weights, v, H, W, self.block_size, self.halo_size, 1)
        y = self.norm(y.permute(0, 3, 4, 1, 2).reshape(B, H * W, C))
        y = self.proj_drop(self.proj(y))
        return torch.cat([x[:, :P], y], dim=1)

    @torch.jit.ignore
    def set_grid_size(self, grid_size: Tuple[int, int]) -> None:  # noqa: UP006
        """Work on another grid; the parameters are the same for all."""
        height, width = grid_size
        self.grid_size = int(height), int(width)
