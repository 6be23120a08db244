r"""Factorised attention with a convolutional relative position encoding.

    y_n = W (q_n (softmax(K)^T V) / sqrt(d) + q_n * conv(V)_n)

The softmax is over tokens, channel by channel, so that keys and values meet in a d x d matrix and
the cost is linear in tokens. conv is depth-wise over the grid, with a window of 3, 5 or 7 in a
third of the heads each; it stands for the relative positions.

Source: Xu et al., "Co-Scale Conv-Attentional Image Transformers", ICCV 2021 (arXiv 2104.06399),
section 3. Written from the paper (the authors' code is Apache-2.0); timm's
`FactorAttnConvRelPosEnc`, which takes exactly one class token and ignores its dropout, is what the
tests compare with. Here it is a mixer in a plain ViT, with convolutions of its own in each block;
CoaT shares them within a stage and convolves the tokens before the attention too. Prefix tokens
take part in the attention and not in the convolution. The gradients of a product of queries and
values overflow float16: under autocast the mixer keeps the dtype of its weights.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Optional

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_module
from torch import Tensor, nn

from efficient_vits._numerics import widen, without_autocast
from efficient_vits.attention._interface import (
    AttentionTraits,
    check_heads,
    optional_norm,
    refuse_mask,
    register_attention,
)
from efficient_vits.catalog import Paper


@register_notrace_module  # tracing cannot follow the context that turns autocast off
@register_attention(
    "factorized_conv",
    paper=Paper(
        title="Co-Scale Conv-Attentional Image Transformers",
        first_author="Xu",
        venue="ICCV 2021",
        year=2021,
        arxiv="2104.06399",
    ),
)
class FactorizedConvAttention(nn.Module):
    """Factorised attention with convolutional positions.

    Args:
        dim: Channels, divisible by `num_heads`.
        num_heads: Heads.
        attn_drop: Dropout on the softmax of the keys.
        grid_size: Rows and columns of patch tokens; required.
        num_prefix_tokens: Tokens in front of them.
        windows: Odd kernels of the convolutions. The heads are divided among them, and the later
            ones get those that are left over: of 8 heads 2, 3 and 3, as in the paper.

    Shape: (B, P + H * W, dim) -> the same.

    Raises:
        ValueError: No grid, or an even window.
    """

    traits: ClassVar[AttentionTraits] = AttentionTraits(grid=True)

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
        windows: Sequence[int] = (3, 5, 7),
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_heads("factorized_conv", dim, num_heads)
        if grid_size is None:
            raise ValueError("factorized_conv convolves over the grid; needs grid_size, got None")
        if not windows or any(k < 1 or k % 2 == 0 for k in windows):
            raise ValueError(f"factorized_conv needs odd windows, got {tuple(windows)}")
        factory = {"device": device, "dtype": dtype}
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.grid_size = grid_size
        self.num_prefix_tokens = num_prefix_tokens
        bounds = [num_heads * i // len(windows) for i in range(len(windows) + 1)]
        channels = [self.head_dim * (b - a) for a, b in pairwise(bounds)]
        kernels = [(k, c) for k, c in zip(windows, channels, strict=True) if c]
        self.channels = [c for _, c in kernels]

        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **factory)
        self.q_norm = optional_norm(
            "factorized_conv", qk_norm, norm_layer, self.head_dim, **factory
        )
        self.k_norm = optional_norm(
            "factorized_conv", qk_norm, norm_layer, self.head_dim, **factory
        )
        self.attn_drop = nn.Dropout(attn_drop)
        self.positions = nn.ModuleList(
            nn.Conv2d(c, c, k, padding=k // 2, groups=c, **factory) for k, c in kernels
        )
        self.norm = optional_norm("factorized_conv", scale_norm, norm_layer, dim, **factory)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **factory)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self, x: Tensor, attn_mask: Optional[Tensor] = None, is_causal: bool = False
    ) -> Tensor:
        refuse_mask("factorized_conv", attn_mask, is_causal)
        if torch.jit.is_scripting():
            return self.mixed(x)
        with without_autocast(x.device.type):
            return self.mixed(x.to(self.proj.weight.dtype)).to(x.dtype)

    def mixed(self, x: Tensor) -> Tensor:
        """The attention, in the dtype of its weights."""
        B, N, C = x.shape
        P, (H, W), d = self.num_prefix_tokens, self.grid_size, self.head_dim
        torch._assert(
            N == P + H * W,
            "factorized_conv got another number of tokens than its grid has; set_grid_size",
        )
        # (3, B, heads, N, d)
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, d).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        weights = self.attn_drop(widen(k).softmax(dim=2)).to(v.dtype)
        y = (q * self.scale) @ (weights.transpose(-2, -1) @ v)

        patches = v[:, :, P:].transpose(2, 3).reshape(B, C, H, W).split(self.channels, dim=1)
        local = []
        for i, conv in enumerate(self.positions):
            local.append(conv(patches[i]))
        near = torch.cat(local, dim=1).reshape(B, self.num_heads, d, H * W).transpose(2, 3)
        y = y + q * F.pad(near, (0, 0, P, 0))
        y = self.norm(y.transpose(1, 2).reshape(B, N, C))
        return self.proj_drop(self.proj(y))

    @torch.jit.ignore
    def set_grid_size(self, grid_size: tuple[int, int]) -> None:
        """Work on another grid; the parameters are the same for all."""
        self.grid_size = grid_size
