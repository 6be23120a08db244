r"""EfficientFormerV2's attention: talking heads, learned position biases, and a local value branch.

    y = BN(W gelu(A v + DWConv(v))),    A = T_2 softmax(T_1(q k^T / sqrt(d) + b))

T_1 and T_2 mix the heads of the attention matrix, b is learned per head and distance in rows and
columns, DWConv is 3 x 3 over the grid. q, k, v and y end in a batch norm each. Values are
`attn_ratio` times as wide as queries and keys.

Source: Li et al., "Rethinking Vision Transformers for MobileNet Size and Speed", ICCV 2023 (arXiv
2212.08059), section 3.1 and its figure 2. Written from the paper (the authors' code is MIT);
timm's `Attention2d`, which keeps a copy of the biases in evaluation that new weights do not reach,
is what the tests compare with. `efficient_vits.fuse` folds the norms. Prefix tokens pass by as
they are: they have no place in the grid.
"""

import math
from typing import Any, ClassVar, Optional

import torch
import torch.nn.functional as F
from timm.models.levit import LinearNorm
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from efficient_vits._numerics import widen
from efficient_vits.attention._interface import AttentionTraits, refuse_mask, register_attention
from efficient_vits.catalog import Paper


def distance_index(grid_size: tuple[int, int], device: Any = None) -> Tensor:
    """For each pair of patches the place of their distance in a table over the grid, (N, N)."""
    H, W = grid_size
    y = torch.arange(H, device=device).repeat_interleave(W)
    x = torch.arange(W, device=device).repeat(H)
    return (y.unsqueeze(1) - y).abs() * W + (x.unsqueeze(1) - x).abs()


