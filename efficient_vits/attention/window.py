r"""Window attention: tokens attend to those in their window, and every second block shifts it.

    y_n = sum_m softmax_m(q_n k_m / sqrt(d) + b[n - m]) v_m,    m in the window of n

Windows are squares of ``window_size`` tokens; blocks with odd index displace them by half of that.
b is learned per head and relative position (section 3.2, equation 4).

Source: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV
2021 (arXiv 2103.14030). Parameters, their names and their first values are those of timm's
`WindowAttention` (Apache-2.0). Here it is a mixer in a plain ViT, at one scale. A grid that is no
multiple of the window is padded, and nothing attends to the padding, where timm's Swin lets it take
part. Prefix tokens have no place in a window and pass by.
"""

from typing import Any, ClassVar, Final, Optional

import torch
from timm.layers import use_fused_attn
from timm.models import swin_transformer
from torch import Tensor, nn

from efficient_vits.attention._interface import (
    AttentionTraits,
    check_heads,
    refuse_mask,
    register_attention,
)
from efficient_vits.attention._windows import Windows, attention_in_windows, checked_windows
from efficient_vits.catalog import Paper


@register_attention(
    "window",
    models={"window_{size}": {}},
    vit={"class_token": False, "global_pool": "avg"},
    paper=Paper(
        title="Swin Transformer: Hierarchical Vision Transformer using Shifted Windows",
        first_author="Liu",
        venue="ICCV 2021",
        year=2021,
        arxiv="2103.14030",
    ),
)
class WindowAttention(swin_transformer.WindowAttention):
    """Attention inside windows, with a bias per relative position.

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
        check_heads("window", dim, num_heads)
        grid = checked_windows("window", grid_size, window_size)
        factory = {"device": device, "dtype": dtype}
        super().__init__(
            dim,
            num_heads,
            window_size=window_size,
            qkv_bias=qkv_bias,
            attn_drop=attn_drop,
            proj_drop=proj_drop,
            **factory,
        )
        if not proj_bias:
            self.proj = nn.Linear(dim, dim, bias=False, **factory)
        self.fused_attn = use_fused_attn()
        self.num_prefix_tokens = num_prefix_tokens
        self.windows = Windows(grid, window_size, depth % 2 == 1, **factory)

    def forward(
        self, x: Tensor, attn_mask: Optional[Tensor] = None, is_causal: bool = False
    ) -> Tensor:
        refuse_mask("window", attn_mask, is_causal)
        P = self.num_prefix_tokens
        tokens = self.windows.split(x[:, P:])
        B, T, A, C = tokens.shape
        qkv = self.qkv(tokens).reshape(B, T, A, 3, self.num_heads, C // self.num_heads)
        bias = self.relative_position_bias_table[self.relative_position_index]  # (A, A, heads)
        y = attention_in_windows(
            qkv.permute(3, 0, 1, 4, 2, 5),
            bias.permute(2, 0, 1),
            self.windows.mask,
            self.scale,
            self.attn_drop.p if self.training else 0.0,
            self.fused_attn,
        )
        y = self.windows.join(self.proj_drop(self.proj(y)))
        return torch.cat([x[:, :P], y.to(x.dtype)], dim=1)

    @torch.jit.ignore
    def set_grid_size(self, grid_size: tuple[int, int]) -> None:
        """Work on another grid; the parameters are the same for all."""
        self.windows.set_grid_size(checked_windows("window", grid_size, self.windows.window_size))
