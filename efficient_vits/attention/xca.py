r"""Cross-covariance attention: channels attend to channels, over all tokens.

    y_n = softmax(t Q^T K) v_n,    Q, K: (N x d), every column of unit norm

Q^T K are the cosines of two channels over all tokens, per head (d x d); t is a learned temperature
per head. The cost is linear in tokens.

Source: El-Nouby et al., "XCiT: Cross-Covariance Image Transformers", NeurIPS 2021 (arXiv
2106.09681), section 3.2. Written anew (the authors' code is Apache-2.0). A token
of size s counts as s equal tokens in the covariance. Here it is a mixer in a plain ViT: tokens meet
in the covariance only, where XCiT has convolutions and a class token with layers of its own too.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Dict, Final, Optional  # noqa: UP035 (TorchScript reads Dict)

import torch
from torch import Tensor, nn

from efficient_vits._numerics import unit_vectors, widen
from efficient_vits.attention._interface import (
    AttentionTraits,
    check_heads,
    check_report,
    optional_norm,
    refuse_mask,
    register_attention,
)
from efficient_vits.catalog import Paper


@register_attention(
    "xca",
    models={"xca_{size}": {}},
    paper=Paper(
        title="XCiT: Cross-Covariance Image Transformers",
        first_author="El-Nouby",
        venue="NeurIPS 2021",
        year=2021,
        arxiv="2106.09681",
    ),
)
class CrossCovarianceAttention(nn.Module):
    """Cross-covariance attention.

    Args:
        dim: Channels, divisible by `num_heads`.
        num_heads: Heads: blocks of channels that attend to each other.
        qk_norm: Refused: queries and keys are normalised over tokens.
        attn_drop: Dropout on the weights between channels.
        report: ``("keys",)`` writes the keys before their normalisation into ``info``.

    Shape: (B, N, dim) -> (B, N, dim). ``size`` (B, N, 1); ``info["keys"]`` (B, heads, N, d).
    """

    traits: ClassVar[AttentionTraits] = AttentionTraits(
        token_sizes=True, gives=frozenset({"keys"}), refuses=frozenset({"qk_norm"})
    )
    reports_keys: Final[bool]

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
        report: Sequence[str] = (),
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        check_heads("xca", dim, num_heads)
        if qk_norm:
            raise ValueError("xca normalises queries and keys itself; qk_norm must be False")
        check_report("xca", report, self.traits.gives)
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.reports_keys = "keys" in report
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **factory)
        # One dimension: optimisers exempt such parameters from weight decay, as the paper does.
        self.temperature = nn.Parameter(torch.empty(num_heads, **factory))
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = optional_norm("xca", scale_norm, norm_layer, dim, **factory)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **factory)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the temperatures to 1."""
        nn.init.ones_(self.temperature)

    def forward(
        self,
        x: Tensor,
        attn_mask: Optional[Tensor] = None,
        is_causal: bool = False,
        size: Optional[Tensor] = None,
        info: Optional[Dict[str, Tensor]] = None,  # noqa: UP006
    ) -> Tensor:
        refuse_mask("xca", attn_mask, is_causal)
        B, N, C = x.shape
        # (3, B, heads, d, N)
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 4, 1)
        q, k, v = qkv.unbind(0)
        if info is not None and self.reports_keys:
            info["keys"] = k.transpose(-2, -1)

        q, k = widen(q), widen(k)
        if size is not None:
            root = size.sqrt().transpose(1, 2).unsqueeze(1)  # (B, 1, 1, N)
            q, k = q * root, k * root
        q = unit_vectors(q) * self.temperature.view(-1, 1, 1)
        # Rows are the channels that attend, and cosines fit into half precision.
        weights = q.to(v.dtype) @ unit_vectors(k).to(v.dtype).transpose(-2, -1)
        weights = self.attn_drop(widen(weights).softmax(dim=-1))
        y = (weights.to(v.dtype) @ v).permute(0, 3, 1, 2).reshape(B, N, C)
        return self.proj_drop(self.proj(self.norm(y)))
