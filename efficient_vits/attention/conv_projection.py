r"""Convolutional projection: queries, keys and values see their neighbours before they attend.

    q = W_q BN(dw_1(x)),    k, v = W_k,v BN(dw_s(x)),    y = W softmax(q k^T / sqrt(C)) v

dw_s is a depth-wise convolution of stride s over the grid of patches. Prefix tokens have no
neighbours: they skip convolution and norm, and join the patches in front of W_q, W_k and W_v.
With s = 2 each token attends to a quarter of the patches.

Source: Wu et al., "CvT: Introducing Convolutions to Vision Transformers", ICCV 2021 (arXiv
2103.15808), section 3.2. Written anew (the authors' code is MIT). As in that code and in the
published weights, logits are scaled by the width C of all heads together, where the Transformer
scales by that of one.
"""

from typing import Any, ClassVar, Final, Optional, Tuple  # noqa: UP035 (TorchScript reads Tuple)

import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct, use_fused_attn
from torch import Tensor, nn

from efficient_vits.attention._grid import at_least_as_wide, to_image, to_tokens
from efficient_vits.attention._interface import (
    AttentionTraits,
    check_heads,
    refuse_mask,
    register_attention,
)
from efficient_vits.catalog import Paper


@register_attention(
    "conv_projection",
    paper=Paper(
        title="CvT: Introducing Convolutions to Vision Transformers",
        first_author="Wu",
        venue="ICCV 2021",
        year=2021,
        arxiv="2103.15808",
    ),
)
class ConvProjectionAttention(nn.Module):
    """Self-attention between convolutional projections of the tokens.

    Args:
        dim: Channels, divisible by `num_heads`.
        num_heads: Heads.
        grid_size: Rows and columns of patch tokens; a call may give its own.
        num_prefix_tokens: Tokens in front of them, which take part without convolution.
        kernel_size: Rows and columns of the convolutions, odd.
        stride_kv: Stride of those of keys and values.

    Shape: (B, P + H * W, dim) -> the same.

    Raises:
        ValueError: Heads, kernel or stride that do not fit.
    """

    traits: ClassVar[AttentionTraits] = AttentionTraits(
        grid=True, refuses=frozenset({"qk_norm", "scale_norm"})
    )
    fused_attn: Final[bool]

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        *,
        grid_size: tuple[int, int] | None = None,
        num_prefix_tokens: int = 1,
        kernel_size: int = 3,
        stride_kv: int = 2,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_heads("conv_projection", dim, num_heads)
        if kernel_size < 1 or kernel_size % 2 == 0 or stride_kv < 1:
            raise ValueError(
                f"conv_projection needs an odd kernel_size and a positive stride_kv, got "
                f"{kernel_size=}, {stride_kv=}"
            )
        factory = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = dim**-0.5
        self.fused_attn = use_fused_attn()
        self.grid_size = grid_size or (0, 0)
        self.num_prefix_tokens = num_prefix_tokens
        self.stride_kv = stride_kv

        def depthwise(stride: int) -> nn.Module:
            return ConvNormAct(
                dim,
                dim,
                kernel_size,
                stride,
                padding=kernel_size // 2,
                groups=dim,
                apply_act=False,
                **factory,
            )

        self.q_conv = depthwise(1)
        self.k_conv = depthwise(stride_kv)
        self.v_conv = depthwise(stride_kv)
        self.q_proj = nn.Linear(dim, dim, bias=qkv_bias, **factory)
        self.k_proj = nn.Linear(dim, dim, bias=qkv_bias, **factory)
        self.v_proj = nn.Linear(dim, dim, bias=qkv_bias, **factory)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **factory)
        self.proj_drop = nn.Dropout(proj_drop)

    def _tokens(self, prefix: Tensor, image: Tensor) -> Tensor:
        """Prefix tokens (B, P, C) in front of those of an image (B, C, H, W)."""
        patches = to_tokens(image)
        return torch.cat([prefix, patches], dim=1) if self.num_prefix_tokens > 0 else patches

    def forward(
        self,
        x: Tensor,
        attn_mask: Optional[Tensor] = None,
        is_causal: bool = False,
        grid_size: Optional[Tuple[int, int]] = None,  # noqa: UP006
    ) -> Tensor:
        refuse_mask("conv_projection", attn_mask, is_causal)
        B, N, C = x.shape
        H, W = self.grid_size if grid_size is None else grid_size
        P = self.num_prefix_tokens
        torch._assert(
            N == P + H * W,
            "conv_projection got another number of tokens than its grid has; set_grid_size",
        )
        prefix = x[:, :P]
        image = to_image(x[:, P:], H, W)
        q = self.q_proj(self._tokens(prefix, self.q_conv(image)))
        image = at_least_as_wide(image, self.stride_kv)
        k = self.k_proj(self._tokens(prefix, self.k_conv(image)))
        v = self.v_proj(self._tokens(prefix, self.v_conv(image)))
        # (B, heads, tokens, d)
        q = q.reshape(B, N, self.num_heads, self.head_dim).transpose(1, 2)
        k = k.reshape(B, -1, self.num_heads, self.head_dim).transpose(1, 2)
        v = v.reshape(B, -1, self.num_heads, self.head_dim).transpose(1, 2)
        if self.fused_attn:
            p = self.attn_drop.p if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, scale=self.scale)
        else:
            weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
            y = self.attn_drop(weights) @ v
        return self.proj_drop(self.proj(y.transpose(1, 2).reshape(B, N, C)))

    @torch.jit.ignore
    def set_grid_size(self, grid_size: tuple[int, int]) -> None:
        """Work on another grid; the parameters are the same for all."""
        self.grid_size = (int(grid_size[0]), int(grid_size[1]))
