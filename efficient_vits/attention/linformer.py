r"""Linformer: keys and values are projected from N tokens down to k.

    y = softmax(q (E k)^T / sqrt(d)) (F v),    E, F: (k x N)

The cost is linear in N, the projections E and F are parameters of size N. Source: Wang et al.,
"Linformer: Self-Attention with Linear Complexity", 2020 (arXiv 2006.04768), eq. 7, with E and F
shared by all heads ("headwise sharing", section 4). Written anew; queries, keys and
values stay in timm's fused ``qkv`` so that a plain ViT's weights fit. The benchmark's runs had no
bias there and k = 256, which at 197 tokens saves nothing.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Dict, Final, Optional  # noqa: UP035 (TorchScript reads Dict)

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed, use_fused_attn
from torch import Tensor, nn

from efficient_vits._state import put, rename
from efficient_vits.attention._interface import (
    AttentionTraits,
    check_heads,
    check_report,
    optional_norm,
    refuse_mask,
    register_attention,
)


@register_attention("linformer", vit={"qkv_bias": False})
class LinformerAttention(nn.Module):
    """Linformer attention.

    Args:
        dim: Channels, divisible by `num_heads`.
        num_heads: Heads.
        k: Tokens that keys and values are projected to.
        grid_size: Rows and columns of patch tokens; required.
        num_prefix_tokens: Tokens in front of them.
        report: ``("keys",)`` writes the keys before their projection into ``info``.

    Shape: (B, P + H * W, dim) -> the same. ``info["keys"]`` (B, heads, N, d).

    Raises:
        ValueError: No grid, or `k` below 1.
    """

    traits: ClassVar[AttentionTraits] = AttentionTraits(token_count=True, gives=frozenset({"keys"}))
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
        grid_size: tuple[int, int] | None = None,
        num_prefix_tokens: int = 1,
        k: int = 256,
        report: Sequence[str] = (),
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        check_heads("linformer", dim, num_heads)
        check_report("linformer", report, self.traits.gives)
        if grid_size is None:
            raise ValueError("linformer has parameters per token and needs grid_size, got None")
        if k < 1:
            raise ValueError(f"linformer needs k >= 1 projected tokens, got {k}")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.grid_size = grid_size
        self.num_prefix_tokens = num_prefix_tokens
        self.fused_attn = use_fused_attn()
        self.reports_keys = "keys" in report

        num_tokens = num_prefix_tokens + grid_size[0] * grid_size[1]
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **factory)
        self.q_norm = optional_norm("linformer", qk_norm, norm_layer, self.head_dim, **factory)
        self.k_norm = optional_norm("linformer", qk_norm, norm_layer, self.head_dim, **factory)
        self.proj_k = nn.Parameter(torch.empty(num_tokens, k, **factory))
        self.proj_v = nn.Parameter(torch.empty(num_tokens, k, **factory))
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = optional_norm("linformer", scale_norm, norm_layer, dim, **factory)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **factory)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the token projections anew: uniform, bound 1 / sqrt(k)."""
        bound = 1 / math.sqrt(self.proj_k.shape[1])
        nn.init.uniform_(self.proj_k, -bound, bound)
        nn.init.uniform_(self.proj_v, -bound, bound)

    def forward(
        self,
        x: Tensor,
        attn_mask: Optional[Tensor] = None,
        is_causal: bool = False,
        size: Optional[Tensor] = None,
        info: Optional[Dict[str, Tensor]] = None,  # noqa: UP006
    ) -> Tensor:
        refuse_mask("linformer", attn_mask, is_causal)
        if size is not None:
            raise ValueError("linformer does not take token sizes; pass size=None")
        B, N, C = x.shape
        torch._assert(
            self.proj_k.shape[0] == N,
            "linformer got another number of tokens than it has projections for; set_grid_size",
        )
        # (3, B, heads, N, d)
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if info is not None and self.reports_keys:
            info["keys"] = k

        k, v = self.proj_k.t() @ k, self.proj_v.t() @ v  # (B, heads, k, d)
        if self.fused_attn:
            p = self.attn_drop.p if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=p)
        else:
            weights = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            y = self.attn_drop(weights.softmax(dim=-1)) @ v
        y = self.norm(y.transpose(1, 2).reshape(B, N, C))
        return self.proj_drop(self.proj(y))

    @torch.jit.ignore
    def set_grid_size(self, grid_size: tuple[int, int]) -> None:
        """Resample the token projections to another grid."""
        old_size, self.grid_size = self.grid_size, grid_size
        for name in ("proj_k", "proj_v"):
            old = getattr(self, name)
            new = self._resample(old.detach(), old_size)
            setattr(self, name, nn.Parameter(new, requires_grad=old.requires_grad))

    @torch.jit.ignore
    def resample_parameter(self, name: str, value: Tensor) -> Tensor:
        """A projection (N', k) of another, square, grid brought to this one's."""
        if name not in ("proj_k", "proj_v") or value.ndim != 2 or not value.numel():
            return value
        side = math.isqrt(max(value.shape[0] - self.num_prefix_tokens, 0))
        if side == 0 or side**2 != value.shape[0] - self.num_prefix_tokens:
            return value
        return self._resample(value, (side, side))

    def _resample(self, value: Tensor, old_size: tuple[int, int]) -> Tensor:
        """(N', k) over `old_size` to (N, k): patches interpolated, prefix tokens as they are.

        A projection sums over tokens, so its weights shrink as the tokens get more: an image that
        is only larger keeps its keys and values.
        """
        if tuple(old_size) == tuple(self.grid_size):
            return value
        P = self.num_prefix_tokens
        prefix, patches = value[:P], value[P:]
        patches = resample_abs_pos_embed(
            patches.unsqueeze(0), list(self.grid_size), list(old_size), num_prefix_tokens=0
        ).squeeze(0)
        return torch.cat([prefix, patches * (value.shape[0] - P) / patches.shape[0]])

    @staticmethod
    def from_reference(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parameter names of the benchmark's code to ours: its q, k and v are separate layers."""
        out = rename(state, {"to_out.": "proj."})
        parts = [f"to_{part}.weight" for part in "qkv"]
        if all(part in out for part in parts):
            put(out, "qkv.weight", torch.cat([out.pop(part) for part in parts]))
        return out
