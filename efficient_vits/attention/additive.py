r"""Efficient additive attention: one global query, made of all tokens, meets every key.

    alpha_n = q_n . w / sqrt(d),   g = sum_n alpha_n / |alpha| q_n,   y_n = W (q_n + T(k_n * g))

Queries and keys have unit norm, the norm of alpha is over tokens, * is channel by channel; there is
no value, and no product of a query with a key. The cost is linear in tokens.

Source: Shaker et al., "SwiftFormer: Efficient Additive Attention for Transformer-based Real-time
Mobile Vision Applications", ICCV 2023 (arXiv 2303.15446), section 3.2, eq. 4 to 6. Written
from the paper (the authors' code is Apache-2.0). As in that code and in timm, the norm of alpha is
over tokens and a linear layer W follows, which the equations leave out.
"""

from typing import Any, ClassVar, Optional

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from efficient_vits._numerics import sum_tokens, unit_vectors, wide_matmul, widen
from efficient_vits.attention._interface import AttentionTraits, refuse_mask, register_attention
from efficient_vits.catalog import Paper


@register_attention(
    "additive",
    paper=Paper(
        title="SwiftFormer: Efficient Additive Attention for Transformer-based Real-time Mobile "
        "Vision Applications",
        first_author="Shaker",
        venue="ICCV 2023",
        year=2023,
        arxiv="2303.15446",
    ),
)
class AdditiveAttention(nn.Module):
    """Efficient additive attention, with one head.

    Args:
        dim: Channels.
        num_heads: Part of the interface; there is one head, as in all of the paper's models.
        qkv_bias: Biases of queries and keys.
        qk_norm: Refused: queries and keys are normalised already.
        proj_bias: Biases of the two layers behind.
        attn_drop: Dropout on the weights of the tokens.

    Shape: (B, N, dim) -> the same.
    """

    traits: ClassVar[AttentionTraits] = AttentionTraits(
        refuses=frozenset({"qk_norm", "scale_norm"})
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
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if qk_norm or scale_norm:
            raise ValueError("additive has norms of its own; qk_norm, scale_norm must be False")
        factory = {"device": device, "dtype": dtype}
        self.scale = dim**-0.5
        self.q = nn.Linear(dim, dim, bias=qkv_bias, **factory)
        self.k = nn.Linear(dim, dim, bias=qkv_bias, **factory)
        self.weight = nn.Parameter(torch.empty(dim, 1, **factory))
        self.attn_drop = nn.Dropout(attn_drop)
        self.mix = nn.Linear(dim, dim, bias=proj_bias, **factory)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **factory)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the vector that weighs the queries: of the order of 1, as the scale presumes."""
        trunc_normal_(self.weight, std=1.0)

    def forward(
        self, x: Tensor, attn_mask: Optional[Tensor] = None, is_causal: bool = False
    ) -> Tensor:
        refuse_mask("additive", attn_mask, is_causal)
        q, k = unit_vectors(widen(self.q(x))), unit_vectors(widen(self.k(x)))
        alpha = wide_matmul(q, self.weight) * self.scale  # (B, N, 1)
        alpha = unit_vectors(alpha.transpose(1, 2)).transpose(1, 2)
        query = sum_tokens(self.attn_drop(alpha) * q)  # (B, 1, C)
        y = (query * k).to(x.dtype)
        return self.proj_drop(self.proj(self.mix(y) + q.to(x.dtype)))
