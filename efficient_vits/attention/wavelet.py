r"""Wavelet attention: keys and values come from a Haar transform of the map, which loses nothing.

    z = conv(haar(reduce x)),    y = [softmax(q(x) k(z)^T / sqrt(d)) v(z), haar^-1(z)] W

`reduce` takes a quarter of the channels, and the transform turns every 2 x 2 pixels into four bands
at half the resolution: z has as many channels as x and a quarter of its tokens. Each query meets a
quarter of the keys; what the bands hold comes back by the inverse transform, beside the attention.

Source: Yao et al., "Wave-ViT: Unifying Wavelet and Transformers for Visual Representation
Learning", ECCV 2022 (arXiv 2207.04978), section 3, the Wavelets block. Written anew (the authors'
code is Apache-2.0). Grids that the transform cannot halve are padded by repeating their last row
and column. Prefix tokens, which the paper does not have, pass by.
"""

from typing import Any, ClassVar, Final, Optional

import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct, register_notrace_function, use_fused_attn
from torch import Tensor, nn

from efficient_vits.attention._grid import to_tokens
from efficient_vits.attention._interface import (
    AttentionTraits,
    check_heads,
    optional_norm,
    refuse_mask,
    register_attention,
)
from efficient_vits.catalog import Paper

# Mean, change from row to row, from column to column, and along both; orthonormal.
BANDS = [
    [[[0.5, 0.5], [0.5, 0.5]]],
    [[[0.5, 0.5], [-0.5, -0.5]]],
    [[[0.5, -0.5], [0.5, -0.5]]],
    [[[0.5, -0.5], [-0.5, 0.5]]],
]


