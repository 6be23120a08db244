r"""Softmax attention, the baseline that everything else is compared with.

    y = softmax(q k^T / sqrt(d) + log s) v

Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017 (arXiv 1706.03762), eq. 1; the
term log s, the sizes of merged tokens, is "proportional attention" of Bolya et al., "Token
Merging", ICLR 2023 (arXiv 2210.09461), eq. 1. Parameters and initialisation are timm's
(Apache-2.0).
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Dict, Final, Optional  # noqa: UP035 (TorchScript reads Dict)

import torch
import torch.nn.functional as F
from timm.layers import Attention, maybe_add_mask, register_notrace_function
from torch import Tensor, nn

from efficient_vits.attention._interface import (
    AttentionTraits,
    check_heads,
    check_report,
    register_attention,
)


@register_notrace_function
def attention_bias(
    q: Tensor, attn_mask: Optional[Tensor], is_causal: bool, size: Optional[Tensor]
) -> Optional[Tensor]:
    """What is added to the logits, broadcastable to (B, heads, N, N), or None.

    Args:
        q: Queries (B, heads, N, d), for dtype and device.
        attn_mask: Boolean (True takes part) or additive, broadcastable to (B, heads, N, N).
        is_causal: Hide later tokens.
        size: Patches per token (B, N, 1).
    """
    bias = attn_mask
    if bias is not None and bias.dtype == torch.bool:
        bias = torch.zeros_like(bias, dtype=q.dtype).masked_fill(~bias, float("-inf"))
    if is_causal:
        N = q.shape[2]
        hidden = torch.full((N, N), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
        bias = hidden if bias is None else bias + hidden
    if size is not None:
        log_size = size.log().to(q.dtype).transpose(1, 2).unsqueeze(1)  # (B, 1, 1, N)
        bias = log_size if bias is None else bias + log_size
    return bias


@register_attention("softmax", models={"vit_{size}": {}, "deit_{size}": {}})
class SoftmaxAttention(Attention):
    """Multi-head self-attention: timm's, and it weighs merged tokens and reports what it saw.

    Args:
        dim: Channels, divisible by `num_heads`.
        num_heads: Heads.
        report: What to write into ``info``: any of ``traits.gives``.

    The other arguments are those of `timm.layers.Attention`.

    Shape: (B, N, dim) -> (B, N, dim). ``size`` (B, N, 1); ``info["keys"]`` (B, heads, N, d);
    ``info["class_attention"]`` (B, heads, P, N); ``info["attention"]`` (B, heads, N, N), for which
    the unfused path is taken.
    """

    traits: ClassVar[AttentionTraits] = AttentionTraits(
        mask=True,
        causal=True,
        token_sizes=True,
        gives=frozenset({"keys", "class_attention", "attention"}),
    )
    reports_keys: Final[bool]
    reports_class_attention: Final[bool]
    reports_attention: Final[bool]

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
        num_prefix_tokens: int = 1,
        report: Sequence[str] = (),
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_heads("softmax attention", dim, num_heads)
        check_report("softmax attention", report, self.traits.gives)
        super().__init__(
            dim,
            num_heads=num_heads,
            qkv_bias=qkv_bias,
            qk_norm=qk_norm,
            scale_norm=scale_norm,
            proj_bias=proj_bias,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            norm_layer=norm_layer,
            device=device,
            dtype=dtype,
        )
        self.num_prefix_tokens = num_prefix_tokens
        self.reports_keys = "keys" in report
        self.reports_class_attention = "class_attention" in report
        self.reports_attention = "attention" in report
        if self.reports_attention:
            self.fused_attn = False  # the fused kernel keeps the map to itself

    def probabilities(self, logits: Tensor, is_causal: bool) -> Tensor:
        """Logits (B, heads, N, N), masked where `is_causal`, to what values are weighed with."""
        return logits.softmax(dim=-1)

    def forward(
        self,
        x: Tensor,
        attn_mask: Optional[Tensor] = None,
        is_causal: bool = False,
        size: Optional[Tensor] = None,
        info: Optional[Dict[str, Tensor]] = None,  # noqa: UP006
    ) -> Tensor:
        B, N, _ = x.shape
        # (3, B, heads, N, d)
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)

        plain = attn_mask is None and size is None
        bias: Optional[Tensor] = None
        if not plain or (is_causal and not self.fused_attn):
            bias = attention_bias(q, attn_mask, is_causal, size)
        if self.fused_attn:
            p = self.attn_drop.p if self.training else 0.0
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=bias, dropout_p=p, is_causal=plain and is_causal
            )
        else:
            logits = maybe_add_mask((q * self.scale) @ k.transpose(-2, -1), bias)
            weights = self.probabilities(logits, is_causal)
            y = self.attn_drop(weights) @ v
            if info is not None and self.reports_attention:
                info["attention"] = weights
        if info is not None:
            if self.reports_keys:
                info["keys"] = k
            if self.reports_class_attention:
                first = q[:, :, : self.num_prefix_tokens] * self.scale
                rows = first @ k.transpose(-2, -1)
                if bias is not None:
                    rows = rows + bias[..., : self.num_prefix_tokens, :]
                info["class_attention"] = rows.softmax(dim=-1)

        y = self.norm(y.transpose(1, 2).reshape(B, N, self.num_heads * self.head_dim))
        return self.proj_drop(self.proj(y))
