r"""Lightweight multi-scale linear attention: linear attention at several scales of one projection.

    y_n = BN(W [a(q, k, v)_n, a(s_5(q), s_5(k), s_5(v))_n]),
    a(q, k, v)_n = sum_m (relu q_n . relu k_m) v_m / sum_m (relu q_n . relu k_m)

s_5 aggregates tokens around each one: a depth-wise 5 x 5 convolution, then a linear layer within
each head's queries, keys or values. Each further scale is one more set of heads.

Source: Cai et al., "EfficientViT: Multi-Scale Linear Attention for High-Resolution Dense
Prediction", ICCV 2023 (arXiv 2205.14756), section 3.1. Written from the paper (the authors' code is
Apache-2.0) with the channels of q, k and v in a plain ViT's order; timm's `LiteMLA` computes in
float32 whatever it is given, and is what the tests compare with. The projection has no bias and
ends in a batch norm, which `efficient_vits.fuse` folds. Prefix tokens pass by as they are: they
have no place in the grid.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Optional

import torch
from timm.models.levit import LinearNorm
from torch import Tensor, nn

from efficient_vits.attention._interface import (
    AttentionTraits,
    check_heads,
    refuse_mask,
    register_attention,
)
from efficient_vits.attention.slab import relu_attention
from efficient_vits.catalog import Paper


@register_attention(
    "multi_scale_linear",
    vit={"class_token": False, "global_pool": "avg", "qkv_bias": False},
    paper=Paper(
        title="EfficientViT: Multi-Scale Linear Attention for High-Resolution Dense Prediction",
        first_author="Cai",
        venue="ICCV 2023",
        year=2023,
        arxiv="2205.14756",
    ),
)
class MultiScaleLinearAttention(nn.Module):
    """Multi-scale linear attention with the ReLU kernel.

    Args:
        dim: Channels, divisible by `num_heads`.
        num_heads: Heads of each scale.
        qkv_bias: Biases of the projection and of the aggregations.
        qk_norm: Refused, as is `scale_norm`: the paper has neither.
        proj_bias: Part of the interface; the batch norm behind the projection has a bias.
        attn_drop: Dropout on what each token contributes to the sums.
        grid_size: Rows and columns of patch tokens; required.
        num_prefix_tokens: Tokens in front of them, which pass by. A class token never sees the
            patches; pool these instead.
        scales: Kernels of the aggregations; odd.

    Shape: (B, P + H * W, dim) -> the same.

    Raises:
        ValueError: No grid, or an even kernel.
    """

    traits: ClassVar[AttentionTraits] = AttentionTraits(
        grid=True, mixes_prefix=False, refuses=frozenset({"qk_norm", "scale_norm"})
    )

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
        scales: Sequence[int] = (5,),
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_heads("multi_scale_linear", dim, num_heads)
        if qk_norm or scale_norm:
            raise ValueError("multi_scale_linear needs qk_norm=False and scale_norm=False")
        if grid_size is None:
            raise ValueError(
                "multi_scale_linear convolves over the grid; needs grid_size, got None"
            )
        if any(k < 1 or k % 2 == 0 for k in scales):
            raise ValueError(f"multi_scale_linear needs odd scales, got {tuple(scales)}")
        factory = {"device": device, "dtype": dtype}
        self.head_dim = dim // num_heads
        self.grid_size = grid_size
        self.num_prefix_tokens = num_prefix_tokens
        width = 3 * dim
        self.qkv = nn.Linear(dim, width, bias=qkv_bias, **factory)
        self.aggregations = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, k, padding=k // 2, groups=width, bias=qkv_bias, **factory),
                nn.Conv2d(width, width, 1, groups=3 * num_heads, bias=qkv_bias, **factory),
            )
            for k in scales
        )
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = LinearNorm(dim * (1 + len(scales)), dim, **factory)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self, x: Tensor, attn_mask: Optional[Tensor] = None, is_causal: bool = False
    ) -> Tensor:
        refuse_mask("multi_scale_linear", attn_mask, is_causal)
        B, N, C = x.shape
        P, (H, W), d = self.num_prefix_tokens, self.grid_size, self.head_dim
        torch._assert(
            N == P + H * W,
            "multi_scale_linear got another number of tokens than its grid has; set_grid_size",
        )
        qkv = self.qkv(x[:, P:]).transpose(1, 2).reshape(B, 3 * C, H, W)
        scales = [qkv]
        for aggregate in self.aggregations:
            scales.append(aggregate(qkv))
        # (scales, B, 3, heads, d, N) -> (3, B, scales * heads, N, d)
        qkv = torch.stack(scales).reshape(len(scales), B, 3, C // d, d, H * W)
        q, k, v = qkv.permute(2, 1, 0, 3, 5, 4).flatten(2, 3).unbind(0)
        y = relu_attention(q, k, self.attn_drop(v)).to(v.dtype)
        y = self.proj_drop(self.proj(y.transpose(1, 2).reshape(B, H * W, len(scales) * C)))
        return torch.cat([x[:, :P].to(y.dtype), y], dim=1)

    @torch.jit.ignore
    def set_grid_size(self, grid_size: tuple[int, int]) -> None:
        """Work on another grid; the parameters are the same for all."""
        self.grid_size = grid_size