@register_attention(
    "efficientformer",
    vit={"class_token": False, "global_pool": "avg"},
    paper=Paper(
        title="Rethinking Vision Transformers for MobileNet Size and Speed",
        first_author="Li",
        venue="ICCV 2023",
        year=2023,
        arxiv="2212.08059",
    ),
)
class EfficientFormerAttention(nn.Module):
    """Attention with talking heads, position biases and a local branch.

    Args:
        dim: Channels.
        num_heads: Heads.
        qkv_bias: Part of the interface, as is `proj_bias`: the norms behind have biases.
        qk_norm: Refused, as is `scale_norm`: there are batch norms already.
        attn_drop: Dropout on the attention matrix.
        grid_size: Rows and columns of patch tokens; required.
        num_prefix_tokens: Tokens in front of them, which pass by. A class token never sees the
            patches; pool these instead.
        key_dim: Channels of each head's queries and keys.
        attn_ratio: Width of the values over that of the keys.

    Shape: (B, P + H * W, dim) -> the same.

    Raises:
        ValueError: No grid, or an option out of its range.
    """

    traits: ClassVar[AttentionTraits] = AttentionTraits(
        token_count=True,
        grid=True,
        mixes_prefix=False,
        refuses=frozenset({"qk_norm", "scale_norm"}),
    )
    index: Tensor

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
        key_dim: int = 32,
        attn_ratio: float = 4.0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if qk_norm or scale_norm:
            raise ValueError("efficientformer has batch norms; qk_norm, scale_norm must be False")
        if grid_size is None:
            raise ValueError("efficientformer has biases per distance; needs grid_size, got None")
        value_dim = int(attn_ratio * key_dim)
        if num_heads < 1 or key_dim < 1 or value_dim < 1:
            raise ValueError(
                f"efficientformer needs num_heads, key_dim and attn_ratio * key_dim >= 1, got "
                f"{num_heads=}, {key_dim=}, {attn_ratio=}"
            )
        factory = {"device": device, "dtype": dtype}
        keys, values = num_heads * key_dim, num_heads * value_dim
        self.num_heads = num_heads
        self.scale = key_dim**-0.5
        self.grid_size = grid_size
        self.num_prefix_tokens = num_prefix_tokens

        self.q = LinearNorm(dim, keys, **factory)
        self.k = LinearNorm(dim, keys, **factory)
        self.v = LinearNorm(dim, values, **factory)
        self.v_local = nn.Conv2d(values, values, 3, padding=1, groups=values, bias=False, **factory)
        # On tokens, as the other norms: torch's gradients of BatchNorm2d in evaluation are wrong
        # for one image in certain layouts.
        self.v_local_norm: Any = nn.BatchNorm1d(values, **factory)
        self.talking_head1 = nn.Conv2d(num_heads, num_heads, 1, **factory)
        self.talking_head2 = nn.Conv2d(num_heads, num_heads, 1, **factory)
        self.position_bias = nn.Parameter(
            torch.empty(num_heads, grid_size[0] * grid_size[1], **factory)
        )
        self.register_buffer("index", distance_index(grid_size, device), persistent=False)
        self.attn_drop = nn.Dropout(attn_drop)
        self.act = nn.GELU()
        self.proj = LinearNorm(values, dim, **factory)
        self.proj_drop = nn.Dropout(proj_drop)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """No preference for any distance."""
        nn.init.zeros_(self.position_bias)
        self.index = distance_index(self.grid_size, self.index.device)

    def forward(
        self, x: Tensor, attn_mask: Optional[Tensor] = None, is_causal: bool = False
    ) -> Tensor:
        refuse_mask("efficientformer", attn_mask, is_causal)
        B, N = x.shape[:2]
        P, (H, W), heads = self.num_prefix_tokens, self.grid_size, self.num_heads
        torch._assert(
            N == P + H * W,
            "efficientformer got another number of tokens than its grid has; set_grid_size",
        )
        patches = x[:, P:]
        values = self.v(patches)
        # (B, heads, N, d)
        q = self.q(patches).reshape(B, H * W, heads, -1).transpose(1, 2) * self.scale
        k = self.k(patches).reshape(B, H * W, heads, -1).transpose(1, 2)
        v = values.reshape(B, H * W, heads, -1).transpose(1, 2)
        logits = self.talking_head1(q @ k.transpose(2, 3) + self.position_bias[:, self.index])
        weights = self.talking_head2(widen(logits).softmax(dim=-1).to(v.dtype))
        y = (self.attn_drop(weights) @ v).transpose(1, 2).reshape(B, H * W, -1)
        local = self.v_local(values.transpose(1, 2).reshape(B, -1, H, W))
        local = self.v_local_norm(local.flatten(2).transpose(1, 2).flatten(0, 1))
        y = self.act(y + local.reshape(y.shape))
        y = self.proj_drop(self.proj(y))
        return torch.cat([x[:, :P].to(y.dtype), y], dim=1)

    @torch.jit.ignore
    def fuse(self) -> None:
        """Fold the norm of the local branch; `efficient_vits.fuse` folds the others."""
        if isinstance(self.v_local_norm, nn.BatchNorm1d):
            self.v_local = fuse_conv_bn_eval(self.v_local, self.v_local_norm)
            self.v_local_norm = nn.Identity()

    @torch.jit.ignore
    def set_grid_size(self, grid_size: tuple[int, int]) -> None:
        """Resample the position biases to another grid."""
        old = self.position_bias
        new = self._resample(old.detach(), self.grid_size, grid_size)
        self.grid_size = grid_size
        self.position_bias = nn.Parameter(new, requires_grad=old.requires_grad)
        self.index = distance_index(grid_size, self.index.device)

    @torch.jit.ignore
    def resample_parameter(self, name: str, value: Tensor) -> Tensor:
        """Position biases (heads, N') of another, square, grid brought to this one's."""
        if name != "position_bias" or value.ndim != 2 or not value.numel():
            return value
        side = math.isqrt(value.shape[1])
        if side**2 != value.shape[1]:
            return value
        return self._resample(value, (side, side), self.grid_size)

    @staticmethod
    def _resample(value: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
        if tuple(old) == tuple(new):
            return value
        table = value.float().reshape(1, -1, *old)
        # Aligned corners: a distance of 0 stays one, and so does the longest.
        table = F.interpolate(table, size=tuple(new), mode="bicubic", align_corners=True)
        return table.reshape(value.shape[0], new[0] * new[1]).to(value.dtype)
