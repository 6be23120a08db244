r"""Poly-SA: self-attention as a polynomial of third order in the tokens.

    y_n = q_n * a_n norm(sum_m b_m k_m * v_m)

Products of queries, keys and values are elementwise; a and b are learned, one weight per head and
token. Nothing compares two tokens, so the cost is linear in tokens and in channels.

Source: Babiloni et al., "Poly-NL: Linear Complexity Non-local Layers with 3rd Order Polynomials",
ICCV 2021 (arXiv 2107.02859), and its successor for transformers, "Linear Complexity Self-Attention
with 3rd Order Polynomials", TPAMI 2023, which has token weights in place of the average. Written
from the formula; the authors' code was not found. Heads, and the norm of the pooled product, are
those of the benchmark's runs.
"""

from typing import Any, ClassVar, Optional

import torch
from torch import Tensor, nn

from efficient_vits._numerics import sum_tokens, widen
from efficient_vits._state import rename
from efficient_vits.attention._interface import (
    AttentionTraits,
    check_heads,
    optional_norm,
    refuse_mask,
    register_attention,
)
from efficient_vits.attention._tokens import Grid, resample_tokens, square_grid


@register_attention("polysa")
class PolyAttention(nn.Module):
    """Third-order polynomial attention with token weights.

    Args:
        dim: Channels, divisible by `num_heads`.
        num_heads: Heads: sets of token weights.
        attn_drop: Dropout on the pooled product.
        norm_layer: Norm of the pooled product too; LayerNorm with epsilon 1e-6 by default.
        grid_size: Rows and columns of patch tokens; required.
        num_prefix_tokens: Tokens in front of them.

    Shape: (B, P + H * W, dim) -> the same.

    Raises:
        ValueError: No grid.
    """

    traits: ClassVar[AttentionTraits] = AttentionTraits(token_count=True, causal=True)

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
        grid_size: Grid | None = None,
        num_prefix_tokens: int = 1,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        check_heads("polysa", dim, num_heads)
        if grid_size is None:
            raise ValueError("polysa has parameters per token and needs grid_size, got None")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.grid_size = grid_size
        self.num_prefix_tokens = num_prefix_tokens

        num_tokens = num_prefix_tokens + grid_size[0] * grid_size[1]
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **factory)
        self.q_norm = optional_norm("polysa", qk_norm, norm_layer, self.head_dim, **factory)
        self.k_norm = optional_norm("polysa", qk_norm, norm_layer, self.head_dim, **factory)
        self.weights_in = nn.Parameter(torch.empty(num_heads, num_tokens, **factory))
        self.weights_out = nn.Parameter(torch.empty(num_heads, num_tokens, **factory))
        self.pool_norm = (
            nn.LayerNorm(self.head_dim, eps=1e-6, **factory)
            if norm_layer is None
            else norm_layer(self.head_dim, **factory)
        )
        self.attn_drop = nn.Dropout(attn_drop)
        self.norm = optional_norm("polysa", scale_norm, norm_layer, dim, **factory)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **factory)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the token weights anew: truncated normal of width 0.02."""
        nn.init.trunc_normal_(self.weights_in, std=0.02)
        nn.init.trunc_normal_(self.weights_out, std=0.02)

    def forward(
        self, x: Tensor, attn_mask: Optional[Tensor] = None, is_causal: bool = False
    ) -> Tensor:
        refuse_mask("polysa", attn_mask, False)
        B, N, C = x.shape
        torch._assert(
            self.weights_in.shape[1] == N,
            "polysa got another number of tokens than it has weights for; set_grid_size",
        )
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).unbind(2)
        q, k = self.q_norm(q), self.k_norm(k)  # (B, N, heads, d)
        b, a = self.weights_in.t().unsqueeze(-1), self.weights_out.t().unsqueeze(-1)

        # The product of two activations leaves the range of float16.
        pooled = sum_tokens(b * (widen(k) * v), is_causal)  # (B, 1 or N, heads, d)
        pooled = self.attn_drop(self.pool_norm(pooled.to(b.dtype)))
        y = (q * (a * pooled)).to(v.dtype).reshape(B, N, C)
        return self.proj_drop(self.proj(self.norm(y)))

    @torch.jit.ignore
    def set_grid_size(self, grid_size: Grid) -> None:
        """Resample the token weights to another grid."""
        old_grid, self.grid_size = self.grid_size, grid_size
        for name in ("weights_in", "weights_out"):
            old = getattr(self, name)
            new = self._resample(name, old.detach(), old_grid)
            setattr(self, name, nn.Parameter(new, requires_grad=old.requires_grad))

    @torch.jit.ignore
    def resample_parameter(self, name: str, value: Tensor) -> Tensor:
        """Token weights (heads, N') of another, square, grid brought to this one's."""
        if name not in ("weights_in", "weights_out") or value.ndim != 2 or not value.numel():
            return value
        old_grid = square_grid(value.shape[1], self.num_prefix_tokens)
        return value if old_grid is None else self._resample(name, value, old_grid)

    def _resample(self, name: str, value: Tensor, old_grid: Grid) -> Tensor:
        """Weights interpolated over the grid.

        Those of the sum shrink as patches get more, so that the patches of a larger image do not
        drown its prefix tokens.
        """
        P = self.num_prefix_tokens
        value = resample_tokens(value, old_grid, self.grid_size, P)
        if name == "weights_out":
            return value
        ratio = old_grid[0] * old_grid[1] / (self.grid_size[0] * self.grid_size[1])
        return torch.cat([value[:, :P], value[:, P:] * ratio], dim=1)

    @staticmethod
    def from_reference(state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parameter names of the benchmark's code to ours."""
        return rename(state, {"p1": "weights_out", "p2": "weights_in", "norm.": "pool_norm."})
