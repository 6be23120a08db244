r"""ProbSparse attention: only the queries that tell keys apart attend; the others get the mean.

    M(q_n) = max_{m in S_n} q_n . k_m - 1/N sum_{m in S_n} q_n . k_m,    |S_n| = u = c ceil(ln N)
    y_n = softmax(q_n K^T / sqrt(d)) V   for the u queries with the largest M
    y_n = mean of V                      for all others

S_n are keys drawn at random for each query. The cost is N log N. Source: Zhou et al., "Informer:
Beyond Efficient Transformer for Long Sequence Time-Series Forecasting", AAAI 2021 (arXiv
2012.07436), section 3.1, eq. 4 and algorithm 1 (of which the keys not drawn count as 0 in the
sum, not in the maximum). Written anew; the authors' code is Apache-2.0.

In evaluation the draw follows `seed` and is the same for every call; in training every call has
its own. The benchmark's runs drew at random in evaluation too. The block that goes with it in
these runs is `efficient_vits.models.informer.InformerBlock`.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Dict, Final, Optional  # noqa: UP035 (TorchScript reads Dict)

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function, use_fused_attn
from torch import Tensor, nn

from efficient_vits._numerics import wide_matmul
from efficient_vits._random import block_seed, draw_seed, seeded_integers
from efficient_vits._state import put, rename
from efficient_vits.attention._interface import (
    AttentionTraits,
    check_heads,
    check_report,
    optional_norm,
    refuse_mask,
    register_attention,
)


@register_notrace_function
def num_sampled(num_tokens: int, factor: int) -> int:
    """Keys drawn per query, and queries that attend: `factor` times ln N, and never over N."""
    return min(num_tokens, factor * max(1, math.ceil(math.log(num_tokens))))


@register_notrace_function
def sparse_queries(q: Tensor, k: Tensor, count: int, seed: int, fresh: bool) -> Tensor:
    """Indices (B, heads, count) of the queries with the largest sparsity measure M.

    Args:
        q: Queries (B, heads, N, d).
        k: Keys (B, heads, N, d).
        count: Keys to draw per query, and queries to find.
        seed: What the draw follows.
        fresh: Draw anew instead.
    """
    B, H, N, d = q.shape
    q, k = q.detach() * d**-0.5, k.detach()
    drawn = seeded_integers(N * count, draw_seed(seed, fresh, q.device)) % N
    sample = k.index_select(2, drawn).reshape(B, H, N, count, d)
    dots = wide_matmul(sample, q.unsqueeze(-1)).squeeze(-1)  # (B, heads, N, count)
    measure = dots.amax(dim=-1) - dots.sum(dim=-1) / N
    return measure.topk(count, dim=-1)[1]


@register_notrace_function
def wide_mean(v: Tensor) -> Tensor:
    """Mean over tokens, summed in float32 at least, (B, heads, N, d) -> (B, heads, 1, d)."""
    wide = v if v.dtype == torch.float64 else v.float()
    return wide.mean(dim=2, keepdim=True)


# The models are in models/informer.py: they have a block of their own.
@register_attention("informer", models={})
class InformerAttention(nn.Module):
    """ProbSparse attention.

    Args:
        dim: Channels, divisible by `num_heads`.
        num_heads: Heads.
        depth: Index of the block; every block draws other keys.
        factor: c above.
        seed: What the draw of keys follows in evaluation.
        report: ``("keys",)`` writes the keys into ``info``.

    Shape: (B, N, dim) -> (B, N, dim). ``info["keys"]`` (B, heads, N, d).
    """

    traits: ClassVar[AttentionTraits] = AttentionTraits(gives=frozenset({"keys"}))
    fused_attn: Final[bool]
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
        factor: int = 5,
        seed: int = 0,
        depth: int = 0,
        report: Sequence[str] = (),
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        check_heads("informer", dim, num_heads)
        check_report("informer", report, self.traits.gives)
        if factor < 1:
            raise ValueError(f"informer needs factor >= 1, got {factor}")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.factor = factor
        self.seed = block_seed(seed, depth)
        self.fused_attn = use_fused_attn()
        self.reports_keys = "keys" in report
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **factory)
        self.q_norm = optional_norm("informer", qk_norm, norm_layer, self.head_dim, **factory)
        self.k_norm = optional_norm("informer", qk_norm, norm_layer, self.head_dim, **factory)
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = optional_norm("informer", scale_norm, norm_layer, dim, **factory)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **factory)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self,
        x: Tensor,
        attn_mask: Optional[Tensor] = None,
        is_causal: bool = False,
        size: Optional[Tensor] = None,
        info: Optional[Dict[str, Tensor]] = None,  # noqa: UP006
    ) -> Tensor:
        refuse_mask("informer", attn_mask, is_causal)
        if size is not None:
            raise ValueError("informer does not take token sizes; pass size=None")
        B, N, C = x.shape
        # (3, B, heads, N, d)
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if info is not None and self.reports_keys:
            info["keys"] = k

        count = num_sampled(N, self.factor)
        top = sparse_queries(q, k, count, self.seed, self.training)
        index = top.unsqueeze(-1).expand(-1, -1, -1, self.head_dim)
        q = q.gather(2, index)  # (B, heads, u, d)
        if self.fused_attn:
            p = self.attn_drop.p if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=p)
        else:
            weights = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            y = self.attn_drop(weights.softmax(dim=-1)) @ v
        rest = wide_mean(v).to(y.dtype).expand(-1, -1, N, -1)
        y = rest.scatter(2, index, y)

        y = self.norm(y.transpose(1, 2).reshape(B, N, C))
        return self.proj_drop(self.proj(y))

    @staticmethod
    def from_reference(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parameter names of the benchmark's code to ours: its q, k and v are separate layers."""
        out = rename(state, {"out_projection.": "proj."})
        for kind in ("weight", "bias"):
            parts = [f"{part}_projection.{kind}" for part in ("query", "key", "value")]
            if all(part in out for part in parts):
                put(out, f"qkv.{kind}", torch.cat([out.pop(part) for part in parts]))
        return out
