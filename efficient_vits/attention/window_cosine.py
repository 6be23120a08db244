r"""Window attention by cosines, with a position bias that a small MLP makes.

    y_n = sum_m softmax_m(t cos(q_n, k_m) + 16 sigmoid(MLP(l(n - m)))) v_m,    m in the window of n

l is the signed logarithm of the relative position along both axes, so that windows of other sizes
have a bias too; t is learned per head, at most 100. Windows and their shift are those of
`efficient_vits.attention.window`.

Source: Liu et al., "Swin Transformer V2: Scaling Up Capacity and Resolution", CVPR 2022 (arXiv
2111.09883), sections 3.2 and 3.3. Parameters, their names and their first values are those of
timm's `WindowAttention` (Apache-2.0), but for a bias of the keys, which that class leaves out and
which is here so that a plain ViT's weights fit. Here it is a mixer in a plain ViT, at one scale,
with the norm before it. A grid that is no multiple of the window is padded, and nothing attends to
the padding, where timm's Swin lets it take part. Prefix tokens have no place in a window and pass
by.
"""

import math
from typing import Any, ClassVar, Final, Optional

import torch
from timm.layers import use_fused_attn
from timm.models import swin_transformer_v2
from torch import Tensor, nn

from efficient_vits._numerics import unit_vectors, widen
from efficient_vits.attention._interface import (
    AttentionTraits,
    check_heads,
    refuse_mask,
    register_attention,
)
from efficient_vits.attention._windows import Windows, attention_in_windows, checked_windows
from efficient_vits.catalog import Paper


@register_attention(
    "window_cosine",
    models={"window_cosine_{size}": {}},
    vit={"class_token": False, "global_pool": "avg"},
    paper=Paper(
        title="Swin Transformer V2: Scaling Up Capacity and Resolution",
        first_author="Liu",
        venue="CVPR 2022",
        year=2022,
        arxiv="2111.09883",
    ),
)
class CosineWindowAttention(swin_transformer_v2.WindowAttention):
    """Attention by cosines inside windows, with a continuous position bias.

    Args:
        dim: Channels, divisible by `num_heads`.
        attn_drop: Dropout on the attention weights.
        grid_size: Rows and columns of patch tokens; required.
        num_prefix_tokens: Tokens in front of them, which pass by as they are. A class token never
            sees the patches; pool these instead.
        depth: Index of the block; windows are shifted where it is odd.
        window_size: Side of a window in tokens. The parameters do not depend on the grid.

    Shape: (B, P + H * W, dim) -> the same.

    Raises:
        ValueError: No grid, no window, or heads that do not divide the channels.
    """

    traits: ClassVar[AttentionTraits] = AttentionTraits(
        grid=True, mixes_prefix=False, refuses=frozenset({"qk_norm", "scale_norm"})
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
        depth: int = 0,
        window_size: int = 7,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        check_heads("window_cosine", dim, num_heads)
        grid = checked_windows("window_cosine", grid_size, window_size)
        factory = {"device": device, "dtype": dtype}
        super().__init__(
            dim,
            (window_size, window_size),
            num_heads,
            qkv_bias=False,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            **factory,
        )
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias, **factory)
        if not proj_bias:
            self.proj = nn.Linear(dim, dim, bias=False, **factory)
        self.fused_attn = use_fused_attn()
        self.num_prefix_tokens = num_prefix_tokens
        self.windows = Windows(grid, window_size, depth % 2 == 1, **factory)

    def forward(
        self, x: Tensor, attn_mask: Optional[Tensor] = None, is_causal: bool = False
    ) -> Tensor:
        refuse_mask("window_cosine", attn_mask, is_causal)
        P = self.num_prefix_tokens
        tokens = self.windows.split(x[:, P:])
        B, T, A, C = tokens.shape
        qkv = self.qkv(tokens).reshape(B, T, A, 3, self.num_heads, C // self.num_heads)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).unbind(0)
        temperature = self.logit_scale.clamp(max=math.log(100.0)).exp()
        q = unit_vectors(widen(q)) * temperature
        y = attention_in_windows(
            torch.stack([q.to(v.dtype), unit_vectors(widen(k)).to(v.dtype), v]),
            self.position_bias(),
            self.windows.mask,
            1.0,
            self.attn_drop.p if self.training else 0.0,
            self.fused_attn,
        )
        y = self.windows.join(self.proj_drop(self.proj(y)))
        return torch.cat([x[:, :P], y.to(x.dtype)], dim=1)

    def position_bias(self) -> Tensor:
        """(heads, A, A) from the logarithmic coordinates of all relative positions."""
        table = 16 * self.cpb_mlp(self.relative_coords_table).sigmoid()
        table = table.reshape(-1, self.num_heads)
        return table[self.relative_position_index].permute(2, 0, 1)

    @torch.jit.ignore
    def set_grid_size(self, grid_size: tuple[int, int]) -> None:
        """Work on another grid; the parameters are the same for all."""
        self.windows.set_grid_size(
            checked_windows("window_cosine", grid_size, self.windows.window_size)
        )
