r"""Efficient modulation: a large depth-wise convolution modulates values, channel by channel.

    y = W_p (g(gelu(DWConv_k(f(x)))) * v(x)),    f, g, v: linear

f, the convolution and g make the context, which says for every token and channel how much of the
value gets through. v can be several times as wide as x; all its parts share one context, and the
values then pass a GELU of their own, so that the block is mixer and MLP in one.

Source: Ma et al., "Efficient Modulation for Vision Networks", ICLR 2024 (arXiv 2403.19963), section
3. Written anew (the authors' code is Apache-2.0). As in the authors' code, values as wide as x
have no GELU. Prefix tokens, which the paper does not have, pass by.
"""

from typing import Any, ClassVar, Final, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from efficient_vits.attention._interface import (
    AttentionTraits,
    optional_norm,
    refuse_mask,
    register_attention,
)
from efficient_vits.catalog import Paper


class GridModulation(nn.Module):
    """Efficient modulation on a grid of tokens.

    Args:
        dim: Channels.
        qkv_bias: Biases of the linear maps f, g and v.
        proj_bias: Bias of the output projection.
        proj_drop: Dropout on the output.
        norm_layer: Of `scale_norm`.
        scale_norm: Norm the modulated values.
        expansion: Width of the values, in multiples of `dim`.
        kernel_size: Rows and columns of the convolution; odd.

    Shape: (B, H, W, dim) -> the same, for any H and W.

    Raises:
        ValueError: An `expansion` below 1, or an even `kernel_size`.
    """

    expansion: Final[int]

    def __init__(
        self,
        dim: int,
        qkv_bias: bool = True,
        proj_bias: bool = True,
        proj_drop: float = 0.0,
        norm_layer: type[nn.Module] | None = None,
        scale_norm: bool = False,
        *,
        expansion: int = 1,
        kernel_size: int = 7,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        if expansion < 1:
            raise ValueError(f"efficient_modulation needs expansion >= 1, got {expansion}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"efficient_modulation needs an odd kernel_size, got {kernel_size}")
        self.expansion = expansion
        width = expansion * dim
        self.f = nn.Linear(dim, dim, bias=qkv_bias, **factory)
        self.conv = nn.Conv2d(
            dim, dim, kernel_size, padding=kernel_size // 2, groups=dim, **factory
        )
        self.g = nn.Linear(dim, dim, bias=qkv_bias, **factory)
        self.v = nn.Linear(dim, width, bias=qkv_bias, **factory)
        self.norm = optional_norm("efficient_modulation", scale_norm, norm_layer, width, **factory)
        self.proj = nn.Linear(width, dim, bias=proj_bias, **factory)
        self.proj_drop = nn.Dropout(proj_drop)

    def modulate(self, x: Tensor) -> Tensor:
        """Efficient modulation, (B, H, W, C) -> the same."""
        context = self.conv(self.f(x).permute(0, 3, 1, 2))
        context = self.g(F.gelu(context).permute(0, 2, 3, 1))
        y = self.v(x)
        if self.expansion == 1:
            y = y * context
        else:
            parts = F.gelu(y).unflatten(-1, [self.expansion, x.shape[-1]])
            y = (parts * context.unsqueeze(-2)).flatten(-2)
        return self.proj_drop(self.proj(self.norm(y)))

    def forward(self, x: Tensor) -> Tensor:
        return self.modulate(x)


@register_attention(
    "efficient_modulation",
    vit={"class_token": False, "global_pool": "avg"},
    paper=Paper(
        title="Efficient Modulation for Vision Networks",
        first_author="Ma",
        venue="ICLR 2024",
        year=2024,
        arxiv="2403.19963",
    ),
)
class EfficientModulation(GridModulation):
    """Efficient modulation between the patch tokens of a ViT.

    Args:
        dim: Channels.
        num_heads: Part of the interface; every channel is on its own here.
        qk_norm: Refused, as is `attn_drop`: there are no queries and no attention weights.
        grid_size: Rows and columns of patch tokens; required.
        num_prefix_tokens: Tokens in front of them, which pass by as they are. A class token never
            sees the patches; pool these instead.

    The other arguments are those of `GridModulation`. With the default ``expansion=1`` the MLP of
    the ViT keeps its part of the work.

    Shape: (B, P + H * W, dim) -> the same.

    Raises:
        ValueError: No grid, or what is refused here and by `GridModulation`.
    """

    traits: ClassVar[AttentionTraits] = AttentionTraits(
        grid=True, mixes_prefix=False, refuses=frozenset({"qk_norm"})
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
        grid_size: tuple[int, int] | None = None,
        num_prefix_tokens: int = 1,
        expansion: int = 1,
        kernel_size: int = 7,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if qk_norm:
            raise ValueError("efficient_modulation has no queries and keys; qk_norm must be False")
        if attn_drop:
            raise ValueError(
                f"efficient_modulation has no attention weights to drop, got {attn_drop=}; pass 0.0"
            )
        if grid_size is None:
            raise ValueError(
                "efficient_modulation convolves over the grid of patches; needs grid_size, got None"
            )
        super().__init__(
            dim,
            qkv_bias=qkv_bias,
            proj_bias=proj_bias,
            proj_drop=proj_drop,
            norm_layer=norm_layer,
            scale_norm=scale_norm,
            expansion=expansion,
            kernel_size=kernel_size,
            device=device,
            dtype=dtype,
        )
        self.grid_size = grid_size
        self.num_prefix_tokens = num_prefix_tokens

    def forward(
        self, x: Tensor, attn_mask: Optional[Tensor] = None, is_causal: bool = False
    ) -> Tensor:
        refuse_mask("efficient_modulation", attn_mask, is_causal)
        B, N, C = x.shape
        P, (H, W) = self.num_prefix_tokens, self.grid_size
        torch._assert(
            P + H * W == N,
            "efficient_modulation got another number of tokens than its grid has; set_grid_size",
        )
        y = self.modulate(x[:, P:].reshape(B, H, W, C)).reshape(B, H * W, C)
        return torch.cat([x[:, :P], y], dim=1)

    @torch.jit.ignore
    def set_grid_size(self, grid_size: tuple[int, int]) -> None:
        """Work on another grid; the parameters are the same for all."""
        self.grid_size = grid_size