def haar(x: Tensor, bands: Tensor) -> Tensor:
    """Haar transform of every channel, (B, C, H, W) -> (B, 4 * C, H / 2, W / 2), band by band.

    Args:
        x: Even H and W.
        bands: `BANDS` as a tensor, (4, 1, 2, 2).
    """
    B, C, H, W = x.shape
    y = F.conv2d(x, bands.to(x.dtype).repeat(C, 1, 1, 1), stride=2, groups=C)
    return y.reshape(B, C, 4, H // 2, W // 2).transpose(1, 2).reshape(B, 4 * C, H // 2, W // 2)


def inverse_haar(y: Tensor, bands: Tensor) -> Tensor:
    """What `haar` made y of, (B, 4 * C, H, W) -> (B, C, 2 * H, 2 * W)."""
    B, D, H, W = y.shape
    C = D // 4
    y = y.reshape(B, 4, C, H, W).transpose(1, 2).reshape(B, D, H, W)
    return F.conv_transpose2d(y, bands.to(y.dtype).repeat(C, 1, 1, 1), stride=2, groups=C)


@register_notrace_function
def pad_grid(x: Tensor, multiple: int) -> Tensor:
    """(B, H, W, C) with H and W rounded up to a multiple: the last row and column are repeated.

    Zeros would be an edge, which the bands of change would see.
    """
    rows = (multiple - x.shape[1] % multiple) % multiple
    columns = (multiple - x.shape[2] % multiple) % multiple
    if rows > 0:
        x = torch.cat([x, x[:, -1:].expand(-1, rows, -1, -1)], dim=1)
    if columns > 0:
        x = torch.cat([x, x[:, :, -1:].expand(-1, -1, columns, -1)], dim=2)
    return x


class WaveletsBlock(nn.Module):
    """Wavelet attention on a grid of tokens.

    Args:
        dim: Channels, divisible by `num_heads` and by 4.
        num_heads: Heads.
        qkv_bias: Biases of queries, keys and values.
        qk_norm: Norm queries and keys, by `norm_layer`.
        proj_bias: Bias of the output projection.
        attn_drop: Dropout on the attention weights.
        proj_drop: Dropout on the output.
        scale_norm: Norm what goes into the output projection, by `norm_layer`.
        sr_ratio: A strided convolution merges so many rows and columns of the transformed grid
            before they become keys and values.

    Shape: (B, H, W, dim) -> the same, for any H and W.

    Raises:
        ValueError: Channels that do not divide, or an `sr_ratio` below 1.
    """

    fused_attn: Final[bool]
    bands: Tensor

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
        sr_ratio: int = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        check_heads("wavelet", dim, num_heads)
        if dim % 4:
            raise ValueError(f"wavelet transforms a quarter of the channels, got {dim=}")
        if sr_ratio < 1:
            raise ValueError(f"wavelet needs sr_ratio >= 1, got {sr_ratio}")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.sr_ratio = sr_ratio
        self.fused_attn = use_fused_attn()

        self.register_buffer("bands", torch.empty(4, 1, 2, 2, **factory), persistent=False)
        self.reduce = ConvNormAct(dim, dim // 4, 1, bias=True, **factory)
        self.filter = ConvNormAct(dim, dim, 3, bias=True, **factory)
        self.kv_embed = (
            nn.Conv2d(dim, dim, sr_ratio, stride=sr_ratio, **factory)
            if sr_ratio > 1
            else nn.Identity()
        )
        self.kv_norm = nn.LayerNorm(dim, **factory)
        self.q = nn.Linear(dim, dim, bias=qkv_bias, **factory)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias, **factory)
        self.q_norm = optional_norm("wavelet", qk_norm, norm_layer, self.head_dim, **factory)
        self.k_norm = optional_norm("wavelet", qk_norm, norm_layer, self.head_dim, **factory)
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = optional_norm("wavelet", scale_norm, norm_layer, dim + dim // 4, **factory)
        self.proj = nn.Linear(dim + dim // 4, dim, bias=proj_bias, **factory)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Write the constants of the transform."""
        with torch.no_grad():
            self.bands.copy_(torch.tensor(BANDS))

    def mix(self, x: Tensor) -> Tensor:
        """Wavelet attention, (B, H, W, C) -> the same."""
        B, H, W, C = x.shape
        z = pad_grid(x, 2 * self.sr_ratio).permute(0, 3, 1, 2)
        z = self.filter(haar(self.reduce(z), self.bands))  # (B, C, H' / 2, W' / 2)
        local = inverse_haar(z, self.bands)[:, :, :H, :W]  # (B, C / 4, H, W)

        q = self.q(x).reshape(B, H * W, self.num_heads, self.head_dim).transpose(1, 2)
        kv = self.kv(self.kv_norm(to_tokens(self.kv_embed(z))))
        # (2, B, heads, M, d)
        kv = kv.reshape(B, -1, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        k, v = kv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused_attn:
            p = self.attn_drop.p if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=p)
        else:
            weights = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            y = self.attn_drop(weights.softmax(dim=-1)) @ v
        y = y.transpose(1, 2).reshape(B, H, W, C)
        y = self.norm(torch.cat([y, local.permute(0, 2, 3, 1)], dim=-1))
        return self.proj_drop(self.proj(y))

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x)


@register_attention(
    "wavelet",
    vit={"class_token": False, "global_pool": "avg"},
    paper=Paper(
        title="Wave-ViT: Unifying Wavelet and Transformers for Visual Representation Learning",
        first_author="Yao",
        venue="ECCV 2022",
        year=2022,
        arxiv="2207.04978",
    ),
)
class WaveletAttention(WaveletsBlock):
    """Wavelet attention between the patch tokens of a ViT.

    Args:
        dim: Channels, divisible by `num_heads` and by 4.
        grid_size: Rows and columns of patch tokens; required.
        num_prefix_tokens: Tokens in front of them, which pass by as they are. A class token never
            sees the patches; pool these instead.

    The other arguments are those of `WaveletsBlock`.

    Shape: (B, P + H * W, dim) -> the same.

    Raises:
        ValueError: No grid, or what `WaveletsBlock` refuses.
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
        grid_size: tuple[int, int] | None = None,
        num_prefix_tokens: int = 1,
        sr_ratio: int = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if grid_size is None:
            raise ValueError("wavelet transforms the grid of patches; needs grid_size, got None")
        super().__init__(
            dim,
            num_heads=num_heads,
            qkv_bias=qkv_bias,
            qk_norm=qk_norm,
            proj_bias=proj_bias,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            norm_layer=norm_layer,
            scale_norm=scale_norm,
            sr_ratio=sr_ratio,
            device=device,
            dtype=dtype,
        )
        self.grid_size = grid_size
        self.num_prefix_tokens = num_prefix_tokens

    def forward(
        self, x: Tensor, attn_mask: Optional[Tensor] = None, is_causal: bool = False
    ) -> Tensor:
        refuse_mask("wavelet", attn_mask, is_causal)
        B, N, C = x.shape
        P, (H, W) = self.num_prefix_tokens, self.grid_size
        torch._assert(
            P + H * W == N, "wavelet got another number of tokens than its grid has; set_grid_size"
        )
        y = self.mix(x[:, P:].reshape(B, H, W, C)).reshape(B, H * W, C)
        return torch.cat([x[:, :P], y], dim=1)

    @torch.jit.ignore
    def set_grid_size(self, grid_size: tuple[int, int]) -> None:
        """Work on another grid; the parameters are the same for all."""
        self.grid_size = grid_size
