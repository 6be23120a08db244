r"""SLAB: simplified linear attention with a ReLU kernel, and norms that become a BatchNorm.

    y_n = sum_m (phi(q_n) . phi(k_m)) v_m / sum_m (phi(q_n) . phi(k_m)) + DWC(v)_n,    phi = ReLU

DWC is a depth-wise convolution of the values over the grid of patches. The sums over m come first,
so that the cost is linear in the tokens.

Source: Guo et al., "SLAB: Efficient Transformers with Simplified Linear Attention and Progressive
Re-parameterized Batch Normalization", ICML 2024 (arXiv 2405.11582), section 3; the norms are
`ProgressiveRepBN`. Written anew; the authors' code has no licence. Two things are as in
the benchmark's runs: a learned position per patch is added to the keys before the kernel, and the
convolution is 5 x 5, with one set of filters for all heads; `kernel_size=3` makes it 3 x 3. Prefix
tokens have no place in the grid: they get no position and no convolution.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Dict, Final, Optional  # noqa: UP035 (TorchScript reads Dict)

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function, resample_abs_pos_embed
from torch import Tensor, nn

from efficient_vits._numerics import without_autocast
from efficient_vits._repbn import ProgressiveRepBN, set_progress
from efficient_vits.attention._interface import (
    AttentionTraits,
    check_heads,
    check_report,
    optional_norm,
    refuse_mask,
    register_attention,
)

__all__ = ["ProgressiveRepBN", "SlabAttention", "relu_attention", "set_progress"]


def _relu_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    if q.dtype != torch.float64:
        q, k, v = q.float(), k.float(), v.float()
    q, k = F.relu(q), F.relu(k)
    kv = k.transpose(-2, -1) @ v  # (B, heads, d, d)
    total = k.sum(dim=2).unsqueeze(-1)  # (B, heads, d, 1)
    # Tokens whose query the kernel sets to zero get nothing from the sum.
    return (q @ kv) / (q @ total + 1e-6)


@register_notrace_function
def relu_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Linear attention with the ReLU kernel, (B, heads, N, d) -> the same in float32 at least."""
    if torch.jit.is_scripting():
        return _relu_attention(q, k, v)
    with without_autocast(q.device.type):
        return _relu_attention(q, k, v)


@register_attention(
    "slab",
    vit={
        "class_token": False,
        "global_pool": "avg",
        "fc_norm": False,
        "norm_layer": ProgressiveRepBN,
    },
)
class SlabAttention(nn.Module):
    """Simplified linear attention.

    Args:
        dim: Channels, divisible by `num_heads`.
        num_heads: Heads; they share the convolution.
        attn_drop: Dropout on what each token contributes to the sum.
        grid_size: Rows and columns of patch tokens; required.
        num_prefix_tokens: Tokens in front of them.
        kernel_size: Of the depth-wise convolution; odd.
        report: ``("keys",)`` writes the keys, before position and kernel, into ``info``.

    Shape: (B, P + H * W, dim) -> the same. ``info["keys"]`` (B, heads, N, d).

    Raises:
        ValueError: No grid, or an even `kernel_size`.
    """

    traits: ClassVar[AttentionTraits] = AttentionTraits(
        token_count=True, grid=True, gives=frozenset({"keys"})
    )
    first_linear: ClassVar[str] = "qkv"
    authors_unused: ClassVar[tuple[str, ...]] = ("cls_token",)
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
        kernel_size: int = 5,
        report: Sequence[str] = (),
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        check_heads("slab", dim, num_heads)
        check_report("slab", report, self.traits.gives)
        if grid_size is None:
            raise ValueError("slab convolves over the grid of patches; needs grid_size, got None")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"slab needs an odd kernel_size, got {kernel_size}")
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.grid_size = grid_size
        self.num_prefix_tokens = num_prefix_tokens
        self.reports_keys = "keys" in report

        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **factory)
        self.q_norm = optional_norm("slab", qk_norm, norm_layer, self.head_dim, **factory)
        self.k_norm = optional_norm("slab", qk_norm, norm_layer, self.head_dim, **factory)
        self.positional_encoding = nn.Parameter(
            torch.empty(1, grid_size[0] * grid_size[1], dim, **factory)
        )
        self.attn_drop = nn.Dropout(attn_drop)
        self.dwc = nn.Conv2d(
            self.head_dim,
            self.head_dim,
            kernel_size,
            padding=kernel_size // 2,
            groups=self.head_dim,
            **factory,
        )
        self.norm = optional_norm("slab", scale_norm, norm_layer, dim, **factory)
        self.proj = nn.Linear(dim, dim, bias=proj_bias, **factory)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """No position to begin with."""
        nn.init.zeros_(self.positional_encoding)

    def forward(
        self,
        x: Tensor,
        attn_mask: Optional[Tensor] = None,
        is_causal: bool = False,
        size: Optional[Tensor] = None,
        info: Optional[Dict[str, Tensor]] = None,  # noqa: UP006
    ) -> Tensor:
        refuse_mask("slab", attn_mask, is_causal)
        if size is not None:
            raise ValueError("slab does not take token sizes; pass size=None")
        B, N, C = x.shape
        P, (H, W), d = self.num_prefix_tokens, self.grid_size, self.head_dim
        torch._assert(
            P + H * W == N, "slab got another number of tokens than its grid has; set_grid_size"
        )
        # (3, B, heads, N, d)
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, d).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if info is not None and self.reports_keys:
            info["keys"] = k

        position = self.positional_encoding.reshape(H * W, self.num_heads, d).transpose(0, 1)
        k = k + F.pad(position, (0, 0, P, 0))
        y = relu_attention(q, k, self.attn_drop(v)).to(v.dtype)
        patches = v[:, :, P:].transpose(2, 3).reshape(B * self.num_heads, d, H, W)
        local = self.dwc(patches).reshape(B, self.num_heads, d, H * W).transpose(2, 3)
        y = y + F.pad(local, (0, 0, P, 0))
        y = self.norm(y.transpose(1, 2).reshape(B, N, C))
        return self.proj_drop(self.proj(y))

    @torch.jit.ignore
    def set_grid_size(self, grid_size: tuple[int, int]) -> None:
        """Resample the positions to another grid."""
        old = self.positional_encoding
        new = self._resample(old.detach(), self.grid_size, grid_size)
        self.grid_size = grid_size
        self.positional_encoding = nn.Parameter(new, requires_grad=old.requires_grad)

    @torch.jit.ignore
    def resample_parameter(self, name: str, value: Tensor) -> Tensor:
        """Positions (1, N', dim) of another, square, grid brought to this one's."""
        if name != "positional_encoding" or value.ndim != 3 or not value.numel():
            return value
        side = math.isqrt(value.shape[1])
        if side**2 != value.shape[1]:
            return value
        return self._resample(value, (side, side), self.grid_size)

    @staticmethod
    def _resample(value: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
        if tuple(old) == tuple(new):
            return value
        return resample_abs_pos_embed(value, list(new), list(old), num_prefix_tokens=0)
